//! Trajectories that MindSpore, PyTorch and optax themselves produced, on every backend: every parameter after every update,
//! every slot after the last.
//!
//! Every case runs, but for those listed below that are not followed on purpose. A case that names anything unknown fails.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use optim_tests::tolerance::{GOLDEN, GOLDEN_NORMS};
use optim_tests::{Target, on_every_backend};
use optimizers::core::Centralization;
use optimizers::rule::SlotShape;
use optimizers::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Adan, Asgd, Builder, Error, Ftrl,
    Grad, Lamb, Lars, LazyAdam, Lion, Momentum, NAdam, Optimizer, ParamGroup, Parameter, ProximalAdagrad, RAdam, Rate,
    Result, RmsProp, Rprop, Rule, Sgd,
};
use serde::Deserialize;
use serde_json::Value;

use crate::manifest::{Case, Golden, RateSpec, Semantics, Status, Tensors, arguments};

/// Cases that are not followed: the reason, which cases it holds for, and those of the repository, by name.
struct LeftOut {
    reason: &'static str,
    holds: fn(&Case) -> bool,
    ids: &'static [&'static str],
}

/// Cases that are not followed on purpose.
const LEFT_OUT: &[LeftOut] = &[
    LeftOut {
        reason: "a defect of MindSpore's CPU kernel",
        holds: |case| case.status == Status::MindsporeCpuBug,
        ids: &[
            "adagrad.no_update_slots@2.10.0",
            "ftrl.accum_power@2.10.0",
            "ftrl.groups@2.10.0",
            "ftrl.l1_l2@2.10.0",
            "ftrl.wd_loss_scale@2.10.0",
            "momentum.nesterov@1.5.2",
            "rmsprop.eps_vector@1.5.2",
        ],
    },
    LeftOut { reason: "a defect of optax", holds: |case| case.status == Status::OptaxBug, ids: &["adan.lr@optax"] },
    LeftOut {
        reason: "SGD's weight decay follows 2.x: the common L2 path, groups and filter obeyed",
        holds: |case| case.optimizer == "SGD" && case.semantics == Semantics::R1,
        ids: &[
            "sgd.groups@1.5.2",
            "sgd.groups_gc@1.5.2-patched",
            "sgd.wd@1.5.2",
            "sgd.wd_loss_scale@1.5.2",
            "sgd.wd_momentum_nesterov@1.5.2",
        ],
    },
    LeftOut {
        reason: "so does SGD within LARS: MindSpore 1.5 decays a second time there",
        holds: |case| {
            let decays = |kwargs: &serde_json::Map<String, Value>| kwargs.contains_key("weight_decay");
            case.inner.as_ref().is_some_and(|inner| inner.optimizer == "SGD" && decays(&inner.kwargs))
        },
        ids: &["lars.inner_sgd_wd@1.5.2-patched"],
    },
    LeftOut {
        reason: "Lamb follows 2.x: it counts updates from 1 with dynamic rates too, and its norm follows the decay filter",
        holds: |case| case.optimizer == "Lamb" && case.semantics == Semantics::R1,
        ids: &[
            "lamb.groups@1.5.2-patched",
            "lamb.groups_gc@1.5.2-patched",
            "lamb.main.betas_eps_wd@1.5.2-patched",
            "lamb.main.lr@1.5.2-patched",
            "lamb.main.lr_list_wd@1.5.2-patched",
            "lamb.main.wd@1.5.2-patched",
            "lamb.norms.betas_eps_wd@1.5.2-patched",
            "lamb.norms.lr@1.5.2-patched",
            "lamb.norms.lr_list_wd@1.5.2-patched",
            "lamb.norms.wd@1.5.2-patched",
            "lamb.sched@1.5.2-patched",
        ],
    },
    LeftOut {
        reason: "AdaFactor follows 2.x: a manual rate is not multiplied into itself",
        holds: |case| case.optimizer == "AdaFactor" && case.semantics == Semantics::R1,
        ids: &["adafactor.manual_lr_scale_parameter@1.5.2-patched"],
    },
    LeftOut {
        reason: "our AdaFactor obeys the loss scale and the groups that MindSpore's ignores",
        holds: |case| {
            case.optimizer == "AdaFactor" && (case.groups.is_some() || case.kwargs.contains_key("loss_scale"))
        },
        ids: &["adafactor.groups@1.5.2-patched", "adafactor.loss_scale_ignored@1.5.2-patched"],
    },
];

/// Changes that move no number of a case, or are refused: the reason, and the changes.
const WITHOUT_EFFECT: &[(&str, &[&str])] = &[
    ("a part of a rate of 0 is 0", &["momentum.lr_int_zero@1.5.2: the rate"]),
    (
        "all groups have a decay of their own",
        &[
            "adamwd.groups@1.5.2: weight_decay",
            "lamb.groups@formula-2.x: weight_decay",
            "momentum.groups_wd_on_gamma@1.5.2: weight_decay",
        ],
    ),
    (
        "without momentum there is nothing to dampen",
        &["sgd.dampening_no_momentum@1.5.2: dampening", "sgd.torch_dampening_no_momentum@torch: dampening"],
    ),
    (
        "AdaFactor scales no rate that is dynamic",
        &[
            "adafactor.manual_lr_list@1.5.2-patched: scale_parameter",
            "adafactor.manual_lr_sched@1.5.2-patched: scale_parameter",
        ],
    ),
    (
        "AdaFactor makes its own rate, or has one",
        &[
            "adafactor.manual_lr@1.5.2-patched: relative_step is refused",
            "adafactor.manual_lr_list@1.5.2-patched: relative_step is refused",
            "adafactor.manual_lr_scale_parameter@2.10.0: relative_step is refused",
            "adafactor.manual_lr_sched@1.5.2-patched: relative_step is refused",
            "adafactor.wd@1.5.2-patched: relative_step is refused",
        ],
    ),
    ("no power is more than 0", &["ftrl.power_zero@1.5.2-rows: lr_power is refused"]),
    (
        "it is nothing beside the norms: `judge::large_epsilons` holds those that are",
        &["lars.coefficient_epsilon@1.5.2-patched: epsilon"],
    ),
];

/// Cases of the repository's own sets that run on each backend.
const AT_LEAST: &[(&str, usize)] = &[("visible", 167), ("torch", 76)];

/// The tolerance for an optimizer.
fn tolerance(optimizer: &str) -> f64 {
    if ["Lamb", "LARS", "AdaFactor"].contains(&optimizer) { GOLDEN_NORMS } else { GOLDEN }
}

/// An optimizer as a case asks for it.
struct Asked<'a> {
    id: &'a str,
    optimizer: &'a str,
    kwargs: &'a serde_json::Map<String, Value>,
    learning_rate: Option<&'a RateSpec>,
}

/// The rule of a case, and its loss scale. `None`: it is not known.
fn rule(case: &Case) -> Option<(Rule, f64)> {
    let Case { id, optimizer, kwargs, learning_rate, .. } = case;
    let Some(inner) = &case.inner else {
        return plain_rule(&Asked { id, optimizer, kwargs, learning_rate: learning_rate.as_ref() });
    };
    assert_eq!(optimizer, "LARS", "{id}: only LARS wraps another");
    assert!(learning_rate.is_none(), "{id}: the rate is the inner optimizer's");

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Arguments {
        epsilon: Option<f64>,
        coefficient: Option<f64>,
        use_clip: Option<bool>,
    }
    let a: Arguments = arguments(id, kwargs);
    let asked = Asked { id, optimizer: &inner.optimizer, kwargs: &inner.kwargs, learning_rate: Some(&inner.lr) };
    let (inner, loss_scale) = plain_rule(&asked)?;
    let default = Lars::new(inner);
    let lars = Lars {
        epsilon: a.epsilon.unwrap_or(default.epsilon),
        coefficient: a.coefficient.unwrap_or(default.coefficient),
        use_clip: a.use_clip.unwrap_or(default.use_clip),
        ..default
    };
    Some((lars.into(), loss_scale))
}

/// AdaFactor, whose rate may be absent and whose `beta1` may be null.
fn ada_factor(case: &Asked<'_>) -> Option<(Rule, f64)> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Arguments {
        eps: Option<(f64, f64)>,
        clip_threshold: Option<f64>,
        decay_rate: Option<f64>,
        beta1: Option<Value>,
        weight_decay: Option<f64>,
        scale_parameter: Option<bool>,
        relative_step: Option<bool>,
        warmup_init: Option<bool>,
    }
    let a: Arguments = arguments(case.id, case.kwargs);
    let beta1_is_null = case.kwargs.get("beta1").is_some_and(Value::is_null);
    let default = AdaFactor::default();
    let config = AdaFactor {
        lr: case.learning_rate.map(RateSpec::rate),
        eps: a.eps.unwrap_or(default.eps),
        clip_threshold: a.clip_threshold.unwrap_or(default.clip_threshold),
        decay_rate: a.decay_rate.unwrap_or(default.decay_rate),
        beta1: match a.beta1 {
            _ if beta1_is_null => 0.0,
            Some(beta1) => beta1.as_f64().unwrap_or_else(|| panic!("{}: beta1 is a number", case.id)),
            None => default.beta1,
        },
        weight_decay: a.weight_decay.unwrap_or(default.weight_decay),
        scale_parameter: a.scale_parameter.unwrap_or(default.scale_parameter),
        relative_step: a.relative_step.unwrap_or(default.relative_step),
        warmup_init: a.warmup_init.unwrap_or(default.warmup_init),
        compression: default.compression,
    };
    Some((config.into(), 1.0))
}

/// The rule of an optimizer that wraps no other, and its loss scale. `None`: it is not known. Absent keywords take our
/// defaults, which so are tested to be MindSpore's or PyTorch's.
fn plain_rule(case: &Asked<'_>) -> Option<(Rule, f64)> {
    /// A config with the case's keywords laid over it. Our fields have their names.
    macro_rules! overlaid {
        ($config:expr, $($field:ident: $type:ty),*) => {{
            #[derive(Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Arguments {
                $($field: Option<$type>,)*
                weight_decay: Option<f64>,
                loss_scale: Option<f64>,
            }
            let mut kwargs = case.kwargs.clone();
            kwargs.remove("preset");
            let a: Arguments = arguments(case.id, &kwargs);
            let mut config = $config;
            $(if let Some(value) = a.$field {
                config.$field = value;
            })*
            if let Some(weight_decay) = a.weight_decay {
                config.weight_decay = weight_decay;
            }
            if let Some(spec) = case.learning_rate {
                config.lr = spec.rate();
            }
            Some((config.into(), a.loss_scale.unwrap_or(1.0)))
        }};
    }
    let torch = match case.kwargs.get("preset") {
        None => false,
        Some(preset) if preset == "torch" => true,
        Some(preset) => panic!("{}: unknown preset {preset}", case.id),
    };
    match (case.optimizer, torch) {
        ("Momentum", false) => {
            let required = case.learning_rate.is_some() && case.kwargs.contains_key("momentum");
            assert!(required, "{}: rate and momentum have no defaults", case.id);
            overlaid!(Momentum::new(0.0, 0.0), momentum: f64, use_nesterov: bool)
        }
        ("SGD", torch) => {
            let preset = if torch { Sgd::torch() } else { Sgd::default() };
            overlaid!(preset, momentum: f64, dampening: f64, nesterov: bool)
        }
        ("Adam", torch) => {
            let preset = if torch { Adam::torch() } else { Adam::default() };
            overlaid!(preset, beta1: f64, beta2: f64, eps: f64, use_nesterov: bool, use_amsgrad: bool)
        }
        ("LazyAdam", false) => {
            overlaid!(LazyAdam::default(), beta1: f64, beta2: f64, eps: f64, use_nesterov: bool)
        }
        ("AdamOffload", false) => {
            overlaid!(AdamOffload::default(), beta1: f64, beta2: f64, eps: f64, use_nesterov: bool)
        }
        ("AdamWeightDecay", false) => overlaid!(AdamWeightDecay::default(), beta1: f64, beta2: f64, eps: f64),
        ("AdamW", false) => overlaid!(AdamW::default(), beta1: f64, beta2: f64, eps: f64, amsgrad: bool),
        ("NAdam", false) => {
            overlaid!(
                NAdam::default(),
                beta1: f64, beta2: f64, eps: f64, momentum_decay: f64, decoupled_weight_decay: bool
            )
        }
        ("RAdam", false) => {
            overlaid!(RAdam::default(), beta1: f64, beta2: f64, eps: f64, decoupled_weight_decay: bool)
        }
        ("AdaMax", torch) => {
            let preset = if torch { AdaMax::torch() } else { AdaMax::default() };
            overlaid!(preset, beta1: f64, beta2: f64, eps: f64)
        }
        ("Lion", false) => overlaid!(Lion::default(), beta1: f64, beta2: f64),
        ("Adan", false) => {
            overlaid!(Adan::default(), beta1: f64, beta2: f64, beta3: f64, eps: f64, no_prox: bool)
        }
        ("Adagrad", torch) => {
            let preset = if torch { Adagrad::torch() } else { Adagrad::default() };
            overlaid!(preset, accum: f64, update_slots: bool, epsilon: f64, lr_decay: f64)
        }
        ("ProximalAdagrad", false) => overlaid!(ProximalAdagrad::default(), accum: f64, l1: f64, l2: f64),
        ("FTRL", false) => overlaid!(Ftrl::default(), initial_accum: f64, lr_power: f64, l1: f64, l2: f64),
        ("RMSProp", torch) => {
            let preset = if torch { RmsProp::torch() } else { RmsProp::default() };
            overlaid!(preset, decay: f64, momentum: f64, epsilon: f64, centered: bool)
        }
        ("Lamb", false) => {
            assert!(case.learning_rate.is_some(), "{}: the rate has no default", case.id);
            overlaid!(Lamb::new(0.0), beta1: f64, beta2: f64, eps: f64)
        }
        ("AdaFactor", false) => ada_factor(case),
        // PyTorch's is MindSpore's, defaults included.
        ("Adadelta", _) => overlaid!(Adadelta::default(), rho: f64, epsilon: f64),
        ("ASGD", torch) => {
            let preset = if torch { Asgd::torch() } else { Asgd::default() };
            overlaid!(preset, lambd: f64, alpha: f64, t0: f64)
        }
        ("Rprop", torch) => {
            let preset = if torch { Rprop::torch() } else { Rprop::default() };
            overlaid!(preset, etas: (f64, f64), step_sizes: (f64, f64))
        }
        _ => None,
    }
}

fn is_left_out(case: &Case) -> bool {
    LEFT_OUT.iter().any(|left_out| (left_out.holds)(case))
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
            group.weight_decay = spec.weight_decay.map(Rate::from);
            group.grad_centralization = spec.grad_centralization.map(centralization);
            group
        })),
    };
    if !case.semantics.is_mindspores() {
        builder = builder.decay_filter(|_| true);
    }
    match &case.order_params {
        None => builder,
        Some(order) => builder.order_params(pick(order)),
    }
}

/// Centralization as MindSpore does it.
fn centralization(on: bool) -> Centralization {
    if on { Centralization::MindSpore } else { Centralization::Off }
}

/// Whether MindSpore mixes rates: a group has a rate of its own, and any rate is dynamic.
fn rates_are_mixed(case: &Case) -> bool {
    if !case.semantics.is_mindspores() {
        return false;
    }
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
    error_in(got, reference, largest(reference))
}

fn largest(values: &[f32]) -> f64 {
    values.iter().fold(1e-30, |max, x| f64::from(x.abs()).max(max))
}

/// The largest difference, as a part of a scale.
fn error_in(got: &[f32], reference: &[f32], scale: f64) -> f64 {
    assert_eq!(got.len(), reference.len(), "the numbers of one tensor");
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

/// The gradients of a case, update by update.
enum Gradients {
    /// Of each parameter.
    Dense(Vec<Vec<f32>>),
    /// Of the only parameter: so many rows at each update, and their values.
    Rows { each: usize, indices: Vec<u32>, values: Vec<f32> },
}

impl Gradients {
    fn read(golden: &Golden, tensors: &Tensors<'_>, case: &Case, parameters: &[Parameter], order: &[usize]) -> Self {
        let scaled = |name: &str| {
            let values = tensors.get(&format!("inputs/{}/{name}", case.dataset));
            values.into_iter().map(|g| g * case.grad_multiplier).collect::<Vec<_>>()
        };
        let Some(indices) = &case.sparse_indices else {
            return Self::Dense(order.iter().map(|i| scaled(&format!("g/{i}"))).collect());
        };
        let [table] = parameters else { panic!("{}: row-sparse gradients of one parameter", case.id) };
        let (indices, values) = (tensors.rows(&format!("inputs/{}/{indices}", case.dataset)), scaled("values"));
        let [rows, ..] = table.shape() else { panic!("{}: a table has rows", case.id) };
        assert_eq!(values.len(), indices.len() * (table.len() / rows), "{}: a row of values for each index", case.id);
        // All updates list as many rows; the tensors hold those of the longest cases.
        Self::Rows { each: indices.len() / golden.manifest.steps, indices, values }
    }

    fn at(&self, step: usize, parameters: &[Parameter]) -> Vec<Grad<'_>> {
        match self {
            Self::Dense(all) => {
                let at = |len: usize| step * len..(step + 1) * len;
                all.iter().zip(parameters).map(|(g, parameter)| (&g[at(parameter.len())]).into()).collect()
            }
            Self::Rows { each, indices, values } => {
                let width = values.len() / indices.len();
                let at = step * each..(step + 1) * each;
                vec![Grad::rows(&indices[at.clone()], &values[at.start * width..at.end * width])]
            }
        }
    }
}

/// Trains a case, with one change to its builder, and gives the worst error in the parameters, and what it has become.
fn train<'a>(
    golden: &Golden,
    tensors: &Tensors<'_>,
    case: &'a Case,
    target: Target,
    change: impl FnOnce(Builder) -> Builder,
) -> Result<(f64, Trained<'a>)> {
    let parameters = parameters(golden, case);
    let mut optimizer = change(builder(case, &parameters)).build(target)?;

    // The optimizer's order, as indices in the dataset.
    let order: Vec<usize> = (optimizer.parameters().iter())
        .map(|own| parameters.iter().position(|p| p.name() == own.name()).expect("a parameter of the dataset"))
        .collect();
    let parameters: Vec<Parameter> = order.iter().map(|&i| parameters[i].clone()).collect();
    let mut p: Vec<Vec<f32>> = order.iter().map(|&i| tensors.get(&format!("inputs/{}/p/{i}", case.dataset))).collect();
    let gradients = Gradients::read(golden, tensors, case, &parameters, &order);
    let reference: Vec<Vec<f32>> = order.iter().map(|&i| tensors.get(&format!("{}/p/{i}", case.id))).collect();

    let mut worst = 0.0_f64;
    let mut before = p.clone();
    for step in 0..case.steps {
        before.clone_from(&p);
        let mut params: Vec<_> = p.iter_mut().map(Into::into).collect();
        let report = optimizer.step(&mut params, &gradients.at(step, &parameters)).unwrap();
        assert!(report.applied(), "{}: {report:?}", case.id);
        for (i, p) in p.iter().enumerate() {
            let at = step * p.len()..(step + 1) * p.len();
            // A tensor of one element may come near 0 at some update.
            worst = worst.max(error_in(p, &reference[i][at], largest(&reference[i])));
        }
    }
    let steps = u64::try_from(case.steps).expect("a small number");
    assert_eq!(optimizer.step_count(), case.final_global_step.unwrap_or(steps), "{}: the step count", case.id);

    Ok((worst, Trained { case, optimizer, order, before, after: p }))
}

/// A case after its last update.
struct Trained<'a> {
    case: &'a Case,
    optimizer: Optimizer,
    /// The optimizer's order, as indices in the dataset.
    order: Vec<usize>,
    /// The parameters before the last update.
    before: Vec<Vec<f32>>,
    after: Vec<Vec<f32>>,
}

impl Trained<'_> {
    /// The worst error of the slots.
    fn slots_error(&self, tensors: &Tensors<'_>) -> f64 {
        self.case.slots.iter().map(|slot| self.slot_error(tensors, slot)).fold(0.0, f64::max)
    }

    /// The worst error of one slot, which our rule has or which follows from what it has.
    fn slot_error(&self, tensors: &Tensors<'_>, slot: &str) -> f64 {
        let Self { case, optimizer, order, .. } = self;
        let of = |i: usize| tensors.get(&format!("{}/s/{slot}/{i}", case.id));
        // A slot that a parameter of this shape does not have is not stored.
        let slots = optimizer.rule().spec().slots();
        let shape = slots.iter().find(|known| known.name == slot).map_or(SlotShape::Same, |known| known.shape);
        let has = |nth: usize| shape.len(optimizer.parameters()[nth].shape()) > 0;
        let there = || order.iter().enumerate().filter(|(nth, _)| has(*nth)).map(|(nth, &i)| (nth, of(i)));
        let worst = |error: &dyn Fn(usize, &[f32]) -> f64| {
            there().map(|(nth, reference)| error(nth, &reference)).fold(0.0, f64::max)
        };
        // A number for a whole parameter, made from its group's rates.
        let number = |number: &dyn Fn(&[f64]) -> f64| {
            worst(&|nth, reference| error(&[single(number(&self.rates(nth)))], reference))
        };
        let own = match (slot, optimizer.rule().kernel()) {
            ("moments1", Rule::AdamWeightDecay(_) | Rule::Lamb(_)) => "moment1",
            ("moments2", Rule::AdamWeightDecay(_) | Rule::Lamb(_)) => "moment2",
            _ => slot,
        };
        let spec = optimizer.rule().spec();
        if spec.slots().iter().any(|known| known.name == own) {
            let name = |nth: usize| optimizer.parameters()[nth].name();
            let all: Vec<f32> = there().flat_map(|(_, reference)| reference).collect();
            return worst(&|nth, reference| {
                // The last value of one element may be near 0.
                let scale = if let [_] = reference { largest(&all) } else { largest(reference) };
                error_in(&optimizer.slot(name(nth), own).unwrap(), reference, scale)
            });
        }
        let steps = u64::try_from(case.steps).expect("a small number");
        match (slot, optimizer.rule().kernel()) {
            // Without momentum our SGD keeps no state, and MindSpore's stays as it was: accum 0, stat 1.
            ("accum", Rule::Sgd(sgd)) if sgd.momentum == 0.0 => {
                worst(&|_, reference| error(&vec![0.0; reference.len()], reference))
            }
            // Whether a parameter awaits its first update is one bit of ours, here an array: 1, then 0.
            ("stat", Rule::Sgd(sgd)) => {
                let stat = if sgd.momentum == 0.0 { 1.0 } else { 0.0 };
                worst(&|_, reference| error(&vec![stat; reference.len()], reference))
            }
            // Without momentum ours keeps no moment: it is the last step. A difference of two parameters is as exact as they.
            ("moment", Rule::RmsProp(rms_prop)) if rms_prop.momentum == 0.0 => worst(&|nth, reference| {
                let (before, after) = (&self.before[nth], &self.after[nth]);
                let moment: Vec<f32> = before.iter().zip(after).map(|(before, after)| before - after).collect();
                error_in(&moment, reference, largest(reference).max(largest(after)))
            }),
            // Ours follow from the count and the rate; theirs are already those of the next update.
            ("eta", Rule::Asgd(asgd)) => number(&|rates| {
                let lr = rates[case.steps - 1];
                lr / (1.0 + asgd.lambd * lr * steps as f64).powf(asgd.alpha)
            }),
            ("mu", Rule::Asgd(asgd)) => number(&|_| 1.0 / (steps as f64 - asgd.t0).max(1.0)),
            // The count.
            ("step", Rule::AdaFactor(_)) => {
                error(&[single(steps as f64)], &tensors.get(&format!("{}/s/{slot}", case.id)))
            }
            // The product of all momenta so far.
            ("mu_product", Rule::NAdam(nadam)) => number(&|_| {
                let momentum = |t: u64| nadam.beta1 * (1.0 - 0.5 * 0.96_f64.powf(t as f64 * nadam.momentum_decay));
                (1..=steps).map(momentum).product()
            }),
            // The powers follow from the step count, by the same products in f32.
            (
                "beta1_power" | "beta2_power",
                Rule::Adam(_) | Rule::LazyAdam(_) | Rule::AdamOffload(_) | Rule::AdaMax(_),
            ) => {
                let [beta1, beta2] = spec.betas();
                let beta = if slot == "beta1_power" { beta1 } else { beta2 };
                let [reference] = tensors.get(&format!("{}/s/{slot}", case.id))[..] else {
                    panic!("{slot} is one number")
                };
                let power = (0..case.steps).fold(1.0_f32, |power, _| power * single(beta));
                f64::from((reference - power).abs())
            }
            _ => panic!("{}: unknown slot {slot}", case.id),
        }
    }

    /// The rates of a parameter's group, update by update.
    fn rates(&self, nth: usize) -> Vec<f64> {
        let spec = (self.case.groups.iter().flatten()).find(|group| group.params.contains(&self.order[nth]));
        let spec = spec.and_then(|group| group.lr.as_ref()).or(self.case.learning_rate.as_ref());
        let rate = spec.map_or_else(|| self.optimizer.rule().spec().lr().clone(), RateSpec::rate);
        (0..self.case.steps)
            .map(|step| match &rate {
                Rate::Fixed(lr) => *lr,
                Rate::List(list) => list[step],
                Rate::Schedule(schedule) => schedule.at(step as u64),
                _ => panic!("an unknown kind of rate"),
            })
            .collect()
    }
}

on_every_backend! {
    fn trajectories(target) {
        let mut failures = Vec::new();
        for golden in Golden::sets() {
            let set = &*golden.manifest.set;
            let tensors = golden.tensors();
            let (mut table, mut ran, mut worst) = (String::new(), 0, [0.0_f64; 2]);
            writeln!(table, "{:48} {:7} {:>12} {:>12}", "case", "backend", "parameters", "slots").unwrap();
            for case in golden.manifest.cases.iter().filter(|case| !is_left_out(case)) {
                let (params, trained) = train(&golden, &tensors, case, target, |builder| builder).unwrap();
                let slots = trained.slots_error(&tensors);
                writeln!(table, "{:48} {:7} {params:12.1e} {slots:12.1e}", case.id, target.name()).unwrap();
                let most = target.allows(tolerance(&case.optimizer));
                if params > most || slots > most {
                    failures.push(format!("{}: parameters {params:.1e}, slots {slots:.1e}", case.id));
                }
                worst = [worst[0].max(params), worst[1].max(slots)];
                ran += 1;
            }
            let [params, slots] = worst;
            writeln!(table, "{:48} {:7} {params:12.1e} {slots:12.1e}", "the worst", target.name()).unwrap();
            writeln!(table, "{ran} of {} cases of {set} ran on {}", golden.manifest.cases.len(), target.name()).unwrap();
            println!("{table}");
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("golden-{set}-{}.txt", target.name()));
            fs::write(file, table).unwrap();
            let at_least = AT_LEAST.iter().find(|(own, _)| golden.own && *own == set).map_or(1, |(_, n)| *n);
            assert!(ran >= at_least, "only {ran} cases of {set} ran, expected {at_least} or more");
        }
        assert!(failures.is_empty(), "too far from the reference:\n{}", failures.join("\n"));
    }

    /// Control: with its rates, or any one of its keywords, a little off, a case is too far from its reference, but for those listed.
    fn notices_another_rate_or_keyword(target) {
        const PART: f64 = 0.2;
        let (mut changes, mut unnoticed) = (0, BTreeSet::new());
        for golden in Golden::sets().iter().filter(|golden| golden.own) {
            let tensors = golden.tensors();
            for case in golden.manifest.cases.iter().filter(|case| !is_left_out(case)) {
                let most = target.allows(tolerance(&case.optimizer));
                let slots = rule(case).expect("a known optimizer").0.spec().slots();
                let mut change = |what: String, case: &Case, lr_scale: Option<f64>| {
                    let scaled = |builder: Builder| match lr_scale {
                        None => builder,
                        Some(scale) => builder.lr_scale(move |_| scale),
                    };
                    changes += 1;
                    match train(golden, &tensors, case, target, scaled) {
                        // Other slots are a difference too.
                        Ok((params, trained))
                            if params <= most
                                && trained.optimizer.rule().spec().slots() == slots
                                && trained.slots_error(&tensors) <= most =>
                        {
                            let _ = unnoticed.insert(format!("{}: {what}", case.id));
                        }
                        Ok(_) => {}
                        Err(Error::HyperParameter { .. }) => {
                            let _ = unnoticed.insert(format!("{}: {what} is refused", case.id));
                        }
                        Err(error) => panic!("{}: {what}: {error}", case.id),
                    }
                };
                change("the rate".into(), case, Some(1.0 + PART));
                for (key, value) in case.kwargs.iter().filter(|(key, _)| *key != "preset") {
                    let mut other = case.clone();
                    other.kwargs[key] = changed(value, PART);
                    change(key.clone(), &other, None);
                }
                for (key, value) in case.inner.iter().flat_map(|inner| &inner.kwargs) {
                    let mut other = case.clone();
                    other.inner.as_mut().expect("there is one").kwargs[key] = changed(value, PART);
                    change(format!("inner {key}"), &other, None);
                }
                for (nth, group) in case.groups.iter().flatten().enumerate() {
                    let mut other = case.clone();
                    let changed = &mut other.groups.as_mut().expect("there are some")[nth];
                    if let Some(decay) = group.weight_decay {
                        changed.weight_decay = Some(if decay == 0.0 { PART } else { decay * (1.0 - PART) });
                        change(format!("weight_decay of group {nth}"), &other, None);
                    }
                }
            }
        }
        // The list is of the repository's sets, which are not there if another folder is named.
        let own = Golden::sets().iter().any(|golden| golden.own);
        let by_definition = WITHOUT_EFFECT.iter().flat_map(|(_, changes)| *changes).filter(|_| own);
        let by_definition = by_definition.map(|&change| change.to_owned());
        assert_eq!(unnoticed, by_definition.collect(), "of {changes} changes these are not noticed");
    }
}

/// A keyword's value, changed: a number by a part of itself.
fn changed(value: &Value, part: f64) -> Value {
    match value {
        Value::Bool(flag) => Value::Bool(!flag),
        Value::Number(number) => match number.as_f64().expect("a number") {
            0.0 => part.into(),
            number => (number * (1.0 - part)).into(),
        },
        Value::Array(numbers) => numbers.iter().map(|number| changed(number, part)).collect(),
        Value::Null => part.into(),
        value => panic!("{value} cannot be changed"),
    }
}

/// Every case is run or left out, and no list names what is not there. This is checked for the repository's sets only:
/// another may have fewer kinds of cases.
#[test]
fn lists_are_current() {
    let sets = Golden::sets();
    if !sets.iter().all(|golden| golden.own) {
        return;
    }
    for golden in &sets {
        let set = &golden.manifest.set;
        assert!(AT_LEAST.iter().any(|(own, ..)| own == set), "the cases of {set} are not counted");
    }
    let cases: Vec<&Case> = sets.iter().flat_map(|golden| &golden.manifest.cases).collect();
    for LeftOut { reason, holds, ids } in LEFT_OUT {
        let left_out: BTreeSet<&str> = cases.iter().filter(|case| holds(case)).map(|case| &*case.id).collect();
        assert_eq!(left_out, ids.iter().copied().collect(), "left out because of {reason:?}");
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
    assert!(rule(&read(&with("optimizer", "Adamant".into())).unwrap()).is_none(), "Adamant is not known");
    let preset = read(&with("kwargs", serde_json::json!({"preset": "caffe"}))).unwrap();
    assert!(std::panic::catch_unwind(|| rule(&preset)).is_err(), "an unknown preset was accepted");
    let keyword = read(&with("kwargs", serde_json::json!({"beta3": 0.9}))).unwrap();
    assert!(std::panic::catch_unwind(|| rule(&keyword)).is_err(), "an unknown keyword was accepted");
}

/// A hyper-parameter as MindSpore stores it.
#[allow(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is the purpose")]
fn single(x: f64) -> f32 {
    x as f32
}
