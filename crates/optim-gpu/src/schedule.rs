//! From the memory of one step to a list of dispatches. It is made once for each distinct set of buffers and kept.

use std::borrow::Borrow;

use optim_core::{Error, Result};
use optim_shaders::Width;

use crate::GpuBuffer;
use crate::buffer::USAGE;
use crate::device::Context;
use crate::layout::{Layout, Piece, Tile, bytes, grid};
use crate::pipeline::KernelKey;

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

    fn device(&self) -> Option<&GpuBuffer> {
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

/// One dispatch. Its first binding, the records, has a dynamic offset.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) bindings: wgpu::BindGroup,
    pub(crate) grid: (u32, u32),
}

/// What an engine brings to a schedule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) context: &'a Context,
    /// The kernel; its width is chosen here.
    pub(crate) kernel: KernelKey,
    pub(crate) names: &'a [String],
    pub(crate) layout: &'a Layout,
    /// The state: pages for each slot.
    pub(crate) slots: &'a [Vec<wgpu::Buffer>],
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
        let runs = Run::all(parts, pairs, record_of);
        let tiles = parts.context.tile_buffers(&runs)?;
        let dispatch = |(run, tiles): (&Run<'_>, _)| run.dispatch(parts, tiles, pairs);
        let dispatches = runs.iter().zip(tiles).map(dispatch).collect::<Result<_>>()?;
        let pairs = pairs.iter().map(|pair| Pair { param: pair.param.to_owned(), grad: pair.grad.to_owned() });
        Ok(Self { dispatches, pairs: pairs.collect(), record_of: record_of.to_vec() })
    }
}

/// What only this backend can know: whether buffers can be bound, and whether they get into each other's way.
fn check(parts: &Parts<'_>, pairs: &[Pair<&GpuBuffer>]) -> Result<()> {
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

/// Pieces that one dispatch can update: their parameters, their gradients and their state lie in one buffer each, all at the
/// same distances.
struct Run<'a> {
    width: Width,
    /// The first piece: the bindings begin with it.
    first: Piece,
    /// The buffer and the byte at which the parameters begin, and the gradients.
    sides: [(&'a wgpu::Buffer, u64); 2],
    /// The elements from the beginning of the first piece to the end of the last.
    elements: usize,
    tiles: Vec<Tile>,
}

impl<'a> Run<'a> {
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
            let sides = sides.map(|(side, staged)| match *side {
                Side::Device(memory) => (&memory.buffer, memory.offset + bytes(piece.start)),
                Side::Absent | Side::Host => (&staged[piece.page], bytes(piece.offset)),
            });
            let run = match runs.last_mut() {
                Some(run) if run.continues_with(width, piece, sides) => run,
                _ => {
                    runs.push(Self { width, first: piece, sides, elements: 0, tiles: Vec::new() });
                    runs.last_mut().expect("it was just pushed")
                }
            };
            let first = piece.offset - run.first.offset;
            run.elements = first + if wide { piece.len.next_multiple_of(4) } else { piece.len };
            run.tiles.extend(Tile::cover(piece, first, record_of[piece.tensor], width));
        }
        runs
    }

    fn continues_with(&self, width: Width, piece: Piece, sides: [(&wgpu::Buffer, u64); 2]) -> bool {
        let fits = |(own, other): (&(&wgpu::Buffer, u64), (&wgpu::Buffer, u64))| {
            own.0 == other.0 && own.1 + bytes(piece.offset - self.first.offset) == other.1
        };
        width == self.width && piece.page == self.first.page && self.sides.iter().zip(sides).all(fits)
    }

    fn dispatch(&self, parts: &Parts<'_>, tiles: (wgpu::Buffer, u64), pairs: &[Pair<&GpuBuffer>]) -> Result<Dispatch> {
        let context = parts.context;
        let kernel = context.kernel(KernelKey { width: self.width, ..parts.kernel })?;
        let [params, grads] = self.sides;
        let size = bytes(self.elements);
        let mut bindings = vec![
            (parts.records.0, 0, parts.records.1),
            (&tiles.0, tiles.1, size_of_val(&*self.tiles) as u64),
            (params.0, params.1, size),
            (grads.0, grads.1, size),
        ];
        let offset = bytes(self.first.offset);
        bindings.extend(parts.slots.iter().map(|pages| (&pages[self.first.page], offset, size)));
        let entries: Vec<_> = (0..)
            .zip(&bindings)
            .map(|(binding, &(buffer, offset, size))| {
                let resource = wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) };
                wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(resource) }
            })
            .collect();
        let bindings = context.scoped(|| {
            context.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("tensors"),
                layout: &kernel.bindings,
                entries: &entries,
            })
        });
        let bindings = bindings.map_err(|error| {
            // A buffer that wgpu refuses is another device's: find out which, to name it.
            let (tensor, mut found) = (self.first.tensor, Ok(()));
            for (what, side) in [(PARAMETER, &pairs[tensor].param), (GRADIENT, &pairs[tensor].grad)] {
                if let (Ok(()), Some(memory)) = (&found, side.device()) {
                    found = context.refuse_strangers(what, &parts.names[tensor], &memory.buffer);
                }
            }
            found.err().unwrap_or(error)
        })?;
        Ok(Dispatch { pipeline: kernel.pipeline, bindings, grid: grid(self.tiles.len()) })
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

    /// The tiles of each run on the device, in few buffers: each with the byte at which it begins.
    fn tile_buffers(&self, runs: &[Run<'_>]) -> Result<Vec<(wgpu::Buffer, u64)>> {
        let words = |run: &Run<'_>| size_of_val(&*run.tiles) / 4;
        let layout = Layout::new(runs.iter().map(words), self.window);
        let mut buffers = Vec::with_capacity(layout.pages.len());
        for (page, &len) in layout.pages.iter().enumerate() {
            let buffer = self.create_buffer("tiles", bytes(len), USAGE, true)?;
            self.write_mapped(&buffer, |view| {
                for piece in layout.pieces.iter().filter(|piece| piece.page == page) {
                    let tiles = bytemuck::cast_slice::<Tile, u8>(&runs[piece.tensor].tiles);
                    view.slice(4 * piece.offset..4 * piece.offset + tiles.len()).copy_from_slice(tiles);
                }
            })?;
            buffers.push(buffer);
        }
        let place = |pieces: &[Piece]| (buffers[pieces[0].page].clone(), bytes(pieces[0].offset));
        Ok(layout.tensors().map(place).collect())
    }
}
