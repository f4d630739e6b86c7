// How numbers are kept in fewer bits than 32, and random bits to round with. What is kept lies in the low bits of a u32.
// By integers where bits count: what WGSL has for it may round as it likes.
// The twin: optim-core/src/format.rs.

// The infinite number's bits: those of what is finite are less, those of what is not a number are more.
const INFINITE = 0x7f800000u;

// The bits of |x|, ordered as the numbers are.
fn magnitude(x: f32) -> u32 {
    return bitcast<u32>(x) & 0x7fffffffu;
}

// The number that an f16 is.
fn f16_to_f32(bits: u32) -> f32 {
    let sign = (bits & 0x8000u) << 16u;
    let magnitude = bits & 0x7fffu;
    var word = (magnitude << 13u) + (112u << 23u);
    // Infinite, or not a number.
    if (magnitude >= 0x7c00u) {
        word = word + (112u << 23u);
    }
    if (magnitude > 0x7c00u) {
        word = word | 0x400000u;
    }
    // Below 2⁻¹⁴ it is a multiple of 2⁻²⁴.
    if (magnitude < 0x400u) {
        word = bitcast<u32>(f32(magnitude) * 5.9604645e-8);
    }
    return bitcast<f32>(sign | word);
}

// The nearest f16; of two, the even one.
fn f32_to_f16(x: f32) -> u32 {
    let sign = (bitcast<u32>(x) >> 16u) & 0x8000u;
    let magnitude = magnitude(x);
    let parts = f16_parts(magnitude);
    let word = parts.x;
    let shift = parts.y;
    let odd = (word >> shift) & 1u;
    var half = (word + ((1u << (shift - 1u)) - 1u) + odd) >> shift;
    if (half > 0x7c00u) {
        half = 0x7c00u;
    }
    if (magnitude > INFINITE) {
        half = 0x7e00u | ((magnitude >> 13u) & 0x3ffu);
    }
    return sign | half;
}

// One of the two f16 around x, the upper one with the probability of the distance from the lower one.
fn f32_to_f16_stochastic(x: f32, random: u32) -> u32 {
    let sign = (bitcast<u32>(x) >> 16u) & 0x8000u;
    let magnitude = magnitude(x);
    let parts = f16_parts(magnitude);
    var word = parts.x;
    let shift = parts.y;
    // Below 2⁻³², where more than 31 bits are lost. 30 bits more leave nothing.
    var excess = 0u;
    if (magnitude < 0x2f800000u) {
        excess = 95u - (magnitude >> 23u);
    }
    if (excess > 30u) {
        excess = 30u;
    }
    word = word >> excess;
    var half = (word + (random & ((1u << shift) - 1u))) >> shift;
    if (half > 0x7bffu) {
        half = 0x7bffu;
    }
    if (magnitude >= INFINITE) {
        half = 0x7c00u;
    }
    if (magnitude > INFINITE) {
        half = 0x7e00u | ((magnitude >> 13u) & 0x3ffu);
    }
    return sign | half;
}

// A word, and by how many bits it is shifted to the right to be the bits of an f16, cut. At most 31 bits.
fn f16_parts(magnitude: u32) -> vec2<u32> {
    var word = magnitude - (112u << 23u);
    var shift = 13u;
    // Below 2⁻¹⁴: the fraction with its leading bit, in units of 2⁻²⁴.
    if (magnitude < 0x38800000u) {
        word = (magnitude & 0x7fffffu) | 0x800000u;
        shift = 126u - (magnitude >> 23u);
    }
    if (shift > 31u) {
        shift = 31u;
    }
    return vec2<u32>(word, shift);
}

// The number that a bf16 is.
fn bf16_to_f32(bits: u32) -> f32 {
    return bitcast<f32>(bits << 16u);
}

// The nearest bf16; of two, the even one.
fn f32_to_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    var rounded = (bits + (0x7fffu + ((bits >> 16u) & 1u))) >> 16u;
    if (magnitude(x) > INFINITE) {
        rounded = (bits >> 16u) | 0x40u;
    }
    return rounded;
}

// One of the two bf16 around x, the upper one with the probability of the distance from the lower one.
fn f32_to_bf16_stochastic(x: f32, random: u32) -> u32 {
    let bits = bitcast<u32>(x);
    let magnitude = magnitude(x);
    var rounded = (magnitude + (random & 0xffffu)) >> 16u;
    if (rounded > 0x7f7fu) {
        rounded = 0x7f7fu;
    }
    if (magnitude >= INFINITE) {
        rounded = magnitude >> 16u;
    }
    if (magnitude > INFINITE) {
        rounded = rounded | 0x40u;
    }
    return ((bits >> 16u) & 0x8000u) | rounded;
}

// A bf16, and what join needs to make it x again.
fn split(x: f32) -> vec2<u32> {
    let bits = bitcast<u32>(x);
    var upper = (bits + 0x8000u) >> 16u;
    var correction = bits & 0xffffu;
    if (magnitude(x) > INFINITE) {
        upper = (bits >> 16u) | 0x40u;
        correction = 0u;
    }
    return vec2<u32>(upper, correction);
}

// What was split.
fn join(bf16: u32, correction: u32) -> f32 {
    // A difference of 0x8000 and more is negative.
    let borrow = (correction & 0x8000u) << 1u;
    return bitcast<f32>((bf16 << 16u) + correction - borrow);
}

// The scale of a block whose largest magnitude this is: NaN if that is not finite, and not less than 2⁻¹¹¹ unless it is 0.
fn scale_from(largest: u32) -> f32 {
    var bits = largest;
    if (largest < 0x08000000u && largest != 0u) {
        bits = 0x08000000u;
    }
    if (largest >= INFINITE) {
        bits = 0x7fc00000u;
    }
    return bitcast<f32>(bits);
}

// How a number becomes a code, the upper bits of z = 2 + |x| / scale · most: the bit of the sign, most, 1 / most, and the bits
// of the least code of what is not 0, with those of z above it, if 0 has a code of its own.
struct Coding {
    sign: u32,
    most: f32,
    part: f32,
    least: u32,
}

const SIGNED = Coding(0x80u, 494.0, 0.0020242915, 0u);
const POSITIVE = Coding(0u, 126974.0, 7.875628e-6, 0x801u);

// The bits of z below a code's.
const SHIFT = 19u;

// What numbers are multiplied with; 0 if they cannot be stored.
fn steps(coding: Coding, scale: f32) -> f32 {
    var steps = coding.most / scale;
    if (magnitude(scale) == 0u || magnitude(scale) >= INFINITE) {
        steps = 0.0;
    }
    return steps;
}

// The number of a code.
fn decode(coding: Coding, code: u32, scale: f32) -> f32 {
    let z = bitcast<f32>(((code & (0xffu ^ coding.sign)) << SHIFT) | 0x40000000u);
    let x = (z - 2.0) * coding.part * scale;
    return bitcast<f32>(bitcast<u32>(x) ^ ((code & coding.sign) << 24u));
}

// One of the two codes around x.
fn encode(coding: Coding, x: f32, steps: f32, random: u32) -> u32 {
    let bits = bitcast<u32>(x);
    let magnitude = magnitude(x);
    let top = coding.most + 2.0;
    var z = bitcast<f32>(magnitude) * steps + 2.0;
    if (!(z < top)) {
        z = top;
    }
    // 14 random bits, in the middle of their steps.
    let added = ((random & 0x3fffu) << (SHIFT - 14u)) | (1u << (SHIFT - 15u));
    var code = (bitcast<u32>(z) + added) >> SHIFT;
    if (coding.least != 0u) {
        if (code < coding.least) {
            code = coding.least;
        }
        if (magnitude == 0u) {
            code = 0u;
        }
    }
    code = (code | ((bits >> 24u) & coding.sign)) & 0xffu;
    return code;
}

// Mixes 32 bits, one-to-one.
fn hash(x: u32) -> u32 {
    var mixed = x;
    mixed = mixed ^ (mixed >> 16u);
    mixed = mixed * 0x21f0aaadu;
    mixed = mixed ^ (mixed >> 15u);
    mixed = mixed * 0xd35a2d97u;
    mixed = mixed ^ (mixed >> 15u);
    return mixed;
}

// What the random bits of a whole tensor begin with: its key, the step's number, and what they round.
fn stream(key: u32, step: u32, plane: u32) -> u32 {
    return hash(hash(hash(key) ^ step) ^ plane);
}

// The stream of a slot.
fn slot_stream(key: u32, step: u32, slot: u32) -> u32 {
    return stream(key, step, 1u + slot / 2u);
}

// The random bits of a slot, in the low half: two slots share them.
fn of_slot(random: u32, slot: u32) -> u32 {
    return random >> (16u * (slot & 1u));
}

// The random bits of an element, by its index in its tensor.
fn random_at(stream: u32, element: u32) -> u32 {
    var mixed = element ^ stream;
    mixed = mixed ^ (mixed >> 16u);
    mixed = mixed * 0x21f0aaadu;
    mixed = mixed ^ (mixed >> 15u);
    mixed = mixed + stream;
    mixed = mixed * 0xd35a2d97u;
    mixed = mixed ^ (mixed >> 15u);
    return mixed;
}

fn random(key: u32, step: u32, element: u32, plane: u32) -> u32 {
    return random_at(stream(key, step, plane), element);
}
