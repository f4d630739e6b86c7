//! SGD, as PyTorch and MindSpore document it.

use super::{Judge, Now, single};

pub(super) struct Sgd {
    momentum: f64,
    dampening: f64,
    nesterov: bool,
    /// The velocity; `None` before the first update, which it starts from.
    accum: Option<Vec<f64>>,
    zeros: Vec<f64>,
}

impl Sgd {
    pub(super) fn new(config: &optimizers::Sgd, len: usize) -> Self {
        Self {
            momentum: single(config.momentum),
            dampening: single(config.dampening),
            nesterov: config.nesterov,
            accum: None,
            zeros: vec![0.0; len],
        }
    }
}

impl Judge for Sgd {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        if self.momentum == 0.0 {
            for i in 0..p.len() {
                p[i] -= now.lr * g[i];
            }
            return;
        }
        let accum = match &self.accum {
            None => g.to_vec(),
            Some(old) => (0..p.len()).map(|i| self.momentum * old[i] + (1.0 - self.dampening) * g[i]).collect(),
        };
        for i in 0..p.len() {
            if self.nesterov {
                p[i] -= now.lr * (g[i] + self.momentum * accum[i]);
            } else {
                p[i] -= now.lr * accum[i];
            }
        }
        self.accum = Some(accum);
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        if self.momentum == 0.0 { Vec::new() } else { vec![("accum", self.accum.as_ref().unwrap_or(&self.zeros))] }
    }
}
