//! What a step says about itself.

use std::sync::Arc;

/// Whether a step changed the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Every parameter that had a gradient was updated.
    Applied,
}

/// What [`Optimizer::step`](crate::Optimizer::step) did.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a step says whether it was applied"]
#[non_exhaustive]
pub struct StepReport {
    /// Applied or not, and why.
    pub outcome: Outcome,
    /// The number of this update: 1 for the first.
    pub step: u64,
    /// The rate that each group used, in the order of the groups.
    pub rates: Arc<[f64]>,
}

impl StepReport {
    /// Whether the parameters were updated.
    #[must_use]
    pub fn applied(&self) -> bool {
        self.outcome == Outcome::Applied
    }
}
