//! One optimizer's state on the device, and its step.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytemuck::Zeroable;
use optim_core::backend::{
    FROZEN, Part, Plan, Progress, Record, RowList, Shaping, Stages, Tensor, Trust, Update, wrong_memory,
};
use optim_core::guard::{Control, Guard, Verdict};
use optim_core::rule::{Slot, Sparse};
use optim_core::{DType, DeviceMemory, Engine, Error, Grad, ParamMut, Result, Values};
use optim_shaders::{Access, Format, Work};

use crate::GpuBuffer;
use crate::belt::{Belt, Recorded};
use crate::buffer::USAGE;
use crate::device::Context;
use crate::gather::Moves;
use crate::guard::{self, GuardMemory, Head, Reading};
use crate::kind::{self, Kind, Own};
use crate::layout::{Piece, bytes};
use crate::offload::Offload;
use crate::pipeline::{Program, Stage};
use crate::rows::{self, RowGrad, Scratch};
use crate::schedule::{self, Decision, Dispatch, Job, Pair, Parts, Schedule, Side};
use crate::transfer::{Region, copy_bytes};

/// Schedules that are kept: enough for gradients that alternate between a few sets of buffers.
const KEPT: usize = 4;

/// The words of a record.
const RECORD: usize = 32;

/// The flag of a record's shaping with which nothing is updated, as in `prelude.wgsl`, and its byte in a record.
const SKIP: u32 = 2;
const FLAGS: u64 = std::mem::offset_of!(Shaping, flags) as u64;

pub(crate) struct GpuEngine {
    context: Arc<Context>,
    tensors: Vec<Tensor>,
    /// For each rule its slots.
    slots: Vec<Vec<Slot>>,
    kinds: Vec<Kind>,
    /// For each tensor its kind, and which of that kind's members it is.
    kind_of: Vec<(usize, usize)>,
    /// The program that accumulates.
    accumulate: Arc<Program>,
    /// What is bound where there is nothing.
    nothing: wgpu::Buffer,
    /// The records of a step.
    records: Option<wgpu::Buffer>,
    belt: Belt,
    /// For each tensor whether the step that was to set master and average was lost.
    unseeded: Vec<bool>,
    /// One word: 0 until one of the recorded steps that are to set masters and averages has done so, [`SKIP`] from then on.
    seeded: Option<wgpu::Buffer>,
    /// For row-sparse gradients.
    scratch: Scratch,
    /// The most recently used first. They keep the caller's buffers alive.
    schedules: Vec<Schedule>,
    words: Vec<u32>,
    groups: usize,
    guard: GuardMemory,
    /// For each tensor whether its gradient is shaped row by row in the current step.
    by_rows: Vec<bool>,
    /// The running sums of rows that lie in two pieces.
    carries: wgpu::Buffer,
    /// Whether averages are in the parameters' memory.
    swapped: bool,
}

/// Pieces, each with its kind.
type Pieces = Vec<(usize, Piece)>;

/// Dispatches that are made for one step: what comes before the schedule's updates, and what after them.
#[derive(Default)]
struct Others {
    first: Vec<Dispatch>,
    last: Vec<Dispatch>,
}

impl GpuEngine {
    pub(crate) fn new(context: Arc<Context>, plan: &Plan<'_>) -> Result<Self> {
        let mut programs: Vec<(Arc<Program>, Vec<usize>)> = Vec::new();
        let mut kind_of = Vec::with_capacity(plan.tensors.len());
        for (index, tensor) in plan.tensors.iter().enumerate() {
            let program = Program::new(&plan.rules[tensor.rule], tensor)?;
            let kind = programs.iter().position(|(known, _)| **known == program).unwrap_or_else(|| {
                programs.push((Arc::new(program), Vec::new()));
                programs.len() - 1
            });
            let members = &mut programs[kind].1;
            kind_of.push((kind, members.len()));
            members.push(index);
        }
        for (program, _) in programs.iter().filter(|(program, _)| program.is_custom()) {
            // What is wrong with the user's text shows now.
            for access in Access::ALL {
                let _ = context.kernel(program, Stage::Update(Format::F32, access, false))?;
            }
        }
        let kind = |(program, members)| Kind::new(&context, plan, program, members);
        Ok(Self {
            kinds: programs.into_iter().map(kind).collect::<Result<_>>()?,
            kind_of,
            tensors: plan.tensors.to_vec(),
            slots: plan.rules.iter().map(|rule| rule.spec().slots()).collect(),
            accumulate: Arc::new(Program::accumulate()),
            nothing: context.create_buffer("nothing", 256, USAGE, false)?,
            records: None,
            belt: Belt::default(),
            unseeded: vec![false; plan.tensors.len()],
            seeded: None,
            scratch: Scratch::default(),
            schedules: Vec::with_capacity(KEPT + 1),
            words: Vec::new(),
            groups: plan.groups,
            guard: GuardMemory::new(&context)?,
            by_rows: vec![false; plan.tensors.len()],
            carries: context.create_buffer("carries", 2 * 16 * u64::from(optim_shaders::LANES), USAGE, false)?,
            swapped: false,
            context,
        })
    }

    fn name(&self, tensor: usize) -> &str {
        self.tensors[tensor].parameter.name()
    }

    /// Where parameters lie. Refuses what is not this backend's.
    fn param<'a>(&self, tensor: usize, param: &'a ParamMut<'_>) -> Result<Side<&'a GpuBuffer>> {
        match param {
            ParamMut::Device(memory) => Ok(Side::Device(self.own("parameter", tensor, *memory)?)),
            _ => Ok(Side::Own(Own::Params)),
        }
    }

    /// Where gradients lie; of a row-sparse one, its values.
    fn grad<'a>(&self, tensor: usize, grad: &'a Grad<'_>) -> Result<Side<&'a GpuBuffer>> {
        match grad {
            Grad::None => Ok(Side::Absent),
            Grad::Accumulated => Ok(Side::Own(Own::Accumulated)),
            Grad::Device(memory) | Grad::Rows(_, Values::Device(memory)) => {
                Ok(Side::Device(self.own("gradient", tensor, *memory)?))
            }
            grad => Ok(grad.dtype().map_or(Side::Absent, |dtype| Side::Own(Own::Grads(dtype)))),
        }
    }

    /// Where the memory of a step lies.
    fn pairs<'a>(
        &self,
        params: &'a [ParamMut<'_>],
        grads: &'a [Grad<'_>],
        record_of: &[u32],
    ) -> Result<Vec<Pair<&'a GpuBuffer>>> {
        let mut pairs = Vec::with_capacity(params.len());
        for (tensor, ((param, grad), &record)) in params.iter().zip(grads).zip(record_of).enumerate() {
            let nothing = record == FROZEN || param.is_empty() || grad.is_none();
            pairs.push(if nothing {
                Pair::ABSENT
            } else {
                Pair { param: self.param(tensor, param)?, grad: self.grad(tensor, grad)? }
            });
        }
        Ok(pairs)
    }

    fn own<'a>(&self, what: &'static str, tensor: usize, memory: &'a dyn DeviceMemory) -> Result<&'a GpuBuffer> {
        let (name, expected) = (self.name(tensor), "a GpuBuffer or a slice");
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

    /// Makes the memory of our own that these need and that is not there yet. Row-sparse gradients have theirs elsewhere. There are
    /// gradients only for an update.
    fn stage(&mut self, pairs: &[Pair<&GpuBuffer>], grads: &[Grad<'_>]) -> Result<()> {
        for (tensor, pair) in pairs.iter().enumerate() {
            let kind = &mut self.kinds[self.kind_of[tensor].0];
            let is_sparse = matches!(grads.get(tensor), Some(Grad::Rows(..)));
            for side in [&pair.param, &pair.grad].into_iter().take(if is_sparse { 1 } else { 2 }) {
                if let Side::Own(own) = side {
                    kind.need(&self.context, *own)?;
                }
            }
            let Some(grad) = grads.get(tensor).filter(|_| !pair.is_absent()) else { continue };
            if kind.factored.is_some() && (kind.needs_copy() || grad.dtype() != Some(DType::F32)) {
                kind.need(&self.context, Own::ScratchParams)?;
                kind.need(&self.context, Own::ScratchGrads)?;
            }
        }
        Ok(())
    }

    /// The row-sparse gradients of a step, with memory for what they need.
    fn rows<'a>(
        &mut self,
        lists: &'a [RowList],
        pairs: &[Pair<&GpuBuffer>],
        grads: &[Grad<'_>],
        all: impl Fn(usize) -> bool,
        guarded: bool,
    ) -> Result<Vec<RowGrad<'a>>> {
        let mut row_grads = Vec::new();
        for (tensor, (pair, grad)) in pairs.iter().zip(grads).enumerate() {
            let Grad::Rows(indices, values) = grad else { continue };
            if pair.is_absent() {
                continue;
            }
            let words = (values.len() * values.dtype().size()).div_ceil(4);
            rows::check_len(&self.context, words)?;
            let (list, width) = (&lists[tensor], values.len() / indices.len().max(1));
            let format = kind::format(values.dtype());
            let values = match pair.grad.device() {
                Some(memory) if memory.len > 0 => (memory.buffer.clone(), memory.offset),
                _ => (self.scratch.values(&self.context, tensor, words)?, 0),
            };
            let sums = if list.rows.len() < list.positions.len() || (guarded && !list.rows.is_empty()) {
                let len = list.rows.len() * width;
                rows::check_len(&self.context, len)?;
                Some(self.scratch.sums(&self.context, tensor, len)?)
            } else {
                None
            };
            row_grads.push(RowGrad { tensor, list, width, values, format, all: all(tensor), sums });
        }
        Ok(row_grads)
    }

    /// Puts the records into words, and makes room for those of one update.
    fn prepare(&mut self, records: &[Record], guard: Option<&Guard>) -> Result<()> {
        self.words.clear();
        for (nth, Record { shaping, trust, stages, scalars }) in records.iter().enumerate() {
            self.words.extend(bytemuck::cast_ref::<_, [u32; 4]>(shaping));
            self.words.extend(bytemuck::cast_ref::<_, [u32; 4]>(trust));
            self.words.extend(bytemuck::cast_ref::<_, [u32; 8]>(stages));
            self.words.extend(scalars.words());
            self.words.resize(RECORD * (nth + 1), 0);
        }
        let size = bytes(guard.map_or(self.words.len(), |guard| RECORD * guard.records));
        if self.records.as_ref().is_none_or(|records| records.size() < size) {
            self.records = Some(self.context.create_buffer("records", size, USAGE, false)?);
            self.schedules.clear();
        }
        if guard.is_some() && self.guard.need(&self.context, &self.tensors, self.groups, self.words.len())? {
            self.schedules.clear();
        }
        Ok(())
    }

    /// Puts the schedule for this memory in front, made if need be.
    fn schedule(&mut self, job: Job, pairs: &[Pair<&GpuBuffer>], record_of: &[u32]) -> Result<()> {
        if let Some(known) =
            self.schedules.iter().position(|schedule| schedule.is_for(job, pairs, record_of, &self.by_rows))
        {
            self.schedules[..=known].rotate_right(1);
            return Ok(());
        }
        let Some(parts) = self.parts() else { return Ok(()) };
        let schedule = Schedule::new(&parts, job, pairs, record_of)?;
        self.schedules.insert(0, schedule);
        self.schedules.truncate(KEPT);
        Ok(())
    }

    /// What dispatches are made from; nothing before there are records.
    fn parts(&self) -> Option<Parts<'_>> {
        Some(Parts {
            context: &self.context,
            tensors: &self.tensors,
            kinds: &self.kinds,
            kind_of: &self.kind_of,
            accumulate: &self.accumulate,
            nothing: &self.nothing,
            records: self.records.as_ref()?,
            by_rows: &self.by_rows,
            carries: &self.carries,
            guard: self.guard.measures(),
        })
    }

    /// Records the copies of the records to where kernels, or the guard, take them from, and of a verdict's number behind it.
    fn write_records(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        guard: Option<&Guard>,
        reading: Option<&Reading>,
    ) -> Result<()> {
        let words = bytemuck::cast_slice(&self.words);
        let head = guard.map(|guard| Head::new(guard, self.words.len() / RECORD));
        let mut writes = Vec::with_capacity(3);
        match (&head, self.guard.variants(), &self.records) {
            (Some(head), Some(variants), _) => {
                writes.push((variants, 0, bytemuck::bytes_of(head)));
                writes.push((variants, size_of::<Head>() as u64, words));
            }
            (None, _, Some(records)) => writes.push((records, 0, words)),
            _ => {}
        }
        writes.extend(reading.map(Reading::number));
        self.belt.write(&self.context, encoder, &writes)
    }

    /// Encodes those of the step's dispatches: what the schedule in front measures, others, its updates, others.
    fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        others: &Others,
        which: impl Fn(&Dispatch) -> bool,
    ) -> Result<()> {
        let Some(schedule) = self.schedules.first() else { return Ok(()) };
        let all = schedule.measures.iter().chain(&others.first).chain(&schedule.dispatches).chain(&others.last);
        let dispatches = all.filter(|dispatch| which(dispatch));
        self.dispatch(encoder, dispatches)
    }

    /// Encodes dispatches.
    fn dispatch<'a>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        dispatches: impl Iterator<Item = &'a Dispatch>,
    ) -> Result<()> {
        let mut count = 0;
        self.context.scoped(|| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for dispatch in dispatches {
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, &dispatch.bindings, &[]);
                pass.dispatch_workgroups(dispatch.grid.0, dispatch.grid.1, 1);
                count += 1;
            }
        })?;
        self.context.counts.dispatches.fetch_add(count, Relaxed);
        Ok(())
    }

    /// Encodes the step's dispatches; those on offloaded state page by page, with the state that comes and goes.
    fn encode_all(&mut self, encoder: &mut wgpu::CommandEncoder, others: &Others) -> Result<()> {
        let offloaded = |dispatch: &Dispatch| dispatch.page.filter(|&(kind, _)| self.kinds[kind].offload.is_some());
        self.gather(encoder, 0)?;
        self.encode(encoder, others, |dispatch| offloaded(dispatch).is_none())?;
        for nth in 0..self.kinds.len() {
            for page in 0..self.kinds[nth].layout.pages.len() {
                let dispatches =
                    self.schedules.first().into_iter().flat_map(|schedule| &schedule.dispatches).chain(&others.last);
                let here = |dispatch: &Dispatch| dispatch.page == Some((nth, page));
                if !dispatches.into_iter().any(here) {
                    continue;
                }
                let Some(mut offload) = self.kinds[nth].offload.take() else { continue };
                let visited = self
                    .visit(&mut offload, encoder, (nth, page), |engine, encoder| engine.encode(encoder, others, here));
                self.kinds[nth].offload = Some(offload);
                visited?;
            }
        }
        Ok(())
    }

    /// What the schedule in front gathers (0) or scatters (1).
    fn moves(&self, which: usize) -> Option<&Moves> {
        self.schedules.first().and_then(|schedule| schedule.moves[which].as_ref())
    }

    /// Encodes that.
    fn gather(&self, encoder: &mut wgpu::CommandEncoder, which: usize) -> Result<()> {
        match self.moves(which) {
            Some(Moves::Copies(copies)) => self.context.scoped(|| copies.iter().for_each(|copy| copy.encode(encoder))),
            Some(Moves::Dispatches(dispatches)) => self.dispatch(encoder, dispatches.iter()),
            None => Ok(()),
        }
    }

    /// Encodes what is scattered; into the caller's encoder or, for the same submission, into another than what comes before. wgpu
    /// puts a barrier before each copy to a buffer that the same encoder has read, and but one before an encoder.
    fn scatter(&self, encoder: &mut wgpu::CommandEncoder, is_callers: bool) -> Result<Option<wgpu::CommandEncoder>> {
        let before = match self.moves(1) {
            Some(Moves::Copies(_)) if !is_callers => Some(std::mem::replace(encoder, self.context.encoder()?)),
            _ => None,
        };
        self.gather(encoder, 1)?;
        Ok(before)
    }

    /// Brings a page of state to the device, lets dispatches be encoded, and takes it back.
    fn visit(
        &self,
        offload: &mut Offload,
        encoder: &mut wgpu::CommandEncoder,
        (kind, page): (usize, usize),
        encode: impl FnOnce(&Self, &mut wgpu::CommandEncoder) -> Result<()>,
    ) -> Result<()> {
        let buffer = &self.kinds[kind].pages[page];
        offload.upload(&self.context, encoder, buffer, page)?;
        encode(self, encoder)?;
        let encoded = std::mem::replace(encoder, self.context.encoder()?);
        offload.download(&self.context, encoded, buffer, page)
    }

    /// The pieces of tensors with memory on the host.
    fn pieces(&self, which: impl Fn(usize) -> bool) -> Pieces {
        let of = |tensor: usize| {
            let (kind, member) = self.kind_of[tensor];
            self.kinds[kind].layout.pieces_of(member).iter().map(move |&piece| (kind, Piece { tensor, ..piece }))
        };
        (0..self.tensors.len()).filter(|&tensor| which(tensor)).flat_map(of).collect()
    }

    /// Encodes a run: uploads what is on the host, then the schedule in front and other dispatches. The pieces of host parameters are
    /// to be read back; an encoder that it returns is to be submitted with the one that it leaves, before it.
    fn run(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        pairs: &[Pair<&GpuBuffer>],
        params: &[ParamMut<'_>],
        grads: &[Grad<'_>],
        run: Run<'_>,
    ) -> Result<(Pieces, Option<wgpu::CommandEncoder>)> {
        let Run { row_grads, others, zeros, guard, reading, is_callers, once } = run;
        let host_params = self.pieces(|tensor| matches!(pairs[tensor].param, Side::Own(Own::Params)));
        let is_host = |tensor: usize| matches!(pairs[tensor].grad, Side::Own(Own::Grads(_)));
        let is_dense = |tensor: usize| !matches!(grads.get(tensor), Some(Grad::Rows(..)));
        let host_grads = self.pieces(|tensor| is_host(tensor) && is_dense(tensor));

        // From here on things change.
        for (kind, piece) in self.pieces(|tensor| zeros.contains(&tensor)) {
            let Region { buffer, offset, size } = self.kinds[kind].region(Own::Accumulated, &piece);
            self.context.scoped(|| encoder.clear_buffer(buffer, offset, Some(size as u64)))?;
        }
        let mut uploads: Vec<(Region<'_>, &[u8])> = Vec::new();
        for (kind, piece) in &host_params {
            let values = part(host_param(&params[piece.tensor]), piece, params[piece.tensor].dtype().size());
            uploads.push((self.kinds[*kind].region(Own::Params, piece), values));
        }
        for (kind, piece) in &host_grads {
            let grad = &grads[piece.tensor];
            let Some(dtype) = grad.dtype() else { continue };
            uploads
                .push((self.kinds[*kind].region(Own::Grads(dtype), piece), part(host_grad(grad), piece, dtype.size())));
        }
        for rows in row_grads {
            let values = host_grad(&grads[rows.tensor]);
            let size = values.len().next_multiple_of(4);
            uploads.push((Region { buffer: &rows.values.0, offset: 0, size }, values));
        }
        self.context.upload(encoder, &uploads)?;
        self.write_records(encoder, guard, reading)?;
        if let (Some(once), Some(records)) = (&once, &self.records) {
            encoder.copy_buffer_to_buffer(once, 0, records, FLAGS, 4);
        }
        self.encode_all(encoder, &others)?;
        if let Some(once) = &once {
            self.belt.write(&self.context, encoder, &[(once, 0, bytemuck::bytes_of(&SKIP))])?;
        }
        let before = self.scatter(encoder, is_callers)?;
        Ok((host_params, before))
    }

    /// Submits, and reads back host parameters and, with a guard, the verdict.
    fn finish(
        &self,
        encoders: Vec<wgpu::CommandEncoder>,
        pieces: &[(usize, Piece)],
        guarded: bool,
        params: &mut [ParamMut<'_>],
    ) -> Result<Vec<u8>> {
        let verdict = if guarded { self.guard.verdict_region() } else { None };
        let regions = pieces.iter().map(|(kind, piece)| self.kinds[*kind].region(Own::Params, piece));
        let regions: Vec<_> = regions.chain(verdict).collect();
        let mut verdict = vec![0; verdict.map_or(0, |verdict| verdict.size)];
        self.context.download(encoders, &regions, |item, first, bytes| {
            let Some(&(_, piece)) = pieces.get(item) else { return copy_bytes(bytes, &mut verdict[first..]) };
            let param = &mut params[piece.tensor];
            let size = param.dtype().size();
            if let Some(values) = host_param_mut(param) {
                let (start, end) = (piece.start * size, (piece.start + piece.len) * size);
                copy_bytes(bytes, &mut values[(start + first).min(end)..end]);
            }
        })?;
        Ok(verdict)
    }

    /// An update, run or recorded.
    fn apply(
        &mut self,
        commands: Commands<'_>,
        update: &Update<'_>,
        params: &mut [ParamMut<'_>],
        grads: &[Grad<'_>],
    ) -> Result<Progress> {
        let mut pairs = self.pairs(params, grads, update.record_of)?;
        let is_sparse = |grad: &Grad<'_>| matches!(grad, Grad::Rows(..));
        let all_rows = |tensor: usize| update.rules[self.tensors[tensor].rule].spec().sparse() == Sparse::AllRows;
        let mut all = Vec::new();
        if grads.iter().any(is_sparse) {
            all.extend((0..self.tensors.len()).map(all_rows));
        }
        for (tensor, (pair, grad)) in pairs.iter_mut().zip(grads).enumerate() {
            if !is_sparse(grad) || pair.is_absent() {
                continue;
            }
            let storage = &self.kinds[self.kind_of[tensor].0].program.storage;
            if update.rows[tensor].rows.is_empty() && !all[tensor] && !storage.ema {
                *pair = Pair::ABSENT;
            }
        }
        let guard = update.guard;
        if pairs.iter().all(Pair::is_absent) && guard.is_none() {
            return Ok(Progress::Applied);
        }
        self.find_rows(update, &pairs)?;
        // Only what is dense has a schedule that is kept.
        let dense = |(pair, grad): (&Pair<_>, _)| if is_sparse(grad) { Pair::ABSENT } else { *pair };
        let dense: Cow<'_, [Pair<&GpuBuffer>]> =
            if all.is_empty() { Cow::Borrowed(&pairs) } else { pairs.iter().zip(grads).map(dense).collect() };
        self.stage(&pairs, grads)?;
        self.prepare(update.records, guard)?;
        let row_grads = self.rows(update.rows, &pairs, grads, |tensor| all[tensor], guard.is_some())?;
        let decision = match guard {
            None => Decision::None,
            Some(_) if row_grads.is_empty() => Decision::Now,
            Some(_) => Decision::Later,
        };
        self.schedule(Job::Update(decision), &dense, update.record_of)?;
        let mut others = Others::default();
        if let (Some(parts), false) = (self.parts(), row_grads.is_empty()) {
            schedule::check(&parts, &pairs)?;
            others.first = rows::sums(&parts, &row_grads)?;
            if let (Some((measures, control)), Some(_)) = (parts.guard, guard) {
                others.first.extend(rows::measures(&parts, &row_grads)?);
                let mut lens: Vec<_> = dense
                    .iter()
                    .zip(&self.tensors)
                    .map(|(pair, tensor)| if pair.is_absent() { 0 } else { tensor.parameter.len() })
                    .collect();
                for grad in &row_grads {
                    lens[grad.tensor] = grad.len();
                }
                others.first.extend(measures.decide(&parts, control, &lens)?);
            }
            others.last = rows::updates(&parts, &row_grads, &pairs, update.record_of)?;
        }
        let reads = pairs.iter().any(|pair| matches!(pair.param, Side::Own(Own::Params)));
        let waits = reads || self.kinds.iter().any(|kind| kind.offload.is_some());
        let mut reading = if guard.is_some() && !waits { self.guard.ask(&self.context)? } else { None };
        let (mut own, is_callers) = (None, matches!(commands, Commands::Record(_)));
        let encoder = match commands {
            Commands::Run => own.insert(self.context.encoder()?),
            Commands::Record(encoder) => encoder,
        };
        if let Some(timer) = &self.context.timer {
            self.context.scoped(|| timer.begin(encoder))?;
        }
        let reads = reading.as_ref();
        let run = Run { row_grads: &row_grads, others, zeros: &[], guard, reading: reads, is_callers, once: None };
        let (pieces, before) = self.run(encoder, &pairs, params, grads, run)?;
        if let Some(timer) = &self.context.timer {
            self.context.scoped(|| timer.end(encoder))?;
        }
        if let (Some(reading), Some(verdict)) = (&mut reading, self.guard.verdict_region()) {
            reading.bring(encoder, verdict);
        }
        let Some(reading) = reading else {
            let Some(encoder) = own else { return Ok(Progress::Applied) };
            let verdict =
                self.finish(before.into_iter().chain([encoder]).collect(), &pieces, guard.is_some(), params)?;
            return guard.map_or(Ok(Progress::Applied), |_| guard::verdict(&verdict).map(Progress::Decided));
        };
        let submission = own.map(|encoder| self.context.submit(before.into_iter().chain([encoder]))).transpose()?;
        self.guard.expect(reading, submission);
        Ok(Progress::Pending)
    }

    /// Takes back staging buffers, and learns which recorded steps were lost. That wgpu refused their commands shows when the device is
    /// polled; before another step is recorded it is polled only while they may have set masters and averages, or not.
    fn recover(&mut self, records: bool) -> Result<()> {
        if self.belt.expects(|step| !records || step.seeds.contains(&true)) {
            self.context.poll()?;
        }
        let (unseeded, mut set, mut lost) = (&mut self.unseeded, Vec::new(), false);
        self.belt.recover(&self.context, |step, has_run| {
            let seeds = step.seeds.iter().enumerate().filter(|(_, seed)| **seed).map(|(tensor, _)| tensor);
            if has_run {
                // It has found them set, or has set them.
                set.extend(seeds);
            } else {
                seeds.for_each(|tensor| unseeded[tensor] = true);
            }
            // The verdict of a guarded one tells.
            lost |= !has_run && !step.guarded;
        })?;
        for tensor in set {
            self.unseeded[tensor] = false;
            self.belt.forget_seed(tensor);
        }
        if lost { Err(Error::StepLost) } else { Ok(()) }
    }

    /// Sets masters and averages, where there are any.
    fn seed_into(
        &mut self,
        seeds: &[bool],
        params: &mut [ParamMut<'_>],
        commands: &mut Commands<'_>,
        once: Option<wgpu::Buffer>,
    ) -> Result<()> {
        let flags: Vec<bool> =
            self.tensors.iter().zip(seeds).map(|(tensor, &seed)| seed && tensor.needs_seed()).collect();
        self.work(Work::Seed, |tensor| flags[tensor], params, Side::Absent, commands, once)
    }

    /// The tensors whose masters and averages a recorded step was to set that is lost, or of which it is not known whether it has run.
    fn doubtful(&self) -> Vec<bool> {
        let mut doubtful = self.unseeded.clone();
        self.belt.seeds(&mut doubtful);
        doubtful
    }

    /// Sets those, unless a recorded step has; one that has yet to run does not any more.
    fn set_doubtful(&mut self, params: &mut [ParamMut<'_>]) -> Result<()> {
        if !self.unseeded.contains(&true) && !self.belt.expects(|step| step.seeds.contains(&true)) {
            return Ok(());
        }
        self.seed_into(&self.doubtful(), params, &mut Commands::Run, self.seeded.clone())?;
        self.unseeded.fill(false);
        (0..self.tensors.len()).for_each(|tensor| self.belt.forget_seed(tensor));
        Ok(())
    }

    /// Masters and averages are about to be set anew: recorded steps that have yet to run leave them alone.
    fn overtake(&mut self) -> Result<()> {
        let Some(seeded) = &self.seeded else { return Ok(()) };
        self.context.scoped(|| self.context.queue.write_buffer(seeded, 0, bytemuck::bytes_of(&SKIP)))
    }

    /// An error if a tensor's master and average are to be set by a recorded step that has not run.
    fn check_set(&self, tensor: usize) -> Result<()> {
        let Some(seeded) = self.seeded.as_ref().filter(|_| self.doubtful()[tensor]) else { return Ok(()) };
        let mut word = [0; 4];
        self.context.read(&[Region { buffer: seeded, offset: 0, size: 4 }], &mut word)?;
        if u32::from_le_bytes(word) == SKIP {
            return Ok(());
        }
        let (what, expected) = ("the master or the average that a recorded step is to set", "submit it, or do a step");
        Err(Error::State { what, expected })
    }

    /// An error if what a step needs is not all on the device.
    fn check_recordable(
        &self,
        seeds: &[bool],
        record_of: &[u32],
        params: &[ParamMut<'_>],
        grads: &[Grad<'_>],
    ) -> Result<()> {
        let (expected, got) = ("memory on the device, for a step that is recorded", "memory on the host");
        // What masters and averages are set to, with a gradient or without.
        for (tensor, param) in params.iter().enumerate().filter(|&(tensor, param)| seeds[tensor] && !param.is_empty()) {
            if let Side::Own(_) = self.param(tensor, param)? {
                return Err(wrong_memory("parameter", self.name(tensor), expected, got));
            }
        }
        for (tensor, pair) in self.pairs(params, grads, record_of)?.iter().enumerate() {
            let sides = [("parameter", &pair.param), ("gradient", &pair.grad)];
            if let Some((what, _)) = sides.into_iter().find(|(_, side)| matches!(side, Side::Own(_))) {
                return Err(wrong_memory(what, self.name(tensor), expected, got));
            }
            if !pair.is_absent() && self.kinds[self.kind_of[tensor].0].offload.is_some() {
                return self.unsupported(format!("recording a step with offloaded state ({:?})", self.name(tensor)));
            }
        }
        Ok(())
    }

    /// Finds out what is shaped row by row in this step, and makes memory for it.
    fn find_rows(&mut self, update: &Update<'_>, pairs: &[Pair<&GpuBuffer>]) -> Result<()> {
        self.by_rows.fill(false);
        if !update.records.iter().any(Record::needs_rows) {
            return Ok(());
        }
        let records = update.guard.map_or(update.records.len(), |guard| guard.records).max(1);
        for (tensor, pair) in pairs.iter().enumerate() {
            let record = update.record_of[tensor] as usize;
            let mut variants = update.records.iter().skip(record).step_by(records);
            self.by_rows[tensor] = !pair.is_absent() && variants.any(Record::needs_rows);
            if !self.by_rows[tensor] {
                continue;
            }
            let kind = &mut self.kinds[self.kind_of[tensor].0];
            kind.need_units(&self.context)?;
            if kind.factored.is_some() {
                kind.need(&self.context, Own::ScratchParams)?;
                kind.need(&self.context, Own::ScratchGrads)?;
            }
        }
        Ok(())
    }

    /// Runs work without a rule over those tensors whose flag is set.
    fn work(
        &mut self,
        work: Work,
        which: impl Fn(usize) -> bool,
        params: &mut [ParamMut<'_>],
        grad: Side<&GpuBuffer>,
        commands: &mut Commands<'_>,
        once: Option<wgpu::Buffer>,
    ) -> Result<()> {
        self.context.ready()?;
        let mut pairs = Vec::with_capacity(params.len());
        for (tensor, param) in params.iter().enumerate() {
            let pair = if which(tensor) && !param.is_empty() {
                Pair { param: self.param(tensor, param)?, grad }
            } else {
                Pair::ABSENT
            };
            pairs.push(pair);
        }
        if pairs.iter().all(Pair::is_absent) {
            return Ok(());
        }
        self.stage(&pairs, &[])?;
        self.prepare(&[blank([0.0; 4])], None)?;
        self.schedule(Job::Work(work), &pairs, &vec![0; params.len()])?;
        let run = Run { is_callers: matches!(commands, Commands::Record(_)), once, ..Run::default() };
        match commands {
            Commands::Record(encoder) => self.run(encoder, &pairs, params, &[], run).map(drop),
            Commands::Run => {
                let mut encoder = self.context.encoder()?;
                let (pieces, before) = self.run(&mut encoder, &pairs, params, &[], run)?;
                self.finish(before.into_iter().chain([encoder]).collect(), &pieces, false, params).map(drop)
            }
        }
    }

    /// Checks that an array has these elements.
    fn check_part(&self, parameter: usize, part: Part, first: usize, bytes: usize) -> Result<()> {
        let tensor = &self.tensors[parameter];
        let arrays = tensor.arrays(&self.slots[tensor.rule]);
        let found = arrays.iter().find(|(candidate, ..)| *candidate == part).and_then(|(_, element, len)| {
            let end = first.checked_mul(element.size())?.checked_add(bytes)?;
            (end <= len * element.size()).then_some(())
        });
        found.ok_or_else(|| Error::Unknown {
            what: "array",
            name: format!("{part:?} of {} from element {first} on, {bytes} bytes", self.name(parameter)),
            expected: format!("{arrays:?}"),
        })
    }

    fn unsupported<T>(&self, what: String) -> Result<T> {
        Err(Error::Unsupported { what, backend: "gpu".into() })
    }
}

/// A record of step scalars alone.
fn blank(scalars: [f32; 4]) -> Record {
    Record { shaping: Shaping::NONE, trust: Trust::NONE, stages: Stages::zeroed(), scalars: scalars.into() }
}

/// What a run has beside parameters and gradients.
#[derive(Default)]
struct Run<'a> {
    row_grads: &'a [RowGrad<'a>],
    others: Others,
    /// Tensors for which nothing has been accumulated begins with zeros.
    zeros: &'a [usize],
    guard: Option<&'a Guard>,
    reading: Option<&'a Reading>,
    /// Whether the encoder is the caller's.
    is_callers: bool,
    /// The word that says on the device whether this has been done, if it is to be done once.
    once: Option<wgpu::Buffer>,
}

/// Where the commands of a call go.
enum Commands<'a> {
    /// To the queue, at once.
    Run,
    /// Into the caller's encoder.
    Record(&'a mut wgpu::CommandEncoder),
}

/// The bytes of a parameter on the host; none if it is not there.
fn host_param<'a>(param: &'a ParamMut<'_>) -> &'a [u8] {
    match param {
        ParamMut::F32(values) => bytemuck::cast_slice(values),
        ParamMut::F16(values) => bytemuck::cast_slice(values),
        ParamMut::Bf16(values) => bytemuck::cast_slice(values),
        _ => &[],
    }
}

fn host_param_mut<'a>(param: &'a mut ParamMut<'_>) -> Option<&'a mut [u8]> {
    match param {
        ParamMut::F32(values) => Some(bytemuck::cast_slice_mut(values)),
        ParamMut::F16(values) => Some(bytemuck::cast_slice_mut(values)),
        ParamMut::Bf16(values) => Some(bytemuck::cast_slice_mut(values)),
        _ => None,
    }
}

/// The bytes of a gradient on the host, or of its values.
fn host_grad<'a>(grad: &Grad<'a>) -> &'a [u8] {
    match *grad {
        Grad::F32(values) | Grad::Rows(_, Values::F32(values)) => bytemuck::cast_slice(values),
        Grad::F16(values) | Grad::Rows(_, Values::F16(values)) => bytemuck::cast_slice(values),
        Grad::Bf16(values) | Grad::Rows(_, Values::Bf16(values)) => bytemuck::cast_slice(values),
        _ => &[],
    }
}

/// Those of a piece.
fn part<'a>(bytes: &'a [u8], piece: &Piece, size: usize) -> &'a [u8] {
    let range = piece.range();
    bytes.get(range.start * size..range.end * size).unwrap_or(&[])
}

impl Engine for GpuEngine {
    fn update(&mut self, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<Progress> {
        self.context.ready()?;
        self.recover(false)?;
        self.set_doubtful(params)?;
        self.apply(Commands::Run, update, params, grads)
    }

    fn record(
        &mut self,
        target: &mut dyn Any,
        seeds: &[bool],
        update: &Update<'_>,
        params: &mut [ParamMut<'_>],
        grads: &[Grad<'_>],
    ) -> Result<Progress> {
        let Some(encoder) = target.downcast_mut::<wgpu::CommandEncoder>() else {
            return self.unsupported("recording into anything but a wgpu::CommandEncoder".into());
        };
        self.context.ready()?;
        self.recover(true)?;
        let anew = seeds.contains(&true);
        if anew && self.belt.expects(|step| step.seeds.contains(&true)) {
            // What steps that have been submitted have set stays as it is.
            self.context.wait(None)?;
            self.recover(true)?;
        }
        let doubtful = self.doubtful();
        let seeds: Vec<bool> = seeds.iter().zip(&doubtful).map(|(&seed, &again)| seed || again).collect();
        self.check_recordable(&seeds, update.record_of, params, grads)?;
        let receipt = self.belt.receipt(&self.context, encoder)?;
        if anew {
            let seeded = self.context.create_buffer("seeded", 4, USAGE, false)?;
            self.overtake()?;
            self.seeded = Some(seeded);
        }
        if seeds.contains(&true) {
            self.seed_into(&seeds, params, &mut Commands::Record(encoder), self.seeded.clone())?;
        }
        let progress = self.apply(Commands::Record(encoder), update, params, grads)?;
        self.belt.expect(receipt, Recorded { seeds, guarded: update.guard.is_some() });
        self.unseeded.fill(false);
        Ok(progress)
    }

    fn verdict(&mut self, wait: bool) -> Result<Option<Verdict>> {
        self.guard.verdict(&self.context, wait)
    }

    fn poll(&mut self) -> Result<()> {
        self.guard.poll(&self.context)
    }

    fn control(&self) -> Result<Control> {
        self.context.ready()?;
        self.guard.control(&self.context)
    }

    fn set_control(&mut self, control: &Control) -> Result<()> {
        self.context.ready()?;
        self.guard.set_control(&self.context, control)
    }

    fn loss_scale_memory(&self) -> Option<&dyn DeviceMemory> {
        Some(self.guard.loss_scale())
    }

    fn seed(&mut self, seeds: &[bool], params: &mut [ParamMut<'_>]) -> Result<()> {
        self.set_doubtful(params)?;
        self.overtake()?;
        self.seed_into(seeds, params, &mut Commands::Run, None)
    }

    fn accumulate(&mut self, weight: f32, fresh: &[bool], grads: &[Grad<'_>]) -> Result<()> {
        self.context.ready()?;
        let mut pairs = vec![Pair::ABSENT; grads.len()];
        let mut zeros = Vec::new();
        for (tensor, (pair, grad)) in pairs.iter_mut().zip(grads).enumerate() {
            if self.tensors[tensor].parameter.is_empty() {
                continue;
            }
            match grad {
                Grad::Rows(..) => {
                    let name = self.name(tensor);
                    return self.unsupported(format!("accumulating a row-sparse gradient ({name:?})"));
                }
                Grad::None if fresh[tensor] => zeros.push(tensor),
                Grad::None => {}
                grad => *pair = Pair { param: Side::Own(Own::Accumulated), grad: self.grad(tensor, grad)? },
            }
        }
        for &tensor in &zeros {
            self.kinds[self.kind_of[tensor].0].need(&self.context, Own::Accumulated)?;
        }
        self.stage(&pairs, &[])?;
        self.prepare(&[blank([weight, 0.0, 0.0, 0.0]), blank([weight, f32::from_bits(1), 0.0, 0.0])], None)?;
        let record_of: Vec<u32> = fresh.iter().map(|&fresh| u32::from(fresh)).collect();
        self.schedule(Job::Accumulate, &pairs, &record_of)?;
        let mut encoder = self.context.encoder()?;
        let run = Run { zeros: &zeros, ..Run::default() };
        let (pieces, before) = self.run(&mut encoder, &pairs, &[], grads, run)?;
        self.finish(before.into_iter().chain([encoder]).collect(), &pieces, false, &mut []).map(drop)
    }

    fn swap_ema(&mut self, into: bool, params: &mut [ParamMut<'_>]) -> Result<()> {
        if into == self.swapped {
            let (what, expected) = if into {
                ("the averages are in the parameters' memory", "bring the parameters back first")
            } else {
                ("the parameters are in their memory", "put the averages there first")
            };
            return Err(Error::State { what, expected });
        }
        let work = if into { Work::SwapIn } else { Work::SwapOut };
        let keeps: Vec<bool> = self.tensors.iter().map(|tensor| tensor.ema).collect();
        self.context.ready()?;
        (0..keeps.len()).filter(|&tensor| keeps[tensor]).try_for_each(|tensor| self.check_set(tensor))?;
        self.work(work, |tensor| keeps[tensor], params, Side::Own(Own::Aside), &mut Commands::Run, None)?;
        self.swapped = into;
        if !into {
            // Schedules that bind what was kept go with it.
            self.schedules.retain(|schedule| !schedule.is_swap());
            self.kinds.iter_mut().for_each(|kind| kind.drop_own(Own::Aside));
        }
        Ok(())
    }

    fn read(&self, parameter: usize, part: Part, first: usize, bytes: &mut [u8]) -> Result<()> {
        self.context.ready()?;
        self.check_part(parameter, part, first, bytes.len())?;
        if matches!(part, Part::Master | Part::Ema) {
            self.check_set(parameter)?;
        }
        let (kind, member) = self.kind_of[parameter];
        let kind = &self.kinds[kind];
        if let Some(offload) = &kind.offload {
            let mut done = 0;
            for run in kind.runs(member, part, first, bytes.len()) {
                bytes[done..done + run.len].copy_from_slice(offload.read(run));
                done += run.len;
            }
            return Ok(());
        }
        let mut done = 0;
        for (buffer, start, len) in kind.places(member, part, first, bytes.len()) {
            let (region, skipped) = words(buffer, start, len);
            let mut around = vec![0; region.size];
            self.context.read(&[region], &mut around)?;
            bytes[done..done + len].copy_from_slice(&around[skipped..skipped + len]);
            done += len;
        }
        Ok(())
    }

    fn write(&mut self, parameter: usize, part: Part, first: usize, bytes: &[u8]) -> Result<()> {
        self.context.ready()?;
        self.check_part(parameter, part, first, bytes.len())?;
        if matches!(part, Part::Master | Part::Ema) {
            // A lost step that was to set it leaves nothing to be set.
            self.unseeded[parameter] = false;
            self.belt.forget_seed(parameter);
        }
        let (kind, member) = self.kind_of[parameter];
        let kind = &mut self.kinds[kind];
        let mut rest = bytes;
        let runs = kind.runs(member, part, first, bytes.len());
        if let Some(offload) = &mut kind.offload {
            for run in runs {
                let (values, others) = rest.split_at(run.len);
                offload.write(run).copy_from_slice(values);
                rest = others;
            }
            return Ok(());
        }
        let mut encoder = self.context.encoder()?;
        for (buffer, start, len) in kind.places(member, part, first, bytes.len()) {
            let (values, others) = rest.split_at(len);
            rest = others;
            let (region, skipped) = words(buffer, start, len);
            if (skipped, region.size) == (0, len) {
                self.context.upload(&mut encoder, &[(region, values)])?;
            } else {
                // Other elements share the words at the ends.
                let mut around = vec![0; region.size];
                self.context.read(&[region], &mut around)?;
                around[skipped..skipped + len].copy_from_slice(values);
                self.context.upload(&mut encoder, &[(region, &around)])?;
            }
        }
        self.context.submit([encoder])?;
        Ok(())
    }
}

/// The words in which bytes of a buffer lie, and the byte at which they begin in them.
fn words(buffer: &wgpu::Buffer, start: usize, len: usize) -> (Region<'_>, usize) {
    let first = start / 4 * 4;
    (Region { buffer, offset: first as u64, size: (start + len).next_multiple_of(4) - first }, start - first)
}

impl fmt::Debug for GpuEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuEngine").field("kinds", &self.kinds).finish_non_exhaustive()
    }
}
