//! Adan, as its authors' code.

use super::{Judge, Now};

pub(super) struct Adan {
    config: optimizers::Adan,
    mean: Vec<f64>,
    mean_difference: Vec<f64>,
    square: Vec<f64>,
    /// The gradient of the update before; `None` before the first.
    previous: Option<Vec<f64>>,
    zeros: Vec<f64>,
    /// What a difference was taken of.
    subtracted: Vec<f64>,
}

impl Adan {
    pub(super) fn new(config: &optimizers::Adan, len: usize) -> Self {
        let zeros = vec![0.0; len];
        Self {
            config: config.clone(),
            mean: zeros.clone(),
            mean_difference: zeros.clone(),
            square: zeros.clone(),
            previous: None,
            subtracted: zeros.clone(),
            zeros,
        }
    }
}

impl Judge for Adan {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        let optimizers::Adan { beta1, beta2, beta3, eps, no_prox, .. } = self.config;
        let t = now.t as f64;
        let previous = self.previous.take().unwrap_or_else(|| g.to_vec());
        for i in 0..p.len() {
            let difference = g[i] - previous[i];
            self.subtracted[i] = (1.0 - beta2) * previous[i].abs();
            self.mean[i] = beta1 * self.mean[i] + (1.0 - beta1) * g[i];
            self.mean_difference[i] = beta2 * self.mean_difference[i] + (1.0 - beta2) * difference;
            self.square[i] = beta3 * self.square[i] + (1.0 - beta3) * (g[i] + beta2 * difference).powi(2);
            let mean = self.mean[i] / (1.0 - beta1.powf(t));
            let mean_difference = self.mean_difference[i] / (1.0 - beta2.powf(t));
            let root = (self.square[i] / (1.0 - beta3.powf(t))).sqrt();
            let step = now.lr * (mean + beta2 * mean_difference) / (root + eps);
            p[i] = if no_prox {
                p[i] * (1.0 - now.lr * now.weight_decay) - step
            } else {
                (p[i] - step) / (1.0 + now.lr * now.weight_decay)
            };
        }
        self.previous = Some(g.to_vec());
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![
            ("moment1", &self.mean),
            ("moment_diff", &self.mean_difference),
            ("moment2", &self.square),
            ("prev", self.previous.as_ref().unwrap_or(&self.zeros)),
        ]
    }

    fn subtracted(&self) -> Vec<(&'static str, &[f64])> {
        vec![("moment_diff", &self.subtracted)]
    }

    fn decoupled(&self) -> bool {
        true
    }
}
