//! What surrounds a rule: loss scales, guards, clipping, accumulation, averages, parameters and state in fewer bits.

use half::{bf16, f16};
use optim_tests::engine::Numbers;
use optim_tests::{Bound, Naive, Problem, Random, Run, Target, Training, compare, final_report, on_every_backend};
use optimizers::core::guard::Skip;
use optimizers::core::{DynamicLossScale, Ema, FixedLossScale, Master, StateDType};
use optimizers::{
    Adam, AdamW, Builder, DType, Error, Grad, Lars, Lion, Momentum, Optimizer, Outcome, ParamGroup, Parameter, Result,
    Rule, Sgd, StepReport,
};

const SHAPES: [&[usize]; 3] = [&[4, 5], &[7], &[300, 3]];

type Gradients<'a> = Vec<Option<&'a Vec<f32>>>;

fn gradients(problem: &Problem, step: usize) -> Gradients<'_> {
    problem.gradients[step].iter().map(Option::as_ref).collect()
}

fn start(builder: Builder, target: Target, problem: &Problem) -> Training {
    Training::new(builder, target, &problem.start).unwrap()
}

#[track_caller]
fn assert_same(a: &Run, b: &Run) {
    if let Err(worst) = compare(a, b, &Bound::Bits) {
        panic!("{worst}");
    }
}

/// Equal within a few roundings.
#[track_caller]
fn assert_near(got: f64, expected: f64, what: &str) {
    assert!((got - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "{what}: {got} instead of {expected}");
}

/// The parameters are those, within a few roundings.
#[track_caller]
fn assert_all_near(got: &[Vec<f32>], expected: &[Vec<f64>], what: &str) {
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (&got, &expected) in got.iter().zip(expected) {
            assert_near(got.into(), expected, &format!("{what}, parameter {index}"));
        }
    }
}

fn norm(g: &[f32]) -> f64 {
    g.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
}

/// Plain SGD with rate 1: the parameter moves by what the gradient became.
fn sgd() -> Sgd {
    Sgd { lr: 1.0.into(), ..Sgd::default() }
}

/// A parameter of four ones and one of two, and what a step does to them.
struct Pair(Training);

impl Pair {
    fn new(builder: impl Fn([Parameter; 2]) -> Builder, target: Target) -> Self {
        let builder = builder([Parameter::new("first", [4]), Parameter::new("second", [2])]);
        Self(Training::new(builder, target, &[vec![1.0; 4], vec![1.0; 2]]).unwrap())
    }

    /// A step in which one element of the second gradient is this.
    fn step(&mut self, element: f32) -> Result<StepReport> {
        self.0.try_step(&[&[0.5_f32; 4][..], &[0.5, element]])
    }
}

on_every_backend! {
    /// How far each parameter moved, as it is stored; nothing for one without a gradient and for a step that is skipped.
    fn watched_steps(target) {
        let lr = 1.0 / 1024.0;
        let names = [("plain", DType::F32), ("lost", DType::Bf16), ("zero", DType::F32), ("none", DType::F32)];
        let params = names.map(|(name, dtype)| Parameter::new(name, [2]).with_dtype(dtype));
        let builder = Sgd { lr: lr.into(), ..Sgd::default() }.params(params).master(Master::None).guard(true);
        let start = [vec![3.0, 4.0], vec![1.0; 2], vec![0.0; 2], vec![1.0; 2]];
        let mut training = Training::new(builder, target, &start).unwrap();
        let mut step = |g: f32| {
            let g = [g; 2];
            let grads = [Grad::from(&g), Grad::from(&g), Grad::from(&g), Grad::None];
            training.with(|optimizer, params| optimizer.step_watched(params, &grads)).unwrap()
        };
        let report = step(f32::NAN);
        assert_eq!((report.outcome, report.update_ratios), (Outcome::Skipped(Skip::NotFinite), Some([0.0; 4].into())));
        let report = step(1.0);
        assert_eq!((report.outcome, report.step), (Outcome::Applied, 1));
        let ratios = report.update_ratios.unwrap();
        assert_near(ratios[0], lr * 2.0_f64.sqrt() / 5.0, "plain");
        assert_eq!(ratios[1..], [0.0, f64::INFINITY, 0.0]);
    }

    /// A number is not checked: what is not finite reaches the weights. Each of the others keeps it out.
    fn who_keeps_out_what_is_not_finite(target) {
        let undropped = FixedLossScale { loss_scale: 1.0, drop_overflow_update: false };
        let dynamic = DynamicLossScale { init_loss_scale: 1.0, ..DynamicLossScale::default() };
        type Change = Box<dyn Fn(Builder) -> Builder>;
        let builders: [(Change, bool); 9] = [
            (Box::new(|builder| builder), false),
            (Box::new(|builder| builder.loss_scale(4.0)), false),
            (Box::new(move |builder| builder.loss_scale(undropped)), false),
            (Box::new(|builder| builder.clip_value(0.25)), false),
            (Box::new(|builder| builder.loss_scale(FixedLossScale::default())), true),
            (Box::new(move |builder| builder.loss_scale(dynamic)), true),
            (Box::new(|builder| builder.guard(true)), true),
            (Box::new(|builder| builder.clip_norm(1.0)), true),
            (Box::new(move |builder| builder.loss_scale(undropped).clip_norm_per_parameter(1.0)), true),
        ];
        for (index, (change, keeps_out)) in builders.iter().enumerate() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut pair = Pair::new(|params| change(Adam::default().params(params)), target);
                assert!(pair.step(0.5).unwrap().applied(), "{index}: a good step");
                let before = pair.0.run("before");
                let report = pair.step(bad).unwrap();
                assert_eq!(report.applied(), !keeps_out, "{index}: {bad}");
                assert_eq!(pair.0.optimizer.step_count(), 2 - u64::from(*keeps_out), "{index}: {bad}");
                let finite = pair.0.values().concat().iter().all(|p| p.is_finite());
                // A bound makes infinity finite.
                assert_eq!(finite, *keeps_out || (index == 3 && !bad.is_nan()), "{index}: {bad}: {:?}", pair.0.p);
                assert_eq!(report.gradients.is_some(), *keeps_out, "{index}: only a guard measures");
                if *keeps_out {
                    assert_eq!(report.outcome, Outcome::Skipped(Skip::NotFinite), "{index}: {bad}");
                    let gradients = report.gradients.unwrap();
                    assert_eq!(gradients.first_non_finite.as_deref(), Some("second"), "{index}: {bad}");
                    assert!(!gradients.norm.is_finite(), "{index}: {bad}");
                    assert_same(&before, &pair.0.run("after a skip"));
                    let after = pair.step(0.5).unwrap();
                    assert_eq!((after.applied(), after.step, after.gradients.unwrap().skips), (true, 2, 0), "{index}");
                }
            }
        }
    }

    /// All elements are finite, the square of the norm is not.
    fn overflowing_norms(target) {
        let mut pair = Pair::new(|params| sgd().params(params).guard(true), target);
        let report = pair.step(1e30).unwrap();
        assert_eq!(report.outcome, Outcome::Skipped(Skip::NormOverflow));
        assert_eq!(report.gradients.unwrap().first_non_finite, None);
        assert_eq!(pair.0.values().concat(), [1.0; 6]);
    }

    /// Floor, cap and window of a dynamic scale.
    fn dynamic_scales(target) {
        let scale = DynamicLossScale {
            init_loss_scale: 8.0, scale_factor: 4.0, scale_window: 2, floor: 3.0, cap: 100.0, max_skips: 5,
        };
        let mut pair = Pair::new(|params| sgd().params(params).loss_scale(scale), target);
        let (good, bad) = (0.5, f32::INFINITY);
        // Grows after two, then 4 · 32 is beyond the cap; an overflow begins the count anew; it never falls below the floor.
        for (step, (element, after)) in [
            (good, 8.0), (good, 32.0), (good, 32.0), (good, 32.0), (bad, 8.0), (good, 8.0), (good, 32.0), (bad, 8.0),
            (good, 8.0), (bad, 3.0), (bad, 3.0), (good, 3.0), (good, 12.0),
        ].into_iter().enumerate() {
            let report = pair.step(element).unwrap();
            assert_eq!(report.applied(), element.is_finite(), "step {step}");
            assert_eq!(report.gradients.unwrap().next_loss_scale, after, "step {step}");
            assert_eq!(pair.0.optimizer.loss_scale(), Ok(after), "step {step}");
        }
    }

    /// More skips in a row than the scale allows: an error that names the first parameter; after a good step the count is new.
    fn too_many_skips(target) {
        let scale = DynamicLossScale { init_loss_scale: 1.0, max_skips: 2, ..DynamicLossScale::default() };
        let mut pair = Pair::new(|params| Adam::default().params(params).loss_scale(scale), target);
        for _ in 0..2 {
            let before = pair.0.run("before");
            for skips in 1..=4 {
                let result = pair.step(f32::NAN);
                if skips <= 2 {
                    assert_eq!(result.unwrap().gradients.unwrap().skips, skips);
                } else {
                    assert_eq!(result, Err(Error::TooManySkips { name: "second".into(), skips }));
                }
                assert_same(&before, &pair.0.run("after a skip"));
            }
            assert!(pair.step(0.5).unwrap().applied(), "a good step");
        }
        assert_eq!(pair.0.optimizer.step_count(), 2);
    }

    /// The norm of what is there, unscaled, and what clipping makes of each gradient, against plain loops.
    fn clipping_by_norm(target) {
        let problem = Problem::shaped(&SHAPES, 1, 1);
        let scale = 3.0;
        let unscaled: Vec<Vec<f32>> = problem.gradients[0].iter().map(|g| g.as_ref().unwrap().iter().map(|g| g / 3.0).collect()).collect();
        let norms: Vec<f64> = unscaled.iter().map(|g| norm(g)).collect();
        let of = |indices: &[usize]| indices.iter().map(|&i| norms[i] * norms[i]).sum::<f64>().sqrt();
        let (global, groups) = (of(&[0, 1, 2]), [of(&[0, 1]), of(&[2])]);
        let most = 0.7 * norms[1];
        let ratio = |most: f64, norm: f64| if norm > most { most / norm } else { 1.0 };
        type Change = Box<dyn Fn(Builder) -> Builder>;
        let (a, b) = (0.5 * groups[0], 2.0 * groups[1]);
        let cases: [(&str, Change, [f64; 3], f64); 4] = [
            ("all", Box::new(move |builder| builder.clip_norm(most)), [ratio(most, global); 3], ratio(most, global)),
            ("none", Box::new(move |builder| builder.clip_norm(2.0 * global)), [1.0; 3], 1.0),
            ("groups", Box::new(move |builder| builder.clip_norm_per_group(a)), {
                [ratio(a, groups[0]), ratio(a, groups[0]), ratio(b, groups[1])]
            }, 1.0),
            ("parameters", Box::new(move |builder| builder.clip_norm_per_parameter(most)), {
                [0, 1, 2].map(|index| ratio(most, norms[index]))
            }, 1.0),
        ];
        for (what, change, factors, clip) in cases {
            let second = ParamGroup::new(&problem.parameters[2..]);
            let second = if what == "groups" { second.max_norm(b) } else { second };
            let builder = sgd().groups([ParamGroup::new(&problem.parameters[..2]), second]);
            let mut training = start(change(builder.loss_scale(scale)), target, &problem);
            let report = training.step(&gradients(&problem, 0));
            assert!(report.applied(), "{report:?}");
            let measured = report.gradients.unwrap();
            assert_near(measured.norm.into(), global, what);
            for (got, expected) in measured.group_norms.iter().zip(groups) {
                assert_near((*got).into(), expected, what);
            }
            assert_eq!(measured.group_norms.len(), 2, "{what}");
            assert_near(measured.clip.into(), clip, what);
            assert_eq!((measured.loss_scale, measured.next_loss_scale), (scale, scale), "{what}");
            let expected: Vec<Vec<f64>> = (0..3)
                .map(|index| {
                    let p = problem.start[index].iter().zip(&unscaled[index]);
                    p.map(|(&p, &g)| f64::from(p) - factors[index] * f64::from(g)).collect()
                })
                .collect();
            assert_all_near(&training.values(), &expected, what);
            assert!(what == "none" || factors.iter().any(|&factor| factor < 1.0), "{what}: something is clipped");
        }
    }

    /// Each group is clipped by its own norm, be the other's larger or smaller.
    fn norms_of_their_own(target) {
        for gradients in [[1.0_f32, 100.0], [100.0, 1.0]] {
            let groups = ["a", "b"].map(|name| ParamGroup::new([Parameter::new(name, [1])]));
            let builder = Builder::new(sgd()).groups(groups).clip_norm_per_group(2.0);
            let mut training = Training::new(builder, target, &[vec![0.0], vec![0.0]]).unwrap();
            assert!(training.step(&gradients.each_ref().map(std::slice::from_ref)).applied(), "a step is applied");
            assert_eq!(training.values(), gradients.map(|g| vec![-g.min(2.0)]));
        }
    }

    /// More parameters, groups and records than there are lanes to sum them or decide about them, against plain loops.
    fn norms_of_many(target) {
        let lens: Vec<usize> = (0..600).map(|nth| 1 + nth % 7).collect();
        let problem = Problem::new(&lens, 1, 14);
        let norms: Vec<f64> = problem.gradients[0].iter().map(|g| norm(g.as_ref().unwrap())).collect();
        let all = norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
        let most = 0.1;
        let clipped = |norm: f64| if norm > most { most / norm } else { 1.0 };
        let own: Vec<f64> = norms.iter().copied().map(clipped).collect();
        let groups = || Builder::new(sgd()).groups(problem.parameters.iter().map(|parameter| ParamGroup::new([parameter])));
        let one = || sgd().params(&problem.parameters);
        for (what, builder, factors) in [
            ("all", one().clip_norm(most), vec![clipped(all); 600]),
            ("all, in groups", groups().clip_norm(most), vec![clipped(all); 600]),
            ("groups", groups().clip_norm_per_group(most), own.clone()),
            ("parameters", one().clip_norm_per_parameter(most), own),
        ] {
            let mut training = start(builder, target, &problem);
            let measured = training.step(&gradients(&problem, 0)).gradients.unwrap();
            assert_near(measured.norm.into(), all, what);
            if measured.group_norms.len() > 1 {
                for (&got, &norm) in measured.group_norms.iter().zip(&norms) {
                    assert_near(got.into(), norm, what);
                }
            }
            let moved = |index: usize| {
                let (p, g) = (&problem.start[index], problem.gradients[0][index].as_ref().unwrap());
                p.iter().zip(g).map(|(&p, &g)| f64::from(p) - factors[index] * f64::from(g)).collect()
            };
            let expected: Vec<Vec<f64>> = (0..600).map(moved).collect();
            assert_all_near(&training.values(), &expected, what);
        }
    }

    /// The norm of a gradient of more slices than there are lanes to add them.
    fn norm_of_a_huge_gradient(target) {
        let parameter = Parameter::new("w", [5_000_003]);
        let g = Random::new(15).tensor(parameter.len());
        let builder = sgd().params([&parameter]).clip_norm(1.0);
        let mut training = Training::new(builder, target, &[vec![0.0; parameter.len()]]).unwrap();
        let measured = training.step(&[&g]).gradients.unwrap();
        let expected = norm(&g);
        assert_near(f64::from(measured.norm) / expected, 1.0, "the norm");
        for index in [0, 1 << 22, g.len() - 1] {
            let Numbers::F32(p) = &training.p[0] else { panic!("it is f32") };
            assert_near(f64::from(p[index]) * expected, f64::from(-g[index]), &format!("element {index}"));
        }
    }

    /// A first step that is skipped is no first update: for every rule, what follows is what would have been.
    fn first_updates_after_a_skip(target) {
        let problem = Problem::shaped(&[&[3, 4], &[5]], 3, 16);
        for rule in Rule::all() {
            let train = |skips: usize, by: &str| {
                let mut training = start(Builder::new(rule.clone()).params(&problem.parameters).guard(true), target, &problem);
                for _ in 0..skips {
                    assert!(!training.step(&[&vec![1.0; 12], &vec![f32::NAN; 5]]).applied(), "{rule:?}: a bad step");
                }
                (0..3).for_each(|step| assert!(training.step(&gradients(&problem, step)).applied(), "{rule:?}"));
                training.run(by)
            };
            let plain = train(0, "no skip");
            if let Err(worst) = compare(&plain, &train(2, "two skips"), &Bound::Bits) {
                panic!("{rule:?}\n{worst}");
            }
        }
    }

    /// A norm that is not too large changes no bit; frozen parameters and missing gradients are in no norm.
    fn norms_that_fit(target) {
        let problem = Problem::shaped(&SHAPES, 3, 2);
        for rule in Rule::all() {
            let builder = || Builder::new(rule.clone()).params(&problem.parameters);
            let train = |builder: Builder, by: &str| {
                let mut training = start(builder, target, &problem);
                (0..3).for_each(|step| assert!(training.step(&gradients(&problem, step)).applied(), "{rule:?}"));
                training.run(by)
            };
            let plain = train(builder(), "plain");
            assert_same(&plain, &train(builder().guard(true), "guarded"));
            assert_same(&plain, &train(builder().clip_norm(1e6), "clipped"));
            assert_same(&plain, &train(builder().clip_norm_per_parameter(1e6), "clipped by parameter"));
            let other = train(builder().clip_norm(0.1), "clipped hard");
            // Rules that divide by the gradient's own size, or see its sign alone, hardly notice.
            assert!(compare(&plain, &other, &Bound::Bits).is_err(), "{rule:?}");
        }
        let mut training = start(sgd().params(&problem.parameters).clip_norm(1e6), target, &problem);
        let mut grads = gradients(&problem, 0);
        grads[0] = None;
        training.optimizer.freeze("w1").unwrap();
        let measured = training.step(&grads).gradients.unwrap();
        assert_near(measured.norm.into(), norm(grads[2].unwrap()), "one is left");
        grads[2] = None;
        let measured = training.step(&grads).gradients.unwrap();
        assert_eq!((measured.norm, measured.clip), (0.0, 1.0), "nothing is left");
    }

    /// Elements are bounded after unscaling and after clipping by norm, before decay.
    fn clipping_by_value(target) {
        let builder = |params: [Parameter; 2]| sgd().params(params).loss_scale(4.0).clip_value(0.25).weight_decay(0.5);
        let mut pair = Pair::new(builder, target);
        let report = pair.0.step(&[&[0.5_f32, -0.5, 4.0, -4.0][..], &[f32::INFINITY, 1.0]]);
        assert!(report.applied(), "nothing is checked");
        assert_eq!(pair.0.values(), [vec![0.375, 0.625, 0.25, 0.75], vec![0.25, 0.25]]);
        // A norm of 5 is made 1 first: 0.6 and 0.8.
        let mut pair = Pair::new(|params| sgd().params(params).clip_norm(1.0).clip_value(0.7), target);
        assert!(pair.0.step(&[&[3.0_f32, -4.0, 0.0, 0.0][..], &[0.0, 0.0]]).applied(), "a step is applied");
        assert_all_near(&pair.0.values(), &[vec![0.4, 1.7, 1.0, 1.0], vec![1.0, 1.0]], "bounded");
    }

    /// Whatever the rule, it sees the bounded gradient: LARS's ratio, LAMB's norms and AdaFactor's moments are of that.
    fn every_rule_sees_bounded_gradients(target) {
        let problem = Problem::shaped(&SHAPES, 3, 4);
        let mut bounded = problem.clone();
        bounded.gradients.iter_mut().flatten().flatten().flatten().for_each(|g| *g = g.clamp(-0.25, 0.25));
        for rule in Rule::all() {
            let train = |problem: &Problem, limit: Option<f64>| {
                let builder = Builder::new(rule.clone()).params(&problem.parameters).weight_decay(0.5);
                let builder = if let Some(limit) = limit { builder.clip_value(limit) } else { builder };
                let mut training = start(builder, target, problem);
                for step in 0..problem.steps() {
                    assert!(training.step(&gradients(problem, step)).applied(), "{rule:?}");
                }
                training.run(&format!("{} of {limit:?}", rule.spec().name()))
            };
            let by_hand = train(&bounded, None).by("by hand");
            assert_same(&train(&problem, Some(0.25)), &by_hand);
            assert!(compare(&train(&problem, None), &by_hand, &Bound::Bits).is_err(), "{rule:?}");
        }
    }

    /// Each row's gradient is held against its weights.
    fn adaptive_clipping(target) {
        let mut problem = Problem::shaped(&[&[70, 5], &[7], &[], &[3, 2100], &[2, 3, 5]], 1, 3);
        problem.start[0][..5].fill(0.0);
        let (lambda, epsilon, decay) = (0.3, 1e-3, 0.125);
        let builder = sgd().params(&problem.parameters).clip_adaptive(lambda, epsilon).loss_scale(2.0);
        let mut training = start(builder.weight_decay(decay), target, &problem);
        assert!(training.step(&gradients(&problem, 0)).applied(), "a step is applied");
        let (mut clipped, mut spared) = (0, 0);
        let mut expected = Vec::new();
        for (index, parameter) in problem.parameters.iter().enumerate() {
            let (p, g) = (&problem.start[index], problem.gradients[0][index].as_ref().unwrap());
            let width = if parameter.shape().len() > 1 { p.len() / parameter.shape()[0] } else { p.len() };
            let rows = p.chunks(width).zip(g.chunks(width)).flat_map(|(p, g)| {
                let (most, own) = (lambda * norm(p).max(epsilon), norm(g) / 2.0);
                let factor = if own > most { most / own } else { 1.0 };
                if own > most { clipped += 1 } else { spared += 1 }
                let moved = move |(&p, &g): (&f32, &f32)| {
                    let (p, g) = (f64::from(p), f64::from(g) / 2.0);
                    p - (factor * g + decay * p)
                };
                p.iter().zip(g).map(moved).collect::<Vec<_>>()
            });
            expected.push(rows.collect());
        }
        assert!(clipped > 0 && spared > 0, "{clipped} rows are clipped, {spared} are not");
        assert_all_near(&training.values(), &expected, "rows");
    }

    /// Micro-batches, by their number and by their samples: one step on the mean, for every rule. All sums are exact.
    fn accumulation(target) {
        let mut problem = Problem::shaped(&SHAPES, 6, 4);
        // No zero has a sign, which a sum loses.
        let exact = |g: f32| (g * 64.0).round() / 64.0 + 0.0;
        problem.gradients.iter_mut().flatten().flatten().flatten().for_each(|g| *g = exact(*g));
        // The third parameter has no gradient in the first micro-batch, the second never has.
        for step in 0..6 {
            problem.gradients[step][1] = None;
        }
        problem.gradients[0][2] = None;
        for rule in Rule::all() {
            for (weights, first) in [(vec![1.0, 1.0], 0), (vec![1.0, 3.0], 2), (vec![2.0, 1.0, 1.0], 3)] {
                let builder = || Builder::new(rule.clone()).params(&problem.parameters).loss_scale(2.0).guard(true);
                let total: f64 = weights.iter().sum();
                let mean = |index: usize| {
                    let mut mean = vec![0.0_f64; problem.start[index].len()];
                    for (nth, weight) in weights.iter().enumerate() {
                        for (mean, g) in mean.iter_mut().zip(problem.gradients[first + nth][index].iter().flatten()) {
                            *mean += weight * f64::from(*g) / total;
                        }
                    }
                    #[allow(clippy::cast_possible_truncation, reason = "exact in 24 bits")]
                    Some(mean.into_iter().map(|g| g as f32).collect::<Vec<f32>>())
                };
                let means = [mean(0), None, mean(2)];
                let mut at_once = start(builder(), target, &problem);
                let mut accumulated = start(builder(), target, &problem);
                for _ in 0..2 {
                    for (nth, weight) in weights.iter().enumerate() {
                        let grads: Vec<Grad<'_>> = gradients(&problem, first + nth).into_iter().map(Grad::from).collect();
                        accumulated.optimizer.accumulate(&grads, *weight).unwrap();
                    }
                    let report = accumulated.step_accumulated().unwrap();
                    assert!(report.applied(), "{rule:?}");
                    assert_eq!(report, at_once.step(&means.each_ref().map(Option::as_ref)), "{rule:?}");
                    let error = accumulated.step_accumulated().unwrap_err();
                    assert!(matches!(error, Error::State { .. }), "nothing is left: {error:?}");
                }
                assert_same(&at_once.run("at once"), &accumulated.run("accumulated"));
            }
        }
    }

    /// What overflowed is forgotten with the step; a step that is refused can be tried again; what cannot be accumulated.
    fn accumulation_goes_wrong(target) {
        let mut pair = Pair::new(|params| sgd().params(params).guard(true), target);
        let good: [Grad<'_>; 2] = [(&[0.5_f32; 4]).into(), (&[0.5_f32; 2]).into()];
        let optimizer = &mut pair.0.optimizer;
        optimizer.accumulate(&good, 1.0).unwrap();
        optimizer.accumulate(&[(&[0.5_f32; 4]).into(), (&[f32::NAN, 0.5]).into()], 1.0).unwrap();
        let report = pair.0.step_accumulated().unwrap();
        assert_eq!((report.outcome, pair.0.values().concat()), (Outcome::Skipped(Skip::NotFinite), vec![1.0; 6]));
        assert!(matches!(pair.0.step_accumulated(), Err(Error::State { .. })), "forgotten");
        assert!(matches!(pair.0.try_step(&[Grad::Accumulated; 2]), Err(Error::State { .. })), "a step of its own");

        let optimizer = &mut pair.0.optimizer;
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = optimizer.accumulate(&good, bad).unwrap_err();
            assert!(matches!(&error, Error::HyperParameter { name, .. } if name == "accumulate: weight"), "{error:?}");
        }
        assert!(matches!(optimizer.accumulate(&good[..1], 1.0), Err(Error::Count { .. })), "one is missing");
        assert!(matches!(optimizer.accumulate(&[good[1], good[1]], 1.0), Err(Error::Length { .. })), "too short");
        let rows = Grad::rows(&[1], &[1.0_f32]);
        assert!(matches!(optimizer.accumulate(&[rows, Grad::None], 1.0), Err(Error::Unsupported { .. })), "rows");
        optimizer.accumulate(&good, 1.0).unwrap();
        let error = optimizer.step_accumulated(&mut []).unwrap_err();
        assert!(matches!(error, Error::Count { what: "parameter", expected: 2, got: 0 }), "{error:?}");
        assert!(pair.0.step_accumulated().unwrap().applied(), "a second try");
        assert_eq!(pair.0.values().concat(), [0.5; 6]);
        pair.0.optimizer.accumulate(&good, 1.0).unwrap();
        pair.0.optimizer.discard_accumulated();
        assert!(matches!(pair.0.step_accumulated(), Err(Error::State { .. })), "discarded");
    }

    /// Averages against a plain loop, with and without warm-up; a parameter without a gradient keeps its own, a skipped step all.
    fn averages(target) {
        let problem = Problem::shaped(&SHAPES, 8, 5).with_gaps(6);
        for ema in [Ema::from(0.75), Ema { decay: 0.75, warmup: true }, Ema { decay: 0.0, warmup: false }] {
            let builder = Momentum::new(0.1, 0.9).params(&problem.parameters).guard(true).ema(ema);
            let mut training = start(builder, target, &problem);
            let error = training.optimizer.average("w0").unwrap_err();
            assert!(matches!(error, Error::State { .. }), "before the first step: {error:?}");
            let mut expected: Vec<Vec<f64>> =
                problem.start.iter().map(|p| p.iter().map(|&p| p.into()).collect()).collect();
            for step in 0..8 {
                let grads = gradients(&problem, step);
                let bad: Vec<Vec<f32>> = problem.start.iter().map(|p| vec![f32::NAN; p.len()]).collect();
                assert!(!training.step(&bad.iter().collect::<Vec<_>>()).applied(), "a bad step");
                assert!(training.step(&grads).applied(), "a good step");
                let t = step as f64 + 1.0;
                let decay = if ema.warmup { ema.decay.min((1.0 + t) / (10.0 + t)) } else { ema.decay };
                for ((average, p), _) in
                    expected.iter_mut().zip(training.values()).zip(&grads).filter(|(_, grad)| grad.is_some())
                {
                    for (average, p) in average.iter_mut().zip(p) {
                        *average += (1.0 - decay) * (f64::from(p) - *average);
                    }
                }
                let averages = ["w0", "w1", "w2"].map(|name| training.optimizer.average(name).unwrap());
                assert_all_near(&averages, &expected, &format!("{ema:?}, step {step}"));
            }
        }
    }

    /// Averages stand in the parameters for an evaluation, and what was there comes back, in every type of parameter.
    fn swapping(target) {
        for (dtype, master) in [
            (DType::F32, Master::F32), (DType::Bf16, Master::F32), (DType::Bf16, Master::Split),
            (DType::F16, Master::None), (DType::F16, Master::Stochastic),
        ] {
            let problem = Problem::shaped(&SHAPES, 4, 7);
            let parameters = problem.parameters.iter().map(|parameter| parameter.clone().with_dtype(dtype));
            let builder = || AdamW::new(0.1).params(parameters.clone()).master(master).ema(0.5);
            let (mut training, mut undisturbed) = (start(builder(), target, &problem), start(builder(), target, &problem));
            let early = training.with(Optimizer::swap_ema_in).unwrap_err();
            assert!(matches!(early, Error::State { .. }), "before the first step: {early:?}");
            for step in 0..4 {
                let grads = gradients(&problem, step);
                assert!(training.step(&grads).applied() && undisturbed.step(&grads).applied(), "step {step}");
                assert!(training.with(Optimizer::swap_ema_out).is_err(), "they are not in");
                let before = training.p.clone();
                training.with(Optimizer::swap_ema_in).unwrap();
                for (index, name) in ["w0", "w1", "w2"].into_iter().enumerate() {
                    let average = training.optimizer.average(name).unwrap();
                    assert_eq!(training.p[index], Numbers::new(dtype, &average), "{dtype} {master:?}: {name}");
                    assert_ne!(training.p[index], before[index], "{dtype} {master:?}: {name}");
                }
                let error = training.try_step(&grads).unwrap_err();
                assert!(matches!(error, Error::State { .. }), "no step meanwhile: {error:?}");
                assert!(matches!(training.with(Optimizer::swap_ema_in), Err(Error::State { .. })), "a second time");
                assert!(matches!(training.with(Optimizer::reseed), Err(Error::State { .. })), "new masters");
                training.with(Optimizer::swap_ema_out).unwrap();
                assert_eq!(training.p, before, "{dtype} {master:?}: what was there");
            }
            assert_same(&undisturbed.run("undisturbed"), &training.run("swapped"));
        }
        let mut none = start(sgd().params(&Problem::shaped(&SHAPES, 1, 8).parameters), target, &Problem::shaped(&SHAPES, 1, 8));
        let problem = Problem::shaped(&SHAPES, 1, 8);
        assert!(none.step(&gradients(&problem, 0)).applied(), "a step");
        assert!(matches!(none.optimizer.average("w0"), Err(Error::State { .. })), "there is none");
        assert!(matches!(none.with(Optimizer::swap_ema_in), Err(Error::State { .. })), "there is none");
    }

    /// Averages of a tensor that is shared out.
    fn swapping_a_large_tensor(target) {
        let problem = Problem::new(&[300_001], 1, 17);
        let mut training = start(sgd().params(&problem.parameters).ema(0.5), target, &problem);
        assert!(training.step(&gradients(&problem, 0)).applied(), "a step is applied");
        let before = training.p.clone();
        training.with(Optimizer::swap_ema_in).unwrap();
        let average = Numbers::F32(training.optimizer.average("w0").unwrap());
        assert!(training.p[0] == average, "the average stands in the parameter");
        assert!(before[0] != average, "the average is another");
        training.with(Optimizer::swap_ema_out).unwrap();
        assert!(training.p == before, "what was there is back");
    }

    /// Updates of 6e-4 on weights of 1 in bf16, whose neighbours are 4e-3 and 8e-3 away: lost without anything behind them, kept
    /// by everything else.
    fn small_updates(target) {
        let len = 1000;
        let ones = || vec![vec![1.0_f32; len]];
        let g = vec![1.0_f32; len];
        let train = |dtype: DType, master: Master| {
            let parameter = Parameter::new("w", [len]).with_dtype(dtype);
            let builder = AdamW { weight_decay: 0.0, ..AdamW::new(6e-4) }.params([parameter]).master(master);
            let mut training = Training::new(builder, target, &ones()).unwrap();
            (0..100).for_each(|_| assert!(training.step(&[&g]).applied(), "a step is applied"));
            training.values().concat()
        };
        let exact = train(DType::F32, Master::F32)[0];
        assert!((exact - 0.94).abs() < 1e-3, "100 updates of 6e-4: {exact}");
        assert_eq!(train(DType::Bf16, Master::None), vec![1.0; len], "the documented trap");
        assert_eq!(train(DType::Bf16, Master::F32), vec![bf16::from_f32(exact).to_f32(); len]);
        let split = train(DType::Bf16, Master::Split);
        assert!(split.iter().all(|&p| (p - exact).abs() <= 1.0 / 512.0), "half a distance: {:?}", &split[..3]);
        assert_eq!(train(DType::F16, Master::F32), vec![f16::from_f32(exact).to_f32(); len]);
        // On average; a weight is off by the noise of 100 roundings.
        for (dtype, noise) in [(DType::Bf16, 0.1), (DType::F16, 0.02)] {
            let stochastic = train(dtype, Master::Stochastic);
            assert!(stochastic.iter().all(|&p| p < 1.0 && (p - exact).abs() < noise), "{dtype}: all have moved");
            let mean = stochastic.iter().map(|&p| f64::from(p)).sum::<f64>() / len as f64;
            assert!((mean - f64::from(exact)).abs() < 2e-3, "{dtype}: {mean} instead of {exact}");
        }
    }

    /// With masters, 16-bit parameters are those of an `f32` optimizer, rounded, at every step; split masters too, but for ties.
    fn masters_are_f32(target) {
        let problem = Problem::shaped(&SHAPES, 10, 9);
        let train = |dtype: DType, master: Master| {
            // All start with numbers that a bf16 holds; an f16 holds them too, as none is small or large.
            let mut problem = problem.clone();
            let near_one = |p: f32| bf16::from_f32(1.0 + p / 4.0).to_f32();
            problem.start.iter_mut().flatten().for_each(|p| *p = near_one(*p));
            let parameters = problem.parameters.iter().map(|parameter| parameter.clone().with_dtype(dtype));
            let builder = Adam::new(1e-3).params(parameters).master(master).weight_decay(0.1).ema(0.5);
            let mut training = start(builder, target, &problem);
            (0..10)
                .map(|step| {
                    assert!(training.step(&gradients(&problem, step)).applied(), "step {step}");
                    let average = training.optimizer.average("w2").unwrap();
                    (training.p.clone(), training.optimizer.slot("w2", "moment1").unwrap(), average)
                })
                .collect::<Vec<_>>()
        };
        let exact = train(DType::F32, Master::F32);
        for dtype in [DType::Bf16, DType::F16] {
            for (step, ((p, moment, average), (exact, exact_moment, exact_average))) in
                train(dtype, Master::F32).iter().zip(&exact).enumerate()
            {
                assert_eq!((moment, average), (exact_moment, exact_average), "{dtype}, step {step}");
                for (p, exact) in p.iter().zip(exact) {
                    let Numbers::F32(exact) = exact else { panic!("{exact:?}") };
                    assert_eq!(*p, Numbers::new(dtype, exact), "{dtype}, step {step}");
                }
            }
        }
        let split = train(DType::Bf16, Master::Split);
        assert_eq!((&split[9].1, &split[9].2), (&exact[9].1, &exact[9].2), "moments and averages of a split master");
        for (step, (p, ..)) in train(DType::Bf16, Master::None).iter().enumerate() {
            assert_eq!(p == &train(DType::Bf16, Master::F32)[step].0, step == 0, "without masters, step {step}");
            if step == 1 {
                break;
            }
        }
    }

    /// Masters start as the memory is at the first step, and anew when told so; else they overwrite what was changed.
    fn seeds_of_masters(target) {
        let parameter = || Parameter::new("w", [300]).with_dtype(DType::Bf16);
        let zero = vec![0.0_f32; 300];
        for (master, keeps) in [(Master::F32, false), (Master::None, true), (Master::Stochastic, true)] {
            let builder = sgd().params([parameter()]).master(master).ema(0.5);
            let mut training = Training::new(builder, target, &[vec![7.0; 300]]).unwrap();
            // Between building and the first step.
            training.p[0] = Numbers::new(DType::Bf16, &vec![3.0; 300]);
            assert!(training.step(&[&zero]).applied(), "a step");
            assert_eq!(training.values()[0], vec![3.0; 300], "{master:?}");
            training.p[0] = Numbers::new(DType::Bf16, &vec![5.0; 300]);
            assert!(training.step(&[&zero]).applied(), "a step");
            assert_eq!(training.values()[0] == vec![5.0; 300], keeps, "{master:?}: {:?}", &training.values()[0][..3]);
            training.p[0] = Numbers::new(DType::Bf16, &vec![2.0; 300]);
            training.with(Optimizer::reseed).unwrap();
            assert_eq!(training.optimizer.average("w").unwrap(), vec![2.0; 300], "{master:?}: averages begin anew");
            assert!(training.step(&[&zero]).applied(), "a step");
            assert_eq!(training.values()[0], vec![2.0; 300], "{master:?}");
        }
        // The bits that a bf16 lacks stay behind a change, but not behind a new start.
        let builder = Sgd { lr: (1.0 / 1024.0).into(), ..Sgd::default() }.params([parameter()]).master(Master::Split);
        let mut training = Training::new(builder, target, &[vec![1.0; 300]]).unwrap();
        let after = |training: &mut Training, reseed: bool| {
            training.p[0] = Numbers::new(DType::Bf16, &vec![1.0; 300]);
            if reseed {
                training.with(Optimizer::reseed).unwrap();
            }
            (0..2).for_each(|_| assert!(training.step(&[&vec![1.0_f32; 300]]).applied(), "a step"));
            training.values()[0][0]
        };
        // Two updates are half the distance below 1, which is a tie; four are all of it.
        let first = after(&mut training, false);
        assert_eq!(after(&mut training, true), first, "as at the start");
        assert!(after(&mut training, false) < first, "old bits are added");
    }

    /// State in fewer bits trains almost as well, and takes the values that it is said to take.
    fn narrow_state(target) {
        // A valley: from all over, to the point that makes it 0.
        let mut random = Random::new(10);
        let goal = random.tensor(1000);
        let train = |rule: Rule, state: StateDType| {
            let builder = Builder::new(rule).params([Parameter::new("w", [1000])]).state_dtype(state);
            let mut training = Training::new(builder, target, &[vec![0.0; 1000]]).unwrap();
            for _ in 0..200 {
                let Numbers::F32(p) = &training.p[0] else { panic!("f32") };
                let g: Vec<f32> = p.iter().zip(&goal).map(|(p, goal)| p - goal).collect();
                assert!(training.step(&[&g]).applied(), "a step is applied");
            }
            let error: Vec<f32> = training.values()[0].iter().zip(&goal).map(|(p, goal)| p - goal).collect();
            (norm(&error), training.run(&state.to_string()))
        };
        let start = norm(&goal);
        for rule in [AdamW { weight_decay: 0.0, ..AdamW::new(0.02) }.into(), Rule::from(Momentum::new(0.02, 0.9)), Lion::new(0.005).into()] {
            let (exact, plain) = train(rule.clone(), StateDType::F32);
            assert!(exact < 0.3 * start, "{rule:?}: {exact} of {start}");
            for (state, worse) in [(StateDType::Bf16, 0.01), (StateDType::Block8, 0.05)] {
                let (error, narrow) = train(rule.clone(), state);
                assert!(error < exact + worse * start, "{rule:?}, {state}: {error}, in f32 {exact}, of {start}");
                assert!(compare(&plain, &narrow, &Bound::Bits).is_err(), "{rule:?}: {state} rounds");
            }
        }
    }

    /// In 8 bits updates are right but for noise, also where the gradients of a block differ a lot and one is 100 times as large.
    fn blocks_of_different_sizes(target) {
        const LEN: usize = 1024;
        let mut random = Random::new(20);
        let mut even = || f32::from(random.bits().to_le_bytes()[0].cast_signed()) / 128.0;
        let mut sizes: Vec<f32> = (0..LEN).map(|_| (2.0 * even()).exp2()).collect();
        sizes.iter_mut().step_by(256).for_each(|size| *size = 100.0);
        let [mut exact, mut narrow] = [StateDType::F32, StateDType::Block8].map(|state| {
            let builder = Adam::new(1e-3).params([Parameter::new("w", [LEN])]).state_dtype(state);
            Training::new(builder, target, &[vec![0.0; LEN]]).unwrap()
        });
        let update = |training: &mut Training| {
            let slots = training.with(|optimizer, _| Ok([optimizer.slot("w", "moment1")?, optimizer.slot("w", "moment2")?]));
            let [m, v] = slots.unwrap();
            m.iter().zip(&v).map(|(m, v)| f64::from(m / v.sqrt())).collect::<Vec<f64>>()
        };
        let (mut errors, mut squares) = (0.0, 0.0);
        for step in 0..300 {
            let g: Vec<f32> = sizes.iter().map(|size| even() * size).collect();
            assert!(exact.step(&[&g]).applied() && narrow.step(&[&g]).applied(), "a step");
            if step >= 100 && step % 10 == 0 {
                for (exact, narrow) in update(&mut exact).into_iter().zip(update(&mut narrow)) {
                    errors += (narrow - exact).powi(2);
                    squares += exact.powi(2);
                }
            }
        }
        // 0.5 with codes that are squares.
        let error: f64 = (errors / squares).sqrt();
        assert!(error < 0.15, "{error} of the updates");
    }

    /// The same seed is the same run, another is another, where rounding is by chance.
    fn seeds(target) {
        let problem = Problem::shaped(&SHAPES, 5, 11);
        let parameters = || problem.parameters.iter().map(|parameter| parameter.clone().with_dtype(DType::Bf16));
        let train = |seed: u64, master: Master, state: StateDType, by: &str| {
            let builder = Adam::default().params(parameters()).master(master).state_dtype(state).seed(seed);
            let mut training = start(builder, target, &problem);
            (0..5).for_each(|step| assert!(training.step(&gradients(&problem, step)).applied(), "a step"));
            training.run(by)
        };
        for (master, state, by_chance) in [
            (Master::Stochastic, StateDType::F32, true),
            (Master::F32, StateDType::Bf16, true),
            (Master::F32, StateDType::Block8, true),
            (Master::F32, StateDType::F32, false),
            (Master::None, StateDType::F32, false),
        ] {
            let run = train(1, master, state, "one");
            assert_same(&run, &train(1, master, state, "again"));
            let other = train(2, master, state, "another");
            assert_eq!(compare(&run, &other, &Bound::Bits).is_err(), by_chance, "{master:?}, {state}");
        }
    }

    /// Random bits follow from the seed, the name and the number of the update, for good: what a run rounded once it rounds always.
    /// All products here are exact, so that no device rounds otherwise.
    fn rounding_is_the_same_forever(target) {
        let parameter = Parameter::new("w", [6]).with_dtype(DType::Bf16);
        let builder = Momentum::new(1.0 / 64.0, 0.5).params([parameter]).seed(7);
        let builder = builder.master(Master::Stochastic).state_dtype(StateDType::Block8);
        let mut training = Training::new(builder, target, &[vec![1.0, -1.0, 0.5, 3.0, -0.25, 0.0]]).unwrap();
        let steps: [([u16; 6], [u8; 6], f32); 3] = [
            ([0x3f7e, 0xbf7f, 0x3efa, 0x403f, 0xbe81, 0xbba0], [0x6f, 0xe7, 0x78, 0x7f, 0x40, 0x63], 1.0),
            ([0x3f7b, 0xbf7d, 0x3ef1, 0x403d, 0xbe82, 0xbc47], [0x6f, 0xe8, 0x78, 0x7f, 0x40, 0x63], 1.5),
            ([0x3f78, 0xbf7b, 0x3ee7, 0x403b, 0xbe82, 0xbca9], [0x6f, 0xe8, 0x78, 0x7f, 0x40, 0x64], 1.75),
        ];
        for (step, (p, codes, scale)) in (1..).zip(steps) {
            assert!(training.step(&[&[0.5_f32, -0.375, 0.75, 1.0, 0.0625, 0.3125][..]]).applied(), "a step is applied");
            assert_eq!(training.p, [Numbers::Bf16(p.map(bf16::from_bits).to_vec())], "update {step}");
            let state = training.optimizer.state().unwrap();
            let (mut got, mut got_scale) = ([0; 6], [0; 4]);
            state.read(0, 0, &mut got).unwrap();
            state.read(1, 0, &mut got_scale).unwrap();
            assert_eq!((got, f32::from_ne_bytes(got_scale)), (codes, scale), "update {step}");
        }
    }

    /// Gradients in 16 bits are what they are as `f32`, for parameters of every type.
    fn gradients_of_other_types(target) {
        let problem = Problem::shaped(&SHAPES, 3, 12);
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for narrow in [DType::F16, DType::Bf16] {
                let parameters = problem.parameters.iter().map(|parameter| parameter.clone().with_dtype(dtype));
                let builder = || Adam::default().params(parameters.clone()).clip_norm(1.0).loss_scale(2.0);
                let (mut a, mut b) = (start(builder(), target, &problem), start(builder(), target, &problem));
                for step in 0..3 {
                    let narrow: Vec<Numbers> = gradients(&problem, step).iter().flatten().map(|g| Numbers::new(narrow, g)).collect();
                    let wide = narrow.iter().map(|numbers| match numbers {
                        Numbers::F32(g) => g.clone(),
                        Numbers::F16(g) => g.iter().map(|g| g.to_f32()).collect::<Vec<_>>(),
                        Numbers::Bf16(g) => g.iter().map(|g| g.to_f32()).collect(),
                    });
                    let wide: Vec<Vec<f32>> = wide.collect();
                    let reports = (a.step(&narrow.iter().collect::<Vec<_>>()), b.step(&wide.iter().collect::<Vec<_>>()));
                    assert_eq!(reports.0, reports.1, "{dtype} {narrow:?}");
                }
                assert_same(&a.run("16 bits"), &b.run("32 bits"));
            }
        }
    }
}

/// Reports that come late say what those at once say: numbers, rates, skips, the error of too many.
#[test]
fn late_reports() {
    let problem = Problem::shaped(&SHAPES, 12, 13);
    let scale = DynamicLossScale { init_loss_scale: 4.0, scale_window: 3, ..DynamicLossScale::default() };
    let train = |late: usize, max_skips: u32| {
        let rates: Vec<f64> = (1..=12).map(|n| 0.01 * f64::from(n)).collect();
        let builder = Adam::new(rates).params(&problem.parameters).loss_scale(DynamicLossScale { max_skips, ..scale });
        let mut optimizer = builder.clip_norm(1.0).build(Naive { late }).unwrap();
        let (mut p, mut reports, mut error) = (problem.start.clone(), Vec::new(), None);
        for (step, gradients) in problem.gradients.iter().enumerate() {
            let mut gradients = gradients.clone();
            if [2, 3, 7].contains(&step) {
                gradients[1].as_mut().unwrap()[3] = f32::NAN;
            }
            let grads: Vec<Grad<'_>> = gradients.iter().map(|g| g.as_ref().into()).collect();
            let mut params: Vec<_> = p.iter_mut().map(Into::into).collect();
            match optimizer.step(&mut params, &grads) {
                Ok(report) if report.outcome == Outcome::Pending => (),
                Ok(report) => reports.push(report),
                Err(got) => error = error.or(Some(got)),
            }
            loop {
                match optimizer.try_report() {
                    Ok(Some(report)) => reports.push(report),
                    Ok(None) => break,
                    Err(got) => error = error.or(Some(got)),
                }
            }
        }
        loop {
            match optimizer.wait_report() {
                Ok(Some(report)) => reports.push(report),
                Ok(None) => break,
                Err(got) => error = error.or(Some(got)),
            }
        }
        (reports, error, Run::of(&optimizer, &p).unwrap().by(&format!("{late} late")), optimizer.step_count())
    };
    let (reports, error, run, steps) = train(0, 100);
    assert_eq!((reports.len(), &error, steps), (12, &None, 9));
    let skipped: Vec<usize> = (0..12).filter(|&step| !reports[step].applied()).collect();
    assert_eq!(skipped, [2, 3, 7]);
    for late in [1, 2, 5, 40] {
        let (late_reports, late_error, late_run, late_steps) = train(late, 100);
        // As text, where a norm that is no number is itself.
        assert_eq!(format!("{late_reports:?}"), format!("{reports:?}"), "{late} late");
        assert_eq!((late_error, late_steps), (None, steps), "{late} late");
        assert_same(&run, &late_run);
    }
    for late in [0, 1, 5] {
        let (_, error, late_run, steps) = train(late, 1);
        assert_eq!(error, Some(Error::TooManySkips { name: "w1".into(), skips: 2 }), "{late} late");
        assert_eq!(steps, 9, "{late} late");
        assert!(
            late == 0 && compare(&run, &late_run.by("other"), &Bound::Bits).is_ok() || late > 0,
            "the same weights"
        );
    }
}

/// What has been accumulated is still there when an earlier step's report, which comes late, is an error.
#[test]
fn accumulated_gradients_survive_the_error_of_an_earlier_step() {
    let scale = DynamicLossScale { init_loss_scale: 1.0, max_skips: 0, ..DynamicLossScale::default() };
    let builder = sgd().params([Parameter::new("w", [2])]).loss_scale(scale);
    let mut optimizer = builder.build(Naive { late: 1 }).unwrap();
    let (mut p, one) = ([1.0_f32; 2], [1.0_f32; 2]);
    for g in [[f32::INFINITY; 2], one] {
        assert_eq!(optimizer.step(&mut [(&mut p).into()], &[(&g).into()]).unwrap().outcome, Outcome::Pending);
    }
    let once = p;
    optimizer.accumulate(&[(&one).into()], 1.0).unwrap();
    let told = optimizer.step_accumulated(&mut [(&mut p).into()]);
    assert!(matches!(told, Err(Error::TooManySkips { skips: 1, .. })), "{told:?}");
    assert_eq!(p, once, "it has not been made");
    assert_eq!(optimizer.step_accumulated(&mut [(&mut p).into()]).unwrap().outcome, Outcome::Pending);
    assert_ne!(p, once);
    assert!(matches!(optimizer.step_accumulated(&mut [(&mut p).into()]), Err(Error::State { .. })));
}

/// A step that is reported at once, behind one whose late report is an error, has been made, and counts. (With memory of the device
/// and then of the host: reports of the former are late.)
#[cfg(feature = "gpu")]
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn steps_behind_an_error_count() {
    let backend = optim_tests::gpu();
    // Whether the late report is there in time is luck.
    for round in 0..8 {
        let scale = DynamicLossScale { init_loss_scale: 1.0, max_skips: 0, ..DynamicLossScale::default() };
        let rates = vec![0.1, 0.01, 0.001, 0.0001];
        let rule = Sgd { lr: rates.into(), ..Sgd::default() };
        let mut optimizer = rule.params([Parameter::new("w", [2])]).loss_scale(scale).build(backend.clone()).unwrap();
        let (param, grad) = (backend.buffer(&[1.0; 2]).unwrap(), backend.buffer(&[f32::INFINITY, 1.0]).unwrap());
        assert_eq!(optimizer.step(&mut [(&param).into()], &[(&grad).into()]).unwrap().outcome, Outcome::Pending);
        let (mut p, one) = ([1.0_f32; 2], [1.0_f32; 2]);
        let mut applied = 0;
        let mut errors = 0;
        for _ in 0..3 {
            let before = p;
            match optimizer.step(&mut [(&mut p).into()], &[(&one).into()]) {
                Ok(report) => {
                    applied += 1;
                    assert!(report.applied(), "round {round}: {report:?}");
                }
                Err(Error::TooManySkips { skips: 1, .. }) => {
                    errors += 1;
                    applied += u64::from(p != before);
                }
                Err(error) => panic!("round {round}: {error}"),
            }
            assert_eq!(optimizer.step_count(), applied, "round {round}");
        }
        assert_eq!(errors, 1, "round {round}");
        let expected = [0.1_f32, 0.01, 0.001].iter().take(usize::try_from(applied).unwrap()).fold(1.0, |p, lr| p - lr);
        assert_eq!(p, [expected; 2], "round {round}");
        assert_eq!(optimizer.state().unwrap().meta().step, applied, "round {round}");
    }
}

/// A helper that waits gives the report of the step.
#[test]
fn final_reports() {
    let mut optimizer = sgd().params([Parameter::new("w", [2])]).guard(true).build(Naive { late: 3 }).unwrap();
    let mut p = [1.0_f32; 2];
    let report = optimizer.step(&mut [(&mut p).into()], &[(&[0.5_f32; 2]).into()]).unwrap();
    assert_eq!((report.outcome, report.step, optimizer.step_count()), (Outcome::Pending, 1, 0));
    let report = final_report(&mut optimizer, report).unwrap();
    assert_eq!((report.outcome, report.step, optimizer.step_count()), (Outcome::Applied, 1, 1));
    assert_eq!(optimizer.wait_report(), Ok(None));
}

/// Settings out of their ranges.
#[test]
fn bad_settings() {
    let builder = || Adam::default().params([Parameter::new("w", [2])]);
    let lars = || Lars::new(Sgd::default()).params([Parameter::new("w", [2])]);
    let nan = f64::NAN;
    let dynamic = DynamicLossScale::default();
    let fixed = |loss_scale| builder().loss_scale(FixedLossScale { loss_scale, ..FixedLossScale::default() });
    for (builder, name) in [
        (builder().clip_norm(0.0), "clip_norm: max_norm"),
        (builder().clip_norm_per_group(nan), "clip_norm_per_group: max_norm"),
        (builder().clip_norm_per_parameter(f64::INFINITY), "clip_norm_per_parameter: max_norm"),
        (builder().clip_value(-1.0), "clip_value: limit"),
        (builder().clip_adaptive(0.0, 1e-3), "clip_adaptive: lambda"),
        (builder().clip_adaptive(0.01, nan), "clip_adaptive: epsilon"),
        (lars().clip_adaptive(0.01, 1e-3), "clip_adaptive"),
        (builder().ema(1.0), "ema.decay"),
        (builder().ema(-0.1), "ema.decay"),
        (builder().ema(nan), "ema.decay"),
        (fixed(0.5), "FixedLossScale.loss_scale"),
        (fixed(nan), "FixedLossScale.loss_scale"),
        (
            builder().loss_scale(DynamicLossScale { init_loss_scale: 0.5, ..dynamic }),
            "DynamicLossScale.init_loss_scale",
        ),
        (builder().loss_scale(DynamicLossScale { scale_factor: 0.0, ..dynamic }), "DynamicLossScale.scale_factor"),
        (builder().loss_scale(DynamicLossScale { scale_window: 0, ..dynamic }), "DynamicLossScale.scale_window"),
        (builder().loss_scale(DynamicLossScale { floor: 2_f64.powi(25), ..dynamic }), "DynamicLossScale.floor"),
        (builder().loss_scale(DynamicLossScale { floor: 0.0, ..dynamic }), "DynamicLossScale.floor"),
        (builder().loss_scale(DynamicLossScale { cap: 2.0, ..dynamic }), "DynamicLossScale.cap"),
    ] {
        let error = builder.build(Target::ALL[0]).expect_err(name);
        assert!(matches!(&error, Error::HyperParameter { name: got, .. } if got == name), "{name}: {error:?}");
    }
    // No `f32` is as near to 1, but the kernels take what it lacks.
    assert!(builder().ema(1.0 - 1e-12).build(Target::ALL[0]).is_ok(), "nearer to 1 than an f32 can be");
}
