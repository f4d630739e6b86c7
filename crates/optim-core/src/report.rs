//! What a step says about itself.

use std::sync::Arc;

use crate::guard::Skip;

/// Whether a step changed the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Every parameter that had a gradient was updated.
    Applied,
    /// Nothing was changed but the loss scale: no parameter, no state, no step count, no schedule.
    Skipped(Skip),
    /// The device decides, and has not told yet: see [`Optimizer::try_report`](crate::Optimizer::try_report).
    Pending,
}

/// What [`Optimizer::step`](crate::Optimizer::step) did.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a step says whether it was applied"]
#[non_exhaustive]
pub struct StepReport {
    /// Applied or not, and why.
    pub outcome: Outcome,
    /// The number of this update: 1 for the first. Of a step that was skipped, the number that the next one has; of one that is
    /// pending, the number it has if no pending one is skipped.
    pub step: u64,
    /// The rate that each group used, in the order of the groups; 0 for one without parameters whose rate has ended.
    pub rates: Arc<[f64]>,
    /// What the guard measured; `None` without one, and while the step is pending.
    pub gradients: Option<Gradients>,
    /// How far each parameter moved, relative to its size: `‖p′ − p‖ / ‖p‖`, in the order of the parameters, of the parameter as it is
    /// stored; 0 for one that did not move, infinite for one that was 0. Many look for about 1e-3. A parameter in 16 bits whose
    /// updates are lost to rounding shows as 0. `None` but for [`Optimizer::step_watched`](crate::Optimizer::step_watched).
    pub update_ratios: Option<Arc<[f64]>>,
}

/// What a guard measured and decided.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// The norm of all unscaled gradients together, before clipping. Frozen parameters and missing gradients are left out. Not
    /// finite if the gradients are not.
    pub norm: f32,
    /// That of each group.
    pub group_norms: Arc<[f32]>,
    /// What clipping over all parameters multiplied the gradients with; 1 for nothing.
    pub clip: f32,
    /// The loss scale that was divided out.
    pub loss_scale: f64,
    /// The loss scale for the next step.
    pub next_loss_scale: f64,
    /// Steps skipped in a row, this one included.
    pub skips: u32,
    /// The name of the first parameter whose gradient is not finite.
    pub first_non_finite: Option<String>,
}

impl StepReport {
    /// Whether the parameters were updated.
    #[must_use]
    pub fn applied(&self) -> bool {
        self.outcome == Outcome::Applied
    }
}
