//! Engines against the naive one, bit for bit: what optimizers of one setting each do not reach.

use optim_tests::engine::{Case, Difference, Driven, Formats, Numbers, record};
use optim_tests::{Naive, Target, on_every_backend};
use optimizers::core::backend::{FROZEN, Record, Shaping};
use optimizers::core::guard::{Clip, Control, Guard, Scaler, Skip};
use optimizers::{Adagrad, Adam, AdamW, DType, Grad, Lion, Momentum, RmsProp, Rule};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// Rules with one, two and three slots; of both codes, and one that is never narrow; one whose slot does not start at 0.
fn rules() -> [Rule; 7] {
    [
        Momentum { use_nesterov: true, ..Momentum::new(0.1, 0.9) }.into(),
        Adam::default().into(),
        AdamW { weight_decay: 0.1, ..AdamW::default() }.into(),
        Lion { weight_decay: 0.1, ..Lion::default() }.into(),
        RmsProp { momentum: 0.9, ..RmsProp::new(0.01) }.into(),
        Adagrad { epsilon: 1e-6, ..Adagrad::new(0.1) }.into(),
        Adam { use_amsgrad: true, ..Adam::default() }.into(),
    ]
}

/// How sparsely the cases of a product are taken: each is a pipeline on the GPU.
fn stride(target: Target) -> usize {
    match target {
        #[cfg(feature = "cpu")]
        Target::Cpu => 1,
        #[cfg(feature = "gpu")]
        Target::Gpu => 7,
    }
}

/// Runs a script on the backend and on the naive engine, and compares.
fn same(target: Target, case: &Case, script: impl Fn(&mut Driven)) {
    if let Err(difference) = compared(target, case, case, script) {
        panic!("{difference}");
    }
}

fn compared(target: Target, case: &Case, naive_case: &Case, script: impl Fn(&mut Driven)) -> Result<(), Difference> {
    let mut engine = Driven::new(target, case).unwrap();
    let mut naive = Driven::new(Naive::default(), naive_case).unwrap();
    script(&mut engine);
    script(&mut naive);
    engine.snapshot().unwrap().same_bits(&naive.snapshot().unwrap())
}

fn grads(gradients: &[Option<Numbers>]) -> Vec<Grad<'_>> {
    gradients.iter().map(|gradient| gradient.as_ref().into()).collect()
}

/// The index of each parameter's record: its index modulo their number.
fn in_turn(case: &Case, records: usize) -> Vec<u32> {
    (0..case.tensors.len()).map(|i| u32::try_from(i % records).unwrap()).collect()
}

on_every_backend! {
    /// Every type of parameter, gradient, master and state, at awkward lengths, plain and with everything elementwise around
    /// the rule.
    fn formats(target) {
        for (nth, rule) in rules().into_iter().enumerate() {
            let mut case = Case::new(&[rule.clone()], 1 + nth as u64);
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
        let rule = &rules()[1];
        let mut case = Case::new(&[rule.clone()], 20);
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
        let rules = rules();
        let (case, gradients) = mixed(&rules, 4);
        same(target, &case, |driven| {
            for (t, gradients) in (1..).zip(&gradients) {
                let (records, record_of) = mixed_records(&case, &rules, t);
                driven.step(&records, &record_of, &grads(gradients)).unwrap();
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
        let rule = &rules()[0];
        let mut case = Case::new(&[rule.clone()], 30);
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

/// A record for each parameter of [`mixed`] at an update, with another combination of stages each; every sixth parameter is frozen.
fn mixed_records(case: &Case, rules: &[Rule], t: u32) -> (Vec<Record>, Vec<u32>) {
    let one = |(i, tensor): (usize, &optimizers::core::backend::Tensor)| {
        let mut record = record(&rules[tensor.rule], t);
        record.shaping.weight_decay = [0.0, 0.01][i / 2 % 2];
        record.shaping.limit = [0.0, 0.3][i / 3 % 2];
        record.shaping.flags = [0, Shaping::CENTRALIZE][i / 4 % 2];
        record.stages.units = [0.0, 0.0, 0.05][i % 3];
        record.stages.units_epsilon = 1e-3;
        record.stages.ema = 0.05;
        record.stages.owner = u32::try_from(tensor.group).unwrap();
        record
    };
    let records = case.tensors.iter().enumerate().map(one).collect();
    let index = |i: usize| if (i + t as usize).is_multiple_of(6) { FROZEN } else { u32::try_from(i).unwrap() };
    (records, (0..case.tensors.len()).map(index).collect())
}
