//! Rectified Adam. The equations: [`optim_core::rules::RAdam`]. The twin: `shaders/rules/radam.wgsl`.

use optim_core::rules::radam::Step;

use crate::kernel::elementwise;
use crate::math::moving_average;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
    // (1) p ← p − γ λ · p
    *p = *p - s.decay * *p;
    // (2) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (3) v ← v + (1 − β₂) (g² − v)
    moving_average(v, g * g, s.beta2, s.one_minus_beta2);
    // (4) d ← m;  rectified: d ← m / (√v + ε)
    let mut d = *m;
    if s.rectified != 0 {
        d = *m / (v.sqrt() + s.eps);
    }
    // (5) p ← p − α · d
    *p = *p - s.alpha * d;
}

elementwise!(kernel = update, Step, [m: Signed, v: Positive]);
