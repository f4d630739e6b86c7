//! The rules that can be chosen, each with a rate that suits this network.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use optimizers::{Adam, Builder, Momentum, Rate, Sgd};

/// A rule by its name on the command line.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// The rate at the end of the warm-up.
    pub(crate) lr: f64,
    pub(crate) with_rate: fn(Rate) -> Builder,
}

/// A new rule is one line here.
const RULES: &[Entry] = &[
    Entry { name: "sgd", lr: 0.5, with_rate: |lr| Builder::new(Sgd::new(lr)) },
    Entry { name: "momentum", lr: 0.1, with_rate: |lr| Builder::new(Momentum::new(lr, 0.9)) },
    Entry { name: "adam", lr: 0.01, with_rate: |lr| Builder::new(Adam::new(lr)) },
];

/// Turns the name on the command line into its entry.
pub(crate) fn parser() -> impl TypedValueParser<Value = &'static Entry> {
    PossibleValuesParser::new(RULES.iter().map(|entry| entry.name))
        .map(|name| RULES.iter().find(|entry| entry.name == name).expect("a possible value"))
}
