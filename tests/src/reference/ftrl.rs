//! FTRL, as MindSpore documents it.

use super::{Judge, Now, single};

pub(super) struct Ftrl {
    power: f64,
    l1: f64,
    l2: f64,
    squares: Vec<f64>,
    linear: Vec<f64>,
    /// What was subtracted from `linear`.
    subtracted: Vec<f64>,
}

impl Ftrl {
    pub(super) fn new(config: &optimizers::Ftrl, len: usize) -> Self {
        Self {
            power: -single(config.lr_power),
            l1: single(config.l1),
            l2: single(config.l2),
            squares: vec![single(config.initial_accum); len],
            linear: vec![0.0; len],
            subtracted: vec![0.0; len],
        }
    }
}

impl Judge for Ftrl {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        for i in 0..p.len() {
            let before = self.squares[i].powf(self.power);
            self.squares[i] += g[i] * g[i];
            let after = self.squares[i].powf(self.power);
            self.subtracted[i] = after / now.lr * p[i].abs();
            self.linear[i] += g[i] - (after - before) / now.lr * p[i];
            p[i] = if self.linear[i].abs() > self.l1 {
                (self.linear[i].signum() * self.l1 - self.linear[i]) / (after / now.lr + 2.0 * self.l2)
            } else {
                0.0
            };
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        vec![("moments", &self.squares), ("linear", &self.linear)]
    }

    fn subtracted(&self) -> Vec<(&'static str, &[f64])> {
        vec![("linear", &self.subtracted)]
    }
}
