//! The guard, on the device: gradients are measured, one workgroup decides, completes the step's records and moves loss scale and
//! counters on, and the verdict is copied to where the host finds it when it looks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use optim_core::backend::Tensor;
use optim_core::guard::{Control, Guard, Scaler, Skip, Verdict};
use optim_core::{DType, Error, Result};
use optim_shaders::{Access, Format};

use crate::GpuBuffer;
use crate::belt::{Mapped, Write, map_on_submit};
use crate::buffer::USAGE;
use crate::device::Context;
use crate::layout::{NO_CARRY, SLICE, Span, bytes, carries, grid, word};
use crate::pipeline::Stage;
use crate::schedule::{Binding, Dispatch, Parts};
use crate::transfer::Region;

/// The lanes of a workgroup that sums.
const LANES: u64 = optim_shaders::LANES as u64;

/// The words of a verdict before its norms.
const HEAD: usize = 8;

/// What the kernel says of a step that runs in another order than it was recorded in.
const OUT_OF_TURN: u32 = 3;

/// How long another thread may take between taking a callback and calling it.
const CALLBACK: Duration = Duration::from_millis(100);

/// What the kernels decide by: `Guard` in `guard.wgsl`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Head {
    factor: f32,
    clip: u32,
    first: u32,
    records: u32,
    growth: f32,
    window: u32,
    floor: f32,
    cap: f32,
    updates: u32,
    pad: [u32; 3],
}

impl Head {
    pub(crate) fn new(guard: &Guard, records: usize) -> Self {
        let none = Scaler { factor: 1.0, window: 0, floor: 0.0, cap: 0.0 };
        let Scaler { factor: growth, window, floor, cap } = guard.scaler.unwrap_or(none);
        let updates = word(records / guard.records.max(1));
        let Guard { factor, clip, first, records, .. } = *guard;
        Self {
            factor,
            clip: clip as u32,
            first,
            records: word(records),
            growth,
            window,
            floor,
            cap,
            updates,
            pad: [0; 3],
        }
    }
}

/// What an engine with a guard keeps.
#[derive(Debug)]
pub(crate) struct GuardMemory {
    /// [`Control`], and zeros. The first word is the loss scale.
    control: GpuBuffer,
    /// What else there is, once a step was guarded.
    measures: Option<Measures>,
    /// Verdicts on their way, the oldest first.
    pending: VecDeque<Reading>,
    /// Buffers for more of them.
    free: Vec<wgpu::Buffer>,
    /// The number of verdicts that were asked for.
    asked: u32,
}

/// What is measured and decided.
#[derive(Debug)]
pub(crate) struct Measures {
    /// The squares of each slice, and whether all of it is finite.
    parts: wgpu::Buffer,
    /// For each tensor its first part, and last where they end.
    starts: Vec<usize>,
    /// The running sums of slices that lie in two windows.
    carries: wgpu::Buffer,
    /// Those of each tensor.
    measured: wgpu::Buffer,
    group_of: wgpu::Buffer,
    /// [`Head`], and the records of each update that a step may be.
    variants: wgpu::Buffer,
    verdict: wgpu::Buffer,
}

/// A verdict that the device copies to the host, and behind it a number that only this step has: the one comes with the other.
#[derive(Debug)]
pub(crate) struct Reading {
    buffer: wgpu::Buffer,
    number: u32,
    /// `None` if only the caller knows when it is submitted.
    submission: Option<wgpu::SubmissionIndex>,
    state: Asked,
}

/// How far a verdict has come.
#[derive(Debug)]
enum Asked {
    Waiting(Mapped),
    There,
    /// The commands were dropped.
    Dropped,
}

impl Reading {
    /// Has the commands bring the verdict, and it mapped after them.
    pub(crate) fn bring(&mut self, encoder: &mut wgpu::CommandEncoder, verdict: Region<'_>) {
        encoder.copy_buffer_to_buffer(verdict.buffer, verdict.offset, &self.buffer, 0, verdict.size as u64);
        self.state = Asked::Waiting(map_on_submit(encoder, &self.buffer, wgpu::MapMode::Read));
    }

    /// What is written behind the verdict.
    pub(crate) fn number(&self) -> Write<'_> {
        (&self.buffer, self.buffer.size() - 4, bytemuck::bytes_of(&self.number))
    }

    /// Looks whether it is there.
    fn look(&mut self, context: &Context) -> Result<()> {
        let Asked::Waiting(mapped) = &self.state else { return Ok(()) };
        match mapped.try_recv() {
            Ok(Ok(())) => self.state = Asked::There,
            Ok(Err(error)) => return Err(context.find_lost(error)),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => self.state = Asked::Dropped,
        }
        Ok(())
    }

    /// Waits until it is there.
    fn wait(&mut self, context: &Context) -> Result<()> {
        self.look(context)?;
        let Asked::Waiting(mapped) = &self.state else { return Ok(()) };
        context.wait(self.submission.clone())?;
        // Another thread that waits for this device may have taken the callback, and be about to call it.
        let patience = if self.submission.is_some() { context.timeout } else { CALLBACK };
        self.state = match mapped.recv_timeout(patience) {
            Ok(Ok(())) => Asked::There,
            Ok(Err(error)) => return Err(context.find_lost(error)),
            Err(RecvTimeoutError::Disconnected) => Asked::Dropped,
            Err(RecvTimeoutError::Timeout) if self.submission.is_none() => {
                let (what, expected) = ("the verdict of a recorded step", "submit its encoder first");
                return Err(Error::State { what, expected });
            }
            Err(RecvTimeoutError::Timeout) => return Err(context.timed_out()),
        };
        Ok(())
    }
}

impl GuardMemory {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        let buffer = context.create_buffer("control", 256, USAGE, true)?;
        let control = Control::default();
        context.write_mapped(&buffer, |view| {
            view.slice(..size_of::<Control>()).copy_from_slice(bytemuck::bytes_of(&control));
        })?;
        let home = Some(Arc::clone(context));
        let control = GpuBuffer { buffer, offset: 0, len: 1, dtype: DType::F32, padded: false, home };
        Ok(Self { control, measures: None, pending: VecDeque::new(), free: Vec::new(), asked: 0 })
    }

    /// The loss scale.
    pub(crate) fn loss_scale(&self) -> &GpuBuffer {
        &self.control
    }

    /// What the device has made of loss scale and counters. Waits for it.
    pub(crate) fn control(&self, context: &Context) -> Result<Control> {
        let mut control = Control::zeroed();
        let region = Region { buffer: &self.control.buffer, offset: 0, size: size_of::<Control>() };
        context.read(&[region], bytemuck::bytes_of_mut(&mut control))?;
        Ok(control)
    }

    pub(crate) fn set_control(&self, context: &Context, control: &Control) -> Result<()> {
        let words = bytemuck::bytes_of(control);
        context.scoped(|| context.queue.write_buffer(&self.control.buffer, 0, words))
    }

    /// Makes what a guarded step needs and there is not yet: whether something took the place of what dispatches were made with.
    pub(crate) fn need(
        &mut self,
        context: &Context,
        tensors: &[Tensor],
        groups: usize,
        records: usize,
    ) -> Result<bool> {
        let size = size_of::<Head>() as u64 + bytes(records);
        if let Some(measures) = &mut self.measures {
            if measures.variants.size() >= size {
                return Ok(false);
            }
            measures.variants = variants(context, size)?;
            return Ok(true);
        }
        context.can_sum()?;
        let mut starts = vec![0];
        for tensor in tensors {
            starts.push(starts[starts.len() - 1] + tensor.parameter.len().div_ceil(SLICE));
        }
        let group_of: Vec<u32> = tensors.iter().map(|tensor| word(tensor.group)).collect();
        let table = context.create_buffer("groups", bytes(group_of.len()), USAGE, true)?;
        context.write_mapped(&table, |view| view.copy_from_slice(bytemuck::cast_slice(&group_of)))?;
        let buffer = |label, words| context.create_buffer(label, bytes(words), USAGE, false);
        self.measures = Some(Measures {
            parts: buffer("guard, parts", 2 * starts[tensors.len()].max(1))?,
            carries: context.create_buffer("guard, carries", 2 * LANES * 32, USAGE, false)?,
            measured: buffer("guard, measured", 2 * tensors.len())?,
            verdict: buffer("verdict", HEAD + groups)?,
            variants: variants(context, size)?,
            group_of: table,
            starts,
        });
        Ok(true)
    }

    /// What there is to measure with, once it is [needed](Self::need).
    pub(crate) fn measures(&self) -> Option<(&Measures, Binding<'_>)> {
        let control = &self.control.buffer;
        self.measures.as_ref().map(|measures| (measures, (control, 0, size_of::<Control>() as u64)))
    }

    /// Where what the coming step is decided by stands, and behind it the records of each update that it may be.
    pub(crate) fn variants(&self) -> Option<&wgpu::Buffer> {
        self.measures.as_ref().map(|measures| &measures.variants)
    }

    /// The last verdict, in the device's memory.
    pub(crate) fn verdict_region(&self) -> Option<Region<'_>> {
        let buffer = &self.measures.as_ref()?.verdict;
        Some(Region { buffer, offset: 0, size: usize::try_from(buffer.size()).unwrap_or(usize::MAX) })
    }

    /// Makes ready for the verdict of a step that is not waited for.
    pub(crate) fn ask(&mut self, context: &Context) -> Result<Option<Reading>> {
        let Some(Measures { verdict, .. }) = &self.measures else { return Ok(None) };
        let buffer = match self.free.pop() {
            Some(buffer) => buffer,
            None => {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                context.create_buffer("verdict, down", verdict.size() + 4, usage, false)?
            }
        };
        self.asked = self.asked.wrapping_add(1);
        Ok(Some(Reading { buffer, number: self.asked, submission: None, state: Asked::Dropped }))
    }

    /// Expects a verdict, of a submission if that is known.
    pub(crate) fn expect(&mut self, reading: Reading, submission: Option<wgpu::SubmissionIndex>) {
        self.pending.push_back(Reading { submission, ..reading });
    }

    /// Has the device tell whether the oldest verdict is there.
    pub(crate) fn poll(&mut self, context: &Context) -> Result<()> {
        let Some(oldest) = self.pending.front_mut() else { return Ok(()) };
        oldest.look(context)?;
        if matches!(oldest.state, Asked::Waiting(_)) { context.poll() } else { Ok(()) }
    }

    /// The oldest verdict that is on its way; `None` if there is none or, without `wait`, it is not there yet.
    pub(crate) fn verdict(&mut self, context: &Context, wait: bool) -> Result<Option<Verdict>> {
        let Some(oldest) = self.pending.front_mut() else { return Ok(None) };
        if wait {
            oldest.wait(context)?
        } else {
            oldest.look(context)?
        }
        if matches!(oldest.state, Asked::Waiting(_)) {
            return Ok(None);
        }
        let Some(Reading { buffer, number, state, .. }) = self.pending.pop_front() else { return Ok(None) };
        if matches!(state, Asked::Dropped) {
            return Err(Error::StepLost);
        }
        let view = buffer.get_mapped_range(..).map_err(|error| context.find_lost(error))?;
        let (words, behind) = view.split_at(view.len() - 4);
        // Commands that the device refused leave what was there before.
        let verdict = if behind == bytemuck::bytes_of(&number) { verdict(words) } else { Err(Error::StepLost) };
        drop(view);
        buffer.unmap();
        self.free.push(buffer);
        verdict.map(Some)
    }
}

/// A buffer for so many bytes of records, and some more: each step that is pending adds another set.
fn variants(context: &Context, size: u64) -> Result<wgpu::Buffer> {
    let (expected, got) = (size, context.binding);
    if expected > got {
        return Err(Error::DeviceLimit { what: "max_storage_buffer_binding_size", expected, got });
    }
    context.create_buffer("variants", size.next_power_of_two().min(got), USAGE, false)
}

/// What the kernel wrote.
pub(crate) fn verdict(bytes: &[u8]) -> Result<Verdict> {
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(bytes);
    let &[skip, first_bad, norm, clip, scale_before, scale, bad, applied, ref group_norms @ ..] = &words[..] else {
        return Err(Error::Device { detail: format!("a verdict of {} bytes", bytes.len()) });
    };
    let skip = match skip {
        OUT_OF_TURN => return Err(Error::StepLost),
        0 => None,
        skip if skip == Skip::NotFinite as u32 => Some(Skip::NotFinite),
        _ => Some(Skip::NormOverflow),
    };
    let [norm, clip, scale_before, scale] = [norm, clip, scale_before, scale].map(f32::from_bits);
    Ok(Verdict {
        skip,
        first_bad: usize::try_from(first_bad).ok().filter(|_| first_bad != u32::MAX),
        norm,
        clip,
        scale_before,
        scale,
        bad,
        applied,
        group_norms: group_norms.iter().copied().map(f32::from_bits).collect(),
    })
}

/// A slice of a gradient, as far as it lies in one piece: `Stretch` in `measure.wgsl`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Measure {
    grad: u32,
    begin: u32,
    end: u32,
    part: u32,
    resumed: u32,
    carried: u32,
}

/// Elements of a gradient, to be measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elements {
    pub(crate) tensor: usize,
    /// The first element, within the gradient, and how many.
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// The elements of the gradient.
    pub(crate) whole: usize,
    /// The elements of all pieces but the last.
    pub(crate) window: usize,
    /// The first element, within the binding.
    pub(crate) at: u32,
}

impl Measures {
    /// The slices of elements.
    pub(crate) fn slices(&self, elements: Elements) -> impl Iterator<Item = Measure> {
        let Elements { tensor, start, len, whole, window, at } = elements;
        let (part, end) = (self.starts[tensor], start + len);
        let [resumed, carried] = carries(start, window);
        (start / SLICE..end.div_ceil(SLICE)).map(move |slice| {
            let first = slice * SLICE;
            let begin = start.max(first);
            Measure {
                grad: at.wrapping_add(word(first)).wrapping_sub(word(start)),
                begin: word(begin - first),
                end: word(end.min(first + SLICE) - first),
                part: word(part + slice),
                resumed: if begin > first { resumed } else { NO_CARRY },
                carried: if end < whole.min(first + SLICE) { carried } else { NO_CARRY },
            }
        })
    }

    /// Measures the slices in a table.
    pub(crate) fn measure(
        &self,
        parts: &Parts<'_>,
        control: Binding<'_>,
        (grad, access): (Format, Access),
        (table, slices): (Binding<'_>, usize),
        (tensor, grads): (usize, Binding<'_>),
    ) -> Result<Dispatch> {
        let kernel = parts.context.kernel(parts.accumulate, Stage::Gradients(grad, access))?;
        let bindings = [whole(&self.variants), table, control, grads, whole(&self.parts), whole(&self.carries)];
        let bindings = parts.bind(&kernel, tensor, &bindings)?;
        Ok(Dispatch { pipeline: kernel.pipeline, bindings, grid: grid(slices), page: None })
    }

    /// Adds up the slices of gradients of so many elements each, and decides.
    pub(crate) fn decide(&self, parts: &Parts<'_>, control: Binding<'_>, lens: &[usize]) -> Result<Vec<Dispatch>> {
        let span = |(&start, &len): (&usize, &usize)| Span::new(start..start + len.div_ceil(SLICE), 0);
        let spans: Vec<_> = self.starts.iter().zip(lens).map(span).collect();
        let tables = parts.tables("spans", &[&spans])?;
        let kernel = parts.context.kernel(parts.accumulate, Stage::Totals)?;
        let bindings = [tables[0].binding(), whole(&self.parts), whole(&self.measured)];
        let bindings = parts.context.bind(&kernel.bindings, &bindings)?;
        let totals = Dispatch { pipeline: kernel.pipeline, bindings, grid: grid(spans.len()), page: None };

        let kernel = parts.context.kernel(parts.accumulate, Stage::Decide)?;
        let bindings = [
            parts.records(),
            whole(&self.variants),
            whole(&self.measured),
            whole(&self.group_of),
            control,
            whole(&self.verdict),
        ];
        let bindings = parts.context.bind(&kernel.bindings, &bindings)?;
        let decide = Dispatch { pipeline: kernel.pipeline, bindings, grid: grid(1), page: None };
        Ok(vec![totals, decide])
    }
}

fn whole(buffer: &wgpu::Buffer) -> Binding<'_> {
    (buffer, 0, buffer.size())
}
