//! The GPU backend of the [`optimizers`](https://docs.rs/optimizers) library: WGSL kernels through [`wgpu`], on Vulkan, Metal
//! or DirectX 12.
//!
//! [`GpuBackend::new`] opens a device of its own; [`GpuBackend::from_wgpu`] uses the caller's. Parameters and gradients may lie
//! in a [`GpuBuffer`] or on the host; state always lies on the device. A step whose memory is all on the device is one
//! submission, waits for nothing and reads nothing back; or it is recorded into an encoder of the caller's:
//! [`GpuBackend::encode_step`]. Host gradients are uploaded; host parameters are uploaded, updated and read back within the step,
//! which waits for the device.
//!
//! Everything works within the limits that WebGPU promises of any device, and needs no optional feature.
//!
//! # Dispatches
//!
//! Tensors that the same kernels update are of one *kind*: the same rule but for its hyper-parameters, the same element type, and
//! their state kept alike. All state of a kind is packed into pages of at most one binding: a page is one buffer with all arrays
//! of its tensors, one after the other.
//!
//! **One dispatch updates all tensors of a page whose parameters lie in one `wgpu::Buffer` and whose gradients, of one element
//! type, lie in another**, wherever in these, as far as one binding reaches; however many tensors and groups there are. So it does
//! for what comes from the host. Memory from [`GpuBackend::arena`] has as few dispatches as there can be.
//!
//! Buffers with at most 64 KiB of a kind's tensors are gathered, if there are several: they are moved into one, updated there by one
//! dispatch, and moved back. A larger tensor in a buffer of its own has a dispatch of its own. So has one with an odd number of 16-bit
//! elements; and a parameter whose length is not a multiple of four, in memory that is not from this backend, is kept apart.
//!
//! How they are moved is a matter of the device ([`Gather`]). A software GPU copies each by a command, about a microsecond each, for
//! which they need the usage `COPY_SRC`, of parameters `COPY_DST` too. Others bind as many as a stage may, at most 126, and what is left by
//! powers of two, and move them by a dispatch; where there are so few that this takes no fewer dispatches, they are updated where they are. So
//! 2,000 tensors of 256 elements in buffers of their own take several times as long as in an arena, or in ranges of one buffer of the
//! caller's.
//!
//! The list of dispatches is made once for each set of buffers. An optimizer keeps the last four lists, and with them those
//! buffers alive: enough for gradients that alternate between a few sets.
//!
//! A rule that sums over each parameter first ([`Passes::Norms`](optim_core::rule::Passes), or a trust ratio) has two dispatches
//! for each of these, and one more for each kind, which completes the records. Slices are summed in a fixed
//! order that depends neither on the device nor on where memory lies. A rule with second moments by row and by column has a few
//! for each tensor, and where a parameter or a gradient is not `f32`, or an average is kept, two more around them.
//!
//! Gradients that are centralized or clipped by units are summed row by row first: one more dispatch for each of these, with a
//! workgroup for each row, and an update of their own. A row may be longer than a binding. The two numbers of each row of a kind
//! must fit one binding: 16 million rows within WebGPU's default limits.
//!
//! # Guarded steps
//!
//! A step whose gradients are measured (norms are clipped, or the loss scale drops steps) decides on the device. Before the dispatches
//! above come one for each set of gradients, which sums the squares of each slice and looks at the exponent bits of every element,
//! one that adds the slices up, and one of a single workgroup that decides: it takes the scalars of the update that this step turns
//! out to be from those that the host uploaded for each it may be, divides the loss scale out, clips, or marks the step to be
//! skipped, and moves loss scale and counters on. What follows reads what it wrote; a step that is skipped runs, and stores
//! nothing.
//!
//! **Such a step still is one submission that nobody waits for**, if parameters and state are on the device: its report is
//! [`Pending`](optim_core::Outcome::Pending). The verdict is copied into a buffer of its own that the device maps, and each later
//! step, or [`try_report`](optim_core::Optimizer::try_report), asks for those that are there without waiting
//! ([`Counters::polls`]). The loss scale of the next step is at the beginning of a buffer of its own that kernels of the caller's may
//! read ([`loss_scale_memory`](optim_core::Optimizer::loss_scale_memory), a [`GpuBuffer`] of one `f32`); they must not write it.
//! With parameters on the host, or with offloaded state, the step waits anyway and knows.
//!
//! # Element types
//!
//! Parameters and gradients may be `f32`, `f16` or `bf16` in any mixture, and gradients may change their type from step to step: each
//! new set of types compiles kernels at its first step. Kernels compute in `f32` and convert by integer arithmetic. Where an
//! odd number of 16-bit elements ends in the middle of a word, the other half stays as it is.
//!
//! # Row-sparse gradients
//!
//! The lists come from the host, the values from the host or the device; nothing is read back. Rows that are listed more than
//! once are summed by a kernel first, in `f32`. The dispatches are made anew at each step. The values of one gradient must fit one
//! binding. There are none with 8-bit state.
//!
//! # Offloaded state
//!
//! The state of a rule that asks for it ([`offloaded`](optim_core::rule::UpdateRule::offloaded)) lives in the host's memory. A
//! step uploads it a page of at most 64 MiB at a time, updates what belongs to the page and reads it back: **it waits for the
//! device once a page**.
//!
//! # Crate layout
//!
//! | module | holds |
//! | --- | --- |
//! | `device` | the device, its errors: calls to wgpu that can fail go through `scoped` or `wait` |
//! | `layout` | pieces, tiles |
//! | `kind` | tensors of one kind: their pages of state, and memory beside it |
//! | `buffer`, `transfer` | memory on the device, and to and from it |
//! | `belt` | what the host says at each step, recorded among its commands |
//! | `pipeline` | from a rule to its kernels |
//! | `factored` | the walks of a rule with second moments by row and by column |
//! | `offload` | state that stays on the host |
//! | `schedule` | from memory to a list of dispatches |
//! | `rows` | the same for row-sparse gradients |
//! | `gather` | small buffers, moved into few and back |
//! | `guard` | what is measured and decided before an update, and how the host learns of it |
//! | `engine` | a step |
//! | `timer` | how long one takes |
//!
//! There is no file for a rule: its kernels follow from its source, its entry function and how its memory is kept.
//!
//! # Lost devices
//!
//! A backend with its own device reports [`DeviceLost`](optim_core::Error::DeviceLost) at the next call after the driver
//! noticed. On the caller's device no handler is installed, so a loss shows only where something is read back; call
//! [`GpuBackend::report_lost`] from your own handler to have it reported at once.
#![forbid(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use optim_core::backend::Plan;
use optim_core::{Backend, DType, Engine, Error, Grad, Optimizer, ParamMut, Result, StepReport};

pub use wgpu;

mod belt;
mod buffer;
mod device;
mod engine;
mod factored;
mod gather;
mod guard;
mod kind;
mod layout;
mod offload;
mod pipeline;
mod rows;
mod schedule;
mod timer;
mod transfer;

pub use buffer::{GpuBuffer, Real};
pub use device::{Counters, Gather, GpuOptions};

use device::Context;
use engine::GpuEngine;
use transfer::Region;

/// A GPU, ready for use. A cheap handle; clones are the same device.
///
/// ```no_run
/// use optim_core::{Adam, Parameter};
/// use optim_gpu::GpuBackend;
///
/// # fn main() -> optim_core::Result<()> {
/// let gpu = GpuBackend::new()?;
/// let mut optimizer = Adam::new(1e-3).params([Parameter::new("weight", [3])]).build(gpu.clone())?;
///
/// let weight = gpu.buffer(&[1.0, 2.0, 3.0])?;
/// let gradient = gpu.buffer(&[0.1, -0.1, 0.0])?;
/// let report = optimizer.step(&mut [(&weight).into()], &[(&gradient).into()])?;
/// println!("update {}: {:?}", report.step, weight.read()?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct GpuBackend {
    context: Arc<Context>,
}

impl GpuBackend {
    /// Opens a device: the fastest adapter there is, a software one if there is no other (see [`describe`](Self::describe)).
    ///
    /// The variables `WGPU_BACKEND` (`vulkan`, `metal`, `dx12`), `WGPU_ADAPTER_NAME` (a part of a name) and `WGPU_POWER_PREF`
    /// (`low`, `high`) narrow the choice.
    ///
    /// # Errors
    /// [`NoAdapter`](optim_core::Error::NoAdapter) with a line on how to get one;
    /// [`DeviceLimit`](optim_core::Error::DeviceLimit); [`Device`](optim_core::Error::Device) where the driver refuses.
    pub fn new() -> Result<Self> {
        Self::with_options(&GpuOptions::default())
    }

    /// As [`new`](Self::new), with options.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(options: &GpuOptions) -> Result<Self> {
        Ok(Self { context: Arc::new(Context::open(options)?) })
    }

    /// Uses the caller's device. No handler is installed on it, and its limits are taken as they are: the default limits of
    /// WebGPU are enough.
    ///
    /// # Errors
    /// [`DeviceLimit`](optim_core::Error::DeviceLimit) that names what is missing.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        Self::from_wgpu_with_options(device, queue, &GpuOptions::default())
    }

    /// As [`from_wgpu`](Self::from_wgpu), with options.
    ///
    /// # Errors
    /// As [`from_wgpu`](Self::from_wgpu).
    pub fn from_wgpu_with_options(device: wgpu::Device, queue: wgpu::Queue, options: &GpuOptions) -> Result<Self> {
        Ok(Self { context: Arc::new(Context::adopt(device, queue, options)?) })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.context.device
    }

    /// The queue. What is submitted to it runs in order with the steps.
    #[must_use]
    pub fn queue(&self) -> &wgpu::Queue {
        &self.context.queue
    }

    /// What wgpu knows of the adapter.
    #[must_use]
    pub fn adapter_info(&self) -> &wgpu::AdapterInfo {
        &self.context.info
    }

    /// Whether the adapter is a processor that plays a GPU: right for tests, slow for training.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.context.is_software()
    }

    /// Dispatches, submissions and waits so far, of all clones and engines together.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.context.counters()
    }

    /// How long the last step took on the device, of all optimizers of this backend and its clones: from the end of what came before
    /// it to the end of its last command. Copies of small buffers and of host memory to the device are included, reading back is not.
    /// `None` without [`GpuOptions::timestamps`], and before the first step. Waits for the device.
    ///
    /// # Errors
    /// What the device returns.
    pub fn last_step_time(&self) -> Result<Option<Duration>> {
        self.context.ready()?;
        self.context.timer.as_ref().map_or(Ok(None), |timer| timer.last(&self.context))
    }

    /// Notes that the device is lost: every later call returns [`DeviceLost`](optim_core::Error::DeviceLost). For the caller's
    /// own handler of a device that was given to [`from_wgpu`](Self::from_wgpu).
    pub fn report_lost(&self, detail: impl Into<String>) {
        let _ = self.context.lose(detail);
    }

    /// New memory with these values.
    ///
    /// # Errors
    /// What the device returns; [`DeviceLimit`](optim_core::Error::DeviceLimit) for more than a buffer can hold.
    pub fn buffer(&self, values: &[f32]) -> Result<GpuBuffer> {
        self.buffer_of(values)
    }

    /// As [`buffer`](Self::buffer), of `f16` or `bf16` as well.
    ///
    /// # Errors
    /// As [`buffer`](Self::buffer).
    pub fn buffer_of<T: Real>(&self, values: &[T]) -> Result<GpuBuffer> {
        let buffer = self.arena_of(T::DTYPE, &[values.len()])?.remove(0);
        buffer.write_of(values)?;
        Ok(buffer)
    }

    /// New memory, all zero.
    ///
    /// # Errors
    /// As [`buffer`](Self::buffer).
    pub fn zeros(&self, len: usize) -> Result<GpuBuffer> {
        Ok(self.arena(&[len])?.remove(0))
    }

    /// New memory, all `value`.
    ///
    /// # Errors
    /// As [`buffer`](Self::buffer).
    pub fn filled(&self, len: usize, value: f32) -> Result<GpuBuffer> {
        let buffer = self.zeros(len)?;
        let mut encoder = self.context.encoder()?;
        let region = Region { buffer: &buffer.buffer, offset: buffer.offset, size: buffer.size() };
        self.context.fill(&mut encoder, region, value.to_bits())?;
        self.context.submit([encoder])?;
        Ok(buffer)
    }

    /// New memory for many tensors, all zero, packed into as few buffers as the device allows.
    ///
    /// With parameters in one arena and gradients in another, a step has one dispatch for each page of state and copies nothing, where
    /// tensors in buffers of their own are copied or take a dispatch each.
    ///
    /// # Errors
    /// As [`buffer`](Self::buffer).
    pub fn arena(&self, lens: &[usize]) -> Result<Vec<GpuBuffer>> {
        self.arena_of(DType::F32, lens)
    }

    /// As [`arena`](Self::arena), of another element type.
    ///
    /// # Errors
    /// As [`buffer`](Self::buffer).
    pub fn arena_of(&self, dtype: DType, lens: &[usize]) -> Result<Vec<GpuBuffer>> {
        self.context.ready()?;
        self.context.arena(dtype, lens)
    }

    /// As [`Optimizer::step`], but recorded into the caller's encoder: it submits nothing and waits for nothing. It polls nothing
    /// either, but with masters or averages, until the first step, which sets them, is known to have run or to be lost. The step
    /// happens when the caller submits, between the commands recorded before and after; those may compute the gradients and use
    /// the parameters. One encoder takes any number of steps, of any optimizers of this device, as long as all memory is on it.
    ///
    /// Submit encoders in the order in which their steps were recorded, and before the next plain [`step`](Optimizer::step) of the
    /// same optimizer: its state is one thing, and whatever reads it (a step, a state, a slot) sees what has been submitted; adding a
    /// group or moving rows leaves behind what has not. Masters and averages that are not set yet are a [`State`](Error::State) error.
    /// An encoder that is dropped, or that wgpu refuses when it is finished or submitted, takes its steps with it. A later step of the
    /// optimizer says so, once, as soon as it is known, with [`StepLost`](Error::StepLost); the step after that goes on as if the lost
    /// steps had had no gradients, except that for rules which begin otherwise (SGD with dampening, ASGD, Rprop, Adan) they count as
    /// a parameter's first. A guarded step that runs in another order than it was recorded in, so that it would be an update for which
    /// it has no numbers, changes nothing and counts as lost.
    ///
    /// With a guard the report is [`Pending`](optim_core::Outcome::Pending). Verdicts come back with the caller's submissions and
    /// polls, and [`try_report`](Optimizer::try_report) polls; up to 32 may be pending.
    ///
    /// ```no_run
    /// # use optim_core::{Optimizer, Result};
    /// # use optim_gpu::{GpuBackend, GpuBuffer};
    /// # fn train(gpu: &GpuBackend, optimizer: &mut Optimizer, weight: &GpuBuffer, gradient: &GpuBuffer) -> Result<()> {
    /// let mut encoder = gpu.device().create_command_encoder(&Default::default());
    /// // Record the passes that compute the gradient; then:
    /// let report = gpu.encode_step(&mut encoder, optimizer, &mut [weight.into()], &[gradient.into()])?;
    /// gpu.queue().submit([encoder.finish()]);
    /// # assert!(report.applied());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Optimizer::step`]: nothing has changed then, and nothing has been recorded but what sets masters and averages anew.
    /// [`Unsupported`](Error::Unsupported) for an optimizer of another backend or device, or with offloaded state;
    /// [`Memory`](Error::Memory) for parameters or gradients on the host; [`State`](Error::State) if the numbers of the step depend on
    /// pending verdicts: more than 32 of them, a list of rates that ends, or a rule whose first update differs.
    ///
    /// An encoder of another device cannot be recognized. wgpu refuses it when it is finished, or, if it is of another instance of
    /// wgpu, here, with [`Device`](Error::Device).
    ///
    /// There is no counterpart of [`step_accumulated`](Optimizer::step_accumulated), which submits what it does.
    pub fn encode_step(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        optimizer: &mut Optimizer,
        params: &mut [ParamMut<'_>],
        grads: &[Grad<'_>],
    ) -> Result<StepReport> {
        let backend: &dyn Any = optimizer.backend();
        let gpu = backend.downcast_ref::<Self>();
        if !gpu.is_some_and(|gpu| gpu.context.shares_device_with(&self.context)) {
            // Two devices of one adapter describe themselves alike.
            let place = if gpu.is_some() { "another device" } else { "another backend" };
            let what = format!("encoding a step of an optimizer of {place} ({})", optimizer.backend().describe());
            return Err(Error::Unsupported { what, backend: format!("gpu ({})", self.context.describe()) });
        }
        optimizer.record_step(encoder, params, grads)
    }

    /// `len` elements of the caller's buffer, from a byte offset on; as [`GpuBuffer::from_wgpu`], but tied to this device: the
    /// offset need only be a multiple of the device's `min_storage_buffer_offset_alignment`, a buffer of another device is
    /// refused here, and it can be read and written where its usage allows.
    ///
    /// # Errors
    /// [`Memory`](optim_core::Error::Memory) that says what was expected.
    pub fn wrap(&self, buffer: wgpu::Buffer, offset: u64, len: usize) -> Result<GpuBuffer> {
        self.wrap_of(DType::F32, buffer, offset, len)
    }

    /// As [`wrap`](Self::wrap), of another element type; see [`GpuBuffer::from_wgpu_of`].
    ///
    /// # Errors
    /// As [`wrap`](Self::wrap).
    pub fn wrap_of(&self, dtype: DType, buffer: wgpu::Buffer, offset: u64, len: usize) -> Result<GpuBuffer> {
        self.context.ready()?;
        let alignment = self.context.limits.min_storage_buffer_offset_alignment.into();
        let buffer = GpuBuffer::foreign(dtype, buffer, offset, len, alignment, Some(Arc::clone(&self.context)))?;
        // Of what is empty nothing is bound, and it may have no bytes.
        if len > 0 {
            self.context.refuse_strangers("buffer", "wgpu::Buffer", &buffer.buffer)?;
        }
        Ok(buffer)
    }
}

impl Backend for GpuBackend {
    fn name(&self) -> &'static str {
        "gpu"
    }

    /// The adapter's name, the driver, wgpu's backend, and "software" for a processor that plays a GPU.
    fn describe(&self) -> String {
        self.context.describe()
    }

    fn engine(&self, plan: &Plan<'_>) -> Result<Box<dyn Engine>> {
        self.context.ready()?;
        Ok(Box::new(GpuEngine::new(Arc::clone(&self.context), plan)?))
    }
}

impl fmt::Debug for GpuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GpuBackend").field(&self.context.describe()).finish()
    }
}
