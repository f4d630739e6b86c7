//! What only a GPU has: buffers of the caller's, windows, dispatches, a device that refuses or disappears. That its numbers
//! are right for every rule is the other files' matter.
//!
//! Tests without an adapter run on wgpu's noop device, which checks every call and computes nothing.

use std::any::Any;
use std::slice::from_ref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use half::{bf16, f16};
use optim_tests::engine::{Case, Driven, Formats, record};
use optim_tests::tolerance::ENGINE;
use optim_tests::{Naive, Random, gpu, gpu_is_llvmpipe};
use optimizers::core::backend::{Part, Plan, Progress, RowList, Shaping, Tensor, Update};
use optimizers::core::format::{Master, StateDType};
use optimizers::core::guard::{Clip, Control, Guard, Scaler, Skip};
use optimizers::core::{self, Backend as _, DeviceMemory};
use optimizers::gpu::{Counters, Gather, GpuOptions};
use optimizers::rule::Passes;
use optimizers::{
    Adam, Builder, DType, DynamicLossScale, Error, GpuBackend, GpuBuffer, Grad, Lamb, Momentum, Optimizer, Outcome,
    ParamGroup, ParamMut, Parameter, Result, Rule, Sgd, StepReport,
};
use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};
use proptest::{collection, sample};
use wgpu::{BufferUsages, Limits};

/// Lengths around a lane, a workgroup of either width, the padding; and none.
const LENS: &[usize] = &[0, 1, 3, 4, 63, 64, 65, 255, 256, 257, 1000];

const LR: f64 = 0.01;
const DECAY: f64 = 0.1;

/// Adam in a plain loop: what every test here compares with.
#[derive(Debug, Clone)]
struct Plain {
    p: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl Plain {
    fn new(start: &[f32]) -> Self {
        Self { p: start.to_vec(), m: vec![0.0; start.len()], v: vec![0.0; start.len()] }
    }

    fn step(&mut self, t: u64, g: &[f32]) {
        let [alpha, _, one_minus_beta1, _, one_minus_beta2, eps, ..] = Scalars::at(t)[..] else {
            panic!("Adam's Step")
        };
        let [alpha, one_minus_beta1, one_minus_beta2, eps] =
            [alpha, one_minus_beta1, one_minus_beta2, eps].map(f32::from_bits);
        for (((p, &g), m), v) in self.p.iter_mut().zip(g).zip(&mut self.m).zip(&mut self.v) {
            let g = 0.5 * g + 0.1 * *p;
            *m += one_minus_beta1 * (g - *m);
            *v += one_minus_beta2 * (g * g - *v);
            *p -= alpha * *m / (v.sqrt() + eps);
        }
    }
}

/// A backend that updates nothing and keeps the step scalars of the last update.
#[derive(Debug, Clone, Default)]
struct Scalars(Arc<Mutex<Vec<u32>>>);

impl Scalars {
    /// The step scalars of [`adam`] at its update `t`.
    fn at(t: u64) -> Vec<u32> {
        let scalars = Self::default();
        let mut optimizer = builder(&[1]).build(scalars.clone()).unwrap();
        for _ in 0..t {
            assert!(
                optimizer.step(&mut [(&mut [0.0_f32]).into()], &[(&[0.0_f32]).into()]).unwrap().applied(),
                "a step"
            );
        }
        let words = scalars.0.lock().unwrap();
        words.clone()
    }
}

impl core::Backend for Scalars {
    fn name(&self) -> &'static str {
        "scalars"
    }

    fn describe(&self) -> String {
        self.name().into()
    }

    fn engine(&self, _: &Plan<'_>) -> Result<Box<dyn core::Engine>> {
        Ok(Box::new(self.clone()))
    }
}

impl core::Engine for Scalars {
    fn update(&mut self, update: &Update<'_>, _: &mut [ParamMut<'_>], _: &[Grad<'_>]) -> Result<Progress> {
        *self.0.lock().unwrap() = update.records[0].scalars.words().to_vec();
        Ok(Progress::Applied)
    }

    fn control(&self) -> Result<Control> {
        Ok(Control::default())
    }

    fn set_control(&mut self, _: &Control) -> Result<()> {
        Ok(())
    }

    fn seed(&mut self, _: &[bool], _: &mut [ParamMut<'_>]) -> Result<()> {
        Ok(())
    }

    fn accumulate(&mut self, _: f32, _: &[bool], _: &[Grad<'_>]) -> Result<()> {
        Ok(())
    }

    fn swap_ema(&mut self, _: bool, _: &mut [ParamMut<'_>]) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: usize, _: Part, _: usize, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, _: usize, _: Part, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Adam with decay and loss scale over tensors `w0`, `w1`, … of these lengths: what [`Plain`] does.
fn builder(lens: &[usize]) -> Builder {
    let parameters = lens.iter().enumerate().map(|(index, &len)| Parameter::new(format!("w{index}"), [len]));
    Adam { weight_decay: DECAY, ..Adam::new(LR) }.params(parameters).loss_scale(2.0)
}

fn adam(lens: &[usize], backend: &GpuBackend) -> Result<Optimizer> {
    builder(lens).build(backend.clone())
}

fn device_step(optimizer: &mut Optimizer, params: &[GpuBuffer], grads: &[Option<GpuBuffer>]) -> Result<()> {
    let mut params: Vec<ParamMut<'_>> = params.iter().map(Into::into).collect();
    let grads: Vec<Grad<'_>> = grads.iter().map(|grad| grad.as_ref().into()).collect();
    optimizer.step(&mut params, &grads).map(|_| ())
}

/// Bit for bit on llvmpipe, within a rounding or two elsewhere. The first element that is not.
fn unequal(got: &[f32], expected: &[f32]) -> Option<String> {
    let exact = gpu_is_llvmpipe();
    let near = |a: f32, b: f32| {
        if exact { a.to_bits() == b.to_bits() } else { a == b || (a - b).abs() <= 4e-6 * (1.0 + b.abs()) }
    };
    let index = got.iter().zip(expected).position(|(&a, &b)| !near(a, b));
    let difference = index.map(|index| format!("element {index}: {} instead of {}", got[index], expected[index]));
    difference.or((got.len() != expected.len()).then(|| format!("{} of {} elements", got.len(), expected.len())))
}

fn assert_same(got: &[f32], expected: &[f32], what: &str) {
    if let Some(difference) = unequal(got, expected) {
        panic!("{what}: {difference}");
    }
}

fn since(before: Counters) -> [u64; 3] {
    let now = gpu_counters();
    [now.dispatches - before.dispatches, now.submits - before.submits, now.waits - before.waits]
}

fn gpu_counters() -> Counters {
    COUNTED.with(GpuBackend::counters)
}

thread_local! {
    /// The shared device behind a backend of its own for each thread, so that other tests are not counted.
    static COUNTED: GpuBackend = adopted(&GpuOptions { gather: Gather::Copies, ..GpuOptions::default() });
}

/// The shared device, as if it were the caller's.
fn adopted(options: &GpuOptions) -> GpuBackend {
    GpuBackend::from_wgpu_with_options(gpu().device().clone(), gpu().queue().clone(), options)
        .expect("the device was good enough before")
}

fn noop(limits: Limits, options: &GpuOptions) -> Result<GpuBackend> {
    let (device, queue) =
        wgpu::Device::noop(&wgpu::DeviceDescriptor { required_limits: limits, ..wgpu::DeviceDescriptor::default() });
    GpuBackend::from_wgpu_with_options(device, queue, options)
}

fn raw(device: &wgpu::Device, elements: usize, usage: BufferUsages) -> wgpu::Buffer {
    let size = 4 * elements as u64;
    device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
}

/// What an error of memory says: what, whose, expected, got.
#[track_caller]
fn memory_error<T>(result: Result<T>) -> (&'static str, String, String, String) {
    match result {
        Err(Error::Memory { what, name, expected, got }) => (what, name, expected, got),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("no error"),
    }
}

const ALL: BufferUsages = BufferUsages::STORAGE.union(BufferUsages::COPY_SRC).union(BufferUsages::COPY_DST);

mod numbers {
    use super::*;

    /// The control of every comparison here: a rate that is off by a thousandth.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn that_are_wrong_are_noticed() {
        let (mut plain, grad) = (Plain::new(&[1.0; 65]), [1.0; 65]);
        let param = gpu().buffer(&plain.p).unwrap();
        let mut optimizer = Adam { weight_decay: DECAY, ..Adam::new(1.001 * LR) }
            .params([Parameter::new("w", [65])])
            .loss_scale(2.0)
            .build(gpu().clone())
            .unwrap();
        device_step(&mut optimizer, from_ref(&param), &[Some(gpu().buffer(&grad).unwrap())]).unwrap();
        plain.step(1, &grad);
        assert!(unequal(&param.read().unwrap(), &plain.p).is_some(), "it was not noticed");
    }

    /// Three steps over [`LENS`] with parameters and gradients wherever they can be.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn are_those_of_a_plain_loop_wherever_memory_is() {
        let mut random = Random::new(1);
        let start: Vec<_> = LENS.iter().map(|&len| random.tensor(len)).collect();
        let grads: Vec<Vec<_>> = (0..3).map(|_| LENS.iter().map(|&len| random.tensor(len)).collect()).collect();
        let mut plain: Vec<_> = start.iter().map(|start| Plain::new(start)).collect();
        for (t, grads) in (1..).zip(&grads) {
            plain.iter_mut().zip(grads).for_each(|(plain, grad)| plain.step(t, grad));
        }

        // Buffers of their own.
        let params: Vec<_> = start.iter().map(|start| gpu().buffer(start).unwrap()).collect();
        let mut separate = adam(LENS, gpu()).unwrap();
        for grads in &grads {
            let grads: Vec<_> = grads.iter().map(|grad| Some(gpu().buffer(grad).unwrap())).collect();
            device_step(&mut separate, &params, &grads).unwrap();
        }
        // The host's slices.
        let mut host = start.clone();
        let mut staged = adam(LENS, gpu()).unwrap();
        for grads in &grads {
            let mut params: Vec<_> = host.iter_mut().map(ParamMut::from).collect();
            let grads: Vec<_> = grads.iter().map(Grad::from).collect();
            assert!(staged.step(&mut params, &grads).unwrap().applied());
        }
        for (index, plain) in plain.iter().enumerate() {
            assert_same(&params[index].read().unwrap(), &plain.p, &format!("separate, w{index}"));
            assert_same(&host[index], &plain.p, &format!("host, w{index}"));
            for (optimizer, how) in [(&separate, "separate"), (&staged, "host")] {
                for (slot, expected) in [("moment1", &plain.m), ("moment2", &plain.v)] {
                    let got = optimizer.slot(&format!("w{index}"), slot).unwrap();
                    assert_same(&got, expected, &format!("{how}, w{index}.{slot}"));
                }
            }
        }
    }

    /// Small buffers of the caller's, which are gathered, against arenas: every rule, with a guard, an average that is swapped in and
    /// out, and accumulated gradients.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn are_the_same_gathered_or_not() {
        // Enough to be worth dispatches, and not a power of two.
        let lens = [3, 64, 257, 1000, 4, 1, 128, 65, 300];
        for rule in Rule::all() {
            let results = [None, Some(Gather::Copies), Some(Gather::Dispatches)].map(|gather| {
                let gpu = adopted(&GpuOptions { gather: gather.unwrap_or_default(), ..GpuOptions::default() });
                let mut random = Random::new(31);
                let mut memory = || -> Vec<GpuBuffer> {
                    let buffers = if gather.is_some() {
                        lens.map(|len| gpu.wrap(raw(gpu.device(), len, ALL), 0, len).unwrap()).to_vec()
                    } else {
                        gpu.arena(&lens).unwrap()
                    };
                    buffers.iter().zip(lens).for_each(|(buffer, len)| buffer.write(&random.tensor(len)).unwrap());
                    buffers
                };
                let (params, grads) = (memory(), [memory(), memory()]);
                let named = lens.iter().enumerate().map(|(nth, &len)| Parameter::new(format!("w{nth}"), [1, len]));
                let builder = Builder::new(rule.clone()).params(named).ema(0.9).clip_norm(0.5);
                let mut optimizer = builder.build(gpu.clone()).unwrap();
                let own = || params.iter().map(ParamMut::from).collect::<Vec<_>>();
                let values = || params.iter().map(|param| param.read().unwrap()).collect::<Vec<_>>();
                let mut seen = vec![values()];
                let grads = grads.each_ref().map(|grads| grads.iter().map(Grad::from).collect::<Vec<_>>());
                for grads in &grads {
                    assert_ne!(optimizer.step(&mut own(), grads).unwrap().step, 0);
                }
                seen.push(values());
                grads.iter().for_each(|grads| optimizer.accumulate(grads, 1.0).unwrap());
                assert_ne!(optimizer.step_accumulated(&mut own()).unwrap().step, 0);
                seen.push(values());
                optimizer.swap_ema_in(&mut own()).unwrap();
                seen.push(values());
                optimizer.swap_ema_out(&mut own()).unwrap();
                seen.push(values());
                seen
            });
            assert!(results[0] == results[1], "{rule:?}: other numbers");
            assert!(results[0] == results[2], "{rule:?}: other numbers by dispatches");
            let [start, steps, accumulated, average, back] = &results[1][..] else { panic!("five looks") };
            assert!(start != steps && steps != accumulated && accumulated != average, "{rule:?}: nothing happened");
            assert_eq!(accumulated, back, "{rule:?}");
        }
    }

    /// More tiles than a dimension of a dispatch can have, in either width.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn are_right_beyond_65535_workgroups() {
        for (tile, padded) in [(64, false), (256, true)] {
            let len = 65_536 * tile + 5;
            let backend = adopted(&GpuOptions::default());
            let buffer = |value| {
                if padded {
                    return backend.filled(len, value).unwrap();
                }
                let filled = backend.filled(len, value).unwrap();
                backend.wrap(filled.wgpu().clone(), 0, len).unwrap()
            };
            let (param, grad) = (buffer(1.0), buffer(0.25));
            let mut optimizer = Sgd::new(0.5).params([Parameter::new("w", [len])]).build(backend.clone()).unwrap();
            let before = backend.counters().dispatches;
            device_step(&mut optimizer, from_ref(&param), &[Some(grad)]).unwrap();
            // Where the device's binding is smaller than the tensor there are several windows.
            assert!(backend.counters().dispatches > before);
            assert!(param.read().unwrap().iter().all(|&p| p == 0.875), "tiles of {tile}");
        }
    }

    /// A tensor longer than a window is walked in several dispatches, with the same numbers.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn do_not_depend_on_the_window() {
        let mut random = Random::new(2);
        let lens = [70, 1000, 3, 64, 513];
        let start: Vec<_> = lens.iter().map(|&len| random.tensor(len)).collect();
        let grads: Vec<_> = lens.iter().map(|&len| random.tensor(len)).collect();
        // Two slots take as much of a page as 64 elements at least.
        for (window_bytes, dispatches) in [(256, 2 + 16 + 1 + 1 + 9), (1024, 1 + 8 + 1 + 5), (1 << 20, 1)] {
            let backend = adopted(&GpuOptions { window_bytes: Some(window_bytes), ..GpuOptions::default() });
            let params = backend.arena(&lens).unwrap();
            params.iter().zip(&start).for_each(|(param, start)| param.write(start).unwrap());
            let gradients = backend.arena(&lens).unwrap();
            gradients.iter().zip(&grads).for_each(|(gradient, grad)| gradient.write(grad).unwrap());
            let gradients: Vec<_> = gradients.into_iter().map(Some).collect();
            let mut optimizer = adam(&lens, &backend).unwrap();
            let before = backend.counters().dispatches;
            device_step(&mut optimizer, &params, &gradients).unwrap();
            assert_eq!(backend.counters().dispatches - before, dispatches, "windows of {window_bytes} bytes");
            for (index, param) in params.iter().enumerate() {
                let mut plain = Plain::new(&start[index]);
                plain.step(1, &grads[index]);
                assert_same(&param.read().unwrap(), &plain.p, &format!("window {window_bytes}, w{index}"));
                let slot = optimizer.slot(&format!("w{index}"), "moment2").unwrap();
                assert_same(&slot, &plain.v, &format!("window {window_bytes}, w{index}.moment2"));
            }
        }
    }

    /// The caller's memory of 16-bit elements, of odd lengths: the same as in memory of ours, and what lies after them is not
    /// touched, not even in the same word.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn of_16_bits_do_not_touch_what_is_next_to_them() {
        let mut random = Random::new(8);
        let lens = [1, 3, 65, 254, 259];
        for (master, state) in [
            (Master::F32, StateDType::F32),
            (Master::Split, StateDType::Bf16),
            (Master::Stochastic, StateDType::Block8),
        ] {
            let named = lens.iter().map(|&len| Parameter::new(len.to_string(), [len]).with_dtype(DType::Bf16));
            let builder = Adam::new(0.1).params(named).master(master).state_dtype(state);
            let narrow = |values: Vec<f32>| -> Vec<bf16> { values.into_iter().map(bf16::from_f32).collect() };
            let starts = lens.map(|len| narrow(random.tensor(len)));
            let ours: Vec<_> = starts.iter().map(|start| gpu().buffer_of(start).unwrap()).collect();
            // Each in the middle of a buffer that is full of another number.
            let other = bf16::from_f32(7.0);
            let whole: Vec<_> = lens.iter().map(|_| gpu().buffer_of(&[other; 512]).unwrap()).collect();
            let theirs: Vec<_> = (whole.iter().zip(lens))
                .map(|(whole, len)| gpu().wrap_of(DType::Bf16, whole.wgpu().clone(), 256, len).unwrap())
                .collect();
            for (buffer, start) in theirs.iter().zip(&starts) {
                buffer.write_of(start).unwrap();
            }
            let mut optimizers = [(); 2].map(|()| builder.clone().build(gpu().clone()).unwrap());
            for _ in 0..2 {
                let grads: Vec<_> = lens.iter().map(|&len| narrow(random.tensor(len))).collect();
                let padded: Vec<_> = grads.iter().map(|grad| Some(gpu().buffer_of(grad).unwrap())).collect();
                for (optimizer, params) in optimizers.iter_mut().zip([&ours, &theirs]) {
                    device_step(optimizer, params, &padded).unwrap();
                }
            }
            for (((ours, theirs), whole), start) in ours.iter().zip(&theirs).zip(&whole).zip(&starts) {
                let expected = ours.read_of::<bf16>().unwrap();
                assert_ne!(expected, *start, "{master:?} {state:?}: updated");
                assert_eq!(theirs.read_of::<bf16>().unwrap(), expected, "{master:?} {state:?}");
                let mut all = vec![other; 512];
                all[128..128 + start.len()].copy_from_slice(&expected);
                assert_eq!(whole.read_of::<bf16>().unwrap(), all, "{master:?} {state:?}: the whole buffer");
            }
        }
    }

    /// Odd lengths within the caller's buffers: what lies before and after them is not touched.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn do_not_touch_what_is_next_to_them() {
        let mut random = Random::new(3);
        let all = random.tensor(512);
        let lens = [65, 64, 63];
        let offsets = [64, 192, 320];
        let whole = gpu().buffer(&all).unwrap();
        let ours = |offset: usize, len| GpuBuffer::from_wgpu(whole.wgpu().clone(), 4 * offset as u64, len).unwrap();
        let params: Vec<_> = offsets.iter().zip(lens).map(|(&offset, len)| ours(offset, len)).collect();
        let grads: Vec<_> = lens.iter().map(|&len| random.tensor(len)).collect();
        let gradients: Vec<_> = grads.iter().map(|grad| Some(gpu().buffer(grad).unwrap())).collect();
        let mut optimizer = adam(&lens, gpu()).unwrap();
        device_step(&mut optimizer, &params, &gradients).unwrap();

        let mut expected = all;
        for ((&offset, len), grad) in offsets.iter().zip(lens).zip(&grads) {
            let mut plain = Plain::new(&expected[offset..offset + len]);
            plain.step(1, grad);
            expected[offset..offset + len].copy_from_slice(&plain.p);
        }
        assert_same(&whole.read().unwrap(), &expected, "the whole buffer");
    }

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn stay_where_a_gradient_is_missing() {
        let mut random = Random::new(4);
        let lens = [65, 64, 3];
        let start: Vec<_> = lens.iter().map(|&len| random.tensor(len)).collect();
        let grads: Vec<_> = lens.iter().map(|&len| random.tensor(len)).collect();
        let mut plain: Vec<_> = start.iter().map(|start| Plain::new(start)).collect();
        let params: Vec<_> = start.iter().map(|start| gpu().buffer(start).unwrap()).collect();
        let mut optimizer = adam(&lens, gpu()).unwrap();
        for (t, missing) in [(1, Some(1)), (2, Some(0)), (3, None), (4, Some(1))] {
            let present = |index: usize| Some(index) != missing;
            let gradient = |(index, grad): (usize, &Vec<f32>)| present(index).then(|| gpu().buffer(grad).unwrap());
            let gradients: Vec<_> = grads.iter().enumerate().map(gradient).collect();
            device_step(&mut optimizer, &params, &gradients).unwrap();
            for index in (0..lens.len()).filter(|&index| present(index)) {
                plain[index].step(t, &grads[index]);
            }
        }
        device_step(&mut optimizer, &params, &[None, None, None]).unwrap();
        assert_eq!(optimizer.step_count(), 5, "a step without any gradient counts");
        for (index, plain) in plain.iter().enumerate() {
            assert_same(&params[index].read().unwrap(), &plain.p, &format!("w{index}"));
            assert_same(&optimizer.slot(&format!("w{index}"), "moment1").unwrap(), &plain.m, &format!("w{index}.m"));
        }
    }

    /// More sets of gradient buffers than schedules are kept, in turn.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn are_right_with_alternating_gradients() {
        let mut random = Random::new(5);
        let (start, grads): (_, Vec<_>) = (random.tensor(100), (0..6).map(|_| random.tensor(100)).collect());
        let buffers: Vec<_> = grads.iter().map(|grad| gpu().buffer(grad).unwrap()).collect();
        let param = gpu().buffer(&start).unwrap();
        let mut plain = Plain::new(&start);
        let mut optimizer = adam(&[100], gpu()).unwrap();
        for t in 1..=200_usize {
            let set = if t < 100 { t % 2 } else { t % 6 };
            device_step(&mut optimizer, from_ref(&param), &[Some(buffers[set].clone())]).unwrap();
            plain.step(t as u64, &grads[set]);
        }
        assert_same(&param.read().unwrap(), &plain.p, "after 200 steps");
    }

    /// Where one parameter and its gradient lie.
    fn place(kind: u8, values: &[f32], backend: &GpuBackend) -> Option<GpuBuffer> {
        match kind {
            0 => Some(backend.buffer(values).unwrap()),
            1 => {
                let buffer = raw(backend.device(), values.len() + 64, ALL);
                let buffer = backend.wrap(buffer, 256, values.len()).unwrap();
                buffer.write(values).unwrap();
                Some(buffer)
            }
            _ => None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(skip_gpu) { 0 } else { 64 }))]

        #[test]
        #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
        fn are_right_for_any_mixture_of_memory(
            tensors in collection::vec((sample::select(LENS), 0_u8..3, 0_u8..4), 1..12),
            window_bytes in sample::select(vec![Some(256), Some(1024), Some(4096), None]),
            seed in any::<u64>(),
        ) {
            let backend = adopted(&GpuOptions { window_bytes, ..GpuOptions::default() });
            let mut random = Random::new(seed);
            let lens: Vec<_> = tensors.iter().map(|&(len, ..)| len).collect();
            let mut optimizer = adam(&lens, &backend).unwrap();
            let mut plain: Vec<_> = lens.iter().map(|&len| Plain::new(&random.tensor(len))).collect();
            let mut host: Vec<_> = plain.iter().map(|plain| plain.p.clone()).collect();
            let buffers: Vec<_> =
                tensors.iter().zip(&host).map(|(&(_, kind, _), start)| place(kind, start, &backend)).collect();
            for t in 1..=2 {
                let grads: Vec<_> = lens.iter().map(|&len| random.tensor(len)).collect();
                let on_device: Vec<_> =
                    tensors.iter().zip(&grads).map(|(&(.., kind), grad)| place(kind, grad, &backend)).collect();
                let mut params: Vec<ParamMut<'_>> =
                    host.iter_mut().zip(&buffers).map(|(host, buffer)| buffer.as_ref().map_or_else(|| host.into(), Into::into)).collect();
                let gradients: Vec<Grad<'_>> = (tensors.iter().zip(&grads).zip(&on_device))
                    .map(|((&(.., kind), grad), buffer)| match (kind, buffer) {
                        (3, _) => Grad::None,
                        (_, Some(buffer)) => buffer.into(),
                        (_, None) => grad.into(),
                    })
                    .collect();
                prop_assert!(optimizer.step(&mut params, &gradients).unwrap().applied());
                for ((plain, grad), &(.., kind)) in plain.iter_mut().zip(&grads).zip(&tensors) {
                    if kind != 3 {
                        plain.step(t, grad);
                    }
                }
            }
            for (index, plain) in plain.iter().enumerate() {
                let got = buffers[index].as_ref().map_or_else(|| host[index].clone(), |buffer| buffer.read().unwrap());
                let difference = unequal(&got, &plain.p);
                prop_assert!(difference.is_none(), "w{}: {:?}", index, difference);
                let difference = unequal(&optimizer.slot(&format!("w{index}"), "moment2").unwrap(), &plain.v);
                prop_assert!(difference.is_none(), "w{}.moment2: {:?}", index, difference);
            }
        }
    }
}

mod work {
    use super::*;

    /// Groups with their own rates do not split a dispatch, nor does a missing gradient.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn of_arenas_is_one_dispatch_one_submission_and_no_wait() {
        COUNTED.with(|backend| {
            let lens = [65, 1, 0, 1000, 64];
            let named: Vec<_> =
                lens.iter().enumerate().map(|(i, &len)| Parameter::new(format!("w{i}"), [len])).collect();
            let groups =
                named.iter().enumerate().map(|(i, p)| ParamGroup::new([p]).lr(if i % 2 == 0 { 0.1 } else { 0.2 }));
            let mut optimizer = Momentum::new(0.1, 0.9).groups(groups).build(backend.clone()).unwrap();
            let (params, grads) = (backend.arena(&lens).unwrap(), backend.arena(&lens).unwrap());
            let mut grads: Vec<_> = grads.into_iter().map(Some).collect();
            for grad in grads.iter().flatten() {
                grad.write(&vec![1.0; grad.len()]).unwrap();
            }
            grads[1] = None;
            for step in 0..3 {
                let before = gpu_counters();
                device_step(&mut optimizer, &params, &grads).unwrap();
                assert_eq!(since(before), [1, 1, 0], "dispatches, submits, waits of step {step}");
            }
            assert_eq!(params[0].read().unwrap()[64], params[4].read().unwrap()[0], "of one group");
            assert!(params[1].read().unwrap()[0] == 0.0, "no gradient");
            assert!(params[3].read().unwrap()[999] < params[0].read().unwrap()[0], "its rate is twice as high");
        });
    }

    /// Parameters and gradients need not lie alike: one dispatch for each kind, whatever the order of either.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn of_memory_that_lies_otherwise_is_one_dispatch_for_each_kind() {
        COUNTED.with(|backend| {
            let lens = [65, 3, 1000, 64, 257];
            let dtypes = [DType::F32, DType::Bf16, DType::F32, DType::F32, DType::Bf16];
            // In buffers with others between them, in the opposite order, gradients also of another type.
            let spread = |dtype, gap: usize| {
                let padded: Vec<_> = lens.iter().rev().flat_map(|&len| [len, gap]).collect();
                let arena = backend.arena_of(dtype, &padded).unwrap();
                let mut own: Vec<_> = arena.into_iter().step_by(2).collect();
                own.reverse();
                own
            };
            let (wide, narrow) = (spread(DType::F32, 7), spread(DType::Bf16, 300));
            let params = dtypes.iter().enumerate().map(|(i, &dtype)| match dtype {
                DType::F32 => wide[i].clone(),
                _ => narrow[i].clone(),
            });
            let params: Vec<_> = params.collect();
            let gradients = spread(DType::F16, 5);
            for (gradient, len) in gradients.iter().zip(lens) {
                gradient.write_of(&vec![f16::ONE; len]).unwrap();
            }
            let gradients: Vec<_> = gradients.into_iter().map(Some).collect();
            let named = lens.iter().zip(dtypes).enumerate();
            let named = named.map(|(i, (&len, dtype))| Parameter::new(format!("w{i}"), [len]).with_dtype(dtype));
            let mut optimizer = Momentum::new(0.5, 0.9).params(named).build(backend.clone()).unwrap();
            device_step(&mut optimizer, &params, &gradients).unwrap();
            let before = gpu_counters();
            device_step(&mut optimizer, &params, &gradients).unwrap();
            assert_eq!(since(before), [2, 1, 0], "dispatches, submits, waits");
            // −0.5 · (1 + 1.9)
            for ((param, dtype), len) in params.iter().zip(dtypes).zip(lens) {
                match dtype {
                    DType::F32 => assert_eq!(param.read().unwrap(), vec![-1.45; len]),
                    _ => assert_eq!(param.read_of::<bf16>().unwrap(), vec![bf16::from_f32(-1.45); len]),
                }
            }
            assert!(wide[1].read().unwrap().iter().all(|&p| p == 0.0), "another's memory");
        });
    }

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn of_host_gradients_is_one_dispatch_and_no_wait() {
        COUNTED.with(|backend| {
            let lens = [65, 3, 1000];
            let mut optimizer = adam(&lens, backend).unwrap();
            let params = backend.arena(&lens).unwrap();
            let grads: Vec<_> = lens.iter().map(|&len| vec![1.0_f32; len]).collect();
            for _ in 0..2 {
                let before = gpu_counters();
                let mut params: Vec<ParamMut<'_>> = params.iter().map(Into::into).collect();
                let grads: Vec<Grad<'_>> = grads.iter().map(Into::into).collect();
                assert!(optimizer.step(&mut params, &grads).unwrap().applied());
                assert_eq!(since(before), [1, 1, 0], "dispatches, submits, waits");
            }
        });
    }

    /// The number of tensors and of groups makes no difference: neither in arenas, nor in ranges of a buffer of the caller's, nor in
    /// small buffers, which are gathered.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn does_not_grow_with_tensors_and_groups() {
        COUNTED.with(|backend| {
            for count in [1, 2, 150] {
                let len = |nth: usize| 1 + 7 * nth % 300;
                let lens: Vec<_> = (0..count).map(len).collect();
                let foreign = || -> Vec<GpuBuffer> {
                    let buffer = |&len: &usize| backend.wrap(raw(backend.device(), len, ALL), 0, len).unwrap();
                    lens.iter().map(buffer).collect()
                };
                let ranges = || -> Vec<GpuBuffer> {
                    let whole = raw(backend.device(), 512 * count, ALL);
                    (0..)
                        .step_by(2048)
                        .zip(&lens)
                        .map(|(at, &len)| backend.wrap(whole.clone(), at, len).unwrap())
                        .collect()
                };
                // Their elements are taken one by one where the number is not a multiple of four.
                let sorts = [true, false].map(|whole| lens.iter().any(|len| len.is_multiple_of(4) == whole));
                let sorts = sorts.into_iter().map(u64::from).sum();
                let arenas = [backend.arena(&lens).unwrap(), backend.arena(&lens).unwrap()];
                let [values, gradients] = [11, 12].map(|seed| {
                    let mut random = Random::new(seed);
                    lens.iter().map(|&len| random.tensor(len)).collect::<Vec<_>>()
                });
                let mixed = [arenas[0].clone(), foreign()];
                // Arenas; buffers of their own; parameters in one, gradients in the others; ranges.
                for ([params, grads], dispatches) in
                    [(arenas, 1), ([foreign(), foreign()], 1), (mixed, 1), ([ranges(), ranges()], sorts)]
                {
                    let group = |nth: usize| ParamGroup::new([Parameter::new(format!("w{nth}"), [len(nth)])]);
                    let rate = |nth: usize| LR / (1.0 + nth as f64);
                    let groups = (0..count).map(|nth| group(nth).lr(rate(nth)));
                    let mut optimizer = Momentum::new(LR, 0.9).groups(groups).build(backend.clone()).unwrap();
                    params.iter().zip(&values).for_each(|(param, values)| param.write(values).unwrap());
                    grads.iter().zip(&gradients).for_each(|(grad, values)| grad.write(values).unwrap());
                    let grads: Vec<_> = grads.into_iter().map(Some).collect();
                    for _ in 0..2 {
                        let before = gpu_counters();
                        device_step(&mut optimizer, &params, &grads).unwrap();
                        assert_eq!(since(before), [dispatches, 1, 0], "dispatches, submits, waits of {count} tensors");
                    }
                    for (nth, param) in params.iter().enumerate() {
                        #[allow(clippy::cast_possible_truncation, reason = "the nearest f32 is meant")]
                        let lr = rate(nth) as f32;
                        let step = |(&p, &g): (&f32, &f32)| p - lr * g - lr * (0.9_f32 * g + g);
                        let expected: Vec<_> = values[nth].iter().zip(&gradients[nth]).map(step).collect();
                        assert_same(&param.read().unwrap(), &expected, &format!("{count} tensors, w{nth}"));
                    }
                }
            }
        });
    }

    /// By dispatches, buffers of every element type are gathered as many at a time as a stage can bind.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn of_many_separate_buffers_gathers_many_at_a_time() {
        let backend = adopted(&GpuOptions { gather: Gather::Dispatches, ..GpuOptions::default() });
        let limits = backend.device().limits();
        let most = limits
            .max_storage_buffers_per_shader_stage
            .min(limits.max_buffers_and_acceleration_structures_per_shader_stage)
            .min(128)
            - 2;
        let read = |buffer: &GpuBuffer| buffer.to_host().unwrap();
        for dtype in [DType::F32, DType::Bf16] {
            let lens: Vec<usize> = (0..300).map(|nth| 2 + 38 * (nth % 120)).collect();
            let buffer = |&len: &usize| backend.wrap_of(dtype, raw(backend.device(), len, ALL), 0, len).unwrap();
            let foreign = || lens.iter().map(buffer).collect::<Vec<_>>();
            let arena = || backend.arena_of(dtype, &lens).unwrap();
            let results = [(foreign(), foreign()), (arena(), arena())].map(|(params, grads)| {
                let mut random = Random::new(33);
                for (buffer, &len) in params.iter().chain(&grads).zip(lens.iter().chain(&lens)) {
                    let values = random.tensor(len);
                    match dtype {
                        DType::F32 => buffer.write(&values),
                        _ => buffer.write_of(&values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
                    }
                    .unwrap();
                }
                let named = lens.iter().enumerate();
                let named = named.map(|(nth, &len)| Parameter::new(format!("w{nth}"), [len]).with_dtype(dtype));
                let mut optimizer = Adam::new(LR).params(named).master(Master::None).build(backend.clone()).unwrap();
                let grads: Vec<_> = grads.into_iter().map(Some).collect();
                let before = backend.counters();
                device_step(&mut optimizer, &params, &grads).unwrap();
                let now = backend.counters();
                let counts = [now.dispatches - before.dispatches, now.submits - before.submits];
                (params.iter().map(read).collect::<Vec<_>>(), counts)
            });
            let [gathered, packed] = results;
            assert!(gathered.0 == packed.0, "{dtype:?}: other numbers");
            // What full ones leave is moved by powers of two.
            let groups = u64::from(300 / most + (300 % most).count_ones());
            assert_eq!([gathered.1, packed.1], [[1 + 3 * groups, 1], [1, 1]], "{dtype:?}: dispatches and submissions");
        }
    }

    /// Small buffers are gathered by dispatches only where that takes fewer than they would take each.
    #[test]
    fn of_few_separate_buffers_is_at_most_a_dispatch_each() {
        let limits = Limits {
            max_storage_buffers_per_shader_stage: 34,
            max_buffers_and_acceleration_structures_per_shader_stage: 34,
            ..Limits::default()
        };
        let options = GpuOptions { gather: Gather::Dispatches, ..GpuOptions::default() };
        let backend = noop(limits, &options).unwrap();
        for count in 1..=80 {
            let lens = vec![64; count];
            let separate = || -> Vec<GpuBuffer> {
                lens.iter().map(|&len| backend.wrap(raw(backend.device(), len, ALL), 0, len).unwrap()).collect()
            };
            let arena = || backend.arena(&lens).unwrap();
            // So many of one side: full ones, then powers of two.
            let moves = (count / 32) as u64 + u64::from((count % 32).count_ones());
            for (params, grads, gathered) in [
                (separate(), separate(), 3 * moves + 1),
                (separate(), arena(), 2 * moves + 1),
                (arena(), separate(), moves + 1),
            ] {
                let mut optimizer = adam(&lens, &backend).unwrap();
                let grads: Vec<_> = grads.into_iter().map(Some).collect();
                let before = backend.counters().dispatches;
                device_step(&mut optimizer, &params, &grads).unwrap();
                let dispatches = backend.counters().dispatches - before;
                assert_eq!(dispatches, gathered.min(count as u64), "{count} buffers, {gathered} if gathered");
            }
        }
    }

    /// What is large, or cannot be copied, is updated where it is.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn of_separate_buffers_that_are_not_gathered_is_a_dispatch_each() {
        COUNTED.with(|backend| {
            for (lens, usage, dispatches) in [
                ([65, 3, 0, 1000], ALL, 1),
                ([65, 3, 0, 17_000], ALL, 2),
                ([17_000, 3, 0, 17_000], ALL, 3),
                ([65, 3, 0, 1000], BufferUsages::STORAGE | BufferUsages::COPY_SRC, 3),
            ] {
                let mut optimizer = adam(&lens, backend).unwrap();
                let buffer = |&len: &usize| backend.wrap(raw(backend.device(), len.max(1), usage), 0, len).unwrap();
                let [params, grads] = [0; 2].map(|_| lens.iter().map(buffer).collect::<Vec<_>>());
                let grads: Vec<_> = grads.into_iter().map(Some).collect();
                let before = gpu_counters();
                device_step(&mut optimizer, &params, &grads).unwrap();
                assert_eq!(since(before), [dispatches, 1, 0], "dispatches, submits, waits of {lens:?}, {usage:?}");
            }
        });
    }

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn of_host_parameters_waits_once() {
        COUNTED.with(|backend| {
            let (mut p, g) = (vec![1.0_f32; 100], vec![1.0_f32; 100]);
            let mut optimizer = adam(&[100], backend).unwrap();
            let before = gpu_counters();
            assert!(optimizer.step(&mut [(&mut p).into()], &[(&g).into()]).unwrap().applied());
            assert_eq!(since(before), [1, 1, 1], "dispatches, submits, waits");
        });
    }
}

mod memory {
    use super::*;

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn is_read_as_written() {
        let mut random = Random::new(6);
        // The last is longer than what is staged at once.
        for len in [0, 1, 64, 65, 1000, (1 << 22) + 17] {
            let (one, other) = (random.tensor(len), random.tensor(len));
            let buffer = gpu().buffer(&one).unwrap();
            assert!(buffer.read().unwrap() == one, "{len} elements");
            buffer.write(&other).unwrap();
            assert!(buffer.read().unwrap() == other, "{len} elements, written again");
            assert!(gpu().zeros(len).unwrap().read().unwrap().iter().all(|&x| x == 0.0), "{len} zeros");
            assert!(gpu().filled(len, 0.1).unwrap().read().unwrap().iter().all(|&x| x == 0.1), "{len} times 0.1");
        }
        let arena = gpu().arena(&[3, 0, 65]).unwrap();
        arena[0].write(&[1.0, 2.0, 3.0]).unwrap();
        arena[2].write(&[4.0; 65]).unwrap();
        assert_eq!(arena[0].read().unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(arena[2].read().unwrap(), [4.0; 65]);
        let halves = [1.5, -2.0, 0.1].map(f16::from_f32);
        let narrow = gpu().buffer_of(&halves).unwrap();
        assert_eq!(narrow.read_of::<f16>().unwrap(), halves);
        let error = narrow.read().unwrap_err();
        let (what, name) = ("buffer", "GpuBuffer".into());
        assert_eq!(error, Error::DType { what, name, expected: DType::F32, got: DType::F16 });
        let error = arena[0].write(&[1.0]).unwrap_err();
        assert_eq!(error, Error::Length { what: "buffer", name: "GpuBuffer".into(), expected: 3, got: 1 });
        assert_eq!(error.to_string(), "buffer \"GpuBuffer\" has 3 elements, 1 were to be written");
    }

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn of_slots_is_read_as_written() {
        let backend = adopted(&GpuOptions { window_bytes: Some(512), ..GpuOptions::default() });
        let tensors = [65, 300, 0].map(|len| Tensor {
            parameter: Parameter::new(len.to_string(), [len]),
            group: 0,
            rule: 0,
            master: Master::F32,
            state: StateDType::F32,
            ema: false,
            key: 0,
        });
        let rules = [Rule::from(Adam::default())];
        let mut engine = backend.engine(&Plan { rules: &rules, tensors: &tensors, groups: 1 }).unwrap();
        let mut random = Random::new(7);
        for (index, tensor) in tensors.iter().enumerate() {
            for nth in 0..2 {
                let values = random.tensor(tensor.parameter.len());
                let values: Vec<u8> = values.into_iter().flat_map(f32::to_ne_bytes).collect();
                let mut read = vec![0; values.len()];
                engine.write(index, Part::Slot(nth), 0, &values).unwrap();
                engine.read(index, Part::Slot(nth), 0, &mut read).unwrap();
                assert_eq!(read, values, "slot {nth} of {}", tensor.parameter.name());
            }
        }
    }

    #[test]
    fn of_the_callers_must_be_fit() {
        let backend = noop(Limits::default(), &GpuOptions::default()).unwrap();
        let buffer = |usage| raw(backend.device(), 100, usage);
        let both = |buffer: wgpu::Buffer, offset, len| {
            let (one, other) = (GpuBuffer::from_wgpu(buffer.clone(), offset, len), backend.wrap(buffer, offset, len));
            let errors = [memory_error(one), memory_error(other)];
            assert_eq!(errors[0], errors[1], "both ways say the same");
            assert_eq!((errors[0].0, &*errors[0].1), ("buffer", "wgpu::Buffer"));
            let [(.., expected, got), _] = errors;
            (expected, got)
        };
        let (expected, got) = both(buffer(BufferUsages::COPY_DST), 0, 100);
        assert_eq!((&*expected, got.contains("COPY_DST")), ("usage STORAGE", true));
        let (expected, got) = both(buffer(ALL), 4, 1);
        assert_eq!((&*expected, &*got), ("an offset that is a multiple of 256 bytes", "4"));
        let (expected, got) = both(buffer(ALL), 256, 37);
        assert_eq!((&*expected, &*got), ("at least 37 elements from byte 256 on", "a buffer of 400 bytes"));
        assert!(GpuBuffer::from_wgpu(buffer(ALL), 256, 36).is_ok(), "exactly up to the end");
        both(buffer(ALL), 0, usize::MAX / 2);
        both(buffer(ALL), 1 << 63, 1);
    }

    #[test]
    fn without_the_usage_cannot_be_read_or_written() {
        let backend = noop(Limits::default(), &GpuOptions::default()).unwrap();
        let storage = backend.wrap(raw(backend.device(), 64, BufferUsages::STORAGE), 0, 64).unwrap();
        assert_eq!(memory_error(storage.read()).2, "usage BufferUsages(COPY_SRC)");
        assert_eq!(memory_error(storage.write(&[0.0; 64])).2, "usage BufferUsages(COPY_DST)");
        let untied = GpuBuffer::from_wgpu(raw(backend.device(), 64, ALL), 0, 64).unwrap();
        assert!(memory_error(untied.read()).2.contains("GpuBackend::wrap"));
    }

    /// Steps that must be refused: parameter `w1` or its gradient is at fault, and `w0` has not changed afterwards.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn that_is_unfit_for_a_step_is_refused_before_anything_changes() {
        let backend = gpu();
        let whole = || raw(backend.device(), 512, ALL);
        let part = |buffer: &wgpu::Buffer, first: u64| GpuBuffer::from_wgpu(buffer.clone(), 4 * first, 100).unwrap();
        let new = || backend.buffer(&[1.0; 100]).unwrap();
        let elsewhere = GpuBackend::new().unwrap();
        let shared = whole();
        let w0 = new();
        // The parameters, the gradients, who is at fault, what is said.
        let cases = [
            ([w0.clone(), part(&shared, 0)], [new(), part(&shared, 128)], "parameter", "one buffer for both"),
            ([w0.clone(), w0.clone()], [new(), new()], "parameter", "an overlap with parameter \"w0\""),
            ([part(&shared, 0), part(&shared, 64)], [new(), new()], "parameter", "an overlap with parameter \"w0\""),
            ([part(&shared, 64), new()], [new(), part(&shared, 128)], "gradient", "an overlap with parameter \"w0\""),
            ([w0.clone(), elsewhere.zeros(100).unwrap()], [new(), new()], "parameter", "another device"),
            ([w0.clone(), new()], [new(), elsewhere.zeros(100).unwrap()], "gradient", "another device"),
        ];
        for (params, grads, at_fault, said) in cases {
            let mut optimizer = adam(&[100, 100], backend).unwrap();
            let (what, name, expected, got) = memory_error(device_step(&mut optimizer, &params, &grads.map(Some)));
            assert_eq!((what, &*name), (at_fault, "w1"), "{expected}, {got}");
            assert!(got.contains(said), "{got:?} says {said:?}");
            assert_eq!(optimizer.step_count(), 0);
            assert!(optimizer.slot("w0", "moment2").unwrap().iter().all(|&v| v == 0.0), "{said}");
        }
        assert!(w0.read().unwrap().iter().all(|&p| p == 1.0), "w0 is as it was");

        // What is allowed: the parameters in one buffer side by side, one gradient for both.
        let mut optimizer = adam(&[100, 100], backend).unwrap();
        let grad = new();
        device_step(&mut optimizer, &[part(&shared, 0), part(&shared, 128)], &[Some(grad.clone()), Some(grad)])
            .unwrap();
    }

    /// A buffer of another device of the same instance, which only wgpu can tell.
    #[test]
    fn of_another_device_is_refused() {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::NOOP,
            backend_options: wgpu::BackendOptions {
                noop: wgpu::NoopBackendOptions { enable: true, ..wgpu::NoopBackendOptions::default() },
                ..wgpu::BackendOptions::default()
            },
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let device = || {
            let adapter = ready(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
            ready(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap()
        };
        let ((device, queue), (other, other_queue)) = (device(), device());
        let backend = GpuBackend::from_wgpu(device.clone(), queue.clone()).unwrap();
        let stranger = GpuBuffer::from_wgpu(raw(&other, 64, ALL), 0, 64).unwrap();
        let same = GpuBackend::from_wgpu(device, queue).unwrap().zeros(64).unwrap();
        let foreign = GpuBackend::from_wgpu(other, other_queue).unwrap().zeros(64).unwrap();
        let [own, any] = ["a buffer of this backend's device", "a buffer that this device can bind"];
        assert_eq!(memory_error(backend.wrap(stranger.wgpu().clone(), 0, 64)).2, any);
        let mut optimizer = adam(&[64], &backend).unwrap();
        for (param, grad, at_fault, wanted) in [
            (&stranger, &same, "parameter", any),
            (&same, &stranger, "gradient", any),
            (&foreign, &same, "parameter", own),
            (&same, &foreign, "gradient", own),
        ] {
            let (what, name, expected, _) =
                memory_error(device_step(&mut optimizer, from_ref(param), &[Some(grad.clone())]));
            assert_eq!((what, &*name, &*expected), (at_fault, "w0", wanted));
        }
        device_step(&mut optimizer, &[same], &[Some(backend.zeros(64).unwrap())]).unwrap();
    }

    /// It says what is wrong, rather than that it is another device's; and what nothing is bound of need not be bound.
    #[test]
    fn that_is_destroyed_or_empty_is_called_so() {
        let backend = noop(Limits::default(), &GpuOptions::default()).unwrap();
        let mut optimizer = adam(&[64, 0], &backend).unwrap();
        let empty = backend.wrap(raw(backend.device(), 0, ALL), 0, 0).unwrap();
        let (param, grad) = (backend.zeros(64).unwrap(), backend.zeros(64).unwrap());
        let params = [param, empty.clone()];
        device_step(&mut optimizer, &params, &[Some(backend.zeros(64).unwrap()), Some(empty.clone())]).unwrap();
        grad.wgpu().destroy();
        let (what, name, expected, got) =
            memory_error(device_step(&mut optimizer, &params, &[Some(grad), Some(empty)]));
        assert_eq!((what, &*name, &*expected), ("gradient", "w0", "a buffer that this device can bind"));
        assert!(got.contains("destroyed"), "{got}");
    }

    /// Another backend's memory.
    #[derive(Debug)]
    struct Alien;

    impl DeviceMemory for Alien {
        fn len(&self) -> usize {
            64
        }

        fn dtype(&self) -> DType {
            DType::F32
        }

        fn to_host(&self) -> Result<Vec<f32>> {
            panic!("nobody reads it")
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    #[test]
    fn of_another_kind_is_refused() {
        let backend = noop(Limits::default(), &GpuOptions::default()).unwrap();
        let mut optimizer = adam(&[64], &backend).unwrap();
        let buffer = backend.zeros(64).unwrap();
        let (what, name, expected, _) = memory_error(optimizer.step(&mut [(&Alien).into()], &[(&buffer).into()]));
        assert_eq!((what, &*name, &*expected), ("parameter", "w0", "a GpuBuffer or a slice"));
        let (what, ..) = memory_error(optimizer.step(&mut [(&buffer).into()], &[(&Alien).into()]));
        assert_eq!(what, "gradient");
    }
}

mod device {
    use super::*;

    /// A device with WebGPU's default limits is enough for everything, whatever the memory looks like.
    #[test]
    fn with_default_limits_is_enough() {
        let windows = [None, Some(256), Some(1 << 16)];
        for window_bytes in windows {
            let backend = noop(Limits::default(), &GpuOptions { window_bytes, ..GpuOptions::default() }).unwrap();
            for rule in Rule::all() {
                let spec = rule.spec();
                let lens = LENS.iter().enumerate().map(|(index, &len)| Parameter::new(format!("w{index}"), [len]));
                let built = Builder::new(rule.clone()).params(lens).build(backend.clone());
                if spec.passes() == Passes::Factored && window_bytes == Some(256) {
                    // A factored rule does not walk in windows, and says so.
                    let error = built.map(drop).unwrap_err();
                    assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("\"w")), "{error}");
                    continue;
                }
                let mut optimizer = built.unwrap();
                let place = |len| backend.wrap(raw(backend.device(), len + 64, ALL), 256, len).unwrap();
                let params: Vec<_> = LENS.iter().map(|&len| place(len)).collect();
                let grads: Vec<_> = LENS.iter().map(|&len| Some(place(len))).collect();
                device_step(&mut optimizer, &params, &grads).unwrap_or_else(|error| panic!("{}: {error}", spec.name()));
                let (params, grads) = (backend.arena(LENS).unwrap(), backend.arena(LENS).unwrap());
                let grads: Vec<_> = grads.into_iter().map(Some).collect();
                device_step(&mut optimizer, &params, &grads).unwrap_or_else(|error| panic!("{}: {error}", spec.name()));
            }
        }
    }

    /// 65,537 tiles are a grid of 32,768 × 3, which wgpu checks.
    #[test]
    fn takes_more_than_65535_workgroups() {
        let backend = noop(Limits::default(), &GpuOptions::default()).unwrap();
        let len = 65_536 * 64 + 1;
        let [param, grad] = [(), ()].map(|()| backend.wrap(raw(backend.device(), len, ALL), 0, len).unwrap());
        let mut optimizer = adam(&[len], &backend).unwrap();
        let before = backend.counters().dispatches;
        device_step(&mut optimizer, &[param], &[Some(grad)]).unwrap();
        assert_eq!(backend.counters().dispatches - before, 1);
    }

    /// A stage may be allowed many storage buffers, but few buffers in all.
    #[test]
    fn gathers_no_more_buffers_than_a_stage_can_bind() {
        let options = GpuOptions { gather: Gather::Dispatches, ..GpuOptions::default() };
        for most in [8, 28, 64, 200] {
            let limits = Limits { max_storage_buffers_per_shader_stage: most, ..Limits::default() };
            let backend = noop(limits, &options).unwrap();
            let lens = [16; 100];
            let buffers = || lens.map(|len| backend.wrap(raw(backend.device(), len, ALL), 0, len).unwrap());
            let mut optimizer = adam(&lens, &backend).unwrap();
            device_step(&mut optimizer, &buffers(), &buffers().map(Some))
                .unwrap_or_else(|error| panic!("{most} storage buffers: {error}"));
        }
    }

    /// Rules that sum need larger workgroups than others, and say so when they are built.
    #[test]
    fn that_cannot_sum_refuses_rules_that_do() {
        let limits = Limits { max_compute_invocations_per_workgroup: 128, ..Limits::default() };
        let backend = noop(limits, &GpuOptions::default()).unwrap();
        for rule in Rule::all() {
            let sums = rule.spec().passes() != Passes::Elementwise || rule.spec().has_trust();
            let built = Builder::new(rule.clone()).params([Parameter::new("w", [4, 4])]).build(backend.clone());
            let (what, expected, got) = ("max_compute_invocations_per_workgroup", 256, 128);
            let refused = sums.then_some(Error::DeviceLimit { what, expected, got });
            assert_eq!(built.map(drop).err(), refused, "{rule:?}");
        }
    }

    /// What is told of each tensor in one list may be more than a tiny window holds.
    #[test]
    fn takes_more_tensors_than_a_window_has_words() {
        let options = GpuOptions { window_bytes: Some(256), ..GpuOptions::default() };
        let backend = noop(Limits::default(), &options).unwrap();
        let lens = [1; 5000];
        let named = || (0..lens.len()).map(|nth| Parameter::new(format!("w{nth}"), [1]));
        let (params, grads) = (backend.arena(&lens).unwrap(), backend.arena(&lens).unwrap());
        let grads: Vec<_> = grads.into_iter().map(Some).collect();
        for builder in [Lamb::new(LR).params(named()), Sgd::new(LR).params(named()).clip_norm(1.0)] {
            let mut optimizer = builder.build(backend.clone()).unwrap();
            device_step(&mut optimizer, &params, &grads).unwrap();
        }

        // More than a binding has is refused.
        let limits = Limits { max_storage_buffer_binding_size: 1 << 16, ..Limits::default() };
        let backend = noop(limits, &GpuOptions::default()).unwrap();
        let (params, grads) = (backend.arena(&lens).unwrap(), backend.arena(&lens).unwrap());
        let grads: Vec<_> = grads.into_iter().map(Some).collect();
        let mut optimizer = Sgd::new(LR).params(named()).clip_norm(1.0).build(backend.clone()).unwrap();
        let error = device_step(&mut optimizer, &params, &grads).unwrap_err();
        let (what, expected, got) = ("max_storage_buffer_binding_size", 80_128, 1 << 16);
        assert_eq!(error, Error::DeviceLimit { what, expected, got });
    }

    #[test]
    fn with_too_low_a_limit_is_refused() {
        type Set = fn(&mut Limits);
        let cases: [(&str, u64, u64, Set); 5] = [
            ("max_buffers_and_acceleration_structures_per_shader_stage", 9, 8, |limits| {
                limits.max_buffers_and_acceleration_structures_per_shader_stage = 8;
            }),
            ("max_storage_buffers_per_shader_stage", 8, 4, |limits| limits.max_storage_buffers_per_shader_stage = 4),
            ("max_compute_workgroup_size_x", 64, 32, |limits| limits.max_compute_workgroup_size_x = 32),
            ("max_compute_invocations_per_workgroup", 64, 32, |limits| {
                limits.max_compute_invocations_per_workgroup = 32
            }),
            ("max_compute_workgroups_per_dimension", 65_535, 256, |limits| {
                limits.max_compute_workgroups_per_dimension = 256;
            }),
        ];
        for (what, expected, got, set) in cases {
            let mut limits = Limits::default();
            set(&mut limits);
            let error = noop(limits, &GpuOptions::default()).map(|_| ()).unwrap_err();
            assert_eq!(error, Error::DeviceLimit { what, expected, got });
        }
    }

    #[test]
    fn refuses_a_tensor_larger_than_a_buffer() {
        let limits = Limits { max_buffer_size: 1 << 16, max_storage_buffer_binding_size: 1 << 16, ..Limits::default() };
        let backend = noop(limits, &GpuOptions::default()).unwrap();
        let error = backend.zeros((1 << 14) + 1).map(|_| ()).unwrap_err();
        let expected = (1 << 16) + 256;
        assert_eq!(error, Error::DeviceLimit { what: "max_buffer_size", expected, got: 1 << 16 });
        // Without a list of its windows, which would be as long.
        for len in [1 << 62, usize::MAX] {
            let error = backend.zeros(len).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::DeviceLimit { what: "max_buffer_size", .. }), "{error}");
        }
        // On the host it may be longer: state and staging are cut into windows.
        let mut optimizer = adam(&[1 << 16], &backend).unwrap();
        let (mut p, g) = (vec![0.0_f32; 1 << 16], vec![0.0_f32; 1 << 16]);
        assert!(optimizer.step(&mut [(&mut p).into()], &[(&g).into()]).unwrap().applied());
    }

    /// In a process of its own. A GPU may use a hundredth of its memory here; llvmpipe does not know how much there is, and
    /// goes on until the process has no addresses left.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn out_of_memory_is_an_error_and_the_device_lives() {
        const ALONE: &str = "OPTIM_TEST_OUT_OF_MEMORY";
        if std::env::var_os(ALONE).is_none() {
            return again("gpu::device::out_of_memory_is_an_error_and_the_device_lives", ALONE, "1");
        }
        let thresholds = wgpu::MemoryBudgetThresholds { for_resource_creation: Some(1), for_device_loss: None };
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            memory_budget_thresholds: thresholds,
            ..wgpu::InstanceDescriptor::new_without_display_handle_from_env()
        });
        let adapter = ready(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
        let description =
            wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..wgpu::DeviceDescriptor::default() };
        let (device, queue) = ready(adapter.request_device(&description)).unwrap();
        let backend = GpuBackend::from_wgpu(device, queue).unwrap();
        let elements = usize::try_from(backend.device().limits().max_buffer_size.min(1 << 31) / 256 * 64).unwrap();
        let mut taken = Vec::new();
        let error = loop {
            match backend.zeros(elements) {
                Ok(buffer) => taken.push(buffer),
                Err(error) => break error,
            }
            assert!(taken.len() < 100_000, "{} TB and no end", taken.len() * elements / 250_000_000_000);
        };
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        println!("{} buffers of {elements} elements, then: {error}", taken.len());
        drop(taken);
        assert_eq!(backend.buffer(&[1.0]).unwrap().read().unwrap(), [1.0], "the device still works");
    }

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn that_is_destroyed_is_lost() {
        let backend = GpuBackend::new().unwrap();
        let mut optimizer = adam(&[100], &backend).unwrap();
        let (param, grad) = (backend.zeros(100).unwrap(), backend.zeros(100).unwrap());
        device_step(&mut optimizer, from_ref(&param), &[Some(grad.clone())]).unwrap();
        backend.device().destroy();
        let lost = |result: Result<()>| assert!(matches!(result, Err(Error::DeviceLost { .. })), "{result:?}");
        lost(param.read().map(drop));
        lost(device_step(&mut optimizer, from_ref(&param), &[Some(grad)]));
        lost(param.write(&[0.0; 100]));
        lost(optimizer.slot("w0", "moment1").map(drop));
        lost(backend.zeros(1).map(drop));
        lost(adam(&[100], &backend).map(drop));
        let mut host = vec![0.0_f32; 100];
        lost(optimizer.step(&mut [(&mut host).into()], &[(&vec![0.0_f32; 100]).into()]).map(drop));
    }

    /// No handler is on the caller's device: the loss shows where something is read, or is reported by the caller.
    #[test]
    fn of_the_callers_that_is_lost_is_noticed() {
        let backend = noop(Limits::default(), &GpuOptions::default()).unwrap();
        let buffer = backend.zeros(64).unwrap();
        backend.device().destroy();
        assert!(matches!(buffer.read(), Err(Error::DeviceLost { .. })), "{:?}", buffer.read());

        let backend = noop(Limits::default(), &GpuOptions::default()).unwrap();
        backend.report_lost("told by the caller");
        assert_eq!(backend.zeros(1).map(drop), Err(Error::DeviceLost { detail: "told by the caller".into() }));
    }

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn that_is_slow_times_out() {
        let backend = adopted(&GpuOptions { timeout: Duration::ZERO, ..GpuOptions::default() });
        let buffers: Vec<_> = (0..2).map(|_| backend.zeros(1 << 22).unwrap()).collect();
        let mut optimizer = adam(&[1 << 22], &backend).unwrap();
        // A device can be done before it is asked: try a few times.
        let late = (0..20).any(|_| {
            device_step(&mut optimizer, &buffers[..1], &[Some(buffers[1].clone())]).unwrap();
            matches!(buffers[0].read(), Err(Error::Timeout { seconds: 0 }))
        });
        assert!(late, "none of 20 steps took any time");
    }

    /// An error that belongs to no call of ours is not lost either, and does not stay.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn errors_outside_of_our_calls_are_reported_once() {
        let backend = GpuBackend::new().unwrap();
        let _ = raw(backend.device(), 1, BufferUsages::MAP_READ | BufferUsages::STORAGE);
        let error = backend.zeros(1).map(drop).unwrap_err();
        assert!(matches!(&error, Error::Device { detail } if detail.contains("since the last call")), "{error}");
        backend.zeros(1).unwrap();
    }

    /// Runs this test again in a process that asks for an adapter which does not exist.
    #[test]
    fn that_does_not_exist_is_an_error_with_the_install_line() {
        const WANTED: &str = "no such adapter";
        if std::env::var("WGPU_ADAPTER_NAME").is_ok_and(|name| name == WANTED) {
            let error = GpuBackend::new().map(drop).unwrap_err();
            assert!(matches!(error, Error::NoAdapter { .. }), "{error}");
            assert!(error.to_string().contains("apt-get install -y mesa-vulkan-drivers libvulkan1"), "{error}");
            return;
        }
        let name = "gpu::device::that_does_not_exist_is_an_error_with_the_install_line";
        again(name, "WGPU_ADAPTER_NAME", WANTED);
    }

    /// Timing a step changes nothing but what is known of it.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn tells_how_long_a_step_took() {
        let options = GpuOptions { timestamps: true, ..GpuOptions::default() };
        assert!(gpu().last_step_time().unwrap().is_none(), "not asked for");
        // The shared device was opened without, and the noop device has no clock.
        let devices = [(gpu().device(), gpu().queue())].map(|(device, queue)| (device.clone(), queue.clone()));
        let noop = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        for (device, queue) in devices.into_iter().chain([noop]) {
            let refused = GpuBackend::from_wgpu_with_options(device, queue, &options);
            assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
        }
        let backend = match GpuBackend::with_options(&options) {
            Err(Error::Unsupported { .. }) if !gpu_is_llvmpipe() => return,
            backend => backend.unwrap(),
        };
        assert!(backend.last_step_time().unwrap().is_none(), "before the first step");
        let mut random = Random::new(21);
        let (start, grad) = (random.tensor(100_000), random.tensor(100_000));
        let results = [&backend, gpu()].map(|backend| {
            let (param, grad) = (backend.buffer(&start).unwrap(), backend.buffer(&grad).unwrap());
            let mut optimizer = adam(&[start.len()], backend).unwrap();
            for _ in 0..2 {
                device_step(&mut optimizer, from_ref(&param), &[Some(grad.clone())]).unwrap();
                let time = backend.last_step_time().unwrap();
                assert_eq!(time.is_some_and(|time| !time.is_zero()), !std::ptr::eq(backend, gpu()), "{time:?}");
            }
            param.read().unwrap()
        });
        assert!(results[0] == results[1], "other numbers");
    }

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn describes_itself() {
        let info = gpu().adapter_info();
        let text = gpu().describe();
        assert!(text.contains(&info.name) && text.contains(&info.backend.to_string()), "{text}");
        assert_eq!(text.ends_with("software"), info.device_type == wgpu::DeviceType::Cpu, "{text}");
        assert_eq!(gpu().name(), "gpu");
    }
}

mod guarded_steps {
    use super::*;

    const PLAIN: Guard = Guard { factor: 1.0, clip: Clip::Global, first: 0, records: 1, scaler: None };

    fn guarded(backend: &GpuBackend, lens: &[usize], loss_scale: DynamicLossScale) -> Optimizer {
        let parameters = lens.iter().enumerate().map(|(index, &len)| Parameter::new(format!("w{index}"), [len]));
        Sgd::new(0.5).params(parameters).loss_scale(loss_scale).build(backend.clone()).unwrap()
    }

    fn report(optimizer: &mut Optimizer, params: &[GpuBuffer], grads: &[GpuBuffer]) -> StepReport {
        let mut params: Vec<ParamMut<'_>> = params.iter().map(Into::into).collect();
        let grads: Vec<Grad<'_>> = grads.iter().map(Into::into).collect();
        optimizer.step(&mut params, &grads).unwrap()
    }

    /// Measured, added up, decided, updated: all on the device.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn neither_wait_nor_read_back() {
        COUNTED.with(|backend| {
            let lens = [65, 1, 20_000, 64];
            let mut optimizer = guarded(backend, &lens, DynamicLossScale::default());
            let [params, grads] = [0; 2].map(|_| backend.arena(&lens).unwrap());
            let before = gpu_counters();
            // Fewer than may be pending.
            for step in 1..=30 {
                assert_eq!(report(&mut optimizer, &params, &grads).outcome, Outcome::Pending, "step {step}");
            }
            assert_eq!(since(before), [4 * 30, 30, 0], "dispatches, submits, waits");
            // Submitting may deliver a verdict too, so that there is nothing to look for.
            assert!(gpu_counters().polls - before.polls <= 30, "at most one look a step");
            for step in 1..=30 {
                let report = optimizer.wait_report().unwrap().unwrap();
                assert_eq!((report.outcome, report.step), (Outcome::Applied, step));
            }
            assert_eq!(optimizer.wait_report().unwrap(), None);
        });
    }

    /// A watched step waits, and leaves earlier reports where they are.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn may_be_watched() {
        let mut optimizer = guarded(gpu(), &[300], DynamicLossScale { init_loss_scale: 8.0, ..Default::default() });
        let param = gpu().filled(300, 2.0).unwrap();
        let grad = gpu().filled(300, 1.0).unwrap();
        assert_eq!(report(&mut optimizer, from_ref(&param), from_ref(&grad)).outcome, Outcome::Pending);
        let before = f64::from(param.read().unwrap()[0]);
        let watched = optimizer.step_watched(&mut [(&param).into()], &[(&grad).into()]).unwrap();
        assert_eq!((watched.outcome, watched.step), (Outcome::Applied, 2));
        let ratio = watched.update_ratios.unwrap()[0];
        let expected = (before - f64::from(param.read().unwrap()[0])) / before;
        assert!(expected > 0.0 && (ratio - expected).abs() <= 1e-12, "{ratio} instead of {expected}");
        assert_eq!(optimizer.try_report().unwrap().map(|report| (report.step, report.update_ratios)), Some((1, None)));
        assert_eq!(optimizer.try_report().unwrap(), None);
    }

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn are_reported_in_order() {
        let mut optimizer = guarded(gpu(), &[300], DynamicLossScale { init_loss_scale: 8.0, ..Default::default() });
        let param = gpu().zeros(300).unwrap();
        let bad = gpu().filled(300, 1.0).unwrap();
        let mut values = vec![8.0; 300];
        let good = gpu().buffer(&values).unwrap();
        values[299] = f32::NAN;
        bad.write(&values).unwrap();

        let is_bad = |step: usize| step.is_multiple_of(5) || step.is_multiple_of(7);
        let (mut reports, mut skipped) = (Vec::new(), 0);
        for step in 0..80 {
            let grad = if is_bad(step) { &bad } else { &good };
            assert_eq!(report(&mut optimizer, from_ref(&param), from_ref(grad)).outcome, Outcome::Pending);
            if step % 3 == 0 {
                reports.extend(std::iter::from_fn(|| optimizer.try_report().unwrap()));
            }
        }
        reports.extend(std::iter::from_fn(|| optimizer.wait_report().unwrap()));
        assert_eq!(reports.len(), 80);
        let mut applied = 0;
        for (step, report) in reports.iter().enumerate() {
            let gradients = report.gradients.as_ref().unwrap();
            if is_bad(step) {
                skipped += 1;
                assert_eq!(report.outcome, Outcome::Skipped(Skip::NotFinite), "step {step}");
                assert_eq!(gradients.first_non_finite.as_deref(), Some("w0"));
            } else {
                applied += 1;
                assert_eq!((report.outcome, report.step), (Outcome::Applied, applied), "step {step}");
                assert_eq!(gradients.first_non_finite, None);
            }
            let next = (8.0 / 2_f64.powi(skipped)).max(1.0);
            assert_eq!(gradients.next_loss_scale, next, "step {step}");
        }
        assert_eq!(optimizer.step_count(), applied);
        assert_eq!(optimizer.loss_scale().unwrap(), 1.0);
        // Every element has had the same gradients.
        let p = param.read().unwrap();
        assert!(p.iter().all(|&x| x < 0.0 && x.to_bits() == p[0].to_bits()), "{p:?}");
    }

    /// As many verdicts on their way as the caller likes.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn may_all_be_pending() {
        const STEPS: u32 = 40;
        let mut case = Case::new(&[Adam::default().into()], 7);
        case.push(&[300], Formats::F32, 0);
        let plan = Plan { rules: &case.rules, tensors: &case.tensors, groups: 1 };
        let (mut engine, mut naive) = (gpu().engine(&plan).unwrap(), Naive::default().engine(&plan).unwrap());
        let mut expected_p = Random::new(8).tensor(300);
        let param = gpu().buffer(&expected_p).unwrap();
        let scaler = Some(Scaler { factor: 2.0, window: 4, floor: 1.0, cap: 64.0 });
        let mut verdicts = Vec::new();
        let mut random = Random::new(9);
        for step in 1..=STEPS {
            let mut g = random.tensor(300);
            if step % 6 == 0 {
                g[7] = f32::INFINITY;
            }
            let grad = gpu().buffer(&g).unwrap();
            let variants: Vec<_> = (1..=step).map(|t| record(&case.rules[0], t)).collect();
            let guard = Guard { scaler, ..PLAIN };
            let rows = [RowList::default()];
            let update =
                Update { rules: &case.rules, records: &variants, record_of: &[0], rows: &rows, guard: Some(&guard) };
            let progress = engine.update(&update, &mut [(&param).into()], &[(&grad).into()]).unwrap();
            assert_eq!(progress, Progress::Pending);
            match naive.update(&update, &mut [(&mut expected_p).into()], &[(&g).into()]).unwrap() {
                Progress::Decided(verdict) => verdicts.push(verdict),
                progress => panic!("{progress:?}"),
            }
        }
        for (step, expected) in verdicts.iter().enumerate() {
            let got = engine.verdict(true).unwrap().unwrap();
            assert_same(&[got.norm], &[expected.norm], &format!("norm {step}"));
            let [got, expected] = [&got, expected].map(|v| (v.skip, v.first_bad, v.scale, v.bad, v.applied));
            assert_eq!(got, expected, "step {step}");
        }
        assert_eq!(engine.verdict(true).unwrap(), None);
        assert_eq!(engine.control().unwrap(), naive.control().unwrap());
        assert_same(&param.read().unwrap(), &expected_p, "w");
    }

    /// A kernel of the caller's scales gradients by what the device decided, and nobody waits.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn have_their_loss_scale_in_memory() {
        const SOURCE: &str = "
            @group(0) @binding(0) var<storage, read> loss_scale: f32;
            @group(0) @binding(1) var<storage, read_write> grads: array<f32>;
            @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
                if (id.x < arrayLength(&grads)) {
                    grads[id.x] = 1024.0 * loss_scale;
                }
            }";
        COUNTED.with(|backend| {
            let device = backend.device();
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: None,
                source: wgpu::ShaderSource::Wgsl(SOURCE.into()),
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: None,
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            });
            // 1024 · 2¹²⁰ is infinite, and so is half of it and a quarter.
            let init_loss_scale = 2_f64.powi(120);
            let mut optimizer =
                guarded(backend, &[100], DynamicLossScale { init_loss_scale, ..DynamicLossScale::default() });
            let (param, grad) = (backend.zeros(100).unwrap(), backend.zeros(100).unwrap());
            let scale = optimizer.loss_scale_memory().unwrap().as_any().downcast_ref::<GpuBuffer>().unwrap().clone();
            assert_eq!((scale.len(), scale.offset()), (1, 0));
            let resources = [scale.wgpu(), grad.wgpu()];
            let entries = [0, 1].map(|nth| wgpu::BindGroupEntry {
                binding: u32::try_from(nth).unwrap(),
                resource: resources[nth].as_entire_binding(),
            });
            let bindings = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &entries,
            });
            let before = gpu_counters().waits;
            for _ in 0..10 {
                let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                {
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                    pass.set_pipeline(&pipeline);
                    pass.set_bind_group(0, &bindings, &[]);
                    pass.dispatch_workgroups(2, 1, 1);
                }
                backend.queue().submit([encoder.finish()]);
                assert_eq!(report(&mut optimizer, from_ref(&param), from_ref(&grad)).outcome, Outcome::Pending);
            }
            assert_eq!(gpu_counters().waits, before, "waits");
            assert_eq!(optimizer.loss_scale().unwrap(), 2_f64.powi(117));
            assert_eq!(scale.read().unwrap(), [2_f32.powi(117)]);
            assert_eq!(optimizer.step_count(), 7);
            assert_eq!(param.read().unwrap(), [-0.5 * 1024.0 * 7.0; 100]);
        });
    }

    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn of_host_parameters_wait_for_their_verdict() {
        COUNTED.with(|backend| {
            let mut optimizer = guarded(backend, &[5], DynamicLossScale { init_loss_scale: 4.0, ..Default::default() });
            let (mut p, on_device) = ([1.0_f32; 5], backend.filled(5, 1.0).unwrap());
            let (good, bad) = ([4.0_f32; 5], [4.0, f32::INFINITY, 4.0, 4.0, 4.0]);
            let before = gpu_counters();
            assert!(optimizer.step(&mut [(&mut p).into()], &[(&good).into()]).unwrap().applied());
            assert_eq!(since(before), [4, 1, 1], "dispatches, submits, waits");
            assert_eq!(p, [0.5; 5]);
            // One that is pending comes first.
            assert_eq!(optimizer.step(&mut [(&on_device).into()], &[(&bad).into()]).unwrap().outcome, Outcome::Pending);
            let report = optimizer.step(&mut [(&mut p).into()], &[(&bad).into()]).unwrap();
            assert_eq!((report.outcome, report.step), (Outcome::Skipped(Skip::NotFinite), 2));
            assert_eq!(report.gradients.unwrap().skips, 2);
            let pending = optimizer.try_report().unwrap().unwrap();
            assert_eq!((pending.outcome, pending.gradients.unwrap().skips), (Outcome::Skipped(Skip::NotFinite), 1));
            assert_eq!((p, optimizer.loss_scale().unwrap()), ([0.5; 5], 1.0));
            assert_eq!(on_device.read().unwrap(), [1.0; 5]);
        });
    }

    /// A mistake of the caller's at one step is no loss of the device.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn of_a_buffer_that_is_mapped_are_refused_and_the_device_lives() {
        let backend = adopted(&GpuOptions::default());
        let mut optimizer = guarded(&backend, &[64], DynamicLossScale { init_loss_scale: 2.0, ..Default::default() });
        let (param, good) = (backend.filled(64, 3.0).unwrap(), backend.filled(64, 2.0).unwrap());
        let description = wgpu::BufferDescriptor { label: None, size: 256, usage: ALL, mapped_at_creation: true };
        let mapped = backend.device().create_buffer(&description);
        let bad = backend.wrap(mapped.clone(), 0, 64).unwrap();
        let refused = optimizer.step(&mut [(&param).into()], &[(&bad).into()]);
        assert!(matches!(refused, Err(Error::Device { .. })), "{refused:?}");
        mapped.unmap();
        for (grad, expected) in [(&good, 2.5), (&bad, 2.5)] {
            assert_eq!(report(&mut optimizer, from_ref(&param), from_ref(grad)).outcome, Outcome::Pending);
            assert!(optimizer.wait_report().unwrap().unwrap().applied());
            assert_eq!(param.read().unwrap(), [expected; 64]);
        }
    }

    /// A first step that is skipped is no first update, though whether it was is not known when the next ones are recorded.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn that_are_skipped_are_no_first_updates() {
        let start = Random::new(13).tensor(20);
        for rule in Rule::all() {
            let train = |skips: usize| {
                let builder = Builder::new(rule.clone()).params([Parameter::new("w", [4, 5])]).guard(true);
                let mut optimizer = builder.build(gpu().clone()).unwrap();
                let param = [gpu().buffer(&start).unwrap()];
                let bad = [gpu().buffer(&[f32::NAN; 20]).unwrap()];
                let mut random = Random::new(14);
                let good: Vec<_> = (0..3).map(|_| [gpu().buffer(&random.tensor(20)).unwrap()]).collect();
                for grads in std::iter::repeat_n(&bad, skips).chain(&good) {
                    // Rules whose first update differs wait for it, and so does one whose state is on the host.
                    let _ = report(&mut optimizer, &param, grads);
                }
                while optimizer.wait_report().unwrap().is_some() {}
                assert_eq!(optimizer.step_count(), 3, "{rule:?}: the updates");
                param[0].read().unwrap()
            };
            assert_same(&train(2), &train(0), &format!("{rule:?}"));
        }
    }

    /// Slices and rows that lie in several windows.
    #[test]
    #[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
    fn do_not_depend_on_the_window() {
        let mut case = Case::new(&[Adam::default().into()], 11);
        case.groups = 2;
        let split = Formats { dtype: DType::Bf16, master: Master::Split, ..Formats::F32 };
        for (nth, shape) in [&[3, 300][..], &[700], &[40, 9], &[5, 9001], &[2, 20_000], &[33_000]].iter().enumerate() {
            case.push(shape, if nth % 2 == 0 { Formats::F32 } else { split }, 0).group = nth % 2;
        }
        let gradients: Vec<_> =
            (0..5).map(|_| case.gradients(|i| [DType::F32, DType::F16, DType::Bf16][i % 3])).collect();
        // Where an element is not finite: in the last window of a slice, then in the first of one.
        let bad = [None, Some(32_999), None, Some(16_384), None];
        let guard = Guard { clip: Clip::Group, scaler: None, ..PLAIN };
        let records = |applied| {
            let mut records = [record(&case.rules[0], 1 + applied); 2];
            for (owner, record) in (0..).zip(&mut records) {
                record.shaping = Shaping { weight_decay: 0.01, flags: Shaping::CENTRALIZE, ..Shaping::NONE };
                record.stages.units = 0.01;
                record.stages.units_epsilon = 1e-3;
                (record.stages.max_norm, record.stages.owner) = (0.5, owner);
            }
            records.to_vec()
        };
        let run = |mut driven: Driven| {
            for (gradients, bad) in gradients.iter().zip(bad) {
                let mut gradients = gradients.clone();
                if let Some(element) = bad {
                    gradients[5].as_mut().unwrap().set_bits(element, 0x7f80);
                }
                let grads: Vec<Grad<'_>> = gradients.iter().map(|gradient| gradient.as_ref().into()).collect();
                driven.guarded(&guard, records, &[0, 1, 0, 1, 0, 1], &grads).unwrap();
            }
            let first_bad = driven.verdicts().unwrap().iter().map(|verdict| verdict.first_bad);
            assert_eq!(first_bad.collect::<Vec<_>>(), bad.map(|element| element.map(|_| 5)), "the parameter to blame");
            driven.snapshot().unwrap()
        };
        let expected = run(Driven::new(Naive::default(), &case).unwrap());
        for window_bytes in [256, 4096, 1 << 16, 1 << 24] {
            let backend = adopted(&GpuOptions { window_bytes: Some(window_bytes), ..GpuOptions::default() });
            let got = run(Driven::new(backend, &case).unwrap());
            let compared = if gpu_is_llvmpipe() { got.same_bits(&expected) } else { got.within(&expected, ENGINE) };
            if let Err(difference) = compared {
                panic!("windows of {window_bytes} bytes: {difference}");
            }
        }
    }

    /// Numbers of rows that one binding cannot hold are refused before anything changes.
    #[test]
    fn refuse_more_rows_than_fit() {
        let backend =
            noop(Limits { max_storage_buffer_binding_size: 1 << 17, ..Limits::default() }, &GpuOptions::default());
        let mut case = Case::new(&[Sgd::new(0.1).into()], 12);
        case.push(&[1 << 15, 1], Formats::F32, 0);
        let plan = Plan { rules: &case.rules, tensors: &case.tensors, groups: 1 };
        let mut engine = backend.unwrap().engine(&plan).unwrap();
        let mut records = [record(&case.rules[0], 1)];
        records[0].shaping.flags = Shaping::CENTRALIZE;
        let rows = [RowList::default()];
        let update = Update { rules: &case.rules, records: &records, record_of: &[0], rows: &rows, guard: None };
        let (mut p, g) = (vec![1.0_f32; 1 << 15], vec![1.0_f32; 1 << 15]);
        let error = engine.update(&update, &mut [(&mut p).into()], &[(&g).into()]).unwrap_err();
        let (expected, got) = (8 << 15, 1 << 17);
        assert_eq!(error, Error::DeviceLimit { what: "max_storage_buffer_binding_size", expected, got });
    }
}

/// A build without the CPU backend does not choose it: without a GPU the error is of the GPU.
#[test]
#[cfg(not(feature = "cpu"))]
fn there_is_no_other_choice() {
    assert!(matches!(optimizers::Backend::auto(), optimizers::Backend::Gpu), "what is built");
}

/// Runs one test of this binary in a process of its own, with an environment variable.
fn again(test: &str, variable: &str, value: &str) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(variable, value)
        .output()
        .unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
    println!("{out}");
}

/// The value of a future that is ready at once, as those of the noop device are.
fn ready<F: Future>(future: F) -> F::Output {
    let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("not ready"),
    }
}
