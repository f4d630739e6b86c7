//! How a rule's `update`, which sees one element, becomes a loop over slices that is compiled for several instruction sets.

use std::fmt;

use multiversion::{multiversion, target::match_target};
use optim_core::Rule;
pub(crate) use optim_core::rule::MAX_SLOTS;
use optim_core::rule::StepScalars;

use crate::reduce::{Columns, Sums};

/// The slots of a piece of a parameter: slices of its length; those that the rule does not have are empty.
pub(crate) type Slots<'a> = [&'a mut [f32]; MAX_SLOTS];

/// A rule's kernel: the scalars, the parameter, the gradient, the slots. All slices have one length.
pub(crate) type Kernel = fn(&StepScalars, &mut [f32], &[f32], Slots<'_>);

/// The first walk of a rule with norms: the scalars, the parameter, the gradient, the slots, and the running sums to which the
/// terms are added. All slices have one length, at most a row's.
pub(crate) type Measure = fn(&StepScalars, &[f32], &[f32], Slots<'_>, &mut Columns);

/// Completes a rule's scalars from its sums.
pub(crate) type Finish = fn(&mut StepScalars, Sums);

/// All that a rule brings to this backend.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) update: Update,
    pub(crate) norms: Option<(Measure, Finish)>,
}

/// A rule's update.
#[derive(Clone, Copy)]
pub(crate) enum Update {
    /// Element by element.
    BuiltIn(Kernel),
    /// The user's own, element by element.
    Custom,
    /// With second moments by row and column.
    Factored,
}

impl Update {
    /// Updates a stretch; `rule` as it is at this step.
    pub(crate) fn run(self, rule: &Rule, scalars: &StepScalars, p: &mut [f32], g: &[f32], mut slots: Slots<'_>) {
        match (self, rule.kernel()) {
            (Self::BuiltIn(kernel), _) => kernel(scalars, p, g, slots),
            (_, Rule::Custom(rule)) => {
                let used = slots.iter().take_while(|slot| slot.len() == p.len() && !slot.is_empty()).count();
                rule.update(scalars, p, g, &mut slots[..used]);
            }
            (Self::Custom | Self::Factored, _) => unreachable!("a factored rule has a walk of its own"),
        }
    }
}

impl Kernels {
    /// Whether it sums over parameters.
    pub(crate) fn has_sums(&self) -> bool {
        self.norms.is_some() || matches!(self.update, Update::Factored)
    }
}

impl From<Kernel> for Kernels {
    fn from(kernel: Kernel) -> Self {
        Self { update: Update::BuiltIn(kernel), norms: None }
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("norms", &self.norms.is_some()).finish_non_exhaustive()
    }
}

/// Makes a [`Kernel`] of a function `update(step, p, g, slots…)`.
///
/// The loop stands in a function whose slices are separate arguments: so the compiler knows that they do not overlap, and
/// vectorizes it as well as intrinsics would be.
macro_rules! elementwise {
    ($kernel:ident = $update:path, $step:ty, [$($slot:ident),*]) => {
        pub(crate) fn $kernel(
            scalars: &optim_core::rule::StepScalars,
            p: &mut [f32],
            g: &[f32],
            slots: $crate::kernel::Slots<'_>,
        ) {
            #[multiversion::multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn walk(s: &$step, p: &mut [f32], g: &[f32], $($slot: &mut [f32]),*) {
                let (p, n) = { let n = p.len(); (&mut p[..n], n) };
                let g = &g[..n];
                $(let $slot = &mut $slot[..n];)*
                for i in 0..n {
                    $update(s, &mut p[i], g[i], $(&mut $slot[i]),*);
                }
            }
            let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
            let [$($slot,)* ..] = slots;
            walk(step, p, g, $($slot),*);
        }
    };
}
pub(crate) use elementwise;

/// Makes a [`Measure`] and a [`Finish`] of the functions `terms(step, p, g, slots…)` and `finish(step, sums)`.
macro_rules! norms {
    ($measure:ident = $terms:path, $finished:ident = $finish:path, $step:ty, [$($slot:ident),*]) => {
        pub(crate) fn $measure(
            scalars: &optim_core::rule::StepScalars,
            p: &[f32],
            g: &[f32],
            slots: $crate::kernel::Slots<'_>,
            sums: &mut $crate::reduce::Columns,
        ) {
            #[multiversion::multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn walk(s: &$step, p: &[f32], g: &[f32], $($slot: &[f32],)* sums: &mut $crate::reduce::Columns) {
                let n = p.len();
                let g = &g[..n];
                $(let $slot = &$slot[..n];)*
                let [first, second, third] = sums;
                let (first, second, third) = (&mut first[..n], &mut second[..n], &mut third[..n]);
                for i in 0..n {
                    let terms = $terms(s, p[i], g[i], $($slot[i]),*);
                    first[i] += terms[0];
                    second[i] += terms[1];
                    third[i] += terms[2];
                }
            }
            let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
            let [$($slot,)* ..] = slots;
            walk(step, p, g, $($slot,)* sums);
        }

        pub(crate) fn $finished(scalars: &mut optim_core::rule::StepScalars, sums: $crate::reduce::Sums) {
            $finish(bytemuck::from_bytes_mut::<$step>(bytemuck::cast_slice_mut(scalars.words_mut())), sums);
        }
    };
}
pub(crate) use norms;

/// The instruction set that kernels run with on this processor.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn level() -> &'static str {
    match_target! {
        "x86_64+avx512f+avx512vl+avx512dq+avx512bw" => "AVX-512",
        "x86_64+avx2" => "AVX2",
        "aarch64+neon" => "NEON",
        _ => "baseline",
    }
}
