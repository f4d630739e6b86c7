//! Between the host and the device, through staging buffers of bounded size.
//!
//! The staging buffers are mapped buffers of our own: where memory runs out, making one fails and the device lives, while the
//! queue's own staging would lose it.

use std::sync::mpsc;

use optim_core::Result;

use crate::device::Context;

/// The most bytes that are staged at once.
const CHUNK: usize = 1 << 24;

/// A part of a buffer, in bytes: both are multiples of four.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) offset: u64,
    /// What is copied, padding included. What follows the values of an upload becomes zero.
    pub(crate) size: usize,
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
    /// For each part its item, the first of the item's bytes in it, its bytes, its first byte in the staging buffer.
    parts: Vec<(usize, usize, usize, usize)>,
    size: usize,
}

fn batches<'a>(regions: impl Iterator<Item = Region<'a>>, chunk: usize) -> Vec<Batch<'a>> {
    let mut batches: Vec<Batch<'a>> = Vec::new();
    for (item, region) in regions.enumerate() {
        let mut done = 0;
        while done < region.size {
            if batches.last().is_none_or(|batch| batch.size == chunk) {
                batches.push(Batch::default());
            }
            let Some(batch) = batches.last_mut() else { break };
            let part = (region.size - done).min(chunk - batch.size);
            let (offset, staged, size) = (region.offset + done as u64, batch.size as u64, part as u64);
            match batch.copies.last_mut() {
                Some(last) if last.buffer == region.buffer && last.offset + last.size == offset => last.size += size,
                _ => batch.copies.push(Copy { buffer: region.buffer, offset, staged, size }),
            }
            batch.parts.push((item, done, part, batch.size));
            batch.size += part;
            done += part;
        }
    }
    batches
}

impl Context {
    /// The bytes that are staged at once.
    fn chunk(&self) -> usize {
        usize::try_from(self.limits.max_buffer_size / 4 * 4).map_or(CHUNK, |most| most.min(CHUNK))
    }

    /// Encodes the copies of host values into regions. If there is much to copy, all but the last part is submitted at once.
    pub(crate) fn upload(&self, encoder: &mut wgpu::CommandEncoder, uploads: &[(Region<'_>, &[u8])]) -> Result<()> {
        for (index, batch) in batches(uploads.iter().map(|(region, _)| *region), self.chunk()).into_iter().enumerate() {
            if index > 0 {
                self.submit([std::mem::replace(encoder, self.encoder()?)])?;
            }
            let staging = self.staging(batch.size, |staging| {
                for &(item, start, size, at) in &batch.parts {
                    let values = uploads[item].1;
                    let values = &values[start.min(values.len())..values.len().min(start + size)];
                    staging.slice(at..at + values.len()).copy_from_slice(values);
                }
            })?;
            for Copy { buffer, offset, staged, size } in batch.copies {
                encoder.copy_buffer_to_buffer(&staging, staged, buffer, offset, size);
            }
        }
        Ok(())
    }

    /// Encodes the filling of a region with one word.
    pub(crate) fn fill(&self, encoder: &mut wgpu::CommandEncoder, region: Region<'_>, word: u32) -> Result<()> {
        let size = region.size.min(self.chunk());
        if size == 0 {
            return Ok(());
        }
        let staging = self.staging(size, |staging| {
            staging.copy_from_slice(bytemuck::cast_slice(&vec![word; size / 4]));
        })?;
        for done in (0..region.size).step_by(size) {
            let size = size.min(region.size - done) as u64;
            encoder.copy_buffer_to_buffer(&staging, 0, region.buffer, region.offset + done as u64, size);
        }
        Ok(())
    }

    /// A buffer to copy from: zero but for what `write` puts there.
    fn staging(&self, size: usize, write: impl FnOnce(&mut wgpu::BufferViewMut)) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let staging = self.create_buffer("staging, up", size as u64, usage, true)?;
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

    /// Submits what has been encoded, then reads regions: `read(item, first, bytes)` gets each item's bytes from its
    /// `first` on, in one or more parts. Waits for the device.
    pub(crate) fn download(
        &self,
        mut encoders: Vec<wgpu::CommandEncoder>,
        regions: &[Region<'_>],
        mut read: impl FnMut(usize, usize, &[u8]),
    ) -> Result<()> {
        for batch in batches(regions.iter().copied(), self.chunk()) {
            let mut encoder = encoders.pop().map_or_else(|| self.encoder(), Ok)?;
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            let staging = self.create_buffer("staging, down", batch.size as u64, usage, false)?;
            for Copy { buffer, offset, staged, size } in &batch.copies {
                encoder.copy_buffer_to_buffer(buffer, *offset, &staging, *staged, *size);
            }
            let submission = self.submit(encoders.drain(..).chain([encoder]))?;
            let (sender, receiver) = mpsc::channel();
            self.scoped(|| staging.map_async(wgpu::MapMode::Read, .., move |result| drop(sender.send(result))))
                .map_err(|error| self.lost_if_refused(error))?;
            self.wait(Some(submission))?;
            // Another thread that waits for this device may have taken the callback, and be about to call it.
            match receiver.recv_timeout(self.timeout) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.find_lost(error)),
                Err(_) => return Err(self.timed_out()),
            }
            let view = staging.get_mapped_range(..).map_err(|error| self.find_lost(error))?;
            for (item, start, size, at) in batch.parts {
                read(item, start, &view[at..at + size]);
            }
            drop(view);
            staging.unmap();
        }
        if encoders.is_empty() { Ok(()) } else { self.submit(encoders).map(drop) }
    }

    /// The bytes of regions, one after the other, as far as there is room. Waits for the device: everything that was submitted
    /// before is seen.
    pub(crate) fn read(&self, regions: &[Region<'_>], bytes: &mut [u8]) -> Result<()> {
        let starts: Vec<usize> = regions
            .iter()
            .scan(0, |end, region| {
                *end += region.size;
                Some(*end - region.size)
            })
            .collect();
        self.download(vec![self.encoder()?], regions, |item, first, part| {
            copy_bytes(part, &mut bytes[starts[item] + first..])
        })
    }
}

/// Copies bytes into a slice, as many as it has room for.
pub(crate) fn copy_bytes(bytes: &[u8], into: &mut [u8]) {
    let len = into.len().min(bytes.len());
    into[..len].copy_from_slice(&bytes[..len]);
}
