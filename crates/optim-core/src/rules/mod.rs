//! The rules, one file each. The file's name is the rule's name in every layer: the config here, the CPU kernel, the WGSL
//! kernel and the test's judge.

pub mod ada_factor;
pub mod ada_max;
pub mod adadelta;
pub mod adagrad;
pub mod adam;
pub mod adam_offload;
pub mod adam_weight_decay;
pub mod adamw;
pub mod adan;
pub mod asgd;
pub mod ftrl;
pub mod lamb;
pub mod lars;
pub mod lazy_adam;
pub mod lion;
pub mod momentum;
pub mod nadam;
pub mod proximal_adagrad;
pub mod radam;
pub mod rms_prop;
pub mod rprop;
pub mod sgd;

pub use ada_factor::AdaFactor;
pub use ada_max::AdaMax;
pub use adadelta::Adadelta;
pub use adagrad::Adagrad;
pub use adam::Adam;
pub use adam_offload::AdamOffload;
pub use adam_weight_decay::AdamWeightDecay;
pub use adamw::AdamW;
pub use adan::Adan;
pub use asgd::Asgd;
pub use ftrl::Ftrl;
pub use lamb::Lamb;
pub use lars::Lars;
pub use lazy_adam::LazyAdam;
pub use lion::Lion;
pub use momentum::Momentum;
pub use nadam::NAdam;
pub use proximal_adagrad::ProximalAdagrad;
pub use radam::RAdam;
pub use rms_prop::RmsProp;
pub use rprop::Rprop;
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

/// `base` to the power `n` by squaring: the same bits on every platform, unlike the library functions.
pub(crate) fn power(base: f64, mut n: u64) -> f64 {
    let (mut result, mut square) = (1.0, base);
    while n > 0 {
        if n & 1 == 1 {
            result *= square;
        }
        square *= square;
        n >>= 1;
    }
    result
}
