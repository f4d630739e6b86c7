// Adadelta. The equations: optim-core/src/rules/adadelta.rs. The twin: optim-cpu/src/rules/adadelta.rs.

struct Step {
    lr: f32,
    rho: f32,
    one_minus_rho: f32,
    epsilon: f32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, a: ptr<function, f32>, b: ptr<function, f32>) {
    // (1) a ← ρ · a + (1 − ρ) · g²
    *a = s.rho * *a + s.one_minus_rho * g * g;
    // (2) u = √(b + ε) / √(a + ε) · g;  where a + ε = 0: 0
    let d = sqrt(*a + s.epsilon);
    var u = sqrt(*b + s.epsilon) / d * g;
    if (d == 0.0) {
        u = 0.0;
    }
    // (3) b ← ρ · b + (1 − ρ) · u²
    *b = s.rho * *b + s.one_minus_rho * u * u;
    // (4) p ← p − γ · u
    *p = *p - s.lr * u;
}
