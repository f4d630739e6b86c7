//! Schedules: rates as pure functions of the update's index.
//!
//! A schedule holds no counter, so resuming a run needs nothing but the step count, and a rate can be asked for at any
//! index. Index 0 is the first update. Values are computed in `f64`.
//!
//! | from | schedules |
//! | --- | --- |
//! | MindSpore | [`WarmUp`], [`CosineDecay`], [`PolynomialDecay`], [`ExponentialDecay`], [`NaturalExpDecay`], [`InverseDecay`] |
//! | PyTorch | [`Linear`], [`StepDecay`], [`MultiStep`], [`CosineRestarts`], [`OneCycle`], [`Cyclic`] |
//! | papers | [`InverseSqrt`], [`Noam`], [`WarmupStableDecay`] |
//! | yourself | [`Constant`], [`from_fn`], a type of your own |
//!
//! [`then`](Schedule::then), [`warmup`](Schedule::warmup), [`scale`](Schedule::scale) and [`repeat`](Schedule::repeat) make
//! new ones of them. [`AnySchedule`] is one type for them all.
//!
//! [`ReduceOnPlateau`] is no schedule: it follows a metric and has a memory.

pub(crate) mod any;
mod compose;
mod mindspore;
mod more;
mod plateau;

pub use any::AnySchedule;
pub use compose::{FromFn, Repeated, Scaled, Schedule, Then, Warmed, from_fn};
pub use mindspore::{CosineDecay, ExponentialDecay, InverseDecay, NaturalExpDecay, PolynomialDecay, WarmUp};
pub use more::{
    Constant, CosineRestarts, Cyclic, InverseSqrt, Linear, MultiStep, Noam, OneCycle, StepDecay, WarmupStableDecay,
};
pub use plateau::{Mode, PlateauState, ReduceOnPlateau, Threshold};
