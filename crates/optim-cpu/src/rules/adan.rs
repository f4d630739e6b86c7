//! Adan. The equations: [`optim_core::rules::Adan`]. The twin: `shaders/rules/adan.wgsl`.

use optim_core::rules::adan::Step;

use crate::kernel::elementwise;
use crate::math::moving_average;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, m: &mut f32, v: &mut f32, n: &mut f32, q: &mut f32) {
    // (1) δ ← g − q;  first update: δ ← 0
    let mut delta = g - *q;
    if s.first != 0 {
        delta = 0.0;
    }
    // (2) m ← m + (1 − β₁) (g − m)
    moving_average(m, g, s.beta1, s.one_minus_beta1);
    // (3) v ← v + (1 − β₂) (δ − v)
    moving_average(v, delta, s.beta2, s.one_minus_beta2);
    // (4) u ← g + β₂ · δ
    let u = g + s.beta2 * delta;
    // (5) n ← n + (1 − β₃) (u² − n)
    moving_average(n, u * u, s.beta3, s.one_minus_beta3);
    // (6) q ← g
    *q = g;
    // (7) p ← p − γ λ · p
    *p = *p - s.decay * *p;
    // (8) p ← p − (α · m + κ · v) / (√n + ε′)
    *p = *p - (s.alpha * *m + s.kappa * *v) / (n.sqrt() + s.eps);
    // (9) p ← p − γ λ / (1 + γ λ) · p
    *p = *p - s.decay_after * *p;
}

elementwise!(kernel = update, Step, [m, v, n, q]);
