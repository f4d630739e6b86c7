//! Adam with decoupled decay and without bias correction: see [`AdamWeightDecay`].

use crate::rule::{At, Decay, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{adam, rounded, single};
use crate::{Rate, Result};

/// Adam with a decoupled weight decay and **without bias correction** (MindSpore `nn.AdamWeightDecay`): the rule that
/// BERT was trained with.
///
/// It differs from [`AdamW`](crate::AdamW) in the missing bias correction; so it wants a warm-up of the rate.
///
/// With `p` the parameter, `g` the gradient (unscaled), `γ` the rate, `λ` the weight decay, `m` the slot `moment1`
/// (mean of gradients), `v` the slot `moment2` (mean of their squares):
///
/// ```text
/// m ← β₁ · m + (1 − β₁) · g                      (1)
/// v ← β₂ · v + (1 − β₂) · g²                     (2)
/// u ← m / (√v + ε) + λ · p                       (3)
/// p ← p − γ · u                                  (4)
/// ```
///
/// # Differences
/// - **PyTorch** has no such rule: `torch.optim.AdamW` corrects the bias, decays before the step, and has `ε` = 1e-8,
///   `λ` = 1e-2.
/// - **MindSpore**: the same. It calls the slots `adam_m` and `adam_v` in checkpoints.
///
/// ```
/// use optim_core::{AdamWeightDecay, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = AdamWeightDecay { weight_decay: 0.01, ..AdamWeightDecay::new(1e-4) }.params([&weight]);
/// # let _ = builder;
/// // First update, p = 1, g = 1: u = 0.1 / √0.001 + 0.01 = 3.17, so p moves by 3.17 γ, AdamW's by 1.01 γ.
/// ```
///
/// Sources: Devlin et al. 2018, "BERT", arXiv 1810.04805 (the code's `AdamWeightDecayOptimizer`); Loshchilov & Hutter
/// 2017, "Decoupled Weight Decay Regularization", arXiv 1711.05101; MindSpore `AdamWeightDecay`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct AdamWeightDecay {
    /// `γ`, finite and ≥ 0. Default 1e-3. Trap: the first updates are larger than the rate, by up to
    /// `(1 − β₁) / √(1 − β₂)` (3.2 with the defaults) at the first and twice that some ten updates later.
    pub lr: Rate,
    /// `β₁`, inside (0, 1). Default 0.9.
    pub beta1: f64,
    /// `β₂`, inside (0, 1). Default 0.999. Trap: with rare or sparse gradients a value near 1 keeps `v` large for long.
    pub beta2: f64,
    /// `ε`, finite and > 0. Default **1e-6**, not Adam's 1e-8.
    pub eps: f64,
    /// `λ`, decoupled, finite and ≥ 0. Default 0. Trap: it is scaled by the rate.
    pub weight_decay: f64,
}

impl Default for AdamWeightDecay {
    fn default() -> Self {
        Self { lr: Rate::Fixed(1e-3), beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.0 }
    }
}

impl AdamWeightDecay {
    /// The rule with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }
}

config!(AdamWeightDecay);

step_scalars! {
    /// `γ`
    lr: f32,
    /// `β₁`
    beta1: f32,
    /// `1 − β₁`
    one_minus_beta1: f32,
    /// `β₂`
    beta2: f32,
    /// `1 − β₂`
    one_minus_beta2: f32,
    /// `ε`
    eps: f32,
    /// `λ`
    weight_decay: f32,
    /// fills 32 bytes
    pad0: u32,
}

impl UpdateRule for AdamWeightDecay {
    fn name(&self) -> &'static str {
        "adam_weight_decay"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        adam::validate("adam_weight_decay", self.beta1, self.beta2, self.eps)
    }

    fn slots(&self) -> Vec<Slot> {
        adam::slots()
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let (beta1, beta2) = (rounded(self.beta1), rounded(self.beta2));
        StepScalars::new(&Step {
            lr: single(at.lr),
            beta1: single(beta1),
            one_minus_beta1: single(1.0 - beta1),
            beta2: single(beta2),
            one_minus_beta2: single(1.0 - beta2),
            eps: single(self.eps),
            weight_decay: single(at.weight_decay),
            pad0: 0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn decay(&self) -> Decay {
        Decay::Decoupled
    }
}
