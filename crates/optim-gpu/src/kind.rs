//! Tensors of one kind: those that the same kernels update. Their state lies in pages, each with all arrays of its tensors.

use std::collections::HashMap;
use std::sync::Arc;

use optim_core::backend::{Part, Plan, SlotFormat, Tensor};
use optim_core::format::{BLOCK, Master};
use optim_core::rule::Slot;
use optim_core::{DType, Error, Result, format};
use optim_shaders::{Format, Storage};

use crate::buffer::USAGE;
use crate::device::Context;
use crate::factored::Factored;
use crate::layout::{ALIGNMENT, Layout, Piece, SLICE, bytes, word};
use crate::offload::{self, Offload};
use crate::pipeline::{Program, Sums};
use crate::schedule::PartialSums;
use crate::transfer::Region;

/// Memory of a kind's own that is laid out as its parameters are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Own {
    /// Host parameters, while they are on the device.
    Params,
    /// Host gradients.
    Grads(DType),
    /// Accumulated gradients.
    Accumulated,
    /// Parameters whose place averages have taken.
    Aside,
    /// What a factored rule updates where memory is not as it needs it: parameters,
    ScratchParams,
    /// and gradients.
    ScratchGrads,
}

/// An array of state: one of the regions of a page.
#[derive(Debug, Clone, Copy)]
struct Array {
    part: Part,
    /// The bits of a number.
    bits: usize,
    /// The elements of a tensor that share a number.
    shared: usize,
    /// The word that it is filled with at the beginning.
    init: u32,
}

impl Array {
    /// The bytes of a tensor of so many elements.
    fn bytes(&self, elements: usize) -> usize {
        elements.div_ceil(self.shared) * self.bits / 8
    }

    /// The words of the array in a page of so many elements.
    fn words(&self, elements: usize) -> usize {
        (elements.div_ceil(self.shared) * self.bits / 32).next_multiple_of(4)
    }
}

/// A run of bytes of an array.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) page: usize,
    /// The first byte in the page.
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// Tensors that the same kernels update.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) program: Arc<Program>,
    /// The indices of the tensors. Pieces of the layout count these.
    pub(crate) members: Vec<usize>,
    pub(crate) layout: Layout,
    /// For each member the first of its rows, and last where they end.
    pub(crate) rows: Vec<usize>,
    /// What gradients are shaped with row by row: two numbers for each row; made at their first use.
    pub(crate) units: Option<wgpu::Buffer>,
    arrays: Vec<Array>,
    /// The state. Pages of state that is offloaded are one and the same buffer.
    pub(crate) pages: Vec<wgpu::Buffer>,
    /// The kernels' `page` for each, 256 bytes apart.
    starts: wgpu::Buffer,
    pub(crate) offload: Option<Offload>,
    pub(crate) sums: Option<PartialSums>,
    pub(crate) factored: Option<Factored>,
    own: HashMap<Own, Vec<wgpu::Buffer>>,
}

/// The bytes between two `page`s.
const STRIDE: usize = 256;

impl Kind {
    pub(crate) fn new(context: &Context, plan: &Plan<'_>, program: Arc<Program>, members: Vec<usize>) -> Result<Self> {
        let tensors: Vec<&Tensor> = members.iter().map(|&member| &plan.tensors[member]).collect();
        let Some(first) = tensors.first() else {
            return Err(Error::NoParameters { place: "a kind".into() });
        };
        let spec = plan.rules[first.rule].spec();
        let slots = spec.slots();
        let is_factored = program.sums == Sums::Factored;
        let arrays = arrays(first, if is_factored { &[] } else { &slots });
        let lens = || tensors.iter().map(|tensor| tensor.parameter.len());

        let offloaded = spec.offloaded();
        let words = if offloaded { context.window.min(offload::WINDOW) } else { context.window };
        if program.sums != Sums::Nothing {
            context.can_sum()?;
        }
        let sums = match program.sums {
            Sums::Nothing | Sums::Factored => None,
            Sums::Rule | Sums::Trust => Some(PartialSums::new(context, lens())?),
        };
        let unit = match (&sums, program.storage.in_blocks()) {
            (Some(_), _) => SLICE,
            (None, true) => BLOCK,
            (None, false) => ALIGNMENT,
        };
        let alignment = unit.min(if program.storage.in_blocks() { BLOCK } else { ALIGNMENT });
        // Parameters and gradients have up to a word for each element.
        let per_unit = arrays.iter().map(|array| array.words(unit)).sum::<usize>().max(unit);
        let window = (words / per_unit).max(1) * unit;
        let (expected, got) = (bytes(per_unit), context.binding);
        if expected > got {
            return Err(Error::DeviceLimit { what: "max_storage_buffer_binding_size", expected, got });
        }
        let layout = Layout::aligned(lens(), window, alignment);

        let factored = if is_factored {
            Some(Factored::new(context, plan.rules[first.rule].spec(), &tensors, &layout)?)
        } else {
            None
        };
        let mut rows = vec![0];
        rows.extend(tensors.iter().scan(0, |end: &mut usize, tensor| {
            *end += tensor.rows().0;
            Some(*end)
        }));
        let mut kind = Self {
            rows,
            units: None,
            starts: starts(context, &layout, &arrays)?,
            pages: Vec::new(),
            own: HashMap::new(),
            offload: None,
            program,
            members,
            layout,
            arrays,
            sums,
            factored,
        };
        if offloaded {
            kind.offload = Some(Offload::new((0..kind.layout.pages.len()).map(|page| kind.initial(page)).collect()));
            let Some(most) = kind.layout.pages.iter().map(|&len| kind.words(len)).max() else { return Ok(kind) };
            let page = context.create_buffer("state", bytes(most), USAGE, false)?;
            kind.pages = vec![page; kind.layout.pages.len()];
        } else {
            let sizes: Vec<_> = kind.layout.pages.iter().map(|&len| bytes(kind.words(len))).collect();
            kind.pages = context.pages(sizes, "state")?;
            kind.fill(context, plan, &tensors)?;
        }
        Ok(kind)
    }

    /// The words of a page of so many elements; never none, which could not be bound.
    fn words(&self, elements: usize) -> usize {
        self.arrays.iter().map(|array| array.words(elements)).sum::<usize>().max(ALIGNMENT)
    }

    /// The words of a page at the beginning.
    fn initial(&self, page: usize) -> Vec<u32> {
        let elements = self.layout.pages[page];
        let mut words: Vec<_> =
            self.arrays.iter().flat_map(|array| std::iter::repeat_n(array.init, array.words(elements))).collect();
        words.resize(self.words(elements), 0);
        words
    }

    /// Fills the pages with what is there at the beginning: with what the first tensor's rule says, and where another's slots begin
    /// with other numbers, with those.
    fn fill(&self, context: &Context, plan: &Plan<'_>, tensors: &[&Tensor]) -> Result<()> {
        let mut encoder = context.encoder()?;
        for (buffer, &elements) in self.pages.iter().zip(&self.layout.pages) {
            let mut offset = 0;
            for array in &self.arrays {
                let size = 4 * array.words(elements);
                if array.init != 0 {
                    context.fill(&mut encoder, Region { buffer, offset, size }, array.init)?;
                }
                offset += size as u64;
            }
        }
        // Factored state begins as zeros, and elsewhere.
        let tensors = if self.factored.is_some() { &[] } else { tensors };
        for (member, tensor) in tensors.iter().enumerate() {
            let own = arrays(tensor, &plan.rules[tensor.rule].spec().slots());
            for (own, _) in own.iter().zip(&self.arrays).filter(|(own, first)| own.init != first.init) {
                for (buffer, start, len) in self.places(member, own.part, 0, own.bytes(tensor.parameter.len())) {
                    // Between tensors there is room to the end of the word.
                    let region = Region { buffer, offset: start as u64, size: len.next_multiple_of(4) };
                    context.fill(&mut encoder, region, own.init)?;
                }
            }
        }
        context.submit([encoder]).map(drop)
    }

    /// What a kernel binds of a page: its state, and where the arrays begin.
    pub(crate) fn page(&self, page: usize) -> [(&wgpu::Buffer, u64, u64); 2] {
        let state = &self.pages[page];
        [(state, 0, state.size()), (&self.starts, (STRIDE * page) as u64, 48)]
    }

    /// Whether a factored rule works on a copy of the parameters.
    pub(crate) fn needs_copy(&self) -> bool {
        self.program.storage != Storage::plain(0)
    }

    /// Makes memory of the kind's own, if it is not there yet.
    pub(crate) fn need(&mut self, context: &Context, own: Own) -> Result<()> {
        if !self.own.contains_key(&own) {
            let size = self.dtype(own).size();
            let sizes = self.layout.pages.iter().map(|&len| (len * size) as u64);
            let pages = context.pages(sizes, &format!("{own:?}"))?;
            self.own.insert(own, pages);
        }
        Ok(())
    }

    /// Makes room for the numbers of rows, if it is not there yet.
    pub(crate) fn need_units(&mut self, context: &Context) -> Result<()> {
        if self.units.is_some() {
            return Ok(());
        }
        context.can_sum()?;
        let (expected, got) = (bytes(2 * self.rows[self.members.len()].max(1)), context.binding);
        if expected > got {
            return Err(Error::DeviceLimit { what: "max_storage_buffer_binding_size", expected, got });
        }
        self.units = Some(context.create_buffer("units", expected, USAGE, false)?);
        Ok(())
    }

    /// Gives it up.
    pub(crate) fn drop_own(&mut self, own: Own) {
        self.own.remove(&own);
    }

    /// Its pages; none before they are [needed](Self::need).
    pub(crate) fn own(&self, own: Own) -> &[wgpu::Buffer] {
        self.own.get(&own).map_or(&[], |pages| pages)
    }

    /// Its element type.
    pub(crate) fn dtype(&self, own: Own) -> DType {
        match own {
            Own::Params | Own::Aside => dtype(self.program.storage.param),
            Own::Grads(dtype) => dtype,
            Own::Accumulated | Own::ScratchParams | Own::ScratchGrads => DType::F32,
        }
    }

    /// A piece in memory of the kind's own, with padding up to a whole word.
    pub(crate) fn region(&self, own: Own, piece: &Piece) -> Region<'_> {
        let size = self.dtype(own).size();
        let buffer = &self.own(own)[piece.page];
        Region { buffer, offset: (piece.offset * size) as u64, size: (piece.len * size).next_multiple_of(4) }
    }

    /// Bytes of an array in the device's memory, from an element on: the buffer, the first byte in it and how many.
    pub(crate) fn places(
        &self,
        member: usize,
        part: Part,
        first: usize,
        len: usize,
    ) -> Vec<(&wgpu::Buffer, usize, usize)> {
        if let (Some(factored), Part::Slot(slot)) = (&self.factored, part) {
            return factored.place(member, slot, first, len).into_iter().collect();
        }
        self.runs(member, part, first, len)
            .into_iter()
            .map(|run| (&self.pages[run.page], run.offset, run.len))
            .collect()
    }

    /// Where the bytes of an array lie, from an element on; nowhere for an array that there is not.
    pub(crate) fn runs(&self, member: usize, part: Part, first: usize, len: usize) -> Vec<Run> {
        let Some(nth) = self.arrays.iter().position(|array| array.part == part) else { return Vec::new() };
        let Array { bits, shared, .. } = self.arrays[nth];
        // In numbers of the array.
        let (first, end) = (first, first + len * 8 / bits);
        let run = |piece: &Piece| {
            let start = piece.start / shared;
            let (from, to) = (first.max(start), end.min((piece.start + piece.len).div_ceil(shared)));
            if from >= to {
                return None;
            }
            let elements = self.layout.pages[piece.page];
            let begin: usize = self.arrays[..nth].iter().map(|array| array.words(elements)).sum();
            let offset = 4 * begin + (piece.offset / shared + from - start) * bits / 8;
            Some(Run { page: piece.page, offset, len: (to - from) * bits / 8 })
        };
        self.layout.pieces_of(member).iter().filter_map(run).collect()
    }
}

/// The arrays of a tensor of a kind.
fn arrays(tensor: &Tensor, slots: &[Slot]) -> Vec<Array> {
    let mut arrays = Vec::new();
    for (nth, slot) in slots.iter().enumerate() {
        let (part, init) = (Part::Slot(nth), slot.init);
        let half = |bits: u16| u32::from(bits) * 0x1_0001;
        match tensor.slot_format(slot) {
            SlotFormat::F32 => arrays.push(Array { part, bits: 32, shared: 1, init: init.to_bits() }),
            // Of factored rules alone, which keep their slots elsewhere.
            SlotFormat::F16 => {}
            SlotFormat::Bf16 => arrays.push(Array { part, bits: 16, shared: 1, init: half(format::f32_to_bf16(init)) }),
            SlotFormat::Block8(code) => {
                let scale = format::scale_of(&[init]);
                let init = u32::from(code.encode(init, scale, 0)) * 0x0101_0101;
                arrays.push(Array { part, bits: 8, shared: 1, init });
                arrays.push(Array { part: Part::Scales(nth), bits: 32, shared: BLOCK, init: scale.to_bits() });
            }
        }
    }
    match tensor.master() {
        Some(Master::F32) => arrays.push(Array { part: Part::Master, bits: 32, shared: 1, init: 0 }),
        Some(Master::Split) => arrays.push(Array { part: Part::Master, bits: 16, shared: 1, init: 0 }),
        Some(Master::None | Master::Stochastic) | None => {}
    }
    if tensor.ema {
        arrays.push(Array { part: Part::Ema, bits: 32, shared: 1, init: 0 });
    }
    arrays
}

/// For each page the kernels' `page`: where its arrays begin, in words.
fn starts(context: &Context, layout: &Layout, arrays: &[Array]) -> Result<wgpu::Buffer> {
    let mut words = vec![0; STRIDE / 4 * layout.pages.len().max(1)];
    for (page, &elements) in words.chunks_mut(STRIDE / 4).zip(&layout.pages) {
        let mut start = 0;
        for array in arrays {
            let place = match array.part {
                Part::Slot(nth) => nth,
                Part::Scales(nth) => 4 + nth,
                Part::Master => 8,
                Part::Ema => 9,
            };
            page[place] = word(start);
            start += array.words(elements);
        }
    }
    let buffer = context.create_buffer("pages", bytes(words.len()), wgpu::BufferUsages::UNIFORM, true)?;
    context.write_mapped(&buffer, |view| view.copy_from_slice(bytemuck::cast_slice(&words)))?;
    Ok(buffer)
}

/// How the kernels call it.
pub(crate) const fn format(dtype: DType) -> Format {
    match dtype {
        DType::F32 => Format::F32,
        DType::F16 => Format::F16,
        DType::Bf16 => Format::Bf16,
    }
}

const fn dtype(format: Format) -> DType {
    match format {
        Format::F32 => DType::F32,
        Format::F16 => DType::F16,
        Format::Bf16 => DType::Bf16,
    }
}
