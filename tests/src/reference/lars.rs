//! LARS, as MindSpore documents it: around another judge.

use super::{Judge, Now, single};

pub(super) struct Lars {
    inner: Box<dyn Judge>,
    coefficient: f64,
    epsilon: f64,
    clip: bool,
}

impl Lars {
    /// For a parameter that the filter lets through, which the problems' all are.
    pub(super) fn new(config: &optimizers::Lars, inner: Box<dyn Judge>) -> Self {
        Self { inner, coefficient: single(config.coefficient), epsilon: single(config.epsilon), clip: config.use_clip }
    }
}

impl Judge for Lars {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        let p_norm = p.iter().map(|x| x * x).sum::<f64>().sqrt();
        let g_norm = g.iter().map(|x| x * x).sum::<f64>().sqrt();
        let decay = now.weight_decay;
        let mut ratio = self.coefficient * p_norm / (g_norm + decay * p_norm + self.epsilon);
        // The limit for a rate that goes to 0 is 1.
        if self.clip && ratio > 0.0 {
            ratio = (ratio / now.lr).clamp(0.0, 1.0);
        }
        let mut scaled = vec![0.0; g.len()];
        for i in 0..g.len() {
            scaled[i] = (g[i] + decay * p[i]) * ratio;
        }
        self.inner.step(p, &scaled, now);
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        self.inner.slots()
    }

    // The ratio adds the decay.
    fn decoupled(&self) -> bool {
        true
    }
}
