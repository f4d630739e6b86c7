//! A device and its queue, and the two functions through which calls to wgpu go that can fail: [`Context::scoped`] for what
//! creates, records or submits, [`Context::wait`] for what waits. Between them no error is lost and no panic reaches the caller.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use optim_core::{Error, Result};

use crate::layout::{ALIGNMENT, SLICE, bytes};
use crate::pipeline::{Kernel, KernelKey};
use crate::timer::{self, Timer};

/// What a user can do where there is no adapter.
const INSTALL: &str = "install a driver; on Debian or Ubuntu this line installs a software GPU: \
                       sudo apt-get install -y mesa-vulkan-drivers libvulkan1";

/// The largest window: element indices within it stay far below 2³².
const MAX_WINDOW: u64 = 1 << 31;

/// How a [`GpuBackend`](crate::GpuBackend) behaves. The default is right for almost everyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuOptions {
    /// The largest part of a buffer that one dispatch sees; `None` for what the device allows. State is kept in pages of at most
    /// this size, and a tensor whose state is more is walked page by page. A page has room for a multiple of 64 elements, and at
    /// least for that many, whatever this is; for a multiple of 256 with 8-bit state, and of 16,384 for rules that sum over a
    /// parameter.
    pub window_bytes: Option<u64>,
    /// How long to wait for the device before giving up with [`Error::Timeout`]. Default 60 s.
    pub timeout: Duration,
    /// Whether the device notes when a step begins and ends, for [`GpuBackend::last_step_time`](crate::GpuBackend::last_step_time). Default
    /// off. It needs `wgpu::Features::TIMESTAMP_QUERY`, also of the caller's device.
    pub timestamps: bool,
    /// How small buffers of the caller's are gathered.
    pub gather: Gather,
}

/// How small buffers of the caller's come together before a step, so that few dispatches update them, and part after it: see
/// [the crate](crate#dispatches). On an NVIDIA H200 a copy takes 1.5 µs, and each buffer of a parameter needs three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gather {
    /// By copies on a software adapter, by dispatches on others.
    #[default]
    Auto,
    /// By a copy of each. Buffers need the usage `COPY_SRC`, of parameters `COPY_DST` too; those without are not gathered.
    Copies,
    /// By kernels that bind as many buffers at a time as the device lets a stage bind, at most 128; where that takes fewer dispatches
    /// than one for each buffer.
    Dispatches,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self { window_bytes: None, timeout: Duration::from_secs(60), timestamps: false, gather: Gather::Auto }
    }
}

/// How much a backend has asked of its device since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Dispatches of a kernel.
    pub dispatches: u64,
    /// Submissions to the queue.
    pub submits: u64,
    /// Times the host waited for the device.
    pub waits: u64,
    /// Times the host asked the device, without waiting, what is done.
    pub polls: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) dispatches: AtomicU64,
    pub(crate) submits: AtomicU64,
    pub(crate) waits: AtomicU64,
    pub(crate) polls: AtomicU64,
}

/// What the device told its handlers.
#[derive(Debug, Default)]
struct Faults {
    /// Set once, when the device is lost.
    lost: OnceLock<String>,
    /// An error outside of every scope, until it is reported.
    uncaptured: Mutex<Option<String>>,
}

/// What all clones of a backend, its engines and its buffers share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: wgpu::AdapterInfo,
    pub(crate) limits: wgpu::Limits,
    /// The largest part of a buffer that one dispatch sees, in words: a multiple of [`ALIGNMENT`].
    pub(crate) window: usize,
    /// The most bytes that one binding can have, whatever the window.
    pub(crate) binding: u64,
    pub(crate) kernels: Mutex<HashMap<KernelKey, Kernel>>,
    pub(crate) counts: Counts,
    /// Whether the device was opened here, with an instance of its own.
    own: bool,
    pub(crate) timeout: Duration,
    pub(crate) gather: Gather,
    /// If steps are timed.
    pub(crate) timer: Option<Timer>,
    faults: Arc<Faults>,
}

impl Context {
    /// Opens a device of its own.
    pub(crate) fn open(options: &GpuOptions) -> Result<Self> {
        let mut description = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        // Makes a creation fail while the device still has room for what drivers need by themselves.
        description.memory_budget_thresholds.for_resource_creation.get_or_insert(97);
        let backends = description.backends;
        let instance = guarded(|| wgpu::Instance::new(description)).map_err(no_adapter)?;
        let adapter = pollster::block_on(find_adapter(&instance, backends))?;
        let mut required_features = wgpu::Features::empty();
        if options.timestamps {
            if !adapter.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
                return Err(timer::unsupported());
            }
            required_features |= wgpu::Features::TIMESTAMP_QUERY;
        }
        let description = wgpu::DeviceDescriptor {
            label: Some("optim-gpu"),
            required_features,
            required_limits: adapter.limits(),
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&description))
            .map_err(|error| Error::Device { detail: error.to_string() })?;

        let context = Self::new(device, queue, true, options)?;
        let faults = Arc::clone(&context.faults);
        context.device.set_device_lost_callback(move |reason, message| {
            let _ = faults.lost.set(format!("{reason:?} {message}").trim_end().to_owned());
        });
        let faults = Arc::clone(&context.faults);
        context.device.on_uncaptured_error(Arc::new(move |error| {
            *faults.uncaptured.lock().unwrap_or_else(PoisonError::into_inner) = Some(describe(&error));
        }));
        Ok(context)
    }

    /// Uses the caller's device. No handler is installed on it: each is single, and would displace the caller's.
    pub(crate) fn adopt(device: wgpu::Device, queue: wgpu::Queue, options: &GpuOptions) -> Result<Self> {
        Self::new(device, queue, false, options)
    }

    fn new(device: wgpu::Device, queue: wgpu::Queue, own: bool, options: &GpuOptions) -> Result<Self> {
        let limits = device.limits();
        let needs = [
            ("max_storage_buffers_per_shader_stage", 8, limits.max_storage_buffers_per_shader_stage),
            // These, and a uniform one.
            (
                "max_buffers_and_acceleration_structures_per_shader_stage",
                9,
                limits.max_buffers_and_acceleration_structures_per_shader_stage,
            ),
            ("max_compute_workgroup_size_x", optim_shaders::WORKGROUP, limits.max_compute_workgroup_size_x),
            (
                "max_compute_invocations_per_workgroup",
                optim_shaders::WORKGROUP,
                limits.max_compute_invocations_per_workgroup,
            ),
            ("max_compute_workgroups_per_dimension", 65_535, limits.max_compute_workgroups_per_dimension),
        ];
        for (what, expected, got) in needs {
            if got < expected {
                return Err(Error::DeviceLimit { what, expected: expected.into(), got: got.into() });
            }
        }
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(MAX_WINDOW);
        let least = bytes(ALIGNMENT);
        if most < least {
            return Err(Error::DeviceLimit { what: "max_storage_buffer_binding_size", expected: least, got: most });
        }
        let window = options.window_bytes.map_or(most, |bytes| bytes.clamp(least, most)) / least;
        let window = usize::try_from(window).expect("at most 2^23 blocks") * ALIGNMENT;
        // No slice of a sum lies in two windows.
        let window = if window < SLICE { window } else { window - window % SLICE };
        let mut context = Self {
            info: device.adapter_info(),
            timer: None,
            window,
            binding: most / least * least,
            device,
            queue,
            limits,
            kernels: Mutex::default(),
            counts: Counts::default(),
            own,
            timeout: options.timeout,
            gather: options.gather,
            faults: Arc::default(),
        };
        if options.timestamps {
            context.timer = Some(Timer::new(&context)?);
        }
        Ok(context)
    }

    /// Whether buffers of `other` can be used with this device. Handles are numbered within an instance, so those of two
    /// instances can look equal: a device that was opened here is only ever itself.
    pub(crate) fn shares_device_with(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (!self.own && !other.own && self.device == other.device)
    }

    /// The first error that nobody has been told of: a lost device, or an error outside of every scope.
    pub(crate) fn ready(&self) -> Result<()> {
        self.alive()?;
        match self.faults.uncaptured.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(detail) => Err(Error::Device { detail: format!("reported since the last call: {detail}") }),
            None => Ok(()),
        }
    }

    /// An error if the device is lost.
    pub(crate) fn alive(&self) -> Result<()> {
        match self.faults.lost.get() {
            Some(detail) => Err(Error::DeviceLost { detail: detail.clone() }),
            None => Ok(()),
        }
    }

    /// Notes that the device is lost.
    pub(crate) fn lose(&self, detail: impl Into<String>) -> Error {
        let detail = self.faults.lost.get_or_init(|| detail.into()).clone();
        Error::DeviceLost { detail }
    }

    /// Notes that the device is lost, as a failing call has shown, preferably in the words of its own callback.
    pub(crate) fn find_lost(&self, detail: impl fmt::Display) -> Error {
        let _ = guarded(|| self.device.poll(wgpu::PollType::Poll));
        self.lose(detail.to_string())
    }

    /// The error of a call on a buffer that was made without one: on a lost device buffers are made in silence, and unusable.
    pub(crate) fn lost_if_refused(&self, error: Error) -> Error {
        match error {
            Error::Device { detail } => self.find_lost(detail),
            other => other,
        }
    }

    pub(crate) fn timed_out(&self) -> Error {
        Error::Timeout { seconds: self.timeout.as_secs() }
    }

    /// Runs a call that creates or submits, and returns the error that wgpu would have made a panic of.
    pub(crate) fn scoped<T>(&self, call: impl FnOnce() -> T) -> Result<T> {
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let value = guarded(call);
        let memory = pollster::block_on(memory.pop());
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        self.alive()?;
        if let Some(error) = memory {
            return Err(Error::OutOfMemory { detail: describe(&error) });
        }
        if let Some(error) = validation.or(internal) {
            return Err(Error::Device { detail: describe(&error) });
        }
        value.map_err(|detail| Error::Device { detail })
    }

    /// Makes a buffer; `size` is in bytes.
    pub(crate) fn create_buffer(
        &self,
        label: &str,
        size: u64,
        usage: wgpu::BufferUsages,
        mapped_at_creation: bool,
    ) -> Result<wgpu::Buffer> {
        let got = self.limits.max_buffer_size;
        if size > got {
            return Err(Error::DeviceLimit { what: "max_buffer_size", expected: size, got });
        }
        self.scoped(|| {
            let description = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation };
            self.device.create_buffer(&description)
        })
    }

    /// An error if the device cannot run the kernels of rules that sum over a parameter.
    pub(crate) fn can_sum(&self) -> Result<()> {
        let limits = &self.limits;
        let (lanes, group) = (u64::from(optim_shaders::LANES), "max_compute_invocations_per_workgroup");
        let needs = [
            ("max_compute_workgroup_size_x", lanes, limits.max_compute_workgroup_size_x.into()),
            (group, lanes, limits.max_compute_invocations_per_workgroup.into()),
            ("max_compute_workgroup_storage_size", 20 * lanes, limits.max_compute_workgroup_storage_size.into()),
            ("max_storage_buffer_binding_size", bytes(SLICE), self.binding),
        ];
        match needs.into_iter().find(|(_, expected, got)| got < expected) {
            Some((what, expected, got)) => Err(Error::DeviceLimit { what, expected, got }),
            None => Ok(()),
        }
    }

    /// Ends encoders and hands them to the device, in one submission. Errors of the commands appear here.
    pub(crate) fn submit(
        &self,
        encoders: impl IntoIterator<Item = wgpu::CommandEncoder>,
    ) -> Result<wgpu::SubmissionIndex> {
        self.counts.submits.fetch_add(1, Relaxed);
        self.scoped(|| self.queue.submit(encoders.into_iter().map(wgpu::CommandEncoder::finish)))
    }

    /// Waits until the submission, or all that there are, is done and the callbacks of its mappings have been called.
    pub(crate) fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.counts.waits.fetch_add(1, Relaxed);
        let poll = wgpu::PollType::Wait { submission_index: submission, timeout: Some(self.timeout) };
        let polled = guarded(|| self.device.poll(poll));
        self.alive()?;
        match polled {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(wgpu::PollError::Timeout)) => Err(self.timed_out()),
            Ok(Err(error)) => Err(Error::Device { detail: error.to_string() }),
            // wgpu makes a panic of what the driver reports while waiting.
            Err(detail) => Err(self.lose(detail)),
        }
    }

    /// Has the callbacks called of mappings that are done. Does not wait.
    pub(crate) fn poll(&self) -> Result<()> {
        self.counts.polls.fetch_add(1, Relaxed);
        let polled = guarded(|| self.device.poll(wgpu::PollType::Poll));
        self.alive()?;
        match polled {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::Device { detail: error.to_string() }),
            // wgpu makes a panic of what the driver reports.
            Err(detail) => Err(self.lose(detail)),
        }
    }

    /// A new encoder.
    pub(crate) fn encoder(&self) -> Result<wgpu::CommandEncoder> {
        self.scoped(|| self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("optim-gpu") }))
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters {
            dispatches: self.counts.dispatches.load(Relaxed),
            submits: self.counts.submits.load(Relaxed),
            waits: self.counts.waits.load(Relaxed),
            polls: self.counts.polls.load(Relaxed),
        }
    }

    /// Whether the adapter is a processor that plays a GPU.
    pub(crate) fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        let wgpu::AdapterInfo { name, driver, driver_info, backend, device_type, .. } = &self.info;
        let driver = [driver.as_str(), driver_info.as_str()].join(" ");
        let software = if *device_type == wgpu::DeviceType::Cpu { ", software" } else { "" };
        match driver.trim() {
            "" => format!("{name}, {backend}{software}"),
            driver => format!("{name}, {driver}, {backend}{software}"),
        }
    }
}

/// The adapter that `WGPU_ADAPTER_NAME` names, or else the fastest; a software one if there is no other.
async fn find_adapter(instance: &wgpu::Instance, backends: wgpu::Backends) -> Result<wgpu::Adapter> {
    if let Ok(wanted) = std::env::var("WGPU_ADAPTER_NAME") {
        let adapters = instance.enumerate_adapters(backends).await;
        let names: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
        let found = names.iter().position(|name| name.to_lowercase().contains(&wanted.to_lowercase()));
        return found
            .and_then(|index| adapters.into_iter().nth(index))
            .ok_or_else(|| no_adapter(format!("WGPU_ADAPTER_NAME is {wanted:?}, the adapters are {names:?}")));
    }
    let power_preference = wgpu::PowerPreference::from_env().unwrap_or(wgpu::PowerPreference::HighPerformance);
    let options = wgpu::RequestAdapterOptions { power_preference, ..wgpu::RequestAdapterOptions::default() };
    instance.request_adapter(&options).await.map_err(|error| no_adapter(error.to_string()))
}

fn no_adapter(detail: String) -> Error {
    Error::NoAdapter { hint: INSTALL, detail }
}

/// Makes an `Err` of a panic.
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("wgpu panicked").to_owned()
    })
}

/// The error with its causes, on one line.
fn describe(error: &wgpu::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
