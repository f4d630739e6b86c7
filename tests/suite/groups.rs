//! Groups: who is in which, what each inherits, and that a group is updated as an optimizer of its own would.

use optim_tests::engine::Numbers;
use optim_tests::{Bound, Naive, Problem, Run, Target, Training, compare, on_every_backend};
use optimizers::core::{Centralization, Origin, Select};
use optimizers::schedule::{Cyclic, Linear, from_fn};
use optimizers::{
    AdaFactor, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Builder, Error, Ftrl, Grad, Lars, Lion, Momentum,
    ParamGroup, Parameter, ProximalAdagrad, Rate, Result, RmsProp, Rule, Schedule, Sgd, StateDType,
};

const STATES: [StateDType; 3] = [StateDType::F32, StateDType::Bf16, StateDType::Block8];

const MODEL: [(&str, &[usize]); 7] = [
    ("embed.weight", &[5, 4]),
    ("layers.0.weight", &[4, 4]),
    ("layers.0.bias", &[4]),
    ("layers.1.weight", &[4, 4]),
    ("layers.1.bias", &[4]),
    ("norm.scale", &[4]),
    ("head.weight", &[3, 4]),
];

fn model() -> [Parameter; 7] {
    MODEL.map(|(name, shape)| Parameter::new(name, shape))
}

/// A problem of the model.
fn problem(steps: usize, seed: u64) -> Problem {
    let mut problem = Problem::shaped(&MODEL.map(|(_, shape)| shape), steps, seed);
    problem.parameters = model().into();
    problem
}

/// Trains a problem with this change before each step.
fn train(builder: Builder, target: Target, problem: &Problem, change: impl Fn(&mut Training, u64)) -> Training {
    let mut training = Training::new(builder, target, &problem.start).unwrap();
    for (update, gradients) in (0..).zip(&problem.gradients) {
        change(&mut training, update);
        let grads: Vec<Option<&Vec<f32>>> = gradients.iter().map(Option::as_ref).collect();
        assert!(training.step(&grads).applied(), "a step is applied");
    }
    training
}

fn trained(builder: Builder, target: Target, problem: &Problem, by: &str) -> Run {
    train(builder, target, problem, |_, _| ()).run(by)
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

/// The group of each parameter of the model.
fn places(groups: impl IntoIterator<Item = ParamGroup>) -> Result<[String; 7]> {
    let optimizer = Adam::default().params(model()).groups(groups).build(Target::ALL[0])?;
    Ok(MODEL.map(|(name, _)| optimizer.explain(name).unwrap().group))
}

/// The numbers of the groups.
#[track_caller]
fn assert_places(groups: impl IntoIterator<Item = ParamGroup>, expected: [usize; 7]) {
    assert_eq!(places(groups).unwrap(), expected.map(|group| format!("group {group}")), "the groups");
}

fn glob(pattern: &str) -> ParamGroup {
    ParamGroup::matching(Select::glob(pattern).unwrap())
}

fn regex(pattern: &str) -> ParamGroup {
    ParamGroup::matching(Select::regex(pattern).unwrap())
}

fn rest() -> ParamGroup {
    ParamGroup::matching(Select::rest())
}

#[test]
fn selection() {
    let name = |name: &str| ParamGroup::matching(Select::name(name));
    assert_places([name("head.weight"), rest()], [1, 1, 1, 1, 1, 1, 0]);
    assert_places([glob("*.bias"), rest()], [1, 1, 0, 1, 0, 1, 1]);
    assert_places([glob("layers.?.weight"), glob("layers.[!1].*"), rest()], [2, 0, 1, 0, 2, 2, 2]);
    assert_places([regex(r"^layers\.\d\."), rest()], [1, 0, 0, 0, 0, 1, 1]);
    assert_places(
        [ParamGroup::matching(Select::by("matrices", |p| p.shape().len() > 1)), rest()],
        [0, 0, 1, 0, 1, 1, 0],
    );
    assert_places([ParamGroup::new(&model()[5..]), rest()], [1, 1, 1, 1, 1, 0, 0]);
    // A glob is of the whole name, a regular expression is found anywhere.
    assert!(matches!(places([glob("layers"), rest()]), Err(Error::NoMatch { .. })), "no name is that");
    assert_places([regex("ayers"), rest()], [1, 0, 0, 0, 0, 1, 1]);
}

#[test]
fn the_first_match_wins() {
    assert_places([glob("layers.*"), glob("*.weight"), rest()], [1, 0, 0, 0, 0, 2, 1]);
    assert_places([glob("*.weight"), glob("layers.*"), rest()], [0, 0, 1, 0, 1, 2, 0]);
    // The rest is what all others leave, wherever it stands.
    assert_places([rest(), glob("layers.*"), glob("*.weight")], [2, 1, 1, 1, 1, 0, 2]);
    // It may be nothing.
    assert_places([glob("*"), rest()], [0; 7]);
}

#[test]
fn groups_are_called_by_name() {
    let places = places([glob("*.bias").name("biases"), rest()]).unwrap();
    assert_eq!(places[2..4], ["group 0 (biases)", "group 1"]);
    let groups = [glob("*.bias").name("biases").lr(-1.0), rest()];
    let error = Adam::default().params(model()).groups(groups).build(Target::ALL[0]).unwrap_err();
    assert!(error.to_string().contains("group 0 (biases): lr"), "{error}");
}

#[test]
fn bad_selections() {
    let all = || model().to_vec();
    let group = |index: usize| format!("group {index}");
    let listed = |names: &[&str]| ParamGroup::new(names.iter().map(|name| Parameter::new(*name, [4])));
    let no_match = |place, pattern: &str| Error::NoMatch { place: group(place), pattern: pattern.into() };
    let twice = |name: &str| Error::DuplicateParameter { name: name.into() };
    let refused: Vec<(Vec<ParamGroup>, Error)> = vec![
        (vec![rest(), glob("*.gamma")], no_match(1, "the glob \"*.gamma\"")),
        (vec![regex("^head$"), rest()], no_match(0, "the regex \"^head$\"")),
        (vec![ParamGroup::matching(Select::name("bias")), rest()], no_match(0, "the name \"bias\"")),
        (vec![ParamGroup::matching(Select::by("cubes", |p| p.shape().len() == 3)), rest()], no_match(0, "\"cubes\"")),
        // All that it matches is taken.
        (vec![glob("*"), glob("*.bias")], no_match(1, "the glob \"*.bias\"")),
        (vec![glob("layers.*")], Error::Unclaimed { name: "embed.weight".into() }),
        (vec![], Error::Unclaimed { name: "embed.weight".into() }),
        (vec![listed(&["norm.scale", "norm.scale"]), rest()], twice("norm.scale")),
        (vec![listed(&["norm.scale"]), listed(&["norm.scale"]), rest()], twice("norm.scale")),
        (vec![glob("norm.*"), listed(&["norm.scale"]), rest()], twice("norm.scale")),
        (vec![ParamGroup::default(), rest()], Error::NoParameters { place: group(0) }),
    ];
    for (groups, expected) in refused {
        assert_eq!(places(groups).unwrap_err(), expected);
    }
    let error = places([listed(&["norm.shift"]), rest()]).unwrap_err();
    assert!(matches!(&error, Error::Unknown { what: "parameter", name, .. } if name == "norm.shift"), "{error:?}");
    assert!(error.to_string().contains("layers.1.bias, norm.scale"), "{error}");
    let error = Adam::default().groups([glob("*")]).build(Target::ALL[0]).unwrap_err();
    assert!(matches!(error, Error::State { .. }) && error.to_string().contains("`params`"), "{error:?}");
    for error in [Select::glob("layers.[").unwrap_err(), Select::regex("layers.(").unwrap_err()] {
        assert!(matches!(error, Error::Pattern { .. }) && error.to_string().contains("layers."), "{error:?}");
    }
    let none = Adam::default().params(&all()[..0]).groups([rest()]).build(Target::ALL[0]).unwrap_err();
    assert_eq!(none, Error::NoParameters { place: "the optimizer".into() });
}

/// Every setting comes from where it is set nearest.
#[test]
fn inheritance() {
    let adam = Adam { weight_decay: 0.5, ..Adam::new(0.1) };
    let own = Lion { weight_decay: 0.25, ..Lion::new(0.2) };
    let build = |groups: Vec<ParamGroup>, decay: Option<f64>| {
        let builder = adam.clone().params(model()).groups(groups);
        let builder = match decay {
            None => builder,
            Some(decay) => builder.weight_decay(decay),
        };
        builder.build(Target::ALL[0]).unwrap()
    };
    let groups = || {
        vec![
            glob("embed.*"),
            glob("layers.0.*").rule(own.clone()),
            glob("layers.1.*").rule(own.clone()).lr(0.3).weight_decay(0.125),
            glob("norm.*").lr(0.4).weight_decay(0.0),
            rest().hyper(|adam: &mut Adam| adam.lr = 0.6.into()),
        ]
    };
    for (decay, expected) in [
        (None, [(0.5, Origin::Optimizer), (0.25, Origin::Group), (0.125, Origin::Group), (0.0, Origin::Group)]),
        (
            Some(0.75),
            [(0.75, Origin::Optimizer), (0.75, Origin::Optimizer), (0.125, Origin::Group), (0.0, Origin::Group)],
        ),
    ] {
        let optimizer = build(groups(), decay);
        let explained = ["embed.weight", "layers.0.bias", "layers.1.bias", "norm.scale"]
            .map(|name| optimizer.explain(name).unwrap());
        let fixed = |rate: &(Rate, Origin)| match rate.0 {
            Rate::Fixed(value) => (value, rate.1),
            ref other => panic!("{other:?}"),
        };
        assert_eq!(explained.each_ref().map(|e| fixed(&e.weight_decay)), expected);
        let (from_optimizer, from_group) = (Origin::Optimizer, Origin::Group);
        let rates = [(0.1, from_optimizer), (0.2, from_group), (0.3, from_group), (0.4, from_group)];
        assert_eq!(explained.each_ref().map(|e| fixed(&e.lr)), rates);
        let rules = explained.each_ref().map(|e| (e.rule.0.spec().name(), e.rule.1));
        let (adam, lion) = (("adam", from_optimizer), ("lion", from_group));
        assert_eq!(rules, [adam, lion, lion, adam]);
        assert_eq!(fixed(&optimizer.explain("head.weight").unwrap().lr).0.to_bits(), 0.6_f64.to_bits());
    }
}

/// A change for another rule, one out of its range, a rate for a rule that makes its own.
#[test]
fn bad_settings() {
    let build = |group: ParamGroup| Adam::default().params(model()).groups([group, rest()]).build(Target::ALL[0]);
    let ada_factor = AdaFactor::default();
    for (group, name) in [
        (glob("*.bias").hyper(|lion: &mut Lion| lion.beta1 = 0.5), "group 0: hyper"),
        (glob("*.bias").vary(|lion: &mut Lion, _| lion.beta1 = 0.5), "group 0: vary"),
        (glob("*.bias").hyper(|adam: &mut Adam| adam.beta1 = 1.5), "group 0: adam.beta1"),
        (glob("*.bias").vary(|adam: &mut Adam, update| adam.beta1 = 1.5 + update as f64), "group 0: adam.beta1"),
        (glob("*.bias").rule(Lion { beta1: 1.5, ..Lion::default() }), "group 0: lion.beta1"),
        (glob("*.bias").rule(Lion::new(-1.0)), "group 0: lion.lr"),
        (glob("*.bias").rule(ada_factor).lr(0.1), "group 0: lr"),
        (glob("*.bias").weight_decay([0.1, -0.1]), "group 0: weight_decay"),
        (glob("*.bias").max_norm(1.0), "group 0: max_norm"),
        (glob("*.bias").rule(Sgd::default()).vary(|sgd: &mut Sgd, _| sgd.momentum = 0.9), "group 0: vary"),
    ] {
        let error = build(group).expect_err(name);
        assert!(matches!(&error, Error::HyperParameter { name: got, .. } if got == name), "{name}: {error:?}");
    }
    assert!(build(glob("*.bias").rule(Lion::default()).hyper(|lion: &mut Lion| lion.beta1 = 0.5)).is_ok(), "its own");
}

/// The scales of layer-wise decay, computed by hand.
#[test]
fn layers() {
    let scales = |builder: Builder| {
        let optimizer = builder.build(Target::ALL[0]).unwrap();
        optimizer.parameters().iter().map(|p| optimizer.explain(p.name()).unwrap().lr_scale).collect::<Vec<_>>()
    };
    let adam = || Adam::new(0.1).params(model());
    assert_eq!(scales(adam().layer_decay(0.5)), [0.125, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]);
    assert_eq!(scales(adam().layer_decay(1.0)), [1.0; 7]);
    // Of a ViT: tokens and position before the blocks, the head behind; gaps count.
    let names = ["cls_token", "blocks.0.attn.2.w", "blocks.2.w", "fc.w"].map(|name| Parameter::new(name, [1]));
    assert_eq!(scales(Adam::new(0.1).params(names).layer_decay(0.5)), [0.0625, 0.125, 0.5, 1.0]);
    let plain = ["a", "b"].map(|name| Parameter::new(name, [1]));
    assert_eq!(scales(Adam::new(0.1).params(plain).layer_decay(0.5)), [1.0, 1.0]);
    let by_name = |p: &Parameter| if p.name().starts_with("layers") { 2.0 } else { 0.0 };
    assert_eq!(scales(adam().lr_scale(by_name)), [0.0, 2.0, 2.0, 2.0, 2.0, 0.0, 0.0]);

    for bad in [0.0, -0.5, 1.5, f64::NAN, f64::INFINITY] {
        let error = adam().layer_decay(bad).build(Target::ALL[0]).unwrap_err();
        assert!(matches!(&error, Error::HyperParameter { name, .. } if name == "layer_decay"), "{bad}: {error:?}");
    }
    let far = ["blocks.0.w", "blocks.4294967295.w"].map(|name| Parameter::new(name, [1]));
    let error = Adam::new(0.1).params(far).layer_decay(0.5).build(Target::ALL[0]).unwrap_err();
    assert!(error.to_string().contains("layer_decay of \"blocks.0.w\""), "{error}");
    for bad in [-0.5, f64::NAN, f64::INFINITY] {
        let error = adam().lr_scale(move |_| bad).build(Target::ALL[0]).unwrap_err();
        assert!(error.to_string().contains("lr_scale of \"embed.weight\""), "{bad}: {error}");
    }
}

/// The only element of a parameter that starts at 1, after a step with a gradient of 0.
fn decayed(builder: Builder, count: usize, target: Target) -> Vec<f32> {
    let mut training = Training::new(builder, target, &vec![vec![1.0]; count]).unwrap();
    let zero = [0.0_f32];
    assert!(training.step(&vec![&zero; count]).applied(), "a step is applied");
    training.values().concat()
}

/// A naive step of plain SGD with rate 0.5, in `f64`.
fn naive_sgd(p: &[f32], g: &[f32], rows: usize, weight_decay: f64, centralized: bool) -> Vec<f64> {
    let mut g: Vec<f64> = p.iter().zip(g).map(|(&p, &g)| f64::from(g) + weight_decay * f64::from(p)).collect();
    if centralized {
        let width = g.len() / rows;
        for row in g.chunks_mut(width) {
            let mean = row.iter().sum::<f64>() / width as f64;
            row.iter_mut().for_each(|g| *g -= mean);
        }
    }
    p.iter().zip(g).map(|(&p, g)| f64::from(p) - 0.5 * g).collect()
}

on_every_backend! {
    /// One optimizer with a group for each rule there is, and an optimizer for each rule: the same bits.
    fn rules_of_groups(target) {
        let rules = Rule::all();
        let shapes: Vec<&[usize]> = rules.iter().map(|_| &[6, 5][..]).collect();
        let problem = Problem::shaped(&shapes, 5, 1).with_gaps(2);
        let group = |index: usize| {
            let parameter = std::slice::from_ref(&problem.parameters[index]);
            ParamGroup::new(parameter).lr(0.01 * (index + 1) as f64).weight_decay(0.02)
        };
        let groups = rules.iter().enumerate().map(|(index, rule)| group(index).rule(rule.clone()));
        let builder = Builder::new(Sgd::default()).groups(groups).loss_scale(3.0);
        let together = trained(builder, target, &problem, "together");
        let mut arrays = 0;
        for (index, rule) in rules.iter().enumerate() {
            let alone = Problem {
                parameters: vec![problem.parameters[index].clone()],
                start: vec![problem.start[index].clone()],
                gradients: problem.gradients.iter().map(|gradients| vec![gradients[index].clone()]).collect(),
            };
            let builder = Builder::new(rule.clone()).groups([group(index)]).loss_scale(3.0);
            let alone = trained(builder, target, &alone, "alone");
            for array in alone.arrays() {
                let same = together.arrays().iter().find(|known| known.name == array.name).expect("an array");
                assert_eq!(same.values, array.values, "{rule:?}: {}", array.name);
                arrays += 1;
            }
        }
        assert_eq!(arrays, together.arrays().len(), "all arrays were compared");
    }

    /// Groups chosen by patterns, of equal settings: the bits of one group, whatever the order of a step.
    fn equal_groups(target) {
        let problem = problem(4, 3).with_gaps(4);
        for rule in Rule::all() {
            let builder = || Builder::new(rule.clone()).params(model()).weight_decay(0.1);
            let one = trained(builder(), target, &problem, "one group");
            let three = || builder().groups([rest(), glob("*.bias"), regex("^layers")]);
            assert_same(&one, &trained(three(), target, &problem, "three groups"));

            let mut reversed = problem.clone();
            reversed.parameters.reverse();
            reversed.start.reverse();
            reversed.gradients.iter_mut().for_each(|gradients| gradients.reverse());
            let ordered = three().order_params(&reversed.parameters);
            let ordered = train(ordered, target, &reversed, |_, _| ());
            assert_eq!(ordered.optimizer.parameters(), reversed.parameters, "the order of a step");
            assert_same(&one, &ordered.run("in another order"));

            let other = builder().groups([rest(), glob("*.bias").lr(0.123)]);
            assert_differ(&one, &trained(other, target, &problem, "another rate"));
        }
    }

    /// A hyper-parameter that follows a cycle is one that is edited by hand before each step; every update starts from the rule as
    /// configured.
    fn varied_hyper_parameters(target) {
        let problem = problem(8, 5);
        let cycle = Cyclic::new(0.85, 0.95, 3, 2).unwrap();
        let base = || Adam::new(0.01).params(model());
        let by_hand = |beta1: &dyn Fn(u64) -> f64| {
            let training = train(base(), target, &problem, |training, update| {
                training.optimizer.edit(0, |adam: &mut Adam| adam.beta1 = beta1(update)).unwrap();
            });
            training.run("edited by hand")
        };
        let varied = base().groups([rest().vary(move |adam: &mut Adam, update| adam.beta1 = cycle.at(update))]);
        let varied = trained(varied, target, &problem, "varied");
        assert_same(&varied, &by_hand(&|update| cycle.at(update)));
        assert_differ(&varied, &trained(base(), target, &problem, "constant"));

        let factor = |update: u64| 0.9 + 0.01 * update as f64;
        let scaled = base().groups([rest().vary(move |adam: &mut Adam, update| adam.beta1 *= factor(update))]);
        assert_same(&trained(scaled, target, &problem, "multiplied"), &by_hand(&|update| 0.9 * factor(update)));
    }

    /// What varies out of its range, or to a rule with other state, is refused at that update, however often it is tried.
    fn varied_out_of_range(target) {
        let problem = problem(3, 6);
        let grads: Vec<Option<&Vec<f32>>> = problem.gradients[2].iter().map(Option::as_ref).collect();
        let late = |update: u64, good: f64, bad: f64| if update < 2 { good } else { bad };
        let beta = move |adam: &mut Adam, update: u64| adam.beta1 = late(update, 0.9, 1.0);
        let momentum = move |sgd: &mut Sgd, update: u64| sgd.momentum = late(update, 0.9, 0.0);
        let sgd = Sgd { momentum: 0.5, ..Sgd::default() };
        for (builder, name) in [
            (Adam::default().params(model()).groups([rest().vary(beta)]), "group 0 at update 2: adam.beta1"),
            (sgd.params(model()).groups([rest().vary(momentum)]), "group 0: vary"),
        ] {
            let mut training = Training::new(builder, target, &problem.start).unwrap();
            for gradients in &problem.gradients[..2] {
                let grads: Vec<Option<&Vec<f32>>> = gradients.iter().map(Option::as_ref).collect();
                assert!(training.step(&grads).applied(), "a step is applied");
            }
            let before = training.run("before");
            for _ in 0..2 {
                let error = training.try_step(&grads).unwrap_err();
                assert!(matches!(&error, Error::HyperParameter { name: got, .. } if got == name), "{error:?}");
                assert_same(&before, &training.run("after a refused step"));
                assert_eq!(training.optimizer.step_count(), 2, "a refused step does not count");
            }
        }
    }

    /// Weight decay as a list or a schedule is the number of each update.
    fn decays_that_move(target) {
        let problem = problem(4, 7);
        let decays = [0.1, 0.0, 0.5, 0.25];
        for rule in Rule::all() {
            let builder = || Builder::new(rule.clone()).params(model());
            let by_hand = train(builder().groups([rest()]), target, &problem, |training, update| {
                training.optimizer.set_weight_decay(0, decays[usize::try_from(update).unwrap()]).unwrap();
            });
            let by_hand = by_hand.run("set by hand");
            let group = builder().groups([rest().weight_decay(decays)]);
            assert_same(&by_hand, &trained(group, target, &problem, "the group's list"));
            let all = builder().groups([rest()]).weight_decay(decays);
            assert_same(&by_hand, &trained(all, target, &problem, "the optimizer's list"));
            assert_differ(&by_hand, &trained(builder().groups([rest()]), target, &problem, "without"));
            let schedule = Linear::new(0.5, 0.0, 2).unwrap();
            let scheduled = builder().groups([rest().weight_decay(schedule)]);
            let listed = builder().groups([rest().weight_decay([0.5, 0.25, 0.0, 0.0])]);
            let scheduled = trained(scheduled, target, &problem, "a schedule");
            assert_same(&scheduled, &trained(listed, target, &problem, "a list"));
        }
    }

    /// A list of decays that ends, and a schedule that falls below 0.
    fn decays_that_end(target) {
        let problem = problem(1, 8);
        let grads: Vec<Option<&Vec<f32>>> = problem.gradients[0].iter().map(Option::as_ref).collect();
        let (what, place) = ("weight decay", "group 0".to_owned());
        let falling = from_fn("falling", |update| if update == 0 { 0.1 } else { -0.1 });
        let never = from_fn("breaking", |update| if update == 0 { 0.1 } else { f64::NAN });
        let train = |decay: Rate| {
            let builder = Sgd::default().params(model()).groups([rest().weight_decay(decay)]);
            let mut training = Training::new(builder, target, &problem.start).unwrap();
            assert!(training.step(&grads).applied(), "the first step");
            let before = training.run("before");
            let error = training.try_step(&grads).unwrap_err();
            assert_same(&before, &training.run("after a refused step"));
            assert_eq!(training.optimizer.step_count(), 1, "a refused step does not count");
            error
        };
        assert_eq!(train([0.1].into()), Error::RateExhausted { what, place: place.clone(), update: 1, len: 1 });
        assert_eq!(train(falling.into()), Error::RateNotFinite { what, place: place.clone(), update: 1, got: -0.1 });
        assert!(matches!(train(never.into()), Error::RateNotFinite { what: "weight decay", got, .. } if got.is_nan()), "NaN");
    }

    /// Which parameters decay: of more than one axis.
    fn no_decay_1d(target) {
        let parameters = [("w", vec![1, 1]), ("cube", vec![1, 1, 1]), ("bias", vec![1]), ("scalar", vec![])];
        let parameters = parameters.map(|(name, shape)| Parameter::new(name, shape));
        let sgd = || Sgd { lr: 0.5.into(), weight_decay: 0.5, ..Sgd::default() }.params(&parameters);
        assert_eq!(decayed(sgd().no_decay_1d(), 4, target), [0.75, 0.75, 1.0, 1.0]);
        assert_eq!(decayed(sgd(), 4, target), [0.75; 4]);
        let grouped = sgd().groups([rest().weight_decay(1.0)]).no_decay_1d();
        assert_eq!(decayed(grouped, 4, target), [0.5, 0.5, 1.0, 1.0]);
    }

    /// The rate of each parameter is that of its group times its own factor.
    fn scaled_rates(target) {
        let sgd = || Sgd { lr: 0.5.into(), ..Sgd::default() }.params(model());
        let start: Vec<Vec<f32>> = model().iter().map(|p| vec![1.0; p.len()]).collect();
        let ones = start.clone();
        for (builder, expected) in [
            (sgd().layer_decay(0.5), [0.9375, 0.875, 0.875, 0.75, 0.75, 0.5, 0.5]),
            (sgd().groups([glob("*.bias").lr(1.0), rest()]).layer_decay(0.5), [0.9375, 0.875, 0.75, 0.75, 0.5, 0.5, 0.5]),
            (sgd().lr_scale(|p| if p.shape().len() > 1 { 0.0 } else { 2.0 }), [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]),
        ] {
            let mut training = Training::new(builder, target, &start).unwrap();
            assert!(training.step(&ones.iter().collect::<Vec<_>>()).applied(), "a step is applied");
            for ((p, expected), parameter) in training.values().iter().zip(expected).zip(model()) {
                assert_eq!(*p, vec![expected; p.len()], "{}", parameter.name());
            }
        }
    }

    /// The mean of the decayed gradient over all axes but the first, of the shapes that the setting says, against a naive step.
    fn centralization(target) {
        let shapes: [&[usize]; 9] =
            [&[4, 16], &[4, 5], &[3, 32, 2], &[2, 3, 16], &[16], &[], &[1, 16], &[70, 3, 3], &[2, 2100]];
        let mut problem = Problem::shaped(&shapes, 1, 9);
        // Means that are far from 0.
        problem.gradients.iter_mut().flatten().flatten().flatten().for_each(|g| *g += 0.75);
        let grads: Vec<Option<&Vec<f32>>> = problem.gradients[0].iter().map(Option::as_ref).collect();
        for decay in [0.0, 0.25] {
            let step = |how: Centralization| {
                let group = ParamGroup::new(&problem.parameters).grad_centralization(how);
                let builder = Sgd { lr: 0.5.into(), ..Sgd::default() }.groups([group]).weight_decay(decay);
                let mut training = Training::new(builder, target, &problem.start).unwrap();
                assert!(training.step(&grads).applied(), "a step is applied");
                training.values()
            };
            let [off, on, mindspore] = [Centralization::Off, Centralization::On, Centralization::MindSpore].map(step);
            for (index, shape) in shapes.iter().enumerate() {
                let by_mindspore = matches!(shape, [_, second, ..] if second % 16 == 0);
                for (got, centralized) in
                    [(&off, false), (&on, shape.len() > 1), (&mindspore, by_mindspore)]
                {
                    let (p, g) = (&problem.start[index], grads[index].expect("a gradient"));
                    let rows = if shape.len() > 1 { shape[0] } else { 1 };
                    let expected = naive_sgd(p, g, rows, decay, centralized);
                    for (got, expected) in got[index].iter().zip(expected) {
                        let near = (f64::from(*got) - expected).abs() <= 1e-6;
                        assert!(near, "{shape:?}, decay {decay}, {centralized}: {got} instead of {expected}");
                    }
                }
                assert_eq!(on[index] == off[index], shape.len() < 2, "{shape:?}");
                let like = if by_mindspore { &on } else { &off };
                assert_eq!(mindspore[index], like[index], "{shape:?}");
            }
        }
    }

    /// Rules that ignore the flag in MindSpore obey it here, but for parity; the others centralize with every setting.
    fn centralization_of_every_rule(target) {
        let mut problem = Problem::shaped(&[&[4, 16]], 2, 10);
        problem.gradients.iter_mut().flatten().flatten().flatten().for_each(|g| *g += 0.75);
        let ignored: [Rule; 3] =
            [AdamOffload::default().into(), AdamWeightDecay::default().into(), AdaFactor::with_lr(0.1).into()];
        let ignored = ignored.map(|rule| rule.spec().name());
        for rule in Rule::all() {
            let run = |how: Centralization, by: &str| {
                let group = ParamGroup::new(&problem.parameters).grad_centralization(how);
                trained(Builder::new(rule.clone()).groups([group]), target, &problem, by)
            };
            let (on, off) = (run(Centralization::On, "on"), run(Centralization::Off, "off"));
            assert_differ(&on, &off);
            let like = if ignored.contains(&rule.spec().name()) { off } else { on };
            assert_same(&like, &run(Centralization::MindSpore, "as in MindSpore"));
        }
        // Around one of them, LARS ignores it too.
        let run = |how: Centralization, by: &str| {
            let group = ParamGroup::new(&problem.parameters).grad_centralization(how);
            trained(Lars::new(AdamWeightDecay::default()).groups([group]), target, &problem, by)
        };
        let off = run(Centralization::Off, "off");
        assert_differ(&run(Centralization::On, "on"), &off);
        assert_same(&off, &run(Centralization::MindSpore, "as in MindSpore"));
    }

    /// Groups of one rule whose slots begin with other numbers, in every format of state; one of a length that fills no word.
    fn initial_state_of_each(target) {
        let groups: [[Rule; 2]; 4] = [
            [Adagrad { accum: 100.0, ..Adagrad::default() }.into(), Adagrad { accum: 1.0, ..Adagrad::default() }.into()],
            [Ftrl { initial_accum: 0.25, ..Ftrl::default() }.into(), Ftrl { initial_accum: 4.0, ..Ftrl::default() }.into()],
            [RmsProp { initial_ms: 0.0, ..RmsProp::default() }.into(), RmsProp { initial_ms: 2.0, ..RmsProp::default() }.into()],
            [
                ProximalAdagrad { accum: 0.5, ..ProximalAdagrad::default() }.into(),
                ProximalAdagrad { accum: 8.0, ..ProximalAdagrad::default() }.into(),
            ],
        ];
        for (rules, state) in groups.iter().flat_map(|rules| STATES.map(|state| (rules, state))) {
            let lens = [300, 5, 257, 1];
            let names = ["a0", "b0", "a1", "b1"];
            let parameter = |nth: usize| Parameter::new(names[nth], [lens[nth]]);
            let group = |nth: usize| ParamGroup::new([parameter(nth), parameter(nth + 2)]).rule(rules[nth].clone());
            let builder = Builder::new(rules[0].clone()).groups([group(0), group(1)]).state_dtype(state);
            let optimizer = match builder.build(target) {
                Err(Error::Unsupported { .. } | Error::State { .. } | Error::HyperParameter { .. }) if state != StateDType::F32 => continue,
                built => built.unwrap(),
            };
            for (nth, name) in names.iter().enumerate() {
                for slot in rules[nth % 2].spec().slots() {
                    let values = optimizer.slot(name, slot.name).unwrap();
                    let near = |x: &f32| (x - slot.init).abs() <= 0.01 * slot.init.abs();
                    assert!(values.len() == lens[nth] && values.iter().all(near), "{name}, {}, {state:?}: {values:?}", slot.name);
                }
            }
        }
    }

    /// A gradient of some rows has no mean over all that a dense one has.
    fn centralization_of_rows(target) {
        let group = ParamGroup::new([Parameter::new("table", [4, 2])]).grad_centralization(true);
        let mut training = Training::new(Momentum::new(0.1, 0.9).groups([group]), target, &[vec![1.0; 8]]).unwrap();
        let error = training.try_step(&[Grad::rows(&[1], &[1.0_f32, 2.0])]).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("\"table\"")), "{error:?}");
        assert_eq!(training.p, [Numbers::F32(vec![1.0; 8])], "nothing has moved");
        assert!(training.step(&[&[1.0_f32; 8]]).applied(), "a dense one is fine");
    }
}

/// A rule of a group has its own slots.
#[test]
fn slots_of_groups() {
    let builder = AdamW::default().params(model()).groups([glob("*.bias").rule(Momentum::new(0.1, 0.9)), rest()]);
    let optimizer = builder.build(Target::ALL[0]).unwrap();
    assert_eq!(optimizer.slot("layers.0.bias", "moments").unwrap(), [0.0; 4]);
    assert_eq!(optimizer.slot("norm.scale", "moment1").unwrap(), [0.0; 4]);
    assert!(matches!(optimizer.slot("norm.scale", "moments"), Err(Error::Unknown { what: "slot", .. })), "AdamW's");
    assert_eq!(optimizer.rule_of("layers.0.bias").unwrap().spec().name(), "momentum");
    assert_eq!(optimizer.rule().spec().name(), "adamw");
    assert_eq!(optimizer.groups().len(), 2);
}

/// A group for a rest that there is not stops no step, whatever its rate or its rule have become.
#[test]
fn groups_of_nothing() {
    let weight = Parameter::new("weight", [2]);
    let nothing = rest().lr([0.5, 0.25]).vary(|adam: &mut Adam, update| {
        if update > 0 {
            adam.beta1 = 2.0;
        }
    });
    let groups = |name: &str| [ParamGroup::matching(Select::name(name)), nothing.clone()];
    let late = Builder::new(Adam::new(0.1)).clip_norm(1.0);
    for (builder, backend) in [(Builder::new(Adam::new(0.1)), Naive::default()), (late, Naive { late: 2 })] {
        let builder = builder.params([&weight]);
        let mut training = Training::new(builder.clone().groups(groups("weight")), backend, &[vec![1.0; 2]]).unwrap();
        let rates: Vec<f64> = (0..4).map(|_| training.step(&[&[1.0_f32; 2]]).rates[1]).collect();
        assert_eq!(rates, [0.5, 0.25, 0.0, 0.0]);
        assert_eq!(training.optimizer.step_count(), 4);
        assert!(matches!(training.optimizer.lr(1), Err(Error::RateExhausted { .. })), "asked for, it says so");
        // A control: with a parameter the group does.
        let taken = builder
            .groups([ParamGroup::matching(Select::name("none")), nothing.clone()])
            .params([&weight, &Parameter::new("none", [1])]);
        let mut training = Training::new(taken, backend, &[vec![1.0; 2], vec![1.0; 1]]).unwrap();
        let mut step = || training.try_step(&[&[1.0_f32; 2][..], &[1.0_f32][..]]);
        assert!(step().unwrap().applied(), "as configured");
        assert!(
            matches!(step(), Err(Error::HyperParameter { name, .. }) if name.contains("adam.beta1")),
            "as it varies"
        );
    }
}
