//! LAMB. The equations: [`optim_core::rules::Lamb`]. The twin: `shaders/rules/lamb.wgsl`.

use optim_core::rules::lamb::Step;

use crate::kernel::{elementwise, norms};
use crate::reduce::Sums;

#[inline(always)]
fn moments(s: &Step, g: f32, m: &mut f32, v: &mut f32) {
    // (1) m ← β₁ m + (1 − β₁) g
    *m = s.beta1 * *m + s.one_minus_beta1 * g;
    // (2) v ← β₂ v + (1 − β₂) g²
    *v = s.beta2 * *v + s.one_minus_beta2 * g * g;
}

#[inline(always)]
fn terms(s: &Step, p: f32, g: f32, m_old: f32, v_old: f32) -> Sums {
    let mut m = m_old;
    let mut v = v_old;
    moments(s, g, &mut m, &mut v);
    // (3) m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
    let m_hat = m * s.unbias1;
    let v_hat = v * s.unbias2;
    // (4) n = m̂ / √(v̂ + ε) + λ p
    let n = m_hat / (v_hat + s.eps).sqrt() + s.weight_decay * p;
    [p * p, n * n]
}

fn finish(s: &mut Step, sums: Sums) {
    // (5) r = min(‖p‖ / ‖n‖, 10), or 1 if a norm is 0
    let p_norm = sums[0].sqrt();
    let n_norm = sums[1].sqrt();
    s.ratio = 1.0;
    if p_norm > 0.0 && n_norm > 0.0 {
        s.ratio = p_norm / n_norm;
    }
    if s.ratio > 10.0 {
        s.ratio = 10.0;
    }
}

#[inline(always)]
fn apply(s: &Step, p: &mut f32, m: f32, v: f32) {
    // (3) m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
    let m_hat = m * s.unbias1;
    let v_hat = v * s.unbias2;
    // (6) u = m̂ / (√v̂ + ε) + λ p
    let u = m_hat / (v_hat.sqrt() + s.eps) + s.weight_decay * *p;
    // (7) p ← p − γ r u
    *p = *p - s.lr * s.ratio * u;
}

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
    moments(s, g, m, v);
    apply(s, p, *m, *v);
}

elementwise!(kernel = update, Step, [m: Signed, v: Positive]);
norms!(norms = terms, moments, finish, apply, Step, [m, v]);
