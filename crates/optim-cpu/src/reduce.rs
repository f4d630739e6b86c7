//! Sums over a parameter, in one fixed order for any number of threads, which is also the GPU's.
//!
//! ```text
//! a slice is 16 rows of 1,024 elements, counted from the tensor's start
//! row sums:   1,024 running sums, one for each column of the slice         a GPU lane holds four of them, in a vec4
//! lane sums:  (x + y) + (z + w) of every four
//! slice sum:  a tree over the 256 lanes: 128, 64, …, 1 apart
//! total:      lane l adds the slices l, l + 256, …; then the same tree
//! ```
//!
//! Sums begin at +0, so none is −0 and adding an absent element's 0 changes nothing: it is left out.

use std::array;
use std::ops::Range;

use multiversion::multiversion;
use optim_core::rule::MAX_TERMS;

/// The elements of a row.
pub(crate) const ROW: usize = 1024;

/// The elements of a slice.
pub(crate) const SLICE: usize = 16 * ROW;

/// Lanes of a GPU workgroup that sums.
pub(crate) const LANES: usize = 256;

/// The sums of one slice, or of a whole parameter.
pub(crate) type Sums = [f32; MAX_TERMS];

/// The running sums of a slice, for each term.
pub(crate) type Columns = [[f32; ROW]; MAX_TERMS];

/// The slices of a tensor.
pub(crate) fn slices(len: usize) -> usize {
    len.div_ceil(SLICE)
}

/// Sums the first `terms` terms of a run of slices, and sets the other sums to 0: `add` adds those of a row, which these elements
/// are, to the running sums.
pub(crate) fn summed(
    len: usize,
    terms: usize,
    sums: &mut [Sums],
    columns: &mut Columns,
    mut add: impl FnMut(Range<usize>, &mut Columns),
) {
    for (slice, sums) in sums.iter_mut().enumerate() {
        let end = len.min((slice + 1) * SLICE);
        let used = ROW.min(end - slice * SLICE);
        columns.iter_mut().take(terms).for_each(|column| column[..used].fill(0.0));
        for start in (slice * SLICE..end).step_by(ROW) {
            add(start..end.min(start + ROW), columns);
        }
        *sums = [0.0; MAX_TERMS];
        sums.iter_mut().zip(&*columns).take(terms).for_each(|(sum, column)| *sum = fold(&column[..used]));
    }
}

/// The sum of a slice's columns.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn fold(columns: &[f32]) -> f32 {
    sum_of_row(columns, |column| column)
}

/// The sum of the terms of at most a row: of those of four elements for each lane, then the tree.
#[inline(always)]
pub(crate) fn sum_of_row(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let sum = |[x, y, z, w]: [f32; 4]| (x + y) + (z + w);
    let (fours, rest) = row.as_chunks();
    for (lane, &[x, y, z, w]) in lanes.iter_mut().zip(fours) {
        *lane = sum([term(x), term(y), term(z), term(w)]);
    }
    if !rest.is_empty() {
        lanes[fours.len()] = sum(array::from_fn(|nth| rest.get(nth).map_or(0.0, |&x| term(x))));
    }
    tree(&mut lanes, row.len().div_ceil(4))
}

/// The sums of a parameter, of those of its slices.
pub(crate) fn total(slices: &[Sums]) -> Sums {
    // Most parameters of a long list are small.
    if let [sums] = slices {
        return *sums;
    }
    array::from_fn(|term| {
        let mut lanes = [0.0; LANES];
        for row in slices.chunks(LANES) {
            for (lane, sums) in lanes.iter_mut().zip(row) {
                *lane += sums[term];
            }
        }
        tree(&mut lanes, slices.len().min(LANES))
    })
}

/// The sum of numbers that are not negative: lane l adds the l-th, the l + 256-th, …; then the tree.
pub(crate) fn strided(numbers: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for row in numbers.chunks(LANES) {
        lanes.iter_mut().zip(row).for_each(|(lane, number)| *lane += number);
    }
    tree(&mut lanes, numbers.len().min(LANES))
}

/// As [`tree`], compiled for several instruction sets.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn sum_of_lanes(lanes: &mut [f32; LANES], used: usize) -> f32 {
    tree(lanes, used)
}

/// Adds up the lanes, of which those from `used` on are 0.
#[inline(always)]
pub(crate) fn tree(lanes: &mut [f32; LANES], used: usize) -> f32 {
    level::<128>(lanes, used);
    level::<64>(lanes, used);
    level::<32>(lanes, used);
    level::<16>(lanes, used);
    level::<8>(lanes, used);
    if used >= 8 {
        let [a, b, c, d, e, f, g, h, ..] = *lanes;
        return ((a + e) + (c + g)) + ((b + f) + (d + h));
    }
    level::<4>(lanes, used);
    level::<2>(lanes, used);
    level::<1>(lanes, used);
    lanes[0]
}

/// Adds the second `STRIDE` lanes to the first.
#[inline(always)]
fn level<const STRIDE: usize>(lanes: &mut [f32; LANES], used: usize) {
    let (left, right) = lanes.split_at_mut(STRIDE);
    let pairs = left.iter_mut().zip(&right[..STRIDE]);
    if used >= 2 * STRIDE {
        pairs.for_each(|(left, right)| *left += right);
    } else {
        pairs.take(used.saturating_sub(STRIDE)).for_each(|(left, right)| *left += right);
    }
}

/// A number of elements as a divisor.
#[allow(clippy::cast_precision_loss, reason = "the GPU rounds it alike")]
pub(crate) fn count(elements: usize) -> f32 {
    elements as f32
}
