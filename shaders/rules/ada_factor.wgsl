// AdaFactor. The equations: optim-core/src/rules/ada_factor.rs. The twin: optim-cpu/src/rules/ada_factor.rs.

struct Step {
    rho: f32,
    b: f32,
    one_minus_b: f32,
    eps1: f32,
    eps2: f32,
    clip: f32,
    beta1: f32,
    one_minus_beta1: f32,
    weight_decay: f32,
    scale_parameter: u32,
    alpha: f32,
    rate: f32,
}

// What is averaged over rows and columns.
fn square(s: Step, g: f32) -> f32 {
    // (1) q = g² + ε₁
    return g * g + s.eps1;
}

// A second moment, of the mean of squares.
fn moment(s: Step, v: ptr<function, f32>, mean: f32) {
    // (2) R ← b R + (1 − b) mean
    *v = s.b * *v + s.one_minus_b * mean;
}

fn row_factor(root_mean: f32, r: f32) -> f32 {
    // √(mean of R) / √R
    return root_mean / sqrt(r);
}

fn column_factor(c: f32) -> f32 {
    // 1 / √C
    return 1.0 / sqrt(c);
}

fn direction(g: f32, row: f32, column: f32) -> f32 {
    // (3) u = g / √(R / mean of R) / √C, by the factors of row and column
    return g * row * column;
}

fn direction_vector(g: f32, v: f32) -> f32 {
    // (3) u = g / √V
    return g / sqrt(v);
}

// Completes the scalars from the sums of p² and u², over so many elements.
fn finish(s: ptr<function, Step>, sums: vec2<f32>, len: f32) {
    // (4) α = ρ max(ε₂, RMS(p)),  or ρ without scale_parameter
    (*s).alpha = (*s).rho;
    let rms = sqrt(sums[0] / len);
    if ((*s).scale_parameter != 0u) {
        if (rms > (*s).eps2) {
            (*s).alpha = (*s).rho * rms;
        } else {
            (*s).alpha = (*s).rho * (*s).eps2;
        }
    }
    // (5) α / max(1, RMS(u) / clip_threshold)
    let excess = sqrt(sums[1] / len) / (*s).clip;
    (*s).rate = (*s).alpha;
    if (excess > 1.0) {
        (*s).rate = (*s).alpha / excess;
    }
}

fn update(s: Step, p: ptr<function, f32>, u_raw: f32, m: ptr<function, f32>) {
    // (5) u ← α u / max(1, RMS(u) / clip_threshold)
    let u = s.rate * u_raw;
    // (6) M ← β₁ M + (1 − β₁) u,  u ← M
    *m = s.beta1 * *m + s.one_minus_beta1 * u;
    // (7) p ← p − λ α p − u
    *p = *p - s.weight_decay * s.alpha * *p - *m;
}

fn update_plain(s: Step, p: ptr<function, f32>, u_raw: f32) {
    // (5) u ← α u / max(1, RMS(u) / clip_threshold)
    let u = s.rate * u_raw;
    // (7) p ← p − λ α p − u
    *p = *p - s.weight_decay * s.alpha * *p - u;
}
