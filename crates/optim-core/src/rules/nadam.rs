//! NAdam: see [`NAdam`].

use crate::error::check;
use crate::rule::{At, Decay, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{adam, power, single};
use crate::{Rate, Result};

/// Adam that looks ahead along a momentum which grows at the beginning (PyTorch `torch.optim.NAdam`).
///
/// It differs from [`Adam`](crate::Adam) with nesterov in its momentum schedule `μ`, whose product takes the place of
/// `β₁ᵗ`.
///
/// With `p` the parameter, `g` the gradient (unscaled; with L2 decay unless that is decoupled), `γ` the rate, `λ` the
/// decoupled weight decay, `ψ` the momentum decay, `t` = 1 at the first update, `m` the slot `moment1` (mean of
/// gradients), `v` the slot `moment2` (mean of their squares):
///
/// ```text
/// p ← p − γ λ · p                                (1)    λ = 0 unless decoupled_weight_decay
/// m ← m + (1 − β₁) (g − m)                       (2)
/// v ← v + (1 − β₂) (g² − v)                      (3)
/// p ← p − (α · m + κ · g) / (√v + ε′)            (4)
///
/// μₜ = β₁ (1 − ½ · 0.96^(t ψ)),   Πₜ = μ₁ · … · μₜ,   ε′ = ε · √(1 − β₂ᵗ)
/// α  = γ · √(1 − β₂ᵗ) · μₜ₊₁ / (1 − Πₜ₊₁),   κ = γ · √(1 − β₂ᵗ) · (1 − μₜ) / (1 − Πₜ)
/// ```
///
/// # Differences
/// - **PyTorch**: the same formulas and defaults. It keeps `Πₜ` as an `f32` number for each parameter; here it is made
///   anew in `f64` from the optimizer's count of updates. `ε` = 0 is an error here.
/// - **MindSpore** has no NAdam. **optax** `nadam` has no momentum schedule: `μ = β₁`.
///
/// ```
/// use optim_core::{NAdam, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = NAdam { weight_decay: 0.01, decoupled_weight_decay: true, ..NAdam::new(1e-3) }.params([&weight]);
/// # let _ = builder;
/// // First update, λ = 0: μ₁ = 0.450, μ₂ = 0.450, Π₂ = 0.203, so p moves by γ (0.1 · 0.450 / 0.797 + 1) = 1.06 γ.
/// ```
///
/// Sources: Dozat 2016, "Incorporating Nesterov Momentum into Adam"; Loshchilov & Hutter 2017, arXiv 1711.05101, for
/// the decay; PyTorch `NAdam`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct NAdam {
    /// `γ`, finite and ≥ 0. Default 2e-3.
    pub lr: Rate,
    /// `β₁`, in \[0, 1), the limit of the momentum. Default 0.9. Trap: the momentum begins at half of it.
    pub beta1: f64,
    /// `β₂`, in \[0, 1). Default 0.999.
    pub beta2: f64,
    /// `ε`, finite and > 0. Default 1e-8.
    pub eps: f64,
    /// Decay, finite and ≥ 0: L2, or decoupled and scaled by the rate. Default 0.
    pub weight_decay: f64,
    /// `ψ`, finite and ≥ 0: how fast `μ` grows from `β₁ / 2` to `β₁`. Default 4e-3: half the way after 4,200 updates.
    /// With 0 it stays `β₁ / 2`.
    pub momentum_decay: f64,
    /// Decay apart from the gradient, as [`AdamW`](crate::AdamW) does. Default `false`.
    pub decoupled_weight_decay: bool,
}

impl Default for NAdam {
    fn default() -> Self {
        Self {
            lr: Rate::Fixed(2e-3),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            momentum_decay: 4e-3,
            decoupled_weight_decay: false,
        }
    }
}

impl NAdam {
    /// NAdam with this rate and PyTorch's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }

    /// `μₜ`, `μₜ₊₁` and `Πₜ`.
    ///
    /// `μᵢ < β₁`, so the product is soon far below what `1 − Πₜ` can show. There the loop ends, with the defaults after 59 turns; or
    /// where `μᵢ` has become `β₁`.
    fn momenta(&self, t: u64) -> (f64, f64, f64) {
        let fading = 0.96_f64.powf(self.momentum_decay);
        let mu = |power: f64| self.beta1 * (1.0 - 0.5 * power);
        let (mut product, mut faded) = (1.0, 1.0);
        for i in 0..t {
            faded *= fading;
            product *= mu(faded);
            if product < 1e-20 {
                break;
            }
            if faded < f64::EPSILON {
                product *= power(self.beta1, t - i - 1);
                break;
            }
        }
        let faded = power(fading, t);
        (mu(faded), mu(faded * fading), product)
    }
}

config!(NAdam);

step_scalars! {
    /// `γ λ`
    decay: f32,
    /// `β₁`
    beta1: f32,
    /// `1 − β₁`
    one_minus_beta1: f32,
    /// `β₂`
    beta2: f32,
    /// `1 − β₂`
    one_minus_beta2: f32,
    /// `α`: the rate of the mean
    alpha: f32,
    /// `κ`: the rate of the gradient
    kappa: f32,
    /// `ε′`
    eps: f32,
}

impl UpdateRule for NAdam {
    fn name(&self) -> &'static str {
        "nadam"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        adam::validate_torch("nadam", self.beta1, self.beta2, self.eps)?;
        let momentum_decay = self.momentum_decay;
        check("nadam.momentum_decay", "finite and ≥ 0", momentum_decay, |x| x.is_finite() && x >= 0.0)
    }

    fn slots(&self) -> Vec<Slot> {
        adam::slots()
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let (mu, mu_next, product) = self.momenta(at.t);
        let correction = (1.0 - power(self.beta2, at.t)).sqrt();
        StepScalars::new(&Step {
            decay: single(at.lr * at.weight_decay),
            beta1: single(self.beta1),
            one_minus_beta1: single(1.0 - self.beta1),
            beta2: single(self.beta2),
            one_minus_beta2: single(1.0 - self.beta2),
            alpha: single(at.lr * correction * mu_next / (1.0 - product * mu_next)),
            kappa: single(at.lr * correction * (1.0 - mu) / (1.0 - product)),
            eps: single(adam::corrected(self.eps, correction)),
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn decay(&self) -> Decay {
        if self.decoupled_weight_decay { Decay::Decoupled } else { Decay::L2 }
    }
}
