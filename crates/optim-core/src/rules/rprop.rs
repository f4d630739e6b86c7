//! Rprop: see [`Rprop`].

use crate::error::check;
use crate::rule::{At, Slot, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::single;
use crate::{Error, Rate, Result};

/// Resilient propagation: only the gradient's sign counts; every element has a step size that grows while the sign
/// stays and shrinks when it flips (MindSpore `nn.Rprop`). For full batches: with the noise of mini-batches signs flip
/// by chance.
///
/// It differs from all other rules in that the size of the gradient has no effect at all.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), slots `prev` (the gradient before) and
/// `step_size`:
///
/// ```text
/// step_size ← γ                                  (1)    only at a parameter's first update
/// step_size ← step_size · η₊ where g · prev > 0,  · η₋ where g · prev < 0        (2)
/// step_size ← min(max(step_size, Δmin), Δmax)    (3)
/// g ← 0 where g · prev < 0                       (4)
/// p ← p − sign(g) · step_size                    (5)
/// prev ← g                                       (6)
/// ```
///
/// After a flip the element rests for one update, by (4), and the next one neither grows nor shrinks its step.
///
/// # Differences
/// - **PyTorch** `torch.optim.Rprop`: the same formulas; its default rate is 0.01, as in [`Rprop::torch`].
/// - **MindSpore** has it from 2.x on. Both compute the sign of the product `g · prev`, which is 0 where the product
///   underflows; here the signs are compared, so that gradients below 1e-23 work as well.
///
/// ```
/// use optim_core::{Parameter, Rprop};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = Rprop::new(0.1).params([&weight]);
/// # let _ = builder;
/// // p = 1, g = 5, 0.1, −3: the sizes are 0.1, 0.12, 0.06; so p = 0.9, 0.78, and 0.78 again, for the sign has flipped.
/// ```
///
/// Sources: Riedmiller & Braun 1993, "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP
/// Algorithm"; MindSpore `Rprop`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Rprop {
    /// `γ`, the first step size, finite and ≥ 0. Default 0.1. Trap: it is read only at a parameter's first update; a
    /// schedule has no effect after it.
    pub lr: Rate,
    /// `(η₋, η₊)`, with 0 < η₋ < 1 < η₊, finite. Default (0.5, 1.2).
    pub etas: (f64, f64),
    /// `(Δmin, Δmax)`, finite, 0 ≤ Δmin ≤ Δmax. Default (1e-6, 50). Trap: the first step is held within them too.
    pub step_sizes: (f64, f64),
    /// L2 decay, finite and ≥ 0. Default 0. Trap: all it can do is to turn a gradient's sign.
    pub weight_decay: f64,
}

impl Default for Rprop {
    fn default() -> Self {
        Self { lr: Rate::Fixed(0.1), etas: (0.5, 1.2), step_sizes: (1e-6, 50.0), weight_decay: 0.0 }
    }
}

impl Rprop {
    /// Rprop with this first step size and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }

    /// PyTorch's defaults: `lr` 0.01.
    #[must_use]
    pub fn torch() -> Self {
        Self::new(0.01)
    }
}

config!(Rprop);

step_scalars! {
    /// `γ`
    lr: f32,
    /// 1 at a parameter's first update, else 0
    first: u32,
    /// `η₋`
    eta_minus: f32,
    /// `η₊`
    eta_plus: f32,
    /// `Δmin`
    step_min: f32,
    /// `Δmax`
    step_max: f32,
    /// fills 32 bytes
    pad0: u32,
    /// fills 32 bytes
    pad1: u32,
}

impl UpdateRule for Rprop {
    fn name(&self) -> &'static str {
        "rprop"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let (minus, plus) = self.etas;
        check("rprop.etas.0", "inside (0, 1)", minus, |x| x > 0.0 && x < 1.0)?;
        check("rprop.etas.1", "finite and > 1", plus, |x| x.is_finite() && x > 1.0)?;
        let (min, max) = self.step_sizes;
        check("rprop.step_sizes.0", "finite and ≥ 0", min, |x| x.is_finite() && x >= 0.0)?;
        check("rprop.step_sizes.1", "finite and ≥ 0", max, |x| x.is_finite() && x >= 0.0)?;
        if min > max {
            let (expected, got) = ("a pair (min, max) with min ≤ max", format!("({min}, {max})"));
            return Err(Error::HyperParameter { name: "rprop.step_sizes".into(), expected, got });
        }
        Ok(())
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot::new("prev", 0.0), Slot::new("step_size", 0.0)]
    }

    fn scalars(&self, at: &At) -> StepScalars {
        StepScalars::new(&Step {
            lr: single(at.lr),
            first: u32::from(at.first),
            eta_minus: single(self.etas.0),
            eta_plus: single(self.etas.1),
            step_min: single(self.step_sizes.0),
            step_max: single(self.step_sizes.1),
            pad0: 0,
            pad1: 0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn first_update_differs(&self) -> bool {
        true
    }
}
