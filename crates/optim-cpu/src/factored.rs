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

use half::f16;
use optim_core::backend::{Plan, Record, Shaping, Update};
use optim_core::compressed;
use optim_core::rule::Slot;
use optim_core::rules::ada_factor::Step;
use optim_core::{DType, Engine, Grad, ParamMut, Result};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::check_host;
use crate::drive::SERIAL;
use crate::reduce::{self, LANES, ROW, SLICE, Sums};
use crate::rules::ada_factor as rule;
use crate::shape;

/// Rows whose columns are summed one after the other before they join the others.
const BLOCK_ROWS: usize = 64;

/// A slot of one tensor.
#[derive(Debug)]
enum State {
    F32(Vec<f32>),
    /// Second moments only: rounded whenever they change.
    F16(Vec<f16>),
}

impl State {
    fn new(slot: &Slot, len: usize) -> Self {
        match slot.dtype {
            DType::F16 => {
                let mut first = [f16::ZERO];
                compressed::encode(&[slot.init], &mut first);
                Self::F16(vec![first[0]; len])
            }
            DType::F32 | DType::Bf16 => Self::F32(vec![slot.init; len]),
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

/// One tensor's state and what its update needs beside it.
#[derive(Debug)]
struct Tensor {
    name: String,
    /// Columns of a matrix; 0 for a tensor of fewer than two axes.
    columns: usize,
    /// Rows of one matrix of the stack.
    rows: usize,
    /// The slots, in the rule's order; without `β₁` the last is missing.
    slots: Vec<State>,
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
                slots: slots.iter().map(|slot| State::new(slot, slot.shape.len(shape))).collect(),
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
        Ok(match &self.tensors[parameter].slots[slot] {
            State::F32(stored) => stored.clone(),
            State::F16(stored) => {
                let mut values = vec![0.0; stored.len()];
                compressed::decode(stored, &mut values);
                values
            }
        })
    }

    fn write_slot(&mut self, parameter: usize, slot: usize, values: &[f32]) -> Result<()> {
        match &mut self.tensors[parameter].slots[slot] {
            State::F32(stored) => stored.copy_from_slice(values),
            State::F16(stored) => compressed::encode(values, stored),
        }
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
        let m = match rest.first_mut() {
            Some(State::F32(m)) => &mut m[..],
            _ => &mut [],
        };

        // The second moments.
        let matrix = self.rows * self.columns;
        let roots = &mut self.roots;
        roots.clear();
        if self.columns == 0 {
            each_block(shaping, p, g, 0..p.len(), |start, _, g| {
                vector_moments.change(start..start + g.len(), |moments| rule::moments(step, g, moments));
            });
        } else {
            let mut buffer = [0.0; ROW];
            for nth in 0..p.len() / matrix {
                // Rows and columns are counted through the whole stack.
                let (first_row, first_column) = (nth * self.rows, nth * self.columns);
                let [block, total] = &mut self.sums;
                total.fill(0.0);
                for rows in (first_row..first_row + self.rows).step_by(BLOCK_ROWS) {
                    let rows = rows..(first_row + self.rows).min(rows + BLOCK_ROWS);
                    block.fill(0.0);
                    row_moments.change(rows.clone(), |moments| {
                        for (row, moment) in rows.clone().zip(moments) {
                            let start = row * self.columns;
                            let mut lanes = [0.0; LANES];
                            each_block(shaping, p, g, start..start + self.columns, |at, _, g| {
                                rule::add_squares(step, g, &mut lanes, &mut block[at - start..at - start + g.len()]);
                            });
                            let sum = reduce::tree(&mut lanes, self.columns.min(LANES));
                            rule::moment(step, moment, sum / count(self.columns));
                        }
                    });
                    roots.extend(row_moments.read(rows, &mut buffer));
                    total.iter_mut().zip(&*block).for_each(|(total, block)| *total += block);
                }
                for (start, sums) in (first_column..).step_by(ROW).zip(total.chunks(ROW)) {
                    column_moments.change(start..start + sums.len(), |moments| {
                        for (moment, sum) in moments.iter_mut().zip(sums) {
                            rule::moment(step, moment, sum / count(self.rows));
                        }
                    });
                }
                let rows = &mut roots[first_row..];
                let mean = reduce::strided(rows) / count(self.rows);
                rows.iter_mut().for_each(|row| *row = (*row / mean).sqrt());
            }
        }

        // u for a stretch that lies in one row, in place of g.
        let columns = self.columns;
        let mut buffer = [0.0; ROW];
        let mut directions = |start: usize, g: &mut [f32]| {
            if columns == 0 {
                rule::directions_vector(g, vector_moments.read(start..start + g.len(), &mut buffer));
                return;
            }
            let (mut at, mut rest) = (start, g);
            while !rest.is_empty() {
                let (row, column) = (at / columns, at % columns);
                let (stretch, after) = rest.split_at_mut(rest.len().min(columns - column));
                let first = at / matrix * columns + column;
                let moments = column_moments.read(first..first + stretch.len(), &mut buffer);
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
