//! FTRL: see [`Ftrl`].

use crate::error::check;
use crate::rule::{At, Slot, Sparse, StepScalars, UpdateRule, config, step_scalars};
use crate::rules::{rounded, single};
use crate::{Rate, Result};

/// FTRL-Proximal: weights are rebuilt at every update from sums of gradients, most of them as exact zeros if `l1` asks
/// for it (MindSpore `nn.FTRL`). For sparse linear models, such as click prediction.
///
/// It differs from [`ProximalAdagrad`](crate::ProximalAdagrad) in not starting from the weight that there is.
///
/// With `p` the parameter, `g` the gradient (unscaled, with L2 decay), `γ` the rate, `k` = −`lr_power`, slots `n`
/// (`moments`, sum of squares) and `z` (`linear`):
///
/// ```text
/// r = nᵏ,  n ← n + g²                            (1)
/// z ← z + g − (nᵏ − r) / γ · p                   (2)
/// d = nᵏ / γ + 2 · l2                            (3)
/// p ← (sign(z) · l1 − z) / d,  or 0 where |z| ≤ l1       (4)    where d = 0: 0
/// ```
///
/// **A zero gradient at the first update erases the weight**: `z` stays 0, so `p` becomes 0, even with `l1` = 0. A
/// weight's initial value only enters through (2), in the measure of its gradients.
///
/// Row-sparse gradients: a row that is not listed stays as it is, and so do its `n` and `z`: the trap above spares it.
///
/// # Differences
/// - **PyTorch** has no FTRL.
/// - **MindSpore** refuses dynamic rates and groups with a rate of their own; here all are taken. At a rate of 0, which
///   (2) cannot divide by, nothing changes. The dense CPU kernel of 2.10 has the wrong sign of `l1` for negative `z` (a
///   defect).
/// - **TensorFlow** puts the factor 2 on `l2` too; McMahan et al. do not.
/// - Without groups, weight decay applies to *every* parameter, `beta` and `gamma` in the name or not, as in MindSpore.
///
/// ```
/// use optim_core::{Ftrl, Parameter};
///
/// let weight = Parameter::new("weight", [3]);
/// let builder = Ftrl::new(0.1).params([&weight]);
/// # let _ = builder;
/// // p = 1, g = 1: n = 1.1, z = 1 − (√1.1 − √0.1) / 0.1 = −6.326; so p = 6.326 / (√1.1 / 0.1) = 0.6031.
/// // p = 1, g = 0: z = 0, so p = 0.
/// ```
///
/// Sources: McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches"; MindSpore `FTRL`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Ftrl {
    /// The value of `n` before the first update, finite and ≥ 0. Default 0.1.
    pub initial_accum: f64,
    /// `γ`, finite and > 0. Default 1e-3. Trap: a rate that changes also changes what `z` weighs, so weights jump with
    /// it.
    pub lr: Rate,
    /// −`k`, finite and ≤ 0. Default −0.5, the root, which is much the fastest. 0: the rate does not depend on the
    /// gradients. Other powers are within 1e-6 of themselves down to −4.
    pub lr_power: f64,
    /// Finite and ≥ 0. Default 0. The larger, the more weights are 0.
    pub l1: f64,
    /// Finite and ≥ 0. Default 0. Trap: it counts twice in (3).
    pub l2: f64,
    /// L2 decay of the gradient, finite and ≥ 0. Default 0. Trap: it is another thing than `l2`, and it hits every
    /// parameter.
    pub weight_decay: f64,
}

impl Default for Ftrl {
    fn default() -> Self {
        Self { initial_accum: 0.1, lr: Rate::Fixed(1e-3), lr_power: -0.5, l1: 0.0, l2: 0.0, weight_decay: 0.0 }
    }
}

impl Ftrl {
    /// FTRL with this rate and MindSpore's defaults.
    #[must_use]
    pub fn new(lr: impl Into<Rate>) -> Self {
        Self { lr: lr.into(), ..Self::default() }
    }

    /// Whether `nᵏ` is the root, for which there is a faster kernel.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.lr_power == -0.5
    }
}

config!(Ftrl);

step_scalars! {
    /// `1 / γ`
    inverse_lr: f32,
    /// `l1`
    l1: f32,
    /// `2 · l2`
    two_l2: f32,
    /// 0 where the rate is 0, or so small that `1 / γ` is no `f32`, and nothing changes; else 1
    moves: u32,
    /// `k`
    power: f32,
    /// `k` to the nearest multiple of 1/4096
    power_high: f32,
    /// what is left of `k`
    power_low: f32,
    /// fills 32 bytes
    pad0: u32,
}

/// The most that `k` may be: its products with the logarithms of numbers must be finite. No number but 1 has a power near
/// it that is not 0 or infinite.
const MOST: f64 = 1e30;

impl UpdateRule for Ftrl {
    fn name(&self) -> &'static str {
        "ftrl"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn validate(&self) -> Result<()> {
        let Self { initial_accum, lr_power, l1, l2, .. } = *self;
        if let Rate::Fixed(lr) = self.lr {
            check("ftrl.lr", "finite and > 0", lr, |x| x.is_finite() && single(x) > 0.0)?;
        }
        let accum = initial_accum;
        check("ftrl.initial_accum", "finite and ≥ 0", accum, |x| x.is_finite() && x >= 0.0)?;
        check("ftrl.lr_power", "finite and ≤ 0", lr_power, |x| single(x).is_finite() && x <= 0.0)?;
        check("ftrl.l1", "finite and ≥ 0", l1, |x| x.is_finite() && x >= 0.0)?;
        check("ftrl.l2", "finite and ≥ 0", l2, |x| x.is_finite() && x >= 0.0)
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot::new("moments", single(self.initial_accum)), Slot::new("linear", 0.0)]
    }

    fn entry(&self) -> &'static str {
        if self.is_root() { "update" } else { "update_power" }
    }

    fn scalars(&self, at: &At) -> StepScalars {
        let (inverse, power) = (single(1.0 / at.lr), (-rounded(self.lr_power)).min(MOST));
        let moves = inverse.is_finite();
        let high = single((power * 4096.0).round() / 4096.0);
        StepScalars::new(&Step {
            inverse_lr: if moves { inverse } else { 0.0 },
            l1: single(self.l1),
            two_l2: single(2.0 * rounded(self.l2)),
            moves: u32::from(moves),
            power: single(power),
            power_high: high,
            power_low: single(power - f64::from(high)),
            pad0: 0,
        })
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        Step::FIELDS
    }

    fn sparse(&self) -> Sparse {
        Sparse::ListedRows
    }

    fn decays_all_names(&self) -> bool {
        true
    }
}
