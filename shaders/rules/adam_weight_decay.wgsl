// Adam with decoupled decay and without bias correction. The equations: optim-core/src/rules/adam_weight_decay.rs. The
// twin: optim-cpu/src/rules/adam_weight_decay.rs.

struct Step {
    lr: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    eps: f32,
    weight_decay: f32,
    pad0: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>, v: ptr<function, f32>) {
    // (1) m ← β₁ · m + (1 − β₁) · g
    *m = s.beta1 * *m + s.one_minus_beta1 * g;
    // (2) v ← β₂ · v + (1 − β₂) · g²
    *v = s.beta2 * *v + s.one_minus_beta2 * g * g;
    // (3) u ← m / (√v + ε) + λ · p
    let u = *m / (sqrt(*v) + s.eps) + s.weight_decay * *p;
    // (4) p ← p − γ · u
    *p = *p - s.lr * u;
}
