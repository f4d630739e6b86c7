// Adan. The equations: optim-core/src/rules/adan.rs. The twin: optim-cpu/src/rules/adan.rs.

struct Step {
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    one_minus_beta3: f32,
    alpha: f32,
    kappa: f32,
    eps: f32,
    decay: f32,
    decay_after: f32,
    first: u32,
    pad0: u32,
    pad1: u32,
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
    *m = *m + s.one_minus_beta1 * (g - *m);
    // (3) v ← v + (1 − β₂) (δ − v)
    *v = *v + s.one_minus_beta2 * (delta - *v);
    // (4) u ← g + β₂ · δ
    let u = g + s.beta2 * delta;
    // (5) n ← n + (1 − β₃) (u² − n)
    *n = *n + s.one_minus_beta3 * (u * u - *n);
    // (6) q ← g
    *q = g;
    // (7) p ← p − γ λ · p
    *p = *p - s.decay * *p;
    // (8) p ← p − (α · m + κ · v) / (√n + ε′)
    *p = *p - (s.alpha * *m + s.kappa * *v) / (sqrt(*n) + s.eps);
    // (9) p ← p − γ λ / (1 + γ λ) · p
    *p = *p - s.decay_after * *p;
}
