//! One fork-join over a step's memory, cut into tasks of equal size.
//!
//! The parameters of a step are a row of slices that the caller owns, the state lies in arenas. All are cut at the same
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

use crate::arena::{Arena, Arrays, KINDS, Layout};
use crate::form::Form;
use crate::reduce::SLICE;

/// Below this much work, in elements that are `f32` throughout, a step is done by the calling thread: waking another one costs
/// 10 to 20 µs, an element 0.1 to 0.4 ns.
const SERIAL: usize = 1 << 17;

/// What an element costs whose parameter or state is kept otherwise, or is updated in several walks.
const OTHERWISE: usize = 4;

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

/// The most bytes of a parameter that is measured and updated at once: they stay in a core's second cache meanwhile.
const AT_ONCE: usize = 1 << 20;

impl Cut {
    /// The parameter inside which it lies.
    pub(crate) fn inside(&self) -> Option<usize> {
        (self.element > 0).then_some(self.param)
    }
}

/// The cuts for these tensors, at whole slices: none if the work is not worth sharing. A matrix with a factored rule is not cut.
pub(crate) fn cuts(forms: &[Form], threads: usize) -> Vec<Cut> {
    let total: usize = forms.iter().map(|form| form.len).sum();
    let work: usize =
        forms.iter().map(|form| form.len * if form.plain && !form.factored { 1 } else { OTHERWISE }).sum();
    if threads < 2 || work < SERIAL {
        return Vec::new();
    }
    let task = total.div_ceil(threads * TASKS_PER_THREAD).max(TASK);
    let (mut cuts, mut filled) = (Vec::new(), 0);
    for (param, form) in forms.iter().enumerate() {
        if filled >= task {
            cuts.push(Cut { param, element: 0 });
            filled = 0;
        }
        let mut start = 0;
        loop {
            let element = (start + task - filled).next_multiple_of(SLICE);
            if form.whole || element >= form.len {
                break;
            }
            cuts.push(Cut { param, element });
            (start, filled) = (element, 0);
        }
        filled += form.len - start;
    }
    cuts
}

/// For each parameter whether one task has all of it, and its memory stays in that core's cache.
pub(crate) fn at_once(cuts: &[Cut], layout: &Layout) -> Vec<bool> {
    let mut at_once: Vec<bool> = (0..layout.lens.len()).map(|param| layout.bytes(param) <= AT_ONCE).collect();
    cuts.iter().filter(|cut| cut.element > 0).for_each(|cut| at_once[cut.param] = false);
    at_once
}

/// A stretch of a step's memory: it may begin and end inside a parameter.
pub(crate) struct Pieces<'v, 'd> {
    /// Where the stretch begins.
    begin: Cut,
    /// The end of the parameter that began before the stretch.
    head: Option<&'v mut [u8]>,
    /// The parameters that lie in it whole.
    rest: &'v mut [ParamMut<'d>],
    /// The beginning of the parameter that ends behind it.
    tail: Option<&'v mut [u8]>,
    /// The same stretch of each array.
    arrays: Arrays<'v>,
}

impl<'v, 'd> Pieces<'v, 'd> {
    /// Everything.
    pub(crate) fn new(params: &'v mut [ParamMut<'d>], arenas: &'v mut [Arena; KINDS]) -> Self {
        let arrays = arenas.each_mut().map(Arena::all_mut);
        Self { begin: Cut { param: 0, element: 0 }, head: None, rest: params, tail: None, arrays }
    }

    /// What lies before the cut, and from it on.
    fn split_at(self, cut: Cut, layout: &Layout) -> (Self, Self) {
        let Self { begin, head, rest, tail, arrays } = self;
        let mut left_arrays: Arrays<'v> = Default::default();
        let mut right_arrays: Arrays<'v> = Default::default();
        for (kind, array) in arrays.into_iter().enumerate().filter(|(_, array)| !array.is_empty()) {
            let before = layout.at(kind, cut.param, cut.element) - layout.at(kind, begin.param, begin.element);
            (left_arrays[kind], right_arrays[kind]) = array.split_at_mut(before);
        }
        let size = layout.sizes[cut.param];
        let left = |head, rest, tail| Self { begin, head, rest, tail, arrays: left_arrays };
        let right = |head, rest, tail| Self { begin: cut, head, rest, tail, arrays: right_arrays };

        let first_whole = begin.param + usize::from(head.is_some());
        match (head, tail) {
            // Inside the first, begun parameter.
            (Some(head), tail) if cut.param == begin.param => {
                let (a, b) = head.split_at_mut((cut.element - begin.element) * size);
                (left(Some(a), &mut [], None), right(Some(b), rest, tail))
            }
            // Inside the last, unfinished parameter.
            (head, Some(tail)) if cut.param == first_whole + rest.len() => {
                let (a, b) = tail.split_at_mut(cut.element * size);
                (left(head, rest, Some(a)), right(Some(b), &mut [], None))
            }
            // Inside a whole parameter.
            (head, tail) => {
                let (before, from) = rest.split_at_mut(cut.param - first_whole);
                let Some((param, after)) = from.split_first_mut() else {
                    unreachable!("a cut lies inside a parameter")
                };
                let (a, b) = host_mut(param).split_at_mut(cut.element * size);
                (left(head, before, Some(a)), right(Some(b), after, tail))
            }
        }
    }

    /// Calls `work` for each piece.
    fn each(self, layout: &Layout, mut work: impl FnMut(&mut Piece<'_>)) {
        let Self { begin, head, rest, tail, mut arrays } = self;
        let first_whole = begin.param + usize::from(head.is_some());
        let after = first_whole + rest.len();
        let bases: [usize; KINDS] = array::from_fn(|kind| layout.at(kind, begin.param, begin.element));
        let mut piece = |param: usize, element: usize, p: &mut [u8]| {
            if p.is_empty() {
                return;
            }
            let len = p.len() / layout.sizes[param];
            let mut piece = Piece { param, element, len, p, arrays: Default::default() };
            for (kind, array) in arrays.iter_mut().enumerate().filter(|(_, array)| !array.is_empty()) {
                let [start, end] =
                    [element, element + len].map(|element| layout.at(kind, param, element) - bases[kind]);
                piece.arrays[kind] = &mut array[start..end];
            }
            work(&mut piece);
        };
        if let Some(head) = head {
            piece(begin.param, begin.element, head);
        }
        for (param, memory) in (first_whole..).zip(rest) {
            piece(param, 0, host_mut(memory));
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
    /// The number of elements.
    pub(crate) len: usize,
    /// The caller's memory.
    pub(crate) p: &'a mut [u8],
    pub(crate) arrays: Arrays<'a>,
}

/// A parameter's memory; the step has checked that it is on the host.
pub(crate) fn host_mut<'v>(param: &'v mut ParamMut<'_>) -> &'v mut [u8] {
    match param {
        ParamMut::F32(slice) => bytemuck::cast_slice_mut(slice),
        ParamMut::F16(slice) => bytemuck::cast_slice_mut(slice),
        ParamMut::Bf16(slice) => bytemuck::cast_slice_mut(slice),
        _ => unreachable!("the engine takes memory on the host only, and checks"),
    }
}

/// Works on all pieces, in parallel if there are cuts. Each task has a workspace `T` of its own.
pub(crate) fn run<T: Default, W>(cuts: &[Cut], layout: &Layout, pieces: Pieces<'_, '_>, work: &W)
where
    W: Fn(&mut Piece<'_>, &mut T) + Sync,
{
    let Some(&cut) = cuts.get(cuts.len() / 2) else {
        let mut space = T::default();
        return pieces.each(layout, |piece| work(piece, &mut space));
    };
    let (left, right) = pieces.split_at(cut, layout);
    let (before, after) = (&cuts[..cuts.len() / 2], &cuts[cuts.len() / 2 + 1..]);
    rayon::join(|| run(before, layout, left, work), || run(after, layout, right, work));
}
