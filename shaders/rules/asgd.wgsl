// Averaged SGD. The equations: optim-core/src/rules/asgd.rs. The twin: optim-cpu/src/rules/asgd.rs.

struct Step {
    decay: f32,
    eta: f32,
    mu: f32,
    copies: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, ax: ptr<function, f32>) {
    // (1) p ← p − (λ · ηₜ · p + ηₜ · g)
    *p = *p - (s.decay * *p + s.eta * g);
    // (2) ax ← ax + μₜ · (p − ax);  where μₜ = 1: ax ← p
    var average = *ax + s.mu * (*p - *ax);
    if (s.copies != 0u) {
        average = *p;
    }
    *ax = average;
}
