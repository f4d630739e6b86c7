//! AdaMax: section 7.1 of Adam's paper with MindSpore's epsilon in the division, or PyTorch's within the maximum.

use super::{Judge, Now, single};

pub(super) struct AdaMax {
    beta1: f64,
    beta2: f64,
    eps: f64,
    torch: bool,
    mean: Vec<f64>,
    largest: Vec<f64>,
}

impl AdaMax {
    pub(super) fn new(config: &optimizers::AdaMax, len: usize) -> Self {
        let torch = config.eps_inside;
        let (beta1, beta2) =
            if torch { (config.beta1, config.beta2) } else { (single(config.beta1), single(config.beta2)) };
        Self { beta1, beta2, eps: single(config.eps), torch, mean: vec![0.0; len], largest: vec![0.0; len] }
    }
}

impl Judge for AdaMax {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        let mut beta1_power = 1.0;
        for _ in 0..now.t {
            beta1_power *= self.beta1;
            if !self.torch {
                // As Adam's: a product in f32.
                beta1_power = single(beta1_power);
            }
        }
        for i in 0..p.len() {
            self.mean[i] = self.beta1 * self.mean[i] + (1.0 - self.beta1) * g[i];
            let rate = now.lr / (1.0 - beta1_power);
            if self.torch {
                self.largest[i] = (self.beta2 * self.largest[i]).max(g[i].abs() + self.eps);
                p[i] -= rate * self.mean[i] / self.largest[i];
            } else {
                self.largest[i] = (self.beta2 * self.largest[i]).max(g[i].abs());
                p[i] -= rate * self.mean[i] / (self.largest[i] + self.eps);
            }
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("moment1", &self.mean), ("moment2", &self.largest)]
    }
}
