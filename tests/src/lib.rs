//! The harness of the conformance suite: backends under test, problems, training runs, comparison.
//!
//! | module | holds |
//! | --- | --- |
//! | [`engine`] | engines driven directly: records, verdicts, state arrays; their comparison |
//! | [`naive`] | the naive engine: one element after the other, sharing no code with the backends |
//! | [`problem`] | deterministic random parameters and gradients |
//! | [`reference`](mod@reference) | the judge: every rule in naive `f64`, one file a rule, sharing no code with the library |
//! | [`run`] | a problem trained on a backend or by the judge, and the comparison of two such runs |
//! | [`resume`] | whole runs with everything that a state has to remember |
//! | [`training`] | an optimizer with its memory, step by step |
//! | [`tolerance`] | how far results may be apart, and why |
//!
//! Where does a new test go? What holds for every rule belongs into the suite's file of that topic and iterates
//! [`Rule::all`](optimizers::Rule::all); it is written once, by [`on_every_backend!`], for all backends.
#![forbid(unsafe_code)]

pub mod engine;
pub mod naive;
pub mod problem;
pub mod reference;
pub mod resume;
pub mod run;
pub mod tolerance;
pub mod training;

#[cfg(feature = "gpu")]
use std::sync::OnceLock;

#[cfg(feature = "cpu")]
use optimizers::Backend;
use optimizers::{IntoBackend, Result, core};

pub use naive::Naive;
pub use problem::{AWKWARD, Problem, Random, SHAPES, STACKS, Setup};
pub use resume::Resumable;
pub use run::{Bound, Run, compare, final_report};
pub use training::Training;

/// The examples of the project's front page, which run on the CPU.
#[cfg(all(doctest, feature = "cpu"))]
#[doc = include_str!("../../README.md")]
#[derive(Debug)]
pub struct Readme;

/// A backend under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The CPU, with rayon's global pool.
    #[cfg(feature = "cpu")]
    Cpu,
    /// The GPU: one device for the whole process.
    #[cfg(feature = "gpu")]
    Gpu,
}

impl Target {
    /// The backends of this build.
    pub const ALL: &[Self] = &[
        #[cfg(feature = "cpu")]
        Self::Cpu,
        #[cfg(feature = "gpu")]
        Self::Gpu,
    ];

    /// The backend's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu => "cpu",
            #[cfg(feature = "gpu")]
            Self::Gpu => "gpu",
        }
    }

    /// Whether its bits are the naive engine's.
    #[must_use]
    pub fn is_exact(self) -> bool {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu => true,
            #[cfg(feature = "gpu")]
            Self::Gpu => gpu_is_llvmpipe(),
        }
    }

    /// How far it may be from a reference in `f32` from which exact bits may be this far.
    #[must_use]
    pub fn allows(self, exact: f64) -> f64 {
        if self.is_exact() { exact } else { tolerance::CONTRACTED * exact }
    }
}

impl IntoBackend for Target {
    fn into_backend(self) -> Result<Box<dyn core::Backend>> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu => Backend::Cpu.into_backend(),
            #[cfg(feature = "gpu")]
            Self::Gpu => Ok(Box::new(gpu().clone())),
        }
    }
}

/// The GPU that all tests of this process share. The first call prints which one it is.
///
/// # Panics
/// If there is none: a GPU test never passes without a GPU. The message says how to install a software one.
#[cfg(feature = "gpu")]
#[must_use]
pub fn gpu() -> &'static optimizers::GpuBackend {
    static GPU: OnceLock<optimizers::GpuBackend> = OnceLock::new();
    GPU.get_or_init(|| match optimizers::GpuBackend::new() {
        Ok(gpu) => {
            println!("gpu: {}", core::Backend::describe(&gpu));
            gpu
        }
        Err(error) => panic!("{error}; OPTIM_TEST_GPU=skip ignores the tests that need a GPU"),
    })
}

/// Whether the GPU is Mesa's llvmpipe, whose results are bit-equal to the CPU's.
#[cfg(feature = "gpu")]
#[must_use]
pub fn gpu_is_llvmpipe() -> bool {
    core::Backend::describe(gpu()).to_lowercase().contains("llvmpipe")
}

/// One test body, one test for each backend: `name::cpu` and `name::gpu`.
#[macro_export]
macro_rules! on_every_backend {
    ($($(#[$meta:meta])* fn $name:ident($target:ident) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports, reason = "a body may need nothing from its file")]
            use super::*;

            #[allow(clippy::missing_assert_message, reason = "the lint spares tests, which a body is")]
            fn check($target: $crate::Target) $body

            #[cfg(feature = "cpu")]
            #[test]
            fn cpu() {
                check($crate::Target::Cpu);
            }

            #[cfg(feature = "gpu")]
            #[test]
            #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
            fn gpu() {
                check($crate::Target::Gpu);
            }
        }
    )*};
}
