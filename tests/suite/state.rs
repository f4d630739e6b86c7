//! State from one optimizer to another: what must fit, what is kept, what is converted.

use optim_tests::engine::{Formats, Numbers};
use optim_tests::resume::Everything;
use optim_tests::{Naive, Resumable, Target, on_every_backend};
use optimizers::core::backend::Element;
use optimizers::core::format::{Master, StateDType, bf16_to_f32, join};
use optimizers::core::state::{StateArray, VERSION};
use optimizers::core::{DynamicLossScale, Ema};
use optimizers::schedule::{Constant, ReduceOnPlateau, from_fn};
use optimizers::{
    Adagrad, Adam, AdamW, Asgd, Builder, DType, Error, Grad, Hyper, Lion, LoadOptions, LoadReport, Momentum, Optimizer,
    ParamGroup, Parameter, RAdam, Result, Rule, Sgd, StateMeta, StateSource,
};

const STRICT: LoadOptions =
    LoadOptions { allow_missing: false, ignore_unexpected: false, hyper: Hyper::UseNew, convert: false };

/// A state in memory, to be changed, which can fail.
struct Copy {
    meta: StateMeta,
    arrays: Vec<StateArray>,
    data: Vec<Vec<u8>>,
    /// The reads that succeed.
    reads: usize,
}

impl Copy {
    fn of(optimizer: &mut Optimizer) -> Self {
        let state = optimizer.state().unwrap();
        let (meta, arrays) = (state.meta().clone(), state.arrays().to_vec());
        let read = |(index, array): (usize, &StateArray)| {
            let mut bytes = vec![0; array.bytes().unwrap()];
            state.read(index, 0, &mut bytes).unwrap();
            bytes
        };
        let data = arrays.iter().enumerate().map(read).collect();
        Self { meta, arrays, data, reads: usize::MAX }
    }

    fn position(&self, name: &str) -> usize {
        self.arrays.iter().position(|array| array.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    fn remove(&mut self, name: &str) {
        let at = self.position(name);
        self.arrays.remove(at);
        self.data.remove(at);
    }
}

impl StateSource for Copy {
    fn meta(&self) -> &StateMeta {
        &self.meta
    }

    fn arrays(&self) -> &[StateArray] {
        &self.arrays
    }

    fn read(&mut self, array: usize, first: usize, bytes: &mut [u8]) -> Result<()> {
        if self.reads == 0 {
            return Err(Error::StateFile { path: "memory".into(), detail: "it fails".into() });
        }
        self.reads -= 1;
        let begin = first * self.arrays[array].element.size();
        bytes.copy_from_slice(&self.data[array][begin..begin + bytes.len()]);
        Ok(())
    }
}

fn adam() -> Rule {
    Adam::default().into()
}

fn bf16(master: Master) -> Formats {
    Formats { dtype: DType::Bf16, master, state: StateDType::F32 }
}

/// Parameters of 1.
fn ones(optimizer: &Optimizer) -> Vec<Numbers> {
    optimizer.parameters().iter().map(|p| Numbers::new(p.dtype(), &vec![1.0; p.len()])).collect()
}

/// Does steps with gradients that follow from the parameters' names.
fn steps(optimizer: &mut Optimizer, params: &mut [Numbers], steps: usize) {
    let gradient = |p: &Parameter| {
        let x = p.name().bytes().map(f32::from).sum::<f32>() / 300.0;
        Numbers::F32((0_u16..).take(p.len()).map(|i| x - f32::from(i) / 64.0).collect())
    };
    let gradients: Vec<_> = optimizer.parameters().iter().map(gradient).collect();
    let grads: Vec<Grad<'_>> = gradients.iter().map(Into::into).collect();
    for _ in 0..steps {
        let mut params: Vec<_> = params.iter_mut().map(Numbers::param).collect();
        assert!(optimizer.step(&mut params, &grads).unwrap().applied(), "applied");
    }
}

fn load(optimizer: &mut Optimizer, source: &mut dyn StateSource, options: LoadOptions) -> Result<LoadReport> {
    optimizer.load_state(source, &options)
}

/// The problems for which a load is refused, which changes nothing.
#[track_caller]
fn problems(optimizer: &mut Optimizer, source: &mut dyn StateSource, options: LoadOptions) -> Vec<String> {
    let before = snapshot(optimizer);
    let error = load(optimizer, source, options).expect_err("it was loaded");
    assert_eq!(snapshot(optimizer), before, "nothing has changed");
    let Error::StateMismatch { problems } = &error else { panic!("{error}") };
    let message = error.to_string();
    assert!(problems.iter().all(|problem| message.contains(problem)), "{message}");
    problems.clone()
}

fn snapshot(optimizer: &mut Optimizer) -> (String, Vec<Vec<u8>>) {
    let Copy { meta, data, .. } = Copy::of(optimizer);
    (format!("{meta:?}"), data)
}

fn build(builder: Builder) -> Optimizer {
    builder.build(Naive::default()).unwrap()
}

fn named(names: &[&str]) -> Vec<Parameter> {
    names.iter().map(|&name| Parameter::new(name, [2, 3])).collect()
}

fn slots(optimizer: &Optimizer, parameter: &str) -> [Vec<f32>; 2] {
    ["moment1", "moment2"].map(|slot| optimizer.slot(parameter, slot).unwrap())
}

on_every_backend! {
    /// A backend takes what the naive one gives, to the bit, and gives it back; and that goes on as it would have.
    fn goes_to_any_backend(target) {
        for rule in [adam(), Lion::default().into(), Adagrad { epsilon: 1e-6, ..Adagrad::new(0.1) }.into()] {
            for formats in Formats::all().into_iter().step_by(5) {
                let mut from = Resumable::new(Naive::default(), &rule, formats).unwrap();
                from.run(10).unwrap();
                let before = from.everything().unwrap();
                let mut there = from.fresh(target).unwrap();
                let report = load(&mut there.optimizer, &mut from.optimizer.state().unwrap(), STRICT).unwrap();
                assert_eq!(report.step, there.optimizer.step_count());
                assert_eq!(there.everything().unwrap(), before, "{rule:?}, {formats:?} to the backend");
                let mut back = from.fresh(Naive::default()).unwrap();
                let _ = load(&mut back.optimizer, &mut there.optimizer.state().unwrap(), STRICT).unwrap();
                assert_eq!(back.everything().unwrap(), before, "{rule:?}, {formats:?} from the backend");
                back.run(5).unwrap();
                from.run(5).unwrap();
                let [back, from]: [Everything; 2] = [back, from].map(|mut run| run.everything().unwrap());
                assert_eq!(back, from, "{rule:?}, {formats:?}");
            }
        }
    }
}

/// Order and groups are the loader's own; each parameter gets its own state.
#[test]
fn order_and_groups_may_differ() {
    let saved = named(&["a", "b", "c", "d"]);
    let mut from = build(Adam::default().groups([ParamGroup::new(&saved[..3]), ParamGroup::new(&saved[3..])]));
    let mut params = ones(&from);
    steps(&mut from, &mut params, 5);
    let own = named(&["d", "c", "b", "a"]);
    let mut to =
        build(Adam::default().groups([ParamGroup::new([&own[2], &own[0]]), ParamGroup::new([&own[3], &own[1]])]));
    let report = load(&mut to, &mut from.state().unwrap(), STRICT).unwrap();
    assert_eq!((report.step, to.step_count()), (5, 5));
    let order = to.parameters().iter().map(|p| from.parameters().iter().position(|q| q == p).unwrap());
    let order: Vec<usize> = order.collect();
    assert_ne!(order, [0, 1, 2, 3]);
    let mut moved: Vec<_> = order.iter().map(|&at| params[at].clone()).collect();
    steps(&mut from, &mut params, 5);
    steps(&mut to, &mut moved, 5);
    for (moved, &at) in moved.iter().zip(&order) {
        assert_eq!(moved, &params[at]);
    }
    for name in ["a", "b", "c", "d"] {
        assert_eq!(slots(&to, name), slots(&from, name), "{name}");
    }
    assert_ne!(slots(&to, "a"), slots(&to, "b"), "the parameters differ");
}

/// Groups that are not at one place do not become one.
#[test]
fn groups_at_different_places_do_not_merge() {
    let [a, b] = ["a", "b"].map(|name| Parameter::new(name, [3]));
    let mut from = build(Adam::default().groups([
        ParamGroup::new([&a]).lr(0.1),
        ParamGroup::new([&b]).lr(0.1).hyper(|adam: &mut Adam| adam.beta2 = 0.9),
    ]));
    let mut params = ones(&from);
    steps(&mut from, &mut params, 2);
    let mut to = build(Adam::default().params([&a, &b]));
    let expected = "the optimizer: its parameters come from groups 0, 1, where the powers of their betas differ";
    assert_eq!(problems(&mut to, &mut from.state().unwrap(), STRICT), [expected]);
    // Rates that were different do not matter, but to a rule that goes on from them.
    let rates = || [ParamGroup::new([&a]).lr(0.1), ParamGroup::new([&b]).lr(0.2)];
    for (rule, goes_on) in [(adam(), true), (Asgd::default().into(), false)] {
        let build = |builder: Builder| builder.build(Target::ALL[0]).unwrap();
        let mut from = build(Builder::new(rule.clone()).groups(rates()));
        let mut to = build(Builder::new(rule).params([&a, &b]));
        let mut params = ones(&from);
        steps(&mut from, &mut params, 2);
        if goes_on {
            assert_eq!(load(&mut to, &mut from.state().unwrap(), STRICT).unwrap().step, 2);
        } else {
            let expected = "the optimizer: its parameters come from groups 0, 1, where their last rates differ";
            assert_eq!(problems(&mut to, &mut from.state().unwrap(), STRICT), [expected]);
        }
    }
    // At the start, all are at one place.
    let mut at_start = build(Adam::default().groups([ParamGroup::new([&a]).lr(0.1), ParamGroup::new([&b])]));
    assert_eq!(load(&mut to, &mut at_start.state().unwrap(), STRICT).unwrap().step, 0);
}

/// All that does not fit is listed at once, and nothing changes.
#[test]
fn lists_all_problems() {
    let params = |names: &[(&str, &[usize], DType)]| -> Vec<Parameter> {
        names.iter().map(|&(name, shape, dtype)| Parameter::new(name, shape).with_dtype(dtype)).collect()
    };
    use DType::{Bf16, F32};
    let saved = params(&[
        ("fits", &[2, 3], F32),
        ("shape", &[2, 3], F32),
        ("dtype", &[4], F32),
        ("master", &[4], Bf16),
        ("old", &[4], F32),
    ]);
    let other = params(&[("rule", &[4], F32)]);
    let narrow = params(&[("narrow", &[300], F32)]);
    let mut from = build(Adam::default().groups([
        ParamGroup::new(&saved),
        ParamGroup::new(&other).rule(Lion::default()),
        ParamGroup::new(&narrow).state_dtype(StateDType::Block8),
    ]));
    let mut memory = ones(&from);
    steps(&mut from, &mut memory, 2);
    let own = params(&[
        ("rule", &[4], F32),
        ("narrow", &[300], F32),
        ("new", &[4], F32),
        ("fits", &[2, 3], F32),
        ("shape", &[3, 2], F32),
        ("dtype", &[4], Bf16),
        ("master", &[4], Bf16),
    ]);
    let builder = Adam { use_amsgrad: true, ..Adam::default() }.params(&own).master(Master::Split);
    let mut to = build(builder);
    let mut memory = ones(&to);
    steps(&mut to, &mut memory, 1);
    let missing = |name| format!("array \"state.{name}.vhat\": missing");
    let expected = [
        r#"parameter "rule": rule lion in the state, adam in the optimizer"#.to_owned(),
        r#"array "state.narrow.moment1": u8 in the state, f32 in the optimizer"#.into(),
        r#"array "state.narrow.moment2": u8 in the state, f32 in the optimizer"#.into(),
        missing("narrow"),
        r#"parameter "new": missing"#.into(),
        missing("fits"),
        r#"parameter "shape": shape [2, 3] in the state, [3, 2] in the optimizer"#.into(),
        r#"parameter "dtype": f32 in the state, bf16 in the optimizer"#.into(),
        r#"parameter "master": master f32 in the state, split in the optimizer"#.into(),
        missing("master"),
        r#"parameter "old": not in the optimizer"#.into(),
    ];
    let found = problems(&mut to, &mut from.state().unwrap(), STRICT);
    assert_eq!(found, expected);
}

/// Arrays are checked one by one, whatever the description says.
#[test]
fn checks_every_array() {
    let parameters = [Parameter::new("w", [300]).with_dtype(DType::Bf16)];
    let mut from = build(Adam::default().params(&parameters).state_dtype(StateDType::Block8).ema(0.9));
    let mut params = ones(&from);
    steps(&mut from, &mut params, 3);
    let mut to = build(Adam::default().params(&parameters).state_dtype(StateDType::Block8).ema(0.9));
    for name in
        ["state.w.moment1", "state.w.moment1.scales", "state.w.moment2", "state.w.moment2.scales", "master.w", "ema.w"]
    {
        let mut copy = Copy::of(&mut from);
        copy.remove(name);
        let found = problems(&mut to, &mut copy, STRICT);
        let mut expected = vec![format!("array {name:?}: missing")];
        if let Some(slot) = name.strip_prefix("state.").filter(|name| !name.ends_with("scales")) {
            expected.push(format!("array \"state.{slot}.scales\": not in the optimizer"));
        }
        assert_eq!(found, expected);

        let mut copy = Copy::of(&mut from);
        let at = copy.position(name);
        let shape = copy.arrays[at].shape.clone();
        copy.arrays[at].shape.push(1);
        let found = problems(&mut to, &mut copy, STRICT);
        let line =
            format!("array {name:?}: shape {:?} in the state, {shape:?} in the optimizer", [&shape[..], &[1]].concat());
        assert_eq!(found[0], line);

        let mut copy = Copy::of(&mut from);
        copy.arrays[at].element = Element::F16;
        let found = problems(&mut to, &mut copy, STRICT);
        assert!(found[0].starts_with(&format!("array {name:?}: f16 in the state, ")), "{found:?}");

        let mut copy = Copy::of(&mut from);
        copy.arrays.push(StateArray { name: name.into(), ..copy.arrays[at].clone() });
        copy.data.push(Vec::new());
        assert_eq!(problems(&mut to, &mut copy, STRICT), [format!("array {name:?}: twice in the state")]);
    }
    let mut copy = Copy::of(&mut from);
    copy.arrays.push(StateArray { name: "state.w.moment3".into(), element: Element::F32, shape: vec![usize::MAX; 3] });
    assert_eq!(problems(&mut to, &mut copy, STRICT), [r#"array "state.w.moment3": not in the optimizer"#]);
    // The control: unchanged, it fits.
    assert_eq!(
        load(&mut to, &mut Copy::of(&mut from), STRICT).unwrap(),
        load(&mut to, &mut from.state().unwrap(), STRICT).unwrap()
    );
}

/// A state without momentum is not one with momentum, also where a parameter keeps no array at all.
#[test]
fn arrays_of_a_stateless_rule_are_unexpected() {
    let w = [Parameter::new("w", [3])];
    let mut with = build(Sgd { momentum: 0.9, ..Sgd::default() }.params(&w));
    let mut without = build(Sgd::default().params(&w));
    let slot = with.rule().spec().slots()[0].name;
    let found = problems(&mut without, &mut with.state().unwrap(), STRICT);
    assert_eq!(found, [format!("array \"state.w.{slot}\": not in the optimizer")]);
    let found = problems(&mut with, &mut without.state().unwrap(), STRICT);
    assert_eq!(found, [format!("array \"state.w.{slot}\": missing")]);
}

/// What makes no sense in itself is refused.
#[test]
fn refuses_nonsense() {
    let w = [Parameter::new("w", [3])];
    let dynamic = DynamicLossScale { init_loss_scale: 4.0, ..DynamicLossScale::default() };
    let mut from = build(Adam::default().params(&w).loss_scale(dynamic));
    let mut to = build(Adam::default().params(&w).loss_scale(dynamic));
    type Change = fn(&mut StateMeta);
    let cases: [(&str, Change); 16] = [
        ("layout has version 3", |meta| meta.version = VERSION + 1),
        ("step count", |meta| meta.step = u64::MAX),
        ("twice", |meta| meta.parameters.push(meta.parameters[0].clone())),
        ("in group 7 of 1", |meta| meta.parameters[0].group = 7),
        ("powers of its betas", |meta| meta.groups[0].beta_powers[1] = f32::NAN.to_bits()),
        ("powers of its betas", |meta| meta.groups[0].beta_powers[0] = 1.5_f32.to_bits()),
        ("last rate", |meta| meta.groups[0].previous_lr = Some(f64::INFINITY)),
        ("loss scale and counters", |meta| meta.guard.as_mut().unwrap().scale = 0.0),
        ("loss scale and counters", |meta| meta.guard.as_mut().unwrap().scale = f64::NAN),
        ("loss scale and counters", |meta| meta.guard.as_mut().unwrap().scale = 1e300),
        ("loss scale and counters", |meta| meta.guard.as_mut().unwrap().last = 9),
        ("loss scale and counters", |meta| meta.guard.as_mut().unwrap().bad = 1),
        ("loss scale and counters", |meta| meta.guard.as_mut().unwrap().skipped = u32::MAX),
        ("loss scale and counters", |meta| meta.guard.as_mut().unwrap().skipped = 1 << 31),
        ("loss scale and counters", |meta| meta.guard.as_mut().unwrap().scale = f64::INFINITY),
        ("loss scale and counters", |meta| meta.guard.as_mut().unwrap().scale = f64::from(f32::from_bits(1))),
    ];
    for (expected, change) in cases {
        let mut copy = Copy::of(&mut from);
        change(&mut copy.meta);
        let found = problems(&mut to, &mut copy, STRICT);
        assert!(found.len() == 1 && found[0].contains(expected), "{found:?}: {expected}");
    }
}

/// New layers keep their fresh state, old ones are passed over, if asked for.
#[test]
fn may_miss_and_ignore() {
    let mut from = build(Adam::default().params(named(&["old", "both"])));
    let mut params = ones(&from);
    steps(&mut from, &mut params, 4);
    let mut to = build(Adam::default().groups([ParamGroup::new(named(&["new"])), ParamGroup::new(named(&["both"]))]));
    let allow = LoadOptions { allow_missing: true, ..STRICT };
    let ignore = LoadOptions { ignore_unexpected: true, ..STRICT };
    assert_eq!(problems(&mut to, &mut from.state().unwrap(), allow), [r#"parameter "old": not in the optimizer"#]);
    assert_eq!(problems(&mut to, &mut from.state().unwrap(), ignore), [r#"parameter "new": missing"#]);
    let both = LoadOptions { allow_missing: true, ..ignore };
    let report = load(&mut to, &mut from.state().unwrap(), both).unwrap();
    assert_eq!((report.missing, report.unexpected), (vec!["new".to_owned()], vec!["old".to_owned()]));
    assert_eq!(slots(&to, "both"), slots(&from, "both"));
    assert_eq!(slots(&to, "new"), [vec![0.0; 6], vec![0.0; 6]]);
    // The new group's powers of betas are those of all updates so far.
    let meta = to.state().unwrap().meta().clone();
    assert_eq!(meta.groups[0].beta_powers, meta.groups[1].beta_powers);
    assert_eq!(meta.groups[0].previous_lr, None);
    assert!(!meta.parameters[0].updated && meta.parameters[1].updated, "{meta:?}");
}

/// An average that the state lacks begins as the master or the parameter.
#[test]
fn an_average_may_begin_late() {
    for master in [Master::F32, Master::None, Master::Split] {
        let parameters = [Parameter::new("w", [5]).with_dtype(DType::Bf16)];
        let builder = || Adam::default().params(&parameters).master(master);
        let mut from = build(builder());
        let mut params = ones(&from);
        steps(&mut from, &mut params, 3);
        let mut to = build(builder().ema(Ema::from(0.5)));
        assert_eq!(problems(&mut to, &mut from.state().unwrap(), STRICT), [r#"array "ema.w": missing"#]);
        let allow = LoadOptions { allow_missing: true, ..STRICT };
        if master == Master::Split {
            let found = problems(&mut to, &mut from.state().unwrap(), allow);
            assert_eq!(found, [r#"array "ema.w": missing, and cannot begin anew beside a split master"#]);
            continue;
        }
        assert_eq!(load(&mut to, &mut from.state().unwrap(), allow).unwrap().missing, ["ema.w"]);
        if master == Master::F32 {
            let copy = Copy::of(&mut to);
            assert_eq!(copy.data[copy.position("ema.w")], copy.data[copy.position("master.w")]);
        } else {
            assert!(to.average("w").is_err(), "it begins with the next step");
        }
        let mut same = params.clone();
        steps(&mut from, &mut params, 2);
        steps(&mut to, &mut same, 2);
        assert_eq!(same, params, "the master is as it was");
        assert!(to.average("w").unwrap().iter().all(|x| (0.9..1.1).contains(x)), "{:?}", to.average("w"));
    }
}

/// Settings are the optimizer's, or on request the state's; progress is always the state's.
#[test]
fn hyper_parameters_are_new_or_saved() {
    let [a, b] = ["a", "b"].map(|name| Parameter::new(name, [3]));
    let plateau = |lr| ReduceOnPlateau::new(lr).unwrap().patience(0).factor(0.5).unwrap();
    let groups = |lr: f64, beta1: f64| {
        [
            ParamGroup::new([&a]).lr(plateau(lr)).weight_decay(lr).hyper(move |adam: &mut Adam| adam.beta1 = beta1),
            ParamGroup::new([&b]).lr(Constant::new(lr).unwrap()),
        ]
    };
    let dynamic =
        |init_loss_scale| DynamicLossScale { init_loss_scale, scale_window: 2, ..DynamicLossScale::default() };
    let mut from = build(Adam::default().groups(groups(0.5, 0.8)).loss_scale(dynamic(4.0)));
    let mut params = ones(&from);
    steps(&mut from, &mut params, 3);
    assert!(!from.observe(1.0).unwrap() && from.observe(2.0).unwrap(), "the second is worse");
    from.freeze("b").unwrap();
    let new = || build(Adam::default().groups(groups(0.25, 0.7)).loss_scale(dynamic(1024.0)));

    let mut to = new();
    assert_eq!(load(&mut to, &mut from.state().unwrap(), STRICT).unwrap().kept, [0_usize; 0]);
    let (own, saved) = (to.state().unwrap().meta().clone(), from.state().unwrap().meta().clone());
    assert_eq!((own.groups[0].plateau, own.guard), (saved.groups[0].plateau, saved.guard));
    assert_eq!(own.groups[0].plateau.unwrap().lr.to_bits(), 0.25_f64.to_bits(), "half of 0.5");
    assert_eq!(to.loss_scale().unwrap().to_bits(), 8.0_f64.to_bits());
    assert_eq!(own.loss_scale, dynamic(1024.0).into());
    assert_eq!(format!("{:?}", own.groups[0].config), format!("{:?}", new().state().unwrap().meta().groups[0].config));
    assert_eq!(to.groups()[1].lr().clone().observe(0.0), Ok(false));
    assert!(format!("{:?}", to.groups()[1].lr()).contains("0.25"), "{to}");
    assert!(to.is_frozen("b").unwrap() && !to.is_frozen("a").unwrap(), "as saved");

    let keep = LoadOptions { hyper: Hyper::KeepSaved, ..STRICT };
    let mut to = new();
    assert_eq!(load(&mut to, &mut from.state().unwrap(), keep).unwrap().kept, [0, 1]);
    assert_eq!(snapshot(&mut to), snapshot(&mut from));
    let mut same = params.clone();
    steps(&mut to, &mut same, 3);
    steps(&mut from, &mut params, 3);
    assert_eq!(same, params);
    assert_eq!(snapshot(&mut to), snapshot(&mut from));

    // Groups with other members keep their own.
    let mut to = build(Adam::default().groups([ParamGroup::new([&b]).lr(0.125)]).loss_scale(dynamic(4.0)));
    let options = LoadOptions { ignore_unexpected: true, ..keep };
    assert_eq!(load(&mut to, &mut from.state().unwrap(), options).unwrap().kept, [0]);
    let mut one = build(Adam::default().params([&a, &b]).loss_scale(dynamic(4.0)));
    steps(&mut one, &mut params, 1);
    let mut to = build(Adam::default().groups([ParamGroup::new([&a]).lr(0.125), ParamGroup::new([&b])]));
    assert_eq!(load(&mut to, &mut one.state().unwrap(), keep).unwrap().kept, [0_usize; 0]);
    assert!(format!("{:?}", to.groups()[0].lr()).contains("0.125"), "{to}");
}

/// What is frozen here stays frozen, and a loss scale comes within the bounds that hold here, unless all is to be as saved.
#[test]
fn frozen_parameters_and_bounds() {
    let [a, b] = ["a", "b"].map(|name| Parameter::new(name, [3]));
    let dynamic =
        |init_loss_scale, floor, cap| DynamicLossScale { init_loss_scale, floor, cap, ..DynamicLossScale::default() };
    let new = |loss_scale| build(Adam::default().params([&a, &b]).loss_scale(loss_scale));
    let mut from = new(dynamic(65_536.0, 1.0, 1e30));
    let mut params = ones(&from);
    steps(&mut from, &mut params, 1);
    from.freeze("b").unwrap();
    let keep = LoadOptions { hyper: Hyper::KeepSaved, ..STRICT };
    for (options, frozen, scale) in [(STRICT, true, 1024.0), (keep, false, 65_536.0)] {
        let mut to = new(dynamic(8.0, 1.0, 1024.0));
        to.freeze("a").unwrap();
        let _ = load(&mut to, &mut from.state().unwrap(), options).unwrap();
        assert_eq!(["a", "b"].map(|name| to.is_frozen(name)), [Ok(frozen), Ok(true)]);
        assert_eq!(to.loss_scale(), Ok(scale));
    }
    let mut to = new(dynamic(1e9, 1e6, 1e30));
    let _ = load(&mut to, &mut from.state().unwrap(), STRICT).unwrap();
    assert_eq!(to.loss_scale(), Ok(1e6));
}

/// What cannot be kept is said, not left out.
#[test]
fn what_cannot_be_kept_is_refused() {
    let w = [Parameter::new("w", [3])];
    let keep = LoadOptions { hyper: Hyper::KeepSaved, ..STRICT };
    let mut from = build(Adam::default().groups([ParamGroup::new(&w).lr(from_fn("a closure", |_| 0.1))]).seed(1));
    let mut to = build(Adam::default().params(&w).seed(2));
    let found = problems(&mut to, &mut from.state().unwrap(), keep);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("seed: 1 in the state, 2 in the optimizer"), "{found:?}");
    assert!(found[1].contains("the optimizer: a closure"), "{found:?}");
    assert_eq!(load(&mut to, &mut from.state().unwrap(), STRICT).unwrap().step, 0);

    let mut copy = Copy::of(&mut build(Adam::default().params(&w).seed(2)));
    let nan = Adam { beta1: f64::NAN, ..Adam::default() };
    copy.meta.groups[0].config = Some(nan.into());
    let found = problems(&mut to, &mut copy, keep);
    assert!(found.len() == 1 && found[0].contains("adam.beta1"), "{found:?}");
    copy.meta.groups[0].config = Some(Momentum::new(0.1, 0.9).into());
    let found = problems(&mut to, &mut copy, keep);
    assert!(found.len() == 1 && found[0].contains("its rule is adam in the state"), "{found:?}");
    copy.meta.groups[0].config = Some(RAdam::new(0.1).into());
    let found = problems(&mut to, &mut copy, keep);
    assert!(found.len() == 1 && found[0].contains("its rule is adam in the state"), "{found:?}");
    copy.meta.groups[0].config = Some(Adam { use_amsgrad: true, ..Adam::default() }.into());
    let found = problems(&mut to, &mut copy, keep);
    assert!(found.len() == 1 && found[0].contains("needs other state"), "{found:?}");
    copy.meta.groups[0].config = Some(adam());
    copy.meta.groups[0].lr = Some(f64::NAN.into());
    copy.meta.loss_scale = f64::NAN.into();
    let found = problems(&mut to, &mut copy, keep);
    assert!(found.len() == 2 && found[0].contains("loss_scale") && found[1].contains("lr"), "{found:?}");
}

on_every_backend! {
    /// State in another format is rounded once, and read back as it was rounded.
    fn converts_state(target) {
        let convert = LoadOptions { convert: true, ..STRICT };
        let parameters = [Parameter::new("w", [700]), Parameter::new("empty", [0])];
        let with = |state| Adam::default().params(&parameters).state_dtype(state).build(target).unwrap();
        for from in Formats::STATES {
            let mut saved = with(from);
            let mut params = ones(&saved);
            steps(&mut saved, &mut params, 3);
            for to in Formats::STATES {
                let mut own = with(to);
                if from != to {
                    let found = problems(&mut own, &mut saved.state().unwrap(), STRICT);
                    assert!(found.len() >= 2 && found[0].contains("state.w.moment1"), "{found:?}");
                }
                let report = load(&mut own, &mut saved.state().unwrap(), convert).unwrap();
                let converted = if from == to {
                    vec![]
                } else {
                    let of = |name| ["moment1", "moment2"].map(|slot| format!("state.{name}.{slot}"));
                    ["w", "empty"].map(of).concat()
                };
                assert_eq!(report.converted, converted, "{from} to {to}");
                for (slot, was) in slots(&own, "w").iter().zip(&slots(&saved, "w")) {
                    let largest = was.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                    // The distance of what is around the number.
                    let error = |y: f32| match to {
                        StateDType::F32 => 0.0,
                        StateDType::Bf16 => y.abs() / 128.0,
                        // A sixteenth of z = 2 + y, where y of the largest is 494 at least.
                        StateDType::Block8 => (y.abs() + largest / 247.0) / 16.0,
                    };
                    let mut differ = 0;
                    for (x, y) in slot.iter().zip(was) {
                        assert!((x - y).abs() <= error(*y), "{from} to {to}: {y} became {x}");
                        differ += usize::from(x != y);
                    }
                    let lossless = to == StateDType::F32 || from == to;
                    assert!(lossless == (differ == 0) || from == StateDType::Block8, "{from} to {to}: {differ}");
                }
                steps(&mut own, &mut params.clone(), 2);
            }
        }
    }

    /// Masters become what stands behind the parameter now, or are left behind; a new one begins as its parameter.
    fn converts_masters(target) {
        let convert = LoadOptions { convert: true, ..STRICT };
        let parameters = [Parameter::new("w", [700]).with_dtype(DType::Bf16)];
        let with = |master| Adam::default().params(&parameters).master(master).seed(3).build(target).unwrap();
        let masters = [Master::F32, Master::None, Master::Stochastic, Master::Split];
        for from in masters {
            let mut saved = with(from);
            let mut params = ones(&saved);
            steps(&mut saved, &mut params, 3);
            for to in masters {
                let mut own = with(to);
                if from != to {
                    let found = problems(&mut own, &mut saved.state().unwrap(), STRICT);
                    assert!(found[0].starts_with(r#"parameter "w": master "#), "{found:?}");
                }
                if (from, to) == (Master::Split, Master::F32) {
                    let found = problems(&mut own, &mut saved.state().unwrap(), convert);
                    assert!(found.len() == 1 && found[0].contains("needs the parameter"), "{found:?}");
                    continue;
                }
                let report = load(&mut own, &mut saved.state().unwrap(), convert).unwrap();
                assert_eq!(report.converted.is_empty(), from == to, "{from:?} to {to:?}");
                let (copy, was) = (Copy::of(&mut own), Copy::of(&mut saved));
                if (from, to) == (Master::F32, Master::Split) {
                    let Numbers::Bf16(params) = &params[0] else { panic!("bf16") };
                    let corrections = copy.data[copy.position("master.w")].chunks_exact(2);
                    let masters = was.data[was.position("master.w")].chunks_exact(4);
                    for ((p, correction), master) in params.iter().zip(corrections).zip(masters) {
                        let correction = u16::from_le_bytes(correction.try_into().unwrap());
                        let master = f32::from_le_bytes(master.try_into().unwrap());
                        let joined = join(p.to_bits(), correction);
                        let apart = joined.to_bits().abs_diff(master.to_bits());
                        assert!(apart == 0 || (apart == 1 && correction == 0x7fff), "{joined} for {master}");
                    }
                }
                let mut params = params.clone();
                steps(&mut own, &mut params, 1);
                if to == Master::F32 && from != to {
                    let copy = Copy::of(&mut own);
                    let master = copy.data[copy.position("master.w")].chunks_exact(4);
                    let Numbers::Bf16(params) = &params[0] else { panic!("bf16") };
                    for (master, p) in master.zip(params) {
                        let master = f32::from_le_bytes(master.try_into().unwrap());
                        assert!((master - bf16_to_f32(p.to_bits())).abs() <= master.abs() / 256.0, "{master} behind {p}");
                    }
                }
            }
        }
    }

    /// A load that fails half way is the end of the optimizer, until another succeeds.
    fn a_failed_load_is_noticed(target) {
        let formats = bf16(Master::F32);
        let mut from = Resumable::new(target, &adam(), formats).unwrap();
        from.run(6).unwrap();
        let mut to = from.fresh(target).unwrap();
        let mut copy = Copy::of(&mut from.optimizer);
        copy.reads = 2;
        let error = load(&mut to.optimizer, &mut copy, STRICT).unwrap_err();
        assert_eq!(error.to_string(), "memory cannot be read as a state file: it fails", "the source's error");
        for error in [to.run(1).unwrap_err(), to.optimizer.state().map(|_| ()).unwrap_err()] {
            assert!(error.to_string().contains("load a state first"), "{error}");
        }
        copy.reads = usize::MAX;
        let report = load(&mut to.optimizer, &mut copy, STRICT).unwrap();
        assert_eq!(report.step, from.optimizer.step_count(), "loaded");
        to.params.clone_from(&from.params);
        from.run(3).unwrap();
        to.run(3).unwrap();
        assert_eq!(to.everything().unwrap(), from.everything().unwrap(), "resumed");
    }

    /// What the next state lacks does not stay half loaded.
    fn nothing_of_a_failed_load_is_left(target) {
        let build = |names: &[&str]| Adam::default().params(named(names)).build(target).unwrap();
        let (mut from, mut part, mut to) = (build(&["a", "b"]), build(&["b"]), build(&["a", "b"]));
        for optimizer in [&mut from, &mut part, &mut to] {
            let mut params = ones(optimizer);
            steps(optimizer, &mut params, 2);
        }
        let mut copy = Copy::of(&mut from);
        copy.reads = 1;
        let _ = load(&mut to, &mut copy, STRICT).unwrap_err();
        let lenient = LoadOptions { allow_missing: true, ..STRICT };
        let report = load(&mut to, &mut part.state().unwrap(), lenient).unwrap();
        assert_eq!(report.missing, ["a"]);
        assert_eq!(slots(&to, "a"), [vec![0.0; 6], vec![0.0; 6]], "anew");
        assert_eq!(slots(&to, "b"), slots(&part, "b"));
        let mut params = ones(&to);
        steps(&mut to, &mut params, 1);
    }

    /// A loss scale that ends with a load ends on the device, too.
    fn the_loss_scale_on_the_device_follows(target) {
        let plain = || Adam::default().params(named(&["w"]));
        let mut from = plain().build(target).unwrap();
        let dynamic = DynamicLossScale { init_loss_scale: 1024.0, ..DynamicLossScale::default() };
        let mut to = plain().loss_scale(dynamic).build(target).unwrap();
        let scale = |optimizer: &Optimizer| Some(optimizer.loss_scale_memory()?.to_host().unwrap());
        let on_device = |scale: f32| (target.name() == "gpu").then(|| vec![scale]);
        assert_eq!(scale(&to), on_device(1024.0));
        let _ = load(&mut to, &mut from.state().unwrap(), LoadOptions { hyper: Hyper::KeepSaved, ..STRICT }).unwrap();
        assert_eq!((to.loss_scale().unwrap(), scale(&to)), (1.0, on_device(1.0)));
    }
}

/// A state with averages that are not wanted is converted as one without.
#[test]
fn averages_that_are_left_behind_hinder_nothing() {
    let parameters = [Parameter::new("w", [2, 3]).with_dtype(DType::Bf16)];
    let with = |master| Adam::default().params(&parameters).master(master);
    let mut from = build(with(Master::Stochastic).ema(0.9));
    let mut params = ones(&from);
    steps(&mut from, &mut params, 2);
    let options = LoadOptions { convert: true, ignore_unexpected: true, ..STRICT };
    let report = load(&mut build(with(Master::F32)), &mut from.state().unwrap(), options).unwrap();
    assert_eq!((report.unexpected, report.converted), (vec!["ema.w".into()], vec!["master.w".into()]));
    let found = problems(&mut build(with(Master::F32).ema(0.9)), &mut from.state().unwrap(), options);
    assert!(found.len() == 1 && found[0].contains("would begin the average anew"), "{found:?}");
}

/// Not while averages stand in the parameters, nor with accumulated gradients.
#[test]
fn refuses_halves() {
    let w = [Parameter::new("w", [3])];
    let builder = || Adam::default().params(&w).ema(0.5);
    let (mut own, mut other) = (build(builder()), build(builder()));
    let mut params = ones(&own);
    steps(&mut own, &mut params, 1);
    let refused = |own: &mut Optimizer, other: &mut Optimizer, expected: &str| {
        let load = load(own, &mut other.state().unwrap(), STRICT).unwrap_err();
        for error in [load, own.state().map(|_| ()).unwrap_err()] {
            assert!(matches!(error, Error::State { .. }) && error.to_string().contains(expected), "{error}");
        }
    };
    own.swap_ema_in(&mut [params[0].param()]).unwrap();
    refused(&mut own, &mut other, "swapped averages");
    own.swap_ema_out(&mut [params[0].param()]).unwrap();
    own.accumulate(&[(&[1.0_f32; 3]).into()], 1.0).unwrap();
    refused(&mut own, &mut other, "accumulated gradients");
    own.discard_accumulated();
    assert_eq!(load(&mut own, &mut other.state().unwrap(), STRICT).unwrap().step, 0);
}

/// Reads are held to the arrays that there are.
#[test]
fn reads_within_arrays() {
    let mut optimizer = build(AdamW::default().params(named(&["w"])));
    let state = optimizer.state().unwrap();
    let last = state.arrays().len();
    let mut bytes = [0; 32];
    assert!(state.read(0, 0, &mut bytes[..24]).is_ok() && state.read(0, 5, &mut bytes[..4]).is_ok(), "within");
    for (array, first, len) in [(0, 0, 28), (0, 0, 23), (0, 6, 4), (0, usize::MAX, 4), (last, 0, 4)] {
        let error = state.read(array, first, &mut bytes[..len]).unwrap_err();
        assert!(matches!(error, Error::State { .. }), "{error}");
    }
}
