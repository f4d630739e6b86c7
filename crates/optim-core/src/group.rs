//! Parameters that share settings.

use std::fmt;
use std::sync::Arc;

use crate::format::{Master, StateDType};
use crate::rule::Config;
use crate::{Parameter, Rate, Rule, Select};

/// Whether gradients are centralized: the mean over all axes but the first is subtracted from the decayed gradient.
///
/// Source: Yong et al. 2020, "Gradient Centralization: A New Optimization Technique for Deep Neural Networks", arXiv 2004.01461.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Centralization {
    /// Not at all.
    #[default]
    Off,
    /// Those of every parameter of two or more axes.
    On,
    /// As in MindSpore: only where the second extent is a multiple of 16, and never with the rules that ignore the flag there
    /// (AdamOffload, AdamWeightDecay, AdaFactor). For parity.
    MindSpore,
}

impl From<bool> for Centralization {
    fn from(on: bool) -> Self {
        if on { Self::On } else { Self::Off }
    }
}

impl Centralization {
    /// Whether the gradient of a parameter of this shape is centralized.
    #[must_use]
    pub fn applies(self, rule: &Rule, shape: &[usize]) -> bool {
        let rule = if let Rule::Lars(lars) = rule { &lars.inner } else { rule };
        let ignored = || matches!(rule, Rule::AdamOffload(_) | Rule::AdamWeightDecay(_) | Rule::AdaFactor(_));
        match (self, shape) {
            (Self::Off, _) | (_, [] | [_]) => false,
            (Self::On, _) => true,
            (Self::MindSpore, [_, second, ..]) => second.is_multiple_of(16) && !ignored(),
        }
    }
}

/// A change of a rule's hyper-parameters; `None` if the rule is another.
pub(crate) type Edit = Arc<dyn Fn(&mut Rule, u64) -> Option<()> + Send + Sync>;

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
///     ParamGroup::new(&conv).lr(0.01).weight_decay(0.01).grad_centralization(true),
///     ParamGroup::new(&rest).lr(PolynomialDecay::new(0.1, 0.01, 4, 0.5)?),
/// ];
/// assert_eq!(groups[1].params.len(), 2);
/// # Ok(())
/// # }
/// ```
///
/// With groups, MindSpore's exemption of names with `beta` or `gamma` from weight decay does not apply: a group with a
/// positive decay decays all its members, unless a [filter](crate::Builder::decay_filter) says otherwise.
#[derive(Clone, Default)]
pub struct ParamGroup {
    /// What the group is called in errors and tables; else by its number.
    pub name: Option<String>,
    /// The members, in order, where they are listed.
    pub params: Vec<Parameter>,
    /// The rule by which the group takes members.
    pub select: Option<Select>,
    /// Another rule than the optimizer's.
    pub rule: Option<Rule>,
    /// The rate of this group. `None`: that of the group's own rule, else the optimizer's.
    pub lr: Option<Rate>,
    /// The weight decay of this group: ≥ 0, a number, a list or a schedule. `None`: the optimizer's. 0 switches it off.
    pub weight_decay: Option<Rate>,
    /// Gradient centralization for this group. `None`: off, as in MindSpore.
    pub grad_centralization: Option<Centralization>,
    /// What stands behind 16-bit parameters of this group. `None`: the optimizer's.
    pub master: Option<Master>,
    /// How this group's state is kept. `None`: the optimizer's.
    pub state_dtype: Option<StateDType>,
    /// The largest norm of this group's gradient, where norms are clipped [by group](crate::Builder::clip_norm_per_group). `None`:
    /// the optimizer's.
    pub max_norm: Option<f64>,
    /// Changes of hyper-parameters, once.
    pub(crate) edits: Vec<Edit>,
    /// Changes of hyper-parameters, at every update.
    pub(crate) varies: Vec<Edit>,
}

impl ParamGroup {
    /// A group of these parameters which inherits everything.
    #[must_use]
    pub fn new<P: Into<Parameter>>(params: impl IntoIterator<Item = P>) -> Self {
        Self { params: params.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// A group that takes its members from the parameters given to [`Builder::params`](crate::Builder::params).
    #[must_use]
    pub fn matching(select: Select) -> Self {
        Self { select: Some(select), ..Self::default() }
    }

    /// Names the group.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Gives the group a rule of its own. Its rate counts, unless [`lr`](Self::lr) says otherwise; its weight decay, unless one is
    /// set for the group or the optimizer.
    #[must_use]
    pub fn rule(mut self, rule: impl Into<Rule>) -> Self {
        self.rule = Some(rule.into());
        self
    }

    /// Changes hyper-parameters of the rule for this group, whatever rule it has by then.
    ///
    /// ```
    /// use optim_core::{Adam, ParamGroup, Parameter};
    ///
    /// let embedding = [Parameter::new("embedding", [1000, 64])];
    /// let group = ParamGroup::new(&embedding).hyper(|adam: &mut Adam| adam.beta2 = 0.99);
    /// # let _ = group;
    /// ```
    ///
    /// With a config of another rule than the group's, building is an error that says so. Trap: a weight decay of the group's or of the
    /// builder's takes the place of one that is set here.
    #[must_use]
    pub fn hyper<C: Config>(mut self, edit: impl Fn(&mut C) + Send + Sync + 'static) -> Self {
        self.edits.push(Arc::new(move |rule, _| C::of(rule).map(&edit)));
        self
    }

    /// Changes hyper-parameters of the rule at every update, as a function of its 0-based index: momentum or betas that follow a
    /// schedule. Every update starts from the rule as configured. The state that the rule keeps must stay the same, and so must whether
    /// a parameter's first update is computed otherwise (with [`Sgd`](crate::Sgd), whether dampening is 0). Rate and weight
    /// decay are schedules of their own: [`lr`](Self::lr), [`weight_decay`](Self::weight_decay); changes of them do nothing here.
    ///
    /// ```
    /// use optim_core::{Adam, ParamGroup, Parameter, Schedule, schedule::Linear};
    ///
    /// # fn main() -> optim_core::Result<()> {
    /// let weight = [Parameter::new("weight", [3])];
    /// let beta1 = Linear::new(0.95, 0.85, 100)?;
    /// let group = ParamGroup::new(&weight).vary(move |adam: &mut Adam, update| adam.beta1 = beta1.at(update));
    /// # let _ = group;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn vary<C: Config>(mut self, edit: impl Fn(&mut C, u64) + Send + Sync + 'static) -> Self {
        self.varies.push(Arc::new(move |rule, update| C::of(rule).map(|config| edit(config, update))));
        self
    }

    /// Sets the rate: a number, a list or a schedule.
    #[must_use]
    pub fn lr(mut self, lr: impl Into<Rate>) -> Self {
        self.lr = Some(lr.into());
        self
    }

    /// Sets the weight decay (≥ 0): a number, a list or a schedule.
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: impl Into<Rate>) -> Self {
        self.weight_decay = Some(weight_decay.into());
        self
    }

    /// Switches gradient centralization on or off.
    #[must_use]
    pub fn grad_centralization(mut self, centralization: impl Into<Centralization>) -> Self {
        self.grad_centralization = Some(centralization.into());
        self
    }

    /// Says what stands behind 16-bit parameters.
    #[must_use]
    pub fn master(mut self, master: Master) -> Self {
        self.master = Some(master);
        self
    }

    /// Says how the state is kept. If the group's rule keeps none of it in fewer bits, building is an error: see
    /// [`Builder::state_dtype`](crate::Builder::state_dtype).
    #[must_use]
    pub fn state_dtype(mut self, state: StateDType) -> Self {
        self.state_dtype = Some(state);
        self
    }

    /// Sets the largest norm of the group's gradient (> 0).
    #[must_use]
    pub fn max_norm(mut self, max_norm: f64) -> Self {
        self.max_norm = Some(max_norm);
        self
    }
}

impl fmt::Debug for ParamGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let params: Vec<_> = self.params.iter().map(Parameter::name).collect();
        f.debug_struct("ParamGroup")
            .field("name", &self.name)
            .field("params", &params)
            .field("select", &self.select)
            .field("rule", &self.rule)
            .field("lr", &self.lr)
            .field("weight_decay", &self.weight_decay)
            .finish_non_exhaustive()
    }
}
