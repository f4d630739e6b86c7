//! What changes between steps, and what an optimizer says about itself.

use half::bf16;
use optim_tests::engine::Numbers;
use optim_tests::resume::kept;
use optim_tests::{Bound, Naive, Problem, Run, Target, Training, compare, on_every_backend};
use optimizers::core::backend::Element;
use optimizers::core::format::Code8;
use optimizers::core::{DynamicLossScale, Ema, Estimate, Master, Origin, Select, StateDType};
use optimizers::rule::{At, CustomRule, Decay, Slot, StepScalars, UpdateRule};
use optimizers::schedule::{Linear, ReduceOnPlateau};
use optimizers::{
    AdaFactor, Adam, AdamW, Builder, DType, Error, Grad, Hyper, Lars, LazyAdam, Lion, LoadOptions, Momentum, NAdam,
    Optimizer, Outcome, ParamGroup, Parameter, Rate, Result, Rule, Sgd,
};

/// Parameters of these shapes: the first half in one group, the others in another.
const SHAPES: [&[usize]; 4] = [&[4, 5], &[7], &[3, 16, 2], &[300]];

fn groups(problem: &Problem) -> [ParamGroup; 2] {
    let (first, second) = problem.parameters.split_at(problem.parameters.len() / 2);
    [ParamGroup::new(first).lr(0.01), ParamGroup::new(second).lr(0.02).weight_decay(0.1)]
}

type Gradients<'a> = Vec<Option<&'a Vec<f32>>>;

fn gradients(problem: &Problem, step: usize) -> Gradients<'_> {
    problem.gradients[step].iter().map(Option::as_ref).collect()
}

fn start(builder: Builder, target: Target, problem: &Problem) -> Training {
    Training::new(builder, target, &problem.start).unwrap()
}

/// All steps of a problem, with this change before each.
fn train(builder: Builder, target: Target, problem: &Problem, change: impl Fn(&mut Optimizer, usize)) -> Training {
    let mut training = start(builder, target, problem);
    for step in 0..problem.steps() {
        change(&mut training.optimizer, step);
        assert!(training.step(&gradients(problem, step)).applied(), "step {step}");
    }
    training
}

#[track_caller]
fn assert_same(a: &Run, b: &Run) {
    if let Err(worst) = compare(a, b, &Bound::Bits) {
        panic!("{worst}");
    }
}

#[track_caller]
fn assert_differ(a: &Run, b: &Run) {
    assert!(compare(a, b, &Bound::Bits).is_err(), "{} and {} are alike", a.maker(), b.maker());
}

/// The name of the hyper-parameter that is refused.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(Error::HyperParameter { name, .. }) => name,
        other => panic!("{other:?}"),
    }
}

on_every_backend! {
    /// A rate or decay set between steps is that of a list, in the group where it is set.
    fn rates_and_decays(target) {
        let problem = Problem::shaped(&SHAPES, 4, 1);
        for rule in Rule::all() {
            let listed = |lr: [f64; 4], decay: [f64; 4]| {
                let [first, second] = groups(&problem);
                Builder::new(rule.clone()).groups([first, second.lr(lr).weight_decay(decay)])
            };
            let by_list = train(listed([0.02, 0.02, 0.3, 0.3], [0.1, 0.5, 0.5, 0.0]), target, &problem, |_, _| ());
            let by_list = by_list.run("by lists");
            let by_hand = train(listed([0.02; 4], [0.1; 4]), target, &problem, |optimizer, step| match step {
                1 => optimizer.set_weight_decay(1, 0.5).unwrap(),
                2 => optimizer.set_lr(1, [0.3; 4]).unwrap(),
                3 => optimizer.set_weight_decay(1, Linear::new(0.5, 0.0, 3).unwrap()).unwrap(),
                _ => (),
            });
            assert_same(&by_list, &by_hand.run("set by hand"));
            assert_differ(&by_list, &train(listed([0.02; 4], [0.1; 4]), target, &problem, |_, _| ()).run("not set"));
        }
    }

    /// Bad rates, decays, groups: the next step is as if nothing had been tried.
    fn refused_rates(target) {
        let problem = Problem::shaped(&SHAPES, 2, 2);
        let builder = || Adam::default().groups(groups(&problem));
        let undisturbed = train(builder(), target, &problem, |_, _| ()).run("undisturbed");
        let disturbed = train(builder(), target, &problem, |optimizer, _| {
            for bad in [-0.1, f64::NAN, f64::INFINITY] {
                assert_eq!(refused(optimizer.set_lr(1, bad)), "group 1: lr");
                assert_eq!(refused(optimizer.set_weight_decay(1, bad)), "group 1: weight_decay");
                assert_eq!(refused(optimizer.set_weight_decay(0, [0.1, bad])), "group 0: weight_decay");
            }
            assert_eq!(refused(optimizer.set_lr(0, Vec::new())), "group 0: lr");
            let unknown = Error::Unknown { what: "group", name: "2".into(), expected: "0 to 1".into() };
            assert_eq!(optimizer.set_lr(2, 0.1), Err(unknown.clone()));
            assert_eq!(optimizer.set_weight_decay(2, 0.1), Err(unknown.clone()));
            assert_eq!(optimizer.set_grad_centralization(2, true), Err(unknown.clone()));
            assert_eq!(optimizer.edit(2, |_: &mut Adam| ()), Err(unknown));
        });
        assert_same(&undisturbed, &disturbed.run("disturbed"));
        let mut own_rate = AdaFactor::default().params(&problem.parameters).build(target).unwrap();
        assert_eq!(refused(own_rate.set_lr(0, 0.1)), "the optimizer: lr");
    }

    /// Centralization that is switched on for the second step is that of an optimizer that has it, from the state after the first.
    fn centralization(target) {
        let problem = Problem::shaped(&SHAPES, 2, 3);
        // Without state: the second step alone.
        let sgd = || Sgd { lr: 0.5.into(), ..Sgd::default() };
        let switched = train(sgd().groups(groups(&problem)), target, &problem, |optimizer, step| {
            optimizer.set_grad_centralization(0, step == 1).unwrap();
        });
        let one = Problem { gradients: vec![problem.gradients[0].clone()], ..problem.clone() };
        let first = train(sgd().groups(groups(&problem)), target, &one, |_, _| ());
        let two = Problem { start: first.values(), gradients: vec![problem.gradients[1].clone()], ..problem.clone() };
        let [a, b] = groups(&problem);
        let second = train(sgd().groups([a.grad_centralization(true), b]), target, &two, |_, _| ());
        assert_same(&switched.run("switched"), &second.run("built so"));
        let off = train(sgd().groups(groups(&problem)), target, &problem, |_, _| ());
        assert_differ(&switched.run("switched"), &off.run("off"));
    }

    /// A hyper-parameter edited between steps is one that varies.
    fn edits(target) {
        let problem = Problem::shaped(&SHAPES, 4, 4);
        let adam = || Adam::new(0.01).groups(groups(&problem));
        let edited = train(adam(), target, &problem, |optimizer, step| {
            if step == 2 {
                optimizer.edit(0, |adam: &mut Adam| adam.beta1 = 0.5).unwrap();
            }
        });
        let [a, b] = groups(&problem);
        let varied = a.vary(|adam: &mut Adam, update| adam.beta1 = if update < 2 { 0.9 } else { 0.5 });
        let varied = train(Adam::new(0.01).groups([varied, b]), target, &problem, |_, _| ());
        assert_same(&edited.run("edited"), &varied.run("varied"));
        assert_differ(&edited.run("edited"), &train(adam(), target, &problem, |_, _| ()).run("not edited"));
    }

    /// Edits that are refused leave everything as it was.
    fn refused_edits(target) {
        let problem = Problem::shaped(&SHAPES, 2, 5);
        let [a, b] = groups(&problem);
        let builder = || Adam::new(0.01).groups([a.clone(), b.clone().rule(Sgd { momentum: 0.9, ..Sgd::default() })]);
        let undisturbed = train(builder(), target, &problem, |_, _| ()).run("undisturbed");
        let disturbed = train(builder(), target, &problem, |optimizer, _| {
            assert_eq!(refused(optimizer.edit(0, |adam: &mut Adam| adam.beta1 = 1.0)), "group 0: adam.beta1");
            assert_eq!(refused(optimizer.edit(0, |lion: &mut Lion| lion.beta1 = 0.5)), "group 0: Lion");
            // Momentum and AMSGrad need arrays that are there, or not, from the start.
            assert_eq!(refused(optimizer.edit(1, |sgd: &mut Sgd| sgd.momentum = 0.0)), "group 1: Sgd");
            assert_eq!(refused(optimizer.edit(0, |adam: &mut Adam| adam.use_amsgrad = true)), "group 0: Adam");
            // Rate and decay are settings of the group.
            assert_eq!(refused(optimizer.edit(0, |adam: &mut Adam| adam.lr = 9.0.into())), "group 0: Adam.lr");
            let decay = optimizer.edit(0, |adam: &mut Adam| adam.weight_decay = 9.0);
            assert_eq!(refused(decay), "group 0: Adam.weight_decay");
        });
        assert_same(&undisturbed, &disturbed.run("disturbed"));
    }

    /// An edit after which what varies with the updates could not be, nor a step.
    fn edits_that_hinder_what_varies(target) {
        let weight = || ParamGroup::new([Parameter::new("w", [3])]);
        let sgd = Sgd { lr: 0.1.into(), momentum: 0.9, ..Sgd::default() };
        let group = weight().vary(|sgd: &mut Sgd, update| (sgd.momentum, sgd.dampening) = (0.9 - 0.1 * update as f64, 0.0));
        let mut optimizer = sgd.groups([group]).build(target).unwrap();
        let (mut w, g) = ([1.0_f32; 3], [1.0_f32; 3]);
        let name = refused(optimizer.edit(0, |sgd: &mut Sgd| sgd.dampening = 0.5));
        assert_eq!(name, "group 0: vary");
        assert!(optimizer.step(&mut [(&mut w).into()], &[(&g).into()]).unwrap().applied());

        // Nor does a load bring it about.
        let damped = Sgd { lr: 0.1.into(), momentum: 0.9, dampening: 0.5, ..Sgd::default() };
        let mut saved = damped.groups([weight()]).build(target).unwrap();
        let keep = LoadOptions { hyper: Hyper::KeepSaved, ..LoadOptions::default() };
        let error = optimizer.load_state(&mut saved.state().unwrap(), &keep).unwrap_err();
        assert!(error.to_string().contains("group 0: vary"), "{error}");
        assert!(optimizer.step(&mut [(&mut w).into()], &[(&g).into()]).unwrap().applied());
    }

    /// What a group changes of the optimizer's rule is the group's.
    fn origins_of_hyper_parameters(target) {
        let adam = Adam { weight_decay: 0.01, ..Adam::new(0.1) };
        let names = ["a", "b", "c", "d"];
        let of = |name: &str| ParamGroup::new([Parameter::new(name, [3])]);
        let groups = [
            of("a"),
            of("b").hyper(|adam: &mut Adam| adam.beta2 = 0.9),
            of("c").hyper(|adam: &mut Adam| (adam.lr, adam.weight_decay) = (0.5.into(), 0.3)),
            of("d").vary(|adam: &mut Adam, _| adam.beta1 = 0.5),
        ];
        let optimizer = adam.groups(groups).build(target).unwrap();
        let origins = names.map(|name| {
            let explanation = optimizer.explain(name).unwrap();
            (explanation.rule.1, explanation.lr.1, explanation.weight_decay.1)
        });
        let (own, all) = (Origin::Group, Origin::Optimizer);
        assert_eq!(origins, [(all, all, all), (own, all, all), (own, own, own), (own, all, all)]);
    }

    /// A rate that follows a metric is a number until it falls: AdaFactor scales it by the parameter.
    fn a_plateau_is_scaled_as_a_number(target) {
        let moved = |lr: Rate| {
            let mut optimizer = AdaFactor::with_lr(lr).params([Parameter::new("w", [2, 2])]).build(target).unwrap();
            let mut w = [10.0_f32; 4];
            assert!(optimizer.step(&mut [(&mut w).into()], &[(&[1.0_f32; 4]).into()]).unwrap().applied());
            w
        };
        let number = moved(0.1.into());
        assert_eq!(number, moved(ReduceOnPlateau::new(0.1).unwrap().into()));
        assert_ne!(number, moved([0.1, 0.1].into()));
    }

    /// LARS keeps the kernel that it was built around.
    fn inner_rules(target) {
        let problem = Problem::shaped(&SHAPES, 3, 8);
        let lars = |inner: Rule| Lars::new(inner);
        let adam = || Rule::from(Adam::new(0.1));
        let builder = || lars(adam()).params(&problem.parameters);
        let undisturbed = train(builder(), target, &problem, |_, _| ()).run("undisturbed");
        let disturbed = train(builder(), target, &problem, |optimizer, _| {
            // One with as many slots would read the other's numbers.
            let other = optimizer.edit(0, |lars: &mut Lars| *lars.inner = NAdam::new(0.1).into());
            assert_eq!(refused(other), "the optimizer: Lars");
        });
        assert_same(&undisturbed, &disturbed.run("disturbed"));
        let later = move |lars: &mut Lars, update: u64| {
            if update > 0 {
                *lars.inner = adam();
            }
        };
        let group = ParamGroup::new(&problem.parameters).vary(later);
        let mut varied = start(lars(Momentum::new(0.1, 0.9).into()).groups([group]), target, &problem);
        assert!(varied.step(&gradients(&problem, 0)).applied(), "as it was built");
        assert_eq!(refused(varied.try_step(&gradients(&problem, 1))), "group 0: vary");
    }

    /// A rule that begins like its other updates does not become one that begins otherwise.
    fn beginnings(target) {
        let problem = Problem::shaped(&SHAPES, 3, 8);
        let sgd = Sgd { momentum: 0.5, ..Sgd::new(0.1) };
        for (dampening, later, is_taken) in [(0.5, 0.25, true), (0.0, 0.25, false), (0.5, 0.0, false)] {
            let later = move |sgd: &mut Sgd, update: u64| sgd.dampening = if update > 0 { later } else { dampening };
            let group = ParamGroup::new(&problem.parameters).vary(later);
            let mut varied = start(Sgd { dampening, ..sgd.clone() }.groups([group]), target, &problem);
            assert!(varied.step(&gradients(&problem, 0)).applied(), "as it was built");
            match varied.try_step(&gradients(&problem, 1)) {
                Ok(report) => assert!(is_taken && report.applied(), "{dampening}"),
                error => assert_eq!((refused(error), is_taken), ("group 0: vary".into(), false), "{dampening}"),
            }
        }
    }

    /// A rate that a rule makes itself is told, scaled, and given up for one of the caller's.
    fn rates_of_the_rules_own(target) {
        let problem = Problem::shaped(&SHAPES, 2, 9);
        let relative = || AdaFactor::default().params(&problem.parameters);
        let still = train(relative().lr_scale(|_| 0.0), target, &problem, |_, _| ());
        assert_eq!(still.values(), problem.start, "a scale of 0");
        let mut training = start(relative().lr_scale(|_| 0.5), target, &problem);
        assert_eq!(training.optimizer.lr(0), Ok(0.01));
        let name = problem.parameters[0].name();
        assert_eq!(training.optimizer.explain(name).unwrap().next_lr, Some(0.005));
        let report = training.try_step(&gradients(&problem, 0)).unwrap();
        assert_eq!(*report.rates, [0.01]);

        training.optimizer.edit(0, |rule: &mut AdaFactor| {
            (rule.lr, rule.relative_step) = (Some(0.25.into()), false);
        }).unwrap();
        assert_eq!(*training.try_step(&gradients(&problem, 1)).unwrap().rates, [0.25]);
    }

    /// A group added after two updates is one that was there from the start, without gradients until then, for every rule and with
    /// all that an optimizer may have.
    fn added_groups(target) {
        let mut problem = Problem::shaped(&SHAPES, 5, 6);
        problem.parameters = (problem.parameters.iter().enumerate())
            .map(|(index, parameter)| parameter.clone().with_dtype([DType::F32, DType::Bf16][index % 2]))
            .collect();
        let scale = DynamicLossScale { init_loss_scale: 8.0, scale_window: 2, ..DynamicLossScale::default() };
        for (index, rule) in Rule::all().into_iter().enumerate() {
            let [a, mut b] = groups(&problem);
            b.weight_decay = None;
            let builder = || {
                let master = [Master::F32, Master::Split, Master::Stochastic, Master::None][index % 4];
                let state = kept(&rule, [StateDType::F32, StateDType::Bf16, StateDType::Block8][index % 3]);
                let builder = Builder::new(rule.clone()).loss_scale(scale).ema(Ema { decay: 0.9, warmup: true });
                let scales = |p: &Parameter| if p.name() == "w3" { 0.5 } else { 1.0 };
                let builder = builder.weight_decay(0.05).master(master).state_dtype(state).seed(3).lr_scale(scales);
                builder.decay_filter(|p| p.name() != "w2")
            };
            let mut added = start(builder().groups([a.clone()]), target, &problem);
            let mut there = start(builder().groups([a.clone(), b.clone()]), target, &problem);
            for step in 0..problem.steps() {
                let mut grads = gradients(&problem, step);
                if step < 2 {
                    assert!(added.step(&grads[..2]).applied(), "{rule:?}");
                    grads[2..].fill(None);
                } else {
                    if step == 2 {
                        added.optimizer.add_group(b.clone()).unwrap();
                        let new = problem.parameters.iter().zip(&problem.start).skip(2);
                        added.p.extend(new.map(|(parameter, values)| Numbers::new(parameter.dtype(), values)));
                    }
                    assert!(added.step(&grads).applied(), "{rule:?}");
                }
                assert!(there.step(&grads).applied(), "{rule:?}");
            }
            assert_same(&there.run("there"), &added.run("added"));
            assert_eq!(there.optimizer.memory(), added.optimizer.memory(), "{rule:?}");
            assert_eq!(there.optimizer.loss_scale(), added.optimizer.loss_scale(), "{rule:?}");
            for parameter in &problem.parameters {
                let [a, b] = [&there, &added].map(|training| training.optimizer.average(parameter.name()).unwrap());
                assert_eq!(a, b, "{rule:?}: the average of {}", parameter.name());
                let explain = |training: &Training| {
                    let explained = training.optimizer.explain(parameter.name()).unwrap();
                    (explained.decays, explained.lr_scale.to_bits(), explained.group, explained.state)
                };
                assert_eq!(explain(&there), explain(&added), "{rule:?}");
            }
        }
    }

    /// What is no group that could be added, or not now; the optimizer goes on as if it had not been tried.
    fn refused_groups(target) {
        let problem = Problem::shaped(&SHAPES, 2, 7);
        let builder = || Adam::default().groups(groups(&problem)).ema(0.9);
        let undisturbed = train(builder(), target, &problem, |_, _| ()).run("undisturbed");
        let new = || ParamGroup::new([Parameter::new("new", [2])]);
        let mut disturbed = start(builder(), target, &problem);
        for step in 0..2 {
            let optimizer = &mut disturbed.optimizer;
            let twice = |name: &str| Err(Error::DuplicateParameter { name: name.into() });
            assert_eq!(optimizer.add_group(ParamGroup::new([Parameter::new("w1", [7])])), twice("w1"));
            let pair = [Parameter::new("new", [2]), Parameter::new("new", [3])];
            assert_eq!(optimizer.add_group(ParamGroup::new(pair)), twice("new"));
            assert_eq!(refused(optimizer.add_group(new().lr(-1.0))), "group 2: lr");
            assert_eq!(refused(optimizer.add_group(new().name("head").max_norm(1.0))), "group 2 (head): max_norm");
            let empty = optimizer.add_group(ParamGroup::default());
            assert_eq!(empty, Err(Error::NoParameters { place: "group 2".into() }));
            let selected = optimizer.add_group(ParamGroup::matching(Select::rest()));
            assert!(matches!(selected, Err(Error::State { .. })), "{selected:?}");
            optimizer.accumulate(&[Grad::None; 4], 1.0).unwrap();
            assert!(matches!(optimizer.add_group(new()), Err(Error::State { .. })), "with accumulated gradients");
            optimizer.discard_accumulated();
            assert!(disturbed.step(&gradients(&problem, step)).applied(), "step {step}");
            disturbed.with(Optimizer::swap_ema_in).unwrap();
            assert!(matches!(disturbed.optimizer.add_group(new()), Err(Error::State { .. })), "with averages");
            disturbed.with(Optimizer::swap_ema_out).unwrap();
        }
        assert_same(&undisturbed, &disturbed.run("disturbed"));
    }

    /// A frozen parameter is one without a gradient, whatever its gradient is: for itself, its state and every norm.
    fn freezing(target) {
        let problem = Problem::shaped(&SHAPES, 4, 8);
        for rule in Rule::all() {
            let builder = || Builder::new(rule.clone()).groups(groups(&problem)).clip_norm(0.5);
            let (mut frozen, mut missing) = (start(builder(), target, &problem), start(builder(), target, &problem));
            for step in 0..4 {
                let mut grads = gradients(&problem, step);
                let nan = vec![f32::NAN; 7];
                if step == 1 {
                    frozen.optimizer.freeze("w1").unwrap();
                    assert_eq!(frozen.optimizer.is_frozen("w1"), Ok(true));
                }
                if step == 3 {
                    frozen.optimizer.unfreeze("w1").unwrap();
                    assert_eq!(frozen.optimizer.is_frozen("w1"), Ok(false));
                }
                let before = frozen.values()[1].clone();
                let full = frozen.step(&{
                    let mut grads = grads.clone();
                    if step == 2 {
                        grads[1] = Some(&nan);
                    }
                    grads
                });
                assert_eq!(frozen.values()[1] == before, (1..3).contains(&step), "{rule:?}, step {step}");
                if (1..3).contains(&step) {
                    grads[1] = None;
                }
                assert_eq!(full, missing.step(&grads), "{rule:?}, step {step}");
                assert!(full.applied(), "{rule:?}, step {step}");
            }
            assert_same(&missing.run("missing"), &frozen.run("frozen"));
        }
        let mut optimizer = Adam::default().params(&problem.parameters).build(target).unwrap();
        for result in [optimizer.freeze("w9"), optimizer.unfreeze("w9"), optimizer.is_frozen("w9").map(drop)] {
            assert!(matches!(&result, Err(Error::Unknown { what: "parameter", name, .. }) if name == "w9"), "{result:?}");
        }
    }

    /// Rates that follow a metric fall in every group that has one.
    fn plateaus(target) {
        let problem = Problem::shaped(&SHAPES, 3, 9);
        let plateau = |lr| ReduceOnPlateau::new(lr).unwrap().factor(0.5).unwrap().patience(1);
        let [a, b] = groups(&problem);
        let groups = [a.lr(plateau(0.5)), b.lr(0.25)];
        let mut training = start(Momentum::new(0.1, 0.9).groups(groups), target, &problem);
        for (step, rates) in [[0.5, 0.25], [0.5, 0.25], [0.25, 0.25]].into_iter().enumerate() {
            assert_eq!(*training.step(&gradients(&problem, step)).rates, rates, "step {step}");
            // The first metric is the best; then patience lasts for one more.
            let fell: Vec<bool> =
                (0..[1, 2, 1][step]).map(|_| training.optimizer.observe(1.0).unwrap()).collect();
            assert_eq!(fell, [vec![false], vec![false, true], vec![false]][step], "step {step}");
        }
        assert!(training.optimizer.observe(f64::NAN).is_ok_and(|fell| fell), "no number is no progress");
    }

    /// What an optimizer will take is what it takes, by hand: bytes for slots, masters and averages.
    fn memory(target) {
        let parameters = [
            Parameter::new("a", [10, 30]),
            Parameter::new("b", [600]).with_dtype(DType::Bf16),
            Parameter::new("c", [100]).with_dtype(DType::F16),
        ];
        let bytes = |builder: Builder| {
            let estimate = builder.estimate().unwrap();
            let built = builder.build(target).unwrap();
            assert_eq!(estimate, built.memory(), "estimated and taken");
            (estimate.groups.iter().map(|group| group.bytes).collect::<Vec<_>>(), estimate.bytes())
        };
        let adam = || AdamW::default().params(&parameters);
        // Two moments of 1000 elements, and masters of the 700 in 16 bits.
        assert_eq!(bytes(adam()), (vec![2 * 4000 + 4 * 700], 10_800));
        assert_eq!(bytes(adam().master(Master::None)).1, 8000);
        assert_eq!(bytes(adam().master(Master::Stochastic)).1, 8000);
        assert_eq!(bytes(adam().state_dtype(StateDType::Bf16)).1, 2 * 2000 + 2800);
        // A scale for every 256 elements begun: 2, 3 and 1.
        assert_eq!(bytes(adam().state_dtype(StateDType::Block8)).1, 2 * (1000 + 4 * 6) + 2800);
        assert_eq!(bytes(adam().ema(0.99)).1, 10_800 + 4000);
        assert_eq!(bytes(Sgd::default().params(&parameters).master(Master::None)).1, 0);
        let groups = || {
            let group = |name: &str| ParamGroup::matching(Select::name(name)).name(name);
            [
                group("a").rule(Momentum::new(0.1, 0.9)).state_dtype(StateDType::Block8),
                group("b").master(Master::Split),
                group("c").rule(Sgd::default()),
            ]
        };
        assert_eq!(bytes(adam().groups(groups())), (vec![300 + 2 * 4, 2 * 2400 + 2 * 600, 400], 6708));
        // AdaFactor: a number for each row and column of a matrix, one for each element of a vector.
        let factored = AdaFactor { beta1: 0.0, ..AdaFactor::default() };
        let slots = |compression| {
            let factored = AdaFactor { compression, ..factored.clone() };
            bytes(factored.params(&parameters[..1])).1
        };
        assert_eq!((slots(false), slots(true)), (4 * 40, 2 * 40));
    }
}

/// Nothing is allocated for an estimate, and all is checked.
#[test]
fn estimates() {
    let huge = Adam::default().params([Parameter::new("huge", [1_usize << 50])]);
    let estimate = huge.estimate().unwrap();
    assert_eq!(estimate.bytes(), 8 << 50);
    assert_eq!(refused(huge.weight_decay(-1.0).estimate()), "adam.weight_decay");
    assert!(matches!(Adam::default().params([] as [Parameter; 0]).estimate(), Err(Error::NoParameters { .. })), "none");

    let parameters = [Parameter::new("w", [10, 10]), Parameter::new("bias", [10])];
    let groups = [
        ParamGroup::matching(Select::name("bias")).name("biases").rule(Momentum::new(0.1, 0.9)),
        ParamGroup::matching(Select::rest()),
    ];
    let estimate: Estimate = Adam::default().params(parameters).groups(groups).estimate().unwrap();
    let table = "\
group            parameters     elements bytes of state
group 0 (biases)          1           10             40
group 1                   1          100            800
all                                                 840";
    assert_eq!(estimate.to_string(), table);
}

/// An optimizer of two groups, to be explained.
fn explained(target: Target) -> Optimizer {
    let parameters = [
        Parameter::new("layers.0.weight", [4, 16]).with_dtype(DType::Bf16),
        Parameter::new("layers.0.bias", [4]),
        Parameter::new("head", [300]),
    ];
    let groups = [
        ParamGroup::matching(Select::name("head")).name("head").rule(Lion::new([0.5, 0.25])).weight_decay(0.0),
        ParamGroup::matching(Select::rest()).grad_centralization(true).hyper(|m: &mut Momentum| m.momentum = 0.5),
    ];
    let builder = Momentum::new(0.1, 0.9).params(parameters).groups(groups).clip_norm_per_group(2.0);
    let builder = builder.weight_decay(0.125).no_decay_1d().layer_decay(0.5).state_dtype(StateDType::Block8);
    builder.ema(0.5).build(target).unwrap()
}

on_every_backend! {
    /// Every field of an explanation.
    fn explanations(target) {
        let mut optimizer = explained(target);
        let weight = optimizer.explain("layers.0.weight").unwrap();
        assert_eq!((&*weight.name, &*weight.shape, weight.place), ("layers.0.weight", &[4, 16][..], 0));
        assert_eq!((&*weight.group, weight.rule.1, weight.lr.1), ("group 1", Origin::Group, Origin::Optimizer));
        assert!(matches!(&weight.rule.0, Rule::Momentum(momentum) if momentum.momentum.to_bits() == 0.5_f64.to_bits()), "{:?}", weight.rule);
        assert_eq!((weight.lr_scale, weight.next_lr, weight.decays), (0.5, Some(0.05), true));
        assert_eq!(weight.weight_decay.1, Origin::Optimizer);
        assert_eq!(weight.centralized, (true, "on", Origin::Group));
        assert_eq!((weight.max_norm, weight.frozen), (Some(2.0), false));
        let state = |arrays: &[(&str, Element, usize)]| -> Vec<(String, Element, usize)> {
            arrays.iter().map(|(name, element, len)| ((*name).to_owned(), *element, *len)).collect()
        };
        let (f32s, codes) = (Element::F32, Element::U8);
        let arrays = [("moments", codes, 64), ("moments (scales)", f32s, 1), ("master", f32s, 64), ("average", f32s, 64)];
        assert_eq!(weight.state, state(&arrays));
        let bias = optimizer.explain("layers.0.bias").unwrap();
        assert_eq!((bias.place, bias.decays, bias.centralized), (1, false, (false, "on", Origin::Group)));

        let head = optimizer.explain("head").unwrap();
        assert_eq!((&*head.group, head.rule.1, head.lr.1), ("group 0 (head)", Origin::Group, Origin::Group));
        assert_eq!((head.lr_scale, head.next_lr, head.decays), (1.0, Some(0.5), false));
        assert_eq!((head.weight_decay.1, head.centralized), (Origin::Group, (false, "off", Origin::Default)));

        optimizer.set_lr(1, 0.5).unwrap();
        optimizer.set_weight_decay(1, 0.25).unwrap();
        optimizer.set_grad_centralization(1, false).unwrap();
        optimizer.edit(1, |momentum: &mut Momentum| momentum.momentum = 0.25).unwrap();
        optimizer.freeze("layers.0.bias").unwrap();
        let bias = optimizer.explain("layers.0.bias").unwrap();
        let changed = Origin::Changed;
        assert_eq!([bias.rule.1, bias.lr.1, bias.weight_decay.1, bias.centralized.2], [changed; 4]);
        assert_eq!((bias.next_lr, bias.frozen, bias.centralized.0), (Some(0.25), true, false));
        assert!(matches!(optimizer.explain("w"), Err(Error::Unknown { what: "parameter", .. })), "no such parameter");
        assert_eq!(optimizer.group_named("head"), Ok(0));
        assert!(matches!(optimizer.group_named("tail"), Err(Error::Unknown { what: "group", .. })), "no such group");
    }

    /// What is printed.
    fn tables(target) {
        let mut optimizer = explained(target);
        let explanation = "\
layers.0.weight [4, 16], parameter 0, group 1
  rule            Momentum(Momentum { lr: 0.1, momentum: 0.5, use_nesterov: false, weight_decay: 0.0 }) (the group's)
  rate            0.1 (the optimizer's), times 0.5; 0.05 at the next update
  weight decay    0.125 (the optimizer's)
  centralization  on (the group's); applies here
  largest norm    2
  state           moments: 64 of U8, moments (scales): 1 of F32, master: 64 of F32, average: 64 of F32";
        assert_eq!(optimizer.explain("layers.0.weight").unwrap().to_string(), explanation);
        optimizer.freeze("layers.0.bias").unwrap();
        optimizer.set_lr(1, 0.25).unwrap();
        let explanation = "\
layers.0.bias [4], parameter 1, group 1, frozen
  rule            Momentum(Momentum { lr: 0.1, momentum: 0.5, use_nesterov: false, weight_decay: 0.0 }) (the group's)
  rate            0.25 (changed since), times 0.5; 0.125 at the next update
  weight decay    0.125 (the optimizer's); not for this parameter, by its name or a filter
  centralization  on (the group's); does not apply here
  largest norm    2
  state           moments: 4 of U8, moments (scales): 1 of F32, average: 4 of F32";
        assert_eq!(optimizer.explain("layers.0.bias").unwrap().to_string(), explanation);
        let head = optimizer.explain("head").unwrap().to_string();
        assert!(head.contains("rate            list of 2 (the group's); 0.5 at the next update"), "{head}");

        let mut training = Training { optimizer, p: vec![
            Numbers::Bf16(vec![bf16::ONE; 64]), Numbers::F32(vec![1.0; 4]), Numbers::F32(vec![1.0; 300]),
        ] };
        for _ in 0..2 {
            assert!(training.step(&[Grad::F32(&[1.0; 64]), Grad::None, Grad::F32(&[1.0; 300])]).applied(), "a step");
        }
        let optimizer = training.optimizer;
        let head = optimizer.explain("head").unwrap();
        assert_eq!(head.next_lr, None, "the list is at its end");
        assert!(head.to_string().contains("list of 2 (the group's); none at the next update"), "{head}");
        let table = format!("\
momentum on {} after 2 updates
group           rule      parameters  elements  rate  decay  centralized  state
group 0 (head)  lion      1           300       none  0      off          1508 bytes
group 1         momentum  2           68        0.25  0.125  on           604 bytes", optimizer.backend().describe());
        assert_eq!(optimizer.to_string(), table);

        // A rule that makes its own rate, as it is varied.
        let weight = [Parameter::new("w", [4, 3])];
        let group = ParamGroup::new(&weight).vary(|rule: &mut AdaFactor, _| rule.warmup_init = true);
        let optimizer = Builder::new(AdaFactor::default()).groups([group]).build(target).unwrap();
        let shown = format!(" {} ", optimizer.lr(0).unwrap());
        assert!(optimizer.to_string().contains(&shown), "no{shown}in {optimizer}");
        let plain = Builder::new(AdaFactor::default()).params(&weight).build(target).unwrap();
        assert!(!plain.to_string().contains(&shown), "{plain}");
    }
}

/// Changes wait for steps that are pending, whose reports still come.
#[test]
fn changes_wait_for_pending_steps() {
    let problem = Problem::shaped(&SHAPES, 6, 10);
    let train = |late: usize| {
        let builder = Sgd { momentum: 0.9, ..Sgd::default() }.groups(groups(&problem)).clip_norm(0.5);
        let mut optimizer = builder.build(Naive { late }).unwrap();
        let mut p = problem.start.clone();
        let mut pending = 0;
        for (step, gradients) in problem.gradients.iter().enumerate() {
            match step {
                2 => optimizer.set_lr(0, 0.5).unwrap(),
                3 => optimizer.freeze("w1").unwrap(),
                4 => optimizer.edit(1, |sgd: &mut Sgd| sgd.momentum = 0.5).unwrap(),
                _ => (),
            }
            let grads: Vec<Grad<'_>> = gradients.iter().map(|g| g.as_ref().into()).collect();
            let report = optimizer.step(&mut p.iter_mut().map(Into::into).collect::<Vec<_>>(), &grads).unwrap();
            pending += usize::from(report.outcome == Outcome::Pending);
        }
        let mut rates = Vec::new();
        while let Some(report) = optimizer.wait_report().unwrap() {
            assert!(report.applied(), "{report:?}");
            rates.push((report.step, report.rates[0]));
        }
        (Run::of(&optimizer, &p).unwrap().by(&format!("{late} late")), pending, rates)
    };
    let (at_once, pending, reports) = train(0);
    assert_eq!((pending, reports), (0, Vec::new()), "nothing is ever pending");
    let (late, pending, reports) = train(3);
    assert_eq!(pending, 6, "every step was pending");
    assert_eq!(reports, [(1, 0.01), (2, 0.01), (3, 0.5), (4, 0.5), (5, 0.5), (6, 0.5)]);
    assert_same(&at_once, &late);
}

/// A rate is what the group's is, not the config's.
#[test]
fn rates_of_groups() {
    let optimizer = explained(Target::ALL[0]);
    assert!(matches!(optimizer.groups()[0].lr(), Rate::List(list) if **list == [0.5, 0.25]), "the list");
    assert_eq!(optimizer.groups()[0].name(), Some("head"));
    assert_eq!((optimizer.groups()[1].name(), optimizer.groups()[1].max_norm()), (None, Some(2.0)));
}

/// Momentum as a rule of the user's own, with what it could change beside its numbers.
#[derive(Debug, Clone)]
struct Own {
    name: &'static str,
    lr: Rate,
    beta: f64,
    init: f32,
    names: &'static [&'static str],
    decay: Decay,
    wgsl: &'static str,
}

/// One with this hyper-parameter.
fn own(lr: Rate, beta: f64) -> Own {
    let wgsl = "struct Step { lr: f32, beta: f32, pad0: f32, pad1: f32 }
        fn update(s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>) {
            *m = s.beta * *m + g;
            *p = *p - s.lr * *m;
        }";
    Own { name: "own", lr, beta, init: 0.0, names: &["lr", "beta", "pad0", "pad1"], decay: Decay::L2, wgsl }
}

impl UpdateRule for Own {
    fn name(&self) -> &'static str {
        self.name
    }
    fn lr(&self) -> &Rate {
        &self.lr
    }
    fn weight_decay(&self) -> f64 {
        0.0
    }
    fn validate(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.beta) {
            return Ok(());
        }
        Err(Error::HyperParameter { name: "own.beta".into(), expected: "in [0, 1)", got: self.beta.to_string() })
    }
    fn slots(&self) -> Vec<Slot> {
        vec![Slot::narrow("moments", self.init, Code8::Signed)]
    }
    #[allow(clippy::cast_possible_truncation, reason = "kernels compute in f32")]
    fn scalars(&self, at: &At) -> StepScalars {
        [at.lr as f32, self.beta as f32, 0.0, 0.0].into()
    }
    fn scalar_names(&self) -> &'static [&'static str] {
        self.names
    }
    fn decay(&self) -> Decay {
        self.decay
    }
}

impl CustomRule for Own {
    fn update(&self, step: &StepScalars, p: &mut [f32], g: &[f32], slots: &mut [&mut [f32]]) {
        let ([lr, beta, ..], [m]) = (step.floats(), slots) else { panic!("{step:?}") };
        for ((p, g), m) in p.iter_mut().zip(g).zip(m.iter_mut()) {
            *m = beta * *m + g;
            *p -= lr * *m;
        }
    }
    fn wgsl(&self) -> &str {
        self.wgsl
    }
}

on_every_backend! {
    /// A rule of the user's own takes other numbers for a group, with every update and between steps, as the one of the library that
    /// it imitates. All numbers are exact, so that a device may contract what it likes.
    fn rules_of_ones_own(target) {
        let factor = |update: u64| if update < 2 { 0.5 } else { 0.25 };
        let parameters = ["kept", "set", "varied"].map(|name| Parameter::new(name, [300]));
        let start: Vec<Vec<f32>> = vec![(0_u16..300).map(f32::from).collect(); 3];
        let gradients: Vec<Vec<f32>> = (0..3_u16).map(|seed| (0_u16..300).map(|i| f32::from((i * 7 + seed) % 16)).collect()).collect();
        let train = |rule: Rule, [kept, set, varied]: [ParamGroup; 3], edit: &dyn Fn(&mut Optimizer, f64) -> Result<()>| {
            let mut training = Training::new(Builder::new(rule).groups([kept, set, varied]), target, &start).unwrap();
            for step in 0..4 {
                if step == 2 {
                    edit(&mut training.optimizer, 0.75).unwrap();
                }
                let grads: Vec<Grad<'_>> = gradients.iter().map(Into::into).collect();
                assert!(training.step(&grads).applied(), "a step");
            }
            training
        };
        let groups = || parameters.each_ref().map(|parameter| ParamGroup::new([parameter]));
        let lr = || Rate::from(Linear::new(0.5, 0.25, 2).unwrap());
        let [kept, set, varied] = groups();
        let by_library = train(
            Momentum { lr: lr(), ..Momentum::new(0.1, 0.5) }.into(),
            [kept, set.hyper(|momentum: &mut Momentum| momentum.momentum = 0.25), varied.vary(move |momentum: &mut Momentum, update| momentum.momentum = factor(update))],
            &|optimizer, beta| optimizer.edit(0, |momentum: &mut Momentum| momentum.momentum = beta),
        );
        let [kept, set, varied] = groups();
        let replaced = |rule: &mut Rule, beta| *rule = Rule::custom(own(rule.spec().lr().clone(), beta));
        let mut by_own = train(
            Rule::custom(own(lr(), 0.5)),
            [kept, set.hyper(move |rule: &mut Rule| replaced(rule, 0.25)), varied.vary(move |rule: &mut Rule, update| replaced(rule, factor(update)))],
            &|optimizer, beta| optimizer.edit(0, |rule: &mut Rule| replaced(rule, beta)),
        );
        assert_same(&by_library.run("the library's"), &by_own.run("the user's"));
        let [kept, set, varied] = groups();
        let unchanged = train(Rule::custom(own(lr(), 0.5)), [kept, set, varied], &|_, _| Ok(()));
        for (changed, unchanged) in by_own.values().iter().zip(unchanged.values()) {
            assert_ne!(*changed, unchanged, "what is set, varied or edited matters");
        }

        // What is another rule is refused, and nothing has changed.
        let before = by_own.run("before");
        let good = own(by_own.optimizer.groups()[0].lr().clone(), 0.75);
        let wgsl = Box::leak(good.wgsl.replace("s.beta * *m + g", "g").into_boxed_str());
        for (rule, name) in [
            (Rule::custom(Own { beta: 1.0, ..good.clone() }), "group 0: own.beta"),
            (Rule::custom(Own { lr: 0.5.into(), ..good.clone() }), "group 0: Rule.lr"),
            (Rule::custom(Own { lr: lr(), ..good.clone() }), "group 0: Rule.lr"),
            (Rule::custom(Own { name: "other", ..good.clone() }), "group 0: Rule"),
            (Rule::custom(Own { init: 1.0, ..good.clone() }), "group 0: Rule"),
            (Rule::custom(Own { names: &["lr", "beta", "a", "b"], ..good.clone() }), "group 0: own.scalar_names"),
            (Rule::custom(Own { names: &["lr", "beta"], ..good.clone() }), "group 0: own.scalar_names"),
            (Rule::custom(Own { decay: Decay::Decoupled, ..good.clone() }), "group 0: Rule"),
            (Rule::custom(Own { wgsl, ..good.clone() }), "group 0: Rule"),
            (Momentum { lr: good.lr.clone(), ..Momentum::new(0.1, 0.75) }.into(), "group 0: Rule"),
        ] {
            assert_eq!(refused(by_own.optimizer.edit(0, |own: &mut Rule| *own = rule)), name);
        }
        // Neither is a rule of the library's another of the same kernel, nor one of the user's own in its name.
        let lazy = LazyAdam { lr: 0.1.into(), ..LazyAdam::default() };
        let mut adam = Adam::new(0.1).params(&parameters).build(target).unwrap();
        assert_eq!(refused(adam.edit(0, |rule: &mut Rule| *rule = lazy.into())), "the optimizer: Rule");
        let mut momentum = Momentum::new(0.1, 0.5).params(&parameters).build(target).unwrap();
        let named = Own { name: "momentum", ..own(0.1.into(), 0.5) };
        assert_eq!(refused(momentum.edit(0, |rule: &mut Rule| *rule = Rule::custom(named))), "the optimizer: Rule");
        assert_same(&before, &by_own.run("after"));
        by_own.optimizer.edit(0, |rule: &mut Rule| *rule = Rule::custom(good)).unwrap();
    }

    /// A rule that varies into another one stops the step.
    fn rules_that_vary_too_far(target) {
        let vary = |rule: &mut Rule, update| {
            let own = own(rule.spec().lr().clone(), 0.5);
            *rule = Rule::custom(if update == 1 { Own { init: 1.0, ..own } } else { own });
        };
        let group = ParamGroup::new([Parameter::new("w", [3])]).vary(vary);
        let builder = Builder::new(Rule::custom(own(0.1.into(), 0.5))).groups([group]);
        let mut training = Training::new(builder, target, &[vec![1.0; 3]]).unwrap();
        assert!(training.step(&[&[1.0_f32; 3]]).applied(), "as it was");
        let before = training.run("before");
        assert_eq!(refused(training.try_step(&[&[1.0_f32; 3]])), "group 0: vary");
        assert_same(&before, &training.run("after"));
    }
}
