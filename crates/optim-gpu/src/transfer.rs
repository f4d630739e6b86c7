//! Between the host and the device, through staging buffers of bounded size.
//!
//! The staging buffers are mapped buffers of our own: where memory runs out, making one fails and the device lives, while the
//! queue's own staging would lose it.

use std::sync::mpsc;

use optim_core::Result;

use crate::device::Context;
use crate::layout::bytes;

/// The most elements that are staged at once: 16 MiB.
const CHUNK: usize = 1 << 22;

/// Elements in a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    /// In bytes.
    pub(crate) offset: u64,
    /// The elements that are copied, padding included. What follows the values of an upload becomes zero.
    pub(crate) span: usize,
}

/// One copy between a staging buffer and a region.
struct Copy<'a> {
    buffer: &'a wgpu::Buffer,
    offset: u64,
    staged: u64,
    size: u64,
}

/// Regions, cut where a staging buffer is full, and joined where they touch.
#[derive(Default)]
struct Batch<'a> {
    copies: Vec<Copy<'a>>,
    /// For each part its item, the first of the item's elements in it, its elements, its first element in the staging buffer.
    parts: Vec<(usize, usize, usize, usize)>,
    elements: usize,
}

fn batches<'a>(regions: impl Iterator<Item = Region<'a>>, chunk: usize) -> Vec<Batch<'a>> {
    let mut batches: Vec<Batch<'a>> = Vec::new();
    for (item, region) in regions.enumerate() {
        let mut done = 0;
        while done < region.span {
            if batches.last().is_none_or(|batch| batch.elements == chunk) {
                batches.push(Batch::default());
            }
            let Some(batch) = batches.last_mut() else { break };
            let elements = (region.span - done).min(chunk - batch.elements);
            let (offset, staged, size) = (region.offset + bytes(done), bytes(batch.elements), bytes(elements));
            match batch.copies.last_mut() {
                Some(last) if last.buffer == region.buffer && last.offset + last.size == offset => last.size += size,
                _ => batch.copies.push(Copy { buffer: region.buffer, offset, staged, size }),
            }
            batch.parts.push((item, done, elements, batch.elements));
            batch.elements += elements;
            done += elements;
        }
    }
    batches
}

impl Context {
    /// The elements that are staged at once.
    fn chunk(&self) -> usize {
        usize::try_from(self.limits.max_buffer_size / 4).map_or(CHUNK, |most| most.min(CHUNK))
    }

    /// Encodes the copies of host values into regions. If there is much to copy, all but the last part is submitted at once.
    pub(crate) fn upload(&self, encoder: &mut wgpu::CommandEncoder, uploads: &[(Region<'_>, &[f32])]) -> Result<()> {
        for (index, batch) in batches(uploads.iter().map(|(region, _)| *region), self.chunk()).into_iter().enumerate() {
            if index > 0 {
                self.submit(std::mem::replace(encoder, self.encoder()?))?;
            }
            let staging = self.staging(batch.elements, |staging| {
                for &(item, start, elements, at) in &batch.parts {
                    let values = uploads[item].1;
                    let values = &values[start.min(values.len())..values.len().min(start + elements)];
                    staging.slice(4 * at..4 * (at + values.len())).copy_from_slice(bytemuck::cast_slice(values));
                }
            })?;
            for Copy { buffer, offset, staged, size } in batch.copies {
                encoder.copy_buffer_to_buffer(&staging, staged, buffer, offset, size);
            }
        }
        Ok(())
    }

    /// Encodes the filling of a region with one value.
    pub(crate) fn fill(&self, encoder: &mut wgpu::CommandEncoder, region: Region<'_>, value: f32) -> Result<()> {
        let elements = region.span.min(self.chunk());
        let staging = self.staging(elements, |staging| {
            staging.copy_from_slice(bytemuck::cast_slice(&vec![value; elements]));
        })?;
        for done in (0..region.span).step_by(elements.max(1)) {
            let size = bytes(elements.min(region.span - done));
            encoder.copy_buffer_to_buffer(&staging, 0, region.buffer, region.offset + bytes(done), size);
        }
        Ok(())
    }

    /// A buffer to copy from: zero but for what `write` puts there.
    fn staging(&self, elements: usize, write: impl FnOnce(&mut wgpu::BufferViewMut)) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let staging = self.create_buffer("staging, up", bytes(elements), usage, true)?;
        self.write_mapped(&staging, write)?;
        Ok(staging)
    }

    /// Writes a buffer that was mapped at its creation, and unmaps it.
    pub(crate) fn write_mapped(
        &self,
        buffer: &wgpu::Buffer,
        write: impl FnOnce(&mut wgpu::BufferViewMut),
    ) -> Result<()> {
        // An invalid buffer, made without an error, is how a lost device shows here.
        let mut view = buffer.get_mapped_range_mut(..).map_err(|error| self.find_lost(error))?;
        write(&mut view);
        drop(view);
        self.scoped(|| buffer.unmap())
    }

    /// Submits what has been encoded, then reads regions: `read(item, first, bytes)` gets each item's elements from its
    /// `first` on, in one or more parts. Waits for the device.
    pub(crate) fn download(
        &self,
        encoder: wgpu::CommandEncoder,
        regions: &[Region<'_>],
        mut read: impl FnMut(usize, usize, &[u8]),
    ) -> Result<()> {
        let mut encoded = Some(encoder);
        for batch in batches(regions.iter().copied(), self.chunk()) {
            let mut encoder = encoded.take().map_or_else(|| self.encoder(), Ok)?;
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            let staging = self.create_buffer("staging, down", bytes(batch.elements), usage, false)?;
            for Copy { buffer, offset, staged, size } in &batch.copies {
                encoder.copy_buffer_to_buffer(buffer, *offset, &staging, *staged, *size);
            }
            let submission = self.submit(encoder)?;
            let (sender, receiver) = mpsc::channel();
            self.scoped(|| staging.map_async(wgpu::MapMode::Read, .., move |result| drop(sender.send(result))))
                .map_err(|error| self.lost_if_refused(error))?;
            self.wait(submission)?;
            // Another thread that waits for this device may have taken the callback, and be about to call it.
            match receiver.recv_timeout(self.timeout) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.find_lost(error)),
                Err(_) => return Err(self.timed_out()),
            }
            let view = staging.get_mapped_range(..).map_err(|error| self.find_lost(error))?;
            for (item, start, elements, at) in batch.parts {
                read(item, start, &view[4 * at..4 * (at + elements)]);
            }
            drop(view);
            staging.unmap();
        }
        encoded.map_or(Ok(()), |encoder| self.submit(encoder).map(drop))
    }

    /// Submits what has been encoded and reads regions into one vector, without the last region's padding beyond `len`.
    pub(crate) fn read(&self, regions: &[Region<'_>], len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; len];
        let starts = regions.iter().scan(0, |end, region| {
            *end += region.span;
            Some(*end - region.span)
        });
        let starts: Vec<usize> = starts.collect();
        self.download(self.encoder()?, regions, |item, first, bytes| {
            copy_bytes(bytes, &mut values[starts[item] + first..]);
        })?;
        Ok(values)
    }
}

/// Copies elements into a slice, as many as it has room for.
pub(crate) fn copy_bytes(bytes: &[u8], into: &mut [f32]) {
    let into = bytemuck::cast_slice_mut::<f32, u8>(into);
    let len = into.len().min(bytes.len());
    into[..len].copy_from_slice(&bytes[..len]);
}
