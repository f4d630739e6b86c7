// Adagrad. The equations: optim-core/src/rules/adagrad.rs. The twin: optim-cpu/src/rules/adagrad.rs.

struct Step {
    lr: f32,
    epsilon: f32,
    update_slots: u32,
    pad0: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, accum: ptr<function, f32>) {
    // (1) accum ← accum + g²
    if (s.update_slots != 0u) {
        *accum = *accum + g * g;
    }
    // (2) d = √accum + ε
    let d = sqrt(*accum) + s.epsilon;
    // (3) p ← p − γₜ · g / d;  where d = 0: no change
    let old = *p;
    *p = old - s.lr * g / d;
    if (d == 0.0) {
        *p = old;
    }
}
