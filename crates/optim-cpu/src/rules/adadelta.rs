//! Adadelta. The equations: [`optim_core::rules::Adadelta`]. The twin: `shaders/rules/adadelta.wgsl`.

use optim_core::rules::adadelta::Step;

use crate::kernel::elementwise;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, a: &mut f32, b: &mut f32) {
    // (1) a ← ρ · a + (1 − ρ) · g²
    *a = s.rho * *a + s.one_minus_rho * g * g;
    // (2) u = √(b + ε) / √(a + ε) · g;  where a + ε = 0: 0
    let d = (*a + s.epsilon).sqrt();
    let mut u = (*b + s.epsilon).sqrt() / d * g;
    if d == 0.0 {
        u = 0.0;
    }
    // (3) b ← ρ · b + (1 − ρ) · u²
    *b = s.rho * *b + s.one_minus_rho * u * u;
    // (4) p ← p − γ · u
    *p = *p - s.lr * u;
}

elementwise!(kernel = update, Step, [a: Positive, b: Positive]);
