//! Momentum: see [`Momentum`].

use crate::error::check;
use crate::format::Code8;
use crate::rule::{At, Slot, Sparse, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::single;
use crate::{Rate, Result};

/// Gradient descent with momentum (MindSpore `nn.Momentum`).
///
/// It differs from [`Sgd`](crate::Sgd) in having no dampening and always one slot.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γ` the rate, `μ` the momentum, `v` the slot `moments`:
///
/// ```text
/// v ← μ · v + g                                  (1)
/// d ← v                                          (2)    nesterov: d ← g + μ · v
/// p ← p − γ · d                                  (3)
/// ```
///
/// # Differences
/// - **PyTorch**: `torch.optim.SGD(momentum=μ)` is the same formula; rate and momentum have no default here, as in MindSpore.
/// - **MindSpore**'s CPU kernel ignores `use_nesterov` (a defect); here it is obeyed on every backend.
///
/// # Row-sparse gradients
/// Only the listed rows change: an unlisted row does not coast on its momentum, and does not decay.
///
/// ```
/// use optim_core::{Momentum, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = Momentum::new(0.1, 0.9).params([&weight]);
/// # let _ = builder;
/// // p = 1, g = 1 at every step: v = 1, then 1.9; so p = 0.9, then 0.71.
/// ```
///
/// Sources: Polyak 1964; Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning";
/// MindSpore `Momentum`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Momentum {
    /// `γ`, finite and ≥ 0. No default.
    pub lr: Rate,
    /// `μ`, finite and ≥ 0. No default; 0.9 is usual. Trap: a value of 1 or more never forgets.
    pub momentum: f64,
    /// Looks ahead along the momentum. Default `false`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub use_nesterov: bool,
    /// L2 decay, finite and ≥ 0. Default 0.
    #[cfg_attr(feature = "serde", serde(default))]
    pub weight_decay: f64,
}

impl Momentum {
    /// Momentum with this rate and `μ`.
    #[must_use]
    pub fn new(lr: impl Into<Rate>, momentum: f64) -> Self {
        Self { lr: lr.into(), momentum, use_nesterov: false, weight_decay: 0.0 }
    }
}

config!(Momentum);

step_scalars! {
    /// `γ`
    lr: f32,
    /// `μ`
    momentum: f32,
    /// 1 with nesterov, else 0
    nesterov: u32,
    /// fills 16 bytes
    pad: u32,
}

impl UpdateRule for Momentum {
    fn name(&self) -> &'static str {
        "momentum"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let momentum = self.momentum;
        check("momentum.momentum", "finite and ≥ 0", momentum, |x| x.is_finite() && x >= 0.0)
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot::narrow("moments", 0.0, Code8::Signed)]
    }

    fn scalars(&self, at: &At) -> StepScalars {
        StepScalars::new(&Step {
            lr: single(at.lr),
            momentum: single(self.momentum),
            nesterov: u32::from(self.use_nesterov),
            pad: 0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn sparse(&self) -> Sparse {
        Sparse::ListedRows
    }
}
