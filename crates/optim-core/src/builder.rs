//! The builder: everything is checked here, before an optimizer exists.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use crate::backend::{IntoBackend, Tensor};
use crate::error::{check, shown};
use crate::estimate::Estimate;
use crate::format::{self, Master, StateDType};
use crate::group::{Centralization, Edit};
use crate::guard::{Clip, LossScale};
use crate::optimizer::{Parts, same_state};
use crate::rule::{At, MAX_SLOTS, Passes, SlotShape};
use crate::settings::{Ema, Group, Origin, Settings};
use crate::{DType, Error, Optimizer, ParamGroup, Parameter, Rate, Result, Rule};

/// Decides by name, shape and type whether a parameter decays.
type DecayFilter = Arc<dyn Fn(&Parameter) -> bool + Send + Sync>;

/// What the rate of a parameter is multiplied with.
#[derive(Clone)]
enum LrScale {
    One,
    By(Arc<dyn Fn(&Parameter) -> f64 + Send + Sync>),
    Layers(f64),
}

/// An optimizer being described. Made by a config: `Adam::default().params(…)`, `Momentum::new(…).groups(…)`.
///
/// Everything is checked in [`build`](Self::build).
#[derive(Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    rule: Rule,
    pool: Option<Vec<Parameter>>,
    groups: Vec<ParamGroup>,
    grouped: bool,
    order: Option<Vec<String>>,
    weight_decay: Option<Rate>,
    decay_filter: Option<DecayFilter>,
    lr_scale: LrScale,
    master: Master,
    state: StateDType,
    ema: Option<Ema>,
    settings: Settings,
    pub(crate) seed: u64,
    /// The number of the first group.
    first: usize,
}

impl Builder {
    /// A builder without parameters.
    pub fn new(rule: impl Into<Rule>) -> Self {
        Self {
            rule: rule.into(),
            pool: None,
            groups: Vec::new(),
            grouped: false,
            order: None,
            weight_decay: None,
            decay_filter: None,
            lr_scale: LrScale::One,
            master: Master::default(),
            state: StateDType::default(),
            ema: None,
            settings: Settings::default(),
            seed: 0,
            first: 0,
        }
    }

    /// The parameters, in the order in which a step hands them over: all with the same settings, or those from which
    /// [`groups`](Self::groups) take theirs. Every one must then be in a group.
    pub fn params<P: Into<Parameter>>(mut self, params: impl IntoIterator<Item = P>) -> Self {
        self.pool = Some(params.into_iter().map(Into::into).collect());
        self
    }

    /// Parameters in groups: listed, or taken by a rule from those given to [`params`](Self::params). Replaces earlier groups.
    ///
    /// Without `params`, parameters and gradients of a step come in the order of the groups' concatenated lists, unless
    /// [`order_params`](Self::order_params) says otherwise.
    pub fn groups(mut self, groups: impl IntoIterator<Item = ParamGroup>) -> Self {
        self.groups = groups.into_iter().collect();
        self.grouped = true;
        self
    }

    /// The order in which a step hands over parameters and gradients (MindSpore's `order_params`): exactly the grouped
    /// parameters, matched by name.
    pub fn order_params<P: Into<Parameter>>(mut self, params: impl IntoIterator<Item = P>) -> Self {
        self.order = Some(params.into_iter().map(|p| p.into().name().to_owned()).collect());
        self
    }

    /// Which parameters decay at all. It replaces MindSpore's default: with groups all decay; without, those whose name
    /// contains neither `beta` nor `gamma` (case-sensitive, anywhere in the name; biases decay); with a rule that
    /// [decays all names](crate::rule::UpdateRule::decays_all_names), such as FTRL, all.
    pub fn decay_filter(mut self, filter: impl Fn(&Parameter) -> bool + Send + Sync + 'static) -> Self {
        self.decay_filter = Some(Arc::new(filter));
        self
    }

    /// A [`decay_filter`](Self::decay_filter) for builders that have none: how another library's convention becomes the default.
    pub fn default_decay_filter(mut self, filter: impl Fn(&Parameter) -> bool + Send + Sync + 'static) -> Self {
        self.decay_filter.get_or_insert_with(|| Arc::new(filter));
        self
    }

    /// Only parameters of two or more axes decay: no bias, no scale of a normalization. A [`decay_filter`](Self::decay_filter).
    pub fn no_decay_1d(self) -> Self {
        self.decay_filter(|parameter| parameter.shape().len() >= 2)
    }

    /// Multiplies the rate of each parameter, whatever its group, by a number: finite and ≥ 0.
    pub fn lr_scale(mut self, scale: impl Fn(&Parameter) -> f64 + Send + Sync + 'static) -> Self {
        self.lr_scale = LrScale::By(Arc::new(scale));
        self
    }

    /// Layer-wise decay of the rate: `decay ^ (depth of the last layer − depth)`, in (0, 1].
    ///
    /// The layer of a parameter is the first whole number between dots in its name (`blocks.3.attn.weight`: 3). Names without one
    /// belong before the first layer if they are registered before all numbered ones (embeddings), else behind the last (the
    /// head), whose rate stays as it is.
    ///
    /// Source: Clark et al. 2020, "ELECTRA", arXiv 2003.10555, and the fine-tuning of vision transformers since.
    pub fn layer_decay(mut self, decay: f64) -> Self {
        self.lr_scale = LrScale::Layers(decay);
        self
    }

    /// The weight decay of every group that does not set its own: ≥ 0, a number, a list or a schedule. Default: the config's.
    pub fn weight_decay(mut self, weight_decay: impl Into<Rate>) -> Self {
        self.weight_decay = Some(weight_decay.into());
        self
    }

    /// The factor by which the loss, and so every gradient, was multiplied: a step divides it out again. A number (default 1, finite
    /// and > 0), a [`FixedLossScale`](crate::FixedLossScale) or a [`DynamicLossScale`](crate::DynamicLossScale); with the latter two
    /// a step whose gradients are not finite is skipped. Weight decay acts on the unscaled gradient.
    pub fn loss_scale(mut self, loss_scale: impl Into<LossScale>) -> Self {
        self.settings.loss_scale = loss_scale.into();
        self
    }

    /// Skips steps whose gradients have an element that is not finite, so that none reaches a weight. Default `false`; loss scales
    /// that drop steps and clipping by norm switch it on.
    pub fn guard(mut self, on: bool) -> Self {
        self.settings.guard = on;
        self
    }

    /// Makes gradients smaller whose norm, over all parameters together, is larger than `max_norm` (> 0): times `max_norm / norm`.
    ///
    /// The norm is taken after unscaling, before centralization and decay; frozen parameters and missing gradients are left out. It
    /// is in the report. Replaces clipping by group and by parameter.
    pub fn clip_norm(self, max_norm: f64) -> Self {
        self.clip(Clip::Global, max_norm)
    }

    /// As [`clip_norm`](Self::clip_norm), over each group by itself. A group may [set its own](ParamGroup::max_norm).
    pub fn clip_norm_per_group(self, max_norm: f64) -> Self {
        self.clip(Clip::Group, max_norm)
    }

    /// As [`clip_norm`](Self::clip_norm), over each parameter by itself.
    pub fn clip_norm_per_parameter(self, max_norm: f64) -> Self {
        self.clip(Clip::Parameter, max_norm)
    }

    fn clip(mut self, clip: Clip, max_norm: f64) -> Self {
        self.settings.clip = Some((clip, max_norm));
        self
    }

    /// Bounds every element of the unscaled gradient, after clipping by norm: to ± `limit`, which is finite and > 0.
    pub fn clip_value(mut self, limit: f64) -> Self {
        self.settings.limit = Some(limit);
        self
    }

    /// Adaptive gradient clipping: for each row `g ← g · λ max(‖p‖, ε) / ‖g‖` where `‖g‖` is larger than `λ max(‖p‖, ε)`. A row is
    /// what stands at one index of the first axis; a parameter of fewer than two axes is one row. Both finite and > 0;
    /// usual: `λ` 0.01, `ε` 1e-3. Not with [`Lars`](crate::Lars), whose ratio would be of gradients that are not clipped.
    ///
    /// Source: Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization", arXiv 2102.06171.
    pub fn clip_adaptive(mut self, lambda: f64, epsilon: f64) -> Self {
        self.settings.units = Some((lambda, epsilon));
        self
    }

    /// What stands behind 16-bit parameters of groups that do not say so themselves. Default: `f32` masters.
    pub fn master(mut self, master: Master) -> Self {
        self.master = master;
        self
    }

    /// How the state of groups is kept that do not say so themselves. Default: `f32`.
    ///
    /// It holds for slots that bear to be rounded. These stay `f32`: all of [`Ftrl`](crate::Ftrl), [`Asgd`](crate::Asgd),
    /// [`Rprop`](crate::Rprop) and [`AdaFactor`](crate::AdaFactor); the largest second moments of AMSGrad; the gradients before of
    /// [`Adan`](crate::Adan); the means of a centered [`RmsProp`](crate::RmsProp); in a rule of your own all but
    /// [`Slot::narrow`](crate::rule::Slot::narrow). If no group has a slot that can be kept so, building is an error. In a list of groups
    /// those that cannot stay as they are: [`estimate`](Self::estimate) and [`explain`](Optimizer::explain) tell.
    pub fn state_dtype(mut self, state: StateDType) -> Self {
        self.state = state;
        self
    }

    /// Keeps an exponential moving average of every parameter, in `f32`, updated in the same pass: see [`Ema`].
    pub fn ema(mut self, ema: impl Into<Ema>) -> Self {
        self.ema = Some(ema.into());
        self
    }

    /// The seed of stochastic rounding. Default 0. With the same seed, names and steps the same bits are drawn.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks everything, opens the backend and allocates the state.
    ///
    /// # Errors
    /// No parameters at all or in a group; two of one name; a frozen one; one that no group or more than one group takes; a rule of a
    /// group that takes none; a hyper-parameter out of its range; state in fewer bits of a rule that keeps none so; an `order_params`
    /// that is not exactly the grouped parameters; what opening the backend or allocating returns.
    pub fn build(self, backend: impl IntoBackend) -> Result<Optimizer> {
        let parts = self.into_parts(0)?;
        Optimizer::new(parts, backend.into_backend()?)
    }

    /// Everything checked and inherited; the groups are numbered from `first` on.
    pub(crate) fn into_parts(mut self, first: usize) -> Result<Parts> {
        self.first = first;
        let (groups, mut tensors, scales) = self.checked()?;
        for tensor in &mut tensors {
            tensor.group += first;
            tensor.rule += first;
        }
        Ok(Parts {
            decays: tensors.iter().map(|tensor| self.decays(&tensor.parameter)).collect(),
            rule: self.rule.clone(),
            groups,
            tensors,
            scales,
            settings: self.settings,
            ema: self.ema,
            defaults: Self { pool: None, groups: Vec::new(), order: None, ..self },
        })
    }

    /// What the state will take, group by group. Nothing is allocated for it.
    ///
    /// # Errors
    /// As [`build`](Self::build), but for the backend's.
    pub fn estimate(&self) -> Result<Estimate> {
        let (groups, tensors, _) = self.checked()?;
        Ok(Estimate::new(&groups, &tensors))
    }

    fn decays(&self, parameter: &Parameter) -> bool {
        match &self.decay_filter {
            Some(filter) => filter(parameter),
            None if self.grouped || self.rule.spec().decays_all_names() => true,
            None => !(parameter.name().contains("beta") || parameter.name().contains("gamma")),
        }
    }

    /// The groups with everything inherited, the parameters in the order of a step, and what their rates are multiplied with.
    fn checked(&self) -> Result<(Vec<Group>, Vec<Tensor>, Vec<f64>)> {
        self.settings.validate()?;
        if let Some(ema) = &self.ema {
            ema.validate()?;
        }
        validate_rule(&self.rule, "")?;
        let members = self.members()?;
        let groups = match &self.groups[..] {
            [] => vec![self.resolve(&ParamGroup::default(), "the optimizer".into())?],
            groups => (groups.iter().enumerate())
                .map(|(index, group)| self.resolve(group, self.place(index)))
                .collect::<Result<_>>()?,
        };
        check_group_names(groups.iter())?;
        self.check_state(&groups)?;
        if self.settings.units.is_some()
            && let Some(group) = groups.iter().find(|group| group.rule().spec().has_trust())
        {
            let (name, expected) =
                ("clip_adaptive".into(), "left out with lars, whose ratio is of gradients that are not clipped by row");
            return Err(Error::HyperParameter { name, expected, got: format!("it, and lars in {}", group.place) });
        }
        let mut names = HashSet::new();
        let mut elements = 0;
        for (parameter, _) in &members {
            check_trainable(parameter)?;
            elements += check_shape(parameter, elements)?;
            if !names.insert(parameter.name()) {
                return Err(Error::DuplicateParameter { name: parameter.name().into() });
            }
        }
        let mut tensors = Vec::with_capacity(members.len());
        for (parameter, group) in self.ordered(&members)? {
            tensors.push(self.tensor(parameter, group)?);
        }
        let scales = self.scales(&tensors)?;
        Ok((groups, tensors, scales))
    }

    /// Refuses fewer bits for state of which nothing can be kept in them: of a group that asks for them, or of all that inherit them.
    fn check_state(&self, groups: &[Group]) -> Result<()> {
        let refuse = |place: &str, expected, state, rules: &[&str]| {
            let (name, got) = (format!("{place}: state_dtype"), format!("{state}, with {}", rules.join(", ")));
            Err(Error::HyperParameter { name, expected, got })
        };
        let (mut wide, mut inherits_any) = (Vec::new(), false);
        for (index, group) in groups.iter().enumerate() {
            let (rule, slots) = (group.rule().spec().name(), group.rule().spec().slots());
            let is_wide = !slots.is_empty() && slots.iter().all(|slot| slot.narrow.is_none());
            match self.groups.get(index).and_then(|own| own.state_dtype) {
                Some(state) if is_wide && state != StateDType::F32 => {
                    let expected = "f32, since the group's rule keeps none of its state in fewer bits";
                    return refuse(&group.place, expected, state, &[rule]);
                }
                None if is_wide && !wide.contains(&rule) => wide.push(rule),
                None => inherits_any |= !is_wide && !slots.is_empty(),
                Some(_) => {}
            }
        }
        // A group that is added is not the only one that inherits.
        if self.state == StateDType::F32 || wide.is_empty() || inherits_any || self.first > 0 {
            return Ok(());
        }
        refuse("the optimizer", "f32, since no rule keeps any of its state in fewer bits", self.state, &wide)
    }

    fn tensor(&self, parameter: &Parameter, group: usize) -> Result<Tensor> {
        let own = self.groups.get(group);
        let master = own.and_then(|own| own.master).unwrap_or(self.master);
        if master == Master::Split && parameter.dtype() == DType::F16 {
            let (name, expected) =
                (format!("{}: master", parameter.name()), "another than split for f16: it needs bf16");
            return Err(Error::HyperParameter { name, expected, got: "split".into() });
        }
        Ok(Tensor {
            group,
            rule: group,
            master,
            state: own.and_then(|own| own.state_dtype).unwrap_or(self.state),
            ema: self.ema.is_some(),
            key: format::tensor_key(self.seed, parameter.name()),
            parameter: parameter.clone(),
        })
    }

    /// What errors and tables call a group.
    fn place(&self, index: usize) -> String {
        let number = self.first + index;
        match &self.groups[index].name {
            Some(name) => format!("group {number} ({name})"),
            None => format!("group {number}"),
        }
    }

    /// A group's settings with everything inherited.
    fn resolve(&self, group: &ParamGroup, place: String) -> Result<Group> {
        let mut rule = group.rule.as_ref().unwrap_or(&self.rule).clone();
        let apply = |what: &str, edits: &[Edit], rule: &mut Rule| {
            edits.iter().try_for_each(|edit| {
                edit(rule, 0).ok_or_else(|| Error::HyperParameter {
                    name: format!("{place}: {what}"),
                    expected: "a change of the config of the group's rule",
                    got: format!("one of another: the rule is {}", rule.spec().name()),
                })
            })
        };
        apply("hyper", &group.edits, &mut rule)?;
        // What a group changes of the optimizer's rule is the group's.
        let origin = |same| if group.rule.is_none() && same { Origin::Optimizer } else { Origin::Group };
        let rule_origin = origin(group.edits.is_empty() && group.varies.is_empty());
        if group.rule.is_some() || !group.edits.is_empty() {
            validate_rule(&rule, &format!("{place}: "))?;
        }
        if !group.varies.is_empty() {
            let mut first = rule.clone();
            apply("vary", &group.varies, &mut first)?;
            validate_rule(&first, &format!("{place}: "))?;
            check_vary(&place, &rule, &first)?;
        }
        if let Some(lr) = &group.lr {
            if !rule.spec().takes_lr() {
                let (name, expected) = (format!("{place}: lr"), "left out, since the rule makes its own rate");
                return Err(Error::HyperParameter { name, expected, got: format!("{lr:?}") });
            }
            lr.validate(&format!("{place}: lr"))?;
        }
        if let Some(decay) = &group.weight_decay {
            decay.validate_decay(&format!("{place}: weight_decay"))?;
        }
        if let Some(decay) = &self.weight_decay {
            decay.validate_decay(&format!("{}.weight_decay", self.rule.spec().name()))?;
        }
        let clip = self.settings.clip;
        let max_norm = match (group.max_norm, clip) {
            (Some(max_norm), Some((Clip::Group, _))) => {
                check(&format!("{place}: max_norm"), "finite and > 0", max_norm, |x| x.is_finite() && x > 0.0)?;
                max_norm
            }
            (Some(got), _) => {
                let (name, expected) = (format!("{place}: max_norm"), "left out unless norms are clipped by group");
                return Err(Error::HyperParameter { name, expected, got: shown(got) });
            }
            (None, clip) => clip.map_or(0.0, |(_, max_norm)| max_norm),
        };
        let (lr, lr_origin) = match &group.lr {
            Some(lr) => (lr.clone(), Origin::Group),
            None => (rule.spec().lr().clone(), origin(rule.spec().lr().is(self.rule.spec().lr()))),
        };
        let (weight_decay, decay_origin) = match (&group.weight_decay, &self.weight_decay) {
            (Some(decay), _) => (decay.clone(), Origin::Group),
            (None, Some(decay)) => (decay.clone(), Origin::Optimizer),
            (None, None) => {
                let (own, optimizer) = (rule.spec().weight_decay(), self.rule.spec().weight_decay());
                (Rate::Fixed(own), origin(own.to_bits() == optimizer.to_bits()))
            }
        };
        let centralization = group.grad_centralization.unwrap_or_default();
        Ok(Group {
            name: group.name.clone(),
            centralization: (
                centralization,
                if group.grad_centralization.is_some() { Origin::Group } else { Origin::Default },
            ),
            max_norm,
            varies: group.varies.clone(),
            ..Group::new(place, (rule, rule_origin), (lr, lr_origin), (weight_decay, decay_origin))
        })
    }

    /// Each parameter with the group that takes it: in the order of the pool, if there is one, else of the groups.
    fn members(&self) -> Result<Vec<(&Parameter, usize)>> {
        let nothing = |place| Err(Error::NoParameters { place });
        let Some(pool) = &self.pool else {
            if self.groups.is_empty() {
                return nothing("the optimizer".into());
            }
            let mut members = Vec::new();
            for (index, group) in self.groups.iter().enumerate() {
                if group.select.is_some() {
                    let (what, expected) =
                        ("a group that selects its parameters", "give those to select from to `params`");
                    return Err(Error::State { what, expected });
                }
                if group.params.is_empty() {
                    return nothing(self.place(index));
                }
                members.extend(group.params.iter().map(|parameter| (parameter, index)));
            }
            return Ok(members);
        };
        if pool.is_empty() {
            return nothing("the optimizer".into());
        }
        if !self.grouped {
            return Ok(pool.iter().map(|parameter| (parameter, 0)).collect());
        }
        self.claimed(pool)
    }

    fn claimed<'a>(&self, pool: &'a [Parameter]) -> Result<Vec<(&'a Parameter, usize)>> {
        let mut names = HashSet::new();
        if let Some(twice) = pool.iter().find(|parameter| !names.insert(parameter.name())) {
            return Err(Error::DuplicateParameter { name: twice.name().into() });
        }
        let mut claims: Vec<Option<usize>> = vec![None; pool.len()];
        let is_rest = |group: &ParamGroup| group.select.as_ref().is_some_and(crate::Select::is_rest);
        let in_order = self.groups.iter().enumerate().filter(|(_, group)| !is_rest(group));
        let rest = self.groups.iter().enumerate().filter(|(_, group)| is_rest(group));
        for (index, group) in in_order.chain(rest) {
            if group.params.is_empty() && group.select.is_none() {
                return Err(Error::NoParameters { place: self.place(index) });
            }
            for listed in &group.params {
                let Some(at) = pool.iter().position(|parameter| parameter.name() == listed.name()) else {
                    let expected = pool.iter().map(Parameter::name).collect::<Vec<_>>().join(", ");
                    return Err(Error::Unknown { what: "parameter", name: listed.name().into(), expected });
                };
                if listed != &pool[at] {
                    let name = format!("{}: parameter {:?}", self.place(index), listed.name());
                    return Err(Error::HyperParameter {
                        name,
                        expected: "as given to `params`",
                        got: format!("{listed:?}"),
                    });
                }
                if claims[at].replace(index).is_some() {
                    return Err(Error::DuplicateParameter { name: listed.name().into() });
                }
            }
            let Some(select) = &group.select else { continue };
            let mut taken = 0;
            for (claim, parameter) in claims.iter_mut().zip(pool) {
                if claim.is_none() && select.matches(parameter) {
                    *claim = Some(index);
                    taken += 1;
                }
            }
            if taken == 0 && !select.is_rest() {
                return Err(Error::NoMatch { place: self.place(index), pattern: select.to_string() });
            }
        }
        let claimed = claims.into_iter().zip(pool).map(|(claim, parameter)| match claim {
            Some(group) => Ok((parameter, group)),
            None => Err(Error::Unclaimed { name: parameter.name().into() }),
        });
        claimed.collect()
    }

    /// The members in the order of a step.
    fn ordered<'a>(&self, members: &[(&'a Parameter, usize)]) -> Result<Vec<(&'a Parameter, usize)>> {
        let Some(order) = &self.order else { return Ok(members.to_vec()) };
        let mut known: HashMap<&str, (&Parameter, usize)> =
            members.iter().map(|&(parameter, group)| (parameter.name(), (parameter, group))).collect();
        let mut ordered: Vec<(&Parameter, usize)> = Vec::with_capacity(members.len());
        for name in order {
            if let Some(member) = known.remove(name.as_str()) {
                ordered.push(member);
            } else if ordered.iter().any(|(parameter, _)| parameter.name() == name) {
                return Err(Error::DuplicateParameter { name: name.clone() });
            } else {
                let expected = members.iter().map(|(parameter, _)| parameter.name()).collect::<Vec<_>>().join(", ");
                return Err(Error::Unknown { what: "grouped parameter", name: name.clone(), expected });
            }
        }
        if !known.is_empty() {
            let left = members.iter().map(|(parameter, _)| parameter.name()).filter(|name| known.contains_key(name));
            return Err(Error::LeftOut { what: "the order", names: left.map(str::to_owned).collect() });
        }
        Ok(ordered)
    }

    /// What the rate of each parameter is multiplied with.
    fn scales(&self, tensors: &[Tensor]) -> Result<Vec<f64>> {
        match &self.lr_scale {
            LrScale::One => Ok(vec![1.0; tensors.len()]),
            LrScale::By(scale) => (tensors.iter())
                .map(|Tensor { parameter, .. }| {
                    let (name, scale) = (format!("lr_scale of {:?}", parameter.name()), scale(parameter));
                    check(&name, "finite and ≥ 0", scale, |x| x.is_finite() && x >= 0.0)?;
                    Ok(scale)
                })
                .collect(),
            LrScale::Layers(decay) => {
                check("layer_decay", "in (0, 1]", *decay, |x| x > 0.0 && x <= 1.0)?;
                let depths = depths(tensors.iter().map(|tensor| tensor.parameter.name()));
                let last = depths.iter().copied().max().unwrap_or_default();
                let scale = |(tensor, depth): (&Tensor, u64)| {
                    let scale = decay.powi(i32::try_from(last - depth).unwrap_or(i32::MAX));
                    let name = format!("layer_decay of {:?}", tensor.parameter.name());
                    check(&name, "so few layers behind it that its rate is not 0", scale, |x| x > 0.0)?;
                    Ok(scale)
                };
                tensors.iter().zip(depths).map(scale).collect()
            }
        }
    }
}

/// Refuses what a group has made of its rule if that has another kernel, keeps its state in another way, or begins in another way: an
/// update that may be one of several has as many records in each.
pub(crate) fn check_vary(place: &str, own: &Rule, varied: &Rule) -> Result<()> {
    let begins = |rule: &Rule| rule.spec().first_update_differs();
    if same_state(varied, own) && begins(varied) == begins(own) {
        return Ok(());
    }
    let (name, expected) = (format!("{place}: vary"), "a change that leaves the rule's kernel and state as they are");
    Err(Error::HyperParameter { name, expected, got: format!("{varied:?}") })
}

/// Two groups of one name could not be told apart by it.
pub(crate) fn check_group_names<'a>(groups: impl Iterator<Item = &'a Group>) -> Result<()> {
    let mut names = HashSet::new();
    for group in groups {
        if let Some(name) = group.name()
            && !names.insert(name)
        {
            let (place, expected) = (&group.place, "another than that of an earlier group");
            return Err(Error::HyperParameter { name: format!("{place}: name"), expected, got: format!("{name:?}") });
        }
    }
    Ok(())
}

/// The depth of each name: 0 before the first layer, then the layers, then what lies behind the last.
fn depths<'a>(names: impl Iterator<Item = &'a str>) -> Vec<u64> {
    let layers: Vec<Option<u64>> =
        names.map(|name| name.split('.').find_map(|part| part.parse::<u32>().ok()).map(u64::from)).collect();
    let head = layers.iter().flatten().max().map_or(0, |last| last + 2);
    let first = layers.iter().position(Option::is_some).unwrap_or(0);
    let depth = |(place, layer): (usize, Option<u64>)| match layer {
        Some(layer) => layer + 1,
        None if place < first => 0,
        None => head,
    };
    layers.into_iter().enumerate().map(depth).collect()
}

fn check_trainable(parameter: &Parameter) -> Result<()> {
    match parameter.is_trainable() {
        true => Ok(()),
        false => Err(Error::FrozenParameter { name: parameter.name().to_owned() }),
    }
}

/// The most elements of all parameters, and of one were none of its extents 0: their bytes, in whatever they are counted and padded,
/// fit into a `usize`.
const MOST_ELEMENTS: usize = usize::MAX >> 10;

/// Checks the shape of a parameter beside others of so many elements; how many it has.
pub(crate) fn check_shape(parameter: &Parameter, others: usize) -> Result<usize> {
    let shape = parameter.shape();
    let room = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent.max(1)));
    // Without overflow, if that was.
    match room.filter(|&room| room <= MOST_ELEMENTS).map(|_| parameter.len()) {
        Some(len) if len <= MOST_ELEMENTS - others => Ok(len),
        _ => Err(Error::ShapeOverflow { name: parameter.name().to_owned(), shape: shape.to_vec() }),
    }
}

/// The names of the fields of a WGSL text's `struct Step`, in order; `None` if there is no such struct to be read.
fn fields_of_step(wgsl: &str) -> Option<Vec<String>> {
    let mut text = String::new();
    for line in wgsl.lines() {
        text.push_str(line.split("//").next().unwrap_or_default());
        text.push(' ');
    }
    let mut parts = text.split("struct").skip(1).map(str::trim_start);
    let body = parts.find_map(|part| part.strip_prefix("Step")?.trim_start().strip_prefix('{'))?;
    let fields = body.split('}').next()?.split(',').filter(|field| !field.trim().is_empty());
    // An attribute may stand before a name.
    let name = |field: &str| Some(field.split(':').next()?.trim_end().rsplit([' ', ')']).next()?.to_owned());
    fields.map(name).collect()
}

/// Checks a rule, its rate and its decay. What errors name begins with `place`: the group, or nothing.
pub(crate) fn validate_rule(rule: &Rule, place: &str) -> Result<()> {
    let spec = rule.spec();
    spec.validate().map_err(|error| error.placed(place))?;
    let name = |what: &str| format!("{place}{}.{what}", spec.name());
    let refuse = |what, expected, got| Err(Error::HyperParameter { name: name(what), expected, got });
    let slots = spec.slots();
    if matches!(rule.kernel(), Rule::Custom(_)) {
        if spec.passes() != Passes::Elementwise {
            return refuse("passes", "elementwise in a rule of your own", format!("{:?}", spec.passes()));
        }
        if let Some(slot) = slots.iter().find(|slot| slot.shape != SlotShape::Same) {
            return refuse("slots", "shaped like the parameter in a rule of your own", format!("{slot:?}"));
        }
    }
    if let Rule::Custom(own) = rule.kernel()
        && let Some(fields) = fields_of_step(own.wgsl())
        && fields != spec.scalar_names()
    {
        return refuse("scalar_names", "the fields of `struct Step` in its WGSL", format!("{fields:?}"));
    }
    let (words, names) = (spec.scalars(&At::default()).words().len(), spec.scalar_names().len());
    if words != names {
        return refuse("scalar_names", "a name for each word of the scalars", format!("{names} for {words}"));
    }
    if slots.len() > MAX_SLOTS {
        return refuse("slots", "at most 4", slots.len().to_string());
    }
    // A state's arrays are called by the parameter's name, a dot and the slot's.
    if let Some(slot) = slots.iter().find(|slot| slot.name.is_empty() || slot.name.contains('.')) {
        return refuse("slots", "with names, and without dots in them", format!("{:?}", slot.name));
    }
    let mut names = HashSet::new();
    if let Some(slot) = slots.iter().find(|slot| !names.insert(slot.name)) {
        return refuse("slots", "of different names", format!("{:?} twice", slot.name));
    }
    let narrow = slots.iter().find(|slot| slot.dtype != DType::F32);
    if let Some(slot) = narrow.filter(|_| spec.passes() != Passes::Factored) {
        return refuse("slots", "of f32", format!("{} of {}", slot.name, slot.dtype));
    }
    let shaped = slots.iter().find(|slot| slot.narrow.is_some() && slot.shape != SlotShape::Same);
    if let Some(slot) = shaped {
        return refuse("slots", "shaped like the parameter where they may be narrow", slot.name.to_owned());
    }
    spec.lr().validate(&name("lr"))?;
    check(&name("weight_decay"), "finite and ≥ 0", spec.weight_decay(), |x| x.is_finite() && x >= 0.0)
}

impl Centralization {
    pub(crate) const fn describe(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::MindSpore => "as in MindSpore",
        }
    }
}

impl<R: Into<Rule>> From<R> for Builder {
    /// A builder without parameters.
    fn from(rule: R) -> Self {
        Self::new(rule)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("rule", &self.rule).field("groups", &self.groups).finish_non_exhaustive()
    }
}
