//! Functions that rules need and no processor has: made of `+ − × ÷`, comparisons and the bits of numbers, so that they
//! give the same bits everywhere.

use optim_core::format::BLOCK;

use crate::kernel::Aligned;

/// `m ← β m + (1 − β) x`, as a change of `m` where `β` is near 1: the last bits of `β` would be missed otherwise. Where `β` is small,
/// that would lose `x` beside a much larger `m`. The twin: `shaders/moving_average.wgsl`.
#[allow(clippy::assign_op_pattern, reason = "reads like its WGSL twin")]
#[inline(always)]
pub(crate) fn moving_average(m: &mut f32, x: f32, beta: f32, one_minus_beta: f32) {
    if beta < 0.5 {
        *m = beta * *m + one_minus_beta * x;
    } else {
        *m = *m + one_minus_beta * (x - *m);
    }
}

/// The exponent of [`power`]: `y` itself, and as `high + low`, where `high` is a multiple of 1/4096.
#[derive(Clone, Copy)]
pub(crate) struct Exponent {
    pub y: f32,
    pub high: f32,
    pub low: f32,
}

/// `xʸ` for `x` ≥ 0 and `y` ≥ 0. The relative error is below 1e-6 for `y` ≤ 4 and grows with `y` from there. The twin:
/// `shaders/rules/ftrl.wgsl`.
///
/// `xʸ` is `2ᵗ` with `t = y · log₂ x`. Rounding `t` to an `f32` would cost up to `|t|` times the error of one rounding,
/// so its nearest integer is taken from it before: with `x = 2ᵉ · m` the large term `high · e` has no rounding error, nor
/// has what is left of it, and only what is small is rounded.
#[allow(clippy::manual_clamp, clippy::assign_op_pattern, reason = "reads like its WGSL twin")]
#[inline(always)]
pub(crate) fn power(x: f32, exponent: Exponent) -> f32 {
    let Exponent { y, high, low } = exponent;
    // subnormal numbers are scaled by 2²⁴ first
    let mut scaled = x;
    let mut bias = 127;
    if x.to_bits() < 0x0080_0000 {
        scaled = x * 16_777_216.0;
        bias = 151;
    }
    let (e, m) = split(scaled.to_bits() & 0x7fff_ffff, bias);
    let small = y * log2((m - 1.0) / (m + 1.0));
    let t = high * e + small;
    let mut near = t;
    if near > 200.0 {
        near = 200.0;
    }
    if near < -200.0 {
        near = -200.0;
    }
    // adding 1.5 · 2²³ leaves the nearest integer in the low bits
    let k = (near + 12_582_912.0).to_bits() as i32 - 0x4b40_0000;
    // from left to right: Mesa's compiler takes a sum in parentheses apart
    let f = high * e - k as f32 + low * e + small;
    // 2ᵏ in two halves, for it may be out of the range of an f32
    let half = k >> 1;
    let mut result = exp2(f) * f32::from_bits(((half + 127) << 23) as u32);
    result = result * f32::from_bits(((k - half + 127) << 23) as u32);
    // f is no fraction there
    if t > 200.0 {
        result = f32::INFINITY;
    }
    if t < -200.0 {
        result = 0.0;
    }
    if x <= 0.0 {
        result = 0.0;
    }
    if y == 0.0 {
        result = 1.0;
    }
    // infinity and NaN stay what they are
    if (x.to_bits() & 0x7f80_0000) == 0x7f80_0000 {
        result = x;
    }
    result
}

/// [`power`] of many. Where all are positive, normal and finite, and 0 < `y` < 1, it gives the same bits in less time: then `t`
/// lies between −126 and 128. Short loops, in which many numbers are at the same step, wait less than one over all steps.
#[inline(always)]
pub(crate) fn powers(x: &[f32], exponent: Exponent, out: &mut [f32]) {
    let Exponent { y, high, low } = exponent;
    let mut ordinary = y > 0.0 && y < 1.0;
    for &x in x {
        ordinary &= x.to_bits().wrapping_sub(0x0080_0000) < 0x7f00_0000;
    }
    if !ordinary {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = power(x, exponent);
        }
        return;
    }
    let mut shifts = Aligned([0.0; BLOCK]);
    let (out, shifts) = (&mut out[..x.len()], &mut shifts.0[..x.len()]);
    for i in 0..x.len() {
        let (e, m) = split(x[i].to_bits(), 127);
        shifts[i] = e;
        out[i] = (m - 1.0) / (m + 1.0);
    }
    for r in out.iter_mut() {
        *r = y * log2(*r);
    }
    for i in 0..x.len() {
        let (e, small) = (shifts[i], out[i]);
        let near = high * e + small + 12_582_912.0;
        out[i] = high * e - (near - 12_582_912.0) + low * e + small;
        shifts[i] = near;
    }
    for i in 0..x.len() {
        // adds the integer, which is in the low bits, to the exponent
        out[i] = f32::from_bits(exp2(out[i]).to_bits().wrapping_add(shifts[i].to_bits() << 23));
    }
}

// x = 2ᵉ · m with m between √½ and √2
#[inline(always)]
fn split(bits: u32, bias: i32) -> (f32, f32) {
    let bits = bits + (0x3f80_0000 - 0x3f35_04f3);
    let e = (bits >> 23) as i32 - bias;
    (e as f32, f32::from_bits((bits & 0x007f_ffff) + 0x3f35_04f3))
}

// log₂ m = 2 / ln 2 · artanh r,  r = (m − 1) / (m + 1). The coefficients are those of the least error in that range.
#[inline(always)]
fn log2(r: f32) -> f32 {
    let q = r * r;
    r * (2.885_390_5 + q * (0.961_587_13 + q * 0.595_817_74))
}

// 2ᶠ for f between −½ and ½, likewise
#[allow(clippy::approx_constant, reason = "reads like its WGSL twin")]
#[inline(always)]
fn exp2(f: f32) -> f32 {
    let high = 0.055_507_854 + f * (0.009_675_628 + f * 0.001_325_945);
    1.0 + f * (0.693_146_94 + f * (0.240_221_77 + f * high))
}

#[cfg(test)]
mod tests {
    use optim_core::Ftrl;
    use optim_core::rule::{At, UpdateRule};
    use optim_core::rules::ftrl::Step;

    use super::{BLOCK, Exponent, powers};

    /// The exponent as the kernel gets it, with what core makes of the power.
    fn exponent(y: f64) -> Exponent {
        let rule = Ftrl { lr_power: -y, ..Ftrl::default() };
        let at = At { lr: 0.1, ..At::default() };
        let scalars = rule.scalars(&at);
        let s: &Step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
        Exponent { y: s.power, high: s.power_high, low: s.power_low }
    }

    fn power(x: f32, y: f64) -> f32 {
        super::power(x, exponent(y))
    }

    /// Blocks of normal numbers of every magnitude, the least and the largest among them; powers up to the last before 1.
    #[test]
    fn short_loops_give_the_same_bits() {
        let normal = f32::MIN_POSITIVE.to_bits()..=f32::MAX.to_bits();
        let mut bases: Vec<f32> = normal.clone().step_by(9973).map(f32::from_bits).collect();
        bases.extend([*normal.start(), *normal.start() + 1, *normal.end() - 1, *normal.end()].map(f32::from_bits));
        for y in [1e-30, 1e-4, 0.1, 0.25, 1.0 / 3.0, 0.5, 0.7, 0.999, 1.0 - 2.0_f64.powi(-13), 1.0 - 2.0_f64.powi(-24)]
        {
            let exponent = exponent(y);
            for block in bases.chunks(BLOCK) {
                let mut out = [0.0; BLOCK];
                powers(block, exponent, &mut out);
                for (&x, out) in block.iter().zip(out) {
                    let expected = super::power(x, exponent);
                    assert!(out.to_bits() == expected.to_bits(), "{x:e} to the power {y}: {out:e}, not {expected:e}");
                }
            }
        }
    }

    /// One number that is not ordinary is enough for the other way.
    #[test]
    fn a_block_with_special_numbers() {
        for (special, expected) in [(0.0, 0.0), (f32::INFINITY, f32::INFINITY), (f32::from_bits(2), 2.0_f32.powi(-74))]
        {
            let mut out = [0.0; 3];
            powers(&[4.0, special, 9.0], exponent(0.5), &mut out);
            let [four, got, nine] = out;
            assert!((four - 2.0).abs() < 1e-6 && (nine - 3.0).abs() < 1e-6, "{out:?}");
            assert!((got - expected).abs() <= 1e-6 * expected || got == expected, "√{special:e} is {got:e}");
        }
    }

    /// Bases from 1e-12 to 1e12 with powers from 0 to 4.
    #[test]
    #[allow(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is the purpose")]
    fn is_within_a_millionth() {
        let mut worst = 0.0_f64;
        for i in 0..=20_000 {
            let x = (10.0_f64.powf(f64::from(i - 10_000) / 10_000.0 * 12.0)) as f32;
            for j in 1..=97 {
                let y = f64::from((f64::from(j) / 97.0 * 4.0) as f32);
                let exact = f64::from(x).powf(y);
                if (f64::from(f32::MIN_POSITIVE)..f64::from(f32::MAX)).contains(&exact) {
                    worst = worst.max((f64::from(power(x, y)) / exact - 1.0).abs());
                }
            }
        }
        assert!(worst < 1e-6, "the worst relative error is {worst:e}");
        assert!(worst > 1e-8, "the measurement measures nothing");
    }

    /// What is 0, whole, out of range or no number.
    #[test]
    fn of_special_numbers() {
        for (x, y, expected) in [
            (0.0, 0.3, 0.0),
            (0.0, 0.0, 1.0),
            (7.0, 0.0, 1.0),
            (1.0, 3.7, 1.0),
            (4.0, 2.0, 16.0),
            (1e12, 4.0, f32::INFINITY),
            (1e-12, 4.0, 0.0),
            (f32::INFINITY, 0.25, f32::INFINITY),
            (1e-40, 1e30, 0.0),
            (2.0, 1e30, f32::INFINITY),
            (1.0, 1e30, 1.0),
        ] {
            let got = power(x, y);
            assert!(got == expected, "{x} to the power {y} is {got}");
        }
        assert!(power(f32::NAN, 0.7).is_nan(), "a NaN stays one");
        let tiny = f64::from(power(1e-40, 0.25)) / 1e-10;
        assert!((tiny - 1.0).abs() < 1e-5, "a subnormal number has a root");
    }
}
