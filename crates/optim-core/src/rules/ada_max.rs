//! AdaMax: see [`AdaMax`].

use crate::rule::{At, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{adam, power, rounded, single};
use crate::{Rate, Result};

/// Adam with the largest recent gradient in place of the root of the mean square (MindSpore `nn.AdaMax`, and with
/// [`AdaMax::torch`] PyTorch's `torch.optim.Adamax`).
///
/// It differs from [`Adam`](crate::Adam) in its second moment, which needs no bias correction and no root.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γ` the rate, `t` = 1 at the first update, `m`
/// the slot `moment1` (mean of gradients), `v` the slot `moment2` (their largest size, fading):
///
/// ```text
/// m ← m + (1 − β₁) (g − m)                       (1)
/// v ← max(β₂ · v, |g| + ε′)                      (2)    ε′ = 0;  eps_inside: ε′ = ε
/// p ← p − α · m / (v + ε″),   α = γ / (1 − β₁ᵗ)  (3)    ε″ = ε;  eps_inside: ε″ = 0
/// ```
///
/// # Differences
/// - **PyTorch** `torch.optim.Adamax` puts `ε` inside the maximum, beside `|g|`: `eps_inside`. Its default rate is
///   2e-3, here 1e-3. [`AdaMax::torch`] is both.
/// - **MindSpore** forms `β₁ᵗ` as a running `f32` product, and so does this; with `eps_inside` it is an `f64` power, as PyTorch's.
/// - A gradient that is not a number reaches `m` and `p`, not `v`.
///
/// ```
/// use optim_core::{AdaMax, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = AdaMax::new(2e-3).params([&weight]);
/// # let _ = builder;
/// // First update, g = 5: m = 0.5, v = 5, α = γ / 0.1, so p moves by γ.
/// ```
///
/// Sources: Kingma & Ba 2014, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980, section 7.1; MindSpore
/// `AdaMax`; PyTorch `Adamax`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct AdaMax {
    /// `γ`, finite and ≥ 0. Default 1e-3 (PyTorch's is 2e-3).
    pub lr: Rate,
    /// `β₁`, inside (0, 1). Default 0.9.
    pub beta1: f64,
    /// `β₂`, inside (0, 1). Default 0.999. Trap: one huge gradient makes steps small for about `1 / (1 − β₂)` updates.
    pub beta2: f64,
    /// `ε`, finite and > 0. Default 1e-8.
    pub eps: f64,
    /// PyTorch's numbers: `ε` inside the maximum, and `β₁`, `β₂` not rounded to `f32` (0 is then allowed). Default
    /// `false`; `true` in [`AdaMax::torch`].
    pub eps_inside: bool,
    /// L2 decay, finite and ≥ 0. Default 0. Trap: it passes through the division by `v`, so strong gradients decay
    /// less.
    pub weight_decay: f64,
}

impl Default for AdaMax {
    fn default() -> Self {
        Self { lr: Rate::Fixed(1e-3), beta1: 0.9, beta2: 0.999, eps: 1e-8, eps_inside: false, weight_decay: 0.0 }
    }
}

impl AdaMax {
    /// AdaMax with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }

    /// PyTorch's Adamax with PyTorch's defaults: a rate of 2e-3, `ε` inside the maximum.
    #[must_use]
    pub fn torch() -> Self {
        Self { lr: Rate::Fixed(2e-3), eps_inside: true, ..Self::default() }
    }
}

config!(AdaMax);

step_scalars! {
    /// `α`: the rate with the bias correction
    alpha: f32,
    /// `β₁`
    beta1: f32,
    /// `1 − β₁`
    one_minus_beta1: f32,
    /// `β₂`
    beta2: f32,
    /// `ε′`
    eps_inside: f32,
    /// `ε″`
    eps_outside: f32,
    /// fills 32 bytes
    pad0: u32,
    /// fills 32 bytes
    pad1: u32,
}

impl UpdateRule for AdaMax {
    fn name(&self) -> &'static str {
        "ada_max"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let validate = if self.eps_inside { adam::validate_torch } else { adam::validate };
        validate("ada_max", self.beta1, self.beta2, self.eps)
    }

    fn slots(&self) -> Vec<Slot> {
        adam::slots()
    }

    fn betas(&self) -> [f64; 2] {
        [self.beta1, self.beta2]
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let (beta1, beta2, eps_inside, eps_outside, beta1_power) = if self.eps_inside {
            (self.beta1, self.beta2, self.eps, 0.0, power(self.beta1, at.t))
        } else {
            (rounded(self.beta1), rounded(self.beta2), 0.0, self.eps, at.beta_powers[0])
        };
        StepScalars::new(&Step {
            alpha: single(at.lr / (1.0 - beta1_power)),
            beta1: single(beta1),
            one_minus_beta1: single(1.0 - beta1),
            beta2: single(beta2),
            eps_inside: single(eps_inside),
            eps_outside: single(eps_outside),
            pad0: 0,
            pad1: 0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }
}
