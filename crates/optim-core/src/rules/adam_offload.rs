//! Adam whose state stays in the host's memory: see [`AdamOffload`].

use crate::rule::{At, Slot, StepScalars, UpdateRule, config};
use crate::rules::adam;
use crate::{Rate, Result};

/// Adam whose state lies in the host's memory while the parameters live on the GPU (MindSpore `nn.AdamOffload`): for
/// models whose state does not fit beside them.
///
/// It differs from [`Adam`](crate::Adam) in where its slots are, and shares its kernel: the numbers are exactly Adam's.
/// On the CPU backend, where everything is in the host's memory, it is Adam.
///
/// With the letters of Adam:
///
/// ```text
/// m ← m + (1 − β₁) (g − m)                       (1)
/// v ← v + (1 − β₂) (g² − v)                      (2)
/// d ← m                                          (3)    nesterov: d ← β₁ · m + (1 − β₁) · g
/// p ← p − α · d / (√v + ε),   α = γ · √(1 − β₂ᵗ) / (1 − β₁ᵗ)        (4)
/// ```
///
/// # Differences
/// - **PyTorch** has no such rule.
/// - **MindSpore**: the same formula. Its kernel returns the increment of `p`, which is then added.
///
/// ```
/// use optim_core::{AdamOffload, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = AdamOffload::new(3e-4).params([&weight]);
/// # let _ = builder;
/// // The first update moves every weight by γ, up to ε: α · m / √v = γ √0.001 / 0.1 · 0.1 g / (√0.001 |g|) = ± γ.
/// ```
///
/// Sources: Kingma & Ba 2014, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980; MindSpore `AdamOffload`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct AdamOffload {
    /// `γ`, finite and ≥ 0. Default 1e-3.
    pub lr: Rate,
    /// `β₁`, inside (0, 1). Default 0.9.
    pub beta1: f64,
    /// `β₂`, inside (0, 1). Default 0.999. Trap: with rare or sparse gradients a value near 1 keeps `v` large for long.
    pub beta2: f64,
    /// `ε`, finite and > 0. Default 1e-8. Trap: it is added to the uncorrected `√v`.
    pub eps: f64,
    /// Looks ahead along the mean. Default `false`.
    pub use_nesterov: bool,
    /// L2 decay, finite and ≥ 0. Default 0. Trap: it passes through the division by `√v`, so strong gradients decay
    /// less.
    pub weight_decay: f64,
}

impl Default for AdamOffload {
    fn default() -> Self {
        Self { lr: Rate::Fixed(1e-3), beta1: 0.9, beta2: 0.999, eps: 1e-8, use_nesterov: false, weight_decay: 0.0 }
    }
}

impl AdamOffload {
    /// The rule with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }
}

config!(AdamOffload);

impl UpdateRule for AdamOffload {
    fn name(&self) -> &'static str {
        "adam_offload"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        adam::validate("adam_offload", self.beta1, self.beta2, self.eps)
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

    fn offloaded(&self) -> bool {
        true
    }
}
