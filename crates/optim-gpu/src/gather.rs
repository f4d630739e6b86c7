//! Small tensors in buffers of their own are gathered into few, so that one dispatch updates them all, and scattered afterwards.

use std::collections::HashMap;

use optim_core::{DType, Result};

use crate::GpuBuffer;
use crate::schedule::{GRADIENT, PARAMETER, Pair, Parts, Side};

/// The most bytes of a kind's tensors in one buffer that are copied rather than dispatched. Milliseconds of a step over 64 buffers on
/// Mesa's software GPU, copied or dispatched: 0.9 or 1.3 for 4 KiB each, 2.8 or 3.1 for 16, 6.8 or 10.2 for 64, 93 or 42 for 256. On
/// hardware a dispatch more also means a barrier more, because the state is shared; there it has not been measured.
const SMALL: u64 = 1 << 16;

/// A copy of a tensor.
#[derive(Debug)]
pub(crate) struct Copy {
    from: GpuBuffer,
    to: GpuBuffer,
}

impl Copy {
    pub(crate) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let Self { from, to } = self;
        encoder.copy_buffer_to_buffer(&from.buffer, from.offset, &to.buffer, to.offset, from.size() as u64);
    }
}

/// What of a step's memory is gathered: for each tensor the place of its parameter and of its gradient, if they are.
#[derive(Debug)]
pub(crate) struct Gathered(Vec<[Option<GpuBuffer>; 2]>);

impl Gathered {
    /// Makes room for what is worth it: two small buffers or more, for the same page of state, on one side.
    #[allow(clippy::mutable_key_type, reason = "buffers are compared by identity")]
    pub(crate) fn new(parts: &Parts<'_>, pairs: &[Pair<&GpuBuffer>]) -> Result<Self> {
        let mut gathered = vec![[None, None]; pairs.len()];
        for side in [0, 1] {
            let memory = |tensor: usize| [&pairs[tensor].param, &pairs[tensor].grad][side].device();
            let mut sizes: HashMap<(usize, usize, &wgpu::Buffer), u64> = HashMap::new();
            let mut place = Vec::with_capacity(pairs.len());
            for tensor in 0..pairs.len() {
                let (kind, member) = parts.kind_of[tensor];
                let kind_of = &parts.kinds[kind];
                let page = match (memory(tensor), kind_of.layout.pieces_of(member)) {
                    (Some(memory), [piece]) if kind_of.factored.is_none() => {
                        *sizes.entry((kind, piece.page, &memory.buffer)).or_default() += memory.size() as u64;
                        Some((kind, piece.page, memory))
                    }
                    _ => None,
                };
                place.push(page);
            }
            let mut small: HashMap<(usize, usize), usize> = HashMap::new();
            for (kind, page, _) in sizes.iter().filter(|(_, size)| **size <= SMALL).map(|(key, _)| *key) {
                *small.entry((kind, page)).or_default() += 1;
            }
            let mut tensors: HashMap<DType, Vec<usize>> = HashMap::new();
            for (tensor, place) in place.iter().enumerate() {
                let Some((kind, page, memory)) = *place else { continue };
                let worth = small.get(&(kind, page)).is_some_and(|&buffers| buffers > 1);
                if worth && sizes[&(kind, page, &memory.buffer)] <= SMALL && can_copy(memory, side == 0) {
                    tensors.entry(memory.dtype).or_default().push(tensor);
                }
            }
            for (dtype, tensors) in tensors {
                let lens: Vec<usize> = tensors.iter().map(|&tensor| parts.tensors[tensor].parameter.len()).collect();
                for (tensor, buffer) in tensors.into_iter().zip(parts.context.arena(dtype, &lens)?) {
                    if let Some(memory) = memory(tensor).filter(|memory| memory.home.is_none()) {
                        // A copy would not say whose it is.
                        let (what, name) = ([PARAMETER, GRADIENT][side], parts.tensors[tensor].parameter.name());
                        parts.context.refuse_strangers(what, name, &memory.buffer)?;
                    }
                    gathered[tensor][side] = Some(buffer);
                }
            }
        }
        Ok(Self(gathered))
    }

    /// The memory of a step, with what is gathered in its place.
    pub(crate) fn pairs<'a>(&'a self, pairs: &[Pair<&'a GpuBuffer>]) -> Vec<Pair<&'a GpuBuffer>> {
        let place =
            |side: Side<&'a GpuBuffer>, gathered: &'a Option<GpuBuffer>| gathered.as_ref().map_or(side, Side::Device);
        let pair = |(pair, [param, grad]): (&Pair<&'a GpuBuffer>, &'a [Option<GpuBuffer>; 2])| Pair {
            param: place(pair.param, param),
            grad: place(pair.grad, grad),
        };
        pairs.iter().zip(&self.0).map(pair).collect()
    }

    /// The copies before the dispatches, and those after them if they write parameters.
    pub(crate) fn copies(&self, pairs: &[Pair<&GpuBuffer>], writes: bool) -> [Vec<Copy>; 2] {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (pair, [param, grad]) in pairs.iter().zip(&self.0) {
            for (side, gathered) in [(&pair.param, param), (&pair.grad, grad)] {
                if let (Some(from), Some(to)) = (side.device(), gathered) {
                    before.push(Copy { from: from.clone(), to: to.clone() });
                }
            }
            if let (Some(to), Some(from), true) = (pair.param.device(), param, writes) {
                after.push(Copy { from: from.clone(), to: to.clone() });
            }
        }
        [before, after]
    }
}

/// Whether a buffer can be copied from and, if it is written, to, without touching what is next to the elements.
fn can_copy(memory: &GpuBuffer, is_written: bool) -> bool {
    let mut usage = wgpu::BufferUsages::COPY_SRC;
    if is_written {
        usage |= wgpu::BufferUsages::COPY_DST;
    }
    let fills_words = memory.padded || memory.size() == memory.len * memory.dtype.size();
    memory.buffer.usage().contains(usage) && fills_words
}
