//! Adagrad, with MindSpore's switch and PyTorch's epsilon and decay of the rate.

use super::{Judge, Now, single};

pub(super) struct Adagrad {
    epsilon: f64,
    lr_decay: f64,
    update_slots: bool,
    accum: Vec<f64>,
}

impl Adagrad {
    pub(super) fn new(config: &optimizers::Adagrad, len: usize) -> Self {
        Self {
            epsilon: single(config.epsilon),
            lr_decay: single(config.lr_decay),
            update_slots: config.update_slots,
            accum: vec![single(config.accum); len],
        }
    }
}

impl Judge for Adagrad {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        let rate = now.lr / (1.0 + (now.t as f64 - 1.0) * self.lr_decay);
        for i in 0..p.len() {
            if self.update_slots {
                self.accum[i] += g[i] * g[i];
            }
            let root = self.accum[i].sqrt() + self.epsilon;
            if root > 0.0 {
                p[i] -= rate * g[i] / root;
            }
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("accum", &self.accum)]
    }
}
