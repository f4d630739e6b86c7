//! State that lives in the host's memory: it visits the device a page at a time.

use optim_core::Result;
use optim_core::rule::Slot;

use crate::device::Context;
use crate::layout::{Layout, Piece};
use crate::transfer::{Region, copy_bytes};

/// The most elements of a page of state: 64 MiB. One for each slot is on the device.
pub(crate) const WINDOW: usize = 1 << 24;

/// The state: for each slot the elements of each page, with padding.
#[derive(Debug)]
pub(crate) struct Offload(Vec<Vec<Vec<f32>>>);

impl Offload {
    pub(crate) fn new(layout: &Layout, slots: &[Slot]) -> Self {
        let pages = |slot: &Slot| layout.pages.iter().map(|&len| vec![slot.init; len]).collect();
        Self(slots.iter().map(pages).collect())
    }

    /// For each slot, the buffer that all of its pages share.
    pub(crate) fn buffers(context: &Context, layout: &Layout, slots: &[Slot]) -> Result<Vec<Vec<wgpu::Buffer>>> {
        let Some(&len) = layout.pages.iter().max() else { return Ok(vec![Vec::new(); slots.len()]) };
        let one = Layout::new([len], len);
        let buffer = |slot: &Slot| Ok(vec![context.pages(&one, slot.name)?.remove(0); layout.pages.len()]);
        slots.iter().map(buffer).collect()
    }

    /// Encodes the upload of a page.
    pub(crate) fn upload(
        &self,
        context: &Context,
        encoder: &mut wgpu::CommandEncoder,
        slots: &[Vec<wgpu::Buffer>],
        page: usize,
    ) -> Result<()> {
        let values = self.0.iter().map(|pages| &pages[page][..]).zip(slots);
        let uploads: Vec<_> = values.map(|(values, buffers)| (whole(buffers, values, page), values)).collect();
        context.upload(encoder, &uploads)
    }

    /// Submits what has been encoded and brings a page back.
    pub(crate) fn download(
        &mut self,
        context: &Context,
        encoder: wgpu::CommandEncoder,
        slots: &[Vec<wgpu::Buffer>],
        page: usize,
    ) -> Result<()> {
        let regions: Vec<_> =
            self.0.iter().zip(slots).map(|(pages, buffers)| whole(buffers, &pages[page], page)).collect();
        context.download(encoder, &regions, |slot, first, bytes| copy_bytes(bytes, &mut self.0[slot][page][first..]))
    }

    /// The values of one tensor.
    pub(crate) fn read(&self, slot: usize, pieces: &[Piece]) -> Vec<f32> {
        let values = |piece: &Piece| &self.0[slot][piece.page][piece.offset..piece.offset + piece.len];
        pieces.iter().flat_map(values).copied().collect()
    }

    /// Replaces the values of one tensor.
    pub(crate) fn write(&mut self, slot: usize, pieces: &[Piece], values: &[f32]) {
        for piece in pieces {
            self.0[slot][piece.page][piece.offset..piece.offset + piece.len].copy_from_slice(&values[piece.range()]);
        }
    }
}

/// A whole page.
fn whole<'a>(buffers: &'a [wgpu::Buffer], values: &[f32], page: usize) -> Region<'a> {
    Region { buffer: &buffers[page], offset: 0, span: values.len() }
}
