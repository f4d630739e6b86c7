//! AdaFactor. The equations: [`optim_core::rules::AdaFactor`]. The twin: `shaders/rules/ada_factor.wgsl`.

use multiversion::multiversion;
use optim_core::rules::ada_factor::Step;

/// What is averaged over rows and columns.
#[inline(always)]
fn square(s: &Step, g: f32) -> f32 {
    // (1) q = g² + ε₁
    g * g + s.eps1
}

/// A second moment, of the mean of squares.
#[inline(always)]
fn moment(s: &Step, v: &mut f32, mean: f32) {
    // (2) R ← b R + (1 − b) mean
    *v = s.b * *v + s.one_minus_b * mean;
}

#[inline(always)]
fn direction(g: f32, row: f32, column: f32) -> f32 {
    // (3) u = g / √(R / mean of R) / √C
    g / row / column
}

#[inline(always)]
fn direction_vector(g: f32, v: f32) -> f32 {
    // (3) u = g / √V
    g / v.sqrt()
}

/// Completes the scalars from the sums of p² and u², over so many elements.
pub(crate) fn finish(s: &mut Step, sums: [f32; 2], len: f32) {
    // (4) α = ρ max(ε₂, RMS(p)),  or ρ without scale_parameter
    s.alpha = s.rho;
    let rms = (sums[0] / len).sqrt();
    if s.scale_parameter != 0 {
        if rms > s.eps2 {
            s.alpha = s.rho * rms;
        } else {
            s.alpha = s.rho * s.eps2;
        }
    }
    // (5) max(1, RMS(u) / clip_threshold)
    let excess = (sums[1] / len).sqrt() / s.clip;
    s.excess = 1.0;
    if excess > 1.0 {
        s.excess = excess;
    }
}

#[inline(always)]
fn clipped(s: &Step, u_raw: f32) -> f32 {
    // (5) u ← α u / max(1, RMS(u) / clip_threshold)
    let mut u = u_raw;
    if s.excess != 1.0 {
        u = u_raw / s.excess;
    }
    s.alpha * u
}

#[inline(always)]
fn update(s: &Step, p: &mut f32, u_raw: f32, m: &mut f32) {
    let u = clipped(s, u_raw);
    // (6) M ← β₁ M + (1 − β₁) u,  u ← M
    *m = s.beta1 * *m + s.one_minus_beta1 * u;
    // (7) p ← p − λ α p − u
    *p = *p - s.weight_decay * s.alpha * *p - *m;
}

#[inline(always)]
fn update_plain(s: &Step, p: &mut f32, u_raw: f32) {
    let u = clipped(s, u_raw);
    // (7) p ← p − λ α p − u
    *p = *p - s.weight_decay * s.alpha * *p - u;
}

/// Adds the squares of a stretch of one row to the row's lanes and to the columns' sums. The stretch begins at a multiple of
/// the lanes.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn add_squares(s: &Step, g: &[f32], lanes: &mut [f32; 256], columns: &mut [f32]) {
    for (g, columns) in g.chunks(256).zip(columns.chunks_mut(256)) {
        for ((&g, lane), column) in g.iter().zip(lanes.iter_mut()).zip(columns) {
            let q = square(s, g);
            *lane += q;
            *column += q;
        }
    }
}

/// The second moments of a vector.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn square_moments(s: &Step, g: &[f32], v: &mut [f32]) {
    for (&g, v) in g.iter().zip(v) {
        moment(s, v, square(s, g));
    }
}

/// What is averaged, of a stretch.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn squares(s: &Step, g: &[f32], squares: &mut [f32]) {
    for (&g, q) in g.iter().zip(squares) {
        *q = square(s, g);
    }
}

/// Second moments, from sums over so many squares.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn moments(s: &Step, sums: &[f32], count: f32, v: &mut [f32]) {
    for (&sum, v) in sums.iter().zip(v) {
        let mut mean = sum;
        if count != 1.0 {
            mean = sum / count;
        }
        moment(s, v, mean);
    }
}

/// The roots of a stretch of second moments.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn roots(moments: &[f32], roots: &mut [f32]) {
    for (moment, root) in moments.iter().zip(roots) {
        *root = moment.sqrt();
    }
}

/// Adds the squares of a stretch of `p` and of `u` to the running sums.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn add_norms(p: &[f32], u: &[f32], first: &mut [f32], second: &mut [f32]) {
    for (((p, u), first), second) in p.iter().zip(u).zip(first).zip(second) {
        *first += p * p;
        *second += u * u;
    }
}

/// `√(R / mean of R)` of a stretch of rows.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn row_roots(moments: &[f32], means: &[f32], roots: &mut [f32]) {
    for ((moment, mean), root) in moments.iter().zip(means).zip(roots) {
        *root = (moment / mean).sqrt();
    }
}

/// `u` of a stretch of one row; `row` is `√(R / mean of R)`, `columns` are the `√C`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn directions(g: &[f32], row: f32, columns: &[f32], u: &mut [f32]) {
    for ((&g, &column), u) in g.iter().zip(columns).zip(u) {
        *u = direction(g, row, column);
    }
}

/// As [`directions`], with a row for each element.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn directions_each(g: &[f32], rows: &[f32], columns: &[f32], u: &mut [f32]) {
    for (((&g, &row), &column), u) in g.iter().zip(rows).zip(columns).zip(u) {
        *u = direction(g, row, column);
    }
}

/// As [`directions`], where `√(R / mean of R)` is 1.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn directions_by_column(g: &[f32], columns: &[f32], u: &mut [f32]) {
    for ((&g, &column), u) in g.iter().zip(columns).zip(u) {
        *u = g / column;
    }
}

/// `u` of a stretch of a vector.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn directions_vector(g: &[f32], v: &[f32], u: &mut [f32]) {
    for ((&g, &v), u) in g.iter().zip(v).zip(u) {
        *u = direction_vector(g, v);
    }
}

/// The update of a stretch, from its raw `u`; `m` is empty without `β₁`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn updates(s: &Step, p: &mut [f32], u: &[f32], m: &mut [f32]) {
    if m.is_empty() {
        for (p, &u) in p.iter_mut().zip(u) {
            update_plain(s, p, u);
        }
    } else {
        for ((p, &u), m) in p.iter_mut().zip(u).zip(m) {
            update(s, p, u, m);
        }
    }
}
