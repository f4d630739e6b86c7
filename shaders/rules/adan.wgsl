// Adan. The equations: optim-core/src/rules/adan.rs. The twin: optim-cpu/src/rules/adan.rs.

struct Step {
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    beta3: f32,
    one_minus_beta3: f32,
    alpha: f32,
    kappa: f32,
    eps: f32,
    decay: f32,
    decay_after: f32,
    first: u32,
}

fn update(
    s: Step,
    p: ptr<function, f32>,
    g: f32,
    m: ptr<function, f32>,
    v: ptr<function, f32>,
    n: ptr<function, f32>,
    q: ptr<function, f32>,
) {
    // (1) δ ← g − q;  first update: δ ← 0
    var delta = g - *q;
    if (s.first != 0u) {
        delta = 0.0;
    }
    // (2) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (3) v ← v + (1 − β₂) (δ − v)
    moving_average(v, delta, s.beta2, s.one_minus_beta2);
    // (4) u ← g + β₂ · δ
    let u = g + s.beta2 * delta;
    // (5) n ← n + (1 − β₃) (u² − n)
    moving_average(n, u * u, s.beta3, s.one_minus_beta3);
    // (6) q ← g
    *q = g;
    // (7) p ← p − γ λ · p
    *p = *p - s.decay * *p;
    // (8) p ← p − (α · m + κ · v) / (√n + ε′)
    *p = *p - (s.alpha * *m + s.kappa * *v) / (sqrt(*n) + s.eps);
    // (9) p ← p − γ λ / (1 + γ λ) · p
    *p = *p - s.decay_after * *p;
}
