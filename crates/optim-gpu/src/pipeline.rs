//! From a rule to its pipelines. There is no Rust code for a rule here: its kernels follow from its source, its entry function
//! and its number of slots.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError};

use optim_core::backend::{SlotFormat, Tensor};
use optim_core::format::{self, Code8};
use optim_core::rule::{Passes, Slot};
use optim_core::{DType, Error, Result, Rule};
use optim_shaders::{Access, Format, MAX_SLOTS, Master, Moments, Norms, Storage, Work};

use crate::device::Context;
use crate::kind;

/// What the kernels of one kind of tensors are made from: the rule, and how memory is kept.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Program {
    name: &'static str,
    /// WGSL: ours, or the user's.
    source: Cow<'static, str>,
    entry: &'static str,
    pub(crate) storage: Storage,
    pub(crate) sums: Sums,
    /// How a factored rule keeps its second moments.
    pub(crate) moments: Moments,
    /// Whether the state stays on the host.
    offloaded: bool,
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

/// One kernel of a program. The format is that of the gradients; the flag says whether they are shaped row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Sums the listed rows of a gradient.
    Rows(Format),
    /// Sums slices.
    Measure(Format, Access, bool),
    /// Completes the records from the sums.
    Finish,
    /// The rule's update.
    Update(Format, Access, bool),
    /// Makes the numbers of rows.
    Units(Format),
    /// Measures gradients for the guard.
    Gradients(Format, Access),
    /// Adds up what was measured of each.
    Totals,
    /// The guard's decision.
    Decide,
    /// What needs no rule.
    Work(Work, Format, Access),
    /// A walk of a factored rule.
    Factored(Walk),
    /// Moves words from so many buffers, or back to them.
    Gather { buffers: u32, back: bool },
}

impl Stage {
    /// Whether it shapes gradients row by row.
    pub(crate) const fn reads_units(self) -> bool {
        matches!(self, Self::Measure(_, _, true) | Self::Update(_, _, true) | Self::Work(Work::Shape, ..))
    }

    /// The kernel's function.
    fn entry_point(self) -> &'static str {
        match self {
            Self::Factored(walk) => optim_shaders::FACTORED_WALKS[walk as usize],
            _ => "main",
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
    /// The program of a tensor with this rule, or an error that this backend does not run the rule.
    pub(crate) fn new(rule: &Rule, tensor: &Tensor) -> Result<Self> {
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
        let offloaded = spec.offloaded();
        if offloaded && sums != Sums::Nothing {
            return unsupported(format!("the rule {name:?} with sums and offloaded state"));
        }
        let slots = spec.slots();
        let compressed = slots.iter().any(|slot| slot.dtype == DType::F16);
        let moments = if compressed { Moments::F16 } else { Moments::F32 };
        if slots.len() > MAX_SLOTS {
            return unsupported(format!("a rule of {} slots", slots.len()));
        }
        let storage = storage(tensor, if sums == Sums::Factored { &[] } else { &slots });
        Ok(Self { name, source, entry: spec.entry(), storage, sums, moments, offloaded })
    }

    /// The program that accumulates gradients.
    pub(crate) fn accumulate() -> Self {
        Self {
            name: "accumulate",
            source: Cow::Borrowed(optim_shaders::ACCUMULATE),
            entry: "update",
            storage: Storage::plain(0),
            sums: Sums::Nothing,
            moments: Moments::F32,
            offloaded: false,
        }
    }

    /// Whether the source is the user's.
    pub(crate) fn is_custom(&self) -> bool {
        matches!(self.source, Cow::Owned(_))
    }

    fn compose(&self, stage: Stage) -> String {
        let norms = if self.sums == Sums::Trust { Norms::Trust } else { Norms::Rule(&self.source) };
        match stage {
            Stage::Rows(values) => optim_shaders::compose_rows(values),
            Stage::Measure(grad, access, rows) => {
                optim_shaders::compose_measure(&norms, &self.storage, grad, access, rows)
            }
            Stage::Units(grad) => optim_shaders::compose_units(&self.storage, grad),
            Stage::Gradients(grad, access) => optim_shaders::compose_guard_measure(grad, access),
            Stage::Totals => optim_shaders::compose_guard_totals(),
            Stage::Decide => optim_shaders::compose_decide(),
            Stage::Finish => optim_shaders::compose_finish(&norms),
            Stage::Factored(_) => optim_shaders::compose_factored(&self.source, self.moments),
            Stage::Update(grad, access, rows) => {
                optim_shaders::compose(&self.source, self.entry, &self.storage, grad, access, rows)
            }
            Stage::Gather { buffers, back } => optim_shaders::compose_gather(buffers as usize, back),
            Stage::Work(work, grad, access) => optim_shaders::compose_work(work, &self.storage, grad, access),
        }
    }

    /// The bindings that `optim_shaders` declares.
    fn layout(stage: Stage) -> Vec<wgpu::BindGroupLayoutEntry> {
        const READ: Bound = Bound::Read;
        const WRITE: Bound = Bound::Write;
        const UNIFORM: Bound = Bound::Uniform;
        let bound: &[Bound] = match stage {
            // Pieces, together, the buffers.
            Stage::Gather { buffers, back } => {
                let (together, buffer) = if back { (READ, WRITE) } else { (WRITE, READ) };
                let buffers = std::iter::repeat_n(buffer, buffers as usize);
                return (0..)
                    .zip([READ, together].into_iter().chain(buffers))
                    .map(|(nth, bound)| entry(nth, bound))
                    .collect();
            }
            // List, values, sums; or spans, parts, measured.
            Stage::Rows(_) | Stage::Totals => &[READ, READ, WRITE],
            // Records, slices, params, grads, state, page; parts; the rows' numbers.
            Stage::Measure(_, _, false) => &[READ, READ, READ, READ, READ, UNIFORM, WRITE],
            Stage::Measure(_, _, true) => &[READ, READ, READ, READ, READ, UNIFORM, WRITE, READ],
            // The same; the rows' numbers, carries.
            Stage::Units(_) => &[READ, READ, READ, READ, READ, UNIFORM, WRITE, WRITE],
            // Guard, slices, loss scale, grads, parts, carries.
            Stage::Gradients(..) => &[READ, READ, READ, READ, WRITE, WRITE],
            // Records, variants, measured, groups, control, verdict.
            Stage::Decide => &[WRITE, READ, READ, READ, WRITE, WRITE],
            // Records, spans, parts.
            Stage::Finish => &[WRITE, READ, READ],
            // Records, dims, params, grads, the moments, the rows' parts, the slices' sums.
            Stage::Factored(_) => &[WRITE, UNIFORM, WRITE, READ, WRITE, WRITE, WRITE, WRITE, WRITE],
            // Records, tiles, params, grads, state, page; the scratch.
            Stage::Work(Work::Load, ..) => &[READ, READ, WRITE, READ, WRITE, UNIFORM, WRITE, WRITE],
            Stage::Work(Work::Shape, ..) => &[READ, READ, WRITE, READ, WRITE, UNIFORM, WRITE, WRITE, READ],
            // The same without scratch; the rows' numbers.
            Stage::Update(_, _, true) => &[READ, READ, WRITE, READ, WRITE, UNIFORM, READ],
            Stage::Work(work, ..) if work.writes_grads() => &[READ, READ, WRITE, WRITE, WRITE, UNIFORM],
            Stage::Update(..) | Stage::Work(..) => &[READ, READ, WRITE, READ, WRITE, UNIFORM],
        };
        (0..).zip(bound).map(|(binding, &bound)| entry(binding, bound)).collect()
    }
}

/// How the kernels call what is kept.
fn storage(tensor: &Tensor, slots: &[Slot]) -> Storage {
    let slot = |slot: &Slot| match tensor.slot_format(slot) {
        SlotFormat::F32 | SlotFormat::F16 => optim_shaders::SlotFormat::F32,
        SlotFormat::Bf16 => optim_shaders::SlotFormat::Bf16,
        SlotFormat::Block8(Code8::Signed) => optim_shaders::SlotFormat::Signed8,
        SlotFormat::Block8(Code8::Positive) => optim_shaders::SlotFormat::Positive8,
    };
    let master = match tensor.master() {
        None | Some(format::Master::None) => Master::None,
        Some(format::Master::F32) => Master::F32,
        Some(format::Master::Stochastic) => Master::Stochastic,
        Some(format::Master::Split) => Master::Split,
    };
    let param = kind::format(tensor.parameter.dtype());
    Storage { param, master, slots: slots.iter().map(slot).collect(), ema: tensor.ema }
}

/// How a kernel binds a buffer.
#[derive(Debug, Clone, Copy)]
enum Bound {
    Read,
    Write,
    Uniform,
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
                entries: &Program::layout(stage),
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

    /// Whether a buffer can be bound on this device at all: an error if it is another device's, or destroyed.
    pub(crate) fn probe(&self, buffer: &wgpu::Buffer) -> Result<()> {
        self.scoped(|| {
            let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &[entry(0, Bound::Read)],
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

const fn entry(binding: u32, bound: Bound) -> wgpu::BindGroupLayoutEntry {
    let ty = match bound {
        Bound::Read => wgpu::BufferBindingType::Storage { read_only: true },
        Bound::Write => wgpu::BufferBindingType::Storage { read_only: false },
        Bound::Uniform => wgpu::BufferBindingType::Uniform,
    };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}
