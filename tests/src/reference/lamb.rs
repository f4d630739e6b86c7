//! LAMB, as MindSpore documents it.

use super::{Judge, Now, single};

pub(super) struct Lamb {
    beta1: f64,
    beta2: f64,
    eps: f64,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl Lamb {
    pub(super) fn new(config: &optimizers::Lamb, len: usize) -> Self {
        Self {
            beta1: single(config.beta1),
            beta2: single(config.beta2),
            eps: single(config.eps),
            mean: vec![0.0; len],
            square: vec![0.0; len],
        }
    }
}

impl Judge for Lamb {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        let (mut beta1_power, mut beta2_power) = (1.0, 1.0);
        for _ in 0..now.t {
            beta1_power *= self.beta1;
            beta2_power *= self.beta2;
        }
        let (mut p_squares, mut n_squares) = (0.0, 0.0);
        let mut update = vec![0.0; p.len()];
        for i in 0..p.len() {
            self.mean[i] = self.beta1 * self.mean[i] + (1.0 - self.beta1) * g[i];
            self.square[i] = self.beta2 * self.square[i] + (1.0 - self.beta2) * g[i] * g[i];
            let mean = self.mean[i] / (1.0 - beta1_power);
            let square = self.square[i] / (1.0 - beta2_power);
            let for_norm = mean / (square + self.eps).sqrt() + now.weight_decay * p[i];
            update[i] = mean / (square.sqrt() + self.eps) + now.weight_decay * p[i];
            p_squares += p[i] * p[i];
            n_squares += for_norm * for_norm;
        }
        let mut ratio = 1.0;
        if p_squares > 0.0 && n_squares > 0.0 {
            ratio = (p_squares.sqrt() / n_squares.sqrt()).min(10.0);
        }
        for i in 0..p.len() {
            p[i] -= now.lr * ratio * update[i];
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("moment1", &self.mean), ("moment2", &self.square)]
    }

    fn decoupled(&self) -> bool {
        true
    }
}
