//! The kernels, one file a rule: twins of `shaders/rules/*.wgsl`, with the same names in the same order.
#![allow(clippy::assign_op_pattern, reason = "a line reads like the equation and like its WGSL twin")]

pub(crate) mod ada_factor;
mod adam;
mod lamb;
pub(crate) mod lars;
mod momentum;
mod sgd;

use std::sync::Arc;

use optim_core::Rule;

use crate::kernel::{Kernel, Kernels, Update};

/// What a rule runs here.
pub(crate) fn kernels(rule: &Rule) -> Kernels {
    let elementwise = |kernel: Kernel| Kernels::from(kernel);
    match rule {
        Rule::Sgd(config) if config.momentum == 0.0 => elementwise(sgd::kernel_plain),
        Rule::Sgd(_) => elementwise(sgd::kernel),
        Rule::Momentum(_) => elementwise(momentum::kernel),
        Rule::Adam(_) => elementwise(adam::kernel),
        Rule::Lamb(_) => Kernels { norms: Some((lamb::measure, lamb::finished)), ..elementwise(lamb::kernel) },
        Rule::AdaFactor(_) => unreachable!("it has an engine of its own"),
        Rule::Lars(config) => kernels(&config.inner),
        Rule::Custom(rule) => Kernels { update: Update::Custom(Arc::clone(rule)), norms: None },
    }
}
