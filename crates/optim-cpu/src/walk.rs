//! The walk over a piece of a parameter: what is kept in another format, or has to be shaped, goes through blocks of `f32` that
//! stay in the first-level cache until the kernel has read them; what is not is used in place. So is what kernels see to
//! themselves: slots in fewer bits, and gradients to be scaled and to which decay is added.

use std::ops::Range;

use multiversion::multiversion;
use optim_core::backend::{Record, SlotFormat};
use optim_core::format::{self, Master};
use optim_core::rule::{MAX_SLOTS, MAX_TERMS, Sparse};
use optim_core::{DType, compressed};

use crate::arch::{SPAN, fetch};
use crate::arena::{MASTER, SLOTS};
use crate::drive::Piece;
use crate::factored::Desk;
use crate::form::{Form, Narrow};
use crate::kernel::{Bf16Slots, Block8Slots, Opened, Scaling, SlotBits, Slots};
use crate::reduce::{Columns, ROW};
use crate::rows::Rows;
use crate::shape::Shape;
use crate::storage::{self, Random, floats, floats_mut, numbers_mut};

/// Elements that are worked on at a time: whole blocks of 8-bit slots.
pub(crate) const BLOCK: usize = 1024;

/// Elements that are updated at a time.
const STRETCH: usize = 256;

/// What a task works with, made when it is first needed.
#[derive(Default)]
pub(crate) struct Space {
    blocks: Option<Blocks>,
    desk: Option<Desk>,
    /// Of a factored rule, for the tensor that is worked on.
    pub(crate) room: Vec<f32>,
}

/// A block of each array, at the beginning of a cache line.
#[repr(align(64))]
pub(crate) struct Blocks {
    pub(crate) p: [f32; BLOCK],
    pub(crate) g: [f32; BLOCK],
    pub(crate) slots: [[f32; BLOCK]; MAX_SLOTS],
    /// The running sums of a slice.
    pub(crate) columns: Columns,
}

impl Blocks {
    fn new() -> Self {
        let columns = [[0.0; ROW]; MAX_TERMS];
        Self { p: [0.0; BLOCK], g: [0.0; BLOCK], slots: [[0.0; BLOCK]; MAX_SLOTS], columns }
    }
}

impl Space {
    /// Not in the caller, whose stack frame would be as large as blocks are, with each of its pages touched at each call.
    #[inline(never)]
    pub(crate) fn blocks(&mut self) -> &mut Blocks {
        self.blocks.get_or_insert_with(Blocks::new)
    }

    /// The blocks, and what a factored rule works with.
    #[inline(never)]
    pub(crate) fn desk(&mut self) -> (&mut Blocks, &mut Desk) {
        (self.blocks.get_or_insert_with(Blocks::new), self.desk.get_or_insert_with(Desk::new))
    }
}

/// The gradient of a piece.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gradient<'a> {
    /// Of each of its elements.
    Dense(DType, &'a [u8]),
    /// Of some rows of the whole parameter, shaped.
    Rows(Rows<'a>),
}

impl<'a> Gradient<'a> {
    /// The gradient of a range, if it is `f32` and stays as it is.
    pub(crate) fn as_it_is(&self, shape: &Shape<'_>, range: &Range<usize>) -> Option<&'a [f32]> {
        match self {
            Self::Dense(DType::F32, g) if shape.is_none() => Some(floats(&g[scaled(range, 4)])),
            _ => None,
        }
    }

    /// The gradient of a range and how it is scaled, if it is `f32` and a kernel can do all its shaping.
    fn as_kernels_take_it(&self, form: &Form, shape: &Shape<'_>, range: &Range<usize>) -> Option<(&'a [f32], Scaling)> {
        match self {
            Self::Dense(DType::F32, g) if form.scales => {
                shape.scaling().map(|scaling| (floats(&g[scaled(range, 4)]), scaling))
            }
            _ => self.as_it_is(shape, range).map(|g| (g, Scaling::NONE)),
        }
    }

    /// The gradient of a range, shaped. `p`: the same range.
    pub(crate) fn shaped<'b>(
        &self,
        shape: &Shape<'_>,
        element: usize,
        range: &Range<usize>,
        p: &[f32],
        block: &'b mut [f32; BLOCK],
    ) -> &'b mut [f32] {
        let block = &mut block[..range.len()];
        let first = element + range.start;
        match self {
            Self::Dense(dtype, g) => {
                storage::load(*dtype, &g[scaled(range, dtype.size())], block);
                shape.apply(first, block, p);
            }
            Self::Rows(rows) => {
                block.fill(0.0);
                for (listed, g) in rows.stretches(first..first + block.len()) {
                    block[listed].copy_from_slice(g);
                }
            }
        }
        block
    }
}

/// What there is to read of a piece.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) form: &'a Form,
    /// The first element, within the parameter.
    pub(crate) element: usize,
    pub(crate) p: &'a [u8],
    pub(crate) master: &'a [u8],
    pub(crate) gradient: Gradient<'a>,
}

impl View<'_> {
    /// The parameter and the shaped gradient of a range, in place or in the blocks.
    pub(crate) fn read<'b>(
        &'b self,
        shape: &Shape<'_>,
        range: Range<usize>,
        p_block: &'b mut [f32; BLOCK],
        g_block: &'b mut [f32; BLOCK],
    ) -> (&'b [f32], &'b [f32]) {
        match self.gradient.as_it_is(shape, &range) {
            Some(g) => (read(self.form, self.p, self.master, &range, p_block), g),
            None => {
                let (p, g) = self.copy(shape, range, p_block, g_block);
                (p, g)
            }
        }
    }

    /// The parameter of a range, and the shaped gradient in its block.
    pub(crate) fn copy<'b>(
        &'b self,
        shape: &Shape<'_>,
        range: Range<usize>,
        p_block: &'b mut [f32; BLOCK],
        g_block: &'b mut [f32; BLOCK],
    ) -> (&'b [f32], &'b mut [f32]) {
        let p = read(self.form, self.p, self.master, &range, p_block);
        (p, self.gradient.shaped(shape, self.element, &range, p, g_block))
    }
}

/// The parameter's numbers of a range, in place or in the block.
pub(crate) fn read<'b>(
    form: &Form,
    p: &'b [u8],
    master: &'b [u8],
    range: &Range<usize>,
    block: &'b mut [f32; BLOCK],
) -> &'b [f32] {
    match form.master {
        None => return floats(&p[scaled(range, 4)]),
        Some(Master::F32) => return floats(&master[scaled(range, 4)]),
        Some(_) => {}
    }
    let block = &mut block[..range.len()];
    let p = &p[scaled(range, 2)];
    match form.master {
        Some(Master::Split) => storage::load_split(p, &master[scaled(range, 2)], block),
        _ => storage::load(form.tensor.parameter.dtype(), p, block),
    }
    block
}

/// The slots of a range, in place or in the blocks.
#[inline(always)]
pub(crate) fn open<'b>(
    form: &Form,
    slots: &'b mut [&mut [u8]],
    range: &Range<usize>,
    blocks: &'b mut [[f32; BLOCK]; MAX_SLOTS],
) -> Slots<'b> {
    let mut opened = Slots::default();
    let (slots, scales) = slots.split_at_mut(MAX_SLOTS);
    for (nth, ((opened, slot), block)) in opened.iter_mut().zip(slots).zip(blocks).enumerate() {
        let Some(format) = form.formats[nth] else { continue };
        let block = &mut block[..range.len()];
        match format {
            SlotFormat::F32 => {
                *opened = floats_mut(&mut slot[scaled(range, 4)]);
                continue;
            }
            SlotFormat::F16 => storage::load(DType::F16, &slot[scaled(range, 2)], block),
            SlotFormat::Bf16 => storage::load(DType::Bf16, &slot[scaled(range, 2)], block),
            SlotFormat::Block8(code) => {
                storage::load_codes(code, &slot[range.clone()], &scales[nth][scales_of(range)], block);
            }
        }
        *opened = block;
    }
    opened
}

/// Stores the slots that were not changed in place.
fn close(
    form: &Form,
    step: u32,
    element: usize,
    slots: &mut [&mut [u8]],
    range: &Range<usize>,
    blocks: &[[f32; BLOCK]; MAX_SLOTS],
) {
    let first = element + range.start;
    let (slots, scales) = slots.split_at_mut(MAX_SLOTS);
    for (nth, (slot, block)) in (0_u32..).zip(slots.iter_mut().zip(blocks)) {
        let block = &block[..range.len()];
        let random = || Random::of_slot(form.tensor.key, step, nth, first);
        match form.formats[nth as usize] {
            None | Some(SlotFormat::F32) => {}
            Some(SlotFormat::F16) => compressed::encode(block, numbers_mut(&mut slot[scaled(range, 2)])),
            Some(SlotFormat::Bf16) => {
                storage::store_stochastic(DType::Bf16, random(), block, &mut slot[scaled(range, 2)]);
            }
            Some(SlotFormat::Block8(code)) => {
                let scales = &mut scales[nth as usize][scales_of(range)];
                storage::store_codes(code, random(), block, &mut slot[range.clone()], scales);
            }
        }
    }
}

/// The slots of a range, which are all kept in one way of fewer bits, in place.
#[inline(always)]
fn open_narrow<'b>(
    form: &Form,
    narrow: Narrow,
    step: u32,
    element: usize,
    slots: &'b mut [&mut [u8]],
    range: &Range<usize>,
) -> Opened<'b> {
    let bits = SlotBits::new(form.tensor.key, step, element + range.start);
    let (slots, scales) = slots.split_at_mut(MAX_SLOTS);
    let slots = slots.iter_mut().take(form.slots.len());
    match narrow {
        Narrow::Bf16 => {
            let mut opened = Bf16Slots::default();
            opened.iter_mut().zip(slots).for_each(|(opened, slot)| *opened = numbers_mut(&mut slot[scaled(range, 2)]));
            Opened::Bf16(opened, bits)
        }
        Narrow::Block8 => {
            let mut opened = Block8Slots { codes: Default::default(), scales: Default::default() };
            opened.codes.iter_mut().zip(slots).for_each(|(codes, slot)| *codes = &mut slot[range.clone()]);
            let scales = scales.iter_mut().take(form.slots.len());
            opened.scales.iter_mut().zip(scales).for_each(|(opened, scales)| {
                *opened = floats_mut(&mut scales[scales_of(range)]);
            });
            Opened::Block8(opened, bits)
        }
    }
}

/// Updates a piece: `kernel(first element within the piece, p, g, its scaling, slots)`; the gradient is shaped but for the scaling.
pub(crate) fn update(
    form: &Form,
    record: &Record,
    shape: &Shape<'_>,
    gradient: Gradient<'_>,
    piece: &mut Piece<'_>,
    space: &mut Space,
    kernel: impl Fn(usize, &mut [f32], &[f32], Scaling, &mut Opened<'_>),
) {
    let (whole, weight) = (0..piece.len, record.stages.ema);
    let averages = form.tensor.ema && weight > 0.0;
    if form.at_rest
        && !averages
        && let Some((g, scaling)) = gradient.as_kernels_take_it(form, shape, &whole)
    {
        let mut slots = match form.narrow {
            None => {
                let mut slots = Slots::default();
                slots.iter_mut().zip(&mut piece.arrays[SLOTS..]).for_each(|(slot, bytes)| *slot = floats_mut(bytes));
                Opened::F32(slots)
            }
            Some(narrow) => {
                open_narrow(form, narrow, record.stages.step, piece.element, &mut piece.arrays[SLOTS..MASTER], &whole)
            }
        };
        return kernel(0, floats_mut(piece.p), g, scaling, &mut slots);
    }
    let blocks = space.blocks();
    let update = |piece: &mut Piece<'_>, range: Range<usize>, g: Option<&[f32]>, blocks: &mut Blocks| {
        update_block(form, record, shape, gradient, piece, range, g, blocks, &kernel);
    };
    match gradient {
        Gradient::Rows(rows) if form.sparse == Sparse::ListedRows => {
            let mut done = 0;
            for (listed, g) in rows.stretches(piece.element..piece.element + piece.len) {
                if averages {
                    each_block(done..listed.start, |range| average(form, weight, piece, &range, blocks));
                }
                done = listed.end;
                each::<STRETCH>(listed.clone(), |range| {
                    let g = &g[range.start - listed.start..range.end - listed.start];
                    update(piece, range, Some(g), blocks);
                });
            }
            if averages {
                each_block(done..whole.end, |range| average(form, weight, piece, &range, blocks));
            }
        }
        Gradient::Rows(_) | Gradient::Dense(..) => {
            each::<STRETCH>(whole, |range| update(piece, range, None, blocks));
        }
    }
}

/// Updates a block; `g` is its gradient if that is at hand.
#[allow(clippy::too_many_arguments, reason = "all that an update is made of")]
fn update_block(
    form: &Form,
    record: &Record,
    shape: &Shape<'_>,
    gradient: Gradient<'_>,
    piece: &mut Piece<'_>,
    range: Range<usize>,
    g: Option<&[f32]>,
    blocks: &mut Blocks,
    kernel: &impl Fn(usize, &mut [f32], &[f32], Scaling, &mut Opened<'_>),
) {
    let Piece { element, p: stored, arrays, .. } = piece;
    let (slots, others) = arrays.split_at_mut(MASTER);
    let [master, ema, ..] = others else { return };
    let (dtype, step) = (form.tensor.parameter.dtype(), record.stages.step);
    let (wide, narrow) = (scaled(&range, 4), scaled(&range, 2));

    let p = match form.master {
        None => floats_mut(&mut stored[wide.clone()]),
        Some(Master::F32) => floats_mut(&mut master[wide.clone()]),
        Some(_) => {
            read(form, stored, master, &range, &mut blocks.p);
            &mut blocks.p[..range.len()]
        }
    };
    let at_hand = g.map(|g| (g, Scaling::NONE));
    let (g, scaling) = match at_hand.or_else(|| gradient.as_kernels_take_it(form, shape, &range)) {
        Some(found) => found,
        None => (&*gradient.shaped(shape, *element, &range, p, &mut blocks.g), Scaling::NONE),
    };
    if let Some(narrow) = form.narrow {
        kernel(range.start, p, g, scaling, &mut open_narrow(form, narrow, step, *element, slots, &range));
    } else {
        kernel(range.start, p, g, scaling, &mut Opened::F32(open(form, slots, &range, &mut blocks.slots)));
        close(form, step, *element, slots, &range, &blocks.slots);
    }
    let block = &blocks.p[..range.len()];
    let p = match form.master {
        None => floats(&stored[wide.clone()]),
        Some(Master::F32) => {
            let p = floats(&master[wide.clone()]);
            storage::store(dtype, p, &mut stored[narrow]);
            p
        }
        Some(Master::None) => {
            storage::store(dtype, block, &mut stored[narrow]);
            block
        }
        Some(Master::Stochastic) => {
            let random = Random::of_param(form.tensor.key, step, *element + range.start);
            storage::store_stochastic(dtype, random, block, &mut stored[narrow]);
            block
        }
        Some(Master::Split) => {
            storage::store_split(block, &mut stored[narrow.clone()], &mut master[narrow]);
            block
        }
    };
    if form.tensor.ema && record.stages.ema > 0.0 {
        move_average(record.stages.ema, floats_mut(&mut ema[wide]), p);
    }
}

/// Moves the average of what is not updated.
fn average(form: &Form, weight: f32, piece: &mut Piece<'_>, range: &Range<usize>, blocks: &mut Blocks) {
    let [master, ema, ..] = &mut piece.arrays[MASTER..] else { return };
    let p = read(form, piece.p, master, range, &mut blocks.p);
    move_average(weight, floats_mut(&mut ema[scaled(range, 4)]), p);
}

/// `ema ← ema + weight · (p − ema)`
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn move_average(weight: f32, ema: &mut [f32], p: &[f32]) {
    let n = ema.len();
    for span in (0..n).step_by(SPAN) {
        let len = SPAN.min(n - span);
        fetch(ema, span);
        for (ema, &p) in ema[span..][..len].iter_mut().zip(&p[span..][..len]) {
            *ema += weight * (p - *ema);
        }
    }
}

/// Calls `work` for each block of a range.
pub(crate) fn each_block(range: Range<usize>, work: impl FnMut(Range<usize>)) {
    each::<BLOCK>(range, work);
}

/// Calls `work` for each so many elements of a range.
pub(crate) fn each<const LEN: usize>(range: Range<usize>, mut work: impl FnMut(Range<usize>)) {
    for start in range.clone().step_by(LEN) {
        work(start..range.end.min(start + LEN));
    }
}

/// A range of elements in bytes.
pub(crate) fn scaled(range: &Range<usize>, size: usize) -> Range<usize> {
    range.start * size..range.end * size
}

/// Where the scales of a range lie that begins with a block of them.
fn scales_of(range: &Range<usize>) -> Range<usize> {
    scaled(&(range.start / format::BLOCK..range.end.div_ceil(format::BLOCK)), 4)
}
