//! AdamW: see [`AdamW`].

use crate::rule::{At, Decay, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{adam, power, single};
use crate::{Rate, Result};

/// Adam with a decoupled weight decay (PyTorch `torch.optim.AdamW`): the usual choice for transformers.
///
/// It differs from [`Adam`](crate::Adam) in that the decay does not pass through the division by `√v`, so every weight
/// decays at one pace; from [`AdamWeightDecay`](crate::AdamWeightDecay) in its bias correction.
///
/// With `p` the parameter, `g` the gradient (unscaled), `γ` the rate, `λ` the weight decay, `t` = 1 at the first
/// update, `m` the slot `moment1` (mean of gradients), `v` the slot `moment2` (mean of their squares):
///
/// ```text
/// p ← p − γ λ · p                                (1)
/// m ← m + (1 − β₁) (g − m)                       (2)
/// v ← v + (1 − β₂) (g² − v)                      (3)
/// p ← p − α · m / (√v + ε′),  α = γ · √(1 − β₂ᵗ) / (1 − β₁ᵗ),  ε′ = ε · √(1 − β₂ᵗ)        (4)
/// ```
///
/// (4) is `γ · m̂ / (√v̂ + ε)` with both means corrected. With `amsgrad`, the third slot `vhat` keeps the largest `v`
/// so far, and the step never grows again:
///
/// ```text
/// v̂ ← max(v̂, v)                                  (5)
/// p ← p − α · m / (√v̂ + ε′)                      (6)
/// ```
///
/// # Differences
/// - **PyTorch**: the same formulas and defaults. It multiplies by `1 − γ λ` rounded to `f32`, which is off by up to
///   3e-8 of `p` an update; this subtracts. `t` counts the optimizer's updates; PyTorch counts each parameter's. `ε` =
///   0 is an error here.
/// - **MindSpore** has no such rule: its `AdamWeightDecay` corrects no bias, and its default `ε` is 1e-6.
/// - **optax** `adamw`: the same, but a default decay of 1e-4.
///
/// ```
/// use optim_core::{AdamW, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = AdamW { weight_decay: 0.1, ..AdamW::new(3e-4) }.params([&weight]);
/// # let _ = builder;
/// // First update, p = 1, g = 5: p − γ λ p = 0.99997, then a step of γ: 0.99967.
/// ```
///
/// Sources: Loshchilov & Hutter 2017, "Decoupled Weight Decay Regularization", arXiv 1711.05101; Reddi, Kale & Kumar
/// 2018, "On the Convergence of Adam and Beyond", arXiv 1904.09237; PyTorch `AdamW`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct AdamW {
    /// `γ`, finite and ≥ 0. Default 1e-3.
    pub lr: Rate,
    /// `β₁`, in \[0, 1). Default 0.9.
    pub beta1: f64,
    /// `β₂`, in \[0, 1). Default 0.999. Trap: with rare or sparse gradients a value near 1 keeps `v` large for long.
    pub beta2: f64,
    /// `ε`, finite and > 0. Default 1e-8.
    pub eps: f64,
    /// `λ`, decoupled, finite and ≥ 0. Default **1e-2**. Trap: it is scaled by the rate, so a schedule of the rate is
    /// one of the decay; the paper scales it by the schedule's factor alone.
    pub weight_decay: f64,
    /// Divides by the largest `v` so far. Default `false`. Trap: one more slot, and a single huge gradient makes every
    /// later step small.
    pub amsgrad: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { lr: Rate::Fixed(1e-3), beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2, amsgrad: false }
    }
}

impl AdamW {
    /// AdamW with this rate and PyTorch's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }
}

config!(AdamW);

step_scalars! {
    /// `γ λ`
    decay: f32,
    /// `α`: the rate with the bias corrections
    alpha: f32,
    /// `β₁`
    beta1: f32,
    /// `1 − β₁`
    one_minus_beta1: f32,
    /// `β₂`
    beta2: f32,
    /// `1 − β₂`
    one_minus_beta2: f32,
    /// `ε′`
    eps: f32,
    /// fills 32 bytes
    pad0: u32,
}

impl UpdateRule for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        adam::validate_torch("adamw", self.beta1, self.beta2, self.eps)
    }

    fn slots(&self) -> Vec<Slot> {
        let mut slots = adam::slots();
        if self.amsgrad {
            slots.push(Slot::new("vhat", 0.0));
        }
        slots
    }

    fn entry(&self) -> &'static str {
        if self.amsgrad { "update_amsgrad" } else { "update" }
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let Self { beta1, beta2, eps, .. } = *self;
        let correction = (1.0 - power(beta2, at.t)).sqrt();
        StepScalars::new(&Step {
            decay: single(at.lr * at.weight_decay),
            alpha: single(at.lr * correction / (1.0 - power(beta1, at.t))),
            beta1: single(beta1),
            one_minus_beta1: single(1.0 - beta1),
            beta2: single(beta2),
            one_minus_beta2: single(1.0 - beta2),
            eps: single(adam::corrected(eps, correction)),
            pad0: 0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn decay(&self) -> Decay {
        Decay::Decoupled
    }
}
