//! The kernels, one file a rule: twins of `shaders/rules/*.wgsl`, with the same names in the same order.
#![allow(clippy::assign_op_pattern, reason = "a line reads like the equation and like its WGSL twin")]

mod adam;
mod momentum;
mod sgd;

use optim_core::Rule;

use crate::kernel::Kernel;

/// The kernel of a rule.
pub(crate) fn kernel(rule: &Rule) -> Kernel {
    match rule {
        Rule::Sgd(config) if config.momentum == 0.0 => sgd::kernel_plain,
        Rule::Sgd(_) => sgd::kernel,
        Rule::Momentum(_) => momentum::kernel,
        Rule::Adam(_) => adam::kernel,
    }
}
