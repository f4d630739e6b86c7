//! Steps on the GPU, beside a kernel that moves as many bytes. By the wall clock: batches of steps, each ended by one wait. And by the
//! device's own clock, where it has one: steps one by one.

use optimizers::gpu::{GpuOptions, wgpu};
use optimizers::{Builder, DType, Error, GpuBackend, Grad, ParamMut, Rule, StateDType};

use crate::cases::{Case, Setting};
use crate::check::{Sample, check};
use crate::memory::{SCALES, Tensors};
use crate::table::{Output, Row};
use crate::timing::{ROUNDS, enough, middle, ratio, rounds, seconds};

const RULES: [&str; 3] = ["sgd", "momentum", "adam"];

/// The case of many small tensors, and the name of one tensor of the same size.
const TINY: (&str, &str) = ("tiny2000x256", "one512k");

/// Bytes of each array that one dispatch of the limit moves.
const WINDOW: u64 = 64 << 20;

/// Bytes that a workgroup of the limit moves of each array: 256 lanes, 16 bytes each.
const GROUP: u64 = 256 * 16;

/// Prints the rows whose label is wanted. On a software adapter the large cases are left out.
pub(crate) fn run(wanted: impl Fn(&str) -> bool, output: Output) {
    let timed = GpuBackend::with_options(&GpuOptions { timestamps: true, ..GpuOptions::default() });
    let opened = match timed {
        Err(Error::Unsupported { .. }) => GpuBackend::new(),
        opened => opened,
    };
    let gpu = match opened {
        Ok(gpu) => gpu,
        Err(error @ Error::NoAdapter { .. }) => return eprintln!("{error}"),
        Err(error) => panic!("{error}"),
    };
    eprintln!("{}", gpu.adapter_info().name);
    let mut cases = Case::all();
    let tiny = cases.iter().position(|case| case.name == TINY.0).expect("a case");
    cases.insert(tiny + 1, cases[tiny].in_one(TINY.1));
    if gpu.is_software() {
        cases.retain(|case| [TINY.0, TINY.1].contains(&case.name));
    }
    let mut rows = Vec::new();
    for case in &cases {
        for rule in Rule::all() {
            let (dtype, state) = (DType::F32, StateDType::F32);
            let setting = Setting { rule, threads: 0, dtype, state, clip: false };
            let (name, label) = (setting.rule_name(), setting.label("gpu", case.name));
            let known = rows.iter().any(|row: &Row| row.rule == name && row.case == case.name);
            if RULES.contains(&&*name) && !known && wanted(&label) {
                let row = measure(&gpu, case, &setting, &label).expect("a step on the GPU");
                output.row(&row);
                rows.push(row);
            }
        }
    }
    for row in &rows {
        let one = rows.iter().find(|one| one.case == TINY.1 && one.rule == row.rule);
        if let (Some(one), true) = (one, row.case == TINY.0) {
            let times = row.us_per_step / one.us_per_step;
            eprintln!(
                "{}: 2000 tensors take {times:.2} times as long as one of the same size; the aim is at most 3",
                row.rule
            );
        }
    }
}

fn measure(gpu: &GpuBackend, case: &Case, setting: &Setting, label: &str) -> optimizers::Result<Row> {
    let lens = case.lens();
    let mut optimizer = Builder::new(setting.rule.clone()).params(case.parameters(setting.dtype)).build(gpu.clone())?;
    let [params, grads] = SCALES.map(|scale| Tensors::new(setting.dtype, &lens, scale));
    let (memory, grads_memory) = (gpu.arena(&lens)?, gpu.arena(&lens)?);
    for (tensors, buffers) in [(&params, &memory), (&grads, &grads_memory)] {
        for (bytes, buffer) in tensors.bytes().into_iter().zip(buffers) {
            buffer.write(bytemuck::cast_slice(bytes))?;
        }
    }
    let mut updated: Vec<ParamMut<'_>> = memory.iter().map(Into::into).collect();
    let gradients: Vec<Grad<'_>> = grads_memory.iter().map(Into::into).collect();
    let mut step = || assert!(optimizer.step(&mut updated, &gradients).expect("a step").applied(), "applied");

    let sample = Sample::new(case, setting);
    let (start, sampled) = (params.at(&sample.places), grads.at(&sample.places));
    check(label, setting, &sample, start, &sampled, grads.norm(), || {
        step();
        let read = |&(tensor, element): &(usize, usize)| f64::from(memory[tensor].read().expect("values")[element]);
        sample.places.iter().map(read).collect()
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
        (0..calls).for_each(|_| step());
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
    Ok(Row { device_us, limit_us, ratio_to_limit: Some(over), ratio_to_f32: Some(over), ..row })
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
