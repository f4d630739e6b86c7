//! The memory of one slot, for all parameters.

use bytemuck::{Pod, Zeroable};
use optim_core::{Error, Result};

/// One cache line, to which every tensor is aligned.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// `f32` in a cache line.
const LINE: usize = 16;

/// Where the tensors of an arena start, in elements; and, as the last entry, where it ends.
pub(crate) fn starts(lens: &[usize]) -> Vec<usize> {
    let mut end = 0;
    let mut starts = vec![0];
    for len in lens {
        end += len.next_multiple_of(LINE);
        starts.push(end);
    }
    starts
}

/// One array of state for every parameter, in one allocation, each tensor at the start of a cache line.
#[derive(Debug)]
pub(crate) struct Arena {
    lines: Vec<Line>,
}

impl Arena {
    /// Room for `len` elements, as [`starts`] ends with, filled with `init`. Zeroed memory is not touched here but at the
    /// first step, by the threads that work on it.
    pub(crate) fn new(len: usize, init: f32) -> Result<Self> {
        let mut lines = bytemuck::allocation::try_zeroed_vec::<Line>(len / LINE)
            .map_err(|()| Error::OutOfMemory { detail: format!("{} bytes of state", len * size_of::<f32>()) })?;
        if init.to_bits() != 0 {
            lines.fill(Line([init; LINE]));
        }
        Ok(Self { lines })
    }

    /// All tensors, with the room between them.
    pub(crate) fn all(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }

    /// All tensors, with the room between them.
    pub(crate) fn all_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}
