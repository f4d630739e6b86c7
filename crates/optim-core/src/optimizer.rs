//! The builder and the step.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use bytemuck::Zeroable;

use crate::backend::{
    Backend, Engine, IntoBackend, Part, Plan, Record, RowList, Shaping, Stages, Tensor, Trust, Update,
};
use crate::error::check;
use crate::format::{self, Master, StateDType};
use crate::rule::{At, Decay, MAX_SLOTS, Passes, SlotShape, Sparse};
use crate::rules::single;
use crate::{DType, Error, Grad, Outcome, ParamGroup, ParamMut, Parameter, Rate, Result, Rule, StepReport};

/// Decides by name, shape and type whether a parameter decays.
type DecayFilter = Arc<dyn Fn(&Parameter) -> bool + Send + Sync>;

/// An optimizer being described. Made by a config: `Adam::default().params(…)`, `Momentum::new(…).groups(…)`.
///
/// Everything is checked in [`build`](Self::build).
#[derive(Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    rule: Rule,
    weight_decay: f64,
    groups: Vec<ParamGroup>,
    grouped: bool,
    order: Option<Vec<String>>,
    decay_filter: Option<DecayFilter>,
    loss_scale: f64,
}

impl Builder {
    /// A builder without parameters.
    pub fn new(rule: impl Into<Rule>) -> Self {
        let rule = rule.into();
        Self {
            weight_decay: rule.spec().weight_decay(),
            rule,
            groups: Vec::new(),
            grouped: false,
            order: None,
            decay_filter: None,
            loss_scale: 1.0,
        }
    }

    /// All parameters with the same settings. Replaces what was given before.
    pub fn params<P: Into<Parameter>>(mut self, params: impl IntoIterator<Item = P>) -> Self {
        self.groups = vec![ParamGroup::new(params)];
        self.grouped = false;
        self
    }

    /// Parameters in groups. Replaces what was given before. Parameters and gradients of a step come in the order of the
    /// groups' concatenated lists, unless [`order_params`](Self::order_params) says otherwise.
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

    /// The weight decay of every group that does not set its own. Default: the config's. Finite and ≥ 0.
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    /// The factor by which the loss, and so every gradient, was multiplied: a step divides it out again. Default 1.
    /// Finite and > 0. Weight decay acts on the unscaled gradient.
    pub fn loss_scale(mut self, loss_scale: f64) -> Self {
        self.loss_scale = loss_scale;
        self
    }

    /// Checks everything, opens the backend and allocates the state.
    ///
    /// # Errors
    /// No parameters at all or in a group; two of one name; a frozen one; a hyper-parameter out of its range;
    /// an `order_params` that is not exactly the grouped parameters; what opening the backend or allocating returns.
    pub fn build(self, backend: impl IntoBackend) -> Result<Optimizer> {
        self.validate()?;
        let (parameters, group_of) = self.ordered()?;

        let groups: Vec<Group> = (self.groups.iter().enumerate())
            .map(|(index, group)| Group {
                place: if self.grouped { format!("group {index}") } else { "the optimizer".into() },
                lr: group.lr.clone().unwrap_or_else(|| self.rule.spec().lr().clone()),
                weight_decay: group.weight_decay.unwrap_or(self.weight_decay),
            })
            .collect();

        let decays = |parameter: &Parameter| match &self.decay_filter {
            Some(filter) => filter(parameter),
            None if self.grouped || self.rule.spec().decays_all_names() => true,
            None => !(parameter.name().contains("beta") || parameter.name().contains("gamma")),
        };
        // What a first walk finds out about a parameter stands in its record, so it cannot share one.
        let rule = self.rule.spec();
        let apart = rule.has_trust() || rule.passes() != Passes::Elementwise;
        let mut classes: Vec<Class> = Vec::new();
        let class_of = (parameters.iter().zip(&group_of).enumerate())
            .map(|(index, (parameter, &group))| {
                let decays = groups[group].weight_decay > 0.0 && decays(parameter);
                let class = Class { group, decays, parameter: apart.then_some(index) };
                classes.iter().position(|known| *known == class).unwrap_or_else(|| {
                    classes.push(class);
                    classes.len() - 1
                })
            })
            .collect::<Vec<_>>();

        let backend = backend.into_backend()?;
        let tensors: Vec<Tensor> = (parameters.iter().zip(&group_of))
            .map(|(parameter, &group)| Tensor {
                key: format::tensor_key(0, parameter.name()),
                parameter: parameter.clone(),
                group,
                rule: 0,
                master: Master::F32,
                state: StateDType::F32,
                ema: false,
            })
            .collect();
        let rules = vec![self.rule.clone()];
        let engine = backend.engine(&Plan { rules: &rules, tensors: &tensors, groups: groups.len() })?;
        Ok(Optimizer {
            rules,
            tensors,
            record_of: vec![0; parameters.len()],
            rows: vec![RowList::default(); parameters.len()],
            updated: vec![false; parameters.len()],
            records: Vec::with_capacity(2 * classes.len()),
            rates: vec![0.0; groups.len()].into(),
            previous_rates: vec![0.0; groups.len()],
            step: 0,
            beta_powers: [1.0; 2],
            rule: self.rule,
            loss_scale: self.loss_scale,
            parameters,
            groups,
            classes,
            class_of,
            backend,
            engine,
        })
    }

    fn validate(&self) -> Result<()> {
        let rule = self.rule.spec();
        rule.validate()?;
        if matches!(self.rule.kernel(), Rule::Custom(_)) {
            let refuse = |what, expected, got| {
                Err(Error::HyperParameter { name: format!("{}.{what}", rule.name()), expected, got })
            };
            if rule.passes() != Passes::Elementwise {
                return refuse("passes", "elementwise in a rule of your own", format!("{:?}", rule.passes()));
            }
            if let Some(slot) = rule.slots().iter().find(|slot| slot.shape != SlotShape::Same) {
                return refuse("slots", "shaped like the parameter in a rule of your own", format!("{slot:?}"));
            }
        }
        let (words, names) = (rule.scalars(&At::default()).words().len(), rule.scalar_names().len());
        if words != names {
            let (name, expected) = (format!("{}.scalar_names", rule.name()), "a name for each word of the scalars");
            return Err(Error::HyperParameter { name, expected, got: format!("{names} for {words}") });
        }
        let slots = rule.slots();
        if slots.len() > MAX_SLOTS {
            let (name, expected) = (format!("{}.slots", rule.name()), "at most 4");
            return Err(Error::HyperParameter { name, expected, got: slots.len().to_string() });
        }
        let narrow = slots.iter().find(|slot| slot.dtype != DType::F32);
        if let Some(slot) = narrow.filter(|_| rule.passes() != Passes::Factored) {
            let (name, expected) = (format!("{}.slots", rule.name()), "of f32");
            return Err(Error::HyperParameter { name, expected, got: format!("{} of {}", slot.name, slot.dtype) });
        }
        rule.lr().validate(&format!("{}.lr", rule.name()))?;
        let decay = self.weight_decay;
        check(&format!("{}.weight_decay", rule.name()), "finite and ≥ 0", decay, |x| x.is_finite() && x >= 0.0)?;
        // The factor 1 / loss_scale must be a number as well.
        let usable = |scale: f64| scale > 0.0 && scale.is_finite() && single(1.0 / scale).is_finite();
        check("loss_scale", "finite and > 0", self.loss_scale, usable)?;

        if self.groups.is_empty() {
            return Err(Error::NoParameters { place: "the optimizer".into() });
        }
        let mut names = HashSet::new();
        for (index, group) in self.groups.iter().enumerate() {
            let place = if self.grouped { format!("group {index}") } else { "the optimizer".into() };
            if group.params.is_empty() {
                return Err(Error::NoParameters { place });
            }
            if let Some(lr) = &group.lr {
                if !rule.takes_lr() {
                    let expected = "left out, since the rule makes its own rate";
                    return Err(Error::HyperParameter {
                        name: format!("{place}: lr"),
                        expected,
                        got: format!("{lr:?}"),
                    });
                }
                lr.validate(&format!("{place}: lr"))?;
            }
            if let Some(decay) = group.weight_decay {
                check(&format!("{place}: weight_decay"), "finite and ≥ 0", decay, |x| x.is_finite() && x >= 0.0)?;
            }
            if group.grad_centralization == Some(true) {
                let what = format!("gradient centralization ({place})");
                return Err(Error::Unsupported { what, backend: "any".into() });
            }
            for parameter in &group.params {
                let name = parameter.name().to_owned();
                if !parameter.is_trainable() {
                    return Err(Error::FrozenParameter { name });
                }
                let bytes = parameter.shape().iter().try_fold(8_usize, |product, &extent| product.checked_mul(extent));
                if bytes.is_none() {
                    return Err(Error::ShapeOverflow { name, shape: parameter.shape().to_vec() });
                }
                if parameter.dtype() != DType::F32 {
                    let (expected, got) = (DType::F32, parameter.dtype());
                    return Err(Error::DType { what: "parameter", name, expected, got });
                }
                if !names.insert(parameter.name()) {
                    return Err(Error::DuplicateParameter { name });
                }
            }
        }
        Ok(())
    }

    /// The parameters in the order of a step, and the group of each.
    fn ordered(&self) -> Result<(Vec<Parameter>, Vec<usize>)> {
        let members =
            self.groups.iter().enumerate().flat_map(|(index, group)| group.params.iter().map(move |p| (p, index)));
        let Some(order) = &self.order else {
            return Ok(members.map(|(parameter, group)| (parameter.clone(), group)).unzip());
        };
        let mut known: HashMap<&str, (&Parameter, usize)> =
            members.map(|(parameter, group)| (parameter.name(), (parameter, group))).collect();
        let names = || self.groups.iter().flat_map(|g| &g.params).map(Parameter::name).collect::<Vec<_>>().join(", ");
        let count = known.len();
        let mut ordered = (Vec::new(), Vec::new());
        for name in order {
            if let Some((parameter, group)) = known.remove(name.as_str()) {
                ordered.0.push(parameter.clone());
                ordered.1.push(group);
            } else if ordered.0.iter().any(|p: &Parameter| p.name() == name) {
                return Err(Error::DuplicateParameter { name: name.clone() });
            } else {
                return Err(Error::Unknown { what: "grouped parameter", name: name.clone(), expected: names() });
            }
        }
        if !known.is_empty() {
            return Err(Error::Count { what: "ordered parameter", expected: count, got: ordered.0.len() });
        }
        Ok(ordered)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("rule", &self.rule).field("groups", &self.groups).finish_non_exhaustive()
    }
}

/// A group's settings with everything inherited.
#[derive(Debug)]
struct Group {
    /// "group 1", or "the optimizer" without groups: for errors.
    place: String,
    lr: Rate,
    weight_decay: f64,
}

/// Parameters whose updates compute with the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    group: usize,
    decays: bool,
    /// The only member, where every parameter needs a record of its own.
    parameter: Option<usize>,
}

/// A rule, its groups and rates, and its state on a backend.
///
/// ```
/// # use optim_core::{Backend, Grad, Optimizer, ParamMut, Result};
/// # fn train(optimizer: &mut Optimizer, w: &mut Vec<f32>, b: &mut Vec<f32>, gw: &Vec<f32>, gb: &Vec<f32>) -> Result<()> {
/// let report = optimizer.step(&mut [w.into(), b.into()], &[gw.into(), gb.into()])?;
/// println!("update {} with rate {}", report.step, report.rates[0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Optimizer {
    rule: Rule,
    rules: Vec<Rule>,
    tensors: Vec<Tensor>,
    parameters: Vec<Parameter>,
    groups: Vec<Group>,
    classes: Vec<Class>,
    class_of: Vec<usize>,
    loss_scale: f64,
    /// Updates done.
    step: u64,
    /// The rates of the last update.
    previous_rates: Vec<f64>,
    /// The powers of the rule's betas after those updates.
    beta_powers: [f32; 2],
    /// Whether a parameter was ever updated.
    updated: Vec<bool>,
    backend: Box<dyn Backend>,
    engine: Box<dyn Engine>,
    // Reused at every step.
    records: Vec<Record>,
    record_of: Vec<u32>,
    rows: Vec<RowList>,
    rates: Arc<[f64]>,
}

impl Optimizer {
    /// Updates every parameter that has a gradient, in place.
    ///
    /// `params` and `grads` come in the order of registration (see [`parameters`](Self::parameters)), one for each
    /// parameter; a gradient may be [`Grad::None`], which leaves its parameter and that parameter's state alone. Memory may
    /// be on the host or on the backend's device. The step counter, and so every schedule, advances by one.
    ///
    /// On the CPU nothing is allocated once the first step is done.
    ///
    /// # Errors
    /// A wrong count, length or element type; an exhausted list of rates, or a schedule that returns no finite number; memory
    /// that the backend cannot use. Nothing has changed then, nor has the step counter.
    pub fn step(&mut self, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<StepReport> {
        self.check_memory(params, grads)?;
        let rates = self.rates_at(self.step)?;
        let beta_powers = self.next_beta_powers();
        self.fill_records(&rates, beta_powers);
        self.fill_rows(grads);
        let update = Update {
            records: &self.records,
            rules: &self.rules,
            record_of: &self.record_of,
            rows: &self.rows,
            guard: None,
        };
        let _ = self.engine.update(&update, params, grads)?;
        self.step += 1;
        self.previous_rates.copy_from_slice(&rates);
        self.beta_powers = beta_powers;
        for (updated, grad) in self.updated.iter_mut().zip(grads) {
            *updated |= !grad.is_none();
        }
        Ok(StepReport { outcome: Outcome::Applied, step: self.step, rates })
    }

    /// The parameters, in the order in which a step expects their memory.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The rule.
    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The backend in use.
    #[must_use]
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The number of updates done.
    #[must_use]
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// A copy of one state array, by the parameter's and the slot's name (`moment1`, …). Waits for the device.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name there is not; what reading from the device returns.
    pub fn slot(&self, parameter: &str, slot: &str) -> Result<Vec<f32>> {
        let names = self.parameters.iter().map(Parameter::name);
        let slots = self.rule.spec().slots();
        let index = find("parameter", names, parameter)?;
        let nth = find("slot", slots.iter().map(|s| s.name), slot)?;
        let mut values = vec![0.0_f32; slots[nth].shape.len(self.parameters[index].shape())];
        if slots[nth].dtype == DType::F16 {
            let mut stored = vec![half::f16::ZERO; values.len()];
            self.engine.read(index, Part::Slot(nth), 0, bytemuck::cast_slice_mut(&mut stored))?;
            crate::compressed::decode(&stored, &mut values);
        } else {
            self.engine.read(index, Part::Slot(nth), 0, bytemuck::cast_slice_mut(&mut values))?;
        }
        Ok(values)
    }

    fn check_memory(&self, params: &[ParamMut<'_>], grads: &[Grad<'_>]) -> Result<()> {
        let expected = self.parameters.len();
        for (what, got) in [("parameter", params.len()), ("gradient", grads.len())] {
            if got != expected {
                return Err(Error::Count { what, expected, got });
            }
        }
        for ((parameter, param), grad) in self.parameters.iter().zip(params).zip(grads) {
            let name = || parameter.name().to_owned();
            let memory =
                [("parameter", Some(param.len()), Some(param.dtype())), ("gradient", grad.len(), grad.dtype())];
            for (what, len, dtype) in memory {
                let expected = match grad {
                    Grad::Rows(indices, _) if what == "gradient" => self.check_rows(parameter, indices)?,
                    _ => parameter.len(),
                };
                if let Some(got) = len.filter(|&len| len != expected) {
                    return Err(Error::Length { what, name: name(), expected, got });
                }
                let expected = parameter.dtype();
                if let Some(got) = dtype.filter(|&dtype| dtype != expected) {
                    return Err(Error::DType { what, name: name(), expected, got });
                }
            }
        }
        Ok(())
    }

    /// Checks the rows of a row-sparse gradient; how many values it should have.
    fn check_rows(&self, parameter: &Parameter, indices: &[u32]) -> Result<usize> {
        let name = parameter.name();
        let rule = self.rule.spec();
        let [rows, row @ ..] = parameter.shape() else {
            let what = format!("a row-sparse gradient for the scalar {name:?}");
            return Err(Error::Unsupported { what, backend: self.backend.name().into() });
        };
        if rule.sparse() == Sparse::Unsupported {
            let what = format!("a row-sparse gradient ({name:?}) with the rule {:?}", rule.name());
            return Err(Error::Unsupported { what, backend: self.backend.name().into() });
        }
        if let Some(&index) = indices.iter().find(|&&index| index as usize >= *rows) {
            return Err(Error::RowIndex { name: name.into(), index, rows: *rows });
        }
        Ok(indices.len() * row.iter().product::<usize>())
    }

    /// The rows of the row-sparse gradients, in order.
    fn fill_rows(&mut self, grads: &[Grad<'_>]) {
        for (rows, grad) in self.rows.iter_mut().zip(grads) {
            match grad {
                Grad::Rows(indices, _) => rows.set(indices),
                _ => rows.clear(),
            }
        }
    }

    /// The rates of all groups at the 0-based update. Allocates only while a caller still holds an earlier report.
    fn rates_at(&mut self, update: u64) -> Result<Arc<[f64]>> {
        if Arc::get_mut(&mut self.rates).is_none() {
            self.rates = vec![0.0; self.groups.len()].into();
        }
        if let Some(rates) = Arc::get_mut(&mut self.rates) {
            for (rate, group) in rates.iter_mut().zip(&self.groups) {
                *rate = group.lr.at(update, || group.place.clone())?;
            }
        }
        Ok(Arc::clone(&self.rates))
    }

    /// The powers of the rule's betas at the coming update: products in `f32`, as in MindSpore.
    fn next_beta_powers(&self) -> [f32; 2] {
        let [beta1, beta2] = self.rule.spec().betas().map(single);
        [self.beta_powers[0] * beta1, self.beta_powers[1] * beta2]
    }

    /// The records of the coming update: one for each class, and a second one where first updates differ.
    fn fill_records(&mut self, rates: &[f64], beta_powers: [f32; 2]) {
        let rule = self.rule.spec();
        let firsts: &[bool] = if rule.first_update_differs() { &[false, true] } else { &[false] };
        self.records.clear();
        for class in &self.classes {
            let decay = if class.decays { self.groups[class.group].weight_decay } else { 0.0 };
            let (l2, decoupled) = match rule.decay() {
                Decay::L2 if rule.has_trust() => (0.0, 0.0),
                Decay::L2 => (decay, 0.0),
                Decay::Decoupled => (0.0, decay),
            };
            let beta_powers = beta_powers.map(f64::from);
            let shaping = Shaping { factor: single(1.0 / self.loss_scale), weight_decay: single(l2), ..Shaping::NONE };
            let lr = rates[class.group];
            let dynamic_lr = !matches!(self.groups[class.group].lr, Rate::Fixed(_));
            let previous_lr = if self.step == 0 { lr } else { self.previous_rates[class.group] };
            for &first in firsts {
                let at =
                    At { t: self.step + 1, lr, previous_lr, weight_decay: decoupled, beta_powers, dynamic_lr, first };
                let trust = class.parameter.and_then(|index| rule.trust(&self.parameters[index], &at, decay));
                let trust = trust.unwrap_or(Trust::NONE);
                let stages = Stages::zeroed();
                self.records.push(Record { shaping, trust, stages, scalars: rule.scalars(&at) });
            }
        }
        for ((record, &class), &updated) in self.record_of.iter_mut().zip(&self.class_of).zip(&self.updated) {
            let index = class * firsts.len() + usize::from(firsts.len() > 1 && !updated);
            *record = u32::try_from(index).expect("fewer than 2^32 groups");
        }
    }
}

/// The position of `name` among `names`.
fn find<'a>(what: &'static str, mut names: impl Iterator<Item = &'a str> + Clone, name: &str) -> Result<usize> {
    let all = names.clone();
    names.position(|candidate| candidate == name).ok_or_else(|| Error::Unknown {
        what,
        name: name.to_owned(),
        expected: all.collect::<Vec<_>>().join(", "),
    })
}
