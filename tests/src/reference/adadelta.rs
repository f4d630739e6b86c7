//! Adadelta, as its paper's algorithm 1, with a rate.

use super::{Judge, Now, single};

pub(super) struct Adadelta {
    rho: f64,
    epsilon: f64,
    gradients: Vec<f64>,
    updates: Vec<f64>,
}

impl Adadelta {
    pub(super) fn new(config: &optimizers::Adadelta, len: usize) -> Self {
        let (gradients, updates) = (vec![0.0; len], vec![0.0; len]);
        Self { rho: single(config.rho), epsilon: single(config.epsilon), gradients, updates }
    }
}

impl Judge for Adadelta {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        for i in 0..p.len() {
            self.gradients[i] = self.rho * self.gradients[i] + (1.0 - self.rho) * g[i] * g[i];
            let (numerator, denominator) = (self.updates[i] + self.epsilon, self.gradients[i] + self.epsilon);
            let update = (numerator / denominator).sqrt() * g[i];
            self.updates[i] = self.rho * self.updates[i] + (1.0 - self.rho) * update * update;
            p[i] -= now.lr * update;
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("accum", &self.gradients), ("accum_update", &self.updates)]
    }
}
