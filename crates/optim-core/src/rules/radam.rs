//! Rectified Adam: see [`RAdam`].

use crate::rule::{At, Decay, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{adam, power, single};
use crate::{Rate, Result};

/// Adam that begins as plain momentum and trusts `v` only as fast as it fills (PyTorch `torch.optim.RAdam`): a warm-up
/// of its own.
///
/// It differs from [`Adam`](crate::Adam) in the factor `r` and in its first updates.
///
/// With `p` the parameter, `g` the gradient (unscaled; with L2 decay unless that is decoupled), `γ` the rate, `λ` the
/// decoupled weight decay, `t` = 1 at the first update, `m` the slot `moment1` (mean of gradients), `v` the slot
/// `moment2` (mean of their squares):
///
/// ```text
/// p ← p − γ λ · p                                (1)    λ = 0 unless decoupled_weight_decay
/// m ← m + (1 − β₁) (g − m)                       (2)
/// v ← v + (1 − β₂) (g² − v)                      (3)
/// d ← m                                          (4)    rectified: d ← m / (√v + ε)
/// p ← p − α · d                                  (5)
///
/// ρ∞ = 2 / (1 − β₂) − 1,   ρ = ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ),   rectified if ρ > 5
/// r  = √((ρ − 4) (ρ − 2) ρ∞ / ((ρ∞ − 4) (ρ∞ − 2) ρ))
/// α  = γ / (1 − β₁ᵗ),   rectified: α = γ · r · √(1 − β₂ᵗ) / (1 − β₁ᵗ)
/// ```
///
/// # Differences
/// - **PyTorch**: the same formulas and defaults, and the same place of `ε`, beside the **uncorrected** `√v` (unlike
///   its `Adam`). `t` counts the optimizer's updates; PyTorch counts each parameter's. `ε` = 0 is an error here.
/// - The **paper** rectifies if ρ > 4; PyTorch, the authors' code (and this) are more careful.
/// - **MindSpore** has no RAdam.
///
/// ```
/// use optim_core::{Parameter, RAdam};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = RAdam { weight_decay: 1e-4, ..RAdam::new(1e-3) }.params([&weight]);
/// # let _ = builder;
/// // The first five updates with β₂ = 0.999 are plain: g = 2 at every step moves p by 2 γ, the sixth by 0.026 γ.
/// ```
///
/// Sources: Liu et al. 2019, "On the Variance of the Adaptive Learning Rate and Beyond", arXiv 1908.03265; PyTorch
/// `RAdam`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct RAdam {
    /// `γ`, finite and ≥ 0. Default 1e-3. Trap: before `ρ` exceeds 5 the step is `γ · m̂`, as large as the gradient.
    pub lr: Rate,
    /// `β₁`, in \[0, 1). Default 0.9.
    pub beta1: f64,
    /// `β₂`, in \[0, 1). Default 0.999. Trap: with 2/3 or less `ρ` never exceeds 5, and `v` is never used.
    pub beta2: f64,
    /// `ε`, finite and > 0. Default 1e-8. Trap: it is added to the uncorrected `√v`.
    pub eps: f64,
    /// Decay, finite and ≥ 0: L2, or decoupled and scaled by the rate. Default 0.
    pub weight_decay: f64,
    /// Decay apart from the gradient, as [`AdamW`](crate::AdamW) does. Default `false`.
    pub decoupled_weight_decay: bool,
}

impl Default for RAdam {
    fn default() -> Self {
        Self {
            lr: Rate::Fixed(1e-3),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled_weight_decay: false,
        }
    }
}

impl RAdam {
    /// RAdam with this rate and PyTorch's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }

    /// `r · √(1 − β₂ᵗ)` if the update is rectified.
    fn rectification(&self, t: u64) -> Option<f64> {
        let faded = power(self.beta2, t);
        let limit = 2.0 / (1.0 - self.beta2) - 1.0;
        let rho = limit - 2.0 * t as f64 * faded / (1.0 - faded);
        let r = || ((rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho)).sqrt();
        (rho > 5.0).then(|| r() * (1.0 - faded).sqrt())
    }
}

config!(RAdam);

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
    /// `α`: the rate with the bias corrections and `r`
    alpha: f32,
    /// `ε`
    eps: f32,
    /// 1 if rectified, else 0
    rectified: u32,
}

impl UpdateRule for RAdam {
    fn name(&self) -> &'static str {
        "radam"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        adam::validate_torch("radam", self.beta1, self.beta2, self.eps)
    }

    fn slots(&self) -> Vec<Slot> {
        adam::slots()
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let rectification = self.rectification(at.t);
        StepScalars::new(&Step {
            decay: single(at.lr * at.weight_decay),
            beta1: single(self.beta1),
            one_minus_beta1: single(1.0 - self.beta1),
            beta2: single(self.beta2),
            one_minus_beta2: single(1.0 - self.beta2),
            alpha: single(at.lr * rectification.unwrap_or(1.0) / (1.0 - power(self.beta1, at.t))),
            eps: single(self.eps),
            rectified: u32::from(rectification.is_some()),
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn decay(&self) -> Decay {
        if self.decoupled_weight_decay { Decay::Decoupled } else { Decay::L2 }
    }
}
