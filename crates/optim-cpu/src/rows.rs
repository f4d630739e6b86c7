//! Row-sparse gradients: the listed rows' sums, and the update of those rows or of all.

use std::ops::Range;

use optim_core::backend::{RowList, Shaping};

use crate::drive::Piece;
use crate::kernel::Slots;
use crate::shape::{self, BLOCK};

/// One parameter's rows, ready for its update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// The listed rows, ascending.
    pub(crate) rows: &'a [u32],
    /// The shaped gradient of each, one after the other.
    pub(crate) grads: &'a [f32],
}

/// Appends the shaped gradients of the listed rows: their sums in the order of the list, unscaled, decayed.
pub(crate) fn sum(shaping: &Shaping, list: &RowList, values: &[f32], p: &[f32], width: usize, out: &mut Vec<f32>) {
    for (row, positions) in list.iter() {
        let start = out.len();
        out.resize(start + width, 0.0);
        let sum = &mut out[start..];
        for (nth, &position) in positions.iter().enumerate() {
            let values = &values[position as usize * width..][..width];
            if nth == 0 {
                sum.copy_from_slice(values);
            } else {
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
        shape::shape(shaping, sum, &p[row as usize * width..][..width]);
    }
}

impl Rows<'_> {
    /// The stretches of listed rows that lie in these elements of the parameter: their elements, and those of the gradients.
    fn stretches(&self, elements: Range<usize>) -> impl Iterator<Item = (Range<usize>, &[f32])> {
        let width = self.grads.len() / self.rows.len().max(1);
        let first = self.rows.partition_point(|&row| (row as usize + 1) * width <= elements.start);
        let rows =
            self.rows[first..].iter().map(move |&row| row as usize * width).take_while(move |&row| row < elements.end);
        (first..).zip(rows).map(move |(nth, row)| {
            let (start, end) = (row.max(elements.start), (row + width).min(elements.end));
            (start - elements.start..end - elements.start, &self.grads[nth * width..][start - row..end - row])
        })
    }

    /// Updates the listed rows of a piece.
    pub(crate) fn update_listed(self, piece: Piece<'_>, kernel: impl Fn(&mut [f32], &[f32], Slots<'_>)) {
        let Piece { element, p, mut slots, .. } = piece;
        for (range, g) in self.stretches(element..element + p.len()) {
            let slots = slots.each_mut().map(|slot| slot.get_mut(range.clone()).unwrap_or_default());
            kernel(&mut p[range], g, slots);
        }
    }

    /// Updates all of a piece; the gradient of a row that is not listed is 0.
    pub(crate) fn update_all(self, piece: Piece<'_>, kernel: impl Fn(&mut [f32], &[f32], Slots<'_>)) {
        let Piece { element, p, mut slots, .. } = piece;
        let mut block = [0.0; BLOCK];
        for start in (0..p.len()).step_by(BLOCK) {
            let range = start..p.len().min(start + BLOCK);
            let block = &mut block[..range.len()];
            block.fill(0.0);
            for (listed, g) in self.stretches(element + range.start..element + range.end) {
                block[listed].copy_from_slice(g);
            }
            let slots = slots.each_mut().map(|slot| slot.get_mut(range.clone()).unwrap_or_default());
            kernel(&mut p[range], block, slots);
        }
    }
}
