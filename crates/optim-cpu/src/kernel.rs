//! How a rule's `update`, which sees one element, becomes a loop over slices that is compiled for several instruction sets.

use std::{array, fmt};

use multiversion::{multiversion, target::match_target};
use optim_core::format::Coding;
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
    Bf16(Bf16Slots<'a>, SlotBits),
    /// As 8-bit codes, all of them, from the beginning of a block on.
    Block8(Block8Slots<'a>, SlotBits),
}

/// Slots that are kept as 8-bit codes, with the scales of their blocks.
#[derive(Debug)]
pub(crate) struct Block8Slots<'a> {
    pub(crate) codes: [&'a mut [u8]; MAX_SLOTS],
    pub(crate) scales: [&'a mut [f32]; MAX_SLOTS],
    pub(crate) codings: [Coding; MAX_SLOTS],
}

/// What the random bits of a piece's slots follow from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotBits {
    /// Of each two slots.
    streams: [u32; MAX_SLOTS / 2],
    /// The low 32 bits of the index of the first element.
    first: u32,
}

impl SlotBits {
    pub(crate) fn new(key: u32, step: u32, first: usize) -> Self {
        let streams = array::from_fn(|pair| format::slot_stream(key, step, 2 * low(pair)));
        Self { streams, first: low(first) }
    }

    /// The bits of the first `N` slots of the element `i`, counted from the first.
    #[inline(always)]
    pub(crate) fn at<const N: usize>(&self, i: usize) -> [u32; N] {
        let element = self.first.wrapping_add(low(i));
        let mut shared = 0;
        array::from_fn(|slot| {
            if slot % 2 == 0 {
                shared = format::random_at(self.streams[slot / 2], element);
            }
            format::of_slot(shared, low(slot))
        })
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
    pub(crate) bf16: fn(&StepScalars, &mut [f32], &[f32], Scaling, Bf16Slots<'_>, SlotBits),
    /// With slots that are read from 8-bit codes and stored as such, block by block.
    pub(crate) block8: fn(&StepScalars, &mut [f32], &[f32], Scaling, Block8Slots<'_>, SlotBits),
}

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
    /// Updates a stretch; `rule` as it is at this step. Only a built-in rule takes a scaling and narrow slots.
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
            Opened::Block8(slots, random) => (kernel.block8)(scalars, p, g, scaling, slots, random),
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
        _ => unreachable!("a factored rule has a walk of its own, and only a kernel reads narrow slots"),
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
            use optim_core::format::BLOCK;
            use $crate::arch::{ROW, fetch};

            const SLOTS: usize = <[&str]>::len(&[$(stringify!($slot)),*]);
            #[allow(clippy::too_many_arguments, reason = "the slices are separate")]
            #[multiversion::multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn walk(s: &$step, p: &mut [f32], g: &[f32], scaling: $crate::kernel::Scaling, $($slot: &mut [f32]),*) {
                let n = p.len();
                for start in (0..n).step_by(ROW) {
                    let end = n.min(start + ROW);
                    fetch(p, start);
                    fetch(g, start);
                    $(fetch($slot, start);)*
                    let (p, g) = (&mut p[start..end], &g[start..end]);
                    $(let $slot = &mut $slot[start..end];)*
                    for i in 0..p.len() {
                        let g = scaling.apply(g[i], p[i]);
                        $update(s, &mut p[i], g, $(&mut $slot[i]),*);
                    }
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
                random: $crate::kernel::SlotBits,
            ) {
                let n = p.len();
                for start in (0..n).step_by(ROW) {
                    let end = n.min(start + ROW);
                    fetch(p, start);
                    fetch(g, start);
                    $(fetch($slot, start);)*
                    let (p, g) = (&mut p[start..end], &g[start..end]);
                    $(let $slot = &mut $slot[start..end];)*
                    for i in 0..p.len() {
                        let mut values = $crate::kernel::read_bf16([$($slot[i]),*]);
                        {
                            let [$($slot),*] = &mut values;
                            let g = scaling.apply(g[i], p[i]);
                            $update(s, &mut p[i], g, $($slot),*);
                        }
                        let stored = $crate::kernel::round_bf16(values, random.at(start + i));
                        let mut nth = 0;
                        $(
                            $slot[i] = stored[nth];
                            nth += 1;
                        )*
                    }
                }
            }
            #[allow(unused_mut, unused_variables, unused_assignments, reason = "a rule may have no slots")]
            #[allow(clippy::too_many_arguments, reason = "the slices are separate")]
            #[multiversion::multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn walk_block8(
                s: &$step,
                p: &mut [f32],
                g: &[f32],
                scaling: $crate::kernel::Scaling,
                $($slot: &mut [u8],)*
                mut blocks: $crate::kernel::Blocks8<'_, SLOTS>,
                random: $crate::kernel::SlotBits,
            ) {
                let n = p.len();
                let mut staged = [[0.0; BLOCK]; SLOTS];
                for (block, start) in (0..n).step_by(BLOCK).enumerate() {
                    let end = n.min(start + BLOCK);
                    let mut largest = [0; SLOTS];
                    let scales = blocks.scales(block);
                    for row in (start..end).step_by(ROW) {
                        fetch(p, row);
                        for i in row..end.min(row + ROW) {
                            let mut values = blocks.decode([$($slot[i]),*], &scales);
                            {
                                let [$($slot),*] = &mut values;
                                let g = scaling.apply(g[i], p[i]);
                                $update(s, &mut p[i], g, $($slot),*);
                            }
                            for nth in 0..SLOTS {
                                staged[nth][i - start] = values[nth];
                                let bits = optim_core::format::magnitude(values[nth]);
                                largest[nth] = if bits > largest[nth] { bits } else { largest[nth] };
                            }
                        }
                    }
                    let steps = blocks.steps(block, &largest);
                    for row in (start..end).step_by(ROW) {
                        fetch(g, row);
                        $(fetch($slot, row);)*
                        for i in row..end.min(row + ROW) {
                            let bits = random.at::<SLOTS>(i);
                            let mut nth = 0;
                            $(
                                $slot[i] = blocks.codings[nth].encode(staged[nth][i - start], steps[nth], bits[nth]);
                                nth += 1;
                            )*
                        }
                    }
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
                block8: |scalars, p, g, scaling, slots, random| {
                    let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
                    let blocks = $crate::kernel::Blocks8::new(&slots.codings, slots.scales);
                    let [$($slot,)* ..] = slots.codes;
                    walk_block8(step, p, g, scaling, $($slot,)* blocks, random);
                },
            }
        };
    };
}
pub(crate) use elementwise;

/// The scales of `N` slots that are kept as 8-bit codes, and how these are made.
#[derive(Debug)]
pub(crate) struct Blocks8<'a, const N: usize> {
    pub(crate) codings: [Coding; N],
    scales: [&'a mut [f32]; N],
}

impl<'a, const N: usize> Blocks8<'a, N> {
    pub(crate) fn new(codings: &[Coding; MAX_SLOTS], scales: [&'a mut [f32]; MAX_SLOTS]) -> Self {
        let mut scales = scales.into_iter();
        Self {
            codings: array::from_fn(|nth| codings[nth]),
            scales: array::from_fn(|_| scales.next().unwrap_or_default()),
        }
    }

    /// The scales of a block.
    #[inline(always)]
    pub(crate) fn scales(&self, block: usize) -> [f32; N] {
        array::from_fn(|nth| self.scales[nth][block])
    }

    /// The slots of one element, of a block with these scales.
    #[inline(always)]
    pub(crate) fn decode(&self, codes: [u8; N], scales: &[f32; N]) -> [f32; N] {
        array::from_fn(|nth| self.codings[nth].decode(codes[nth], scales[nth]))
    }

    /// Stores the scales of a block with these largest magnitudes, and gives what numbers are multiplied with to be coded.
    #[inline(always)]
    pub(crate) fn steps(&mut self, block: usize, largest: &[u32; N]) -> [f32; N] {
        array::from_fn(|nth| {
            let scale = format::scale_from(largest[nth]);
            self.scales[nth][block] = scale;
            self.codings[nth].steps(scale)
        })
    }
}

/// The slots of one element.
#[inline(always)]
pub(crate) fn read_bf16<const N: usize>(bits: [u16; N]) -> [f32; N] {
    bits.map(format::bf16_to_f32)
}

/// The slots of one element, rounded with these bits.
#[inline(always)]
pub(crate) fn round_bf16<const N: usize>(values: [f32; N], bits: [u32; N]) -> [u16; N] {
    array::from_fn(|nth| format::f32_to_bf16_stochastic(values[nth], bits[nth]))
}

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
