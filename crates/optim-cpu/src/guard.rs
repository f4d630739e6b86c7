//! What the guard measures of a gradient: the squares of its elements, and whether one is not finite.

use std::ops::Range;

use multiversion::multiversion;
use optim_core::guard::Measured;

use crate::arch::{SPAN, fetch_span};
use crate::reduce::{self, ROW, Sums, sum_of_row};
use crate::shape::Shape;
use crate::walk::{BLOCK, Blocks, Gradient, Space};

/// Measures the slices of a stretch of a dense gradient that is multiplied with `factor`. The second sum of the first slice is not
/// 0 if an element of the stretch is not finite.
pub(crate) fn measure(gradient: &Gradient<'_>, factor: f32, len: usize, sums: &mut [Sums], space: &mut Space) {
    if let (Some(g), [sums]) = (gradient.as_it_is(&Shape::NONE, &(0..len)), &mut *sums)
        && len <= ROW
    {
        // Most parameters of a long list are small.
        let squares = squares(factor, g);
        let is_bad = !squares.is_finite() && g.iter().any(|g| !g.is_finite());
        *sums = [squares, if is_bad { 1.0 } else { 0.0 }];
        return;
    }
    let Blocks { g: block, columns, .. } = space.blocks();
    reduce::summed(len, 1, sums, columns, |row, [columns, _]| {
        let g = read(gradient, row, block);
        match g.try_into() {
            Ok(row) => add_row(factor, row, columns),
            Err(_) => add(factor, g, columns),
        }
    });
    // What is not finite makes its square and every sum of that so. Squares of large numbers do it, too: only then is it looked for.
    if sums.iter().any(|[squares, _]| !squares.is_finite()) {
        let is_bad = |start: usize| read(gradient, start..len.min(start + ROW), block).iter().any(|g| !g.is_finite());
        if (0..len).step_by(ROW).any(is_bad) {
            sums[0][1] = 1.0;
        }
    }
}

/// A row of the gradient as it is.
fn read<'b>(gradient: &Gradient<'b>, row: Range<usize>, block: &'b mut [f32; BLOCK]) -> &'b [f32] {
    match gradient.as_it_is(&Shape::NONE, &row) {
        Some(g) => g,
        None => gradient.shaped(&Shape::NONE, 0, &row, &[], block),
    }
}

/// What was measured of a parameter, from the sums of its slices.
pub(crate) fn total(slices: &[Sums]) -> Measured {
    let [squares, bad] = reduce::total(slices);
    Measured { squares, bad: u32::from(bad > 0.0) }
}

/// The sum of the squares of at most a row.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn squares(factor: f32, g: &[f32]) -> f32 {
    sum_of_row(g, |g| {
        let x = factor * g;
        x * x
    })
}

/// Adds the squares of a row. Fetches the row that comes next.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn add_row(factor: f32, g: &[f32; ROW], columns: &mut [f32; ROW]) {
    for span in (0..ROW).step_by(SPAN) {
        fetch_span(g, ROW + span);
        for i in span..span + SPAN {
            let x = factor * g[i];
            columns[i] += x * x;
        }
    }
}

/// As [`add_row`], of a part of a row.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn add(factor: f32, g: &[f32], columns: &mut [f32; ROW]) {
    for (&g, column) in g.iter().zip(columns) {
        let x = factor * g;
        *column += x * x;
    }
}
