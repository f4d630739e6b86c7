//! Optimizers for any Rust program: they update parameters from gradients, on the CPU or on any GPU, with the same numbers.
//!
//! No autodiff framework is needed or known: a step takes slices of the host's memory or buffers of the GPU's. What is
//! trained is described by [`Parameter`]s, in [`ParamGroup`]s if settings differ; a config such as [`Adam`] makes a builder
//! of them, and [`Builder::build`] an [`Optimizer`] on a [`Backend`].
//!
#![cfg_attr(feature = "cpu", doc = "```")]
#![cfg_attr(not(feature = "cpu"), doc = "```no_run")]
//! use optimizers::{Backend, Momentum, ParamGroup, Parameter, schedule::PolynomialDecay};
//!
//! # fn main() -> optimizers::Result<()> {
//! let parameters = [
//!     Parameter::new("conv1.weight", [6, 1, 5, 5]),
//!     Parameter::new("fc.weight", [10, 864]),
//!     Parameter::new("bn.moving_mean", [6]).requires_grad(false),
//! ];
//! let (conv, rest): (Vec<_>, Vec<_>) =
//!     parameters.iter().filter(|p| p.is_trainable()).partition(|p| p.name().contains("conv"));
//!
//! let mut optimizer = Momentum::new(0.1, 0.9)
//!     .groups([
//!         ParamGroup::new(conv).lr(0.01).weight_decay(0.01).grad_centralization(true),
//!         ParamGroup::new(rest).lr(PolynomialDecay::new(0.1, 0.01, 4, 0.5)?),
//!     ])
//!     .build(Backend::Cpu)?; // or Backend::Gpu
//!
//! let (mut w1, mut w2) = (vec![0.5_f32; 150], vec![0.5_f32; 8640]);
//! let (g1, g2) = (vec![1.0_f32; 150], vec![1.0_f32; 8640]);
//! let report = optimizer.step(&mut [(&mut w1).into(), (&mut w2).into()], &[(&g1).into(), (&g2).into()])?;
//! assert_eq!((report.step, &*report.rates), (1, &[0.01, 0.1][..]));
//! # Ok(())
//! # }
//! ```
//!
//! The [guide](guide) goes on from here, topic by topic, and says how to come from MindSpore, PyTorch or candle.
//!
//! # Crate layout
//!
//! This crate has no logic: it re-exports the contract (`optim-core`) and the backends (`optim-cpu`, `optim-gpu`), and adds
//! the run-time choice [`Backend`]. Its features `cpu` and `gpu`, both on by default, decide which backends are built. Its
//! feature `serde` writes and reads rules, rates and schedules as data: see `core::serialization`. Its feature `safetensors` saves and
//! loads an optimizer's state: the module `checkpoint`. Its feature `candle` updates candle's `Var`s in place: the module `candle`.
#![forbid(unsafe_code)]
// Samples are copied: they warn of nothing.
#![doc(test(attr(deny(unused))))]

mod backend;
pub mod guide;

pub use backend::Backend;
/// Optimizers for candle.
#[cfg(feature = "candle")]
pub use optim_candle as candle;
/// State files.
#[cfg(feature = "safetensors")]
pub use optim_checkpoint as checkpoint;
/// The contract, for those who write a backend: the traits [`Backend`](optim_core::Backend) and
/// [`Engine`](optim_core::Engine).
pub use optim_core as core;
pub use optim_core::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Adan, Asgd, Builder,
    Centralization, DType, DeviceMemory, DynamicLossScale, Ema, Error, Estimate, Explanation, FixedLossScale, Ftrl,
    Grad, Gradients, Group, Hyper, IntoBackend, Lamb, Lars, LazyAdam, Lion, LoadOptions, LoadReport, LossScale, Master,
    Momentum, NAdam, Optimizer, Outcome, ParamGroup, ParamMut, Parameter, ProximalAdagrad, RAdam, Rate, Result,
    RmsProp, Rprop, Rule, Schedule, Select, Sgd, Skip, State, StateDType, StateMeta, StateSource, StepReport, Values,
    dynamic_lr, half, rule, schedule,
};
#[cfg(feature = "cpu")]
pub use optim_cpu::CpuBackend;
/// The GPU backend, with the `wgpu` it is built with.
#[cfg(feature = "gpu")]
pub use optim_gpu as gpu;
#[cfg(feature = "gpu")]
pub use optim_gpu::{GpuBackend, GpuBuffer};

/// The README's example, as a test.
#[cfg(all(doctest, feature = "cpu"))]
#[doc = include_str!("../../../README.md")]
mod readme {}
