//! How numbers are kept in fewer bits than 32: conversions, random bits to round with, and what can be chosen.
//!
//! Kernels compute in `f32`. A format says how a number is read before and stored after. Every function here takes one
//! number, branches on nothing that a compiler cannot turn into a selection, and has a twin of the same name in
//! `shaders/formats.wgsl`: both give the same bits, on any processor. Where the twins' statements differ, these here are the
//! faster ones on a processor, and a compiler for a GPU might round them otherwise.
//!
//! | kept as | bytes | relative error of one store | read, store |
//! | --- | --- | --- | --- |
//! | `f16` | 2 | 2⁻¹¹ from 2⁻¹⁴ to 65,504 | [`f16_to_f32`], [`f32_to_f16`] |
//! | `bf16` | 2 | 2⁻⁸ | [`bf16_to_f32`], [`f32_to_bf16`] |
//! | split | 2 + 2 | none | [`join`], [`split`] |
//! | 8 bits, by blocks | 1 + 4/256 | see [`encode_signed`], [`encode_positive`] | [`decode_signed`], [`decode_positive`] |
//!
//! # Stochastic rounding
//!
//! To nearest, an update that is smaller than half the distance to the next number is lost, every time. Rounded up with
//! the probability of its distance from the number below, it is kept on average. The random bits are a function of a key
//! of the tensor, the step, the element and what is stored ([`random`]): there is no generator with a state, so a
//! run repeats itself on any backend, with any number of threads, and after it was resumed.
#![allow(clippy::cast_possible_truncation, reason = "the bits that a cast drops are 0, or are meant to go")]

use std::fmt;

/// How an optimizer keeps its state (moments and the like).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum StateDType {
    /// As `f32`: 4 bytes an element. Nothing is lost.
    #[default]
    F32,
    /// As `bf16`, rounded stochastically: 2 bytes an element. The range of `f32`, three digits of precision.
    Bf16,
    /// As 8-bit codes in blocks of [`BLOCK`] elements with one `f32` scale each: 1 + 1/64 bytes an element. One element that
    /// is far larger than the rest of its block takes their precision.
    Block8,
}

impl fmt::Display for StateDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Block8 => "8-bit",
        })
    }
}

/// The codes of [`StateDType::Block8`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code8 {
    /// For numbers of either sign, such as first moments: [`encode_signed`].
    Signed,
    /// For numbers that are never negative, such as second moments: [`encode_positive`]. What is not 0 stays so.
    Positive,
}

/// What stands behind a parameter of 16 bits, whose own precision is too low to add small updates to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Master {
    /// A copy in `f32` in the optimizer's state, which is updated; the parameter is that copy, rounded to nearest: 4 more
    /// bytes an element. A parameter that was changed from outside is overwritten by the copy at the next step.
    #[default]
    F32,
    /// Nothing; the updated parameter is rounded to nearest: no more bytes. Training stalls when updates are smaller than
    /// half the distance between two numbers: 2⁻⁹ of the parameter for `bf16`, 2⁻¹² for `f16`.
    None,
    /// Nothing; the updated parameter is rounded stochastically: no more bytes. Small updates are kept on average, as
    /// noise of one distance between two numbers. Two runs agree only if their seeds do.
    Stochastic,
    /// The 16 bits that a `bf16` lacks, in the optimizer's state ([`split`]): 2 more bytes an element, and the same numbers
    /// as with [`F32`](Self::F32) but for ties, which round away from 0. Of `bf16` only. After a change from outside the
    /// old bits are added to the new parameter: an error of half the distance between two numbers.
    Split,
}

/// The elements that share a scale, counted from a tensor's start.
pub const BLOCK: usize = 256;

/// The infinite `f32`'s bits: those of what is finite are less, those of what is not a number are more.
const INFINITE: u32 = 0x7f80_0000;

/// The bits of |x|. They are ordered as the numbers are; infinity and then what is not a number come last.
#[inline(always)]
#[must_use]
pub fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The number that an `f16` is. Exact; a signalling NaN becomes quiet, with its sign and its other bits.
#[inline(always)]
#[must_use]
pub fn f16_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7fff;
    let mut word = (magnitude << 13) + (112 << 23);
    // Infinite, or not a number.
    if magnitude >= 0x7c00 {
        word += 112 << 23;
    }
    if magnitude > 0x7c00 {
        word |= 0x40_0000;
    }
    // Below 2⁻¹⁴ it is a multiple of 2⁻²⁴.
    if magnitude < 0x400 {
        word = (magnitude as f32 * 5.960_464_5e-8).to_bits();
    }
    f32::from_bits(sign | word)
}

/// The nearest `f16`; of two, the even one. Infinite from 65,520 on. A NaN keeps its sign and the upper ten bits of its
/// fraction and is quiet.
#[inline(always)]
#[must_use]
pub fn f32_to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) & 0x8000;
    let magnitude = magnitude(x);
    let (word, shift) = f16_parts(magnitude);
    let odd = (word >> shift) & 1;
    let mut half = (word + ((1 << (shift - 1)) - 1) + odd) >> shift;
    if half > 0x7c00 {
        half = 0x7c00;
    }
    if magnitude > INFINITE {
        half = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    }
    (sign | half) as u16
}

/// One of the two `f16` around `x`, the upper one with the probability of the distance from the lower one. An `f16` stays as
/// it is, and what is finite stays finite: beyond 65,504 it is that. Infinity and NaN as [`f32_to_f16`].
///
/// Uses the low 13 bits of `random` from 2⁻¹⁴ on; up to 31 below, down to multiples of 2⁻⁵⁵, at which smaller bits are cut.
#[inline(always)]
#[must_use]
pub fn f32_to_f16_stochastic(x: f32, random: u32) -> u16 {
    let sign = (x.to_bits() >> 16) & 0x8000;
    let magnitude = magnitude(x);
    let (mut word, shift) = f16_parts(magnitude);
    // Below 2⁻³², where more than 31 bits are lost. 30 bits more leave nothing.
    let mut excess = 0;
    if magnitude < 0x2f80_0000 {
        excess = 95 - (magnitude >> 23);
    }
    if excess > 30 {
        excess = 30;
    }
    word >>= excess;
    let mut half = (word + (random & ((1 << shift) - 1))) >> shift;
    if half > 0x7bff {
        half = 0x7bff;
    }
    if magnitude >= INFINITE {
        half = 0x7c00;
    }
    if magnitude > INFINITE {
        half = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    }
    (sign | half) as u16
}

/// A word, and by how many bits it is shifted to the right to be the bits of an `f16`, cut. At most 31 bits.
#[inline(always)]
fn f16_parts(magnitude: u32) -> (u32, u32) {
    let mut word = magnitude.wrapping_sub(112 << 23);
    let mut shift = 13;
    // Below 2⁻¹⁴: the fraction with its leading bit, in units of 2⁻²⁴.
    if magnitude < 0x3880_0000 {
        word = (magnitude & 0x7f_ffff) | 0x80_0000;
        shift = 126 - (magnitude >> 23);
    }
    if shift > 31 {
        shift = 31;
    }
    (word, shift)
}

/// The number that a `bf16` is. Exact, NaN too.
#[inline(always)]
#[must_use]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest `bf16`; of two, the even one. A NaN keeps its sign and the upper seven bits of its fraction and is quiet.
#[inline(always)]
#[must_use]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let mut rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if magnitude(x) > INFINITE {
        rounded = (bits >> 16) | 0x40;
    }
    rounded as u16
}

/// One of the two `bf16` around `x`, the upper one with the probability of the distance from the lower one. A `bf16` stays as
/// it is, and what is finite stays finite. Infinity and NaN as [`f32_to_bf16`].
///
/// Uses the low 16 bits of `random`.
#[inline(always)]
#[must_use]
pub fn f32_to_bf16_stochastic(x: f32, random: u32) -> u16 {
    let bits = x.to_bits();
    let magnitude = magnitude(x);
    // What would become infinite is cut, and what is infinite or not a number already.
    let mut added = random & 0xffff;
    if magnitude >= 0x7f7f_0000 {
        added = 0;
    }
    let mut rounded = (bits + added) >> 16;
    if magnitude > INFINITE {
        rounded |= 0x40;
    }
    rounded as u16
}

/// An `f32` as a `bf16` and the 16 bits that [`join`] needs to make it `x` again: the difference of their bits.
///
/// The `bf16` is the nearest one; of two, the one further from 0. It is infinite for what lies at least half a distance
/// beyond the largest `bf16`, 3.39 · 10³⁸. A NaN is quiet, and the difference is 0.
#[inline(always)]
#[must_use]
pub fn split(x: f32) -> (u16, u16) {
    let bits = x.to_bits();
    let mut upper = bits.wrapping_add(0x8000) >> 16;
    let mut correction = bits & 0xffff;
    if magnitude(x) > INFINITE {
        upper = (bits >> 16) | 0x40;
        correction = 0;
    }
    (upper as u16, correction as u16)
}

/// What was [`split`], bit for bit unless it was a NaN.
#[inline(always)]
#[must_use]
pub fn join(bf16: u16, correction: u16) -> f32 {
    let correction = u32::from(correction);
    // A difference of 0x8000 and more is negative.
    let borrow = (correction & 0x8000) << 1;
    f32::from_bits((u32::from(bf16) << 16).wrapping_add(correction).wrapping_sub(borrow))
}

/// The scale of a block whose largest [`magnitude`] this is. If that is not finite it is NaN, and so is then all that is read
/// from the block.
#[inline(always)]
#[must_use]
pub fn scale_from(largest: u32) -> f32 {
    let mut bits = largest;
    if largest >= INFINITE {
        bits = 0x7fc0_0000;
    }
    f32::from_bits(bits)
}

/// The scale of a block: its largest |x|; 0 if all are 0 or there is none. See [`scale_from`].
#[inline(always)]
#[must_use]
pub fn scale_of(block: &[f32]) -> f32 {
    scale_from(block.iter().fold(0, |largest, &x| largest.max(magnitude(x))))
}

/// The number of a signed code: `±(c / 127)² · scale`, for `c` from −127 to 127 in two's complement.
///
/// ±127 is `±scale`, exactly. A code of −128 is never stored.
#[inline(always)]
#[must_use]
pub fn decode_signed(code: u8, scale: f32) -> f32 {
    let code = u32::from(code);
    let c = (code << 24).cast_signed() >> 24;
    let square = (c * c) as f32;
    // c² / 16129, correctly rounded for every code: the first product is exact.
    let part = square * 6.198_883e-5 + square * 1.129_343_2e-8;
    let x = part * scale;
    f32::from_bits(x.to_bits() ^ ((code & 0x80) << 24))
}

/// One of the two signed codes around `x`, the one further from 0 with the probability of the distance from the other: what is
/// read back is `x` on average.
///
/// `scale` is at least |x|, as [`scale_of`] gives it; a larger `x` is stored as `±scale`. The distance of the codes `c` and
/// `c + 1` is `(2c + 1) / 16129 · scale`: at most 1.6 % of the scale, and 6.2 · 10⁻⁵ of it near 0. The code is 0 if
/// the scale is 0 or not finite. Uses the low 24 bits of `random`.
#[inline(always)]
#[must_use]
pub fn encode_signed(x: f32, scale: f32, random: u32) -> u8 {
    let mut code = nearby_root(x, scale, 16_129.0, random);
    if x.to_bits() > 0x7fff_ffff {
        code = 256 - code;
    }
    (code & 0xff) as u8
}

/// The number of a positive code: `(c / 255)² · scale`. 255 is `scale`, exactly.
#[inline(always)]
#[must_use]
pub fn decode_positive(code: u8, scale: f32) -> f32 {
    let c = u32::from(code);
    let square = (c * c) as f32;
    // c² / 65025, correctly rounded for every code: the first product is exact.
    let part = square * 1.525_878_9e-5 + square * 1.199_114_5e-7;
    part * scale
}

/// One of the two positive codes around `x`, as [`encode_signed`] does; but 0 is for 0 alone. Smaller numbers than
/// `scale / 65025` are stored as that: what a rule divides by does not vanish. The sign of `x` is ignored.
///
/// The distance of the codes `c` and `c + 1` is `(2c + 1) / 65025 · scale`: at most 0.8 % of the scale. Uses the low 24 bits of
/// `random`.
#[inline(always)]
#[must_use]
pub fn encode_positive(x: f32, scale: f32, random: u32) -> u8 {
    let mut code = nearby_root(x, scale, 65_025.0, random);
    if code == 0 && magnitude(x) != 0 {
        code = 1;
    }
    code as u8
}

/// One of the two whole numbers around `√(|x| / scale · most)` such that the square is right on average.
#[inline(always)]
fn nearby_root(x: f32, scale: f32, most: f32, random: u32) -> u32 {
    let bits = magnitude(scale);
    let mut u = f32::from_bits(magnitude(x)) / f32::from_bits(bits) * most;
    if u > most {
        u = most;
    }
    // The nearest whole number, or the one below if its square is too large: whole numbers of up to 24 bits are exact.
    let mut root = u.sqrt() + 8_388_608.0 - 8_388_608.0;
    if root * root > u {
        root -= 1.0;
    }
    let rest = u - root * root;
    // (2 root + 1) · 2⁻²⁴
    let gap = root * 1.192_092_9e-7 + 5.960_464_5e-8;
    let threshold = (random & 0xff_ffff) as f32;
    if rest > threshold * gap {
        root += 1.0;
    }
    // The low bits of a sum of which 1 is the last bit.
    let mut code = (root + 8_388_608.0).to_bits() & 0xff;
    if bits == 0 || bits >= INFINITE {
        code = 0;
    }
    code
}

/// Mixes 32 bits: every bit of the input changes every bit of the output with a probability near a half. One-to-one; 0 stays 0.
#[inline(always)]
#[must_use]
pub fn hash(x: u32) -> u32 {
    let mut mixed = x;
    mixed ^= mixed >> 16;
    mixed = mixed.wrapping_mul(0x21f0_aaad);
    mixed ^= mixed >> 15;
    mixed = mixed.wrapping_mul(0xd35a_2d97);
    mixed ^= mixed >> 15;
    mixed
}

/// The key of a tensor: FNV-1a of 64 bits over the eight bytes of `seed`, least first, and the name in UTF-8; the two halves
/// of that, mixed. It will never change: saved runs depend on it.
#[must_use]
pub fn tensor_key(seed: u64, name: &str) -> u32 {
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes());
    let fnv =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |fnv, byte| (fnv ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let [upper, lower] = [(fnv >> 32) as u32, fnv as u32];
    hash(upper ^ hash(lower))
}

/// What the random bits of a whole tensor begin with: its key, the low 32 bits of the step's number (1 at the first update),
/// and what they round (0 the parameter, 1 + k slot k).
#[inline(always)]
#[must_use]
pub fn stream(key: u32, step: u32, plane: u32) -> u32 {
    hash(hash(hash(key) ^ step) ^ plane)
}

/// The 32 random bits of an element, by the low 32 bits of its index in its tensor.
///
/// [`hash`] of `element ⊕ stream`, with the stream added once more between its two multiplications. Within a stream no two
/// elements have the same bits. Without the second use another stream would be the same numbers in another order, in runs of
/// equal shifts; with it, what two streams have in common is as little and as scattered as chance would have it.
#[inline(always)]
#[must_use]
pub fn random_at(stream: u32, element: u32) -> u32 {
    let mut mixed = element ^ stream;
    mixed ^= mixed >> 16;
    mixed = mixed.wrapping_mul(0x21f0_aaad);
    mixed ^= mixed >> 15;
    mixed = mixed.wrapping_add(stream);
    mixed = mixed.wrapping_mul(0xd35a_2d97);
    mixed ^= mixed >> 15;
    mixed
}

/// 32 random bits: [`random_at`] an element of a [`stream`].
#[inline(always)]
#[must_use]
pub fn random(key: u32, step: u32, element: u32, plane: u32) -> u32 {
    random_at(stream(key, step, plane), element)
}
