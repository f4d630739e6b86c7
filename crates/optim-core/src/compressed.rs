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
use half::slice::HalfFloatSliceExt;

/// Numbers that are rounded at once.
const CHUNK: usize = 256;

/// The least positive `f16`, 2⁻²⁴.
const LEAST: f32 = 1.0 / 16_777_216.0;

/// The largest `f16`.
const LARGEST: f32 = 65_504.0;

/// Stores numbers, as many as both slices have.
pub fn encode(values: &[f32], into: &mut [f16]) {
    let mut chunk = [0.0; CHUNK];
    for (values, into) in values.chunks(CHUNK).zip(into.chunks_mut(CHUNK)) {
        let len = values.len().min(into.len());
        let chunk = &mut chunk[..len];
        chunk.iter_mut().zip(values).for_each(|(in_range, &x)| *in_range = bounded(x));
        into[..len].convert_from_f32_slice(chunk);
    }
}

/// Reads numbers, exactly.
///
/// # Panics
/// If the slices differ in length.
pub fn decode(stored: &[f16], into: &mut [f32]) {
    stored.convert_to_f32_slice(into);
}

/// The number that is rounded in place of `x`.
fn bounded(x: f32) -> f32 {
    if x.is_nan() {
        f32::NAN
    } else if x > 0.0 && x < LEAST {
        LEAST
    } else {
        x.clamp(-LARGEST, LARGEST)
    }
}
