//! Adam that leaves unlisted rows alone: see [`LazyAdam`].

use crate::rule::{At, Slot, Sparse, StepScalars, UpdateRule, config};
use crate::rules::adam;
use crate::{Rate, Result};

/// Adam for embeddings: a row-sparse gradient moves the rows that it lists and no other (MindSpore `nn.LazyAdam`).
///
/// It differs from [`Adam`](crate::Adam) in row-sparse gradients alone, and shares its kernel: **with dense gradients
/// it is exactly Adam**.
///
/// With the letters of Adam, for every element of a listed row:
///
/// ```text
/// m ← m + (1 − β₁) (g − m)                       (1)
/// v ← v + (1 − β₂) (g² − v)                      (2)
/// d ← m                                          (3)    nesterov: d ← β₁ · m + (1 − β₁) · g
/// p ← p − α · d / (√v + ε),   α = γ · √(1 − β₂ᵗ) / (1 − β₁ᵗ)        (4)
/// ```
///
/// An element of an unlisted row keeps `p`, `m` and `v`: it neither moves nor decays. `t` counts every update,
/// whichever rows it lists.
///
/// # Differences
/// - **PyTorch** `torch.optim.SparseAdam`: the same formula, the place of `ε` included, without nesterov and decay. `β₁` and `β₂` are
///   not rounded to `f32` there, and `t` counts each parameter's updates.
/// - **MindSpore**: the same; its `weight_decay` must be a float.
///
/// ```
/// use optim_core::{LazyAdam, Parameter};
///
/// let embedding = Parameter::new("embedding", [1000, 16]);
/// let builder = LazyAdam::new(1e-3).params([&embedding]);
/// # let _ = builder;
/// // A row first listed at t = 100: m = 0.1 g, v = 0.001 g², α = 0.309 γ; it moves by 0.309 · 0.1 / √0.001 γ = 0.98 γ.
/// ```
///
/// Sources: Kingma & Ba 2014, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980; MindSpore `LazyAdam`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct LazyAdam {
    /// `γ`, finite and ≥ 0. Default 1e-3.
    pub lr: Rate,
    /// `β₁`, inside (0, 1). Default 0.9. Trap: the mean of a rare row is as old as the row's last gradient.
    pub beta1: f64,
    /// `β₂`, inside (0, 1). Default 0.999.
    pub beta2: f64,
    /// `ε`, finite and > 0. Default 1e-8. Trap: it is added to the uncorrected `√v`.
    pub eps: f64,
    /// Looks ahead along the mean. Default `false`.
    pub use_nesterov: bool,
    /// L2 decay, finite and ≥ 0. Default 0. Trap: a row decays only when it is listed.
    pub weight_decay: f64,
}

impl Default for LazyAdam {
    fn default() -> Self {
        Self { lr: Rate::Fixed(1e-3), beta1: 0.9, beta2: 0.999, eps: 1e-8, use_nesterov: false, weight_decay: 0.0 }
    }
}

impl LazyAdam {
    /// The rule with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }
}

config!(LazyAdam);

impl UpdateRule for LazyAdam {
    fn name(&self) -> &'static str {
        "lazy_adam"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        adam::validate("lazy_adam", self.beta1, self.beta2, self.eps)
    }

    fn slots(&self) -> Vec<Slot> {
        adam::slots()
    }

    fn source(&self) -> &'static str {
        "adam"
    }

    fn betas(&self) -> [f64; 2] {
        [self.beta1, self.beta2]
    }

    fn scalars(&self, at: &At) -> StepScalars {
        adam::scalars(at, self.beta1, self.beta2, self.eps, self.use_nesterov)
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        adam::Step::FIELDS
    }

    fn sparse(&self) -> Sparse {
        Sparse::ListedRows
    }
}
