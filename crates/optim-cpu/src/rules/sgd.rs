//! SGD. The equations: [`optim_core::rules::Sgd`]. The twin: `shaders/rules/sgd.wgsl`.

use optim_core::rules::sgd::Step;

use crate::kernel::elementwise;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, accum: &mut f32) {
    // (1) accum ← μ · accum + (1 − τ) · g
    *accum = s.momentum * *accum + s.one_minus_dampening * g;
    // (2) d ← accum;  nesterov: d ← g + μ · accum
    let mut d = *accum;
    if s.nesterov != 0 {
        d = g + s.momentum * *accum;
    }
    // (3) p ← p − γ · d
    *p = *p - s.lr * d;
}

#[inline(always)]
fn update_plain(s: &Step, p: &mut f32, g: f32) {
    // (3) p ← p − γ · g
    *p = *p - s.lr * g;
}

elementwise!(kernel = update, Step, [accum: Signed]);
elementwise!(kernel_plain = update_plain, Step, []);
