//! Adam, in the order of section 2 of the paper ("at the expense of clarity"), where epsilon meets the uncorrected root; and
//! PyTorch's, which is the paper's algorithm 1. Also the judge of `LazyAdam` and `AdamOffload`.

use super::{Judge, Now, single};

pub(super) struct Adam {
    beta1: f64,
    beta2: f64,
    eps: f64,
    nesterov: bool,
    amsgrad: bool,
    torch: bool,
    mean: Vec<f64>,
    square: Vec<f64>,
    largest: Vec<f64>,
}

impl Adam {
    pub(super) fn new(config: &optimizers::Adam, len: usize) -> Self {
        let torch = config.corrected_eps;
        let (beta1, beta2) =
            if torch { (config.beta1, config.beta2) } else { (single(config.beta1), single(config.beta2)) };
        let (nesterov, amsgrad) = (config.use_nesterov, config.use_amsgrad);
        let (mean, square, largest) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        Self { beta1, beta2, eps: single(config.eps), nesterov, amsgrad, torch, mean, square, largest }
    }

    pub(super) fn lazy(config: &optimizers::LazyAdam, len: usize) -> Self {
        let optimizers::LazyAdam { beta1, beta2, eps, use_nesterov, .. } = *config;
        Self::new(&optimizers::Adam { beta1, beta2, eps, use_nesterov, ..optimizers::Adam::default() }, len)
    }

    pub(super) fn offload(config: &optimizers::AdamOffload, len: usize) -> Self {
        let optimizers::AdamOffload { beta1, beta2, eps, use_nesterov, .. } = *config;
        Self::new(&optimizers::Adam { beta1, beta2, eps, use_nesterov, ..optimizers::Adam::default() }, len)
    }

    /// 1 − β₁ᵗ and 1 − β₂ᵗ.
    fn corrections(&self, t: u64) -> (f64, f64) {
        let (mut beta1_power, mut beta2_power) = (1.0, 1.0);
        for _ in 0..t {
            beta1_power *= self.beta1;
            beta2_power *= self.beta2;
            if !self.torch {
                // MindSpore multiplies the powers up in f32, and so they are part of the rule.
                (beta1_power, beta2_power) = (single(beta1_power), single(beta2_power));
            }
        }
        (1.0 - beta1_power, 1.0 - beta2_power)
    }
}

impl Judge for Adam {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        let (correction1, correction2) = self.corrections(now.t);
        for i in 0..p.len() {
            self.mean[i] = self.beta1 * self.mean[i] + (1.0 - self.beta1) * g[i];
            self.square[i] = self.beta2 * self.square[i] + (1.0 - self.beta2) * g[i] * g[i];
            self.largest[i] = self.largest[i].max(self.square[i]);
            let mut mean = self.mean[i];
            if self.nesterov {
                mean = self.beta1 * mean + (1.0 - self.beta1) * g[i];
            }
            let square = if self.amsgrad { self.largest[i] } else { self.square[i] };
            if self.torch {
                p[i] -= now.lr * (mean / correction1) / ((square / correction2).sqrt() + self.eps);
            } else {
                let rate = now.lr * correction2.sqrt() / correction1;
                p[i] -= rate * mean / (square.sqrt() + self.eps);
            }
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        let mut slots: Vec<(_, &[f64])> = vec![("moment1", &self.mean), ("moment2", &self.square)];
        if self.amsgrad {
            slots.push(("vhat", &self.largest));
        }
        slots
    }
}
