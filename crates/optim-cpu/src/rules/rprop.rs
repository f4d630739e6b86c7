//! Rprop. The equations: [`optim_core::rules::Rprop`]. The twin: `shaders/rules/rprop.wgsl`.

use optim_core::rules::rprop::Step;

use crate::kernel::elementwise;

// −1, 0 or 1; a NaN stays one
#[inline(always)]
fn sign_of(x: f32) -> f32 {
    let mut sign = x;
    if x > 0.0 {
        sign = 1.0;
    }
    if x < 0.0 {
        sign = -1.0;
    }
    sign
}

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, prev: &mut f32, step_size: &mut f32) {
    // (1) step_size ← γ at a parameter's first update
    let mut size = *step_size;
    if s.first != 0 {
        size = s.lr;
    }
    // (2) step_size ← step_size · η₊ where g · prev > 0,  · η₋ where g · prev < 0
    let agreement = sign_of(g) * sign_of(*prev);
    let mut factor = 1.0;
    if agreement > 0.0 {
        factor = s.eta_plus;
    }
    if agreement < 0.0 {
        factor = s.eta_minus;
    }
    size = size * factor;
    // (3) step_size ← min(max(step_size, Δmin), Δmax)
    if size < s.step_min {
        size = s.step_min;
    }
    if size > s.step_max {
        size = s.step_max;
    }
    *step_size = size;
    // (4) g ← 0 where g · prev < 0
    let mut kept = g;
    if agreement < 0.0 {
        kept = 0.0;
    }
    // (5) p ← p − sign(g) · step_size
    *p = *p - sign_of(kept) * size;
    // (6) prev ← g
    *prev = kept;
}

elementwise!(kernel = update, Step, [prev, step_size]);
