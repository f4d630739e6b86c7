//! Proximal Adagrad, as MindSpore's kernels.

use super::{Judge, Now, single};

pub(super) struct ProximalAdagrad {
    l1: f64,
    l2: f64,
    accum: Vec<f64>,
}

impl ProximalAdagrad {
    pub(super) fn new(config: &optimizers::ProximalAdagrad, len: usize) -> Self {
        Self { l1: single(config.l1), l2: single(config.l2), accum: vec![single(config.accum); len] }
    }
}

impl Judge for ProximalAdagrad {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        for i in 0..p.len() {
            self.accum[i] += g[i] * g[i];
            if self.accum[i] > 0.0 {
                let rate = now.lr / self.accum[i].sqrt();
                let moved = p[i] - rate * g[i];
                p[i] = moved.signum() * (moved.abs() - rate * self.l1).max(0.0) / (1.0 + rate * self.l2);
            }
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("accum", &self.accum)]
    }
}
