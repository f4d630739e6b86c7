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

use std::ops::Range;
use std::{array, mem};

use optim_core::ParamMut;

use crate::arena::{Arena, Arrays, KINDS, Layout};
use crate::form::Form;
use crate::reduce::SLICE;

/// Below this much work a step is never shared: two threads would not gain what they need to hand it over.
const LEAST: usize = 1 << 15;

/// Below this much work a step is shared with threads that are awake only: waking one costs the caller 10 to 15 µs, and it
/// begins 30 to 40 µs later; a unit of work takes 0.1 to 0.4 ns.
const WAKING: usize = 1 << 17;

/// The work of an element whose parameter or state is not `f32` throughout, or whose rule is factored; of others it is 1.
const OTHERWISE: usize = 4;

/// The work of a tensor beside its elements.
const TENSOR: usize = 128;

/// The least work of a task.
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

/// The bytes of parameters that are measured and then updated before others are, unless one has more: they stay in the last cache
/// meanwhile. Those that are measured and updated at once do not count.
const BATCH: usize = 16 << 20;

/// A run of parameters that are walked over together, and the places where their memory is cut into tasks of equal work: none if
/// that is not worth sharing.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) params: Range<usize>,
    pub(crate) cuts: Vec<Cut>,
    /// How many tasks in a row are one thread's, unless another one helps it.
    pub(crate) own: usize,
}

/// How a step's memory is cut.
#[derive(Debug)]
pub(crate) struct Cuts {
    /// All parameters, in order. One batch, unless some are measured before they are updated.
    pub(crate) batches: Vec<Batch>,
    /// Whether the work is worth waking a thread.
    pub(crate) wakes: bool,
}

impl Cuts {
    /// Cuts for these tensors, at whole slices. A matrix with a factored rule is not cut.
    pub(crate) fn new(forms: &[Form], layout: &Layout, threads: usize) -> Self {
        let total: usize = forms.iter().map(work).sum();
        let measured = forms.iter().any(|form| form.measured);
        // What is measured and updated at once does not wait for another walk.
        let waits = |param: usize| Some(layout.bytes(param)).filter(|&bytes| bytes > AT_ONCE).unwrap_or_default();
        let (mut batches, mut begin, mut bytes) = (Vec::new(), 0, 0);
        for param in 0..forms.len() {
            bytes += waits(param);
            if param + 1 == forms.len() || measured && bytes + waits(param + 1) > BATCH {
                let params = begin..param + 1;
                let cuts = cuts(forms, &params, threads);
                batches.push(Batch { own: (cuts.len() + 1) / threads, cuts, params });
                (begin, bytes) = (param + 1, 0);
            }
        }
        Self { batches, wakes: threads > 1 && total >= WAKING }
    }

    /// The parameters that several tasks share, in order, as often as they are cut.
    pub(crate) fn inside(&self) -> impl Iterator<Item = usize> {
        let cuts = self.batches.iter().flat_map(|batch| &batch.cuts);
        cuts.filter(|cut| cut.element > 0).map(|cut| cut.param)
    }

    /// For each parameter whether one task has all of it, and its memory stays in that core's cache.
    pub(crate) fn at_once(&self, layout: &Layout) -> Vec<bool> {
        let mut at_once: Vec<bool> = (0..layout.lens.len()).map(|param| layout.bytes(param) <= AT_ONCE).collect();
        self.inside().for_each(|param| at_once[param] = false);
        at_once
    }
}

/// The work of an element.
fn unit(form: &Form) -> usize {
    if form.plain && !form.factored { 1 } else { OTHERWISE }
}

/// The work of a tensor.
fn work(form: &Form) -> usize {
    form.len * unit(form) + TENSOR
}

/// Where these parameters are cut.
fn cuts(forms: &[Form], params: &Range<usize>, threads: usize) -> Vec<Cut> {
    let total: usize = forms[params.clone()].iter().map(work).sum();
    let mut cuts = Vec::new();
    if threads < 2 || total < LEAST {
        return cuts;
    }
    let tasks = threads * (total / (threads * TASK)).clamp(1, TASKS_PER_THREAD);
    let (mut task, mut before) = (1, 0);
    for param in params.clone() {
        let form = &forms[param];
        let end = before + work(form);
        // Where the next task should begin: the work of those before it.
        while task < tasks && part(total, task, tasks) < end {
            let element = (part(total, task, tasks) - before) / unit(form);
            let step = if form.whole { form.len.max(1) } else { SLICE };
            let element = (element + step / 2) / step * step;
            let cut = if element < form.len { Cut { param, element } } else { Cut { param: param + 1, element: 0 } };
            let first = Cut { param: params.start, element: 0 };
            if cut.param < params.end && cut != *cuts.last().unwrap_or(&first) {
                cuts.push(cut);
            }
            task += 1;
        }
        before = end;
    }
    cuts
}

/// `total · nth / parts`, rounded down.
fn part(total: usize, nth: usize, parts: usize) -> usize {
    total / parts * nth + total % parts * nth / parts
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
    /// All of these parameters.
    pub(crate) fn new(
        range: &Range<usize>,
        layout: &Layout,
        params: &'v mut [ParamMut<'d>],
        arenas: &'v mut [Arena; KINDS],
    ) -> Self {
        let (count, arrays) = (params.len(), arenas.each_mut().map(Arena::all_mut));
        let mut pieces = Self { begin: Cut { param: 0, element: 0 }, head: None, rest: params, tail: None, arrays };
        if range.end < count {
            pieces = pieces.split_at(Cut { param: range.end, element: 0 }, layout).0;
        }
        if range.start > 0 {
            pieces = pieces.split_at(Cut { param: range.start, element: 0 }, layout).1;
        }
        pieces
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
        let bytes = |elements: usize| elements << layout.shifts[cut.param];
        let left = |head, rest, tail| Self { begin, head, rest, tail, arrays: left_arrays };
        let right = |head, rest, tail| Self { begin: cut, head, rest, tail, arrays: right_arrays };

        let first_whole = begin.param + usize::from(head.is_some());
        match (head, tail) {
            // Inside the first, begun parameter.
            (Some(head), tail) if cut.param == begin.param => {
                let (a, b) = head.split_at_mut(bytes(cut.element - begin.element));
                (left(Some(a), &mut [], None), right(Some(b), rest, tail))
            }
            // Inside the last, unfinished parameter.
            (head, Some(tail)) if cut.param == first_whole + rest.len() => {
                let (a, b) = tail.split_at_mut(bytes(cut.element));
                (left(head, rest, Some(a)), right(Some(b), &mut [], None))
            }
            // Inside a whole parameter.
            (head, tail) => {
                let (before, from) = rest.split_at_mut(cut.param - first_whole);
                let Some((param, after)) = from.split_first_mut() else {
                    unreachable!("a cut lies inside a parameter")
                };
                let (a, b) = host_mut(param).split_at_mut(bytes(cut.element));
                (left(head, before, Some(a)), right(Some(b), after, tail))
            }
        }
    }

    /// Calls `work` for each piece.
    fn each(self, layout: &Layout, mut work: impl FnMut(&mut Piece<'v>)) {
        let Self { begin, head, rest, tail, arrays } = self;
        let first_whole = begin.param + usize::from(head.is_some());
        let after = first_whole + rest.len();
        // The arrays that there are, few of all kinds: what is left of them, and where that begins.
        let (mut there, mut count) = (array::from_fn::<_, KINDS, _>(|_| (0, 0, Default::default())), 0);
        for (kind, array) in arrays.into_iter().enumerate().filter(|(_, array)| !array.is_empty()) {
            there[count] = (kind, layout.at(kind, begin.param, begin.element), array);
            count += 1;
        }
        let there: &mut [(usize, usize, &mut [u8])] = &mut there[..count];
        // One for all: a tensor may be small, and the arrays that there are not are many.
        let mut piece = Piece { param: 0, element: 0, len: 0, p: &mut [], arrays: Default::default() };
        let mut next = |param: usize, element: usize, p: &'v mut [u8]| {
            if p.is_empty() {
                return;
            }
            let len = p.len() >> layout.shifts[param];
            for (kind, at, left) in &mut *there {
                let [start, end] = [element, element + len].map(|element| layout.at(*kind, param, element));
                let (array, behind) = mem::take(left).split_at_mut(end - *at);
                piece.arrays[*kind] = &mut array[start - *at..];
                (*at, *left) = (end, behind);
            }
            (piece.param, piece.element, piece.len, piece.p) = (param, element, len, p);
            work(&mut piece);
        };
        if let Some(head) = head {
            next(begin.param, begin.element, head);
        }
        for (param, memory) in (first_whole..).zip(rest) {
            next(param, 0, host_mut(memory));
        }
        if let Some(tail) = tail {
            next(after, 0, tail);
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

/// In which order a thread takes its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Forward,
    /// After another walk: what that one saw last is still in the caches.
    Backward,
}

/// Works on all pieces. Not in the caller, which calls itself and other tasks: the workspace is large for a stack.
#[inline(never)]
fn task<T: Default, W: Fn(&mut Piece<'_>, &mut T)>(layout: &Layout, pieces: Pieces<'_, '_>, work: &W) {
    let mut space = T::default();
    pieces.each(layout, |piece| work(piece, &mut space));
}

/// Works on all pieces, in parallel if there are cuts. Each task has a workspace `T` of its own. So many tasks in a row as `own`
/// says are taken in this order; more are shared alike in either, so that each thread finds its own again.
pub(crate) fn run<T: Default, W>(
    cuts: &[Cut],
    layout: &Layout,
    (order, own): (Order, usize),
    pieces: Pieces<'_, '_>,
    work: &W,
) where
    W: Fn(&mut Piece<'_>, &mut T) + Sync,
{
    let Some(&cut) = cuts.get(cuts.len() / 2) else { return task(layout, pieces, work) };
    let (left, right) = pieces.split_at(cut, layout);
    let (before, after) = (&cuts[..cuts.len() / 2], &cuts[cuts.len() / 2 + 1..]);
    let left = || run(before, layout, (order, own), left, work);
    let right = || run(after, layout, (order, own), right, work);
    if order == Order::Backward && cuts.len() < own {
        rayon::join(right, left);
    } else {
        rayon::join(left, right);
    }
}
