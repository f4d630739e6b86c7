//! Where tensors lie in memory of ours: padded, and packed into pages that one binding can cover.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

/// Words to which every tensor is padded: 256 bytes, which every device accepts as the offset of a binding.
pub(crate) const ALIGNMENT: usize = 64;

/// The bytes of so many words.
pub(crate) const fn bytes(words: usize) -> u64 {
    words as u64 * 4
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
    /// Of numbers of 32 bits. `window` is in elements, a multiple of [`ALIGNMENT`].
    pub(crate) fn new(lens: impl IntoIterator<Item = usize>, window: usize) -> Self {
        Self::aligned(lens, window, ALIGNMENT)
    }

    /// Tensors that begin at multiples of so many elements. `window` is such a multiple.
    pub(crate) fn aligned(lens: impl IntoIterator<Item = usize>, window: usize, alignment: usize) -> Self {
        let mut layout = Self { pieces: Vec::new(), pages: Vec::new(), of: Vec::new(), window };
        let mut room = 0;
        for (tensor, len) in lens.into_iter().enumerate() {
            let first = layout.pieces.len();
            for start in (0..len).step_by(window) {
                let len = window.min(len - start);
                let span = len.next_multiple_of(alignment);
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
    param: u32,
    grad: u32,
    state: u32,
    element: u32,
    count: u32,
    begin: u32,
    record: u32,
    key: u32,
    rows: Rows,
}

/// The rows of a run of elements: that of the first among those of its kind, the elements from there to the row's end, those of a
/// row. Each is cut at the most that a kernel can say, and no run is that long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct Rows {
    row: u32,
    left: u32,
    width: u32,
}

/// What the tiles of a tensor share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Common {
    pub(crate) record: u32,
    pub(crate) key: u32,
    /// The first of its rows among those of its kind.
    pub(crate) row: u32,
    /// The elements of a row.
    pub(crate) width: usize,
}

impl Common {
    fn rows(self, element: usize) -> Rows {
        let width = self.width.max(1);
        let cut = |elements: usize| u32::try_from(elements).unwrap_or(u32::MAX);
        Rows { row: self.row + word(element / width), left: cut(width - element % width), width: cut(width) }
    }
}

/// A run of one tensor's elements, and their gradient.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stretch {
    /// The index of the tensor.
    pub(crate) tensor: usize,
    /// The first element, within the tensor.
    pub(crate) element: usize,
    pub(crate) len: usize,
    /// The first element, within the page of state.
    pub(crate) state: usize,
    /// The first element, within the buffer of parameters.
    pub(crate) param: u64,
    /// The same of gradients; `None` for a gradient of 0 that is not shaped.
    pub(crate) grad: Option<u64>,
}

impl Stretch {
    /// The tiles, for bindings that begin with these elements. They begin at multiples of four of the state, and so of the
    /// parameters.
    pub(crate) fn tiles(self, common: Common, [params, grads]: [u64; 2]) -> impl Iterator<Item = Tile> {
        let tile = optim_shaders::TILE as usize;
        let begin = self.state % 4;
        let Common { record, key, .. } = common;
        (0..begin + self.len).step_by(tile).map(move |done| Tile {
            param: low(self.param - params).wrapping_sub(word(begin)).wrapping_add(word(done)),
            grad: match self.grad {
                // It may begin before the binding, with elements that are left alone.
                Some(grad) => low(grad - grads).wrapping_sub(word(begin)).wrapping_add(word(done)),
                None => optim_shaders::NO_GRAD,
            },
            state: word(self.state - begin + done),
            element: word(self.element.wrapping_sub(begin).wrapping_add(done)),
            count: word(tile.min(begin + self.len - done)),
            begin: if done == 0 { word(begin) } else { 0 },
            record,
            key,
            // What is shaped row by row begins with its tile.
            rows: common.rows(self.element + done),
        })
    }
}

/// What one workgroup sums: the `Slice` of `reduce.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Slice {
    param: u32,
    grad: u32,
    state: u32,
    count: u32,
    record: u32,
    part: u32,
    rows: Rows,
}

/// The elements of a slice.
pub(crate) const SLICE: usize = optim_shaders::SLICE as usize;

impl Stretch {
    /// The slices of a whole piece, for bindings that begin with these elements; the tensor's parts begin at `part`.
    pub(crate) fn slices(self, common: Common, part: usize, [params, grads]: [u64; 2]) -> impl Iterator<Item = Slice> {
        let grad = self.grad.unwrap_or(grads);
        (0..self.len).step_by(SLICE).map(move |done| Slice {
            param: low(self.param - params) + word(done),
            grad: low(grad - grads) + word(done),
            state: word(self.state + done),
            count: word(SLICE.min(self.len - done)),
            record: common.record,
            part: word(part + (self.element + done) / SLICE),
            rows: common.rows(self.element + done),
        })
    }

    /// The rows of a whole piece, for bindings that begin with these elements. All pieces of its tensor but the last have `window`
    /// elements.
    pub(crate) fn rows(self, common: Common, window: usize, [params, grads]: [u64; 2]) -> impl Iterator<Item = Row> {
        let Common { record, row, width, .. } = common;
        let (start, end) = (self.element, self.element + self.len);
        let [resumed, carried] = carries(start, window);
        let grad = self.grad.unwrap_or(grads);
        (start / width..end.div_ceil(width)).map(move |nth| {
            let (first, after) = (start.max(nth * width), end.min((nth + 1) * width));
            let done = first - start;
            Row {
                param: low(self.param - params) + word(done),
                grad: low(grad - grads) + word(done),
                state: word(self.state + done),
                count: word(after - first),
                lane: word((first - nth * width) % optim_shaders::LANES as usize),
                record,
                row: row + word(nth),
                width: rounded(width),
                resumed: if first > nth * width { resumed } else { NO_CARRY },
                carried: if after < (nth + 1) * width { carried } else { NO_CARRY },
            }
        })
    }
}

/// A row, as far as it lies in one piece: the `Stretch` of `units.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Row {
    param: u32,
    grad: u32,
    state: u32,
    count: u32,
    lane: u32,
    record: u32,
    row: u32,
    width: f32,
    resumed: u32,
    carried: u32,
}

/// In place of a carry: there is none.
pub(crate) const NO_CARRY: u32 = u32::MAX;

/// The carry from which a piece takes what the one before has begun to sum, and that in which it leaves what it begins. All pieces
/// of a tensor but the last have `window` elements.
pub(crate) const fn carries(start: usize, window: usize) -> [u32; 2] {
    let odd = word(start / window % 2);
    [odd, 1 - odd]
}

#[allow(clippy::cast_precision_loss, reason = "the nearest number is meant")]
const fn rounded(x: usize) -> f32 {
    x as f32
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
pub(crate) const fn word(x: usize) -> u32 {
    x as u32
}

/// The low 32 bits: all of a distance within a binding.
#[allow(clippy::cast_possible_truncation, reason = "a binding has fewer elements")]
pub(crate) const fn low(x: u64) -> u32 {
    x as u32
}

/// The workgroups of a dispatch over so many tiles: the folded grid of the prelude.
pub(crate) fn grid(tiles: usize) -> (u32, u32) {
    let tiles = word(tiles);
    (tiles.min(optim_shaders::GRID_WIDTH), tiles.div_ceil(optim_shaders::GRID_WIDTH))
}
