//! `Serialize` and `Deserialize` of rates, schedules, rules and loss scales, with the feature `serde`.
//!
//! | type | as data |
//! | --- | --- |
//! | [`Rate`] | a number, a list of numbers, or an object: a schedule, or `{"kind": "reduce_on_plateau", …}` |
//! | [`AnySchedule`] | `{"kind": "cosine_decay", "min_lr": 0.0, …}`: the name of the type, the arguments of its constructor and setters |
//! | [`LossScale`] | `{"plain": 128.0}`, `{"fixed": {"loss_scale": 128.0}}` or `{"dynamic": {"scale_window": 1000}}` |
//! | [`Rule`] | `{"rule": "adam", "lr": 0.001, …}`: [`UpdateRule::name`](crate::rule::UpdateRule::name), the fields of the config |
//!
//! A field that is not known is an error; one that has a default may be left out. What is read passes the checks of the
//! constructors (a rule also those of [`Builder::build`](crate::Builder::build) that need no parameters), and what would not
//! pass them is not written; a config on its own, as [`Adam`], is checked when it is built. Closures, and types that this
//! library does not know, cannot be written: errors that say so.
//!
//! Settings are written, not progress: a [`ReduceOnPlateau`] is read back at its start, with
//! [`state`](ReduceOnPlateau::state) apart.
//!
//! Numbers come back to the bit if the format keeps them: `serde_json` does with its feature `float_roundtrip`.
//! The format must say what it holds, as JSON and TOML do: a number, a list and an object are told apart by it. With the feature
//! `arbitrary_precision` of `serde_json` a number is not one any more: read it by way of a `serde_json::Value` then.

use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::check;
use crate::guard::{DynamicLossScale, FixedLossScale};
use crate::rule::CustomRule;
use crate::rules::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Adan, Asgd, Ftrl, Lamb, Lars,
    LazyAdam, Lion, Momentum, NAdam, ProximalAdagrad, RAdam, RmsProp, Rprop, Sgd, lars,
};
use crate::schedule::any::MAX_DEPTH;
use crate::schedule::{
    AnySchedule, Constant, CosineDecay, CosineRestarts, Cyclic, ExponentialDecay, InverseDecay, InverseSqrt, Linear,
    Mode, MultiStep, NaturalExpDecay, Noam, OneCycle, PolynomialDecay, ReduceOnPlateau, Repeated, Scaled, Schedule,
    StepDecay, Then, Threshold, WarmUp, Warmed, WarmupStableDecay,
};
use crate::{Error, LossScale, Rate, Result, Rule};

/// [`Kind`] and its conversions, from each schedule's fields and how it is made of them.
macro_rules! kinds {
    ($($schedule:ident { $($(#[$attribute:meta])* $field:ident: $type:ty),* $(,)? } => $make:expr;)*) => {
        /// What an object with a `kind` may be.
        #[derive(Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
        enum Kind {
            $($schedule { $($(#[$attribute])* $field: $type),* },)*
            Then { first: Box<Self>, updates: u64, next: Box<Self> },
            Warmed { schedule: Box<Self>, steps: u64 },
            Scaled { schedule: Box<Self>, factor: f64 },
            Repeated { schedule: Box<Self>, period: u64 },
            ReduceOnPlateau {
                lr: f64,
                #[serde(default)]
                mode: Mode,
                #[serde(default = "default::factor")]
                factor: f64,
                #[serde(default = "default::patience")]
                patience: u64,
                #[serde(default = "default::threshold")]
                threshold: f64,
                #[serde(default)]
                threshold_mode: Threshold,
                #[serde(default)]
                cooldown: u64,
                #[serde(default)]
                min_lr: f64,
                #[serde(default = "default::eps")]
                eps: f64,
            },
        }

        impl Kind {
            /// The kind of a schedule that is nested in `depth` others.
            fn new(schedule: AnySchedule, depth: usize) -> Result<Self> {
                check_depth(depth)?;
                let inner = |schedule| Self::new(schedule, depth + 1).map(Box::new);
                Ok(match schedule {
                    $(AnySchedule::$schedule($schedule { $($field),* }) => Self::$schedule { $($field),* },)*
                    AnySchedule::Then(schedule) => {
                        let Then { first, updates, next } = *schedule;
                        Self::Then { first: inner(first)?, updates, next: inner(next)? }
                    }
                    AnySchedule::Warmed(schedule) => {
                        let Warmed { schedule, steps } = *schedule;
                        Self::Warmed { schedule: inner(schedule)?, steps }
                    }
                    AnySchedule::Scaled(schedule) => {
                        let Scaled { schedule, factor } = *schedule;
                        Self::Scaled { schedule: inner(schedule)?, factor }
                    }
                    AnySchedule::Repeated(schedule) => {
                        let Repeated { schedule, period } = *schedule;
                        Self::Repeated { schedule: inner(schedule)?, period }
                    }
                })
            }

            /// The schedule, checked, if it is nested in `depth` others.
            fn schedule(self, depth: usize) -> Result<AnySchedule> {
                check_depth(depth)?;
                let inner = |kind: Box<Self>| kind.schedule(depth + 1);
                Ok(match self {
                    $(Self::$schedule { $($field),* } => $make.into(),)*
                    Self::Then { first, updates, next } => inner(first)?.then(updates, inner(next)?).into(),
                    Self::Warmed { schedule, steps } => inner(schedule)?.warmup(steps).into(),
                    Self::Scaled { schedule, factor } => inner(schedule)?.scale(factor)?.into(),
                    Self::Repeated { schedule, period } => inner(schedule)?.repeat(period)?.into(),
                    Self::ReduceOnPlateau { .. } => {
                        let expected = "a schedule: reduce_on_plateau is a rate of its own";
                        let got = "reduce_on_plateau".to_owned();
                        return Err(Error::HyperParameter { name: "kind".to_owned(), expected, got });
                    }
                })
            }
        }
    };
}

kinds! {
    WarmUp { lr: f64, warmup_steps: u64 } => WarmUp::new(lr, warmup_steps)?;
    CosineDecay { min_lr: f64, max_lr: f64, decay_steps: u64 } => CosineDecay::new(min_lr, max_lr, decay_steps)?;
    PolynomialDecay { lr: f64, end_lr: f64, decay_steps: u64, power: f64, #[serde(default)] update_decay_steps: bool } =>
        PolynomialDecay::new(lr, end_lr, decay_steps, power)?.update_decay_steps(update_decay_steps);
    ExponentialDecay { lr: f64, decay_rate: f64, decay_steps: u64, #[serde(default)] is_stair: bool } =>
        ExponentialDecay::new(lr, decay_rate, decay_steps)?.is_stair(is_stair);
    NaturalExpDecay { lr: f64, decay_rate: f64, decay_steps: u64, #[serde(default)] is_stair: bool } =>
        NaturalExpDecay::new(lr, decay_rate, decay_steps)?.is_stair(is_stair);
    InverseDecay { lr: f64, decay_rate: f64, decay_steps: u64, #[serde(default)] is_stair: bool } =>
        InverseDecay::new(lr, decay_rate, decay_steps)?.is_stair(is_stair);
    Constant { lr: f64 } => Constant::new(lr)?;
    Linear { start: f64, end: f64, steps: u64 } => Linear::new(start, end, steps)?;
    StepDecay { lr: f64, gamma: f64, every: u64 } => StepDecay::new(lr, gamma, every)?;
    MultiStep { lr: f64, gamma: f64, milestones: Vec<u64> } => MultiStep::new(lr, gamma, milestones)?;
    CosineRestarts { min_lr: f64, max_lr: f64, first: u64, growth: u64 } =>
        CosineRestarts::new(min_lr, max_lr, first, growth)?;
    OneCycle {
        max_lr: f64,
        total_steps: u64,
        #[serde(default = "default::pct_start")] pct_start: f64,
        #[serde(default = "default::div_factor")] div_factor: f64,
        #[serde(default = "default::final_div_factor")] final_div_factor: f64,
    } => OneCycle::new(max_lr, total_steps)?
        .pct_start(pct_start)?
        .div_factor(div_factor)?
        .final_div_factor(final_div_factor)?;
    Cyclic { base_lr: f64, max_lr: f64, up: u64, down: u64 } => Cyclic::new(base_lr, max_lr, up, down)?;
    InverseSqrt { lr: f64, warmup_steps: u64 } => InverseSqrt::new(lr, warmup_steps)?;
    Noam { factor: f64, model_size: u64, warmup_steps: u64 } => Noam::new(factor, model_size, warmup_steps)?;
    WarmupStableDecay {
        lr: f64,
        warmup_steps: u64,
        stable_steps: u64,
        decay_steps: u64,
        #[serde(default)] end_lr: f64,
    } => WarmupStableDecay::new(lr, warmup_steps, stable_steps, decay_steps)?.end_lr(end_lr)?;
}

fn check_depth(depth: usize) -> Result<()> {
    if depth <= MAX_DEPTH {
        return Ok(());
    }
    let expected = "nested in at most 32 others";
    Err(Error::HyperParameter { name: "the schedule".to_owned(), expected, got: "a deeper one".to_owned() })
}

impl Serialize for AnySchedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Kind::new(self.clone(), 0).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for AnySchedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Kind::deserialize(deserializer)?.schedule(0).map_err(D::Error::custom)
    }
}

impl From<&ReduceOnPlateau> for Kind {
    fn from(plateau: &ReduceOnPlateau) -> Self {
        let &ReduceOnPlateau {
            initial_lr: lr,
            mode,
            factor,
            patience,
            threshold,
            threshold_mode,
            cooldown,
            min_lr,
            eps,
            ..
        } = plateau;
        Self::ReduceOnPlateau { lr, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps }
    }
}

impl TryFrom<Kind> for Rate {
    type Error = Error;

    fn try_from(kind: Kind) -> Result<Self> {
        match kind {
            Kind::ReduceOnPlateau { lr, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps } => {
                let plateau = ReduceOnPlateau::new(lr)?.mode(mode).factor(factor)?.patience(patience);
                let plateau = plateau.threshold(threshold)?.threshold_mode(threshold_mode).cooldown(cooldown);
                Ok(plateau.min_lr(min_lr)?.eps(eps)?.into())
            }
            kind => Ok(kind.schedule(0)?.into()),
        }
    }
}

/// What errors call a rate: of learning or of decay, which is not known here.
const RATE: &str = "a rate";

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.validate(RATE).map_err(S::Error::custom)?;
        match self {
            Self::Fixed(lr) => serializer.serialize_f64(*lr),
            Self::List(list) => serializer.collect_seq(&**list),
            Self::Schedule(schedule) => {
                let known = schedule.describe().ok_or_else(|| {
                    let only = "only the schedules of this library can be written";
                    S::Error::custom(format_args!("the rate {schedule:?} is a closure or a type of its own: {only}"))
                })?;
                known.serialize(serializer)
            }
            Self::Plateau(plateau) => Kind::from(plateau).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rate = deserializer.deserialize_any(RateVisitor)?;
        rate.validate(RATE).map_err(D::Error::custom)?;
        Ok(rate)
    }
}

struct RateVisitor;

impl<'de> Visitor<'de> for RateVisitor {
    type Value = Rate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rate: a number, a list of numbers, or an object with a `kind`")
    }

    fn visit_f64<E>(self, lr: f64) -> Result<Rate, E> {
        Ok(Rate::Fixed(lr))
    }

    fn visit_u64<E>(self, lr: u64) -> Result<Rate, E> {
        Ok(Rate::Fixed(lr as f64))
    }

    fn visit_i64<E>(self, lr: i64) -> Result<Rate, E> {
        Ok(Rate::Fixed(lr as f64))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Rate, A::Error> {
        let mut list = Vec::new();
        while let Some(lr) = seq.next_element()? {
            list.push(lr);
        }
        Ok(Rate::List(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Rate, A::Error> {
        Kind::deserialize(MapAccessDeserializer::new(map))?.try_into().map_err(A::Error::custom)
    }
}

/// [`Rule`], tagged with [`UpdateRule::name`](crate::rule::UpdateRule::name). The compiler holds the variants against [`Rule`]'s.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Rule", tag = "rule")]
enum Tagged {
    #[serde(rename = "sgd")]
    Sgd(Sgd),
    #[serde(rename = "momentum")]
    Momentum(Momentum),
    #[serde(rename = "adam")]
    Adam(Adam),
    #[serde(rename = "ada_factor")]
    AdaFactor(AdaFactor),
    #[serde(rename = "adam_weight_decay")]
    AdamWeightDecay(AdamWeightDecay),
    #[serde(rename = "adamw")]
    AdamW(AdamW),
    #[serde(rename = "lazy_adam")]
    LazyAdam(LazyAdam),
    #[serde(rename = "adam_offload")]
    AdamOffload(AdamOffload),
    #[serde(rename = "ada_max")]
    AdaMax(AdaMax),
    #[serde(rename = "nadam")]
    NAdam(NAdam),
    #[serde(rename = "radam")]
    RAdam(RAdam),
    #[serde(rename = "lion")]
    Lion(Lion),
    #[serde(rename = "adan")]
    Adan(Adan),
    #[serde(rename = "adagrad")]
    Adagrad(Adagrad),
    #[serde(rename = "proximal_adagrad")]
    ProximalAdagrad(ProximalAdagrad),
    #[serde(rename = "ftrl")]
    Ftrl(Ftrl),
    #[serde(rename = "rms_prop")]
    RmsProp(RmsProp),
    #[serde(rename = "adadelta")]
    Adadelta(Adadelta),
    #[serde(rename = "asgd")]
    Asgd(Asgd),
    #[serde(rename = "rprop")]
    Rprop(Rprop),
    #[serde(rename = "lamb")]
    Lamb(Lamb),
    #[serde(rename = "lars")]
    Lars(Lars),
    #[serde(skip)]
    Custom(Arc<dyn CustomRule>),
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Self::Custom(rule) = self {
            let only = "only the rules of this library can be written";
            return Err(S::Error::custom(format_args!("{:?} is a rule of your own: {only}", rule.name())));
        }
        check_rule(self).map_err(S::Error::custom)?;
        Tagged::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rule = Tagged::deserialize(deserializer)?;
        check_rule(&rule).map_err(D::Error::custom)?;
        Ok(rule)
    }
}

/// [`LossScale`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "LossScale", rename_all = "snake_case")]
enum TaggedScale {
    Plain(f64),
    Fixed(FixedLossScale),
    Dynamic(DynamicLossScale),
}

impl Serialize for LossScale {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.validate().map_err(S::Error::custom)?;
        TaggedScale::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for LossScale {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let loss_scale = TaggedScale::deserialize(deserializer)?;
        loss_scale.validate().map_err(D::Error::custom)?;
        Ok(loss_scale)
    }
}

/// Checks all hyper-parameters.
fn check_rule(rule: &Rule) -> Result<()> {
    let rule = rule.spec();
    rule.validate()?;
    rule.lr().validate(&format!("{}.lr", rule.name()))?;
    check(&format!("{}.weight_decay", rule.name()), "finite and ≥ 0", rule.weight_decay(), |x| {
        x.is_finite() && x >= 0.0
    })
}

/// [`Lars`] without its filter, which is a closure.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LarsFields {
    inner: Box<Rule>,
    #[serde(default = "default::lars_epsilon")]
    epsilon: f64,
    #[serde(default = "default::lars_coefficient")]
    coefficient: f64,
    #[serde(default)]
    use_clip: bool,
}

impl Serialize for Lars {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { inner, epsilon, coefficient, use_clip, filter } = self.clone();
        if !Arc::ptr_eq(&filter, &lars::default_filter()) {
            return Err(S::Error::custom("lars.filter is a closure of its own: only the default one can be written"));
        }
        LarsFields { inner, epsilon, coefficient, use_clip }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Lars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let LarsFields { inner, epsilon, coefficient, use_clip } = LarsFields::deserialize(deserializer)?;
        Ok(Self { inner, epsilon, coefficient, use_clip, filter: lars::default_filter() })
    }
}

/// Numbers that may be infinite, which JSON has no word for: a number, or its name.
pub(crate) mod float {
    use serde::de::{Error, Unexpected, Visitor};
    use serde::{Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    pub(crate) fn serialize<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if x.is_finite() { serializer.serialize_f64(*x) } else { serializer.collect_str(x) }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        struct Float;

        impl Visitor<'_> for Float {
            type Value = f64;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, \"inf\" or \"-inf\"")
            }

            fn visit_f64<E>(self, x: f64) -> Result<f64, E> {
                Ok(x)
            }

            fn visit_u64<E>(self, x: u64) -> Result<f64, E> {
                Ok(x as f64)
            }

            fn visit_i64<E>(self, x: i64) -> Result<f64, E> {
                Ok(x as f64)
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<f64, E> {
                match name {
                    "inf" => Ok(f64::INFINITY),
                    "-inf" => Ok(f64::NEG_INFINITY),
                    _ => Err(E::invalid_value(Unexpected::Str(name), &self)),
                }
            }
        }

        deserializer.deserialize_any(Float)
    }
}

/// Defaults of fields, as the functions that serde asks for. Each is that of the constructor.
pub(crate) mod default {
    use crate::rules::{Lamb, lars};
    use crate::schedule::{OneCycle, ReduceOnPlateau};

    macro_rules! defaults {
        ($($field:ident: $type:ty = $value:expr;)*) => {
            $(pub(crate) fn $field() -> $type {
                $value
            })*
        };
    }

    defaults! {
        pct_start: f64 = OneCycle::PCT_START;
        div_factor: f64 = OneCycle::DIV_FACTOR;
        final_div_factor: f64 = OneCycle::FINAL_DIV_FACTOR;
        factor: f64 = ReduceOnPlateau::FACTOR;
        patience: u64 = ReduceOnPlateau::PATIENCE;
        threshold: f64 = ReduceOnPlateau::THRESHOLD;
        eps: f64 = ReduceOnPlateau::EPS;
        lamb_beta1: f64 = Lamb::new(0.0).beta1;
        lamb_beta2: f64 = Lamb::new(0.0).beta2;
        lamb_eps: f64 = Lamb::new(0.0).eps;
        lars_epsilon: f64 = lars::EPSILON;
        lars_coefficient: f64 = lars::COEFFICIENT;
    }
}
