//! Rprop, as PyTorch and MindSpore document it.

use super::{Judge, Now, single};

pub(super) struct Rprop {
    etas: (f64, f64),
    step_sizes: (f64, f64),
    updated: bool,
    previous: Vec<f64>,
    sizes: Vec<f64>,
}

impl Rprop {
    pub(super) fn new(config: &optimizers::Rprop, len: usize) -> Self {
        let (minus, plus) = config.etas;
        let (min, max) = config.step_sizes;
        Self {
            etas: (single(minus), single(plus)),
            step_sizes: (single(min), single(max)),
            updated: false,
            previous: vec![0.0; len],
            sizes: vec![0.0; len],
        }
    }
}

impl Judge for Rprop {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        for i in 0..p.len() {
            let mut g = g[i];
            if !self.updated {
                self.sizes[i] = now.lr;
            }
            // In f64 the product of two f32 does not underflow.
            let agreement = g * self.previous[i];
            if agreement > 0.0 {
                self.sizes[i] *= self.etas.1;
            } else if agreement < 0.0 {
                self.sizes[i] *= self.etas.0;
                g = 0.0;
            }
            self.sizes[i] = self.sizes[i].clamp(self.step_sizes.0, self.step_sizes.1);
            if g != 0.0 {
                p[i] -= g.signum() * self.sizes[i];
            }
            self.previous[i] = g;
        }
        self.updated = true;
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("prev", &self.previous), ("step_size", &self.sizes)]
    }
}
