// Rprop. The equations: optim-core/src/rules/rprop.rs. The twin: optim-cpu/src/rules/rprop.rs.

struct Step {
    lr: f32,
    first: u32,
    eta_minus: f32,
    eta_plus: f32,
    step_min: f32,
    step_max: f32,
    pad0: u32,
    pad1: u32,
}

// −1, 0 or 1; a NaN stays one
fn sign_of(x: f32) -> f32 {
    var sign = x;
    if (x > 0.0) {
        sign = 1.0;
    }
    if (x < 0.0) {
        sign = -1.0;
    }
    return sign;
}

fn update(s: Step, p: ptr<function, f32>, g: f32, prev: ptr<function, f32>, step_size: ptr<function, f32>) {
    // (1) step_size ← γ at a parameter's first update
    var size = *step_size;
    if (s.first != 0u) {
        size = s.lr;
    }
    // (2) step_size ← step_size · η₊ where g · prev > 0,  · η₋ where g · prev < 0
    let agreement = sign_of(g) * sign_of(*prev);
    var factor = 1.0;
    if (agreement > 0.0) {
        factor = s.eta_plus;
    }
    if (agreement < 0.0) {
        factor = s.eta_minus;
    }
    size = size * factor;
    // (3) step_size ← min(max(step_size, Δmin), Δmax)
    if (size < s.step_min) {
        size = s.step_min;
    }
    if (size > s.step_max) {
        size = s.step_max;
    }
    *step_size = size;
    // (4) g ← 0 where g · prev < 0
    var kept = g;
    if (agreement < 0.0) {
        kept = 0.0;
    }
    // (5) p ← p − sign(g) · step_size
    *p = *p - sign_of(kept) * size;
    // (6) prev ← g
    *prev = kept;
}
