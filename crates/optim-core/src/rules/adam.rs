//! Adam: see [`Adam`].

use crate::error::check;
use crate::format::Code8;
use crate::rule::{At, Slot, Sparse, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{power, rounded, single};
use crate::{Error, Rate, Result};

/// Adam: steps of about the rate in every direction, whatever the size of the gradient (MindSpore `nn.Adam`, and with
/// [`Adam::torch`] PyTorch's `torch.optim.Adam`).
///
/// It differs from [`AdamW`](crate::AdamW) and [`AdamWeightDecay`](crate::AdamWeightDecay) in its L2 decay.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γ` the rate, `t` = 1 at the first update, `m`
/// the slot `moment1` (mean of gradients), `v` the slot `moment2` (mean of their squares):
///
/// ```text
/// m ← m + (1 − β₁) (g − m)                       (1)
/// v ← v + (1 − β₂) (g² − v)                      (2)
/// d ← m                                          (3)    nesterov: d ← β₁ · m + (1 − β₁) · g
/// p ← p − α · d / (√v + ε),   α = γ · √(1 − β₂ᵗ) / (1 − β₁ᵗ)        (4)
/// ```
///
/// With `use_amsgrad`, the third slot `vhat` keeps the largest `v` so far, and the step never grows again:
///
/// ```text
/// v̂ ← max(v̂, v)                                  (5)
/// p ← p − α · m / (√v̂ + ε)                       (6)
/// ```
///
/// With `corrected_eps`, (4) and (6) have `ε · √(1 − β₂ᵗ)` for `ε`.
///
/// # Differences
/// - **PyTorch** `torch.optim.Adam`, side by side:
///
/// | | MindSpore: `Adam::default()` | PyTorch: `Adam::torch()` |
/// | --- | --- | --- |
/// | `ε` is added to | `√v` | the corrected `√(v / (1 − β₂ᵗ))`: `corrected_eps` |
/// | `β₁`, `β₂` | rounded to `f32` first, inside (0, 1) | as they are, in \[0, 1) |
/// | rate, `β₁`, `β₂`, `ε`, decay | 1e-3, 0.9, 0.999, 1e-8, 0 | the same |
/// | nesterov | `use_nesterov` | none: see [`NAdam`](crate::NAdam) |
/// | AMSGrad | `use_amsgrad` (2.x; 1.5 has none) | `amsgrad`, also of the uncorrected `v` |
///
/// - The place of `ε` matters most at the beginning: MindSpore's, which is that of section 2 of the paper, weighs
///   `√(1 − β₂ᵗ)` of PyTorch's; a 32nd at the first update.
/// - `t` counts the optimizer's updates; PyTorch counts each parameter's.
/// - **MindSpore**: `β₁ᵗ` and `β₂ᵗ` are running products in `f32` as there. With exact powers, which the PyTorch preset has, `1 − β₂ᵗ`
///   would differ by up to 3e-5 of itself with the default `β₂`, and by ten times as much with each further 9 in it. MindSpore 2.x ignores `use_nesterov`
///   together with `use_amsgrad`; here that is an error.
///
/// # Row-sparse gradients
/// All rows change, as with a dense gradient of zeros elsewhere: the means of unlisted rows decay and those rows move on, except
/// that weight decay acts on listed rows only. [`LazyAdam`](crate::LazyAdam) leaves unlisted rows alone.
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
/// Reddi, Kale & Kumar 2018, "On the Convergence of Adam and Beyond", arXiv 1904.09237, for AMSGrad; MindSpore and
/// PyTorch `Adam`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
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
    /// Divides by the largest `v` so far. Default `false`. Not with `use_nesterov`. Trap: one more slot, and a single
    /// huge gradient makes every later step small.
    pub use_amsgrad: bool,
    /// PyTorch's numbers: `ε` beside the corrected root, and `β₁`, `β₂` not rounded to `f32` (0 is then allowed).
    /// Default `false`; `true` in [`Adam::torch`].
    pub corrected_eps: bool,
    /// L2 decay, finite and ≥ 0. Default 0. Trap: it passes through the division by `√v`, so strong gradients decay
    /// less; a decoupled decay does not.
    pub weight_decay: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self {
            lr: Rate::Fixed(1e-3),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            use_nesterov: false,
            use_amsgrad: false,
            corrected_eps: false,
            weight_decay: 0.0,
        }
    }
}

impl Adam {
    /// Adam with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }

    /// PyTorch's Adam with PyTorch's defaults, which are MindSpore's but for the place of `ε`.
    #[must_use]
    pub fn torch() -> Self {
        Self { corrected_eps: true, ..Self::default() }
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
    /// `β₂`
    beta2: f32,
    /// `1 − β₂`
    one_minus_beta2: f32,
    /// `ε`, as it is added to `√v`
    eps: f32,
    /// 1 with nesterov, else 0
    nesterov: u32,
    /// fills 32 bytes
    pad0: u32,
}

/// MindSpore's range of the hyper-parameters. For each rule with these three.
pub(crate) fn validate(rule: &str, beta1: f64, beta2: f64, eps: f64) -> Result<()> {
    for (name, beta) in [("beta1", beta1), ("beta2", beta2)] {
        check(&format!("{rule}.{name}"), "inside (0, 1)", beta, |x| x > 0.0 && x < 1.0)?;
    }
    validate_eps(rule, eps)
}

/// PyTorch's range of the hyper-parameters. For each rule with these three.
pub(crate) fn validate_torch(rule: &str, beta1: f64, beta2: f64, eps: f64) -> Result<()> {
    for (name, beta) in [("beta1", beta1), ("beta2", beta2)] {
        check(&format!("{rule}.{name}"), "in [0, 1)", beta, |x| (0.0..1.0).contains(&x))?;
    }
    validate_eps(rule, eps)
}

/// `ε` must not be 0: with 0 an element that never had a gradient is 0/0.
pub(crate) fn validate_eps(rule: &str, eps: f64) -> Result<()> {
    check(&format!("{rule}.eps"), "finite and > 0", eps, |x| x.is_finite() && x > 0.0)
}

/// `ε′`, which is not 0 either.
pub(crate) fn corrected(eps: f64, correction: f64) -> f64 {
    (eps * correction).max(f32::MIN_POSITIVE.into())
}

/// MindSpore's slots, of each rule with this kernel.
pub(crate) fn slots() -> Vec<Slot> {
    vec![Slot::narrow("moment1", 0.0, Code8::Signed), Slot::narrow("moment2", 0.0, Code8::Positive)]
}

/// MindSpore's step scalars, of each rule with this kernel.
pub(crate) fn scalars(at: &At, beta1: f64, beta2: f64, eps: f64, nesterov: bool) -> StepScalars {
    step(at, [rounded(beta1), rounded(beta2)], at.beta_powers, eps, nesterov)
}

fn step(at: &At, [beta1, beta2]: [f64; 2], powers: [f64; 2], eps: f64, nesterov: bool) -> StepScalars {
    let alpha = at.lr * (1.0 - powers[1]).sqrt() / (1.0 - powers[0]);
    StepScalars::new(&Step {
        alpha: single(alpha),
        beta1: single(beta1),
        one_minus_beta1: single(1.0 - beta1),
        beta2: single(beta2),
        one_minus_beta2: single(1.0 - beta2),
        eps: single(eps),
        nesterov: u32::from(nesterov),
        pad0: 0,
    })
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
        if self.use_amsgrad && self.use_nesterov {
            let (name, expected) = ("adam.use_amsgrad".into(), "false with use_nesterov");
            return Err(Error::HyperParameter { name, expected, got: "true".into() });
        }
        if self.corrected_eps {
            return validate_torch("adam", beta1, beta2, eps);
        }
        validate("adam", beta1, beta2, eps)
    }

    fn slots(&self) -> Vec<Slot> {
        let mut slots = slots();
        if self.use_amsgrad {
            slots.push(Slot::new("vhat", 0.0));
        }
        slots
    }

    fn entry(&self) -> &'static str {
        if self.use_amsgrad { "update_amsgrad" } else { "update" }
    }

    fn betas(&self) -> [f64; 2] {
        [self.beta1, self.beta2]
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let Self { beta1, beta2, eps, use_nesterov, .. } = *self;
        if self.corrected_eps {
            let powers = [power(beta1, at.t), power(beta2, at.t)];
            return step(at, [beta1, beta2], powers, corrected(eps, (1.0 - powers[1]).sqrt()), use_nesterov);
        }
        scalars(at, beta1, beta2, eps, use_nesterov)
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn sparse(&self) -> Sparse {
        Sparse::AllRows
    }
}
