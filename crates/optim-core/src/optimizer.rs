//! The optimizer: the step, and what can be read and changed between steps.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::backend::{
    Backend, Engine, FROZEN, Part, Plan, Progress, Record, RowList, Shaping, SlotFormat, Stages, Tensor, Trust, Update,
};
use crate::builder::check_vary;
use crate::error::check;
use crate::format;
use crate::guard::{Clip, Control, DIVISOR, Guard, LossScale, Scaler, Verdict, divides};
use crate::report::Gradients;
use crate::rule::{At, Decay, Passes, Slot, Sparse};
use crate::rules::single;
use crate::settings::{Ema, Group, Settings};
use crate::{Builder, DType, Error, Grad, Outcome, ParamMut, Parameter, Rate, Result, Rule, StateDType, StepReport};

mod change;
mod explain;
mod state;
mod surgery;
mod watch;

pub(crate) use change::same_state;
pub use explain::Explanation;

/// The most steps whose verdict may be pending; one more waits for them.
const MOST_PENDING: usize = 32;

/// The most reports that are kept for [`Optimizer::try_report`]; the oldest go first.
const MOST_REPORTS: usize = 1024;

/// What a builder hands over.
pub(crate) struct Parts {
    pub(crate) rule: Rule,
    pub(crate) groups: Vec<Group>,
    pub(crate) tensors: Vec<Tensor>,
    /// Whether each parameter decays, as far as filters say.
    pub(crate) decays: Vec<bool>,
    /// What the rate of each parameter is multiplied with.
    pub(crate) scales: Vec<f64>,
    pub(crate) settings: Settings,
    pub(crate) ema: Option<Ema>,
    /// What a group that is added inherits: the builder without parameters.
    pub(crate) defaults: Builder,
}

/// Parameters whose updates compute with the same numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Class {
    group: usize,
    decays: bool,
    centralized: bool,
    scale: f64,
    /// The only member, where every parameter needs a record of its own.
    parameter: Option<usize>,
}

/// What of a group moves on with every update.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The powers of the rule's betas: products in `f32`, as in MindSpore.
    beta_powers: [f32; 2],
    /// The rate of the last update.
    previous_lr: f64,
}

/// An update that a device has yet to decide on.
#[derive(Debug)]
struct PendingStep {
    /// The rates of each update that it may be.
    rates: Vec<Arc<[f64]>>,
    /// The number of updates applied before the first of these.
    first: u64,
    /// Whether each parameter takes part.
    present: Vec<bool>,
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
    groups: Vec<Group>,
    parameters: Vec<Parameter>,
    tensors: Vec<Tensor>,
    decays: Vec<bool>,
    scales: Vec<f64>,
    settings: Settings,
    ema: Option<Ema>,
    defaults: Builder,
    classes: Vec<Class>,
    class_of: Vec<usize>,
    /// The length and type of each parameter, close together: every step reads them.
    sizes: Vec<(usize, DType)>,
    /// Updates applied, as far as is known.
    step: u64,
    /// One for each group, after those updates.
    paces: Vec<Pace>,
    /// Whether a parameter was ever updated.
    updated: Vec<bool>,
    frozen: Vec<bool>,
    /// Whether masters and averages have been set from the parameter's memory.
    seeded: Vec<bool>,
    /// Whether averages stand in the parameters' memory.
    swapped: bool,
    /// Whether a load failed half way.
    torn: bool,
    /// The loss scale of the next step, as far as is known.
    scale: f32,
    /// Parameters for which something has been accumulated, and the sum of the weights.
    accumulated: Vec<bool>,
    total_weight: f64,
    pending: VecDeque<PendingStep>,
    reports: VecDeque<StepReport>,
    backend: Box<dyn Backend>,
    engine: Box<dyn Engine>,
    // Reused at every step.
    rules: Vec<Rule>,
    records: Vec<Record>,
    record_of: Vec<u32>,
    rows: Vec<RowList>,
    /// Whether one of these has entries.
    lists_rows: bool,
    rates: Arc<[f64]>,
    /// The rates of later updates that the coming one may be.
    later_rates: Vec<Arc<[f64]>>,
    ahead: Vec<Pace>,
    /// The first record of each class, and whether a second one is for first updates.
    starts: Vec<(usize, bool)>,
    own_grads: Vec<Grad<'static>>,
    flags: Vec<bool>,
}

impl Optimizer {
    pub(crate) fn new(parts: Parts, backend: Box<dyn Backend>) -> Result<Self> {
        let Parts { rule, groups, tensors, decays, scales, settings, ema, defaults } = parts;
        let rules: Vec<Rule> = groups.iter().map(|group| group.rule().clone()).collect();
        let mut engine = backend.engine(&Plan { rules: &rules, tensors: &tensors, groups: groups.len() })?;
        let mut scale = 1.0;
        if settings.measures() {
            if let LossScale::Dynamic(dynamic) = settings.loss_scale {
                scale = single(dynamic.init_loss_scale);
            }
            engine.set_control(&Control { scale, ..Control::default() })?;
        }
        let count = tensors.len();
        let mut optimizer = Self {
            parameters: tensors.iter().map(|tensor| tensor.parameter.clone()).collect(),
            paces: vec![Pace { beta_powers: [1.0; 2], previous_lr: f64::NAN }; groups.len()],
            ahead: Vec::with_capacity(groups.len()),
            later_rates: Vec::new(),
            starts: Vec::new(),
            rates: vec![0.0; groups.len()].into(),
            records: Vec::new(),
            record_of: vec![0; count],
            rows: vec![RowList::default(); count],
            lists_rows: false,
            updated: vec![false; count],
            frozen: vec![false; count],
            seeded: vec![false; count],
            accumulated: vec![false; count],
            own_grads: vec![Grad::None; count],
            flags: vec![false; count],
            classes: Vec::new(),
            class_of: Vec::new(),
            sizes: Vec::new(),
            step: 0,
            swapped: false,
            torn: false,
            total_weight: 0.0,
            pending: VecDeque::new(),
            reports: VecDeque::new(),
            rule,
            groups,
            tensors,
            decays,
            scales,
            settings,
            ema,
            defaults,
            scale,
            backend,
            engine,
            rules,
        };
        optimizer.classify();
        Ok(optimizer)
    }

    /// Updates every parameter that has a gradient, in place.
    ///
    /// `params` and `grads` come in the order of registration (see [`parameters`](Self::parameters)), one for each
    /// parameter; a gradient may be [`Grad::None`], which leaves its parameter and that parameter's state alone. Gradients may have
    /// another element type than their parameter. Memory may be on the host or on the backend's device. The step counter, and so every
    /// schedule, advances by one.
    ///
    /// With a guard the report may be [`Pending`](Outcome::Pending) unless parameters on the host are updated on a device: then the step
    /// waits for them anyway.
    ///
    /// On the CPU nothing is allocated once the first step is done.
    ///
    /// # Errors
    /// A wrong count, length or element type; an exhausted list of rates, or a schedule that returns no finite number; memory
    /// that the backend cannot use. Nothing has changed then, nor has the step counter.
    /// [`Error::TooManySkips`] once more steps in a row were skipped than the loss scale allows.
    pub fn step(&mut self, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<StepReport> {
        refuse_accumulated(grads)?;
        self.advance(None, params, grads, None)
    }

    /// As [`step`](Self::step), but its commands are recorded into `target`, to be run when the caller says. For backends, which
    /// wrap it with the type that they know: see `GpuBackend::encode_step`.
    ///
    /// # Errors
    /// As [`step`](Self::step); [`Error::Unsupported`] if the backend cannot record into this; [`Error::State`] where the numbers of the
    /// step depend on verdicts that are pending, which recording does not wait for; [`Error::StepLost`] if the commands of
    /// an earlier recorded step were never run.
    pub fn record_step(
        &mut self,
        target: &mut dyn Any,
        params: &mut [ParamMut<'_>],
        grads: &[Grad<'_>],
    ) -> Result<StepReport> {
        refuse_accumulated(grads)?;
        self.advance(Some(target), params, grads, None)
    }

    /// As [`step`](Self::step), with each parameter's memory and gradient by name, in any order. All parameters are named; one
    /// without a gradient has [`Grad::None`].
    ///
    /// # Errors
    /// As [`step`](Self::step); [`Error::Unknown`], [`Error::DuplicateParameter`] and [`Error::LeftOut`] for names.
    pub fn step_named<'a>(
        &mut self,
        memory: impl IntoIterator<Item = (&'a str, ParamMut<'a>, Grad<'a>)>,
    ) -> Result<StepReport> {
        let names = || self.parameters.iter().map(Parameter::name);
        let places: HashMap<&str, usize> = names().zip(0..).collect();
        let mut found: Vec<Option<(ParamMut<'a>, Grad<'a>)>> = names().map(|_| None).collect();
        for (name, param, grad) in memory {
            let place = match places.get(name) {
                Some(&place) => place,
                None => self.index(name)?,
            };
            if found[place].replace((param, grad)).is_some() {
                return Err(Error::DuplicateParameter { name: name.into() });
            }
        }
        let left: Vec<String> =
            names().zip(&found).filter(|(_, found)| found.is_none()).map(|(name, _)| name.to_owned()).collect();
        if !left.is_empty() {
            return Err(Error::LeftOut { what: "the step", names: left });
        }
        let (mut params, grads): (Vec<_>, Vec<_>) = found.into_iter().flatten().unzip();
        self.step(&mut params, &grads)
    }

    /// Adds `weight · g` to what has been accumulated for each parameter, in `f32`, for a [`step_accumulated`](Self::step_accumulated):
    /// gradients of micro-batches. `weight` is finite and > 0: 1 for the mean of micro-batches, the number of samples or tokens for
    /// the mean over those. A missing gradient counts as 0. Other steps are refused until then: the gradients of the last micro-batch are
    /// accumulated as the others.
    ///
    /// # Errors
    /// As [`step`](Self::step), of the gradients; a weight out of its range; a row-sparse gradient.
    pub fn accumulate(&mut self, grads: &[Grad<'_>], weight: f64) -> Result<()> {
        check("accumulate: weight", "finite and > 0", weight, |x| x.is_finite() && x > 0.0)?;
        self.check_grads(grads)?;
        for (parameter, grad) in self.parameters.iter().zip(grads) {
            if matches!(grad, Grad::Rows(..) | Grad::Accumulated) {
                let what =
                    format!("accumulating a gradient that is row-sparse or accumulated ({:?})", parameter.name());
                return Err(Error::Unsupported { what, backend: self.backend.name().into() });
            }
        }
        for (fresh, accumulated) in self.flags.iter_mut().zip(&self.accumulated) {
            *fresh = !accumulated;
        }
        self.engine.accumulate(single(weight), &self.flags, grads)?;
        for (accumulated, grad) in self.accumulated.iter_mut().zip(grads) {
            *accumulated |= !grad.is_none();
        }
        self.total_weight += weight;
        Ok(())
    }

    /// A step with what has been accumulated, divided by the sum of the weights; then accumulation starts anew, also if the step was
    /// skipped.
    ///
    /// # Errors
    /// As [`step`](Self::step); [`Error::State`] if nothing has been accumulated; a sum of weights that no `f32` divides by.
    pub fn step_accumulated(&mut self, params: &mut [ParamMut<'_>]) -> Result<StepReport> {
        if self.total_weight == 0.0 {
            let (what, expected) = ("a step with accumulated gradients", "call `accumulate` first");
            return Err(Error::State { what, expected });
        }
        let divisor = self.settings.loss_scale.plain() * self.total_weight;
        check("accumulate: the sum of weights, times the loss scale", DIVISOR, divisor, divides)?;
        let mut grads = std::mem::take(&mut self.own_grads);
        // They are missing if a rule of the caller's has panicked.
        grads.resize(self.accumulated.len(), Grad::None);
        for (grad, &accumulated) in grads.iter_mut().zip(&self.accumulated) {
            *grad = if accumulated { Grad::Accumulated } else { Grad::None };
        }
        let report = self.advance(None, params, &grads, Some(self.total_weight));
        self.own_grads = grads;
        report
    }

    /// Forgets what has been accumulated.
    pub fn discard_accumulated(&mut self) {
        self.accumulated.fill(false);
        self.total_weight = 0.0;
    }

    /// One step, recorded if there is something to record into; with what has been accumulated, if the sum of its weights is given: by
    /// that gradients are too large beside the loss scale.
    fn advance(
        &mut self,
        target: Option<&mut dyn Any>,
        params: &mut [ParamMut<'_>],
        grads: &[Grad<'_>],
        accumulated: Option<f64>,
    ) -> Result<StepReport> {
        let weight = accumulated.unwrap_or(1.0);
        if accumulated.is_none() && self.total_weight > 0.0 {
            let (what, expected) = (
                "a step without the gradients that are accumulated",
                "call `step_accumulated` or `discard_accumulated` first",
            );
            return Err(Error::State { what, expected });
        }
        if self.swapped {
            let (what, expected) = ("a step while averages stand in the parameters", "call `swap_ema_out` first");
            return Err(Error::State { what, expected });
        }
        self.refuse_torn("a step")?;
        self.engine.begin();
        let dense = self.check_memory(params, grads)?;
        if target.is_none() {
            self.poll()?;
        }
        self.collect(false)?;
        // What the first update of a parameter computes with depends on whether the pending ones were applied.
        let differs = self.rules.iter().any(|rule| rule.spec().first_update_differs());
        if self.pending.len() >= MOST_PENDING || (differs && self.updated.contains(&false)) {
            self.settle_before(target.is_some())?;
        }
        let mut made = self.make_records(weight);
        if made.is_err() && !self.pending.is_empty() {
            // An update that this could be, but may not turn out to be, has no rate.
            self.settle_before(target.is_some())?;
            made = self.make_records(weight);
        }
        let records = made?;
        self.assign_records(grads, dense);
        if !dense || self.lists_rows {
            self.fill_rows(grads);
        }
        self.find_seeds();
        if target.is_none() {
            self.seed(params)?;
        }

        let base = single(1.0 / (self.settings.loss_scale.plain() * weight));
        let guard = self.settings.measures().then(|| Guard {
            factor: base,
            clip: self.settings.scope(),
            first: low_bits(self.step),
            records,
            scaler: scaler(&self.settings.loss_scale),
        });
        let update = Update {
            rules: &self.rules,
            records: &self.records,
            record_of: &self.record_of,
            rows: &self.rows,
            guard: guard.as_ref(),
        };
        // Until it returns: a rule of the caller's may panic half way.
        self.torn = true;
        let progress = match target {
            None => self.engine.update(&update, params, grads),
            Some(target) => self.engine.record(target, &self.flags, &update, params, grads),
        };
        self.torn = false;
        let progress = progress?;
        // An error of an earlier step, which may come before, leaves it for another try.
        if accumulated.is_some() {
            self.discard_accumulated();
        }
        self.seeded.fill(true);
        let present = self.record_of.iter().zip(grads).map(|(&record, grad)| record != FROZEN && !grad.is_none());
        let verdict = match progress {
            Progress::Applied => None,
            Progress::Decided(verdict) => Some(verdict),
            Progress::Pending => {
                let step = self.step + self.pending.len() as u64 + 1;
                let rates: Vec<_> = std::iter::once(&self.rates).chain(&self.later_rates).cloned().collect();
                let (outcome, last) = (Outcome::Pending, Arc::clone(&rates[rates.len() - 1]));
                let present = if self.updated.contains(&false) { present.collect() } else { Vec::new() };
                self.pending.push_back(PendingStep { rates, first: self.step, present });
                return Ok(StepReport { outcome, step, rates: last, gradients: None, update_ratios: None });
            }
        };
        if verdict.as_ref().is_none_or(|verdict| verdict.skip.is_none()) && !all(&self.updated) {
            for (updated, present) in self.updated.iter_mut().zip(present) {
                *updated |= present;
            }
        }
        let first = self.step;
        // This one has been made: an error of an earlier step is told once it has been taken in.
        let mut earlier = Ok(());
        while !self.pending.is_empty() {
            let left = self.pending.len();
            let settled = self.settle();
            if self.pending.len() == left {
                return Err(settled.err().unwrap_or(Error::StepLost));
            }
            earlier = earlier.and(settled);
        }
        let rates = match usize::try_from(self.step - first) {
            Ok(0) | Err(_) => Arc::clone(&self.rates),
            Ok(later) => Arc::clone(&self.later_rates[later - 1]),
        };
        let report = self.conclude(rates, verdict)?;
        if earlier.is_err() {
            self.reports.push_back(report.clone());
        }
        earlier.map(|()| report)
    }

    /// Takes in what has become of a step.
    fn conclude(&mut self, rates: Arc<[f64]>, verdict: Option<Verdict>) -> Result<StepReport> {
        let skip = verdict.as_ref().and_then(|verdict| verdict.skip);
        if skip.is_none() {
            for (index, (pace, group)) in self.paces.iter_mut().zip(&self.groups).enumerate() {
                vary(group, &mut self.rules[index], self.step)?;
                *pace = pace.next(&self.rules[index], rates[index]);
            }
            self.step += 1;
        }
        let step = self.step + u64::from(skip.is_some());
        let outcome = skip.map_or(Outcome::Applied, Outcome::Skipped);
        let mut report = StepReport { outcome, step, rates, gradients: None, update_ratios: None };
        let Some(verdict) = verdict else { return Ok(report) };
        self.scale = verdict.scale;
        let first_non_finite = verdict.first_bad.map(|index| self.parameters[index].name().to_owned());
        if skip.is_some() && verdict.bad > self.settings.loss_scale.max_skips() {
            let name = first_non_finite.unwrap_or_default();
            return Err(Error::TooManySkips { name, skips: verdict.bad });
        }
        let plain = self.settings.loss_scale.plain();
        report.gradients = Some(Gradients {
            norm: verdict.norm,
            group_norms: verdict.group_norms,
            clip: verdict.clip,
            loss_scale: plain * f64::from(verdict.scale_before),
            next_loss_scale: plain * f64::from(verdict.scale),
            skips: verdict.bad,
            first_non_finite,
        });
        Ok(report)
    }

    /// Takes in the verdicts that have arrived; with `wait`, at least one if any is pending.
    fn collect(&mut self, mut wait: bool) -> Result<()> {
        while !self.pending.is_empty() {
            let verdict = self.engine.verdict(wait);
            if verdict == Err(Error::StepLost) {
                self.pending.pop_front();
            }
            let Some(verdict) = verdict? else { return Ok(()) };
            wait = false;
            let Some(PendingStep { mut rates, first, present }) = self.pending.pop_front() else { return Ok(()) };
            let variant = verdict.applied.wrapping_sub(low_bits(first)) as usize;
            if verdict.skip.is_none() {
                for (updated, present) in self.updated.iter_mut().zip(present) {
                    *updated |= present;
                }
            }
            if variant >= rates.len() {
                let (what, expected) = ("a step that ran out of turn", "submit encoders in the order of their steps");
                return Err(Error::State { what, expected });
            }
            let report = self.conclude(rates.swap_remove(variant), Some(verdict))?;
            self.reports.push_back(report);
            if self.reports.len() > MOST_REPORTS {
                self.reports.pop_front();
            }
        }
        Ok(())
    }

    /// Has the device tell what it is done with, without waiting.
    fn poll(&mut self) -> Result<()> {
        if self.pending.is_empty() { Ok(()) } else { self.engine.poll() }
    }

    /// Waits until nothing is pending.
    fn settle(&mut self) -> Result<()> {
        while !self.pending.is_empty() {
            self.collect(true)?;
        }
        Ok(())
    }

    /// The same before a step that cannot be made else. One that is recorded does not wait.
    fn settle_before(&mut self, recorded: bool) -> Result<()> {
        if recorded && !self.pending.is_empty() {
            let (what, expected) = (
                "recording a step whose numbers depend on pending verdicts",
                "submit what has been recorded and take its reports first",
            );
            return Err(Error::State { what, expected });
        }
        self.settle()
    }

    /// The report of the oldest step that was [`Pending`](Outcome::Pending) and has not been reported; `None` if the device is not done
    /// with it, or there is none. Does not wait. The last 1,024 are kept.
    ///
    /// # Errors
    /// A device that fails; [`Error::TooManySkips`].
    pub fn try_report(&mut self) -> Result<Option<StepReport>> {
        self.poll()?;
        self.collect(false)?;
        Ok(self.reports.pop_front())
    }

    /// As [`try_report`](Self::try_report), but waits for the device: `None` only if no step is pending or unreported.
    ///
    /// # Errors
    /// As [`try_report`](Self::try_report).
    pub fn wait_report(&mut self) -> Result<Option<StepReport>> {
        self.collect(self.reports.is_empty())?;
        Ok(self.reports.pop_front())
    }

    /// The loss scale for the next step: what to multiply the loss with. Waits for the device if a step is pending.
    ///
    /// # Errors
    /// As [`try_report`](Self::try_report).
    pub fn loss_scale(&mut self) -> Result<f64> {
        self.settle()?;
        Ok(self.settings.loss_scale.plain() * f64::from(self.scale))
    }

    /// The dynamic loss scale in the device's memory, one `f32`, for kernels that compute gradients there: it is always that of the
    /// next step to be submitted, without waiting. Ask again after adding a group, moving rows, or loading a state
    /// when a load or step had broken off half way: the state is in other memory then.
    /// `None` on a backend that decides on the host.
    #[must_use]
    pub fn loss_scale_memory(&self) -> Option<&dyn crate::DeviceMemory> {
        self.engine.loss_scale_memory()
    }

    /// The parameters, in the order in which a step expects their memory.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The rule of groups that have none of their own.
    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The groups with everything inherited; one without a name if there were none.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The rule of a parameter.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is no such parameter.
    pub fn rule_of(&self, parameter: &str) -> Result<&Rule> {
        Ok(self.groups[self.tensors[self.index(parameter)?].group].rule())
    }

    /// The backend in use.
    #[must_use]
    pub fn backend(&self) -> &(dyn Backend + 'static) {
        &*self.backend
    }

    /// The number of updates applied, without those whose report is pending.
    #[must_use]
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// A copy of one state array as `f32`, by the parameter's and the slot's name (`moment1`, …). Waits for the device.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name there is not; what reading from the device returns.
    pub fn slot(&self, parameter: &str, slot: &str) -> Result<Vec<f32>> {
        let index = self.index(parameter)?;
        let slots = self.slots_of(index);
        let nth = find("slot", slots.iter().map(|s| s.name), slot)?;
        self.read_slot(index, nth, &slots[nth])
    }

    /// A copy of a parameter's average. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name there is not; [`Error::State`] without averages, or before the first step; what reading from
    /// the device returns.
    pub fn average(&self, parameter: &str) -> Result<Vec<f32>> {
        let index = self.index(parameter)?;
        if self.ema.is_none() || !self.seeded[index] {
            let (what, expected) = ("an average", "build with `ema` and do a step first");
            return Err(Error::State { what, expected });
        }
        self.read_f32(index, Part::Ema, self.parameters[index].len())
    }

    /// The position of a parameter.
    fn index(&self, parameter: &str) -> Result<usize> {
        find("parameter", self.parameters.iter().map(Parameter::name), parameter)
    }

    fn slots_of(&self, parameter: usize) -> Vec<Slot> {
        self.groups[self.tensors[parameter].group].rule().spec().slots()
    }

    fn read_f32(&self, parameter: usize, part: Part, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0_f32; len];
        self.engine.read(parameter, part, 0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    fn read_slot(&self, parameter: usize, nth: usize, slot: &Slot) -> Result<Vec<f32>> {
        let tensor = &self.tensors[parameter];
        let (len, from) = (slot.shape.len(tensor.parameter.shape()), tensor.slot_format(slot));
        if from == SlotFormat::F32 {
            return self.read_f32(parameter, Part::Slot(nth), len);
        }
        let mut bytes = vec![0; len * state::element_of(from).size()];
        self.engine.read(parameter, Part::Slot(nth), 0, &mut bytes)?;
        let mut scales = Vec::new();
        if matches!(from, SlotFormat::Block8(_)) {
            scales.resize(len.div_ceil(format::BLOCK) * size_of::<f32>(), 0);
            self.engine.read(parameter, Part::Scales(nth), 0, &mut scales)?;
        }
        let mut values = Vec::with_capacity(len);
        state::decode(from, &bytes, &scales, &mut values);
        Ok(values)
    }

    /// Checks counts, lengths and types; whether every parameter has a gradient of the caller's with a value for each element.
    fn check_memory(&self, params: &[ParamMut<'_>], grads: &[Grad<'_>]) -> Result<bool> {
        let count = self.sizes.len();
        let dense = params.len() == count
            && grads.len() == count
            && self.sizes.iter().zip(params).zip(grads).all(|((&(len, dtype), param), grad)| match (param, grad) {
                (ParamMut::F32(p), Grad::F32(g)) => dtype == DType::F32 && p.len() == len && g.len() == len,
                (_, Grad::None | Grad::Rows(..) | Grad::Accumulated) => false,
                _ => param.len() == len && param.dtype() == dtype && grad.len() == Some(len),
            });
        if !dense {
            self.check_params(params)?;
            self.check_grads(grads)?;
        }
        Ok(dense)
    }

    fn check_params(&self, params: &[ParamMut<'_>]) -> Result<()> {
        let expected = self.parameters.len();
        if params.len() != expected {
            return Err(Error::Count { what: "parameter", expected, got: params.len() });
        }
        for (parameter, param) in self.parameters.iter().zip(params) {
            let (what, name) = ("parameter", || parameter.name().to_owned());
            if param.len() != parameter.len() {
                return Err(Error::Length { what, name: name(), expected: parameter.len(), got: param.len() });
            }
            if param.dtype() != parameter.dtype() {
                let (expected, got) = (parameter.dtype(), param.dtype());
                return Err(Error::DType { what, name: name(), expected, got });
            }
        }
        Ok(())
    }

    fn check_grads(&self, grads: &[Grad<'_>]) -> Result<()> {
        let expected = self.parameters.len();
        if grads.len() != expected {
            return Err(Error::Count { what: "gradient", expected, got: grads.len() });
        }
        for (index, (parameter, grad)) in self.parameters.iter().zip(grads).enumerate() {
            let (expected, rows) = match grad {
                Grad::Rows(indices, _) => (self.check_rows(index, indices)?, Some(indices.len())),
                _ => (parameter.len(), None),
            };
            if let Some(got) = grad.len().filter(|&len| len != expected) {
                let name = parameter.name().to_owned();
                return Err(match rows {
                    Some(rows) => Error::RowLength { name, rows, expected, got },
                    None => Error::Length { what: "gradient", name, expected, got },
                });
            }
        }
        Ok(())
    }

    /// Checks the rows of a row-sparse gradient; how many values it should have.
    fn check_rows(&self, index: usize, indices: &[u32]) -> Result<usize> {
        let (parameter, tensor) = (&self.parameters[index], &self.tensors[index]);
        let (name, rule) = (parameter.name(), self.groups[tensor.group].rule().spec());
        let unsupported = |what| Err(Error::Unsupported { what, backend: self.backend.name().into() });
        let [rows, row @ ..] = parameter.shape() else {
            return unsupported(format!("a row-sparse gradient for the scalar {name:?}"));
        };
        if rule.sparse() == Sparse::Unsupported {
            return Err(Error::RowSparse { name: name.into(), rule: rule.name() });
        }
        if self.settings.units.is_some() || self.classes[self.class_of[index]].centralized {
            let what = format!("a row-sparse gradient ({name:?}) with centralization or adaptive clipping");
            return unsupported(what);
        }
        let in_blocks = |slot: &Slot| matches!(tensor.slot_format(slot), SlotFormat::Block8(_));
        if tensor.state == StateDType::Block8 && rule.slots().iter().any(in_blocks) {
            return unsupported(format!("a row-sparse gradient ({name:?}) with 8-bit state"));
        }
        if let Some(&index) = indices.iter().find(|&&index| index as usize >= *rows) {
            return Err(Error::RowIndex { name: name.into(), index, rows: *rows });
        }
        Ok(indices.len() * row.iter().product::<usize>())
    }

    /// The rows of the row-sparse gradients, in order.
    fn fill_rows(&mut self, grads: &[Grad<'_>]) {
        let lists_rows = grads.iter().any(|grad| matches!(grad, Grad::Rows(..)));
        if !lists_rows && !self.lists_rows {
            return;
        }
        self.lists_rows = lists_rows;
        for (rows, grad) in self.rows.iter_mut().zip(grads) {
            match grad {
                Grad::Rows(indices, _) => rows.set(indices),
                _ => rows.clear(),
            }
        }
    }

    /// Flags the parameters whose masters and averages have not been set from their memory. It is done once a step has followed.
    fn find_seeds(&mut self) {
        if all(&self.seeded) {
            return self.flags.fill(false);
        }
        for ((flag, seeded), tensor) in self.flags.iter_mut().zip(&self.seeded).zip(&self.tensors) {
            *flag = !seeded && tensor.needs_seed();
        }
    }

    /// Sets masters and averages of flagged parameters.
    fn seed(&mut self, params: &mut [ParamMut<'_>]) -> Result<()> {
        if any(&self.flags) {
            self.engine.seed(&self.flags, params)?;
        }
        Ok(())
    }

    /// Sorts the parameters into classes.
    fn classify(&mut self) {
        self.groups.iter_mut().for_each(|group| group.is_empty = true);
        self.tensors.iter().for_each(|tensor| self.groups[tensor.group].is_empty = false);
        self.classes.clear();
        self.class_of.clear();
        self.sizes.clear();
        self.sizes.extend(self.parameters.iter().map(|parameter| (parameter.len(), parameter.dtype())));
        for (index, tensor) in self.tensors.iter().enumerate() {
            let group = &self.groups[tensor.group];
            let rule = group.rule();
            let spec = rule.spec();
            // What a first walk finds out about a parameter stands in its record, so it cannot share one.
            let apart =
                spec.has_trust() || spec.passes() != Passes::Elementwise || self.settings.scope() == Clip::Parameter;
            let class = Class {
                group: tensor.group,
                decays: self.decays[index],
                centralized: group.grad_centralization().applies(rule, tensor.parameter.shape()),
                scale: self.scales[index],
                parameter: apart.then_some(index),
            };
            // Neighbours are often alike; parameters apart are like no other.
            let known = if apart { None } else { self.classes.iter().rposition(|known| *known == class) };
            self.class_of.push(known.unwrap_or(self.classes.len()));
            if known.is_none() {
                self.classes.push(class);
            }
        }
    }

    /// The records of the coming update, and of each later one that it may be: how many one update has.
    fn make_records(&mut self, weight: f64) -> Result<usize> {
        self.records.clear();
        self.later_rates.clear();
        self.ahead.clone_from(&self.paces);
        let mut records = 0;
        for later in 0..=self.pending.len() {
            let update = self.step + later as u64;
            for (rule, group) in self.rules.iter_mut().zip(&self.groups) {
                vary(group, rule, update)?;
            }
            if later > 0 {
                self.later_rates.push(vec![0.0; self.groups.len()].into());
            } else if Arc::get_mut(&mut self.rates).is_none_or(|rates| rates.len() != self.groups.len()) {
                // A caller still holds an earlier report.
                self.rates = vec![0.0; self.groups.len()].into();
            }
            let rates = if later > 0 { &mut self.later_rates[later - 1] } else { &mut self.rates };
            let rates = Arc::get_mut(rates).map_or(&mut [][..], |rates| rates);
            for ((rate, group), rule) in rates.iter_mut().zip(&self.groups).zip(&self.rules) {
                *rate = match group.lr_at(rule, update) {
                    Err(_) if group.is_empty => 0.0,
                    rate => rate?,
                };
            }
            let rates = if later > 0 { Arc::clone(&self.later_rates[later - 1]) } else { Arc::clone(&self.rates) };
            for index in 0..self.classes.len() {
                self.push_records(index, update, &rates, weight)?;
            }
            if later == 0 {
                records = self.records.len();
            }
            for ((pace, rule), &rate) in self.ahead.iter_mut().zip(&self.rules).zip(&*rates) {
                *pace = pace.next(rule, rate);
            }
        }
        Ok(records)
    }

    /// The records of one class: one, and a second one for first updates where they differ.
    fn push_records(&mut self, class: usize, update: u64, rates: &[f64], weight: f64) -> Result<()> {
        let class = self.classes[class];
        let (group, rule) = (&self.groups[class.group], self.rules[class.group].spec());
        let pace = self.ahead[class.group];
        let decay = if class.decays { group.decay_at(update)? } else { 0.0 };
        let (l2, decoupled) = match rule.decay() {
            Decay::L2 if rule.has_trust() => (0.0, 0.0),
            Decay::L2 => (decay, 0.0),
            Decay::Decoupled => (0.0, decay),
        };
        let settings = &self.settings;
        let shaping = Shaping {
            factor: single(1.0 / (settings.loss_scale.plain() * weight)),
            weight_decay: single(l2),
            limit: settings.limit.map_or(0.0, single),
            flags: if class.centralized { Shaping::CENTRALIZE } else { 0 },
        };
        let (units, units_epsilon) =
            settings.units.map_or((0.0, 0.0), |(lambda, epsilon)| (single(lambda), single(epsilon)));
        let owner = match settings.scope() {
            Clip::Global => 0,
            Clip::Group => class.group,
            Clip::Parameter => class.parameter.unwrap_or_default(),
        };
        let stages = Stages {
            step: low_bits(update + 1),
            ema: self.ema.map_or(0.0, |ema| single(ema.weight(update + 1))),
            max_norm: single(group.max_norm),
            owner: u32::try_from(owner).expect("fewer than 2^32 parameters"),
            units,
            units_epsilon,
            pad: [0; 2],
        };
        let lr = class.scale * rates[class.group];
        if !single(lr).is_finite() {
            let (what, place) = ("learning rate", group.place.clone());
            return Err(Error::RateNotFinite { what, place, update, got: lr });
        }
        let previous_lr = if pace.previous_lr.is_nan() { lr } else { class.scale * pace.previous_lr };
        let betas = rule.betas().map(single);
        let beta_powers = [0, 1].map(|nth| f64::from(pace.beta_powers[nth] * betas[nth]));
        let dynamic_lr = matches!(group.lr(), Rate::List(_) | Rate::Schedule(_));
        for &first in firsts(rule) {
            let at = At { t: update + 1, lr, previous_lr, weight_decay: decoupled, beta_powers, dynamic_lr, first };
            let trust = class.parameter.and_then(|index| rule.trust(&self.parameters[index], &at, decay));
            let trust = trust.unwrap_or(Trust::NONE);
            self.records.push(Record { shaping, trust, stages, scalars: rule.scalars(&at) });
        }
        Ok(())
    }

    /// Tells each parameter its record. `dense`: every parameter has a gradient.
    fn assign_records(&mut self, grads: &[Grad<'_>], dense: bool) {
        self.starts.clear();
        let mut start = 0;
        for class in &self.classes {
            let records = firsts(self.rules[class.group].spec()).len();
            self.starts.push((start, records > 1));
            start += records;
        }
        if let [(start, false)] = self.starts[..]
            && dense
            && !any(&self.frozen)
        {
            return self.record_of.fill(u32::try_from(start).expect("fewer than 2^32 records"));
        }
        for (index, record) in self.record_of.iter_mut().enumerate() {
            if self.frozen[index] || grads[index].is_none() {
                *record = FROZEN;
                continue;
            }
            let (start, differs) = self.starts[self.class_of[index]];
            let place = start + usize::from(differs && !self.updated[index]);
            *record = u32::try_from(place).expect("fewer than 2^32 records");
        }
    }
}

impl Pace {
    /// After an update with this rule and rate.
    fn next(self, rule: &Rule, rate: f64) -> Self {
        let [beta1, beta2] = rule.spec().betas().map(single);
        Self { beta_powers: [self.beta_powers[0] * beta1, self.beta_powers[1] * beta2], previous_lr: rate }
    }
}

/// Whether updates of a parameter are computed with the numbers of a first one, of another or of both.
fn firsts(rule: &dyn crate::rule::UpdateRule) -> &'static [bool] {
    if rule.first_update_differs() { &[false, true] } else { &[false] }
}

/// Changes a group's rule to what it is at the 0-based update.
fn vary(group: &Group, rule: &mut Rule, update: u64) -> Result<()> {
    if group.varies.is_empty() || group.is_empty {
        return Ok(());
    }
    rule.clone_from(group.rule());
    for edit in &group.varies {
        let _ = edit(rule, update);
    }
    rule.spec().validate().map_err(|error| error.placed(&format!("{} at update {update}: ", group.place)))?;
    check_vary(&group.place, group.rule(), rule)
}

/// Whether all flags are set. All are looked at, so that many are at once.
fn all(flags: &[bool]) -> bool {
    flags.iter().fold(true, |all, &flag| all & flag)
}

/// Whether a flag is set; as [`all`].
fn any(flags: &[bool]) -> bool {
    flags.iter().fold(false, |any, &flag| any | flag)
}

/// Accumulated gradients have a step of their own.
fn refuse_accumulated(grads: &[Grad<'_>]) -> Result<()> {
    if grads.iter().any(|grad| matches!(grad, Grad::Accumulated)) {
        let (what, expected) = ("an accumulated gradient", "call `step_accumulated`");
        return Err(Error::State { what, expected });
    }
    Ok(())
}

/// The numbers of a dynamic loss scale.
fn scaler(loss_scale: &LossScale) -> Option<Scaler> {
    match loss_scale {
        LossScale::Plain(_) | LossScale::Fixed(_) => None,
        LossScale::Dynamic(dynamic) => Some(Scaler {
            factor: single(dynamic.scale_factor),
            window: dynamic.scale_window,
            floor: single(dynamic.floor),
            cap: single(dynamic.cap),
        }),
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
const fn low_bits(x: u64) -> u32 {
    x as u32
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
