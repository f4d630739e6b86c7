//! The one rate that has a memory: it falls when a metric no longer improves.

use super::more::not_negative;
use crate::error::check;
use crate::{Error, Result};

/// Which metrics are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Mode {
    /// Lower ones, as of a loss.
    #[default]
    Min,
    /// Higher ones, as of an accuracy.
    Max,
}

/// What the threshold `θ` of a [`ReduceOnPlateau`] is measured in. With `b` the best metric so far, one `m` is better if:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Threshold {
    /// `m < b (1 − θ)`, or `m > b (1 + θ)` with [`Mode::Max`]. Trap: where `b` is negative, a metric slightly worse than `b` counts
    /// as better.
    #[default]
    Relative,
    /// `m < b − θ`, or `m > b + θ` with [`Mode::Max`].
    Absolute,
}

/// Multiplies the rate by `factor` when a metric has not improved for more than `patience` observations (PyTorch
/// `ReduceLROnPlateau`).
///
/// Unlike a [`Schedule`](super::Schedule) it is no function of the update's index: it learns of a metric by
/// [`observe`](Self::observe), usually once an epoch, and its progress is part of a run's state ([`state`](Self::state),
/// [`restore`](Self::restore)).
///
/// With `m` the metric, `b` the best so far, `n` the observations in a row that were not better, `c` the observations left of
/// a cooldown:
///
/// ```text
/// m better than b:    b ← m, n ← 0               see Threshold
/// else:               n ← n + 1
/// c > 0:              c ← c − 1, n ← 0           after a reduction nothing counts for a while
/// n > patience:       lr ← max(lr · factor, min_lr), unless that is less than eps away;   c ← cooldown, n ← 0
/// ```
///
/// Trap: with a patience of 10 it is the 11th observation in a row that reduces the rate. A metric that is not a number
/// counts as not better.
///
/// ```
/// use optim_core::schedule::ReduceOnPlateau;
/// # fn main() -> optim_core::Result<()> {
/// let mut rate = ReduceOnPlateau::new(0.1)?.factor(0.5)?.patience(1);
/// let losses = [3.0, 2.0, 2.0, 2.0, 1.0];
/// let rates = losses.map(|loss| rate.observe(loss).map(|_| rate.lr()));
/// assert_eq!(rates, [0.1, 0.1, 0.1, 0.05, 0.05].map(Ok));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ReduceOnPlateau {
    pub(crate) initial_lr: f64,
    pub(crate) mode: Mode,
    pub(crate) factor: f64,
    pub(crate) patience: u64,
    pub(crate) threshold: f64,
    pub(crate) threshold_mode: Threshold,
    pub(crate) cooldown: u64,
    pub(crate) min_lr: f64,
    pub(crate) eps: f64,
    state: PlateauState,
}

/// The progress of a [`ReduceOnPlateau`], to save and to [`restore`](ReduceOnPlateau::restore).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct PlateauState {
    /// The rate: finite and ≥ 0.
    pub lr: f64,
    /// Which metrics are better, so what `best` means; `None` if that is not known.
    #[cfg_attr(feature = "serde", serde(default))]
    pub mode: Option<Mode>,
    /// The best metric: a number or an infinity. Before the first observation the worst there is, `+∞` with [`Mode::Min`].
    #[cfg_attr(feature = "serde", serde(with = "crate::serialization::float"))]
    pub best: f64,
    /// Observations in a row that were not better.
    pub num_bad_epochs: u64,
    /// Observations left of the cooldown.
    pub cooldown_counter: u64,
}

impl ReduceOnPlateau {
    pub(crate) const FACTOR: f64 = 0.1;
    pub(crate) const PATIENCE: u64 = 10;
    pub(crate) const THRESHOLD: f64 = 1e-4;
    pub(crate) const EPS: f64 = 1e-8;

    /// Starts with the rate `lr`, finite and ≥ 0, and PyTorch's defaults.
    pub fn new(lr: f64) -> Result<Self> {
        not_negative("ReduceOnPlateau: lr", lr)?;
        Ok(Self {
            initial_lr: lr,
            mode: Mode::Min,
            factor: Self::FACTOR,
            patience: Self::PATIENCE,
            threshold: Self::THRESHOLD,
            threshold_mode: Threshold::Relative,
            cooldown: 0,
            min_lr: 0.0,
            eps: Self::EPS,
            state: PlateauState { lr, mode: None, best: worst(Mode::Min), num_bad_epochs: 0, cooldown_counter: 0 },
        })
    }

    /// Which metrics are better. Default: [`Mode::Min`]. Forgets the best metric.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        (self.mode, self.state.best) = (mode, worst(mode));
        self
    }

    /// What the rate is multiplied by, inside (0, 1). Default: 0.1.
    pub fn factor(mut self, factor: f64) -> Result<Self> {
        check("ReduceOnPlateau: factor", "inside (0, 1)", factor, |x| x > 0.0 && x < 1.0)?;
        self.factor = factor;
        Ok(self)
    }

    /// How many observations in a row may be no better; the next one reduces the rate. Default: 10.
    #[must_use]
    pub fn patience(mut self, observations: u64) -> Self {
        self.patience = observations;
        self
    }

    /// How much better counts as better: finite and ≥ 0. Default: 1e-4. Trap: with [`Mode::Min`] and
    /// [`Threshold::Relative`] nothing positive is better from 1 on.
    pub fn threshold(mut self, threshold: f64) -> Result<Self> {
        not_negative("ReduceOnPlateau: threshold", threshold)?;
        self.threshold = threshold;
        Ok(self)
    }

    /// What the threshold is measured in. Default: [`Threshold::Relative`].
    #[must_use]
    pub fn threshold_mode(mut self, mode: Threshold) -> Self {
        self.threshold_mode = mode;
        self
    }

    /// How many observations after a reduction do not count as bad. Default: 0.
    #[must_use]
    pub fn cooldown(mut self, observations: u64) -> Self {
        self.cooldown = observations;
        self
    }

    /// The rate never falls below: finite and ≥ 0. Default: 0. Above the first rate it forbids every reduction.
    pub fn min_lr(mut self, lr: f64) -> Result<Self> {
        not_negative("ReduceOnPlateau: min_lr", lr)?;
        self.min_lr = lr;
        Ok(self)
    }

    /// A reduction by no more than this is left out: finite and ≥ 0. Default: 1e-8.
    pub fn eps(mut self, eps: f64) -> Result<Self> {
        not_negative("ReduceOnPlateau: eps", eps)?;
        self.eps = eps;
        Ok(self)
    }

    /// Takes note of a metric, usually once an epoch; `true` if the rate was reduced. Any metric is accepted: an infinity
    /// compares as a number does, NaN is not better than anything.
    ///
    /// # Errors
    /// None in this version.
    pub fn observe(&mut self, metric: f64) -> Result<bool> {
        let state = &mut self.state;
        let (best, threshold) = (state.best, self.threshold);
        let better = match (self.mode, self.threshold_mode) {
            (Mode::Min, Threshold::Relative) => metric < best * (1.0 - threshold),
            (Mode::Min, Threshold::Absolute) => metric < best - threshold,
            (Mode::Max, Threshold::Relative) => metric > best * (1.0 + threshold),
            (Mode::Max, Threshold::Absolute) => metric > best + threshold,
        };
        if better {
            state.best = metric;
            state.num_bad_epochs = 0;
        } else {
            state.num_bad_epochs = state.num_bad_epochs.saturating_add(1);
        }
        if state.cooldown_counter > 0 {
            state.cooldown_counter -= 1;
            state.num_bad_epochs = 0;
        }
        if state.num_bad_epochs <= self.patience {
            return Ok(false);
        }
        state.cooldown_counter = self.cooldown;
        state.num_bad_epochs = 0;
        let lr = (state.lr * self.factor).max(self.min_lr);
        let reduced = state.lr - lr > self.eps;
        if reduced {
            state.lr = lr;
        }
        Ok(reduced)
    }

    /// The rate.
    #[must_use]
    pub fn lr(&self) -> f64 {
        self.state.lr
    }

    /// The best metric so far. Before the first observation the worst there is: `+∞` with [`Mode::Min`], else `−∞`.
    #[must_use]
    pub fn best(&self) -> f64 {
        self.state.best
    }

    /// Observations in a row that were not better, since the last reduction or cooldown.
    #[must_use]
    pub fn num_bad_epochs(&self) -> u64 {
        self.state.num_bad_epochs
    }

    /// Observations left of the cooldown.
    #[must_use]
    pub fn cooldown_counter(&self) -> u64 {
        self.state.cooldown_counter
    }

    /// The progress, to be saved.
    #[must_use]
    pub fn state(&self) -> PlateauState {
        PlateauState { mode: Some(self.mode), ..self.state }
    }

    /// Goes on from a saved progress, whose [`Mode`] must be the same. The settings stay; a rate below [`min_lr`](Self::min_lr) is
    /// raised to it. After an error nothing has changed.
    pub fn restore(&mut self, state: PlateauState) -> Result<()> {
        not_negative("ReduceOnPlateau: state.lr", state.lr)?;
        if state.best.is_nan() {
            let (name, expected) = ("ReduceOnPlateau: state.best".to_owned(), "a number or an infinity");
            return Err(Error::HyperParameter { name, expected, got: state.best.to_string() });
        }
        if let Some(mode) = state.mode.filter(|&mode| mode != self.mode) {
            let name = "ReduceOnPlateau: state.mode".to_owned();
            let expected = "that of the plateau which goes on: a best metric of one mode says nothing in the other";
            return Err(Error::HyperParameter { name, expected, got: format!("{mode:?}") });
        }
        self.state = PlateauState { lr: state.lr.max(self.min_lr.min(self.initial_lr)), mode: None, ..state };
        Ok(())
    }
}

/// The metric that every other is better than.
fn worst(mode: Mode) -> f64 {
    match mode {
        Mode::Min => f64::INFINITY,
        Mode::Max => f64::NEG_INFINITY,
    }
}
