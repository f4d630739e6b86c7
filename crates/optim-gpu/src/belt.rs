//! What the host says at each step: recorded as copies among the step's commands, so that it is there when they run, whenever that
//! is. The queue's own writes would all land before the next submission.
//!
//! A staging buffer comes back mapped once the commands that read it are done. It is looked for, never waited for; if none is
//! back, another one is made. It also comes back if wgpu refuses the commands, so recorded ones bring a receipt as well.

use std::sync::mpsc::{Receiver, TryRecvError, channel};

use optim_core::Result;

use crate::device::Context;

/// The bytes of a staging buffer at least.
const LEAST: u64 = 1 << 12;

/// What comes of a mapping.
pub(crate) type Mapped = Receiver<Result<(), wgpu::BufferAsyncError>>;

/// Bytes for a place in a buffer.
pub(crate) type Write<'a> = (&'a wgpu::Buffer, u64, &'a [u8]);

/// Staging buffers of one engine.
#[derive(Debug, Default)]
pub(crate) struct Belt {
    /// Mapped, ready to be written.
    free: Vec<wgpu::Buffer>,
    flying: Vec<Flight>,
    /// Of recorded steps, until it is known what became of them.
    receipts: Vec<(Receipt, Recorded)>,
    /// Buffers for more of them.
    free_receipts: Vec<wgpu::Buffer>,
    /// The number of receipts that were made.
    asked: u32,
}

/// A staging buffer that commands read.
#[derive(Debug)]
struct Flight {
    buffer: wgpu::Buffer,
    mapped: Mapped,
}

/// What tells whether recorded commands have run: they bring a number that no others have.
#[derive(Debug)]
pub(crate) struct Receipt {
    buffer: wgpu::Buffer,
    number: u32,
    mapped: Mapped,
}

impl Receipt {
    /// The number that is in the mapped buffer, which is free afterwards.
    fn read(&self) -> Result<u32, wgpu::MapRangeError> {
        let number = bytemuck::pod_read_unaligned(&self.buffer.get_mapped_range(..)?);
        self.buffer.unmap();
        Ok(number)
    }
}

/// A step of which only the caller knows when it runs.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// For each tensor whether master and average are set by it.
    pub(crate) seeds: Vec<bool>,
    /// Whether its verdict tells if it is lost.
    pub(crate) guarded: bool,
}

impl Belt {
    /// Takes back what is done. Recorded steps of which it is known now are told, each once, and whether they have run: not if their
    /// commands were dropped or refused.
    pub(crate) fn recover(&mut self, context: &Context, mut known: impl FnMut(&Recorded, bool)) -> Result<()> {
        let mut failed = None;
        let free = &mut self.free;
        self.flying.retain(|flight| {
            match flight.mapped.try_recv() {
                Ok(Ok(())) => free.push(flight.buffer.clone()),
                Ok(Err(error)) => failed = Some(error.to_string()),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {}
            }
            false
        });
        let free = &mut self.free_receipts;
        self.receipts.retain(|(receipt, recorded)| {
            let has_run = match receipt.mapped.try_recv() {
                Ok(Ok(())) => {
                    free.push(receipt.buffer.clone());
                    receipt.read().map(|number| number == receipt.number).map_err(|error| error.to_string())
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => Ok(false),
            };
            match has_run {
                Ok(has_run) => known(recorded, has_run),
                Err(error) => failed = Some(error),
            }
            false
        });
        failed.map_or(Ok(()), |error| Err(context.find_lost(error)))
    }

    /// Records the copies of values to their places.
    pub(crate) fn write(
        &mut self,
        context: &Context,
        encoder: &mut wgpu::CommandEncoder,
        writes: &[Write<'_>],
    ) -> Result<()> {
        let size = writes.iter().map(|(_, _, bytes)| bytes.len() as u64).sum();
        let staging = self.staging(context, size)?;
        context.write_mapped(&staging, |view| {
            let mut start = 0;
            for (_, _, bytes) in writes {
                view.slice(start..start + bytes.len()).copy_from_slice(bytes);
                start += bytes.len();
            }
        })?;
        context.scoped(|| {
            let mut start = 0;
            for &(buffer, offset, bytes) in writes {
                let size = bytes.len() as u64;
                encoder.copy_buffer_to_buffer(&staging, start, buffer, offset, size);
                start += size;
            }
        })?;
        let mapped = map_on_submit(encoder, &staging, wgpu::MapMode::Write);
        self.flying.push(Flight { buffer: staging, mapped });
        Ok(())
    }

    /// Has the caller's commands bring a receipt.
    pub(crate) fn receipt(&mut self, context: &Context, encoder: &mut wgpu::CommandEncoder) -> Result<Receipt> {
        let buffer = match self.free_receipts.pop() {
            Some(buffer) => buffer,
            None => {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                context.create_buffer("receipt", size_of::<u32>() as u64, usage, false)?
            }
        };
        self.asked = self.asked.wrapping_add(1);
        let number = self.asked;
        self.write(context, encoder, &[(&buffer, 0, bytemuck::bytes_of(&number))])?;
        let mapped = map_on_submit(encoder, &buffer, wgpu::MapMode::Read);
        Ok(Receipt { buffer, number, mapped })
    }

    /// Expects the receipt of a step.
    pub(crate) fn expect(&mut self, receipt: Receipt, recorded: Recorded) {
        self.receipts.push((receipt, recorded));
    }

    /// A tensor's master and average no longer depend on recorded steps.
    pub(crate) fn forget_seed(&mut self, tensor: usize) {
        self.receipts.iter_mut().for_each(|(_, recorded)| recorded.seeds[tensor] = false);
    }

    /// Sets the flags of tensors whose masters and averages an expected step is to set.
    pub(crate) fn seeds(&self, flags: &mut [bool]) {
        for (_, recorded) in &self.receipts {
            flags.iter_mut().zip(&recorded.seeds).for_each(|(flag, seed)| *flag |= seed);
        }
    }

    /// Whether the receipt of such a step is expected.
    pub(crate) fn expects(&self, which: impl Fn(&Recorded) -> bool) -> bool {
        self.receipts.iter().any(|(_, recorded)| which(recorded))
    }

    /// A mapped buffer of so many bytes or more.
    fn staging(&mut self, context: &Context, size: u64) -> Result<wgpu::Buffer> {
        if let Some(index) = self.free.iter().position(|buffer| buffer.size() >= size) {
            return Ok(self.free.swap_remove(index));
        }
        // What a step needs seldom grows, and does not shrink.
        self.free.clear();
        let most = (context.limits.max_buffer_size / 4 * 4).max(size);
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        context.create_buffer("step, up", size.next_power_of_two().max(LEAST).min(most), usage, true)
    }
}

/// Has a buffer mapped once the commands are done. If they are dropped, so is the sender.
pub(crate) fn map_on_submit(encoder: &wgpu::CommandEncoder, buffer: &wgpu::Buffer, mode: wgpu::MapMode) -> Mapped {
    let (sender, mapped) = channel();
    encoder.map_buffer_on_submit(buffer, mode, .., move |result| drop(sender.send(result)));
    mapped
}
