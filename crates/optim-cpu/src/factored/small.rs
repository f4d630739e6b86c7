//! Stacks of small matrices, as those of convolutions: loops over all rows, columns and elements of many matrices take the place of
//! loops over those of one.

use multiversion::multiversion;

use crate::reduce::count;
use crate::rules::ada_factor as rule;

/// The most rows and columns of a small matrix.
const MOST: usize = 8;

/// The most elements that are worked on at a time: so few that what one loop fetches for the next time arrives while the others work.
pub(super) const BLOCK: usize = 512;

/// What a task works with: numbers of each element, and of rows or columns.
pub(crate) struct Desk {
    pub(super) each: [[f32; BLOCK]; 2],
    pub(super) lines: [[f32; BLOCK]; 3],
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self { each: [[0.0; BLOCK]; 2], lines: [[0.0; BLOCK]; 3] }
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

    /// The elements of the matrices that are worked on at a time.
    pub(super) fn block(self) -> usize {
        BLOCK - BLOCK % (self.rows * self.columns)
    }

    /// The sum of each row.
    pub(super) fn row_sums(self, squares: &[f32], sums: &mut [f32]) {
        run_sums(self.columns, squares, sums);
    }

    /// The sum of each column; `from_here` is as long as the squares.
    pub(super) fn column_sums(self, squares: &[f32], from_here: &mut [f32], sums: &mut [f32]) {
        column_sums(self.rows, self.columns, squares, from_here, sums);
    }

    /// The factors of rows with these moments, for each element. The means are of each matrix, and for each row.
    pub(super) fn row_factors(
        self,
        moments: &[f32],
        means: &mut [f32],
        spread: &mut [f32],
        factors: &mut [f32],
        by_row: &mut [f32],
    ) {
        let means = &mut means[..moments.len() / self.rows];
        run_sums(self.rows, moments, means);
        rule::into_root_means(1.0 / count(self.rows), means);
        repeat(self.rows, means, spread);
        rule::row_factors(spread, moments, factors);
        repeat(self.columns, factors, by_row);
    }

    /// The factors of columns with these moments, whose place they take, for each element.
    pub(super) fn column_factors(self, moments: &mut [f32], by_column: &mut [f32]) {
        rule::into_column_factors(moments);
        repeat_runs(self.rows, self.columns, moments, by_column);
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

/// The sum of every run of so many numbers, as of the lanes of [`tree`](crate::reduce::tree).
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn run_sums(length: usize, numbers: &[f32], sums: &mut [f32]) {
    of_length!(length, sums_of(numbers, sums));
}

#[inline(always)]
fn sums_of<const N: usize>(numbers: &[f32], sums: &mut [f32]) {
    for (run, sum) in numbers.as_chunks::<N>().0.iter().zip(sums) {
        let mut lanes = [0.0; MOST];
        lanes[..N].copy_from_slice(run);
        let [a, b, c, d, e, f, g, h] = lanes;
        *sum = ((a + e) + (c + g)) + ((b + f) + (d + h));
    }
}

/// The sum of each column, the rows in order.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn column_sums(rows: usize, columns: usize, numbers: &[f32], from_here: &mut [f32], sums: &mut [f32]) {
    // Each number becomes the sum of those in its column from it on: right in the first row of each matrix, which alone is used.
    from_here.copy_from_slice(numbers);
    for row in 1..rows {
        from_here.iter_mut().zip(&numbers[row * columns..]).for_each(|(sum, number)| *sum += number);
    }
    of_length!(columns, first_rows(rows, from_here, sums));
}

#[inline(always)]
fn first_rows<const N: usize>(rows: usize, numbers: &[f32], firsts: &mut [f32]) {
    for (matrix, first) in numbers.chunks_exact(rows * N).zip(firsts.as_chunks_mut::<N>().0) {
        first.copy_from_slice(&matrix[..N]);
    }
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

/// Each run of so many numbers so many times.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn repeat_runs(times: usize, length: usize, numbers: &[f32], into: &mut [f32]) {
    if times == length {
        of_length!(length, repeated_in_squares(numbers, into));
    } else {
        of_length!(length, repeated_runs(times, numbers, into));
    }
}

/// Most kernels are square: then all lengths are known.
#[inline(always)]
fn repeated_in_squares<const N: usize>(numbers: &[f32], into: &mut [f32]) {
    let matrices = into.as_chunks_mut::<N>().0.as_chunks_mut::<N>().0;
    for (run, matrix) in numbers.as_chunks::<N>().0.iter().zip(matrices) {
        *matrix = [*run; N];
    }
}

#[inline(always)]
fn repeated_runs<const N: usize>(times: usize, numbers: &[f32], into: &mut [f32]) {
    let runs = numbers.as_chunks::<N>().0;
    for (run, matrix) in runs.iter().zip(into.as_chunks_mut::<N>().0.chunks_exact_mut(times)) {
        matrix.fill(*run);
    }
}
