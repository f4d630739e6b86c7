//! Every rule against its naive `f64` twin, at every length where loops begin or end.

use optim_tests::tolerance::{CONTROL_BOUND, JUDGE, JUDGE_FACTORED};
use optim_tests::{
    AWKWARD, Bound, Problem, Run, SHAPES, STACKS, Setup, Target, Training, compare, on_every_backend, reference,
};
use optimizers::rule::Passes;
use optimizers::{AdaFactor, Adam, AdamW, Adan, Builder, Lamb, Lars, Momentum, NAdam, Parameter, RAdam, Rule, Sgd};

/// Trains a problem on the backend and by the judge; gives the worst error.
fn error(setup: &Setup, problem: &Problem, target: Target) -> f64 {
    let run = Run::train(setup.builder(&problem.parameters), target, problem).unwrap();
    let (judged, scale) = reference::train(setup, problem);
    let units = if setup.rule.spec().passes() == Passes::Factored { JUDGE_FACTORED } else { JUDGE };
    match compare(&run, &judged, &Bound::Units(units, &scale)) {
        Ok(worst) => worst.units,
        Err(worst) => panic!("{:?}\n{worst}", setup.rule),
    }
}

/// A rate and a decay for each of two groups.
fn groups(decay: bool) -> Vec<(f64, f64)> {
    if decay { vec![(1e-2, 0.1), (3e-3, 0.02)] } else { vec![(1e-2, 0.0), (3e-3, 0.0)] }
}

on_every_backend! {
    /// All lengths as the parameters of one optimizer, with and without decay and loss scale.
    fn together(target) {
        let problem = Problem::new(AWKWARD, 5, 1);
        for rule in Rule::all() {
            let mut worst = 0.0_f64;
            for (decay, loss_scale) in [(false, 1.0), (true, 1.0), (false, 1000.0), (true, 1000.0)] {
                let setup = Setup { rule: rule.clone(), groups: groups(decay), loss_scale };
                worst = worst.max(error(&setup, &problem, target));
            }
            println!("{} {:?}: {worst:.2} units of {JUDGE}", target.name(), rule);
        }
    }

    /// Each length as the only parameter.
    fn alone(target) {
        for (seed, &len) in (10..).zip(AWKWARD) {
            let problem = Problem::new(&[len], 2, seed);
            for rule in Rule::all() {
                error(&Setup::new(&rule, 1e-2), &problem, target);
                error(&Setup { rule, groups: vec![(1e-2, 0.1)], loss_scale: 1000.0 }, &problem, target);
            }
        }
    }

    /// Means that forget at once, or almost, of gradients of very different sizes.
    fn short_memories(target) {
        let mut problem = Problem::new(AWKWARD, 6, 9);
        for (step, gradients) in problem.gradients.iter_mut().enumerate() {
            let size = [1e3_f32, 1e-4, 1.0, 1e-5, 1e4, 1e-3][step];
            gradients.iter_mut().flatten().flatten().for_each(|g| *g *= size);
        }
        for beta in [0.0, 1e-6, 1e-3, 0.1, 0.4] {
            for beta1 in [beta, 0.9] {
                let rules: [Rule; 6] = [
                    Adam { beta1, beta2: beta, ..Adam::torch() }.into(),
                    Adam { beta1, beta2: beta, use_amsgrad: true, ..Adam::torch() }.into(),
                    AdamW { beta1, beta2: beta, ..AdamW::default() }.into(),
                    NAdam { beta1, beta2: beta, ..NAdam::default() }.into(),
                    RAdam { beta1, beta2: beta, ..RAdam::default() }.into(),
                    Adan { beta1, beta2: beta, beta3: beta, ..Adan::default() }.into(),
                ];
                for rule in rules {
                    error(&Setup::new(&rule, 1e-3), &problem, target);
                }
            }
        }
    }

    /// What divides is never 0: neither the least ε, corrected, nor what LARS divides by without ε.
    fn nothing_is_divided_by_nothing(target) {
        let eps = 1e-44;
        let rules: [Rule; 5] = [
            Lars { epsilon: 0.0, ..Lars::new(Momentum::new(0.1, 0.9)) }.into(),
            Adam { eps, ..Adam::torch() }.into(),
            AdamW { eps, ..AdamW::default() }.into(),
            NAdam { eps, ..NAdam::default() }.into(),
            Adan { eps, ..Adan::default() }.into(),
        ];
        for rule in rules {
            let parameters = ["a", "b"].map(|name| Parameter::new(name, [2]));
            let mut optimizer = Builder::new(rule.clone()).params(parameters).weight_decay(0.0).build(target).unwrap();
            let (mut a, mut b, zeros) = ([1.0_f32; 2], [0.0_f32; 2], [0.0_f32; 2]);
            for _ in 0..2 {
                let report = optimizer.step(&mut [(&mut a).into(), (&mut b).into()], &[(&zeros).into(), (&zeros).into()]);
                assert!(report.unwrap().applied(), "{rule:?}");
            }
            assert_eq!((a, b), ([1.0; 2], [0.0; 2]), "{rule:?}");
        }
    }

    /// LARS with a ratio that is clipped, at a rate of 0, such as a warm-up's first, and at others.
    fn clipped_ratios(target) {
        let problem = Problem::new(AWKWARD, 3, 8);
        let rule = Rule::from(Lars { use_clip: true, ..Lars::new(Momentum::new(0.1, 0.9)) });
        for lr in [0.0, 1e-4, 1.0] {
            error(&Setup { rule: rule.clone(), groups: vec![(lr, 0.1), (lr, 0.0)], loss_scale: 1.0 }, &problem, target);
        }
    }

    /// Parameters of all shapes.
    fn of_all_shapes(target) {
        let problem = Problem::shaped(SHAPES, 5, 6);
        for rule in Rule::all() {
            let worst = error(&Setup { rule: rule.clone(), groups: groups(true), loss_scale: 8.0 }, &problem, target);
            println!("{} {rule:?}: {worst:.2} units", target.name());
        }
    }

    /// Stacks of small matrices, with second moments by row and column.
    fn of_small_matrices(target) {
        let problem = Problem::shaped(STACKS, 5, 7);
        for rule in Rule::all().into_iter().filter(|rule| rule.spec().passes() == Passes::Factored) {
            let worst = error(&Setup { rule: rule.clone(), groups: groups(true), loss_scale: 8.0 }, &problem, target);
            println!("{} {rule:?}: {worst:.2} units", target.name());
        }
    }

    /// Norms over more slices than there are lanes to add them. By gradients of ±1 each of these rules moves every element by its rate
    /// times the root of the parameter's mean square.
    fn of_a_huge_tensor(target) {
        let parameter = Parameter::new("w", [5_000_003]);
        // The last slices weigh more than all before them.
        let start: Vec<f32> = (0..parameter.len()).map(|i| if i < 1 << 22 { 1.0 } else { 7.0 }).collect();
        let gradient: Vec<f32> = (0..parameter.len()).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
        let squares: f64 = start.iter().map(|&p| f64::from(p) * f64::from(p)).sum();
        let expected = 0.01 * (squares / parameter.len() as f64).sqrt();
        let rules: [Rule; 3] = [
            Lamb { weight_decay: 0.0, ..Lamb::new(0.01) }.into(),
            Lars { coefficient: 0.01, ..Lars::new(Sgd { lr: 1.0.into(), ..Sgd::default() }) }.into(),
            // Its own first rate is 0.01.
            AdaFactor { beta1: 0.0, ..AdaFactor::default() }.into(),
        ];
        for rule in rules {
            let builder = Builder::new(rule.clone()).params([&parameter]);
            let mut training = Training::new(builder, target, std::slice::from_ref(&start)).unwrap();
            assert!(training.step(&[&gradient]).applied(), "{rule:?}");
            let values = training.values().concat();
            for index in [0, 1 << 22, start.len() - 1] {
                let moved = f64::from((start[index] - values[index]) * gradient[index]);
                // A unit of the largest number, beside the rule's own rounding.
                assert!((moved - expected).abs() < 1e-6, "{rule:?}: element {index} moved by {moved}, not by {expected}");
            }
        }
    }

    /// LARS with an epsilon that is large beside the norms: it is in the ratio.
    fn large_epsilons(target) {
        let problem = Problem::new(&[1, 300, 1025], 3, 11);
        for epsilon in [0.0, 1.0, 1e3] {
            let rule = Rule::from(Lars { epsilon, coefficient: 1.0, ..Lars::new(Momentum::new(0.1, 0.9)) });
            error(&Setup { rule, groups: groups(true), loss_scale: 1.0 }, &problem, target);
        }
    }

    /// Missing gradients, over more steps: first updates come at different times.
    fn with_gaps(target) {
        let problem = Problem::new(&[257, 0, 1, 1025, 16], 30, 2).with_gaps(3);
        for rule in Rule::all() {
            error(&Setup { rule, groups: groups(true), loss_scale: 128.0 }, &problem, target);
        }
    }

    /// Control: the judge must notice another rate.
    fn notices_another_rate(target) {
        let problem = Problem::new(&[1000], 20, 4);
        for rule in Rule::all() {
            let setup = Setup::new(&rule, 1e-2);
            let other = Setup::new(&rule, 1e-2 * (1.0 + CONTROL_BOUND));
            let run = Run::train(other.builder(&problem.parameters), target, &problem).unwrap();
            let (judged, scale) = reference::train(&setup, &problem);
            let verdict = compare(&run, &judged, &Bound::Units(JUDGE, &scale));
            assert!(verdict.is_err(), "a rate 1 % off passed: {verdict:?}");
        }
    }
}

/// Control: comparing what one maker made with itself is refused.
#[test]
#[should_panic(expected = "compared with itself")]
fn nobody_judges_himself() {
    let (judged, _) = reference::train(&Setup::new(&Rule::all()[0], 0.1), &Problem::new(&[3], 1, 5));
    let _ = compare(&judged, &judged, &Bound::Bits);
}
