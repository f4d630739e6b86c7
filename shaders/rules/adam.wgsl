// Adam. The equations: optim-core/src/rules/adam.rs. The twin: optim-cpu/src/rules/adam.rs. Also the kernel of LazyAdam
// and AdamOffload.

struct Step {
    alpha: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    eps: f32,
    nesterov: u32,
    pad0: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>, v: ptr<function, f32>) {
    // (1) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (2) v ← v + (1 − β₂) (g² − v)
    moving_average(v, g * g, s.beta2, s.one_minus_beta2);
    // (3) d ← m;  nesterov: d ← β₁ · m + (1 − β₁) · g
    var d = *m;
    if (s.nesterov != 0u) {
        d = s.beta1 * *m + s.one_minus_beta1 * g;
    }
    // (4) p ← p − α · d / (√v + ε)
    *p = *p - s.alpha * d / (sqrt(*v) + s.eps);
}

fn update_amsgrad(
    s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>, v: ptr<function, f32>, vhat: ptr<function, f32>
) {
    // (1) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (2) v ← v + (1 − β₂) (g² − v)
    moving_average(v, g * g, s.beta2, s.one_minus_beta2);
    // (5) v̂ ← max(v̂, v)
    if (*v > *vhat) {
        *vhat = *v;
    }
    // (6) p ← p − α · m / (√v̂ + ε)
    *p = *p - s.alpha * *m / (sqrt(*vhat) + s.eps);
}
