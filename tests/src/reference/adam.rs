//! Adam, in the order of section 2 of the paper ("at the expense of clarity"), where epsilon meets the uncorrected root.

use super::{Judge, Now, single};

pub(super) struct Adam {
    beta1: f64,
    beta2: f64,
    eps: f64,
    nesterov: bool,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl Adam {
    pub(super) fn new(config: &optimizers::Adam, len: usize) -> Self {
        Self {
            beta1: single(config.beta1),
            beta2: single(config.beta2),
            eps: single(config.eps),
            nesterov: config.use_nesterov,
            mean: vec![0.0; len],
            square: vec![0.0; len],
        }
    }
}

impl Judge for Adam {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        // MindSpore multiplies the powers up in f32, and so they are part of the rule.
        let (mut beta1_power, mut beta2_power) = (1.0, 1.0);
        for _ in 0..now.t {
            beta1_power = single(beta1_power * self.beta1);
            beta2_power = single(beta2_power * self.beta2);
        }
        for i in 0..p.len() {
            self.mean[i] = self.beta1 * self.mean[i] + (1.0 - self.beta1) * g[i];
            self.square[i] = self.beta2 * self.square[i] + (1.0 - self.beta2) * g[i] * g[i];
            let mut mean = self.mean[i];
            if self.nesterov {
                mean = self.beta1 * mean + (1.0 - self.beta1) * g[i];
            }
            let rate = now.lr * (1.0 - beta2_power).sqrt() / (1.0 - beta1_power);
            p[i] -= rate * mean / (self.square[i].sqrt() + self.eps);
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("moment1", &self.mean), ("moment2", &self.square)]
    }
}
