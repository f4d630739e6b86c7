// SGD. The equations: optim-core/src/rules/sgd.rs. The twin: optim-cpu/src/rules/sgd.rs.

struct Step {
    lr: f32,
    momentum: f32,
    one_minus_dampening: f32,
    nesterov: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, accum: ptr<function, f32>) {
    // (1) accum ← μ · accum + (1 − τ) · g
    *accum = s.momentum * *accum + s.one_minus_dampening * g;
    // (2) d ← accum;  nesterov: d ← g + μ · accum
    var d = *accum;
    if (s.nesterov != 0u) {
        d = g + s.momentum * *accum;
    }
    // (3) p ← p − γ · d
    *p = *p - s.lr * d;
}

fn update_plain(s: Step, p: ptr<function, f32>, g: f32) {
    // (3) p ← p − γ · g
    *p = *p - s.lr * g;
}
