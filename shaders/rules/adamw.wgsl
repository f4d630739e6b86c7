// AdamW. The equations: optim-core/src/rules/adamw.rs. The twin: optim-cpu/src/rules/adamw.rs.

struct Step {
    decay: f32,
    alpha: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    eps: f32,
    pad0: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>, v: ptr<function, f32>) {
    // (1) p ← p − γ λ · p
    *p = *p - s.decay * *p;
    // (2) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (3) v ← v + (1 − β₂) (g² − v)
    moving_average(v, g * g, s.beta2, s.one_minus_beta2);
    // (4) p ← p − α · m / (√v + ε′)
    *p = *p - s.alpha * *m / (sqrt(*v) + s.eps);
}

fn update_amsgrad(
    s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>, v: ptr<function, f32>, vhat: ptr<function, f32>
) {
    // (1) p ← p − γ λ · p
    *p = *p - s.decay * *p;
    // (2) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (3) v ← v + (1 − β₂) (g² − v)
    moving_average(v, g * g, s.beta2, s.one_minus_beta2);
    // (5) v̂ ← max(v̂, v)
    if (*v > *vhat) {
        *vhat = *v;
    }
    // (6) p ← p − α · m / (√v̂ + ε′)
    *p = *p - s.alpha * *m / (sqrt(*vhat) + s.eps);
}
