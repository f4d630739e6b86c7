//! Proximal Adagrad: see [`ProximalAdagrad`].

use crate::error::check;
use crate::format::Code8;
use crate::rule::{At, Slot, Sparse, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::single;
use crate::{Rate, Result};

/// Adagrad with an L1 term that makes weights exactly zero, and an L2 term (MindSpore `nn.ProximalAdagrad`). For sparse
/// models.
///
/// It differs from [`Ftrl`](crate::Ftrl) in moving the weight that there is, instead of rebuilding it from sums.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γ` the rate, slot `accum` (sum of squares):
///
/// ```text
/// accum ← accum + g²                             (1)
/// η = γ / √accum                                 (2)    where accum = 0: no change
/// q = p − η · g                                  (3)
/// p ← sign(q) · max(|q| − η · l1, 0) / (1 + η · l2)      (4)
/// ```
///
/// Row-sparse gradients: a row that is not listed stays as it is, and so does its `accum`.
///
/// # Differences
/// - **PyTorch** has no such rule.
/// - **MindSpore**'s page prints `γ · l1` and `γ · l2`; all its kernels shrink by the adaptive `η`, as this does. With
///   `accum` = 0 and `g` = 0 MindSpore divides 0 by 0; here nothing changes.
///
/// ```
/// use optim_core::{Parameter, ProximalAdagrad};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = ProximalAdagrad { l1: 1.0, ..ProximalAdagrad::new(0.1) }.params([&weight]);
/// # let _ = builder;
/// // p = 1, g = 1: accum = 1.1, η = 0.1 / √1.1 = 0.0953, q = 0.9047; so p = 0.9047 − 0.0953 = 0.8093.
/// ```
///
/// Sources: Duchi & Singer 2009, "Efficient Online and Batch Learning using Forward Backward Splitting"; Duchi, Hazan &
/// Singer 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization"; MindSpore
/// `ProximalAdagrad`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct ProximalAdagrad {
    /// The value of `accum` before the first update, finite and ≥ 0. Default 0.1. Trap: with 0 the first update moves
    /// every element by the whole rate, however small its gradient.
    pub accum: f64,
    /// `γ`, finite and ≥ 0. Default 1e-3.
    pub lr: Rate,
    /// Finite and ≥ 0. Default 0. Trap: it also shrinks weights whose gradient is 0; rows that a row-sparse gradient
    /// does not list are spared.
    pub l1: f64,
    /// Finite and ≥ 0. Default 0.
    pub l2: f64,
    /// L2 decay of the gradient, finite and ≥ 0. Default 0. Trap: it is another thing than `l2`: it enters `accum`.
    pub weight_decay: f64,
}

impl Default for ProximalAdagrad {
    fn default() -> Self {
        Self { accum: 0.1, lr: Rate::Fixed(1e-3), l1: 0.0, l2: 0.0, weight_decay: 0.0 }
    }
}

impl ProximalAdagrad {
    /// Proximal Adagrad with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }
}

config!(ProximalAdagrad);

step_scalars! {
    /// `γ`
    lr: f32,
    /// `l1`
    l1: f32,
    /// `l2`
    l2: f32,
    /// fills 16 bytes
    pad0: u32,
}

impl UpdateRule for ProximalAdagrad {
    fn name(&self) -> &'static str {
        "proximal_adagrad"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { accum, l1, l2, .. } = *self;
        check("proximal_adagrad.accum", "finite and ≥ 0", accum, |x| x.is_finite() && x >= 0.0)?;
        check("proximal_adagrad.l1", "finite and ≥ 0", l1, |x| x.is_finite() && x >= 0.0)?;
        check("proximal_adagrad.l2", "finite and ≥ 0", l2, |x| x.is_finite() && x >= 0.0)
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot::narrow("accum", single(self.accum), Code8::Positive)]
    }

    fn scalars(&self, at: &At) -> StepScalars {
        StepScalars::new(&Step { lr: single(at.lr), l1: single(self.l1), l2: single(self.l2), pad0: 0 })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn sparse(&self) -> Sparse {
        Sparse::ListedRows
    }
}
