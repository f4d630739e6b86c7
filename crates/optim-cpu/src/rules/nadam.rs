//! NAdam. The equations: [`optim_core::rules::NAdam`]. The twin: `shaders/rules/nadam.wgsl`.

use optim_core::rules::nadam::Step;

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
    // (4) p ← p − (α · m + κ · g) / (√v + ε′)
    *p = *p - (s.alpha * *m + s.kappa * g) / (v.sqrt() + s.eps);
}

elementwise!(kernel = update, Step, [m: Signed, v: Positive]);
