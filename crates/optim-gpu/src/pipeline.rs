//! From a rule to its pipelines. There is no Rust code for a rule here: its kernels follow from its source, its entry function
//! and its number of slots.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError};

use optim_core::rule::Passes;
use optim_core::{DType, Error, Result, Rule};
use optim_shaders::{MAX_SLOTS, Moments, Norms, Width};

use crate::device::Context;

/// What a rule's kernels are made from.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Program {
    name: &'static str,
    /// WGSL: ours, or the user's.
    source: Cow<'static, str>,
    entry: &'static str,
    slots: usize,
    /// The words of its step scalars.
    scalars: usize,
    pub(crate) sums: Sums,
    /// How a factored rule keeps its second moments.
    pub(crate) moments: Moments,
}

/// What is summed over each parameter before the update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sums {
    /// Nothing.
    Nothing,
    /// The rule's own terms.
    Rule,
    /// Those of the layer-wise trust ratio.
    Trust,
    /// Rows and columns, then the parameter: see `factored`.
    Factored,
}

/// One kernel of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Sums the listed rows of a gradient.
    Rows,
    /// Sums slices.
    Measure(Width),
    /// Completes the records from the sums.
    Finish,
    /// The rule's update.
    Update(Width),
    /// A walk of a factored rule.
    Factored(Walk),
}

impl Stage {
    /// The kernel's function.
    fn entry_point(self) -> &'static str {
        match self {
            Self::Rows | Self::Measure(_) | Self::Finish | Self::Update(_) => "main",
            Self::Factored(walk) => optim_shaders::FACTORED_WALKS[walk as usize],
        }
    }
}

/// The walks of a factored rule, in the order of [`optim_shaders::FACTORED_WALKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Walk {
    /// Second moments by row.
    Rows,
    /// Second moments by column.
    Columns,
    /// Each row's part of their mean.
    Means,
    /// The second moments of a vector.
    Vectors,
    /// The sums of slices.
    Norms,
    /// The record, of the sums.
    Totals,
    /// The update.
    Updates,
}

/// What a kernel is made from.
pub(crate) type KernelKey = (Arc<Program>, Stage);

/// A compiled kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) bindings: wgpu::BindGroupLayout,
}

impl Program {
    /// The program of a rule, or an error that this backend does not run the rule.
    pub(crate) fn new(rule: &Rule) -> Result<Self> {
        let unsupported = |what| Err(Error::Unsupported { what, backend: "gpu".into() });
        let spec = rule.spec();
        let name = spec.name();
        let source = if let Rule::Custom(own) = rule.kernel() {
            Cow::Owned(own.wgsl().to_owned())
        } else if let Some(source) = optim_shaders::rule(spec.source()) {
            Cow::Borrowed(source)
        } else {
            return unsupported(format!("the rule {name:?}"));
        };
        let sums = match spec.passes() {
            _ if spec.has_trust() => Sums::Trust,
            Passes::Elementwise => Sums::Nothing,
            Passes::Factored => Sums::Factored,
            Passes::Norms if matches!(source, Cow::Borrowed(_)) => Sums::Rule,
            passes => return unsupported(format!("the rule {name:?} with passes {passes:?}")),
        };
        if spec.offloaded() && sums != Sums::Nothing {
            return unsupported(format!("the rule {name:?} with sums and offloaded state"));
        }
        let slots = spec.slots();
        let compressed = slots.iter().any(|slot| slot.dtype == DType::F16);
        let (slots, moments) = (slots.len(), if compressed { Moments::F16 } else { Moments::F32 });
        // The sums take a binding.
        if slots > MAX_SLOTS - usize::from(sums == Sums::Rule) {
            return unsupported(format!("a rule of {slots} slots"));
        }
        Ok(Self { name, source, entry: spec.entry(), slots, scalars: spec.scalar_names().len(), sums, moments })
    }

    /// Whether the source is the user's.
    pub(crate) fn is_custom(&self) -> bool {
        matches!(self.source, Cow::Owned(_))
    }

    /// The slots that a kernel of this program binds.
    pub(crate) fn slots(&self, stage: Stage) -> usize {
        match (stage, self.sums) {
            (Stage::Rows | Stage::Finish | Stage::Factored(_), _) | (Stage::Measure(_), Sums::Trust) => 0,
            (Stage::Measure(_) | Stage::Update(_), _) => self.slots,
        }
    }

    fn compose(&self, stage: Stage) -> String {
        let norms = match self.sums {
            Sums::Nothing | Sums::Rule | Sums::Factored => Norms::Rule { source: &self.source, slots: self.slots },
            Sums::Trust => Norms::Trust { scalars: self.scalars },
        };
        match stage {
            Stage::Rows => optim_shaders::compose_rows(),
            Stage::Measure(width) => optim_shaders::compose_measure(&norms, width),
            Stage::Finish => optim_shaders::compose_finish(&norms),
            Stage::Factored(_) => optim_shaders::compose_factored(&self.source, self.moments),
            Stage::Update(width) => optim_shaders::compose(&self.source, self.entry, self.slots, width),
        }
    }

    /// The bindings that `optim_shaders` declares.
    fn layout(&self, stage: Stage) -> Vec<wgpu::BindGroupLayoutEntry> {
        const READ: bool = true;
        const WRITE: bool = false;
        let slots = self.slots(stage);
        let (head, slot, tail): (&[bool], bool, &[bool]) = match stage {
            Stage::Rows => (&[READ, READ, WRITE], READ, &[]),
            // Records, slices, params, grads; parts.
            Stage::Measure(_) => (&[READ, READ, READ, READ], READ, &[WRITE]),
            // Records, spans, parts.
            Stage::Finish => (&[WRITE, READ, READ], READ, &[]),
            // Records, dims, params, grads, the moments, the rows' parts, the slices' sums.
            Stage::Factored(_) => (&[WRITE, READ, WRITE, READ, WRITE, WRITE, WRITE, WRITE, WRITE], READ, &[]),
            // Records, tiles, params, grads.
            Stage::Update(_) => (&[READ, READ, WRITE, READ], WRITE, &[]),
        };
        let accesses = head.iter().chain(std::iter::repeat_n(&slot, slots)).chain(tail);
        let dynamic = |binding| binding == 0 && stage != Stage::Rows;
        let mut entries: Vec<_> =
            (0..).zip(accesses).map(|(binding, &read_only)| storage(binding, read_only, dynamic(binding))).collect();
        if let Stage::Factored(_) = stage {
            let (ty, min_binding_size) = (wgpu::BufferBindingType::Uniform, None);
            entries[1].ty = wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size };
        }
        entries
    }
}

impl Context {
    /// The kernel; compiled at its first use on this device.
    pub(crate) fn kernel(&self, program: &Arc<Program>, stage: Stage) -> Result<Kernel> {
        let key = (Arc::clone(program), stage);
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&key) {
            return Ok(kernel.clone());
        }
        let source = program.compose(stage);
        let label = format!("{} {} {stage:?}", program.name, program.entry);
        let kernel = self.scoped(|| {
            let bindings = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&label),
                entries: &program.layout(stage),
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
                entry_point: Some(stage.entry_point()),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            });
            Kernel { pipeline, bindings }
        });
        let kernel = kernel.map_err(|error| match error {
            Error::Device { detail } if program.is_custom() => Error::Shader { rule: program.name.into(), detail },
            other => other,
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

const fn storage(binding: u32, read_only: bool, has_dynamic_offset: bool) -> wgpu::BindGroupLayoutEntry {
    let ty = wgpu::BufferBindingType::Storage { read_only };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
        count: None,
    }
}
