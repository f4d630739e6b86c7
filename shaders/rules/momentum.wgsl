// Momentum. The equations: optim-core/src/rules/momentum.rs. The twin: optim-cpu/src/rules/momentum.rs.

struct Step {
    lr: f32,
    momentum: f32,
    nesterov: u32,
    pad: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, v: ptr<function, f32>) {
    // (1) v ← μ · v + g
    *v = s.momentum * *v + g;
    // (2) d ← v;  nesterov: d ← g + μ · v
    var d = *v;
    if (s.nesterov != 0u) {
        d = g + s.momentum * *v;
    }
    // (3) p ← p − γ · d
    *p = *p - s.lr * d;
}
