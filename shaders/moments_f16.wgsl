// Second moments as f16, two in a word, the first in its low half. By integers only: what WGSL has for it may round as it likes.
// The twin: optim-core/src/compressed.rs.

const PER_WORD = 2u;

// The nth of a word.
fn decoded(word: u32, nth: u32) -> f32 {
    let half = (word >> (16u * nth)) & 0xffffu;
    let sign = (half & 0x8000u) << 16u;
    let exponent = (half >> 10u) & 0x1fu;
    let fraction = half & 0x3ffu;
    if (exponent == 31u) {
        return bitcast<f32>(sign | 0x7f800000u | (fraction << 13u));
    }
    if (exponent != 0u) {
        return bitcast<f32>(sign | ((exponent + 112u) << 23u) | (fraction << 13u));
    }
    if (fraction == 0u) {
        return bitcast<f32>(sign);
    }
    let zeros = countLeadingZeros(fraction) - 21u;
    return bitcast<f32>(sign | ((113u - zeros) << 23u) | (((fraction << zeros) & 0x3ffu) << 13u));
}

// At the place of the nth in a word that is otherwise 0.
fn encoded(x: f32, nth: u32) -> u32 {
    return half_bits(bitcast<u32>(x)) << (16u * nth);
}

// From the bits of an f32: to nearest, ties to even, but a positive number never to 0 and a large one to 65504.
fn half_bits(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0x7e00u;
    }
    // 65504
    if (magnitude >= 0x477fe000u) {
        return sign | 0x7bffu;
    }
    // 2⁻¹⁴, the least that is normal
    if (magnitude >= 0x38800000u) {
        let rounded = magnitude + 0xfffu + ((magnitude >> 13u) & 1u);
        return sign | ((rounded >> 13u) - (112u << 10u));
    }
    // 2⁻²⁵
    if (magnitude <= 0x33000000u) {
        return select(sign, 1u, magnitude != 0u && sign == 0u);
    }
    let shift = 126u - (magnitude >> 23u);
    let fraction = (magnitude & 0x7fffffu) | 0x800000u;
    let quotient = fraction >> shift;
    let rest = fraction & ((1u << shift) - 1u);
    let middle = 1u << (shift - 1u);
    return sign | (quotient + select(0u, 1u, rest > middle || (rest == middle && (quotient & 1u) == 1u)));
}

