//! The same bits for any number of threads.

use std::sync::Arc;

use optim_tests::engine::{Case, Driven, Formats, record};
use optim_tests::{AWKWARD, Bound, Problem, Run, Setup, compare};
use optimizers::core::backend::{FROZEN, Shaping, Stages, Trust};
use optimizers::core::format::StateDType;
use optimizers::core::guard::{Clip, Guard};
use optimizers::{AdaFactor, Adam, Builder, CpuBackend, DType, Grad, Lamb, Lars, Momentum, ParamMut, Rule};
use rayon::ThreadPoolBuilder;

/// Trains with 1, 2 and 5 threads and compares bits.
fn same_for_any_number(lens: &[usize], steps: usize, gaps: bool) {
    let mut problem = Problem::new(lens, steps, 1);
    if gaps {
        problem = problem.with_gaps(2);
    }
    for rule in Rule::all() {
        let setup = Setup { rule, groups: vec![(1e-2, 0.1), (3e-3, 0.0)], loss_scale: 3.0 };
        let train = |threads| {
            let backend = CpuBackend::with_threads(threads).unwrap();
            Run::train(setup.builder(&problem.parameters), backend, &problem).unwrap()
        };
        let one = train(1);
        for threads in [2, 5] {
            if let Err(worst) = compare(&one, &train(threads), &Bound::Bits) {
                panic!("{:?}\n{worst}", setup.rule);
            }
        }
    }
}

#[test]
fn awkward_lengths() {
    same_for_any_number(AWKWARD, 3, true);
}

/// One tensor that every thread has a part of, its end not a multiple of anything.
#[test]
fn one_huge_tensor() {
    same_for_any_number(&[700_003], 2, false);
}

/// Tasks of many tensors, and tensors of many tasks: cuts fall inside, before and behind them.
#[test]
fn tiny_tensors_around_a_huge_one() {
    let tiny = |n: usize| (0..n).map(|i| i % 23);
    let lens: Vec<usize> = tiny(3000).chain([250_001]).chain(tiny(3000)).chain([16_384, 16_384, 1]).collect();
    same_for_any_number(&lens, 2, true);
}

/// Cuts that fall exactly between tensors.
#[test]
fn tensors_of_a_task_each() {
    same_for_any_number(&[16_384; 10], 2, false);
}

/// The bits of all parameters after 20 steps with a problem's first gradients.
fn bits_after_20(builder: Builder, backend: &CpuBackend, problem: &Problem) -> Vec<u32> {
    let mut optimizer = builder.build(backend.clone()).unwrap();
    let mut start = problem.start.clone();
    let mut params: Vec<ParamMut<'_>> = start.iter_mut().map(Into::into).collect();
    let grads: Vec<Grad<'_>> = problem.gradients[0].iter().map(|g| g.as_ref().into()).collect();
    for _ in 0..20 {
        assert!(optimizer.step(&mut params, &grads).unwrap().applied(), "a step is applied");
    }
    start.iter().flatten().map(|x| x.to_bits()).collect()
}

/// Steps that follow one another at once, from every place where a step may be called: each ends, with the same bits. One size is
/// shared with threads that are awake only, one with all.
#[test]
fn called_from_anywhere() {
    for lens in [[100_003, 5], [300_007, 5]] {
        let problem = Problem::new(&lens, 1, 1);
        let setup = Setup::new(&Adam::default().into(), 1e-2);
        let train = |backend: &CpuBackend| bits_after_20(setup.builder(&problem.parameters), backend, &problem);
        let one = train(&CpuBackend::with_threads(1).unwrap());
        for threads in [1, 2, 3] {
            let pool = |threads| Arc::new(ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
            let (pool, other) = (pool(threads), pool(2));
            let own = CpuBackend::with_pool(Arc::clone(&pool));
            let same = |place: &str, backend: &CpuBackend| {
                assert!(train(backend) == one, "{place}, {threads} threads, {lens:?}: other bits");
            };
            same("outside", &own);
            pool.install(|| same("inside", &own));
            pool.install(|| same("inside, without a pool of its own", &CpuBackend::new()));
            other.install(|| same("inside another pool", &own));
            pool.scope(|scope| (0..4).for_each(|_| scope.spawn(|_| same("several at once inside", &own))));
            std::thread::scope(|scope| {
                (0..3).for_each(|_| {
                    scope.spawn(|| same("several at once outside", &own));
                });
            });
        }
    }
}

/// Many optimizers in a pool of threads with small stacks, with all that is measured before an update: what a task works with is on
/// the stack once, however deep tasks wait inside one another.
#[test]
fn small_stacks() {
    let problem = Problem::shaped(&[&[20_000, 5], &[300_000], &[7]], 1, 2);
    let train = |backend: &CpuBackend| {
        let builder = Lamb::new(0.01).params(&problem.parameters).clip_adaptive(0.01, 1e-3).clip_norm(1.0);
        bits_after_20(builder, backend, &problem)
    };
    let one = train(&CpuBackend::with_threads(1).unwrap());
    let pool = ThreadPoolBuilder::new().num_threads(8).stack_size(256 << 10).build().unwrap();
    let backend = CpuBackend::with_pool(Arc::new(pool));
    std::thread::scope(|scope| {
        (0..4).for_each(|_| {
            scope.spawn(|| assert!(train(&backend) == one, "other bits"));
        });
    });
}

/// Every format, with all that can stand around a rule; cuts fall inside rows.
#[test]
fn every_format() {
    let rules = [Adam::default().into(), Lamb::new(0.01).into(), AdaFactor::with_lr(0.01).into()];
    let mut case = Case::new(&rules, 5);
    for (nth, formats) in Formats::all().into_iter().enumerate() {
        case.push(&[2 + nth % 3, 20_011 + nth], formats, nth % 3).ema = true;
    }
    let dtypes = [DType::F32, DType::Bf16, DType::F16, DType::F32];
    let gradients = case.gradients(|index| dtypes[index % 4]);
    let grads: Vec<Grad<'_>> = gradients.iter().map(|g| g.as_ref().into()).collect();
    let record_of: Vec<u32> = (0..).take(grads.len()).collect();
    let guard = Guard { factor: 0.5, clip: Clip::Global, first: 0, records: 0, scaler: None };
    let train = |threads| {
        let mut driven = Driven::new(CpuBackend::with_threads(threads).unwrap(), &case).unwrap();
        for _ in 0..2 {
            let records = |applied: u32| {
                let records = case.tensors.iter().map(|tensor| {
                    let mut record = record(&rules[tensor.rule], applied + 1);
                    record.shaping = Shaping { factor: 0.5, weight_decay: 0.1, limit: 2.0, flags: Shaping::CENTRALIZE };
                    record.stages =
                        Stages { ema: 0.1, max_norm: 1.0, units: 0.1, units_epsilon: 1e-3, ..record.stages };
                    record
                });
                records.collect()
            };
            driven.guarded(&guard, records, &record_of, &grads).unwrap();
        }
        assert!(driven.verdicts().unwrap().iter().all(|verdict| verdict.skip.is_none()), "both are applied");
        driven.snapshot().unwrap()
    };
    let one = train(1);
    for threads in [2, 5] {
        if let Err(difference) = one.same_bits(&train(threads)) {
            panic!("{difference}");
        }
    }
}

/// Rules that measure a parameter before they update it, beside one that does not: parameters of a few elements, of one task and of
/// several, which depends on the threads; some frozen, some without a gradient; clipped or as they are, wide and narrow.
#[test]
fn measured_at_once_or_before() {
    let rules = [Lamb::new(0.01).into(), Lars::new(Momentum::new(0.1, 0.9)).into(), Adam::default().into()];
    let narrow = Formats { state: StateDType::Bf16, ..Formats::F32 };
    let behind = Formats { dtype: DType::Bf16, ..Formats::F32 };
    for max_norm in [0.0, 0.5] {
        let mut case = Case::new(&rules, 9);
        let lens = [20_003, 5, 20_003, 1, 40_000, 20_003, 16_384, 17, 120_001, 20_003, 2, 20_003, 30_001, 65_536];
        for (nth, len) in lens.into_iter().cycle().take(3 * lens.len()).enumerate() {
            let formats = if nth % 7 == 3 {
                narrow
            } else if nth % 7 == 5 {
                behind
            } else {
                Formats::F32
            };
            case.push(&[len], formats, nth % 3).ema = nth % 5 == 1;
        }
        let gradients = case.gradients(|index| if index % 11 == 4 { DType::F16 } else { DType::F32 });
        let absent = |index: usize| index % 13 == 6;
        let grads: Vec<Grad<'_>> = (gradients.iter().enumerate())
            .map(|(index, g)| if absent(index) { Grad::None } else { g.as_ref().into() })
            .collect();
        let record_of: Vec<u32> = (0..).take(grads.len()).map(|nth| if nth % 17 == 8 { FROZEN } else { nth }).collect();
        let guard = Guard { factor: 1.0, clip: Clip::Global, first: 0, records: 0, scaler: None };
        let train = |threads| {
            let mut driven = Driven::new(CpuBackend::with_threads(threads).unwrap(), &case).unwrap();
            for _ in 0..2 {
                let records = |applied: u32| {
                    let records = case.tensors.iter().map(|tensor| {
                        let mut record = record(&rules[tensor.rule], applied + 1);
                        (record.stages.ema, record.stages.max_norm) = (0.1, max_norm);
                        if tensor.rule == 1 {
                            record.trust =
                                Trust { coefficient: 0.02, epsilon: 1e-8, weight_decay: 0.1, clip: Trust::UNCLIPPED };
                        }
                        record
                    });
                    records.collect()
                };
                driven.guarded(&guard, records, &record_of, &grads).unwrap();
            }
            driven.snapshot().unwrap()
        };
        let one = train(1);
        for threads in [2, 3, 5] {
            if let Err(difference) = one.same_bits(&train(threads)) {
                panic!("{difference}");
            }
        }
    }
}

/// Rules that measure a parameter before they update it do so batch by batch: as if each parameter were trained by itself. Long lists
/// of small parameters are several batches, and so are large ones, one of which fills more than one.
#[test]
fn batches_are_as_parameters_alone() {
    let small = || (0..40).map(|nth| 30_000 + nth);
    let lens: Vec<usize> = small().chain([1_200_007, 3]).chain(small()).chain([5]).collect();
    let problem = Problem::new(&lens, 2, 4).with_gaps(5);
    for rule in [Lamb::new(0.01).into(), Lars::new(Momentum::new(0.1, 0.9)).into()] {
        let setup = Setup { rule, groups: vec![(1e-2, 0.1)], loss_scale: 1.0 };
        let pool = Arc::new(ThreadPoolBuilder::new().num_threads(2).build().unwrap());
        let train = |problem: &Problem, backend: CpuBackend| {
            Run::train(setup.builder(&problem.parameters), backend, problem).unwrap()
        };
        let alone: Vec<Run> = (0..lens.len())
            .map(|nth| {
                let problem = Problem {
                    parameters: vec![problem.parameters[nth].clone()],
                    start: vec![problem.start[nth].clone()],
                    gradients: problem.gradients.iter().map(|step| vec![step[nth].clone()]).collect(),
                };
                train(&problem, CpuBackend::with_threads(1).unwrap())
            })
            .collect();
        let alone = Run::new("alone", alone.iter().flat_map(Run::arrays).cloned().collect());
        let same = |place: &str, backend: CpuBackend| {
            if let Err(worst) = compare(&alone, &train(&problem, backend), &Bound::Bits) {
                panic!("{place}, {:?}\n{worst}", setup.rule);
            }
        };
        same("1 thread", CpuBackend::with_threads(1).unwrap());
        same("5 threads", CpuBackend::with_threads(5).unwrap());
        same("outside", CpuBackend::with_pool(Arc::clone(&pool)));
        same("outside the global pool", CpuBackend::new());
        pool.install(|| same("inside", CpuBackend::with_pool(Arc::clone(&pool))));
        pool.install(|| same("inside, without a pool of its own", CpuBackend::new()));
    }
}

/// Control: another rate is other bits.
#[test]
fn notices_another_rate() {
    let problem = Problem::new(&[40_000], 2, 3);
    for rule in Rule::all() {
        let train = |threads, lr| {
            let builder = Setup::new(&rule, lr).builder(&problem.parameters);
            Run::train(builder, CpuBackend::with_threads(threads).unwrap(), &problem).unwrap()
        };
        let lr = 1e-2 * (1.0 + optim_tests::tolerance::CONTROL_BITS);
        assert!(compare(&train(1, 1e-2), &train(2, lr), &Bound::Bits).is_err(), "{rule:?}");
    }
}
