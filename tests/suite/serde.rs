//! Rules, rates and schedules as data: what is written is read back the same, and what is wrong is refused with a clear line.

use std::collections::BTreeSet;
use std::fmt::Debug;

use ::serde::Serialize;
use ::serde::de::DeserializeOwned;
use optimizers::rule::{At, CustomRule, Slot, StepScalars, UpdateRule};
use optimizers::schedule::{
    AnySchedule, Constant, CosineDecay, CosineRestarts, Cyclic, ExponentialDecay, InverseDecay, InverseSqrt, Linear,
    Mode, MultiStep, NaturalExpDecay, Noam, OneCycle, PolynomialDecay, ReduceOnPlateau, StepDecay, Threshold, WarmUp,
    WarmupStableDecay, from_fn,
};
use optimizers::{
    AdaFactor, Adam, AdamW, DType, DynamicLossScale, FixedLossScale, Lamb, Lars, LossScale, Momentum, Parameter, Rate,
    Result, Rule, Schedule, Sgd,
};
use serde_json::{Value, from_str, from_value, json, to_string, to_value};

/// One of every kind of schedule and more, as the type that its constructor returns, with its kind.
fn schedules() -> Vec<(&'static str, Box<dyn Schedule>)> {
    fn all() -> Result<Vec<(&'static str, Box<dyn Schedule>)>> {
        let decay = CosineDecay::new(0.01, 0.1, 17)?;
        Ok(vec![
            ("warm_up", Box::new(WarmUp::new(1.0 / 3.0, 7)?)),
            ("cosine_decay", Box::new(decay)),
            ("polynomial_decay", Box::new(PolynomialDecay::new(0.1, 0.01, 4, 0.5)?)),
            ("polynomial_decay", Box::new(PolynomialDecay::new(0.1, 0.01, 4, 0.7)?.update_decay_steps(true))),
            ("exponential_decay", Box::new(ExponentialDecay::new(0.1, 0.9, 5)?)),
            ("exponential_decay", Box::new(ExponentialDecay::new(0.1, 0.9, 5)?.is_stair(true))),
            ("natural_exp_decay", Box::new(NaturalExpDecay::new(0.1, 0.3, 5)?)),
            ("natural_exp_decay", Box::new(NaturalExpDecay::new(0.1, 0.3, 5)?.is_stair(true))),
            ("inverse_decay", Box::new(InverseDecay::new(0.1, 0.3, 5)?)),
            ("inverse_decay", Box::new(InverseDecay::new(0.1, 0.3, 5)?.is_stair(true))),
            ("constant", Box::new(Constant::new(0.1 + 0.2)?)),
            ("linear", Box::new(Linear::new(0.2, 0.1, 9)?)),
            ("step_decay", Box::new(StepDecay::new(0.1, 0.7, 3)?)),
            ("multi_step", Box::new(MultiStep::new(0.1, 0.7, [2, 5, 5, 30])?)),
            ("multi_step", Box::new(MultiStep::new(0.1, 0.7, [])?)),
            ("cosine_restarts", Box::new(CosineRestarts::new(0.0, 0.1, 3, 2)?)),
            ("one_cycle", Box::new(OneCycle::new(0.5, 40)?)),
            ("one_cycle", Box::new(OneCycle::new(0.5, 40)?.pct_start(0.2)?.div_factor(5.0)?.final_div_factor(9.0)?)),
            ("cyclic", Box::new(Cyclic::new(0.0, 0.4, 4, u64::MAX)?)),
            ("inverse_sqrt", Box::new(InverseSqrt::new(0.1, 10)?)),
            ("noam", Box::new(Noam::new(0.3, 512, 10)?)),
            ("warmup_stable_decay", Box::new(WarmupStableDecay::new(0.1, 5, 10, 20)?.end_lr(0.007)?)),
            ("then", Box::new(WarmUp::new(0.1, 4)?.then(4, decay).then(30, Constant::new(0.02)?))),
            ("warmed", Box::new(decay.warmup(11))),
            ("scaled", Box::new(decay.scale(0.3)?)),
            ("repeated", Box::new(decay.warmup(3).scale(0.3)?.repeat(13)?)),
        ])
    }
    all().unwrap()
}

/// Written and read back.
#[track_caller]
fn again<T: Serialize + DeserializeOwned>(value: &T) -> T {
    let text = to_string(value).unwrap();
    from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The message with which `text` is refused as a `T`.
#[track_caller]
fn refusal<T: DeserializeOwned + Debug>(text: &str) -> String {
    match from_str::<T>(text) {
        Err(error) => error.to_string(),
        Ok(value) => panic!("{text} was accepted as {value:?}"),
    }
}

fn refuse<T: DeserializeOwned + Debug>(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let message = refusal::<T>(text);
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[track_caller]
fn unwritable<T: Serialize + Debug>(value: &T, expected: &str) {
    let message = to_string(value).expect_err("it was written").to_string();
    assert!(message.contains(expected), "{value:?}: {message}");
}

/// The rates of the first updates and of a far one, as bits.
fn bits(schedule: &dyn Schedule) -> Vec<u64> {
    (0..50).chain([1 << 20]).map(|update| schedule.at(update).to_bits()).collect()
}

/// A rate's kind and numbers, as bits; `Debug` of a list is its length alone.
fn rate_bits(rate: &Rate) -> Vec<u64> {
    match rate {
        Rate::Fixed(lr) => vec![lr.to_bits()],
        Rate::List(list) => list.iter().map(|lr| lr.to_bits()).collect(),
        Rate::Schedule(schedule) => bits(&**schedule),
        Rate::Plateau(plateau) => vec![plateau.lr().to_bits()],
        _ => panic!("an unknown kind of rate"),
    }
}

#[track_caller]
fn assert_same(got: &Rule, expected: &Rule) {
    assert_eq!(format!("{got:?}"), format!("{expected:?}"), "read back");
    assert_eq!(rate_bits(got.spec().lr()), rate_bits(expected.spec().lr()), "{expected:?}");
}

/// Every schedule is itself again, alone and as a rate, and has the same rates to the bit.
#[test]
fn schedules_round_trip() {
    let mut kinds = BTreeSet::from(["reduce_on_plateau".to_owned()]);
    for (kind, schedule) in schedules() {
        let any = schedule.describe().unwrap_or_else(|| panic!("{schedule:?} has no description"));
        assert_eq!(bits(&any), bits(&*schedule), "{schedule:?}");
        assert_eq!(format!("{any:?}"), format!("{schedule:?}"), "`Debug` prints what is inside");
        assert_eq!(any.describe(), Some(any.clone()));
        assert_eq!(to_value(&any).unwrap()["kind"], kind);

        let back = again(&any);
        assert_eq!(back, any);
        assert_eq!(bits(&back), bits(&*schedule), "{schedule:?}");

        let rate = Rate::Schedule(schedule.into());
        assert_eq!(to_value(&rate).unwrap(), to_value(&any).unwrap());
        let back = again(&rate);
        assert_eq!(format!("{back:?}"), format!("{rate:?}"));
        assert_eq!(rate_bits(&back), rate_bits(&rate), "{rate:?}");
        kinds.insert(kind.to_owned());
    }
    // serde lists what it knows: none may be missing above.
    let message = refusal::<AnySchedule>(r#"{"kind": "no such"}"#);
    let known: BTreeSet<String> = message.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert_eq!(kinds, known);
}

/// A number, a list and a plateau are themselves again.
#[test]
fn rates_round_trip() {
    let third = 1.0 / 3.0;
    for (rate, value) in [
        (Rate::from(0.1), json!(0.1)),
        (Rate::from(0.0), json!(0.0)),
        (Rate::from(third), json!(third)),
        (Rate::from([0.1, -third, 1e-310]), json!([0.1, -third, 1e-310])),
    ] {
        assert_eq!(to_value(&rate).unwrap(), value);
        assert_eq!(rate_bits(&again(&rate)), rate_bits(&rate), "{value}");
    }
    assert_eq!(rate_bits(&from_str("1").unwrap()), [1.0_f64.to_bits()]);
    assert_eq!(rate_bits(&from_str("[1, 2]").unwrap()), [1.0_f64.to_bits(), 2.0_f64.to_bits()]);
    assert_eq!(from_str::<DType>(r#""bf16""#).unwrap(), DType::Bf16);
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        assert_eq!(to_value(dtype).unwrap(), dtype.to_string());
        assert_eq!(again(&dtype), dtype);
    }
}

/// Any number comes back to the bit.
#[test]
fn numbers_are_exact() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..2000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Any fraction, and an exponent from 2⁻¹⁰⁰ to 2²⁷.
        let lr = f64::from_bits((seed >> 12) | ((923 + seed % 127) << 52));
        let schedule = Constant::new(lr).unwrap();
        assert_eq!(rate_bits(&again(&Rate::from(lr))), [lr.to_bits()], "{lr}");
        assert_eq!(again(&AnySchedule::from(schedule)).at(0).to_bits(), lr.to_bits(), "{lr}");
    }
}

/// The settings of a plateau are written, its progress is not.
#[test]
fn plateaus_round_trip() {
    let plateau = || {
        let plateau = ReduceOnPlateau::new(0.3).unwrap().mode(Mode::Max).factor(0.7).unwrap().patience(1);
        let plateau = plateau.threshold(0.02).unwrap().threshold_mode(Threshold::Absolute).cooldown(2);
        plateau.min_lr(0.01).unwrap().eps(1e-4).unwrap()
    };
    let value = json!({
        "kind": "reduce_on_plateau", "lr": 0.3, "mode": "max", "factor": 0.7, "patience": 1, "threshold": 0.02,
        "threshold_mode": "absolute", "cooldown": 2, "min_lr": 0.01, "eps": 1e-4,
    });
    let mut rate = Rate::from(plateau());
    assert_eq!(to_value(&rate).unwrap(), value);
    assert!(matches!(again(&rate), Rate::Plateau(back) if back == plateau()), "{rate:?}");
    while !rate.observe(1.0).unwrap() {}
    assert_eq!(to_value(&rate).unwrap(), value, "after a reduction");

    let short = from_str(r#"{"kind": "reduce_on_plateau", "lr": 0.3}"#).unwrap();
    assert!(matches!(&short, Rate::Plateau(back) if *back == ReduceOnPlateau::new(0.3).unwrap()), "{short:?}");
}

/// What has a default may be left out, and only that.
#[test]
fn defaults() {
    for (text, expected) in [
        (
            r#"{"kind": "polynomial_decay", "lr": 0.1, "end_lr": 0.01, "decay_steps": 4, "power": 0.5}"#,
            AnySchedule::from(PolynomialDecay::new(0.1, 0.01, 4, 0.5).unwrap()),
        ),
        (r#"{"kind": "one_cycle", "max_lr": 0.5, "total_steps": 10}"#, OneCycle::new(0.5, 10).unwrap().into()),
        (
            r#"{"total_steps": 10, "max_lr": 0.5, "div_factor": 5, "kind": "one_cycle"}"#,
            OneCycle::new(0.5, 10).unwrap().div_factor(5.0).unwrap().into(),
        ),
        (
            r#"{"kind": "warmup_stable_decay", "lr": 0.1, "warmup_steps": 1, "stable_steps": 2, "decay_steps": 3}"#,
            WarmupStableDecay::new(0.1, 1, 2, 3).unwrap().into(),
        ),
    ] {
        assert_eq!(from_str::<AnySchedule>(text).unwrap(), expected, "{text}");
    }
    for (text, expected) in [
        (r#"{"rule": "sgd"}"#, Sgd::default().into()),
        (r#"{"rule": "adam", "lr": 0.5}"#, Adam::new(0.5).into()),
        (r#"{"weight_decay": 0.5, "rule": "adamw"}"#, AdamW { weight_decay: 0.5, ..AdamW::default() }.into()),
        (r#"{"rule": "ada_factor"}"#, AdaFactor::default().into()),
        (r#"{"rule": "ada_factor", "lr": null}"#, AdaFactor::default().into()),
        (r#"{"rule": "ada_factor", "lr": 0.5, "relative_step": false}"#, AdaFactor::with_lr(0.5).into()),
        (r#"{"rule": "momentum", "lr": 0.5, "momentum": 0.9}"#, Momentum::new(0.5, 0.9).into()),
        (r#"{"rule": "lamb", "lr": 0.5}"#, Lamb::new(0.5).into()),
        (
            r#"{"rule": "lars", "inner": {"rule": "momentum", "lr": 0.5, "momentum": 0.9}}"#,
            Lars::new(Momentum::new(0.5, 0.9)).into(),
        ),
    ] {
        assert_same(&from_str(text).unwrap_or_else(|error| panic!("{text}: {error}")), &expected);
    }
    // A rule's config alone needs no tag.
    assert_same(&from_str::<Adam>(r#"{"beta1": 0.5}"#).unwrap().into(), &Adam { beta1: 0.5, ..Adam::default() }.into());
    // Every rule with `Default`: the tag alone is enough, and gives what is written of the default.
    let mut complete = 0;
    for rule in Rule::all() {
        let name = rule.spec().name();
        match from_value::<Rule>(json!({"rule": name})) {
            Ok(default) => {
                assert_eq!(default.spec().name(), name);
                complete += 1;
            }
            Err(error) => {
                let message = error.to_string();
                let needed = if name == "lars" { "inner" } else { "lr" };
                assert!(["momentum", "lamb", "lars"].contains(&name), "{name}: {message}");
                assert!(message.contains(&format!("missing field `{needed}`")), "{name}: {message}");
            }
        }
    }
    assert!(complete > 30, "{complete} rules have a default");
}

/// Every rule is itself again, with every kind of rate.
#[test]
fn rules_round_trip() {
    for rule in Rule::all() {
        let value = to_value(&rule).unwrap_or_else(|error| panic!("{rule:?}: {error}"));
        assert_eq!(value["rule"], rule.spec().name());
        assert_same(&again(&rule), &rule);
        // The order of an object's fields has no meaning.
        assert_same(&from_value(value.clone()).unwrap(), &rule);

        // One field more is one too many, whichever rule.
        let mut more = value.clone();
        more["no such"] = json!(1);
        let message = from_value::<Rule>(more).expect_err("an unknown field was accepted").to_string();
        assert!(message.contains("unknown field `no such`"), "{}: {message}", rule.spec().name());

        for (field, was) in value.as_object().unwrap() {
            // A number that is none: what JSON has for it.
            if was.is_number() && field != "lr" {
                let mut none = value.clone();
                none[field] = Value::Null;
                let message = from_value::<Rule>(none).expect_err("null was accepted").to_string();
                assert!(message.contains("null"), "{field}: {message}");
            }
        }
    }
    let plateau = ReduceOnPlateau::new(0.3).unwrap().patience(3);
    let rates = schedules().into_iter().map(|(_, schedule)| Rate::Schedule(schedule.into()));
    for rate in rates.chain([Rate::from([0.1, 0.2]), plateau.into()]) {
        for rule in [Rule::from(Adam::new(rate.clone())), Lars::new(Momentum::new(rate, 0.9)).into()] {
            assert_same(&again(&rule), &rule);
        }
    }
}

/// What a constructor would refuse is not read, nor what is misspelt.
#[test]
fn wrong_data_is_refused() {
    refuse::<AnySchedule>(&[
        (r#"{"kind": "warmup", "lr": 0.1}"#, "unknown variant `warmup`, expected one of `warm_up`"),
        (r#"{"lr": 0.1, "warmup_steps": 4}"#, "missing field `kind`"),
        (r#"{"kind": "warm_up", "lr": 0.1}"#, "missing field `warmup_steps`"),
        (r#"{"kind": "warm_up", "lr": 0.1, "warmup_steps": 4, "lrs": 1}"#, "unknown field `lrs`"),
        (r#"{"kind": "warm_up", "lr": null, "warmup_steps": 4}"#, "invalid type: null, expected f64"),
        (r#"{"kind": "warm_up", "lr": "0.1", "warmup_steps": 4}"#, "invalid type: string"),
        (r#"{"kind": "warm_up", "lr": 0.1, "warmup_steps": -4}"#, "expected u64"),
        (r#"{"kind": "warm_up", "lr": 0.1, "warmup_steps": 0}"#, "WarmUp: warmup_steps must be ≥ 1, got 0"),
        (r#"{"kind": "warm_up", "lr": -0.1, "warmup_steps": 4}"#, "WarmUp: lr must be finite and ≥ 0, got -0.1"),
        (
            r#"{"kind": "one_cycle", "max_lr": 1, "total_steps": 9, "pct_start": 2}"#,
            "pct_start must be between 0 and 1",
        ),
        (r#"{"kind": "one_cycle", "max_lr": 1, "total_steps": 9, "pct_start": null}"#, "invalid type: null"),
        (r#"{"kind": "multi_step", "lr": 1, "gamma": 0.1, "milestones": [4, 3]}"#, "never falls, got 3 after 4"),
        (r#"{"kind": "scaled", "factor": -1, "schedule": {"kind": "constant", "lr": 1}}"#, "Schedule: factor must be"),
        (r#"{"kind": "repeated", "period": 0, "schedule": {"kind": "constant", "lr": 1}}"#, "period must be ≥ 1"),
        (r#"{"kind": "warmed", "steps": 1, "schedule": {"kind": "constant", "lr": -1}}"#, "Constant: lr must be"),
        (r#"{"kind": "warmed", "steps": 1, "schedule": {"kind": "constant", "lr": 1, "x": 1}}"#, "unknown field `x`"),
        (r#"{"kind": "warmed", "steps": 1, "schedule": 0.1}"#, "invalid type: floating point"),
        (r#"{"kind": "reduce_on_plateau", "lr": 0.1}"#, "reduce_on_plateau is a rate of its own"),
        ("0.1", "invalid type: floating point"),
    ]);
    refuse::<Rate>(&[
        ("null", "invalid type: null, expected a rate: a number, a list of numbers, or an object with a `kind`"),
        ("true", "expected a rate: a number"),
        (r#""0.1""#, "expected a rate: a number"),
        ("-0.1", "a rate must be finite and ≥ 0, got -0.1"),
        ("-1", "a rate must be finite and ≥ 0, got -1"),
        ("1e60", "a rate must be finite and ≥ 0"),
        ("[]", "a rate must be a list of at least one rate, got an empty list"),
        ("[0.1, null]", "invalid type: null, expected f64"),
        ("[1e60]", "a rate must be a list of finite numbers"),
        ("{}", "missing field `kind`"),
        (r#"{"kind": "constant", "lr": -1}"#, "Constant: lr must be"),
        (r#"{"kind": "constant", "lr": 1, "at": 1}"#, "unknown field `at`"),
        (r#"{"kind": "reduce_on_plateau"}"#, "missing field `lr`"),
        (r#"{"kind": "reduce_on_plateau", "lr": -1}"#, "ReduceOnPlateau: lr must be"),
        (r#"{"kind": "reduce_on_plateau", "lr": 1, "factor": 1}"#, "ReduceOnPlateau: factor must be inside (0, 1)"),
        (r#"{"kind": "reduce_on_plateau", "lr": 1, "factor": null}"#, "invalid type: null"),
        (
            r#"{"kind": "reduce_on_plateau", "lr": 1, "mode": "least"}"#,
            "unknown variant `least`, expected `min` or `max`",
        ),
        (r#"{"kind": "reduce_on_plateau", "lr": 1, "state": {}}"#, "unknown field `state`"),
        (
            r#"{"kind": "warmed", "steps": 1, "schedule": {"kind": "reduce_on_plateau", "lr": 1}}"#,
            "kind must be a schedule: reduce_on_plateau is a rate of its own",
        ),
    ]);
    refuse::<Rule>(&[
        (r#"{"rule": "adam_w"}"#, "unknown variant `adam_w`, expected one of `sgd`"),
        (r#"{"rule": "custom"}"#, "unknown variant `custom`"),
        (r#"{"rule": "Custom"}"#, "unknown variant `Custom`"),
        (r#"{"lr": 0.1}"#, "missing field `rule`"),
        (r#"{"rule": "adam", "lr": -0.1}"#, "a rate must be finite and ≥ 0"),
        (r#"{"rule": "adam", "lr": null}"#, "expected a rate: a number"),
        (r#"{"rule": "adam", "beta_1": 0.1}"#, "unknown field `beta_1`, expected one of `lr`, `beta1`"),
        (r#"{"rule": "adam", "beta1": 1}"#, "adam.beta1 must be inside (0, 1), got 1"),
        (r#"{"rule": "adam", "weight_decay": -1}"#, "adam.weight_decay must be finite and ≥ 0, got -1"),
        (r#"{"rule": "adam", "use_nesterov": 1}"#, "expected a boolean"),
        (r#"{"rule": "adam", "lr": {"kind": "constant"}}"#, "missing field `lr`"),
        (r#"{"rule": "rprop", "etas": [0.5]}"#, "tuple of size 2"),
        (r#"{"rule": "momentum", "lr": 0.1}"#, "missing field `momentum`"),
        (r#"{"rule": "lars", "inner": {"rule": "lamb", "lr": 0.1}}"#, "lars.inner must be a rule without norms"),
        (r#"{"rule": "lars", "inner": {"rule": "sgd"}, "filter": 1}"#, "unknown field `filter`"),
    ]);
    refuse::<Adam>(&[
        (r#"{"beta_1": 0.1}"#, "unknown field `beta_1`"),
        (r#"{"rule": "adam"}"#, "unknown field `rule`"),
    ]);
    refuse::<DType>(&[(r#""f64""#, "unknown variant `f64`, expected one of `f32`, `f16`, `bf16`")]);
}

#[derive(Debug)]
struct Own;

impl Schedule for Own {
    fn at(&self, _: u64) -> f64 {
        0.1
    }
}

impl UpdateRule for Own {
    fn name(&self) -> &'static str {
        "own"
    }

    fn lr(&self) -> &Rate {
        &Rate::Fixed(0.1)
    }

    fn weight_decay(&self) -> f64 {
        0.0
    }

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn slots(&self) -> Vec<Slot> {
        vec![]
    }

    fn scalars(&self, _: &At) -> StepScalars {
        [0.1, 0.0, 0.0, 0.0].into()
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        &["lr", "pad0", "pad1", "pad2"]
    }
}

impl CustomRule for Own {
    fn update(&self, step: &StepScalars, p: &mut [f32], g: &[f32], _: &mut [&mut [f32]]) {
        for (p, g) in p.iter_mut().zip(g) {
            *p -= step.floats()[0] * g;
        }
    }

    fn wgsl(&self) -> &str {
        ""
    }
}

/// What could not be read back is not written: closures, types of one's own, what no constructor would accept.
#[test]
fn what_cannot_be_written() {
    let of_its_own = "is a closure or a type of its own: only the schedules of this library can be written";
    let decay = CosineDecay::new(0.01, 0.1, 10).unwrap();
    for rate in [
        Rate::from(from_fn("halving", |_| 0.1)),
        Own.into(),
        Own.warmup(4).into(),
        decay.then(4, Own).into(),
        Own.scale(0.5).unwrap().into(),
        Own.repeat(5).unwrap().into(),
    ] {
        unwritable(&rate, of_its_own);
        unwritable(&Rule::from(Adam::new(rate)), of_its_own);
    }
    unwritable(&Rate::from(from_fn("halving", |_| 0.1)), "the rate halving is");

    let own = "\"own\" is a rule of your own: only the rules of this library can be written";
    unwritable(&Rule::custom(Own), own);
    unwritable(&Rule::from(Lars::new(Rule::custom(Own))), own);
    let mut lars = Lars::new(Sgd::default());
    assert!(to_string(&lars.clone()).is_ok(), "the filter of a copy is the same");
    lars.filter = std::sync::Arc::new(|parameter: &Parameter| !parameter.name().contains("bias"));
    unwritable(&lars, "lars.filter is a closure of its own: only the default one can be written");

    unwritable(&Rate::from(f64::NAN), "a rate must be finite and ≥ 0, got NaN");
    unwritable(&Rate::from([0.1, f64::INFINITY]), "a rate must be a list of finite numbers, got inf");
    unwritable(&Rule::from(Adam { eps: f64::NAN, ..Adam::default() }), "adam.eps must be finite and > 0, got NaN");
    unwritable(&Rule::from(Adam { weight_decay: f64::INFINITY, ..Adam::default() }), "adam.weight_decay must be");
}

/// Every way to scale losses is itself again; what is left out is as by default, and what an optimizer would refuse is neither read nor
/// written.
#[test]
fn loss_scales() {
    let dynamic = DynamicLossScale { scale_window: 7, ..DynamicLossScale::default() };
    let fixed = FixedLossScale { loss_scale: 64.0, ..FixedLossScale::default() };
    for (text, expected) in [
        (r#"{"plain": 0.5}"#, LossScale::Plain(0.5)),
        (r#"{"fixed": {"loss_scale": 64}}"#, fixed.into()),
        (r#"{"dynamic": {}}"#, DynamicLossScale::default().into()),
        (r#"{"dynamic": {"scale_window": 7}}"#, dynamic.into()),
    ] {
        let read: LossScale = from_str(text).unwrap();
        assert_eq!((read, again(&read)), (expected, expected), "{text}");
    }
    refuse::<LossScale>(&[
        (r#"{"plain": -3}"#, "loss_scale must be finite and > 0"),
        (r#"{"plain": null}"#, "invalid type: null"),
        (r#"{"dynamic": {"scale_window": 0}}"#, "DynamicLossScale.scale_window must be ≥ 1, got 0"),
        (r#"{"dynamic": {"window": 1}}"#, "unknown field `window`"),
        (r#"{"fixed": {"loss_scale": 0.5}}"#, "FixedLossScale.loss_scale must be finite and ≥ 1"),
    ]);
    unwritable(&LossScale::Plain(f64::INFINITY), "loss_scale must be finite and > 0");
}

/// As deep as a schedule is written it is read, and no deeper.
#[test]
fn nesting_is_bounded() {
    let mut schedule = AnySchedule::from(Constant::new(0.5).unwrap());
    for _ in 0..32 {
        schedule = schedule.warmup(1).into();
    }
    assert_eq!(again(&schedule), schedule);
    let rule = Rule::from(Lars::new(Momentum::new(schedule.clone(), 0.9)));
    assert_same(&again(&rule), &rule);

    let text = to_string(&schedule).unwrap();
    let deeper = format!(r#"{{"kind": "warmed", "schedule": {text}, "steps": 1}}"#);
    let expected = "the schedule must be nested in at most 32 others, got a deeper one";
    refuse::<AnySchedule>(&[(&*deeper, expected)]);
    refuse::<Rate>(&[(&*deeper, expected)]);
    unwritable(&AnySchedule::from(schedule.warmup(1)), expected);
    let hostile = r#"{"kind": "warmed", "steps": 1, "schedule": "#.repeat(100_000);
    refuse::<Rate>(&[(&*hostile, "recursion limit exceeded")]);
}
