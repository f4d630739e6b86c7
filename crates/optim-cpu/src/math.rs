//! Functions that rules need and no processor has: made of `+ − × ÷`, comparisons and the bits of numbers, so that they
//! give the same bits everywhere.

/// `xʸ` for `x` ≥ 0 and `y` ≥ 0, which comes as itself and as `y_fixed / 4096 + y_rest`. The relative error is below
/// 1e-6 for `y` ≤ 4 and grows with `y` from there. The twin: `shaders/rules/ftrl.wgsl`.
///
/// `xʸ` is `2ᵗ` with `t = y · log₂ x`. Rounding `t` to an `f32` would cost up to `|t|` times the error of one rounding,
/// so its whole part is kept apart: with `x = 2ᵉ · m` the large term `y · e` is computed in integers, and only what is
/// small is rounded.
///
/// It comes in two halves, which a loop each computes faster than one does both: what waits for a sum then is less.
#[cfg(test)]
fn power(x: f32, y: f32, y_fixed: u32, y_rest: f32) -> f32 {
    let (t, whole) = exponent(x, y, y_fixed, y_rest);
    exponential(t, whole, x, y)
}

/// The first half of [`power`]: `t`, between −1000 and 1000, and its whole part, which is to be added.
#[allow(clippy::manual_clamp, clippy::approx_constant, reason = "reads like its WGSL twin")]
#[inline(always)]
pub(crate) fn exponent(x: f32, y: f32, y_fixed: u32, y_rest: f32) -> (f32, i32) {
    // x = 2ᵉ · m with m between √½ and √2; subnormal numbers are scaled by 2²⁴ first
    let mut scaled = x;
    let mut bias = 127;
    if x.to_bits() < 0x0080_0000 {
        scaled = x * 16_777_216.0;
        bias = 151;
    }
    let bits = (scaled.to_bits() & 0x7fff_ffff) + (0x3f80_0000 - 0x3f35_04f3);
    let e = (bits >> 23) as i32 - bias;
    let m = f32::from_bits((bits & 0x007f_ffff) + 0x3f35_04f3);
    // log₂ m = 2 / ln 2 · artanh r,  r = (m − 1) / (m + 1)
    let r = (m - 1.0) / (m + 1.0);
    let q = r * r;
    let log2_m = r * (2.885_39 + q * (0.961_796_7 + q * (0.577_078_04 + q * (0.412_198_57 + q * 0.320_598_9))));
    // t = y · log₂ x − whole, where whole + part / 4096 = y_fixed / 4096 · e without rounding
    let product = y_fixed as i32 * e;
    let whole = (product + 2048) >> 12;
    let part = (product - whole * 4096) as f32;
    // from left to right: Mesa's compiler takes a sum in parentheses apart
    let mut t = part / 4096.0 + y_rest * e as f32 + y * log2_m;
    if t > 1000.0 {
        t = 1000.0;
    }
    if t < -1000.0 {
        t = -1000.0;
    }
    (t, whole)
}

/// The second half of [`power`].
#[allow(clippy::manual_clamp, clippy::approx_constant, clippy::assign_op_pattern, reason = "reads like its WGSL twin")]
#[inline(always)]
pub(crate) fn exponential(t: f32, whole: i32, x: f32, y: f32) -> f32 {
    // 2ᵗ = 2ᶠ · 2ᵏ with f between −½ and ½, and 2ᶠ by its series
    // adding 1.5 · 2²³ leaves the nearest integer in the low bits
    let nearest = (t + 12_582_912.0).to_bits() as i32 - 0x4b40_0000;
    let f = t - nearest as f32;
    let high = 0.009_618_129 + f * (0.001_333_355_8 + f * (0.000_154_035_3 + f * 0.000_015_252_734));
    let series = 1.0 + f * (0.693_147_2 + f * (0.240_226_5 + f * (0.055_504_11 + f * high)));
    let mut k = whole + nearest;
    if k > 200 {
        k = 200;
    }
    if k < -200 {
        k = -200;
    }
    // 2ᵏ in two halves, for it may be out of the range of an f32
    let half = k >> 1;
    let mut result = series * f32::from_bits(((half + 127) << 23) as u32);
    result = result * f32::from_bits(((k - half + 127) << 23) as u32);
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

#[cfg(test)]
mod tests {
    use optim_core::Ftrl;
    use optim_core::rule::{At, UpdateRule};
    use optim_core::rules::ftrl::Step;

    /// `power` as the kernel calls it, with what core makes of the power.
    fn power(x: f32, y: f64) -> f32 {
        let rule = Ftrl { lr_power: -y, ..Ftrl::default() };
        let at = At { lr: 0.1, ..At::default() };
        let scalars = rule.scalars(&at);
        let s: &Step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
        super::power(x, s.power, s.power_fixed, s.power_rest)
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
