//! Engines against the naive one, bit for bit: what optimizers of one setting each do not reach.

use std::slice;

use optim_tests::engine::{Case, Difference, Driven, Formats, Numbers, record};
use optim_tests::tolerance::ENGINE;
use optim_tests::{Naive, Random, Target, on_every_backend};
use optimizers::core::backend::{FROZEN, Record, Shaping, Stages, Tensor};
use optimizers::core::format::{Master, StateDType};
use optimizers::core::guard::{Clip, Control, Guard, Scaler, Skip};
use optimizers::{Adagrad, Adam, AdamW, Adan, DType, Grad, LazyAdam, Lion, Momentum, RmsProp, Rule, Sgd};

const SCALER: Scaler = Scaler { factor: 2.0, window: 5, floor: 16.0, cap: 256.0 };

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// Rules with no slots to four; of both codes, and some that are never narrow; one whose slot does not start at 0.
fn rules() -> [Rule; 9] {
    [
        Sgd::default().into(),
        Momentum { use_nesterov: true, ..Momentum::new(0.1, 0.9) }.into(),
        Adam::default().into(),
        AdamW { weight_decay: 0.1, ..AdamW::default() }.into(),
        Lion { weight_decay: 0.1, ..Lion::default() }.into(),
        RmsProp { momentum: 0.9, ..RmsProp::new(0.01) }.into(),
        Adagrad { epsilon: 1e-6, ..Adagrad::new(0.1) }.into(),
        Adam { use_amsgrad: true, ..Adam::default() }.into(),
        Adan { weight_decay: 0.02, ..Adan::default() }.into(),
    ]
}

/// How sparsely the cases of a product are taken: each is a pipeline on the GPU.
fn stride(target: Target) -> usize {
    match target {
        #[cfg(feature = "cpu")]
        Target::Cpu => 1,
        #[cfg(feature = "gpu")]
        Target::Gpu => 9,
    }
}

/// Whether an engine on the backend and the naive one have made the same.
fn difference(target: Target, engine: &mut Driven, naive: &mut Driven) -> Result<(), Difference> {
    let [engine, naive] = [engine, naive].map(|driven| driven.snapshot().unwrap());
    if target.is_exact() { engine.same_bits(&naive) } else { engine.within(&naive, ENGINE) }
}

/// Runs a script on the backend and on the naive engine, and compares.
fn same(target: Target, case: &Case, script: impl Fn(&mut Driven)) {
    let mut engine = Driven::new(target, case).unwrap();
    let mut naive = Driven::new(Naive::default(), case).unwrap();
    script(&mut engine);
    script(&mut naive);
    if let Err(difference) = difference(target, &mut engine, &mut naive) {
        panic!("{difference}");
    }
}

fn grads(gradients: &[Option<Numbers>]) -> Vec<Grad<'_>> {
    gradients.iter().map(|gradient| gradient.as_ref().into()).collect()
}

/// A whole number below `n`.
fn below(random: &mut Random, n: usize) -> usize {
    usize::try_from(random.below(n as u64)).unwrap()
}

/// Changes an update; the last is what makes a number one that is off.
type Change = fn(&mut Record, &mut Guard, fn(f32) -> f32);

/// The index of each parameter's record: its index modulo their number.
fn in_turn(case: &Case, records: usize) -> Vec<u32> {
    (0..case.tensors.len()).map(|i| u32::try_from(i % records).unwrap()).collect()
}

on_every_backend! {
    /// Every type of parameter, gradient, master and state, at awkward lengths, plain and with everything elementwise around
    /// the rule.
    fn formats(target) {
        for (nth, rule) in rules().into_iter().enumerate() {
            let mut case = Case::new(slice::from_ref(&rule), 1 + nth as u64);
            let mut dtypes = Vec::new();
            let all = Formats::all().into_iter().flat_map(|formats| DTYPES.map(|dtype| (formats, dtype)));
            for (i, (formats, dtype)) in all.enumerate().filter(|(i, _)| i % stride(target) == nth % stride(target)) {
                let long = [16_383, 16_384, 16_385, 40_000].get((i / stride(target) + nth) % 12).copied();
                for len in [0, 1, 3, 255, 256, 257, 1023, 1024, 1025].into_iter().chain(long) {
                    case.push(&[len], formats, 0).ema = i % 2 == 0;
                    dtypes.push(dtype);
                }
            }
            let gradients: Vec<_> = (0..3).map(|_| case.gradients(|i| dtypes[i])).collect();
            let record_of = in_turn(&case, 2);
            same(target, &case, |driven| {
                for (t, gradients) in (1..).zip(&gradients) {
                    let plain = record(&rule, t);
                    let mut around = plain;
                    around.shaping = Shaping { factor: 0.3, weight_decay: 0.01, limit: 0.2, flags: 0 };
                    around.stages.ema = 0.1;
                    driven.step(&[plain, around], &record_of, &grads(gradients)).unwrap();
                }
            });
        }
    }

    /// Centralization and adaptive clipping, alone, together and with decay.
    fn rows(target) {
        const SHAPES: &[&[usize]] =
            &[&[], &[7], &[300], &[0, 4], &[4, 0], &[1, 1], &[3, 300], &[300, 1], &[64, 25], &[5, 1000], &[2, 3, 33, 65]];
        let rule = &rules()[2];
        let mut case = Case::new(slice::from_ref(rule), 20);
        let mut dtypes = Vec::new();
        let all = Formats::all().into_iter().enumerate().filter(|(i, _)| i % stride(target).div_ceil(2) == 0);
        for (i, formats) in all {
            for shape in SHAPES {
                for _ in 0..4 {
                    case.push(shape, formats, 0);
                    dtypes.push(DTYPES[i / 2 % 3]);
                }
            }
        }
        let gradients: Vec<_> = (0..2).map(|_| case.gradients(|i| dtypes[i])).collect();
        let record_of = in_turn(&case, 4);
        same(target, &case, |driven| {
            for (t, gradients) in (1..).zip(&gradients) {
                let [mut centralized, mut clipped, mut both, mut all] = [record(rule, t); 4];
                centralized.shaping.flags = Shaping::CENTRALIZE;
                clipped.stages.units = 0.1;
                clipped.stages.units_epsilon = 1e-3;
                both.shaping.flags = Shaping::CENTRALIZE;
                both.stages.units = 0.02;
                both.stages.units_epsilon = 0.5;
                all.shaping = Shaping { factor: 0.3, weight_decay: 0.03, limit: 0.2, flags: Shaping::CENTRALIZE };
                all.stages.units = 0.01;
                all.stages.units_epsilon = 1e-3;
                driven.step(&[centralized, clipped, both, all], &record_of, &grads(gradients)).unwrap();
            }
        });
    }

    /// Several rules in one plan; parameters that are frozen, and gradients that are missing, at some updates.
    fn mixed_rules(target) {
        let (case, gradients) = mixed(&rules(), 4);
        same(target, &case, |driven| {
            for (update, (t, gradients)) in (1..).zip(&gradients).enumerate() {
                driven.step(&records(&case, t), &some_frozen(&case, update), &grads(gradients)).unwrap();
            }
        });
    }

    /// Row-sparse gradients: rows in any order and more than once, or none; rules that move all rows and rules that move the listed
    /// ones. State in 8 bits takes none.
    fn sparse(target) {
        const SHAPES: &[&[usize]] = &[&[40, 9], &[300], &[5, 1000], &[1, 3], &[30, 2, 300]];
        let rules: [Rule; 3] = [Momentum::new(0.1, 0.9).into(), Adam::default().into(), LazyAdam::default().into()];
        let mut case = Case::new(&rules, 80);
        let all = Formats::all().into_iter().filter(|formats| formats.state != StateDType::Block8);
        for (i, formats) in all.enumerate().filter(|(i, _)| i % (stride(target) / 2).max(1) == 0) {
            for (nth, shape) in SHAPES.iter().enumerate() {
                case.push(shape, formats, (i + nth) % rules.len()).ema = nth % 2 == 0;
            }
        }
        let mut random = Random::new(81);
        let mut gradient = |i: usize, tensor: &Tensor| {
            let (rows, width) = (tensor.parameter.shape()[0], tensor.parameter.len() / tensor.parameter.shape()[0]);
            let listed = below(&mut random, 3 * rows.min(12));
            let indices: Vec<_> = (0..listed).map(|_| u32::try_from(below(&mut random, rows)).unwrap()).collect();
            (indices, Numbers::random(DTYPES[i % 3], listed * width, &mut random))
        };
        let updates: Vec<Vec<_>> =
            (0..4).map(|_| case.tensors.iter().enumerate().map(|(i, tensor)| gradient(i, tensor)).collect()).collect();
        let records = |t| {
            let each = rules.iter().flat_map(|rule| {
                let mut around = record(rule, t);
                around.shaping = Shaping { factor: 0.3, weight_decay: 0.03, limit: 0.1, flags: 0 };
                around.stages.ema = 0.1;
                [record(rule, t), around]
            });
            each.collect::<Vec<_>>()
        };
        let record_of = case.tensors.iter().enumerate().map(|(i, tensor)| u32::try_from(2 * tensor.rule + i / 2 % 2).unwrap());
        let record_of: Vec<_> = record_of.collect();
        same(target, &case, |driven| {
            for (t, gradients) in (1..).zip(&updates) {
                let grads: Vec<_> =
                    gradients.iter().map(|(indices, numbers)| Grad::rows(indices, numbers.values())).collect();
                if t < 4 {
                    driven.step(&records(t), &record_of, &grads).unwrap();
                    continue;
                }
                let guard = Guard { factor: 0.3, clip: Clip::Global, first: 0, records: 0, scaler: None };
                let clipped = |applied| {
                    let mut records = records(t + applied);
                    for record in &mut records {
                        record.shaping.factor = guard.factor;
                        record.stages.max_norm = 1.0;
                    }
                    records
                };
                driven.guarded(&guard, clipped, &record_of, &grads).unwrap();
            }
        });
    }

    /// What is not finite, in every type of gradient: nothing changes but the scale and the counters. What is merely large or
    /// small is applied.
    fn not_finite(target) {
        // NaN, a signalling one, ±∞; the largest and the smallest number, a subnormal one, −0.
        let kinds = |dtype| match dtype {
            DType::F32 => [0x7fc0_0000, 0xff80_0001, 0x7f80_0000, 0xff80_0000, 0x5f7f_ffff, 0x0080_0000, 0x8000_0001, 1 << 31],
            DType::F16 => [0x7e00, 0xfc01, 0x7c00, 0xfc00, 0x7bff, 0x0400, 0x8001, 1 << 15],
            DType::Bf16 => [0x7fc0, 0xff81, 0x7f80, 0xff80, 0x5f7f, 0x0080, 0x8001, 1 << 15],
        };
        let rule = &rules()[1];
        let mut case = Case::new(slice::from_ref(rule), 30);
        for (i, formats) in Formats::all().into_iter().enumerate().filter(|(i, _)| i % 5 == 0) {
            case.push(&[[1030, 3, 20_000][i % 3]], formats, 0);
        }
        let finite = case.gradients(|i| DTYPES[i % 3]);
        for (i, dtype) in DTYPES.into_iter().enumerate() {
            for (kind, bits) in kinds(dtype).into_iter().enumerate() {
                let mut gradients = finite.clone();
                if let Some(Some(gradient)) = gradients.get_mut(i) {
                    gradient.set_bits(1 + kind % 2, bits);
                }
                let record_of = in_turn(&case, 1);
                let scaler = Some(Scaler { factor: 2.0, window: 3, floor: 1.0, cap: 64.0 });
                let guard = Guard { factor: 1.0, clip: Clip::Global, first: 0, records: 1, scaler };
                let script = |driven: &mut Driven| {
                    driven.engine.set_control(&Control { scale: 8.0, ..Control::default() }).unwrap();
                    for gradients in [&gradients, &finite] {
                        driven.guarded(&guard, |applied| vec![record(rule, applied + 1)], &record_of, &grads(gradients)).unwrap();
                    }
                };
                same(target, &case, script);
                let mut driven = Driven::new(target, &case).unwrap();
                script(&mut driven);
                let [first, second] = driven.verdicts().unwrap() else { panic!("two updates, two verdicts") };
                let bad = kind < 4;
                assert_eq!(first.skip, bad.then_some(Skip::NotFinite), "{dtype} {bits:#x}");
                assert_eq!(first.first_bad, bad.then_some(i), "{dtype} {bits:#x}");
                assert_eq!((second.skip, second.applied), (None, u32::from(!bad)), "{dtype} {bits:#x}");
            }
        }
    }

    /// Clipping by the norm of all, of groups and of parameters, beside frozen parameters and missing gradients.
    fn clipping(target) {
        let (case, gradients) = mixed(&rules(), 4);
        for (clip, scaler) in [(Clip::Global, None), (Clip::Group, Some(SCALER)), (Clip::Parameter, None)] {
            let guard = Guard { factor: 0.9, clip, first: 0, records: 0, scaler };
            let records = |applied| {
                let mut records = records(&case, applied + 1);
                for (i, record) in records.iter_mut().enumerate() {
                    record.shaping.factor = guard.factor;
                    // Some norms are larger, some are not, and some records do not clip.
                    record.stages.max_norm = [0.0, 0.5, 1e3][i % 3];
                    if clip == Clip::Parameter {
                        record.stages.owner = u32::try_from(i).unwrap();
                    }
                }
                records
            };
            let script = |driven: &mut Driven| {
                driven.engine.set_control(&Control { scale: 3.0, ..Control::default() }).unwrap();
                for (update, gradients) in gradients.iter().enumerate() {
                    driven.guarded(&guard, records, &some_frozen(&case, update), &grads(gradients)).unwrap();
                }
            };
            same(target, &case, script);
            let mut driven = Driven::new(target, &case).unwrap();
            script(&mut driven);
            let verdicts = driven.verdicts().unwrap();
            assert!(verdicts.iter().all(|verdict| (verdict.clip < 1.0) == (clip == Clip::Global)), "{verdicts:?}");
        }
    }

    /// A thousand updates, of which some overflow at random: scale, counters, verdicts and numbers.
    fn overflows(target) {
        const UPDATES: usize = 1000;
        let rule: Rule = Adam::default().into();
        let mut case = Case::new(slice::from_ref(&rule), 50);
        for (i, len) in [300, 257, 1030].into_iter().enumerate() {
            let (dtype, master) = [Formats::PARAMETERS[0], Formats::PARAMETERS[3], Formats::PARAMETERS[7]][i];
            case.push(&[len], Formats { dtype, master, state: Formats::STATES[i] }, 0);
        }
        let pool: Vec<_> = (0..8).map(|_| case.gradients(|i| DTYPES[i])).collect();
        let mut random = Random::new(51);
        let mut skips = [0, 0];
        let gradients: Vec<_> = (0..UPDATES)
            .map(|_| {
                let mut gradients = pool[below(&mut random, 8)].clone();
                let element = below(&mut random, 257);
                match below(&mut random, 16) {
                    0 => {
                        let which = below(&mut random, 3);
                        let infinite = [0x7f80_0000, 0x7c00, 0xff80][which];
                        gradients[which].as_mut().unwrap().set_bits(element, infinite);
                        skips[0] += 1;
                    }
                    1 => {
                        // Finite, but its square is not.
                        gradients[0].as_mut().unwrap().set_bits(element, 0x7f7f_ffff);
                        skips[1] += 1;
                    }
                    _ => {}
                }
                gradients
            })
            .collect();
        let record_of = in_turn(&case, 1);
        let guard = Guard { factor: 0.5, clip: Clip::Global, first: 0, records: 1, scaler: Some(SCALER) };
        let records = |applied| {
            let mut record = record(&rule, applied + 1);
            record.shaping.factor = guard.factor;
            record.stages.max_norm = 0.05;
            vec![record]
        };
        let script = |driven: &mut Driven| {
            driven.engine.set_control(&Control { scale: 128.0, ..Control::default() }).unwrap();
            for gradients in &gradients {
                driven.guarded(&guard, records, &record_of, &grads(gradients)).unwrap();
            }
        };
        same(target, &case, script);

        let mut driven = Driven::new(target, &case).unwrap();
        script(&mut driven);
        let verdicts = driven.verdicts().unwrap();
        let counted = [Skip::NotFinite, Skip::NormOverflow].map(|skip| verdicts.iter().filter(|v| v.skip == Some(skip)).count());
        assert_eq!(counted, skips, "infinite elements, and squares");
        assert!(verdicts.iter().any(|v| v.scale == SCALER.cap) && verdicts.iter().any(|v| v.scale == SCALER.floor), "both ends of the scale");
        let control = driven.engine.control().unwrap();
        let [updates, skipped] = [UPDATES, skips[0] + skips[1]].map(|n| u32::try_from(n).unwrap());
        let counters = (control.current, control.skipped, control.applied);
        assert_eq!(counters, (1 + updates, skipped, updates - skipped), "next, skipped, applied");
    }

    /// Averages: moved with every update, written into the parameters' memory, and taken out of it.
    fn averages(target) {
        let (mut case, gradients) = mixed(&rules(), 4);
        case.tensors.iter_mut().enumerate().for_each(|(i, tensor)| tensor.ema = i % 5 != 0);
        let train = |driven: &mut Driven, updates: std::ops::Range<usize>| {
            for update in updates {
                let t = u32::try_from(update).unwrap() + 1;
                driven.step(&records(&case, t), &some_frozen(&case, update), &grads(&gradients[update])).unwrap();
            }
        };
        let into = |driven: &mut Driven| {
            train(driven, 0..3);
            let before = driven.params.clone();
            driven.swap_ema(true).unwrap();
            for ((a, b), tensor) in before.iter().zip(&driven.params).zip(&case.tensors) {
                // One element may be its average.
                let alike = tensor.parameter.len() == 1;
                assert!(alike || (a != b) == tensor.ema, "{}", tensor.parameter.name());
            }
            before
        };
        same(target, &case, |driven| _ = into(driven));
        same(target, &case, |driven| {
            let before = into(driven);
            driven.swap_ema(false).unwrap();
            assert_eq!(driven.params, before, "what was there is back");
            train(driven, 3..4);
        });
        // What some parameters were set to from outside.
        same(target, &case, |driven| {
            train(driven, 0..2);
            driven.params.clone_from(&case.start);
            driven.seed(&case.tensors.iter().map(|tensor| tensor.rule % 2 == 0).collect::<Vec<_>>()).unwrap();
            train(driven, 2..4);
        });
    }

    /// Gradients accumulated with weights, begun anew, some missing; then updates by them, with a guard and without.
    fn accumulated(target) {
        let (case, gradients) = mixed(&rules(), 5);
        let anew = |nth: usize| -> Vec<bool> { (0..case.tensors.len()).map(|i| i % nth == 0).collect() };
        // Every fourth parameter is updated by a gradient as it is.
        let mixture = |update: usize| -> Vec<Grad<'_>> {
            let mut grads = grads(&gradients[update]);
            grads.iter_mut().enumerate().filter(|(i, _)| i % 4 != 0).for_each(|(_, grad)| *grad = Grad::Accumulated);
            grads
        };
        same(target, &case, |driven| {
            driven.engine.accumulate(0.5, &anew(1), &grads(&gradients[0])).unwrap();
            driven.engine.accumulate(0.3, &anew(1000), &grads(&gradients[1])).unwrap();
            driven.engine.accumulate(1.0, &anew(3), &grads(&gradients[2])).unwrap();
            driven.step(&records(&case, 1), &some_frozen(&case, 0), &mixture(3)).unwrap();
            driven.engine.accumulate(0.7, &anew(2), &grads(&gradients[3])).unwrap();
            let guard = Guard { factor: 1.0, clip: Clip::Global, first: 0, records: 0, scaler: None };
            driven.guarded(&guard, |applied| records(&case, applied + 2), &some_frozen(&case, 1), &mixture(4)).unwrap();
        });
    }

    /// Every array can be written and read, in pieces; an engine that was given another's arrays goes on as the other.
    fn read_and_write(target) {
        let (case, gradients) = mixed(&rules(), 4);
        let mut driven = Driven::new(target, &case).unwrap();
        let mut random = Random::new(60);
        let mut written = Vec::new();
        for (index, part, element, len) in driven.arrays() {
            let mut expected: Vec<u8> = (0..element.size() * len).map(|_| random.bits().to_le_bytes()[0]).collect();
            driven.engine.write(index, part, 0, &expected).unwrap();
            // A piece of it again.
            let [a, b] = [0; 2].map(|_| below(&mut random, 1 + len));
            let (first, end) = (a.min(b), a.max(b));
            let piece = element.size() * first..element.size() * end;
            expected[piece.clone()].iter_mut().for_each(|byte| *byte = !*byte);
            driven.engine.write(index, part, first, &expected[piece]).unwrap();
            written.push(expected);
        }
        for (array, expected) in driven.arrays().into_iter().zip(&written) {
            let (index, part, element, len) = array;
            assert!(driven.read(array).unwrap() == *expected, "{index} {part:?}");
            let first = below(&mut random, 1 + len);
            let mut piece = vec![0; element.size() * (len - first).min(5)];
            driven.engine.read(index, part, first, &mut piece).unwrap();
            assert_eq!(piece, expected[element.size() * first..][..piece.len()], "{index} {part:?} from {first}");
        }

        let guard = Guard { factor: 1.0, clip: Clip::Global, first: 0, records: 0, scaler: Some(SCALER) };
        let train = |driven: &mut Driven, updates: std::ops::Range<usize>| {
            for update in updates {
                driven.guarded(&guard, |applied| records(&case, applied + 1), &some_frozen(&case, update), &grads(&gradients[update])).unwrap();
            }
        };
        let mut first = Driven::new(target, &case).unwrap();
        train(&mut first, 0..2);
        let mut second = Driven::new(target, &case).unwrap();
        first.copy_to(&mut second).unwrap();
        train(&mut first, 2..4);
        train(&mut second, 2..4);
        let resumed = second.snapshot().unwrap().by("a resumed run");
        first.snapshot().unwrap().same_bits(&resumed).unwrap();
    }

    /// Control: what is a little off on one side must be noticed.
    fn notices(target) {
        let mut case = Case::new(&[Adam::default().into()], 70);
        case.push(&[8, 300], Formats::F32, 0).ema = true;
        let narrow = Formats { dtype: DType::Bf16, master: Master::Stochastic, state: StateDType::Block8 };
        case.push(&[8, 300], narrow, 0);
        let gradients = case.gradients(|_| DType::F16);
        let update = |driven: &mut Driven, change: Change| {
            let mut guard = Guard { factor: 0.3, clip: Clip::Global, first: 0, records: 0, scaler: None };
            let mut record = record(&case.rules[0], 1);
            record.shaping = Shaping { factor: 0.3, weight_decay: 0.03, limit: 0.1, flags: Shaping::CENTRALIZE };
            record.stages = Stages { ema: 0.1, max_norm: 2.0, units: 0.01, units_epsilon: 20.0, ..record.stages };
            change(&mut record, &mut guard, if target.is_exact() { f32::next_up } else { |x| 2.0 * x });
            driven.guarded(&guard, |_| vec![record], &[0, 0], &grads(&gradients)).unwrap();
        };
        let verdict = |naive_case: &Case, change: Change| {
            let mut engine = Driven::new(target, &case).unwrap();
            let mut naive = Driven::new(Naive::default(), naive_case).unwrap();
            update(&mut engine, |_, _, _| {});
            update(&mut naive, change);
            difference(target, &mut engine, &mut naive)
        };
        verdict(&case, |_, _, _| {}).unwrap();
        let changes: [(&str, Change); 8] = [
            ("factor", |record, _, off| record.shaping.factor = off(record.shaping.factor)),
            ("weight decay", |record, _, off| record.shaping.weight_decay = off(record.shaping.weight_decay)),
            ("limit", |record, _, off| record.shaping.limit = off(record.shaping.limit)),
            ("mean", |record, _, _| record.shaping.flags = 0),
            ("units", |record, _, off| record.stages.units = off(record.stages.units)),
            ("ε", |record, _, off| record.stages.units_epsilon = off(record.stages.units_epsilon)),
            ("norm", |record, _, off| record.stages.max_norm = off(record.stages.max_norm)),
            ("guard", |_, guard, off| guard.factor = off(guard.factor)),
        ];
        for (what, change) in changes {
            assert!(verdict(&case, change).is_err(), "another {what} passed");
        }
        // By their bits alone: random bits, and an average that begins with the parameter and moves by a part of one step.
        if target.is_exact() {
            assert!(verdict(&case, |record, _, off| record.stages.ema = off(record.stages.ema)).is_err(), "another ema passed");
            let mut other_key = case.clone();
            other_key.tensors[1].key ^= 1;
            assert!(verdict(&other_key, |_, _, _| {}).is_err(), "another key passed");
            assert!(verdict(&case, |record, _, _| record.stages.step += 1).is_err(), "random bits of another step passed");
        }
    }
}

/// What is cut into tasks, summed and measured is the same for any number of threads.
#[cfg(feature = "cpu")]
#[test]
fn threads() {
    let (mut case, _) = mixed(&rules(), 0);
    for i in 0..rules().len() {
        let tensor = case.push(&[3, 16_000 + 1000 * i], Formats::all()[i * 7 % 24], i);
        (tensor.group, tensor.ema) = (i % 3, i % 2 == 0);
    }
    let gradients: Vec<_> = (0..3).map(|_| case.gradients(|i| DTYPES[i % 3])).collect();
    let guard = Guard { factor: 1.0, clip: Clip::Group, first: 0, records: 0, scaler: None };
    let clipped = |applied| {
        let mut records = records(&case, applied + 1);
        records.iter_mut().for_each(|record| record.stages.max_norm = 3.0);
        records
    };
    let [one, three] = [1, 3].map(|threads| {
        let mut driven = Driven::new(optimizers::CpuBackend::with_threads(threads).unwrap(), &case).unwrap();
        for (update, gradients) in gradients.iter().enumerate() {
            driven.guarded(&guard, clipped, &some_frozen(&case, update), &grads(gradients)).unwrap();
        }
        driven.snapshot().unwrap().by(&format!("{threads} threads"))
    });
    one.same_bits(&three).unwrap();
}

/// Every rule with every format, those too that the naive engine does not know: the CPU and the GPU.
#[cfg(all(feature = "cpu", feature = "gpu"))]
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn parity() {
    use optim_tests::engine::at;

    for (nth, rule) in Rule::all().iter().enumerate() {
        let mut case = Case::new(slice::from_ref(rule), 90 + nth as u64);
        // One format of the parameter, all of the state.
        for formats in Formats::all().into_iter().skip(nth % 8).step_by(8) {
            for shape in [&[33, 65][..], &[1025], &[5, 3, 7], &[0]] {
                case.push(shape, formats, 0).ema = nth % 2 == 0;
            }
        }
        let gradients: Vec<_> = (0..3).map(|_| case.gradients(|i| DTYPES[(nth + i) % 3])).collect();
        let record_of = in_turn(&case, case.tensors.len());
        let [cpu, gpu] = [Target::Cpu, Target::Gpu].map(|target| {
            let mut driven = Driven::new(target, &case).unwrap();
            for (t, gradients) in (1..).zip(&gradients) {
                let one = |tensor: &Tensor| {
                    let mut record = record(rule, t);
                    record.shaping = Shaping { factor: 0.3, limit: 0.2, ..Shaping::NONE };
                    record.stages.ema = 0.1;
                    match rule.spec().trust(&tensor.parameter, &at(rule, t), 0.01) {
                        Some(trust) => record.trust = trust,
                        None => record.shaping.weight_decay = 0.01,
                    }
                    record
                };
                let records: Vec<_> = case.tensors.iter().map(one).collect();
                driven.step(&records, &record_of, &grads(gradients)).unwrap();
            }
            // Row by row, and guarded; the second of these is skipped.
            let guard = Guard { factor: 0.5, clip: Clip::Parameter, first: 0, records: 0, scaler: Some(SCALER) };
            let clipped = |applied| {
                let one = |(owner, tensor): (usize, &Tensor)| {
                    let mut record = record(rule, 4 + applied);
                    record.shaping = Shaping { factor: 0.5, limit: 0.2, ..Shaping::NONE };
                    record.shaping.flags = [0, Shaping::CENTRALIZE][usize::from(owner % 3 > 0)];
                    record.stages.units = [0.05, 0.0][usize::from(owner % 3 == 1)];
                    record.stages = Stages { ema: 0.1, max_norm: 1.0, units_epsilon: 1e-3, ..record.stages };
                    record.stages.owner = u32::try_from(owner).unwrap();
                    match rule.spec().trust(&tensor.parameter, &at(rule, 4 + applied), 0.01) {
                        Some(trust) => record.trust = trust,
                        None => record.shaping.weight_decay = 0.01,
                    }
                    record
                };
                case.tensors.iter().enumerate().map(one).collect()
            };
            let mut bad = gradients.clone();
            let nan = if DTYPES[(nth + 1) % 3] == DType::F32 { u32::MAX } else { 0xffff };
            bad[2][1].as_mut().unwrap().set_bits(3, nan);
            for gradients in [&gradients[0], &bad[2], &gradients[1]] {
                driven.guarded(&guard, clipped, &record_of, &grads(gradients)).unwrap();
            }
            driven.snapshot().unwrap()
        });
        let compared = if Target::Gpu.is_exact() { gpu.same_bits(&cpu) } else { gpu.within(&cpu, ENGINE) };
        if let Err(difference) = compared {
            panic!("{rule:?}: {difference}");
        }
    }
}

/// A plan with several rules and formats in three groups, and random gradients of every type for some updates, some missing.
fn mixed(rules: &[Rule], updates: usize) -> (Case, Vec<Vec<Option<Numbers>>>) {
    let mut case = Case::new(rules, 40);
    case.groups = 3;
    let formats = Formats::all();
    for i in 0..4 * rules.len() {
        let shape: &[usize] = [&[5, 100][..], &[1027], &[33, 2, 65], &[1]][i / rules.len()];
        let tensor = case.push(shape, formats[i * 5 % formats.len()], i % rules.len());
        tensor.group = i % 3;
        tensor.ema = i % 2 == 0;
    }
    let gradients = (0..updates).map(|update| {
        let mut gradients = case.gradients(|i| DTYPES[i % 3]);
        gradients.iter_mut().skip(update).step_by(5).for_each(|gradient| *gradient = None);
        gradients
    });
    let gradients = gradients.collect();
    (case, gradients)
}

/// A record for each parameter of [`mixed`] at an update, with another combination of stages each.
fn records(case: &Case, t: u32) -> Vec<Record> {
    let one = |(i, tensor): (usize, &Tensor)| {
        let mut record = record(&case.rules[tensor.rule], t);
        record.shaping.weight_decay = [0.0, 0.01][i / 2 % 2];
        record.shaping.limit = [0.0, 0.3][i / 3 % 2];
        record.shaping.flags = [0, Shaping::CENTRALIZE][i / 4 % 2];
        record.stages.units = [0.0, 0.0, 0.05][i % 3];
        record.stages.units_epsilon = 1e-3;
        record.stages.ema = 0.05;
        record.stages.owner = u32::try_from(tensor.group).unwrap();
        record
    };
    case.tensors.iter().enumerate().map(one).collect()
}

/// Each parameter has its own record; every sixth is frozen, others at each update.
fn some_frozen(case: &Case, update: usize) -> Vec<u32> {
    let index = |i: usize| if (i + update).is_multiple_of(6) { FROZEN } else { u32::try_from(i).unwrap() };
    (0..case.tensors.len()).map(index).collect()
}
