//! What happens to a gradient before the rule sees it: unscale, then L2 decay. The twin of `shape` in the shaders' prelude.

use multiversion::multiversion;
use optim_core::backend::Shaping;
use optim_core::rule::MAX_TERMS;

use crate::kernel::{MAX_SLOTS, Slots};
use crate::reduce::{self, Columns, ROW, SLICE, Sums};

/// Elements that are shaped at a time. They stay in the first-level cache until the kernel reads them.
pub(crate) const BLOCK: usize = 1024;

/// Calls `kernel(p, shaped g, slots)`: once over everything if there is nothing to shape, else block by block.
pub(crate) fn shaped(
    shaping: &Shaping,
    p: &mut [f32],
    g: &[f32],
    mut slots: Slots<'_>,
    kernel: impl Fn(&mut [f32], &[f32], Slots<'_>),
) {
    if *shaping == Shaping::NONE {
        return kernel(p, &g[..p.len()], slots);
    }
    let mut block = [0.0; BLOCK];
    for start in (0..p.len()).step_by(BLOCK) {
        let range = start..p.len().min(start + BLOCK);
        let block = &mut block[..range.len()];
        block.copy_from_slice(&g[range.clone()]);
        shape(shaping, block, &p[range.clone()]);
        let slots: [_; MAX_SLOTS] = slots.each_mut().map(|slot| slot.get_mut(range.clone()).unwrap_or_default());
        kernel(&mut p[range], block, slots);
    }
}

/// Sums the terms of a run of slices: `measure` adds a row's terms to the running sums.
pub(crate) fn summed(
    shaping: &Shaping,
    p: &[f32],
    g: &[f32],
    mut slots: Slots<'_>,
    sums: &mut [Sums],
    measure: impl Fn(&[f32], &[f32], Slots<'_>, &mut Columns),
) {
    let mut row = [0.0; ROW];
    let mut columns = [[0.0; ROW]; MAX_TERMS];
    for (slice, sums) in sums.iter_mut().enumerate() {
        let end = p.len().min((slice + 1) * SLICE);
        let used = ROW.min(end - slice * SLICE);
        // A lane adds up four columns.
        columns.iter_mut().for_each(|column| column[..used.next_multiple_of(4)].fill(0.0));
        for start in (slice * SLICE..end).step_by(ROW) {
            let range = start..end.min(start + ROW);
            let row = &mut row[..range.len()];
            row.copy_from_slice(&g[range.clone()]);
            shape(shaping, row, &p[range.clone()]);
            let slots: [_; MAX_SLOTS] = slots.each_mut().map(|slot| slot.get_mut(range.clone()).unwrap_or_default());
            measure(&p[range], row, slots, &mut columns);
        }
        *sums = reduce::fold(&columns, used);
    }
}

/// `g ← factor · g + weight_decay · p`, each term only where it does something: multiplying by 1 and adding 0 would change the
/// bits of NaNs and of −0.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn shape(s: &Shaping, g: &mut [f32], p: &[f32]) {
    if s.factor != 1.0 {
        for g in g.iter_mut() {
            *g *= s.factor;
        }
    }
    if s.weight_decay != 0.0 {
        for (g, &p) in g.iter_mut().zip(p) {
            *g += s.weight_decay * p;
        }
    }
}
