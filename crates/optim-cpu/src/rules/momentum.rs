//! Momentum. The equations: [`optim_core::rules::Momentum`]. The twin: `shaders/rules/momentum.wgsl`.

use optim_core::rules::momentum::Step;

use crate::kernel::elementwise;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, v: &mut f32) {
    // (1) v ← μ · v + g
    *v = s.momentum * *v + g;
    // (2) d ← v;  nesterov: d ← g + μ · v
    let mut d = *v;
    if s.nesterov != 0 {
        d = g + s.momentum * *v;
    }
    // (3) p ← p − γ · d
    *p = *p - s.lr * d;
}

elementwise!(kernel = update, Step, [v: Signed]);
