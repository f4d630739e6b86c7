//! Row-sparse gradients: from the lists of one step to its dispatches. Lists differ from step to step, so nothing is kept but
//! the memory.

use std::collections::HashMap;

use optim_core::backend::RowList;
use optim_core::{Error, Result};
use optim_shaders::{Access, Format, WORKGROUP, Work};

use crate::GpuBuffer;
use crate::buffer::USAGE;
use crate::device::Context;
use crate::guard::Elements;
use crate::layout::{ALIGNMENT, Piece, bytes, grid};
use crate::pipeline::Stage;
use crate::schedule::{Dispatch, Extent, GRADIENT, Pair, Parts, Place, Runs};

/// One tensor's row-sparse gradient.
#[derive(Debug)]
pub(crate) struct RowGrad<'a> {
    pub(crate) tensor: usize,
    pub(crate) list: &'a RowList,
    /// The elements of a row; 0 if no row is listed.
    pub(crate) width: usize,
    /// Where the values begin, in bytes; on the device, if need be in memory of ours.
    pub(crate) values: (wgpu::Buffer, u64),
    pub(crate) format: Format,
    /// Whether rows that are not listed are updated too.
    pub(crate) all: bool,
    /// Where the rows' sums go, if a row is listed more than once or a guard measures them.
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

impl RowGrad<'_> {
    /// The elements of the rows' sums.
    pub(crate) const fn len(&self) -> usize {
        self.list.rows.len() * self.width
    }

    const fn values(&self) -> Place<'_> {
        Place { buffer: &self.values.0, offset: self.values.1, format: self.format }
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
    /// The sums of the listed rows, if there is need of them.
    fn sum(&self, parts: &Parts<'_>) -> Result<Option<Dispatch>> {
        let Some(sums) = &self.sums else { return Ok(None) };
        let RowList { rows, starts, positions, .. } = self.list;
        // Both fit: the values fit a binding.
        let head = [self.width, rows.len()].map(|word| u32::try_from(word).unwrap_or(u32::MAX));
        let words = [&head, &starts[..], positions].concat();
        check_len(parts.context, words.len())?;
        let table = parts.context.create_buffer("rows", bytes(words.len()), USAGE, true)?;
        parts.context.write_mapped(&table, |view| view.copy_from_slice(bytemuck::cast_slice(&words)))?;

        let kernel = parts.context.kernel(parts.accumulate, Stage::Rows(self.format))?;
        let values = (&self.values.0, self.values.1, self.values().bytes(positions.len() * self.width));
        let bindings = [(&table, 0, table.size()), values, (sums, 0, bytes(rows.len() * self.width))];
        let bindings = parts.context.bind(&kernel.bindings, &bindings).map_err(|error| {
            let name = parts.tensors[self.tensor].parameter.name();
            parts.context.refuse_strangers(GRADIENT, name, values.0).err().unwrap_or(error)
        })?;
        let grid = grid(rows.len() * self.width.div_ceil(WORKGROUP as usize));
        Ok(Some(Dispatch { pipeline: kernel.pipeline, bindings, grid, page: None }))
    }

    /// A piece, in order: the listed rows, and what lies between them, which has no gradient.
    fn extents(&self, piece: Piece) -> Vec<Extent> {
        let range = piece.range();
        let grads = self.width * if self.sums.is_some() { self.list.rows.len() } else { self.list.positions.len() };
        let mut extents: Vec<Extent> = Vec::new();
        let mut add = |start: usize, end: usize, grad: Option<usize>| match extents.last_mut() {
            _ if start == end => {}
            // Neighbours, as rows and as gradients.
            Some(last)
                if last.element + last.len == start
                    && last.grad.is_some()
                    && last.grad.map(|grad| grad + last.len) == grad =>
            {
                last.len += end - start;
            }
            _ => {
                let (tensor, state) = (self.tensor, piece.offset + start - range.start);
                extents.push(Extent { tensor, element: start, len: end - start, state, grad, grads });
            }
        };
        let first = self.list.rows.partition_point(|&row| (row as usize + 1) * self.width <= range.start);
        let mut done = range.start;
        for (nth, &row) in self.list.rows.iter().enumerate().skip(first) {
            let row = row as usize * self.width;
            if row >= range.end {
                break;
            }
            let (start, end) = (row.max(range.start), (row + self.width).min(range.end));
            add(done, start, None);
            let nth = if self.sums.is_some() { nth } else { self.list.positions[nth] as usize };
            add(start, end, Some(nth * self.width + start - row));
            done = end;
        }
        add(done, range.end, None);
        extents
    }
}

/// The sums of rows that are listed more than once.
pub(crate) fn sums(parts: &Parts<'_>, grads: &[RowGrad<'_>]) -> Result<Vec<Dispatch>> {
    grads.iter().filter_map(|grad| grad.sum(parts).transpose()).collect()
}

/// What a guard measures of row-sparse gradients: the sums of all listed rows.
pub(crate) fn measures(parts: &Parts<'_>, grads: &[RowGrad<'_>]) -> Result<Vec<Dispatch>> {
    let Some((measures, control)) = parts.guard else { return Ok(Vec::new()) };
    let mut dispatches = Vec::new();
    for grad in grads {
        let (Some(sums), len) = (&grad.sums, grad.len()) else { continue };
        let elements = Elements { tensor: grad.tensor, start: 0, len, whole: len, window: len, at: 0 };
        let slices: Vec<_> = measures.slices(elements).collect();
        let tables = parts.tables("slices", &[&slices])?;
        let table = (tables[0].binding(), slices.len());
        let sums = (grad.tensor, (sums, 0, sums.size()));
        dispatches.push(measures.measure(parts, control, (Format::F32, Access::Whole), table, sums)?);
    }
    Ok(dispatches)
}

/// The updates by row-sparse gradients.
pub(crate) fn updates<'a>(
    parts: &Parts<'a>,
    grads: &'a [RowGrad<'_>],
    pairs: &[Pair<&'a GpuBuffer>],
    record_of: &[u32],
) -> Result<Vec<Dispatch>> {
    let (mut runs, mut averages) = (Runs::default(), Runs::default());
    for grad in grads {
        let (nth, member) = parts.kind_of[grad.tensor];
        let kind = &parts.kinds[nth];
        let values = match &grad.sums {
            Some(sums) => Place { buffer: sums, offset: 0, format: Format::F32 },
            None => grad.values(),
        };
        for &piece in kind.layout.pieces_of(member) {
            // A row's end is another row's beginning, so lanes must not reach beyond it.
            let whole = grad.width.is_multiple_of(4) && piece.len.is_multiple_of(4);
            let access = if whole { Access::Whole } else { Access::Each };
            let param = pairs[grad.tensor].param.place(parts, kind, piece);
            for (nth_extent, extent) in grad.extents(piece).into_iter().enumerate() {
                // Neighbours may share a word, which two workgroups must not write.
                let second = !whole && kind.program.storage.shares_words() && nth_extent % 2 == 1;
                let skipped = (extent.element - piece.start) as u64;
                let param = Place { offset: param.offset + skipped * param.size(), ..param };
                let group = (nth, piece.page, access, second);
                if grad.all || extent.grad.is_some() {
                    runs.add(parts, group, [param, values], extent);
                } else if kind.program.storage.ema {
                    averages.add(parts, group, [param, values], extent);
                }
            }
        }
    }
    let update = |grad, access| Stage::Update(grad, access, false);
    let mut dispatches = runs.dispatches(parts, None, update, record_of)?;
    let average = |grad, access| Stage::Work(Work::Average, grad, access);
    dispatches.extend(averages.dispatches(parts, None, average, record_of)?);
    Ok(dispatches)
}
