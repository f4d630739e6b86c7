//! AdaFactor. The equations: [`optim_core::rules::AdaFactor`]. The twin: `shaders/rules/ada_factor.wgsl`.

use bytemuck::Pod;
use half::f16;
use multiversion::multiversion;
use optim_core::compressed;
use optim_core::rules::ada_factor::Step;

use crate::arch::{SPAN, fetch, fetch_once, fetch_span, fetch_span_once};
use crate::reduce::LANES;

/// Elements between those that a loop works on and those that it fetches, where it neither divides nor draws roots.
pub(crate) const AHEAD: usize = 1024;

/// How a second moment is kept: rounded whenever it changes, so that it is used as it is read later.
pub(crate) trait Moment: Pod {
    fn read(self) -> f32;
    /// How a number is kept, and what is read then.
    fn keep(x: f32) -> (Self, f32);

    /// Changes it; gives what it then is.
    #[inline(always)]
    fn change(&mut self, change: impl FnOnce(&mut f32)) -> f32 {
        let mut x = self.read();
        change(&mut x);
        (*self, x) = Self::keep(x);
        x
    }
}

impl Moment for f32 {
    #[inline(always)]
    fn read(self) -> f32 {
        self
    }

    #[inline(always)]
    fn keep(x: f32) -> (Self, f32) {
        (x, x)
    }
}

impl Moment for f16 {
    #[inline(always)]
    fn read(self) -> f32 {
        compressed::read(self)
    }

    #[inline(always)]
    fn keep(x: f32) -> (Self, f32) {
        compressed::keep(x)
    }
}

/// What is averaged over rows and columns.
#[inline(always)]
pub(crate) fn square(s: &Step, g: f32) -> f32 {
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
pub(crate) fn row_factor(root_mean: f32, r: f32) -> f32 {
    // √(mean of R) / √R
    root_mean / r.sqrt()
}

#[inline(always)]
fn column_factor(c: f32) -> f32 {
    // 1 / √C
    1.0 / c.sqrt()
}

#[inline(always)]
pub(crate) fn direction(g: f32, row: f32, column: f32) -> f32 {
    // (3) u = g / √(R / mean of R) / √C, by the factors of row and column
    g * row * column
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
    // (5) α / max(1, RMS(u) / clip_threshold)
    let excess = (sums[1] / len).sqrt() / s.clip;
    s.rate = s.alpha;
    if excess > 1.0 {
        s.rate = s.alpha / excess;
    }
}

#[inline(always)]
fn update(s: &Step, p: &mut f32, u_raw: f32, m: &mut f32) {
    // (5) u ← α u / max(1, RMS(u) / clip_threshold)
    let u = s.rate * u_raw;
    // (6) M ← β₁ M + (1 − β₁) u,  u ← M
    *m = s.beta1 * *m + s.one_minus_beta1 * u;
    // (7) p ← p − λ α p − u
    *p = *p - s.weight_decay * s.alpha * *p - *m;
}

#[inline(always)]
fn update_plain(s: &Step, p: &mut f32, u_raw: f32) {
    // (5) u ← α u / max(1, RMS(u) / clip_threshold)
    let u = s.rate * u_raw;
    // (7) p ← p − λ α p − u
    *p = *p - s.weight_decay * s.alpha * *p - u;
}

/// Adds the squares of a stretch of a row, which begins at a multiple of the lanes, to the row's lanes and to the columns' sums.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn add_squares(s: &Step, g: &[f32], lanes: &mut [f32; LANES], columns: &mut [f32]) {
    let s = *s;
    for (g, columns) in g.chunks(LANES).zip(columns.chunks_mut(LANES)) {
        let spans = g.chunks(SPAN).zip(lanes.chunks_mut(SPAN)).zip(columns.chunks_mut(SPAN));
        for ((g, lanes), columns) in spans {
            fetch_span(g, AHEAD);
            for ((&g, lane), column) in g.iter().zip(lanes).zip(columns) {
                let q = square(&s, g);
                *lane += q;
                *column += q;
            }
        }
    }
}

/// Second moments, from sums over so many squares that their means are `share` of them; and copies of them.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn moments<T: Moment>(s: &Step, sums: &[f32], share: f32, moments: &mut [T], copies: &mut [f32]) {
    let s = *s;
    let spans = sums.chunks(SPAN).zip(moments.chunks_mut(SPAN)).zip(copies.chunks_mut(SPAN));
    for ((sums, moments), copies) in spans {
        fetch_once(moments, 0);
        for ((&sum, stored), copy) in sums.iter().zip(moments).zip(copies) {
            *copy = stored.change(|v| moment(&s, v, sum * share));
        }
    }
}

/// The second moments of a stretch of a vector, and its norms.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn measure_vector<T: Moment>(
    s: &Step,
    p: &[f32],
    g: &[f32],
    v: &mut [T],
    first: &mut [f32],
    second: &mut [f32],
) {
    let (s, n) = (*s, p.len());
    for span in (0..n).step_by(SPAN) {
        let len = SPAN.min(n - span);
        fetch(p, span);
        fetch(g, span);
        fetch(v, span);
        let (p, g, v) = (&p[span..][..len], &g[span..][..len], &mut v[span..][..len]);
        let (first, second) = (&mut first[span..][..len], &mut second[span..][..len]);
        for i in 0..len {
            let v = v[i].change(|v| moment(&s, v, square(&s, g[i])));
            let u = direction_vector(g[i], v);
            first[i] += p[i] * p[i];
            second[i] += u * u;
        }
    }
}

/// The second moments of a stretch of matrices of one element, its norms and its `u`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
#[allow(
    clippy::too_many_arguments,
    reason = "the slices that are written are separate, so that they are known not to overlap"
)]
pub(crate) fn measure_elements<T: Moment>(
    s: &Step,
    p: &[f32],
    g: &[f32],
    rows: &mut [T],
    columns: &mut [T],
    u: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let (s, n) = (*s, p.len());
    for span in (0..n).step_by(SPAN) {
        let len = SPAN.min(n - span);
        fetch(p, span);
        fetch_once(g, span);
        fetch_once(rows, span);
        fetch_once(columns, span);
        fetch(u, span);
        let (p, g, u) = (&p[span..][..len], &g[span..][..len], &mut u[span..][..len]);
        let (rows, columns) = (&mut rows[span..][..len], &mut columns[span..][..len]);
        let (first, second) = (&mut first[span..][..len], &mut second[span..][..len]);
        for i in 0..len {
            let q = square(&s, g[i]);
            let r = rows[i].change(|r| moment(&s, r, q));
            let c = columns[i].change(|c| moment(&s, c, q));
            u[i] = direction(g[i], one(r), column_factor(c));
            first[i] += p[i] * p[i];
            second[i] += u[i] * u[i];
        }
    }
}

/// The factor of a row whose mean is itself.
#[inline(always)]
fn one(r: f32) -> f32 {
    if r > 0.0 && r < f32::INFINITY { 1.0 } else { f32::NAN }
}

/// The factors of rows, each with the root of its mean.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn row_factors(root_means: &[f32], moments: &[f32], factors: &mut [f32]) {
    for ((&root_mean, &r), factor) in root_means.iter().zip(moments).zip(factors) {
        *factor = row_factor(root_mean, r);
    }
}

/// Those of a matrix's rows, whose moments they take the place of.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn into_row_factors(root_mean: f32, moments: &mut [f32]) {
    for r in moments {
        *r = row_factor(root_mean, *r);
    }
}

/// Those of columns, whose moments they take the place of.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn into_column_factors(moments: &mut [f32]) {
    for c in moments {
        *c = column_factor(*c);
    }
}

/// The roots of means that are `share` of these sums.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn into_root_means(share: f32, sums: &mut [f32]) {
    for sum in sums {
        *sum = (*sum * share).sqrt();
    }
}

/// Adds the squares of a stretch of `p` and of `u` to the running sums.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn add_norms(p: &[f32], u: &[f32], first: &mut [f32], second: &mut [f32]) {
    let n = p.len();
    for span in (0..n).step_by(SPAN) {
        let len = SPAN.min(n - span);
        fetch_span(p, span + AHEAD);
        let (p, u) = (&p[span..][..len], &u[span..][..len]);
        let (first, second) = (&mut first[span..][..len], &mut second[span..][..len]);
        for i in 0..len {
            first[i] += p[i] * p[i];
            second[i] += u[i] * u[i];
        }
    }
}

/// As [`add_norms`], of a stretch of a matrix from the element `start` on: the factors of all its rows and columns.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn add_norms_of_matrix(
    start: usize,
    p: &[f32],
    g: &[f32],
    rows: &[f32],
    columns: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let (mut row, mut column, mut done) = (start / columns.len(), start % columns.len(), 0);
    while done < g.len() {
        let len = SPAN.min(g.len() - done).min(columns.len() - column);
        fetch_span(p, done + AHEAD);
        fetch_span(g, done + AHEAD);
        let (p, g, factor) = (&p[done..][..len], &g[done..][..len], rows[row]);
        let factors = &columns[column..][..len];
        let (first, second) = (&mut first[done..][..len], &mut second[done..][..len]);
        for i in 0..len {
            let u = direction(g[i], factor, factors[i]);
            first[i] += p[i] * p[i];
            second[i] += u * u;
        }
        (done, column) = (done + len, column + len);
        if column == columns.len() {
            (row, column) = (row + 1, 0);
        }
    }
}

/// The update of a stretch, from its raw `u`; `m` is empty without `β₁`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn updates(s: &Step, p: &mut [f32], u: &[f32], m: &mut [f32]) {
    let s = *s;
    let spans = p.chunks_mut(SPAN).zip(u.chunks(SPAN));
    if m.is_empty() {
        for (p, u) in spans {
            fetch_span(p, AHEAD);
            fetch_span(u, AHEAD);
            for (p, &u) in p.iter_mut().zip(u) {
                update_plain(&s, p, u);
            }
        }
    } else {
        for ((p, u), m) in spans.zip(m.chunks_mut(SPAN)) {
            fetch_span(p, AHEAD);
            fetch_span(u, AHEAD);
            fetch_span_once(m, AHEAD);
            for ((p, &u), m) in p.iter_mut().zip(u).zip(m) {
                update(&s, p, u, m);
            }
        }
    }
}

/// As [`updates`], of a stretch of a vector, from its second moments.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn updates_of_vector<T: Moment>(s: &Step, p: &mut [f32], g: &[f32], v: &[T], m: &mut [f32]) {
    let s = *s;
    let spans = p.chunks_mut(SPAN).zip(g.chunks(SPAN)).zip(v.chunks(SPAN));
    if m.is_empty() {
        for ((p, g), v) in spans {
            fetch(p, 0);
            fetch(g, 0);
            fetch(v, 0);
            for ((p, &g), v) in p.iter_mut().zip(g).zip(v) {
                update_plain(&s, p, direction_vector(g, v.read()));
            }
        }
    } else {
        for (((p, g), v), m) in spans.zip(m.chunks_mut(SPAN)) {
            fetch(p, 0);
            fetch(g, 0);
            fetch(v, 0);
            fetch_once(m, 0);
            for (((p, &g), v), m) in p.iter_mut().zip(g).zip(v).zip(m) {
                update(&s, p, direction_vector(g, v.read()), m);
            }
        }
    }
}

/// As [`updates`], of a stretch of a matrix as in [`add_norms_of_matrix`].
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn updates_of_matrix(
    s: &Step,
    start: usize,
    p: &mut [f32],
    g: &[f32],
    rows: &[f32],
    columns: &[f32],
    m: &mut [f32],
) {
    let s = *s;
    let (mut row, mut column, mut done) = (start / columns.len(), start % columns.len(), 0);
    while done < g.len() {
        let len = SPAN.min(g.len() - done).min(columns.len() - column);
        fetch_span(p, done + AHEAD);
        fetch_span(g, done + AHEAD);
        let (p, g, factor) = (&mut p[done..][..len], &g[done..][..len], rows[row]);
        let factors = &columns[column..][..len];
        if m.is_empty() {
            for i in 0..len {
                update_plain(&s, &mut p[i], direction(g[i], factor, factors[i]));
            }
        } else {
            fetch_span_once(m, done + AHEAD);
            let m = &mut m[done..][..len];
            for i in 0..len {
                update(&s, &mut p[i], direction(g[i], factor, factors[i]), &mut m[i]);
            }
        }
        (done, column) = (done + len, column + len);
        if column == columns.len() {
            (row, column) = (row + 1, 0);
        }
    }
}
