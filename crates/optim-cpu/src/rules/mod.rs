//! The kernels, one file a rule: twins of `shaders/rules/*.wgsl`, with the same names in the same order.
#![allow(clippy::assign_op_pattern, reason = "a line reads like the equation and like its WGSL twin")]

pub(crate) mod ada_factor;
mod ada_max;
mod adadelta;
mod adagrad;
mod adam;
mod adam_weight_decay;
mod adamw;
mod adan;
mod asgd;
mod ftrl;
mod lamb;
pub(crate) mod lars;
mod lion;
mod momentum;
mod nadam;
mod proximal_adagrad;
mod radam;
mod rms_prop;
mod rprop;
mod sgd;

use optim_core::Rule;

use crate::kernel::{Kernel, Kernels, Update};

/// What a rule runs here.
pub(crate) fn kernels(rule: &Rule) -> Kernels {
    let elementwise = |kernel: Kernel| Kernels::from(kernel);
    match rule {
        Rule::Sgd(config) if config.momentum == 0.0 => elementwise(sgd::kernel_plain),
        Rule::Sgd(_) => elementwise(sgd::kernel),
        Rule::Momentum(_) => elementwise(momentum::kernel),
        Rule::Adam(config) if config.use_amsgrad => elementwise(adam::kernel_amsgrad),
        Rule::Adam(_) | Rule::LazyAdam(_) | Rule::AdamOffload(_) => elementwise(adam::kernel),
        Rule::AdamWeightDecay(_) => elementwise(adam_weight_decay::kernel),
        Rule::AdamW(config) if config.amsgrad => elementwise(adamw::kernel_amsgrad),
        Rule::AdamW(_) => elementwise(adamw::kernel),
        Rule::AdaMax(_) => elementwise(ada_max::kernel),
        Rule::NAdam(_) => elementwise(nadam::kernel),
        Rule::RAdam(_) => elementwise(radam::kernel),
        Rule::Lion(_) => elementwise(lion::kernel),
        Rule::Adan(_) => elementwise(adan::kernel),
        Rule::Adagrad(_) => elementwise(adagrad::kernel),
        Rule::ProximalAdagrad(_) => elementwise(proximal_adagrad::kernel),
        Rule::Ftrl(config) if config.is_root() => elementwise(ftrl::kernel),
        Rule::Ftrl(_) => elementwise(ftrl::kernel_power),
        Rule::RmsProp(config) => elementwise(match (config.momentum == 0.0, config.centered) {
            (false, false) => rms_prop::kernel,
            (false, true) => rms_prop::kernel_centered,
            (true, false) => rms_prop::kernel_plain,
            (true, true) => rms_prop::kernel_plain_centered,
        }),
        Rule::Adadelta(_) => elementwise(adadelta::kernel),
        Rule::Asgd(_) => elementwise(asgd::kernel),
        Rule::Rprop(_) => elementwise(rprop::kernel),
        Rule::Lamb(_) => Kernels { norms: Some(lamb::norms), ..elementwise(lamb::kernel) },
        Rule::AdaFactor(_) => Kernels { update: Update::Factored, norms: None },
        Rule::Lars(config) => kernels(&config.inner),
        Rule::Custom(_) => Kernels { update: Update::Custom, norms: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel takes narrow slots as its rule declares them, and does so if all of them can be narrow.
    #[test]
    fn narrow_kernels_are_those_of_the_slots() {
        let mut narrow = 0;
        for rule in Rule::all() {
            let Update::BuiltIn(kernel) = kernels(&rule).update else { continue };
            let slots = rule.spec().slots();
            let declared: Option<Vec<_>> = slots.iter().map(|slot| slot.narrow).collect();
            let taken = kernel.narrow.map(|kernel| kernel.codes.to_vec());
            assert_eq!(taken, declared.filter(|codes| !codes.is_empty()), "{rule:?}");
            narrow += usize::from(taken.is_some());
        }
        assert!(narrow >= 14, "{narrow} rules can have narrow slots");
    }
}
