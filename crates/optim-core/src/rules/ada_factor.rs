//! AdaFactor: see [`AdaFactor`].

use crate::error::check;
use crate::rule::{At, Decay, Passes, Slot, SlotShape, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{rounded, single};
use crate::{DType, Error, Rate, Result};

/// AdaFactor: Adam whose second moments are kept by row and by column, so that a matrix of `r × c` needs `r + c` numbers of them
/// (MindSpore `nn.AdaFactor`).
///
/// With `p` the parameter, `g` the gradient, `t` = 1 at the first update, `λ` the weight decay; a parameter of two or more axes
/// is a stack of matrices (its last two axes), with slots `R` (`exp_avg_sq_row`), `C` (`exp_avg_sq_col`); another has `V`
/// (`exp_avg_sq`); `M` is the slot `exp_avg`, only with `β₁ > 0`; RMS is over the whole tensor:
///
/// ```text
/// b = 1 − t^(−decay_rate)
/// q = g² + ε₁                                    (1)
/// R ← b R + (1 − b) mean over a row of q,   C ← b C + (1 − b) mean over a column of q        (2)
/// u = g / √(R / mean of R) / √C                  (3)    vectors: V ← b V + (1 − b) q,  u = g / √V
/// α = ρ max(ε₂, RMS(p)),  or ρ without scale_parameter        (4)
/// u ← α u / max(1, RMS(u) / clip_threshold)      (5)
/// M ← β₁ M + (1 − β₁) u,  u ← M                  (6)    only with β₁ > 0
/// p ← p − λ α p − u                              (7)
/// ```
///
/// `ρ` is the rate, or with `relative_step` `min(c, 1/√t)` with `c` = 0.01, or 1e-6 `t` with `warmup_init`.
///
/// # Differences
/// - **MindSpore 1.5** writes α back into a manual rate, which so compounds from step to step; this follows 2.x. MindSpore ignores
///   the loss scale and groups' rates and decays; here they are obeyed. As there, `scale_parameter` has no effect with a rate
///   that is a list or a schedule.
/// - **PyTorch** `torch.optim.Adafactor` has no `M`, and its default rate is min(0.01, 1/√t) times RMS(p).
/// - With `compression`, MindSpore's moments of small squares become 0, `ε₁` among them, and 0/0 is no number. Here a positive
///   moment never becomes 0.
/// - Convolution kernels are factored over their last two axes, as in MindSpore.
///
/// ```
/// use optim_core::{rules::AdaFactor, Parameter};
///
/// let weight = Parameter::new("weight", [256, 128]);
/// let builder = AdaFactor::default().params([&weight]);
/// # let _ = builder;
/// // State of the second moments: 256 + 128 numbers, where Adam keeps 32,768.
/// ```
///
/// Sources: Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv 1804.04235;
/// MindSpore `AdaFactor`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct AdaFactor {
    /// `ρ`, or `None` (the default) for the relative step. Set one of this and [`relative_step`](Self::relative_step).
    pub lr: Option<Rate>,
    /// `(ε₁, ε₂)`, both finite and ≥ 0. Default (1e-30, 1e-3). Trap: with `ε₁` = 0 a row or column of zeros gives 0/0.
    pub eps: (f64, f64),
    /// The largest RMS of an update before the rate, finite and > 0. Default 1.
    pub clip_threshold: f64,
    /// How fast old squares are forgotten, inside (0, 1). Default 0.8.
    pub decay_rate: f64,
    /// `β₁`, in [0, 1). Default 0.9. 0 for no `M`, which saves a slot.
    pub beta1: f64,
    /// `λ`, decoupled, in [0, 1). Default 0. Every parameter decays, whatever its name. Trap: it is scaled by `α`.
    pub weight_decay: f64,
    /// Scales the rate by the size of the parameter. Default `true`. Trap: not one that is a list or a schedule.
    pub scale_parameter: bool,
    /// Makes the rate from the step. Default `true`.
    pub relative_step: bool,
    /// A slower start of the relative step. Default `false`. Needs [`relative_step`](Self::relative_step).
    pub warmup_init: bool,
    /// Keeps `R`, `C` and `V` as `f16`, in half the memory; `M` stays `f32`. Default `false`. They are computed in `f32` and
    /// rounded to nearest before they are used. Trap: `f16` reaches from 2⁻²⁴ to 65,504. A positive moment below is kept as
    /// 2⁻²⁴, so gradients below about 2e-4 give smaller updates than without; one above is kept as 65,504. And once
    /// `t^(−decay_rate)` is below 2⁻¹¹, after some 14,000 updates by default, changes are rounded away.
    pub compression: bool,
}

impl Default for AdaFactor {
    fn default() -> Self {
        Self {
            lr: None,
            eps: (1e-30, 1e-3),
            clip_threshold: 1.0,
            decay_rate: 0.8,
            beta1: 0.9,
            weight_decay: 0.0,
            scale_parameter: true,
            relative_step: true,
            warmup_init: false,
            compression: false,
        }
    }
}

impl AdaFactor {
    /// AdaFactor with a rate of the caller's instead of the relative step.
    #[must_use]
    pub fn with_lr(lr: impl Into<Rate>) -> Self {
        Self { lr: Some(lr.into()), relative_step: false, ..Self::default() }
    }
}

config!(AdaFactor);

step_scalars! {
    /// `ρ`
    rho: f32,
    /// `b`
    b: f32,
    /// `1 − b`
    one_minus_b: f32,
    /// `ε₁`
    eps1: f32,
    /// `ε₂`
    eps2: f32,
    /// the clip threshold
    clip: f32,
    /// `β₁`
    beta1: f32,
    /// `1 − β₁`
    one_minus_beta1: f32,
    /// `λ`
    weight_decay: f32,
    /// 1 if the rate is scaled by the parameter, else 0
    scale_parameter: u32,
    /// `α`, by `finish`
    alpha: f32,
    /// `α / max(1, RMS(u) / clip_threshold)`, by `finish`
    rate: f32,
}

/// In place of a rate that the rule makes itself.
static RELATIVE: Rate = Rate::Fixed(0.0);

impl UpdateRule for AdaFactor {
    fn name(&self) -> &'static str {
        "ada_factor"
    }

    fn lr(&self) -> &Rate {
        self.lr.as_ref().unwrap_or(&RELATIVE)
    }

    fn own_lr(&self, t: u64) -> Option<f64> {
        let t = t as f64;
        let cap = if self.warmup_init { rounded(1e-6) * t } else { 1e-2 };
        self.relative_step.then(|| cap.min(1.0 / t.sqrt()))
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { eps: (eps1, eps2), clip_threshold, decay_rate, beta1, weight_decay, .. } = *self;
        check("ada_factor.eps.0", "finite and ≥ 0", eps1, |x| x.is_finite() && x >= 0.0)?;
        check("ada_factor.eps.1", "finite and ≥ 0", eps2, |x| x.is_finite() && x >= 0.0)?;
        check("ada_factor.clip_threshold", "finite and > 0", clip_threshold, |x| x.is_finite() && x > 0.0)?;
        check("ada_factor.decay_rate", "inside (0, 1)", decay_rate, |x| x > 0.0 && x < 1.0)?;
        check("ada_factor.beta1", "in [0, 1)", beta1, |x| (0.0..1.0).contains(&x))?;
        check("ada_factor.weight_decay", "in [0, 1)", weight_decay, |x| (0.0..1.0).contains(&x))?;
        let wrong = |name: &str, expected, got: &str| {
            Err(Error::HyperParameter { name: format!("ada_factor.{name}"), expected, got: got.into() })
        };
        match (&self.lr, self.relative_step) {
            (Some(_), true) => wrong("relative_step", "false with a rate", "true"),
            (None, false) => wrong("lr", "a rate without relative_step", "none"),
            _ if self.warmup_init && !self.relative_step => wrong("warmup_init", "false without relative_step", "true"),
            _ => Ok(()),
        }
    }

    fn slots(&self) -> Vec<Slot> {
        let dtype = if self.compression { DType::F16 } else { DType::F32 };
        let slot = |name, shape| Slot { dtype, shape, ..Slot::new(name, 0.0) };
        let mut slots = vec![
            slot("exp_avg_sq_row", SlotShape::Rows),
            slot("exp_avg_sq_col", SlotShape::Columns),
            slot("exp_avg_sq", SlotShape::SameIfVector),
        ];
        if self.beta1 > 0.0 {
            slots.push(Slot::new("exp_avg", 0.0));
        }
        slots
    }

    fn entry(&self) -> &'static str {
        if self.beta1 > 0.0 { "update" } else { "update_plain" }
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let t = at.t as f64;
        let b = 1.0 - t.powf(-rounded(self.decay_rate));
        StepScalars::new(&Step {
            rho: single(at.lr),
            b: single(b),
            one_minus_b: single(1.0 - b),
            eps1: single(self.eps.0),
            eps2: single(self.eps.1),
            clip: single(self.clip_threshold),
            beta1: single(self.beta1),
            one_minus_beta1: single(1.0 - rounded(self.beta1)),
            weight_decay: single(at.weight_decay),
            scale_parameter: u32::from(self.scale_parameter && (self.relative_step || !at.dynamic_lr)),
            alpha: 0.0,
            rate: 0.0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn decays_all_names(&self) -> bool {
        true
    }

    fn decay(&self) -> Decay {
        Decay::Decoupled
    }

    fn passes(&self) -> Passes {
        Passes::Factored
    }
}
