//! Lion: see [`Lion`].

use crate::error::check;
use crate::format::Code8;
use crate::rule::{At, Decay, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::single;
use crate::{Rate, Result};

/// Steps of exactly the rate, by the sign of a momentum (optax `lion`): Adam's effect with half of its state.
///
/// It differs from [`AdamW`](crate::AdamW) in having one slot, no bias correction and no `ε`; it wants a rate 3 to 10
/// times smaller and a decay as many times larger.
///
/// With `p` the parameter, `g` the gradient (unscaled), `γ` the rate, `λ` the weight decay, `m` the slot `moment1`
/// (mean of gradients):
///
/// ```text
/// c ← β₁ · m + (1 − β₁) · g                      (1)
/// m ← β₂ · m + (1 − β₂) · g                      (2)
/// d ← sign(c)                                    (3)    sign(0) = 0
/// p ← p − γ · (d + λ · p)                        (4)
/// ```
///
/// # Differences
/// - **optax** `lion`: the same formulas, `β₁`, `β₂` and decay. It has no default rate; this takes the 1e-4 of the
///   authors' code, whose default decay is 0.
/// - **PyTorch** and **MindSpore** have no Lion.
///
/// ```
/// use optim_core::{Lion, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = Lion { weight_decay: 0.1, ..Lion::new(1e-4) }.params([&weight]);
/// # let _ = builder;
/// // First update, p = 1, g = −0.003: d = −1, so p moves by −γ (−1 + 0.1) = 0.9 γ.
/// ```
///
/// Sources: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675; optax `lion`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Lion {
    /// `γ`, finite and ≥ 0. Default 1e-4. Trap: every element moves by the whole rate at every update, however small
    /// its gradient; only exactly 0 stays.
    pub lr: Rate,
    /// `β₁`, in \[0, 1): the part of the mean in the direction. Default 0.9.
    pub beta1: f64,
    /// `β₂`, in \[0, 1): how long the mean remembers. Default 0.99. Trap: not AdamW's 0.999.
    pub beta2: f64,
    /// `λ`, decoupled, finite and ≥ 0. Default 1e-3. Trap: it is scaled by the rate, which is small here.
    pub weight_decay: f64,
}

impl Default for Lion {
    fn default() -> Self {
        Self { lr: Rate::Fixed(1e-4), beta1: 0.9, beta2: 0.99, weight_decay: 1e-3 }
    }
}

impl Lion {
    /// Lion with this rate and optax's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }
}

config!(Lion);

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
    /// `λ`
    weight_decay: f32,
    /// fills 32 bytes
    pad0: u32,
    /// fills 32 bytes
    pad1: u32,
}

impl UpdateRule for Lion {
    fn name(&self) -> &'static str {
        "lion"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { beta1, beta2, .. } = *self;
        check("lion.beta1", "in [0, 1)", beta1, |x| (0.0..1.0).contains(&x))?;
        check("lion.beta2", "in [0, 1)", beta2, |x| (0.0..1.0).contains(&x))
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot::narrow("moment1", 0.0, Code8::Signed)]
    }

    fn scalars(&self, at: &At) -> StepScalars {
        StepScalars::new(&Step {
            lr: single(at.lr),
            beta1: single(self.beta1),
            one_minus_beta1: single(1.0 - self.beta1),
            beta2: single(self.beta2),
            one_minus_beta2: single(1.0 - self.beta2),
            weight_decay: single(at.weight_decay),
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
}
