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

mod small;

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
use crate::walk::{self, BLOCK, Blocks, Gradient, Space, View, each_block};
use small::Small;

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

/// What a walk reads, and the blocks that it is read into.
struct Reader<'a> {
    view: View<'a>,
    shape: &'a Shape<'a>,
    p: &'a mut [f32; BLOCK],
    g: &'a mut [f32; BLOCK],
}

impl Reader<'_> {
    /// The parameter and the shaped gradient of at most a block.
    fn read(&mut self, range: Range<usize>) -> (&[f32], &[f32]) {
        self.view.read(self.shape, range, self.p, self.g)
    }
}

/// The second moments of a tensor, and what gradients are divided by.
struct Factors<'a> {
    kind: Kind,
    /// Of one matrix.
    rows: usize,
    columns: usize,
    row_moments: Moments<'a>,
    column_moments: Moments<'a>,
    vector_moments: Moments<'a>,
    /// `√(R / mean of R)`; rows are counted through the whole stack, and so are columns.
    roots: &'a mut [f32],
    /// `√C`.
    column_roots: &'a mut [f32],
    /// The sums over the columns of a block of rows, and of a matrix.
    block: &'a mut [f32],
    total: &'a mut [f32],
}

/// How a tensor is worked on.
#[derive(Clone, Copy)]
enum Kind {
    Vector,
    /// Many matrices at a time.
    Small(Small),
    /// One matrix after the other.
    Large,
}

impl<'a> Factors<'a> {
    /// Those of a piece, from which they are taken.
    fn new(form: &Form, piece: &mut Piece<'a>) -> Self {
        let (_, rows, columns) = form.matrices();
        let [row_moments, column_moments, vector_moments] =
            array::from_fn(|nth| Moments::new(form.slots[nth].dtype, mem::take(&mut piece.arrays[SLOTS + nth])));
        let (block, rest) = floats_mut(mem::take(&mut piece.arrays[SCRATCH])).split_at_mut(columns);
        let (total, rest) = rest.split_at_mut(columns);
        let (roots, column_roots) = rest.split_at_mut(piece.len.checked_div(columns).unwrap_or_default());
        let kind = match Small::new(rows, columns) {
            _ if columns == 0 => Kind::Vector,
            Some(small) => Kind::Small(small),
            None => Kind::Large,
        };
        Self { kind, rows, columns, row_moments, column_moments, vector_moments, roots, column_roots, block, total }
    }

    /// Updates the moments of the elements from `start` on, of at least one, of a tensor of so many; gives where it stopped.
    fn advance(&mut self, step: &Step, start: usize, len: usize, reader: &mut Reader<'_>) -> usize {
        match self.kind {
            Kind::Vector => {
                let range = start..len.min(start + BLOCK);
                let (_, g) = reader.read(range.clone());
                self.vector_moments.change(range.clone(), |moments| rule::square_moments(step, g, moments));
                range.end
            }
            Kind::Small(small) => {
                let range = start..len.min(start + small.block());
                let (_, g) = reader.read(range.clone());
                self.advance_small(step, small, range.start, g);
                range.end
            }
            Kind::Large => {
                let matrix = self.rows * self.columns;
                self.advance_large(step, start / matrix, reader);
                start + matrix
            }
        }
    }

    /// Updates the moments of some matrices, whose first element and whose gradient is given.
    fn advance_small(&mut self, step: &Step, small: Small, start: usize, g: &[f32]) {
        let (mut squares, mut sums, mut buffer) = ([0.0; ROW], [0.0; ROW], [0.0; ROW]);
        let squares = &mut squares[..g.len()];
        rule::squares(step, g, squares);

        let rows = start / self.columns..(start + g.len()) / self.columns;
        small.row_sums(squares, &mut sums[..rows.len()]);
        self.row_moments.change(rows.clone(), |moments| rule::moments(step, &sums, count(self.columns), moments));
        let columns = start / self.rows..(start + g.len()) / self.rows;
        small.column_sums(squares, &mut sums[..columns.len()]);
        self.column_moments.change(columns.clone(), |moments| rule::moments(step, &sums, count(self.rows), moments));

        let column_roots = &mut self.column_roots[columns.clone()];
        rule::roots(self.column_moments.read(columns, &mut buffer), column_roots);
        let row_moments = self.row_moments.read(rows.clone(), &mut buffer);
        small.row_roots(row_moments, &mut self.roots[rows], column_roots);
    }

    /// Updates the moments of a matrix.
    fn advance_large(&mut self, step: &Step, nth: usize, reader: &mut Reader<'_>) {
        let Self { rows, columns, .. } = *self;
        let (first_row, first_column, mut buffer) = (nth * rows, nth * columns, [0.0; ROW]);
        let matrix_rows = first_row..first_row + rows;
        self.total.fill(0.0);
        for start in matrix_rows.clone().step_by(BLOCK_ROWS) {
            let block_rows = start..matrix_rows.end.min(start + BLOCK_ROWS);
            let mut sums = [0.0; BLOCK_ROWS];
            self.block.fill(0.0);
            for (row, sum) in block_rows.clone().zip(&mut sums) {
                let start = row * columns;
                let mut lanes = [0.0; LANES];
                each_block(start..start + columns, |range| {
                    let block = &mut self.block[range.start - start..range.end - start];
                    rule::add_squares(step, reader.read(range).1, &mut lanes, block);
                });
                *sum = reduce::tree(&mut lanes, columns.min(LANES));
            }
            self.row_moments.change(block_rows.clone(), |moments| {
                rule::moments(step, &sums, count(columns), moments);
            });
            self.roots[block_rows.clone()].copy_from_slice(self.row_moments.read(block_rows, &mut buffer));
            self.total.iter_mut().zip(&*self.block).for_each(|(total, block)| *total += block);
        }
        for (start, sums) in (first_column..).step_by(ROW).zip(self.total.chunks(ROW)) {
            let columns = start..start + sums.len();
            self.column_moments.change(columns.clone(), |moments| rule::moments(step, sums, count(rows), moments));
            rule::roots(self.column_moments.read(columns.clone(), &mut buffer), &mut self.column_roots[columns]);
        }
        let roots = &mut self.roots[matrix_rows];
        let mean = reduce::strided(roots) / count(rows);
        roots.iter_mut().for_each(|row| *row = (*row / mean).sqrt());
    }

    /// `u` of at most a block, from the element `start` on.
    fn directions(&self, start: usize, g: &[f32], u: &mut [f32]) {
        match self.kind {
            Kind::Vector => {
                let mut buffer = [0.0; ROW];
                let moments = self.vector_moments.read(start..start + g.len(), &mut buffer);
                rule::directions_vector(g, moments, u);
            }
            Kind::Small(small) => small.directions(start, g, self.roots, self.column_roots, u),
            Kind::Large => self.directions_large(start, g, u),
        }
    }

    fn directions_large(&self, start: usize, g: &[f32], u: &mut [f32]) {
        let (columns, mut done) = (self.columns, 0);
        while done < g.len() {
            let at = start + done;
            let (row, column) = (at / columns, at % columns);
            let stretch = done..g.len().min(done + columns - column);
            let first = row / self.rows * columns + column;
            let column_roots = &self.column_roots[first..first + stretch.len()];
            done = stretch.end;
            rule::directions(&g[stretch.clone()], self.roots[row], column_roots, &mut u[stretch]);
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
    let len = piece.len;
    let mut factors = Factors::new(form, piece);
    let slices: &mut [Sums] = numbers_mut(mem::take(&mut piece.arrays[SUMS]));

    // The second moments and, close behind them, the norms.
    let view = View { form, element: 0, p: piece.p, master: piece.arrays[MASTER], gradient };
    let Blocks { p, g, slots: [u, ..], columns: running } = space.blocks();
    let (mut reader, mut reached) = (Reader { view, shape, p, g }, 0);
    reduce::summed(len, 2, slices, running, |range, [first, second, _]| {
        while reached < range.end {
            reached = factors.advance(step, reached, len, &mut reader);
        }
        let u = &mut u[..range.len()];
        let (p, g) = reader.read(range.clone());
        factors.directions(range.start, g, u);
        rule::add_norms(p, u, first, second);
    });
    let sums = reduce::total(slices);
    rule::finish(step, [sums[0], sums[1]], count(len));

    // The update.
    let step = &*step;
    walk::update(form, record, shape, gradient, piece, space, |start, p, g, _, slots| {
        let mut row = [0.0; ROW];
        let u = &mut row[..g.len()];
        factors.directions(start, g, u);
        if let Opened::F32([.., m]) = slots {
            rule::updates(step, p, u, m);
        }
    });
}
