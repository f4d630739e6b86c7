//! Numbers of fewer than 32 bits, read and stored a stretch at a time. Every loop calls a function of
//! [`format`](optim_core::format) for each element.

use bytemuck::Pod;
use multiversion::multiversion;
use optim_core::DType;
use optim_core::format::{self, BLOCK, Code8};

use crate::arch::{SPAN, fetch_span};
use crate::walk;

/// Elements between those of 16 bits that are read or stored and those that are fetched: a kernel works in between.
const AHEAD: usize = 1024;

/// Bytes as the numbers that they are. In an arena and in the caller's memory they are aligned; an empty slice may not be.
pub(crate) fn numbers<T: Pod>(bytes: &[u8]) -> &[T] {
    if bytes.is_empty() { &[] } else { bytemuck::cast_slice(bytes) }
}

/// Bytes as the numbers that they are.
pub(crate) fn numbers_mut<T: Pod>(bytes: &mut [u8]) -> &mut [T] {
    if bytes.is_empty() { &mut [] } else { bytemuck::cast_slice_mut(bytes) }
}

/// Bytes as `f32`.
pub(crate) fn floats(bytes: &[u8]) -> &[f32] {
    numbers(bytes)
}

/// Bytes as `f32`.
pub(crate) fn floats_mut(bytes: &mut [u8]) -> &mut [f32] {
    numbers_mut(bytes)
}

/// Reads numbers.
pub(crate) fn load(dtype: DType, bytes: &[u8], into: &mut [f32]) {
    match dtype {
        DType::F32 => into.copy_from_slice(floats(bytes)),
        DType::F16 => load_f16(into, numbers(bytes)),
        DType::Bf16 => load_bf16(into, numbers(bytes)),
    }
}

/// Stores numbers, rounded to nearest.
pub(crate) fn store(dtype: DType, values: &[f32], into: &mut [u8]) {
    match dtype {
        DType::F32 => floats_mut(into).copy_from_slice(values),
        DType::F16 => store_f16(numbers_mut(into), values),
        DType::Bf16 => store_bf16(numbers_mut(into), values),
    }
}

/// The random bits of a stretch: those of its elements in a stream, or half of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Random {
    stream: u32,
    slot: u32,
    /// The low 32 bits of the index of the first element.
    first: u32,
}

impl Random {
    /// To round a parameter with.
    pub(crate) fn of_param(key: u32, step: u32, first: usize) -> Self {
        Self { stream: format::stream(key, step, 0), slot: 0, first: low(first) }
    }

    /// To round a slot with.
    pub(crate) fn of_slot(key: u32, step: u32, slot: u32, first: usize) -> Self {
        Self { stream: format::slot_stream(key, step, slot), slot, first: low(first) }
    }

    #[inline(always)]
    fn at(self, i: u32) -> u32 {
        format::of_slot(format::random_at(self.stream, self.first.wrapping_add(i)), self.slot)
    }
}

/// Stores numbers, rounded stochastically.
pub(crate) fn store_stochastic(dtype: DType, random: Random, values: &[f32], into: &mut [u8]) {
    match dtype {
        DType::F32 => floats_mut(into).copy_from_slice(values),
        DType::F16 => stochastic_f16(numbers_mut(into), values, random),
        DType::Bf16 => stochastic_bf16(numbers_mut(into), values, random),
    }
}

/// Reads numbers that are split.
pub(crate) fn load_split(upper: &[u8], lower: &[u8], into: &mut [f32]) {
    join(into, numbers(upper), numbers(lower));
}

/// Stores numbers in two halves.
pub(crate) fn store_split(values: &[f32], into_upper: &mut [u8], into_lower: &mut [u8]) {
    split(numbers_mut(into_upper), numbers_mut(into_lower), values);
}

/// Reads codes, from the beginning of a block on.
pub(crate) fn load_codes(code: Code8, codes: &[u8], scales: &[u8], into: &mut [f32]) {
    for ((into, codes), &scale) in into.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(floats(scales)) {
        match code {
            Code8::Signed => decode_signed(into, codes, scale),
            Code8::Positive => decode_positive(into, codes, scale),
        }
    }
}

/// Stores codes, from the beginning of a block on.
pub(crate) fn store_codes(code: Code8, random: Random, values: &[f32], codes: &mut [u8], scales: &mut [u8]) {
    let blocks = codes.chunks_mut(BLOCK).zip(values.chunks(BLOCK)).zip(floats_mut(scales));
    for (start, ((codes, values), scale)) in (0..).step_by(BLOCK).zip(blocks) {
        *scale = scale_of(values);
        let random = Random { first: random.first.wrapping_add(low(start)), ..random };
        match code {
            Code8::Signed => encode_signed(codes, values, *scale, random),
            Code8::Positive => encode_positive(codes, values, *scale, random),
        }
    }
}

/// `sum ← sum + weight · g`, of a sum that is 0 before if it is `fresh`.
#[inline(never)]
pub(crate) fn accumulate(weight: f32, fresh: bool, dtype: DType, g: &[u8], sum: &mut [f32]) {
    let mut block = [0.0; walk::BLOCK];
    walk::each_block(0..sum.len(), |range| {
        let block = &mut block[..range.len()];
        load(dtype, &g[walk::scaled(&range, dtype.size())], block);
        if fresh {
            set(&mut sum[range], block, weight);
        } else {
            add(&mut sum[range], block, weight);
        }
    });
}

/// The low 32 bits of an element's index: all that its random bits depend on.
#[allow(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
#[inline(always)]
pub(crate) fn low(element: usize) -> u32 {
    element as u32
}

/// Makes a loop over slices, which are separate arguments, compiled for several instruction sets. In the body stand an
/// element's index and the elements themselves; the first slices are those that are written. The slices behind `fetch` lie in
/// memory, not in a block.
macro_rules! loops {
    ($(
        $([fetch $($far:ident),*])?
        fn $name:ident($i:pat, $($into:ident: $target:ty),*; $($from:ident: $source:ty),* $(; $($arg:ident: $type:ty),*)?)
        $body:block
    )*) => {$(
        #[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
        fn $name($($into: &mut [$target],)* $($from: &[$source]),* $(, $($arg: $type),*)?) {
            let [len, ..] = [$($into.len()),*];
            for span in (0..len).step_by(SPAN) {
                let spanned = SPAN.min(len - span);
                $($(fetch_span($far, span + AHEAD);)*)?
                $(let $into = &mut $into[span..][..spanned];)*
                $(let $from = &$from[span..][..spanned];)*
                for i in 0..spanned {
                    let $i = low(span + i);
                    $(let $into = &mut $into[i];)*
                    $(let $from = $from[i];)*
                    $body
                }
            }
        }
    )*};
}

loops! {
    [fetch bits] fn load_f16(_, x: f32; bits: u16) { *x = format::f16_to_f32(bits); }
    [fetch bits] fn load_bf16(_, x: f32; bits: u16) { *x = format::bf16_to_f32(bits); }
    [fetch sum] fn set(_, sum: f32; g: f32; weight: f32) { *sum = weight * g; }
    [fetch sum] fn add(_, sum: f32; g: f32; weight: f32) { *sum += weight * g; }
    [fetch upper, lower] fn join(_, x: f32; upper: u16, lower: u16) { *x = format::join(upper, lower); }
    fn split(_, upper: u16, lower: u16; x: f32) { (*upper, *lower) = format::split(x); }
    fn decode_signed(_, x: f32; code: u8; scale: f32) { *x = format::decode_signed(code, scale); }
    fn decode_positive(_, x: f32; code: u8; scale: f32) { *x = format::decode_positive(code, scale); }
    [fetch bits] fn store_f16(_, bits: u16; x: f32) { *bits = format::f32_to_f16(x); }
    [fetch bits] fn store_bf16(_, bits: u16; x: f32) { *bits = format::f32_to_bf16(x); }
    fn stochastic_f16(i, bits: u16; x: f32; random: Random) { *bits = format::f32_to_f16_stochastic(x, random.at(i)); }
    fn stochastic_bf16(i, bits: u16; x: f32; random: Random) { *bits = format::f32_to_bf16_stochastic(x, random.at(i)); }
    fn encode_signed(i, code: u8; x: f32; scale: f32, random: Random) {
        *code = format::encode_signed(x, scale, random.at(i));
    }
    fn encode_positive(i, code: u8; x: f32; scale: f32, random: Random) {
        *code = format::encode_positive(x, scale, random.at(i));
    }
}

/// The scale of a block.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn scale_of(block: &[f32]) -> f32 {
    format::scale_of(block)
}
