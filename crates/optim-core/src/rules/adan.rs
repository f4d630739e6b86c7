//! Adan: see [`Adan`].

use crate::error::check;
use crate::format::Code8;
use crate::rule::{At, Decay, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{adam, power, single};
use crate::{Rate, Result};

/// Adam with a third mean, of the differences between gradients: nesterov's look ahead without a second gradient (the
/// code of the paper's authors).
///
/// It differs from [`NAdam`](crate::NAdam) in measuring how the gradient changes instead of guessing it from the mean.
///
/// With `p` the parameter, `g` the gradient (unscaled), `γ` the rate, `λ` the weight decay, `t` = 1 at the first
/// update, `m` the slot `moment1` (mean of gradients), `v` the slot `moment_diff` (mean of their differences), `n` the
/// slot `moment2` (mean of squares), `q` the slot `prev` (the gradient of the update before):
///
/// ```text
/// δ ← g − q                                      (1)    first update of a parameter: δ ← 0
/// m ← m + (1 − β₁) (g − m)                       (2)
/// v ← v + (1 − β₂) (δ − v)                       (3)
/// u ← g + β₂ · δ                                 (4)
/// n ← n + (1 − β₃) (u² − n)                      (5)
/// q ← g                                          (6)
/// p ← p − γ λ · p                                (7)    only with no_prox
/// p ← p − (α · m + κ · v) / (√n + ε′)            (8)
/// p ← p − γ λ / (1 + γ λ) · p                    (9)    not with no_prox: p / (1 + γ λ)
///
/// ε′ = ε · √(1 − β₃ᵗ),   α = γ · √(1 − β₃ᵗ) / (1 − β₁ᵗ),   κ = γ · √(1 − β₃ᵗ) · β₂ / (1 − β₂ᵗ)
/// ```
///
/// # Differences
/// - The **paper** writes `1 − β` for our `β`, does not correct the bias, and starts `m` and `n` from the first
///   gradient. This follows its authors' code (and pytorch_optimizer's `Adan`) in formulas, names and defaults.
/// - **optax** `adan` decays as with `no_prox`. In (4) and (8) it weighs the differences by `1 − β₂` instead of `β₂`
///   (0.08 instead of 0.92; a defect as of 0.2.8), and adds a second `ε` inside the root.
/// - Both of those multiply or divide by a number near 1 rounded to `f32`, which is off by up to 3e-8 of `p` an update; this
///   subtracts.
/// - **PyTorch** and **MindSpore** have no Adan.
/// - A parameter whose gradient was missing for some updates takes the difference from its last one.
///
/// ```
/// use optim_core::{Adan, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = Adan { weight_decay: 0.02, ..Adan::new(1e-3) }.params([&weight]);
/// # let _ = builder;
/// // First update, p = 1, g = 2: δ = 0, so a step of γ and then the decay: 0.999 / 1.00002 = 0.99898.
/// ```
///
/// Sources: Xie et al. 2022, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", arXiv
/// 2208.06677, and its authors' code.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Adan {
    /// `γ`, finite and ≥ 0. Default 1e-3. The authors use 5 to 10 times AdamW's.
    pub lr: Rate,
    /// `β₁` of the gradients, in \[0, 1). Default 0.98.
    pub beta1: f64,
    /// `β₂` of the differences, in \[0, 1). Default 0.92. Trap: it is their weight as well.
    pub beta2: f64,
    /// `β₃` of the squares, in \[0, 1). Default 0.99.
    pub beta3: f64,
    /// `ε`, finite and > 0. Default 1e-8.
    pub eps: f64,
    /// `λ`, decoupled, finite and ≥ 0. Default 0 (the authors use 0.02). Trap: it is scaled by the rate.
    pub weight_decay: f64,
    /// Decays before the step, as [`AdamW`](crate::AdamW) does, instead of dividing after it. Default `false`.
    pub no_prox: bool,
}

impl Default for Adan {
    fn default() -> Self {
        Self {
            lr: Rate::Fixed(1e-3),
            beta1: 0.98,
            beta2: 0.92,
            beta3: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
            no_prox: false,
        }
    }
}

impl Adan {
    /// Adan with this rate and the authors' defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }
}

config!(Adan);

step_scalars! {
    /// `β₁`
    beta1: f32,
    /// `1 − β₁`
    one_minus_beta1: f32,
    /// `β₂`
    beta2: f32,
    /// `1 − β₂`
    one_minus_beta2: f32,
    /// `β₃`
    beta3: f32,
    /// `1 − β₃`
    one_minus_beta3: f32,
    /// `α`: the rate of the mean
    alpha: f32,
    /// `κ`: the rate of the mean difference
    kappa: f32,
    /// `ε′`
    eps: f32,
    /// `γ λ` with no_prox, else 0
    decay: f32,
    /// `γ λ / (1 + γ λ)` without no_prox, else 0
    decay_after: f32,
    /// 1 at a parameter's first update, else 0
    first: u32,
}

impl UpdateRule for Adan {
    fn name(&self) -> &'static str {
        "adan"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { beta1, beta2, beta3, eps, .. } = *self;
        adam::validate_torch("adan", beta1, beta2, eps)?;
        check("adan.beta3", "in [0, 1)", beta3, |x| (0.0..1.0).contains(&x))
    }

    fn slots(&self) -> Vec<Slot> {
        vec![
            Slot::narrow("moment1", 0.0, Code8::Signed),
            Slot::narrow("moment_diff", 0.0, Code8::Signed),
            Slot::narrow("moment2", 0.0, Code8::Positive),
            // Its difference to the next gradient counts, which a rounding would drown.
            Slot::new("prev", 0.0),
        ]
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let Self { beta1, beta2, beta3, eps, .. } = *self;
        let rate = at.lr * (1.0 - power(beta3, at.t)).sqrt();
        let decay = at.lr * at.weight_decay;
        StepScalars::new(&Step {
            beta1: single(beta1),
            one_minus_beta1: single(1.0 - beta1),
            beta2: single(beta2),
            one_minus_beta2: single(1.0 - beta2),
            beta3: single(beta3),
            one_minus_beta3: single(1.0 - beta3),
            alpha: single(rate / (1.0 - power(beta1, at.t))),
            kappa: single(rate * beta2 / (1.0 - power(beta2, at.t))),
            eps: single(adam::corrected(eps, (1.0 - power(beta3, at.t)).sqrt())),
            decay: if self.no_prox { single(decay) } else { 0.0 },
            decay_after: if self.no_prox { 0.0 } else { single(decay / (1.0 + decay)) },
            first: u32::from(at.first),
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn decay(&self) -> Decay {
        Decay::Decoupled
    }

    fn first_update_differs(&self) -> bool {
        true
    }
}
