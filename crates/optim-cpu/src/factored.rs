//! The engine of rules whose second moments are kept by row and by column (`Passes::Factored`): AdaFactor.
//!
//! Tensors are worked on side by side, each by one thread. All sums have one fixed order, which is also the GPU's:
//!
//! ```text
//! row sum:     lane l of 256 adds the columns l, l + 256, …; then a tree over the lanes
//! column sum:  the rows of a block of 64, in order; then the blocks, in order
//! mean of R:   as a row sum
//! RMS:         as every sum over a parameter (`reduce`)
//! ```

use std::array;
use std::mem;
use std::ops::Range;

use half::f16;
use optim_core::DType;
use optim_core::backend::Record;
use optim_core::compressed;
use optim_core::rules::ada_factor::Step;

use crate::arena::{MASTER, SCRATCH, SLOTS, SUMS};
use crate::drive::Piece;
use crate::form::Form;
use crate::kernel::Opened;
use crate::reduce::{self, LANES, ROW, Sums, count};
use crate::rules::ada_factor as rule;
use crate::shape::Shape;
use crate::storage::{floats_mut, numbers_mut};
use crate::walk::{self, Blocks, Gradient, Space, View, each_block};

/// Rows whose columns are summed one after the other before they join the others.
const BLOCK_ROWS: usize = 64;

/// Second moments.
enum Moments<'a> {
    F32(&'a mut [f32]),
    /// Rounded whenever they change.
    F16(&'a mut [f16]),
}

impl<'m> Moments<'m> {
    fn new(dtype: DType, bytes: &'m mut [u8]) -> Self {
        match dtype {
            DType::F16 => Self::F16(numbers_mut(bytes)),
            DType::F32 | DType::Bf16 => Self::F32(floats_mut(bytes)),
        }
    }

    /// At most [`ROW`] numbers. The buffer holds them if they are not stored as `f32`.
    fn read<'a>(&'a self, range: Range<usize>, buffer: &'a mut [f32; ROW]) -> &'a [f32] {
        match self {
            Self::F32(stored) => &stored[range],
            Self::F16(stored) => {
                let buffer = &mut buffer[..range.len()];
                compressed::decode(&stored[range], buffer);
                buffer
            }
        }
    }

    /// Changes at most [`ROW`] numbers.
    fn change(&mut self, range: Range<usize>, work: impl FnOnce(&mut [f32])) {
        match self {
            Self::F32(stored) => work(&mut stored[range]),
            Self::F16(stored) => {
                let (stored, mut buffer) = (&mut stored[range], [0.0; ROW]);
                let buffer = &mut buffer[..stored.len()];
                compressed::decode(stored, buffer);
                work(buffer);
                compressed::encode(buffer, stored);
            }
        }
    }
}

/// Updates a tensor, which the piece holds whole.
pub(crate) fn update(
    form: &Form,
    record: &Record,
    shape: &Shape<'_>,
    gradient: Gradient<'_>,
    piece: &mut Piece<'_>,
    space: &mut Space,
) {
    let mut scalars = record.scalars;
    let step: &mut Step = bytemuck::from_bytes_mut(bytemuck::cast_slice_mut(scalars.words_mut()));
    let (_, rows, columns) = form.matrices();
    let (len, matrix) = (piece.len, rows * columns);
    let [mut row_moments, mut column_moments, mut vector_moments] =
        array::from_fn(|nth| Moments::new(form.slots[nth].dtype, mem::take(&mut piece.arrays[SLOTS + nth])));
    let (block, rest) = floats_mut(mem::take(&mut piece.arrays[SCRATCH])).split_at_mut(columns);
    let (total, rest) = rest.split_at_mut(columns);
    let (roots, column_roots) = rest.split_at_mut(len.checked_div(columns).unwrap_or_default());
    let slices: &mut [Sums] = numbers_mut(mem::take(&mut piece.arrays[SUMS]));
    let view = View { form, element: 0, p: piece.p, master: piece.arrays[MASTER], gradient };
    let Blocks { p: p_block, g: g_block, columns: running, .. } = space.blocks();

    // The second moments.
    let mut buffer = [0.0; ROW];
    if columns == 0 {
        each_block(0..len, |range| {
            let (_, g) = view.read(shape, range.clone(), p_block, g_block);
            vector_moments.change(range, |moments| rule::moments(step, g, moments));
        });
    } else {
        for nth in 0..len / matrix {
            // Rows and columns are counted through the whole stack.
            let (first_row, first_column) = (nth * rows, nth * columns);
            let matrix_rows = first_row..first_row + rows;
            total.fill(0.0);
            for start in matrix_rows.clone().step_by(BLOCK_ROWS) {
                let block_rows = start..matrix_rows.end.min(start + BLOCK_ROWS);
                block.fill(0.0);
                row_moments.change(block_rows.clone(), |moments| {
                    for (row, moment) in block_rows.clone().zip(moments) {
                        let start = row * columns;
                        let mut lanes = [0.0; LANES];
                        each_block(start..start + columns, |range| {
                            let (_, g) = view.read(shape, range.clone(), p_block, g_block);
                            rule::add_squares(step, g, &mut lanes, &mut block[range.start - start..range.end - start]);
                        });
                        let sum = reduce::tree(&mut lanes, columns.min(LANES));
                        rule::moment(step, moment, sum / count(columns));
                    }
                });
                roots[block_rows.clone()].copy_from_slice(row_moments.read(block_rows, &mut buffer));
                total.iter_mut().zip(&*block).for_each(|(total, block)| *total += block);
            }
            for (start, sums) in (first_column..).step_by(ROW).zip(total.chunks(ROW)) {
                let columns = start..start + sums.len();
                column_moments.change(columns.clone(), |moments| {
                    for (moment, sum) in moments.iter_mut().zip(sums) {
                        rule::moment(step, moment, sum / count(rows));
                    }
                });
                rule::roots(column_moments.read(columns.clone(), &mut buffer), &mut column_roots[columns]);
            }
            let roots = &mut roots[matrix_rows];
            let mean = reduce::strided(roots) / count(rows);
            roots.iter_mut().for_each(|row| *row = (*row / mean).sqrt());
        }
    }

    // u for a stretch, in place of g.
    let directions = |start: usize, g: &mut [f32]| {
        if columns == 0 {
            let mut buffer = [0.0; ROW];
            rule::directions_vector(g, vector_moments.read(start..start + g.len(), &mut buffer));
            return;
        }
        let (mut at, mut rest) = (start, g);
        while !rest.is_empty() {
            let (row, column) = (at / columns, at % columns);
            let (stretch, after) = rest.split_at_mut(rest.len().min(columns - column));
            let first = at / matrix * columns + column;
            rule::directions(stretch, roots[row], &column_roots[first..first + stretch.len()]);
            at += stretch.len();
            rest = after;
        }
    };

    // The norms.
    reduce::summed(len, 2, slices, running, |range, [first, second, _]| {
        let (p, u) = view.copy(shape, range.clone(), p_block, g_block);
        directions(range.start, u);
        rule::add_norms(p, u, first, second);
    });
    let sums = reduce::total(slices);
    rule::finish(step, [sums[0], sums[1]], count(len));

    // The update.
    let step = &*step;
    walk::update(form, record, shape, gradient, piece, space, |start, p, g, _, slots| {
        let mut row = [0.0; ROW];
        let u = &mut row[..g.len()];
        u.copy_from_slice(g);
        directions(start, u);
        if let Opened::F32([.., m]) = slots {
            rule::updates(step, p, u, m);
        }
    });
}
