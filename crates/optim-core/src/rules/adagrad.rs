//! Adagrad: see [`Adagrad`].

use crate::error::check;
use crate::format::Code8;
use crate::rule::{At, Slot, Sparse, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{rounded, single};
use crate::{Rate, Result};

/// Adagrad: every element's rate shrinks with the gradients it has seen (MindSpore `nn.Adagrad`). For sparse features.
///
/// It differs from [`RmsProp`](crate::RmsProp) in never forgetting: `accum` only grows, so steps only shrink.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γ` the rate, `τ` the rate's decay, `t` = 1 at
/// the first update, slot `accum` (sum of squares):
///
/// ```text
/// accum ← accum + g²                             (1)    only with update_slots
/// d = √accum + ε                                 (2)
/// p ← p − γₜ · g / d,   γₜ = γ / (1 + (t − 1) τ)         (3)    where d = 0: no change
/// ```
///
/// Row-sparse gradients: a row that is not listed stays as it is, and so does its `accum`.
///
/// # Differences
/// - **PyTorch** `torch.optim.Adagrad`: the same formulas with other defaults; [`Adagrad::torch`] has them. `t` counts
///   the optimizer's updates; PyTorch counts each parameter's.
/// - **MindSpore** takes its arguments in the order `accum, learning_rate`: `nn.Adagrad(params, 0.1)` sets `accum`. Its
///   CPU kernels hide an epsilon inside the root (1e-6 in 1.5, 1e-8 in 2.10) that neither its page nor its GPU kernel
///   has. Here there is none but ε. With `accum` = 0 and `g` = 0 the plain formula is 0/0; here nothing changes.
///
/// ```
/// use optim_core::{Adagrad, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = Adagrad::new(0.1).params([&weight]);
/// # let _ = builder;
/// // p = 1, g = 1 at every step: accum = 1.1, then 2.1; so p = 1 − 0.1 / √1.1 = 0.9047, then 0.8356.
/// ```
///
/// Sources: Duchi, Hazan & Singer 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization";
/// MindSpore `Adagrad`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Adagrad {
    /// The value of `accum` before the first update, finite and ≥ 0. Default 0.1. Trap: with 0 (PyTorch's default) the
    /// first update moves every element by the whole rate, however small its gradient.
    pub accum: f64,
    /// `γ`, finite and ≥ 0. Default 1e-3. Trap: steps shrink as `1 / √t`, so useful rates are larger than Adam's; 0.01
    /// to 0.1.
    pub lr: Rate,
    /// Whether `accum` grows. Default `true`. Trap: without, it is gradient descent with the rate `γ / (√accum + ε)`.
    pub update_slots: bool,
    /// `ε`, finite and ≥ 0. Default 0. It stands outside the root, as in PyTorch.
    pub epsilon: f64,
    /// `τ`, finite and ≥ 0. Default 0. Trap: it multiplies with whatever the rate's schedule does.
    pub lr_decay: f64,
    /// L2 decay, finite and ≥ 0. Default 0. Trap: it enters `accum` and is divided by its root.
    pub weight_decay: f64,
}

impl Default for Adagrad {
    fn default() -> Self {
        Self { accum: 0.1, lr: Rate::Fixed(1e-3), update_slots: true, epsilon: 0.0, lr_decay: 0.0, weight_decay: 0.0 }
    }
}

impl Adagrad {
    /// Adagrad with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }

    /// PyTorch's defaults: `lr` 0.01, `accum` 0, `epsilon` 1e-10.
    #[must_use]
    pub fn torch() -> Self {
        Self { accum: 0.0, epsilon: 1e-10, ..Self::new(0.01) }
    }
}

config!(Adagrad);

step_scalars! {
    /// `γₜ`
    lr: f32,
    /// `ε`
    epsilon: f32,
    /// 1 if `accum` grows, else 0
    update_slots: u32,
    /// fills 16 bytes
    pad0: u32,
}

impl UpdateRule for Adagrad {
    fn name(&self) -> &'static str {
        "adagrad"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { accum, epsilon, lr_decay, .. } = *self;
        check("adagrad.accum", "finite and ≥ 0", accum, |x| x.is_finite() && x >= 0.0)?;
        check("adagrad.epsilon", "finite and ≥ 0", epsilon, |x| x.is_finite() && x >= 0.0)?;
        check("adagrad.lr_decay", "finite and ≥ 0", lr_decay, |x| x.is_finite() && x >= 0.0)
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot::narrow("accum", single(self.accum), Code8::Positive)]
    }

    #[allow(clippy::cast_precision_loss, reason = "nobody counts to 2^53 updates")]
    fn scalars(&self, at: &At) -> StepScalars {
        StepScalars::new(&Step {
            lr: single(at.lr / (1.0 + (at.t - 1) as f64 * rounded(self.lr_decay))),
            epsilon: single(self.epsilon),
            update_slots: u32::from(self.update_slots),
            pad0: 0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn sparse(&self) -> Sparse {
        Sparse::ListedRows
    }
}
