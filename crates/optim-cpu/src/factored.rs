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

use std::array;
use std::mem;
use std::ops::Range;

use half::f16;
use optim_core::DType;
use optim_core::backend::Record;
use optim_core::compressed;
use optim_core::rule::StepScalars;
use optim_core::rules::ada_factor::Step;

use crate::arena::{MASTER, SCRATCH, SLOTS, SUMS};
use crate::drive::Piece;
use crate::form::Form;
use crate::kernel::Opened;
use crate::reduce::{self, LANES, ROW, Sums, count};
use crate::rules::ada_factor::{self as rule, SIDE_BY_SIDE, SPAN};
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

/// What a task works with.
pub(crate) struct Desk {
    g: [f32; SPAN],
    u: [f32; SPAN],
    small: small::Desk,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self { g: [0.0; SPAN], u: [0.0; SPAN], small: small::Desk::new() }
    }
}

/// What a walk reads, and the blocks that it is read into.
struct Reader<'a> {
    view: View<'a>,
    shape: &'a Shape<'a>,
    p: &'a mut [f32; BLOCK],
    g: &'a mut [f32; SPAN],
    desk: &'a mut small::Desk,
}

impl Reader<'_> {
    /// The shaped gradient of at most a span.
    fn gradient(&mut self, range: Range<usize>) -> &[f32] {
        self.gradient_and_desk(range).0
    }

    fn gradient_and_desk(&mut self, range: Range<usize>) -> (&[f32], &mut small::Desk) {
        if let Some(g) = self.view.gradient.as_it_is(self.shape, &range) {
            return (g, self.desk);
        }
        for (start, block) in range.clone().step_by(BLOCK).zip(self.g.as_chunks_mut().0) {
            self.view.copy(self.shape, start..range.end.min(start + BLOCK), self.p, block);
        }
        (&self.g[..range.len()], self.desk)
    }

    /// The shaped gradients of blocks that begin so far apart.
    fn gradients(&mut self, first: &Range<usize>, apart: usize) -> [&[f32]; SIDE_BY_SIDE] {
        let ranges: [_; SIDE_BY_SIDE] = array::from_fn(|nth| first.start + nth * apart..first.end + nth * apart);
        let mut blocks = self.g.as_chunks_mut::<BLOCK>().0.iter_mut();
        ranges.map(|range| {
            let len = range.len();
            match (self.view.gradient.as_it_is(self.shape, &range), blocks.next()) {
                (None, Some(block)) => {
                    self.view.copy(self.shape, range, self.p, block);
                    &block[..len]
                }
                (g, _) => g.unwrap_or_default(),
            }
        })
    }

    /// The parameter and the shaped gradient of a range, if both lie in memory as `f32`.
    fn in_place(&mut self, range: &Range<usize>) -> Option<(&[f32], &[f32])> {
        let g = self.view.gradient.as_it_is(self.shape, range).filter(|_| self.view.form.in_place())?;
        self.parameter(range).map(|p| (p, g))
    }

    /// The parameter of a range, if it is at hand.
    fn parameter(&mut self, range: &Range<usize>) -> Option<&[f32]> {
        let View { form, p, master, .. } = self.view;
        (form.in_place() || range.len() <= BLOCK).then(|| walk::read(form, p, master, range, self.p))
    }

    /// Adds the squares of a span of the parameter and of its `u`, which begins with a row of a slice, to the running sums.
    fn add_norms(&mut self, range: &Range<usize>, u: &[f32], [first, second]: [&mut [f32; ROW]; 2]) {
        if let Some(p) = self.parameter(range)
            && let (Ok(p), Ok(u)) = (p.try_into(), u.try_into())
        {
            return rule::add_norms_of_rows(p, u, first, second);
        }
        each_block(range.clone(), |row| {
            let u = &u[row.start - range.start..row.end - range.start];
            rule::add_norms(self.parameter(&row).unwrap_or_default(), u, first, second);
        });
    }
}

/// Rows of a slice that are worked on side by side: where each is in the matrices.
struct Stretches<'a> {
    factors: &'a Factors<'a>,
    rows: [usize; SIDE_BY_SIDE],
    columns: [usize; SIDE_BY_SIDE],
    done: usize,
}

impl<'a> Iterator for Stretches<'a> {
    /// Columns of a slice, so that each of the rows lies in one row of a matrix, whose factor is given, and those of its columns.
    type Item = (Range<usize>, [f32; SIDE_BY_SIDE], [&'a [f32]; SIDE_BY_SIDE]);

    fn next(&mut self) -> Option<Self::Item> {
        let Self { factors, rows, columns, done } = self;
        let len = columns.iter().fold(ROW - *done, |len, column| len.min(factors.columns - column));
        if len == 0 {
            return None;
        }
        let by_row = rows.map(|row| factors.row_factors[row]);
        let by_column = array::from_fn(|k| {
            let first = rows[k] / factors.rows * factors.columns + columns[k];
            &factors.column_factors[first..first + len]
        });
        for (row, column) in rows.iter_mut().zip(columns) {
            *column += len;
            if *column == factors.columns {
                (*row, *column) = (*row + 1, 0);
            }
        }
        *done += len;
        Some((*done - len..*done, by_row, by_column))
    }
}

/// The second moments of a tensor, and what updates are made of.
struct Factors<'a> {
    kind: Kind,
    /// Of one matrix.
    rows: usize,
    columns: usize,
    row_moments: Moments<'a>,
    column_moments: Moments<'a>,
    vector_moments: Moments<'a>,
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
pub(crate) fn scratch(form: &Form) -> usize {
    let (matrices, rows, columns) = form.matrices();
    match Kind::new(rows, columns) {
        Kind::Vector => 0,
        Kind::Elements | Kind::Small(_) => form.len,
        Kind::Large => 2 * columns + matrices * (rows + columns),
    }
}

impl<'a> Factors<'a> {
    /// Those of a piece, from which they are taken.
    fn new(form: &Form, piece: &mut Piece<'a>) -> Self {
        let (_, rows, columns) = form.matrices();
        let [row_moments, column_moments, vector_moments] =
            array::from_fn(|nth| Moments::new(form.slots[nth].dtype, mem::take(&mut piece.arrays[SLOTS + nth])));
        let (kind, scratch) = (Kind::new(rows, columns), floats_mut(mem::take(&mut piece.arrays[SCRATCH])));
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

    /// Updates the moments of the elements from `start` on, of at least one, of a tensor of so many; gives where it stopped.
    fn advance(&mut self, step: &Step, start: usize, len: usize, reader: &mut Reader<'_>) -> usize {
        match self.kind {
            Kind::Vector => {
                let range = start..len.min(start + BLOCK);
                let g = reader.gradient(range.clone());
                self.vector_moments.change(range.clone(), |moments| rule::square_moments(step, g, moments));
                range.end
            }
            Kind::Elements => {
                let range = start..len.min(start + BLOCK);
                self.advance_elements(step, range.clone(), reader.gradient(range.clone()));
                range.end
            }
            Kind::Small(small) => {
                let range = start..len.min(start + small.block());
                let (g, desk) = reader.gradient_and_desk(range.clone());
                self.advance_small(step, small, range.start, g, desk);
                range.end
            }
            Kind::Large => {
                let matrix = self.rows * self.columns;
                self.advance_large(step, start / matrix, reader);
                start + matrix
            }
        }
    }

    /// Updates the moments of some matrices of one element, and makes their `u`.
    fn advance_elements(&mut self, step: &Step, range: Range<usize>, g: &[f32]) {
        let Self { row_moments, column_moments, u, .. } = self;
        let u = &mut u[range.clone()];
        if let (Moments::F32(rows), Moments::F32(columns)) = (&mut *row_moments, &mut *column_moments) {
            return rule::elements(step, g, &mut rows[range.clone()], &mut columns[range], u);
        }
        row_moments.change(range.clone(), |moments| rule::square_moments(step, g, moments));
        column_moments.change(range.clone(), |moments| rule::square_moments(step, g, moments));
        let (mut row_buffer, mut column_buffer) = ([0.0; ROW], [0.0; ROW]);
        let rows = row_moments.read(range.clone(), &mut row_buffer);
        rule::directions_of_elements(g, rows, column_moments.read(range, &mut column_buffer), u);
    }

    /// Updates the moments of some matrices, whose first element and whose gradient is given, and makes their `u`.
    fn advance_small(&mut self, step: &Step, small: Small, start: usize, g: &[f32], desk: &mut small::Desk) {
        let Self { rows, columns, .. } = *self;
        let small::Desk { each: [squares, each], lines: [sums, buffer, factors] } = desk;
        let (squares, each) = (&mut squares[..g.len()], &mut each[..g.len()]);
        rule::squares(step, g, squares);

        let (share_of_row, share_of_column) = (1.0 / count(columns), 1.0 / count(rows));
        let of_rows = start / columns..(start + g.len()) / columns;
        small.row_sums(squares, &mut sums[..of_rows.len()]);
        self.row_moments.change(of_rows.clone(), |moments| rule::moments(step, sums, share_of_row, moments));
        let of_columns = start / rows..(start + g.len()) / rows;
        small.column_sums(squares, each, &mut sums[..of_columns.len()]);
        self.column_moments.change(of_columns.clone(), |moments| rule::moments(step, sums, share_of_column, moments));

        let (by_row, by_column) = (squares, each);
        let moments = self.row_moments.read(of_rows, buffer);
        small.row_factors(moments, by_column, sums, &mut factors[..moments.len()], by_row);
        let moments = self.column_moments.read(of_columns, buffer);
        small.column_factors(moments, &mut factors[..moments.len()], by_column);
        rule::directions_each(g, by_row, by_column, &mut self.u[start..start + g.len()]);
    }

    /// Updates the moments of a matrix, and makes its factors.
    fn advance_large(&mut self, step: &Step, nth: usize, reader: &mut Reader<'_>) {
        let Self { rows, columns, .. } = *self;
        let (first_row, first_column, mut buffer) = (nth * rows, nth * columns, [0.0; ROW]);
        let (share_of_row, share_of_column) = (1.0 / count(columns), 1.0 / count(rows));
        let matrix_rows = first_row..first_row + rows;
        self.total.fill(0.0);
        for start in matrix_rows.clone().step_by(BLOCK_ROWS) {
            let block_rows = start..matrix_rows.end.min(start + BLOCK_ROWS);
            let mut sums = [0.0; BLOCK_ROWS];
            self.block.fill(0.0);
            for (row, sums) in block_rows.clone().step_by(SIDE_BY_SIDE).zip(sums.chunks_mut(SIDE_BY_SIDE)) {
                let (first, used) = (row * columns, sums.len().min(block_rows.end - row));
                let mut lanes = [[0.0; LANES]; SIDE_BY_SIDE];
                each_block(0..columns, |stretch| {
                    let block = &mut self.block[stretch.clone()];
                    let stretch = first + stretch.start..first + stretch.end;
                    if used == SIDE_BY_SIDE {
                        let g = reader.gradients(&stretch, columns);
                        return rule::add_squares_of_rows(step, g, &mut lanes, block);
                    }
                    for (nth, lanes) in lanes.iter_mut().enumerate().take(used) {
                        let range = stretch.start + nth * columns..stretch.end + nth * columns;
                        rule::add_squares(step, reader.gradient(range), lanes, block);
                    }
                });
                reduce::trees(&mut lanes, columns.min(LANES), sums);
            }
            self.row_moments.change(block_rows.clone(), |moments| rule::moments(step, &sums, share_of_row, moments));
            self.row_factors[block_rows.clone()].copy_from_slice(self.row_moments.read(block_rows, &mut buffer));
            self.total.iter_mut().zip(&*self.block).for_each(|(total, block)| *total += block);
        }
        for (start, sums) in (first_column..).step_by(ROW).zip(self.total.chunks(ROW)) {
            let columns = start..start + sums.len();
            self.column_moments.change(columns.clone(), |moments| rule::moments(step, sums, share_of_column, moments));
            let moments = self.column_moments.read(columns.clone(), &mut buffer);
            rule::column_factors(moments, &mut self.column_factors[columns]);
        }
        let factors = &mut self.row_factors[matrix_rows];
        let mut mean = [reduce::strided(factors)];
        rule::into_root_means(share_of_column, &mut mean);
        rule::into_row_factors(mean[0], factors);
    }

    /// `u` of at most a span, from the element `start` on, from there or in the buffer.
    fn directions<'b>(&'b self, start: usize, g: &[f32], buffer: &'b mut [f32; SPAN]) -> &'b [f32] {
        if let Kind::Elements | Kind::Small(_) = self.kind {
            return &self.u[start..start + g.len()];
        }
        let u = &mut buffer[..g.len()];
        match self.kind {
            Kind::Large => self.directions_large(start, g, u),
            _ => each_block(0..g.len(), |block| {
                let mut buffer = [0.0; ROW];
                let moments = self.vector_moments.read(start + block.start..start + block.end, &mut buffer);
                rule::directions_vector(&g[block.clone()], moments, &mut u[block]);
            }),
        }
        u
    }

    /// `u` of a stretch of a stack of matrices.
    fn directions_large(&self, start: usize, g: &[f32], u: &mut [f32]) {
        let (matrix, mut done) = (self.rows * self.columns, 0);
        while done < g.len() {
            let (nth, first) = ((start + done) / matrix, (start + done) % matrix);
            let stretch = done..g.len().min(done + matrix - first);
            done = stretch.end;
            let rows = &self.row_factors[nth * self.rows..][..self.rows];
            let columns = &self.column_factors[nth * self.columns..][..self.columns];
            rule::directions(first, &g[stretch.clone()], rows, columns, &mut u[stretch]);
        }
    }

    /// The stretches of rows of a slice, a whole span from the element `start` on, if they are worth it.
    fn stretches(&self, range: &Range<usize>) -> Option<Stretches<'_>> {
        let worth_it = matches!(self.kind, Kind::Large) && self.columns >= LANES && range.len() == SPAN;
        worth_it.then(|| {
            let rows = array::from_fn(|k| (range.start + k * ROW) / self.columns);
            let columns = array::from_fn(|k| (range.start + k * ROW) % self.columns);
            Stretches { factors: self, rows, columns, done: 0 }
        })
    }

    /// Adds the squares of a span of the parameter and of its `u`, which begins with a row of a slice, to the running sums.
    fn add_norms(&self, range: Range<usize>, reader: &mut Reader<'_>, u: &mut [f32; SPAN], sums: [&mut [f32; ROW]; 2]) {
        if let Kind::Elements | Kind::Small(_) = self.kind {
            return reader.add_norms(&range, &self.u[range.clone()], sums);
        }
        if let (Some(stretches), Some((p, g))) = (self.stretches(&range), reader.in_place(&range)) {
            let ([p, g], [first, second]) = ([p, g].map(side_by_side), sums);
            for (at, rows, columns) in stretches {
                let [p, g] = [p, g].map(|all| all.map(|row| &row[at.clone()]));
                rule::add_norms_of_stretches(p, g, rows, columns, &mut first[at.clone()], &mut second[at]);
            }
            return;
        }
        let u = self.directions(range.start, reader.gradient(range.clone()), u);
        reader.add_norms(&range, u, sums);
    }

    /// Updates a span of the parameter; `m` is empty without `β₁`.
    fn update(&self, step: &Step, start: usize, p: &mut [f32], g: &[f32], m: &mut [f32], u: &mut [f32; SPAN]) {
        let Some(stretches) = self.stretches(&(start..start + p.len())) else {
            return rule::updates(step, p, self.directions(start, g, u), m);
        };
        let ([p0, p1, p2, p3], g) = (side_by_side_mut(p), side_by_side(g));
        let mut m = (!m.is_empty()).then(|| side_by_side_mut(m));
        for (at, rows, columns) in stretches {
            let g = g.map(|row| &row[at.clone()]);
            let [p0, p1, p2, p3] = [&mut *p0, &mut *p1, &mut *p2, &mut *p3].map(|row| &mut row[at.clone()]);
            if let Some([m0, m1, m2, m3]) = &mut m {
                let [m0, m1, m2, m3] = [m0, m1, m2, m3].map(|row| &mut row[at.clone()]);
                rule::updates_of_stretches(step, p0, p1, p2, p3, g, rows, columns, m0, m1, m2, m3);
            } else {
                rule::updates_of_stretches_plain(step, p0, p1, p2, p3, g, rows, columns);
            }
        }
    }
}

/// The rows of a span.
fn side_by_side(span: &[f32]) -> [&[f32]; SIDE_BY_SIDE] {
    array::from_fn(|k| &span[k * ROW..(k + 1) * ROW])
}

/// The rows of a span.
fn side_by_side_mut(span: &mut [f32]) -> [&mut [f32]; SIDE_BY_SIDE] {
    let mut rows = span.chunks_exact_mut(ROW);
    array::from_fn(|_| rows.next().unwrap_or_default())
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
    let mut factors = Factors::new(form, piece);
    advance(&mut factors, form, record, shape, gradient, piece, space);
}

/// Completes the scalars from the sums over a tensor of so many elements.
pub(crate) fn finish(scalars: &mut StepScalars, sums: Sums, len: usize) {
    let step: &mut Step = bytemuck::from_bytes_mut(bytemuck::cast_slice_mut(scalars.words_mut()));
    rule::finish(step, [sums[0], sums[1]], count(len));
}

/// The second moments and, close behind them, the norms: gives the sums over the piece.
fn advance(
    factors: &mut Factors<'_>,
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
    let (Blocks { p, columns: running, .. }, Desk { g, u, small }) = space.desk();
    let (mut reader, mut reached) = (Reader { view, shape, p, g, desk: small }, 0);
    for (slice, sums) in slices.iter_mut().enumerate() {
        reduce::sum_slice::<SIDE_BY_SIDE>(slice, len, 2, sums, running, |range, [first, second, _]| {
            while reached < range.end {
                reached = factors.advance(step, reached, len, &mut reader);
            }
            factors.add_norms(range, &mut reader, u, [first, second]);
        });
    }
    reduce::total(slices)
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
    let mut factors = Factors::new(form, piece);
    let mut scalars = record.scalars;
    if piece.len == form.len {
        let sums = advance(&mut factors, form, record, shape, gradient, piece, space);
        finish(&mut scalars, sums, form.len);
    }
    let step: &Step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
    walk::update(form, record, shape, gradient, piece, space, |start, p, g, _, slots| {
        let Opened::F32([.., m]) = slots else { return };
        let mut u = [0.0; SPAN];
        for (nth, (p, g)) in p.chunks_mut(SPAN).zip(g.chunks(SPAN)).enumerate().rev() {
            let first = nth * SPAN;
            let m = if m.is_empty() { &mut [] } else { &mut m[first..first + p.len()] };
            factors.update(step, start + first, p, g, m, &mut u);
        }
    });
}
