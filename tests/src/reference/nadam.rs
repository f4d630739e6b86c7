//! NAdam, as PyTorch documents it.

use super::{Judge, Now};

pub(super) struct NAdam {
    config: optimizers::NAdam,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl NAdam {
    pub(super) fn new(config: &optimizers::NAdam, len: usize) -> Self {
        Self { config: config.clone(), mean: vec![0.0; len], square: vec![0.0; len] }
    }

    fn momentum(&self, t: u64) -> f64 {
        self.config.beta1 * (1.0 - 0.5 * 0.96_f64.powf(t as f64 * self.config.momentum_decay))
    }
}

impl Judge for NAdam {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        let optimizers::NAdam { beta1, beta2, eps, .. } = self.config;
        let (momentum, next) = (self.momentum(now.t), self.momentum(now.t + 1));
        let product: f64 = (1..=now.t).map(|t| self.momentum(t)).product();
        for i in 0..p.len() {
            p[i] *= 1.0 - now.lr * now.weight_decay;
            self.mean[i] = beta1 * self.mean[i] + (1.0 - beta1) * g[i];
            self.square[i] = beta2 * self.square[i] + (1.0 - beta2) * g[i] * g[i];
            let root = (self.square[i] / (1.0 - beta2.powf(now.t as f64))).sqrt();
            let ahead = next / (1.0 - product * next) * self.mean[i];
            p[i] -= now.lr * ((1.0 - momentum) / (1.0 - product) * g[i] + ahead) / (root + eps);
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("moment1", &self.mean), ("moment2", &self.square)]
    }

    fn decoupled(&self) -> bool {
        self.config.decoupled_weight_decay
    }
}
