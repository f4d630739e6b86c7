//! What the guard measures of a gradient: the squares of its elements, and whether one is not finite.

use multiversion::multiversion;
use optim_core::format::magnitude;
use optim_core::guard::{INFINITE, Measured};

use crate::arch::{SPAN, fetch_span};
use crate::reduce::{self, ROW, Sums};
use crate::shape::Shape;
use crate::walk::{Blocks, Gradient, Space};

/// Measures the slices of a stretch of a dense gradient that is multiplied with `factor`. The second sum is not 0 if an
/// element is not finite.
pub(crate) fn measure(gradient: &Gradient<'_>, factor: f32, len: usize, sums: &mut [Sums], space: &mut Space) {
    let (mut largest, shape) = (0, Shape::NONE);
    let Blocks { g: block, columns, .. } = space.blocks();
    reduce::summed(len, 1, sums, columns, |row, [columns, ..]| {
        let g = match gradient.as_it_is(&shape, &row) {
            Some(g) => g,
            None => gradient.shaped(&shape, 0, &row, &[], block),
        };
        match g.try_into() {
            Ok(row) => add_row(factor, row, columns, &mut largest),
            Err(_) => add(factor, g, columns, &mut largest),
        }
    });
    if let (Some(sums), true) = (sums.first_mut(), largest >= INFINITE) {
        sums[1] = 1.0;
    }
}

/// What was measured of a parameter, from the sums of its slices.
pub(crate) fn total(slices: &[Sums]) -> Measured {
    let [squares, bad, ..] = reduce::total(slices);
    Measured { squares, bad: u32::from(bad > 0.0) }
}

/// Adds the squares of a row, and finds the largest magnitude of an element, as bits. Fetches the row that comes next.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn add_row(factor: f32, g: &[f32; ROW], columns: &mut [f32; ROW], largest: &mut u32) {
    let mut most = *largest;
    for span in (0..ROW).step_by(SPAN) {
        fetch_span(g, ROW + span);
        for i in span..span + SPAN {
            let bits = magnitude(g[i]);
            most = if bits > most { bits } else { most };
            let x = factor * g[i];
            columns[i] += x * x;
        }
    }
    *largest = most;
}

/// As [`add_row`], of a part of a row.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn add(factor: f32, g: &[f32], columns: &mut [f32; ROW], largest: &mut u32) {
    let mut most = *largest;
    for (&g, column) in g.iter().zip(columns) {
        let bits = magnitude(g);
        most = if bits > most { bits } else { most };
        // The square of a factor of 1 times a number is the number's.
        let x = factor * g;
        *column += x * x;
    }
    *largest = most;
}
