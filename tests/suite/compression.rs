//! AdaFactor's second moments as `f16`: the codec, what is stored on both backends, and what could be divided by zero.

use half::f16;
use optim_tests::{Problem, Random, Setup, on_every_backend};
use optimizers::core::backend::{Part, Plan, Tensor};
use optimizers::core::compressed;
use optimizers::core::format::{Master, StateDType};
use optimizers::core::rule::{At, CustomRule, Slot, StepScalars, UpdateRule};
use optimizers::{AdaFactor, Builder, DType, Error, IntoBackend, Optimizer, Parameter, Rate, Result, Rule};

/// The same rule with and without compression.
fn rule(compression: bool) -> AdaFactor {
    AdaFactor { compression, ..AdaFactor::with_lr(0.01) }
}

/// The nearest number that is stored: found by comparing with all of them, for a number that is not negative.
struct Nearest(Vec<f64>);

impl Nearest {
    fn new() -> Self {
        Self((0..=f16::MAX.to_bits()).map(|bits| f16::from_bits(bits).to_f64()).collect())
    }

    fn bits(&self, x: f64) -> u16 {
        let above = self.0.partition_point(|&stored| stored < x);
        let nearest = match (above.checked_sub(1).map(|below| (below, x - self.0[below])), self.0.get(above)) {
            (Some((below, _)), None) => below,
            (Some((below, down)), Some(up)) if down < up - x || (down == up - x && below % 2 == 0) => below,
            _ => above,
        };
        u16::try_from(nearest.max(usize::from(x > 0.0))).expect("it has 16 bits")
    }
}

fn encoded(x: f32) -> u16 {
    let mut stored = [f16::NAN];
    compressed::encode(&[x], &mut stored);
    stored[0].to_bits()
}

/// Every number that is stored is read exactly, and stored again as itself; infinity as the largest.
#[test]
fn all_patterns_come_back() {
    let patterns: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let mut numbers = vec![0.0; patterns.len()];
    compressed::decode(&patterns, &mut numbers);
    let mut again = vec![f16::ZERO; patterns.len()];
    compressed::encode(&numbers, &mut again);
    for ((pattern, number), again) in patterns.iter().zip(numbers).zip(again) {
        assert!(number.is_nan() == pattern.is_nan() && (number.is_nan() || f64::from(number) == pattern.to_f64()));
        let expected = match *pattern {
            nan if nan.is_nan() => f16::NAN,
            number => number.clamp(f16::MIN, f16::MAX),
        };
        assert_eq!(again.to_bits(), expected.to_bits(), "{pattern:?}");
    }
}

/// To nearest, ties to even, at every midpoint and beside it; nothing positive becomes 0, nothing finite infinite.
#[test]
fn rounds_to_nearest_within_bounds() {
    let nearest = Nearest::new();
    for bits in 0..f16::MAX.to_bits() {
        let [low, high] = [bits, bits + 1].map(|bits| f16::from_bits(bits).to_f32());
        let middle = f32::midpoint(low, high);
        for x in [low, low.next_up(), middle.next_down(), middle, middle.next_up(), high.next_down(), high] {
            assert_eq!(encoded(x), nearest.bits(x.into()), "{x:e}");
        }
    }
    let least = f16::MIN_POSITIVE_SUBNORMAL.to_bits();
    for x in [f32::from_bits(1), f32::MIN_POSITIVE, 1e-30, 2.0_f32.powi(-25), 2.0_f32.powi(-24)] {
        assert_eq!(encoded(x), least, "{x:e}");
    }
    for x in [65_504.0, 65_519.9, 65_520.0, 1e6, f32::MAX, f32::INFINITY] {
        assert_eq!(encoded(x), f16::MAX.to_bits(), "{x:e}");
    }
    assert_eq!((encoded(0.0), encoded(-0.0)), (0, 0x8000));
    assert_eq!((encoded(f32::NAN), encoded(-f32::NAN)), (0x7e00, 0x7e00));
}

fn step(optimizer: &mut Optimizer, p: &mut Vec<f32>, g: &Vec<f32>) {
    assert!(optimizer.step(&mut [p.into()], &[g.into()]).unwrap().applied(), "a step is applied");
}

/// The second moments alone are `f16`.
#[test]
fn state_takes_half_the_bytes() {
    for compression in [false, true] {
        let dtypes: Vec<_> = Rule::from(rule(compression)).spec().slots().iter().map(|slot| slot.dtype).collect();
        let second = if compression { DType::F16 } else { DType::F32 };
        assert_eq!(dtypes, [second, second, second, DType::F32]);
    }
}

/// A rule of the user's own that asks for what only factored rules have.
#[derive(Debug)]
struct Narrow(DType);

impl UpdateRule for Narrow {
    fn name(&self) -> &'static str {
        "narrow"
    }

    fn lr(&self) -> &Rate {
        static RATE: Rate = Rate::Fixed(0.1);
        &RATE
    }

    fn weight_decay(&self) -> f64 {
        0.0
    }

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot { dtype: self.0, ..Slot::new("state", 0.0) }]
    }

    fn scalars(&self, _: &At) -> StepScalars {
        [0.0; 4].into()
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        &["pad0", "pad1", "pad2", "pad3"]
    }
}

impl CustomRule for Narrow {
    fn update(&self, _: &StepScalars, _: &mut [f32], _: &[f32], _: &mut [&mut [f32]]) {}

    fn wgsl(&self) -> &'static str {
        "struct Step { pad0: f32, pad1: f32, pad2: f32, pad3: f32 }
        fn update(s: Step, p: ptr<function, f32>, g: f32, state: ptr<function, f32>) {}"
    }
}

on_every_backend! {
    /// Another rule's state is `f32`.
    fn other_rules_have_none(target) {
        let build = |dtype| {
            Builder::new(Rule::custom(Narrow(dtype))).params([Parameter::new("w", [3])]).build(target).map(drop)
        };
        assert_eq!(build(DType::F32), Ok(()), "f32 is no obstacle");
        for dtype in [DType::F16, DType::Bf16] {
            let error = build(dtype).unwrap_err();
            assert!(matches!(&error, Error::HyperParameter { name, .. } if name == "narrow.slots"), "{error:?}");
            assert!(error.to_string().contains(&format!("state of {dtype}")), "says what was asked for: {error}");
        }
    }

    /// After the first update, which forgets everything before it, a vector's moments are its rounded squares: over all
    /// exponents, with exact midpoints among them.
    fn moments_are_rounded_squares(target) {
        let mut random = Random::new(1);
        let mut g: Vec<f32> = (0..200_000).map(|_| random.wide() * 2.0_f32.powi((random.bits() % 24) as i32 - 6)).collect();
        g.extend((-16..10).flat_map(|e| (0..128_u8).map(move |k| f32::from(k) * 2.0_f32.powi(e))));
        g.extend([1e-30, 1e19, 0.0]);
        let mut optimizer = rule(true).params([Parameter::new("w", [g.len()])]).build(target).unwrap();
        step(&mut optimizer, &mut vec![1.0; g.len()], &g);
        let nearest = Nearest::new();
        for (g, v) in g.iter().zip(optimizer.slot("w", "exp_avg_sq").unwrap()) {
            let expected = f16::from_bits(nearest.bits((g * g + 1e-30).into())).to_f32();
            assert_eq!(v.to_bits(), expected.to_bits(), "the square of {g:e} is stored as {v:e}, not as {expected:e}");
        }
    }

    /// What is written is read again, bit for bit, also of an odd length, beside others, and in part.
    fn slots_are_read_as_written(target) {
        let tensors = [[3, 5], [1, 1], [0, 4], [2, 129]].map(|shape| Tensor {
            parameter: Parameter::new(format!("{shape:?}"), shape),
            group: 0,
            rule: 0,
            master: Master::F32,
            state: StateDType::F32,
            ema: false,
            key: 0,
        });
        let rules = [Rule::from(rule(true))];
        let plan = Plan { rules: &rules, tensors: &tensors, groups: 1 };
        let mut engine = target.into_backend().unwrap().engine(&plan).unwrap();
        let mut random = Random::new(4);
        let mut written = Vec::new();
        for (index, tensor) in tensors.iter().enumerate() {
            for (nth, slot) in rules[0].spec().slots().iter().enumerate() {
                let len = slot.shape.len(tensor.parameter.shape());
                let bytes: Vec<u8> = (0..len * slot.dtype.size()).map(|_| random.bits().to_le_bytes()[0]).collect();
                engine.write(index, Part::Slot(nth), 0, &bytes).unwrap();
                written.push((index, nth, slot.dtype.size(), bytes));
            }
        }
        for (index, nth, size, bytes) in written {
            for first in [0, bytes.len() / size / 2] {
                let mut read = vec![0; bytes.len() - first * size];
                engine.read(index, Part::Slot(nth), first, &mut read).unwrap();
                assert_eq!(read, bytes[first * size..], "slot {nth} of {}", tensors[index].parameter.name());
            }
        }
    }

    /// Gradients of zero, far below and far above the range of `f16`, in vectors and in rows and columns: parameters stay
    /// finite, and zero gradients move nothing.
    fn small_and_large_gradients_stay_finite(target) {
        for shape in [vec![35], vec![5, 7], vec![3, 1, 7]] {
            let len = shape.iter().product();
            for gradient in [0.0, 1e-30, 1e-8, 1e-4, 1e3, 1e12] {
                let mut optimizer = rule(true).params([Parameter::new("w", shape.clone())]).build(target).unwrap();
                let (mut p, g) = (vec![1.0; len], vec![gradient; len]);
                (0..4).for_each(|_| step(&mut optimizer, &mut p, &g));
                assert!(p.iter().all(|p| p.is_finite()), "{shape:?}, {gradient:e}: {p:?}");
                assert_eq!(p.iter().all(|&p| p == 1.0), gradient < 1e-12, "{shape:?}, {gradient:e}: {p:?}");
            }
        }
    }

    /// Within what half precision rounds, the updates are those without compression, where moments are neither small nor
    /// large.
    fn updates_are_close_to_those_without(target) {
        let mut random = Random::new(2);
        let mut problem = Problem::shaped(&[&[2, 33, 65], &[129]], 5, 3);
        for g in problem.gradients.iter_mut().flatten().flatten().flatten() {
            *g = (0.5 + random.wide().abs()) * if random.below(2) == 0 { 1.0 } else { -1.0 };
        }
        let [compressed, plain] = [true, false].map(|compression| {
            let setup = Setup::new(&rule(compression).into(), 0.01);
            let mut optimizer = setup.builder(&problem.parameters).build(target).unwrap();
            let mut p = problem.start.clone();
            for gradients in &problem.gradients {
                let grads: Vec<_> = gradients.iter().map(|g| g.as_ref().into()).collect();
                let mut params: Vec<_> = p.iter_mut().map(Into::into).collect();
                assert!(optimizer.step(&mut params, &grads).unwrap().applied(), "a step is applied");
            }
            p
        });
        assert_ne!(compressed, plain, "compression rounds");
        // The moments' errors are at most 2⁻¹¹ an update, their roots' half of that, and five updates move at most 0.06.
        for (a, b) in compressed.iter().flatten().zip(plain.iter().flatten()) {
            assert!((a - b).abs() <= 0.06 * 5.0 / 2048.0, "{a} with and {b} without compression");
        }
    }
}
