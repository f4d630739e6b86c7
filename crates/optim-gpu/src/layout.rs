//! Where tensors lie in memory of ours: padded, and packed into pages that one binding can cover.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use optim_shaders::Width;

/// Elements to which every tensor is padded: 256 bytes, which every device accepts as the offset of a binding.
pub(crate) const ALIGNMENT: usize = 64;

/// The bytes of so many elements.
pub(crate) const fn bytes(elements: usize) -> u64 {
    elements as u64 * 4
}

/// A run of one tensor's elements that lies in one page. A tensor has one, or several if it is longer than a window, or none
/// if it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The index of the tensor.
    pub(crate) tensor: usize,
    /// The first element, within the tensor.
    pub(crate) start: usize,
    /// The number of elements, without padding.
    pub(crate) len: usize,
    /// The index of the page.
    pub(crate) page: usize,
    /// The first element, within the page.
    pub(crate) offset: usize,
}

impl Piece {
    /// The elements within the tensor.
    pub(crate) fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// The number of elements, with padding.
    pub(crate) const fn span(&self) -> usize {
        self.len.next_multiple_of(ALIGNMENT)
    }
}

/// Tensors packed into pages, in order: one that fits a window lies in one page, a longer one is cut into windows, each with a
/// page of its own. Memory with the same layout can be updated in one dispatch a page.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// All pieces, in order.
    pub(crate) pieces: Vec<Piece>,
    /// The elements of each page, with padding.
    pub(crate) pages: Vec<usize>,
    /// For each tensor the range of its pieces.
    of: Vec<Range<usize>>,
    /// The most elements of a page.
    pub(crate) window: usize,
}

impl Layout {
    /// `window` is in elements, a multiple of [`ALIGNMENT`].
    pub(crate) fn new(lens: impl IntoIterator<Item = usize>, window: usize) -> Self {
        let mut layout = Self { pieces: Vec::new(), pages: Vec::new(), of: Vec::new(), window };
        let mut room = 0;
        for (tensor, len) in lens.into_iter().enumerate() {
            let first = layout.pieces.len();
            for start in (0..len).step_by(window) {
                let len = window.min(len - start);
                let span = len.next_multiple_of(ALIGNMENT);
                if span > room {
                    layout.pages.push(0);
                    room = window;
                }
                let page = layout.pages.len() - 1;
                layout.pieces.push(Piece { tensor, start, len, page, offset: layout.pages[page] });
                layout.pages[page] += span;
                room -= span;
            }
            if len > window {
                room = 0;
            }
            layout.of.push(first..layout.pieces.len());
        }
        layout
    }

    /// The pieces of one tensor.
    pub(crate) fn pieces_of(&self, tensor: usize) -> &[Piece] {
        &self.pieces[self.of[tensor].clone()]
    }

    /// Each tensor's pieces.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &[Piece]> {
        self.of.iter().map(|range| &self.pieces[range.clone()])
    }
}

/// What one workgroup works on: the prelude's `Tile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Tile {
    first: u32,
    count: u32,
    record: u32,
    element: u32,
    grad: u32,
}

/// A run of elements that share a record, and their gradient.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stretch {
    /// The first element, within its dispatch's bindings.
    pub(crate) first: usize,
    pub(crate) len: usize,
    /// The first element, within the tensor.
    pub(crate) element: usize,
    /// The first element of the gradient, within its binding; `None` for a gradient of 0 that is not shaped.
    pub(crate) grad: Option<usize>,
}

impl Tile {
    /// The tiles of a stretch.
    pub(crate) fn cover(stretch: Stretch, record: u32, width: Width) -> impl Iterator<Item = Self> {
        let tile = width.tile() as usize;
        let Stretch { first, len, element, grad } = stretch;
        (0..len).step_by(tile).map(move |done| Self {
            first: word(first + done),
            count: word(tile.min(len - done)),
            record,
            element: word(element + done),
            grad: grad.map_or(optim_shaders::NO_GRAD, |grad| word(grad + done)),
        })
    }
}

/// What one workgroup sums: the `Slice` of `reduce.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Slice {
    first: u32,
    count: u32,
    record: u32,
    part: u32,
}

/// The elements of a slice.
pub(crate) const SLICE: usize = optim_shaders::SLICE as usize;

impl Slice {
    /// The slices of a piece that begins at `first` within its dispatch's bindings; the tensor's parts begin at `part`.
    pub(crate) fn cover(piece: Piece, first: usize, record: u32, part: usize) -> impl Iterator<Item = Self> {
        (0..piece.len).step_by(SLICE).map(move |done| Self {
            first: word(first + done),
            count: word(SLICE.min(piece.len - done)),
            record,
            part: word(part + (piece.start + done) / SLICE),
        })
    }
}

/// The slices of one tensor: the `Span` of `reduce.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Span {
    first: u32,
    count: u32,
    record: u32,
    pad: u32,
}

impl Span {
    /// Of so many parts.
    pub(crate) fn new(parts: Range<usize>, record: u32) -> Self {
        Self { first: word(parts.start), count: word(parts.len()), record, pad: 0 }
    }
}

/// The low 32 bits.
#[allow(
    clippy::cast_possible_truncation,
    reason = "all but an element's index within its tensor fit, and that wraps by design"
)]
const fn word(x: usize) -> u32 {
    x as u32
}

/// The workgroups of a dispatch over so many tiles: the folded grid of the prelude.
pub(crate) fn grid(tiles: usize) -> (u32, u32) {
    let tiles = word(tiles);
    (tiles.min(optim_shaders::GRID_WIDTH), tiles.div_ceil(optim_shaders::GRID_WIDTH))
}
