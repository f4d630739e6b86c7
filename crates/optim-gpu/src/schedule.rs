//! From the memory of one step to a list of dispatches. It is made once for each distinct set of buffers and kept.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;

use bytemuck::Pod;
use optim_core::backend::Tensor;
use optim_core::{Error, Result};
use optim_shaders::{Access, Format, Work};

use crate::GpuBuffer;
use crate::buffer::USAGE;
use crate::device::Context;
use crate::gather::{Gathered, Moves};
use crate::guard::{Elements, Measures};
use crate::kind::{self, Kind, Own};
use crate::layout::{ALIGNMENT, Common, Layout, Piece, SLICE, Span, Stretch, bytes, grid, low, word};
use crate::pipeline::{Kernel, Program, Stage, Sums};

/// Where one parameter or one gradient lies.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side<B> {
    /// Nowhere.
    Absent,
    /// In memory of its kind's own: a copy of what is on the host, or what is only there.
    Own(Own),
    /// In the caller's memory on the device.
    Device(B),
}

impl<B: Borrow<GpuBuffer>> Side<B> {
    fn same<C: Borrow<GpuBuffer>>(&self, other: &Side<C>) -> bool {
        match (self, other) {
            (Self::Absent, Side::Absent) => true,
            (Self::Own(one), Side::Own(other)) => one == other,
            (Self::Device(one), Side::Device(other)) => one.borrow().same(other.borrow()),
            _ => false,
        }
    }

    pub(crate) fn device(&self) -> Option<&GpuBuffer> {
        match self {
            Self::Absent | Self::Own(_) => None,
            Self::Device(buffer) => Some(buffer.borrow()),
        }
    }

    fn to_owned(&self) -> Side<GpuBuffer> {
        match self {
            Self::Absent => Side::Absent,
            Self::Own(own) => Side::Own(*own),
            Self::Device(buffer) => Side::Device(buffer.borrow().clone()),
        }
    }

    /// Whether what follows the elements, up to a multiple of four, is ours.
    fn is_padded(&self) -> bool {
        self.device().is_none_or(|memory| memory.padded)
    }
}

/// The memory of one tensor's update. A parameter that is absent is not updated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair<B> {
    pub(crate) param: Side<B>,
    pub(crate) grad: Side<B>,
}

impl<B> Pair<B> {
    /// A tensor that is not updated.
    pub(crate) const ABSENT: Self = Self { param: Side::Absent, grad: Side::Absent };

    pub(crate) const fn is_absent(&self) -> bool {
        matches!(self.param, Side::Absent)
    }
}

/// What dispatches are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// The rules' update.
    Update(Decision),
    /// Gradients are added to what has been accumulated: the parameters are that.
    Accumulate,
    /// Work without a rule, such as a seed.
    Work(Work),
}

/// What comes before an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing.
    None,
    /// Gradients are measured for the guard, others than these as well; then it decides.
    Later,
    /// These gradients are measured, and the guard decides.
    Now,
}

/// A list of dispatches, and what it was made for.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// What measures gradients for a guard, and the decision if it follows from them.
    pub(crate) measures: Vec<Dispatch>,
    pub(crate) dispatches: Vec<Dispatch>,
    /// What is gathered before them, and scattered after them.
    pub(crate) moves: [Option<Moves>; 2],
    job: Job,
    pairs: Vec<Pair<GpuBuffer>>,
    record_of: Vec<u32>,
    by_rows: Vec<bool>,
}

/// One dispatch.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) bindings: wgpu::BindGroup,
    pub(crate) grid: (u32, u32),
    /// The kind and the page of state that it works on, if any.
    pub(crate) page: Option<(usize, usize)>,
}

/// The sums of a kind's slices.
#[derive(Debug)]
pub(crate) struct PartialSums {
    pub(crate) buffer: wgpu::Buffer,
    /// For each member its first part, and last where they end.
    pub(crate) starts: Vec<usize>,
}

impl PartialSums {
    /// The bytes of one part.
    const SIZE: u64 = 8;

    pub(crate) fn new(context: &Context, lens: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut starts = vec![0];
        starts.extend(lens.into_iter().scan(0, |end, len| {
            *end += len.div_ceil(SLICE);
            Some(*end)
        }));
        let size = Self::SIZE * (starts[starts.len() - 1].max(1) as u64);
        Ok(Self { buffer: context.create_buffer("sums", size, USAGE, false)?, starts })
    }

    fn binding(&self) -> Binding<'_> {
        (&self.buffer, 0, self.buffer.size())
    }
}

/// What an engine brings to a schedule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) context: &'a Arc<Context>,
    pub(crate) tensors: &'a [Tensor],
    pub(crate) kinds: &'a [Kind],
    /// For each tensor its kind, and which of that kind's members it is.
    pub(crate) kind_of: &'a [(usize, usize)],
    /// The program that accumulates.
    pub(crate) accumulate: &'a Arc<Program>,
    /// 256 bytes to bind where there is nothing.
    pub(crate) nothing: &'a wgpu::Buffer,
    /// The records of a step.
    pub(crate) records: &'a wgpu::Buffer,
    /// For each tensor whether its gradient is shaped row by row.
    pub(crate) by_rows: &'a [bool],
    /// The running sums of rows that lie in two pieces.
    pub(crate) carries: &'a wgpu::Buffer,
    /// What a guard measures with, and its loss scale.
    pub(crate) guard: Option<(&'a Measures, Binding<'a>)>,
}

impl Schedule {
    /// Whether it was made for this.
    pub(crate) fn is_for(&self, job: Job, pairs: &[Pair<&GpuBuffer>], record_of: &[u32], by_rows: &[bool]) -> bool {
        let same = |(one, other): (&Pair<GpuBuffer>, &Pair<&GpuBuffer>)| {
            one.param.same(&other.param) && one.grad.same(&other.grad)
        };
        self.job == job
            && self.record_of == record_of
            && self.by_rows == by_rows
            && self.pairs.iter().zip(pairs).all(same)
    }

    /// Whether it swaps averages and parameters.
    pub(crate) fn is_swap(&self) -> bool {
        matches!(self.job, Job::Work(Work::SwapIn | Work::SwapOut))
    }

    /// Checks the memory and makes the dispatches. Nothing that the caller can see is changed.
    pub(crate) fn new(parts: &Parts<'_>, job: Job, pairs: &[Pair<&GpuBuffer>], record_of: &[u32]) -> Result<Self> {
        check(parts, pairs)?;
        let gathered = Gathered::new(parts, pairs)?;
        let moves = gathered.moves(parts, pairs, job != Job::Work(Work::Seed))?;
        let (callers, pairs) = (pairs, &gathered.pairs(pairs)[..]);
        let (mut measures, mut dispatches) = (Vec::new(), Vec::new());
        for kind in 0..parts.kinds.len() {
            let members = Members { parts, kind, pairs, record_of };
            if let (Job::Update(Decision::Later | Decision::Now), Some(guard)) = (job, parts.guard) {
                measures.extend(members.runs(|_| true).gradients(parts, guard)?);
            }
            dispatches.extend(match job {
                Job::Update(_) => members.update()?,
                Job::Accumulate => {
                    let runs = members.runs(|_| true);
                    let update = |grad, access| Stage::Update(grad, access, false);
                    runs.dispatches(parts, Some(parts.accumulate), update, record_of)?
                }
                Job::Work(work) => {
                    let stage = |grad, access| Stage::Work(work, grad, access);
                    members.runs(|_| true).dispatches(parts, None, stage, record_of)?
                }
            });
        }
        if let (Job::Update(Decision::Now), Some((guard, control))) = (job, parts.guard) {
            let len = |(tensor, pair): (usize, &Pair<_>)| {
                if pair.is_absent() { 0 } else { parts.tensors[tensor].parameter.len() }
            };
            let lens: Vec<_> = pairs.iter().enumerate().map(len).collect();
            measures.extend(guard.decide(parts, control, &lens)?);
        }
        let pairs =
            callers.iter().map(|pair| Pair { param: pair.param.to_owned(), grad: pair.grad.to_owned() }).collect();
        let (record_of, by_rows) = (record_of.to_vec(), parts.by_rows.to_vec());
        Ok(Self { measures, dispatches, moves, job, pairs, record_of, by_rows })
    }
}

/// The members of a kind, in one step.
struct Members<'p, 'a> {
    parts: &'p Parts<'a>,
    kind: usize,
    pairs: &'p [Pair<&'a GpuBuffer>],
    record_of: &'p [u32],
}

impl<'a> Members<'_, 'a> {
    fn kind(&self) -> &'a Kind {
        &self.parts.kinds[self.kind]
    }

    /// The runs of those members, by the index of the tensor, that are updated.
    fn runs(&self, which: impl Fn(usize) -> bool) -> Runs<'a> {
        self.runs_between(which, |tensor| self.pairs[tensor])
    }

    /// The same, with other memory in place of theirs.
    fn runs_between(&self, which: impl Fn(usize) -> bool, memory: impl Fn(usize) -> Pair<&'a GpuBuffer>) -> Runs<'a> {
        let (kind, mut runs) = (self.kind(), Runs::default());
        for &piece in &kind.layout.pieces {
            let tensor = kind.members[piece.tensor];
            if self.pairs[tensor].is_absent() || !which(tensor) {
                continue;
            }
            let pair = memory(tensor);
            let whole = piece.len.is_multiple_of(4) || (pair.param.is_padded() && pair.grad.is_padded());
            let access = if whole { Access::Whole } else { Access::Each };
            let [param, grad] = [pair.param, pair.grad].map(|side| side.place(self.parts, kind, piece));
            runs.add(
                self.parts,
                (self.kind, piece.page, access, false),
                [param, grad],
                Extent {
                    tensor,
                    element: piece.start,
                    len: piece.len,
                    state: piece.offset,
                    grad: Some(0),
                    grads: piece.len,
                },
            );
        }
        runs
    }

    /// The rule's update.
    fn update(&self) -> Result<Vec<Dispatch>> {
        let (parts, kind) = (self.parts, self.kind());
        if kind.factored.is_some() {
            return self.factored();
        }
        // Those whose gradients are shaped row by row have kernels of their own.
        let [plain, by_rows] = [false, true].map(|by_rows| self.runs(|tensor| parts.by_rows[tensor] == by_rows));
        let mut dispatches = Vec::new();
        let trust = kind.program.sums == Sums::Trust;
        if let (Some(sums), true) = (&kind.sums, trust) {
            for runs in [&plain, &by_rows] {
                dispatches.extend(runs.measures(parts, sums, self.record_of, false)?);
            }
            dispatches.extend(self.finish(sums)?);
        }
        dispatches.extend(by_rows.units(parts, self.record_of)?);
        if let (Some(sums), false) = (&kind.sums, trust) {
            dispatches.extend(plain.measures(parts, sums, self.record_of, false)?);
            dispatches.extend(by_rows.measures(parts, sums, self.record_of, true)?);
            dispatches.extend(self.finish(sums)?);
        }
        for (runs, by_rows) in [(&plain, false), (&by_rows, true)] {
            let update = |grad, access| Stage::Update(grad, access, by_rows);
            dispatches.extend(runs.dispatches(parts, None, update, self.record_of)?);
        }
        Ok(dispatches)
    }

    /// The walks of a factored rule; where memory is not as they need it, between two that copy.
    fn factored(&self) -> Result<Vec<Dispatch>> {
        let (parts, kind) = (self.parts, self.kind());
        let Some(factored) = &kind.factored else { return Ok(Vec::new()) };
        let by_rows = |tensor: usize| parts.by_rows[tensor];
        let copied = |tensor: usize| by_rows(tensor) || self.needs_copy(tensor);
        let scratch = [Side::Own(Own::ScratchParams), Side::Own(Own::ScratchGrads)];

        let load = |grad, access| Stage::Work(Work::Load, grad, access);
        let shape = |grad, access| Stage::Work(Work::Shape, grad, access);
        let loaded = self.runs(|tensor| copied(tensor) && !by_rows(tensor));
        let mut dispatches = loaded.dispatches(parts, None, load, self.record_of)?;
        let shaped = self.runs(by_rows);
        dispatches.extend(shaped.units(parts, self.record_of)?);
        dispatches.extend(shaped.dispatches(parts, None, shape, self.record_of)?);
        let mut updated = Vec::new();
        for (member, &tensor) in kind.members.iter().enumerate() {
            let (pair, [piece]) = (&self.pairs[tensor], kind.layout.pieces_of(member)) else { continue };
            if pair.is_absent() {
                continue;
            }
            let sides = if copied(tensor) { scratch } else { [pair.param, pair.grad] };
            updated.push((
                member,
                sides.map(|side| side.place(parts, kind, *piece)),
                self.record_of[tensor],
                by_rows(tensor),
            ));
        }
        dispatches.extend(factored.dispatches(parts, kind, &updated)?);
        let stored = self.runs_between(copied, |tensor| Pair { param: self.pairs[tensor].param, grad: scratch[0] });
        let store = |grad, access| Stage::Work(Work::Store, grad, access);
        dispatches.extend(stored.dispatches(parts, None, store, self.record_of)?);
        Ok(dispatches)
    }

    /// Whether a factored rule works on a copy.
    fn needs_copy(&self, tensor: usize) -> bool {
        self.kind().needs_copy() || self.pairs[tensor].grad.format(self.kind()) != Format::F32
    }

    /// Completes the record of each tensor that is updated.
    fn finish(&self, sums: &PartialSums) -> Result<Option<Dispatch>> {
        let (parts, kind) = (self.parts, self.kind());
        let updated = kind.members.iter().enumerate().filter(|&(_, &tensor)| !self.pairs[tensor].is_absent());
        let span = |(member, &tensor): (usize, &usize)| {
            Span::new(sums.starts[member]..sums.starts[member + 1], self.record_of[tensor])
        };
        let spans: Vec<_> = updated.map(span).collect();
        if spans.is_empty() {
            return Ok(None);
        }
        let kernel = parts.context.kernel(&kind.program, Stage::Finish)?;
        let tables = parts.tables("spans", &[&spans])?;
        let bindings = [parts.records(), tables[0].binding(), sums.binding()];
        let bindings = parts.context.bind(&kernel.bindings, &bindings)?;
        Ok(Some(Dispatch { pipeline: kernel.pipeline, bindings, grid: grid(spans.len()), page: None }))
    }
}

/// What only this backend can know: whether buffers can be bound, and whether they get into each other's way.
pub(crate) fn check(parts: &Parts<'_>, pairs: &[Pair<&GpuBuffer>]) -> Result<()> {
    let alignment = u64::from(parts.context.limits.min_storage_buffer_offset_alignment);
    let mut claims = Vec::new();
    for (pair, tensor) in pairs.iter().zip(parts.tensors) {
        let name = tensor.parameter.name();
        for (what, side) in [(PARAMETER, &pair.param), (GRADIENT, &pair.grad)] {
            let Some(memory) = side.device() else { continue };
            if !memory.offset.is_multiple_of(alignment) {
                let expected = format!("an offset that is a multiple of {alignment} bytes on this device");
                return Err(unfit(what, name, expected, memory.offset.to_string()));
            }
            let end = memory.offset + (memory.len * memory.dtype.size()) as u64;
            claims.push(Claim { buffer: &memory.buffer, start: memory.offset, end, what, name });
        }
        let [param, grad] = [pair.param.device(), pair.grad.device()].map(|memory| memory.map(|memory| &memory.buffer));
        if param.is_some() && param == grad {
            let expected = "a wgpu::Buffer other than its gradient's: use separate buffers";
            let got = "one buffer for both, which a kernel cannot read and write at once";
            return Err(unfit(PARAMETER, name, expected.into(), got.into()));
        }
    }
    overlap(claims)
}

pub(crate) const PARAMETER: &str = "parameter";
pub(crate) const GRADIENT: &str = "gradient";

/// A part of a buffer, and what uses it.
struct Claim<'a> {
    buffer: &'a wgpu::Buffer,
    start: u64,
    end: u64,
    what: &'static str,
    name: &'a str,
}

/// An error if a parameter shares memory with anything. Gradients may share theirs: they are only read.
fn overlap(mut claims: Vec<Claim<'_>>) -> Result<()> {
    claims.sort_unstable_by_key(|claim| (claim.buffer, claim.start));
    // The parameter and the gradient that reach furthest so far.
    let mut furthest: [Option<&Claim<'_>>; 2] = [None, None];
    for claim in &claims {
        let others = if claim.what == PARAMETER { &furthest[..] } else { &furthest[..1] };
        let met = others.iter().flatten().find(|other| other.buffer == claim.buffer && other.end > claim.start);
        if let Some(other) = met {
            let got = format!("an overlap with {} {:?}", other.what, other.name);
            return Err(unfit(claim.what, claim.name, "memory of its own".into(), got));
        }
        let own = &mut furthest[usize::from(claim.what == GRADIENT)];
        if own.is_none_or(|known| known.buffer != claim.buffer || known.end < claim.end) {
            *own = Some(claim);
        }
    }
    Ok(())
}

fn unfit(what: &'static str, name: &str, expected: String, got: String) -> Error {
    Error::Memory { what, name: name.to_owned(), expected, got }
}

/// A part of a buffer that a kernel sees: where it begins and how long it is, in bytes.
pub(crate) type Binding<'a> = (&'a wgpu::Buffer, u64, u64);

/// The words that one buffer of tables may have at least, whatever the window: windows may be forced to be tiny.
const TABLE: usize = 1 << 14;

/// A table on the device.
pub(crate) struct Table {
    buffer: wgpu::Buffer,
    offset: u64,
    size: u64,
}

impl Table {
    pub(crate) fn binding(&self) -> Binding<'_> {
        (&self.buffer, self.offset, self.size)
    }
}

/// Where elements begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    /// In bytes.
    pub(crate) offset: u64,
    pub(crate) format: Format,
}

impl Place<'_> {
    pub(crate) const fn size(&self) -> u64 {
        self.format.bits() as u64 / 8
    }

    /// The bytes of so many elements, up to a whole word.
    pub(crate) const fn bytes(&self, elements: usize) -> u64 {
        (elements as u64 * self.size()).next_multiple_of(4)
    }
}

/// A run of elements, and of their gradient.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) tensor: usize,
    /// The first element, within the tensor.
    pub(crate) element: usize,
    pub(crate) len: usize,
    /// The first element, within the page of state.
    pub(crate) state: usize,
    /// The first element of the gradient, from its place on; `None` for none.
    pub(crate) grad: Option<usize>,
    /// The elements of the gradient that are bound from its place on.
    pub(crate) grads: usize,
}

/// A kind, a page of its state, how lanes get at numbers, and whether it is the second of two runs that share words.
type Group = (usize, usize, Access, bool);

/// Elements that one dispatch can update: of one page, with their parameters in one binding and their gradients in another.
#[derive(Debug)]
struct Run<'a> {
    group: Group,
    /// The format of the gradients.
    grad: Format,
    /// Of the parameters, and of the gradients.
    sides: [Bounds<'a>; 2],
    stretches: Vec<Stretch>,
}

/// A part of a buffer.
#[derive(Debug, Clone, Copy)]
struct Bounds<'a> {
    buffer: &'a wgpu::Buffer,
    start: u64,
    end: u64,
    /// The bytes of an element.
    size: u64,
}

impl<'a> Bounds<'a> {
    /// From a place on, or from before it, where a binding may begin.
    fn new(parts: &Parts<'_>, place: Place<'a>, elements: usize) -> Self {
        let alignment = u64::from(parts.context.limits.min_storage_buffer_offset_alignment);
        let start = place.offset / alignment * alignment;
        // Never empty, which could not be bound.
        let end = (place.offset + elements as u64 * place.size()).next_multiple_of(4);
        let end = end.max(start + 16).min(place.buffer.size() / 4 * 4);
        Self { buffer: place.buffer, start, end, size: place.size() }
    }

    /// With another part, if a binding can hold both.
    fn joined(self, other: Self, most: u64) -> Option<Self> {
        let (start, end) = (self.start.min(other.start), self.end.max(other.end));
        (end - start <= most).then_some(Self { start, end, ..self })
    }

    fn binding(&self) -> Binding<'a> {
        (self.buffer, self.start, self.end - self.start)
    }

    /// The first element, within the buffer.
    const fn first(&self) -> u64 {
        self.start / self.size
    }
}

/// A buffer, and the format of its elements.
type Source<'a> = (&'a wgpu::Buffer, Format);

/// The runs of a step.
#[derive(Debug, Default)]
pub(crate) struct Runs<'a> {
    list: Vec<Run<'a>>,
    /// The latest of each sort.
    latest: HashMap<(Group, [Source<'a>; 2]), usize>,
}

impl<'a> Runs<'a> {
    /// Adds elements to the latest run of their sort, or begins another where that has no room. They begin at these places.
    pub(crate) fn add(&mut self, parts: &Parts<'a>, group: Group, [param, grad]: [Place<'a>; 2], extent: Extent) {
        let padded = |elements: usize| match group.2 {
            Access::Whole => elements.next_multiple_of(4),
            Access::Each => elements,
        };
        let sides = [Bounds::new(parts, param, padded(extent.len)), Bounds::new(parts, grad, padded(extent.grads))];
        let stretch = Stretch {
            tensor: extent.tensor,
            element: extent.element,
            len: extent.len,
            state: extent.state,
            param: param.offset / param.size(),
            grad: extent.grad.map(|first| grad.offset / grad.size() + first as u64),
        };
        let most = bytes(parts.context.window.max(parts.kinds[group.0].layout.window));
        let key = (group, [param, grad].map(|place| (place.buffer, place.format)));
        if let Some(run) = self.latest.get(&key).map(|&latest| &mut self.list[latest])
            && let [Some(params), Some(grads)] = [0, 1].map(|side| run.sides[side].joined(sides[side], most))
        {
            run.sides = [params, grads];
            run.stretches.push(stretch);
            return;
        }
        self.latest.insert(key, self.list.len());
        self.list.push(Run { group, grad: grad.format, sides, stretches: vec![stretch] });
    }

    /// A kernel over each run, a workgroup for each tile: of its kind's program, or of another that leaves the state alone.
    pub(crate) fn dispatches(
        &self,
        parts: &Parts<'_>,
        program: Option<&Arc<Program>>,
        stage: impl Fn(Format, Access) -> Stage,
        record_of: &[u32],
    ) -> Result<Vec<Dispatch>> {
        let tiles = |run: &Run<'_>| -> Vec<_> {
            let bounds = [run.sides[0].first(), run.sides[1].first()];
            let tiles =
                |stretch: &Stretch| stretch.tiles(parts.common(stretch.tensor, record_of[stretch.tensor]), bounds);
            run.stretches.iter().flat_map(tiles).collect()
        };
        let tiles: Vec<Vec<_>> = self.list.iter().map(tiles).collect();
        self.in_tables(parts, "tiles", &tiles, |run, table, entries| {
            run.dispatch(parts, program, stage(run.grad, run.group.2), table, entries, None)
        })
    }

    /// The sums of slices, of gradients that are shaped row by row or not.
    fn measures(
        &self,
        parts: &Parts<'_>,
        sums: &PartialSums,
        record_of: &[u32],
        by_rows: bool,
    ) -> Result<Vec<Dispatch>> {
        let slices = |run: &Run<'_>| -> Vec<_> {
            let bounds = [run.sides[0].first(), run.sides[1].first()];
            let slices = |stretch: &Stretch| {
                let part = sums.starts[parts.kind_of[stretch.tensor].1];
                stretch.slices(parts.common(stretch.tensor, record_of[stretch.tensor]), part, bounds)
            };
            run.stretches.iter().flat_map(slices).collect()
        };
        let slices: Vec<Vec<_>> = self.list.iter().map(slices).collect();
        self.in_tables(parts, "slices", &slices, |run, table, entries| {
            let stage = Stage::Measure(run.grad, run.group.2, by_rows);
            run.dispatch(parts, None, stage, table, entries, Some(sums.binding()))
        })
    }

    /// The numbers of all rows.
    fn units(&self, parts: &Parts<'_>, record_of: &[u32]) -> Result<Vec<Dispatch>> {
        let rows = |run: &Run<'_>| -> Vec<_> {
            let bounds = [run.sides[0].first(), run.sides[1].first()];
            let rows = |stretch: &Stretch| {
                let common = parts.common(stretch.tensor, record_of[stretch.tensor]);
                stretch.rows(common, parts.kinds[run.group.0].layout.window, bounds)
            };
            run.stretches.iter().flat_map(rows).collect()
        };
        let rows: Vec<Vec<_>> = self.list.iter().map(rows).collect();
        self.in_tables(parts, "rows", &rows, |run, table, entries| {
            run.dispatch(parts, None, Stage::Units(run.grad), table, entries, None)
        })
    }

    /// What a guard measures of the gradients.
    fn gradients(&self, parts: &Parts<'_>, (measures, control): (&Measures, Binding<'_>)) -> Result<Vec<Dispatch>> {
        let slices = |run: &Run<'_>| -> Vec<_> {
            let slices = |stretch: &Stretch| {
                let Stretch { tensor, element: start, len, grad, .. } = *stretch;
                let first = run.sides[1].first();
                let (whole, window) = (parts.tensors[tensor].parameter.len(), parts.kinds[run.group.0].layout.window);
                measures.slices(Elements { tensor, start, len, whole, window, at: low(grad.unwrap_or(first) - first) })
            };
            run.stretches.iter().flat_map(slices).collect()
        };
        let slices: Vec<Vec<_>> = self.list.iter().map(slices).collect();
        self.in_tables(parts, "slices", &slices, |run, table, entries| {
            let tensor = run.stretches.first().map_or(0, |stretch| stretch.tensor);
            let grads = (tensor, run.sides[1].binding());
            measures.measure(parts, control, (run.grad, run.group.2), (table.binding(), entries), grads)
        })
    }

    /// A dispatch for each table of each run: there may be more entries than one holds.
    fn in_tables<T: Pod>(
        &self,
        parts: &Parts<'_>,
        label: &str,
        entries: &[Vec<T>],
        dispatch: impl Fn(&Run<'_>, &Table, usize) -> Result<Dispatch>,
    ) -> Result<Vec<Dispatch>> {
        let most = 4 * parts.table() / size_of::<T>();
        let runs = self.list.iter().zip(entries);
        let chunks: Vec<_> =
            runs.flat_map(|(run, entries)| entries.chunks(most).map(move |chunk| (run, chunk))).collect();
        let lists: Vec<_> = chunks.iter().map(|(_, entries)| *entries).collect();
        let tables = parts.tables(label, &lists)?;
        chunks.iter().zip(&tables).map(|((run, entries), table)| dispatch(run, table, entries.len())).collect()
    }
}

impl Run<'_> {
    /// The kernel of a stage over this memory: a workgroup for each entry of the table.
    fn dispatch(
        &self,
        parts: &Parts<'_>,
        program: Option<&Arc<Program>>,
        stage: Stage,
        table: &Table,
        entries: usize,
        last: Option<Binding<'_>>,
    ) -> Result<Dispatch> {
        let (kind, page, ..) = self.group;
        let owner = &parts.kinds[kind];
        let kernel = parts.context.kernel(program.unwrap_or(&owner.program), stage)?;
        let [state, starts] = owner.page(page);
        let [params, grads] = self.sides.map(|side| side.binding());
        let mut bindings = vec![parts.records(), table.binding(), params, grads, state, starts];
        bindings.extend(last);
        if let Stage::Work(Work::Load | Work::Shape, ..) = stage {
            for own in [Own::ScratchParams, Own::ScratchGrads] {
                let buffer = &owner.own(own)[page];
                bindings.push((buffer, 0, buffer.size()));
            }
        }
        if stage.reads_units() || matches!(stage, Stage::Units(_)) {
            bindings.extend(owner.units.iter().map(|units| (units, 0, units.size())));
        }
        if let Stage::Units(_) = stage {
            bindings.push((parts.carries, 0, parts.carries.size()));
        }
        let tensor = self.stretches.first().map_or(0, |stretch| stretch.tensor);
        let bindings = parts.bind(&kernel, tensor, &bindings)?;
        let (pipeline, grid) = (kernel.pipeline, grid(entries));
        let page = program.is_none().then_some((kind, page));
        Ok(Dispatch { pipeline, bindings, grid, page })
    }
}

impl<'a> Side<&'a GpuBuffer> {
    /// Where a piece begins.
    pub(crate) fn place(&self, parts: &Parts<'a>, kind: &'a Kind, piece: Piece) -> Place<'a> {
        let format = self.format(kind);
        let size = format.bits() / 8;
        match *self {
            Self::Device(memory) => {
                Place { buffer: &memory.buffer, offset: memory.offset + (piece.start * size) as u64, format }
            }
            Self::Own(own) => {
                Place { buffer: &kind.own(own)[piece.page], offset: (piece.offset * size) as u64, format }
            }
            Self::Absent => Place { buffer: parts.nothing, offset: 0, format },
        }
    }

    /// How the elements are kept.
    pub(crate) fn format(&self, kind: &Kind) -> Format {
        match self {
            Self::Device(memory) => kind::format(memory.dtype),
            Self::Own(own) => kind::format(kind.dtype(*own)),
            Self::Absent => Format::F32,
        }
    }
}

impl Parts<'_> {
    /// What the tiles of a tensor share.
    fn common(&self, tensor: usize, record: u32) -> Common {
        let (kind, member) = self.kind_of[tensor];
        let Tensor { key, .. } = self.tensors[tensor];
        let width = self.tensors[tensor].rows().1;
        Common { record, key, row: word(self.kinds[kind].rows[member]), width }
    }

    /// Binds what a kernel works on; the third and the fourth are a tensor's parameter and gradient. A buffer that wgpu refuses is
    /// another device's, and is named.
    pub(crate) fn bind(&self, kernel: &Kernel, tensor: usize, bindings: &[Binding<'_>]) -> Result<wgpu::BindGroup> {
        self.context.bind(&kernel.bindings, bindings).map_err(|error| {
            let name = self.tensors[tensor].parameter.name();
            let refuse = |(what, nth): (_, usize)| self.context.refuse_strangers(what, name, bindings[nth].0).err();
            [(PARAMETER, 2), (GRADIENT, 3)].into_iter().find_map(refuse).unwrap_or(error)
        })
    }

    pub(crate) fn records(&self) -> Binding<'_> {
        (self.records, 0, self.records.size())
    }

    /// The words that one buffer of tables may have, unless a table of its own is longer.
    pub(crate) fn table(&self) -> usize {
        let most = usize::try_from(self.context.binding / 4).unwrap_or(TABLE);
        let windows = self.kinds.iter().map(|kind| kind.layout.window);
        windows.fold(self.context.window, usize::max).max(TABLE.min(most))
    }

    /// Tables on the device, in few buffers. None of them is empty.
    pub(crate) fn tables<T: Pod>(&self, label: &str, lists: &[&[T]]) -> Result<Vec<Table>> {
        self.tables_for(USAGE, label, lists)
    }

    /// Tables for this use.
    pub(crate) fn tables_for<T: Pod>(
        &self,
        usage: wgpu::BufferUsages,
        label: &str,
        lists: &[&[T]],
    ) -> Result<Vec<Table>> {
        let lens = || lists.iter().map(|list| size_of_val(*list) / 4);
        let longest = lens().max().unwrap_or(0).next_multiple_of(ALIGNMENT);
        let (expected, got) = (bytes(longest), self.context.binding);
        if expected > got {
            return Err(Error::DeviceLimit { what: "max_storage_buffer_binding_size", expected, got });
        }
        let layout = Layout::new(lens(), self.table().max(longest));
        let mut buffers = Vec::with_capacity(layout.pages.len());
        for (page, &len) in layout.pages.iter().enumerate() {
            let buffer = self.context.create_buffer(label, bytes(len), usage, true)?;
            self.context.write_mapped(&buffer, |view| {
                for piece in layout.pieces.iter().filter(|piece| piece.page == page) {
                    let list = bytemuck::cast_slice::<T, u8>(lists[piece.tensor]);
                    view.slice(4 * piece.offset..4 * piece.offset + list.len()).copy_from_slice(list);
                }
            })?;
            buffers.push(buffer);
        }
        let table = |(pieces, list): (&[Piece], &&[T])| Table {
            buffer: buffers[pieces[0].page].clone(),
            offset: bytes(pieces[0].offset),
            size: size_of_val(*list) as u64,
        };
        Ok(layout.tensors().zip(lists).map(table).collect())
    }
}

impl Context {
    /// An error that names the memory if its buffer cannot be bound on this device.
    pub(crate) fn refuse_strangers(&self, what: &'static str, name: &str, buffer: &wgpu::Buffer) -> Result<()> {
        self.probe(buffer).map_err(|error| match error {
            Error::Device { detail } => unfit(what, name, "a buffer that this device can bind".into(), detail),
            other => other,
        })
    }

    /// Binds parts of buffers, in the order of the layout.
    pub(crate) fn bind(&self, layout: &wgpu::BindGroupLayout, bindings: &[Binding<'_>]) -> Result<wgpu::BindGroup> {
        let entries: Vec<_> = (0..)
            .zip(bindings)
            .map(|(binding, &(buffer, offset, size))| {
                let resource = wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) };
                wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(resource) }
            })
            .collect();
        self.scoped(|| {
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("tensors"),
                layout,
                entries: &entries,
            })
        })
    }
}
