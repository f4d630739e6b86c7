//! MindSpore's schedule classes. It computes them in `f32`, which differs in the last bits only.

use std::f64::consts::PI;

use super::Schedule;
use super::any::describe;
use crate::Result;
use crate::error::{at_least_one, check};

/// Linear warm-up (MindSpore `WarmUpLR`): `lr · min(i, W) / W`. The first rate is 0; it stays at `lr` from index `W` on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WarmUp {
    pub(crate) lr: f64,
    pub(crate) warmup_steps: u64,
}

impl WarmUp {
    /// `lr` finite and ≥ 0; `warmup_steps` ≥ 1.
    pub fn new(lr: f64, warmup_steps: u64) -> Result<Self> {
        check("WarmUp: lr", "finite and ≥ 0", lr, |x| x.is_finite() && x >= 0.0)?;
        at_least_one(warmup_steps, "WarmUp: warmup_steps")?;
        Ok(Self { lr, warmup_steps })
    }
}

impl Schedule for WarmUp {
    fn at(&self, update: u64) -> f64 {
        self.lr * update.min(self.warmup_steps) as f64 / self.warmup_steps as f64
    }

    describe!();
}

/// Cosine decay (MindSpore `CosineDecayLR`): `min + ½ (max − min) (1 + cos(π · min(i, D) / D))`. It stays at `min` from
/// index `D` on; it does not climb again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CosineDecay {
    pub(crate) min_lr: f64,
    pub(crate) max_lr: f64,
    pub(crate) decay_steps: u64,
}

impl CosineDecay {
    /// `0 ≤ min_lr < max_lr`, both finite; `decay_steps` ≥ 1.
    pub fn new(min_lr: f64, max_lr: f64, decay_steps: u64) -> Result<Self> {
        check("CosineDecay: min_lr", "finite and ≥ 0", min_lr, |x| x.is_finite() && x >= 0.0)?;
        check("CosineDecay: max_lr", "finite and > min_lr", max_lr, |x| x.is_finite() && max_lr > min_lr)?;
        at_least_one(decay_steps, "CosineDecay: decay_steps")?;
        Ok(Self { min_lr, max_lr, decay_steps })
    }
}

impl Schedule for CosineDecay {
    fn at(&self, update: u64) -> f64 {
        let progress = update.min(self.decay_steps) as f64 / self.decay_steps as f64;
        self.min_lr + 0.5 * (self.max_lr - self.min_lr) * (1.0 + (PI * progress).cos())
    }

    describe!();
}

/// Polynomial decay (MindSpore `PolynomialDecayLR`): `(lr − end) (1 − min(i, D) / D)^power + end`.
///
/// With [`update_decay_steps`](Self::update_decay_steps) the horizon grows instead of ending: `D' = D · max(⌈i / D⌉, 1)`
/// and `(lr − end) (1 − i / D')^power + end`, a saw-tooth of decays that are slower each time.
///
/// ```
/// use optim_core::{Schedule, schedule::PolynomialDecay};
/// # fn main() -> optim_core::Result<()> {
/// // The example of MindSpore's guide.
/// let rate = PolynomialDecay::new(0.1, 0.01, 4, 0.5)?;
/// assert!((rate.at(2) - 0.0736396).abs() < 1e-7);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolynomialDecay {
    pub(crate) lr: f64,
    pub(crate) end_lr: f64,
    pub(crate) decay_steps: u64,
    pub(crate) power: f64,
    pub(crate) update_decay_steps: bool,
}

impl PolynomialDecay {
    /// `lr` > 0, `end_lr` ≥ 0 (it may exceed `lr`), `power` > 0, all finite; `decay_steps` ≥ 1.
    pub fn new(lr: f64, end_lr: f64, decay_steps: u64, power: f64) -> Result<Self> {
        check("PolynomialDecay: lr", "finite and > 0", lr, |x| x.is_finite() && x > 0.0)?;
        check("PolynomialDecay: end_lr", "finite and ≥ 0", end_lr, |x| x.is_finite() && x >= 0.0)?;
        check("PolynomialDecay: power", "finite and > 0", power, |x| x.is_finite() && x > 0.0)?;
        at_least_one(decay_steps, "PolynomialDecay: decay_steps")?;
        Ok(Self { lr, end_lr, decay_steps, power, update_decay_steps: false })
    }

    /// Lets the horizon grow past `decay_steps` instead of staying at `end_lr`. Default: `false`.
    #[must_use]
    pub fn update_decay_steps(mut self, on: bool) -> Self {
        self.update_decay_steps = on;
        self
    }
}

impl Schedule for PolynomialDecay {
    fn at(&self, update: u64) -> f64 {
        let (i, horizon) = if self.update_decay_steps {
            (update, self.decay_steps.saturating_mul(update.div_ceil(self.decay_steps).max(1)))
        } else {
            (update.min(self.decay_steps), self.decay_steps)
        };
        (self.lr - self.end_lr) * (1.0 - i as f64 / horizon as f64).powf(self.power) + self.end_lr
    }

    describe!();
}

/// Exponential decay (MindSpore `ExponentialDecayLR`): `lr · rate^(i / D)`.
///
/// With [`is_stair`](Self::is_stair) the rate falls once every `D` updates: `lr · rate^⌊i / D⌋`.
///
/// ```
/// use optim_core::{Schedule, schedule::ExponentialDecay};
/// # fn main() -> optim_core::Result<()> {
/// let smooth = ExponentialDecay::new(0.1, 0.25, 4)?;
/// assert_eq!((smooth.at(2), smooth.at(4)), (0.05, 0.025));
/// assert_eq!(smooth.is_stair(true).at(3), 0.1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExponentialDecay {
    pub(crate) lr: f64,
    pub(crate) decay_rate: f64,
    pub(crate) decay_steps: u64,
    pub(crate) is_stair: bool,
}

impl ExponentialDecay {
    /// `lr` > 0 and `decay_rate` > 0, both finite; `decay_steps` ≥ 1. A `decay_rate` above 1 grows, beyond any number in the
    /// end: an error of the step that gets there.
    pub fn new(lr: f64, decay_rate: f64, decay_steps: u64) -> Result<Self> {
        check_decay("ExponentialDecay", lr, decay_rate, decay_steps)?;
        Ok(Self { lr, decay_rate, decay_steps, is_stair: false })
    }

    /// Holds the rate for `decay_steps` updates, then lets it fall at once. Default: `false`.
    #[must_use]
    pub fn is_stair(mut self, on: bool) -> Self {
        self.is_stair = on;
        self
    }
}

impl Schedule for ExponentialDecay {
    fn at(&self, update: u64) -> f64 {
        self.lr * self.decay_rate.powf(decays(update, self.decay_steps, self.is_stair))
    }

    describe!();
}

/// Natural exponential decay (MindSpore `NaturalExpDecayLR`): `lr · exp(−rate · i)`. Trap: `D` has no part in it; the page
/// of MindSpore that says `i / D` is not what MindSpore computes.
///
/// With [`is_stair`](Self::is_stair) the rate falls once every `D` updates: `lr · exp(−rate · D · ⌊i / D⌋)`.
///
/// ```
/// use optim_core::{Schedule, schedule::NaturalExpDecay};
/// # fn main() -> optim_core::Result<()> {
/// let smooth = NaturalExpDecay::new(0.1, 0.3, 4)?;
/// assert!((smooth.at(1) - 0.0740818).abs() < 1e-7);
/// let stair = smooth.is_stair(true);
/// assert_eq!((stair.at(3), stair.at(4)), (0.1, smooth.at(4)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NaturalExpDecay {
    pub(crate) lr: f64,
    pub(crate) decay_rate: f64,
    pub(crate) decay_steps: u64,
    pub(crate) is_stair: bool,
}

impl NaturalExpDecay {
    /// `lr` > 0 and `decay_rate` > 0, both finite; `decay_steps` ≥ 1, which only a stair uses.
    pub fn new(lr: f64, decay_rate: f64, decay_steps: u64) -> Result<Self> {
        check_decay("NaturalExpDecay", lr, decay_rate, decay_steps)?;
        Ok(Self { lr, decay_rate, decay_steps, is_stair: false })
    }

    /// Holds the rate for `decay_steps` updates, then lets it fall at once. Default: `false`.
    #[must_use]
    pub fn is_stair(mut self, on: bool) -> Self {
        self.is_stair = on;
        self
    }
}

impl Schedule for NaturalExpDecay {
    fn at(&self, update: u64) -> f64 {
        let i = if self.is_stair { update / self.decay_steps * self.decay_steps } else { update };
        self.lr * (-self.decay_rate * i as f64).exp()
    }

    describe!();
}

/// Inverse decay (MindSpore `InverseDecayLR`): `lr / (1 + rate · i / D)`.
///
/// With [`is_stair`](Self::is_stair) the rate falls once every `D` updates: `lr / (1 + rate · ⌊i / D⌋)`.
///
/// ```
/// use optim_core::{Schedule, schedule::InverseDecay};
/// # fn main() -> optim_core::Result<()> {
/// let smooth = InverseDecay::new(0.1, 2.0, 4)?;
/// assert_eq!((smooth.at(0), smooth.at(2)), (0.1, 0.05));
/// assert_eq!(smooth.is_stair(true).at(3), 0.1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InverseDecay {
    pub(crate) lr: f64,
    pub(crate) decay_rate: f64,
    pub(crate) decay_steps: u64,
    pub(crate) is_stair: bool,
}

impl InverseDecay {
    /// `lr` > 0 and `decay_rate` > 0, both finite; `decay_steps` ≥ 1.
    pub fn new(lr: f64, decay_rate: f64, decay_steps: u64) -> Result<Self> {
        check_decay("InverseDecay", lr, decay_rate, decay_steps)?;
        Ok(Self { lr, decay_rate, decay_steps, is_stair: false })
    }

    /// Holds the rate for `decay_steps` updates, then lets it fall at once. Default: `false`.
    #[must_use]
    pub fn is_stair(mut self, on: bool) -> Self {
        self.is_stair = on;
        self
    }
}

impl Schedule for InverseDecay {
    fn at(&self, update: u64) -> f64 {
        self.lr / (1.0 + self.decay_rate * decays(update, self.decay_steps, self.is_stair))
    }

    describe!();
}

/// `i / D`, or how often it has been whole.
fn decays(update: u64, decay_steps: u64, is_stair: bool) -> f64 {
    if is_stair { (update / decay_steps) as f64 } else { update as f64 / decay_steps as f64 }
}

fn check_decay(schedule: &str, lr: f64, decay_rate: f64, decay_steps: u64) -> Result<()> {
    check(&format!("{schedule}: lr"), "finite and > 0", lr, |x| x.is_finite() && x > 0.0)?;
    check(&format!("{schedule}: decay_rate"), "finite and > 0", decay_rate, |x| x.is_finite() && x > 0.0)?;
    at_least_one(decay_steps, &format!("{schedule}: decay_steps"))
}
