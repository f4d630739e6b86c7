//! From a rule's name to a pipeline. There is no Rust code for a rule here: its kernel follows from its name, its entry
//! function and its number of slots.

use std::sync::PoisonError;

use optim_core::{Error, Result};
use optim_shaders::Width;

use crate::device::Context;

/// What a kernel is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KernelKey {
    pub(crate) rule: &'static str,
    pub(crate) entry: &'static str,
    pub(crate) slots: usize,
    pub(crate) width: Width,
}

/// A compiled kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) bindings: wgpu::BindGroupLayout,
}

impl KernelKey {
    /// The rule's source, or an error that this backend does not run the rule.
    pub(crate) fn source(&self) -> Result<&'static str> {
        let unsupported = |what| Error::Unsupported { what, backend: "gpu".into() };
        if self.slots > optim_shaders::MAX_SLOTS {
            return Err(unsupported(format!("a rule of {} slots", self.slots)));
        }
        optim_shaders::rule(self.rule).ok_or_else(|| unsupported(format!("the rule {:?}", self.rule)))
    }
}

impl Context {
    /// The kernel; compiled at its first use on this device.
    pub(crate) fn kernel(&self, key: KernelKey) -> Result<Kernel> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&key) {
            return Ok(kernel.clone());
        }
        let source = optim_shaders::compose(key.source()?, key.entry, key.slots, key.width);
        let label = format!("{} {} {:?}", key.rule, key.entry, key.width);
        let kernel = self.scoped(|| {
            let bindings = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&label),
                entries: &layout_entries(key.slots),
            });
            let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&label),
                bind_group_layouts: &[Some(&bindings)],
                immediate_size: 0,
            });
            let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(&label),
                source: wgpu::ShaderSource::Wgsl(source.into()),
            });
            let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            });
            Kernel { pipeline, bindings }
        })?;
        kernels.insert(key, kernel.clone());
        Ok(kernel)
    }

    /// Whether a buffer can be bound on this device at all: an error if it is another device's.
    pub(crate) fn probe(&self, buffer: &wgpu::Buffer) -> Result<()> {
        self.scoped(|| {
            let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &[storage(0, true, false)],
            });
            let binding = wgpu::BufferBinding { buffer, offset: 0, size: wgpu::BufferSize::new(4) };
            let entry = wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(binding) };
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &layout,
                entries: &[entry],
            })
        })
        .map(drop)
    }
}

/// The bindings that `optim_shaders::compose` declares: records, tiles, params, grads, slots.
fn layout_entries(slots: usize) -> Vec<wgpu::BindGroupLayoutEntry> {
    let fixed = [storage(0, true, true), storage(1, true, false), storage(2, false, false), storage(3, true, false)];
    fixed.into_iter().chain((4..).take(slots).map(|binding| storage(binding, false, false))).collect()
}

const fn storage(binding: u32, read_only: bool, has_dynamic_offset: bool) -> wgpu::BindGroupLayoutEntry {
    let ty = wgpu::BufferBindingType::Storage { read_only };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
        count: None,
    }
}
