//! AdaFactor, by matrices: the row and column means of the squares are kept, and their product stands for the squares.

use half::f16;

use super::{Judge, Now, single};

pub(super) struct AdaFactor {
    config: optimizers::AdaFactor,
    /// Matrices in the stack, rows and columns of each; a vector has no matrix.
    stack: usize,
    rows: usize,
    columns: usize,
    row_squares: Vec<f64>,
    column_squares: Vec<f64>,
    squares: Vec<f64>,
    mean: Vec<f64>,
}

impl AdaFactor {
    pub(super) fn new(config: &optimizers::AdaFactor, shape: &[usize]) -> Self {
        let len: usize = shape.iter().product();
        let (rows, columns) = if shape.len() > 1 { (shape[shape.len() - 2], shape[shape.len() - 1]) } else { (0, 0) };
        let stack = if shape.len() > 1 { shape[..shape.len() - 2].iter().product() } else { 0 };
        Self {
            config: config.clone(),
            stack,
            rows,
            columns,
            row_squares: vec![0.0; stack * rows],
            column_squares: vec![0.0; stack * columns],
            squares: vec![0.0; if shape.len() > 1 { 0 } else { len }],
            mean: vec![0.0; if config.beta1 > 0.0 { len } else { 0 }],
        }
    }
}

fn root_mean_square(x: &[f64]) -> f64 {
    let mut sum = 0.0;
    for i in 0..x.len() {
        sum += x[i] * x[i];
    }
    (sum / x.len() as f64).sqrt()
}

/// A second moment as compression stores it: rounded to `f32` and then to `f16`, if it is positive to its least positive number or
/// more, and to its largest or less. `f16::from_f64` does so where the processor helps it, and cuts bits off where none does.
#[allow(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is the purpose")]
fn compressed(x: f64) -> f64 {
    let bounded = x.clamp(f16::MIN_POSITIVE_SUBNORMAL.to_f64(), f16::MAX.to_f64());
    if x == 0.0 { x } else { f16::from_f32(bounded as f32).to_f64() }
}

impl Judge for AdaFactor {
    fn step(&mut self, p: &mut [f64], g: &[f64], now: &Now) {
        if p.is_empty() {
            return;
        }
        let t = now.t as f64;
        let keep = 1.0 - t.powf(-single(self.config.decay_rate));
        let (eps1, eps2) = (single(self.config.eps.0), single(self.config.eps.1));
        let stored = |x| if self.config.compression { compressed(x * (1.0 + now.shake)) } else { x };
        let mut update = g.to_vec();
        if self.columns == 0 {
            for i in 0..g.len() {
                self.squares[i] = stored(keep * self.squares[i] + (1.0 - keep) * (g[i] * g[i] + eps1));
                update[i] = g[i] / self.squares[i].sqrt();
            }
        }
        for matrix in 0..self.stack {
            let at = |row: usize, column: usize| (matrix * self.rows + row) * self.columns + column;
            let mut mean_of_rows = 0.0;
            for row in 0..self.rows {
                let mut sum = 0.0;
                for column in 0..self.columns {
                    sum += g[at(row, column)] * g[at(row, column)] + eps1;
                }
                let kept = &mut self.row_squares[matrix * self.rows + row];
                *kept = stored(keep * *kept + (1.0 - keep) * sum / self.columns as f64);
                mean_of_rows += *kept / self.rows as f64;
            }
            for column in 0..self.columns {
                let mut sum = 0.0;
                for row in 0..self.rows {
                    sum += g[at(row, column)] * g[at(row, column)] + eps1;
                }
                let kept = &mut self.column_squares[matrix * self.columns + column];
                *kept = stored(keep * *kept + (1.0 - keep) * sum / self.rows as f64);
            }
            for row in 0..self.rows {
                for column in 0..self.columns {
                    let row_part = self.row_squares[matrix * self.rows + row] / mean_of_rows;
                    let column_part = self.column_squares[matrix * self.columns + column];
                    update[at(row, column)] = g[at(row, column)] / row_part.sqrt() / column_part.sqrt();
                }
            }
        }

        let mut rate = now.lr;
        if self.config.relative_step {
            let cap = if self.config.warmup_init { single(1e-6) * t } else { single(1e-2) };
            rate = cap.min(1.0 / t.sqrt());
        }
        if self.config.scale_parameter {
            rate *= root_mean_square(p).max(eps2);
        }
        let excess = (root_mean_square(&update) / single(self.config.clip_threshold)).max(1.0);
        let beta1 = single(self.config.beta1);
        for i in 0..p.len() {
            let mut u = rate * update[i] / excess;
            if beta1 > 0.0 {
                self.mean[i] = beta1 * self.mean[i] + (1.0 - beta1) * u;
                u = self.mean[i];
            }
            p[i] = p[i] - now.weight_decay * rate * p[i] - u;
        }
    }

    fn slots(&self) -> Vec<(&'static str, &[f64])> {
        let mut slots = vec![
            ("exp_avg_sq_row", &*self.row_squares),
            ("exp_avg_sq_col", &*self.column_squares),
            ("exp_avg_sq", &*self.squares),
        ];
        if self.config.beta1 > 0.0 {
            slots.push(("exp_avg", &*self.mean));
        }
        slots
    }

    fn decoupled(&self) -> bool {
        true
    }
}
