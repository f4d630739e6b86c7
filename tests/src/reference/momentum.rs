//! Momentum, as MindSpore documents it.

use super::{Judge, Now, single};

pub(super) struct Momentum {
    momentum: f64,
    nesterov: bool,
    velocity: Vec<f64>,
}

impl Momentum {
    pub(super) fn new(config: &optimizers::Momentum, len: usize) -> Self {
        Self { momentum: single(config.momentum), nesterov: config.use_nesterov, velocity: vec![0.0; len] }
    }
}

impl Judge for Momentum {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        for i in 0..p.len() {
            self.velocity[i] = self.velocity[i] * self.momentum + g[i];
            if self.nesterov {
                p[i] -= g[i] * now.lr + self.velocity[i] * self.momentum * now.lr;
            } else {
                p[i] -= self.velocity[i] * now.lr;
            }
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("moments", &self.velocity)]
    }
}
