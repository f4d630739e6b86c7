//! How second moments are kept as `f16`: the codec that both backends agree on.
//!
//! ```text
//! to nearest, ties to even
//! positive, below 2⁻²⁴   2⁻²⁴, the least positive f16: a divisor that is not 0 does not become 0
//! beyond 65,504          65,504, the largest: infinity too
//! not a number           not a number, always of the same bits
//! ```
//!
//! The twin: `shaders/moments_f16.wgsl`.

use half::f16;

use crate::format;

/// The least positive `f16`, 2⁻²⁴.
const LEAST: f32 = 1.0 / 16_777_216.0;

/// The largest `f16`.
const LARGEST: f32 = 65_504.0;

/// Stores numbers, as many as both slices have.
pub fn encode(values: &[f32], into: &mut [f16]) {
    into.iter_mut().zip(values).for_each(|(stored, &x)| *stored = keep(x));
}

/// Reads numbers, exactly, as many as both slices have.
pub fn decode(stored: &[f16], into: &mut [f32]) {
    into.iter_mut().zip(stored).for_each(|(x, &stored)| *x = read(stored));
}

/// How a number is stored.
#[inline(always)]
#[must_use]
pub fn keep(x: f32) -> f16 {
    f16::from_bits(format::f32_to_f16(bounded(x)))
}

/// The number that is stored.
#[inline(always)]
#[must_use]
pub fn read(stored: f16) -> f32 {
    format::f16_to_f32(stored.to_bits())
}

/// The number that is rounded in place of `x`.
#[inline(always)]
fn bounded(x: f32) -> f32 {
    if x.is_nan() {
        f32::NAN
    } else if x > 0.0 && x < LEAST {
        LEAST
    } else {
        x.clamp(-LARGEST, LARGEST)
    }
}
