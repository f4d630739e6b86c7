//! AdaMax. The equations: [`optim_core::rules::AdaMax`]. The twin: `shaders/rules/ada_max.wgsl`.

use optim_core::rules::ada_max::Step;

use crate::kernel::elementwise;
use crate::math::moving_average;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
    // (1) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
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
