//! AdaMax. The equations: [`optim_core::rules::AdaMax`]. The twin: `shaders/rules/ada_max.wgsl`.

use optim_core::rules::ada_max::Step;

use crate::kernel::elementwise;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
    // (1) m ← β₁ · m + (1 − β₁) · g
    *m = s.beta1 * *m + s.one_minus_beta1 * g;
    // (2) v ← max(β₂ · v, |g| + ε′)
    *v = s.beta2 * *v;
    let size = g.abs() + s.eps_inside;
    if size > *v {
        *v = size;
    }
    // (3) p ← p − α · m / (v + ε″)
    *p = *p - s.alpha * *m / (*v + s.eps_outside);
}

elementwise!(kernel = update, Step, [m: Signed, v: Positive]);
