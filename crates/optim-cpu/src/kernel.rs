//! How a rule's `update`, which sees one element, becomes a loop over slices that is compiled for several instruction sets.

use std::fmt;

use multiversion::target::match_target;
pub(crate) use optim_core::rule::MAX_SLOTS;
use optim_core::rule::StepScalars;
use optim_core::{Rule, format};

use crate::reduce::{Columns, Sums};
use crate::storage::low;

/// What kernels are made of.
pub(crate) mod parts {
    pub(crate) use std::array;

    pub(crate) use multiversion::multiversion;
    pub(crate) use optim_core::format::{self, BLOCK, Code8, Coding};

    pub(crate) use super::{
        Aligned, Kernel, NarrowKernel, Scaling, SlotBits, codings, decode, encode, filled, raise, read_bf16,
        round_bf16, steps,
    };
    pub(crate) use crate::arch::{SPAN, fetch, fetch_once};
}
use parts::{Code8, Coding, array, multiversion};

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

    /// Those of what begins `elements` later.
    #[inline(always)]
    pub(crate) fn from(self, elements: usize) -> Self {
        Self { first: self.first.wrapping_add(low(elements)), ..self }
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
        // A number times 1 is that number.
        let mut scaled = self.factor * g;
        if self.weight_decay != 0.0 {
            scaled += self.weight_decay * p;
        }
        scaled
    }
}

/// At the beginning of a cache line, so that no vector lies in two.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Aligned<T>(pub(crate) T);

/// A block that begins with these numbers, of which there is at least one; the first one takes the place of those that it lacks.
pub(crate) fn filled<T: Copy>(numbers: &[T]) -> [T; format::BLOCK] {
    let mut block = [numbers[0]; format::BLOCK];
    block[..numbers.len()].copy_from_slice(numbers);
    block
}

/// A rule's kernel: the scalars, the parameter, the gradient and how it is scaled, the slots. All slices have one length.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) f32: fn(&StepScalars, &mut [f32], &[f32], Scaling, &mut Slots<'_>),
    /// Of a rule that has slots which can all be kept narrow.
    pub(crate) narrow: Option<NarrowKernel>,
}

/// A rule's kernel with slots that are read and stored in the same loop: what waits for divisions and roots computes random
/// bits meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct NarrowKernel {
    pub(crate) bf16: fn(&StepScalars, &mut [f32], &[f32], Scaling, &mut Bf16Slots<'_>, SlotBits),
    /// With 8-bit codes of these kinds, block by block.
    pub(crate) block8: fn(&StepScalars, &mut [f32], &[f32], Scaling, &mut Block8Slots<'_>, SlotBits),
    pub(crate) codes: &'static [Code8],
}

/// How a rule with norms is updated in two walks.
#[derive(Clone, Copy)]
pub(crate) struct Norms {
    /// How many terms are summed.
    pub(crate) terms: usize,
    /// The first walk: the scalars, the parameter, the gradient, the slots, and the running sums to which the terms are added. All
    /// slices have one length, at most a row's. The slots take their new values.
    pub(crate) measure: fn(&StepScalars, &[f32], &[f32], &mut Slots<'_>, &mut Columns),
    /// Completes the scalars from the sums.
    pub(crate) finish: fn(&mut StepScalars, Sums),
    /// The second walk where the slots have their new values already: the scalars, the parameter, the slots.
    pub(crate) apply: fn(&StepScalars, &mut [f32], &mut Slots<'_>),
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
    /// Updates a stretch; `rule` as it is at this step. Only a built-in rule takes a scaling and narrow slots.
    #[inline]
    pub(crate) fn run(
        self,
        rule: &Rule,
        scalars: &StepScalars,
        p: &mut [f32],
        g: &[f32],
        scaling: Scaling,
        slots: &mut Opened<'_>,
    ) {
        let kernel = match self {
            Self::BuiltIn(kernel) => kernel,
            Self::Custom | Self::Factored => return run_custom(rule, scalars, p, g, slots),
        };
        match (slots, kernel.narrow) {
            (Opened::F32(slots), _) => (kernel.f32)(scalars, p, g, scaling, slots),
            (Opened::Bf16(slots, bits), Some(kernel)) => (kernel.bf16)(scalars, p, g, scaling, slots, *bits),
            (Opened::Block8(slots, bits), Some(kernel)) => (kernel.block8)(scalars, p, g, scaling, slots, *bits),
            (_, None) => unreachable!("slots are opened as the kernel takes them"),
        }
    }
}

/// Updates a stretch by the user's own rule.
fn run_custom(rule: &Rule, scalars: &StepScalars, p: &mut [f32], g: &[f32], slots: &mut Opened<'_>) {
    match (rule.kernel(), slots) {
        (Rule::Custom(rule), Opened::F32(slots)) => {
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

/// Makes a [`Kernel`] of a function `update(step, p, g, slots…)`. Slots that can be kept narrow are written with the kind of their
/// 8-bit codes, as in `[m: Signed, v: Positive]`, if all can.
///
/// The loops stand in functions whose slices are separate arguments: so the compiler knows that they do not overlap, and
/// vectorizes them as well as intrinsics would be.
macro_rules! elementwise {
    ($kernel:ident = $update:path, $step:ty, [$($slot:ident),*]) => {
        #[allow(non_upper_case_globals, reason = "named as a function is")]
        pub(crate) const $kernel: $crate::kernel::Kernel = {
            use $crate::kernel::parts::*;
            Kernel { f32: elementwise!(@f32 $update, $step, [$($slot),*]), narrow: None }
        };
    };
    ($kernel:ident = $update:path, $step:ty, [$($slot:ident: $code:ident),*]) => {
        #[allow(non_upper_case_globals, reason = "named as a function is")]
        pub(crate) const $kernel: $crate::kernel::Kernel = {
            use $crate::kernel::parts::*;

            const CODES: &[Code8] = &[$(Code8::$code),*];
            const SLOTS: usize = CODES.len();
            const HALF: usize = BLOCK / 2;

            #[allow(clippy::too_many_arguments, reason = "the slices are separate")]
            #[multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn walk_bf16(s: &$step, p: &mut [f32], g: &[f32], scaling: Scaling, $($slot: &mut [u16],)* bits: SlotBits) {
                let (s, n) = (*s, p.len());
                for span in (0..n).step_by(SPAN) {
                    let len = SPAN.min(n - span);
                    fetch(p, span);
                    fetch(g, span);
                    $(fetch($slot, span);)*
                    let (p, g, bits) = (&mut p[span..][..len], &g[span..][..len], bits.from(span));
                    $(let $slot = &mut $slot[span..][..len];)*
                    for i in 0..len {
                        let mut values = read_bf16([$($slot[i]),*]);
                        {
                            let [$($slot),*] = &mut values;
                            let g = scaling.apply(g[i], p[i]);
                            $update(&s, &mut p[i], g, $($slot),*);
                        }
                        elementwise!(@store i, round_bf16(values, bits.at(i)), $($slot),*);
                    }
                }
            }

            #[allow(clippy::too_many_arguments, reason = "the slices are separate")]
            #[multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn walk_block8(
                s: &$step,
                p: &mut [f32],
                g: &[f32],
                scaling: Scaling,
                $($slot: &mut [u8],)*
                mut scales: [&mut [f32]; SLOTS],
                bits: SlotBits,
            ) {
                let codings: [Coding; SLOTS] = codings(CODES);
                let (s, n) = (*s, p.len());
                let whole = n - n % BLOCK;
                // The codes, and the numbers of a block.
                $(let mut $slot = ($slot, Aligned([0.0; BLOCK]));)*
                for (block, start) in (0..whole).step_by(BLOCK).enumerate() {
                    let mut largest = [0; SLOTS];
                    let before = scales.each_ref().map(|scales| scales[block]);
                    for half in [0, HALF] {
                        let span = start + half;
                        fetch(p, span);
                        fetch(p, span + SPAN);
                        let (p, g) = (&mut p[span..][..HALF], &g[span..][..HALF]);
                        $(let $slot = (&$slot.0[span..][..HALF], &mut $slot.1.0[half..][..HALF]);)*
                        for i in 0..HALF {
                            let mut values = decode(&codings, [$($slot.0[i]),*], &before);
                            {
                                let [$($slot),*] = &mut values;
                                let g = scaling.apply(g[i], p[i]);
                                $update(&s, &mut p[i], g, $($slot),*);
                            }
                            raise(&mut largest, &values);
                            $(let $slot = &mut *$slot.1;)*
                            elementwise!(@store i, values, $($slot),*);
                        }
                    }
                    let after = largest.map(format::scale_from);
                    scales.iter_mut().zip(after).for_each(|(scales, after)| scales[block] = after);
                    let steps = steps(&codings, &after);
                    for half in [0, HALF] {
                        let span = start + half;
                        fetch(g, span);
                        fetch(g, span + SPAN);
                        $(
                            fetch($slot.0, span);
                            fetch($slot.0, span + SPAN);
                        )*
                        let bits = bits.from(span);
                        $(let $slot = (&mut $slot.0[span..][..HALF], &$slot.1.0[half..][..HALF]);)*
                        for i in 0..HALF {
                            let codes = encode(&codings, [$($slot.1[i]),*], &steps, bits.at(i));
                            $(let $slot = &mut *$slot.0;)*
                            elementwise!(@store i, codes, $($slot),*);
                        }
                    }
                }
                if whole < n {
                    // The last block is filled up with its first element, which changes no scale.
                    let (rest, block) = (n - whole, whole / BLOCK);
                    let (mut p, all_p) = (filled(&p[whole..]), &mut p[whole..]);
                    let g = filled(&g[whole..]);
                    $(
                        let codes = &mut $slot.0[whole..];
                        let mut $slot = (filled(codes), codes);
                    )*
                    let scales = scales.map(|scales| &mut scales[block..]);
                    walk_block8(&s, &mut p, &g, scaling, $(&mut $slot.0,)* scales, bits.from(whole));
                    all_p.copy_from_slice(&p[..rest]);
                    $($slot.1.copy_from_slice(&$slot.0[..rest]);)*
                }
            }

            Kernel {
                f32: elementwise!(@f32 $update, $step, [$($slot),*]),
                narrow: Some(NarrowKernel {
                    bf16: |scalars, p, g, scaling, slots, bits| {
                        let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
                        let [$($slot,)* ..] = slots;
                        walk_bf16(step, p, g, scaling, $($slot,)* bits);
                    },
                    block8: |scalars, p, g, scaling, slots, bits| {
                        let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
                        let mut scales = slots.scales.iter_mut();
                        let scales = array::from_fn(|_| scales.next().map_or(&mut [][..], |scales| &mut **scales));
                        let [$($slot,)* ..] = &mut slots.codes;
                        walk_block8(step, p, g, scaling, $($slot,)* scales, bits);
                    },
                    codes: CODES,
                }),
            }
        };
    };
    (@f32 $update:path, $step:ty, [$($slot:ident),*]) => {{
        #[allow(clippy::too_many_arguments, reason = "the slices are separate")]
        #[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
        fn walk(s: &$step, p: &mut [f32], g: &[f32], scaling: Scaling, $($slot: &mut [f32]),*) {
            // With scalars of its own, the loop needs no memory but the slices: fetching might change any other.
            let (s, n) = (*s, p.len());
            let whole = n - n % SPAN;
            for span in (0..whole).step_by(SPAN) {
                fetch(p, span);
                fetch(g, span);
                $(fetch($slot, span);)*
                let (p, g) = (&mut p[span..][..SPAN], &g[span..][..SPAN]);
                $(let $slot = &mut $slot[span..][..SPAN];)*
                for i in 0..SPAN {
                    let g = scaling.apply(g[i], p[i]);
                    $update(&s, &mut p[i], g, $(&mut $slot[i]),*);
                }
            }
            let (p, g) = (&mut p[whole..n], &g[whole..n]);
            $(let $slot = &mut $slot[whole..n];)*
            for i in 0..n - whole {
                let g = scaling.apply(g[i], p[i]);
                $update(&s, &mut p[i], g, $(&mut $slot[i]),*);
            }
        }
        |scalars, p, g, scaling, slots| {
            let step = bytemuck::from_bytes(bytemuck::cast_slice(scalars.words()));
            let [$($slot,)* ..] = slots;
            walk(step, p, g, scaling, $($slot),*);
        }
    }};
    // The numbers of an element, each to its slot.
    (@store $i:ident, $values:expr, $($slot:ident),*) => {{
        let mut values = $values.into_iter();
        $(if let Some(value) = values.next() { $slot[$i] = value; })*
    }};
}
pub(crate) use elementwise;

/// Raises what is less than the magnitude of its number.
#[inline(always)]
pub(crate) fn raise<const N: usize>(largest: &mut [u32; N], values: &[f32; N]) {
    for nth in 0..N {
        largest[nth] = largest[nth].max(format::magnitude(values[nth]));
    }
}

/// How codes of these kinds are made.
#[inline(always)]
pub(crate) fn codings<const N: usize>(codes: &[Code8]) -> [Coding; N] {
    array::from_fn(|nth| codes[nth].coding())
}

/// The slots of one element, of a block with these scales.
#[inline(always)]
pub(crate) fn decode<const N: usize>(codings: &[Coding; N], codes: [u8; N], scales: &[f32; N]) -> [f32; N] {
    array::from_fn(|nth| codings[nth].decode(codes[nth], scales[nth]))
}

/// What the numbers of a block with these scales are multiplied with to be coded.
#[inline(always)]
pub(crate) fn steps<const N: usize>(codings: &[Coding; N], scales: &[f32; N]) -> [f32; N] {
    array::from_fn(|nth| codings[nth].steps(scales[nth]))
}

/// The codes of the slots of one element, rounded with these bits.
#[inline(always)]
pub(crate) fn encode<const N: usize>(
    codings: &[Coding; N],
    values: [f32; N],
    steps: &[f32; N],
    bits: [u32; N],
) -> [u8; N] {
    array::from_fn(|nth| codings[nth].encode(values[nth], steps[nth], bits[nth]))
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

/// Makes [`Norms`] of the functions `terms(step, p, g, slots…)`, which sees the old slots, `moments(step, g, slots…)`, which changes
/// them, `finish(step, sums)`, and `apply(step, p, slots…)`, which is what is left of an update then.
macro_rules! norms {
    ($norms:ident = $terms:path, $moments:path, $finish:path, $apply:path, $step:ty, [$($slot:ident),*]) => {
        #[allow(non_upper_case_globals, reason = "named as a function is")]
        pub(crate) const $norms: $crate::kernel::Norms = {
            use $crate::kernel::parts::*;

            #[multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn first_walk(s: &$step, p: &[f32], g: &[f32], $($slot: &mut [f32],)* sums: &mut $crate::reduce::Columns) {
                let (s, n) = (*s, p.len());
                let [first, second] = sums;
                let whole = n - n % SPAN;
                for span in (0..whole).step_by(SPAN) {
                    fetch(p, span);
                    fetch_once(g, span);
                    $(fetch($slot, span);)*
                    let (p, g) = (&p[span..][..SPAN], &g[span..][..SPAN]);
                    $(let $slot = &mut $slot[span..][..SPAN];)*
                    let (first, second) = (&mut first[span..][..SPAN], &mut second[span..][..SPAN]);
                    for i in 0..SPAN {
                        // Both compute the new slots, which the compiler does once.
                        let terms = $terms(&s, p[i], g[i], $($slot[i]),*);
                        $moments(&s, g[i], $(&mut $slot[i]),*);
                        first[i] += terms[0];
                        second[i] += terms[1];
                    }
                }
                for i in whole..n {
                    let terms = $terms(&s, p[i], g[i], $($slot[i]),*);
                    $moments(&s, g[i], $(&mut $slot[i]),*);
                    first[i] += terms[0];
                    second[i] += terms[1];
                }
            }
            #[multiversion(targets(
                "x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"
            ))]
            fn second_walk(s: &$step, p: &mut [f32], $($slot: &[f32]),*) {
                let (s, n) = (*s, p.len());
                let whole = n - n % SPAN;
                for span in (0..whole).step_by(SPAN) {
                    fetch(p, span);
                    $(fetch($slot, span);)*
                    let p = &mut p[span..][..SPAN];
                    $(let $slot = &$slot[span..][..SPAN];)*
                    for i in 0..SPAN {
                        $apply(&s, &mut p[i], $($slot[i]),*);
                    }
                }
                for i in whole..n {
                    $apply(&s, &mut p[i], $($slot[i]),*);
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
