//! What happens to a gradient before the rule sees it. The equations: [`Shaping`]. The twin of `shape` in the shaders' prelude.

use multiversion::multiversion;
use optim_core::backend::{Record, Shaping};

use crate::kernel::Scaling;
use crate::units::Row;

/// The shaping of one parameter's gradient.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape<'a> {
    shaping: Shaping,
    /// Whether rows are clipped by units.
    units: bool,
    /// For each of the parameter's rows, if something is done row by row.
    rows: &'a [Row],
    /// The elements of a row.
    width: usize,
}

impl<'a> Shape<'a> {
    /// The gradient as it is.
    pub(crate) const NONE: Self = Self { shaping: Shaping::NONE, units: false, rows: &[], width: 0 };

    pub(crate) fn new(record: &Record, rows: &'a [Row], width: usize) -> Self {
        Self { shaping: record.shaping, units: record.stages.units > 0.0, rows, width }
    }

    /// Without what is done row by row, and without decay: what the rows' numbers are made of.
    pub(crate) fn before_rows(record: &Record) -> Self {
        let shaping = Shaping { weight_decay: 0.0, flags: 0, ..record.shaping };
        Self { shaping, ..Self::NONE }
    }

    /// All of the shaping, if a kernel does that.
    pub(crate) fn scaling(&self) -> Option<Scaling> {
        let Shaping { factor, weight_decay, limit, flags } = self.shaping;
        let all = limit == 0.0 && !self.units && flags & Shaping::CENTRALIZE == 0;
        all.then_some(Scaling { factor, weight_decay })
    }

    /// Whether the gradient stays as it is.
    pub(crate) fn is_none(&self) -> bool {
        self.shaping == Shaping::NONE && !self.units
    }

    /// Shapes the gradient of the elements from the `first` of the parameter on. Each term only where it does something:
    /// multiplying by 1 and adding 0 would change the bits of NaNs and of −0.
    pub(crate) fn apply(&self, first: usize, g: &mut [f32], p: &[f32]) {
        let Shaping { factor, weight_decay, limit, flags } = self.shaping;
        if factor != 1.0 {
            scale(factor, g);
        }
        if limit > 0.0 {
            bound(limit, g);
        }
        if self.units {
            self.each_row(first, g, |row, g| scale(row.factor, g));
        }
        if weight_decay != 0.0 {
            decay(weight_decay, g, p);
        }
        if flags & Shaping::CENTRALIZE != 0 {
            self.each_row(first, g, |row, g| subtract(row.mean, g));
        }
    }

    /// Calls `work` for each stretch that lies in one row.
    fn each_row(&self, first: usize, mut g: &mut [f32], work: impl Fn(&Row, &mut [f32])) {
        let mut at = first;
        while !g.is_empty() {
            let (row, column) = (at / self.width, at % self.width);
            let (stretch, rest) = g.split_at_mut(g.len().min(self.width - column));
            work(&self.rows[row], stretch);
            at += stretch.len();
            g = rest;
        }
    }
}

/// `g ← factor · g`
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn scale(factor: f32, g: &mut [f32]) {
    for g in g {
        *g *= factor;
    }
}

/// `g ← min(max(g, −limit), limit)`
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn bound(limit: f32, g: &mut [f32]) {
    for g in g {
        let mut x = *g;
        if x > limit {
            x = limit;
        }
        if x < -limit {
            x = -limit;
        }
        *g = x;
    }
}

/// `g ← g + weight_decay · p`
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn decay(weight_decay: f32, g: &mut [f32], p: &[f32]) {
    for (g, &p) in g.iter_mut().zip(p) {
        *g += weight_decay * p;
    }
}

/// `g ← g − mean`
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn subtract(mean: f32, g: &mut [f32]) {
    for g in g {
        *g -= mean;
    }
}
