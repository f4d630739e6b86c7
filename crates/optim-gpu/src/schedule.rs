//! From the memory of one step to a list of dispatches. It is made once for each distinct set of buffers and kept.

use std::borrow::Borrow;
use std::sync::Arc;

use bytemuck::Pod;
use optim_core::{Error, Result};
use optim_shaders::Width;

use crate::GpuBuffer;
use crate::buffer::USAGE;
use crate::device::Context;
use crate::factored::Factored;
use crate::layout::{Layout, Piece, SLICE, Slice, Span, Stretch, Tile, bytes, grid};
use crate::pipeline::{Program, Stage};

/// Where one parameter or one gradient lies.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side<B> {
    /// Nowhere: there is nothing to update.
    Absent,
    /// On the host; the kernel sees a copy in the engine's staged pages.
    Host,
    /// On the device.
    Device(B),
}

impl<B: Borrow<GpuBuffer>> Side<B> {
    fn same<C: Borrow<GpuBuffer>>(&self, other: &Side<C>) -> bool {
        match (self, other) {
            (Self::Absent, Side::Absent) | (Self::Host, Side::Host) => true,
            (Self::Device(one), Side::Device(other)) => one.borrow().same(other.borrow()),
            _ => false,
        }
    }

    pub(crate) fn device(&self) -> Option<&GpuBuffer> {
        match self {
            Self::Absent | Self::Host => None,
            Self::Device(buffer) => Some(buffer.borrow()),
        }
    }

    fn to_owned(&self) -> Side<GpuBuffer> {
        match self {
            Self::Absent => Side::Absent,
            Self::Host => Side::Host,
            Self::Device(buffer) => Side::Device(buffer.borrow().clone()),
        }
    }
}

/// The memory of one tensor's update. Both sides are present or both are absent.
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

/// A list of dispatches, and what it was made for.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(crate) dispatches: Vec<Dispatch>,
    pairs: Vec<Pair<GpuBuffer>>,
    record_of: Vec<u32>,
}

/// One dispatch.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) bindings: wgpu::BindGroup,
    pub(crate) grid: (u32, u32),
    /// Whether the first binding is the records, which have a dynamic offset.
    pub(crate) records: bool,
    /// The page of state that it updates, if any.
    pub(crate) page: Option<usize>,
}

/// The sums of an engine's slices.
#[derive(Debug)]
pub(crate) struct PartialSums {
    pub(crate) buffer: wgpu::Buffer,
    /// For each tensor its first part, and last where they end.
    pub(crate) starts: Vec<usize>,
}

impl PartialSums {
    /// The bytes of one part.
    const SIZE: u64 = 16;

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
    pub(crate) context: &'a Context,
    pub(crate) program: &'a Arc<Program>,
    /// Where slices are summed, if the rule sums anything.
    pub(crate) sums: Option<&'a PartialSums>,
    /// What a factored rule needs beside its slots.
    pub(crate) factored: Option<&'a Factored>,
    pub(crate) names: &'a [String],
    pub(crate) layout: &'a Layout,
    /// The state: pages for each slot.
    pub(crate) slots: &'a [Vec<wgpu::Buffer>],
    pub(crate) slot_layouts: &'a [Layout],
    /// The pages for host parameters, and for host gradients; empty where there are none.
    pub(crate) staged: [&'a [wgpu::Buffer]; 2],
    /// The ring of records, and the bytes of one place in it.
    pub(crate) records: (&'a wgpu::Buffer, u64),
}

impl Schedule {
    /// Whether it is for these buffers and records.
    pub(crate) fn is_for(&self, pairs: &[Pair<&GpuBuffer>], record_of: &[u32]) -> bool {
        let same = |(one, other): (&Pair<GpuBuffer>, &Pair<&GpuBuffer>)| {
            one.param.same(&other.param) && one.grad.same(&other.grad)
        };
        self.record_of == record_of && self.pairs.iter().zip(pairs).all(same)
    }

    /// Checks the memory and makes the dispatches. Nothing that the caller can see is changed.
    pub(crate) fn new(parts: &Parts<'_>, pairs: &[Pair<&GpuBuffer>], record_of: &[u32]) -> Result<Self> {
        check(parts, pairs)?;
        let owned =
            || pairs.iter().map(|pair| Pair { param: pair.param.to_owned(), grad: pair.grad.to_owned() }).collect();
        if let Some(factored) = parts.factored {
            let dispatches = factored.dispatches(parts, pairs, record_of)?;
            return Ok(Self { dispatches, pairs: owned(), record_of: record_of.to_vec() });
        }
        let runs = Run::all(parts, pairs, record_of);
        let mut dispatches = Vec::new();
        if let Some(sums) = parts.sums {
            let slices: Vec<_> = runs.iter().map(|run| &*run.slices).collect();
            for (run, slices) in runs.iter().zip(parts.tables("slices", &slices)?) {
                dispatches.push(run.measure(parts, &slices, sums, pairs)?);
            }
            dispatches.extend(finish(parts, sums, pairs, record_of)?);
        }
        dispatches.extend(Run::updates(&runs, parts, pairs)?);
        Ok(Self { dispatches, pairs: owned(), record_of: record_of.to_vec() })
    }
}

/// Completes the record of each tensor that is updated.
fn finish(
    parts: &Parts<'_>,
    sums: &PartialSums,
    pairs: &[Pair<&GpuBuffer>],
    record_of: &[u32],
) -> Result<Option<Dispatch>> {
    let updated = (0..pairs.len()).filter(|&tensor| !pairs[tensor].is_absent());
    let span = |tensor: usize| Span::new(sums.starts[tensor]..sums.starts[tensor + 1], record_of[tensor]);
    let spans: Vec<_> = updated.map(span).collect();
    if spans.is_empty() {
        return Ok(None);
    }
    let kernel = parts.context.kernel(parts.program, Stage::Finish)?;
    let tables = parts.tables("spans", &[&spans])?;
    let bindings = [parts.records(), tables[0].binding(), sums.binding()];
    let bindings = parts.context.bind(&kernel.bindings, &bindings)?;
    Ok(Some(Dispatch { pipeline: kernel.pipeline, bindings, grid: grid(spans.len()), records: true, page: None }))
}

/// What only this backend can know: whether buffers can be bound, and whether they get into each other's way.
pub(crate) fn check(parts: &Parts<'_>, pairs: &[Pair<&GpuBuffer>]) -> Result<()> {
    let alignment = u64::from(parts.context.limits.min_storage_buffer_offset_alignment);
    let mut claims = Vec::new();
    for (pair, name) in pairs.iter().zip(parts.names) {
        for (what, side) in [(PARAMETER, &pair.param), (GRADIENT, &pair.grad)] {
            let Some(memory) = side.device() else { continue };
            if !memory.offset.is_multiple_of(alignment) {
                let expected = format!("an offset that is a multiple of {alignment} bytes on this device");
                return Err(unfit(what, name, expected, memory.offset.to_string()));
            }
            let end = memory.offset + bytes(memory.len);
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

const PARAMETER: &str = "parameter";
const GRADIENT: &str = "gradient";

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

/// Pieces that one dispatch can update: their parameters, their gradients and their state lie in one buffer each, all at the
/// same distances.
pub(crate) struct Run<'a> {
    pub(crate) width: Width,
    /// The first piece: the bindings begin with it.
    pub(crate) first: Piece,
    /// The buffer and the byte at which the parameters begin, and the gradients.
    pub(crate) sides: [(&'a wgpu::Buffer, u64); 2],
    /// The elements from the beginning of the first piece to the end of the last.
    pub(crate) elements: usize,
    /// The elements of the gradients.
    pub(crate) grads: usize,
    pub(crate) tiles: Vec<Tile>,
    pub(crate) slices: Vec<Slice>,
}

impl<'a> Run<'a> {
    /// A run without work.
    pub(crate) fn new(width: Width, first: Piece, sides: [(&'a wgpu::Buffer, u64); 2]) -> Self {
        Self { width, first, sides, elements: 0, grads: 0, tiles: Vec::new(), slices: Vec::new() }
    }

    /// All runs of a step. Pieces without a gradient are passed over; they do not end a run.
    fn all(parts: &Parts<'a>, pairs: &[Pair<&'a GpuBuffer>], record_of: &[u32]) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for &piece in &parts.layout.pieces {
            let pair = &pairs[piece.tensor];
            if pair.is_absent() {
                continue;
            }
            let sides = [(&pair.param, parts.staged[0]), (&pair.grad, parts.staged[1])];
            let padded = |side: &Side<&GpuBuffer>| side.device().is_none_or(|memory| memory.padded);
            let wide = piece.len.is_multiple_of(4) || sides.iter().all(|(side, _)| padded(side));
            let width = if wide { Width::Vec4 } else { Width::Scalar };
            let sides = sides.map(|(side, staged)| side.place(staged, piece));
            let run = match runs.last_mut() {
                Some(run) if run.continues_with(width, piece, sides) => run,
                _ => {
                    runs.push(Self::new(width, piece, sides));
                    runs.last_mut().expect("it was just pushed")
                }
            };
            let first = piece.offset - run.first.offset;
            run.elements = first + if wide { piece.len.next_multiple_of(4) } else { piece.len };
            run.grads = run.elements;
            let stretch = Stretch { first, len: piece.len, element: piece.start, grad: Some(first) };
            run.tiles.extend(Tile::cover(stretch, record_of[piece.tensor], width));
            if let Some(sums) = parts.sums {
                let part = sums.starts[piece.tensor];
                run.slices.extend(Slice::cover(piece, first, record_of[piece.tensor], part));
            }
        }
        runs
    }

    fn continues_with(&self, width: Width, piece: Piece, sides: [(&wgpu::Buffer, u64); 2]) -> bool {
        let fits = |(own, other): (&(&wgpu::Buffer, u64), (&wgpu::Buffer, u64))| {
            own.0 == other.0 && own.1 + bytes(piece.offset - self.first.offset) == other.1
        };
        width == self.width && piece.page == self.first.page && self.sides.iter().zip(sides).all(fits)
    }

    /// The update of each run.
    pub(crate) fn updates(runs: &[Self], parts: &Parts<'_>, pairs: &[Pair<&GpuBuffer>]) -> Result<Vec<Dispatch>> {
        let tiles: Vec<_> = runs.iter().map(|run| &*run.tiles).collect();
        let tables = parts.tables("tiles", &tiles)?;
        let update = |(run, tiles): (&Self, &Table)| {
            run.dispatch(parts, Stage::Update(run.width), tiles, None, run.tiles.len(), pairs)
        };
        runs.iter().zip(&tables).map(update).collect()
    }

    /// The sums of its slices.
    fn measure(
        &self,
        parts: &Parts<'_>,
        slices: &Table,
        sums: &PartialSums,
        pairs: &[Pair<&GpuBuffer>],
    ) -> Result<Dispatch> {
        self.dispatch(parts, Stage::Measure(self.width), slices, Some(sums.binding()), self.slices.len(), pairs)
    }

    /// The kernel of a stage over this memory: a workgroup for each entry of the table.
    fn dispatch(
        &self,
        parts: &Parts<'_>,
        stage: Stage,
        table: &Table,
        last: Option<Binding<'_>>,
        entries: usize,
        pairs: &[Pair<&GpuBuffer>],
    ) -> Result<Dispatch> {
        let kernel = parts.context.kernel(parts.program, stage)?;
        let [params, grads] = self.sides;
        let size = bytes(self.elements);
        let mut bindings =
            vec![parts.records(), table.binding(), (params.0, params.1, size), (grads.0, grads.1, bytes(self.grads))];
        let offset = bytes(self.first.offset);
        let slots = &parts.slots[..parts.program.slots(stage)];
        bindings.extend(slots.iter().map(|pages| (&pages[self.first.page], offset, size)));
        bindings.extend(last);
        let bindings = parts.context.bind(&kernel.bindings, &bindings);
        let bindings = bindings.map_err(|error| parts.find_stranger(self.first.tensor, pairs).unwrap_or(error))?;
        Ok(Dispatch {
            pipeline: kernel.pipeline,
            bindings,
            grid: grid(entries),
            records: true,
            page: Some(self.first.page),
        })
    }
}

impl<'a> Side<&'a GpuBuffer> {
    /// The buffer and the byte at which a piece begins; on the host's side in these pages.
    pub(crate) fn place(&self, staged: &'a [wgpu::Buffer], piece: Piece) -> (&'a wgpu::Buffer, u64) {
        match *self {
            Self::Device(memory) => (&memory.buffer, memory.offset + bytes(piece.start)),
            Self::Absent | Self::Host => (&staged[piece.page], bytes(piece.offset)),
        }
    }
}

impl Parts<'_> {
    pub(crate) fn records(&self) -> Binding<'_> {
        (self.records.0, 0, self.records.1)
    }

    /// A buffer that wgpu refuses is another device's: finds out which of a tensor's it is, to name it.
    pub(crate) fn find_stranger(&self, tensor: usize, pairs: &[Pair<&GpuBuffer>]) -> Option<Error> {
        let sides = [(PARAMETER, &pairs[tensor].param), (GRADIENT, &pairs[tensor].grad)];
        let memory = sides.into_iter().filter_map(|(what, side)| Some((what, side.device()?)));
        let refuse = |(what, memory): (_, &GpuBuffer)| {
            self.context.refuse_strangers(what, &self.names[tensor], &memory.buffer).err()
        };
        memory.map(refuse).find_map(|error| error)
    }

    /// The words that one buffer of tables may have.
    pub(crate) fn table(&self) -> usize {
        let most = usize::try_from(self.context.binding / 4).unwrap_or(TABLE);
        self.layout.window.max(TABLE.min(most))
    }

    /// Tables on the device, in few buffers. None of them is empty, or longer than a window.
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
        let lens = lists.iter().map(|list| size_of_val(*list) / 4);
        let layout = Layout::new(lens, self.table());
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
            Error::Device { detail } => unfit(what, name, "a buffer of this backend's device".into(), detail),
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
