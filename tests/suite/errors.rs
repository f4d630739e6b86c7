//! Every refusal: a typed error whose message names what is wrong; and nothing has changed.

use std::any::Any;
#[cfg(feature = "cpu")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};
use optim_tests::{Bound, Run, Target, compare, on_every_backend};
use optimizers::core::{Backend, Master};
use optimizers::rule::{At, CustomRule, Passes, Slot, SlotShape, StepScalars, UpdateRule};
use optimizers::schedule::{
    CosineDecay, ExponentialDecay, InverseDecay, NaturalExpDecay, PolynomialDecay, ReduceOnPlateau, WarmUp,
};
use optimizers::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Adan, Asgd, Builder, DType,
    DeviceMemory, Error, Ftrl, Grad, IntoBackend, Lamb, Lars, LazyAdam, Lion, Momentum, NAdam, Optimizer, ParamGroup,
    ParamMut, Parameter, ProximalAdagrad, RAdam, Rate, Result, RmsProp, Rprop, Rule, Schedule, Select, Sgd, StateDType,
};

/// A backend that must not be opened: input is checked first.
struct Unopened;

impl IntoBackend for Unopened {
    fn into_backend(self) -> Result<Box<dyn Backend>> {
        panic!("the backend was opened before the input was checked")
    }
}

/// The message names these, starts in lower case and has no full stop.
#[track_caller]
fn names(error: &Error, names: &[&str]) {
    let message = error.to_string();
    for name in names {
        assert!(message.contains(name), "{message:?} does not name {name:?}");
    }
    // A name that the user wrote keeps its case.
    let named = names.iter().any(|name| message.starts_with(name));
    let lower_case = message.chars().next().is_some_and(|c| !c.is_uppercase());
    assert!((named || lower_case) && !message.ends_with('.'), "{message:?} is not in our style");
}

/// The error of a builder that must be refused.
#[track_caller]
fn refused(builder: Builder, mentions: &[&str]) -> Error {
    let error = match builder.build(Unopened) {
        Err(error) => error,
        Ok(optimizer) => panic!("built {optimizer:?}, expected an error that names {mentions:?}"),
    };
    names(&error, mentions);
    error
}

macro_rules! assert_refused {
    ($builder:expr, $error:pat, $($mention:expr),*) => {
        let error = refused($builder, &[$($mention),*]);
        assert!(matches!(error, $error), "{error:?}");
    };
}

fn weight() -> Parameter {
    Parameter::new("weight", [2, 3])
}

fn bias() -> Parameter {
    Parameter::new("bias", [3])
}

#[test]
fn no_parameters() {
    let none: [Parameter; 0] = [];
    assert_refused!(Builder::new(Adam::default()), Error::NoParameters { .. }, "the optimizer");
    assert_refused!(Adam::default().params(&none), Error::NoParameters { .. }, "the optimizer");
    assert_refused!(Adam::default().groups([]), Error::NoParameters { .. }, "the optimizer");
    let groups = [ParamGroup::new([weight()]), ParamGroup::new(&none)];
    assert_refused!(Adam::default().groups(groups), Error::NoParameters { .. }, "group 1");
}

#[test]
fn duplicates() {
    let twice = [weight(), bias(), Parameter::new("weight", [4])];
    assert_refused!(Adam::default().params(&twice), Error::DuplicateParameter { .. }, "\"weight\"");
    let within = [ParamGroup::new([bias()]), ParamGroup::new([weight(), weight()])];
    assert_refused!(Adam::default().groups(within), Error::DuplicateParameter { .. }, "\"weight\"");
    let across = [ParamGroup::new([weight()]), ParamGroup::new([bias(), weight()])];
    assert_refused!(Adam::default().groups(across), Error::DuplicateParameter { .. }, "\"weight\"");
}

#[test]
fn frozen_parameters() {
    let frozen = Parameter::new("bn.mean", [3]).requires_grad(false);
    assert_refused!(Adam::default().params([weight(), frozen]), Error::FrozenParameter { .. }, "\"bn.mean\"");
}

/// `usize` counts bytes of state and their padding, so shapes overflow before their length does. A zero extent is no excuse.
#[test]
fn overflowing_shapes() {
    let zeros = [vec![usize::MAX, 2, 0], vec![0, usize::MAX, 2], vec![1 << 30, 0, 1 << 30]];
    for shape in [vec![usize::MAX], vec![1 << 32, 1 << 32], vec![1 << 54], vec![1 << 60]].into_iter().chain(zeros) {
        let parameter = Parameter::new("big", shape.clone());
        let error = refused(Adam::default().params([parameter]), &["\"big\"", &format!("{shape:?}")]);
        assert_eq!(error, Error::ShapeOverflow { name: "big".into(), shape });
    }
}

/// Nor may many together, by whatever way they come.
#[test]
fn overflowing_lists() {
    let huge = |name: &str| Parameter::new(name, [(1 << 53) + (1 << 52)]);
    let both = Adan::default().params([huge("first"), huge("second")]);
    assert!(matches!(both.estimate(), Err(Error::ShapeOverflow { name, .. }) if name == "second"), "an estimate");
    assert_refused!(both, Error::ShapeOverflow { .. }, "\"second\"");
    let table = Parameter::new("table", [0, 1 << 40]);
    let mut optimizer = Adam::default().params([table]).build(Target::ALL[0]).unwrap();
    let error = optimizer.resize_rows("table", 1 << 25, &[]).unwrap_err();
    assert!(matches!(error, Error::ShapeOverflow { .. }), "{error:?}");
}

/// What a group lists is what was given to choose from, and that is given once.
#[test]
fn pools() {
    let pool = || Adam::default().params([weight(), bias()]);
    let other = ParamGroup::new([Parameter::new("weight", [3, 2])]);
    assert_refused!(
        pool().groups([other, ParamGroup::matching(Select::rest())]),
        Error::HyperParameter { .. },
        "weight",
        "[3, 2]"
    );
    let halves = ParamGroup::new([weight().with_dtype(DType::F16)]);
    assert_refused!(
        pool().groups([halves, ParamGroup::matching(Select::rest())]),
        Error::HyperParameter { .. },
        "weight",
        "F16"
    );
    let twice = Adam::default().params([weight(), weight()]).groups([ParamGroup::new([weight()])]);
    assert_refused!(twice, Error::DuplicateParameter { .. }, "\"weight\"");
}

/// Groups are told apart by their names.
#[test]
fn group_names() {
    let groups = |name| [ParamGroup::new([weight()]).name("body"), ParamGroup::new([bias()]).name(name)];
    assert_refused!(Adam::default().groups(groups("body")), Error::HyperParameter { .. }, "name", "\"body\"");
    let mut optimizer = Adam::default().groups(groups("head")).build(Target::ALL[0]).unwrap();
    let third = ParamGroup::new([Parameter::new("third", [1])]).name("head");
    assert!(matches!(optimizer.add_group(third), Err(Error::HyperParameter { .. })), "a name that there is");
    let unnamed = Adam::default().params([weight()]).build(Target::ALL[0]).unwrap();
    assert!(matches!(unnamed.group_named(""), Err(Error::Unknown { .. })), "no name is not an empty one");
}

/// A weight decay does not follow a metric: nothing would tell it.
#[test]
fn decays_on_a_plateau() {
    let plateau = || ReduceOnPlateau::new(0.5).unwrap();
    assert_refused!(
        Adam::default().params([weight()]).weight_decay(plateau()),
        Error::HyperParameter { .. },
        "adam.weight_decay",
        "schedule"
    );
    let mut optimizer = Adam::default().params([weight()]).build(Target::ALL[0]).unwrap();
    assert!(matches!(optimizer.set_weight_decay(0, plateau()), Err(Error::HyperParameter { .. })), "set later");
}

/// A step by name needs all names; the error has those that are missing.
#[test]
fn steps_by_name() {
    let mut optimizer = Sgd::new(1.0).params([weight(), bias()]).build(Target::ALL[0]).unwrap();
    let (mut w, mut b, g) = ([1.0_f32; 6], [1.0_f32; 3], [1.0_f32; 6]);
    let some = optimizer.step_named([("weight", (&mut w).into(), (&g).into())]).unwrap_err();
    assert_eq!(some, Error::LeftOut { what: "the step", names: vec!["bias".into()] });
    names(&some, &["bias"]);
    let odd = optimizer.step_named([("weigth", (&mut w).into(), (&g).into())]).unwrap_err();
    assert!(matches!(odd, Error::Unknown { .. }), "{odd:?}");
    assert_eq!((w, optimizer.step_count()), ([1.0; 6], 0), "nothing has changed");
    let all = [("bias", (&mut b).into(), Grad::None), ("weight", (&mut w).into(), (&g).into())];
    assert!(optimizer.step_named(all).unwrap().applied(), "in any order");
    assert_eq!((w, b), ([0.0; 6], [1.0; 3]));
}

/// A gradient may be of any type; a parameter's memory is of the declared one: see `types`.
#[test]
fn masters() {
    let halves = || [weight(), bias().with_dtype(DType::F16)];
    let split = Adam::default().params(halves()).master(Master::Split);
    assert_refused!(split, Error::HyperParameter { .. }, "bias: master", "bf16", "split");
    let groups = [ParamGroup::new([weight()]), ParamGroup::new([bias().with_dtype(DType::F16)]).master(Master::Split)];
    assert_refused!(Adam::default().groups(groups), Error::HyperParameter { .. }, "bias: master", "bf16", "split");
    let brain = Adam::default().params([bias().with_dtype(DType::Bf16)]).master(Master::Split);
    assert!(brain.build(Target::ALL[0]).is_ok(), "bf16 is what a split is made for");
}

#[test]
fn orders() {
    let grouped = || Adam::default().groups([ParamGroup::new([weight()]), ParamGroup::new([bias()])]);
    let other = Parameter::new("other", [1]);
    let stranger = [weight(), bias(), other.clone()];
    assert_refused!(grouped().order_params(&stranger), Error::Unknown { .. }, "\"other\"", "weight, bias");
    assert_refused!(grouped().order_params([&weight()]), Error::LeftOut { .. }, "order", "bias");
    let twice = [weight(), weight()];
    assert_refused!(grouped().order_params(&twice), Error::DuplicateParameter { .. }, "\"weight\"");
    let none: [Parameter; 0] = [];
    assert_refused!(grouped().order_params(&none), Error::LeftOut { .. }, "weight, bias");
}

/// Values that no positive hyper-parameter takes.
const NOT_POSITIVE: [f64; 6] = [0.0, -0.0, -0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
/// Values that no hyper-parameter of 0 or more takes.
const NEGATIVE: [f64; 4] = [-0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
/// Values outside of (0, 1).
const NOT_INSIDE_ONE: [f64; 8] = [0.0, 1.0, 1.1, -0.0, -0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

/// Values outside of [0, 1).
const NOT_BELOW_ONE: [f64; 6] = [1.0, 1.1, -0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
/// Values outside of [0, 1].
const NOT_UP_TO_ONE: [f64; 5] = [1.1, -0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
/// Values that are no number.
const NOT_FINITE: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

/// A rule's hyper-parameters, apart from rate and decay, with values out of their ranges. No `_` arm: the compiler asks for a
/// new rule's.
fn out_of_range(rule: &Rule) -> Vec<(&'static str, Rule)> {
    fn each<const N: usize, R: Into<Rule>>(
        name: &'static str,
        values: [f64; N],
        rule: impl Fn(f64) -> R,
    ) -> Vec<(&'static str, Rule)> {
        values.into_iter().map(|value| (name, rule(value).into())).collect()
    }
    match rule {
        Rule::Sgd(sgd) => [
            each("sgd.momentum", NEGATIVE, |momentum| Sgd { momentum, ..sgd.clone() }),
            each("sgd.dampening", NEGATIVE, |dampening| Sgd { dampening, ..sgd.clone() }),
            each("sgd.nesterov", [0.0], |momentum| Sgd { momentum, nesterov: true, ..sgd.clone() }),
            each("sgd.nesterov", [0.1], |dampening| Sgd { momentum: 0.9, dampening, nesterov: true, ..sgd.clone() }),
        ]
        .concat(),
        Rule::Momentum(rule) => each("momentum.momentum", NEGATIVE, |momentum| Momentum { momentum, ..rule.clone() }),
        Rule::Adam(adam) if adam.corrected_eps => [
            each("adam.beta1", NOT_BELOW_ONE, |beta1| Adam { beta1, ..adam.clone() }),
            each("adam.beta2", NOT_BELOW_ONE, |beta2| Adam { beta2, ..adam.clone() }),
            each("adam.eps", NOT_POSITIVE, |eps| Adam { eps, ..adam.clone() }),
        ]
        .concat(),
        Rule::Adam(adam) => [
            each("adam.beta1", NOT_INSIDE_ONE, |beta1| Adam { beta1, ..adam.clone() }),
            each("adam.beta2", NOT_INSIDE_ONE, |beta2| Adam { beta2, ..adam.clone() }),
            each("adam.eps", NOT_POSITIVE, |eps| Adam { eps, ..adam.clone() }),
            vec![("adam.use_amsgrad", Adam { use_amsgrad: true, use_nesterov: true, ..adam.clone() }.into())],
        ]
        .concat(),
        Rule::AdamWeightDecay(rule) => [
            each("adam_weight_decay.beta1", NOT_INSIDE_ONE, |beta1| AdamWeightDecay { beta1, ..rule.clone() }),
            each("adam_weight_decay.beta2", NOT_INSIDE_ONE, |beta2| AdamWeightDecay { beta2, ..rule.clone() }),
            each("adam_weight_decay.eps", NOT_POSITIVE, |eps| AdamWeightDecay { eps, ..rule.clone() }),
        ]
        .concat(),
        Rule::AdamW(rule) => [
            each("adamw.beta1", NOT_BELOW_ONE, |beta1| AdamW { beta1, ..rule.clone() }),
            each("adamw.beta2", NOT_BELOW_ONE, |beta2| AdamW { beta2, ..rule.clone() }),
            each("adamw.eps", NOT_POSITIVE, |eps| AdamW { eps, ..rule.clone() }),
        ]
        .concat(),
        Rule::LazyAdam(rule) => [
            each("lazy_adam.beta1", NOT_INSIDE_ONE, |beta1| LazyAdam { beta1, ..rule.clone() }),
            each("lazy_adam.beta2", NOT_INSIDE_ONE, |beta2| LazyAdam { beta2, ..rule.clone() }),
            each("lazy_adam.eps", NOT_POSITIVE, |eps| LazyAdam { eps, ..rule.clone() }),
        ]
        .concat(),
        Rule::AdamOffload(rule) => [
            each("adam_offload.beta1", NOT_INSIDE_ONE, |beta1| AdamOffload { beta1, ..rule.clone() }),
            each("adam_offload.beta2", NOT_INSIDE_ONE, |beta2| AdamOffload { beta2, ..rule.clone() }),
            each("adam_offload.eps", NOT_POSITIVE, |eps| AdamOffload { eps, ..rule.clone() }),
        ]
        .concat(),
        Rule::AdaMax(rule) if rule.eps_inside => [
            each("ada_max.beta1", NOT_BELOW_ONE, |beta1| AdaMax { beta1, ..rule.clone() }),
            each("ada_max.beta2", NOT_BELOW_ONE, |beta2| AdaMax { beta2, ..rule.clone() }),
            each("ada_max.eps", NOT_POSITIVE, |eps| AdaMax { eps, ..rule.clone() }),
        ]
        .concat(),
        Rule::AdaMax(rule) => [
            each("ada_max.beta1", NOT_INSIDE_ONE, |beta1| AdaMax { beta1, ..rule.clone() }),
            each("ada_max.beta2", NOT_INSIDE_ONE, |beta2| AdaMax { beta2, ..rule.clone() }),
            each("ada_max.eps", NOT_POSITIVE, |eps| AdaMax { eps, ..rule.clone() }),
        ]
        .concat(),
        Rule::NAdam(rule) => [
            each("nadam.beta1", NOT_BELOW_ONE, |beta1| NAdam { beta1, ..rule.clone() }),
            each("nadam.beta2", NOT_BELOW_ONE, |beta2| NAdam { beta2, ..rule.clone() }),
            each("nadam.eps", NOT_POSITIVE, |eps| NAdam { eps, ..rule.clone() }),
            each("nadam.momentum_decay", NEGATIVE, |momentum_decay| NAdam { momentum_decay, ..rule.clone() }),
        ]
        .concat(),
        Rule::RAdam(rule) => [
            each("radam.beta1", NOT_BELOW_ONE, |beta1| RAdam { beta1, ..rule.clone() }),
            each("radam.beta2", NOT_BELOW_ONE, |beta2| RAdam { beta2, ..rule.clone() }),
            each("radam.eps", NOT_POSITIVE, |eps| RAdam { eps, ..rule.clone() }),
        ]
        .concat(),
        Rule::Lion(rule) => [
            each("lion.beta1", NOT_BELOW_ONE, |beta1| Lion { beta1, ..rule.clone() }),
            each("lion.beta2", NOT_BELOW_ONE, |beta2| Lion { beta2, ..rule.clone() }),
        ]
        .concat(),
        Rule::Adan(rule) => [
            each("adan.beta1", NOT_BELOW_ONE, |beta1| Adan { beta1, ..rule.clone() }),
            each("adan.beta2", NOT_BELOW_ONE, |beta2| Adan { beta2, ..rule.clone() }),
            each("adan.beta3", NOT_BELOW_ONE, |beta3| Adan { beta3, ..rule.clone() }),
            each("adan.eps", NOT_POSITIVE, |eps| Adan { eps, ..rule.clone() }),
        ]
        .concat(),
        Rule::Adagrad(rule) => [
            each("adagrad.accum", NEGATIVE, |accum| Adagrad { accum, ..rule.clone() }),
            each("adagrad.epsilon", NEGATIVE, |epsilon| Adagrad { epsilon, ..rule.clone() }),
            each("adagrad.lr_decay", NEGATIVE, |lr_decay| Adagrad { lr_decay, ..rule.clone() }),
        ]
        .concat(),
        Rule::ProximalAdagrad(rule) => [
            each("proximal_adagrad.accum", NEGATIVE, |accum| ProximalAdagrad { accum, ..rule.clone() }),
            each("proximal_adagrad.l1", NEGATIVE, |l1| ProximalAdagrad { l1, ..rule.clone() }),
            each("proximal_adagrad.l2", NEGATIVE, |l2| ProximalAdagrad { l2, ..rule.clone() }),
        ]
        .concat(),
        Rule::Ftrl(rule) => [
            each("ftrl.initial_accum", NEGATIVE, |initial_accum| Ftrl { initial_accum, ..rule.clone() }),
            each("ftrl.lr_power", NOT_FINITE, |lr_power| Ftrl { lr_power, ..rule.clone() }),
            each("ftrl.lr_power", [0.1], |lr_power| Ftrl { lr_power, ..rule.clone() }),
            each("ftrl.l1", NEGATIVE, |l1| Ftrl { l1, ..rule.clone() }),
            each("ftrl.l2", NEGATIVE, |l2| Ftrl { l2, ..rule.clone() }),
            // Its own rate must not be 0, unlike other rules'.
            each("ftrl.lr", NOT_POSITIVE, |lr| Ftrl { lr: lr.into(), ..rule.clone() }),
        ]
        .concat(),
        Rule::RmsProp(rule) => [
            each("rms_prop.decay", NEGATIVE, |decay| RmsProp { decay, ..rule.clone() }),
            each("rms_prop.momentum", NEGATIVE, |momentum| RmsProp { momentum, ..rule.clone() }),
            each("rms_prop.epsilon", NOT_POSITIVE, |epsilon| RmsProp { epsilon, ..rule.clone() }),
            each("rms_prop.initial_ms", NEGATIVE, |initial_ms| RmsProp { initial_ms, ..rule.clone() }),
        ]
        .concat(),
        Rule::Adadelta(rule) => [
            each("adadelta.rho", NOT_UP_TO_ONE, |rho| Adadelta { rho, ..rule.clone() }),
            each("adadelta.epsilon", NEGATIVE, |epsilon| Adadelta { epsilon, ..rule.clone() }),
        ]
        .concat(),
        Rule::Asgd(rule) => [
            each("asgd.lambd", NEGATIVE, |lambd| Asgd { lambd, ..rule.clone() }),
            each("asgd.alpha", NOT_FINITE, |alpha| Asgd { alpha, ..rule.clone() }),
            each("asgd.t0", NOT_FINITE, |t0| Asgd { t0, ..rule.clone() }),
        ]
        .concat(),
        Rule::Rprop(rule) => [
            each("rprop.etas.0", NOT_INSIDE_ONE, |minus| Rprop { etas: (minus, 1.2), ..rule.clone() }),
            each("rprop.etas.1", NOT_FINITE, |plus| Rprop { etas: (0.5, plus), ..rule.clone() }),
            each("rprop.etas.1", [1.0, 0.5, -2.0], |plus| Rprop { etas: (0.5, plus), ..rule.clone() }),
            each("rprop.step_sizes.0", NEGATIVE, |min| Rprop { step_sizes: (min, 50.0), ..rule.clone() }),
            each("rprop.step_sizes.1", NEGATIVE, |max| Rprop { step_sizes: (0.0, max), ..rule.clone() }),
            each("rprop.step_sizes", [0.01], |max| Rprop { step_sizes: (0.1, max), ..rule.clone() }),
        ]
        .concat(),
        Rule::AdaFactor(rule) => [
            each("ada_factor.eps.0", NEGATIVE, |eps1| AdaFactor { eps: (eps1, 1e-3), ..rule.clone() }),
            each("ada_factor.eps.1", NEGATIVE, |eps2| AdaFactor { eps: (1e-30, eps2), ..rule.clone() }),
            each("ada_factor.clip_threshold", NOT_POSITIVE, |clip_threshold| AdaFactor {
                clip_threshold,
                ..rule.clone()
            }),
            each("ada_factor.decay_rate", NOT_INSIDE_ONE, |decay_rate| AdaFactor { decay_rate, ..rule.clone() }),
            each("ada_factor.beta1", NOT_BELOW_ONE, |beta1| AdaFactor { beta1, ..rule.clone() }),
            each("ada_factor.weight_decay", NOT_BELOW_ONE, |decay| AdaFactor { weight_decay: decay, ..rule.clone() }),
            vec![
                ("ada_factor.relative_step", AdaFactor { relative_step: true, ..AdaFactor::with_lr(0.1) }.into()),
                ("ada_factor.lr", AdaFactor { relative_step: false, ..AdaFactor::default() }.into()),
                ("ada_factor.warmup_init", AdaFactor { warmup_init: true, ..AdaFactor::with_lr(0.1) }.into()),
            ],
        ]
        .concat(),
        Rule::Lamb(lamb) => [
            each("lamb.beta1", NOT_INSIDE_ONE, |beta1| Lamb { beta1, ..lamb.clone() }),
            each("lamb.beta2", NOT_INSIDE_ONE, |beta2| Lamb { beta2, ..lamb.clone() }),
            each("lamb.eps", NOT_POSITIVE, |eps| Lamb { eps, ..lamb.clone() }),
        ]
        .concat(),
        Rule::Lars(lars) => [
            each("lars.epsilon", NEGATIVE, |epsilon| Lars { epsilon, ..lars.clone() }),
            each("lars.coefficient", NEGATIVE, |coefficient| Lars { coefficient, ..lars.clone() }),
            vec![("lars.inner", Lars::new(lars.clone()).into()), ("lars.inner", Lars::new(Lamb::new(0.1)).into())],
        ]
        .concat(),
        Rule::Custom(own) => unreachable!("{own:?} is not among all rules"),
    }
}

#[test]
fn hyper_parameters_of_every_rule() {
    for rule in Rule::all() {
        for (name, bad) in out_of_range(&rule) {
            assert_refused!(Builder::new(bad).params([weight()]), Error::HyperParameter { .. }, name);
        }
    }
}

/// Values in range that are not after rounding to `f32`, where kernels compute: 1 − β would be 0 and the bias correction 0/0,
/// ε 0, a momentum infinite.
#[test]
fn hyper_parameters_that_round_out_of_range() {
    let adam = Adam::default;
    let bad: [(&str, Rule); 22] = [
        ("adam.beta1", Adam { beta1: 1.0 - 1e-12, ..adam() }.into()),
        ("adam.beta2", Adam { beta2: 1.0 - 1e-12, ..adam() }.into()),
        ("adam.eps", Adam { eps: 1e-60, ..adam() }.into()),
        ("momentum.momentum", Momentum::new(0.1, 1e60).into()),
        ("sgd.momentum", Sgd { momentum: 1e60, ..Sgd::default() }.into()),
        ("sgd.dampening", Sgd { momentum: 0.9, dampening: 1e60, ..Sgd::default() }.into()),
        ("adam.lr", Adam::new(1e60).into()),
        ("adam.weight_decay", Adam { weight_decay: 1e60, ..adam() }.into()),
        ("adam.beta2", Adam { beta2: 1.0 - 1e-12, ..Adam::torch() }.into()),
        ("adam_weight_decay.beta1", AdamWeightDecay { beta1: 1.0 - 1e-12, ..AdamWeightDecay::default() }.into()),
        ("adamw.beta2", AdamW { beta2: 1.0 - 1e-12, ..AdamW::default() }.into()),
        ("ada_max.eps", AdaMax { eps: 1e-60, ..AdaMax::default() }.into()),
        ("radam.beta2", RAdam { beta2: 1.0 - 1e-12, ..RAdam::default() }.into()),
        ("lion.beta1", Lion { beta1: 1.0 - 1e-12, ..Lion::default() }.into()),
        ("adan.beta3", Adan { beta3: 1.0 - 1e-12, ..Adan::default() }.into()),
        ("adagrad.accum", Adagrad { accum: 1e60, ..Adagrad::default() }.into()),
        ("proximal_adagrad.l1", ProximalAdagrad { l1: 1e60, ..ProximalAdagrad::default() }.into()),
        ("ftrl.lr", Ftrl::new(1e-60).into()),
        ("ftrl.lr_power", Ftrl { lr_power: -1e60, ..Ftrl::default() }.into()),
        ("rms_prop.epsilon", RmsProp { epsilon: 1e-60, ..RmsProp::default() }.into()),
        ("rprop.etas.0", Rprop { etas: (1.0 - 1e-12, 1.2), ..Rprop::default() }.into()),
        ("rprop.etas.1", Rprop { etas: (0.5, 1.0 + 1e-12), ..Rprop::default() }.into()),
    ];
    for (name, rule) in bad {
        assert_refused!(Builder::new(rule).params([weight()]), Error::HyperParameter { .. }, name);
    }
}

#[test]
fn rates() {
    let grouped = |lr: Rate| Adam::default().groups([ParamGroup::new([bias()]), ParamGroup::new([weight()]).lr(lr)]);
    let config = |lr: Rate| Adam::new(lr).params([weight()]);
    let nothing: [f64; 0] = [];
    let bad = NEGATIVE.map(Rate::from).into_iter().chain([
        nothing.into(),
        [0.1, f64::NAN].into(),
        [f64::INFINITY].into(),
        vec![0.1, 0.2, f64::NEG_INFINITY].into(),
    ]);
    for rate in bad {
        assert_refused!(config(rate.clone()), Error::HyperParameter { .. }, "adam.lr");
        assert_refused!(grouped(rate), Error::HyperParameter { .. }, "group 1: lr");
    }
    // As in MindSpore: 0 is a rate, and a list may hold any finite numbers.
    for rate in [Rate::from(0.0), [-0.1].into()] {
        assert!(config(rate).build(Target::ALL[0]).is_ok(), "a good rate");
    }
    for rule in Rule::all() {
        let name = format!("{}.lr", rule.spec().name());
        let bad: Rule = match rule {
            Rule::Sgd(rule) => Sgd { lr: (-1.0).into(), ..rule }.into(),
            Rule::Momentum(rule) => Momentum { lr: (-1.0).into(), ..rule }.into(),
            Rule::Adam(rule) => Adam { lr: (-1.0).into(), ..rule }.into(),
            Rule::AdamWeightDecay(rule) => AdamWeightDecay { lr: (-1.0).into(), ..rule }.into(),
            Rule::AdamW(rule) => AdamW { lr: (-1.0).into(), ..rule }.into(),
            Rule::LazyAdam(rule) => LazyAdam { lr: (-1.0).into(), ..rule }.into(),
            Rule::AdamOffload(rule) => AdamOffload { lr: (-1.0).into(), ..rule }.into(),
            Rule::AdaMax(rule) => AdaMax { lr: (-1.0).into(), ..rule }.into(),
            Rule::NAdam(rule) => NAdam { lr: (-1.0).into(), ..rule }.into(),
            Rule::RAdam(rule) => RAdam { lr: (-1.0).into(), ..rule }.into(),
            Rule::Lion(rule) => Lion { lr: (-1.0).into(), ..rule }.into(),
            Rule::Adan(rule) => Adan { lr: (-1.0).into(), ..rule }.into(),
            Rule::Adagrad(rule) => Adagrad { lr: (-1.0).into(), ..rule }.into(),
            Rule::ProximalAdagrad(rule) => ProximalAdagrad { lr: (-1.0).into(), ..rule }.into(),
            Rule::Ftrl(rule) => Ftrl { lr: (-1.0).into(), ..rule }.into(),
            Rule::RmsProp(rule) => RmsProp { lr: (-1.0).into(), ..rule }.into(),
            Rule::Adadelta(rule) => Adadelta { lr: (-1.0).into(), ..rule }.into(),
            Rule::Asgd(rule) => Asgd { lr: (-1.0).into(), ..rule }.into(),
            Rule::Rprop(rule) => Rprop { lr: (-1.0).into(), ..rule }.into(),
            Rule::AdaFactor(_) => AdaFactor::with_lr(-1.0).into(),
            Rule::Lamb(rule) => Lamb { lr: (-1.0).into(), ..rule }.into(),
            Rule::Lars(_) => Lars::new(Momentum { lr: (-1.0).into(), ..Momentum::new(0.1, 0.9) }).into(),
            Rule::Custom(own) => unreachable!("{own:?} is not among all rules"),
        };
        assert_refused!(Builder::new(bad).params([weight()]), Error::HyperParameter { .. }, &name, "-1");
    }
}

#[test]
fn weight_decays() {
    for rule in Rule::all() {
        let name = format!("{}.weight_decay", rule.spec().name());
        for bad in NEGATIVE {
            let builder = || Builder::new(rule.clone());
            assert_refused!(builder().params([weight()]).weight_decay(bad), Error::HyperParameter { .. }, &name);
            let groups = [ParamGroup::new([bias()]), ParamGroup::new([weight()]).weight_decay(bad)];
            assert_refused!(builder().groups(groups), Error::HyperParameter { .. }, "group 1: weight_decay");
        }
        let config: Rule = match rule {
            Rule::Sgd(rule) => Sgd { weight_decay: -1.0, ..rule }.into(),
            Rule::Momentum(rule) => Momentum { weight_decay: -1.0, ..rule }.into(),
            Rule::Adam(rule) => Adam { weight_decay: -1.0, ..rule }.into(),
            Rule::AdamWeightDecay(rule) => AdamWeightDecay { weight_decay: -1.0, ..rule }.into(),
            Rule::AdamW(rule) => AdamW { weight_decay: -1.0, ..rule }.into(),
            Rule::LazyAdam(rule) => LazyAdam { weight_decay: -1.0, ..rule }.into(),
            Rule::AdamOffload(rule) => AdamOffload { weight_decay: -1.0, ..rule }.into(),
            Rule::AdaMax(rule) => AdaMax { weight_decay: -1.0, ..rule }.into(),
            Rule::NAdam(rule) => NAdam { weight_decay: -1.0, ..rule }.into(),
            Rule::RAdam(rule) => RAdam { weight_decay: -1.0, ..rule }.into(),
            Rule::Lion(rule) => Lion { weight_decay: -1.0, ..rule }.into(),
            Rule::Adan(rule) => Adan { weight_decay: -1.0, ..rule }.into(),
            Rule::Adagrad(rule) => Adagrad { weight_decay: -1.0, ..rule }.into(),
            Rule::ProximalAdagrad(rule) => ProximalAdagrad { weight_decay: -1.0, ..rule }.into(),
            Rule::Ftrl(rule) => Ftrl { weight_decay: -1.0, ..rule }.into(),
            Rule::RmsProp(rule) => RmsProp { weight_decay: -1.0, ..rule }.into(),
            Rule::Adadelta(rule) => Adadelta { weight_decay: -1.0, ..rule }.into(),
            Rule::Asgd(rule) => Asgd { weight_decay: -1.0, ..rule }.into(),
            Rule::Rprop(rule) => Rprop { weight_decay: -1.0, ..rule }.into(),
            Rule::AdaFactor(rule) => AdaFactor { weight_decay: -1.0, ..rule }.into(),
            Rule::Lamb(rule) => Lamb { weight_decay: -1.0, ..rule }.into(),
            Rule::Lars(_) => Lars::new(Momentum { weight_decay: -1.0, ..Momentum::new(0.1, 0.9) }).into(),
            Rule::Custom(own) => unreachable!("{own:?} is not among all rules"),
        };
        assert_refused!(Builder::new(config).params([weight()]), Error::HyperParameter { .. }, &name, "-1");
    }
}

/// 1e-50 is positive, but 1 / 1e-50 is no `f32`; 1e50 is none itself.
#[test]
fn loss_scales() {
    for bad in NOT_POSITIVE.into_iter().chain([1e-50, 1e50, f64::MIN_POSITIVE]) {
        let builder = Adam::default().params([weight()]).loss_scale(bad);
        assert_refused!(builder, Error::HyperParameter { .. }, "loss_scale");
    }
    for good in [1.0, 0.5, 1024.0, 1e-30, 1e30] {
        let builder = Adam::default().params([weight()]).loss_scale(good);
        assert!(builder.build(Target::ALL[0]).is_ok(), "{good} is a good loss scale");
    }
}

#[test]
fn schedule_constructors() {
    #[track_caller]
    fn refused<S: Schedule>(schedule: Result<S>, name: &str) {
        let error = schedule.map(|schedule| format!("{schedule:?}")).expect_err("a schedule was made");
        assert!(matches!(error, Error::HyperParameter { .. }), "{error:?}");
        names(&error, &[name]);
    }
    for bad in NEGATIVE {
        refused(WarmUp::new(bad, 4), "WarmUp: lr");
        refused(CosineDecay::new(bad, 0.1, 4), "CosineDecay: min_lr");
        refused(PolynomialDecay::new(0.1, bad, 4, 1.0), "PolynomialDecay: end_lr");
    }
    for bad in NOT_POSITIVE {
        refused(CosineDecay::new(0.0, bad, 4), "CosineDecay: max_lr");
        refused(PolynomialDecay::new(bad, 0.01, 4, 1.0), "PolynomialDecay: lr");
        refused(PolynomialDecay::new(0.1, 0.01, 4, bad), "PolynomialDecay: power");
    }
    for bad in NOT_POSITIVE {
        refused(ExponentialDecay::new(bad, 0.5, 4), "ExponentialDecay: lr");
        refused(ExponentialDecay::new(0.1, bad, 4), "ExponentialDecay: decay_rate");
        refused(NaturalExpDecay::new(bad, 0.5, 4), "NaturalExpDecay: lr");
        refused(NaturalExpDecay::new(0.1, bad, 4), "NaturalExpDecay: decay_rate");
        refused(InverseDecay::new(bad, 0.5, 4), "InverseDecay: lr");
        refused(InverseDecay::new(0.1, bad, 4), "InverseDecay: decay_rate");
    }
    refused(ExponentialDecay::new(0.1, 0.5, 0), "ExponentialDecay: decay_steps");
    refused(NaturalExpDecay::new(0.1, 0.5, 0), "NaturalExpDecay: decay_steps");
    refused(InverseDecay::new(0.1, 0.5, 0), "InverseDecay: decay_steps");
    refused(CosineDecay::new(0.1, 0.1, 4), "CosineDecay: max_lr");
    refused(CosineDecay::new(0.2, 0.1, 4), "CosineDecay: max_lr");
    refused(WarmUp::new(0.1, 0), "WarmUp: warmup_steps");
    refused(CosineDecay::new(0.0, 0.1, 0), "CosineDecay: decay_steps");
    refused(PolynomialDecay::new(0.1, 0.01, 0, 1.0), "PolynomialDecay: decay_steps");
    // As in MindSpore: the end may lie above the start.
    assert!(PolynomialDecay::new(0.1, 0.5, 4, 1.0).is_ok(), "a rising schedule");
}

/// The rate of the second group of [`Trained`].
#[derive(Debug, Clone)]
enum Second {
    Fixed,
    List,
    Schedule(f64),
}

/// Good for two updates, then this.
#[derive(Debug)]
struct Breaks(f64);

impl Schedule for Breaks {
    fn at(&self, update: u64) -> f64 {
        if update < 2 { 0.1 } else { self.0 }
    }
}

/// An optimizer of two groups after two steps, with its memory.
struct Trained {
    optimizer: Optimizer,
    p: [Vec<f32>; 2],
}

const G: [&[f32]; 2] = [&[0.5, -1.0, 2.0, 0.25, 3.0, -0.125], &[1.0, 2.0, -4.0]];

impl Trained {
    fn new(rule: &Rule, target: Target, second: &Second) -> Self {
        let group = ParamGroup::new([bias()]).weight_decay(0.1);
        let group = match second {
            Second::Fixed => group,
            Second::List => group.lr([0.1, 0.2]),
            Second::Schedule(value) => group.lr(Breaks(*value)),
        };
        let builder = Builder::new(rule.clone()).groups([ParamGroup::new([weight()]), group]).loss_scale(2.0);
        let optimizer = builder.build(target).unwrap();
        let mut new = Self { optimizer, p: [vec![1.0, -2.0, 3.0, 4.0, 5.0, 6.0], vec![-1.0, 0.5, 0.25]] };
        new.good_step().unwrap();
        new.good_step().unwrap();
        new
    }

    fn good_step(&mut self) -> Result<()> {
        let [a, b] = &mut self.p;
        self.optimizer
            .step(&mut [a.into(), b.into()], &G.map(Into::into))
            .map(|report| assert!(report.applied(), "{report:?}"))
    }

    fn bits(&self, by: &str) -> Run {
        Run::of(&self.optimizer, &self.p).unwrap().by(by)
    }
}

/// A step that must be refused, for every rule: nothing changes, and the next good step is as if it had not been tried.
fn refused_step(
    target: Target,
    second: &Second,
    step: impl Fn(&mut Optimizer, &mut [Vec<f32>; 2]) -> Result<()>,
    is_right: impl Fn(&Error) -> bool,
    mentions: &[&str],
) {
    for rule in Rule::all() {
        let mut trained = Trained::new(&rule, target, second);
        let before = trained.bits("before");
        let Err(error) = step(&mut trained.optimizer, &mut trained.p) else { panic!("{rule:?}: accepted") };
        assert!(is_right(&error), "{rule:?}: {error:?}");
        names(&error, mentions);
        let unchanged = compare(&before, &trained.bits("after the refused step"), &Bound::Bits);
        assert!(unchanged.is_ok(), "{rule:?}, {error}: {unchanged:?}");
        assert_eq!(trained.optimizer.step_count(), 2, "{error}");

        if let Second::Fixed = second {
            let mut undisturbed = Trained::new(&rule, target, second);
            undisturbed.good_step().unwrap();
            trained.good_step().unwrap();
            let same = compare(&undisturbed.bits("undisturbed"), &trained.bits("after a refused step"), &Bound::Bits);
            assert!(same.is_ok(), "{rule:?}, {error}: {same:?}");
        }
    }
}

/// A step with these gradients.
fn with_gradients<'a>(grads: &'a [Grad<'a>]) -> impl Fn(&mut Optimizer, &mut [Vec<f32>; 2]) -> Result<()> + 'a {
    move |optimizer, [a, b]| optimizer.step(&mut [a.into(), b.into()], grads).map(drop)
}

/// Memory of a device that no backend knows.
#[derive(Debug)]
struct Foreign(usize, DType);

impl DeviceMemory for Foreign {
    fn len(&self) -> usize {
        self.0
    }

    fn dtype(&self) -> DType {
        self.1
    }

    fn to_host(&self) -> Result<Vec<f32>> {
        panic!("nobody reads it")
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

on_every_backend! {
    fn counts(target) {
        let [g, h] = G.map(Grad::from);
        for grads in [&[][..], &[g], &[g, h, h]] {
            let is_right = |error: &Error| {
                *error == Error::Count { what: "gradient", expected: 2, got: grads.len() }
            };
            refused_step(target, &Second::Fixed, with_gradients(grads), is_right, &["2 gradients"]);
        }
        let one = |optimizer: &mut Optimizer, [a, _]: &mut [Vec<f32>; 2]| {
            optimizer.step(&mut [a.into()], &[g, h]).map(drop)
        };
        let is_right = |error: &Error| *error == Error::Count { what: "parameter", expected: 2, got: 1 };
        refused_step(target, &Second::Fixed, one, is_right, &["2 parameters"]);
    }

    fn lengths(target) {
        let [g, h] = G.map(Grad::from);
        for (grads, name, expected, got) in
            [([h, h], "weight", 6, 3), ([g, g], "bias", 3, 6), ([g, Grad::F32(&[])], "bias", 3, 0)]
        {
            let is_right =
                |error: &Error| *error == Error::Length { what: "gradient", name: name.into(), expected, got };
            refused_step(target, &Second::Fixed, with_gradients(&grads), is_right, &[name]);
        }
        let short = |optimizer: &mut Optimizer, [a, b]: &mut [Vec<f32>; 2]| {
            optimizer.step(&mut [a.into(), (&mut b[..2]).into()], &[g, h]).map(drop)
        };
        let is_right = |error: &Error| {
            *error == Error::Length { what: "parameter", name: "bias".into(), expected: 3, got: 2 }
        };
        refused_step(target, &Second::Fixed, short, is_right, &["\"bias\""]);
        // Also where there is no gradient.
        let short = |optimizer: &mut Optimizer, [a, b]: &mut [Vec<f32>; 2]| {
            optimizer.step(&mut [a.into(), (&mut b[..2]).into()], &[g, Grad::None]).map(drop)
        };
        refused_step(target, &Second::Fixed, short, is_right, &["\"bias\""]);
    }

    fn types(target) {
        let [g, h] = G.map(Grad::from);
        let half = [f16::ONE; 3];
        let half_parameter = |optimizer: &mut Optimizer, [a, _]: &mut [Vec<f32>; 2]| {
            let mut half = half;
            optimizer.step(&mut [a.into(), (&mut half).into()], &[g, h]).map(drop)
        };
        let is_right = |error: &Error| {
            *error == Error::DType { what: "parameter", name: "bias".into(), expected: DType::F32, got: DType::F16 }
        };
        refused_step(target, &Second::Fixed, half_parameter, is_right, &["\"bias\"", "f16"]);
    }

    /// Memory of another backend's device, as the second tensor: the first must not have been updated.
    fn foreign_memory(target) {
        let [g, h] = G.map(Grad::from);
        let foreign = Foreign(3, DType::F32);
        let is_right = |error: &Error| matches!(error, Error::Memory { what: "gradient", .. });
        refused_step(target, &Second::Fixed, with_gradients(&[g, (&foreign).into()]), is_right, &["\"bias\""]);

        let parameter = |optimizer: &mut Optimizer, [a, _]: &mut [Vec<f32>; 2]| {
            optimizer.step(&mut [a.into(), (&foreign).into()], &[g, h]).map(drop)
        };
        let is_right = |error: &Error| matches!(error, Error::Memory { what: "parameter", .. });
        refused_step(target, &Second::Fixed, parameter, is_right, &["\"bias\""]);

        // Length and type of a device's memory are checked like the host's.
        let is_right = |error: &Error| matches!(error, Error::Length { expected: 3, got: 4, .. });
        let long = Foreign(4, DType::F32);
        refused_step(target, &Second::Fixed, with_gradients(&[g, (&long).into()]), is_right, &["\"bias\""]);
        let is_right = |error: &Error| {
            matches!(error, Error::DType { what: "parameter", expected: DType::F32, got: DType::Bf16, .. })
        };
        let brain = Foreign(3, DType::Bf16);
        let parameter = |optimizer: &mut Optimizer, [a, _]: &mut [Vec<f32>; 2]| {
            optimizer.step(&mut [a.into(), (&brain).into()], &[g, h]).map(drop)
        };
        refused_step(target, &Second::Fixed, parameter, is_right, &["\"bias\""]);
    }

    /// Masters and averages stay what they were where one parameter's memory is refused.
    fn a_refused_reseed(target) {
        let foreign = Foreign(3, DType::Bf16);
        let [plain, refused] = [false, true].map(|refused| {
            let parameters = ["u", "v"].map(|name| Parameter::new(name, [3]).with_dtype(DType::Bf16));
            let mut optimizer = Adam::new(1e-4).params(parameters).ema(0.9).build(target).unwrap();
            let [mut u, mut v] = [[bf16::ONE; 3]; 2];
            for step in 0..3 {
                if refused && step == 2 {
                    let mut other = [bf16::from_f32(9.0); 3];
                    let error = optimizer.reseed(&mut [(&mut other).into(), (&foreign).into()]).unwrap_err();
                    assert!(matches!(error, Error::Memory { what: "parameter", .. }), "{error}");
                }
                let g = Grad::F32(&[0.5; 3]);
                assert!(optimizer.step(&mut [(&mut u).into(), (&mut v).into()], &[g, g]).unwrap().applied());
            }
            ["u", "v"].map(|name| optimizer.average(name).unwrap())
        });
        assert_eq!(refused, plain);
        assert_ne!(plain[0], [1.0; 3]);
    }

    /// A step that would leave out what has been accumulated, for a later one.
    fn a_step_beside_accumulated_gradients(target) {
        let mut optimizer = Sgd::new(1.0).params([Parameter::new("w", [1])]).build(target).unwrap();
        let mut w = [0.0_f32];
        optimizer.accumulate(&[Grad::F32(&[3.0])], 1.0).unwrap();
        let error = optimizer.step(&mut [(&mut w).into()], &[Grad::F32(&[1.0])]).unwrap_err();
        assert!(matches!(error, Error::State { .. }), "{error}");
        names(&error, &["step_accumulated"]);
        optimizer.accumulate(&[Grad::F32(&[1.0])], 1.0).unwrap();
        assert!(optimizer.step_accumulated(&mut [(&mut w).into()]).unwrap().applied());
        assert_eq!(w, [-2.0]);
        optimizer.accumulate(&[Grad::F32(&[3.0])], 1.0).unwrap();
        optimizer.discard_accumulated();
        assert!(optimizer.step(&mut [(&mut w).into()], &[Grad::F32(&[1.0])]).unwrap().applied());
        assert_eq!(w, [-3.0]);
    }

    /// Axes of any length beside one of none: nothing to update, nothing to overflow.
    fn parameters_without_elements(target) {
        let shapes: [&[usize]; 3] = [&[u32::MAX as usize, 0], &[0, u32::MAX as usize], &[3, 0, 1 << 40]];
        for rule in [Rule::from(Sgd::default()), Lamb::new(0.01).into(), AdaMax::default().into()] {
            let empty = shapes.iter().zip(["a", "b", "c"]).map(|(&shape, name)| Parameter::new(name, shape));
            let parameters: Vec<_> = empty.chain([Parameter::new("w", [2, 300])]).collect();
            let mut optimizer = Builder::new(rule).groups([ParamGroup::new(parameters).grad_centralization(true)]).build(target).unwrap();
            let (mut none, mut w, g) = ([[0.0_f32; 0]; 3], [1.0_f32; 600], [0.5_f32; 600]);
            let [a, b, c] = &mut none;
            let empty = Grad::F32(&[]);
            let params = &mut [a.into(), b.into(), c.into(), (&mut w).into()];
            assert!(optimizer.step(params, &[empty, empty, empty, (&g).into()]).unwrap().applied());
        }
    }

    fn exhausted_rates(target) {
        let grads = G.map(Grad::from);
        let is_right = |error: &Error| {
            *error == Error::RateExhausted { what: "learning rate", place: "group 1".into(), update: 2, len: 2 }
        };
        refused_step(target, &Second::List, with_gradients(&grads), is_right, &["group 1", "2 entries"]);
    }

    fn schedules_that_break(target) {
        let grads = G.map(Grad::from);
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let is_right = |error: &Error| {
                matches!(error, Error::RateNotFinite { what: "learning rate", place, update: 2, .. } if place == "group 1")
            };
            let second = Second::Schedule(value);
            refused_step(target, &second, with_gradients(&grads), is_right, &["group 1", "update 2", &value.to_string()]);
        }
    }

    fn unknown_names(target) {
        for rule in Rule::all() {
            let trained = Trained::new(&rule, target, &Second::Fixed);
            let error = trained.optimizer.slot("wieght", "moment1").unwrap_err();
            assert!(matches!(error, Error::Unknown { what: "parameter", .. }), "{error:?}");
            names(&error, &["\"wieght\"", "weight, bias"]);
            let error = trained.optimizer.slot("weight", "moment3").unwrap_err();
            assert!(matches!(error, Error::Unknown { what: "slot", .. }), "{error:?}");
            names(&error, &["\"moment3\""]);
            for slot in rule.spec().slots() {
                names(&error, &[slot.name]);
                let parameters = trained.optimizer.parameters();
                let weight = parameters.iter().find(|p| p.name() == "weight").expect("there is a weight");
                let len = slot.shape.len(weight.shape());
                assert_eq!(trained.optimizer.slot("weight", slot.name).unwrap().len(), len, "{}", slot.name);
            }
        }
    }
}

/// A pool without threads.
#[cfg(feature = "cpu")]
#[test]
fn no_threads() {
    let error = optimizers::CpuBackend::with_threads(0).unwrap_err();
    assert!(matches!(error, Error::HyperParameter { .. }), "{error:?}");
    names(&error, &["threads", "0"]);
}

/// A backend that this build does not contain is an error that says which feature brings it; nothing else is chosen.
#[cfg(not(all(feature = "cpu", feature = "gpu")))]
#[test]
fn backends_not_built() {
    use optimizers::Backend;
    let (backend, name) = if cfg!(feature = "cpu") { (Backend::Gpu, "gpu") } else { (Backend::Cpu, "cpu") };
    let error = Adam::default().params([weight()]).build(backend).unwrap_err();
    assert_eq!(error, Error::BackendNotBuilt { backend: name, feature: name });
    names(&error, &[name, "feature"]);
}

/// What a step's checks see of memory on a device.
#[test]
fn memory_of_a_device_is_described() {
    let foreign = Foreign(3, DType::Bf16);
    let (param, grad) = (ParamMut::from(&foreign), Grad::from(&foreign));
    assert_eq!((param.len(), param.dtype()), (3, DType::Bf16));
    assert_eq!((grad.len(), grad.dtype()), (Some(3), Some(DType::Bf16)));
}

/// What only together leaves the range of an `f32`: nothing is updated with infinity or 0 in its place.
#[test]
fn products_out_of_range() {
    let parameter = || [Parameter::new("w", [1])];
    let mut w = [1.0_f32];
    let mut optimizer = Sgd::new(1e20).params(parameter()).lr_scale(|_| 1e20).build(Target::ALL[0]).unwrap();
    let error = optimizer.step(&mut [(&mut w).into()], &[(&[0.0_f32]).into()]).unwrap_err();
    assert!(matches!(error, Error::RateNotFinite { what: "learning rate", update: 0, .. }), "{error}");

    for (loss_scale, weight) in [(1.0, 1e-39), (1e-20, 1e-20), (1e30, 1e30)] {
        let mut optimizer = Sgd::new(0.1).params(parameter()).loss_scale(loss_scale).build(Target::ALL[0]).unwrap();
        optimizer.accumulate(&[(&[1.0_f32]).into()], weight).unwrap();
        let error = optimizer.step_accumulated(&mut [(&mut w).into()]).unwrap_err();
        assert!(error.to_string().starts_with("accumulate: the sum of weights"), "{error}");
    }
    assert_eq!(w, [1.0]);
}

/// A rule of the user's own that panics half way leaves an optimizer that says so, and a state to load mends it.
#[cfg(feature = "cpu")]
#[test]
fn rules_that_panic() {
    let rule = Own { slots: Vec::new(), ..own() };
    let new = || {
        Builder::new(Rule::custom(rule.clone()))
            .params([weight(), bias()])
            .build(optimizers::CpuBackend::new())
            .unwrap()
    };
    let (mut optimizer, mut w, mut b) = (new(), [1.0_f32; 6], [1.0_f32; 3]);
    let (gw, gb) = ([1.0_f32; 6], [1.0_f32; 3]);
    for accumulated in [false, true] {
        let mut step = |optimizer: &mut Optimizer| {
            let (params, grads) = (&mut [(&mut w).into(), (&mut b).into()], [(&gw).into(), (&gb).into()]);
            if accumulated {
                optimizer.accumulate(&grads, 1.0)?;
                return optimizer.step_accumulated(params);
            }
            optimizer.step(params, &grads)
        };
        rule.panics.store(true, Ordering::Relaxed);
        assert!(catch_unwind(AssertUnwindSafe(|| step(&mut optimizer))).is_err(), "the rule panics");
        rule.panics.store(false, Ordering::Relaxed);
        let error = step(&mut optimizer).unwrap_err();
        assert!(matches!(&error, Error::State { expected, .. } if expected.contains("load a state")), "{error}");
        optimizer.discard_accumulated();
        let _ = optimizer.load_state(&mut new().state().unwrap(), &optimizers::LoadOptions::default()).unwrap();
        assert!(step(&mut optimizer).unwrap().applied(), "accumulated: {accumulated}");
    }
}

/// A rule of the user's own, which does nothing, and may break a promise or panic.
#[derive(Debug, Clone)]
struct Own {
    lr: Rate,
    panics: Arc<AtomicBool>,
    slots: Vec<Slot>,
    passes: Passes,
    names: &'static [&'static str],
    wgsl: &'static str,
}

impl UpdateRule for Own {
    fn name(&self) -> &'static str {
        "own"
    }
    fn lr(&self) -> &Rate {
        &self.lr
    }
    fn weight_decay(&self) -> f64 {
        0.0
    }
    fn validate(&self) -> Result<()> {
        Ok(())
    }
    fn slots(&self) -> Vec<Slot> {
        self.slots.clone()
    }
    fn scalars(&self, _: &At) -> StepScalars {
        [0.0; 4].into()
    }
    fn scalar_names(&self) -> &'static [&'static str] {
        self.names
    }
    fn passes(&self) -> Passes {
        self.passes
    }
}

impl CustomRule for Own {
    fn update(&self, _: &StepScalars, _: &mut [f32], _: &[f32], _: &mut [&mut [f32]]) {
        assert!(!self.panics.load(Ordering::Relaxed), "as it was told to");
    }
    fn wgsl(&self) -> &str {
        self.wgsl
    }
}

/// One with nothing wrong.
fn own() -> Own {
    let names = &["a", "b", "c", "d"];
    let slots = ["a", "b", "c", "d"].map(|name| Slot::new(name, 0.0)).to_vec();
    Own { lr: 0.1.into(), panics: Arc::default(), slots, passes: Passes::Elementwise, names, wgsl: "" }
}

#[test]
fn rules_of_the_users_own() {
    let slot = Slot::new("state", 0.0);
    let called = |names: &[&'static str]| names.iter().map(|name| Slot::new(name, 0.0)).collect();
    let good = own();
    let builder = |own: Own| Builder::new(Rule::custom(own)).params([weight()]);
    let bad = [
        ("own.slots", Own { slots: vec![slot; 5], ..good.clone() }),
        // With such names it could be trained, and never saved.
        ("own.slots", Own { slots: called(&["a", "b", "a"]), ..good.clone() }),
        ("own.slots", Own { slots: called(&["a", ""]), ..good.clone() }),
        ("own.slots", Own { slots: called(&["a.b"]), ..good.clone() }),
        ("own.slots", Own { slots: vec![Slot { shape: SlotShape::Rows, ..slot }], ..good.clone() }),
        ("own.passes", Own { passes: Passes::Norms, ..good.clone() }),
        ("own.scalar_names", Own { names: &good.names[..3], ..good.clone() }),
        // With fields in another order, or fewer, a GPU would take one number for another.
        ("own.scalar_names", Own { wgsl: "struct Step { b: f32, a: f32, c: f32, d: f32 }", ..good.clone() }),
        ("own.scalar_names", Own { wgsl: "struct Steps { a: f32 }\nstruct Step{a:f32,b:f32,c:f32,}", ..good.clone() }),
        ("own.lr", Own { lr: f64::NAN.into(), ..good.clone() }),
    ];
    for (name, own) in bad {
        assert_refused!(builder(own), Error::HyperParameter { .. }, name);
    }
    let wgsl = "// struct Step { b: f32 }\nstruct Step { // the scalars\n  @align(4) a: f32, b :u32,\n  c: f32, // third\n  d: f32 }";
    for fine in [Own { wgsl, ..good.clone() }, good] {
        assert!(builder(fine).build(optim_tests::Naive::default()).is_ok(), "nothing is wrong with this one");
    }
}

/// State in fewer bits is refused where a rule has state and keeps none of it so: of a group that asks for it, and of an optimizer if
/// no group can keep it so.
#[test]
fn narrow_state_of_rules_without_any() {
    let mut wide: Vec<String> = Vec::new();
    for rule in Rule::all() {
        for state in [StateDType::Bf16, StateDType::Block8] {
            let name = rule.spec().name();
            let plain = Builder::new(rule.clone()).params([weight()]);
            let asked = plain.clone().state_dtype(state);
            let group = |state| [ParamGroup::new([weight()]).state_dtype(state).name("own")];
            assert!(plain.clone().state_dtype(StateDType::F32).estimate().is_ok(), "{rule:?}");
            assert!(
                Builder::new(rule.clone()).groups(group(StateDType::F32)).state_dtype(state).estimate().is_ok(),
                "{rule:?}"
            );
            let in_group = Builder::new(rule.clone()).groups(group(state));
            match asked.estimate() {
                Ok(narrow) => {
                    let plain = plain.estimate().unwrap().bytes();
                    assert!(narrow.bytes() < plain || plain == 0, "{rule:?}: {state} is not kept silently as f32");
                    assert!(in_group.estimate().is_ok(), "{rule:?}");
                }
                Err(_) => {
                    assert_refused!(
                        asked,
                        Error::HyperParameter { .. },
                        "the optimizer: state_dtype",
                        name,
                        &state.to_string()
                    );
                    assert_refused!(
                        in_group,
                        Error::HyperParameter { .. },
                        "group 0 (own): state_dtype",
                        name,
                        &state.to_string()
                    );
                    wide.push(format!("{rule:?}"));
                }
            }
        }
    }
    wide.dedup();
    let refused_rules: Vec<&str> = wide.iter().map(|rule| rule.split_once('(').unwrap().0).collect();
    assert_eq!(refused_rules, ["AdaFactor", "AdaFactor", "AdaFactor", "Ftrl", "Ftrl", "RmsProp", "Asgd", "Rprop"]);
    assert!(wide[5].contains("momentum: 0.0") && wide[5].contains("centered: true"), "{}", wide[5]);
    let own = Builder::new(Rule::custom(own())).params([weight()]).state_dtype(StateDType::Bf16);
    assert_refused!(own, Error::HyperParameter { .. }, "state_dtype", "with own");

    // In a list of groups the optimizer's holds for those that can.
    let mixed = |first: Rule, second: Rule| {
        let groups = [ParamGroup::new([weight()]).rule(first), ParamGroup::new([bias()]).rule(second)];
        Adam::default().groups(groups).state_dtype(StateDType::Bf16)
    };
    let (adam, ftrl, asgd) = (Adam::default().into(), Rule::from(Ftrl::new(0.1)), Rule::from(Asgd::default()));
    let bytes =
        |builder: Builder| builder.estimate().unwrap().groups.iter().map(|group| group.bytes).collect::<Vec<_>>();
    assert_eq!(bytes(mixed(adam, ftrl.clone())), [2 * 2 * 6, 2 * 4 * 3]);
    assert_refused!(
        mixed(ftrl.clone(), asgd),
        Error::HyperParameter { .. },
        "the optimizer: state_dtype",
        "ftrl, asgd"
    );
    assert_refused!(mixed(ftrl.clone(), Sgd::default().into()), Error::HyperParameter { .. }, "with ftrl");
    // And a group that is added may be one that cannot, unless it asks.
    let builder = Adam::default().params([weight()]).state_dtype(StateDType::Bf16);
    let mut optimizer = builder.build(Target::ALL[0]).unwrap();
    let added = ParamGroup::new([bias()]).rule(ftrl);
    let error = optimizer.add_group(added.clone().state_dtype(StateDType::Block8)).unwrap_err();
    names(&error, &["group 1: state_dtype", "8-bit, with ftrl"]);
    optimizer.add_group(added).unwrap();
    assert_eq!(optimizer.memory().groups[1].bytes, 2 * 4 * 3);
}

/// Numbers are short, and one that is refused for what an `f32` makes of it says so.
#[test]
fn numbers_in_messages() {
    for (builder, message) in [
        (Adam { eps: 1e-60, ..Adam::default() }.params([weight()]), "got 1e-60, which as an f32 is 0"),
        (Adam { eps: -1e-60, ..Adam::default() }.params([weight()]), "got -1e-60"),
        (Adam { eps: -0.5, ..Adam::default() }.params([weight()]), "got -0.5"),
        (Adam { beta1: 0.999_999_999, ..Adam::default() }.params([weight()]), "got 0.999999999, which as an f32 is 1"),
        (Adam::new(1e300).params([weight()]), "got 1e300, which as an f32 is inf"),
        (Adam::new(f64::NAN).params([weight()]), "got NaN"),
        (Adam::default().params([weight()]).clip_norm(-1e300), "got -1e300"),
        (Adam::default().params([weight()]).ema(1e300), "got 1e300"),
        (Adam::default().groups([ParamGroup::new([weight()]).max_norm(1e-300)]), "got 1e-300"),
    ] {
        let error = builder.build(Unopened).unwrap_err().to_string();
        assert!(error.ends_with(message), "{error:?} does not end with {message:?}");
    }
    let mut optimizer = Adam::new(Beyond).params([weight()]).build(Target::ALL[0]).unwrap();
    let (mut w, g) = ([0.0_f32; 6], [0.0_f32; 6]);
    let error = optimizer.step(&mut [(&mut w).into()], &[(&g).into()]).unwrap_err();
    names(&error, &["learning rate", " is 1e300: "]);
}

/// A schedule beyond all `f32`.
#[derive(Debug)]
struct Beyond;

impl Schedule for Beyond {
    fn at(&self, _: u64) -> f64 {
        1e300
    }
}

/// A message says what there is where it is not what was asked for.
#[test]
fn what_there_is() {
    let mut optimizer = Sgd::default().params([weight()]).build(Target::ALL[0]).unwrap();
    names(&optimizer.group_named("head").unwrap_err(), &["no group named \"head\": no group has a name"]);
    names(&optimizer.slot("weight", "accum").unwrap_err(), &["no slot named \"accum\": there is no slot"]);
    names(&optimizer.slot("bias", "accum").unwrap_err(), &["no parameter named \"bias\": expected one of weight"]);
    names(
        &optimizer.edit(0, |adam: &mut Adam| adam.beta1 = 0.5).unwrap_err(),
        &["the optimizer: Adam", "the rule is sgd"],
    );
    let group = || ParamGroup::new([weight()]);
    for (group, what) in [
        (group().hyper(|adam: &mut Adam| adam.beta1 = 0.5), "group 0: hyper"),
        (group().vary(|adam: &mut Adam, _| adam.beta1 = 0.5), "group 0: vary"),
    ] {
        assert_refused!(Sgd::default().groups([group]), Error::HyperParameter { .. }, what, "the rule is sgd");
    }
    let table = Parameter::new("table", [4, 2]);
    let mut optimizer = Sgd::default().params([table]).build(Target::ALL[0]).unwrap();
    let (mut w, g) = ([0.0_f32; 8], [0.0_f32; 3]);
    let error = optimizer.step(&mut [(&mut w).into()], &[Grad::rows(&[1], &g)]).unwrap_err();
    names(&error, &["gradient \"table\" has 3 elements, the rows that it lists (1) have 2"]);
}
