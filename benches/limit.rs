//! The limit: the time in which a step's memory can be read and written.
//!
//! ```text
//! written ← written xor (g and mask)       mask = 0, which the compiler does not know
//! ```
//!
//! It reads all that a step reads, writes all that a step writes, and changes nothing, so that it can take turns with the step over
//! the very same buffers. It works on bytes, whatever numbers they are.

use std::hint::black_box;

use multiversion::multiversion;
use rayon::prelude::*;

/// Elements of a stretch, and the least of a task.
const STRETCH: usize = 1 << 14;

/// Elements that are worked on at a time where arrays have elements of different sizes.
const BLOCK: usize = 256;

/// The most arrays that a step writes: parameters, four slots and their scales, the master.
const ARRAYS: usize = 10;

/// A stretch of one parameter's memory.
struct Stretch<'a> {
    g: &'a [u8],
    written: [&'a mut [u8]; ARRAYS],
    arrays: usize,
    len: usize,
}

/// A step's memory, cut into tasks.
pub(crate) struct Traffic<'a> {
    tasks: Vec<Vec<Stretch<'a>>>,
    /// Whether the gradients are read once more before.
    twice: bool,
}

impl<'a> Traffic<'a> {
    /// Of parameters, gradients, and the arrays of each parameter's state.
    pub(crate) fn new(
        lens: &[usize],
        params: Vec<&'a mut [u8]>,
        grads: Vec<&'a [u8]>,
        state: Vec<Vec<&'a mut [u8]>>,
        twice: bool,
    ) -> Self {
        let (mut tasks, mut task, mut filled) = (Vec::new(), Vec::new(), 0);
        for (((&len, p), mut g), state) in lens.iter().zip(params).zip(grads).zip(state) {
            let mut written: Vec<&mut [u8]> = [p].into_iter().chain(state).collect();
            for left in (1..=len.div_ceil(STRETCH)).rev() {
                let (done, before) = (len.div_ceil(STRETCH) - left, len.div_ceil(STRETCH) - left);
                let elements = STRETCH.min(len - done * STRETCH);
                let rest = len - before * STRETCH;
                let mut stretch = Stretch { g: &[], written: Default::default(), arrays: written.len(), len: elements };
                (stretch.g, g) = g.split_at(g.len() * elements / rest);
                for (part, array) in stretch.written.iter_mut().zip(&mut written) {
                    let whole = std::mem::take(array);
                    let cut = whole.len() * elements / rest;
                    (*part, *array) = whole.split_at_mut(cut);
                }
                task.push(stretch);
                filled += elements;
                if filled >= STRETCH {
                    tasks.push(std::mem::take(&mut task));
                    filled = 0;
                }
            }
        }
        if !task.is_empty() {
            tasks.push(task);
        }
        Self { tasks, twice }
    }

    /// The bytes that are read and written.
    pub(crate) fn bytes(&self) -> usize {
        let of = |stretch: &Stretch<'_>| {
            let written: usize = stretch.written.iter().map(|array| array.len()).sum();
            2 * written + if self.twice { 2 * stretch.g.len() } else { stretch.g.len() }
        };
        self.tasks.iter().flatten().map(of).sum()
    }

    /// Moves them, with all threads of the pool or by the calling one.
    pub(crate) fn run(&mut self, parallel: bool) {
        let mask = black_box(0);
        let read = |task: &Vec<Stretch<'_>>| {
            let seen = task.iter().fold(0, |seen, stretch| seen | seen_of(stretch.g, mask));
            black_box(seen);
        };
        let update = |task: &mut Vec<Stretch<'_>>| task.iter_mut().for_each(|stretch| stretch.run(mask));
        if self.twice && parallel {
            self.tasks.par_iter().for_each(read);
        } else if self.twice {
            self.tasks.iter().for_each(read);
        }
        if parallel {
            self.tasks.par_iter_mut().for_each(update);
        } else {
            self.tasks.iter_mut().for_each(update);
        }
    }
}

impl Stretch<'_> {
    fn run(&mut self, mask: u8) {
        let Self { g, written, arrays, len } = self;
        let written = &mut written[..*arrays];
        let alike = written.iter().all(|array| array.len() == g.len());
        match written {
            [p] if alike => one(mask, g, p),
            [p, a] if alike => two(mask, g, p, a),
            [p, a, b] if alike => three(mask, g, p, a, b),
            [p, a, b, c] if alike => four(mask, g, p, a, b, c),
            [p, a, b, c, d] if alike => five(mask, g, p, a, b, c, d),
            written => {
                let blocks = len.div_ceil(BLOCK);
                for block in 0..blocks {
                    let cut = |bytes: usize| bytes * block / blocks..bytes * (block + 1) / blocks;
                    let seen = seen_of(&g[cut(g.len())], mask);
                    for array in &mut *written {
                        let range = cut(array.len());
                        all(seen, &mut array[range]);
                    }
                }
            }
        }
    }
}

/// One loop over arrays of one length.
macro_rules! together {
    ($name:ident: $($array:ident),*) => {
        #[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
        #[allow(clippy::too_many_arguments, reason = "separate arguments do not overlap, which the compiler then knows")]
        fn $name(mask: u8, g: &[u8], $($array: &mut [u8]),*) {
            let n = g.len();
            $(let $array = &mut $array[..n];)*
            for i in 0..n {
                $($array[i] ^= g[i] & mask;)*
            }
        }
    };
}
together!(one: p);
together!(two: p, a);
together!(three: p, a, b);
together!(four: p, a, b, c);
together!(five: p, a, b, c, d);

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn seen_of(g: &[u8], mask: u8) -> u8 {
    g.iter().fold(0, |seen, &g| seen | g & mask)
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn all(seen: u8, array: &mut [u8]) {
    for x in array {
        *x ^= seen;
    }
}
