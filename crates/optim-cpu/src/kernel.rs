//! How a rule's `update`, which sees one element, becomes a loop over slices that is compiled for several instruction sets.

use std::fmt;

use multiversion::{multiversion, target::match_target};
pub(crate) use optim_core::rule::MAX_SLOTS;
use optim_core::rule::StepScalars;
use optim_core::{Rule, format};

use crate::reduce::{Columns, Sums};
use crate::storage::low;

/// The slots of a piece of a parameter: slices of its length; those that the rule does not have are empty.
pub(crate) type Slots<'a> = [&'a mut [f32]; MAX_SLOTS];

/// As [`Slots`], of slots that are `bf16`.
pub(crate) type Bf16Slots<'a> = [&'a mut [u16]; MAX_SLOTS];

/// The slots of a piece of a parameter as they are kept.
pub(crate) enum Opened<'a> {
    /// As `f32`, or read from what they are kept as.
    F32(Slots<'a>),
    /// As `bf16`, all of them.
    Bf16(Bf16Slots<'a>, Random),
}

/// What the random bits of a piece of a parameter follow from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Random {
    /// Of each slot.
    pub(crate) streams: [u32; MAX_SLOTS],
    /// The low 32 bits of the index of the first element.
    pub(crate) first: u32,
}

impl Random {
    /// The number of a slot, rounded; `i` counts from the first element.
    #[inline(always)]
    pub(crate) fn round(&self, x: f32, slot: usize, i: usize) -> u16 {
        let element = self.first.wrapping_add(low(i));
        format::f32_to_bf16_stochastic(x, format::random_at(self.streams[slot], element))
    }
}

/// What a gradient is multiplied with and what of the parameter is added, in the kernel's loop: the shaping that is as good as
/// free there. Each only where it does something.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scaling {
    pub(crate) factor: f32,
    pub(crate) weight_decay: f32,
}

impl Scaling {
    pub(crate) const NONE: Self = Self { factor: 1.0, weight_decay: 0.0 };

    #[inline(always)]
    pub(crate) fn apply(self, g: f32, p: f32) -> f32 {
        let mut scaled = g;
        if self.factor != 1.0 {
            scaled = self.factor * g;
        }
        if self.weight_decay != 0.0 {
            scaled += self.weight_decay * p;
        }
        scaled
    }
}

/// A rule's kernel: the scalars, the parameter, the gradient and how it is scaled, the slots. All slices have one length.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) f32: fn(&StepScalars, &mut [f32], &[f32], Scaling, Slots<'_>),
    /// With slots that are read from `bf16` and rounded stochastically in the same loop: what waits for divisions and roots
    /// computes random bits meanwhile.
    pub(crate) bf16: fn(&StepScalars, &mut [f32], &[f32], Scaling, Bf16Slots<'_>, Random),
}

/// How a rule with norms is updated in two walks.
#[derive(Clone, Copy)]
pub(crate) struct Norms {
    /// How many terms are summed.
    pub(crate) terms: usize,
    /// The first walk: the scalars, the parameter, the gradient, the slots, and the running sums to which the terms are added. All
    /// slices have one length, at most a row's. The slots take their new values.
    pub(crate) measure: fn(&StepScalars, &[f32], &[f32], Slots<'_>, &mut Columns),
    /// Completes the scalars from the sums.
    pub(crate) finish: fn(&mut StepScalars, Sums),
    /// The second walk where the slots have their new values already: the scalars, the parameter, the slots.
    pub(crate) apply: fn(&StepScalars, &mut [f32], Slots<'_>),
}

/// All that a rule brings to this backend.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) update: Update,
    pub(crate) norms: Option<Norms>,
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
    /// Updates a stretch; `rule` as it is at this step. Only a built-in rule takes a scaling and slots as `bf16`.
    #[inline]
    pub(crate) fn run(
        self,
        rule: &Rule,
        scalars: &StepScalars,
        p: &mut [f32],
        g: &[f32],
        scaling: Scaling,
        slots: Opened<'_>,
    ) {
        let kernel = match self {
            Self::BuiltIn(kernel) => kernel,
            Self::Custom | Self::Factored => return run_custom(rule, scalars, p, g, slots),
        };
        match slots {
            Opened::F32(slots) => (kernel.f32)(scalars, p, g, scaling, slots),
            Opened::Bf16(slots, random) => (kernel.bf16)(scalars, p, g, scaling, slots, random),
        }
    }
}

/// Updates a stretch by the user's own rule.
fn run_custom(rule: &Rule, scalars: &StepScalars, p: &mut [f32], g: &[f32], slots: Opened<'_>) {
    match (rule.kernel(), slots) {
        (Rule::Custom(rule), Opened::F32(mut slots)) => {
            let used = slots.iter().take_while(|slot| slot.len() == p.len() && !slot.is_empty()).count();
            rule.update(scalars, p, g, &mut slots[..used]);
        }
        _ => unreachable!("a factored rule has a walk of its own, and only a kernel reads bf16"),
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
/// The loops stand in functions whose slices are separate arguments: so the compiler knows that they do not overlap, and
/// vectorizes them as well as intrinsics would be.
macro_rules! elementwise {
    ($kernel:ident = $update:path, $step:ty, [$($slot:ident),*]) => {
        #[allow(non_upper_case_globals, reason = "named as a function is")]
        pub(crate) const $kernel: $crate::kernel::Kernel = {
            #[allow(clippy::too_many_arguments, reason = "the slices are separate")]
            #[multiversion::multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn walk(s: &$step, p: &mut [f32], g: &[f32], scaling: $crate::kernel::Scaling, $($slot: &mut [f32]),*) {
                let (p, n) = { let n = p.len(); (&mut p[..n], n) };
                let g = &g[..n];
                $(let $slot = &mut $slot[..n];)*
                for i in 0..n {
                    let g = scaling.apply(g[i], p[i]);
                    $update(s, &mut p[i], g, $(&mut $slot[i]),*);
                }
            }
            #[allow(unused_mut, unused_variables, unused_assignments, reason = "a rule may have no slots")]
            #[allow(clippy::too_many_arguments, reason = "the slices are separate")]
            #[multiversion::multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn walk_bf16(
                s: &$step,
                p: &mut [f32],
                g: &[f32],
                scaling: $crate::kernel::Scaling,
                $($slot: &mut [u16],)*
                random: $crate::kernel::Random,
            ) {
                let (p, n) = { let n = p.len(); (&mut p[..n], n) };
                let g = &g[..n];
                $(let $slot = &mut $slot[..n];)*
                for i in 0..n {
                    let mut values = $crate::kernel::read_bf16([$($slot[i]),*]);
                    {
                        let [$($slot),*] = &mut values;
                        let g = scaling.apply(g[i], p[i]);
                        $update(s, &mut p[i], g, $($slot),*);
                    }
                    let mut nth = 0;
                    $(
                        $slot[i] = random.round(values[nth], nth, i);
                        nth += 1;
                    )*
                }
            }
            $crate::kernel::Kernel {
                f32: |scalars, p, g, scaling, slots| {
                    let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
                    let [$($slot,)* ..] = slots;
                    walk(step, p, g, scaling, $($slot),*);
                },
                bf16: |scalars, p, g, scaling, slots, random| {
                    let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
                    let [$($slot,)* ..] = slots;
                    walk_bf16(step, p, g, scaling, $($slot,)* random);
                },
            }
        };
    };
}
pub(crate) use elementwise;

/// The slots of one element.
#[inline(always)]
pub(crate) fn read_bf16<const N: usize>(bits: [u16; N]) -> [f32; N] {
    bits.map(format::bf16_to_f32)
}

/// Makes [`Norms`] of the functions `terms(step, p, g, slots…)`, which sees the old slots, `moments(step, g, slots…)`, which changes
/// them, `finish(step, sums)`, and `apply(step, p, slots…)`, which is what is left of an update then. The last term is not used.
macro_rules! norms {
    ($norms:ident = $terms:path, $moments:path, $finish:path, $apply:path, $step:ty, [$($slot:ident),*]) => {
        #[allow(non_upper_case_globals, reason = "named as a function is")]
        pub(crate) const $norms: $crate::kernel::Norms = {
            #[multiversion::multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn first_walk(s: &$step, p: &[f32], g: &[f32], $($slot: &mut [f32],)* sums: &mut $crate::reduce::Columns) {
                let n = p.len();
                let g = &g[..n];
                $(let $slot = &mut $slot[..n];)*
                let [first, second, _] = sums;
                let (first, second) = (&mut first[..n], &mut second[..n]);
                for i in 0..n {
                    // Both compute the new slots, which the compiler does once.
                    let terms = $terms(s, p[i], g[i], $($slot[i]),*);
                    $moments(s, g[i], $(&mut $slot[i]),*);
                    first[i] += terms[0];
                    second[i] += terms[1];
                }
            }
            #[multiversion::multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn second_walk(s: &$step, p: &mut [f32], $($slot: &[f32]),*) {
                let (p, n) = { let n = p.len(); (&mut p[..n], n) };
                $(let $slot = &$slot[..n];)*
                for i in 0..n {
                    $apply(s, &mut p[i], $($slot[i]),*);
                }
            }
            $crate::kernel::Norms {
                terms: 2,
                measure: |scalars, p, g, slots, sums| {
                    let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
                    let [$($slot,)* ..] = slots;
                    first_walk(step, p, g, $($slot,)* sums);
                },
                finish: |scalars, sums| {
                    $finish(bytemuck::from_bytes_mut::<$step>(bytemuck::cast_slice_mut(scalars.words_mut())), sums);
                },
                apply: |scalars, p, slots| {
                    let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
                    let [$($slot,)* ..] = slots;
                    second_walk(step, p, $($slot),*);
                },
            }
        };
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
