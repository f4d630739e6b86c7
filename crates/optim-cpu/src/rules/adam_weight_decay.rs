//! Adam with decoupled decay and without bias correction. The equations: [`optim_core::rules::AdamWeightDecay`]. The
//! twin: `shaders/rules/adam_weight_decay.wgsl`.

use optim_core::rules::adam_weight_decay::Step;

use crate::kernel::elementwise;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
    // (1) m ← β₁ · m + (1 − β₁) · g
    *m = s.beta1 * *m + s.one_minus_beta1 * g;
    // (2) v ← β₂ · v + (1 − β₂) · g²
    *v = s.beta2 * *v + s.one_minus_beta2 * g * g;
    // (3) u ← m / (√v + ε) + λ · p
    let u = *m / (v.sqrt() + s.eps) + s.weight_decay * *p;
    // (4) p ← p − γ · u
    *p = *p - s.lr * u;
}

elementwise!(kernel = update, Step, [m: Signed, v: Positive]);
