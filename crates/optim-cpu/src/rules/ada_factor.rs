//! AdaFactor. The equations: [`optim_core::rules::AdaFactor`]. The twin: `shaders/rules/ada_factor.wgsl`.

use multiversion::multiversion;
use optim_core::rules::ada_factor::Step;

use crate::arch::{self, fetch, fetch_span};
use crate::reduce::{LANES, ROW};

/// Rows that are worked on side by side: memory gives more of several streams than of one.
pub(crate) const SIDE_BY_SIDE: usize = 4;

/// The elements of so many rows of a slice.
pub(crate) const SPAN: usize = SIDE_BY_SIDE * ROW;

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
fn direction(g: f32, row: f32, column: f32) -> f32 {
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

/// Adds the squares of stretches of rows of a matrix, which lie below each other, to the rows' lanes and to the columns' sums. The
/// stretches have one length and begin at a multiple of the lanes.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn add_squares_of_rows(
    s: &Step,
    rows: [&[f32]; SIDE_BY_SIDE],
    lanes: &mut [[f32; LANES]; SIDE_BY_SIDE],
    columns: &mut [f32],
) {
    let [g0, g1, g2, g3] = rows;
    let [l0, l1, l2, l3] = lanes;
    for (nth, columns) in columns.chunks_mut(LANES).enumerate() {
        let (start, n) = (nth * LANES, columns.len());
        let [g0, g1, g2, g3] = [g0, g1, g2, g3].map(|g| &g[start..start + n]);
        let (l0, l1, l2, l3) = (&mut l0[..n], &mut l1[..n], &mut l2[..n], &mut l3[..n]);
        for i in 0..n {
            let (q0, q1, q2, q3) = (square(s, g0[i]), square(s, g1[i]), square(s, g2[i]), square(s, g3[i]));
            l0[i] += q0;
            l1[i] += q1;
            l2[i] += q2;
            l3[i] += q3;
            columns[i] = columns[i] + q0 + q1 + q2 + q3;
        }
    }
}

/// As [`add_squares_of_rows`], of one row.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn add_squares(s: &Step, g: &[f32], lanes: &mut [f32; LANES], columns: &mut [f32]) {
    for (g, columns) in g.chunks(LANES).zip(columns.chunks_mut(LANES)) {
        for ((&g, lane), column) in g.iter().zip(lanes.iter_mut()).zip(columns) {
            let q = square(s, g);
            *lane += q;
            *column += q;
        }
    }
}

/// What is averaged, of a stretch.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn squares(s: &Step, g: &[f32], squares: &mut [f32]) {
    let s = *s;
    for (g, squares) in g.chunks(arch::SPAN).zip(squares.chunks_mut(arch::SPAN)) {
        fetch(g, 0);
        for (&g, q) in g.iter().zip(squares) {
            *q = square(&s, g);
        }
    }
}

/// Second moments, from sums over so many squares that their means are `share` of them.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn moments(s: &Step, sums: &[f32], share: f32, v: &mut [f32]) {
    for (&sum, v) in sums.iter().zip(v) {
        moment(s, v, sum * share);
    }
}

/// The second moments of a vector.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn square_moments(s: &Step, g: &[f32], v: &mut [f32]) {
    for (&g, v) in g.iter().zip(v) {
        moment(s, v, square(s, g));
    }
}

/// All before the norms of matrices of one element.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn elements(s: &Step, g: &[f32], rows: &mut [f32], columns: &mut [f32], u: &mut [f32]) {
    let s = *s;
    let rows = rows.chunks_mut(arch::SPAN);
    let columns = columns.chunks_mut(arch::SPAN);
    for (((g, rows), columns), u) in g.chunks(arch::SPAN).zip(rows).zip(columns).zip(u.chunks_mut(arch::SPAN)) {
        fetch(g, 0);
        fetch(rows, 0);
        fetch(columns, 0);
        fetch(u, 0);
        for (((&g, r), c), u) in g.iter().zip(rows).zip(columns).zip(u) {
            let q = square(&s, g);
            moment(&s, r, q);
            moment(&s, c, q);
            *u = direction(g, one(*r), column_factor(*c));
        }
    }
}

/// `u` of matrices of one element.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn directions_of_elements(g: &[f32], rows: &[f32], columns: &[f32], u: &mut [f32]) {
    for (((&g, &r), &c), u) in g.iter().zip(rows).zip(columns).zip(u) {
        *u = direction(g, one(r), column_factor(c));
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

/// The factors of columns.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn column_factors(moments: &[f32], factors: &mut [f32]) {
    for (&c, factor) in moments.iter().zip(factors) {
        *factor = column_factor(c);
    }
}

/// The roots of means that are `share` of these sums.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn into_root_means(share: f32, sums: &mut [f32]) {
    for sum in sums {
        *sum = (*sum * share).sqrt();
    }
}

/// `u` of a stretch of a matrix, from the element `start` on: the factors of all its rows and columns.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn directions(start: usize, g: &[f32], rows: &[f32], columns: &[f32], u: &mut [f32]) {
    let (mut row, mut column, mut done) = (start / columns.len(), start % columns.len(), 0);
    while done < g.len() {
        let stretch = done..g.len().min(done + columns.len() - column);
        let factor = rows[row];
        done = stretch.end;
        for ((&g, &column), u) in g[stretch.clone()].iter().zip(&columns[column..]).zip(&mut u[stretch]) {
            *u = direction(g, factor, column);
        }
        (row, column) = (row + 1, 0);
    }
}

/// As [`directions`], with factors for each element.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn directions_each(g: &[f32], rows: &[f32], columns: &[f32], u: &mut [f32]) {
    for (((&g, &row), &column), u) in g.iter().zip(rows).zip(columns).zip(u) {
        *u = direction(g, row, column);
    }
}

/// `u` of a stretch of a vector.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn directions_vector(g: &[f32], v: &[f32], u: &mut [f32]) {
    for ((&g, &v), u) in g.iter().zip(v).zip(u) {
        *u = direction_vector(g, v);
    }
}

/// Adds the squares of rows of `p` and of `u`, one after the other, to the running sums.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn add_norms_of_rows(p: &[f32; SPAN], u: &[f32; SPAN], first: &mut [f32; ROW], second: &mut [f32; ROW]) {
    for span in (0..ROW).step_by(arch::SPAN) {
        // Of the rows that come next.
        (0..SIDE_BY_SIDE).for_each(|row| fetch_span(p, (SIDE_BY_SIDE + row) * ROW + span));
        for i in span..span + arch::SPAN {
            for row in 0..SIDE_BY_SIDE {
                let (p, u) = (p[row * ROW + i], u[row * ROW + i]);
                first[i] += p * p;
                second[i] += u * u;
            }
        }
    }
}

/// As [`add_norms_of_rows`], of stretches of the rows, each in one row of a large matrix: their gradients, the factors of these rows
/// of the matrix and of the columns.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn add_norms_of_stretches(
    p: [&[f32]; SIDE_BY_SIDE],
    g: [&[f32]; SIDE_BY_SIDE],
    rows: [f32; SIDE_BY_SIDE],
    columns: [&[f32]; SIDE_BY_SIDE],
    first: &mut [f32],
    second: &mut [f32],
) {
    let n = first.len();
    let (p, g, columns, second) = (p.map(|p| &p[..n]), g.map(|g| &g[..n]), columns.map(|c| &c[..n]), &mut second[..n]);
    for i in 0..n {
        for k in 0..SIDE_BY_SIDE {
            let (p, u) = (p[k][i], direction(g[k][i], rows[k], columns[k][i]));
            first[i] += p * p;
            second[i] += u * u;
        }
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

/// The update of a stretch, from its raw `u`; `m` is empty without `β₁`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn updates(s: &Step, p: &mut [f32], u: &[f32], m: &mut [f32]) {
    let s = *s;
    let spans = p.chunks_mut(arch::SPAN).zip(u.chunks(arch::SPAN));
    if m.is_empty() {
        for (p, u) in spans {
            fetch(p, 0);
            fetch(u, 0);
            for (p, &u) in p.iter_mut().zip(u) {
                update_plain(&s, p, u);
            }
        }
    } else {
        for ((p, u), m) in spans.zip(m.chunks_mut(arch::SPAN)) {
            fetch(p, 0);
            fetch(u, 0);
            fetch(m, 0);
            for ((p, &u), m) in p.iter_mut().zip(u).zip(m) {
                update(&s, p, u, m);
            }
        }
    }
}

/// The update of stretches as in [`add_norms_of_stretches`], without `β₁`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
#[allow(
    clippy::too_many_arguments,
    reason = "the slices that are written are separate, so that they are known not to overlap"
)]
pub(crate) fn updates_of_stretches_plain(
    s: &Step,
    p0: &mut [f32],
    p1: &mut [f32],
    p2: &mut [f32],
    p3: &mut [f32],
    g: [&[f32]; SIDE_BY_SIDE],
    rows: [f32; SIDE_BY_SIDE],
    columns: [&[f32]; SIDE_BY_SIDE],
) {
    let n = p0.len();
    let (g, columns) = (g.map(|g| &g[..n]), columns.map(|c| &c[..n]));
    let (p1, p2, p3) = (&mut p1[..n], &mut p2[..n], &mut p3[..n]);
    for i in 0..n {
        update_plain(s, &mut p0[i], direction(g[0][i], rows[0], columns[0][i]));
        update_plain(s, &mut p1[i], direction(g[1][i], rows[1], columns[1][i]));
        update_plain(s, &mut p2[i], direction(g[2][i], rows[2], columns[2][i]));
        update_plain(s, &mut p3[i], direction(g[3][i], rows[3], columns[3][i]));
    }
}

/// The update of stretches as in [`add_norms_of_stretches`].
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
#[allow(
    clippy::too_many_arguments,
    reason = "the slices that are written are separate, so that they are known not to overlap"
)]
pub(crate) fn updates_of_stretches(
    s: &Step,
    p0: &mut [f32],
    p1: &mut [f32],
    p2: &mut [f32],
    p3: &mut [f32],
    g: [&[f32]; SIDE_BY_SIDE],
    rows: [f32; SIDE_BY_SIDE],
    columns: [&[f32]; SIDE_BY_SIDE],
    m0: &mut [f32],
    m1: &mut [f32],
    m2: &mut [f32],
    m3: &mut [f32],
) {
    let n = p0.len();
    let (g, columns) = (g.map(|g| &g[..n]), columns.map(|c| &c[..n]));
    let (p1, p2, p3) = (&mut p1[..n], &mut p2[..n], &mut p3[..n]);
    let (m0, m1, m2, m3) = (&mut m0[..n], &mut m1[..n], &mut m2[..n], &mut m3[..n]);
    for i in 0..n {
        update(s, &mut p0[i], direction(g[0][i], rows[0], columns[0][i]), &mut m0[i]);
        update(s, &mut p1[i], direction(g[1][i], rows[1], columns[1][i]), &mut m1[i]);
        update(s, &mut p2[i], direction(g[2][i], rows[2], columns[2][i]), &mut m2[i]);
        update(s, &mut p3[i], direction(g[3][i], rows[3], columns[3][i]), &mut m3[i]);
    }
}
