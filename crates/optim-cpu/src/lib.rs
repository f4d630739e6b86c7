//! The CPU backend: update kernels over the caller's slices, one rayon fork-join a step, vectorized by the compiler.
//!
//! Results are bit-identical for any number of threads and any instruction set: kernels use `+ − × ÷ √` only, each correctly
//! rounded by IEEE 754, and no fused multiply-add.
//!
//! # Crate layout
//!
//! | module | holds |
//! | --- | --- |
//! | `rules` | one kernel a rule, the twin of the WGSL file of the same name |
//! | `kernel` | how a kernel becomes a loop over slices, compiled for several instruction sets |
//! | `math` | functions that rules need and no processor has |
//! | `shape` | what happens to a gradient before the rule sees it |
//! | `reduce` | sums over a parameter, in one fixed order |
//! | `rows` | row-sparse gradients |
//! | `drive` | the only rayon: the step's memory, cut into equal tasks |
//! | `arena` | the slots |
//! | `factored` | the engine of rules that keep second moments by row and column |
#![forbid(unsafe_code)]

mod arena;
mod drive;
mod factored;
mod kernel;
mod math;
mod reduce;
mod rows;
mod rules;
mod shape;

use std::ops::Range;
use std::sync::Arc;

use optim_core::backend::{Plan, Record, Update, wrong_memory};
use optim_core::rule::{Passes, Sparse};
use optim_core::{Backend, Engine, Error, Grad, ParamMut, Result, Values};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::arena::Arena;
use crate::drive::{Cut, Layout, Piece, Pieces};
use crate::factored::FactoredEngine;
use crate::kernel::{Kernels, Slots};
use crate::reduce::{Columns, Sums};
use crate::rows::Rows;
use crate::rules::lars;

/// Where updates run on the host's processor.
///
/// ```
/// use optim_core::{Momentum, Parameter};
/// use optim_cpu::CpuBackend;
///
/// # fn main() -> optim_core::Result<()> {
/// let mut weight = vec![1.0_f32; 3];
/// let mut optimizer = Momentum::new(0.1, 0.9).params([Parameter::new("weight", [3])]).build(CpuBackend::new())?;
/// for _ in 0..2 {
///     let report = optimizer.step(&mut [(&mut weight).into()], &[(&[1.0_f32; 3]).into()])?;
///     assert!(report.applied());
/// }
/// assert!((weight[0] - 0.71).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct CpuBackend {
    pool: Option<Arc<ThreadPool>>,
}

impl CpuBackend {
    /// With rayon's pool: the one that the calling thread belongs to, else the global one.
    ///
    /// A step called from outside a pool hands one job to it. rayon's queue for such jobs takes a small block of memory every
    /// 63 of them; inside [`ThreadPool::install`] a step allocates nothing at all.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With a pool of the caller's.
    #[must_use]
    pub fn with_pool(pool: Arc<ThreadPool>) -> Self {
        Self { pool: Some(pool) }
    }

    /// With a pool of its own of `threads` threads, ≥ 1.
    ///
    /// # Errors
    /// `threads` is 0, or the system refuses to start them.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let error =
            |got| Error::HyperParameter { name: "threads".into(), expected: "a number that can be started", got };
        if threads == 0 {
            return Err(error("0".into()));
        }
        let pool =
            ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| error(format!("{threads}: {e}")))?;
        Ok(Self::with_pool(Arc::new(pool)))
    }

    fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn describe(&self) -> String {
        format!("{}, {} threads", kernel::level(), self.threads())
    }

    fn engine(&self, plan: &Plan<'_>) -> Result<Box<dyn Engine>> {
        if plan.rule.spec().passes() == Passes::Factored {
            return Ok(Box::new(FactoredEngine::new(plan, self.pool.clone())));
        }
        let lens: Vec<usize> = plan.parameters.iter().map(|p| p.len()).collect();
        let layout = Layout::new(&lens);
        let spec = plan.rule.spec();
        let slots = spec.slots();
        let kernels = rules::kernels(plan.rule);
        let sums = if spec.has_trust() || kernels.norms.is_some() { layout.slices[lens.len()] } else { 0 };
        Ok(Box::new(CpuEngine {
            arenas: slots.iter().map(|slot| Arena::new(layout.starts[lens.len()], slot.init)).collect::<Result<_>>()?,
            cuts: drive::cuts(&lens, self.threads()),
            names: plan.parameters.iter().map(|p| p.name().to_owned()).collect(),
            pool: self.pool.clone(),
            records: Vec::new(),
            row_grads: Vec::new(),
            row_starts: vec![0; lens.len() + 1],
            sums: vec![Sums::default(); sums],
            kernels,
            layout,
            lens,
        }))
    }
}

/// One optimizer's slots, and the plan by which its memory is cut into tasks.
#[derive(Debug)]
struct CpuEngine {
    kernels: Kernels,
    arenas: Vec<Arena>,
    layout: Layout,
    lens: Vec<usize>,
    cuts: Vec<Cut>,
    names: Vec<String>,
    pool: Option<Arc<ThreadPool>>,
    // Of the current update.
    records: Vec<Record>,
    sums: Vec<Sums>,
    /// The shaped gradients of listed rows, and where each parameter's begin.
    row_grads: Vec<f32>,
    row_starts: Vec<usize>,
}

/// The gradient of a piece.
enum Gradient<'a> {
    /// Of each of its elements.
    Dense(&'a [f32]),
    /// Of some rows of the whole parameter.
    Rows(Rows<'a>),
}

impl CpuEngine {
    /// Where a parameter's state lies in an arena.
    fn range(&self, parameter: usize) -> Range<usize> {
        let start = self.layout.starts[parameter];
        start..start + self.lens[parameter]
    }

    /// Walks over all parameters that have a gradient: `work(record, piece, g)`.
    fn walk(
        &mut self,
        update: &Update<'_>,
        params: &mut [ParamMut<'_>],
        grads: &[Grad<'_>],
        work: impl Fn(&Kernels, &Record, Piece<'_>, Gradient<'_>) + Send + Sync,
    ) {
        let Self { kernels, arenas, layout, cuts, pool, records, sums, row_grads, row_starts, .. } = self;
        let (kernels, records, cuts, rows) = (&*kernels, &**records, &**cuts, update.rows);
        let (row_grads, row_starts) = (&**row_grads, &**row_starts);
        let pieces = Pieces::new(params, arenas, sums);
        let run = move || {
            drive::run(cuts, layout, pieces, &|piece: Piece<'_>| {
                let gradient = match grads[piece.param] {
                    Grad::F32(g) => Gradient::Dense(&g[piece.element..piece.element + piece.p.len()]),
                    Grad::Rows(..) => {
                        let range = row_starts[piece.param]..row_starts[piece.param + 1];
                        Gradient::Rows(Rows { rows: &rows[piece.param].rows, grads: &row_grads[range] })
                    }
                    _ => return,
                };
                work(kernels, &records[update.record_of[piece.param] as usize], piece, gradient);
            });
        };
        match pool {
            Some(pool) if !cuts.is_empty() => pool.install(run),
            _ => run(),
        }
    }

    /// Sums and shapes the rows of the row-sparse gradients.
    fn sum_rows(&mut self, update: &Update<'_>, params: &[ParamMut<'_>], grads: &[Grad<'_>]) {
        self.row_grads.clear();
        for (index, (param, grad)) in params.iter().zip(grads).enumerate() {
            self.row_starts[index] = self.row_grads.len();
            if let (ParamMut::F32(p), Grad::Rows(indices, Values::F32(values))) = (param, grad) {
                let record = &self.records[update.record_of[index] as usize];
                let width = values.len() / indices.len().max(1);
                rows::sum(&record.shaping, &update.rows[index], values, p, width, &mut self.row_grads);
            }
        }
        self.row_starts[params.len()] = self.row_grads.len();
    }

    /// The sums of a parameter's slices.
    fn total(&self, parameter: usize) -> Sums {
        let slices = &self.layout.slices;
        reduce::total(&self.sums[slices[parameter]..slices[parameter + 1]])
    }
}

impl Engine for CpuEngine {
    fn update(&mut self, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<()> {
        check_host(self.names.iter().map(String::as_str), params, grads)?;
        self.records.clear();
        self.records.extend_from_slice(update.records);

        self.sum_rows(update, params, grads);

        if update.records.iter().any(|record| record.trust.is_some()) {
            self.walk(update, params, grads, |_, record, Piece { p, slots, sums, .. }, g| {
                let Gradient::Dense(g) = g else { return };
                if record.trust.is_some() {
                    shape::summed(&record.shaping, p, g, slots, sums, |p, g, _, columns| lars::measure(p, g, columns));
                }
            });
            for parameter in 0..self.lens.len() {
                let sums = self.total(parameter);
                let record = &mut self.records[update.record_of[parameter] as usize];
                if record.trust.is_some() {
                    lars::finish(&record.trust, &mut record.shaping, sums);
                }
            }
        }
        if let Some((measure, finish)) = self.kernels.norms {
            self.walk(update, params, grads, |_, record, Piece { p, slots, sums, .. }, g| {
                let Gradient::Dense(g) = g else { return };
                let measure = |p: &[f32], g: &[f32], slots: Slots<'_>, columns: &mut Columns| {
                    measure(&record.scalars, p, g, slots, columns);
                };
                shape::summed(&record.shaping, p, g, slots, sums, measure);
            });
            for parameter in 0..self.lens.len() {
                let sums = self.total(parameter);
                finish(&mut self.records[update.record_of[parameter] as usize].scalars, sums);
            }
        }
        let sparse = update.sparse;
        self.walk(update, params, grads, |kernels, record, piece, gradient| {
            let kernel = |p: &mut [f32], g: &[f32], slots: Slots<'_>| kernels.update.run(&record.scalars, p, g, slots);
            match gradient {
                Gradient::Dense(g) => shape::shaped(&record.shaping, piece.p, g, piece.slots, kernel),
                Gradient::Rows(rows) if sparse == Sparse::AllRows => rows.update_all(piece, kernel),
                Gradient::Rows(rows) => rows.update_listed(piece, kernel),
            }
        });
        Ok(())
    }

    fn read_slot(&self, parameter: usize, slot: usize) -> Result<Vec<f32>> {
        Ok(self.arenas[slot].all()[self.range(parameter)].to_vec())
    }

    fn write_slot(&mut self, parameter: usize, slot: usize, values: &[f32]) -> Result<()> {
        let range = self.range(parameter);
        self.arenas[slot].all_mut()[range].copy_from_slice(values);
        Ok(())
    }
}

/// An error that names the first memory which is not on the host.
fn check_host<'a>(names: impl Iterator<Item = &'a str>, params: &[ParamMut<'_>], grads: &[Grad<'_>]) -> Result<()> {
    for ((name, param), grad) in names.zip(params).zip(grads) {
        let on_device = [
            ("parameter", matches!(param, ParamMut::Device(_))),
            ("gradient", matches!(grad, Grad::Device(_) | Grad::Rows(_, Values::Device(_)))),
        ];
        if let Some((what, _)) = on_device.into_iter().find(|(_, on_device)| *on_device) {
            return Err(wrong_memory(what, name, "memory on the host", "memory on a device"));
        }
    }
    Ok(())
}
