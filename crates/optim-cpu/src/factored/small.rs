//! Stacks of small matrices, as those of convolutions: loops over many matrices take the place of loops over the rows and columns of
//! one. To that end elements are dealt out to planes, one for each column, and collected again.

use std::array;

use multiversion::multiversion;
use optim_core::rules::ada_factor::Step;

use crate::arch::{SPAN, fetch_span, fetch_span_once};
use crate::reduce::count;
use crate::rules::ada_factor::{self as rule, AHEAD, Moment};

/// The most rows and columns of a small matrix.
const MOST: usize = 8;

/// The most elements that are worked on at a time: so few that what one loop fetches for the next time arrives while the others work.
pub(super) const BLOCK: usize = 576;

/// The most rows of them: matrices of one column are worked on in half a block.
const ROWS: usize = BLOCK / 2;

/// Elements of a cache line. Loops over lines that begin elsewhere take half as long again.
const LINE: usize = 16;

/// A number of each row for each column. With a span more than there are rows the compiler sees that no loop reaches the end.
type Planes = [[f32; ROWS + SPAN]; MOST];

/// What a task works with: planes, and numbers of each row or column.
#[repr(align(64))]
pub(crate) struct Desk {
    planes: [Planes; 3],
    lines: [[f32; BLOCK]; 3],
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self { planes: [[[0.0; ROWS + SPAN]; MOST]; 3], lines: [[0.0; BLOCK]; 3] }
    }
}

/// The rows and columns of each matrix of a stack.
#[derive(Debug, Clone, Copy)]
pub(super) struct Small {
    rows: usize,
    columns: usize,
}

impl Small {
    /// If such matrices are small.
    pub(super) fn new(rows: usize, columns: usize) -> Option<Self> {
        let small = (1..=MOST).contains(&rows) && (1..=MOST).contains(&columns);
        small.then_some(Self { rows, columns })
    }

    /// The elements of the matrices that are worked on at a time: whole cache lines, if a block has room for as many matrices.
    pub(super) fn block(self) -> usize {
        let matrix = self.rows * self.columns;
        let lines = matrix * (LINE >> matrix.trailing_zeros().min(LINE.ilog2()));
        let most = if self.columns == 1 { ROWS } else { BLOCK };
        most - most % if lines > most { matrix } else { lines }
    }

    /// Updates the moments of the matrices with this gradient, and makes their `u`.
    pub(super) fn advance<T: Moment>(
        self,
        step: &Step,
        g: &[f32],
        row_moments: &mut [T],
        column_moments: &mut [T],
        u: &mut [f32],
        desk: &mut Desk,
    ) {
        let Self { rows, columns } = self;
        let Desk { planes: [gradients, of_matrices, of_rows], lines: [sums, moments, factors] } = desk;
        let (row_count, column_count) = (row_moments.len(), column_moments.len());
        let matrices = column_count / columns;
        let (share_of_row, share_of_column) = (1.0 / count(columns), 1.0 / count(rows));
        deal(columns, g, gradients, true);

        let (column_sums, column_factors) = (&mut sums[..column_count], &mut moments[..column_count]);
        for (g, sums) in gradients.iter().zip(&mut *of_matrices).take(columns) {
            sums_along(step, rows, &g[..row_count], &mut sums[..matrices]);
        }
        collect(columns, of_matrices, column_sums);
        rule::moments(step, column_sums, share_of_column, column_moments, column_factors);
        rule::into_column_factors(column_factors);
        deal(columns, column_factors, of_matrices, false);
        for (factors, repeated) in of_matrices.iter().zip(&mut *of_rows).take(columns) {
            repeat(rows, &factors[..matrices], &mut repeated[..row_count]);
        }

        let (row_sums, row_moments_now) = (&mut sums[..row_count], &mut moments[..row_count]);
        sums_across(step, columns, gradients, row_sums);
        rule::moments(step, row_sums, share_of_row, row_moments, row_moments_now);
        let (means, repeated, factors) = (&mut of_matrices[0][..matrices], row_sums, &mut factors[..row_count]);
        run_sums(rows, row_moments_now, means);
        rule::into_root_means(1.0 / count(rows), means);
        repeat(rows, means, repeated);
        rule::row_factors(repeated, row_moments_now, factors);

        directions(columns, gradients, factors, of_rows, u);
    }
}

/// Calls the function for runs of a length that is known when it is compiled.
macro_rules! of_length {
    ($length:expr, $function:ident($($argument:expr),*)) => {
        match $length {
            1 => $function::<1>($($argument),*),
            2 => $function::<2>($($argument),*),
            3 => $function::<3>($($argument),*),
            4 => $function::<4>($($argument),*),
            5 => $function::<5>($($argument),*),
            6 => $function::<6>($($argument),*),
            7 => $function::<7>($($argument),*),
            _ => $function::<MOST>($($argument),*),
        }
    };
}

/// Deals out numbers to so many planes, one to each in turn; with `fetches`, begins to fetch those that come some time after them.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn deal(count: usize, numbers: &[f32], planes: &mut Planes, fetches: bool) {
    of_length!(count, dealt(numbers, planes, fetches));
}

#[inline(always)]
fn dealt<const N: usize>(numbers: &[f32], planes: &mut Planes, fetches: bool) {
    for (span, rows) in numbers.as_chunks::<N>().0.chunks(SPAN).enumerate() {
        if fetches {
            (0..N).for_each(|line| fetch_span_once(numbers, (span * N + line) * SPAN + AHEAD));
        }
        for (nth, row) in (span * SPAN..ROWS).zip(rows) {
            for column in 0..N {
                planes[column][nth] = row[column];
            }
        }
    }
}

/// Collects numbers from so many planes, one from each in turn.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn collect(count: usize, planes: &Planes, numbers: &mut [f32]) {
    of_length!(count, collected(planes, numbers));
}

#[inline(always)]
fn collected<const N: usize>(planes: &Planes, numbers: &mut [f32]) {
    for (nth, row) in (0..ROWS).zip(numbers.as_chunks_mut::<N>().0) {
        for column in 0..N {
            row[column] = planes[column][nth];
        }
    }
}

/// The sum of the squares of every run of so many numbers, in order.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn sums_along(s: &Step, length: usize, g: &[f32], sums: &mut [f32]) {
    of_length!(length, along(s, g, sums));
}

#[inline(always)]
fn along<const N: usize>(s: &Step, g: &[f32], sums: &mut [f32]) {
    let s = *s;
    for (run, sum) in g.as_chunks::<N>().0.iter().zip(sums) {
        let mut total = rule::square(&s, run[0]);
        for &g in &run[1..] {
            total += rule::square(&s, g);
        }
        *sum = total;
    }
}

/// The sum of the squares across so many planes, as of the lanes of [`tree`](crate::reduce::tree).
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn sums_across(s: &Step, count: usize, planes: &Planes, sums: &mut [f32]) {
    of_length!(count, across(s, planes, sums));
}

#[inline(always)]
fn across<const N: usize>(s: &Step, planes: &Planes, sums: &mut [f32]) {
    let s = *s;
    for (nth, sum) in (0..ROWS).zip(sums) {
        *sum = sum_of(array::from_fn::<_, N, _>(|column| rule::square(&s, planes[column][nth])));
    }
}

/// The sum of every run of so many numbers, as of the lanes of [`tree`](crate::reduce::tree).
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn run_sums(length: usize, numbers: &[f32], sums: &mut [f32]) {
    of_length!(length, sums_of(numbers, sums));
}

#[inline(always)]
fn sums_of<const N: usize>(numbers: &[f32], sums: &mut [f32]) {
    for (run, sum) in numbers.as_chunks::<N>().0.iter().zip(sums) {
        *sum = sum_of(*run);
    }
}

#[inline(always)]
fn sum_of<const N: usize>(run: [f32; N]) -> f32 {
    let mut lanes = [0.0; MOST];
    lanes[..N].copy_from_slice(&run);
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Each number so many times.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn repeat(times: usize, numbers: &[f32], into: &mut [f32]) {
    of_length!(times, repeated(numbers, into));
}

#[inline(always)]
fn repeated<const N: usize>(numbers: &[f32], into: &mut [f32]) {
    for (&x, into) in numbers.iter().zip(into.as_chunks_mut::<N>().0) {
        *into = [x; N];
    }
}

/// `u` of rows of so many columns, from planes of gradients and of factors.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn directions(count: usize, g: &Planes, rows: &[f32], columns: &Planes, u: &mut [f32]) {
    of_length!(count, directions_of(g, rows, columns, u));
}

#[inline(always)]
fn directions_of<const N: usize>(g: &Planes, rows: &[f32], columns: &Planes, u: &mut [f32]) {
    let count = ROWS.min(u.len() / N);
    for start in (0..count).step_by(SPAN) {
        // What is written has to be in the cache, too.
        (0..N).for_each(|line| fetch_span(u, start * N + line * SPAN + AHEAD));
        let len = SPAN.min(count - start);
        let (u, rows) = (&mut u.as_chunks_mut::<N>().0[start..][..len], &rows[start..][..len]);
        for nth in 0..len {
            for column in 0..N {
                u[nth][column] = rule::direction(g[column][start + nth], rows[nth], columns[column][start + nth]);
            }
        }
    }
}
