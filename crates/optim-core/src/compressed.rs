//! How second moments are kept as `f16`: the codec that both backends agree on.
//!
//! ```text
//! to nearest, ties to even
//! positive, below 2⁻²⁴   2⁻²⁴, the least positive f16: a divisor that is not 0 does not become 0
//! beyond 65,504          65,504, the largest: infinity too
//! not a number           not a number, always of the same bits
//! ```
//!
//! The twin: `shaders/moments_f16.wgsl`, by integers alone: WGSL does not promise how a sum is rounded. A processor does, and two sums
//! are shorter.

use half::f16;

use crate::format;

/// The bits of the least positive `f16`, 2⁻²⁴.
const LEAST: u32 = 0x3380_0000;

/// The bits of the largest `f16`, 65,504.
const LARGEST: u32 = 0x477f_e000;

/// Stores numbers, as many as both slices have.
pub fn encode(values: &[f32], into: &mut [f16]) {
    into.iter_mut().zip(values).for_each(|(stored, &x)| *stored = keep(x).0);
}

/// Reads numbers, exactly, as many as both slices have.
pub fn decode(stored: &[f16], into: &mut [f32]) {
    into.iter_mut().zip(stored).for_each(|(x, &stored)| *x = read(stored));
}

/// How a number is stored, and the number that is read then.
#[inline(always)]
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "the bits that the cast drops are 0")]
pub fn keep(x: f32) -> (f16, f32) {
    let least = if x > 0.0 { LEAST } else { 0 };
    let magnitude = format::magnitude(x).clamp(least, LARGEST);
    // The sum with a power of two 13 exponents above is rounded as an f16 is; below 2⁻¹⁴ they all share one exponent.
    let exponent = (magnitude & 0x7f80_0000).max(0x3880_0000);
    let power = f32::from_bits(exponent + (13 << 23));
    let sum = f32::from_bits(magnitude) + power;
    // The leading bit of the fraction counts as 1 of the exponent.
    let half = ((exponent - (113 << 23)) >> 13) + (sum.to_bits() & 0xffff);
    let sign = x.to_bits() & 0x8000_0000;
    if x.is_nan() {
        return (f16::NAN, f32::NAN);
    }
    (f16::from_bits((half | sign >> 16) as u16), f32::from_bits((sum - power).to_bits() | sign))
}

/// The number that is stored.
#[inline(always)]
#[must_use]
pub fn read(stored: f16) -> f32 {
    format::f16_to_f32(stored.to_bits())
}
