//! Averaged SGD. The equations: [`optim_core::rules::Asgd`]. The twin: `shaders/rules/asgd.wgsl`.

use optim_core::rules::asgd::Step;

use crate::kernel::elementwise;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, ax: &mut f32) {
    // (1) p ← p − (λ · ηₜ · p + ηₜ · g)
    *p = *p - (s.decay * *p + s.eta * g);
    // (2) ax ← ax + μₜ · (p − ax);  where μₜ = 1: ax ← p
    let mut average = *ax + s.mu * (*p - *ax);
    if s.copies != 0 {
        average = *p;
    }
    *ax = average;
}

elementwise!(kernel = update, Step, [ax]);
