//! The rules that can be chosen, each with a rate that suits this network.

use optimizers::{Adam, Builder, Momentum, Rate, Sgd};

/// A rule by its name on the command line.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// The rate at the end of the warm-up.
    pub(crate) lr: f64,
    pub(crate) with_rate: fn(Rate) -> Builder,
}

/// A new rule is one line here.
pub(crate) const RULES: &[Entry] = &[
    Entry { name: "sgd", lr: 0.3, with_rate: |lr| Builder::new(Sgd::new(lr)) },
    Entry { name: "momentum", lr: 0.05, with_rate: |lr| Builder::new(Momentum::new(lr, 0.9)) },
    Entry { name: "adam", lr: 3e-3, with_rate: |lr| Builder::new(Adam::new(lr)) },
];
