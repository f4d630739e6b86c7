//! Row-sparse gradients: from the lists of one step to its dispatches. Lists differ from step to step, so nothing is kept but
//! the memory.

use std::collections::HashMap;

use optim_core::backend::RowList;
use optim_core::rule::Sparse;
use optim_core::{Error, Result};
use optim_shaders::{WORKGROUP, Width};

use crate::GpuBuffer;
use crate::buffer::USAGE;
use crate::device::Context;
use crate::layout::{ALIGNMENT, Piece, Stretch, Tile, bytes, grid};
use crate::pipeline::Stage;
use crate::schedule::{Dispatch, Pair, Parts, Run};

/// One tensor's row-sparse gradient.
#[derive(Debug)]
pub(crate) struct RowGrad<'a> {
    pub(crate) tensor: usize,
    pub(crate) list: &'a RowList,
    /// The elements of a row; 0 if no row is listed.
    pub(crate) width: usize,
    /// Where the values begin; on the device, if need be in memory of ours.
    pub(crate) values: (wgpu::Buffer, u64),
    /// Where the rows' sums go, if a row is listed more than once.
    pub(crate) sums: Option<wgpu::Buffer>,
}

/// Memory for the gradients of one optimizer that is kept between steps: for each tensor the host's values, and sums.
#[derive(Debug, Default)]
pub(crate) struct Scratch(HashMap<(usize, bool), wgpu::Buffer>);

impl Scratch {
    /// Room for a tensor's values.
    pub(crate) fn values(&mut self, context: &Context, tensor: usize, len: usize) -> Result<wgpu::Buffer> {
        self.room(context, (tensor, false), len)
    }

    /// Room for a tensor's sums.
    pub(crate) fn sums(&mut self, context: &Context, tensor: usize, len: usize) -> Result<wgpu::Buffer> {
        self.room(context, (tensor, true), len)
    }

    fn room(&mut self, context: &Context, key: (usize, bool), len: usize) -> Result<wgpu::Buffer> {
        let size = bytes(len.max(1).next_multiple_of(ALIGNMENT));
        match self.0.get(&key) {
            Some(buffer) if buffer.size() >= size => Ok(buffer.clone()),
            _ => {
                let buffer = context.create_buffer("rows", size, USAGE, false)?;
                self.0.insert(key, buffer.clone());
                Ok(buffer)
            }
        }
    }
}

/// An error if the values are more than one binding can hold: they are not walked in windows.
pub(crate) fn check_len(context: &Context, len: usize) -> Result<()> {
    let (expected, got) = (bytes(len), context.binding);
    if expected > got {
        return Err(Error::DeviceLimit { what: "max_storage_buffer_binding_size", expected, got });
    }
    Ok(())
}

impl RowGrad<'_> {
    /// The sums of the listed rows, if any is listed more than once.
    fn sum(&self, parts: &Parts<'_>, pairs: &[Pair<&GpuBuffer>]) -> Result<Option<Dispatch>> {
        let Some(sums) = &self.sums else { return Ok(None) };
        let RowList { rows, starts, positions, .. } = self.list;
        // Both fit: the values fit a binding.
        let head = [self.width, rows.len()].map(|word| u32::try_from(word).unwrap_or(u32::MAX));
        let words = [&head, &starts[..], positions].concat();
        check_len(parts.context, words.len())?;
        let table = parts.context.create_buffer("rows", bytes(words.len()), USAGE, true)?;
        parts.context.write_mapped(&table, |view| view.copy_from_slice(bytemuck::cast_slice(&words)))?;

        let kernel = parts.context.kernel(parts.program, Stage::Rows)?;
        let values = (&self.values.0, self.values.1, bytes(positions.len() * self.width));
        let bindings = [(&table, 0, table.size()), values, (sums, 0, bytes(rows.len() * self.width))];
        let bindings = parts.context.bind(&kernel.bindings, &bindings);
        let bindings = bindings.map_err(|error| parts.find_stranger(self.tensor, pairs).unwrap_or(error))?;
        let grid = grid(rows.len() * self.width.div_ceil(WORKGROUP as usize));
        Ok(Some(Dispatch { pipeline: kernel.pipeline, bindings, grid, records: false, page: None }))
    }

    /// The updates of a piece.
    fn runs<'a>(
        &'a self,
        parts: &Parts<'a>,
        pair: &Pair<&'a GpuBuffer>,
        piece: Piece,
        record: u32,
        all: bool,
    ) -> Vec<Run<'a>> {
        // A row's end is another row's beginning, so lanes must not reach beyond it.
        let wide = self.width.is_multiple_of(4) && piece.len.is_multiple_of(4);
        let width = if wide { Width::Vec4 } else { Width::Scalar };
        let (grads, listed) = match &self.sums {
            Some(sums) => ((sums, 0), self.list.rows.len()),
            None => ((&self.values.0, self.values.1), self.list.positions.len()),
        };
        let sides = [pair.param.place(parts.staged[0], piece), grads];
        let stretches = self.stretches(piece, all);
        let tiles: Vec<_> = stretches.into_iter().flat_map(|stretch| Tile::cover(stretch, record, width)).collect();
        // Narrow rows have more tiles than a table holds.
        let most = 4 * parts.table() / size_of::<Tile>();
        let (elements, grads) = (piece.len, (listed * self.width).max(4));
        let run = |tiles: &[Tile]| Run { elements, grads, tiles: tiles.to_vec(), ..Run::new(width, piece, sides) };
        tiles.chunks(most).map(run).collect()
    }

    /// What is updated of a piece, in order: the listed rows, and for all rows what lies between them.
    fn stretches(&self, piece: Piece, all: bool) -> Vec<Stretch> {
        let range = piece.range();
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut add = |start: usize, end: usize, grad: Option<usize>| match stretches.last_mut() {
            _ if start == end => {}
            // Neighbours, as rows and as gradients.
            Some(last)
                if last.element + last.len == start
                    && last.grad.is_some()
                    && last.grad.map(|grad| grad + last.len) == grad =>
            {
                last.len += end - start;
            }
            _ => stretches.push(Stretch { first: start - range.start, len: end - start, element: start, grad }),
        };
        let first = self.list.rows.partition_point(|&row| (row as usize + 1) * self.width <= range.start);
        let mut done = range.start;
        for (nth, &row) in self.list.rows.iter().enumerate().skip(first) {
            let row = row as usize * self.width;
            if row >= range.end {
                break;
            }
            let (start, end) = (row.max(range.start), (row + self.width).min(range.end));
            if all {
                add(done, start, None);
            }
            let nth = if self.sums.is_some() { nth } else { self.list.positions[nth] as usize };
            add(start, end, Some(nth * self.width + start - row));
            done = end;
        }
        if all {
            add(done, range.end, None);
        }
        stretches
    }
}

/// The dispatches of the row-sparse gradients of a step.
pub(crate) fn dispatches(
    parts: &Parts<'_>,
    grads: &[RowGrad<'_>],
    pairs: &[Pair<&GpuBuffer>],
    record_of: &[u32],
    sparse: Sparse,
) -> Result<Vec<Dispatch>> {
    let mut dispatches = Vec::new();
    let mut runs = Vec::new();
    for grad in grads {
        dispatches.extend(grad.sum(parts, pairs)?);
        for &piece in parts.layout.pieces_of(grad.tensor) {
            let record = record_of[grad.tensor];
            runs.extend(grad.runs(parts, &pairs[grad.tensor], piece, record, sparse == Sparse::AllRows));
        }
    }
    dispatches.extend(Run::updates(&runs, parts, pairs)?);
    Ok(dispatches)
}
