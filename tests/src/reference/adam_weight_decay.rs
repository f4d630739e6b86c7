//! BERT's Adam: no bias correction, a decoupled decay.

use super::{Judge, Now, single};

pub(super) struct AdamWeightDecay {
    beta1: f64,
    beta2: f64,
    eps: f64,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl AdamWeightDecay {
    pub(super) fn new(config: &optimizers::AdamWeightDecay, len: usize) -> Self {
        Self {
            beta1: single(config.beta1),
            beta2: single(config.beta2),
            eps: single(config.eps),
            mean: vec![0.0; len],
            square: vec![0.0; len],
        }
    }
}

impl Judge for AdamWeightDecay {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        for i in 0..p.len() {
            self.mean[i] = self.beta1 * self.mean[i] + (1.0 - self.beta1) * g[i];
            self.square[i] = self.beta2 * self.square[i] + (1.0 - self.beta2) * g[i] * g[i];
            p[i] -= now.lr * (self.mean[i] / (self.square[i].sqrt() + self.eps) + now.weight_decay * p[i]);
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("moment1", &self.mean), ("moment2", &self.square)]
    }

    fn decoupled(&self) -> bool {
        true
    }
}
