// FTRL. The equations: optim-core/src/rules/ftrl.rs. The twin: optim-cpu/src/rules/ftrl.rs.

struct Step {
    inverse_lr: f32,
    l1: f32,
    two_l2: f32,
    moves: u32,
    power: f32,
    power_high: f32,
    power_low: f32,
    pad0: u32,
}

// xʸ for x ≥ 0 and y ≥ 0, which comes as itself and as high + low. The twin, with an explanation: optim-cpu/src/math.rs.
fn power(x: f32, y: f32, high: f32, low: f32) -> f32 {
    // x = 2ᵉ · m with m between √½ and √2; subnormal numbers are scaled by 2²⁴ first
    var scaled = x;
    var bias = 127;
    if (bitcast<u32>(x) < 0x00800000u) {
        scaled = x * 16777216.0;
        bias = 151;
    }
    let bits = (bitcast<u32>(scaled) & 0x7fffffffu) + (0x3f800000u - 0x3f3504f3u);
    let e = f32(i32(bits >> 23u) - bias);
    let m = bitcast<f32>((bits & 0x007fffffu) + 0x3f3504f3u);
    // log₂ m = 2 / ln 2 · artanh r,  r = (m − 1) / (m + 1). The coefficients are those of the least error in that range.
    let r = (m - 1.0) / (m + 1.0);
    let q = r * r;
    let small = y * (r * (2.8853905 + q * (0.96158713 + q * 0.59581774)));
    let t = high * e + small;
    var near = t;
    if (near > 200.0) {
        near = 200.0;
    }
    if (near < -200.0) {
        near = -200.0;
    }
    // adding 1.5 · 2²³ leaves the nearest integer in the low bits
    let k = bitcast<i32>(near + 12582912.0) - 0x4b400000;
    // from left to right: Mesa's compiler takes a sum in parentheses apart
    let f = high * e - f32(k) + low * e + small;
    // 2ᶠ for f between −½ and ½, likewise
    let last = 0.055507854 + f * (0.009675628 + f * 0.001325945);
    let fraction = 1.0 + f * (0.69314694 + f * (0.24022177 + f * last));
    // 2ᵏ in two halves, for it may be out of the range of an f32
    let half = k >> 1u;
    var result = fraction * bitcast<f32>(u32((half + 127) << 23u));
    result = result * bitcast<f32>(u32((k - half + 127) << 23u));
    // f is no fraction there
    if (t > 200.0) {
        // a variable, since no constant may be infinite
        var infinite = 0x7f800000u;
        result = bitcast<f32>(infinite);
    }
    if (t < -200.0) {
        result = 0.0;
    }
    if (x <= 0.0) {
        result = 0.0;
    }
    if (y == 0.0) {
        result = 1.0;
    }
    // infinity and NaN stay what they are
    if ((bitcast<u32>(x) & 0x7f800000u) == 0x7f800000u) {
        result = x;
    }
    return result;
}

// What follows (1), with the power of n.
fn rebuild(s: Step, p: ptr<function, f32>, g: f32, z: ptr<function, f32>, r: f32, power_of_n: f32) {
    // (2) z ← z + g − (nᵏ − r) / γ · p
    *z = *z + g - (power_of_n - r) * s.inverse_lr * *p;
    // (3) d = nᵏ / γ + 2 · l2
    let d = power_of_n * s.inverse_lr + s.two_l2;
    // (4) p ← (sign(z) · l1 − z) / d,  or 0 where |z| ≤ l1;  where d = 0: 0
    var signed_l1 = s.l1;
    if (*z < 0.0) {
        signed_l1 = -s.l1;
    }
    var rebuilt = (signed_l1 - *z) / d;
    if (abs(*z) <= s.l1) {
        rebuilt = 0.0;
    }
    if (d == 0.0) {
        rebuilt = 0.0;
    }
    *p = rebuilt;
}

// k = ½
fn update(s: Step, p: ptr<function, f32>, g: f32, n: ptr<function, f32>, z: ptr<function, f32>) {
    // a rate of 0: no change
    if (s.moves != 0u) {
        // (1) r = nᵏ,  n ← n + g²
        let r = sqrt(*n);
        *n = *n + g * g;
        rebuild(s, p, g, z, r, sqrt(*n));
    }
}

// any k
fn update_power(s: Step, p: ptr<function, f32>, g: f32, n: ptr<function, f32>, z: ptr<function, f32>) {
    // a rate of 0: no change
    if (s.moves != 0u) {
        // (1) r = nᵏ,  n ← n + g²
        let r = power(*n, s.power, s.power_high, s.power_low);
        *n = *n + g * g;
        rebuild(s, p, g, z, r, power(*n, s.power, s.power_high, s.power_low));
    }
}
