//! Schedules beyond MindSpore's: PyTorch's, and those of papers.
//!
//! PyTorch's change the rate of the optimizer; here the rate is an argument. After its end a schedule holds its last value.

use std::f64::consts::PI;

use super::Schedule;
use super::any::describe;
use crate::error::{at_least_one, check};
use crate::{Error, Result};

/// The same rate at every update, for use with [`then`](Schedule::then). Where nothing follows, a number does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constant {
    pub(crate) lr: f64,
}

impl Constant {
    /// `lr` finite and ≥ 0.
    pub fn new(lr: f64) -> Result<Self> {
        not_negative("Constant: lr", lr)?;
        Ok(Self { lr })
    }
}

impl Schedule for Constant {
    fn at(&self, _: u64) -> f64 {
        self.lr
    }

    describe!();
}

/// A straight line (PyTorch `LinearLR`): `start + (end − start) · min(i, S) / S`, up or down. It stays at `end` from index
/// `S` on. Trap: PyTorch's arguments are factors of the optimizer's rate, these are rates.
///
/// ```
/// use optim_core::{Schedule, schedule::Linear};
/// # fn main() -> optim_core::Result<()> {
/// let rate = Linear::new(0.2, 0.1, 4)?;
/// assert!((rate.at(1) - 0.175).abs() < 1e-15);
/// assert_eq!((rate.at(0), rate.at(4), rate.at(5)), (0.2, 0.1, 0.1));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    pub(crate) start: f64,
    pub(crate) end: f64,
    pub(crate) steps: u64,
}

impl Linear {
    /// `start` and `end` finite and ≥ 0; `steps` ≥ 1.
    pub fn new(start: f64, end: f64, steps: u64) -> Result<Self> {
        not_negative("Linear: start", start)?;
        not_negative("Linear: end", end)?;
        at_least_one(steps, "Linear: steps")?;
        Ok(Self { start, end, steps })
    }
}

impl Schedule for Linear {
    fn at(&self, update: u64) -> f64 {
        between(self.start, self.end, update.min(self.steps) as f64 / self.steps as f64)
    }

    describe!();
}

/// A stair (PyTorch `StepLR`): `lr · gamma^⌊i / every⌋`.
///
/// ```
/// use optim_core::{Schedule, schedule::StepDecay};
/// # fn main() -> optim_core::Result<()> {
/// let rate = StepDecay::new(0.1, 0.5, 30)?;
/// assert_eq!((rate.at(29), rate.at(30), rate.at(60)), (0.1, 0.05, 0.025));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepDecay {
    pub(crate) lr: f64,
    pub(crate) gamma: f64,
    pub(crate) every: u64,
}

impl StepDecay {
    /// `lr` finite and ≥ 0; `gamma` finite and > 0; `every` ≥ 1. A `gamma` above 1 grows, beyond any number in the end: an error of
    /// the step that gets there.
    pub fn new(lr: f64, gamma: f64, every: u64) -> Result<Self> {
        not_negative("StepDecay: lr", lr)?;
        positive("StepDecay: gamma", gamma)?;
        at_least_one(every, "StepDecay: every")?;
        Ok(Self { lr, gamma, every })
    }
}

impl Schedule for StepDecay {
    fn at(&self, update: u64) -> f64 {
        times(self.lr, self.gamma.powf((update / self.every) as f64))
    }

    describe!();
}

/// A stair with given edges (PyTorch `MultiStepLR`): `lr · gamma^n`, where `n` milestones are `≤ i`. Two equal milestones
/// count twice.
///
/// ```
/// use optim_core::{Schedule, schedule::MultiStep};
/// # fn main() -> optim_core::Result<()> {
/// let rate = MultiStep::new(0.1, 0.5, [30, 80])?;
/// assert_eq!((rate.at(29), rate.at(30), rate.at(80)), (0.1, 0.05, 0.025));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct MultiStep {
    pub(crate) lr: f64,
    pub(crate) gamma: f64,
    pub(crate) milestones: Vec<u64>,
}

impl MultiStep {
    /// `lr` finite and ≥ 0; `gamma` finite and > 0, above 1 to grow; `milestones` never fall.
    pub fn new(lr: f64, gamma: f64, milestones: impl Into<Vec<u64>>) -> Result<Self> {
        let milestones = milestones.into();
        not_negative("MultiStep: lr", lr)?;
        positive("MultiStep: gamma", gamma)?;
        if let Some(pair) = milestones.windows(2).find(|pair| pair[1] < pair[0]) {
            let got = format!("{} after {}", pair[1], pair[0]);
            let name = "MultiStep: milestones".to_owned();
            return Err(Error::HyperParameter { name, expected: "a list that never falls", got });
        }
        Ok(Self { lr, gamma, milestones })
    }
}

impl Schedule for MultiStep {
    fn at(&self, update: u64) -> f64 {
        let passed = self.milestones.partition_point(|&milestone| milestone <= update);
        times(self.lr, self.gamma.powf(passed as f64))
    }

    describe!();
}

/// Cosine decay with warm restarts (SGDR; PyTorch `CosineAnnealingWarmRestarts`):
/// `min + ½ (max − min) (1 + cos(π · j / T))`, where `j` counts the updates since the last restart. `T` is `first` (PyTorch's
/// `T_0`) in the first cycle and grows by the factor `growth` (`T_mult`) with each.
///
/// Trap: `min` itself is never reached, as the update after the lowest rate is a restart. Source: Loshchilov and Hutter 2017,
/// arXiv 1608.03983.
///
/// ```
/// use optim_core::{Schedule, schedule::CosineRestarts};
/// # fn main() -> optim_core::Result<()> {
/// // Cycles of 10, 20, 40 updates …
/// let rate = CosineRestarts::new(0.0, 0.1, 10, 2)?;
/// assert_eq!((rate.at(0), rate.at(10), rate.at(30)), (0.1, 0.1, 0.1));
/// assert!((rate.at(20) - 0.05).abs() < 1e-15 && rate.at(29) < 1e-3);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CosineRestarts {
    pub(crate) min_lr: f64,
    pub(crate) max_lr: f64,
    pub(crate) first: u64,
    pub(crate) growth: u64,
}

impl CosineRestarts {
    /// `0 ≤ min_lr < max_lr`, both finite; `first` ≥ 1; `growth` ≥ 1, 1 for cycles of one length.
    pub fn new(min_lr: f64, max_lr: f64, first: u64, growth: u64) -> Result<Self> {
        not_negative("CosineRestarts: min_lr", min_lr)?;
        check("CosineRestarts: max_lr", "finite and > min_lr", max_lr, |x| x.is_finite() && max_lr > min_lr)?;
        at_least_one(first, "CosineRestarts: first")?;
        at_least_one(growth, "CosineRestarts: growth")?;
        Ok(Self { min_lr, max_lr, first, growth })
    }
}

impl Schedule for CosineRestarts {
    fn at(&self, update: u64) -> f64 {
        let (mut since, mut cycle) = (update, self.first);
        if self.growth == 1 {
            since %= cycle;
        } else {
            // At most 64 times: each cycle is at least twice the last.
            while since >= cycle {
                since -= cycle;
                cycle = cycle.saturating_mul(self.growth);
            }
        }
        cosine(self.max_lr, self.min_lr, since as f64 / cycle as f64)
    }

    describe!();
}

/// One cycle (PyTorch `OneCycleLR` with its cosine): from `max / div_factor` up to `max` at index `pct_start · S − 1`, and
/// down to `max / (div_factor · final_div_factor)` at index `S − 1`, both along half a cosine. It stays there, where PyTorch
/// raises an error.
///
/// Traps: the first rate is not 0; the lowest is the start's part, not `max`'s. PyTorch cycles the momentum too, against
/// the rate: see [`momentum_at`](Self::momentum_at). Source: Smith and Topin 2018, arXiv 1708.07120.
///
/// ```
/// use optim_core::{Schedule, schedule::OneCycle};
/// # fn main() -> optim_core::Result<()> {
/// let rate = OneCycle::new(0.5, 10)?;
/// assert_eq!((rate.at(0), rate.at(2), rate.at(9)), (0.02, 0.5, 2e-6));
/// let early = rate.pct_start(0.2)?.div_factor(5.0)?.final_div_factor(100.0)?;
/// assert_eq!((early.at(0), early.at(1), early.at(9)), (0.1, 0.5, 0.001));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OneCycle {
    pub(crate) max_lr: f64,
    pub(crate) total_steps: u64,
    pub(crate) pct_start: f64,
    pub(crate) div_factor: f64,
    pub(crate) final_div_factor: f64,
}

impl OneCycle {
    pub(crate) const PCT_START: f64 = 0.3;
    pub(crate) const DIV_FACTOR: f64 = 25.0;
    pub(crate) const FINAL_DIV_FACTOR: f64 = 1e4;

    /// `max_lr` finite and > 0; `total_steps` ≥ 1.
    pub fn new(max_lr: f64, total_steps: u64) -> Result<Self> {
        positive("OneCycle: max_lr", max_lr)?;
        at_least_one(total_steps, "OneCycle: total_steps")?;
        Ok(Self {
            max_lr,
            total_steps,
            pct_start: Self::PCT_START,
            div_factor: Self::DIV_FACTOR,
            final_div_factor: Self::FINAL_DIV_FACTOR,
        })
    }

    /// The part of the updates in which the rate climbs, from 0 to 1. Default: 0.3.
    pub fn pct_start(mut self, part: f64) -> Result<Self> {
        check("OneCycle: pct_start", "between 0 and 1", part, |x| (0.0..=1.0).contains(&x))?;
        self.pct_start = part;
        Ok(self)
    }

    /// The highest rate over the first: finite and > 0. Default: 25.
    pub fn div_factor(mut self, factor: f64) -> Result<Self> {
        positive("OneCycle: div_factor", factor)?;
        self.div_factor = factor;
        Ok(self)
    }

    /// The first rate over the last: finite and > 0. Default: 10 000.
    pub fn final_div_factor(mut self, factor: f64) -> Result<Self> {
        positive("OneCycle: final_div_factor", factor)?;
        self.final_div_factor = factor;
        Ok(self)
    }

    /// The momentum, or `β₁`, that goes with the rate: from `max` down to `base` while the rate climbs, then back up. PyTorch's are
    /// 0.95 and 0.85.
    ///
    /// ```
    /// use optim_core::{ParamGroup, Parameter, Sgd, schedule::OneCycle};
    /// # fn main() -> optim_core::Result<()> {
    /// let cycle = OneCycle::new(0.5, 10)?;
    /// assert_eq!([0, 2, 9].map(|i| cycle.momentum_at(i, 0.85, 0.95)), [0.95, 0.85, 0.95]);
    /// let weights = [Parameter::new("weight", [3])];
    /// let group = ParamGroup::new(&weights)
    ///     .lr(cycle)
    ///     .vary(move |sgd: &mut Sgd, update| sgd.momentum = cycle.momentum_at(update, 0.85, 0.95));
    /// # let _ = group;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn momentum_at(&self, update: u64, base: f64, max: f64) -> f64 {
        self.between(update, max, base, max)
    }

    /// From `first` to `peak` and on to `last`.
    fn between(&self, update: u64, first: f64, peak: f64, last: f64) -> f64 {
        let (i, end) = (update.min(self.total_steps - 1) as f64, (self.total_steps - 1) as f64);
        // The peak lies between two indices, or, with few updates, before the first.
        let top = self.pct_start * self.total_steps as f64 - 1.0;
        if i < top {
            cosine(first, peak, i / top)
        } else if i == top {
            peak
        } else {
            cosine(peak, last, (i - top) / (end - top))
        }
    }
}

impl Schedule for OneCycle {
    fn at(&self, update: u64) -> f64 {
        let first = self.max_lr / self.div_factor;
        self.between(update, first, self.max_lr, first / self.final_div_factor)
    }

    describe!();
}

/// Triangles (PyTorch `CyclicLR`, mode `triangular`): from `base` to `max` within `up` updates, back within `down`, and
/// again. PyTorch cycles the momentum too, against the rate: see [`momentum_at`](Self::momentum_at). Source: Smith 2017, arXiv 1506.01186.
///
/// ```
/// use optim_core::{Schedule, schedule::Cyclic};
/// # fn main() -> optim_core::Result<()> {
/// let rate = Cyclic::new(0.0, 0.4, 4, 2)?;
/// assert_eq!([0, 1, 4, 5, 6].map(|i| rate.at(i)), [0.0, 0.1, 0.4, 0.2, 0.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cyclic {
    pub(crate) base_lr: f64,
    pub(crate) max_lr: f64,
    pub(crate) up: u64,
    pub(crate) down: u64,
}

impl Cyclic {
    /// `0 ≤ base_lr < max_lr`, both finite; `up` and `down` ≥ 1.
    pub fn new(base_lr: f64, max_lr: f64, up: u64, down: u64) -> Result<Self> {
        not_negative("Cyclic: base_lr", base_lr)?;
        check("Cyclic: max_lr", "finite and > base_lr", max_lr, |x| x.is_finite() && max_lr > base_lr)?;
        at_least_one(up, "Cyclic: up")?;
        at_least_one(down, "Cyclic: down")?;
        Ok(Self { base_lr, max_lr, up, down })
    }

    /// The momentum, or `β₁`, that goes with the rate: `max` where the rate is lowest, `base` where it is highest. PyTorch's are 0.9
    /// and 0.8.
    #[must_use]
    pub fn momentum_at(&self, update: u64, base: f64, max: f64) -> f64 {
        between(max, base, self.height(update))
    }

    /// 0 at the bottom of a triangle, 1 at its top.
    fn height(&self, update: u64) -> f64 {
        let cycle = self.up.saturating_add(self.down);
        let i = update % cycle;
        if i < self.up { i as f64 / self.up as f64 } else { (cycle - i) as f64 / (cycle - self.up) as f64 }
    }
}

impl Schedule for Cyclic {
    fn at(&self, update: u64) -> f64 {
        between(self.base_lr, self.max_lr, self.height(update))
    }

    describe!();
}

/// Linear warm-up, then a decay with the inverse square root: `lr · min(i / W, √(W / i))`. The first rate is 0, the highest
/// is `lr` at index `W`; it never ends. [`Noam`] is the same with the paper's arguments. Source: Vaswani et al. 2017,
/// arXiv 1706.03762; with `lr` as an argument, fairseq's `inverse_sqrt`.
///
/// ```
/// use optim_core::{Schedule, schedule::InverseSqrt};
/// # fn main() -> optim_core::Result<()> {
/// let rate = InverseSqrt::new(0.1, 100)?;
/// assert_eq!([0, 50, 100, 400].map(|i| rate.at(i)), [0.0, 0.05, 0.1, 0.05]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InverseSqrt {
    pub(crate) lr: f64,
    pub(crate) warmup_steps: u64,
}

impl InverseSqrt {
    /// `lr` finite and ≥ 0; `warmup_steps` ≥ 1.
    pub fn new(lr: f64, warmup_steps: u64) -> Result<Self> {
        not_negative("InverseSqrt: lr", lr)?;
        at_least_one(warmup_steps, "InverseSqrt: warmup_steps")?;
        Ok(Self { lr, warmup_steps })
    }
}

impl Schedule for InverseSqrt {
    fn at(&self, update: u64) -> f64 {
        rise_and_root(self.lr, self.warmup_steps, update)
    }

    describe!();
}

/// The Transformer's rate: `factor · d^(−½) · min(t^(−½), t · W^(−3/2))`, where `d` is the model's width and `t = i + 1`.
/// It is [`InverseSqrt`] with the highest rate `factor / √(d W)`.
///
/// Trap: the paper counts updates from 1, so the first rate is not 0 and the highest is that of index `W − 1`. Source:
/// Vaswani et al. 2017, arXiv 1706.03762, equation 3 (`factor` = 1).
///
/// ```
/// use optim_core::{Schedule, schedule::Noam};
/// # fn main() -> optim_core::Result<()> {
/// // The base model of the paper.
/// let rate = Noam::new(1.0, 512, 4000)?;
/// assert!((rate.at(0) - 1.746928e-7).abs() < 1e-13 && (rate.at(3999) - 6.987712e-4).abs() < 1e-10);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Noam {
    pub(crate) factor: f64,
    pub(crate) model_size: u64,
    pub(crate) warmup_steps: u64,
}

impl Noam {
    /// `factor` finite and > 0; `model_size` and `warmup_steps` ≥ 1.
    pub fn new(factor: f64, model_size: u64, warmup_steps: u64) -> Result<Self> {
        positive("Noam: factor", factor)?;
        at_least_one(model_size, "Noam: model_size")?;
        at_least_one(warmup_steps, "Noam: warmup_steps")?;
        Ok(Self { factor, model_size, warmup_steps })
    }
}

impl Schedule for Noam {
    fn at(&self, update: u64) -> f64 {
        let highest = self.factor / (self.model_size as f64 * self.warmup_steps as f64).sqrt();
        rise_and_root(highest, self.warmup_steps, update.saturating_add(1))
    }

    describe!();
}

/// Warm-up, a plateau, and a decay (WSD): linear from 0 to `lr` within `warmup_steps`, `lr` for `stable_steps`, linear to
/// [`end_lr`](Self::end_lr) within `decay_steps`. It stays there.
///
/// The length of the training need not be known before the decay begins. Trap: papers differ in the decay's shape; this is
/// the linear one. Sources: Hu et al. 2024, arXiv 2404.06395; Hägele et al. 2024, arXiv 2405.18392.
///
/// ```
/// use optim_core::{Schedule, schedule::WarmupStableDecay};
/// # fn main() -> optim_core::Result<()> {
/// let rate = WarmupStableDecay::new(0.1, 10, 70, 20)?;
/// assert_eq!([0, 5, 10, 80, 90, 100].map(|i| rate.at(i)), [0.0, 0.05, 0.1, 0.1, 0.05, 0.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WarmupStableDecay {
    pub(crate) lr: f64,
    pub(crate) warmup_steps: u64,
    pub(crate) stable_steps: u64,
    pub(crate) decay_steps: u64,
    pub(crate) end_lr: f64,
}

impl WarmupStableDecay {
    /// `lr` finite and ≥ 0; `decay_steps` ≥ 1. The other two may be 0.
    pub fn new(lr: f64, warmup_steps: u64, stable_steps: u64, decay_steps: u64) -> Result<Self> {
        not_negative("WarmupStableDecay: lr", lr)?;
        at_least_one(decay_steps, "WarmupStableDecay: decay_steps")?;
        Ok(Self { lr, warmup_steps, stable_steps, decay_steps, end_lr: 0.0 })
    }

    /// The rate after the decay: finite and ≥ 0. Default: 0.
    pub fn end_lr(mut self, lr: f64) -> Result<Self> {
        not_negative("WarmupStableDecay: end_lr", lr)?;
        self.end_lr = lr;
        Ok(self)
    }
}

impl Schedule for WarmupStableDecay {
    fn at(&self, update: u64) -> f64 {
        if update < self.warmup_steps {
            return self.lr * update as f64 / self.warmup_steps as f64;
        }
        let decayed = (update - self.warmup_steps).saturating_sub(self.stable_steps).min(self.decay_steps);
        between(self.lr, self.end_lr, decayed as f64 / self.decay_steps as f64)
    }

    describe!();
}

/// A straight line from `start` at 0 to `end` at 1, both exact.
fn between(start: f64, end: f64, progress: f64) -> f64 {
    start * (1.0 - progress) + end * progress
}

/// Half a cosine from `start` at 0 to `end` at 1, both exact.
fn cosine(start: f64, end: f64, progress: f64) -> f64 {
    between(start, end, 0.5 * (1.0 - (PI * progress).cos()))
}

/// Linear to `lr` at index `warmup`, then with the inverse square root.
fn rise_and_root(lr: f64, warmup: u64, i: u64) -> f64 {
    if i < warmup { lr * i as f64 / warmup as f64 } else { lr * (warmup as f64 / i as f64).sqrt() }
}

fn positive(name: &str, value: f64) -> Result<()> {
    check(name, "finite and > 0", value, |x| x.is_finite() && x > 0.0)
}

/// A product that is 0 if the first number is, however large the other has grown.
pub(super) fn times(lr: f64, factor: f64) -> f64 {
    if lr == 0.0 { 0.0 } else { lr * factor }
}

pub(super) fn not_negative(name: &str, value: f64) -> Result<()> {
    check(name, "finite and ≥ 0", value, |x| x.is_finite() && x >= 0.0)
}
