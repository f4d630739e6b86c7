//! The rules, one file each. The file's name is the rule's name in every layer: the config here, the CPU kernel, the WGSL
//! kernel and the test's judge.

pub mod adam;
pub mod momentum;
pub mod sgd;

pub use adam::Adam;
pub use momentum::Momentum;
pub use sgd::Sgd;

/// The last step of making a step scalar: the rounding from `f64`.
#[allow(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is the purpose")]
pub(crate) fn single(x: f64) -> f32 {
    x as f32
}

/// A hyper-parameter as MindSpore keeps it: rounded to `f32` at construction. The step scalars are made from it in `f64`.
pub(crate) fn rounded(x: f64) -> f64 {
    f64::from(single(x))
}
