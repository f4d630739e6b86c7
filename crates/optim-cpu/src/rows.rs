//! Row-sparse gradients: the sums of the listed rows, and where they lie.

use std::ops::Range;

use optim_core::DType;
use optim_core::backend::RowList;

use crate::storage;
use crate::walk::{BLOCK, each_block, scaled};

/// One parameter's rows, ready for its update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// The listed rows, ascending.
    pub(crate) rows: &'a [u32],
    /// The gradient of each, one after the other.
    pub(crate) grads: &'a [f32],
}

/// Appends the gradients of the listed rows: their sums in the order of the list.
pub(crate) fn sum(list: &RowList, dtype: DType, values: &[u8], width: usize, out: &mut Vec<f32>) {
    let mut block = [0.0; BLOCK];
    for (_, positions) in list.iter() {
        let start = out.len();
        out.resize(start + width, 0.0);
        let sum = &mut out[start..];
        for (nth, &position) in positions.iter().enumerate() {
            let values = &values[scaled(&(position as usize * width..(position as usize + 1) * width), dtype.size())];
            if nth == 0 {
                storage::load(dtype, values, sum);
                continue;
            }
            each_block(0..width, |range| {
                let block = &mut block[..range.len()];
                storage::load(dtype, &values[scaled(&range, dtype.size())], block);
                sum[range].iter_mut().zip(block).for_each(|(sum, value)| *sum += *value);
            });
        }
    }
}

impl<'a> Rows<'a> {
    /// The stretches of listed rows that lie in these elements of the parameter: their elements, and those of the gradients.
    pub(crate) fn stretches(self, elements: Range<usize>) -> impl Iterator<Item = (Range<usize>, &'a [f32])> {
        let Self { rows, grads } = self;
        let width = grads.len() / rows.len().max(1);
        let first = rows.partition_point(|&row| (row as usize + 1) * width <= elements.start);
        let starts = rows[first..].iter().map(move |&row| row as usize * width);
        (first..).zip(starts.take_while(move |&row| row < elements.end)).map(move |(nth, row)| {
            let (start, end) = (row.max(elements.start), (row + width).min(elements.end));
            (start - elements.start..end - elements.start, &grads[nth * width..][start - row..end - row])
        })
    }
}
