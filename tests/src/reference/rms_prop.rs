//! RMSProp, as MindSpore documents it, and as PyTorch does.

use super::{Judge, Now, single};

pub(super) struct RmsProp {
    decay: f64,
    momentum: f64,
    epsilon: f64,
    centered: bool,
    eps_outside: bool,
    lr_outside: bool,
    square: Vec<f64>,
    mean: Vec<f64>,
    moment: Vec<f64>,
}

impl RmsProp {
    pub(super) fn new(config: &optimizers::RmsProp, len: usize) -> Self {
        Self {
            decay: if config.eps_outside && config.lr_outside { config.decay } else { single(config.decay) },
            momentum: single(config.momentum),
            epsilon: single(config.epsilon),
            centered: config.centered,
            eps_outside: config.eps_outside,
            lr_outside: config.lr_outside,
            square: vec![single(config.initial_ms); len],
            mean: vec![0.0; len],
            moment: vec![0.0; len],
        }
    }
}

impl Judge for RmsProp {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        for i in 0..p.len() {
            self.square[i] = self.decay * self.square[i] + (1.0 - self.decay) * g[i] * g[i];
            self.mean[i] = self.decay * self.mean[i] + (1.0 - self.decay) * g[i];
            let mut variance = self.square[i];
            if self.centered {
                variance -= self.mean[i] * self.mean[i];
            }
            let root = if self.eps_outside { variance.sqrt() + self.epsilon } else { (variance + self.epsilon).sqrt() };
            if self.lr_outside {
                self.moment[i] = self.momentum * self.moment[i] + g[i] / root;
                p[i] -= now.lr * self.moment[i];
            } else {
                self.moment[i] = self.momentum * self.moment[i] + now.lr * g[i] / root;
                p[i] -= self.moment[i];
            }
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        let mut slots: Vec<(_, &[f64])> = vec![("ms", &self.square)];
        if self.momentum != 0.0 {
            slots.push(("moment", &self.moment));
        }
        if self.centered {
            slots.push(("mg", &self.mean));
        }
        slots
    }
}
