//! The engine of rules whose second moments are kept by row and by column (`Passes::Factored`): AdaFactor.
//!
//! Tensors are worked on side by side, each matrix or stack of them by one thread; vectors are cut. All sums have one fixed order, which
//! is also the GPU's:
//!
//! ```text
//! row sum:     lane l of 256 adds the columns l, l + 256, …; then a tree over the lanes
//! column sum:  the rows of a block of 64, in order; then the blocks, in order
//! mean of R:   as a row sum
//! RMS:         as every sum over a parameter (`reduce`)
//! ```

mod small;

use std::mem;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::f16;
use optim_core::backend::Record;
use optim_core::rule::StepScalars;
use optim_core::rules::ada_factor::Step;
use optim_core::{DType, Error, Result};

use crate::arena::{MASTER, SLOTS, SUMS};
use crate::drive::Piece;
use crate::form::Form;
use crate::kernel::Opened;
use crate::reduce::{self, LANES, ROW, SLICE, Sums, count};
use crate::rules::ada_factor::{self as rule, Moment};
use crate::shape::Shape;
use crate::storage::numbers_mut;
use crate::walk::{self, BLOCK, Blocks, Gradient, Space, View, each, each_block};
pub(crate) use small::Desk;
use small::Small;

/// Rows whose columns are summed one after the other before they join the others.
const BLOCK_ROWS: usize = 64;

/// What a walk reads, and the blocks that it is read into.
struct Reader<'a> {
    view: View<'a>,
    shape: &'a Shape<'a>,
    p: &'a mut [f32; BLOCK],
    g: &'a mut [f32; BLOCK],
    desk: &'a mut Desk,
}

impl Reader<'_> {
    /// The parameter and the shaped gradient of at most a block.
    fn both(&mut self, range: Range<usize>) -> (&[f32], &[f32]) {
        self.view.read(self.shape, range, self.p, self.g)
    }

    /// The shaped gradient of at most a block.
    fn gradient(&mut self, range: Range<usize>) -> &[f32] {
        self.gradient_and_desk(range).0
    }

    fn gradient_and_desk(&mut self, range: Range<usize>) -> (&[f32], &mut Desk) {
        let g = match self.view.gradient.as_it_is(self.shape, &range) {
            Some(g) => g,
            None => self.view.copy(self.shape, range, self.p, self.g).1,
        };
        (g, self.desk)
    }

    /// The parameter of at most a block.
    fn parameter(&mut self, range: &Range<usize>) -> &[f32] {
        let View { form, p, master, .. } = self.view;
        walk::read(form, p, master, range, self.p)
    }
}

/// The second moments of a tensor, and what updates are made of.
struct Factors<'a, T> {
    kind: Kind,
    /// Of one matrix.
    rows: usize,
    columns: usize,
    row_moments: &'a mut [T],
    column_moments: &'a mut [T],
    vector_moments: &'a mut [T],
    /// `u` of every element of small matrices.
    u: &'a mut [f32],
    /// The factors of large matrices: rows are counted through the whole stack, and so are columns.
    row_factors: &'a mut [f32],
    column_factors: &'a mut [f32],
    /// The sums over the columns of a block of rows, and of a large matrix.
    block: &'a mut [f32],
    total: &'a mut [f32],
}

/// How a tensor is worked on.
#[derive(Clone, Copy)]
enum Kind {
    Vector,
    /// Matrices of one element.
    Elements,
    /// Many matrices at a time.
    Small(Small),
    /// One matrix after the other.
    Large,
}

impl Kind {
    fn new(rows: usize, columns: usize) -> Self {
        match (rows, columns) {
            (_, 0) => Self::Vector,
            (1, 1) => Self::Elements,
            _ => Small::new(rows, columns).map_or(Self::Large, Self::Small),
        }
    }
}

/// The numbers that a tensor is worked on with beside its state.
pub(crate) fn room(form: &Form) -> usize {
    if !form.factored {
        return 0;
    }
    let (matrices, rows, columns) = form.matrices();
    match Kind::new(rows, columns) {
        Kind::Vector => 0,
        Kind::Elements | Kind::Small(_) => form.len,
        Kind::Large => 2 * columns + matrices * (rows + columns),
    }
}

/// Room for those numbers: a thread works on one tensor after the other, in the same memory. It stays in the cache, where memory for
/// each tensor would have to be read and written.
#[derive(Debug)]
pub(crate) struct Rooms {
    most: usize,
    free: Mutex<Vec<Vec<f32>>>,
}

impl Rooms {
    pub(crate) fn new(forms: &[Form], threads: usize) -> Result<Self> {
        let most = forms.iter().map(room).max().unwrap_or_default();
        let count = forms.iter().filter(|form| room(form) > 0).count().min(threads);
        let out_of_memory = |()| Error::OutOfMemory { detail: format!("{most} numbers to work with") };
        let rooms = (0..count).map(|_| bytemuck::allocation::try_zeroed_vec(most).map_err(out_of_memory));
        Ok(Self { most, free: Mutex::new(rooms.collect::<Result<_>>()?) })
    }

    /// The room that was given back last.
    pub(crate) fn take(&self) -> Vec<f32> {
        // There is none if the step runs with more threads than there were when the engine was made.
        self.free().pop().unwrap_or_else(|| vec![0.0; self.most])
    }

    pub(crate) fn give_back(&self, room: Vec<f32>) {
        self.free().push(room);
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a, T: Moment> Factors<'a, T> {
    /// Those of a piece, from which they are taken.
    fn new<'p: 'a>(form: &Form, piece: &mut Piece<'p>, free: &'a mut [f32]) -> Self {
        let (_, rows, columns) = form.matrices();
        let [row_moments, column_moments, vector_moments] =
            [0, 1, 2].map(|nth| numbers_mut(mem::take(&mut piece.arrays[SLOTS + nth])));
        let (kind, scratch) = (Kind::new(rows, columns), &mut free[..room(form)]);
        let (u, scratch) = scratch.split_at_mut(if let Kind::Large = kind { 0 } else { scratch.len() });
        let (block, scratch) = scratch.split_at_mut(columns.min(scratch.len()));
        let (total, scratch) = scratch.split_at_mut(block.len());
        let of_rows = if let Kind::Large = kind { piece.len / columns } else { 0 };
        let (row_factors, column_factors) = scratch.split_at_mut(of_rows);
        Self {
            kind,
            rows,
            columns,
            row_moments,
            column_moments,
            vector_moments,
            u,
            row_factors,
            column_factors,
            block,
            total,
        }
    }

    /// Updates the moments of a row of a slice, and of as much behind it as belongs to the same matrices, unless that has been done:
    /// those up to `reached` have. Adds the squares of the parameter and of its `u` to the running sums.
    fn measure(
        &mut self,
        step: &Step,
        row: Range<usize>,
        reached: &mut usize,
        reader: &mut Reader<'_>,
        [first, second]: [&mut [f32; ROW]; 2],
    ) {
        match self.kind {
            Kind::Vector => {
                let (p, g) = reader.both(row.clone());
                rule::measure_vector(step, p, g, &mut self.vector_moments[row], first, second);
            }
            Kind::Elements => {
                let (p, g) = reader.both(row.clone());
                let Self { row_moments, column_moments, u, .. } = self;
                let (rows, columns) = (&mut row_moments[row.clone()], &mut column_moments[row.clone()]);
                rule::measure_elements(step, p, g, rows, columns, &mut u[row], first, second);
            }
            Kind::Small(small) => each::<{ small::BLOCK }>(row.clone(), |range| {
                while *reached < range.end {
                    let range = *reached..self.u.len().min(*reached + small.block());
                    *reached = range.end;
                    let (g, desk) = reader.gradient_and_desk(range.clone());
                    self.advance_small(step, small, range.start, g, desk);
                }
                let at = range.start - row.start..range.end - row.start;
                let (first, second) = (&mut first[at.clone()], &mut second[at]);
                rule::add_norms(reader.parameter(&range), &self.u[range], first, second);
            }),
            Kind::Large => {
                let matrix = self.rows * self.columns;
                while *reached < row.end {
                    self.advance_large(step, *reached / matrix, reader);
                    *reached += matrix;
                }
                let (p, g) = reader.both(row.clone());
                self.each_matrix(row, |start, stretch, rows, columns| {
                    let (first, second) = (&mut first[stretch.clone()], &mut second[stretch.clone()]);
                    rule::add_norms_of_matrix(start, &p[stretch.clone()], &g[stretch], rows, columns, first, second);
                });
            }
        }
    }

    /// Updates the moments of some matrices, whose first element and whose gradient is given, and makes their `u`.
    fn advance_small(&mut self, step: &Step, small: Small, start: usize, g: &[f32], desk: &mut Desk) {
        let Self { rows, columns, row_moments, column_moments, u, .. } = self;
        let all = start..start + g.len();
        let of_rows = all.start / *columns..all.end / *columns;
        let of_columns = all.start / *rows..all.end / *rows;
        small.advance(step, g, &mut row_moments[of_rows], &mut column_moments[of_columns], &mut u[all], desk);
    }

    /// Updates the moments of a matrix, and makes its factors.
    fn advance_large(&mut self, step: &Step, nth: usize, reader: &mut Reader<'_>) {
        let Self { rows, columns, .. } = *self;
        let (share_of_row, share_of_column) = (1.0 / count(columns), 1.0 / count(rows));
        let (matrix_rows, matrix_columns) = (nth * rows..(nth + 1) * rows, nth * columns..(nth + 1) * columns);
        self.total.fill(0.0);
        for start in matrix_rows.clone().step_by(BLOCK_ROWS) {
            let block_rows = start..matrix_rows.end.min(start + BLOCK_ROWS);
            let mut sums = [0.0; BLOCK_ROWS];
            self.block.fill(0.0);
            for (row, sum) in block_rows.clone().zip(&mut sums) {
                let (first, mut lanes) = (row * columns, [0.0; LANES]);
                each_block(0..columns, |stretch| {
                    let g = reader.gradient(first + stretch.start..first + stretch.end);
                    rule::add_squares(step, g, &mut lanes, &mut self.block[stretch]);
                });
                *sum = reduce::sum_of_lanes(&mut lanes, columns.min(LANES));
            }
            let moments = &mut self.row_moments[block_rows.clone()];
            rule::moments(step, &sums, share_of_row, moments, &mut self.row_factors[block_rows]);
            self.total.iter_mut().zip(&*self.block).for_each(|(total, block)| *total += block);
        }
        let factors = &mut self.column_factors[matrix_columns.clone()];
        rule::moments(step, self.total, share_of_column, &mut self.column_moments[matrix_columns], factors);
        rule::into_column_factors(factors);
        let factors = &mut self.row_factors[matrix_rows];
        let mut mean = [reduce::strided(factors)];
        rule::into_root_means(share_of_column, &mut mean);
        rule::into_row_factors(mean[0], factors);
    }

    /// Calls `work` for each stretch of these elements that lies in one matrix: where it begins there, where it lies among these
    /// elements, and the matrix's factors.
    fn each_matrix(&self, elements: Range<usize>, mut work: impl FnMut(usize, Range<usize>, &[f32], &[f32])) {
        let (matrix, mut at) = (self.rows * self.columns, elements.start);
        while at < elements.end {
            let (nth, first) = (at / matrix, at % matrix);
            let end = elements.end.min(at + matrix - first);
            let rows = &self.row_factors[nth * self.rows..][..self.rows];
            let columns = &self.column_factors[nth * self.columns..][..self.columns];
            work(first, at - elements.start..end - elements.start, rows, columns);
            at = end;
        }
    }

    /// Updates the elements from `start` on; `m` is empty without `β₁`.
    fn update(&self, step: &Step, start: usize, p: &mut [f32], g: &[f32], m: &mut [f32]) {
        let range = start..start + p.len();
        match self.kind {
            Kind::Vector => rule::updates_of_vector(step, p, g, &self.vector_moments[range], m),
            Kind::Elements | Kind::Small(_) => rule::updates(step, p, &self.u[range], m),
            Kind::Large => self.each_matrix(range, |start, stretch, rows, columns| {
                let m = if m.is_empty() { &mut [] } else { &mut m[stretch.clone()] };
                rule::updates_of_matrix(step, start, &mut p[stretch.clone()], &g[stretch], rows, columns, m);
            }),
        }
    }
}

/// Updates the second moments of a piece, which of a matrix is the whole, and sums over its slices what [`finish`] needs.
pub(crate) fn measure(
    form: &Form,
    record: &Record,
    shape: &Shape<'_>,
    gradient: Gradient<'_>,
    piece: &mut Piece<'_>,
    space: &mut Space,
) {
    let mut room = mem::take(&mut space.room);
    match form.slots[0].dtype {
        DType::F16 => Factors::<f16>::new(form, piece, &mut room).sum(form, record, shape, gradient, piece, space),
        _ => Factors::<f32>::new(form, piece, &mut room).sum(form, record, shape, gradient, piece, space),
    };
    space.room = room;
}

/// Completes the scalars from the sums over a tensor of so many elements.
pub(crate) fn finish(scalars: &mut StepScalars, sums: Sums, len: usize) {
    let step: &mut Step = bytemuck::from_bytes_mut(bytemuck::cast_slice_mut(scalars.words_mut()));
    rule::finish(step, sums, count(len));
}

impl<T: Moment> Factors<'_, T> {
    /// The second moments and, close behind them, the norms: gives the sums over the piece.
    fn sum(
        &mut self,
        form: &Form,
        record: &Record,
        shape: &Shape<'_>,
        gradient: Gradient<'_>,
        piece: &mut Piece<'_>,
        space: &mut Space,
    ) -> Sums {
        let (step, len): (&Step, _) = (bytemuck::from_bytes(bytemuck::cast_slice(record.scalars.words())), piece.len);
        let slices: &mut [Sums] = numbers_mut(mem::take(&mut piece.arrays[SUMS]));
        let view = View { form, element: piece.element, p: piece.p, master: piece.arrays[MASTER], gradient };
        let (Blocks { p, g, columns: running, .. }, desk) = space.desk();
        let (mut reader, mut reached) = (Reader { view, shape, p, g, desk }, 0);
        reduce::summed(len, 2, slices, running, |row, [first, second]| {
            self.measure(step, row, &mut reached, &mut reader, [first, second]);
        });
        reduce::total(slices)
    }
}

/// Updates a tensor. If the piece does not hold it whole, it has been measured, and the record is complete.
pub(crate) fn update(
    form: &Form,
    record: &Record,
    shape: &Shape<'_>,
    gradient: Gradient<'_>,
    piece: &mut Piece<'_>,
    space: &mut Space,
) {
    let mut room = mem::take(&mut space.room);
    match form.slots[0].dtype {
        DType::F16 => {
            update_with(Factors::<f16>::new(form, piece, &mut room), form, record, shape, gradient, piece, space)
        }
        _ => update_with(Factors::<f32>::new(form, piece, &mut room), form, record, shape, gradient, piece, space),
    }
    space.room = room;
}

fn update_with<T: Moment>(
    mut factors: Factors<'_, T>,
    form: &Form,
    record: &Record,
    shape: &Shape<'_>,
    gradient: Gradient<'_>,
    piece: &mut Piece<'_>,
    space: &mut Space,
) {
    let mut scalars = record.scalars;
    if piece.len == form.len {
        let sums = factors.sum(form, record, shape, gradient, piece, space);
        finish(&mut scalars, sums, form.len);
    }
    let step: &Step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
    walk::update(form, record, shape, gradient, piece, space, |start, p, g, _, slots| {
        let Opened::F32([.., m]) = slots else { return };
        // What was measured last is still in the cache.
        for (nth, (p, g)) in p.chunks_mut(SLICE).zip(g.chunks(SLICE)).enumerate().rev() {
            let first = nth * SLICE;
            let m = if m.is_empty() { &mut [] } else { &mut m[first..first + p.len()] };
            factors.update(step, start + first, p, g, m);
        }
    });
}
