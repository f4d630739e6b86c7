//! What an optimizer works by once everything has been inherited.

use std::fmt;

use crate::error::{check, shown};
use crate::group::{Centralization, Edit};
use crate::guard::{Clip, LossScale};
use crate::{Error, Rate, Result, Rule};

/// Where a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The group sets it.
    Group,
    /// It is the optimizer's.
    Optimizer,
    /// Nobody sets it.
    Default,
    /// It was changed after the optimizer was built.
    Changed,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Group => "the group's",
            Self::Optimizer => "the optimizer's",
            Self::Default => "by default",
            Self::Changed => "changed since",
        })
    }
}

/// A group's settings with everything inherited, and what of it moves on.
#[derive(Clone)]
pub struct Group {
    /// "group 1 (head)", or "the optimizer" without groups: for errors.
    pub(crate) place: String,
    pub(crate) name: Option<String>,
    /// As configured; [`varies`](Self::varies) may change it at each update.
    pub(crate) rule: (Rule, Origin),
    pub(crate) lr: (Rate, Origin),
    pub(crate) weight_decay: (Rate, Origin),
    pub(crate) centralization: (Centralization, Origin),
    /// The largest norm; 0 for none.
    pub(crate) max_norm: f64,
    pub(crate) varies: Vec<Edit>,
    /// Whether it has no parameters: one for a rest that there is not. Nothing is asked of its rates then.
    pub(crate) is_empty: bool,
}

impl Group {
    pub(crate) fn new(place: String, rule: (Rule, Origin), lr: (Rate, Origin), weight_decay: (Rate, Origin)) -> Self {
        let centralization = (Centralization::Off, Origin::Default);
        Self {
            place,
            name: None,
            rule,
            lr,
            weight_decay,
            centralization,
            max_norm: 0.0,
            varies: Vec::new(),
            is_empty: false,
        }
    }

    /// The name, if it was given one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The rule.
    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.rule.0
    }

    /// The rate.
    #[must_use]
    pub fn lr(&self) -> &Rate {
        &self.lr.0
    }

    /// The weight decay.
    #[must_use]
    pub fn weight_decay(&self) -> &Rate {
        &self.weight_decay.0
    }

    /// Whether gradients are centralized.
    #[must_use]
    pub fn grad_centralization(&self) -> Centralization {
        self.centralization.0
    }

    /// The rate of the 0-based update, with the rule as it is then.
    pub(crate) fn lr_at(&self, rule: &Rule, update: u64) -> Result<f64> {
        match rule.spec().own_lr(update + 1) {
            Some(lr) => Ok(lr),
            None => self.lr().at(update, "learning rate", || self.place.clone()),
        }
    }

    /// The weight decay of the 0-based update.
    pub(crate) fn decay_at(&self, update: u64) -> Result<f64> {
        let what = "weight decay";
        let decay = self.weight_decay().at(update, what, || self.place.clone())?;
        if decay < 0.0 {
            return Err(Error::RateNotFinite { what, place: self.place.clone(), update, got: decay });
        }
        Ok(decay)
    }

    /// The largest norm of the group's gradient, if norms are clipped.
    #[must_use]
    pub fn max_norm(&self) -> Option<f64> {
        (self.max_norm > 0.0).then_some(self.max_norm)
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("name", &self.name)
            .field("rule", &self.rule.0)
            .field("lr", &self.lr.0)
            .field("weight_decay", &self.weight_decay.0)
            .field("centralization", &self.centralization.0)
            .finish_non_exhaustive()
    }
}

/// An exponential moving average of the parameters: `ema ← ema + (1 − d) (p − ema)` after each update, from the parameters' first
/// values on.
///
/// Made by `.into()` from the decay alone. A parameter without a gradient keeps its average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ema {
    /// The decay `d`, in \[0, 1).
    pub decay: f64,
    /// Whether `d` starts small: `min(decay, (1 + t) / (10 + t))` at update `t` = 1, 2, …. Default `false`.
    pub warmup: bool,
}

impl From<f64> for Ema {
    fn from(decay: f64) -> Self {
        Self { decay, warmup: false }
    }
}

impl Ema {
    pub(crate) fn validate(&self) -> Result<()> {
        // The kernels take 1 − d, so d itself need not be an f32 below 1.
        if (0.0..1.0).contains(&self.decay) {
            return Ok(());
        }
        let (name, expected) = ("ema.decay".to_owned(), "in [0, 1)");
        Err(Error::HyperParameter { name, expected, got: shown(self.decay) })
    }

    /// `1 − d` at update `t`, 1 for the first.
    pub(crate) fn weight(&self, t: u64) -> f64 {
        let t = t as f64;
        1.0 - if self.warmup { self.decay.min((1.0 + t) / (10.0 + t)) } else { self.decay }
    }
}

/// What holds for a whole optimizer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) loss_scale: LossScale,
    pub(crate) guard: bool,
    pub(crate) clip: Option<(Clip, f64)>,
    pub(crate) limit: Option<f64>,
    /// `λ` and `ε` of adaptive clipping.
    pub(crate) units: Option<(f64, f64)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { loss_scale: LossScale::Plain(1.0), guard: false, clip: None, limit: None, units: None }
    }
}

impl Settings {
    pub(crate) fn validate(&self) -> Result<()> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        self.loss_scale.validate()?;
        if let Some((scope, max_norm)) = self.clip {
            let name = match scope {
                Clip::Global => "clip_norm: max_norm",
                Clip::Group => "clip_norm_per_group: max_norm",
                Clip::Parameter => "clip_norm_per_parameter: max_norm",
            };
            check(name, "finite and > 0", max_norm, positive)?;
        }
        if let Some(limit) = self.limit {
            check("clip_value: limit", "finite and > 0", limit, positive)?;
        }
        if let Some((lambda, epsilon)) = self.units {
            check("clip_adaptive: lambda", "finite and > 0", lambda, positive)?;
            check("clip_adaptive: epsilon", "finite and > 0", epsilon, positive)?;
        }
        Ok(())
    }

    /// Whether gradients are measured before an update.
    pub(crate) fn measures(&self) -> bool {
        self.guard || self.clip.is_some() || self.loss_scale.drops()
    }

    /// Whose norm is clipped.
    pub(crate) fn scope(&self) -> Clip {
        self.clip.map_or(Clip::Global, |(clip, _)| clip)
    }
}
