//! AdamW, as PyTorch documents it.

use super::{Judge, Now};

pub(super) struct AdamW {
    beta1: f64,
    beta2: f64,
    eps: f64,
    amsgrad: bool,
    mean: Vec<f64>,
    square: Vec<f64>,
    largest: Vec<f64>,
}

impl AdamW {
    pub(super) fn new(config: &optimizers::AdamW, len: usize) -> Self {
        let (mean, square, largest) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        let optimizers::AdamW { beta1, beta2, eps, amsgrad, .. } = *config;
        Self { beta1, beta2, eps, amsgrad, mean, square, largest }
    }
}

impl Judge for AdamW {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        let t = now.t as f64;
        for i in 0..p.len() {
            p[i] *= 1.0 - now.lr * now.weight_decay;
            self.mean[i] = self.beta1 * self.mean[i] + (1.0 - self.beta1) * g[i];
            self.square[i] = self.beta2 * self.square[i] + (1.0 - self.beta2) * g[i] * g[i];
            self.largest[i] = self.largest[i].max(self.square[i]);
            let square = if self.amsgrad { self.largest[i] } else { self.square[i] };
            let mean = self.mean[i] / (1.0 - self.beta1.powf(t));
            let square = square / (1.0 - self.beta2.powf(t));
            p[i] -= now.lr * mean / (square.sqrt() + self.eps);
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        let mut slots: Vec<(_, &[f64])> = vec![("moment1", &self.mean), ("moment2", &self.square)];
        if self.amsgrad {
            slots.push(("vhat", &self.largest));
        }
        slots
    }

    fn decoupled(&self) -> bool {
        true
    }
}
