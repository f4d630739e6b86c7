// Lion. The equations: optim-core/src/rules/lion.rs. The twin: optim-cpu/src/rules/lion.rs.

struct Step {
    lr: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    weight_decay: f32,
    pad0: u32,
    pad1: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>) {
    // (1) c ← β₁ · m + (1 − β₁) · g
    let c = s.beta1 * *m + s.one_minus_beta1 * g;
    // (2) m ← β₂ · m + (1 − β₂) · g
    *m = s.beta2 * *m + s.one_minus_beta2 * g;
    // (3) d ← sign(c); 0, and what is not a number, stays so
    var d = c;
    if (c > 0.0) {
        d = 1.0;
    }
    if (c < 0.0) {
        d = -1.0;
    }
    // (4) p ← p − γ · (d + λ · p)
    *p = *p - s.lr * (d + s.weight_decay * *p);
}
