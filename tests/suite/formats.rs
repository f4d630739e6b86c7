//! Numbers in 16 and 8 bits, and the random bits to round with: against the crate `half`, against probabilities counted
//! one by one, and on the GPU bit for bit.

use std::collections::HashMap;
use std::ops::Range;

use half::{bf16, f16};
use optim_tests::Random;
use optimizers::core::format::{
    BLOCK, Code8, Master, StateDType, bf16_to_f32, decode_positive, decode_signed, encode_positive, encode_signed,
    f16_to_f32, f32_to_bf16, f32_to_bf16_stochastic, f32_to_f16, f32_to_f16_stochastic, hash, join, magnitude, of_slot,
    random, random_at, scale_from, scale_of, slot_stream, split, stream, tensor_key,
};

/// The upper half of 64 random bits.
fn word(random: &mut Random) -> u32 {
    u32::try_from(random.bits() >> 32).expect("it has 32 bits")
}

/// Bit patterns at which something begins or ends in one of the formats, of either sign.
fn edges() -> impl Iterator<Item = u32> {
    // The exponents of 0, of the last bits of an f16, of 2⁻¹⁴, of 1, of the largest f16, of the largest f32, of infinity.
    let exponents = (0..=2).chain(70..=128).chain(140..=144).chain(253..=255);
    let fractions =
        [0, 1, 0xfff, 0x1000, 0x1001, 0x2000, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_0000, 0x1_8000, 0x3f_ffff]
            .into_iter()
            .chain([0x40_0000, 0x40_0001, 0x7f_0000, 0x7f_7fff, 0x7f_8000, 0x7f_e000, 0x7f_efff, 0x7f_f000, 0x7f_ffff]);
    let patterns = exponents.flat_map(move |exponent| fractions.clone().map(move |fraction| exponent << 23 | fraction));
    patterns.flat_map(|bits| [bits, bits | 0x8000_0000])
}

/// Edges, then any patterns.
fn patterns(count: usize, seed: u64) -> impl Iterator<Item = f32> {
    let mut random = Random::new(seed);
    edges().chain(std::iter::from_fn(move || Some(word(&mut random)))).take(count).map(f32::from_bits)
}

/// The first number for which `up` does not hold; it holds for none after that.
fn count(range: Range<u32>, mut up: impl FnMut(u32) -> bool) -> u32 {
    let Range { mut start, mut end } = range;
    while start < end {
        let middle = start + (end - start) / 2;
        if up(middle) {
            start = middle + 1;
        } else {
            end = middle;
        }
    }
    start
}

mod nearest {
    use super::*;

    /// Every f16 is read as `half` reads it and stored as itself; a signalling NaN becomes quiet.
    #[test]
    fn f16_patterns_come_back() {
        for bits in 0..=u16::MAX {
            let x = f16_to_f32(bits);
            assert_eq!(x.to_bits(), f16::from_bits(bits).to_f32().to_bits(), "{bits:04x}");
            let quiet = if x.is_nan() { bits | 0x200 } else { bits };
            assert_eq!(f32_to_f16(x), quiet, "{bits:04x}");
        }
    }

    /// Every bf16 is read as its bits, a NaN too, and stored as itself; a signalling NaN becomes quiet.
    #[test]
    fn bf16_patterns_come_back() {
        for bits in 0..=u16::MAX {
            let x = bf16_to_f32(bits);
            assert_eq!(x.to_bits(), u32::from(bits) << 16, "{bits:04x}");
            let same = x.is_nan() || x.to_bits() == bf16::from_bits(bits).to_f32().to_bits();
            assert!(same && x.is_nan() == bf16::from_bits(bits).is_nan(), "{bits:04x}");
            let quiet = if x.is_nan() { bits | 0x40 } else { bits };
            assert_eq!(f32_to_bf16(x), quiet, "{bits:04x}");
        }
    }

    fn check(x: f32) {
        assert_eq!(f32_to_f16(x), f16::from_f32(x).to_bits(), "{x:e}, {:08x}", x.to_bits());
        assert_eq!(f32_to_bf16(x), bf16::from_f32(x).to_bits(), "{x:e}, {:08x}", x.to_bits());
    }

    /// As `half` does, NaNs included: any patterns, and every midpoint with its neighbours.
    #[test]
    fn patterns_are_stored_as_half_stores_them() {
        patterns(4 << 20, 1).for_each(check);
        for bits in 0..=u16::MAX {
            for [low, high] in
                [[bits, bits.wrapping_add(1)].map(f16_to_f32), [bits, bits.wrapping_add(1)].map(bf16_to_f32)]
            {
                if low.is_finite() && high.is_finite() {
                    let middle = f32::midpoint(low, high);
                    [low, low.next_up(), middle.next_down(), middle, middle.next_up(), high.next_down()]
                        .into_iter()
                        .for_each(check);
                }
            }
        }
        // From where on f16 is infinite.
        [65_504.0_f32, 65_519.996, 65_520.0, -65_519.996, -65_520.0].into_iter().for_each(check);
        assert_eq!([65_519.996, 65_520.0].map(f32_to_f16), [0x7bff, 0x7c00]);
    }
}

mod stochastic {
    use super::*;

    /// A format that numbers are rounded to stochastically.
    struct Format {
        name: &'static str,
        store: fn(f32, u32) -> u16,
        nearest: fn(f32) -> u16,
        read: fn(u16) -> f32,
        largest: u16,
        /// How many random bits decide about a number.
        bits: fn(f32) -> u32,
    }

    const FORMATS: [Format; 2] = [
        Format {
            name: "bf16",
            store: f32_to_bf16_stochastic,
            nearest: f32_to_bf16,
            read: bf16_to_f32,
            largest: 0x7f7f,
            bits: |_| 16,
        },
        Format {
            name: "f16",
            store: f32_to_f16_stochastic,
            nearest: f32_to_f16,
            read: f16_to_f32,
            largest: 0x7bff,
            // As many as are lost: those below 2⁻²⁴, or below 2⁻¹⁰ of the number.
            bits: |x| {
                let exponent = magnitude(x) >> 23;
                if exponent >= 113 { 13 } else { (126 - exponent).min(31) }
            },
        },
    ];

    /// What is stored already stays, whatever the random bits are; infinity and NaN as with rounding to nearest.
    #[test]
    fn patterns_stay() {
        let mut random = Random::new(2);
        for format in FORMATS {
            for bits in 0..=u16::MAX {
                let x = (format.read)(bits);
                for random in [0, u32::MAX, word(&mut random)] {
                    assert_eq!((format.store)(x, random), (format.nearest)(x), "{} {bits:04x}", format.name);
                }
            }
        }
    }

    /// What is finite becomes one of the two numbers around it, never infinite; the sign stays.
    #[test]
    fn numbers_go_to_a_neighbour() {
        let mut random = Random::new(3);
        for format in FORMATS {
            for x in patterns(1 << 20, 4).filter(|x| x.is_finite()) {
                for random in [0, u32::MAX, word(&mut random)] {
                    let stored = (format.store)(x, random);
                    let (below, above) = (stored & 0x7fff, (stored & 0x7fff) + 1);
                    let distance = |bits: u16| f64::from((format.read)(bits)) - f64::from(x.abs());
                    let around = if distance(below) > 0.0 {
                        below > 0 && distance(below - 1) < 0.0
                    } else {
                        below == format.largest || distance(above) > 0.0
                    };
                    let name = format.name;
                    assert!(below <= format.largest && around, "{name}: {x:e} as {stored:04x}");
                    assert_eq!(stored >> 15 == 1, x.is_sign_negative(), "{name}: {x:e} as {stored:04x}");
                }
            }
        }
    }

    /// The mean over all the random bits that decide is the number: exactly. The other bits do not matter.
    #[test]
    fn the_mean_over_all_random_bits_is_the_number() {
        let mut random = Random::new(5);
        for format in FORMATS {
            let mut seen = [0; 32];
            for x in patterns(1 << 18, 6).filter(|x| x.abs() <= (format.read)(format.largest)) {
                let bits = (format.bits)(x);
                let others = if bits == 31 { 0 } else { word(&mut random) << bits };
                let low = (format.store)(x, others);
                // From the threshold on it is rounded up.
                let below = count(0..1 << bits, |r| (format.store)(x, r | others) == low);
                let up = f64::from((1_u32 << bits) - below);
                let [low, high] =
                    [low, low.wrapping_add(u16::from(up > 0.0))].map(|bits| f64::from((format.read)(bits)));
                let mean = low + (high - low) * (up / f64::from(1_u32 << bits));
                // Below multiples of 2⁻⁵⁵ bits are cut.
                let cut = if bits == 31 { 2.0_f64.powi(-55) } else { 0.0 };
                let error = mean.abs() - f64::from(x.abs());
                assert!(error <= 0.0 && -error <= cut, "{}: {x:e} is {mean:e} on average", format.name);
                seen[bits as usize] += u32::from(up > 0.0);
            }
            let kinds = if format.name == "bf16" { 16..17 } else { 13..32 };
            assert!(seen[kinds].iter().all(|&seen| seen > 0), "{}: {seen:?}", format.name);
        }
    }

    /// Within four standard errors, with the random bits of neighbouring elements.
    #[test]
    fn the_mean_over_elements_is_the_number() {
        const DRAWS: u32 = 1 << 20;
        // Normal, subnormal and smaller than any f16.
        for (nth, &size) in (1..).zip(&[1.0 + 0.3 / 128.0, 3.000_7, 1_234.567, 3.3e-6, 6.543e-7, 2.2e-8, 3e-10]) {
            for x in [size, -size] {
                for (plane, format) in (0..).zip(FORMATS) {
                    let stream = stream(tensor_key(7, format.name), nth, plane + 2 * u32::from(x < 0.0));
                    let draws = (0..DRAWS).map(|element| (format.store)(x, random_at(stream, element)));
                    let sum: f64 = draws.map(|stored| f64::from((format.read)(stored)) - f64::from(x)).sum();
                    let low = f64::from((format.read)((format.store)(size, 0)));
                    let high = f64::from((format.read)((format.store)(size, 0) + 1));
                    let size = f64::from(size);
                    let deviation = ((high - size) * (size - low)).sqrt();
                    let mean_error = sum / f64::from(DRAWS);
                    let allowed = 4.0 * deviation / f64::from(DRAWS).sqrt();
                    assert!(mean_error.abs() <= allowed, "{}: {x:e} is off by {mean_error:e}", format.name);
                }
            }
        }
    }
}

mod masters {
    use super::*;

    #[test]
    fn what_is_split_can_be_joined() {
        for x in patterns(10_000_000, 8) {
            let (upper, correction) = split(x);
            if x.is_nan() {
                assert!(correction == 0 && upper == f32_to_bf16(x), "{:08x}", x.to_bits());
                assert!(join(upper, correction).is_nan(), "{:08x}", x.to_bits());
                continue;
            }
            assert_eq!(join(upper, correction).to_bits(), x.to_bits(), "{x:e}");
            // The nearest; of two, the one further from 0.
            let tie = x.to_bits() & 0xffff == 0x8000;
            let expected = if tie { (x.to_bits() >> 16) + 1 } else { f32_to_bf16(x).into() };
            assert_eq!(u32::from(upper), expected, "{x:e}");
        }
        assert_eq!(split(f32::MAX), (0x7f80, 0xffff), "the largest is read as infinite without its correction");
    }

    #[test]
    fn defaults_are_exact_and_names_are_short() {
        assert_eq!((StateDType::default(), Master::default()), (StateDType::F32, Master::F32));
        let names = [StateDType::F32, StateDType::Bf16, StateDType::Block8].map(|dtype| dtype.to_string());
        assert_eq!(names, ["f32", "bf16", "8-bit"]);
    }
}

mod blocks {
    use super::*;

    /// A code, as its documentation has it.
    #[derive(Clone, Copy)]
    struct Code {
        store: fn(f32, f32, u32) -> u8,
        read: fn(u8, f32) -> f32,
        /// The codes of what is not negative; the others have one more bit.
        codes: u8,
        /// What is not 0 is at least this one.
        least: u8,
    }

    const SIGNED: Code = Code { store: encode_signed, read: decode_signed, codes: 127, least: 0 };
    const POSITIVE: Code = Code { store: encode_positive, read: decode_positive, codes: 255, least: 1 };
    const CODES: [Code; 2] = [SIGNED, POSITIVE];

    impl Code {
        /// `y` of a code, in `f64`.
        fn y(code: u8) -> f64 {
            let (e, f) = (code / 16, code % 16);
            2.0_f64.powi(i32::from(e) + 1) * (1.0 + f64::from(f) / 16.0) - 2.0
        }

        /// What a code that is not negative stands for.
        fn value(self, code: u8, scale: f32) -> f64 {
            Self::y(code) / Self::y(self.codes) * f64::from(scale)
        }
    }

    /// 2⁻¹¹¹, the least scale.
    const LEAST_SCALE: f32 = f32::from_bits(16 << 23);
    const SCALES: [f32; 9] = [LEAST_SCALE, 4.2e-34, 1e-30, 1e-20, 0.7, 1.0, 1.234, 1e30, f32::MAX];
    /// The ends of what decides, with and without the bits above, and its middle.
    const RANDOM: [u32; 6] = [0, 0x3fff, 0xffff_c000, u32::MAX, 0x2000, 0x1fff];

    /// Any scales that a block can have.
    fn scales(count: usize, seed: u64) -> impl Iterator<Item = f32> {
        let mut random = Random::new(seed);
        let any = std::iter::from_fn(move || {
            Some(f32::from_bits((word(&mut random) & 0x7fff_ffff).clamp(LEAST_SCALE.to_bits(), f32::MAX.to_bits())))
        });
        SCALES.into_iter().chain(any).take(count)
    }

    #[allow(clippy::cast_possible_truncation, reason = "it is rounded to f32")]
    fn rounded(x: f64) -> f32 {
        x as f32
    }

    /// Numbers and scales that are at least as large: any scale, numbers from nothing to all of it.
    fn scaled(count: usize, seed: u64) -> impl Iterator<Item = (f32, f32)> {
        let mut random = Random::new(!seed);
        scales(count, seed).map(move |scale| {
            let part = f64::from(word(&mut random)) / f64::from(u32::MAX);
            let part = if random.below(2) == 0 { part } else { part.powi(8) };
            (rounded(f64::from(scale) * part), scale)
        })
    }

    /// Numbers at every code and between it and the next: close to either, in the middle, in a quarter.
    fn between(code: Code) -> impl Iterator<Item = (f32, f32)> {
        let parts = [0.0, 1e-6, 1e-3, 0.25, 0.5, 1.0 / 3.0, 0.999, 1.0 - 1e-6];
        let numbers = move |scale, c| {
            let [low, high] = [c, c + 1].map(|c| code.value(c, scale));
            parts.map(|part| (rounded(low + (high - low) * part), scale))
        };
        SCALES.into_iter().flat_map(move |scale| (0..code.codes).flat_map(move |c| numbers(scale, c)))
    }

    /// Every code of every scale, within three roundings; both ends exactly; larger ones for larger codes.
    #[test]
    fn codes_are_what_they_say() {
        for code in CODES {
            for scale in scales(10_000, 9) {
                let mut last = -1.0;
                for c in 0..=code.codes {
                    let (x, expected) = ((code.read)(c, scale), code.value(c, scale));
                    let error = (f64::from(x) - expected).abs();
                    let allowed = expected * 1.5 * 2.0_f64.powi(-23) + 2.0_f64.powi(-150);
                    assert!(error <= allowed, "{c} of {scale:e}: {x:e} for {expected:e}");
                    assert!(x > last, "{c} of {scale:e}: {x:e} after {last:e}");
                    last = x;
                    if code.codes == 127 {
                        let opposite = (code.read)(c | 0x80, scale);
                        assert_eq!(opposite.to_bits(), (-x).to_bits(), "{c} of {scale:e}");
                    }
                }
                let ends = [(code.read)(0, scale), last].map(f32::to_bits);
                assert_eq!(ends, [0, scale.to_bits()], "{scale:e}");
            }
        }
    }

    /// What the documentation says of distances.
    #[test]
    fn codes_are_as_far_apart_as_they_say() {
        let said = [(SIGNED, 2.5e-4, 0.02, 0.03..0.08), (POSITIVE, 9.8e-7, 0.001, 0.03..0.064)];
        for (code, first, from, relative) in said {
            let distance = |c| code.value(c + 1, 1.0) - code.value(c, 1.0);
            assert!((distance(0) / first - 1.0).abs() < 0.05, "{}", distance(0));
            assert!((distance(code.codes - 1) / 0.032 - 1.0).abs() < 0.05, "{}", distance(code.codes - 1));
            for c in (0..code.codes).filter(|&c| code.value(c, 1.0) > from) {
                let relative_distance = distance(c) / code.value(c, 1.0);
                assert!(relative.contains(&relative_distance), "{c}: {relative_distance}");
            }
        }
    }

    /// What is read is the number on average over all random bits, and one of the two codes around it.
    #[test]
    fn the_mean_over_all_random_bits_is_the_number() {
        const ALL: u32 = 1 << 14;
        let mut others = Random::new(10);
        for code in CODES {
            for (x, scale) in scaled(200_000, 11).chain(between(code)) {
                let others = word(&mut others) & !(ALL - 1);
                let [low, high] = [0, ALL - 1].map(|random| (code.store)(x, scale, random | others));
                assert!(high == low || high == low + 1, "{x:e} of {scale:e}: {low} or {high}");
                let up = ALL - count(0..ALL, |random| (code.store)(x, scale, random | others) == low);
                let [below, above] = [low, low.saturating_add(1).min(code.codes)].map(|c| code.value(c, scale));
                let x = f64::from(x);
                if low == code.least && low > 0 && x < below {
                    assert!(x > 0.0 && high == low, "{x:e} of {scale:e}: {low} or {high}");
                    continue;
                }
                // Half a step of the random bits, and a few roundings: of a number that may be subnormal, and of `z`.
                let gap = if low == code.codes { below - code.value(low - 1, scale) } else { above - below };
                let allowed = gap * 1.5 / f64::from(2 * ALL) + 2.0_f64.powi(-150);
                let mean = below + (above - below) * f64::from(up) / f64::from(ALL);
                assert!((mean - x).abs() <= allowed, "{x:e} of {scale:e}: {mean:e} on average, of {low} and {high}");
                assert!(below <= x + allowed && x <= above + allowed, "{x:e} of {scale:e}: {low} and {high}");
            }
        }
    }

    /// Within four standard errors, with the random bits of neighbouring elements and of the two slots that share them.
    #[test]
    fn the_mean_over_elements_is_the_number() {
        const DRAWS: u32 = 1 << 18;
        for (step, x) in (1..).zip([4e-4_f32, 0.001, 0.0749, 0.3, 0.77, 1.2]) {
            for (slot, code) in (0..).zip(CODES) {
                let stream = slot_stream(tensor_key(0, "w"), step, slot);
                let draws = (0..DRAWS).map(|e| (code.store)(x, 1.234, of_slot(random_at(stream, e), slot)));
                let read: Vec<f64> = draws.map(|stored| f64::from((code.read)(stored, 1.234))).collect();
                let mean = read.iter().sum::<f64>() / f64::from(DRAWS);
                let variance = read.iter().map(|read| (read - mean).powi(2)).sum::<f64>() / f64::from(DRAWS);
                let allowed = 4.0 * (variance / f64::from(DRAWS)).sqrt();
                assert!(allowed > 0.0 && (mean - f64::from(x)).abs() <= allowed, "{x} is {mean} on average");
            }
        }
    }

    #[test]
    fn a_negative_number_is_stored_like_its_opposite() {
        let mut random = Random::new(12);
        for (x, scale) in scaled(200_000, 13) {
            let random = word(&mut random);
            let [code, opposite] = [x, -x].map(|x| encode_signed(x, scale, random));
            assert_eq!(opposite, code | 0x80, "{x:e} of {scale:e}");
            assert_eq!(decode_signed(opposite, scale), -decode_signed(code, scale), "{code}");
            assert_eq!(encode_positive(-x, scale, random), encode_positive(x, scale, random), "{x:e} of {scale:e}");
        }
    }

    /// The largest of a block is kept exactly, also when it is stored again and again.
    #[test]
    fn the_largest_is_exact() {
        for scale in scales(200_000, 14) {
            for random in RANDOM {
                assert_eq!(encode_signed(scale, scale, random), 127, "{scale:e}");
                assert_eq!(encode_signed(-scale, scale, random), 255, "{scale:e}");
                assert_eq!(encode_positive(scale, scale, random), 255, "{scale:e}");
                // Of a caller's that breaks the promise.
                assert_eq!(encode_signed(-2.0 * scale, scale, random), 255, "{scale:e}");
                assert_eq!(encode_positive(f32::INFINITY, scale, random), 255, "{scale:e}");
                assert_eq!(encode_signed(f32::NAN, scale, random) & 0x7f, 127, "{scale:e}");
            }
        }
    }

    /// What was read from a code is stored as that code again, always: state that a rule leaves alone does not drift.
    #[test]
    fn codes_stay() {
        for code in CODES {
            for scale in scales(10_000, 15) {
                for c in 0..=u8::MAX {
                    let x = (code.read)(c, scale);
                    for random in RANDOM {
                        assert_eq!((code.store)(x, scale, random), c, "{c} of {scale:e}: {x:e}, {random:x}");
                    }
                }
            }
        }
    }

    /// Nothing that is positive becomes 0 in a positive code, however small; zeros stay zeros.
    #[test]
    fn positive_numbers_do_not_vanish() {
        for scale in scales(1000, 16) {
            let least = rounded(POSITIVE.value(1, scale) / 1.01);
            for random in RANDOM {
                for x in [f32::from_bits(1), f32::MIN_POSITIVE / 3.0, scale * 1e-9, least].map(|x| x.min(least)) {
                    assert_eq!(encode_positive(x, scale, random), u8::from(x > 0.0), "{x:e} of {scale:e}");
                }
                let zeros = [0.0, -0.0].map(|x| [encode_positive(x, scale, random), encode_signed(x, scale, random)]);
                assert_eq!(zeros, [[0, 0], [0, 0x80]], "{scale:e}");
            }
        }
    }

    /// A block of zeros, and one of which nothing can be stored.
    #[test]
    fn without_a_scale_all_is_0_or_nan() {
        for random in RANDOM {
            for x in [0.0, -0.0] {
                let [signed, positive] = [encode_signed(x, 0.0, random), encode_positive(x, 0.0, random)];
                let read = [decode_signed(signed, 0.0), decode_positive(positive, 0.0)];
                assert_eq!(read.map(f32::to_bits), [x.to_bits(), 0], "{x:e}");
            }
            for x in [0.0, -0.0, 1e-40, 1.0, -1.0, f32::MAX, f32::INFINITY, f32::NAN, -f32::NAN] {
                let [signed, positive] = [encode_signed(x, f32::NAN, random), encode_positive(x, f32::NAN, random)];
                let read = [decode_signed(signed, f32::NAN), decode_positive(positive, f32::NAN)];
                assert!(read.iter().all(|read| read.is_nan()), "{x:e} is {read:?}");
            }
        }
    }

    /// Scales are the largest numbers, but none is so small that it cannot be divided by.
    #[test]
    fn scales_have_a_least() {
        let tiny = [f32::from_bits(1), 1e-40, f32::MIN_POSITIVE, LEAST_SCALE.next_down(), LEAST_SCALE];
        for x in tiny {
            for block in [vec![x], vec![0.0, -x, 0.0], vec![x / 2.0, x]] {
                assert_eq!(scale_of(&block).to_bits(), LEAST_SCALE.to_bits(), "{x:e}");
            }
        }
        for scale in scales(10_000, 17).chain([LEAST_SCALE.next_up()]) {
            let block = [scale / 2.0, -scale, 0.0];
            assert_eq!([scale_of(&block), scale_from(magnitude(-scale))].map(f32::to_bits), [scale.to_bits(); 2]);
            for coding in [Code8::Signed, Code8::Positive].map(Code8::coding) {
                assert!(coding.steps(scale).is_normal(), "{scale:e}");
            }
        }
    }

    #[test]
    fn a_block_of_zeros_is_one_and_a_nan_takes_the_block() {
        let mut block = vec![0.0_f32; BLOCK];
        assert_eq!(scale_of(&block).to_bits(), 0);
        assert_eq!(scale_of(&[]).to_bits(), 0);
        block[3] = -0.0;
        assert_eq!(scale_of(&block).to_bits(), 0, "minus 0 is not the largest");
        assert_eq!([decode_signed(0, 0.0), decode_positive(0, 0.0)].map(f32::to_bits), [0, 0]);
        block[17] = -3.5;
        block[200] = 2.0;
        assert_eq!(scale_of(&block), 3.5);
        for poison in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)] {
            block[255] = poison;
            let scale = scale_of(&block);
            assert_eq!((scale.to_bits(), scale_from(magnitude(poison)).to_bits()), (0x7fc0_0000, 0x7fc0_0000));
            for &x in &block {
                let read = [
                    decode_signed(encode_signed(x, scale, 5), scale),
                    decode_positive(encode_positive(x, scale, 5), scale),
                ];
                assert!(read.iter().all(|x| x.is_nan()), "{x} beside {poison} is {read:?}");
            }
        }
    }
}

mod random_bits {
    use super::*;

    /// Draws of each comparison.
    const DRAWS: u32 = 1 << 16;

    /// The correlation of two sequences of numbers from 0 to 1, in standard errors.
    fn correlation(pairs: impl Iterator<Item = [u32; 2]>) -> f64 {
        let (mut sum, mut n) = (0.0, 0.0);
        for pair in pairs {
            let [a, b] = pair.map(|bits| f64::from(bits) / 2.0_f64.powi(32) - 0.5);
            sum += 12.0 * a * b;
            n += 1.0;
        }
        sum / f64::sqrt(n)
    }

    /// By how much the most often agreeing pair of bits agrees more or less often than half the time, in standard errors.
    fn agreement(pairs: impl Iterator<Item = [u32; 2]>) -> f64 {
        let (mut agree, mut n) = (vec![[0_u32; 32]; 32], 0);
        for [a, b] in pairs {
            for (shift, agree) in (0..).zip(&mut agree) {
                let same = !(a.rotate_right(shift) ^ b);
                for (bit, agree) in agree.iter_mut().enumerate() {
                    *agree += (same >> bit) & 1;
                }
            }
            n += 1;
        }
        let deviation = |&agree: &u32| (f64::from(agree) - f64::from(n) / 2.0).abs() / (f64::from(n) / 4.0).sqrt();
        agree.as_flattened().iter().map(deviation).fold(0.0, f64::max)
    }

    const KEY: u32 = 0x1234_5678;

    /// The bits of an element beside those of what is next to it in some direction.
    type Pair = fn(u32) -> [u32; 2];

    /// What a slot is rounded with: its 16 bits of two elements, since [`agreement`] looks at 32.
    fn of_two(n: u32, slot: u32) -> u32 {
        let half = |element| of_slot(random_at(slot_stream(KEY, 3, slot), element), slot) & 0xffff;
        half(n) << 16 | half(n + 2 * DRAWS)
    }

    #[test]
    fn neighbours_do_not_agree() {
        let pairs: [(&str, Pair); 10] = [
            ("elements", |n| [random(KEY, 1, n, 0), random(KEY, 1, n + 1, 0)]),
            ("elements, 256 apart", |n| [random(KEY, 1, n, 0), random(KEY, 1, n + 256, 0)]),
            ("steps of elements", |n| [random(KEY, 9, n, 1), random(KEY, 10, n, 1)]),
            ("steps of one element", |n| [random(KEY, n, 5, 0), random(KEY, n + 1, 5, 0)]),
            ("planes", |n| [random(KEY, 3, n, 0), random(KEY, 3, n, 1)]),
            ("slots that share bits", |n| [of_two(n, 0), of_two(n, 1)]),
            ("slots that share bits, of neighbours", |n| [of_two(n, 2), of_two(n + 1, 3)]),
            ("slots that share none", |n| [of_two(n, 1), of_two(n, 3)]),
            ("keys", |n| [random(KEY, 3, n, 0), random(KEY + 1, 3, n, 0)]),
            ("keys of one element", |n| [random(n, 3, 0, 0), random(n + 1, 3, 0, 0)]),
        ];
        for (what, pair) in pairs {
            // Of one comparison five, of the largest of 1,024 comparisons 5.5: each is exceeded once in a million.
            let correlation = correlation((0..DRAWS).map(pair));
            assert!(correlation.abs() < 5.0, "{what}: {correlation} standard errors");
            let agreement = agreement((0..DRAWS).map(pair));
            assert!(agreement < 5.5, "{what}: {agreement} standard errors");
        }
    }

    /// The control: what does agree.
    #[test]
    fn agreement_is_noticed() {
        assert!(correlation((0..DRAWS).map(|n| [hash(n), hash(n) / 2])) > 5.0);
        assert!(agreement((0..DRAWS).map(|n| [hash(n), hash(n).rotate_left(5) & !1 | n & 1])) > 5.5);
    }

    /// In standard errors, by how much two slots of one element are rounded up together more or less often than by chance.
    fn together(parts: [f32; 2], slots: [u32; 2]) -> f64 {
        let mut both = [[0.0; 2]; 2];
        for element in 0..1 << 20 {
            let up = [0, 1].map(|nth| {
                let x = 1.0 + parts[nth] / 128.0;
                let bits = random_at(slot_stream(KEY, 5, slots[nth]), element);
                usize::from(f32_to_bf16_stochastic(x, of_slot(bits, slots[nth])) > f32_to_bf16(1.0))
            });
            both[up[0]][up[1]] += 1.0;
        }
        let [[neither, second], [first, up]] = both;
        let n = neither + second + first + up;
        let [p, q] = [first, second].map(|alone: f64| (alone + up) / n);
        assert!((p - f64::from(parts[0])).abs() < 0.01 && (q - f64::from(parts[1])).abs() < 0.01, "{p} and {q}");
        (up - n * p * q) / (n * p * q * (1.0 - p) * (1.0 - q)).sqrt()
    }

    /// Two slots share an element's bits, a half each: how one is rounded tells nothing about the other.
    #[test]
    fn slots_are_rounded_independently() {
        let parts = [1.0 / 64.0, 0.125, 0.3, 0.5, 0.9];
        for (a, b) in parts.iter().flat_map(|&a| parts.map(|b| (a, b))) {
            for slots in [[0, 1], [2, 3], [0, 2], [1, 2]] {
                let together = together([a, b], slots);
                assert!(together.abs() < 5.0, "{a} and {b} of the slots {slots:?}: {together} standard errors");
            }
        }
        assert!(together([0.3, 0.5], [1, 1]) > 100.0, "the same half is noticed");
    }

    #[test]
    fn every_bit_is_set_half_the_time() {
        const DRAWS: u32 = 1 << 20;
        for (key, step, plane) in [(0, 0, 0), (0, 1, 0), (1, 1, 0), (tensor_key(0, "w"), 1000, 2)] {
            let mut set = [0_u32; 32];
            // Of all bits, and of the halves.
            let mut sums = [0.0; 3];
            for element in 0..DRAWS {
                let bits = random(key, step, element, plane);
                for (sum, bits) in sums.iter_mut().zip([bits, of_slot(bits, 0) << 16, of_slot(bits, 1) << 16]) {
                    *sum += f64::from(bits) / 2.0_f64.powi(32) - 0.5;
                }
                (0..).zip(&mut set).for_each(|(bit, set)| *set += (bits >> bit) & 1);
            }
            let n = f64::from(DRAWS);
            for (bit, set) in set.into_iter().enumerate() {
                let deviation = (f64::from(set) - n / 2.0) / (n / 4.0).sqrt();
                assert!(deviation.abs() < 5.0, "bit {bit} of {key}, {step}, {plane}: {deviation} standard errors");
            }
            let means = sums.map(|sum| sum / (n / 12.0).sqrt());
            assert!(means.iter().all(|mean| mean.abs() < 5.0), "{key}, {step}, {plane}: {means:?} standard errors");
        }
    }

    /// The most elements of one sequence that another has too, all of them as many places further on.
    fn shifted(a: impl Fn(u32) -> u32, b: impl Fn(u32) -> u32) -> u32 {
        let places: HashMap<u32, u32> = (0..DRAWS).map(|element| (a(element), element)).collect();
        let mut shifts = HashMap::new();
        for element in 0..DRAWS {
            if let Some(place) = places.get(&b(element)) {
                *shifts.entry(element.wrapping_sub(*place)).or_insert(0) += 1;
            }
        }
        shifts.into_values().max().unwrap_or(0)
    }

    /// No stream is a shifted copy of another.
    #[test]
    fn streams_do_not_repeat_each_other() {
        for step in 1..16 {
            for (key, other, plane) in [(KEY, step + 1, 0), (KEY, step, 1), (KEY ^ 1, step, 0), (KEY, step + 100, 3)] {
                let streams = [stream(KEY, step, 0), stream(key, other, plane)];
                let [a, b] = streams.map(|stream| move |element| random_at(stream, element));
                assert!(shifted(a, b) < 4, "step {step} and key {key}, step {other}, plane {plane}");
            }
        }
        assert!(shifted(|n| random_at(9, n), |n| random_at(9, n + 7)) > 60_000, "a shifted copy is noticed");
    }

    /// Numbers that saved runs depend on, computed by another program.
    #[test]
    fn bits_are_the_same_forever() {
        let keys = [(0, ""), (0, "conv1.weight"), (1, "conv1.weight"), (u64::MAX, "β")].map(|(s, n)| tensor_key(s, n));
        assert_eq!(keys, [0x6ba1_06af, 0x50b3_a0df, 0x34ea_c3f0, 0x5297_bf69]);
        assert_eq!(random(1, 1, 0, 0), 0x4408_6c39);
        assert_eq!(random(0xdead_beef, 7, 123_456, 2), 0xfd0a_48a3);
        assert_eq!(random(0, u32::MAX, u32::MAX, 3), 0x18a5_b7a6);
        let streams = [0, 1, 2, 3].map(|slot| slot_stream(0xdead_beef, 7, slot));
        assert_eq!(streams, [1, 1, 2, 2].map(|plane| stream(0xdead_beef, 7, plane)));
        assert_eq!([0, 1, 2, 3].map(|slot| of_slot(0xfd0a_48a3, slot) & 0xffff), [0x48a3, 0xfd0a, 0x48a3, 0xfd0a]);
    }
}

/// The twins: each function on the GPU and on the CPU, over the same numbers.
#[cfg(feature = "gpu")]
mod twins {
    use optim_shaders::FORMATS;
    use optim_tests::{gpu, gpu_is_llvmpipe};

    use super::*;

    const LEN: usize = 1 << 20;

    /// What a case is given: a pattern, a scale, and random bits.
    type Input = [u32; 4];

    /// A function of four words: in WGSL an expression of type `vec2<u32>` in `i`.
    struct Case {
        wgsl: &'static str,
        rust: fn(Input) -> [u32; 2],
        /// Whether it computes with floats that are rounded.
        rounds: bool,
    }

    const CASES: &[Case] = &[
        Case {
            wgsl: "vec2(bitcast<u32>(f16_to_f32(i.x & 0xffffu)), bitcast<u32>(bf16_to_f32(i.x >> 16u)))",
            rust: |[x, ..]| [f16_to_f32(low(x)).to_bits(), bf16_to_f32(low(x >> 16)).to_bits()],
            rounds: false,
        },
        Case {
            wgsl: "vec2(f32_to_f16(bitcast<f32>(i.x)), f32_to_bf16(bitcast<f32>(i.x)))",
            rust: |[x, ..]| [f32_to_f16(f32::from_bits(x)).into(), f32_to_bf16(f32::from_bits(x)).into()],
            rounds: false,
        },
        Case {
            wgsl: "vec2(f32_to_f16_stochastic(bitcast<f32>(i.x), i.z), f32_to_bf16_stochastic(bitcast<f32>(i.x), i.w))",
            rust: |[x, _, z, w]| {
                let x = f32::from_bits(x);
                [f32_to_f16_stochastic(x, z).into(), f32_to_bf16_stochastic(x, w).into()]
            },
            rounds: false,
        },
        Case {
            wgsl: "split(bitcast<f32>(i.x))",
            rust: |[x, ..]| {
                let (upper, correction) = split(f32::from_bits(x));
                [upper.into(), correction.into()]
            },
            rounds: false,
        },
        Case {
            wgsl: "vec2(bitcast<u32>(join(i.x & 0xffffu, i.z & 0xffffu)), magnitude(bitcast<f32>(i.x)))",
            rust: |[x, _, z, _]| [join(low(x), low(z)).to_bits(), magnitude(f32::from_bits(x))],
            rounds: false,
        },
        Case {
            wgsl: "vec2(bitcast<u32>(scale_from(i.x)), hash(i.z))",
            rust: |[x, _, z, _]| [scale_from(x).to_bits(), hash(z)],
            rounds: false,
        },
        Case {
            wgsl: "vec2(stream(i.x, i.y, i.w & 7u), random_at(i.x, i.z))",
            rust: |[x, y, z, w]| [stream(x, y, w & 7), random_at(x, z)],
            rounds: false,
        },
        Case {
            wgsl: "vec2(random(i.x, i.y, i.z, i.w), random(i.w, i.z, i.y, i.x))",
            rust: |[x, y, z, w]| [random(x, y, z, w), random(w, z, y, x)],
            rounds: false,
        },
        Case {
            wgsl: "vec2(slot_stream(i.x, i.y, i.w & 3u), of_slot(i.x, i.z & 3u))",
            rust: |[x, y, z, w]| [slot_stream(x, y, w & 3), of_slot(x, z & 3)],
            rounds: false,
        },
        Case {
            wgsl: "vec2(bitcast<u32>(steps(SIGNED, bitcast<f32>(i.y))), bitcast<u32>(steps(POSITIVE, bitcast<f32>(i.y))))",
            rust: |[_, y, ..]| {
                [Code8::Signed, Code8::Positive].map(|code| code.coding().steps(f32::from_bits(y)).to_bits())
            },
            rounds: true,
        },
        Case {
            wgsl: "vec2(encode(SIGNED, part(i), steps(SIGNED, bitcast<f32>(i.y)), i.z), \
                   encode(POSITIVE, part(i), steps(POSITIVE, bitcast<f32>(i.y)), i.w))",
            rust: |i| {
                let [_, y, z, w] = i;
                [
                    encode_signed(part(i), f32::from_bits(y), z).into(),
                    encode_positive(part(i), f32::from_bits(y), w).into(),
                ]
            },
            rounds: true,
        },
        Case {
            wgsl: "vec2(bitcast<u32>(decode(SIGNED, i.x & 0xffu, bitcast<f32>(i.y))), \
                   bitcast<u32>(decode(POSITIVE, i.z & 0xffu, bitcast<f32>(i.y))))",
            rust: |[x, y, z, _]| {
                let y = f32::from_bits(y);
                [decode_signed(byte(x), y).to_bits(), decode_positive(byte(z), y).to_bits()]
            },
            rounds: true,
        },
    ];

    /// In place of a number: the scale with the sign and fraction of the pattern, and an exponent that is up to 31 less.
    const PART: &str = "
fn part(i: vec4<u32>) -> f32 {
    let less = min((i.x >> 23u) & 31u, i.y >> 23u);
    let size = min(((i.y & 0x7f800000u) - (less << 23u)) | (i.x & 0x7fffffu), i.y);
    return bitcast<f32>((i.x & 0x80000000u) | size);
}
";

    fn part([x, y, ..]: Input) -> f32 {
        let less = ((x >> 23) & 31).min(y >> 23);
        let size = (((y & 0x7f80_0000) - (less << 23)) | (x & 0x7f_ffff)).min(y);
        f32::from_bits((x & 0x8000_0000) | size)
    }

    fn low(word: u32) -> u16 {
        u16::try_from(word & 0xffff).expect("it has 16 bits")
    }

    fn byte(word: u32) -> u8 {
        u8::try_from(word & 0xff).expect("it has 8 bits")
    }

    /// Patterns, edges among them; scales: any that are finite, but with a normal least code unless the device keeps
    /// subnormals, and then also 0, infinity and NaN.
    fn inputs() -> Vec<Input> {
        let mut random = Random::new(15);
        let (smallest, largest) = if gpu_is_llvmpipe() { (0, 0x7fff_ffff) } else { (0x1000_0000, 0x7e80_0000) };
        let inputs = patterns(LEN, 16).map(|x| {
            let y = match word(&mut random) {
                0..0x0400_0000 => 0,
                0x0400_0000..0x0800_0000 => 0x7f80_0000,
                any => any & 0x7fff_ffff,
            };
            [x.to_bits(), y.clamp(smallest, largest), word(&mut random), word(&mut random)]
        });
        inputs.collect()
    }

    fn run(formats: &str, case: &Case, inputs: &[Input]) -> Vec<[u32; 2]> {
        let text = format!(
            "{formats}{PART}
@group(0) @binding(0) var<storage, read> inputs: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> outputs: array<vec2<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
    let i = inputs[id.x];
    outputs[id.x] = {};
}}
",
            case.wgsl
        );
        let words: Vec<f32> = inputs.as_flattened().iter().map(|&word| f32::from_bits(word)).collect();
        let (input, output) = (gpu().buffer(&words).unwrap(), gpu().zeros(2 * inputs.len()).unwrap());
        let device = gpu().device();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("formats"),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("formats"),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let entries = [&input, &output].map(|buffer| buffer.wgpu().as_entire_binding());
        let entries = [0, 1].map(|n| wgpu::BindGroupEntry { binding: n, resource: entries[n as usize].clone() });
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("formats"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(u32::try_from(inputs.len() / 64).unwrap(), 1, 1);
        }
        gpu().queue().submit([encoder.finish()]);
        let words: Vec<u32> = output.read().unwrap().into_iter().map(f32::to_bits).collect();
        words.as_chunks().0.to_vec()
    }

    /// Of how many inputs the results differ, and the first of them. Exactly, but for rounded floats of a device that promises no
    /// exact division and root: codes may be the next one, and numbers off by 2⁻²⁰.
    fn differences(formats: &str, case: &Case, inputs: &[Input]) -> (usize, String) {
        let near = |a: u32, b: u32| {
            let allowed = match case.wgsl.contains("encode") {
                _ if gpu_is_llvmpipe() || !case.rounds => 0,
                true => 1,
                false => 8,
            };
            // Of a NaN the sign and the fraction are open.
            let both_nan = case.rounds && [a, b].iter().all(|&bits| f32::from_bits(bits).is_nan());
            both_nan || a.abs_diff(b) <= allowed
        };
        let got = run(formats, case, inputs);
        let mut differing = inputs.iter().zip(got).filter_map(|(&input, got)| {
            let expected = (case.rust)(input);
            let same = near(got[0], expected[0]) && near(got[1], expected[1]);
            (!same).then(|| format!("{}: {got:08x?} for {expected:08x?}, from {input:08x?}", case.wgsl))
        });
        let first = differing.next();
        (differing.count() + usize::from(first.is_some()), first.unwrap_or_default())
    }

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn give_the_same_bits() {
        let inputs = inputs();
        for case in CASES {
            let (count, first) = differences(FORMATS, case, &inputs);
            assert_eq!(count, 0, "{first}");
        }
    }

    /// The control: every function with one number changed.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn with_another_number_are_noticed() {
        let inputs = inputs();
        let changes = [
            ("f16_to_f32", "word = word | 0x400000u", "word = word | 0u"),
            ("f32_to_f16(", "(word >> shift) & 1u", "(word >> shift) & 0u"),
            ("f32_to_f16_stochastic", "excess = 95u", "excess = 96u"),
            ("f32_to_bf16(", "0x7fffu + ((", "0x8000u + (("),
            ("f32_to_bf16_stochastic", "0x7f7fu", "0x7f80u"),
            ("split", "bits + 0x8000u", "bits + 0x7fffu"),
            ("join", "& 0x8000u) << 1u", "& 0x8000u) << 0u"),
            ("hash", "0x21f0aaadu", "0x21f0aaafu"),
            ("random_at", "mixed + stream", "mixed - stream"),
            ("scale_from", "largest < 0x08000000u", "largest < 0x07000000u"),
            ("scale_from", "bits = 0x08000000u", "bits = 0x08800000u"),
            ("steps(", "coding.most / scale", "coding.most * scale"),
            ("encode(", "0u, 126974.0", "0u, 126975.0"),
            ("encode(", "* steps + 2.0", "* steps + 2.5"),
            ("encode(", "SHIFT = 19u", "SHIFT = 18u"),
            ("encode(", "(bits >> 24u) & coding.sign", "(bits >> 24u) & 0u"),
            ("decode(", "0x40000000u", "0x40080000u"),
            ("decode(", "(code & coding.sign) << 24u", "(code & coding.sign) << 23u"),
            ("slot_stream", "1u + slot / 2u", "slot / 2u"),
            ("of_slot", "16u * (slot & 1u)", "16u * (slot & 2u)"),
            ("bf16_to_f32", "(bits << 16u)", "(bits << 15u)"),
            ("magnitude", "(x) & 0x7fffffffu", "(x) & 0x7ffffffeu"),
            ("stream", "^ step) ^ plane", "^ step) + plane"),
            ("(random(", "random_at(stream(key, step, plane)", "random_at(stream(key, plane, step)"),
        ];
        // What shows only where bits are equal, or only with numbers that hardware need not keep.
        let exact = [
            ("scale_from", "0x7fc00000u", "0x7f800000u"),
            ("steps(", "(scale) == 0u", "(scale) == 1u"),
            ("steps(", "(scale) >= INFINITE", "(scale) > 0x7fffffffu"),
            ("encode(", "0x80u, 494.0", "0x80u, 493.0"),
            ("encode(", "7.875628e-6, 0x801u)", "7.875628e-6, 0x800u)"),
            ("encode(", "!(z < top)", "!(z < top - 1.0)"),
            ("encode(", "random & 0x3fffu", "random & 0x1fffu"),
            ("encode(", "(magnitude == 0u)", "(magnitude == 1u)"),
            ("decode(", "0.0020242915, 0u", "0.0020242917, 0u"),
            ("decode(", "7.875628e-6", "7.875629e-6"),
        ];
        let mut unnoticed = Vec::new();
        for (function, from, to) in changes.into_iter().chain(exact.into_iter().filter(|_| gpu_is_llvmpipe())) {
            let other = FORMATS.replace(from, to);
            assert_ne!(other, FORMATS, "{from} was found");
            let case = CASES.iter().find(|case| case.wgsl.contains(function)).expect("every function has a case");
            if differences(&other, case, &inputs).0 == 0 {
                unnoticed.push((function, to));
            }
        }
        assert_eq!(unnoticed, [], "were not noticed");
    }
}
