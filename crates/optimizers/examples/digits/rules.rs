//! The optimizers that can be chosen, each with a rate that suits this network.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use optimizers::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Adan, Asgd, Builder, Ftrl, Lamb,
    Lars, LazyAdam, Lion, Momentum, NAdam, ProximalAdagrad, RAdam, Rate, RmsProp, Rprop, Sgd,
};

/// The number of images in a mini-batch.
const BATCH: usize = 32;

/// An optimizer by its name on the command line: the rule's own, but for `amsgrad`, which is a variant of `adam`.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// The rate at the end of the warm-up.
    pub(crate) lr: f64,
    /// Whether the rate warms up and decays; else it is the same at every step.
    pub(crate) is_scheduled: bool,
    /// The most images that a gradient is made from.
    pub(crate) batch: usize,
    pub(crate) with_rate: fn(Rate) -> Builder,
}

impl Entry {
    const fn new(name: &'static str, lr: f64, with_rate: fn(Rate) -> Builder) -> Self {
        Self { name, lr, is_scheduled: true, batch: BATCH, with_rate }
    }

    /// The same, with one rate for the whole run.
    const fn fixed_rate(self) -> Self {
        Self { is_scheduled: false, ..self }
    }

    /// The same, with one update for each epoch, from all images.
    const fn full_batch(self) -> Self {
        Self { batch: usize::MAX, ..self }
    }
}

/// A new optimizer is one line here. `Adam::torch` is left out: it differs from `adam` in the place of ε alone.
///
/// - `lars`: its ratios `η ‖p‖ / ‖g‖` leave out the biases, so `η` is chosen such that one rate suits them and the
///   weights.
/// - `rprop`: the noise of mini-batches turns signs by chance, so it takes whole epochs; its rate is only the first step
///   size.
/// - `ftrl`: weights are rebuilt in proportion to the rate, so that must not decay. From an accumulator of 0, and not the
///   default 0.1, it starts from the weights there are; where the first gradient is exactly 0 they would become 0, from
///   which the weight decay saves them.
pub(crate) const ALL: &[Entry] = &[
    Entry::new("sgd", 0.5, |lr| Builder::new(Sgd::new(lr))),
    Entry::new("momentum", 0.1, |lr| Builder::new(Momentum::new(lr, 0.9))),
    Entry::new("asgd", 0.5, |lr| Builder::new(Asgd::new(lr))),
    Entry::new("lars", 0.1, |lr| Builder::new(Lars { coefficient: 0.05, ..Lars::new(Momentum::new(lr, 0.9)) })),
    Entry::new("rprop", 0.01, |lr| Builder::new(Rprop::new(lr))).fixed_rate().full_batch(),
    Entry::new("adam", 0.01, |lr| Builder::new(Adam::new(lr))),
    Entry::new("amsgrad", 0.01, |lr| Builder::new(Adam { use_amsgrad: true, ..Adam::new(lr) })),
    Entry::new("lazy_adam", 0.01, |lr| Builder::new(LazyAdam::new(lr))),
    Entry::new("adam_offload", 0.01, |lr| Builder::new(AdamOffload::new(lr))),
    Entry::new("adamw", 0.01, |lr| Builder::new(AdamW::new(lr))),
    Entry::new("adam_weight_decay", 0.01, |lr| Builder::new(AdamWeightDecay::new(lr))),
    Entry::new("ada_max", 0.05, |lr| Builder::new(AdaMax::new(lr))),
    Entry::new("nadam", 0.01, |lr| Builder::new(NAdam::new(lr))),
    Entry::new("radam", 0.02, |lr| Builder::new(RAdam::new(lr))),
    Entry::new("lion", 0.001, |lr| Builder::new(Lion::new(lr))),
    Entry::new("adan", 0.01, |lr| Builder::new(Adan::new(lr))),
    Entry::new("lamb", 0.005, |lr| Builder::new(Lamb::new(lr))),
    Entry::new("ada_factor", 0.01, |lr| Builder::new(AdaFactor::with_lr(lr))),
    Entry::new("adagrad", 0.2, |lr| Builder::new(Adagrad::new(lr))),
    Entry::new("proximal_adagrad", 0.2, |lr| Builder::new(ProximalAdagrad::new(lr))),
    Entry::new("ftrl", 0.1, |lr| Builder::new(Ftrl { initial_accum: 0.0, ..Ftrl::new(lr) })).fixed_rate(),
    Entry::new("rms_prop", 0.01, |lr| Builder::new(RmsProp::new(lr))),
    Entry::new("adadelta", 1.0, |lr| Builder::new(Adadelta::new(lr))),
];

/// What `--optimizer` asks for.
#[derive(Clone, Copy)]
pub(crate) enum Choice {
    One(&'static Entry),
    All,
}

/// Turns the name on the command line into a choice.
pub(crate) fn parser() -> impl TypedValueParser<Value = Choice> {
    PossibleValuesParser::new(ALL.iter().map(|entry| entry.name).chain(["all"]))
        .map(|name| ALL.iter().find(|entry| entry.name == name).map_or(Choice::All, Choice::One))
}
