//! Lion, as its paper's algorithm 2.

use super::{Judge, Now};

pub(super) struct Lion {
    beta1: f64,
    beta2: f64,
    mean: Vec<f64>,
}

impl Lion {
    pub(super) fn new(config: &optimizers::Lion, len: usize) -> Self {
        Self { beta1: config.beta1, beta2: config.beta2, mean: vec![0.0; len] }
    }
}

impl Judge for Lion {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        for i in 0..p.len() {
            let direction = self.beta1 * self.mean[i] + (1.0 - self.beta1) * g[i];
            // f64::signum knows no 0.
            let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
            p[i] -= now.lr * (sign + now.weight_decay * p[i]);
            self.mean[i] = self.beta2 * self.mean[i] + (1.0 - self.beta2) * g[i];
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("moment1", &self.mean)]
    }

    fn decoupled(&self) -> bool {
        true
    }
}
