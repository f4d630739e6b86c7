//! Lion. The equations: [`optim_core::rules::Lion`]. The twin: `shaders/rules/lion.wgsl`.

use optim_core::rules::lion::Step;

use crate::kernel::elementwise;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, m: &mut f32) {
    // (1) c ← β₁ · m + (1 − β₁) · g
    let c = s.beta1 * *m + s.one_minus_beta1 * g;
    // (2) m ← β₂ · m + (1 − β₂) · g
    *m = s.beta2 * *m + s.one_minus_beta2 * g;
    // (3) d ← sign(c); 0, and what is not a number, stays so
    let mut d = c;
    if c > 0.0 {
        d = 1.0;
    }
    if c < 0.0 {
        d = -1.0;
    }
    // (4) p ← p − γ · (d + λ · p)
    *p = *p - s.lr * (d + s.weight_decay * *p);
}

elementwise!(kernel = update, Step, [m: Signed]);
