//! A training loop that lives on the GPU, with a device, buffers and commands of the program's own:
//! `cargo run --release --example own_device`.
//!
//! Softmax regression on the handwritten digits. Kernels of the program's compute the gradients; `encode_step` records the update
//! behind them, into the same encoder. The host hands over a few encoders and reads one buffer, at the end.

#[path = "digits/data.rs"]
mod data;
#[path = "digits/random.rs"]
mod random;

use std::error::Error;
use std::process::ExitCode;
use std::sync::mpsc;

use optimizers::gpu::wgpu::{self, BufferUsages};
use optimizers::{Adam, GpuBackend, GpuBuffer, Parameter, schedule::CosineDecay};

use crate::data::{DIGITS, Digits, Image, PIXELS};
use crate::random::Random;

const STEPS: u64 = 200;
const STEPS_PER_SUBMISSION: u64 = 20;
const WEIGHTS: usize = DIGITS * PIXELS;
/// Weights, then biases.
const PARAMETERS: usize = WEIGHTS + DIGITS;
/// The lanes of a workgroup.
const LANES: usize = 64;

const SOURCE: &str = "
const PIXELS = 64u;
const DIGITS = 10u;

@group(0) @binding(0) var<storage, read> pixels: array<f32>;
@group(0) @binding(1) var<storage, read> labels: array<u32>;
@group(0) @binding(2) var<storage, read_write> parameters: array<f32>;
@group(0) @binding(3) var<storage, read_write> errors: array<f32>;
@group(0) @binding(4) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(5) var<storage, read_write> hits: array<u32>;

// For an image: the softmax less the truth, and whether the likeliest digit is right.
@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let image = id.x;
    if (image >= arrayLength(&labels)) { return; }
    var logits: array<f32, DIGITS>;
    var best = 0u;
    for (var digit = 0u; digit < DIGITS; digit++) {
        var sum = parameters[DIGITS * PIXELS + digit];
        for (var pixel = 0u; pixel < PIXELS; pixel++) {
            sum += parameters[digit * PIXELS + pixel] * pixels[image * PIXELS + pixel];
        }
        logits[digit] = sum;
        if (sum > logits[best]) { best = digit; }
    }
    var total = 0.0;
    for (var digit = 0u; digit < DIGITS; digit++) { total += exp(logits[digit] - logits[best]); }
    for (var digit = 0u; digit < DIGITS; digit++) {
        let truth = select(0.0, 1.0, digit == labels[image]);
        errors[image * DIGITS + digit] = exp(logits[digit] - logits[best]) / total - truth;
    }
    hits[image] = select(0u, 1u, best == labels[image]);
}

// For a parameter: the mean over all images.
@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= arrayLength(&gradient)) { return; }
    let is_bias = id.x >= DIGITS * PIXELS;
    let digit = select(id.x / PIXELS, id.x - DIGITS * PIXELS, is_bias);
    var sum = 0.0;
    for (var image = 0u; image < arrayLength(&labels); image++) {
        let input = select(pixels[image * PIXELS + id.x % PIXELS], 1.0, is_bias);
        sum += errors[image * DIGITS + digit] * input;
    }
    gradient[id.x] = sum / f32(arrayLength(&labels));
}
";

/// What the kernels see of one set of images.
struct Images {
    bindings: wgpu::BindGroup,
    hits: wgpu::Buffer,
    count: usize,
}

struct Network {
    device: wgpu::Device,
    layout: wgpu::BindGroupLayout,
    forward: wgpu::ComputePipeline,
    backward: wgpu::ComputePipeline,
    parameters: wgpu::Buffer,
    gradient: wgpu::Buffer,
}

impl Network {
    fn new(device: &wgpu::Device) -> Self {
        let entry = |binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: binding < 2 },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let entries: Vec<_> = (0..6).map(entry).collect();
        let layout = device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some("network"), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("network"),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let source = wgpu::ShaderSource::Wgsl(SOURCE.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("network"), source });
        let pipeline = |entry_point| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry_point),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(entry_point),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            })
        };
        Self {
            device: device.clone(),
            forward: pipeline("forward"),
            backward: pipeline("backward"),
            parameters: buffer(device, PARAMETERS, BufferUsages::STORAGE | BufferUsages::COPY_DST),
            gradient: buffer(device, PARAMETERS, BufferUsages::STORAGE),
            layout,
        }
    }

    fn images(&self, queue: &wgpu::Queue, images: &[Image]) -> Images {
        let input = BufferUsages::STORAGE | BufferUsages::COPY_DST;
        let pixels = buffer(&self.device, images.len() * PIXELS, input);
        let bytes: Vec<u8> = images.iter().flat_map(|image| image.pixels).flat_map(f32::to_le_bytes).collect();
        queue.write_buffer(&pixels, 0, &bytes);
        let labels = buffer(&self.device, images.len(), input);
        let bytes: Vec<u8> = images.iter().flat_map(|image| word(image.digit).to_le_bytes()).collect();
        queue.write_buffer(&labels, 0, &bytes);
        let errors = buffer(&self.device, images.len() * DIGITS, BufferUsages::STORAGE);
        let hits = buffer(&self.device, images.len(), BufferUsages::STORAGE | BufferUsages::COPY_SRC);
        let buffers = [&pixels, &labels, &self.parameters, &errors, &self.gradient, &hits];
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let description = wgpu::BindGroupDescriptor { label: Some("images"), layout: &self.layout, entries: &entries };
        Images { bindings: self.device.create_bind_group(&description), hits, count: images.len() }
    }

    /// Records what finds the errors and, to train, the gradient.
    fn encode(&self, encoder: &mut wgpu::CommandEncoder, images: &Images, train: bool) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let lanes = [(&self.forward, images.count), (&self.backward, PARAMETERS)];
        for (pipeline, lanes) in lanes.into_iter().take(if train { 2 } else { 1 }) {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &images.bindings, &[]);
            pass.dispatch_workgroups(word(lanes.div_ceil(LANES)), 1, 1);
        }
    }
}

fn word(count: usize) -> u32 {
    u32::try_from(count).expect("a small number")
}

fn buffer(device: &wgpu::Device, words: usize, usage: BufferUsages) -> wgpu::Buffer {
    let size = 4 * words as u64;
    device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
}

fn run() -> Result<bool, Box<dyn Error>> {
    // A device of the program's own.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
    println!("{}, {}", adapter.get_info().name, adapter.get_info().backend);
    let mut random = Random::new(0);
    let digits = Digits::load(&mut random)?;
    let network = Network::new(&device);
    let start: Vec<u8> = (0..PARAMETERS).flat_map(|_| random.uniform(0.1).to_le_bytes()).collect();
    queue.write_buffer(&network.parameters, 0, &start);
    let [train, test] = [&digits.train, &digits.test].map(|images| network.images(&queue, images));

    // An optimizer on the same device, over the same buffers.
    let gpu = GpuBackend::from_wgpu(device.clone(), queue.clone())?;
    let mut optimizer = Adam::new(CosineDecay::new(0.0, 0.05, STEPS)?)
        .params([Parameter::new("weight", [DIGITS, PIXELS]), Parameter::new("bias", [DIGITS])])
        .build(gpu.clone())?;
    let parts = |buffer: &wgpu::Buffer| -> optimizers::Result<[GpuBuffer; 2]> {
        let weight = GpuBuffer::from_wgpu(buffer.clone(), 0, WEIGHTS)?;
        Ok([weight, GpuBuffer::from_wgpu(buffer.clone(), 4 * WEIGHTS as u64, DIGITS)?])
    };
    let ([weight, bias], [weight_gradient, bias_gradient]) = (parts(&network.parameters)?, parts(&network.gradient)?);

    let mut submissions = 0;
    for _ in 0..STEPS / STEPS_PER_SUBMISSION {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for _ in 0..STEPS_PER_SUBMISSION {
            network.encode(&mut encoder, &train, true);
            let report = gpu.encode_step(
                &mut encoder,
                &mut optimizer,
                &mut [(&weight).into(), (&bias).into()],
                &[(&weight_gradient).into(), (&bias_gradient).into()],
            )?;
            assert!(report.applied(), "nothing skips a step here");
        }
        queue.submit([encoder.finish()]);
        submissions += 1;
    }

    // How it does on images it has not seen: the only thing that is read back.
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    network.encode(&mut encoder, &test, false);
    let down = buffer(&device, test.count, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
    encoder.copy_buffer_to_buffer(&test.hits, 0, &down, 0, None);
    let (sender, mapped) = mpsc::channel();
    encoder.map_buffer_on_submit(&down, wgpu::MapMode::Read, .., move |result| drop(sender.send(result)));
    queue.submit([encoder.finish()]);
    submissions += 1;
    device.poll(wgpu::PollType::wait_indefinitely())?;
    mapped.recv()??;
    let hits = down.get_mapped_range(..)?.iter().filter(|&&byte| byte == 1).count();

    let accuracy = hits as f64 / test.count as f64;
    println!("{STEPS} steps on {} images, accuracy on {} others: {accuracy:.3}", train.count, test.count);
    let own = gpu.counters();
    println!(
        "{submissions} submissions and 1 readback by the program; by the optimizer {} submissions and {} waits in all, to set up",
        own.submits, own.waits
    );
    Ok(accuracy >= 0.9)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: it has not learned the digits");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
