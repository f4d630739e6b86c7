//! The engine's memory: one array of bytes of each kind, for all parameters, and where each parameter lies in it.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use optim_core::backend::Part;
use optim_core::format::BLOCK;
use optim_core::rule::{MAX_SLOTS, SlotShape};
use optim_core::{Error, Result};

use crate::form::Form;
use crate::reduce::{SLICE, Sums};

/// The slots, and the scales of those that are kept in 8 bits.
pub(crate) const SLOTS: usize = 0;
const SCALES: usize = MAX_SLOTS;
/// What stands behind 16-bit parameters.
pub(crate) const MASTER: usize = 2 * MAX_SLOTS;
/// The averages.
pub(crate) const EMA: usize = MASTER + 1;
/// Sums of gradients.
pub(crate) const ACCUMULATED: usize = MASTER + 2;
/// What was in the parameters' memory before the averages.
pub(crate) const KEPT: usize = MASTER + 3;
/// The sums of slices.
pub(crate) const SUMS: usize = MASTER + 4;
/// The kinds of arrays.
pub(crate) const KINDS: usize = MASTER + 5;

/// A stretch of every array; those that do not exist are empty.
pub(crate) type Arrays<'a> = [&'a mut [u8]; KINDS];

/// One cache line, to which every tensor is aligned.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Bytes of a cache line.
const LINE: usize = 64;

/// One array for every parameter, in one allocation, each tensor at the start of a cache line.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    lines: Vec<Line>,
}

impl Arena {
    /// Room for `len` bytes, all 0. They are not touched here but at the first step, by the threads that work on them.
    pub(crate) fn new(len: usize) -> Result<Self> {
        let lines = bytemuck::allocation::try_zeroed_vec(len.div_ceil(LINE))
            .map_err(|()| Error::OutOfMemory { detail: format!("{len} bytes of state") })?;
        Ok(Self { lines })
    }

    /// All tensors, with the room between them.
    pub(crate) fn all(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines)
    }

    /// All tensors, with the room between them.
    pub(crate) fn all_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

/// A tensor's room in an array: where it starts, and the bytes of every `1 << shift` elements.
#[derive(Debug, Clone, Copy)]
struct Room {
    start: usize,
    shift: u32,
    bytes: usize,
}

/// The shift of an array that cannot be cut.
const WHOLE: u32 = usize::BITS - 2;

impl Room {
    /// The end of what belongs to the tensor's elements before this one.
    fn before(&self, element: usize) -> usize {
        self.start + ((element + (1 << self.shift) - 1) >> self.shift) * self.bytes
    }

    /// Where it ends, for a tensor of so many elements. A tensor without any may have sums over them.
    fn end(&self, len: usize) -> usize {
        self.before(if self.shift == WHOLE { 1 } else { len })
    }
}

/// Where each parameter lies in the arrays.
#[derive(Debug)]
pub(crate) struct Layout {
    rooms: [Vec<Room>; KINDS],
    ends: [usize; KINDS],
    /// Elements of each parameter, and the binary logarithm of the bytes of one of them in the caller's memory.
    pub(crate) lens: Vec<usize>,
    pub(crate) shifts: Vec<u32>,
}

impl Layout {
    pub(crate) fn new(forms: &[Form]) -> Self {
        let mut layout = Self {
            rooms: Default::default(),
            ends: [0; KINDS],
            lens: forms.iter().map(|form| form.len).collect(),
            shifts: forms.iter().map(|form| form.tensor.parameter.dtype().size().ilog2()).collect(),
        };
        for form in forms {
            let mut units = [(0, 0); KINDS];
            for (part, element, len) in form.tensor.arrays(&form.slots) {
                let cut = match part {
                    Part::Slot(nth) if form.whole && form.slots[nth].shape != SlotShape::Same => {
                        (WHOLE, len * element.size())
                    }
                    Part::Slot(_) if len == 0 => (0, 0),
                    Part::Scales(_) => (BLOCK.ilog2(), element.size()),
                    Part::Slot(_) | Part::Master | Part::Ema => (0, element.size()),
                };
                units[kind(part)] = cut;
            }
            units[ACCUMULATED] = (0, size_of::<f32>());
            units[KEPT] = (0, if form.tensor.ema { form.tensor.parameter.dtype().size() } else { 0 });
            units[SUMS] = (SLICE.ilog2(), size_of::<Sums>());
            for ((rooms, end), (shift, bytes)) in layout.rooms.iter_mut().zip(&mut layout.ends).zip(units) {
                let room = Room { start: *end, shift, bytes };
                *end = room.end(form.len).next_multiple_of(LINE);
                rooms.push(room);
            }
        }
        layout
    }

    /// The bytes of an array.
    pub(crate) fn end(&self, kind: usize) -> usize {
        self.ends[kind]
    }

    /// The bytes that an update reads of a parameter and its state, with a gradient of its type.
    pub(crate) fn bytes(&self, param: usize) -> usize {
        let state: usize = (SLOTS..=EMA).map(|kind| self.range(kind, param).len()).sum();
        (self.lens[param] << (self.shifts[param] + 1)) + state
    }

    /// Where an element begins in an array, at whose beginning a cut may be.
    pub(crate) fn at(&self, kind: usize, param: usize, element: usize) -> usize {
        self.rooms[kind][param].before(element)
    }

    /// A parameter's bytes in an array.
    pub(crate) fn range(&self, kind: usize, param: usize) -> Range<usize> {
        let room = &self.rooms[kind][param];
        room.start..room.end(self.lens[param])
    }
}

/// The kind of array in which a part of the state lies.
pub(crate) fn kind(part: Part) -> usize {
    match part {
        Part::Slot(nth) => SLOTS + nth,
        Part::Scales(nth) => SCALES + nth,
        Part::Master => MASTER,
        Part::Ema => EMA,
    }
}
