// NAdam. The equations: optim-core/src/rules/nadam.rs. The twin: optim-cpu/src/rules/nadam.rs.

struct Step {
    decay: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    alpha: f32,
    kappa: f32,
    eps: f32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>, v: ptr<function, f32>) {
    // (1) p ← p − γ λ · p
    *p = *p - s.decay * *p;
    // (2) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (3) v ← v + (1 − β₂) (g² − v)
    moving_average(v, g * g, s.beta2, s.one_minus_beta2);
    // (4) p ← p − (α · m + κ · g) / (√v + ε′)
    *p = *p - (s.alpha * *m + s.kappa * g) / (sqrt(*v) + s.eps);
}
