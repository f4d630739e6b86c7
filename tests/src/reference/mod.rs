//! The judge: every rule as its textbook writes it, in naive `f64` loops, one file a rule.
//!
//! It shares no code with the library. It takes from a rule's config the hyper-parameters, and from the library's contract
//! that they are rounded to `f32` first, as MindSpore stores them.
#![allow(clippy::needless_range_loop, reason = "the loops count elements, as the textbook's subscripts do")]

mod adam;
mod lamb;
mod lars;
mod momentum;
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
    /// The decay of a rule that decouples it.
    pub weight_decay: f64,
}

/// The judge of a rule for a tensor of this shape. No `_` arm: the compiler asks for a new rule's judge.
#[must_use]
pub fn judge(rule: &Rule, shape: &[usize]) -> Box<dyn Judge> {
    let len = shape.iter().product();
    match rule {
        Rule::Sgd(config) => Box::new(sgd::Sgd::new(config, len)),
        Rule::Momentum(config) => Box::new(momentum::Momentum::new(config, len)),
        Rule::Adam(config) => Box::new(adam::Adam::new(config, len)),
        Rule::Lamb(config) => Box::new(lamb::Lamb::new(config, len)),
        Rule::Lars(config) => Box::new(lars::Lars::new(config, judge(&config.inner, shape))),
        Rule::Custom(own) => unreachable!("nobody judges {own:?}, a rule of the user's own"),
    }
}

/// Trains a problem by the judge. The second run holds, for every number of the first, how large what it was computed from
/// has been: the scale to which rounding errors are proportional. That is
///
/// - for a parameter `max |p| + t · max |Δp|`, for a slot `max |s|`, of this element over all steps;
/// - plus what one more rounding of every decayed gradient and of every update does to it. Where decay and gradient nearly
///   cancel, that is much.
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
        let mut longest_move = vec![0.0_f64; exact.p.len()];
        let mut updates = 0.0;
        for (step, gradients) in (1..).zip(&problem.gradients) {
            let Some(gradient) = &gradients[index] else { continue };
            let (lr, weight_decay) = setup.groups[setup.group_of(index)];
            let now = Now { t: step, lr, weight_decay };
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
                largest[i] + shaken / UNIT
            });
            scales.push(Array::new(&name, scale.collect()));
            values.push(Array::new(&name, value));
        }
    }
    (Run::new("judge", values), Run::new("judge's scale", scales))
}

/// Ways in which roundings may conspire: upwards, downwards, away from zero.
const SHAKES: [fn(f64) -> f64; 3] = [|_| UNIT, |_| -UNIT, |g| UNIT.copysign(g)];

/// One tensor in training.
struct Trainee {
    judge: Box<dyn Judge>,
    p: Vec<f64>,
}

impl Trainee {
    fn new(judge: Box<dyn Judge>, p: Vec<f64>) -> Self {
        Self { judge, p }
    }

    /// One update, with a relative error of `shake` in both terms of the decayed gradient and in the step of the parameter.
    fn step(&mut self, gradient: &[f32], loss_scale: f64, now: &Now, shake: fn(f64) -> f64) {
        let l2 = if self.judge.decoupled() { 0.0 } else { now.weight_decay };
        let mut g = vec![0.0; gradient.len()];
        for i in 0..g.len() {
            let (unscaled, decay) = (f64::from(gradient[i]) / loss_scale, l2 * self.p[i]);
            g[i] = unscaled + decay;
            g[i] += shake(g[i]) * (unscaled.abs() + decay.abs());
        }
        let before = self.p.clone();
        self.judge.step(&mut self.p, &g, now);
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
