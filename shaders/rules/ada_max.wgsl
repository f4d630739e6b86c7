// AdaMax. The equations: optim-core/src/rules/ada_max.rs. The twin: optim-cpu/src/rules/ada_max.rs.

struct Step {
    alpha: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    eps_inside: f32,
    eps_outside: f32,
    pad0: u32,
    pad1: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>, v: ptr<function, f32>) {
    // (1) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (2) v ← max(β₂ · v, |g| + ε′)
    *v = s.beta2 * *v;
    let size = abs(g) + s.eps_inside;
    if (size > *v) {
        *v = size;
    }
    // (3) p ← p − α · m / (v + ε″)
    *p = *p - s.alpha * *m / (*v + s.eps_outside);
}
