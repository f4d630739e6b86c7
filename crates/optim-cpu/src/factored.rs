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

use std::ops::Range;
use std::sync::Arc;

use optim_core::backend::{Plan, Record, Shaping, Update};
use optim_core::rules::ada_factor::Step;
use optim_core::{Engine, Grad, ParamMut, Result};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::check_host;
use crate::drive::SERIAL;
use crate::reduce::{self, LANES, ROW, SLICE, Sums};
use crate::rules::ada_factor as rule;
use crate::shape;

/// Rows whose columns are summed one after the other before they join the others.
const BLOCK_ROWS: usize = 64;

/// One tensor's state and what its update needs beside it.
#[derive(Debug)]
struct Tensor {
    name: String,
    /// Columns of a matrix; 0 for a tensor of fewer than two axes.
    columns: usize,
    /// Rows of one matrix of the stack.
    rows: usize,
    /// The slots, in the rule's order; without `β₁` the last is missing.
    slots: Vec<Vec<f32>>,
    /// Sums over the columns of one block of rows, and of one matrix.
    sums: [Vec<f32>; 2],
    /// `√(R / mean of R)` of every row.
    roots: Vec<f32>,
    /// Sums over the slices.
    slices: Vec<Sums>,
}

#[derive(Debug)]
pub(crate) struct FactoredEngine {
    tensors: Vec<Tensor>,
    /// Whether the work is worth sharing among threads.
    shared: bool,
    pool: Option<Arc<ThreadPool>>,
}

impl FactoredEngine {
    pub(crate) fn new(plan: &Plan<'_>, pool: Option<Arc<ThreadPool>>) -> Self {
        let slots = plan.rule.spec().slots();
        let tensors = plan.parameters.iter().map(|parameter| {
            let shape = parameter.shape();
            let (rows, columns) = if let [.., rows, columns] = *shape { (rows, columns) } else { (0, 0) };
            Tensor {
                name: parameter.name().to_owned(),
                columns,
                rows,
                slots: slots.iter().map(|slot| vec![slot.init; slot.shape.len(shape)]).collect(),
                sums: [vec![0.0; columns], vec![0.0; columns]],
                roots: Vec::new(),
                slices: vec![Sums::default(); reduce::slices(parameter.len())],
            }
        });
        let total: usize = plan.parameters.iter().map(|parameter| parameter.len()).sum();
        Self { tensors: tensors.collect(), shared: total >= SERIAL, pool }
    }
}

impl Engine for FactoredEngine {
    fn update(&mut self, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<()> {
        check_host(self.tensors.iter().map(|tensor| &*tensor.name), params, grads)?;
        let tensors = &mut self.tensors;
        let work = |(((tensor, param), grad), &record): (((&mut Tensor, &mut ParamMut<'_>), &Grad<'_>), &u32)| {
            if let (ParamMut::F32(p), Grad::F32(g)) = (param, grad) {
                tensor.update(&update.records[record as usize], p, g);
            }
        };
        if !self.shared {
            tensors.iter_mut().zip(params).zip(grads).zip(update.record_of).for_each(work);
            return Ok(());
        }
        let run = move || tensors.par_iter_mut().zip(params).zip(grads).zip(update.record_of).for_each(work);
        match &self.pool {
            Some(pool) => pool.install(run),
            None => run(),
        }
        Ok(())
    }

    fn read_slot(&self, parameter: usize, slot: usize) -> Result<Vec<f32>> {
        Ok(self.tensors[parameter].slots[slot].clone())
    }

    fn write_slot(&mut self, parameter: usize, slot: usize, values: &[f32]) -> Result<()> {
        self.tensors[parameter].slots[slot].copy_from_slice(values);
        Ok(())
    }
}

impl Tensor {
    fn update(&mut self, record: &Record, p: &mut [f32], g: &[f32]) {
        if p.is_empty() {
            return;
        }
        let mut scalars = record.scalars;
        let step: &mut Step = bytemuck::from_bytes_mut(bytemuck::cast_slice_mut(scalars.words_mut()));
        let shaping = &record.shaping;
        let [row_moments, column_moments, vector_moments, rest @ ..] = &mut *self.slots else { return };
        let m = rest.first_mut().map_or(&mut [][..], |m| m);

        // The second moments.
        let matrix = self.rows * self.columns;
        let roots = &mut self.roots;
        roots.clear();
        if self.columns == 0 {
            each_block(shaping, p, g, 0..p.len(), |start, _, g| {
                rule::moments(step, g, &mut vector_moments[start..start + g.len()]);
            });
        } else {
            let stack = row_moments.chunks_mut(self.rows).zip(column_moments.chunks_mut(self.columns));
            for (nth, (row_moments, column_moments)) in stack.enumerate() {
                let first = nth * matrix;
                let [block, total] = &mut self.sums;
                total.fill(0.0);
                for (rows, moments) in (0..).step_by(BLOCK_ROWS).zip(row_moments.chunks_mut(BLOCK_ROWS)) {
                    block.fill(0.0);
                    for (row, moment) in (rows..).zip(moments) {
                        let start = first + row * self.columns;
                        let mut lanes = [0.0; LANES];
                        each_block(shaping, p, g, start..start + self.columns, |at, _, g| {
                            rule::add_squares(step, g, &mut lanes, &mut block[at - start..at - start + g.len()]);
                        });
                        let sum = reduce::tree(&mut lanes, self.columns.min(LANES));
                        rule::moment(step, moment, sum / count(self.columns));
                    }
                    total.iter_mut().zip(&*block).for_each(|(total, block)| *total += block);
                }
                for (moment, sum) in column_moments.iter_mut().zip(&*total) {
                    rule::moment(step, moment, sum / count(self.rows));
                }
                let mean = reduce::strided(row_moments) / count(self.rows);
                roots.extend(row_moments.iter().map(|row| (row / mean).sqrt()));
            }
        }

        // u for a stretch that lies in one row, in place of g.
        let columns = self.columns;
        let directions = |start: usize, g: &mut [f32]| {
            if columns == 0 {
                rule::directions_vector(g, &vector_moments[start..start + g.len()]);
                return;
            }
            let (mut at, mut rest) = (start, g);
            while !rest.is_empty() {
                let (row, column) = (at / columns, at % columns);
                let (stretch, after) = rest.split_at_mut(rest.len().min(columns - column));
                let moments = &column_moments[at / matrix * columns + column..][..stretch.len()];
                rule::directions(stretch, roots[row], moments);
                at += stretch.len();
                rest = after;
            }
        };

        // The norms.
        for (nth, sums) in self.slices.iter_mut().enumerate() {
            let range = nth * SLICE..p.len().min((nth + 1) * SLICE);
            let used = ROW.min(range.len());
            let mut sums_of_columns = [[0.0; ROW]; 3];
            each_block(shaping, p, g, range, |start, p, u| {
                directions(start, u);
                let [first, second, _] = &mut sums_of_columns;
                for (((&p, &u), first), second) in p.iter().zip(&*u).zip(first).zip(second) {
                    *first += p * p;
                    *second += u * u;
                }
            });
            *sums = reduce::fold(&sums_of_columns, used);
        }
        let sums = reduce::total(&self.slices);
        rule::finish(step, [sums[0], sums[1]], count(p.len()));

        // The update.
        let (step, m) = (&*step, &mut *m);
        for start in (0..p.len()).step_by(ROW) {
            let range = start..p.len().min(start + ROW);
            let mut row = [0.0; ROW];
            let u = &mut row[..range.len()];
            u.copy_from_slice(&g[range.clone()]);
            shape::shape(shaping, u, &p[range.clone()]);
            directions(start, u);
            rule::updates(step, &mut p[range.clone()], u, m.get_mut(range).unwrap_or_default());
        }
    }
}

/// Walks over a range in rows of [`ROW`]: `work(first element, p, shaped g)`.
fn each_block(
    shaping: &Shaping,
    p: &[f32],
    g: &[f32],
    range: Range<usize>,
    mut work: impl FnMut(usize, &[f32], &mut [f32]),
) {
    let mut row = [0.0; ROW];
    for start in range.clone().step_by(ROW) {
        let range = start..range.end.min(start + ROW);
        let row = &mut row[..range.len()];
        row.copy_from_slice(&g[range.clone()]);
        shape::shape(shaping, row, &p[range.clone()]);
        work(start, &p[range], row);
    }
}

/// A number of elements as a divisor.
#[allow(clippy::cast_precision_loss, reason = "the GPU rounds it alike")]
fn count(elements: usize) -> f32 {
    elements as f32
}
