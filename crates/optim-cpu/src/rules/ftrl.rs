//! FTRL. The equations: [`optim_core::rules::Ftrl`]. The twin: `shaders/rules/ftrl.wgsl`.

use optim_core::rules::ftrl::Step;

use crate::kernel::elementwise;
use crate::math::power;

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

// any k
#[inline(always)]
fn update_power(s: &Step, p: &mut f32, g: f32, n: &mut f32, z: &mut f32) {
    // a rate of 0: no change
    if s.moves != 0 {
        // (1) r = nᵏ,  n ← n + g²
        let r = power(*n, s.power, s.power_fixed, s.power_rest);
        *n = *n + g * g;
        rebuild(s, p, g, z, r, power(*n, s.power, s.power_fixed, s.power_rest));
    }
}

elementwise!(kernel = update, Step, [n, z]);
elementwise!(kernel_power = update_power, Step, [n, z]);
