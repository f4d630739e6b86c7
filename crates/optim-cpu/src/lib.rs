//! The CPU backend: update kernels over the caller's slices, one rayon fork-join a step, vectorized by the compiler.
//!
//! Results are bit-identical for any number of threads and any instruction set: kernels use `+ − × ÷ √` only, each correctly
//! rounded by IEEE 754, and no fused multiply-add. Which NaN a NaN is, is left open; and threads must have the floating-point mode in which
//! Rust starts them, which does not flush small numbers to 0.
//!
//! # Crate layout
//!
//! | module | holds |
//! | --- | --- |
//! | `rules` | one kernel a rule, the twin of the WGSL file of the same name |
//! | `kernel` | how a kernel becomes a loop over slices, compiled for several instruction sets |
//! | `math` | functions that rules need and no processor has |
//! | `engine` | one optimizer's state, and the walks of an update |
//! | `drive` | a step's memory, cut into equal tasks |
//! | `pool` | the threads that work on them |
//! | `walk` | the update of a piece of memory, block by block where something has to be converted or shaped |
//! | `storage` | numbers of fewer than 32 bits, read and stored |
//! | `shape` | what happens to a gradient before the rule sees it |
//! | `units` | the numbers of each row: adaptive clipping and centralization |
//! | `guard` | what is measured of a gradient |
//! | `reduce` | sums over a parameter, in one fixed order |
//! | `rows` | row-sparse gradients |
//! | `factored` | the walks of rules that keep second moments by row and column |
//! | `form` | how a parameter and its state are kept |
//! | `arena` | the state's memory |
//! | `arch` | hints to the processor |
#![deny(unsafe_code)]

mod arch;
mod arena;
mod drive;
mod engine;
mod factored;
mod form;
mod guard;
mod kernel;
mod math;
mod pool;
mod reduce;
mod rows;
mod rules;
mod shape;
mod storage;
mod units;
mod walk;

use std::sync::Arc;

use optim_core::backend::Plan;
use optim_core::{Backend, Engine, Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// What [`CpuBackend::open`] makes.
#[doc(hidden)]
pub use crate::engine::CpuEngine;

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
    ///
    /// Small steps are shared only inside [`ThreadPool::install`], and only if they follow one another within 5 µs, as long as rayon's
    /// workers are awake: waking one takes longer than such a step. Otherwise the calling thread does them alone. Small is below about
    /// 130,000 elements, where a tensor counts as 128 more, and an element as four with AdaFactor or where parameter or state is not
    /// `f32`.
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

    /// An engine whose state can be reached. For benches, which run another loop over the same memory.
    #[doc(hidden)]
    pub fn open(&self, plan: &Plan<'_>) -> Result<CpuEngine> {
        CpuEngine::new(plan, self.pool.clone(), self.threads())
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
        Ok(Box::new(self.open(plan)?))
    }
}
