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

use crate::arena::Arena;
use crate::kernel::Slots;

/// Below this many elements a step is done by the calling thread: handing work over costs more than it saves.
const SERIAL: usize = 30_000;

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

/// The cuts for tensors of these lengths: none if the work is not worth sharing.
pub(crate) fn cuts(lens: &[usize], threads: usize) -> Vec<Cut> {
    let total: usize = lens.iter().sum();
    if threads < 2 || total < SERIAL {
        return Vec::new();
    }
    let task = total.div_ceil(threads * TASKS_PER_THREAD).max(TASK);
    let (mut cuts, mut filled) = (Vec::new(), 0);
    for (param, &len) in lens.iter().enumerate() {
        // The tensor's elements before which a task is full.
        cuts.extend((task - filled..len).step_by(task).map(|element| Cut { param, element }));
        filled = (filled + len) % task;
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
}

impl<'v, 'd> Pieces<'v, 'd> {
    /// Everything.
    pub(crate) fn new(params: &'v mut [ParamMut<'d>], arenas: &'v mut [Arena]) -> Self {
        let mut arenas = arenas.iter_mut();
        let slots = array::from_fn(|_| arenas.next().map_or(&mut [][..], Arena::all_mut));
        Self { begin: Cut { param: 0, element: 0 }, head: None, rest: params, tail: None, slots }
    }

    /// What lies before the cut, and from it on.
    fn split_at(self, cut: Cut, starts: &[usize]) -> (Self, Self) {
        let Self { begin, head, rest, tail, slots } = self;
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
        let left = |head, rest, tail| Self { begin, head, rest, tail, slots: left_slots };
        let right = |head, rest, tail| Self { begin: cut, head, rest, tail, slots: right_slots };

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

    /// Calls `work(param, first element, memory, slots)` for each piece.
    fn each(self, starts: &[usize], work: &impl Fn(usize, usize, &mut [f32], Slots<'_>)) {
        let Self { begin, head, rest, tail, mut slots } = self;
        let base = starts[begin.param] + begin.element;
        let first_whole = begin.param + usize::from(head.is_some());
        let after = first_whole + rest.len();
        let mut piece = |param: usize, element: usize, memory: &mut [f32]| {
            let start = starts[param] + element - base;
            let slots = slots.each_mut().map(|slot| match slot.len() {
                0 => &mut [][..],
                _ => &mut slot[start..start + memory.len()],
            });
            work(param, element, memory, slots);
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

/// A parameter's slice; the step has checked that it is one.
fn host<'v>(param: &'v mut ParamMut<'_>) -> &'v mut [f32] {
    match param {
        ParamMut::F32(slice) => slice,
        _ => unreachable!("the engine takes f32 on the host only, and checks"),
    }
}

/// Works on all pieces, in parallel if there are cuts.
pub(crate) fn run<W>(cuts: &[Cut], starts: &[usize], pieces: Pieces<'_, '_>, work: &W)
where
    W: Fn(usize, usize, &mut [f32], Slots<'_>) + Sync,
{
    let Some(&cut) = cuts.get(cuts.len() / 2) else { return pieces.each(starts, work) };
    let (left, right) = pieces.split_at(cut, starts);
    let (before, after) = (&cuts[..cuts.len() / 2], &cuts[cuts.len() / 2 + 1..]);
    rayon::join(|| run(before, starts, left, work), || run(after, starts, right, work));
}
