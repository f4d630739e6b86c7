//! Parameters that share settings.

use crate::{Parameter, Rate};

/// Parameters with settings of their own; what a group does not set, it inherits from the optimizer.
///
/// ```
/// use optim_core::{ParamGroup, Parameter, schedule::PolynomialDecay};
///
/// # fn main() -> optim_core::Result<()> {
/// let conv = [Parameter::new("conv1.weight", [6, 1, 5, 5])];
/// let rest = [Parameter::new("fc.weight", [10, 864]), Parameter::new("fc.bias", [10])];
///
/// let groups = [
///     ParamGroup::new(&conv).lr(0.01).weight_decay(0.01),
///     ParamGroup::new(&rest).lr(PolynomialDecay::new(0.1, 0.01, 4, 0.5)?),
/// ];
/// assert_eq!(groups[1].params.len(), 2);
/// # Ok(())
/// # }
/// ```
///
/// With groups, MindSpore's exemption of names with `beta` or `gamma` from weight decay does not apply: a group with a
/// positive decay decays all its members.
#[derive(Debug, Clone)]
pub struct ParamGroup {
    /// The members, in order.
    pub params: Vec<Parameter>,
    /// The rate of this group. `None`: the optimizer's.
    pub lr: Option<Rate>,
    /// The weight decay of this group, ≥ 0. `None`: the optimizer's. `Some(0.0)` switches it off.
    pub weight_decay: Option<f64>,
    /// Gradient centralization for this group. `None`: off, as in MindSpore.
    pub grad_centralization: Option<bool>,
}

impl ParamGroup {
    /// A group of these parameters which inherits everything.
    #[must_use]
    pub fn new<P: Into<Parameter>>(params: impl IntoIterator<Item = P>) -> Self {
        Self {
            params: params.into_iter().map(Into::into).collect(),
            lr: None,
            weight_decay: None,
            grad_centralization: None,
        }
    }

    /// Sets the rate: a number, a list or a schedule.
    #[must_use]
    pub fn lr(mut self, lr: impl Into<Rate>) -> Self {
        self.lr = Some(lr.into());
        self
    }

    /// Sets the weight decay (≥ 0).
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = Some(weight_decay);
        self
    }

    /// Switches gradient centralization on or off.
    #[must_use]
    pub fn grad_centralization(mut self, on: bool) -> Self {
        self.grad_centralization = Some(on);
        self
    }
}
