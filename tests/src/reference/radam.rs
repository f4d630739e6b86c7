//! RAdam, as PyTorch documents it.

use super::{Judge, Now};

pub(super) struct RAdam {
    config: optimizers::RAdam,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl RAdam {
    pub(super) fn new(config: &optimizers::RAdam, len: usize) -> Self {
        Self { config: config.clone(), mean: vec![0.0; len], square: vec![0.0; len] }
    }
}

impl Judge for RAdam {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        let optimizers::RAdam { beta1, beta2, eps, .. } = self.config;
        let t = now.t as f64;
        let longest = 2.0 / (1.0 - beta2) - 1.0;
        let length = longest - 2.0 * t * beta2.powf(t) / (1.0 - beta2.powf(t));
        for i in 0..p.len() {
            p[i] *= 1.0 - now.lr * now.weight_decay;
            self.mean[i] = beta1 * self.mean[i] + (1.0 - beta1) * g[i];
            self.square[i] = beta2 * self.square[i] + (1.0 - beta2) * g[i] * g[i];
            let mean = self.mean[i] / (1.0 - beta1.powf(t));
            if length > 5.0 {
                let rectified = (length - 4.0) / (longest - 4.0) * (length - 2.0) / (longest - 2.0) * longest / length;
                let adaptive = (1.0 - beta2.powf(t)).sqrt() / (self.square[i].sqrt() + eps);
                p[i] -= now.lr * rectified.sqrt() * mean * adaptive;
            } else {
                p[i] -= now.lr * mean;
            }
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("moment1", &self.mean), ("moment2", &self.square)]
    }

    fn decoupled(&self) -> bool {
        self.config.decoupled_weight_decay
    }
}
