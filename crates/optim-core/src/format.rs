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
//! | 8 bits, by blocks | 1 + 4/256 | 2⁻⁴ unless near 0: [`encode_signed`], [`encode_positive`] | [`decode_signed`], [`decode_positive`] |
//!
//! # Stochastic rounding
//!
//! To nearest, an update that is smaller than half the distance to the next number is lost, every time. Rounded up with
//! the probability of its distance from the number below, it is kept on average. The random bits are a function of a key
//! of the tensor, the step, the element and what is stored ([`random`]): there is no generator with a state, so a
//! run repeats itself on any backend, with any number of threads, and after it was resumed. Two slots are rounded with a half
//! each of the same 32 bits ([`of_slot`]), which costs half as much.
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
    /// As 8-bit codes in blocks of [`BLOCK`] elements with one `f32` scale each, rounded stochastically: 1 + 1/64 bytes an
    /// element. The distance of two codes is 3 to 8 % of the number, but not less than 2.5 · 10⁻⁴ of the largest number in the
    /// block, or 9.8 · 10⁻⁷ of it where numbers are never negative, as second moments. So one element that is 1000 times as
    /// large as the rest of its block takes their precision.
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

/// The least scale of a block of which something is not 0: 2⁻¹¹¹. By what is less, [`Coding::most`] cannot be divided.
const LEAST_SCALE: u32 = (127 - 111) << 23;

/// The scale of a block whose largest [`magnitude`] this is. If that is not finite it is NaN, and so is then all that is read
/// from the block. It is at least 2⁻¹¹¹, about 4 · 10⁻³⁴, unless it is 0.
#[inline(always)]
#[must_use]
pub fn scale_from(largest: u32) -> f32 {
    let mut bits = largest;
    if largest < LEAST_SCALE && largest != 0 {
        bits = LEAST_SCALE;
    }
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

/// How a number of a block becomes a code of 8 bits: its sign, if it may have one, and the upper bits of the `f32`
///
/// ```text
/// z = 2 + y,   y = |x| / scale · most,   0 ≤ y ≤ most
/// ```
///
/// below its exponent's highest bit: three (signed) or four (positive) of the exponent and four of the fraction. Codes are
/// evenly spaced within an octave of `z`, twice as far apart in the next one: in steps of 1/8 of `y` near 0, and of a thirtieth
/// to a sixteenth of `z` further on. Telephones compress speech in the same way (ITU-T G.711, µ-law). Second moments need no
/// sign and spend its bit on range: they are squares. An encoder needs a multiplication, an addition and a shift; logarithms
/// and roots would cost more than all the rest of an update.
#[derive(Debug, Clone, Copy)]
pub struct Coding {
    /// The bit of the sign, or none.
    pub sign: u32,
    /// `y` of the largest code.
    pub most: f32,
    /// `1 / most`: times `most` it is 1, exactly.
    pub part: f32,
    /// The bits of the least code of what is not 0, with those of `z` above it; 0 if every code may stand for what is not 0.
    pub least: u32,
}

/// The bits of `z` below a code's.
const SHIFT: u32 = 19;

impl Code8 {
    /// How such codes are made.
    #[inline(always)]
    #[must_use]
    pub const fn coding(self) -> Coding {
        match self {
            Self::Signed => Coding { sign: 0x80, most: 494.0, part: 1.0 / 494.0, least: 0 },
            Self::Positive => Coding { sign: 0, most: 126_974.0, part: 1.0 / 126_974.0, least: 0x801 },
        }
    }

    /// The number of a code: [`decode_signed`] or [`decode_positive`].
    #[inline(always)]
    #[must_use]
    pub fn decode(self, code: u8, scale: f32) -> f32 {
        self.coding().decode(code, scale)
    }

    /// One of the two codes around `x`: [`encode_signed`] or [`encode_positive`].
    #[inline(always)]
    #[must_use]
    pub fn encode(self, x: f32, scale: f32, random: u32) -> u8 {
        let coding = self.coding();
        coding.encode(x, coding.steps(scale), random)
    }
}

impl Coding {
    /// What a block's numbers are multiplied with to be `y`: 0 if its scale is 0 or not finite.
    #[inline(always)]
    #[must_use]
    pub fn steps(self, scale: f32) -> f32 {
        let mut steps = self.most / scale;
        if scale == 0.0 || magnitude(scale) >= INFINITE {
            steps = 0.0;
        }
        steps
    }

    /// The number of a code.
    #[inline(always)]
    #[must_use]
    pub fn decode(self, code: u8, scale: f32) -> f32 {
        let code = u32::from(code);
        let z = f32::from_bits(((code & !self.sign) << SHIFT) | 0x4000_0000);
        let x = (z - 2.0) * self.part * scale;
        f32::from_bits(x.to_bits() ^ ((code & self.sign) << 24))
    }

    /// One of the two codes around `x`, as [`encode_signed`] and [`encode_positive`] say.
    #[inline(always)]
    #[must_use]
    pub fn encode(self, x: f32, steps: f32, random: u32) -> u8 {
        let bits = x.to_bits();
        let magnitude = magnitude(x);
        let top = self.most + 2.0;
        let mut z = f32::from_bits(magnitude) * steps + 2.0;
        z = if z < top { z } else { top };
        // 14 random bits, in the middle of their steps: what is a few roundings away from a code becomes that code.
        let added = ((random & 0x3fff) << (SHIFT - 14)) | (1 << (SHIFT - 15));
        let mut code = (z.to_bits() + added) >> SHIFT;
        if self.least != 0 {
            if code < self.least {
                code = self.least;
            }
            if magnitude == 0 {
                code = 0;
            }
        }
        code |= (bits >> 24) & self.sign;
        code as u8
    }
}

/// The number of a signed code: `±y · scale / 494` with `y = 2ᵉ⁺¹ · (1 + f / 16) − 2`, where the code's bits are, from the
/// highest on, the sign, three of `e` and four of `f`.
///
/// The largest `y` is 494: codes 127 and 255 are `±scale`, exactly.
#[inline(always)]
#[must_use]
pub fn decode_signed(code: u8, scale: f32) -> f32 {
    Code8::Signed.decode(code, scale)
}

/// One of the two signed codes around `x`, the one further from 0 with the probability of the distance from the other: what is
/// read back is `x` on average.
///
/// `scale` is at least |x|, as [`scale_of`] gives it; a larger `x` is stored as `±scale`. The distance of two codes is from
/// 2.5 · 10⁻⁴ of the scale, near 0, to 3.2 %, near the scale; above a fiftieth of the scale it is 3 to 8 % of the number. 0
/// keeps its sign. If the scale is not finite, any code will do. Uses the low 14 bits of `random`.
#[inline(always)]
#[must_use]
pub fn encode_signed(x: f32, scale: f32, random: u32) -> u8 {
    Code8::Signed.encode(x, scale, random)
}

/// The number of a positive code: `y · scale / 126974` with `y = 2ᵉ⁺¹ · (1 + f / 16) − 2`, where the code's upper four bits are
/// `e` and the others `f`. 255 is `scale`, exactly.
#[inline(always)]
#[must_use]
pub fn decode_positive(code: u8, scale: f32) -> f32 {
    Code8::Positive.decode(code, scale)
}

/// One of the two positive codes around `x`, as [`encode_signed`] does; but 0 is for 0 alone. Smaller numbers than the code 1,
/// `scale / 1015792`, are stored as that: what a rule divides by does not vanish. The sign of `x` is ignored.
///
/// The distance of two codes is from 9.8 · 10⁻⁷ of the scale, near 0, to 3.2 %, near the scale; above a thousandth of the scale
/// it is 3 to 6.4 % of the number. Uses the low 14 bits of `random`.
#[inline(always)]
#[must_use]
pub fn encode_positive(x: f32, scale: f32, random: u32) -> u8 {
    Code8::Positive.encode(x, scale, random)
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
/// and what they round: 0 the parameter, 1 + k the slots 2k and 2k + 1, which share them ([`of_slot`]).
#[inline(always)]
#[must_use]
pub fn stream(key: u32, step: u32, plane: u32) -> u32 {
    hash(hash(hash(key) ^ step) ^ plane)
}

/// The [`stream`] of a slot.
#[inline(always)]
#[must_use]
pub fn slot_stream(key: u32, step: u32, slot: u32) -> u32 {
    stream(key, step, 1 + slot / 2)
}

/// The random bits of a slot, of those of its [`slot_stream`]: the lower half for the slots 0 and 2, the upper one for the slots 1
/// and 3. Only the low 16 bits are to be used.
#[inline(always)]
#[must_use]
pub fn of_slot(random: u32, slot: u32) -> u32 {
    random >> (16 * (slot & 1))
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
