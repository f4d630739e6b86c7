//! Averaged stochastic gradient descent: see [`Asgd`].

use crate::error::check;
use crate::rule::{At, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{power, single};
use crate::{Rate, Result};

/// Gradient descent that also keeps the average of the weights it came through (MindSpore `nn.ASGD`).
///
/// It differs from [`Sgd`](crate::Sgd) in a rate that decays by itself, and in the slot `ax`, which is not used in
/// training: read it at the end, as the better weights.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γₜ` the rate, `t` = 1 at the first update, slot
/// `ax` (the average):
///
/// ```text
/// p ← p − (λ · ηₜ · p + ηₜ · g)                  (1)    ηₜ = γₜ₋₁ / (1 + λ · γₜ₋₁ · (t − 1))^α,  η₁ = γ₁
/// ax ← ax + μₜ · (p − ax)                        (2)    μₜ = 1 / max(1, t − 1 − t₀);  where μₜ = 1: ax ← p
/// ```
///
/// # Differences
/// - **PyTorch** `torch.optim.ASGD`: the same formulas; its default rate is 0.01, as in [`Asgd::torch`]. It and MindSpore
///   multiply by `1 − λ ηₜ` rounded to `f32`, which is off by up to 3e-8 of `p` an update; this subtracts. PyTorch counts
///   `t` for each parameter, here it is the optimizer's; a parameter that gets its first gradient late begins its
///   average there.
/// - **MindSpore** has it from 2.x on, with `η` and `μ` as state; here they follow from `t` and the rates.
///
/// ```
/// use optim_core::{Asgd, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = Asgd { t0: 1000.0, ..Asgd::new(0.1) }.params([&weight]);
/// # let _ = builder;
/// // p = 1, g = 1: p = (1 − 1e-4 · 0.1) · 1 − 0.1 · 1 = 0.89999; ax = p up to update 1002, then the average since.
/// ```
///
/// Sources: Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; Bottou 2010, "Large-Scale
/// Machine Learning with Stochastic Gradient Descent"; MindSpore `ASGD`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Asgd {
    /// `γ`, finite and ≥ 0. Default 0.1. Trap: an update uses the rate of the update before (only the first uses its
    /// own).
    pub lr: Rate,
    /// `λ`, finite and ≥ 0. Default 1e-4. Trap: it both decays the rate and shrinks the weights.
    pub lambd: f64,
    /// `α`, the power of the rate's decay, finite. Default 0.75.
    pub alpha: f64,
    /// `t₀`, the update after which averaging begins, finite. Default 1e6. Trap: in shorter trainings `ax` is just `p`.
    pub t0: f64,
    /// L2 decay, finite and ≥ 0. Default 0. Trap: `λ` already shrinks weights.
    pub weight_decay: f64,
}

impl Default for Asgd {
    fn default() -> Self {
        Self { lr: Rate::Fixed(0.1), lambd: 1e-4, alpha: 0.75, t0: 1e6, weight_decay: 0.0 }
    }
}

impl Asgd {
    /// Averaged gradient descent with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }

    /// PyTorch's defaults: `lr` 0.01.
    #[must_use]
    pub fn torch() -> Self {
        Self::new(0.01)
    }
}

config!(Asgd);

step_scalars! {
    /// `λ ηₜ`
    decay: f32,
    /// `ηₜ`
    eta: f32,
    /// `μₜ`
    mu: f32,
    /// 1 if `μₜ` is 1, else 0
    copies: u32,
}

impl UpdateRule for Asgd {
    fn name(&self) -> &'static str {
        "asgd"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { lambd, alpha, t0, .. } = *self;
        check("asgd.lambd", "finite and ≥ 0", lambd, |x| x.is_finite() && x >= 0.0)?;
        check("asgd.alpha", "finite", alpha, |x| x.is_finite())?;
        check("asgd.t0", "finite", t0, |x| x.is_finite())
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot::new("ax", 0.0)]
    }

    #[allow(clippy::cast_precision_loss, reason = "nobody counts to 2^53 updates")]
    fn scalars(&self, at: &At) -> StepScalars {
        let before = (at.t - 1) as f64;
        let eta = match at.t {
            1 => at.lr,
            _ => at.previous_lr / real_power(1.0 + self.lambd * at.previous_lr * before, self.alpha),
        };
        let mu = if at.first { 1.0 } else { 1.0 / (before - self.t0).max(1.0) };
        StepScalars::new(&Step {
            decay: single(self.lambd * eta),
            eta: single(eta),
            mu: single(mu),
            copies: u32::from(mu >= 1.0),
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn first_update_differs(&self) -> bool {
        true
    }

    fn uses_previous_lr(&self) -> bool {
        true
    }
}

/// `base` to a power that need not be whole, by squaring and by roots: the same bits on every platform, unlike `powf`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the whole part of a number that is ≥ 0")]
fn real_power(base: f64, exponent: f64) -> f64 {
    let mut rest = exponent.abs().fract();
    let mut result = power(base, exponent.abs() as u64);
    // The binary digits of what is left: base^½, base^¼, …
    let mut root = base;
    while rest > 0.0 {
        root = root.sqrt();
        rest *= 2.0;
        if rest >= 1.0 {
            result *= root;
            rest -= 1.0;
        }
    }
    if exponent < 0.0 { 1.0 / result } else { result }
}
