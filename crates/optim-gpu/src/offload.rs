//! State that lives in the host's memory: it visits the device a page at a time.

use optim_core::Result;

use crate::device::Context;
use crate::kind::Run;
use crate::transfer::{Region, copy_bytes};

/// The most words of a page of state: 64 MiB. One is on the device.
pub(crate) const WINDOW: usize = 1 << 24;

/// The state: the words of each page.
#[derive(Debug)]
pub(crate) struct Offload(Vec<Vec<u32>>);

impl Offload {
    pub(crate) fn new(pages: Vec<Vec<u32>>) -> Self {
        Self(pages)
    }

    /// Encodes the upload of a page.
    pub(crate) fn upload(
        &self,
        context: &Context,
        encoder: &mut wgpu::CommandEncoder,
        buffer: &wgpu::Buffer,
        page: usize,
    ) -> Result<()> {
        let words: &[u8] = bytemuck::cast_slice(&self.0[page]);
        context.upload(encoder, &[(Region { buffer, offset: 0, size: words.len() }, words)])
    }

    /// Submits what has been encoded and brings a page back.
    pub(crate) fn download(
        &mut self,
        context: &Context,
        encoder: wgpu::CommandEncoder,
        buffer: &wgpu::Buffer,
        page: usize,
    ) -> Result<()> {
        let words: &mut [u8] = bytemuck::cast_slice_mut(&mut self.0[page]);
        let region = Region { buffer, offset: 0, size: words.len() };
        context.download(vec![encoder], &[region], |_, first, bytes| copy_bytes(bytes, &mut words[first..]))
    }

    /// The bytes of a run.
    pub(crate) fn read(&self, run: Run) -> &[u8] {
        &bytemuck::cast_slice(&self.0[run.page])[run.offset..run.offset + run.len]
    }

    /// The bytes of a run, to be replaced.
    pub(crate) fn write(&mut self, run: Run) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.0[run.page])[run.offset..run.offset + run.len]
    }
}
