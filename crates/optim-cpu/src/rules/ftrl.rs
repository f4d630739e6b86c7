//! FTRL. The equations: [`optim_core::rules::Ftrl`]. The twin: `shaders/rules/ftrl.wgsl`.

use multiversion::multiversion;
use optim_core::format::BLOCK;
use optim_core::rules::ftrl::Step;

use crate::arch::{SPAN, fetch_span};
use crate::kernel::{Aligned, Kernel, Scaling, elementwise};
use crate::math::{Exponent, powers};

// Elements between those that are worked on and those that are fetched.
const AHEAD: usize = 768;

// What follows (1), with the power of n.
#[inline(always)]
fn rebuild(s: &Step, p: &mut f32, g: f32, z: &mut f32, r: f32, power_of_n: f32) {
    // (2) z ← z + g − (nᵏ − r) / γ · p
    *z = *z + g - (power_of_n - r) * s.inverse_lr * *p;
    // (3) d = nᵏ / γ + 2 · l2
    let d = power_of_n * s.inverse_lr + s.two_l2;
    // (4) p ← (sign(z) · l1 − z) / d,  or 0 where |z| ≤ l1;  where d = 0: 0
    let mut signed_l1 = s.l1;
    if *z < 0.0 {
        signed_l1 = -s.l1;
    }
    let mut rebuilt = (signed_l1 - *z) / d;
    if z.abs() <= s.l1 {
        rebuilt = 0.0;
    }
    if d == 0.0 {
        rebuilt = 0.0;
    }
    *p = rebuilt;
}

// k = ½
#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, n: &mut f32, z: &mut f32) {
    // a rate of 0: no change
    if s.moves != 0 {
        // (1) r = nᵏ,  n ← n + g²
        let r = n.sqrt();
        *n = *n + g * g;
        rebuild(s, p, g, z, r, n.sqrt());
    }
}

// any k. In short loops over a block the powers of many elements are computed at a time, which in one long loop would be waited for.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn walk_power(s: &Step, p: &mut [f32], g: &[f32], scaling: Scaling, n: &mut [f32], z: &mut [f32]) {
    let s = *s;
    // a rate of 0: no change
    if s.moves == 0 {
        return;
    }
    let exponent = Exponent { y: s.power, high: s.power_high, low: s.power_low };
    let [mut before, mut after] = [Aligned([0.0; BLOCK]); 2];
    for start in (0..p.len()).step_by(BLOCK) {
        let len = BLOCK.min(p.len() - start);
        let (p, g) = (&mut p[start..][..len], &g[start..][..len]);
        let (n, z) = (&mut n[start..][..len], &mut z[start..][..len]);
        let (before, after) = (&mut before.0[..len], &mut after.0[..len]);
        // (1) r = nᵏ,  n ← n + g²
        ahead(p);
        powers(n, exponent, before);
        ahead(g);
        for i in 0..len {
            let g = scaling.apply(g[i], p[i]);
            n[i] = n[i] + g * g;
        }
        ahead(n);
        powers(n, exponent, after);
        ahead(z);
        for i in 0..len {
            let g = scaling.apply(g[i], p[i]);
            rebuild(&s, &mut p[i], g, &mut z[i], before[i], after[i]);
        }
    }
}

#[inline(always)]
fn ahead(block: &[f32]) {
    (0..block.len()).step_by(SPAN).for_each(|span| fetch_span(block, span + AHEAD));
}

elementwise!(kernel = update, Step, [n, z]);
#[allow(non_upper_case_globals, reason = "named as a function is")]
pub(crate) const kernel_power: Kernel = Kernel {
    f32: |scalars, p, g, scaling, slots| {
        let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
        let [n, z, ..] = slots;
        walk_power(step, p, g, scaling, n, z);
    },
    narrow: None,
};
