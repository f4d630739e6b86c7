//! Trajectories that MindSpore itself produced, on every backend: every parameter after every update, every slot after the
//! last.
//!
//! Every case runs, but for two lists below: what is not built yet, and what is not followed on purpose. A case that names
//! anything unknown fails.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use optim_tests::tolerance::GOLDEN;
use optim_tests::{Target, on_every_backend};
use optimizers::{Adam, Builder, Momentum, Optimizer, ParamGroup, Parameter, Rate, Rule, Sgd};
use serde::Deserialize;
use serde_json::Value;

use crate::manifest::{Case, Golden, RateSpec, Semantics, Status, Tensors, arguments, schedule};

/// What cases need that is not built yet: optimizers, keywords that are set, kinds of gradients, classes of schedules.
/// Whoever builds one removes its line; a line that no case of the repository needs, or that is built, fails.
const NOT_BUILT: &[&str] = &[
    // Optimizers.
    "ASGD",
    "AdaFactor",
    "AdaMax",
    "Adadelta",
    "Adagrad",
    "AdamOffload",
    "AdamWeightDecay",
    "FTRL",
    "LARS",
    "Lamb",
    "LazyAdam",
    "ProximalAdagrad",
    "RMSProp",
    "Rprop",
    // Keywords and kinds of gradients.
    "grad_centralization",
    "sparse_indices",
    "use_amsgrad",
    // Schedules.
    "ExponentialDecayLR",
    "InverseDecayLR",
    "NaturalExpDecayLR",
];

/// Why a case is not followed: the reason, and which cases it holds for.
type LeftOut = (&'static str, fn(&Case) -> bool);

/// Cases that are not followed on purpose. A line that holds for no case of the repository fails.
const LEFT_OUT: &[LeftOut] = &[
    ("a defect of MindSpore's CPU kernel", |case| case.status == Status::MindsporeCpuBug),
    ("SGD's weight decay follows 2.x: the common L2 path, groups and filter obeyed", |case| {
        case.optimizer == "SGD" && case.semantics == Semantics::R1
    }),
];

/// Cases of the repository's own set that must run. It grows as `NOT_BUILT` shrinks.
const AT_LEAST: usize = 44;

/// The rule of a MindSpore optimizer, and its loss scale. `None`: it is not built. Absent keywords take our defaults, which
/// so are tested to be MindSpore's.
fn rule(case: &Case) -> Option<(Rule, f64)> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct MomentumArgs {
        momentum: f64,
        use_nesterov: Option<bool>,
        weight_decay: Option<f64>,
        loss_scale: Option<f64>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct SgdArgs {
        momentum: Option<f64>,
        dampening: Option<f64>,
        nesterov: Option<bool>,
        weight_decay: Option<f64>,
        loss_scale: Option<f64>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct AdamArgs {
        beta1: Option<f64>,
        beta2: Option<f64>,
        eps: Option<f64>,
        use_nesterov: Option<bool>,
        weight_decay: Option<f64>,
        loss_scale: Option<f64>,
    }
    let lr = |default: Option<&Rate>| match (&case.learning_rate, default) {
        (Some(spec), _) => spec.rate(),
        (None, Some(default)) => default.clone(),
        (None, None) => panic!("{} has no default rate", case.optimizer),
    };
    let (rule, loss_scale) = match &*case.optimizer {
        "Momentum" => {
            let a: MomentumArgs = arguments(&case.id, &case.kwargs);
            let new = Momentum::new(lr(None), a.momentum);
            let use_nesterov = a.use_nesterov.unwrap_or(new.use_nesterov);
            let weight_decay = a.weight_decay.unwrap_or(new.weight_decay);
            (Momentum { use_nesterov, weight_decay, ..new }.into(), a.loss_scale)
        }
        "SGD" => {
            let a: SgdArgs = arguments(&case.id, &case.kwargs);
            let default = Sgd::default();
            let rule = Sgd {
                lr: lr(Some(&default.lr)),
                momentum: a.momentum.unwrap_or(default.momentum),
                dampening: a.dampening.unwrap_or(default.dampening),
                nesterov: a.nesterov.unwrap_or(default.nesterov),
                weight_decay: a.weight_decay.unwrap_or(default.weight_decay),
            };
            (rule.into(), a.loss_scale)
        }
        "Adam" => {
            let a: AdamArgs = arguments(&case.id, &case.kwargs);
            let default = Adam::default();
            let rule = Adam {
                lr: lr(Some(&default.lr)),
                beta1: a.beta1.unwrap_or(default.beta1),
                beta2: a.beta2.unwrap_or(default.beta2),
                eps: a.eps.unwrap_or(default.eps),
                use_nesterov: a.use_nesterov.unwrap_or(default.use_nesterov),
                weight_decay: a.weight_decay.unwrap_or(default.weight_decay),
            };
            (rule.into(), a.loss_scale)
        }
        _ => return None,
    };
    Some((rule, loss_scale.unwrap_or(1.0)))
}

/// What a case needs, by the names that `NOT_BUILT` uses.
fn needs(case: &Case) -> BTreeSet<&str> {
    let mut needs = BTreeSet::from([&*case.optimizer]);
    let set = case.kwargs.iter().filter(|(_, value)| **value == Value::Bool(true));
    needs.extend(set.map(|(name, _)| &**name));
    if case.sparse_indices.is_some() {
        needs.insert("sparse_indices");
    }
    let groups = case.groups.iter().flatten();
    if groups.clone().any(|group| group.grad_centralization == Some(true)) {
        needs.insert("grad_centralization");
    }
    let inner = case.inner.iter();
    needs.extend(inner.clone().map(|inner| &*inner.optimizer));
    let rates = case.learning_rate.iter().chain(groups.filter_map(|g| g.lr.as_ref())).chain(inner.map(|i| &i.lr));
    needs.extend(rates.filter_map(|rate| match rate {
        RateSpec::Schedule { class, .. } => Some(&**class),
        _ => None,
    }));
    needs
}

fn is_left_out(case: &Case) -> bool {
    LEFT_OUT.iter().any(|(_, holds)| holds(case))
}

fn is_built(case: &Case) -> bool {
    needs(case).iter().all(|need| !NOT_BUILT.contains(need))
}

/// The parameters of a case, by their index in the dataset.
fn parameters(golden: &Golden, case: &Case) -> Vec<Parameter> {
    let dataset = golden.manifest.datasets.get(&case.dataset);
    let dataset = dataset.unwrap_or_else(|| panic!("{}: no dataset {}", case.id, case.dataset));
    dataset.iter().map(|tensor| Parameter::new(&*tensor.name, &*tensor.shape)).collect()
}

fn builder(case: &Case, parameters: &[Parameter]) -> Builder {
    let (rule, loss_scale) = rule(case).unwrap_or_else(|| panic!("{}: unknown optimizer {}", case.id, case.optimizer));
    let pick = |indices: &[usize]| indices.iter().map(|&i| parameters[i].clone()).collect::<Vec<_>>();
    let mut builder = Builder::new(rule).loss_scale(loss_scale);
    builder = match &case.groups {
        None => builder.params(parameters),
        Some(groups) => builder.groups(groups.iter().map(|spec| {
            let mut group = ParamGroup::new(pick(&spec.params));
            group.lr = spec.lr.as_ref().map(RateSpec::rate);
            if rates_are_mixed(case) {
                let rate = spec.lr.as_ref().or(case.learning_rate.as_ref()).expect("a rate").rate();
                group.lr = Some(as_mindspore_mixes(rate));
            }
            group.weight_decay = spec.weight_decay;
            group.grad_centralization = spec.grad_centralization;
            group
        })),
    };
    match &case.order_params {
        None => builder,
        Some(order) => builder.order_params(pick(order)),
    }
}

/// Whether a group has a rate of its own and any rate is dynamic.
fn rates_are_mixed(case: &Case) -> bool {
    let own = || case.groups.iter().flatten().filter_map(|group| group.lr.as_ref());
    let fixed = |rate: &RateSpec| matches!(rate.rate(), Rate::Fixed(_));
    own().next().is_some() && !own().chain(&case.learning_rate).all(fixed)
}

/// Among dynamic rates MindSpore computes a fixed one as `(lr + 1) − 1` in `f32`: 0.05 becomes 0.04999995. We use it as it is.
/// So that the rest of such a case is held to the tolerance, it is fed the rate that MindSpore used.
fn as_mindspore_mixes(rate: Rate) -> Rate {
    match rate {
        #[allow(clippy::cast_possible_truncation, reason = "the rounding is what is imitated")]
        Rate::Fixed(lr) => f64::from((lr as f32 + 1.0) - 1.0).into(),
        dynamic => dynamic,
    }
}

/// The largest difference, as a part of the reference's largest absolute value.
fn error(got: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(got.len(), reference.len(), "the numbers of one tensor");
    let scale = reference.iter().fold(1e-30, |max, x| f64::from(x.abs()).max(max));
    let errors = got.iter().zip(reference).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs() / scale);
    // A NaN is infinitely wrong.
    errors.fold(0.0, |max, e| {
        if e <= max {
            max
        } else if e.is_nan() {
            f64::INFINITY
        } else {
            e
        }
    })
}

/// Trains a case and gives its worst error in the parameters and in the slots.
fn train(golden: &Golden, tensors: &Tensors<'_>, case: &Case, target: Target) -> (f64, f64) {
    let parameters = parameters(golden, case);
    let mut optimizer = builder(case, &parameters).build(target).unwrap();

    // The optimizer's order, as indices in the dataset.
    let order: Vec<usize> = (optimizer.parameters().iter())
        .map(|own| parameters.iter().position(|p| p.name() == own.name()).expect("a parameter of the dataset"))
        .collect();
    let input = |kind: &str, i: usize| tensors.get(&format!("inputs/{}/{kind}/{i}", case.dataset));
    let mut p: Vec<Vec<f32>> = order.iter().map(|&i| input("p", i)).collect();
    let g: Vec<Vec<f32>> =
        (order.iter()).map(|&i| input("g", i).iter().map(|g| g * case.grad_multiplier).collect()).collect();
    let reference: Vec<Vec<f32>> = order.iter().map(|&i| tensors.get(&format!("{}/p/{i}", case.id))).collect();

    let mut worst = 0.0_f64;
    for step in 0..case.steps {
        let at = |i: usize| step * parameters[order[i]].len()..(step + 1) * parameters[order[i]].len();
        let gradients: Vec<_> = g.iter().enumerate().map(|(i, g)| (&g[at(i)]).into()).collect();
        let mut params: Vec<_> = p.iter_mut().map(Into::into).collect();
        let report = optimizer.step(&mut params, &gradients).unwrap();
        assert!(report.applied(), "{}: {report:?}", case.id);
        for (i, p) in p.iter().enumerate() {
            worst = worst.max(error(p, &reference[i][at(i)]));
        }
    }
    let steps = u64::try_from(case.steps).expect("a small number");
    assert_eq!(optimizer.step_count(), case.final_global_step.unwrap_or(steps), "{}: the step count", case.id);

    let mut worst_slot = 0.0_f64;
    for slot in &case.slots {
        worst_slot = worst_slot.max(slot_error(tensors, case, &optimizer, &order, slot));
    }
    (worst, worst_slot)
}

/// The worst error of one slot, which our rule has or which follows from what it has.
fn slot_error(tensors: &Tensors<'_>, case: &Case, optimizer: &Optimizer, order: &[usize], slot: &str) -> f64 {
    let of = |i: usize| tensors.get(&format!("{}/s/{slot}/{i}", case.id));
    let each = |expected: &dyn Fn(&Parameter, &[f32]) -> Vec<f32>| {
        let errors = optimizer.parameters().iter().zip(order).map(|(parameter, &i)| {
            let reference = of(i);
            error(&expected(parameter, &reference), &reference)
        });
        errors.fold(0.0, f64::max)
    };
    let spec = optimizer.rule().spec();
    if spec.slots().iter().any(|own| own.name == slot) {
        return each(&|parameter, _| optimizer.slot(parameter.name(), slot).unwrap());
    }
    match (slot, optimizer.rule()) {
        // Without momentum our SGD keeps no state, and MindSpore's stays as it was: accum 0, stat 1.
        ("accum", Rule::Sgd(sgd)) if sgd.momentum == 0.0 => each(&|_, reference| vec![0.0; reference.len()]),
        // Whether a parameter awaits its first update is one bit of ours, here an array: 1, then 0.
        ("stat", Rule::Sgd(sgd)) => {
            let stat = if sgd.momentum == 0.0 { 1.0 } else { 0.0 };
            each(&|_, reference| vec![stat; reference.len()])
        }
        // The powers follow from the step count, by the same products in f32.
        ("beta1_power" | "beta2_power", Rule::Adam(adam)) => {
            let beta = if slot == "beta1_power" { adam.beta1 } else { adam.beta2 };
            let [reference] = tensors.get(&format!("{}/s/{slot}", case.id))[..] else { panic!("{slot} is one number") };
            let power = (0..case.steps).fold(1.0_f32, |power, _| power * single(beta));
            f64::from((reference - power).abs())
        }
        _ => panic!("{}: unknown slot {slot}", case.id),
    }
}

on_every_backend! {
    fn trajectories(target) {
        let golden = Golden::read();
        let tensors = golden.tensors();
        let (mut table, mut failures, mut ran) = (String::new(), Vec::new(), 0);
        writeln!(table, "{:48} {:7} {:>12} {:>12}", "case", "backend", "parameters", "slots").unwrap();
        for case in golden.manifest.cases.iter().filter(|case| !is_left_out(case) && is_built(case)) {
            let (params, slots) = train(&golden, &tensors, case, target);
            writeln!(table, "{:48} {:7} {params:12.1e} {slots:12.1e}", case.id, target.name()).unwrap();
            if params > GOLDEN || slots > GOLDEN {
                failures.push(format!("{}: parameters {params:.1e}, slots {slots:.1e}", case.id));
            }
            ran += 1;
        }
        writeln!(table, "{ran} of {} cases ran on {}", golden.manifest.cases.len(), target.name()).unwrap();
        println!("{table}");
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("golden-{}.txt", target.name()));
        fs::write(file, table).unwrap();
        assert!(failures.is_empty(), "further than {GOLDEN} from MindSpore:\n{}", failures.join("\n"));
        let at_least = if golden.own { AT_LEAST } else { 1 };
        assert!(ran >= at_least, "only {ran} cases ran, expected {at_least} or more");
    }
}

/// Every case is run, not built or left out; and no list names what is not there. This is checked for the repository's set
/// only: another may have fewer kinds of cases.
#[test]
fn lists_are_current() {
    let golden = Golden::read();
    if !golden.own {
        return;
    }
    let cases = &golden.manifest.cases;
    let schedules = golden.manifest.schedules.iter().map(|s| &*s.class);
    let needed: BTreeSet<&str> = cases.iter().filter(|c| !is_left_out(c)).flat_map(needs).chain(schedules).collect();
    for name in NOT_BUILT {
        assert!(needed.contains(name), "no case needs {name}: remove it from NOT_BUILT");
    }
    for (reason, holds) in LEFT_OUT {
        assert!(cases.iter().any(holds), "no case is left out because of {reason:?}: remove it from LEFT_OUT");
    }
    for case in cases.iter().filter(|case| NOT_BUILT.contains(&&*case.optimizer)) {
        assert!(rule(case).is_none(), "{} is built: remove it from NOT_BUILT", case.optimizer);
    }
    for entry in golden.manifest.schedules.iter().filter(|entry| NOT_BUILT.contains(&&*entry.class)) {
        assert!(schedule(&entry.class, &entry.args).is_none(), "{} is built: remove it from NOT_BUILT", entry.class);
    }
}

/// Neither a field, nor a keyword, nor a kind of rate that nobody knows is passed over.
#[test]
fn unknown_things_are_errors() {
    let case = serde_json::json!({
        "id": "x", "optimizer": "Adam", "origin": "", "dataset": "main", "learning_rate": null, "kwargs": {},
        "groups": null, "order_params": null, "grad_multiplier": 1.0, "sparse_indices": null, "target": null, "steps": 1,
        "status": "reference", "bug": null, "slots": [], "final_global_step": null, "agreement": {}, "semantics": "both",
    });
    let read = |case: &Value| serde_json::from_value::<Case>(case.clone());
    let with = |key: &str, value: Value| {
        let mut case = case.clone();
        case[key] = value;
        case
    };
    assert!(rule(&read(&case).unwrap()).is_some(), "the case is good as it stands");
    for (key, value) in [
        ("colour", serde_json::json!("red")),
        ("status", serde_json::json!("maybe")),
        ("semantics", serde_json::json!("3.x")),
        ("target", serde_json::json!("Ascend")),
        ("learning_rate", serde_json::json!({"kind": "tensor2d", "values": []})),
        ("learning_rate", serde_json::json!({"kind": "float", "value": 0.1, "decay": 0.5})),
        ("groups", serde_json::json!([{"params": [0], "momentum": 0.5}])),
    ] {
        assert!(read(&with(key, value.clone())).is_err(), "{key} = {value} was accepted");
    }
    assert!(rule(&read(&with("optimizer", "Adan".into())).unwrap()).is_none(), "Adan is not known");
    let keyword = read(&with("kwargs", serde_json::json!({"beta3": 0.9}))).unwrap();
    assert!(std::panic::catch_unwind(|| rule(&keyword)).is_err(), "an unknown keyword was accepted");
}

/// A hyper-parameter as MindSpore stores it.
#[allow(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is the purpose")]
fn single(x: f64) -> f32 {
    x as f32
}
