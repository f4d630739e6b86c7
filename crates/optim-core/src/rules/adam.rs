//! Adam: see [`Adam`].

use crate::error::check;
use crate::rule::{At, Slot, Sparse, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{rounded, single};
use crate::{Rate, Result};

/// Adam: steps of about the rate in every direction, whatever the size of the gradient (MindSpore `nn.Adam`).
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γ` the rate, `t` = 1 at the first update, `m` the slot
/// `moment1` (mean of gradients), `v` the slot `moment2` (mean of their squares):
///
/// ```text
/// m ← m + (1 − β₁) (g − m)                       (1)
/// v ← v + (1 − β₂) (g² − v)                      (2)
/// d ← m                                          (3)    nesterov: d ← β₁ · m + (1 − β₁) · g
/// p ← p − α · d / (√v + ε),   α = γ · √(1 − β₂ᵗ) / (1 − β₁ᵗ)        (4)
/// ```
///
/// # Differences
/// - **PyTorch** `torch.optim.Adam` adds ε to the *corrected* root, `√(v / (1 − β₂ᵗ)) + ε`. Here the correction sits in the
///   rate, as in section 2 of the paper, so ε weighs `√(1 − β₂ᵗ)` of what it does there: a 32nd at the first update.
/// - `t` counts the optimizer's updates; PyTorch counts each parameter's.
/// - **MindSpore**: none. `β₁ᵗ` and `β₂ᵗ` are running products in `f32` as there, which matters for the early updates: with
///   exact powers they differ by up to 3e-5 of themselves.
///
/// ```
/// use optim_core::{Adam, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = Adam { weight_decay: 1e-4, ..Adam::new(3e-4) }.params([&weight]);
/// # let _ = builder;
/// // The first update moves every weight by γ, up to ε: α · m / √v = γ √0.001 / 0.1 · 0.1 g / (√0.001 |g|) = ± γ.
/// ```
///
/// Sources: Kingma & Ba 2014, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980; Dozat 2016 for nesterov;
/// MindSpore `Adam`.
#[derive(Debug, Clone)]
pub struct Adam {
    /// `γ`, finite and ≥ 0. Default 1e-3.
    pub lr: Rate,
    /// `β₁`, inside (0, 1). Default 0.9.
    pub beta1: f64,
    /// `β₂`, inside (0, 1). Default 0.999. Trap: with rare or sparse gradients a value near 1 keeps `v` large for long.
    pub beta2: f64,
    /// `ε`, finite and > 0. Default 1e-8. Trap: see the difference from PyTorch above.
    pub eps: f64,
    /// Looks ahead along the mean. Default `false`.
    pub use_nesterov: bool,
    /// L2 decay, finite and ≥ 0. Default 0. Trap: it passes through the division by `√v`, so strong gradients decay less;
    /// a decoupled decay does not.
    pub weight_decay: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self { lr: Rate::Fixed(1e-3), beta1: 0.9, beta2: 0.999, eps: 1e-8, use_nesterov: false, weight_decay: 0.0 }
    }
}

impl Adam {
    /// Adam with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }
}

config!(Adam);

step_scalars! {
    /// `α`: the rate with the bias corrections
    alpha: f32,
    /// `β₁`
    beta1: f32,
    /// `1 − β₁`
    one_minus_beta1: f32,
    /// `1 − β₂`
    one_minus_beta2: f32,
    /// `ε`
    eps: f32,
    /// 1 with nesterov, else 0
    nesterov: u32,
    /// fills 32 bytes
    pad0: u32,
    /// fills 32 bytes
    pad1: u32,
}

impl UpdateRule for Adam {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { beta1, beta2, eps, .. } = *self;
        check("adam.beta1", "inside (0, 1)", beta1, |x| x > 0.0 && x < 1.0)?;
        check("adam.beta2", "inside (0, 1)", beta2, |x| x > 0.0 && x < 1.0)?;
        check("adam.eps", "finite and > 0", eps, |x| x.is_finite() && x > 0.0)
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot::new("moment1", 0.0), Slot::new("moment2", 0.0)]
    }

    fn betas(&self) -> [f64; 2] {
        [self.beta1, self.beta2]
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let (beta1, beta2) = (rounded(self.beta1), rounded(self.beta2));
        let [beta1_power, beta2_power] = at.beta_powers;
        let alpha = at.lr * (1.0 - beta2_power).sqrt() / (1.0 - beta1_power);
        StepScalars::new(&Step {
            alpha: single(alpha),
            beta1: single(beta1),
            one_minus_beta1: single(1.0 - beta1),
            one_minus_beta2: single(1.0 - beta2),
            eps: single(self.eps),
            nesterov: u32::from(self.use_nesterov),
            pad0: 0,
            pad1: 0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn sparse(&self) -> Sparse {
        Sparse::AllRows
    }
}
