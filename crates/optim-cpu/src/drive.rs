//! The only rayon: one fork-join a step over the caller's memory, cut into tasks of equal size.
//!
//! The parameters of a step are a row of slices that the caller owns, the slots lie in arenas. Both are cut at the same
//! places, which were computed once. Cutting borrowed memory in two and handing the halves to [`rayon::join`] needs neither
//! an allocation nor unsafe code:
//!
//! ```text
//! run(cuts, pieces):
//!     no cut left:  work on every piece, in order
//!     otherwise:    cut the pieces at the middle cut; join(run(left half), run(right half))
//! ```

use std::array;

use optim_core::ParamMut;

use crate::arena::{self, Arena};
use crate::kernel::Slots;
use crate::reduce::{self, SLICE, Sums};

/// Below this many elements a step is done by the calling thread: handing work over costs more than it saves.
pub(crate) const SERIAL: usize = 30_000;

/// The least elements of a task.
const TASK: usize = 1 << 14;

/// Tasks for each thread, so that a thread which is held up leaves work for the others.
const TASKS_PER_THREAD: usize = 16;

/// A place between two tasks: before this element of this parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    param: usize,
    element: usize,
}

/// Where each parameter lies in an arena and among the slices' sums; and, as the last entries, where those end.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The first element in an arena.
    pub(crate) starts: Vec<usize>,
    /// The first slice.
    pub(crate) slices: Vec<usize>,
}

impl Layout {
    pub(crate) fn new(lens: &[usize]) -> Self {
        let mut slices = vec![0];
        slices.extend(lens.iter().scan(0, |end, &len| {
            *end += reduce::slices(len);
            Some(*end)
        }));
        Self { starts: arena::starts(lens), slices }
    }
}

/// The cuts for tensors of these lengths, at whole slices: none if the work is not worth sharing.
pub(crate) fn cuts(lens: &[usize], threads: usize) -> Vec<Cut> {
    let total: usize = lens.iter().sum();
    if threads < 2 || total < SERIAL {
        return Vec::new();
    }
    let task = total.div_ceil(threads * TASKS_PER_THREAD).max(TASK);
    let (mut cuts, mut filled) = (Vec::new(), 0);
    for (param, &len) in lens.iter().enumerate() {
        if filled >= task {
            cuts.push(Cut { param, element: 0 });
            filled = 0;
        }
        let mut start = 0;
        loop {
            let element = (start + task - filled).next_multiple_of(SLICE);
            if element >= len {
                break;
            }
            cuts.push(Cut { param, element });
            (start, filled) = (element, 0);
        }
        filled += len - start;
    }
    cuts
}

/// A stretch of a step's memory: it may begin and end inside a parameter.
pub(crate) struct Pieces<'v, 'd> {
    /// Where the stretch begins.
    begin: Cut,
    /// The end of the parameter that began before the stretch.
    head: Option<&'v mut [f32]>,
    /// The parameters that lie in it whole.
    rest: &'v mut [ParamMut<'d>],
    /// The beginning of the parameter that ends behind it.
    tail: Option<&'v mut [f32]>,
    /// The same stretch of each slot.
    slots: Slots<'v>,
    /// The same stretch of the slices' sums; empty if nothing is summed.
    sums: &'v mut [Sums],
}

impl<'v, 'd> Pieces<'v, 'd> {
    /// Everything.
    pub(crate) fn new(params: &'v mut [ParamMut<'d>], arenas: &'v mut [Arena], sums: &'v mut [Sums]) -> Self {
        let mut arenas = arenas.iter_mut();
        let slots = array::from_fn(|_| arenas.next().map_or(&mut [][..], Arena::all_mut));
        Self { begin: Cut { param: 0, element: 0 }, head: None, rest: params, tail: None, slots, sums }
    }

    /// What lies before the cut, and from it on.
    fn split_at(self, cut: Cut, layout: &Layout) -> (Self, Self) {
        let Self { begin, head, rest, tail, slots, sums } = self;
        let Layout { starts, slices } = layout;
        let slots_before = (starts[cut.param] + cut.element) - (starts[begin.param] + begin.element);
        let mut right_slots: Slots<'v> = Default::default();
        let mut right_slot = right_slots.iter_mut();
        let left_slots = slots.map(|slot| {
            let (left, right) = slot.split_at_mut(slots_before.min(slot.len()));
            if let Some(slot) = right_slot.next() {
                *slot = right;
            }
            left
        });
        let sums_before = (slices[cut.param] + cut.element / SLICE) - (slices[begin.param] + begin.element / SLICE);
        let (left_sums, right_sums) = sums.split_at_mut(sums_before.min(sums.len()));
        let left = |head, rest, tail| Self { begin, head, rest, tail, slots: left_slots, sums: left_sums };
        let right = |head, rest, tail| Self { begin: cut, head, rest, tail, slots: right_slots, sums: right_sums };

        let first_whole = begin.param + usize::from(head.is_some());
        match (head, tail) {
            // Inside the first, begun parameter.
            (Some(head), tail) if cut.param == begin.param => {
                let (a, b) = head.split_at_mut(cut.element - begin.element);
                (left(Some(a), &mut [], None), right(Some(b), rest, tail))
            }
            // Inside the last, unfinished parameter.
            (head, Some(tail)) if cut.param == first_whole + rest.len() => {
                let (a, b) = tail.split_at_mut(cut.element);
                (left(head, rest, Some(a)), right(Some(b), &mut [], None))
            }
            // Inside a whole parameter.
            (head, tail) => {
                let (before, from) = rest.split_at_mut(cut.param - first_whole);
                let Some((param, after)) = from.split_first_mut() else {
                    unreachable!("a cut lies inside a parameter")
                };
                let (a, b) = host(param).split_at_mut(cut.element);
                (left(head, before, Some(a)), right(Some(b), after, tail))
            }
        }
    }

    /// Calls `work` for each piece.
    fn each(self, layout: &Layout, work: &impl Fn(Piece<'_>)) {
        let Self { begin, head, rest, tail, mut slots, sums } = self;
        let Layout { starts, slices } = layout;
        let (base, first_slice) = (starts[begin.param] + begin.element, slices[begin.param] + begin.element / SLICE);
        let first_whole = begin.param + usize::from(head.is_some());
        let after = first_whole + rest.len();
        let mut piece = |param: usize, element: usize, p: &mut [f32]| {
            if p.is_empty() {
                return;
            }
            let start = starts[param] + element - base;
            let slots = slots.each_mut().map(|slot| slot.get_mut(start..start + p.len()).unwrap_or_default());
            let slice = slices[param] + element / SLICE - first_slice;
            let sums = sums.get_mut(slice..slice + reduce::slices(p.len())).unwrap_or_default();
            work(Piece { param, element, p, slots, sums });
        };
        if let Some(head) = head {
            piece(begin.param, begin.element, head);
        }
        for (param, memory) in (first_whole..).zip(rest) {
            piece(param, 0, host(memory));
        }
        if let Some(tail) = tail {
            piece(after, 0, tail);
        }
    }
}

/// A run of one parameter's elements, beginning at a whole slice.
pub(crate) struct Piece<'a> {
    /// The parameter's index.
    pub(crate) param: usize,
    /// The first element, within the parameter.
    pub(crate) element: usize,
    pub(crate) p: &'a mut [f32],
    pub(crate) slots: Slots<'a>,
    /// One entry for each slice, or none if nothing is summed.
    pub(crate) sums: &'a mut [Sums],
}

/// A parameter's slice; the step has checked that it is one.
fn host<'v>(param: &'v mut ParamMut<'_>) -> &'v mut [f32] {
    match param {
        ParamMut::F32(slice) => slice,
        _ => unreachable!("the engine takes f32 on the host only, and checks"),
    }
}

/// Works on all pieces, in parallel if there are cuts.
pub(crate) fn run<W>(cuts: &[Cut], layout: &Layout, pieces: Pieces<'_, '_>, work: &W)
where
    W: Fn(Piece<'_>) + Sync,
{
    let Some(&cut) = cuts.get(cuts.len() / 2) else { return pieces.each(layout, work) };
    let (left, right) = pieces.split_at(cut, layout);
    let (before, after) = (&cuts[..cuts.len() / 2], &cuts[cuts.len() / 2 + 1..]);
    rayon::join(|| run(before, layout, left, work), || run(after, layout, right, work));
}
