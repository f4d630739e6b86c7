//! Adagrad. The equations: [`optim_core::rules::Adagrad`]. The twin: `shaders/rules/adagrad.wgsl`.

use optim_core::rules::adagrad::Step;

use crate::kernel::elementwise;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, accum: &mut f32) {
    // (1) accum ← accum + g²
    if s.update_slots != 0 {
        *accum = *accum + g * g;
    }
    // (2) d = √accum + ε
    let d = accum.sqrt() + s.epsilon;
    // (3) p ← p − γₜ · g / d;  where d = 0: no change
    let old = *p;
    *p = old - s.lr * g / d;
    if d == 0.0 {
        *p = old;
    }
}

elementwise!(kernel = update, Step, [accum: Positive]);
