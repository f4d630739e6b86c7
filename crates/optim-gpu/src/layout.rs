//! Where tensors lie in memory of ours: padded, packed into pages that one binding can cover.

use std::ops::Range;

use optim_shaders::Width;

/// Elements to which every tensor is padded: 256 bytes, which every device accepts as the offset of a binding.
pub(crate) const ALIGNMENT: u64 = 64;

/// A run of one tensor's elements that lies in one page. A tensor has one, or several if it is longer than a window, or none
/// if it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The index of the tensor.
    pub(crate) tensor: usize,
    /// The first element, within the tensor.
    pub(crate) start: u64,
    /// The number of elements, without padding.
    pub(crate) len: u64,
    /// The index of the page.
    pub(crate) page: usize,
    /// The first element, within the page.
    pub(crate) offset: u64,
}

/// Tensors packed into pages, in order. A tensor that fits a window lies in one page; a longer one is cut into windows, each a
/// page of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// All pieces, in the order of tensors and pages.
    pub(crate) pieces: Vec<Piece>,
    /// The elements of each page, with padding.
    pub(crate) pages: Vec<u64>,
    /// For each tensor the range of its pieces.
    of: Vec<Range<usize>>,
}

impl Layout {
    /// `window` is in elements, a multiple of [`ALIGNMENT`].
    pub(crate) fn new(lens: impl IntoIterator<Item = u64>, window: u64) -> Self {
        let mut layout = Self { pieces: Vec::new(), pages: Vec::new(), of: Vec::new() };
        for (tensor, len) in lens.into_iter().enumerate() {
            let first = layout.pieces.len();
            let mut start = 0;
            while start < len {
                let len = (len - start).min(window);
                let (page, offset) = layout.place(padded(len), window);
                layout.pieces.push(Piece { tensor, start, len, page, offset });
                start += len;
            }
            // Nothing shares the last page of a tensor that was cut: its pages keep their order and their alignment.
            if len > window {
                layout.close(window);
            }
            layout.of.push(first..layout.pieces.len());
        }
        layout.trim();
        layout
    }

    /// The pieces of one tensor.
    pub(crate) fn pieces_of(&self, tensor: usize) -> &[Piece] {
        &self.pieces[self.of[tensor].clone()]
    }
}
