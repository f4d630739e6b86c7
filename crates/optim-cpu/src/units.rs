//! What is made of each row of a gradient before its update: the factor of adaptive clipping and the mean.
//!
//! ```text
//! S = Σ g,  Q = Σ g²,  P₂ = Σ p²,  P = Σ p        g: unscaled and limited; each sum only where it is needed
//! a = λ · max(√P₂, ε) / √Q  where that is less than 1, else 1
//! mean = (a · S + weight_decay · P) / width
//! ```
//!
//! Lane l of 256 adds the columns l, l + 256, …; then a tree over the lanes.

use std::ops::Range;

use multiversion::multiversion;
use optim_core::backend::{Record, Shaping};

use crate::reduce::{LANES, count, tree};
use crate::shape::Shape;
use crate::walk::{Blocks, View, each_block};

/// What is done with one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Row {
    /// `a`.
    pub(crate) factor: f32,
    /// What is subtracted.
    pub(crate) mean: f32,
}

/// Measures the row that these elements are.
pub(crate) fn measure(view: &View<'_>, record: &Record, row: Range<usize>, blocks: &mut Blocks) -> Row {
    let (shape, stages) = (Shape::before_rows(record), &record.stages);
    let Shaping { weight_decay, flags, .. } = record.shaping;
    let clips = stages.units > 0.0;
    let decays = flags & Shaping::CENTRALIZE != 0 && weight_decay != 0.0;
    let mut lanes = [[0.0; LANES]; 4];
    let width = row.len();
    each_block(row, |range| {
        let (p, g) = view.read(&shape, range, &mut blocks.p, &mut blocks.g);
        let [g_sum, g_squares, p_squares, p_sum] = &mut lanes;
        add(g, g_sum);
        if clips {
            add_squares(g, g_squares);
            add_squares(p, p_squares);
        }
        if decays {
            add(p, p_sum);
        }
    });
    let [g_sum, g_squares, p_squares, p_sum] = lanes.each_mut().map(|lanes| tree(lanes, width.min(LANES)));
    let mut factor = 1.0;
    if clips {
        let g_norm = g_squares.sqrt();
        let mut p_norm = p_squares.sqrt();
        if p_norm < stages.units_epsilon {
            p_norm = stages.units_epsilon;
        }
        let most = stages.units * p_norm;
        if g_norm > most {
            factor = most / g_norm;
        }
    }
    let mut sum = factor * g_sum;
    if decays {
        sum += weight_decay * p_sum;
    }
    Row { factor, mean: sum / count(width) }
}

/// Adds numbers to the lanes.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn add(numbers: &[f32], lanes: &mut [f32; LANES]) {
    for numbers in numbers.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(numbers) {
            *lane += x;
        }
    }
}

/// Adds the squares of numbers to the lanes.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn add_squares(numbers: &[f32], lanes: &mut [f32; LANES]) {
    for numbers in numbers.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(numbers) {
            *lane += x * x;
        }
    }
}
