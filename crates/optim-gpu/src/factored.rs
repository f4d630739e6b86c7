//! What a rule needs whose second moments are kept by row and by column (`Passes::Factored`): a few dispatches for each tensor
//! instead of one for many.

use bytemuck::{Pod, Zeroable};
use optim_core::backend::Tensor;
use optim_core::rule::{SlotShape, UpdateRule};
use optim_core::{DType, Error, Result};

use crate::buffer::USAGE;
use crate::device::Context;
use crate::kind::Kind;
use crate::layout::{Layout, SLICE, bytes, grid};
use crate::pipeline::{Stage, Walk};
use crate::schedule::{Binding, Dispatch, Parts, Place};

/// Lanes of a workgroup.
const LANES: usize = optim_shaders::LANES as usize;

/// One tensor, as `factored.wgsl` declares it: a stack of matrices, or a vector, which has no columns.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Dims {
    rows: u32,
    columns: u32,
    stack: u32,
    len: u32,
    slices: u32,
    record: u32,
    momentum: u32,
    shaped: u32,
}

/// The shapes, and memory between the walks.
#[derive(Debug)]
pub(crate) struct Factored {
    /// The record is filled in for each schedule.
    dims: Vec<Dims>,
    /// For each slot of the rule which of the kernel's bindings it is.
    places: Vec<usize>,
    /// The slots, and the bytes of their elements.
    slots: Vec<(Memory, usize)>,
    row_factors: Memory,
    sums: Memory,
    /// What is bound where a tensor has nothing: 256 bytes for each of the kernel's arrays.
    nothing: wgpu::Buffer,
}

/// An array for each tensor.
#[derive(Debug)]
struct Memory {
    layout: Layout,
    pages: Vec<wgpu::Buffer>,
}

impl Memory {
    fn new(context: &Context, label: &str, lens: impl IntoIterator<Item = usize>) -> Result<Self> {
        let layout = Layout::new(lens, context.window);
        Ok(Self { pages: context.pages(layout.pages.iter().map(|&len| bytes(len)), label)?, layout })
    }
}

/// An array of a tensor that lies in one piece, or `nothing`.
fn array<'a>(layout: &Layout, pages: &'a [wgpu::Buffer], tensor: usize, nothing: Binding<'a>) -> Binding<'a> {
    match layout.pieces_of(tensor) {
        [piece] => (&pages[piece.page], bytes(piece.offset), bytes(piece.len)),
        _ => nothing,
    }
}

impl Factored {
    pub(crate) fn new(context: &Context, rule: &dyn UpdateRule, tensors: &[&Tensor], layout: &Layout) -> Result<Self> {
        let slots = rule.slots();
        let momentum = u32::from(slots.iter().any(|slot| slot.shape == SlotShape::Same));
        let mut dims = Vec::with_capacity(tensors.len());
        for (member, tensor) in tensors.iter().enumerate() {
            let parameter = &tensor.parameter;
            if layout.pieces_of(member).len() > 1 {
                let what = format!("{:?} on {:?}, which one binding cannot hold", rule.name(), parameter.name());
                return Err(Error::Unsupported { what, backend: "gpu".into() });
            }
            let (stack, rows, columns) = match *parameter.shape() {
                [ref stack @ .., rows, columns] => (stack.iter().product(), rows, columns),
                _ => (0, 0, 0),
            };
            let words = [rows, columns, stack, parameter.len(), parameter.len().div_ceil(SLICE)];
            let [rows, columns, stack, len, slices] = words.map(|word| u32::try_from(word).unwrap_or(u32::MAX));
            dims.push(Dims { rows, columns, stack, len, slices, record: 0, momentum, shaped: 0 });
        }
        let places = slots.iter().map(|slot| match slot.shape {
            SlotShape::Rows => 0,
            SlotShape::Columns | SlotShape::SameIfVector => 1,
            SlotShape::Same => 2,
        });
        // They begin as zeros.
        let memories = slots.iter().map(|slot| {
            let size = if slot.dtype == DType::F16 { 2 } else { 4 };
            let lens = tensors.iter().map(|tensor| (slot.shape.len(tensor.parameter.shape()) * size).div_ceil(4));
            Ok((Memory::new(context, slot.name, lens)?, size))
        });
        let roots = dims.iter().map(|dims| dims.rows as usize * dims.stack as usize);
        Ok(Self {
            places: places.collect(),
            slots: memories.collect::<Result<_>>()?,
            row_factors: Memory::new(context, "roots", roots)?,
            sums: Memory::new(context, "sums", dims.iter().map(|dims| 2 * dims.slices as usize))?,
            nothing: context.create_buffer("nothing", 4 * 256, USAGE, false)?,
            dims,
        })
    }

    /// Where bytes of a slot lie, from an element on: the buffer, the first byte, how many.
    pub(crate) fn place(
        &self,
        member: usize,
        slot: usize,
        first: usize,
        len: usize,
    ) -> Option<(&wgpu::Buffer, usize, usize)> {
        let (Memory { layout, pages }, size) = self.slots.get(slot)?;
        let piece = layout.pieces_of(member).first()?;
        Some((&pages[piece.page], 4 * piece.offset + first * size, len))
    }

    /// The dispatches of a step: all walks of each of these members, with their parameters, gradients, records, and whether the
    /// gradients have been shaped.
    pub(crate) fn dispatches(
        &self,
        parts: &Parts<'_>,
        kind: &Kind,
        updated: &[(usize, [Place<'_>; 2], u32, bool)],
    ) -> Result<Vec<Dispatch>> {
        let dims: Vec<_> = updated
            .iter()
            .map(|&(member, _, record, shaped)| [Dims { record, shaped: shaped.into(), ..self.dims[member] }])
            .collect();
        let lists: Vec<_> = dims.iter().map(|dims| &dims[..]).collect();
        let tables = parts.tables_for(wgpu::BufferUsages::UNIFORM, "dims", &lists)?;

        let mut dispatches = Vec::new();
        for ((&(member, [params, grads], ..), table), [dims]) in updated.iter().zip(&tables).zip(&dims) {
            let [piece] = *kind.layout.pieces_of(member) else { continue };
            let size = bytes(piece.len);
            let mut moments = [0, 1, 2].map(|place| (&self.nothing, 256 * place, 256));
            for ((memory, _), &place) in self.slots.iter().zip(&self.places) {
                moments[place] = array(&memory.layout, &memory.pages, member, moments[place]);
            }
            let nothing = (&self.nothing, 3 * 256, 256);
            let bindings = [
                parts.records(),
                table.binding(),
                (params.buffer, params.offset, size),
                (grads.buffer, grads.offset, size),
                moments[0],
                moments[1],
                moments[2],
                array(&self.row_factors.layout, &self.row_factors.pages, member, nothing),
                array(&self.sums.layout, &self.sums.pages, member, nothing),
            ];
            for (walk, groups) in walks(dims, kind.program.moments.per_word()) {
                let kernel = parts.context.kernel(&kind.program, Stage::Factored(walk))?;
                let bindings = parts.bind(&kernel, kind.members[member], &bindings)?;
                let (pipeline, grid) = (kernel.pipeline, grid(groups));
                dispatches.push(Dispatch { pipeline, bindings, grid, page: None });
            }
        }
        Ok(dispatches)
    }
}

/// The walks of a tensor, with their workgroups. So many second moments share a word, and one lane or workgroup writes it.
fn walks(dims: &Dims, per_word: usize) -> Vec<(Walk, usize)> {
    let [rows, columns] = [dims.rows, dims.columns].map(|extent| (extent * dims.stack) as usize);
    let elements = (dims.len as usize).div_ceil(LANES);
    let mut walks = if dims.columns == 0 {
        vec![(Walk::Vectors, (dims.len as usize).div_ceil(LANES * per_word))]
    } else {
        vec![
            (Walk::Rows, rows.div_ceil(per_word)),
            (Walk::Columns, columns.div_ceil(LANES * per_word)),
            (Walk::Means, dims.stack as usize),
        ]
    };
    walks.extend([(Walk::Norms, dims.slices as usize), (Walk::Totals, 1), (Walk::Updates, elements)]);
    walks
}
