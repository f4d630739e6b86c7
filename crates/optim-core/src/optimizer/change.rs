//! What can be changed between steps. Each change waits for steps that are pending.

use std::sync::Arc;

use crate::backend::{Engine, Plan, RowList, Tensor};
use crate::builder::{check_group_names, check_shape, validate_rule};
use crate::error::shown;
use crate::group::Centralization;
use crate::rule::{At, Config, CustomRule};
use crate::settings::{Group, Origin};
use crate::{Error, Grad, Optimizer, ParamGroup, ParamMut, Parameter, Rate, Result, Rule};

use super::{Pace, vary};

/// The elements that are copied at a time from an engine to another.
const CHUNK: usize = 1 << 20;

impl Optimizer {
    /// The rate of a group at the next update, as if those that are pending had not been made.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is no such group; an exhausted list of rates, or a schedule that returns no finite number;
    /// what the group's [`vary`](ParamGroup::vary) puts out of range.
    pub fn lr(&self, group: usize) -> Result<f64> {
        let group = self.group(group)?;
        let mut rule = group.rule().clone();
        vary(group, &mut rule, self.step)?;
        group.lr_at(&rule, self.step)
    }

    /// Sets the rate of a group from the next step on.
    ///
    /// # Errors
    /// A rate out of its range; [`Error::Unknown`] if there is no such group; a rule that makes its own rate.
    pub fn set_lr(&mut self, group: usize, lr: impl Into<Rate>) -> Result<()> {
        let lr = lr.into();
        self.settle()?;
        let own = self.group(group)?;
        let name = format!("{}: lr", own.place);
        if !own.rule().spec().takes_lr() {
            let expected = "left alone, since the rule makes its own rate";
            return Err(Error::HyperParameter { name, expected, got: format!("{lr:?}") });
        }
        lr.validate(&name)?;
        self.groups[group].lr = (lr, Origin::Changed);
        Ok(())
    }

    /// Sets the weight decay of a group from the next step on. Which of its parameters decay at all stays as it is.
    ///
    /// # Errors
    /// A decay out of its range; [`Error::Unknown`] if there is no such group.
    pub fn set_weight_decay(&mut self, group: usize, weight_decay: impl Into<Rate>) -> Result<()> {
        let weight_decay = weight_decay.into();
        self.settle()?;
        weight_decay.validate_decay(&format!("{}: weight_decay", self.group(group)?.place))?;
        self.groups[group].weight_decay = (weight_decay, Origin::Changed);
        Ok(())
    }

    /// Switches gradient centralization of a group on or off, from the next step on.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is no such group.
    pub fn set_grad_centralization(&mut self, group: usize, centralization: impl Into<Centralization>) -> Result<()> {
        self.settle()?;
        self.group(group)?;
        self.groups[group].centralization = (centralization.into(), Origin::Changed);
        self.classify();
        Ok(())
    }

    /// Changes hyper-parameters of a group's rule from the next step on. Rate and weight decay are the group's: see
    /// [`set_lr`](Self::set_lr) and [`set_weight_decay`](Self::set_weight_decay). Only where a rule no longer makes its own rate
    /// ([`AdaFactor`](crate::AdaFactor)) the config's becomes the group's.
    ///
    /// ```
    /// # use optim_core::{Adam, Optimizer, Result};
    /// # fn warm(optimizer: &mut Optimizer) -> Result<()> {
    /// optimizer.edit(0, |adam: &mut Adam| adam.beta2 = 0.99)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A rule of your own is edited as a [`Rule`]: another, with other numbers, takes its place (see [`CustomRule`]).
    ///
    /// # Errors
    /// A config of another rule; a hyper-parameter out of its range; a change that would need other state (a momentum from 0 to
    /// 0.9) or the group's rate or weight decay; [`Error::Unknown`] if there is no such group. The rule is as before then.
    pub fn edit<C: Config>(&mut self, group: usize, edit: impl FnOnce(&mut C)) -> Result<()> {
        self.settle()?;
        let own = self.group(group)?;
        let mut rule = own.rule().clone();
        let place = own.place.clone();
        let name = || format!("{place}: {}", C::NAME);
        let Some(config) = C::of(&mut rule) else {
            let expected = "the config of the group's rule";
            let got = format!("that of another: the rule is {}", rule.spec().name());
            return Err(Error::HyperParameter { name: name(), expected, got });
        };
        edit(config);
        validate_rule(&rule, &format!("{place}: "))?;
        if !same_state(&rule, own.rule()) {
            let expected = "a change that leaves the rule's kernel and state as they are: build anew for this one";
            return Err(Error::HyperParameter { name: name(), expected, got: format!("{rule:?}") });
        }
        // As it will be at the next update, too.
        let edited = Group { rule: (rule.clone(), Origin::Changed), ..own.clone() };
        vary(&edited, &mut rule.clone(), self.step)?;
        let (spec, before) = (rule.spec(), own.rule().spec());
        let own_rate = !(spec.takes_lr() && before.takes_lr());
        if !own_rate && !spec.lr().is(before.lr()) {
            let (name, expected) = (format!("{}.lr", name()), "left as it is: `set_lr` changes it");
            return Err(Error::HyperParameter { name, expected, got: format!("{:?}", spec.lr()) });
        }
        if spec.weight_decay().to_bits() != before.weight_decay().to_bits() {
            let (name, expected) = (format!("{}.weight_decay", name()), "left as it is: `set_weight_decay` changes it");
            return Err(Error::HyperParameter { name, expected, got: shown(spec.weight_decay()) });
        }
        if own_rate {
            self.groups[group].lr = (spec.lr().clone(), Origin::Changed);
        }
        self.rules[group].clone_from(&rule);
        self.groups[group].rule = (rule, Origin::Changed);
        self.classify();
        Ok(())
    }

    /// Tells every rate that follows a metric ([`ReduceOnPlateau`](crate::schedule::ReduceOnPlateau)) what it is now, once an epoch or
    /// so. Whether any of them fell.
    ///
    /// # Errors
    /// What the device returns for steps that are pending.
    pub fn observe(&mut self, metric: f64) -> Result<bool> {
        self.settle()?;
        let mut fell = false;
        for group in &mut self.groups {
            fell |= group.lr.0.observe(metric)?;
        }
        Ok(fell)
    }

    /// Freezes a parameter: from the next step on its gradient is not looked at, it is in no norm, and it and its state stay as they
    /// are.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is no such parameter.
    pub fn freeze(&mut self, parameter: &str) -> Result<()> {
        self.set_frozen(parameter, true)
    }

    /// Ends the freezing of a parameter; its state goes on from where it was.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is no such parameter.
    pub fn unfreeze(&mut self, parameter: &str) -> Result<()> {
        self.set_frozen(parameter, false)
    }

    fn set_frozen(&mut self, parameter: &str, frozen: bool) -> Result<()> {
        let index = self.index(parameter)?;
        self.settle()?;
        self.frozen[index] = frozen;
        Ok(())
    }

    /// Whether a parameter is frozen.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is no such parameter.
    pub fn is_frozen(&self, parameter: &str) -> Result<bool> {
        Ok(self.frozen[self.index(parameter)?])
    }

    /// Adds a group of listed parameters, which come behind all others in a step. It inherits what the optimizer was built with
    /// (layer-wise decay of rates counts its layers by themselves); as in any group, its members decay whatever their names. Their state
    /// begins anew, at the optimizer's step count; that of the others goes on. All state is copied once.
    ///
    /// # Errors
    /// As [`Builder::build`](crate::Builder::build); [`Error::State`] while gradients are accumulated or averages stand in the parameters.
    pub fn add_group(&mut self, group: ParamGroup) -> Result<()> {
        self.settle()?;
        self.refuse_unfinished("adding a group")?;
        let index = self.groups.len();
        // The builder checks and resolves it as the only group of an optimizer like this one.
        let parts = self.defaults.clone().groups([group]).into_parts(index)?;
        for Tensor { parameter, .. } in &parts.tensors {
            if self.index(parameter.name()).is_ok() {
                return Err(Error::DuplicateParameter { name: parameter.name().into() });
            }
        }
        check_group_names(self.groups.iter().chain(&parts.groups))?;
        let own = self.parameters.iter().map(Parameter::len).sum();
        parts.tensors.iter().try_fold(own, |others, tensor| Ok(others + check_shape(&tensor.parameter, others)?))?;
        let added = parts.tensors.len();
        let tensors: Vec<Tensor> = self.tensors.iter().cloned().chain(parts.tensors).collect();
        let rules: Vec<Rule> = self.groups.iter().chain(&parts.groups).map(|group| group.rule().clone()).collect();
        let mut engine = self.backend.engine(&Plan { rules: &rules, tensors: &tensors, groups: rules.len() })?;
        self.copy_state(&mut *engine, None)?;

        self.engine = engine;
        self.parameters.extend(tensors[self.tensors.len()..].iter().map(|tensor| tensor.parameter.clone()));
        self.tensors = tensors;
        self.rules = rules;
        self.groups.extend(parts.groups);
        self.paces.push(Pace { beta_powers: self.powers_of(index), previous_lr: f64::NAN });
        self.decays.extend(parts.decays);
        self.scales.extend(parts.scales);
        for flags in [&mut self.updated, &mut self.frozen, &mut self.seeded, &mut self.accumulated, &mut self.flags] {
            flags.resize(flags.len() + added, false);
        }
        self.rows.resize(self.rows.len() + added, RowList::default());
        self.record_of.resize(self.record_of.len() + added, 0);
        self.own_grads.resize(self.own_grads.len() + added, Grad::None);
        self.rates = vec![0.0; self.groups.len()].into();
        self.classify();
        Ok(())
    }

    /// The powers of a group's betas after all updates so far, as if it had been there from the start: the step count, and so bias
    /// corrections and schedules, are the optimizer's.
    pub(super) fn powers_of(&self, group: usize) -> [f32; 2] {
        let betas = self.groups[group].rule().spec().betas().map(crate::rules::single);
        betas.map(|beta| {
            let mut power = 1.0_f32;
            for _ in 0..self.step {
                let next = power * beta;
                if next.to_bits() == power.to_bits() {
                    break;
                }
                power = next;
            }
            power
        })
    }

    /// Takes the parameters' memory as it is now for masters and averages: after the caller changed it. Averages begin anew.
    ///
    /// # Errors
    /// As a [`step`](Self::step), of the parameters; [`Error::State`] while averages stand in them.
    pub fn reseed(&mut self, params: &mut [ParamMut<'_>]) -> Result<()> {
        self.settle()?;
        self.refuse_swapped("setting masters anew")?;
        self.check_params(params)?;
        for (flag, tensor) in self.flags.iter_mut().zip(&self.tensors) {
            *flag = tensor.needs_seed();
        }
        self.seed(params)?;
        self.seeded.fill(true);
        Ok(())
    }

    /// Writes the averages into the parameters' memory, rounded to its type, for an evaluation. What was there is kept, in memory
    /// of the backend's, for [`swap_ema_out`](Self::swap_ema_out); until then there are no steps.
    ///
    /// # Errors
    /// As a [`step`](Self::step), of the parameters; [`Error::State`] without averages, before the first step, or a second time.
    pub fn swap_ema_in(&mut self, params: &mut [ParamMut<'_>]) -> Result<()> {
        self.settle()?;
        self.refuse_swapped("swapping averages in")?;
        if self.ema.is_none() || self.seeded.contains(&false) {
            let (what, expected) = ("swapping averages in", "build with `ema` and do a step first");
            return Err(Error::State { what, expected });
        }
        self.check_params(params)?;
        self.engine.swap_ema(true, params)?;
        self.swapped = true;
        Ok(())
    }

    /// Brings back what was in the parameters' memory before [`swap_ema_in`](Self::swap_ema_in).
    ///
    /// # Errors
    /// As a [`step`](Self::step), of the parameters; [`Error::State`] if averages do not stand in them.
    pub fn swap_ema_out(&mut self, params: &mut [ParamMut<'_>]) -> Result<()> {
        if !self.swapped {
            let (what, expected) = ("swapping averages out", "call `swap_ema_in` first");
            return Err(Error::State { what, expected });
        }
        self.check_params(params)?;
        self.engine.swap_ema(false, params)?;
        self.swapped = false;
        Ok(())
    }

    /// Copies all state to another engine, but for the arrays of one parameter.
    pub(super) fn copy_state(&self, engine: &mut dyn Engine, but: Option<usize>) -> Result<()> {
        let mut bytes = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate().filter(|(index, _)| Some(*index) != but) {
            for (part, element, len) in tensor.arrays(&self.slots_of(index)) {
                for first in (0..len).step_by(CHUNK) {
                    bytes.resize(CHUNK.min(len - first) * element.size(), 0);
                    self.engine.read(index, part, first, &mut bytes)?;
                    engine.write(index, part, first, &bytes)?;
                }
            }
        }
        if self.settings.measures() {
            engine.set_control(&self.engine.control()?)?;
        }
        Ok(())
    }

    pub(super) fn refuse_unfinished(&self, what: &'static str) -> Result<()> {
        if self.total_weight > 0.0 || self.swapped {
            let expected = "finish with accumulated gradients and swapped averages first";
            return Err(Error::State { what, expected });
        }
        Ok(())
    }

    fn refuse_swapped(&self, what: &'static str) -> Result<()> {
        if self.swapped {
            return Err(Error::State { what, expected: "call `swap_ema_out` first" });
        }
        Ok(())
    }

    fn group(&self, group: usize) -> Result<&Group> {
        self.groups.get(group).ok_or_else(|| Error::Unknown {
            what: "group",
            name: group.to_string(),
            expected: format!("0 to {}", self.groups.len() - 1),
        })
    }

    /// The number of a group that was given this name.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none.
    pub fn group_named(&self, name: &str) -> Result<usize> {
        let named = |group: &Group| group.name().is_some_and(|own| own == name);
        self.groups.iter().position(named).ok_or_else(|| {
            let names: Vec<_> = self.groups.iter().filter_map(Group::name).collect();
            Error::Unknown { what: "group", name: name.into(), expected: names.join(", ") }
        })
    }
}

/// Whether two rules are one but for its numbers: they have one kernel, keep the same state and walk in the same way.
pub(crate) fn same_state(rule: &Rule, other: &Rule) -> bool {
    let shape = |rule: &Rule| {
        let (spec, kernel) = (rule.spec(), rule.kernel().spec());
        let walks = (spec.passes(), spec.has_trust(), spec.offloaded());
        (spec.name(), kernel.name(), spec.source(), spec.entry(), walks, spec.slots())
    };
    let own = |rule: &Rule| if let Rule::Custom(own) = rule.kernel() { Some(Arc::clone(own)) } else { None };
    let same_code = match (own(rule), own(other)) {
        (Some(own), Some(other)) => Arc::ptr_eq(&own, &other) || promises(&*own) == promises(&*other),
        (None, None) => true,
        _ => false,
    };
    same_code && shape(rule) == shape(other)
}

/// What a rule of the user's own says of itself that is no number of it. An engine was made for it.
fn promises(rule: &dyn CustomRule) -> impl PartialEq {
    let words = rule.scalars(&At::default()).words().len();
    (rule.wgsl(), rule.scalar_names(), words, rule.decay(), rule.sparse(), rule.first_update_differs())
}
