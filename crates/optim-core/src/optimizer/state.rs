//! State that is given away and taken back: see [`state`](mod@crate::state).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use half::f16;

use crate::backend::{self, Element, Part, SlotFormat};
use crate::builder::validate_rule;
use crate::format::{self, BLOCK, Master};
use crate::guard::{Control, LossScale};
use crate::rule::Slot;
use crate::rules::{lars, single};
use crate::schedule::any::MAX_DEPTH;
use crate::settings::{Group, Origin};
use crate::state::{
    GroupState, GuardState, Hyper, LoadOptions, LoadReport, ParameterState, State, StateArray, StateMeta, StateSource,
    VERSION, array_name, arrays, belongs, least_first,
};
use crate::{Error, Optimizer, Rate, Result, Rule, compressed};

use super::{Pace, low_bits, same_state, vary};

/// The elements that are moved at a time: whole blocks of 8-bit codes.
const CHUNK: usize = 1 << 18;

/// A step count beyond this is none.
const MOST_STEPS: u64 = 1 << 62;

/// Nor is a number of skipped steps: counting goes on from it.
const MOST_SKIPS: u32 = 1 << 31;

impl Optimizer {
    /// The state, to be saved: a description, and arrays to be read in pieces. Waits for steps that are pending.
    ///
    /// Resumed from it, a run goes on bit for bit, with the same parameters, gradients and settings on the same backend. Not in it: the
    /// parameters, and what a closure does.
    ///
    /// ```
    /// # use optim_core::{LoadOptions, Optimizer, Result};
    /// # fn migrate(from: &mut Optimizer, to: &mut Optimizer) -> Result<()> {
    /// // To another optimizer, perhaps on another device, without a file.
    /// let report = to.load_state(&mut from.state()?, &LoadOptions::default())?;
    /// assert_eq!(report.step, to.step_count());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::State`] while averages stand in the parameters, gradients are accumulated, or after a load that failed half way; what the
    /// device returns for steps that are pending; [`Error::StateMismatch`] if two arrays would have one name, for a slot of a rule
    /// of your own that is called `scales`.
    pub fn state(&mut self) -> Result<State<'_>> {
        self.settle()?;
        self.refuse_unfinished("the state")?;
        self.refuse_torn("the state")?;
        let guard = if self.settings.measures() {
            let Control { scale, current, last, bad, skipped, .. } = self.engine.control()?;
            Some(GuardState { scale: scale.into(), current, last, bad, skipped })
        } else {
            None
        };
        let meta = StateMeta {
            version: VERSION,
            library: concat!("optimizers ", env!("CARGO_PKG_VERSION")).into(),
            step: self.step,
            seed: self.defaults.seed,
            loss_scale: self.settings.loss_scale,
            guard,
            groups: self.groups.iter().zip(&self.paces).map(|(group, pace)| group_state(group, *pace)).collect(),
            parameters: (0..self.tensors.len()).map(|index| self.parameter_state(index)).collect(),
        };
        let (mut places, mut all, mut names, mut problems) = (Vec::new(), Vec::new(), HashSet::new(), Vec::new());
        for (index, tensor) in self.tensors.iter().enumerate() {
            for (part, array) in arrays(tensor, &self.slots_of(index)) {
                if !names.insert(array.name.clone()) {
                    problems.push(format!("two arrays are called {:?}", array.name));
                }
                places.push((index, part));
                all.push(array);
            }
        }
        if !problems.is_empty() {
            return Err(Error::StateMismatch { problems });
        }
        Ok(State { meta, arrays: all, places, engine: &*self.engine })
    }

    fn parameter_state(&self, index: usize) -> ParameterState {
        let tensor = &self.tensors[index];
        ParameterState {
            name: tensor.parameter.name().into(),
            shape: tensor.parameter.shape().into(),
            dtype: tensor.parameter.dtype(),
            group: tensor.group,
            updated: self.updated[index],
            frozen: self.frozen[index],
            seeded: self.seeded[index],
            master: tensor.master,
            state: tensor.state,
            ema: tensor.ema,
        }
    }

    /// Takes over a state. Everything is matched by the parameters' names; their order and their groups may be others. A group goes on
    /// with the step scalars of the groups from which its parameters come, which must be equal.
    ///
    /// What a run cannot be told by its configuration always comes from the state: arrays, counters, step count, loss scale, progress
    /// of rates that follow a metric, which parameters are frozen. Settings stay as they are unless
    /// [`hyper`](LoadOptions::hyper) says otherwise; so do parameters that are frozen here and not in the state. A dynamic loss scale
    /// is brought within its bounds.
    ///
    /// # Errors
    /// [`Error::StateMismatch`] with all that does not fit; [`Error::State`] while averages stand in the parameters or gradients are
    /// accumulated. Nothing has changed then. What the source or the device returns while arrays are copied: then the optimizer
    /// refuses steps until a load succeeds.
    pub fn load_state(&mut self, source: &mut dyn StateSource, options: &LoadOptions) -> Result<LoadReport> {
        self.settle()?;
        self.refuse_unfinished("loading a state")?;
        let Plan { work, control, paces, parameters, groups, loss_scale, step, report } =
            Planner::plan(self, source.meta(), source.arrays(), *options)?;

        if self.torn {
            // What the state lacks would stay half written: it begins anew.
            let plan = backend::Plan { rules: &self.rules, tensors: &self.tensors, groups: self.groups.len() };
            self.engine = self.backend.engine(&plan)?;
            self.updated.fill(false);
            self.seeded.fill(false);
        }
        self.torn = true;
        let mut buffers = Buffers::default();
        for work in &work {
            self.copy(source, work, step, &mut buffers)?;
        }
        self.settings.loss_scale = loss_scale;
        // Where gradients are no longer measured too: a device shows the loss scale.
        self.engine.set_control(&control)?;
        self.scale = control.scale;
        self.step = step;
        for (index, flags) in parameters.into_iter().enumerate() {
            if let Some(Flags { updated, frozen, seeded }) = flags {
                (self.updated[index], self.frozen[index], self.seeded[index]) = (updated, frozen, seeded);
            }
        }
        self.groups = groups;
        self.rules = self.groups.iter().map(|group| group.rule().clone()).collect();
        for (index, pace) in paces.into_iter().enumerate() {
            let fresh = || Pace { beta_powers: self.powers_of(index), previous_lr: f64::NAN };
            self.paces[index] = pace.unwrap_or_else(fresh);
        }
        self.reports.clear();
        self.classify();
        self.torn = false;
        Ok(report)
    }

    pub(super) fn refuse_torn(&self, what: &'static str) -> Result<()> {
        if self.torn {
            return Err(Error::State {
                what,
                expected: "load a state first: the last load or step broke off half way",
            });
        }
        Ok(())
    }

    /// Fills one array of the engine, or the two of an 8-bit slot.
    fn copy(&mut self, source: &mut dyn StateSource, work: &Work, step: u64, buffers: &mut Buffers) -> Result<()> {
        let &Work { parameter, part, array, len, .. } = work;
        let Buffers { bytes, values, scales } = buffers;
        for first in (0..len).step_by(CHUNK) {
            let count = CHUNK.min(len - first);
            let mut read = |array, element: Element, first, count, bytes: &mut Vec<u8>| {
                bytes.resize(count * element.size(), 0);
                source.read(array, first, bytes)?;
                least_first(element, bytes);
                Ok::<_, Error>(())
            };
            match work.how {
                How::Copy(element) => {
                    read(array, element, first, count, bytes)?;
                    self.engine.write(parameter, part, first, bytes)?;
                }
                How::Split => {
                    read(array, Element::F32, first, count, bytes)?;
                    let corrections = bytes.chunks_exact(4).flat_map(|word| {
                        correction(f32::from_ne_bytes([word[0], word[1], word[2], word[3]])).to_ne_bytes()
                    });
                    let corrections: Vec<u8> = corrections.collect();
                    self.engine.write(parameter, part, first, &corrections)?;
                }
                How::Convert { from, scales: from_scales, to, nth } => {
                    read(array, element_of(from), first, count, bytes)?;
                    if let Some(from_scales) = from_scales {
                        read(from_scales, Element::F32, first / BLOCK, count.div_ceil(BLOCK), scales)?;
                    }
                    decode(from, bytes, scales, values);
                    let slot = u32::try_from(nth).unwrap_or_default();
                    let stream = format::slot_stream(self.tensors[parameter].key, low_bits(step), slot);
                    let random =
                        |at: usize| format::of_slot(format::random_at(stream, low_bits((first + at) as u64)), slot);
                    encode(to, values, random, bytes, scales);
                    self.engine.write(parameter, part, first, bytes)?;
                    if matches!(to, SlotFormat::Block8(_)) {
                        self.engine.write(parameter, Part::Scales(nth), first / BLOCK, scales)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn group_state(group: &Group, pace: Pace) -> GroupState {
    let (rule, lr, decay) = (group.rule(), group.lr(), group.weight_decay());
    GroupState {
        name: group.name.clone(),
        rule: rule.spec().name().into(),
        kernel: rule.kernel().spec().name().into(),
        config: is_data(rule).then(|| rule.clone()),
        lr: is_data_rate(lr).then(|| lr.clone()),
        weight_decay: is_data_rate(decay).then(|| decay.clone()),
        plateau: match lr {
            Rate::Plateau(plateau) => Some(plateau.state()),
            Rate::Fixed(_) | Rate::List(_) | Rate::Schedule(_) => None,
        },
        beta_powers: pace.beta_powers.map(f32::to_bits),
        previous_lr: (!pace.previous_lr.is_nan()).then_some(pace.previous_lr),
    }
}

/// Whether a rule can be written as data: there is no closure in it.
fn is_data(rule: &Rule) -> bool {
    let parts = match rule {
        Rule::Custom(_) => false,
        Rule::Lars(lars) => Arc::ptr_eq(&lars.filter, &lars::default_filter()) && is_data(&lars.inner),
        _ => true,
    };
    parts && is_data_rate(rule.spec().lr())
}

fn is_data_rate(rate: &Rate) -> bool {
    match rate {
        Rate::Schedule(schedule) => schedule.describe().is_some_and(|schedule| schedule.depth() <= MAX_DEPTH),
        Rate::Fixed(_) | Rate::List(_) | Rate::Plateau(_) => true,
    }
}

/// What is to be done, once everything has been checked.
struct Plan {
    work: Vec<Work>,
    control: Control,
    /// For each group where it goes on; `None` if none of its parameters is in the state.
    paces: Vec<Option<Pace>>,
    /// For each parameter its flags, if it is in the state.
    parameters: Vec<Option<Flags>>,
    groups: Vec<Group>,
    loss_scale: LossScale,
    step: u64,
    report: LoadReport,
}

#[derive(Clone, Copy)]
struct Flags {
    updated: bool,
    frozen: bool,
    seeded: bool,
}

/// How one array of the engine is filled.
struct Work {
    parameter: usize,
    part: Part,
    /// The array of the source.
    array: usize,
    len: usize,
    how: How,
}

enum How {
    /// Byte for byte.
    Copy(Element),
    /// Slot `nth` from another format.
    Convert { from: SlotFormat, scales: Option<usize>, to: SlotFormat, nth: usize },
    /// A split master from one in `f32`.
    Split,
}

#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    values: Vec<f32>,
    scales: Vec<u8>,
}

/// Holds a state against an optimizer.
struct Planner<'a> {
    optimizer: &'a Optimizer,
    meta: &'a StateMeta,
    arrays: &'a [StateArray],
    options: LoadOptions,
    array_at: HashMap<&'a str, usize>,
    parameter_at: HashMap<&'a str, usize>,
    used: Vec<bool>,
    work: Vec<Work>,
    problems: Vec<String>,
    report: LoadReport,
}

impl<'a> Planner<'a> {
    fn plan(
        optimizer: &'a Optimizer,
        meta: &'a StateMeta,
        arrays: &'a [StateArray],
        options: LoadOptions,
    ) -> Result<Plan> {
        let mut planner = Self {
            optimizer,
            meta,
            arrays,
            options,
            array_at: HashMap::new(),
            parameter_at: HashMap::new(),
            used: vec![false; arrays.len()],
            work: Vec::new(),
            problems: Vec::new(),
            report: LoadReport { step: meta.step, ..LoadReport::default() },
        };
        planner.check_meta();
        // What does not make sense in itself is not held against anything.
        planner.done()?;
        let parameters: Vec<_> = (0..optimizer.tensors.len()).map(|index| planner.parameter(index)).collect();
        planner.unexpected(&parameters);
        let loss_scale = planner.loss_scale();
        let (mut groups, mut paces) = (optimizer.groups.clone(), Vec::new());
        for (index, group) in groups.iter_mut().enumerate() {
            paces.push(planner.group(index, group, &parameters));
        }
        planner.done()?;
        let control = planner.control(&loss_scale);
        let Self { work, report, .. } = planner;
        Ok(Plan { work, control, paces, parameters, groups, loss_scale, step: meta.step, report })
    }

    fn done(&mut self) -> Result<()> {
        match std::mem::take(&mut self.problems) {
            problems if problems.is_empty() => Ok(()),
            problems => Err(Error::StateMismatch { problems }),
        }
    }

    fn check_meta(&mut self) {
        let StateMeta { version, step, guard, groups, parameters, .. } = self.meta;
        if *version != VERSION {
            self.problems.push(format!("its layout has version {version}, this library reads version {VERSION}"));
            return;
        }
        if *step >= MOST_STEPS {
            self.problems.push(format!("its step count is {step}"));
        }
        for (index, array) in self.arrays.iter().enumerate() {
            if self.array_at.insert(&array.name, index).is_some() {
                self.problems.push(format!("array {:?}: twice in the state", array.name));
            }
        }
        for (index, ParameterState { name, group, .. }) in parameters.iter().enumerate() {
            if self.parameter_at.insert(name, index).is_some() {
                self.problems.push(format!("parameter {name:?}: twice in the state"));
            }
            if *group >= groups.len() {
                self.problems.push(format!("parameter {name:?}: in group {group} of {} of the state", groups.len()));
            }
        }
        for (index, GroupState { beta_powers, previous_lr, .. }) in groups.iter().enumerate() {
            let powers = beta_powers.map(f32::from_bits);
            if !powers.iter().all(|power| (0.0..=1.0).contains(power)) {
                self.problems.push(format!("group {index} of the state: the powers of its betas are {powers:?}"));
            }
            if let Some(rate) = previous_lr.filter(|rate| !rate.is_finite()) {
                self.problems.push(format!("group {index} of the state: its last rate is {rate}"));
            }
        }
        let sound = |&GuardState { scale, current, last, bad, skipped }: &GuardState| {
            let is_single = f64::from(single(scale)).to_bits() == scale.to_bits();
            // Gradients are multiplied by its inverse.
            let usable = scale > 0.0 && is_single && scale.is_finite() && (1.0 / single(scale)).is_finite();
            usable && current >= last && bad <= skipped && skipped < MOST_SKIPS
        };
        if let Some(guard) = guard.filter(|guard| !sound(guard)) {
            self.problems.push(format!("its loss scale and counters are {guard:?}"));
        }
    }

    /// A parameter's flags, if it is in the state.
    fn parameter(&mut self, index: usize) -> Option<Flags> {
        let tensor = &self.optimizer.tensors[index];
        let (parameter, name) = (&tensor.parameter, tensor.parameter.name());
        let Some(&at) = self.parameter_at.get(name) else {
            self.missing(&format!("parameter {name:?}"), name);
            return None;
        };
        let saved = &self.meta.parameters[at];
        let (group, rule) = (&self.meta.groups[saved.group], self.optimizer.groups[tensor.group].rule());
        let before = self.problems.len();
        let mut differs = |what: &str, saved: &str, own: &str| {
            if saved != own {
                self.problems.push(format!("parameter {name:?}: {what}{saved} in the state, {own} in the optimizer"));
            }
        };
        differs("shape ", &format!("{:?}", saved.shape), &format!("{:?}", parameter.shape()));
        differs("", &saved.dtype.to_string(), &parameter.dtype().to_string());
        differs("rule ", &group.rule, rule.spec().name());
        if group.rule == rule.spec().name() {
            differs("kernel ", &group.kernel, rule.kernel().spec().name());
        }
        if self.problems.len() > before {
            return None;
        }

        let slots = self.optimizer.slots_of(index);
        let own = arrays(tensor, &slots);
        let mut seeds = self.master(index, saved);
        for (part, array) in own {
            match part {
                Part::Slot(nth) => self.slot(index, nth, &slots[nth], &array),
                // With its codes, or the master.
                Part::Scales(_) | Part::Master => {}
                Part::Ema => seeds |= self.average(index, saved, &array, seeds),
            }
        }
        // What was frozen before the load stays so, as settings do.
        let frozen = saved.frozen || self.options.hyper == Hyper::UseNew && self.optimizer.frozen[index];
        Some(Flags { updated: saved.updated, frozen, seeded: saved.seeded && !seeds })
    }

    /// Plans a slot.
    fn slot(&mut self, parameter: usize, nth: usize, slot: &Slot, own: &StateArray) {
        let Some(array) = self.find(&own.name, &own.shape) else { return };
        let to = self.optimizer.tensors[parameter].slot_format(slot);
        let len = own.elements().unwrap_or_default();
        let element = self.arrays[array].element;
        let from = match (element, slot.narrow) {
            (Element::F32, _) => Some(SlotFormat::F32),
            (Element::F16, _) => Some(SlotFormat::F16),
            (Element::Bf16, _) => Some(SlotFormat::Bf16),
            (Element::U8, Some(code)) => Some(SlotFormat::Block8(code)),
            (Element::U8, None) | (Element::U16, _) => None,
        };
        let Some(from) = from.filter(|from| *from == to || self.options.convert) else {
            let wanted = own.element;
            self.problems.push(format!("array {:?}: {element} in the state, {wanted} in the optimizer", own.name));
            if let Some(&scales) = self.array_at.get(&*format!("{}.scales", own.name)) {
                self.used[scales] = true;
            }
            return;
        };
        let mut scales = None;
        if matches!(from, SlotFormat::Block8(_)) {
            let name = format!("{}.scales", own.name);
            let shape = vec![len.div_ceil(BLOCK)];
            scales = self.exact(&StateArray { name, element: Element::F32, shape: shape.clone() }, false);
            let Some(array) = scales else { return };
            if from == to {
                let part = Part::Scales(nth);
                self.work.push(Work { parameter, part, array, len: shape[0], how: How::Copy(Element::F32) });
            }
        }
        let how = if from == to {
            How::Copy(element)
        } else {
            self.report.converted.push(own.name.clone());
            How::Convert { from, scales, to, nth }
        };
        self.work.push(Work { parameter, part: Part::Slot(nth), array, len, how });
    }

    /// Plans what stands behind a parameter; whether it begins as the parameter.
    fn master(&mut self, parameter: usize, saved: &ParameterState) -> bool {
        let tensor = &self.optimizer.tensors[parameter];
        let (name, shape) = (array_name(&saved.name, Part::Master, &[]), tensor.parameter.shape().to_vec());
        let len = tensor.parameter.len();
        let (from, to) = (saved.master(), tensor.master());
        let element = |master| match master {
            Some(Master::F32) => Some(Element::F32),
            Some(Master::Split) => Some(Element::U16),
            Some(Master::None | Master::Stochastic) | None => None,
        };
        // The array of the state, if it should have one.
        let mut array = None;
        if let Some(element) = element(from) {
            array = self.exact(&StateArray { name: name.clone(), element, shape }, false);
            if array.is_none() {
                return false;
            }
        }
        let work = |array, how| Work { parameter, part: Part::Master, array, len, how };
        if from == to {
            let copied = array.zip(element(from)).map(|(array, element)| work(array, How::Copy(element)));
            self.work.extend(copied);
            return false;
        }
        let [saved_kind, own_kind] =
            [from, to].map(|master| format!("{:?}", master.unwrap_or_default()).to_lowercase());
        let mut refuse = |why: &str| {
            let name = &saved.name;
            let kinds = format!("master {saved_kind} in the state, {own_kind} in the optimizer");
            self.problems.push(format!("parameter {name:?}: {kinds}{why}"));
            false
        };
        if !self.options.convert {
            return refuse("");
        }
        let seeds = match (array, from, to) {
            (Some(array), Some(Master::F32), Some(Master::Split)) => {
                self.work.push(work(array, How::Split));
                false
            }
            (_, Some(Master::Split), Some(Master::F32)) => {
                return refuse(", which needs the parameter to be converted");
            }
            (_, Some(Master::None | Master::Stochastic), Some(Master::F32 | Master::Split)) => {
                if tensor.ema && saved.ema && saved.seeded {
                    return refuse(", which would begin the average anew");
                }
                true
            }
            // What is no longer needed is left behind.
            _ => false,
        };
        self.report.converted.push(name);
        seeds
    }

    /// Plans an average; whether it begins as the parameter. `seeds`: whether the master does.
    fn average(&mut self, parameter: usize, saved: &ParameterState, own: &StateArray, seeds: bool) -> bool {
        let len = own.elements().unwrap_or_default();
        let work = |array| Work { parameter, part: Part::Ema, array, len, how: How::Copy(Element::F32) };
        if self.array_at.contains_key(&*own.name) || !self.options.allow_missing {
            let array = self.exact(own, true);
            self.work.extend(array.map(work));
            return false;
        }
        // The engine sets masters and averages together, so beside a master that stays the average begins as that.
        self.report.missing.push(own.name.clone());
        if !self.optimizer.tensors[parameter].has_master() || seeds || !saved.seeded {
            return true;
        }
        let master = (saved.master() == Some(Master::F32)).then(|| array_name(&saved.name, Part::Master, &[]));
        if let Some(&array) = master.and_then(|name| self.array_at.get(&*name)) {
            self.work.push(work(array));
        } else {
            let name = &own.name;
            self.problems.push(format!("array {name:?}: missing, and cannot begin anew beside a split master"));
        }
        false
    }

    /// The array of exactly this description.
    fn exact(&mut self, own: &StateArray, may_miss: bool) -> Option<usize> {
        let array = if may_miss || self.array_at.contains_key(&*own.name) {
            self.find(&own.name, &own.shape)?
        } else {
            self.problems.push(format!("array {:?}: missing", own.name));
            return None;
        };
        let element = self.arrays[array].element;
        if element != own.element {
            let wanted = own.element;
            self.problems.push(format!("array {:?}: {element} in the state, {wanted} in the optimizer", own.name));
            return None;
        }
        Some(array)
    }

    /// The array of this name and shape.
    fn find(&mut self, name: &str, shape: &[usize]) -> Option<usize> {
        let Some(&array) = self.array_at.get(name) else {
            self.missing(&format!("array {name:?}"), name);
            return None;
        };
        self.used[array] = true;
        let saved = &self.arrays[array].shape;
        if saved != shape {
            self.problems.push(format!("array {name:?}: shape {saved:?} in the state, {shape:?} in the optimizer"));
            return None;
        }
        Some(array)
    }

    fn missing(&mut self, what: &str, name: &str) {
        if self.options.allow_missing {
            self.report.missing.push(name.to_owned());
        } else {
            self.problems.push(format!("{what}: missing"));
        }
    }

    /// What only the state has.
    fn unexpected(&mut self, parameters: &[Option<Flags>]) {
        let optimizer = self.optimizer;
        let own: HashSet<&str> = optimizer.parameters.iter().map(crate::Parameter::name).collect();
        let mut found = Vec::new();
        for ParameterState { name, .. } in &self.meta.parameters {
            if !own.contains(&**name) {
                found.push((format!("parameter {name:?}"), name));
            }
        }
        // Arrays of parameters that do not fit at all, or are unexpected themselves, are not listed again.
        let fits = optimizer.parameters.iter().zip(parameters).filter(|(_, flags)| flags.is_some());
        let fits: HashSet<&str> = fits.map(|(parameter, _)| parameter.name()).collect();
        let listed = |name: &str| self.parameter_at.contains_key(name) && !fits.contains(name);
        for (StateArray { name, .. }, used) in self.arrays.iter().zip(&self.used) {
            if !used && !belongs(name, listed) {
                found.push((format!("array {name:?}"), name));
            }
        }
        for (what, name) in found {
            if self.options.ignore_unexpected {
                self.report.unexpected.push(name.clone());
            } else {
                self.problems.push(format!("{what}: not in the optimizer"));
            }
        }
    }

    fn loss_scale(&mut self) -> LossScale {
        let (own, saved) = (self.optimizer.settings.loss_scale, self.meta.loss_scale);
        if self.options.hyper == Hyper::UseNew {
            return own;
        }
        let (own_seed, seed) = (self.optimizer.defaults.seed, self.meta.seed);
        if own_seed != seed {
            self.problems.push(format!("seed: {seed} in the state, {own_seed} in the optimizer, which cannot change"));
        }
        if let Err(error) = saved.validate() {
            self.problems.push(format!("its loss scale: {error}"));
        }
        saved
    }

    /// Where loss scale and counters go on.
    fn control(&self, loss_scale: &LossScale) -> Control {
        let applied = low_bits(self.meta.step);
        let mut control = Control { applied, current: applied.wrapping_add(1), ..Control::default() };
        if let Some(GuardState { current, last, bad, skipped, .. }) = self.meta.guard {
            control = Control { current, last, bad, skipped, ..control };
        }
        if let LossScale::Dynamic(dynamic) = loss_scale {
            let saved = self.meta.guard.filter(|_| matches!(self.meta.loss_scale, LossScale::Dynamic(_)));
            let scale = saved.map_or(dynamic.init_loss_scale, |guard| guard.scale);
            control.scale = single(scale.min(dynamic.cap).max(dynamic.floor));
        }
        control
    }

    /// Where a group goes on, if any of its parameters is in the state; changes its settings.
    fn group(&mut self, index: usize, group: &mut Group, parameters: &[Option<Flags>]) -> Option<Pace> {
        let mut from: Vec<usize> = Vec::new();
        let mut members = 0;
        let tensors = self.optimizer.tensors.iter().zip(parameters);
        for (tensor, flags) in tensors.filter(|(tensor, _)| tensor.group == index) {
            members += 1;
            let at = self.parameter_at.get(tensor.parameter.name()).filter(|_| flags.is_some());
            let Some(&at) = at else { continue };
            let saved = self.meta.parameters[at].group;
            if !from.contains(&saved) {
                from.push(saved);
            }
        }
        let &first = from.first()?;
        let (meta, place) = (self.meta, group.place.clone());
        let saved = &meta.groups[first];
        // What this group goes on from must be one and the same in all of them.
        let uses_previous = matches!(group.rule().kernel(), Rule::Custom(_)) || group.rule().spec().uses_previous_lr();
        let follows = matches!(group.lr(), Rate::Plateau(_));
        let previous_lr = |index: usize| meta.groups[index].previous_lr.map(f64::to_bits);
        let plateau = |index: usize| {
            let state = meta.groups[index].plateau?;
            Some((state.lr.to_bits(), state.best.to_bits(), state.num_bad_epochs, state.cooldown_counter))
        };
        let differs = from.iter().find_map(|&other| {
            if meta.groups[other].beta_powers != saved.beta_powers {
                Some("the powers of their betas")
            } else if uses_previous && previous_lr(other) != previous_lr(first) {
                Some("their last rates")
            } else {
                (follows && plateau(other) != plateau(first)).then_some("their rates that follow a metric")
            }
        });
        if let Some(what) = differs {
            let groups: Vec<_> = from.iter().map(usize::to_string).collect();
            let groups = groups.join(", ");
            self.problems.push(format!("{place}: its parameters come from groups {groups}, where {what} differ"));
            return None;
        }
        let same_members = || {
            let saved = meta.parameters.iter().filter(|parameter| parameter.group == first);
            from.len() == 1 && saved.count() == members && {
                let own = self.optimizer.tensors.iter().filter(|tensor| tensor.group == index);
                own.map(|tensor| tensor.parameter.name()).all(|name| self.parameter_at.contains_key(name))
            }
        };
        if self.options.hyper == Hyper::KeepSaved && same_members() {
            match keep(group, saved, meta.step) {
                Ok(()) => self.report.kept.push(index),
                Err(problem) => self.problems.push(format!("{place}: {problem}")),
            }
        }
        if let (Rate::Plateau(plateau), Some(state)) = (&mut group.lr.0, saved.plateau)
            && let Err(error) = plateau.restore(state)
        {
            self.problems.push(format!("{place}: {error}"));
        }
        let previous_lr = saved.previous_lr.unwrap_or(f64::NAN);
        Some(Pace { beta_powers: saved.beta_powers.map(f32::from_bits), previous_lr })
    }
}

/// Gives a group the settings of a saved one.
fn keep(group: &mut Group, saved: &GroupState, step: u64) -> Result<(), String> {
    let (Some(rule), Some(lr), Some(decay)) = (&saved.config, &saved.lr, &saved.weight_decay) else {
        return Err("a closure, a rule of one's own, a list or a schedule that is too long is not in the state, so it cannot be kept".into());
    };
    if (rule.spec().name(), rule.kernel().spec().name()) != (&*saved.rule, &*saved.kernel) {
        return Err(format!("its rule is {} in the state, its config {rule:?}", saved.rule));
    }
    if !same_state(rule, group.rule()) {
        return Err(format!("the saved {rule:?} needs other state than {:?}", group.rule()));
    }
    let changed = Origin::Changed;
    let kept = Group {
        rule: (rule.clone(), changed),
        lr: (lr.clone(), changed),
        weight_decay: (decay.clone(), changed),
        ..group.clone()
    };
    // With what the next update makes of it, too.
    let valid = validate_rule(rule, "")
        .and_then(|()| lr.validate("lr"))
        .and_then(|()| decay.validate_decay("weight_decay"))
        .and_then(|()| vary(&kept, &mut rule.clone(), step));
    valid.map_err(|error| error.to_string())?;
    *group = kept;
    Ok(())
}

/// The element type of a slot that is kept so.
pub(super) fn element_of(format: SlotFormat) -> Element {
    match format {
        SlotFormat::F32 => Element::F32,
        SlotFormat::F16 => Element::F16,
        SlotFormat::Bf16 => Element::Bf16,
        SlotFormat::Block8(_) => Element::U8,
    }
}

/// The correction bits of a split master that is, with the nearest `bf16`, this number. A tie that the parameter rounded towards 0
/// loses the last bit.
fn correction(master: f32) -> u16 {
    let nearest = format::f32_to_bf16(master);
    let difference = master.to_bits().wrapping_sub(u32::from(nearest) << 16);
    if master.is_nan() {
        return 0;
    }
    // From −2¹⁵ to 2¹⁵, in two's complement; 2¹⁵ does not fit.
    if difference == 0x8000 { 0x7fff } else { low_half(difference) }
}

#[allow(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
const fn low_half(x: u32) -> u16 {
    x as u16
}

/// The numbers that are kept as these bytes, and scales if there are any.
pub(super) fn decode(from: SlotFormat, bytes: &[u8], scales: &[u8], values: &mut Vec<f32>) {
    values.clear();
    let single = |word: &[u8]| f32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
    let half = |word: &[u8]| u16::from_ne_bytes([word[0], word[1]]);
    match from {
        SlotFormat::F32 => values.extend(bytes.chunks_exact(4).map(single)),
        SlotFormat::F16 => values.extend(bytes.chunks_exact(2).map(|word| format::f16_to_f32(half(word)))),
        SlotFormat::Bf16 => values.extend(bytes.chunks_exact(2).map(|word| format::bf16_to_f32(half(word)))),
        SlotFormat::Block8(code) => {
            for (bytes, scale) in bytes.chunks(BLOCK).zip(scales.chunks_exact(4).map(single)) {
                values.extend(bytes.iter().map(|&byte| code.decode(byte, scale)));
            }
        }
    }
}

/// Keeps numbers; `random` gives the random bits of each.
pub(super) fn encode(
    to: SlotFormat,
    values: &[f32],
    random: impl Fn(usize) -> u32,
    bytes: &mut Vec<u8>,
    scales: &mut Vec<u8>,
) {
    bytes.clear();
    scales.clear();
    match to {
        SlotFormat::F32 => bytes.extend(values.iter().flat_map(|x| x.to_ne_bytes())),
        SlotFormat::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            compressed::encode(values, &mut halves);
            bytes.extend(halves.iter().flat_map(|half| half.to_bits().to_ne_bytes()));
        }
        SlotFormat::Bf16 => {
            let halves = values.iter().enumerate().map(|(at, &x)| format::f32_to_bf16_stochastic(x, random(at)));
            bytes.extend(halves.flat_map(u16::to_ne_bytes));
        }
        SlotFormat::Block8(code) => {
            for (nth, block) in values.chunks(BLOCK).enumerate() {
                let scale = format::scale_of(block);
                scales.extend(scale.to_ne_bytes());
                bytes.extend(block.iter().enumerate().map(|(at, &x)| code.encode(x, scale, random(nth * BLOCK + at))));
            }
        }
    }
}
