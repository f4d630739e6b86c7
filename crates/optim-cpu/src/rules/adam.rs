//! Adam. The equations: [`optim_core::rules::Adam`]. The twin: `shaders/rules/adam.wgsl`. Also the kernel of
//! [`LazyAdam`](optim_core::rules::LazyAdam) and [`AdamOffload`](optim_core::rules::AdamOffload).

use optim_core::rules::adam::Step;

use crate::kernel::elementwise;
use crate::math::moving_average;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
    // (1) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (2) v ← v + (1 − β₂) (g² − v)
    moving_average(v, g * g, s.beta2, s.one_minus_beta2);
    // (3) d ← m;  nesterov: d ← β₁ · m + (1 − β₁) · g
    let mut d = *m;
    if s.nesterov != 0 {
        d = s.beta1 * *m + s.one_minus_beta1 * g;
    }
    // (4) p ← p − α · d / (√v + ε)
    *p = *p - s.alpha * d / (v.sqrt() + s.eps);
}

#[inline(always)]
fn update_amsgrad(s: &Step, p: &mut f32, g: f32, m: &mut f32, v: &mut f32, vhat: &mut f32) {
    // (1) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (2) v ← v + (1 − β₂) (g² − v)
    moving_average(v, g * g, s.beta2, s.one_minus_beta2);
    // (5) v̂ ← max(v̂, v)
    if *v > *vhat {
        *vhat = *v;
    }
    // (6) p ← p − α · m / (√v̂ + ε)
    *p = *p - s.alpha * *m / (vhat.sqrt() + s.eps);
}

elementwise!(kernel = update, Step, [m: Signed, v: Positive]);
elementwise!(kernel_amsgrad = update_amsgrad, Step, [m, v, vhat]);
