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
//! | [`group`], [`select`] | parameters that share settings, listed or chosen by rule |
//! | [`rule`], [`rules`] | update formulas: one file a rule |
//! | [`rate`], [`schedule`], [`dynamic_lr`] | learning rates: a number, a list, a function of the step, a plateau; lists to hand over |
//! | [`memory`] | the caller's memory, borrowed for one step |
//! | [`builder`], [`settings`], [`estimate`] | from what the user says to what holds for every parameter |
//! | [`optimizer`] | the step, and changes between steps |
//! | [`guard`] | what is measured of gradients and decided before an update; loss scales |
//! | [`state`] | all of that as data, to be saved and loaded |
//! | [`mod@format`] | numbers in 16 and 8 bits, stochastic rounding |
//! | [`backend`] | what a backend must do |
//! | [`report`], [`error`] | what comes back |
//! | `serialization` | rules, rates and schedules as data, with the feature `serde` |
#![forbid(unsafe_code)]

pub mod backend;
pub mod builder;
pub mod compressed;
pub mod dynamic_lr;
pub mod error;
pub mod estimate;
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
pub mod select;
#[cfg(feature = "serde")]
pub mod serialization;
pub mod settings;
pub mod state;

pub use backend::{Backend, Engine, IntoBackend};
pub use builder::Builder;
pub use error::{Error, Result};
pub use estimate::{Estimate, GroupEstimate};
pub use format::{Master, StateDType};
pub use group::{Centralization, ParamGroup};
pub use guard::{DynamicLossScale, FixedLossScale, LossScale, Skip};
/// The crate whose `f16` and `bf16` 16-bit memory is made of.
pub use half;
pub use memory::{DeviceMemory, Grad, ParamMut, Values};
pub use optimizer::{Explanation, Optimizer};
pub use parameter::{DType, Parameter};
pub use rate::Rate;
pub use report::{Gradients, Outcome, StepReport};
pub use rule::Rule;
pub use rules::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Adan, Asgd, Ftrl, Lamb, Lars,
    LazyAdam, Lion, Momentum, NAdam, ProximalAdagrad, RAdam, RmsProp, Rprop, Sgd,
};
pub use schedule::Schedule;
pub use select::Select;
pub use settings::{Ema, Group, Origin};
pub use state::{Hyper, LoadOptions, LoadReport, State, StateMeta, StateSource};
