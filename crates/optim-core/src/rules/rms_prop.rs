//! RMSProp: see [`RmsProp`].

use crate::error::check;
use crate::format::Code8;
use crate::rule::{At, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{rounded, single};
use crate::{Rate, Result};

/// RMSProp: gradients divided by the root of a running mean of their squares (MindSpore `nn.RMSProp`).
///
/// It differs from [`Adagrad`](crate::Adagrad) in forgetting old gradients, from [`Adam`](crate::Adam) in having no
/// bias correction.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γ` the rate, `ρ` the decay, `μ` the momentum,
/// slots `ms` (mean square), `moment` and, if centered, `mg` (mean gradient):
///
/// ```text
/// ms ← ρ · ms + (1 − ρ) · g²                     (1)
/// mg ← ρ · mg + (1 − ρ) · g                      (2)    only centered
/// d = √(ms + ε)                                  (3)    centered: √(max(ms − mg², 0) + ε);  eps_outside: √(…) + ε
/// moment ← μ · moment + γ · g / d                (4)    lr_outside: without γ
/// p ← p − moment                                 (5)    lr_outside: p − γ · moment
/// ```
///
/// Without momentum, `moment` would be overwritten at every update: the slot is left out and memory saved.
///
/// # Differences
/// - **PyTorch** `torch.optim.RMSprop` starts `ms` at 0, adds ε outside the root and keeps the rate out of `moment`;
///   [`RmsProp::torch`] does the same. In its centered form PyTorch takes the root of `ms − mg²` even where rounding
///   made that negative, which gives NaN; here it counts as 0.
/// - **MindSpore**'s plain CPU kernel puts ε outside the root for all but the last few elements (a defect; invisible at
///   1e-10).
///
/// ```
/// use optim_core::{Parameter, RmsProp};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = RmsProp { momentum: 0.9, ..RmsProp::new(0.1) }.params([&weight]);
/// # let _ = builder;
/// // p = 1, g = 2: ms = 0.9 · 1 + 0.1 · 4 = 1.3, moment = 0.1 · 2 / √1.3 = 0.1754, p = 0.8246.
/// ```
///
/// Sources: Tieleman & Hinton 2012, "Lecture 6.5: RMSProp"; Graves 2013, "Generating Sequences With Recurrent Neural
/// Networks", arXiv 1308.0850, for the centered form; MindSpore `RMSProp`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct RmsProp {
    /// `γ`, finite and ≥ 0. Default 0.1 (MindSpore's; PyTorch's is 0.01). Trap: with PyTorch's other settings 0.1 is
    /// too large.
    pub lr: Rate,
    /// `ρ`, finite and ≥ 0, rounded to `f32` before `1 − ρ` is formed unless both `eps_outside` and `lr_outside` are set. Default 0.9. Trap: PyTorch calls it `alpha`, with 0.99. A value above 1 makes `1 − ρ`
    /// negative.
    pub decay: f64,
    /// `μ`, finite and ≥ 0. Default 0. Trap: with the rate inside `moment`, old steps keep the rate they were made
    /// with.
    pub momentum: f64,
    /// `ε`, finite and > 0. Default 1e-10. Trap: inside the root it weighs as its own root: 1e-10 there is 1e-5
    /// outside.
    pub epsilon: f64,
    /// Divides by the standard deviation of the gradient instead of its root mean square. Default `false`. Trap: where
    /// the gradient hardly varies, `d` is nearly 0 and the step very large.
    pub centered: bool,
    /// The value of `ms` before the first update, finite and ≥ 0. Default 1. Trap: with 0 the first step is
    /// `1 / √(1 − ρ)` rates long, for every element.
    pub initial_ms: f64,
    /// Adds ε after taking the root. Default `false`.
    pub eps_outside: bool,
    /// Keeps the rate out of `moment`, so that a changed rate acts at once. Default `false`.
    pub lr_outside: bool,
    /// L2 decay, finite and ≥ 0. Default 0. Trap: it passes through the division by `d`.
    pub weight_decay: f64,
}

impl Default for RmsProp {
    fn default() -> Self {
        Self {
            lr: Rate::Fixed(0.1),
            decay: 0.9,
            momentum: 0.0,
            epsilon: 1e-10,
            centered: false,
            initial_ms: 1.0,
            eps_outside: false,
            lr_outside: false,
            weight_decay: 0.0,
        }
    }
}

impl RmsProp {
    /// RMSProp with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }

    /// PyTorch's formula and defaults: `lr` 0.01, `decay` 0.99, `epsilon` 1e-8 outside the root, `ms` from 0, the rate
    /// outside `moment`.
    #[must_use]
    pub fn torch() -> Self {
        let form = Self { initial_ms: 0.0, eps_outside: true, lr_outside: true, ..Self::new(0.01) };
        Self { decay: 0.99, epsilon: 1e-8, ..form }
    }
}

config!(RmsProp);

step_scalars! {
    /// `ρ`
    decay: f32,
    /// `1 − ρ`
    one_minus_decay: f32,
    /// `μ`
    momentum: f32,
    /// `ε`, or 0 if it stands outside the root
    eps_inside: f32,
    /// `ε`, or 0 if it stands inside the root
    eps_outside: f32,
    /// `γ`, or 1 if it stands outside `moment`
    lr_inside: f32,
    /// `γ`, or 1 if it stands inside `moment`
    lr_outside: f32,
    /// fills 32 bytes
    pad0: u32,
}

impl UpdateRule for RmsProp {
    fn name(&self) -> &'static str {
        "rms_prop"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { decay, momentum, epsilon, initial_ms, .. } = *self;
        check("rms_prop.decay", "finite and ≥ 0", decay, |x| x.is_finite() && x >= 0.0)?;
        check("rms_prop.momentum", "finite and ≥ 0", momentum, |x| x.is_finite() && x >= 0.0)?;
        check("rms_prop.epsilon", "finite and > 0", epsilon, |x| x.is_finite() && single(x) > 0.0)?;
        check("rms_prop.initial_ms", "finite and ≥ 0", initial_ms, |x| x.is_finite() && x >= 0.0)
    }

    fn slots(&self) -> Vec<Slot> {
        // Centered, the root of the difference of two slots is taken, which a rounding could make negative.
        let ms = single(self.initial_ms);
        let ms = if self.centered { Slot::new("ms", ms) } else { Slot::narrow("ms", ms, Code8::Positive) };
        let mut slots = vec![ms];
        if self.momentum != 0.0 {
            slots.push(Slot::narrow("moment", 0.0, Code8::Signed));
        }
        if self.centered {
            slots.push(Slot::new("mg", 0.0));
        }
        slots
    }

    fn entry(&self) -> &'static str {
        match (self.momentum == 0.0, self.centered) {
            (false, false) => "update",
            (false, true) => "update_centered",
            (true, false) => "update_plain",
            (true, true) => "update_plain_centered",
        }
    }

    fn scalars(&self, at: &At) -> StepScalars {
        // PyTorch keeps 1 − ρ as it is.
        let decay = if self.eps_outside && self.lr_outside { self.decay } else { rounded(self.decay) };
        let (eps, lr) = (single(self.epsilon), single(at.lr));
        let (eps_inside, eps_outside) = if self.eps_outside { (0.0, eps) } else { (eps, 0.0) };
        let (lr_inside, lr_outside) = if self.lr_outside { (1.0, lr) } else { (lr, 1.0) };
        StepScalars::new(&Step {
            decay: single(decay),
            one_minus_decay: single(1.0 - decay),
            momentum: single(self.momentum),
            eps_inside,
            eps_outside,
            lr_inside,
            lr_outside,
            pad0: 0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }
}
