//! Stochastic gradient descent: see [`Sgd`].

use crate::error::check;
use crate::format::Code8;
use crate::rule::{At, Slot, Sparse, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{rounded, single};
use crate::{Error, Rate, Result};

/// Stochastic gradient descent, plain or with momentum (MindSpore `nn.SGD`).
///
/// It differs from [`Momentum`](crate::Momentum) in its dampening, and in doing without state when `momentum` is 0.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γ` the rate, `μ` the momentum, `τ` the dampening:
///
/// ```text
/// μ = 0:  d ← g
/// μ > 0:  accum ← μ · accum + (1 − τ) · g        (1)    first update of a parameter: τ = 0
///         d ← accum                              (2)    nesterov: d ← g + μ · accum
/// p ← p − γ · d                                  (3)
/// ```
///
/// # Differences
/// - **PyTorch** `torch.optim.SGD`: the same formulas and the same first update. Its default rate is 1e-3, as in [`Sgd::torch`], here 0.1.
/// - **MindSpore 1.5** puts the constructor's weight decay into the kernel, for every parameter, whatever the groups say. This
///   follows 2.x: the common L2 path, groups and filter obeyed. MindSpore's slot `stat` (1 before the first update) is kept
///   as one bit a parameter.
///
/// # Row-sparse gradients
/// Only the listed rows change: an unlisted row neither moves nor decays, and its `accum` stays as it is.
///
/// ```
/// use optim_core::{Parameter, Sgd};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = Sgd { momentum: 0.9, ..Sgd::new(0.1) }.params([&weight]);
/// # let _ = builder;
/// // p = 1, g = 1 at every step: d = 1, then 0.9 · 1 + 1 = 1.9; so p = 0.9, then 0.71.
/// ```
///
/// Sources: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning"; MindSpore `SGD`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Sgd {
    /// `γ`, finite and ≥ 0. Default 0.1 (MindSpore's; PyTorch's is 1e-3).
    pub lr: Rate,
    /// `μ`, finite and ≥ 0. Default 0. Trap: a value of 1 or more never forgets.
    pub momentum: f64,
    /// `τ`, finite and ≥ 0 (above 1 turns the gradient round). Default 0. Trap: no effect without momentum, nor on the first
    /// update.
    pub dampening: f64,
    /// L2 decay, finite and ≥ 0. Default 0.
    pub weight_decay: f64,
    /// Looks ahead along the momentum. Default `false`. Needs `momentum > 0` and `dampening == 0`.
    pub nesterov: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { lr: Rate::Fixed(0.1), momentum: 0.0, dampening: 0.0, weight_decay: 0.0, nesterov: false }
    }
}

impl Sgd {
    /// Plain gradient descent with this rate.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }

    /// PyTorch's defaults: `lr` 1e-3.
    #[must_use]
    pub fn torch() -> Self {
        Self::new(1e-3)
    }
}

config!(Sgd);

step_scalars! {
    /// `γ`
    lr: f32,
    /// `μ`
    momentum: f32,
    /// `1 − τ`, or 1 at a parameter's first update
    one_minus_dampening: f32,
    /// 1 with nesterov, else 0
    nesterov: u32,
}

impl UpdateRule for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { momentum, dampening, .. } = *self;
        check("sgd.momentum", "finite and ≥ 0", momentum, |x| x.is_finite() && x >= 0.0)?;
        check("sgd.dampening", "finite and ≥ 0", dampening, |x| x.is_finite() && x >= 0.0)?;
        if self.nesterov && (momentum == 0.0 || dampening != 0.0) {
            let got = format!("true with momentum {momentum} and dampening {dampening}");
            let expected = "false unless momentum > 0 and dampening = 0";
            return Err(Error::HyperParameter { name: "sgd.nesterov".into(), expected, got });
        }
        Ok(())
    }

    fn slots(&self) -> Vec<Slot> {
        if self.momentum == 0.0 { vec![] } else { vec![Slot::narrow("accum", 0.0, Code8::Signed)] }
    }

    fn entry(&self) -> &'static str {
        if self.momentum == 0.0 { "update_plain" } else { "update" }
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let dampening = if at.first { 0.0 } else { rounded(self.dampening) };
        StepScalars::new(&Step {
            lr: single(at.lr),
            momentum: single(self.momentum),
            one_minus_dampening: single(1.0 - dampening),
            nesterov: u32::from(self.nesterov),
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn first_update_differs(&self) -> bool {
        self.momentum != 0.0 && self.dampening != 0.0
    }

    fn sparse(&self) -> Sparse {
        Sparse::ListedRows
    }
}
