//! LAMB: see [`Lamb`].

use crate::error::check;
use crate::format::Code8;
use crate::rule::{At, Decay, Passes, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{power, rounded, single};
use crate::{Rate, Result};

/// LAMB: Adam whose update is scaled, parameter by parameter, to the size of the weights (MindSpore `nn.Lamb`). For very large
/// batches.
///
/// It differs from [`Lars`](crate::rules::Lars) in scaling Adam's update, not the gradient.
///
/// With `p` the parameter, `g` the gradient, `γ` the rate, `λ` the weight decay (decoupled), `t` = 1 at the first update, slots `m`
/// (`moment1`) and `v` (`moment2`), norms over the whole tensor:
///
/// ```text
/// m ← β₁ m + (1 − β₁) g                          (1)
/// v ← β₂ v + (1 − β₂) g²                         (2)
/// m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)          (3)
/// n = m̂ / √(v̂ + ε) + λ p                         (4)
/// r = min(‖p‖ / ‖n‖, 10), or 1 if a norm is 0     (5)
/// u = m̂ / (√v̂ + ε) + λ p                         (6)
/// p ← p − γ r u                                  (7)
/// ```
///
/// Note the two places of ε: inside the root in (4), outside in (6). So does MindSpore. A norm that is not a number counts as 0 in (5):
/// the elements whose gradients are numbers then move by the plain step.
///
/// # Differences
/// - **MindSpore 1.5** counts `t` one too high with a dynamic rate, and its norm in (4) holds the decay of parameters that do not
///   decay. This follows 2.x, which does neither.
/// - **PyTorch** has no LAMB; other implementations use the same `u` in (4) and (6) and do not cap the ratio at 10.
///
/// ```
/// use optim_core::{rules::Lamb, Parameter};
///
/// let weight = Parameter::new("fc.weight", [3]);
/// let builder = Lamb { weight_decay: 0.01, ..Lamb::new(1e-2) }.params([&weight]);
/// # let _ = builder;
/// // First update, p = (3, 4), g = (1, 1), λ = 0: m̂ / √v̂ = (1, 1), r = 5 / √2 = 3.54, p moves by 0.0354.
/// ```
///
/// Sources: You et al. 2019, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv 1904.00962;
/// MindSpore `Lamb`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Lamb {
    /// `γ`, finite and ≥ 0. No default.
    pub lr: Rate,
    /// `β₁`, inside (0, 1). Default 0.9.
    #[cfg_attr(feature = "serde", serde(default = "crate::serialization::default::lamb_beta1"))]
    pub beta1: f64,
    /// `β₂`, inside (0, 1). Default 0.999.
    #[cfg_attr(feature = "serde", serde(default = "crate::serialization::default::lamb_beta2"))]
    pub beta2: f64,
    /// `ε`, finite and > 0. Default 1e-6.
    #[cfg_attr(feature = "serde", serde(default = "crate::serialization::default::lamb_eps"))]
    pub eps: f64,
    /// `λ`, decoupled, finite and ≥ 0. Default 0. Trap: it is scaled by the rate and by the ratio.
    #[cfg_attr(feature = "serde", serde(default))]
    pub weight_decay: f64,
}

impl Lamb {
    /// LAMB with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.0 }
    }
}

config!(Lamb);

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
    /// `1 / (1 − β₁ᵗ)`
    unbias1: f32,
    /// `1 / (1 − β₂ᵗ)`
    unbias2: f32,
    /// `ε`
    eps: f32,
    /// `λ`
    weight_decay: f32,
    /// `r`, by `finish`
    ratio: f32,
    /// fills 48 bytes
    pad0: u32,
    /// fills 48 bytes
    pad1: u32,
}

impl UpdateRule for Lamb {
    fn name(&self) -> &'static str {
        "lamb"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { beta1, beta2, eps, .. } = *self;
        check("lamb.beta1", "inside (0, 1)", beta1, |x| x > 0.0 && x < 1.0)?;
        check("lamb.beta2", "inside (0, 1)", beta2, |x| x > 0.0 && x < 1.0)?;
        check("lamb.eps", "finite and > 0", eps, |x| x.is_finite() && x > 0.0)
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot::narrow("moment1", 0.0, Code8::Signed), Slot::narrow("moment2", 0.0, Code8::Positive)]
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let (beta1, beta2) = (rounded(self.beta1), rounded(self.beta2));
        StepScalars::new(&Step {
            lr: single(at.lr),
            beta1: single(beta1),
            one_minus_beta1: single(1.0 - beta1),
            beta2: single(beta2),
            one_minus_beta2: single(1.0 - beta2),
            unbias1: single(1.0 / (1.0 - power(beta1, at.t))),
            unbias2: single(1.0 / (1.0 - power(beta2, at.t))),
            eps: single(self.eps),
            weight_decay: single(at.weight_decay),
            ratio: 1.0,
            pad0: 0,
            pad1: 0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn decay(&self) -> Decay {
        Decay::Decoupled
    }

    fn passes(&self) -> Passes {
        Passes::Norms
    }
}
