//! What a rule needs whose second moments are kept by row and by column (`Passes::Factored`): a few dispatches for each tensor
//! instead of one for many.

use bytemuck::{Pod, Zeroable};
use optim_core::backend::Plan;
use optim_core::rule::SlotShape;
use optim_core::{Error, Result};

use crate::GpuBuffer;
use crate::buffer::USAGE;
use crate::device::Context;
use crate::layout::{Layout, SLICE, bytes, grid};
use crate::pipeline::{Stage, Walk};
use crate::schedule::{Binding, Dispatch, Pair, Parts};

/// Lanes of a workgroup; `LANES` in `factored.wgsl`.
const LANES: usize = 256;

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
    pad: u32,
}

/// The shapes, and memory between the walks.
#[derive(Debug)]
pub(crate) struct Factored {
    /// The record is filled in for each schedule.
    dims: Vec<Dims>,
    /// For each slot of the rule which of the kernel's bindings it is.
    places: Vec<usize>,
    roots: Memory,
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
        Ok(Self { pages: context.pages(&layout, label)?, layout })
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
    pub(crate) fn new(context: &Context, plan: &Plan<'_>, layout: &Layout) -> Result<Self> {
        let slots = plan.rule.spec().slots();
        let momentum = u32::from(slots.iter().any(|slot| slot.shape == SlotShape::Same));
        let mut dims = Vec::with_capacity(plan.parameters.len());
        for (tensor, parameter) in plan.parameters.iter().enumerate() {
            if layout.pieces_of(tensor).len() > 1 {
                let what =
                    format!("{:?} on {:?}, which one binding cannot hold", plan.rule.spec().name(), parameter.name());
                return Err(Error::Unsupported { what, backend: "gpu".into() });
            }
            let (stack, rows, columns) = match *parameter.shape() {
                [ref stack @ .., rows, columns] => (stack.iter().product(), rows, columns),
                _ => (0, 0, 0),
            };
            let words = [rows, columns, stack, parameter.len(), parameter.len().div_ceil(SLICE)];
            let [rows, columns, stack, len, slices] = words.map(|word| u32::try_from(word).unwrap_or(u32::MAX));
            dims.push(Dims { rows, columns, stack, len, slices, record: 0, momentum, pad: 0 });
        }
        let places = slots.iter().map(|slot| match slot.shape {
            SlotShape::Rows => 0,
            SlotShape::Columns | SlotShape::SameIfVector => 1,
            SlotShape::Same => 2,
        });
        Ok(Self {
            places: places.collect(),
            roots: Memory::new(context, "roots", dims.iter().map(|dims| (dims.rows * dims.stack) as usize))?,
            sums: Memory::new(context, "sums", dims.iter().map(|dims| 2 * dims.slices as usize))?,
            nothing: context.create_buffer("nothing", 4 * 256, USAGE, false)?,
            dims,
        })
    }

    /// The dispatches of a step: all walks of each tensor.
    pub(crate) fn dispatches(
        &self,
        parts: &Parts<'_>,
        pairs: &[Pair<&GpuBuffer>],
        record_of: &[u32],
    ) -> Result<Vec<Dispatch>> {
        let updated: Vec<usize> = (0..pairs.len()).filter(|&tensor| !pairs[tensor].is_absent()).collect();
        let dims: Vec<_> =
            updated.iter().map(|&tensor| [Dims { record: record_of[tensor], ..self.dims[tensor] }]).collect();
        let lists: Vec<_> = dims.iter().map(|dims| &dims[..]).collect();
        let tables = parts.tables_for(wgpu::BufferUsages::UNIFORM, "dims", &lists)?;

        let mut dispatches = Vec::new();
        for ((&tensor, table), [dims]) in updated.iter().zip(&tables).zip(&dims) {
            let [piece] = *parts.layout.pieces_of(tensor) else { continue };
            let size = bytes(piece.len);
            let [params, grads] = [(&pairs[tensor].param, parts.staged[0]), (&pairs[tensor].grad, parts.staged[1])]
                .map(|(side, staged)| side.place(staged, piece));
            let mut moments = [0, 1, 2].map(|place| (&self.nothing, 256 * place, 256));
            for (slot, &place) in self.places.iter().enumerate() {
                moments[place] = array(&parts.slot_layouts[slot], &parts.slots[slot], tensor, moments[place]);
            }
            let nothing = (&self.nothing, 3 * 256, 256);
            let bindings = [
                parts.records(),
                table.binding(),
                (params.0, params.1, size),
                (grads.0, grads.1, size),
                moments[0],
                moments[1],
                moments[2],
                array(&self.roots.layout, &self.roots.pages, tensor, nothing),
                array(&self.sums.layout, &self.sums.pages, tensor, nothing),
            ];
            for (walk, groups) in walks(dims, parts.program.moments.per_word()) {
                let kernel = parts.context.kernel(parts.program, Stage::Factored(walk))?;
                let bindings = parts.context.bind(&kernel.bindings, &bindings);
                let bindings = bindings.map_err(|error| parts.find_stranger(tensor, pairs).unwrap_or(error))?;
                dispatches.push(Dispatch {
                    pipeline: kernel.pipeline,
                    bindings,
                    grid: grid(groups),
                    records: true,
                    page: None,
                });
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
