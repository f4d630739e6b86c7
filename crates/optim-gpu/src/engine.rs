//! One optimizer's state on the device, and its step.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use half::f16;
use optim_core::backend::{Plan, Record, Update, wrong_memory};
use optim_core::compressed;
use optim_core::rule::{Slot, SlotShape, Sparse};
use optim_core::{DType, DeviceMemory, Engine, Error, Grad, ParamMut, Result, Values};
use optim_shaders::Width;

use crate::GpuBuffer;
use crate::buffer::USAGE;
use crate::device::Context;
use crate::factored::Factored;
use crate::layout::{Layout, Piece, SLICE, bytes};
use crate::offload::{self, Offload};
use crate::pipeline::{Program, Stage, Sums};
use crate::rows::{self, RowGrad, Scratch};
use crate::schedule::{self, Dispatch, Pair, PartialSums, Parts, Schedule, Side};
use crate::transfer::{Region, copy_bytes};

/// Schedules that are kept: enough for gradients that alternate between a few sets of buffers.
const KEPT: usize = 4;

/// Places in the ring of records.
const RING: u64 = 64;

pub(crate) struct GpuEngine {
    context: Arc<Context>,
    program: Arc<Program>,
    names: Vec<String>,
    layout: Layout,
    /// Pages for each slot. Those of offloaded state are one and the same buffer.
    slots: Vec<Vec<wgpu::Buffer>>,
    /// How the tensors lie in them: as in `layout`, unless the slot has a shape of its own.
    slot_layouts: Vec<Layout>,
    /// For each slot of `f16` the elements of every tensor's; two of them lie in a word.
    halves: Vec<Option<Vec<usize>>>,
    /// The state, if it stays on the host.
    offload: Option<Offload>,
    /// Pages for host parameters and for host gradients; made at their first use.
    staged: [Vec<wgpu::Buffer>; 2],
    sums: Option<PartialSums>,
    factored: Option<Factored>,
    ring: Option<Ring>,
    /// For row-sparse gradients.
    scratch: Scratch,
    /// The most recently used first. They keep the caller's buffers alive.
    schedules: Vec<Schedule>,
    words: Vec<u32>,
}

/// The records of the coming steps. A step writes a place of its own, so that no step waits for an earlier one to be done with
/// its records.
struct Ring {
    buffer: wgpu::Buffer,
    /// The bytes of one place that a kernel sees.
    size: u64,
    next: u64,
}

impl Ring {
    const fn stride(&self) -> u64 {
        self.size.next_multiple_of(256)
    }
}

impl GpuEngine {
    pub(crate) fn new(context: Arc<Context>, plan: &Plan<'_>) -> Result<Self> {
        let rule = plan.rule.spec();
        let slots = rule.slots();
        let program = Arc::new(Program::new(plan.rule)?);
        if program.is_custom() {
            // What is wrong with the user's text shows now.
            for width in Width::ALL {
                let _ = context.kernel(&program, Stage::Update(width))?;
            }
        }
        let lens = || plan.parameters.iter().map(|parameter| parameter.len());
        let (window, sums) = match program.sums {
            Sums::Nothing if rule.offloaded() => (context.window.min(offload::WINDOW), None),
            Sums::Nothing | Sums::Factored => (context.window, None),
            Sums::Rule | Sums::Trust => {
                context.can_sum()?;
                (context.window.max(SLICE), Some(PartialSums::new(&context, lens())?))
            }
        };
        let layout = Layout::new(lens(), window);
        let lens_of = |slot: &Slot| -> Vec<usize> {
            plan.parameters.iter().map(|parameter| slot.shape.len(parameter.shape())).collect()
        };
        let halves: Vec<_> = slots.iter().map(|slot| (slot.dtype == DType::F16).then(|| lens_of(slot))).collect();
        let slot_layout = |(slot, halves): (&Slot, &Option<Vec<usize>>)| match (slot.shape, halves) {
            (_, Some(halves)) => Layout::new(halves.iter().map(|len| len.div_ceil(2)), window),
            (SlotShape::Same, None) => layout.clone(),
            (_, None) => Layout::new(lens_of(slot), window),
        };
        let slot_layouts: Vec<_> = slots.iter().zip(&halves).map(slot_layout).collect();
        let offload = rule.offloaded().then(|| Offload::new(&layout, &slots));
        let slots = match &offload {
            Some(_) => Offload::buffers(&context, &layout, &slots)?,
            None => resident(&context, &slot_layouts, &slots)?,
        };
        let factored = match program.sums {
            Sums::Factored => Some(Factored::new(&context, plan, &layout)?),
            Sums::Nothing | Sums::Rule | Sums::Trust => None,
        };
        Ok(Self {
            factored,
            slot_layouts,
            halves,
            names: plan.parameters.iter().map(|parameter| parameter.name().to_owned()).collect(),
            program,
            sums,
            layout,
            slots,
            offload,
            staged: Default::default(),
            ring: None,
            scratch: Scratch::default(),
            schedules: Vec::with_capacity(KEPT + 1),
            words: Vec::new(),
            context,
        })
    }

    /// Where the memory of a step lies; of a row-sparse gradient, its values. Refuses what is not this backend's.
    fn pairs<'a>(&self, params: &'a [ParamMut<'_>], grads: &'a [Grad<'_>]) -> Result<Vec<Pair<&'a GpuBuffer>>> {
        let mut pairs = Vec::with_capacity(params.len());
        for ((param, grad), name) in params.iter().zip(grads).zip(&self.names) {
            let other = |what, got| Error::DType { what, name: name.clone(), expected: DType::F32, got };
            let param_side = match param {
                ParamMut::F32(_) => Side::Host,
                ParamMut::Device(memory) => Side::Device(self.own("parameter", name, *memory)?),
                param => return Err(other("parameter", param.dtype())),
            };
            let grad_side = match grad {
                Grad::None => Side::Absent,
                Grad::F32(_) | Grad::Rows(_, Values::F32(_)) => Side::Host,
                Grad::Device(memory) | Grad::Rows(_, Values::Device(memory)) => {
                    Side::Device(self.own("gradient", name, *memory)?)
                }
                grad => return Err(other("gradient", grad.dtype().unwrap_or(DType::F32))),
            };
            let nothing = param.is_empty() || grad.is_none();
            pairs.push(if nothing { Pair::ABSENT } else { Pair { param: param_side, grad: grad_side } });
        }
        Ok(pairs)
    }

    fn own<'a>(&self, what: &'static str, name: &str, memory: &'a dyn DeviceMemory) -> Result<&'a GpuBuffer> {
        let expected = "a GpuBuffer or a slice";
        let Some(buffer) = memory.as_any().downcast_ref::<GpuBuffer>() else {
            return Err(wrong_memory(what, name, expected, "another backend's memory"));
        };
        match &buffer.home {
            Some(home) if !home.shares_device_with(&self.context) => {
                Err(wrong_memory(what, name, "a buffer of this backend's device", "one of another device"))
            }
            _ => Ok(buffer),
        }
    }

    /// Makes the pages for what comes from the host, if there is any and they are not there yet.
    fn stage(&mut self, pairs: &[Pair<&GpuBuffer>], dense: &[Pair<&GpuBuffer>]) -> Result<()> {
        let params = pairs.iter().any(|pair| matches!(pair.param, Side::Host));
        let grads = dense.iter().any(|pair| matches!(pair.grad, Side::Host));
        for (staged, (label, used)) in self.staged.iter_mut().zip([("parameters", params), ("gradients", grads)]) {
            if used && staged.is_empty() {
                *staged = self.context.pages(&self.layout, label)?;
            }
        }
        Ok(())
    }

    /// The row-sparse gradients of a step, with memory for what they need.
    fn rows<'a>(
        &mut self,
        update: &Update<'a>,
        pairs: &[Pair<&GpuBuffer>],
        grads: &[Grad<'_>],
    ) -> Result<Vec<RowGrad<'a>>> {
        let mut row_grads = Vec::new();
        for (tensor, (pair, grad)) in pairs.iter().zip(grads).enumerate() {
            let Grad::Rows(indices, values) = grad else { continue };
            if pair.is_absent() {
                continue;
            }
            rows::check_len(&self.context, values.len())?;
            let (list, width) = (&update.rows[tensor], values.len() / indices.len().max(1));
            let values = match pair.grad.device() {
                Some(memory) if memory.len > 0 => (memory.buffer.clone(), memory.offset),
                _ => (self.scratch.values(&self.context, tensor, values.len())?, 0),
            };
            let sums = if list.rows.len() < list.positions.len() {
                Some(self.scratch.sums(&self.context, tensor, list.rows.len() * width)?)
            } else {
                None
            };
            row_grads.push(RowGrad { tensor, list, width, values, sums });
        }
        Ok(row_grads)
    }

    /// Puts the records into words, and makes a ring with room for them.
    fn prepare(&mut self, records: &[Record]) -> Result<()> {
        self.words.clear();
        for Record { shaping, trust, scalars } in records {
            self.words.extend([shaping.factor.to_bits(), shaping.weight_decay.to_bits(), 0, 0]);
            self.words.extend(bytemuck::cast_ref::<_, [u32; 4]>(trust));
            self.words.extend(scalars.words());
        }
        let size = bytes(self.words.len());
        if self.ring.as_ref().is_none_or(|ring| ring.size < size) {
            let stride = size.next_multiple_of(256);
            let buffer = self.context.create_buffer("records", RING * stride, USAGE, false)?;
            self.ring = Some(Ring { buffer, size, next: 0 });
            self.schedules.clear();
        }
        Ok(())
    }

    /// Puts the schedule for this memory in front, made if need be.
    fn schedule(&mut self, pairs: &[Pair<&GpuBuffer>], record_of: &[u32]) -> Result<()> {
        if let Some(known) = self.schedules.iter().position(|schedule| schedule.is_for(pairs, record_of)) {
            self.schedules[..=known].rotate_right(1);
            return Ok(());
        }
        let Some(parts) = self.parts() else { return Ok(()) };
        let schedule = Schedule::new(&parts, pairs, record_of)?;
        self.schedules.insert(0, schedule);
        self.schedules.truncate(KEPT);
        Ok(())
    }

    /// What dispatches are made from; nothing before there are records.
    fn parts(&self) -> Option<Parts<'_>> {
        let ring = self.ring.as_ref()?;
        Some(Parts {
            context: &self.context,
            program: &self.program,
            sums: self.sums.as_ref(),
            factored: self.factored.as_ref(),
            names: &self.names,
            layout: &self.layout,
            slots: &self.slots,
            slot_layouts: &self.slot_layouts,
            staged: [&self.staged[0], &self.staged[1]],
            records: (&ring.buffer, ring.size),
        })
    }

    /// Writes the records to the ring's next place: where that begins.
    fn write_records(&mut self) -> Result<u32> {
        let Some(ring) = &mut self.ring else { return Ok(0) };
        let offset = ring.next * ring.stride();
        let dynamic = u32::try_from(offset)
            .map_err(|_| Error::Unsupported { what: "this number of groups".into(), backend: "gpu".into() })?;
        ring.next = (ring.next + 1) % RING;
        let words = bytemuck::cast_slice(&self.words);
        self.context.scoped(|| self.context.queue.write_buffer(&ring.buffer, offset, words))?;
        Ok(dynamic)
    }

    /// Encodes those of the step's dispatches: the schedule's in front, then others.
    fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        others: &[Dispatch],
        records: u32,
        which: impl Fn(&Dispatch) -> bool,
    ) -> Result<()> {
        let Some(schedule) = self.schedules.first() else { return Ok(()) };
        let dispatches = || schedule.dispatches.iter().chain(others).filter(|dispatch| which(dispatch));
        let dynamic = [records];
        self.context.scoped(|| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for dispatch in dispatches() {
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, &dispatch.bindings, &dynamic[..usize::from(dispatch.records)]);
                pass.dispatch_workgroups(dispatch.grid.0, dispatch.grid.1, 1);
            }
        })?;
        self.context.counts.dispatches.fetch_add(dispatches().count() as u64, Relaxed);
        Ok(())
    }

    /// The step's dispatches, page by page with the state that comes and goes.
    fn encode_offloaded(
        &self,
        offload: &mut Offload,
        mut encoder: wgpu::CommandEncoder,
        others: &[Dispatch],
        records: u32,
    ) -> Result<wgpu::CommandEncoder> {
        self.encode(&mut encoder, others, records, |dispatch| dispatch.page.is_none())?;
        let dispatches = || self.schedules.first().into_iter().flat_map(|schedule| &schedule.dispatches).chain(others);
        for page in 0..self.layout.pages.len() {
            if dispatches().any(|dispatch| dispatch.page == Some(page)) {
                offload.upload(&self.context, &mut encoder, &self.slots, page)?;
                self.encode(&mut encoder, others, records, |dispatch| dispatch.page == Some(page))?;
                offload.download(&self.context, encoder, &self.slots, page)?;
                encoder = self.context.encoder()?;
            }
        }
        Ok(encoder)
    }

    fn slot_regions(&self, parameter: usize, slot: usize) -> (&[Piece], Vec<Region<'_>>) {
        let pieces = self.slot_layouts[slot].pieces_of(parameter);
        (pieces, pieces.iter().map(|piece| region(&self.slots[slot], piece)).collect())
    }
}

/// Pages for each slot, with the values of the beginning.
fn resident(context: &Context, layouts: &[Layout], slots: &[Slot]) -> Result<Vec<Vec<wgpu::Buffer>>> {
    let mut encoder = context.encoder()?;
    let mut pages_of = Vec::with_capacity(slots.len());
    for (slot, layout) in slots.iter().zip(layouts) {
        let pages = context.pages(layout, slot.name)?;
        if slot.init.to_bits() != 0 {
            let word = if slot.dtype == DType::F16 { packed(&[slot.init; 2])[0] } else { slot.init };
            for (buffer, &span) in pages.iter().zip(&layout.pages) {
                context.fill(&mut encoder, Region { buffer, offset: 0, span }, word)?;
            }
        }
        pages_of.push(pages);
    }
    context.submit(encoder)?;
    Ok(pages_of)
}

/// Numbers as `f16`, two in a word, the first in its low half: as `f32`s, of which only the bits mean something.
fn packed(values: &[f32]) -> Vec<f32> {
    let mut halves = vec![f16::ZERO; values.len().next_multiple_of(2)];
    compressed::encode(values, &mut halves);
    bytemuck::pod_collect_to_vec(&halves)
}

/// The first numbers of such words.
fn unpacked(words: &[f32], len: usize) -> Vec<f32> {
    let halves: &[f16] = bytemuck::cast_slice(words);
    let mut values = vec![0.0; len];
    compressed::decode(&halves[..len], &mut values);
    values
}

/// A piece, with its padding, in memory of ours.
fn region<'a>(pages: &'a [wgpu::Buffer], piece: &Piece) -> Region<'a> {
    Region { buffer: &pages[piece.page], offset: bytes(piece.offset), span: piece.span() }
}

impl Engine for GpuEngine {
    fn update(&mut self, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<()> {
        self.context.ready()?;
        let mut pairs = self.pairs(params, grads)?;
        for (pair, (rows, grad)) in pairs.iter_mut().zip(update.rows.iter().zip(grads)) {
            if matches!(grad, Grad::Rows(..)) && rows.rows.is_empty() && update.sparse != Sparse::AllRows {
                *pair = Pair::ABSENT;
            }
        }
        if pairs.iter().all(Pair::is_absent) {
            return Ok(());
        }
        // Only what is dense has a schedule that is kept.
        let is_sparse = |grad: &Grad<'_>| matches!(grad, Grad::Rows(..));
        let dense = |(pair, grad): (&Pair<_>, _)| if is_sparse(grad) { Pair::ABSENT } else { *pair };
        let dense: Vec<Pair<&GpuBuffer>> = pairs.iter().zip(grads).map(dense).collect();
        self.stage(&pairs, &dense)?;
        self.prepare(update.records)?;
        self.schedule(&dense, update.record_of)?;
        let row_grads = self.rows(update, &pairs, grads)?;
        let sparse = match self.parts() {
            Some(parts) if !row_grads.is_empty() => {
                schedule::check(&parts, &pairs)?;
                rows::dispatches(&parts, &row_grads, &pairs, update.record_of, update.sparse)?
            }
            _ => Vec::new(),
        };
        let on_host = |side: fn(&Pair<&GpuBuffer>) -> bool| -> Vec<Piece> {
            self.layout.pieces.iter().filter(|piece| side(&pairs[piece.tensor])).copied().collect()
        };
        let host_params = on_host(|pair| matches!(pair.param, Side::Host));
        let host_grads = on_host(|pair| matches!(pair.grad, Side::Host));

        // From here on things change.
        let mut encoder = self.context.encoder()?;
        let values_of_params = host_params.iter().filter_map(|piece| match &params[piece.tensor] {
            ParamMut::F32(values) => Some((region(&self.staged[0], piece), &values[piece.range()])),
            _ => None,
        });
        let values_of_grads = host_grads.iter().filter_map(|piece| match grads[piece.tensor] {
            Grad::F32(values) => Some((region(&self.staged[1], piece), &values[piece.range()])),
            _ => None,
        });
        let values_of_rows = row_grads.iter().filter_map(|rows| match grads[rows.tensor] {
            Grad::Rows(_, Values::F32(values)) => {
                Some((Region { buffer: &rows.values.0, offset: 0, span: values.len() }, values))
            }
            _ => None,
        });
        let uploads: Vec<_> = values_of_params.chain(values_of_grads).chain(values_of_rows).collect();
        self.context.upload(&mut encoder, &uploads)?;
        let records = self.write_records()?;
        match self.offload.take() {
            Some(mut offload) => {
                let encoded = self.encode_offloaded(&mut offload, encoder, &sparse, records);
                self.offload = Some(offload);
                encoder = encoded?;
            }
            None => self.encode(&mut encoder, &sparse, records, |_| true)?,
        }

        let regions: Vec<_> = host_params.iter().map(|piece| region(&self.staged[0], piece)).collect();
        self.context.download(encoder, &regions, |item, first, bytes| {
            let piece = host_params[item];
            if let ParamMut::F32(values) = &mut params[piece.tensor] {
                let Range { start, end } = piece.range();
                copy_bytes(bytes, &mut values[(start + first).min(end)..end]);
            }
        })
    }

    fn read_slot(&self, parameter: usize, slot: usize) -> Result<Vec<f32>> {
        self.context.ready()?;
        if let Some(offload) = &self.offload {
            return Ok(offload.read(slot, self.layout.pieces_of(parameter)));
        }
        let (pieces, regions) = self.slot_regions(parameter, slot);
        let words = self.context.read(&regions, pieces.iter().map(|piece| piece.len).sum())?;
        Ok(match &self.halves[slot] {
            Some(lens) => unpacked(&words, lens[parameter]),
            None => words,
        })
    }

    fn write_slot(&mut self, parameter: usize, slot: usize, values: &[f32]) -> Result<()> {
        self.context.ready()?;
        if let Some(offload) = &mut self.offload {
            offload.write(slot, self.layout.pieces_of(parameter), values);
            return Ok(());
        }
        let words = self.halves[slot].is_some().then(|| packed(values));
        let values = words.as_deref().unwrap_or(values);
        let (pieces, regions) = self.slot_regions(parameter, slot);
        let mut encoder = self.context.encoder()?;
        // The padding stays as it is.
        let regions = regions.into_iter().zip(pieces).map(|(region, piece)| Region { span: piece.len, ..region });
        let uploads: Vec<_> = regions.zip(pieces.iter().map(|piece| &values[piece.range()])).collect();
        self.context.upload(&mut encoder, &uploads)?;
        self.context.submit(encoder)?;
        Ok(())
    }
}

impl fmt::Debug for GpuEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuEngine").field("program", &self.program).finish_non_exhaustive()
    }
}
