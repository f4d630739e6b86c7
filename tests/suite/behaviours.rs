//! Odd calls: what MindSpore 1.5.2 and 2.10.0 did with bad input and in edge cases, and what this library does instead. Every
//! call of the recorded file is a row here, or stands in a list that says why it has no meaning in this library.

use std::collections::BTreeMap;
use std::env;
use std::fmt::{Debug, Write as _};
use std::fs;
use std::iter::zip;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use optim_tests::Target;
use optim_tests::tolerance::GOLDEN;
use optimizers::core::{DynamicLossScale, FixedLossScale, LossScale};
use optimizers::dynamic_lr::{
    cosine_decay_lr, exponential_decay_lr, piecewise_constant_lr, polynomial_decay_lr, warmup_lr,
};
use optimizers::schedule::{CosineDecay, ExponentialDecay, PolynomialDecay, WarmUp};
use optimizers::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamWeightDecay, Asgd, Builder, Error, Ftrl, Grad, Lamb,
    Lars, LazyAdam, Momentum, Optimizer, ParamGroup, ParamMut, Parameter, ProximalAdagrad, Rate, Result, RmsProp,
    Rprop, Rule, Sgd, StepReport,
};
use serde::Deserialize;

/// The table's mark of the next list.
const NOT_COMPILED_MARK: &str = "does not compile";

/// Calls that MindSpore refuses at run time and the compiler refuses here.
const NOT_COMPILED: &[Elsewhere] = &[
    Elsewhere {
        reason: "an integer is no float, a float no integer",
        calls: &[
            "Momentum(momentum=1 (int))",
            "Adam(beta1=1 (int))",
            "Adam(eps=1 (int))",
            "LazyAdam(beta1=1 (int))",
            "LazyAdam(eps=1 (int))",
            "LazyAdam(weight_decay=1 (int))",
            "AdamOffload(beta1=1 (int))",
            "AdamOffload(eps=1 (int))",
            "AdamWeightDecay(beta1=1 (int))",
            "AdamWeightDecay(eps=1 (int))",
            "AdaMax(beta1=1 (int))",
            "AdaMax(eps=1 (int))",
            "Adagrad(accum=1 (int))",
            "ProximalAdagrad(l1=1 (int))",
            "FTRL(lr_power=-1 (int))",
            "FTRL(learning_rate=1 (int))",
            "RMSProp(epsilon=1 (int))",
            "RMSProp(decay=1 (int))",
            "AdaFactor(eps int)",
            "AdaFactor(clip_threshold=1 (int))",
            "AdaFactor(weight_decay=1 (int))",
            "LARS(epsilon=1 (int))",
            "LARS(coefficient=1 (int))",
            "Rprop(etaplus=2 (int))",
            "Rprop(step_sizes int)",
            "ASGD(lambd=1 (int))",
            "ASGD(t0=1 (int))",
            "Adadelta(rho=1 (int))",
            "piecewise_constant_lr([2.0], [0.1])",
            "piecewise_constant_lr([2], [1])",
            "exponential_decay_lr(1, 0.9, 6, 2, 2)",
            "exponential_decay_lr(0.1, 0.9, 6.0, 2, 2)",
            "cosine_decay_lr(0, 0.1, 6, 2, 2)",
            "polynomial_decay_lr(0.1, 0, 6, 2, 2, 0.5)",
            "polynomial_decay_lr(0.1, 0.0, 6, 2, 2, 1)",
            "warmup_lr(1, 6, 2, 2)",
            "ExponentialDecayLR(1, 0.9, 4)",
            "ExponentialDecayLR(0.1, 1, 4)",
            "ExponentialDecayLR(0.1, 0.9, 4.0)",
            "CosineDecayLR(0, 0.1, 4)",
            "CosineDecayLR(0.0, 1, 4)",
            "PolynomialDecayLR(0.1, 0, 4, 0.5)",
            "PolynomialDecayLR(0.1, 0.0, 4, 1)",
            "WarmUpLR(1, 2)",
            "DynamicLossScaleManager(scale_window=2.0)",
        ],
    },
    Elsewhere {
        reason: "an integer is no bool",
        calls: &[
            "Momentum(use_nesterov=1)",
            "SGD(nesterov=1)",
            "Adam(use_nesterov=1)",
            "Adagrad(update_slots=1)",
            "RMSProp(centered=1)",
            "AdaFactor(scale_parameter=1)",
            "LARS(use_clip=1)",
            "params: group grad_centralization=1",
            "exponential_decay_lr(0.1, 0.9, 6, 2, 2, 1)",
            "ExponentialDecayLR(0.1, 0.9, 4, 1)",
            "PolynomialDecayLR(0.1, 0.0, 4, 0.5, 1)",
        ],
    },
    Elsewhere {
        reason: "a string, None or a matrix is no number",
        calls: &[
            "Momentum(learning_rate=\"0.1\")",
            "Momentum(learning_rate=None)",
            "Momentum(learning_rate=tensor 2-d)",
            "Momentum(weight_decay=\"x\")",
            "Momentum(loss_scale=\"x\")",
            "SGD(momentum=\"x\")",
            "params: group lr \"x\"",
            "FixedLossScaleManager(\"x\")",
            "DynamicLossScaleManager(\"x\")",
        ],
    },
    Elsewhere {
        reason: "a pair is a tuple of two",
        calls: &["AdaFactor(eps of 1)", "Rprop(etas list)", "Rprop(etas of 1)", "Rprop(step_sizes list)"],
    },
    Elsewhere {
        reason: "not a parameter, group or rule, or no iterator of them",
        calls: &[
            "LARS(not an optimizer)",
            "params: 5",
            "params: tensors",
            "params: mixed dict and Parameter",
            "params: group non-Parameter",
            "params: order_params not iterable",
        ],
    },
    Elsewhere {
        reason: "there is no such argument, or one is missing",
        calls: &[
            "Lamb() without learning_rate",
            "Adam(use_locking=1)",
            "Adam(unknown kwarg)",
            "ProximalAdagrad(use_locking=1)",
            "params: group without params",
            "params: group unknown key",
            "params: order_params with another key",
        ],
    },
    Elsewhere {
        reason: "LazyAdam and AdamOffload are rules, not switches that could be combined",
        calls: &["Adam(use_lazy+use_offload)", "Adam(use_amsgrad+use_lazy)"],
    },
    Elsewhere {
        reason: "no look-up of one parameter's rate: a step reports the rate of every group",
        calls: &["get_lr_parameter: outsider", "get_lr_parameter: not a parameter", "get_lr_parameter: tuple"],
    },
];

/// Fails to compile if one of these types can be handed over where the library takes `impl Into<$target>`: two
/// implementations fit then. What is no such argument is a field of one fixed type.
macro_rules! not_taken {
    ($target:ty: $($source:ty),+) => {
        const _: () = {
            trait Fits<Way> {
                const FITS: () = ();
            }
            impl<T> Fits<()> for T {}
            impl<T: Into<$target>> Fits<u8> for T {}
            $(let () = <$source as Fits<_>>::FITS;)+
        };
    };
}
not_taken!(Rate: i32, i64, bool, &str, Option<f64>, Vec<Vec<f64>>);
not_taken!(Parameter: i32, f32, Vec<f32>, ParamGroup);
not_taken!(Rule: Parameter, Vec<Parameter>, [Parameter; 2]);

/// Calls that MindSpore accepts and that cannot be written here.
const NO_MEANING: &[Elsewhere] = &[
    Elsewhere { reason: "a bool is no number", calls: &["Momentum(learning_rate=True)"] },
    Elsewhere { reason: "an integer is no bool", calls: &["FixedLossScaleManager(128.0, 1)"] },
];

/// Calls that are no rows.
struct Elsewhere {
    reason: &'static str,
    calls: &'static [&'static str],
}

/// One call of the file: `ok`, `ok: ` and a value, or the class of the exception; `null` where the version lacks the
/// optimizer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Behaviour {
    call: String,
    #[serde(rename = "1.5.2")]
    r1: Option<String>,
    #[serde(rename = "2.10.0")]
    r2: Option<String>,
}

impl Behaviour {
    /// What counts, 2.10 where the versions differ: the value shown, empty if there is none, or the class of the exception.
    fn outcome(&self) -> Result<&str, &str> {
        let outcome = self.r2.as_ref().or(self.r1.as_ref()).unwrap_or_else(|| panic!("{}: no outcome", self.call));
        match outcome.strip_prefix("ok") {
            Some("") => Ok(""),
            Some(value) => Ok(value.strip_prefix(": ").unwrap_or_else(|| panic!("{}: {outcome}", self.call))),
            None => {
                assert!(outcome.ends_with("Error"), "{}: unknown outcome {outcome}", self.call);
                Err(outcome)
            }
        }
    }
}

/// The recorded calls, and whether they are the repository's: the file of the folder that `OPTIM_GOLDEN_DIR` names, where it
/// has one, or else the repository's.
fn behaviours() -> (Vec<Behaviour>, bool) {
    let named = env::var_os("OPTIM_GOLDEN_DIR").map(|folder| PathBuf::from(folder).join("behaviours.json"));
    let named = named.filter(|path| path.exists());
    let own = named.is_none();
    let path = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/behaviours.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())), own)
}

/// A call of this library. It returns what it shows: empty if that is nothing.
type Call = Box<dyn FnOnce() -> Result<String>>;

/// A recorded call and its equivalent here.
struct Row {
    call: &'static str,
    ours: Call,
    expected: Expected,
    /// Why ours is not MindSpore's.
    reason: Option<&'static str>,
}

enum Expected {
    Ok,
    /// [`Error::HyperParameter`] of this name.
    Refused(&'static str),
    /// Exactly this error.
    Fails(Error),
}

/// A row that is expected to be ok, as in MindSpore.
fn row(call: &'static str, ours: impl FnOnce() -> Result<String> + 'static) -> Row {
    Row { call, ours: Box::new(ours), expected: Expected::Ok, reason: None }
}

impl Row {
    /// The hyper-parameter of this name is out of its range.
    fn refused(self, name: &'static str) -> Self {
        Self { expected: Expected::Refused(name), ..self }
    }

    fn fails(self, error: Error) -> Self {
        Self { expected: Expected::Fails(error), ..self }
    }

    /// Ours differs from MindSpore's.
    fn because(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }
}

impl Expected {
    fn is_met(&self, ours: &Result<String>) -> bool {
        match (self, ours) {
            (Self::Ok, Ok(_)) => true,
            (Self::Refused(expected), Err(Error::HyperParameter { name, .. })) => name == expected,
            (Self::Fails(expected), Err(error)) => error == expected,
            _ => false,
        }
    }
}

/// The values are the same word by word, numbers within the tolerance of trajectories. Brackets and the names of MindSpore's
/// containers do not count.
fn alike(ours: &str, theirs: &str) -> bool {
    let words = |text: &str| -> Vec<String> {
        let text = text.replace("ParameterTensor", "").replace("Parameter", "");
        let words = text.split(|c: char| "[]', ".contains(c)).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let (ours, theirs) = (words(ours), words(theirs));
    ours.len() == theirs.len()
        && zip(&ours, &theirs).all(|(a, b)| match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(a), Ok(b)) => a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= GOLDEN * b.abs().min(f64::MAX),
            _ => a == b,
        })
}

/// The parameters of most calls.
fn weight() -> Parameter {
    Parameter::new("a.weight", [3, 4])
}

fn gamma() -> Parameter {
    Parameter::new("b.gamma", [4])
}

fn both() -> [Parameter; 2] {
    [weight(), gamma()]
}

/// A group of each of the two, the first with this rate.
fn two_groups(lr: impl Into<Rate>) -> [ParamGroup; 2] {
    [ParamGroup::new([weight()]).lr(lr), ParamGroup::new([gamma()])]
}

/// Builds an optimizer on the first backend of this build: the CPU, if there is one.
fn builds(builder: Builder) -> impl FnOnce() -> Result<String> {
    move || builder.build(Target::ALL[0]).map(|_| String::new())
}

/// Builds an optimizer of this rule for both parameters.
fn config(rule: impl Into<Rule>) -> impl FnOnce() -> Result<String> {
    builds(Builder::new(rule).params(both()))
}

fn momentum() -> Momentum {
    Momentum::new(0.1, 0.9)
}

/// What a function returns.
fn shown(value: Result<impl Debug>) -> Result<String> {
    value.map(|value| format!("{value:?}"))
}

/// Updates parameters of ones with gradients of this value: the optimizer, the reports and the parameters.
fn train(builder: Builder, updates: usize, gradient: f32) -> Result<(Optimizer, Vec<StepReport>, Vec<Vec<f32>>)> {
    let mut optimizer = builder.build(Target::ALL[0])?;
    let filled = |value: f32| optimizer.parameters().iter().map(|p| vec![value; p.len()]).collect::<Vec<_>>();
    let (mut w, g) = (filled(1.0), filled(gradient));
    let grads: Vec<Grad<'_>> = g.iter().map(Into::into).collect();
    let reports = (0..updates)
        .map(|_| optimizer.step(&mut w.iter_mut().map(ParamMut::from).collect::<Vec<_>>(), &grads))
        .collect::<Result<_>>()?;
    Ok((optimizer, reports, w))
}

/// Updates, and shows the number of them.
fn counts(builder: Builder, updates: usize) -> impl FnOnce() -> Result<String> {
    move || train(builder, updates, 1.0).map(|(optimizer, ..)| optimizer.step_count().to_string())
}

/// One update with so many gradients for the two parameters, of these lengths.
fn steps_with(lengths: &'static [usize]) -> impl FnOnce() -> Result<String> {
    move || {
        let mut optimizer = momentum().params(both()).build(Target::ALL[0])?;
        let (mut w, mut b) = (vec![1.0_f32; 12], vec![1.0_f32; 4]);
        let g: Vec<Vec<f32>> = lengths.iter().map(|&len| vec![1.0; len]).collect();
        let grads: Vec<Grad<'_>> = g.iter().map(Into::into).collect();
        optimizer.step(&mut [(&mut w).into(), (&mut b).into()], &grads).map(|_| String::new())
    }
}

/// The rates that two updates report for each group: one number where both are the same.
fn reported(builder: Builder) -> impl FnOnce() -> Result<String> {
    move || {
        let (_, reports, _) = train(builder, 2, 1.0)?;
        let group = |(&first, &second): (&f64, &f64)| {
            if first.to_bits() == second.to_bits() { format!("{first}") } else { format!("[{first}, {second}]") }
        };
        let groups: Vec<String> = zip(&*reports[0].rates, &*reports[1].rates).map(group).collect();
        Ok(if groups.len() == 1 { groups.concat() } else { format!("[{}]", groups.join(", ")) })
    }
}

/// Whether a parameter of this name decays: a gradient of zeros moves it elsewhere than without decay.
fn decays(rule: impl Into<Rule>, name: &'static str, grouped: bool) -> impl FnOnce() -> Result<String> {
    let rule = rule.into();
    move || {
        let moved = |decay: f64| {
            let (builder, parameter) = (Builder::new(rule.clone()), Parameter::new(name, [2]));
            let builder =
                if grouped { builder.groups([ParamGroup::new([parameter])]) } else { builder.params([parameter]) };
            train(builder.weight_decay(decay), 1, 0.0).map(|(_, _, w)| w[0][0])
        };
        let (without, with) = (moved(0.0)?, moved(1.0)?);
        Ok(if (with - without).abs() > 1e-9 { "decayed" } else { "untouched" }.into())
    }
}

/// A parameter of two ones after one update with this gradient.
fn moves(rule: impl Into<Rule>, gradient: [f32; 2]) -> impl FnOnce() -> Result<String> {
    let builder = Builder::new(rule).params([Parameter::new("w", [2])]);
    move || {
        let mut w = [1.0_f32; 2];
        let mut optimizer = builder.build(Target::ALL[0])?;
        optimizer.step(&mut [(&mut w).into()], &[(&gradient).into()]).map(|_| format!("{w:?}"))
    }
}

fn rates() -> Vec<Row> {
    let nothing: [f64; 0] = [];
    let with = |lr: Rate| config(Momentum::new(lr, 0.9));
    vec![
        row("Momentum(learning_rate=-0.1)", with((-0.1).into())).refused("momentum.lr"),
        row("Momentum(learning_rate=0)", with(0.0.into())),
        row("Momentum(learning_rate=inf)", with(f64::INFINITY.into())).refused("momentum.lr"),
        row("Momentum(learning_rate=nan)", with(f64::NAN.into())).refused("momentum.lr"),
        row("Momentum(learning_rate=[])", with(nothing.into()))
            .refused("momentum.lr")
            .because("found when built, not at the first update"),
        row("Momentum(learning_rate=[-1.0,0.1])", with(vec![-1.0, 0.1].into())),
        row("Momentum(learning_rate=(0.1,0.2) tuple)", with([0.1, 0.2].into())),
        row("Momentum(learning_rate=generator)", with((1..3).map(|n| 0.1 * f64::from(n)).collect::<Vec<_>>().into())),
        row("Momentum(learning_rate=tensor0d -0.1)", with((-0.1).into()))
            .refused("momentum.lr")
            .because("a number is a number: all are checked"),
        row("Momentum(learning_rate=tensor1d of 1)", with(vec![0.1].into())),
        row("list of 2, third step", counts(Momentum::new([0.1; 2], 0.9).params(both()), 3))
            .fails(Error::RateExhausted { what: "learning rate", place: "the optimizer".into(), update: 2, len: 2 }),
        row("list of 1, first step", counts(Momentum::new([0.1], 0.9).params(both()), 1)),
        row("global_step after two steps, fixed lr", counts(momentum().params(both()), 2)),
        row("global_step after two steps, list lr", counts(Momentum::new([0.1; 3], 0.9).params(both()), 2)),
    ]
}

/// Rates as an optimizer tells them: MindSpore by `get_lr_parameter`, this library in the report of a step.
fn reported_rates() -> Vec<Row> {
    let warm_up = || WarmUp::new(0.1, 3).expect("a good schedule");
    let alone = |lr: Rate| reported(Momentum::new(lr, 0.9).params(both()));
    let grouped = |lr: Rate| reported(momentum().groups(two_groups(lr)));
    let by_group = "a step reports a rate for each group, not for each parameter";
    let value = "a step reports the value, not the schedule";
    vec![
        row("get_lr_parameter: float", alone(0.1.into())),
        row("get_lr_parameter: list", alone([0.1, 0.2].into())),
        row("get_lr_parameter: schedule", alone(warm_up().into())).because(value),
        row("get_lr_parameter: float, list of params", alone(0.1.into())).because(by_group),
        row("get_lr_parameter: group lr float", grouped(0.3.into())),
        row("get_lr_parameter: group lr list", grouped([0.3, 0.4].into())),
        row("get_lr_parameter: group lr schedule", grouped(warm_up().into())).because(value),
        row("LARS get_lr_parameter of a wrapped parameter", reported(Lars::new(momentum()).params(both())))
            .because("a step reports the inner rate"),
    ]
}

fn momentum_and_sgd() -> Vec<Row> {
    let sgd = Sgd::default;
    let decay = |weight_decay: f64| config(Momentum { weight_decay, ..momentum() });
    let scale = |scale: f64| builds(momentum().params(both()).loss_scale(scale));
    vec![
        row("Momentum(momentum=-0.1)", config(Momentum::new(0.1, -0.1))).refused("momentum.momentum"),
        row("Momentum(momentum=1.5)", config(Momentum::new(0.1, 1.5))),
        row("Momentum(momentum=0.0)", config(Momentum::new(0.1, 0.0))),
        row("Momentum(weight_decay=-1.0)", decay(-1.0)).refused("momentum.weight_decay"),
        row("Momentum(weight_decay=1 (int))", decay(1.0)),
        row("Momentum(weight_decay=inf)", decay(f64::INFINITY)).refused("momentum.weight_decay"),
        row("Momentum(weight_decay=2.0)", decay(2.0)),
        row("Momentum(loss_scale=0.0)", scale(0.0)).refused("loss_scale"),
        row("Momentum(loss_scale=-1.0)", scale(-1.0)).refused("loss_scale"),
        row("Momentum(loss_scale=2 (int))", scale(2.0)),
        row("Momentum(loss_scale=0.5)", scale(0.5)),
        row("SGD(momentum=1 (int))", config(Sgd { momentum: 1.0, ..sgd() })),
        row("SGD(momentum=-0.1)", config(Sgd { momentum: -0.1, ..sgd() })).refused("sgd.momentum"),
        row("SGD(dampening=-0.1)", config(Sgd { dampening: -0.1, ..sgd() })).refused("sgd.dampening"),
        row("SGD(dampening=1.5)", config(Sgd { dampening: 1.5, momentum: 0.9, ..sgd() })),
        row("SGD(dampening=1 (int))", config(Sgd { dampening: 1.0, ..sgd() })),
        row("SGD(nesterov, momentum=0)", config(Sgd { nesterov: true, ..sgd() })).refused("sgd.nesterov"),
        row("SGD(nesterov, dampening>0)", config(Sgd { nesterov: true, momentum: 0.9, dampening: 0.1, ..sgd() }))
            .refused("sgd.nesterov"),
        row("SGD(weight_decay=-1.0)", config(Sgd { weight_decay: -1.0, ..sgd() })).refused("sgd.weight_decay"),
    ]
}

/// The ranges that the rules of this family share: MindSpore's name, the config, the name in errors.
macro_rules! adams {
    ($($theirs:literal, $Config:ident, $name:literal;)*) => {
        vec![$(
            row(concat!($theirs, "(beta1=0.0)"), config($Config { beta1: 0.0, ..$Config::default() }))
                .refused(concat!($name, ".beta1")),
            row(concat!($theirs, "(beta1=1.0)"), config($Config { beta1: 1.0, ..$Config::default() }))
                .refused(concat!($name, ".beta1")),
            row(concat!($theirs, "(beta2=0.0)"), config($Config { beta2: 0.0, ..$Config::default() }))
                .refused(concat!($name, ".beta2")),
            row(concat!($theirs, "(beta2=1.0)"), config($Config { beta2: 1.0, ..$Config::default() }))
                .refused(concat!($name, ".beta2")),
            row(concat!($theirs, "(eps=0.0)"), config($Config { eps: 0.0, ..$Config::default() }))
                .refused(concat!($name, ".eps")),
            row(concat!($theirs, "(eps=-1.0)"), config($Config { eps: -1.0, ..$Config::default() }))
                .refused(concat!($name, ".eps")),
        )*]
    };
}

fn adam_family() -> Vec<Row> {
    let mut rows = adams! {
        "Adam", Adam, "adam";
        "LazyAdam", LazyAdam, "lazy_adam";
        "AdamOffload", AdamOffload, "adam_offload";
        "AdamWeightDecay", AdamWeightDecay, "adam_weight_decay";
        "AdaMax", AdaMax, "ada_max";
    };
    let decay = 1.0;
    rows.extend([
        row("Adam(weight_decay=1 (int))", config(Adam { weight_decay: decay, ..Adam::default() })),
        row("AdamOffload(weight_decay=1 (int))", config(AdamOffload { weight_decay: decay, ..AdamOffload::default() })),
        row(
            "AdamWeightDecay(weight_decay=1 (int))",
            config(AdamWeightDecay { weight_decay: decay, ..AdamWeightDecay::default() }),
        ),
        row("AdaMax(weight_decay=1 (int))", config(AdaMax { weight_decay: decay, ..AdaMax::default() })),
        row("Adam(use_amsgrad=True)", config(Adam { use_amsgrad: true, ..Adam::default() })),
        row("Lamb(beta1=1.0)", config(Lamb { beta1: 1.0, ..Lamb::new(0.1) })).refused("lamb.beta1"),
        row("Lamb(eps=0.0)", config(Lamb { eps: 0.0, ..Lamb::new(0.1) })).refused("lamb.eps"),
    ]);
    rows
}

fn adagrads_and_ftrl() -> Vec<Row> {
    let (proximal, ftrl) = (ProximalAdagrad::default, Ftrl::default);
    let any_rate = "FTRL takes any rate";
    vec![
        row("Adagrad(accum=-0.1)", config(Adagrad { accum: -0.1, ..Adagrad::default() })).refused("adagrad.accum"),
        row("Adagrad(accum=0.0)", config(Adagrad { accum: 0.0, ..Adagrad::default() })),
        row("ProximalAdagrad(accum=-0.1)", config(ProximalAdagrad { accum: -0.1, ..proximal() }))
            .refused("proximal_adagrad.accum"),
        row("ProximalAdagrad(l1=-0.1)", config(ProximalAdagrad { l1: -0.1, ..proximal() }))
            .refused("proximal_adagrad.l1"),
        row("ProximalAdagrad(l2=-0.1)", config(ProximalAdagrad { l2: -0.1, ..proximal() }))
            .refused("proximal_adagrad.l2"),
        row("FTRL(initial_accum=-0.1)", config(Ftrl { initial_accum: -0.1, ..ftrl() })).refused("ftrl.initial_accum"),
        row("FTRL(initial_accum=0.0)", config(Ftrl { initial_accum: 0.0, ..ftrl() })),
        row("FTRL(lr_power=0.1)", config(Ftrl { lr_power: 0.1, ..ftrl() })).refused("ftrl.lr_power"),
        row("FTRL(lr_power=0.0)", config(Ftrl { lr_power: 0.0, ..ftrl() })),
        row("FTRL(l1=-0.1)", config(Ftrl { l1: -0.1, ..ftrl() })).refused("ftrl.l1"),
        row("FTRL(l2=-0.1)", config(Ftrl { l2: -0.1, ..ftrl() })).refused("ftrl.l2"),
        row("FTRL(learning_rate=list)", config(Ftrl::new([0.1, 0.2]))).because(any_rate),
        row("FTRL(learning_rate=0.0)", config(Ftrl::new(0.0))).refused("ftrl.lr"),
        row("FTRL(learning_rate=tensor0d)", config(Ftrl::new(0.1))).because("a number is a number"),
        row("FTRL(group lr)", builds(ftrl().groups([ParamGroup::new(both()).lr(0.1)]))).because(any_rate),
    ]
}

fn rms_prop_and_later_rules() -> Vec<Row> {
    let (rms, rprop) = (RmsProp::default, Rprop::default);
    let etas = |minus, plus| config(Rprop { etas: (minus, plus), ..rprop() });
    let rho = |rho| config(Adadelta { rho, ..Adadelta::default() });
    let epsilon = |epsilon| config(Adadelta { epsilon, ..Adadelta::default() });
    vec![
        row("RMSProp(decay=-0.1)", config(RmsProp { decay: -0.1, ..rms() })).refused("rms_prop.decay"),
        row("RMSProp(decay=1.5)", config(RmsProp { decay: 1.5, ..rms() })),
        row("RMSProp(momentum=-0.1)", config(RmsProp { momentum: -0.1, ..rms() })).refused("rms_prop.momentum"),
        row("RMSProp(epsilon=0.0)", config(RmsProp { epsilon: 0.0, ..rms() })).refused("rms_prop.epsilon"),
        row("Rprop(etaminus=1.0)", etas(1.0, 1.2)).refused("rprop.etas.0"),
        row("Rprop(etaminus=0.0)", etas(0.0, 1.2)).refused("rprop.etas.0"),
        row("Rprop(etaplus=1.0)", etas(0.5, 1.0)).refused("rprop.etas.1"),
        row("Rprop(step_sizes swapped)", config(Rprop { step_sizes: (50.0, 1e-6), ..rprop() }))
            .refused("rprop.step_sizes"),
        row("ASGD(alpha=-1.0)", config(Asgd { alpha: -1.0, ..Asgd::default() })),
        row("ASGD(lambd=-1.0)", config(Asgd { lambd: -1.0, ..Asgd::default() }))
            .refused("asgd.lambd")
            .because("a decay below 0 makes weights grow"),
        row("Adadelta(rho=0.0)", rho(0.0)),
        row("Adadelta(rho=1.0)", rho(1.0)),
        row("Adadelta(rho=1.1)", rho(1.1)).refused("adadelta.rho"),
        row("Adadelta(epsilon=0.0)", epsilon(0.0)),
        row("Adadelta(epsilon=-1.0)", epsilon(-1.0)).refused("adadelta.epsilon"),
    ]
}

fn ada_factor() -> Vec<Row> {
    let base = AdaFactor::default;
    let clip = |clip_threshold| config(AdaFactor { clip_threshold, ..base() });
    let decay_rate = |decay_rate| config(AdaFactor { decay_rate, ..base() });
    let beta1 = |beta1| config(AdaFactor { beta1, ..base() });
    let own_rates = || AdaFactor { scale_parameter: false, ..AdaFactor::with_lr(0.2) }.groups(two_groups(0.1));
    vec![
        row("AdaFactor(learning_rate with relative_step)", config(AdaFactor { lr: Some(0.1.into()), ..base() }))
            .refused("ada_factor.relative_step"),
        row(
            "AdaFactor(warmup_init without relative_step)",
            config(AdaFactor { warmup_init: true, ..AdaFactor::with_lr(0.1) }),
        )
        .refused("ada_factor.warmup_init"),
        row("AdaFactor(no learning_rate, relative_step=False)", config(AdaFactor { relative_step: false, ..base() }))
            .refused("ada_factor.lr"),
        row("AdaFactor(eps negative)", config(AdaFactor { eps: (1e-30, -1.0), ..base() })).refused("ada_factor.eps.1"),
        row("AdaFactor(clip_threshold=-1.0)", clip(-1.0)).refused("ada_factor.clip_threshold"),
        row("AdaFactor(clip_threshold=0.0)", clip(0.0))
            .refused("ada_factor.clip_threshold")
            .because("the update is divided by it"),
        row("AdaFactor(decay_rate=0.0)", decay_rate(0.0)).refused("ada_factor.decay_rate"),
        row("AdaFactor(decay_rate=1.0)", decay_rate(1.0)).refused("ada_factor.decay_rate"),
        row("AdaFactor(weight_decay=1.0)", config(AdaFactor { weight_decay: 1.0, ..base() }))
            .refused("ada_factor.weight_decay"),
        row("AdaFactor(beta1=-0.1)", beta1(-0.1)).refused("ada_factor.beta1"),
        row("AdaFactor(beta1=1.5)", beta1(1.5)).refused("ada_factor.beta1").because("a mean with it diverges"),
        row("AdaFactor(beta1=0 (int))", beta1(0.0)),
        row("AdaFactor(group lr) construct", builds(own_rates())),
        row("AdaFactor(group lr) step", counts(own_rates(), 1)).because("groups have their rates in AdaFactor too"),
    ]
}

fn lars() -> Vec<Row> {
    vec![
        row("LARS(epsilon=-1.0)", config(Lars { epsilon: -1.0, ..Lars::new(momentum()) }))
            .refused("lars.epsilon")
            .because("the divisor could become 0"),
        row(
            "LARS(use_clip, grouped dynamic lr)",
            counts(Lars { use_clip: true, ..Lars::new(momentum()) }.groups(two_groups([0.1, 0.2])), 2),
        )
        .because("every group is clipped by its own rate"),
        row("LARS global_step without use_clip", || {
            // The index into the list is the inner rule's count.
            let (optimizer, reports, _) = train(Lars::new(Momentum::new([0.1, 0.2], 0.9)).params(both()), 2, 1.0)?;
            let same = optimizer.step_count() == 2 && reports[1].step == 2 && *reports[1].rates == [0.2];
            Ok(if same { "same counter" } else { "own counter" }.into())
        }),
    ]
}

fn parameters_and_groups() -> Vec<Row> {
    let none = || Vec::<Parameter>::new();
    let group = |params: Vec<Parameter>| ParamGroup::new(params);
    let w = || Parameter::new("w", [3, 4]);
    let twice = |name: &str| Error::DuplicateParameter { name: name.into() };
    let empty = |place: &str| Error::NoParameters { place: place.into() };
    let each = |first: Rate, second: Rate| {
        builds(momentum().groups([ParamGroup::new([weight()]).lr(first), ParamGroup::new([gamma()]).lr(second)]))
    };
    let own_length = "every list ends by itself: the update past its end is the error";
    vec![
        row("params: None", builds(Builder::new(momentum()))).fails(empty("the optimizer")),
        row("params: []", builds(momentum().params(none()))).fails(empty("the optimizer")),
        row("params: iterator", builds(momentum().params(both().into_iter()))),
        row("params: same Parameter twice, ungrouped", builds(momentum().params([&w(), &w()]))).fails(twice("w")),
        row(
            "params: two Parameters of one name, ungrouped",
            builds(momentum().params([Parameter::new("x", [3, 4]), Parameter::new("x", [3, 4])])),
        )
        .fails(twice("x")),
        row("params: group with empty params", builds(momentum().groups([group(none())]))).fails(empty("group 0")),
        row("params: same Parameter in two groups", builds(momentum().groups([group(vec![w()]), group(vec![w()])])))
            .fails(twice("w")),
        row("params: same Parameter twice in one group", builds(momentum().groups([group(vec![w(), w()])])))
            .fails(twice("w")),
        row("params: group params a tuple", builds(momentum().groups([ParamGroup::new(both())]))),
        row("params: group params an iterator", builds(momentum().groups([ParamGroup::new(both().iter())]))),
        row("params: group lr negative", builds(momentum().groups([group(both().into()).lr(-0.1)])))
            .refused("group 0: lr"),
        row(
            "params: group weight_decay negative",
            builds(momentum().groups([group(both().into()).weight_decay(-0.1)])),
        )
        .refused("group 0: weight_decay"),
        row("params: list lrs of unequal length in two groups", each([0.1, 0.2].into(), [0.1, 0.2, 0.3].into()))
            .because(own_length),
        row(
            "params: list lr in group, other length in optimizer",
            builds(Momentum::new([0.1, 0.2, 0.3], 0.9).groups(two_groups([0.1, 0.2]))),
        )
        .because(own_length),
        row("params: list lr in one group, float in other", each([0.1, 0.2].into(), 0.1.into())),
        row(
            "params: list lr in group, schedule in other",
            each([0.1, 0.2].into(), WarmUp::new(0.1, 3).expect("a good schedule").into()),
        ),
    ]
}

fn orders() -> Vec<Row> {
    let groups = || momentum().groups([ParamGroup::new([weight()]), ParamGroup::new([gamma()])]);
    let reversed = [gamma(), weight()];
    let outsider = [weight(), Parameter::new("zz", [3, 4])];
    vec![
        row("params: order_params ok", move || {
            let optimizer = groups().order_params(&reversed).build(Target::ALL[0])?;
            assert_eq!(optimizer.parameters(), reversed, "the order of a step");
            Ok(String::new())
        }),
        row("params: order_params too short", builds(groups().order_params([weight()])))
            .fails(Error::LeftOut { what: "the order", names: vec!["b.gamma".into()] }),
        row("params: order_params names an outsider", builds(groups().order_params(outsider))).fails(Error::Unknown {
            what: "grouped parameter",
            name: "zz".into(),
            expected: "a.weight, b.gamma".into(),
        }),
        row("params: order_params iterator", builds(groups().order_params(both().into_iter())))
            .because("it is read once, so any iterator will do"),
        row("params: only order_params", builds(Builder::new(momentum()).order_params(both())))
            .fails(Error::NoParameters { place: "the optimizer".into() }),
    ]
}

fn gradients() -> Vec<Row> {
    let count = |got| Error::Count { what: "gradient", expected: 2, got };
    vec![
        row("too few gradients", steps_with(&[12])).fails(count(1)),
        row("too many gradients", steps_with(&[12, 4, 12])).fails(count(3)),
        row("gradients as list", steps_with(&[12, 4])).because("a slice of a list is a slice"),
        row("gradient of another shape", steps_with(&[4 * 3, 4])).because("memory has a length and no shape"),
    ]
}

fn lists_of_rates() -> Vec<Row> {
    let exponential =
        |lr, rate, total, epoch, decay| move || shown(exponential_decay_lr(lr, rate, total, epoch, decay, false));
    let cosine = |min, max| move || shown(cosine_decay_lr(min, max, 6, 2, 2));
    let polynomial = |lr, end, power| move || shown(polynomial_decay_lr(lr, end, 6, 2, 2, power, false));
    let piecewise =
        |milestone: &'static [u64], rates: &'static [f64]| move || shown(piecewise_constant_lr(milestone, rates));
    vec![
        row("piecewise_constant_lr((5,), [0.1])", piecewise(&[5], &[0.1])),
        row("piecewise_constant_lr([2, 5], [0.1])", piecewise(&[2, 5], &[0.1]))
            .refused("piecewise_constant_lr: learning_rates"),
        row("piecewise_constant_lr([5, 2], [0.1, 0.2])", piecewise(&[5, 2], &[0.1, 0.2]))
            .refused("piecewise_constant_lr: milestone"),
        row("piecewise_constant_lr([2, 2], [0.1, 0.2])", piecewise(&[2, 2], &[0.1, 0.2])),
        row("piecewise_constant_lr([0, 2], [0.1, 0.2])", piecewise(&[0, 2], &[0.1, 0.2]))
            .refused("piecewise_constant_lr: milestone"),
        row("piecewise_constant_lr([], [])", piecewise(&[], &[])),
        row("piecewise_constant_lr([2], [-0.1])", piecewise(&[2], &[-0.1])),
        row("exponential_decay_lr(0.0, 0.9, 6, 2, 2)", exponential(0.0, 0.9, 6, 2, 2))
            .refused("exponential_decay_lr: learning_rate"),
        row("exponential_decay_lr(0.1, 0.0, 6, 2, 2)", exponential(0.1, 0.0, 6, 2, 2))
            .refused("exponential_decay_lr: decay_rate"),
        row("exponential_decay_lr(0.1, 0.9, 0, 2, 2)", exponential(0.1, 0.9, 0, 2, 2))
            .refused("exponential_decay_lr: total_step"),
        row("exponential_decay_lr(0.1, 0.9, 6, 0, 2)", exponential(0.1, 0.9, 6, 0, 2))
            .refused("exponential_decay_lr: step_per_epoch"),
        row("exponential_decay_lr(0.1, 0.9, 6, 2, 0)", exponential(0.1, 0.9, 6, 2, 0))
            .refused("exponential_decay_lr: decay_epoch"),
        row("exponential_decay_lr(0.1, 2.0, 6, 2, 2)", exponential(0.1, 2.0, 6, 2, 2)),
        row("cosine_decay_lr(0.1, 0.1, 6, 2, 2)", cosine(0.1, 0.1)).refused("cosine_decay_lr: max_lr"),
        row("cosine_decay_lr(0.2, 0.1, 6, 2, 2)", cosine(0.2, 0.1)).refused("cosine_decay_lr: max_lr"),
        row("cosine_decay_lr(-0.1, 0.1, 6, 2, 2)", cosine(-0.1, 0.1)).refused("cosine_decay_lr: min_lr"),
        row("cosine_decay_lr(0.0, 0.1, 6, 2, 2)", cosine(0.0, 0.1)),
        row("polynomial_decay_lr(0.1, 0.2, 6, 2, 2, 0.5)", polynomial(0.1, 0.2, 0.5)),
        row("polynomial_decay_lr(0.1, -0.1, 6, 2, 2, 0.5)", polynomial(0.1, -0.1, 0.5))
            .refused("polynomial_decay_lr: end_learning_rate"),
        row("polynomial_decay_lr(0.1, 0.0, 6, 2, 2, 0.0)", polynomial(0.1, 0.0, 0.0))
            .refused("polynomial_decay_lr: power"),
        row("polynomial_decay_lr(0.0, 0.0, 6, 2, 2, 0.5)", polynomial(0.0, 0.0, 0.5))
            .refused("polynomial_decay_lr: learning_rate"),
        row("warmup_lr(0.0, 6, 2, 2)", || shown(warmup_lr(0.0, 6, 2, 2))),
        row("warmup_lr(-0.1, 6, 2, 2)", || shown(warmup_lr(-0.1, 6, 2, 2))).refused("warmup_lr: learning_rate"),
        row("warmup_lr(0.1, 6, 2, 0)", || shown(warmup_lr(0.1, 6, 2, 0))).refused("warmup_lr: warmup_epoch"),
    ]
}

fn schedules() -> Vec<Row> {
    let exponential = |lr, rate, steps| move || shown(ExponentialDecay::new(lr, rate, steps));
    let cosine = |min, max| move || shown(CosineDecay::new(min, max, 4));
    let polynomial = |end, power| move || shown(PolynomialDecay::new(0.1, end, 4, power));
    let warm_up = |lr, steps| move || shown(WarmUp::new(lr, steps));
    vec![
        row("ExponentialDecayLR(0.0, 0.9, 4)", exponential(0.0, 0.9, 4)).refused("ExponentialDecay: lr"),
        row("ExponentialDecayLR(0.1, 0.0, 4)", exponential(0.1, 0.0, 4)).refused("ExponentialDecay: decay_rate"),
        row("ExponentialDecayLR(0.1, 0.9, 0)", exponential(0.1, 0.9, 0)).refused("ExponentialDecay: decay_steps"),
        row("CosineDecayLR(0.1, 0.1, 4)", cosine(0.1, 0.1)).refused("CosineDecay: max_lr"),
        row("CosineDecayLR(-0.1, 0.1, 4)", cosine(-0.1, 0.1)).refused("CosineDecay: min_lr"),
        row("PolynomialDecayLR(0.1, 0.2, 4, 0.5)", polynomial(0.2, 0.5)),
        row("PolynomialDecayLR(0.1, -0.1, 4, 0.5)", polynomial(-0.1, 0.5)).refused("PolynomialDecay: end_lr"),
        row("PolynomialDecayLR(0.1, 0.0, 4, 0.0)", polynomial(0.0, 0.0)).refused("PolynomialDecay: power"),
        row("WarmUpLR(0.0, 2)", warm_up(0.0, 2)),
        row("WarmUpLR(-0.1, 2)", warm_up(-0.1, 2)).refused("WarmUp: lr"),
        row("WarmUpLR(0.1, 0)", warm_up(0.1, 0)).refused("WarmUp: warmup_steps"),
    ]
}

fn weight_decay() -> Vec<Row> {
    let ungrouped = |name| decays(Momentum::new(0.5, 0.0), name, false);
    let gamma_of = |rule: Rule| decays(rule, "bn.gamma", false);
    vec![
        row("weight decay, ungrouped, name a.weight", ungrouped("a.weight")),
        row("weight decay, ungrouped, name bn.gamma", ungrouped("bn.gamma")),
        row("weight decay, ungrouped, name bn.beta", ungrouped("bn.beta")),
        row("weight decay, ungrouped, name alphabeta.w", ungrouped("alphabeta.w")),
        row("weight decay, ungrouped, name gammatron", ungrouped("gammatron")),
        row("weight decay, ungrouped, name BN.GAMMA", ungrouped("BN.GAMMA")),
        row("weight decay, ungrouped, name x.Beta", ungrouped("x.Beta")),
        row("weight decay, ungrouped, name a.bias", ungrouped("a.bias")),
        row("weight decay, grouped, name bn.gamma", decays(Momentum::new(0.5, 0.0), "bn.gamma", true)),
        row("weight decay, ungrouped, SGD, name bn.gamma", gamma_of(Sgd::default().into())),
        row("weight decay, ungrouped, FTRL, name bn.gamma", gamma_of(Ftrl::new(0.5).into())),
        row("weight decay, ungrouped, Adam, name bn.gamma", gamma_of(Adam::default().into())),
        row("weight decay, ungrouped, AdamWeightDecay, name bn.gamma", gamma_of(AdamWeightDecay::default().into())),
        row("weight decay, ungrouped, Adagrad, name bn.gamma", gamma_of(Adagrad::default().into())),
        row("weight decay, ungrouped, RMSProp, name bn.gamma", gamma_of(RmsProp::default().into())),
    ]
}

fn edge_values() -> Vec<Row> {
    let (zeros, half, broken) = ([0.0, 0.0], [0.0, 1.0], [f32::NAN, f32::INFINITY]);
    let zero_by_zero = "nothing changes where MindSpore divides 0 by 0";
    vec![
        row("Adagrad accum=0, gradient [0,1]", moves(Adagrad { accum: 0.0, ..Adagrad::new(0.1) }, half)),
        row(
            "ProximalAdagrad accum=0, gradient [0,1]",
            moves(ProximalAdagrad { accum: 0.0, ..ProximalAdagrad::new(0.1) }, half),
        )
        .because(zero_by_zero),
        row("FTRL initial_accum=0, gradient [0,1]", moves(Ftrl { initial_accum: 0.0, ..Ftrl::new(0.1) }, half)),
        row("FTRL zero gradient, one step", moves(Ftrl::new(0.1), zeros)),
        row("Adam zero gradient", moves(Adam::new(0.1), zeros)),
        row("RMSProp zero gradient", moves(RmsProp::new(0.1), zeros)),
        row("AdaMax zero gradient", moves(AdaMax::new(0.1), zeros)),
        row("Adadelta eps=0, gradient [0,1]", moves(Adadelta { epsilon: 0.0, ..Adadelta::default() }, half))
            .because(zero_by_zero),
        row("AdaFactor zero gradient", moves(AdaFactor::default(), zeros)),
        row("Momentum gradient [nan, inf]", moves(momentum(), broken)),
        row("Adam gradient [nan, inf]", moves(Adam::new(0.1), broken)),
    ]
}

fn loss_scales() -> Vec<Row> {
    let scaled = |scale: LossScale| momentum().params(both()).loss_scale(scale);
    let fixed = |loss_scale| builds(scaled(FixedLossScale { loss_scale, ..FixedLossScale::default() }.into()));
    let dynamic = |scale: DynamicLossScale| builds(scaled(scale.into()));
    let default = DynamicLossScale::default;
    let factor = |scale_factor| dynamic(DynamicLossScale { scale_factor, ..default() });
    // The scale after so many steps whose gradients are infinite.
    let overflows = |count| {
        let builder = scaled(default().into());
        move || train(builder, count, f32::INFINITY)?.0.loss_scale().map(|scale| scale.to_string())
    };
    // What MindSpore has a cell for: a step whose gradients are not finite is skipped.
    let cell = |scale: FixedLossScale| {
        let builder = scaled(scale.into());
        move || {
            let (_, reports, _) = train(builder, 1, f32::NAN)?;
            Ok(if reports[0].applied() { "NoneType" } else { "FixedLossScaleUpdateCell" }.into())
        }
    };
    let undropped = FixedLossScale { drop_overflow_update: false, ..FixedLossScale::default() };
    vec![
        row("FixedLossScaleManager(0.5)", fixed(0.5)).refused("FixedLossScale.loss_scale"),
        row("FixedLossScaleManager(1)", fixed(1.0)),
        row("FixedLossScaleManager().get_update_cell()", cell(FixedLossScale::default())),
        row("FixedLossScaleManager(drop_overflow_update=False).get_update_cell()", cell(undropped)),
        row("DynamicLossScaleManager(0.5)", dynamic(DynamicLossScale { init_loss_scale: 0.5, ..default() }))
            .refused("DynamicLossScale.init_loss_scale"),
        row("DynamicLossScaleManager(scale_factor=0)", factor(0.0)).refused("DynamicLossScale.scale_factor"),
        row("DynamicLossScaleManager(scale_factor=-2)", factor(-2.0)).refused("DynamicLossScale.scale_factor"),
        row("DynamicLossScaleManager(scale_factor=0.5)", factor(0.5)),
        row("DynamicLossScaleManager(scale_window=0)", dynamic(DynamicLossScale { scale_window: 0, ..default() }))
            .refused("DynamicLossScale.scale_window"),
        row("1000 overflows in a row", overflows(1000)),
        row("1001 overflows in a row", overflows(1001))
            .fails(Error::TooManySkips { name: "a.weight".into(), skips: 1001 }),
    ]
}

fn rows() -> Vec<Row> {
    let topics = [
        rates,
        reported_rates,
        momentum_and_sgd,
        adam_family,
        adagrads_and_ftrl,
        rms_prop_and_later_rules,
        ada_factor,
        lars,
        parameters_and_groups,
        orders,
        gradients,
        lists_of_rates,
        schedules,
        weight_decay,
        edge_values,
        loss_scales,
    ];
    topics.iter().flat_map(|rows| rows()).collect()
}

/// One line of the table, and what is wrong with it.
struct Judged {
    ours: String,
    reason: &'static str,
    wrong: Option<String>,
}

impl Row {
    fn judge(self, theirs: Result<&str, &str>) -> Judged {
        let Ok(ours) = catch_unwind(AssertUnwindSafe(self.ours)) else {
            return Judged { ours: "panic".into(), reason: "", wrong: Some("panicked".into()) };
        };
        let differs = match (&ours, theirs) {
            (Ok(ours), Ok(theirs)) => !theirs.is_empty() && !alike(ours, theirs),
            (Err(_), Err(_)) => false,
            _ => true,
        };
        let wrong = if !self.expected.is_met(&ours) {
            let expected = match &self.expected {
                Expected::Ok => "ok".into(),
                Expected::Refused(name) => format!("{name} to be refused"),
                Expected::Fails(error) => format!("{error:?}"),
            };
            Some(format!("expected {expected}, got {ours:?}"))
        } else if differs && self.reason.is_none() {
            Some(format!("differs without a reason: {ours:?}, MindSpore {theirs:?}"))
        } else if !differs && self.reason.is_some() {
            Some(format!("has a reason but does not differ: {ours:?}, MindSpore {theirs:?}"))
        } else {
            None
        };
        let ours = match ours {
            Ok(value) if value.is_empty() => "ok".into(),
            Ok(value) => format!("ok: {value}"),
            Err(error) => format!("error: {error}"),
        };
        Judged { ours, reason: self.reason.unwrap_or_default(), wrong }
    }
}

/// Where a call of the file stands.
enum Entry {
    Row(Row),
    Listed { mark: &'static str, reason: &'static str },
}

impl Entry {
    fn kind(&self) -> &'static str {
        match self {
            Self::Row(Row { reason: None, .. }) => "as MindSpore",
            Self::Row(_) => "otherwise",
            Self::Listed { mark, .. } => mark,
        }
    }

    fn judge(self, theirs: Result<&str, &str>) -> Judged {
        match self {
            Self::Row(row) => row.judge(theirs),
            Self::Listed { mark, reason } => {
                let accepted = mark == NOT_COMPILED_MARK && theirs.is_ok();
                let wrong = accepted.then(|| "is listed as refused by MindSpore as well, which accepts it".into());
                Judged { ours: mark.into(), reason, wrong }
            }
        }
    }
}

/// Every recorded call has the outcome stated here, which is MindSpore's but for the reason given.
#[test]
fn calls_are_answered_as_stated() {
    let (behaviours, own) = behaviours();
    let rows = rows().into_iter().map(|row| (row.call, Entry::Row(row)));
    let lists = [(NOT_COMPILED, NOT_COMPILED_MARK), (NO_MEANING, "no meaning")];
    let listed = lists.into_iter().flat_map(|(list, mark)| {
        let calls = |&Elsewhere { reason, calls }: &'static Elsewhere| calls.iter().map(move |&call| (call, reason));
        list.iter().flat_map(calls).map(move |(call, reason)| (call, Entry::Listed { mark, reason }))
    });
    let entries: Vec<_> = rows.chain(listed).collect();
    let count = entries.len();
    let mut known: BTreeMap<&str, Entry> = entries.into_iter().collect();
    assert_eq!(known.len(), count, "a call stands in two places");

    let (mut table, mut tally, mut wrong) = (String::new(), BTreeMap::new(), Vec::new());
    writeln!(table, "{:75} | {:14} | {:14} | ours | reason", "call", "1.5.2", "2.10.0").unwrap();
    for behaviour in &behaviours {
        let call = &*behaviour.call;
        let Some(entry) = known.remove(call) else {
            wrong.push(format!("{call}: neither a row nor listed, or there twice"));
            continue;
        };
        *tally.entry(entry.kind()).or_insert(0) += 1;
        let judged = entry.judge(behaviour.outcome());
        let [r1, r2] = [&behaviour.r1, &behaviour.r2].map(|outcome| outcome.as_deref().unwrap_or("-"));
        writeln!(table, "{call:75} | {r1:14} | {r2:14} | {} | {}", judged.ours, judged.reason).unwrap();
        wrong.extend(judged.wrong.map(|wrong| format!("{call}: {wrong}")));
    }
    let tally: Vec<_> = tally.iter().map(|(kind, count)| format!("{kind}: {count}")).collect();
    writeln!(table, "{}", tally.join(", ")).unwrap();
    println!("{table}");
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("behaviours.txt"), table).unwrap();
    if own {
        wrong.extend(known.keys().map(|call| format!("{call}: not in the file")));
    }
    assert!(wrong.is_empty(), "{} of {} calls:\n{}", wrong.len(), behaviours.len(), wrong.join("\n"));
}

/// The comparison of values notices another number, another word and another count.
#[test]
fn values_are_compared() {
    for (ours, theirs) in [
        ("0.1", "ParameterTensor0.10000000149011612"),
        ("[[0.3, 0.4], 0.1]", "['Parameter[0.3, 0.4]', 'Parameter0.1']"),
        ("[NaN, -inf]", "[nan, -inf]"),
        ("[]", "[]"),
        ("untouched", "untouched"),
    ] {
        assert!(alike(ours, theirs), "{ours} is {theirs}");
    }
    for (ours, theirs) in
        [("0.1001", "0.1"), ("[1, NaN]", "[1, 1]"), ("inf", "-inf"), ("[1]", "[1, 1]"), ("decayed", "untouched")]
    {
        assert!(!alike(ours, theirs), "{ours} is not {theirs}");
    }
}
