//! How long a step takes on the device: two timestamps around its commands.

use std::time::Duration;

use optim_core::{Error, Result};

use crate::device::Context;
use crate::transfer::Region;

/// The bytes of two timestamps.
const SIZE: u64 = 16;

#[derive(Debug)]
pub(crate) struct Timer {
    queries: wgpu::QuerySet,
    /// When the last step that ran began and ended; zeros before.
    times: wgpu::Buffer,
}

impl Timer {
    /// An error if the device does not tell the time.
    pub(crate) fn new(context: &Context) -> Result<Self> {
        if !context.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(unsupported());
        }
        let queries = context.scoped(|| {
            let description =
                wgpu::QuerySetDescriptor { label: Some("step"), ty: wgpu::QueryType::Timestamp, count: 2 };
            context.device.create_query_set(&description)
        })?;
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        Ok(Self { queries, times: context.create_buffer("times", SIZE, usage, false)? })
    }

    /// Notes the time before a step.
    pub(crate) fn begin(&self, encoder: &mut wgpu::CommandEncoder) {
        self.note(encoder, 0);
    }

    /// Notes the time after it.
    pub(crate) fn end(&self, encoder: &mut wgpu::CommandEncoder) {
        self.note(encoder, 1);
        encoder.resolve_query_set(&self.queries, 0..2, &self.times, 0);
    }

    /// A pass without commands: only passes note the time on every device.
    fn note(&self, encoder: &mut wgpu::CommandEncoder, index: u32) {
        let timestamp_writes = wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(index),
            end_of_pass_write_index: None,
        };
        drop(encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("time"),
            timestamp_writes: Some(timestamp_writes),
        }));
    }

    /// How long the last step took that ran. Waits for the device.
    pub(crate) fn last(&self, context: &Context) -> Result<Option<Duration>> {
        let mut times = [0_u64; 2];
        let region = Region { buffer: &self.times, offset: 0, size: size_of_val(&times) };
        context.read(&[region], bytemuck::bytes_of_mut(&mut times))?;
        let [begin, end] = times;
        #[allow(clippy::cast_precision_loss, reason = "ticks of a step are few, and the nearest number is meant")]
        let ticks = end.wrapping_sub(begin) as f64;
        let seconds = ticks * f64::from(context.queue.get_timestamp_period()) * 1e-9;
        Ok(Duration::try_from_secs_f64(seconds).ok().filter(|_| times != [0; 2]))
    }
}

pub(crate) fn unsupported() -> Error {
    Error::Unsupported { what: "timing steps on this device".into(), backend: "gpu".into() }
}
