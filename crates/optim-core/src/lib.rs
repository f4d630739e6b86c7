//! The contract of the [`optimizers`](https://docs.rs/optimizers) library and every decision it takes.
//!
//! This crate knows *what* an optimizer is: parameters and groups, rules (update formulas) with their slots and step
//! scalars, rates, the one orchestration function [`Optimizer::step`], reports and errors. It does not know *how* numbers
//! are moved: that is a [`Backend`]'s work, in crates of their own. Nothing here starts a thread, opens a file, reads a
//! clock or talks to a GPU.
//!
//! # Crate layout
//!
//! | module | holds |
//! | --- | --- |
//! | [`parameter`] | what is trained: name, shape, type |
//! | [`group`] | parameters that share settings |
//! | [`rule`], [`rules`] | update formulas: one file a rule |
//! | [`rate`], [`schedule`], [`dynamic_lr`] | learning rates: a number, a list, a function of the step; lists to hand over |
//! | [`format`](mod@format) | numbers in fewer bits, stochastic rounding |
//! | [`memory`] | the caller's memory, borrowed for one step |
//! | [`optimizer`] | the builder, the step |
//! | [`guard`] | what is measured of gradients and decided before an update; loss scales |
//! | [`format`] | how numbers are kept in 16 and 8 bits |
//! | [`backend`] | what a backend must do |
//! | [`report`], [`error`] | what comes back |
#![forbid(unsafe_code)]

pub mod backend;
pub mod compressed;
pub mod dynamic_lr;
pub mod error;
pub mod format;
pub mod group;
pub mod guard;
pub mod memory;
pub mod optimizer;
pub mod parameter;
pub mod rate;
pub mod report;
pub mod rule;
pub mod rules;
pub mod schedule;

pub use backend::{Backend, Engine, IntoBackend};
pub use error::{Error, Result};
pub use group::ParamGroup;
pub use memory::{DeviceMemory, Grad, ParamMut, Values};
pub use optimizer::{Builder, Optimizer};
pub use parameter::{DType, Parameter};
pub use rate::Rate;
pub use report::{Outcome, StepReport};
pub use rule::Rule;
pub use rules::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Adan, Asgd, Ftrl, Lamb, Lars,
    LazyAdam, Lion, Momentum, NAdam, ProximalAdagrad, RAdam, RmsProp, Rprop, Sgd,
};
pub use schedule::Schedule;
