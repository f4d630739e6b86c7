//! Steps on the GPU, beside a kernel that moves as many bytes. By the wall clock: batches of steps, each ended by one wait. And by the
//! device's own clock, where it has one: steps one by one.

use optimizers::gpu::{GpuOptions, wgpu};
use optimizers::{Builder, DType, Error, GpuBackend, GpuBuffer, Grad, ParamMut, Rule, StateDType};

use crate::cases::{Case, Setting};
use crate::check::{Sample, check};
use crate::memory::{SCALES, Tensors};
use crate::table::{Output, Row};
use crate::timing::{ROUNDS, enough, middle, ratio, rounds, seconds};

const RULES: [&str; 3] = ["sgd", "momentum", "adam"];

/// The case of many small tensors, and the name of one tensor of the same size.
const TINY: (&str, &str) = ("tiny2000x256", "one512k");

/// Where parameters and gradients lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In arenas of the backend's.
    Arenas,
    /// Each in a buffer of the caller's.
    Buffers,
    /// In ranges of two large buffers of the caller's.
    Ranges,
    /// In slices on the host: uploaded and read back.
    Host,
}

impl Form {
    const ALL: [Self; 4] = [Self::Arenas, Self::Buffers, Self::Ranges, Self::Host];

    const fn name(self) -> &'static str {
        match self {
            Self::Arenas => "arenas",
            Self::Buffers => "buffers",
            Self::Ranges => "ranges",
            Self::Host => "host",
        }
    }

    /// Memory on the device for these tensors, if it is there.
    fn memory(self, gpu: &GpuBackend, lens: &[usize]) -> optimizers::Result<Vec<GpuBuffer>> {
        let buffer = |size| {
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            let label = Some("the caller's");
            gpu.device().create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
        };
        let bytes = |&len: &usize| 4 * len as u64;
        match self {
            Self::Arenas => gpu.arena(lens),
            Self::Buffers => lens.iter().map(|len| gpu.wrap(buffer(bytes(len)), 0, *len)).collect(),
            Self::Ranges => {
                let span = |len: &usize| bytes(len).next_multiple_of(256);
                let (whole, mut end) = (buffer(lens.iter().map(span).sum()), 0);
                let range = |len: &usize| {
                    end += span(len);
                    gpu.wrap(whole.clone(), end - span(len), *len)
                };
                lens.iter().map(range).collect()
            }
            Self::Host => Ok(Vec::new()),
        }
    }
}

/// Bytes of each array that one dispatch of the limit moves.
const WINDOW: u64 = 64 << 20;

/// Bytes that a workgroup of the limit moves of each array: 256 lanes, 16 bytes each.
const GROUP: u64 = 256 * 16;

/// Prints the rows whose label is wanted; whether there are any. On a software adapter the large cases are left out.
pub(crate) fn run(wanted: impl Fn(&str) -> bool, output: Output) -> Result<bool, Error> {
    let timed = GpuBackend::with_options(&GpuOptions { timestamps: true, ..GpuOptions::default() });
    let opened = match timed {
        Err(Error::Unsupported { .. }) => GpuBackend::new(),
        opened => opened,
    };
    let gpu = opened?;
    eprintln!("{}", gpu.adapter_info().name);
    let mut cases = Case::all();
    let tiny = cases.iter().position(|case| case.name == TINY.0).expect("a case");
    cases.insert(tiny + 1, cases[tiny].in_one(TINY.1));
    if gpu.is_software() {
        cases.retain(|case| [TINY.0, TINY.1].contains(&case.name));
    }
    let mut rows: Vec<Row> = Vec::new();
    for (form, case) in Form::ALL.iter().flat_map(|form| cases.iter().map(move |case| (*form, case))) {
        let whole = matches!(form, Form::Arenas | Form::Buffers);
        if !whole && ![TINY.0, TINY.1].contains(&case.name) {
            continue;
        }
        for rule in Rule::all() {
            let (dtype, state) = (DType::F32, StateDType::F32);
            let setting = Setting { rule, threads: 0, dtype, state, clip: false };
            let (name, label) = (setting.rule_name(), setting.label(&format!("gpu {}", form.name()), case.name));
            let known = rows.iter().any(|row| is(row, form, case.name, &name));
            if RULES.contains(&&*name) && !known && wanted(&label) {
                if rows.is_empty() {
                    output.head();
                }
                let row = measure(&gpu, form, case, &setting, &label)?;
                output.row(&row);
                rows.push(row);
            }
        }
    }
    for (form, rule) in Form::ALL.iter().flat_map(|form| RULES.map(|rule| (*form, rule))) {
        // Over the limit, which is the same for both and was measured beside either: rows are seconds apart.
        let of = |case| rows.iter().find(|row| is(row, form, case, rule))?.ratio_to_limit;
        if let (Some(tiny), Some(one)) = (of(TINY.0), of(TINY.1)) {
            let (name, times) = (form.name(), tiny / one);
            eprintln!(
                "{rule}, {name}: 2000 tensors take {times:.2} times as long as one of the same size; the aim is at most 3"
            );
        }
    }
    Ok(!rows.is_empty())
}

fn is(row: &Row, form: Form, case: &str, rule: &str) -> bool {
    row.form.as_deref() == Some(form.name()) && row.case == case && row.rule == rule
}

fn measure(gpu: &GpuBackend, form: Form, case: &Case, setting: &Setting, label: &str) -> optimizers::Result<Row> {
    let lens = case.lens();
    let mut optimizer = Builder::new(setting.rule.clone()).params(case.parameters(setting.dtype)).build(gpu.clone())?;
    let [mut params, grads] = SCALES.map(|scale| Tensors::new(setting.dtype, &lens, scale));
    let (memory, grads_memory) = (form.memory(gpu, &lens)?, form.memory(gpu, &lens)?);
    for (tensors, buffers) in [(&params, &memory), (&grads, &grads_memory)] {
        for (bytes, buffer) in tensors.bytes().into_iter().zip(buffers) {
            buffer.write(bytemuck::cast_slice(bytes))?;
        }
    }
    let sample = Sample::new(case, setting);
    let (start, sampled) = (params.at(&sample.places), grads.at(&sample.places));
    let (mut updated, gradients): (Vec<ParamMut<'_>>, Vec<Grad<'_>>) = match form {
        Form::Host => (params.params(), grads.grads()),
        _ => (memory.iter().map(Into::into).collect(), grads_memory.iter().map(Into::into).collect()),
    };
    let mut step = |updated: &mut [ParamMut<'_>]| {
        assert!(optimizer.step(updated, &gradients).expect("a step").applied(), "applied");
    };

    check(label, setting, &sample, start, &sampled, grads.norm(), || {
        step(&mut updated);
        let value = |&(tensor, element): &(usize, usize)| match &updated[tensor] {
            ParamMut::F32(values) => values[element],
            ParamMut::Device(memory) => memory.to_host().expect("values")[element],
            other => panic!("{other:?}"),
        };
        sample.places.iter().map(|place| f64::from(value(place))).collect()
    });

    let slots = setting.rule.spec().slots().len();
    let limit = Limit::new(gpu, case.elements(), slots);
    let wait =
        || gpu.device().poll(wgpu::PollType::Wait { submission_index: None, timeout: None }).expect("the device");
    let mut limits = |calls: u32| {
        (0..calls).for_each(|_| limit.run(gpu));
        wait();
    };
    let mut steps = |calls: u32| {
        (0..calls).for_each(|_| step(&mut updated));
        wait();
    };
    let [(few, short), (many, long)] = [enough(&mut limits), enough(&mut steps)];
    let (mut around, mut times) = (Vec::new(), Vec::new());
    for _ in 0..rounds(short + long) {
        around.push(seconds(few, &mut limits));
        times.push(seconds(many, &mut steps));
    }
    around.push(seconds(few, &mut limits));
    let mut on_device = Vec::new();
    for _ in 0..ROUNDS {
        steps(1);
        on_device.extend(gpu.last_step_time()?.map(|time| time.as_secs_f64() * 1e6));
    }
    let device_us = (!on_device.is_empty()).then(|| middle(on_device));

    let over = ratio(&times, &around);
    let row = Row::new("gpu", setting, case, middle(times), case.elements() * (12 + 8 * slots));
    let limit_us = Some(middle(around) * 1e6);
    let form = Some(form.name().into());
    Ok(Row { form, device_us, limit_us, ratio_to_limit: Some(over), ratio_to_f32: Some(over), ..row })
}

/// A kernel that reads a gradient, and reads and writes a parameter and its slots: `array ← array xor g`, and all are 0.
struct Limit {
    pipeline: wgpu::ComputePipeline,
    /// Each window's arrays, and its workgroups.
    windows: Vec<(wgpu::BindGroup, u32)>,
}

impl Limit {
    fn new(gpu: &GpuBackend, elements: usize, slots: usize) -> Self {
        let device = gpu.device();
        let arrays: Vec<u32> = (1..=1 + u32::try_from(slots).expect("at most four")).collect();
        let bindings: String = arrays
            .iter()
            .map(|k| format!("@group(0) @binding({k}) var<storage, read_write> a{k}: array<vec4u>;\n"))
            .collect();
        let updates: String = arrays.iter().map(|k| format!("        a{k}[id.x] ^= g[id.x];\n")).collect();
        let source = format!(
            "@group(0) @binding(0) var<storage, read> g: array<vec4u>;
{bindings}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u) {{
    if (id.x < arrayLength(&g)) {{
{updates}    }}
}}
"
        );
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("limit"),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("limit"),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let layout = pipeline.get_bind_group_layout(0);
        let size = (4 * elements as u64).next_multiple_of(16);
        let window = |start: u64| {
            let size = WINDOW.min(size - start);
            let buffer = wgpu::BufferDescriptor {
                label: Some("limit"),
                size,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            };
            let buffers: Vec<_> = (0..=arrays.len()).map(|_| device.create_buffer(&buffer)).collect();
            let entries: Vec<_> = (0..)
                .zip(&buffers)
                .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
                .collect();
            let group = wgpu::BindGroupDescriptor { label: Some("limit"), layout: &layout, entries: &entries };
            let groups = u32::try_from(size.div_ceil(GROUP)).expect("a window has few");
            (device.create_bind_group(&group), groups)
        };
        let windows = (0..size.div_ceil(WINDOW)).map(|nth| window(nth * WINDOW)).collect();
        Self { pipeline, windows }
    }

    fn run(&self, gpu: &GpuBackend) {
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        for (group, groups) in &self.windows {
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(*groups, 1, 1);
        }
        drop(pass);
        gpu.queue().submit([encoder.finish()]);
    }
}
