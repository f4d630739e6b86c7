//! Small tensors in buffers of their own are gathered into few, so that one dispatch updates them all, and scattered afterwards.

use std::collections::HashMap;

use bytemuck::{Pod, Zeroable};
use optim_core::{DType, Result};

use crate::device::Context;
use crate::layout::{grid, low, word};
use crate::pipeline::Stage;
use crate::schedule::{Dispatch, GRADIENT, PARAMETER, Pair, Parts, Side, Table};
use crate::{Gather, GpuBuffer};

/// The most bytes of a kind's tensors in one buffer that are gathered rather than dispatched. Milliseconds of a step over 64 buffers on
/// Mesa's software GPU, copied or dispatched: 0.9 or 1.3 for 4 KiB each, 2.8 or 3.1 for 16, 6.8 or 10.2 for 64, 93 or 42 for 256. On
/// hardware a dispatch more also means a barrier more, because the state is shared.
const SMALL: u64 = 1 << 16;

/// The most buffers that a kernel gathers from. Not yet timed on hardware; there a copy, which it is instead of, takes 1.5 µs (NVIDIA H200).
const BUFFERS: u32 = 126;

/// The most words that a workgroup moves.
const PIECE: usize = 1024;

/// What is moved before or after a step's dispatches.
#[derive(Debug)]
pub(crate) enum Moves {
    Copies(Vec<Move>),
    Dispatches(Vec<Dispatch>),
}

/// A small tensor, and its place in the buffer that many share.
#[derive(Debug)]
pub(crate) struct Move {
    own: GpuBuffer,
    together: GpuBuffer,
    /// Whether it is moved back.
    back: bool,
}

impl Move {
    pub(crate) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let Self { own, together, back } = self;
        let (from, to) = if *back { (together, own) } else { (own, together) };
        encoder.copy_buffer_to_buffer(&from.buffer, from.offset, &to.buffer, to.offset, own.size() as u64);
    }
}

/// Words that a workgroup moves: `Piece` of `gather.wgsl`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Piece {
    buffer: u32,
    first: u32,
    together: u32,
    count: u32,
}

/// What of a step's memory is gathered: for each tensor the place of its parameter and of its gradient, if they are.
#[derive(Debug)]
pub(crate) struct Gathered(Vec<[Option<GpuBuffer>; 2]>);

impl Gathered {
    /// Makes room for what is worth it: of small buffers for the same page of state, on one side or on both.
    #[allow(clippy::mutable_key_type, reason = "buffers are compared by identity")]
    pub(crate) fn new(parts: &Parts<'_>, pairs: &[Pair<&GpuBuffer>]) -> Result<Self> {
        let memory = |tensor: usize, side: usize| [&pairs[tensor].param, &pairs[tensor].grad][side].device();
        let pages = parts.kind_of.iter().map(|&(kind, member)| {
            let kind_of = &parts.kinds[kind];
            match kind_of.layout.pieces_of(member) {
                [piece] if kind_of.factored.is_none() => Some((kind, piece.page)),
                _ => None,
            }
        });
        let pages: Vec<_> = pages.collect();
        let mut sizes: [HashMap<(usize, usize, &wgpu::Buffer), u64>; 2] = Default::default();
        for (tensor, page) in pages.iter().enumerate() {
            for (side, sizes) in sizes.iter_mut().enumerate() {
                if let (Some((kind, page)), Some(memory)) = (*page, memory(tensor, side)) {
                    *sizes.entry((kind, page, &memory.buffer)).or_default() += memory.size() as u64;
                }
            }
        }
        let mut small: HashMap<(usize, usize), [usize; 2]> = HashMap::new();
        for (side, sizes) in sizes.iter().enumerate() {
            for &(kind, page, _) in sizes.iter().filter(|(_, size)| **size <= SMALL).map(|(key, _)| key) {
                small.entry((kind, page)).or_default()[side] += 1;
            }
        }
        small.retain(|_, buffers| parts.context.is_worth(*buffers));

        let mut gathered = vec![[None, None]; pairs.len()];
        for (side, sizes) in sizes.iter().enumerate() {
            let mut tensors: HashMap<DType, Vec<usize>> = HashMap::new();
            for (tensor, page) in pages.iter().enumerate() {
                let (Some((kind, page)), Some(memory)) = (*page, memory(tensor, side)) else { continue };
                let several = small.get(&(kind, page)).is_some_and(|buffers| buffers[side] > 1);
                let is_small = sizes[&(kind, page, &memory.buffer)] <= SMALL;
                if several && is_small && can_move(parts.context, memory, side == 0) {
                    tensors.entry(memory.dtype).or_default().push(tensor);
                }
            }
            for (dtype, tensors) in tensors {
                let lens: Vec<usize> = tensors.iter().map(|&tensor| parts.tensors[tensor].parameter.len()).collect();
                for (tensor, buffer) in tensors.into_iter().zip(parts.context.arena(dtype, &lens)?) {
                    if let Some(memory) = memory(tensor, side).filter(|memory| memory.home.is_none()) {
                        // A copy would not say whose it is.
                        let (what, name) = ([PARAMETER, GRADIENT][side], parts.tensors[tensor].parameter.name());
                        parts.context.refuse_strangers(what, name, &memory.buffer)?;
                    }
                    gathered[tensor][side] = Some(buffer);
                }
            }
        }
        Ok(Self(gathered))
    }

    /// The memory of a step, with what is gathered in its place.
    pub(crate) fn pairs<'a>(&'a self, pairs: &[Pair<&'a GpuBuffer>]) -> Vec<Pair<&'a GpuBuffer>> {
        let place =
            |side: Side<&'a GpuBuffer>, gathered: &'a Option<GpuBuffer>| gathered.as_ref().map_or(side, Side::Device);
        let pair = |(pair, [param, grad]): (&Pair<&'a GpuBuffer>, &'a [Option<GpuBuffer>; 2])| Pair {
            param: place(pair.param, param),
            grad: place(pair.grad, grad),
        };
        pairs.iter().zip(&self.0).map(pair).collect()
    }

    /// What is moved before the dispatches, and after them if they write parameters; `None` for nothing.
    pub(crate) fn moves(
        &self,
        parts: &Parts<'_>,
        pairs: &[Pair<&GpuBuffer>],
        writes: bool,
    ) -> Result<[Option<Moves>; 2]> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (pair, places) in pairs.iter().zip(&self.0) {
            for (side, together) in [&pair.param, &pair.grad].into_iter().zip(places) {
                if let (Some(own), Some(together)) = (side.device(), together) {
                    before.push(Move { own: own.clone(), together: together.clone(), back: false });
                }
            }
            if let (Some(own), Some(together), true) = (pair.param.device(), &places[0], writes) {
                after.push(Move { own: own.clone(), together: together.clone(), back: true });
            }
        }
        let moves = |moves: Vec<Move>, back| {
            Ok(match parts.context.buffers_of_a_gather() {
                _ if moves.is_empty() => None,
                None => Some(Moves::Copies(moves)),
                Some(buffers) => Some(Moves::Dispatches(dispatches(parts, moves, buffers, back)?)),
            })
        };
        Ok([moves(before, false)?, moves(after, true)?])
    }
}

/// A dispatch for each batch of the moves to or from one buffer.
fn dispatches(parts: &Parts<'_>, mut moves: Vec<Move>, most: usize, back: bool) -> Result<Vec<Dispatch>> {
    moves.sort_by(|one, other| one.together.buffer.cmp(&other.together.buffer));
    let mut groups: Vec<&[Move]> = Vec::new();
    for mut rest in moves.chunk_by(|one, other| one.together.buffer == other.together.buffer) {
        for batch in batches(rest.len(), most) {
            let (group, others) = rest.split_at(batch);
            groups.push(group);
            rest = others;
        }
    }
    let pieces = |moves: &&[Move]| -> Vec<Piece> {
        let of = |(buffer, Move { own, together, .. }): (usize, &Move)| {
            let (words, start) = (own.size() / 4, low(together.offset / 4));
            let piece = move |first: usize| Piece {
                buffer: word(buffer),
                first: word(first),
                together: start + word(first),
                count: word(PIECE.min(words - first)),
            };
            (0..words).step_by(PIECE).map(piece)
        };
        moves.iter().enumerate().flat_map(of).collect()
    };
    let pieces: Vec<Vec<Piece>> = groups.iter().map(pieces).collect();
    let tables = parts.tables("pieces", &pieces.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    let dispatch = |((moves, pieces), table): ((&&[Move], &Vec<Piece>), _)| {
        let together = &moves[0].together.buffer;
        // A kernel for just so many: what is written must not be bound twice.
        let kernel = parts.context.kernel(parts.accumulate, Stage::Gather { buffers: word(moves.len()), back })?;
        let mut bindings = vec![Table::binding(table), (together, 0, together.size())];
        bindings.extend(moves.iter().map(|Move { own, .. }| (&own.buffer, own.offset, own.size() as u64)));
        let bindings = parts.context.bind(&kernel.bindings, &bindings)?;
        Ok(Dispatch { pipeline: kernel.pipeline, bindings, grid: grid(pieces.len()), page: None })
    };
    groups.iter().zip(&pieces).zip(&tables).map(dispatch).collect()
}

/// So many buffers as the most that a kernel gathers from, and what is left as powers of two: each number is a kernel of its own.
fn batches(buffers: usize, most: usize) -> impl Iterator<Item = usize> {
    let rest = buffers % most;
    let powers = (0..usize::BITS).rev().map(|bit| 1 << bit).filter(move |power| rest & power != 0);
    std::iter::repeat_n(most, buffers / most).chain(powers)
}

impl Context {
    /// Whether so many small buffers of parameters and of gradients are worth gathering: by copies they are, by dispatches if these,
    /// and the one that then updates them all, are fewer than one for each buffer.
    fn is_worth(&self, [params, grads]: [usize; 2]) -> bool {
        let Some(most) = self.buffers_of_a_gather() else { return true };
        let moves = |buffers: usize| if buffers > 1 { batches(buffers, most).count() } else { 0 };
        // Parameters are moved back, too.
        2 * moves(params) + moves(grads) + 1 < params.max(grads)
    }

    /// The most buffers from which a kernel gathers; `None` if they are copied.
    fn buffers_of_a_gather(&self) -> Option<usize> {
        let copies = match self.gather {
            Gather::Auto => self.is_software(),
            Gather::Copies => true,
            Gather::Dispatches => false,
        };
        let limits = &self.limits;
        let most = limits
            .max_storage_buffers_per_shader_stage
            .min(limits.max_buffers_and_acceleration_structures_per_shader_stage);
        // Two more are the pieces, and what the buffers share.
        (!copies).then_some((most - 2).min(BUFFERS) as usize)
    }
}

/// Whether a tensor can be moved, and back if it is written, without touching what is next to its elements.
fn can_move(context: &Context, memory: &GpuBuffer, is_written: bool) -> bool {
    let mut usage = wgpu::BufferUsages::COPY_SRC;
    if is_written {
        usage |= wgpu::BufferUsages::COPY_DST;
    }
    let fills_words = memory.padded || memory.size() == memory.len * memory.dtype.size();
    let can_copy = context.buffers_of_a_gather().is_some() || memory.buffer.usage().contains(usage);
    can_copy && fills_words
}
