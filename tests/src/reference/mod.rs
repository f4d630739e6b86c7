//! The judge: every rule as its textbook writes it, in naive `f64` loops, one file a rule.
//!
//! It shares no code with the library. It takes from a rule's config the hyper-parameters, and from the library's contract
//! that MindSpore's are rounded to `f32` first, as it stores them; PyTorch's betas are not.
#![allow(clippy::needless_range_loop, reason = "the loops count elements, as the textbook's subscripts do")]

mod ada_factor;
mod ada_max;
mod adadelta;
mod adagrad;
mod adam;
mod adam_weight_decay;
mod adamw;
mod adan;
mod asgd;
mod ftrl;
mod lamb;
mod lars;
mod lion;
mod momentum;
mod nadam;
mod proximal_adagrad;
mod radam;
mod rms_prop;
mod rprop;
mod sgd;

use optimizers::Rule;

use crate::run::{Array, Run};
use crate::tolerance::UNIT;
use crate::{Problem, Setup};

/// One rule on one tensor: the judge keeps the state of each tensor by itself, in whatever shape the rule likes.
pub trait Judge {
    /// One update of the tensor from its gradient, which is already unscaled and has its L2 decay.
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now);

    /// The state by the names of the library's slots, in any order.
    fn slots(&self) -> Vec<(&'static str, &[f64])>;

    /// For slots that a subtraction makes: how large what was subtracted in the last update is, if the slot itself need not
    /// show it. Part of the slot's scale.
    fn subtracted(&self) -> Vec<(&'static str, &[f64])> {
        Vec::new()
    }

    /// Whether weight decay is the rule's own affair ([`Now::weight_decay`]) and not added to the gradient.
    fn decoupled(&self) -> bool {
        false
    }
}

/// The numbers of one update.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The optimizer's update, 1 for the first.
    pub t: u64,
    /// The rate.
    pub lr: f64,
    /// The decay, if the rule decouples it; else 0.
    pub weight_decay: f64,
    /// A relative error to make in what the rule then rounds coarsely: else that would hide what the kernels' own roundings do.
    /// 0 to be exact.
    pub shake: f64,
}

/// The judge of a rule for a tensor of this shape. No `_` arm: the compiler asks for a new rule's judge.
#[must_use]
pub fn judge(rule: &Rule, shape: &[usize]) -> Box<dyn Judge> {
    let len = shape.iter().product();
    match rule {
        Rule::Sgd(config) => Box::new(sgd::Sgd::new(config, len)),
        Rule::Momentum(config) => Box::new(momentum::Momentum::new(config, len)),
        Rule::Adam(config) => Box::new(adam::Adam::new(config, len)),
        Rule::AdamWeightDecay(config) => Box::new(adam_weight_decay::AdamWeightDecay::new(config, len)),
        Rule::AdamW(config) => Box::new(adamw::AdamW::new(config, len)),
        Rule::LazyAdam(config) => Box::new(adam::Adam::lazy(config, len)),
        Rule::AdamOffload(config) => Box::new(adam::Adam::offload(config, len)),
        Rule::AdaMax(config) => Box::new(ada_max::AdaMax::new(config, len)),
        Rule::NAdam(config) => Box::new(nadam::NAdam::new(config, len)),
        Rule::RAdam(config) => Box::new(radam::RAdam::new(config, len)),
        Rule::Lion(config) => Box::new(lion::Lion::new(config, len)),
        Rule::Adan(config) => Box::new(adan::Adan::new(config, len)),
        Rule::Adagrad(config) => Box::new(adagrad::Adagrad::new(config, len)),
        Rule::ProximalAdagrad(config) => Box::new(proximal_adagrad::ProximalAdagrad::new(config, len)),
        Rule::Ftrl(config) => Box::new(ftrl::Ftrl::new(config, len)),
        Rule::RmsProp(config) => Box::new(rms_prop::RmsProp::new(config, len)),
        Rule::Adadelta(config) => Box::new(adadelta::Adadelta::new(config, len)),
        Rule::Asgd(config) => Box::new(asgd::Asgd::new(config, len)),
        Rule::Rprop(config) => Box::new(rprop::Rprop::new(config, len)),
        Rule::AdaFactor(config) => Box::new(ada_factor::AdaFactor::new(config, shape)),
        Rule::Lamb(config) => Box::new(lamb::Lamb::new(config, len)),
        Rule::Lars(config) => Box::new(lars::Lars::new(config, judge(&config.inner, shape))),
        Rule::Custom(own) => unreachable!("nobody judges {own:?}, a rule of the user's own"),
    }
}

/// Trains a problem by the judge. The second run holds, for every number of the first, how large what it was computed from
/// has been: the scale to which rounding errors are proportional. That is
///
/// - for a parameter `max |p| + t · max |Δp|`, for a slot `max |s|`, of this element over all steps;
/// - for a slot that a subtraction makes, plus [`max |what was subtracted|`](Judge::subtracted);
/// - plus what one more rounding of every decayed gradient and of every update does to it. Where decay and gradient nearly
///   cancel, that is much; and where a sign hangs on a rounding (Lion, Rprop), it is all.
///
/// A purely relative error would not do: parameters and means of gradients cross zero.
#[must_use]
pub fn train(setup: &Setup, problem: &Problem) -> (Run, Run) {
    let (mut values, mut scales) = (Vec::new(), Vec::new());
    for (index, parameter) in problem.parameters.iter().enumerate() {
        let start: Vec<f64> = problem.start[index].iter().map(|&x| f64::from(x)).collect();
        let mut exact = Trainee::new(judge(&setup.rule, parameter.shape()), start.clone());
        let mut shaken = SHAKES.map(|_| Trainee::new(judge(&setup.rule, parameter.shape()), start.clone()));

        let mut largest = exact.numbers();
        largest.iter_mut().flatten().for_each(|x| *x = x.abs());
        let mut subtracted: Vec<_> = largest[1..].iter().map(|slot| vec![0.0_f64; slot.len()]).collect();
        let mut longest_move = vec![0.0_f64; exact.p.len()];
        let mut updates = 0.0;
        for (step, gradients) in (1..).zip(&problem.gradients) {
            let Some(gradient) = &gradients[index] else { continue };
            let (lr, weight_decay) = setup.groups[setup.group_of(index)];
            let now = Now { t: step, lr, weight_decay, shake: 0.0 };
            let before = exact.p.clone();
            exact.step(gradient, setup.loss_scale, &now, |_| 0.0);
            for (shaken, shake) in shaken.iter_mut().zip(SHAKES) {
                shaken.step(gradient, setup.loss_scale, &now, shake);
            }

            updates += 1.0;
            for i in 0..before.len() {
                longest_move[i] = longest_move[i].max((exact.p[i] - before[i]).abs());
            }
            for (largest, now) in largest.iter_mut().zip(exact.numbers()) {
                for i in 0..now.len() {
                    largest[i] = largest[i].max(now[i].abs());
                }
            }
            for (slot, now) in exact.judge.subtracted() {
                let slot = exact.judge.slots().iter().position(|(name, _)| *name == slot).expect("a slot's name");
                for i in 0..now.len() {
                    subtracted[slot][i] = subtracted[slot][i].max(now[i]);
                }
            }
        }
        for (largest, subtracted) in largest[1..].iter_mut().zip(&subtracted) {
            for i in 0..largest.len() {
                largest[i] += subtracted[i];
            }
        }
        for i in 0..longest_move.len() {
            largest[0][i] += updates * longest_move[i];
        }
        let slots = exact.judge.slots();
        let slots = slots.iter().map(|(slot, _)| format!("{}.{slot}", parameter.name()));
        let names = [parameter.name().to_owned()].into_iter().chain(slots);
        let shaken: Vec<_> = shaken.iter().map(Trainee::numbers).collect();
        for (k, ((name, value), largest)) in names.zip(exact.numbers()).zip(largest).enumerate() {
            let scale = (0..value.len()).map(|i| {
                let shaken = shaken.iter().map(|other| (other[k][i] - value[i]).abs()).fold(0.0, f64::max);
                largest[i] + shaken / SHAKE
            });
            scales.push(Array::new(&name, scale.collect()));
            values.push(Array::new(&name, value));
        }
    }
    (Run::new("judge", values), Run::new("judge's scale", scales))
}

/// How much is shaken: so many roundings may lie before a kernel takes a sign. What is smooth does not depend on it.
const SHAKE: f64 = 4.0 * UNIT;

/// Ways in which roundings may conspire: upwards, downwards, away from zero.
const SHAKES: [fn(f64) -> f64; 3] = [|_| SHAKE, |_| -SHAKE, |g| SHAKE.copysign(g)];

/// One tensor in training.
struct Trainee {
    judge: Box<dyn Judge>,
    p: Vec<f64>,
}

impl Trainee {
    fn new(judge: Box<dyn Judge>, p: Vec<f64>) -> Self {
        Self { judge, p }
    }

    /// One update, with a relative error of `shake` in both terms of the decayed gradient, in the step of the parameter and in
    /// what the rule rounds itself.
    fn step(&mut self, gradient: &[f32], loss_scale: f64, now: &Now, shake: fn(f64) -> f64) {
        let (l2, decoupled) = if self.judge.decoupled() { (0.0, now.weight_decay) } else { (now.weight_decay, 0.0) };
        let mut g = vec![0.0; gradient.len()];
        for i in 0..g.len() {
            let (unscaled, decay) = (f64::from(gradient[i]) / loss_scale, l2 * self.p[i]);
            g[i] = unscaled + decay;
            g[i] += shake(g[i]) * (unscaled.abs() + decay.abs());
        }
        let before = self.p.clone();
        self.judge.step(&mut self.p, &g, &Now { weight_decay: decoupled, shake: shake(1.0), ..*now });
        for i in 0..g.len() {
            let step = self.p[i] - before[i];
            self.p[i] += shake(step) * step.abs();
        }
    }

    /// The parameter, then the slots.
    fn numbers(&self) -> Vec<Vec<f64>> {
        let slots = self.judge.slots().into_iter().map(|(_, slot)| slot.to_vec());
        [self.p.clone()].into_iter().chain(slots).collect()
    }
}

/// A hyper-parameter as MindSpore stores it.
#[allow(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is the purpose")]
fn single(x: f64) -> f64 {
    f64::from(x as f32)
}
