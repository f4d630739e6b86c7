//! Proximal Adagrad. The equations: [`optim_core::rules::ProximalAdagrad`]. The twin:
//! `shaders/rules/proximal_adagrad.wgsl`.

use optim_core::rules::proximal_adagrad::Step;

use crate::kernel::elementwise;

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, accum: &mut f32) {
    // (1) accum ← accum + g²
    *accum = *accum + g * g;
    // (2) η = γ / √accum
    let eta = s.lr / accum.sqrt();
    // (3) q = p − η · g
    let q = *p - eta * g;
    // (4) p ← sign(q) · max(|q| − η · l1, 0) / (1 + η · l2);  where accum = 0: no change
    let mut shrunk = q.abs() - eta * s.l1;
    if shrunk < 0.0 {
        shrunk = 0.0;
    }
    if q < 0.0 {
        shrunk = -shrunk;
    }
    if s.l2 > 0.0 {
        shrunk = shrunk / (1.0 + eta * s.l2);
    }
    if *accum == 0.0 {
        shrunk = *p;
    }
    *p = shrunk;
}

elementwise!(kernel = update, Step, [accum: Positive]);
