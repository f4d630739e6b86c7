//! How a rule's `update`, which sees one element, becomes a loop over slices that is compiled for several instruction sets.

use multiversion::{multiversion, target::match_target};
use optim_core::rule::StepScalars;

/// The most slots a rule may have.
pub(crate) const MAX_SLOTS: usize = 4;

/// The slots of a piece of a parameter: slices of its length; those that the rule does not have are empty.
pub(crate) type Slots<'a> = [&'a mut [f32]; MAX_SLOTS];

/// A rule's kernel: the scalars, the parameter, the gradient, the slots. All slices have one length.
pub(crate) type Kernel = fn(&StepScalars, &mut [f32], &[f32], Slots<'_>);

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
