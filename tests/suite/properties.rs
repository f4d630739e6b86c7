//! Laws that hold for any rule and any data.

use optim_tests::{Bound, Problem, Run, Setup, Target, compare, on_every_backend};
use optimizers::core::rule::Passes;
use optimizers::{Builder, Error, ParamGroup, Parameter, Rprop, Rule};
use proptest::prelude::*;

/// Every rule, each with data of its own: few cases, since each trains several optimizers, and the same ones in every run.
fn every_rule() -> impl Iterator<Item = (Just<Rule>, ProptestConfig)> {
    (1..).zip(Rule::all()).map(|(seed, rule)| {
        let config = ProptestConfig {
            cases: 3,
            failure_persistence: None,
            rng_seed: prop::test_runner::RngSeed::Fixed(seed),
            ..ProptestConfig::default()
        };
        (Just(rule), config)
    })
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..300_usize, 1..5)
}

fn settings() -> impl Strategy<Value = (f64, f64)> {
    (1e-4..0.1, prop_oneof![Just(0.0), 1e-3..0.5])
}

fn train(setup: &Setup, problem: &Problem, target: Target, by: &str) -> Run {
    Run::train(setup.builder(&problem.parameters), target, problem).unwrap().by(by)
}

#[track_caller]
fn assert_same(a: &Run, b: &Run) {
    if let Err(worst) = compare(a, b, &Bound::Bits) {
        panic!("{worst}");
    }
}

on_every_backend! {
    /// A rate of 0 moves nothing, whatever state builds up. Of Rprop the rate is the first step size, which is held within
    /// bounds.
    fn zero_rate(target) {
        for (rule, config) in every_rule() {
            proptest!(config, |(rule in rule, lens in lengths(), (_, decay) in settings(), seed: u64)| {
                let rule = match rule {
                    Rule::Rprop(rprop) => Rprop { step_sizes: (0.0, rprop.step_sizes.1), ..rprop }.into(),
                    rule => rule,
                };
                let problem = Problem::new(&lens, 3, seed);
                let setup = Setup { rule, groups: vec![(0.0, decay)], loss_scale: 8.0 };
                let mut optimizer = setup.builder(&problem.parameters).build(target).unwrap();
                let mut p = problem.start.clone();
                for gradients in &problem.gradients {
                    let grads: Vec<_> = gradients.iter().map(|g| g.as_ref().into()).collect();
                    let mut params: Vec<_> = p.iter_mut().map(Into::into).collect();
                    prop_assert!(optimizer.step(&mut params, &grads).unwrap().applied());
                }
                prop_assert_eq!(p, problem.start);
            });
        }
    }

    /// The same training twice gives the same bits.
    fn repeatable(target) {
        for (rule, config) in every_rule() {
            proptest!(config, |(rule in rule, lens in lengths(), group in settings(), seed: u64)| {
                let problem = Problem::new(&lens, 3, seed).with_gaps(seed);
                let setup = Setup { rule, groups: vec![group], loss_scale: 3.0 };
                assert_same(&train(&setup, &problem, target, "one"), &train(&setup, &problem, target, "another"));
            });
        }
    }

    /// An element does not know in which tensor it lies, or where.
    fn splitting(target) {
        for (rule, config) in every_rule() {
            proptest!(config, |(rule in rule, a in 0..2000_usize, b in 0..2000_usize, group in settings(), seed: u64)| {
                if rule.spec().passes() != Passes::Elementwise || rule.spec().has_trust() {
                    return Ok(());
                }
                let whole = Problem::new(&[a + b], 3, seed);
                let split = |values: &Vec<f32>| [values[..a].to_vec(), values[a..].to_vec()];
                let parts = Problem {
                    parameters: vec![Parameter::new("w0", [a]), Parameter::new("w1", [b])],
                    start: split(&whole.start[0]).to_vec(),
                    gradients: whole.gradients.iter().map(|g| split(g[0].as_ref().unwrap()).map(Some).to_vec()).collect(),
                };
                let setup = Setup { rule, groups: vec![group], loss_scale: 3.0 };
                let (whole, parts) = (train(&setup, &whole, target, "whole"), train(&setup, &parts, target, "parts"));
                // The arrays of `w0` and of `w1`, each with its slots, are in the same order.
                let (w0, w1) = parts.arrays().split_at(parts.arrays().len() / 2);
                for ((whole, w0), w1) in whole.arrays().iter().zip(w0).zip(w1) {
                    prop_assert_eq!(&whole.values, &[&w0.values[..], &w1.values].concat(), "{}", whole.name);
                }
            });
        }
    }

    /// A loss scale that is a power of two is exact: scaled gradients give the bits of unscaled ones.
    fn loss_scale(target) {
        for (rule, config) in every_rule() {
            proptest!(config, |(rule in rule, lens in lengths(), group in settings(), k in -10..16_i32, seed: u64)| {
                let plain = Problem::new(&lens, 3, seed);
                let mut scaled = plain.clone();
                let scale = 2.0_f32.powi(k);
                scaled.gradients.iter_mut().flatten().flatten().flatten().for_each(|g| *g *= scale);
                let setup = Setup { rule, groups: vec![group], loss_scale: 1.0 };
                let unscaling = Setup { loss_scale: f64::from(scale), ..setup.clone() };
                assert_same(&train(&setup, &plain, target, "plain"), &train(&unscaling, &scaled, target, "scaled"));
            });
        }
    }

    /// A parameter without a gradient, and its state, are as if the step had not been; its neighbours do not notice.
    fn missing_gradients(target) {
        for (rule, config) in every_rule() {
            proptest!(config, |(rule in rule, len in 1..300_usize, group in settings(), seed: u64)| {
                let mut problem = Problem::new(&[len, 7, len], 3, seed);
                problem.gradients.iter_mut().for_each(|g| g[1] = None);
                let setup = Setup { rule: rule.clone(), groups: vec![group], loss_scale: 3.0 };
                let all = train(&setup, &problem, target, "three parameters");

                let find = |run: &Run, name: &str| run.arrays().iter().find(|x| x.name == name).unwrap().values.clone();
                let start: Vec<f64> = problem.start[1].iter().map(|&x| f64::from(x)).collect();
                prop_assert_eq!(find(&all, "w1"), start);
                for slot in rule.spec().slots() {
                    prop_assert_eq!(find(&all, &format!("w1.{}", slot.name)), vec![f64::from(slot.init); slot.shape.len(&[7])]);
                }

                problem.parameters.remove(1);
                problem.start.remove(1);
                problem.gradients.iter_mut().for_each(|g| drop(g.remove(1)));
                let two = train(&setup, &problem, target, "two parameters");
                for array in two.arrays() {
                    prop_assert_eq!(&array.values, &find(&all, &array.name), "{}", &array.name);
                }
            });
        }
    }

    /// Groups of equal settings are one group.
    fn equal_groups(target) {
        for (rule, config) in every_rule() {
            proptest!(config, |(rule in rule, lens in lengths(), group in settings(), seed: u64)| {
                let problem = Problem::new(&lens, 3, seed).with_gaps(seed);
                let one = Setup { rule, groups: vec![group], loss_scale: 3.0 };
                let three = Setup { groups: vec![group; 3], ..one.clone() };
                assert_same(&train(&one, &problem, target, "one group"), &train(&three, &problem, target, "three"));
            });
        }
    }

    /// Ungrouped, names with `beta` or `gamma` do not decay, but for rules that decay all; with groups all do; a filter
    /// replaces both.
    fn who_decays(target) {
        let parameters = ["w", "bn.gamma", "alphabeta", "BN.GAMMA", "bias"].map(|name| Parameter::new(name, [1]));
        let after_a_step = |builder: Builder| {
            let mut optimizer = builder.build(target).unwrap();
            let mut p = [[1.0_f32]; 5];
            let grads = [[0.0_f32]; 5];
            let mut params: Vec<_> = p.iter_mut().map(Into::into).collect();
            let grads: Vec<_> = grads.iter().map(Into::into).collect();
            assert!(optimizer.step(&mut params, &grads).unwrap().applied(), "a step is applied");
            p.map(|[p]| p)
        };
        // Some rules move a weight without a gradient too.
        let decayed = |builder: Builder| {
            let [with, without] = [0.5, 0.0].map(|decay| after_a_step(builder.clone().weight_decay(decay)));
            [0, 1, 2, 3, 4].map(|i| with[i] != without[i])
        };
        for rule in Rule::all() {
            let builder = || Builder::new(rule.clone());
            let group = || [ParamGroup::new(&parameters).lr(0.1)];
            let all = rule.spec().decays_all_names();
            // LARS leaves biases out, and what it leaves out does not decay.
            let bias = !rule.spec().has_trust();
            assert_eq!(decayed(builder().params(&parameters)), [true, all, all, true, bias], "{rule:?}");
            assert_eq!(decayed(builder().groups(group())), [true, true, true, true, bias], "{rule:?}");
            let only_gamma = |p: &Parameter| p.name().contains("gamma");
            let expected = [false, true, false, false, false];
            assert_eq!(decayed(builder().params(&parameters).decay_filter(only_gamma)), expected, "{rule:?}");
            assert_eq!(decayed(builder().groups(group()).decay_filter(only_gamma)), expected, "{rule:?}");
            let default = |builder: Builder| builder.params(&parameters).default_decay_filter(only_gamma);
            assert_eq!(decayed(default(builder())), expected, "{rule:?}");
            assert_eq!(decayed(default(builder().decay_filter(|_| false))), [false; 5], "{rule:?}");
        }
    }

    /// A report tells the number of the update and the rate of each group, from index 0 of its list on.
    fn reports(target) {
        for rule in Rule::all() {
            let groups = [
                ParamGroup::new([Parameter::new("a", [1])]).lr([0.5, 0.25]),
                ParamGroup::new([Parameter::new("b", [1])]).lr(0.125),
            ];
            let mut optimizer = Builder::new(rule).groups(groups).build(target).unwrap();
            let (mut a, mut b) = ([1.0_f32], [1.0_f32]);
            for (step, rates) in [(1, [0.5, 0.125]), (2, [0.25, 0.125])] {
                assert_eq!([0, 1].map(|group| optimizer.lr(group).unwrap()), rates, "the rates to come");
                let report = optimizer.step(&mut [(&mut a).into(), (&mut b).into()], &[(&[1.0]).into(), None::<&[f32]>.into()]);
                let report = report.unwrap();
                assert_eq!((report.applied(), report.step, &*report.rates), (true, step, &rates[..]), "the report");
                assert_eq!(optimizer.step_count(), step, "the count of updates");
            }
            assert!(matches!(optimizer.lr(0), Err(Error::RateExhausted { update: 2, .. })), "the list is at its end");
            assert!(matches!(optimizer.lr(2), Err(Error::Unknown { .. })), "there are two groups");
            assert_eq!(b, [1.0], "no gradient, no update");
        }
    }
}
