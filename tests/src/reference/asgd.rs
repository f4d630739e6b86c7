//! Averaged SGD, as PyTorch and MindSpore document it, for a rate that never changes. They keep `eta` and `mu` as state; the
//! library counts the optimizer's updates and not a parameter's, so here both follow from the count.

use super::{Judge, Now};

pub(super) struct Asgd {
    lambd: f64,
    alpha: f64,
    t0: f64,
    updated: bool,
    average: Vec<f64>,
}

impl Asgd {
    pub(super) fn new(config: &optimizers::Asgd, len: usize) -> Self {
        let optimizers::Asgd { lambd, alpha, t0, .. } = *config;
        Self { lambd, alpha, t0, updated: false, average: vec![0.0; len] }
    }
}

impl Judge for Asgd {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        // What the update before left behind.
        let before = now.t as f64 - 1.0;
        let eta = now.lr / (1.0 + self.lambd * now.lr * before).powf(self.alpha);
        let mu = 1.0 / (before - self.t0).max(1.0);
        for i in 0..p.len() {
            p[i] = p[i] * (1.0 - self.lambd * eta) - eta * g[i];
            if self.updated && mu != 1.0 {
                self.average[i] += mu * (p[i] - self.average[i]);
            } else {
                self.average[i] = p[i];
            }
        }
        self.updated = true;
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("ax", &self.average)]
    }
}
