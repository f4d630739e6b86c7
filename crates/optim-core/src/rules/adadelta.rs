//! Adadelta: see [`Adadelta`].

use crate::error::check;
use crate::format::Code8;
use crate::rule::{At, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{rounded, single};
use crate::{Rate, Result};

/// Adadelta: steps as large as recent steps were, in proportion to recent gradients; hardly a rate to choose (MindSpore
/// `nn.Adadelta`).
///
/// It differs from [`RmsProp`](crate::RmsProp) in that the numerator is a root mean square of its own updates.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γ` the rate, slots `a` (`accum`, mean square of
/// gradients) and `b` (`accum_update`, mean square of updates):
///
/// ```text
/// a ← ρ · a + (1 − ρ) · g²                       (1)
/// u = √(b + ε) / √(a + ε) · g                    (2)    where a + ε = 0: 0
/// b ← ρ · b + (1 − ρ) · u²                       (3)
/// p ← p − γ · u                                  (4)
/// ```
///
/// # Differences
/// - **PyTorch** `torch.optim.Adadelta`: the same formulas and defaults, but `ρ` is rounded to `f32` before `1 − ρ` is formed, as in
///   MindSpore: that changes `1 − ρ` by up to 3e-8, with a `ρ` of 0.999 by 1.3e-5 of itself.
/// - **MindSpore** has it from 2.x on. It divides 0 by 0 where `ε`, `a` and `g` are 0; here nothing changes then.
///
/// ```
/// use optim_core::{Adadelta, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = Adadelta::default().params([&weight]);
/// # let _ = builder;
/// // p = 1, g = 1: a = 0.1, u = √1e-6 / √0.1 = 0.00316; so p = 0.99684. Steps begin small and grow.
/// ```
///
/// Sources: Zeiler 2012, "ADADELTA: An Adaptive Learning Rate Method", arXiv 1212.5701; MindSpore `Adadelta`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Adadelta {
    /// `γ`, finite and ≥ 0. Default 1. Trap: the paper has none (1); a usual rate such as 1e-3 makes steps a thousand
    /// times smaller.
    pub lr: Rate,
    /// `ρ`, inside [0, 1]. Default 0.9. Trap: with 1, `a` and `b` stay 0.
    pub rho: f64,
    /// `ε`, finite and ≥ 0. Default 1e-6. Trap: with 0 nothing ever moves, since `b` starts at 0; it sets the first
    /// steps' size.
    pub epsilon: f64,
    /// L2 decay, finite and ≥ 0. Default 0.
    pub weight_decay: f64,
}

impl Default for Adadelta {
    fn default() -> Self {
        Self { lr: Rate::Fixed(1.0), rho: 0.9, epsilon: 1e-6, weight_decay: 0.0 }
    }
}

impl Adadelta {
    /// Adadelta with this rate and the usual defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }
}

config!(Adadelta);

step_scalars! {
    /// `γ`
    lr: f32,
    /// `ρ`
    rho: f32,
    /// `1 − ρ`
    one_minus_rho: f32,
    /// `ε`
    epsilon: f32,
}

impl UpdateRule for Adadelta {
    fn name(&self) -> &'static str {
        "adadelta"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { rho, epsilon, .. } = *self;
        check("adadelta.rho", "inside [0, 1]", rho, |x| (0.0..=1.0).contains(&x))?;
        check("adadelta.epsilon", "finite and ≥ 0", epsilon, |x| x.is_finite() && x >= 0.0)
    }

    fn slots(&self) -> Vec<Slot> {
        ["accum", "accum_update"].map(|name| Slot::narrow(name, 0.0, Code8::Positive)).to_vec()
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let rho = rounded(self.rho);
        StepScalars::new(&Step {
            lr: single(at.lr),
            rho: single(rho),
            one_minus_rho: single(1.0 - rho),
            epsilon: single(self.epsilon),
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }
}
