//! Steps recorded into the caller's encoder: the numbers of plain steps, wherever they stand among the caller's own commands, and
//! nothing submitted, polled or waited for. What becomes of encoders that are dropped, refused or not submitted yet.

use half::bf16;
use optim_tests::{Random, gpu};
use optimizers::gpu::{Counters, GpuOptions};
use optimizers::{
    Adam, AdamOffload, Builder, DType, DynamicLossScale, Error, GpuBackend, GpuBuffer, Grad, Lamb, LoadOptions,
    LossScale, Master, Momentum, Optimizer, Outcome, ParamGroup, ParamMut, Parameter, Result, Rule, Sgd, Skip,
    StepReport,
};

const LENS: [usize; 4] = [65, 0, 1000, 16_385];

/// The shared device, as if it were the caller's: a backend of its own, so that other tests are not counted.
fn adopted() -> GpuBackend {
    GpuBackend::from_wgpu(gpu().device().clone(), gpu().queue().clone()).unwrap()
}

fn encoder(backend: &GpuBackend) -> wgpu::CommandEncoder {
    backend.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
}

fn submit(backend: &GpuBackend, encoder: wgpu::CommandEncoder) {
    backend.queue().submit([encoder.finish()]);
}

/// Why recorded commands never run.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Dropped,
    /// For a mistake in them.
    RefusedAtFinish,
    /// For a buffer that is gone.
    RefusedAtSubmit,
}

impl Fate {
    const ALL: [Self; 3] = [Self::Dropped, Self::RefusedAtFinish, Self::RefusedAtSubmit];

    fn meet(self, backend: &GpuBackend, mut commands: wgpu::CommandEncoder) {
        let scope = backend.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let other = backend.zeros(64).unwrap();
        match self {
            Self::Dropped => {}
            Self::RefusedAtFinish => {
                commands.clear_buffer(other.wgpu(), 1, None);
                submit(backend, commands);
            }
            Self::RefusedAtSubmit => {
                commands.clear_buffer(other.wgpu(), 0, None);
                let commands = commands.finish();
                other.wgpu().destroy();
                backend.queue().submit([commands]);
            }
        }
        drop(scope);
    }
}

/// An optimizer with its memory, and gradients for some steps.
struct Trained {
    backend: GpuBackend,
    optimizer: Optimizer,
    params: Vec<GpuBuffer>,
    grads: Vec<Vec<GpuBuffer>>,
}

impl Trained {
    /// Its tensors have two axes, as some rules want them.
    fn new(backend: &GpuBackend, builder: Builder, steps: usize) -> Self {
        let mut random = Random::new(3);
        let named = LENS.iter().enumerate().map(|(nth, &len)| Parameter::new(format!("w{nth}"), [1, len]));
        let optimizer = builder.params(named).build(backend.clone()).unwrap();
        let mut filled = || {
            let buffers = backend.arena(&LENS).unwrap();
            buffers.iter().zip(LENS).for_each(|(buffer, len)| buffer.write(&random.tensor(len)).unwrap());
            buffers
        };
        let (params, grads) = (filled(), (0..steps).map(|_| filled()).collect());
        Self { backend: backend.clone(), optimizer, params, grads }
    }

    fn step(&mut self, nth: usize) -> Result<StepReport> {
        let (mut params, grads) = memory(&self.params, &self.grads[nth]);
        self.optimizer.step(&mut params, &grads)
    }

    fn encode(&mut self, nth: usize, encoder: &mut wgpu::CommandEncoder) -> Result<StepReport> {
        let (mut params, grads) = memory(&self.params, &self.grads[nth]);
        self.backend.encode_step(encoder, &mut self.optimizer, &mut params, &grads)
    }

    /// All parameters and slots, as bits.
    fn bits(&self) -> Vec<Vec<u32>> {
        let params = self.params.iter().map(|param| param.read().unwrap());
        let slots = self.optimizer.rule().spec().slots();
        let slots = (0..LENS.len())
            .flat_map(|nth| slots.iter().map(move |slot| self.optimizer.slot(&format!("w{nth}"), slot.name).unwrap()));
        params.chain(slots).map(|values| values.into_iter().map(f32::to_bits).collect()).collect()
    }
}

fn memory<'a>(params: &'a [GpuBuffer], grads: &'a [GpuBuffer]) -> (Vec<ParamMut<'a>>, Vec<Grad<'a>>) {
    (params.iter().map(Into::into).collect(), grads.iter().map(Into::into).collect())
}

/// Submissions, waits and polls.
fn calls(backend: &GpuBackend) -> [u64; 3] {
    let Counters { submits, waits, polls, .. } = backend.counters();
    [submits, waits, polls]
}

/// Every rule, two steps in one encoder, and a third in another.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn steps_of_every_rule_are_plain_steps() {
    for rule in Rule::all() {
        if rule.spec().offloaded() {
            continue;
        }
        let backend = adopted();
        let [mut plain, mut recorded] = [0; 2].map(|_| Trained::new(&backend, Builder::new(rule.clone()), 3));
        for nth in 0..3 {
            assert!(plain.step(nth).unwrap().applied());
        }
        let before = calls(&backend);
        for steps in [&[0, 1][..], &[2]] {
            let mut encoder = encoder(&backend);
            for &nth in steps {
                let report = recorded.encode(nth, &mut encoder).unwrap();
                assert_eq!((report.outcome, report.step), (Outcome::Applied, nth as u64 + 1));
            }
            submit(&backend, encoder);
        }
        assert_eq!(calls(&backend), before, "{rule:?}: submissions, waits, polls");
        assert!(plain.bits() == recorded.bits(), "{rule:?}: other numbers");
        assert!(
            plain.params[0].read().unwrap() != Trained::new(&backend, Builder::new(rule), 0).params[0].read().unwrap()
        );
    }
}

/// Many optimizers in one encoder, with norms, averages, and clipping by rows; many more steps than staging buffers.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn of_several_optimizers_share_an_encoder() {
    const STEPS: usize = 12;
    let backend = adopted();
    let builders = || {
        [
            Builder::new(Adam::new(0.01)).ema(0.9),
            Builder::new(Lamb::new(0.01)),
            Builder::new(Momentum::new(0.1, 0.9)).clip_adaptive(0.01, 1e-3),
        ]
    };
    let mut plain = builders().map(|builder| Trained::new(&backend, builder, STEPS));
    let mut recorded = builders().map(|builder| Trained::new(&backend, builder, STEPS));
    for nth in 0..STEPS {
        plain.iter_mut().for_each(|trained| assert!(trained.step(nth).unwrap().applied()));
    }
    let before = calls(&backend);
    for steps in [0..1, 1..6, 6..12] {
        let mut encoder = encoder(&backend);
        for nth in steps {
            for trained in &mut recorded {
                assert!(trained.encode(nth, &mut encoder).unwrap().applied());
            }
        }
        submit(&backend, encoder);
    }
    let [submits, waits, polls] = calls(&backend);
    assert_eq!([submits, waits], before[..2], "submissions, waits");
    // The one with an average, until it knows that this has been set.
    assert!(polls - before[2] < STEPS as u64, "{} polls", polls - before[2]);
    for (plain, recorded) in plain.iter().zip(&recorded) {
        assert!(plain.bits() == recorded.bits(), "{:?}: other numbers", plain.optimizer.rule());
    }
    let averages = [&plain, &recorded].map(|all| all[0].optimizer.average("w2").unwrap());
    assert!(averages[0] == averages[1], "other averages");
}

/// A kernel of the caller's: `out[i] = a[i] − factor · b[i]`.
struct Kernel {
    pipeline: wgpu::ComputePipeline,
}

impl Kernel {
    fn new(backend: &GpuBackend, factor: &str) -> Self {
        let source = format!(
            "@group(0) @binding(0) var<storage, read> a: array<f32>;
            @group(0) @binding(1) var<storage, read> b: array<f32>;
            @group(0) @binding(2) var<storage, read_write> out: array<f32>;
            @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
                if (id.x < arrayLength(&out)) {{ out[id.x] = a[id.x] - {factor} * b[id.x]; }}
            }}"
        );
        let module = backend.device().create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = backend.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        Self { pipeline }
    }

    fn encode(&self, backend: &GpuBackend, encoder: &mut wgpu::CommandEncoder, buffers: [&GpuBuffer; 3]) {
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.wgpu().as_entire_binding() })
            .collect();
        let bindings = backend.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &bindings, &[]);
        pass.dispatch_workgroups(16, 1, 1);
    }
}

/// The caller's passes make the gradient before a step and see the parameters after it, several times in one encoder.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn stand_between_the_callers_passes() {
    const LEN: usize = 1000;
    let backend = adopted();
    let (gradient_of, add) = (Kernel::new(&backend, "1.0"), Kernel::new(&backend, "-0.5"));
    let target = backend.buffer(&Random::new(1).tensor(LEN)).unwrap();
    let run = |together: bool| {
        let [param, grad, seen, other] = [0; 4].map(|_| backend.zeros(LEN).unwrap());
        let mut optimizer = Adam::new(0.1).params([Parameter::new("w", [LEN])]).build(backend.clone()).unwrap();
        let mut commands = encoder(&backend);
        let before = calls(&backend);
        for nth in 0..6 {
            gradient_of.encode(&backend, &mut commands, [&param, &target, &grad]);
            if together {
                let report =
                    backend.encode_step(&mut commands, &mut optimizer, &mut [(&param).into()], &[(&grad).into()]);
                assert!(report.unwrap().applied());
            } else {
                submit(&backend, std::mem::replace(&mut commands, encoder(&backend)));
                assert!(optimizer.step(&mut [(&param).into()], &[(&grad).into()]).unwrap().applied());
            }
            // A trace of all parameters there have been, in one of two buffers.
            let [from, to] = if nth % 2 == 0 { [&seen, &other] } else { [&other, &seen] };
            add.encode(&backend, &mut commands, [from, &param, to]);
        }
        submit(&backend, commands);
        assert_eq!(calls(&backend) == before, together, "submissions, waits, polls");
        [param, seen, other].map(|buffer| buffer.read().unwrap())
    };
    let (together, apart) = (run(true), run(false));
    assert!(together == apart, "other numbers");
    assert!(together.iter().all(|values| values.iter().any(|&x| x != 0.0)), "nothing happened");
}

/// A guard and a dynamic loss scale: reports, skipped steps and numbers are those of plain steps, however many share an encoder.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn with_a_guard_are_reported_as_plain_steps() {
    const STEPS: usize = 24;
    let backend = adopted();
    let bad = |nth: usize| [2, 3, 9, 17].contains(&nth);
    let trained = || {
        let scale = DynamicLossScale { init_loss_scale: 64.0, scale_window: 3, ..DynamicLossScale::default() };
        let builder = Builder::new(Adam::new(0.01)).loss_scale(LossScale::from(scale)).clip_norm(0.5);
        let trained = Trained::new(&backend, builder, STEPS);
        for nth in (0..STEPS).filter(|&nth| bad(nth)) {
            let mut values = trained.grads[nth][2].read().unwrap();
            values[999] = if nth % 2 == 0 { f32::NAN } else { f32::INFINITY };
            trained.grads[nth][2].write(&values).unwrap();
        }
        trained
    };
    let (mut plain, mut recorded) = (trained(), trained());
    for nth in 0..STEPS {
        assert_eq!(plain.step(nth).unwrap().outcome, Outcome::Pending);
    }
    let before = calls(&backend);
    for steps in [0..1, 1..5, 5..6, 6..16, 16..24] {
        let mut encoder = encoder(&backend);
        for nth in steps {
            assert_eq!(recorded.encode(nth, &mut encoder).unwrap().outcome, Outcome::Pending);
        }
        submit(&backend, encoder);
    }
    assert_eq!(calls(&backend), before, "submissions, waits, polls");
    for nth in 0..STEPS {
        let [one, other] = [&mut plain, &mut recorded].map(|trained| trained.optimizer.wait_report().unwrap().unwrap());
        // Norms that are not numbers equal nothing, but print alike.
        assert_eq!(format!("{one:?}"), format!("{other:?}"), "step {nth}");
        let skipped = matches!(one.outcome, Outcome::Skipped(Skip::NotFinite));
        assert_eq!(skipped, bad(nth), "step {nth}: {:?}", one.outcome);
    }
    assert_eq!(recorded.optimizer.wait_report().unwrap(), None);
    assert_eq!(plain.optimizer.loss_scale().unwrap(), recorded.optimizer.loss_scale().unwrap());
    assert_eq!(recorded.optimizer.step_count(), 20);
    assert!(plain.bits() == recorded.bits(), "other numbers");
}

/// Verdicts come with the caller's own polls and submissions, without one of ours.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn take_verdicts_that_the_callers_polls_deliver() {
    let backend = adopted();
    let mut trained = Trained::new(&backend, Builder::new(Adam::new(0.01)).guard(true), 1);
    let before = calls(&backend);
    // More than may be pending.
    for nth in 1..=100 {
        let mut encoder = encoder(&backend);
        let report = trained.encode(0, &mut encoder).unwrap();
        assert_eq!((report.outcome, report.step), (Outcome::Pending, nth));
        submit(&backend, encoder);
        backend.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    }
    assert_eq!(calls(&backend), before, "submissions, waits, polls");
    assert_eq!(trained.optimizer.step_count(), 99);
}

/// Recording does not wait: a step whose numbers depend on verdicts is refused, and made after them.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn that_depend_on_verdicts_are_refused() {
    let backend = adopted();
    let is_refused = |result: Result<StepReport>| matches!(result, Err(Error::State { .. }));

    let mut many = Trained::new(&backend, Builder::new(Adam::new(0.01)).guard(true), 1);
    let mut commands = encoder(&backend);
    for _ in 0..32 {
        assert_eq!(many.encode(0, &mut commands).unwrap().outcome, Outcome::Pending);
    }
    assert!(is_refused(many.encode(0, &mut commands)), "the 33rd");
    // Nor is there anything to wait for.
    assert!(matches!(many.optimizer.wait_report(), Err(Error::State { .. })), "a report before the submission");
    submit(&backend, commands);
    assert!(many.optimizer.wait_report().unwrap().unwrap().applied());
    let mut commands = encoder(&backend);
    assert_eq!(many.encode(0, &mut commands).unwrap().step, 33);

    // The first update of these differs.
    let sgd = Builder::new(Sgd { momentum: 0.9, dampening: 0.1, ..Sgd::default() });
    let mut first = Trained::new(&backend, sgd.guard(true), 2);
    let mut commands = encoder(&backend);
    assert_eq!(first.encode(0, &mut commands).unwrap().outcome, Outcome::Pending);
    assert!(is_refused(first.encode(1, &mut commands)), "a second update before the first is known");
    submit(&backend, commands);
    assert!(first.optimizer.wait_report().unwrap().unwrap().applied());
    let mut commands = encoder(&backend);
    assert_eq!(first.encode(1, &mut commands).unwrap().step, 2);
}

/// What cannot be recorded is refused before anything has changed.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn that_cannot_be_recorded_are_refused() {
    let backend = adopted();
    let (param, grad) = (backend.zeros(3).unwrap(), backend.zeros(3).unwrap());
    let builder = || Adam::new(0.01).params([Parameter::new("w", [3])]);
    let mut commands = encoder(&backend);
    let (mut host, host_grad) = ([0.0_f32; 3], [0.0_f32; 3]);

    // Memory on the host.
    let mut optimizer = builder().build(backend.clone()).unwrap();
    let result = backend.encode_step(&mut commands, &mut optimizer, &mut [(&mut host).into()], &[(&grad).into()]);
    assert!(matches!(result, Err(Error::Memory { what: "parameter", ref name, .. }) if name == "w"), "{result:?}");
    let result = backend.encode_step(&mut commands, &mut optimizer, &mut [(&param).into()], &[(&host_grad).into()]);
    assert!(matches!(result, Err(Error::Memory { what: "gradient", ref name, .. }) if name == "w"), "{result:?}");
    assert_eq!(optimizer.step_count(), 0);
    // Not even what sets its master, which takes more than is uploaded at once, without a gradient.
    let len = 9_000_000;
    let named = [Parameter::new("w", [3]), Parameter::new("large", [len]).with_dtype(DType::Bf16)];
    let mut seeded = Momentum::new(0.1, 0.9).params(named).master(Master::F32).build(backend.clone()).unwrap();
    let (mut large, before) = (vec![bf16::ONE; len], calls(&backend));
    let params = &mut [(&param).into(), (&mut large).into()];
    let result = backend.encode_step(&mut commands, &mut seeded, params, &[(&grad).into(), Grad::None]);
    assert!(matches!(result, Err(Error::Memory { what: "parameter", ref name, .. }) if name == "large"), "{result:?}");
    assert_eq!(calls(&backend), before);

    // An encoder of another instance of wgpu.
    let foreign = &mut encoder(&GpuBackend::new().unwrap());
    let result = backend.encode_step(foreign, &mut optimizer, &mut [(&param).into()], &[(&grad).into()]);
    assert!(matches!(result, Err(Error::Device { .. })), "{result:?}");
    assert_eq!(optimizer.step_count(), 0);

    // Optimizers of other places.
    let mut own = builder().build(GpuBackend::new().unwrap()).unwrap();
    let mut naive = builder().build(optim_tests::Naive::default()).unwrap();
    for (other, place) in [(&mut own, "another device"), (&mut naive, "another backend")] {
        let result = backend.encode_step(&mut commands, other, &mut [(&param).into()], &[(&grad).into()]);
        assert!(matches!(&result, Err(Error::Unsupported { what, .. }) if what.contains(place)), "{result:?}");
        assert_eq!(other.step_count(), 0);
    }
    // Nor do other backends record, or this one into something else.
    let result = naive.record_step(&mut commands, &mut [(&mut host).into()], &[(&host_grad).into()]);
    assert!(matches!(result, Err(Error::Unsupported { .. })), "{result:?}");
    let result = optimizer.record_step(&mut 0, &mut [(&param).into()], &[(&grad).into()]);
    assert!(matches!(result, Err(Error::Unsupported { .. })), "{result:?}");

    // State on the host.
    let named = [Parameter::new("w", [3])];
    let mut offload = AdamOffload::new(0.01).params(named).build(backend.clone()).unwrap();
    let result = backend.encode_step(&mut commands, &mut offload, &mut [(&param).into()], &[(&grad).into()]);
    assert!(matches!(result, Err(Error::Unsupported { .. })), "{result:?}");

    // The encoder is none the worse for it.
    let report = backend.encode_step(&mut commands, &mut optimizer, &mut [(&param).into()], &[(&grad).into()]);
    assert_eq!(report.unwrap().step, 1);
    submit(&backend, commands);
}

/// A step whose encoder is dropped never happened; the optimizer says so once and goes on.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn of_dropped_encoders_are_lost_and_reported_once() {
    let backend = adopted();
    let start = Trained::new(&backend, Builder::new(Momentum::new(0.1, 0.9)), 2);
    let mut trained = Trained::new(&backend, Builder::new(Momentum::new(0.1, 0.9)), 2);
    let mut dropped = encoder(&backend);
    assert!(trained.encode(0, &mut dropped).unwrap().applied());
    // A finished one as well.
    drop(dropped.finish());
    assert!(matches!(trained.step(1), Err(Error::StepLost)));
    assert!(trained.bits() == start.bits(), "something has changed");
    assert_eq!(trained.step(1).unwrap().step, 2);
    let mut plain = start;
    assert!(plain.step(1).unwrap().applied());
    assert!(trained.bits() == plain.bits(), "other numbers than without the lost step");

    // With a guard, it is that step's report that is missing.
    let builder = || Builder::new(Adam::new(0.01)).guard(true);
    let mut trained = Trained::new(&backend, builder(), 3);
    let [mut first, mut dropped, mut last] = [0; 3].map(|_| encoder(&backend));
    assert_eq!(trained.encode(0, &mut first).unwrap().outcome, Outcome::Pending);
    assert_eq!(trained.encode(1, &mut dropped).unwrap().outcome, Outcome::Pending);
    assert_eq!(trained.encode(2, &mut last).unwrap().outcome, Outcome::Pending);
    submit(&backend, first);
    drop(dropped);
    submit(&backend, last);
    // As soon as it is known.
    assert!(matches!(trained.optimizer.wait_report(), Err(Error::StepLost)));
    assert_eq!(trained.optimizer.wait_report().unwrap().unwrap().step, 1);
    assert_eq!(trained.optimizer.wait_report().unwrap().unwrap().step, 2);
    assert_eq!(trained.optimizer.wait_report().unwrap(), None);
    let mut plain = Trained::new(&backend, builder(), 3);
    for nth in [0, 2] {
        assert_eq!(plain.step(nth).unwrap().outcome, Outcome::Pending);
    }
    assert!(trained.bits() == plain.bits(), "other numbers than without the lost step");
}

/// Masters and averages that a lost step was to set are set by the next one: whatever became of its commands, with a guard or without,
/// and even if it had no gradient.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn that_are_lost_leave_no_master_unset() {
    // Of its own: no other thread takes its callbacks.
    let backend = GpuBackend::new().unwrap();
    let values: Vec<bf16> = [1.0, -2.0, 3.5].map(bf16::from_f32).to_vec();
    let grad = backend.buffer(&[0.25, 0.5, -1.0]).unwrap();
    let trained = |guard| {
        let named = [Parameter::new("w", [3]).with_dtype(DType::Bf16)];
        let builder = Momentum::new(0.01, 0.9).params(named).master(Master::F32).ema(0.5).guard(guard);
        (builder.build(backend.clone()).unwrap(), backend.buffer_of(&values).unwrap())
    };
    let outcome =
        |optimizer: &Optimizer, param: &GpuBuffer| (param.read_of::<bf16>().unwrap(), optimizer.average("w").unwrap());
    let plain = [false, true].map(|guard| {
        let (mut optimizer, param) = trained(guard);
        // The number of the lost step is used up, unless it was guarded; the average's weight follows the number.
        if !guard {
            assert!(optimizer.step(&mut [(&param).into()], &[Grad::None]).unwrap().applied());
        }
        assert_ne!(optimizer.step(&mut [(&param).into()], &[(&grad).into()]).unwrap().step, 0);
        while optimizer.wait_report().unwrap().is_some() {}
        assert_ne!(param.read_of::<bf16>().unwrap(), values);
        outcome(&optimizer, &param)
    });
    for (nth, fate) in (0..8).flat_map(|nth| Fate::ALL.map(|fate| (nth, fate))) {
        let [record_again, guard, has_gradient] = [1, 2, 4].map(|bit| nth & bit != 0);
        let what = format!("{fate:?}, recorded again: {record_again}, guard: {guard}, gradient: {has_gradient}");
        let (mut optimizer, param) = trained(guard);
        let mut commands = encoder(&backend);
        let gradient = if has_gradient { (&grad).into() } else { Grad::None };
        assert_eq!(
            backend.encode_step(&mut commands, &mut optimizer, &mut [(&param).into()], &[gradient]).unwrap().step,
            1
        );
        fate.meet(&backend, commands);
        let mut commands = encoder(&backend);
        let mut again = |optimizer: &mut Optimizer| {
            let (params, grads) = (&mut [(&param).into()], &[(&grad).into()]);
            if record_again {
                backend.encode_step(&mut commands, optimizer, params, grads)
            } else {
                optimizer.step(params, grads)
            }
        };
        let lost = if guard { optimizer.wait_report().map(drop) } else { again(&mut optimizer).map(drop) };
        assert_eq!(lost, Err(Error::StepLost), "{what}");
        assert_eq!(again(&mut optimizer).unwrap().step, if guard { 1 } else { 2 }, "{what}");
        submit(&backend, commands);
        while optimizer.wait_report().unwrap().is_some() {}
        assert_eq!(outcome(&optimizer, &param), plain[usize::from(guard)], "{what}");
    }
}

/// Momentum over three `bf16` weights with a master and an average, which the first step sets.
fn with_master(backend: &GpuBackend) -> (Optimizer, GpuBuffer, GpuBuffer) {
    let values: Vec<bf16> = [1.0, -2.0, 3.5].map(bf16::from_f32).to_vec();
    let named = [Parameter::new("w", [3]).with_dtype(DType::Bf16)];
    let optimizer = Momentum::new(0.01, 0.9).params(named).master(Master::F32).ema(0.5).build(backend.clone()).unwrap();
    (optimizer, backend.buffer_of(&values).unwrap(), backend.buffer(&[0.25, 0.5, -1.0]).unwrap())
}

/// The step that sets masters and averages need not be the first that runs, nor run at all: whichever runs first sets them, once.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn that_overtake_the_first_find_their_masters() {
    // Of its own: no other thread takes its callbacks.
    let backend = GpuBackend::new().unwrap();
    let plain = |gradients: [bool; 2]| {
        let (mut optimizer, param, grad) = with_master(&backend);
        for there in gradients {
            let gradient = if there { (&grad).into() } else { Grad::None };
            assert!(optimizer.step(&mut [(&param).into()], &[gradient]).unwrap().applied());
        }
        (param.read_of::<bf16>().unwrap(), optimizer.average("w").unwrap())
    };
    let (both, second) = (plain([true, true]), plain([false, true]));
    assert_ne!(both, second);

    // Two encoders; the first one is dropped once the second has been recorded.
    for (dropped, expected) in [(false, &both), (true, &second)] {
        let (mut optimizer, param, grad) = with_master(&backend);
        let mut commands = [encoder(&backend), encoder(&backend)];
        for encoder in &mut commands {
            let (params, grads) = (&mut [(&param).into()], &[(&grad).into()]);
            assert!(backend.encode_step(encoder, &mut optimizer, params, grads).unwrap().applied());
        }
        let [first, last] = commands;
        if dropped {
            drop(first);
        } else {
            submit(&backend, first);
        }
        submit(&backend, last);
        let average = optimizer.average("w").unwrap();
        assert_eq!((&param.read_of::<bf16>().unwrap(), &average), (&expected.0, &expected.1), "dropped: {dropped}");
        let told = optimizer.step(&mut [(&param).into()], &[(&grad).into()]).map(drop);
        assert_eq!(told, if dropped { Err(Error::StepLost) } else { Ok(()) });
    }

    // A plain step before the recorded one, against the documents: the weights are not lost, and the recorded one goes on from them.
    let (mut optimizer, param, grad) = with_master(&backend);
    let mut late = encoder(&backend);
    let (params, grads) = (&mut [(&param).into()], &[(&grad).into()]);
    assert!(backend.encode_step(&mut late, &mut optimizer, params, grads).unwrap().applied());
    assert!(optimizer.step(params, grads).unwrap().applied());
    assert_eq!(param.read_of::<bf16>().unwrap(), second.0);
    submit(&backend, late);
    assert_eq!(param.read_of::<bf16>().unwrap(), both.0);
}

/// Masters and averages that are not set are not given away, and a step sets them.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn whose_masters_are_not_set_yet_are_not_saved() {
    // Of its own: no other thread takes its callbacks.
    let (backend, options) = (GpuBackend::new().unwrap(), LoadOptions::default());
    for dropped in [true, false] {
        let (mut optimizer, param, grad) = with_master(&backend);
        let values = param.read_of::<bf16>().unwrap();
        let mut commands = encoder(&backend);
        let (params, grads) = (&mut [(&param).into()], &[(&grad).into()]);
        assert!(backend.encode_step(&mut commands, &mut optimizer, params, grads).unwrap().applied());
        let commands = Some(commands).filter(|_| !dropped);
        let added = || ParamGroup::new([Parameter::new("v", [2])]);
        for result in [
            // It is read when it is written, or loaded.
            optimizer.state().and_then(|mut state| with_master(&backend).0.load_state(&mut state, &options).map(drop)),
            optimizer.average("w").map(drop),
            optimizer.swap_ema_in(params),
            optimizer.add_group(added()),
        ] {
            assert!(matches!(&result, Err(Error::State { .. })), "dropped: {dropped}: {result:?}");
        }
        assert_eq!(param.read_of::<bf16>().unwrap(), values);
        match commands {
            Some(commands) => submit(&backend, commands),
            None => {
                assert_eq!(optimizer.step(params, grads).map(drop), Err(Error::StepLost));
                assert!(optimizer.step(params, grads).unwrap().applied());
            }
        }
        let trained = param.read_of::<bf16>().unwrap();
        assert_ne!(trained, values);
        assert!(optimizer.state().is_ok());
        assert_ne!(optimizer.average("w").unwrap(), [0.0; 3]);
        assert!(optimizer.swap_ema_in(params).is_ok() && optimizer.swap_ema_out(params).is_ok());
        assert_eq!(param.read_of::<bf16>().unwrap(), trained);
        assert!(optimizer.add_group(added()).is_ok());
    }
}

/// A guarded step that would be an update for which it has no numbers changes nothing and is told.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn that_run_out_of_turn_change_nothing() {
    let backend = adopted();
    let (params, grads) = ([backend.zeros(3).unwrap()], [backend.buffer(&[0.25, 0.5, -1.0]).unwrap()]);
    for is_plain in [false, true] {
        params[0].write(&[1.0, 2.0, 3.0]).unwrap();
        let builder = Adam::new(0.1).params([Parameter::new("w", [3])]).guard(true);
        let mut optimizer = builder.build(backend.clone()).unwrap();
        let mut late = encoder(&backend);
        let (mut p, g) = memory(&params, &grads);
        assert_eq!(backend.encode_step(&mut late, &mut optimizer, &mut p, &g).unwrap().outcome, Outcome::Pending);
        if is_plain {
            assert_eq!(optimizer.step(&mut p, &g).unwrap().outcome, Outcome::Pending);
        } else {
            let mut early = encoder(&backend);
            assert!(backend.encode_step(&mut early, &mut optimizer, &mut p, &g).is_ok());
            submit(&backend, early);
        }
        let once = params[0].read().unwrap();
        let near = |(got, expected): (&f32, f32)| (got - expected).abs() < 1e-6;
        assert!(once.iter().zip([0.9, 1.9, 3.1]).all(near), "{once:?}");
        submit(&backend, late);
        assert_eq!(params[0].read().unwrap(), once, "the late one has changed something");
        let reports: Vec<_> =
            (0..2).map(|_| optimizer.wait_report().map(|report| report.map(|report| report.step))).collect();
        assert_eq!(reports, [Err(Error::StepLost), Ok(Some(1))], "plain: {is_plain}");
        // It goes on.
        assert_eq!(optimizer.step(&mut p, &g).unwrap().outcome, Outcome::Pending);
        assert_eq!(optimizer.wait_report().unwrap().map(|report| report.step), Some(2));
        assert_ne!(params[0].read().unwrap(), once);
    }
}

/// A state that is loaded after the first step was lost, or before that shows, is not set anew.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn that_are_lost_spare_a_loaded_state() {
    // Of its own: no other thread takes its callbacks.
    let backend = GpuBackend::new().unwrap();
    let grad = backend.buffer(&[0.25, 0.5, -1.0]).unwrap();
    let new = || {
        let named = [Parameter::new("w", [3]).with_dtype(DType::Bf16)];
        Momentum::new(0.01, 0.9).params(named).master(Master::F32).ema(0.5).build(backend.clone()).unwrap()
    };
    let param = || backend.buffer_of(&[bf16::ONE; 3]).unwrap();
    let (mut from, trained) = (new(), param());
    for _ in 0..3 {
        assert!(from.step(&mut [(&trained).into()], &[(&grad).into()]).unwrap().applied());
    }
    let values = trained.read_of::<bf16>().unwrap();
    for told in [false, true] {
        let (mut to, copy) = (new(), param());
        let mut commands = encoder(&backend);
        assert!(backend.encode_step(&mut commands, &mut to, &mut [(&copy).into()], &[(&grad).into()]).is_ok());
        drop(commands);
        let step = |to: &mut Optimizer| to.step(&mut [(&copy).into()], &[(&grad).into()]).map(drop);
        if told {
            assert_eq!(step(&mut to), Err(Error::StepLost));
        }
        assert_eq!(to.load_state(&mut from.state().unwrap(), &LoadOptions::default()).unwrap().step, 3);
        copy.write_of(&values).unwrap();
        if !told {
            assert_eq!(step(&mut to), Err(Error::StepLost));
        }
        let mut again = new();
        let other = param();
        other.write_of(&values).unwrap();
        assert_eq!(again.load_state(&mut from.state().unwrap(), &LoadOptions::default()).unwrap().step, 3);
        assert_eq!(step(&mut to), Ok(()));
        assert!(again.step(&mut [(&other).into()], &[(&grad).into()]).unwrap().applied());
        assert_eq!(copy.read_of::<bf16>().unwrap(), other.read_of::<bf16>().unwrap(), "told before: {told}");
        assert_eq!(to.average("w").unwrap(), again.average("w").unwrap(), "told before: {told}");
        assert_eq!(to.slot("w", "accum").ok(), again.slot("w", "accum").ok());
    }
}

/// While nobody has asked what became of a guarded step, the next one still finds its masters unset, and sets them.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn that_are_refused_unnoticed_leave_no_master_unset() {
    // Of its own: no other thread takes its callbacks.
    let backend = GpuBackend::new().unwrap();
    let grad = backend.buffer(&[1.0; 4]).unwrap();
    for record_again in [false, true] {
        let named = [Parameter::new("w", [4]).with_dtype(DType::Bf16)];
        let mut optimizer = Sgd::new(0.125).params(named).guard(true).build(backend.clone()).unwrap();
        let param = backend.buffer_of(&[bf16::from_f32(3.0); 4]).unwrap();
        let mut commands = encoder(&backend);
        let report = backend.encode_step(&mut commands, &mut optimizer, &mut [(&param).into()], &[(&grad).into()]);
        assert_eq!(report.unwrap().outcome, Outcome::Pending);
        Fate::RefusedAtSubmit.meet(&backend, commands);
        let mut commands = encoder(&backend);
        let (params, grads) = (&mut [(&param).into()], &[(&grad).into()]);
        let again = if record_again {
            backend.encode_step(&mut commands, &mut optimizer, params, grads)
        } else {
            optimizer.step(params, grads)
        };
        submit(&backend, commands);
        let mut lost = u32::from(again == Err(Error::StepLost));
        while let Some(report) = optimizer.wait_report().transpose() {
            lost += u32::from(report == Err(Error::StepLost));
        }
        assert_eq!(lost, 1, "told once");
        assert!(optimizer.step(&mut [(&param).into()], &[(&grad).into()]).is_ok());
        let steps = if again.is_ok() { 2.0 } else { 1.0 };
        assert_eq!(param.read_of::<bf16>().unwrap(), [bf16::from_f32(3.0 - 0.125 * steps); 4], "again: {again:?}");
    }
}

/// Commands that wgpu refuses, for a mistake of the caller's among them, bring no verdict.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn of_refused_encoders_are_lost() {
    let backend = adopted();
    let mut trained = Trained::new(&backend, Builder::new(Adam::new(0.01)).guard(true), 2);
    // So that there is an older verdict where the new one would be.
    assert_eq!(trained.step(0).unwrap().outcome, Outcome::Pending);
    assert!(trained.optimizer.wait_report().unwrap().unwrap().applied());
    let before = trained.bits();
    let mut commands = encoder(&backend);
    assert_eq!(trained.encode(1, &mut commands).unwrap().outcome, Outcome::Pending);
    let scope = backend.device().push_error_scope(wgpu::ErrorFilter::Validation);
    let [param, grad] = [&trained.params[0], &trained.grads[0][0]];
    commands.copy_buffer_to_buffer(param.wgpu(), 1, grad.wgpu(), 0, 4);
    submit(&backend, commands);
    assert!(matches!(trained.optimizer.wait_report(), Err(Error::StepLost)));
    drop(scope);
    assert!(trained.bits() == before, "something has changed");
    assert_eq!(trained.step(1).unwrap().step, 2);
    assert!(trained.optimizer.wait_report().unwrap().unwrap().applied());
}

/// The last of several steps in an encoder is timed, once it has run.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn are_timed() {
    let backend = match GpuBackend::with_options(&GpuOptions { timestamps: true, ..GpuOptions::default() }) {
        Err(Error::Unsupported { .. }) if !optim_tests::gpu_is_llvmpipe() => return,
        backend => backend.unwrap(),
    };
    let mut trained = Trained::new(&backend, Builder::new(Adam::new(0.01)), 3);
    let mut commands = encoder(&backend);
    for nth in 0..3 {
        assert!(trained.encode(nth, &mut commands).unwrap().applied());
    }
    assert_eq!(backend.last_step_time().unwrap(), None, "before the submission");
    submit(&backend, commands);
    assert!(backend.last_step_time().unwrap().is_some_and(|time| !time.is_zero()));
    let mut plain = Trained::new(&adopted(), Builder::new(Adam::new(0.01)), 3);
    for nth in 0..3 {
        assert!(plain.step(nth).unwrap().applied());
    }
    assert!(trained.bits() == plain.bits(), "other numbers");
}

/// Windows, and the caller's buffers, small ones among them, are recorded as they are run.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn work_with_buffers_of_the_callers_in_windows() {
    let options = GpuOptions { window_bytes: Some(4096), ..GpuOptions::default() };
    let backend = GpuBackend::from_wgpu_with_options(gpu().device().clone(), gpu().queue().clone(), &options).unwrap();
    let foreign = |values: &[f32]| {
        let buffer = gpu().buffer(values).unwrap();
        backend.wrap(buffer.wgpu().clone(), buffer.offset(), values.len()).unwrap()
    };
    let lens = [5, 64, 3, 3000];
    let named = || lens.iter().enumerate().map(|(nth, &len)| Parameter::new(format!("w{nth}"), [len]));
    let mut random = Random::new(4);
    let start: Vec<_> = lens.iter().map(|&len| random.tensor(len)).collect();
    let grads: Vec<_> = lens.iter().map(|&len| foreign(&random.tensor(len))).collect();
    let mut results = Vec::new();
    for recorded in [false, true] {
        let params: Vec<_> = start.iter().map(|values| foreign(values)).collect();
        let mut optimizer = Adam::new(0.01).params(named()).build(backend.clone()).unwrap();
        let mut commands = encoder(&backend);
        for _ in 0..3 {
            let (mut params, grads) = memory(&params, &grads);
            let report = if recorded {
                backend.encode_step(&mut commands, &mut optimizer, &mut params, &grads)
            } else {
                optimizer.step(&mut params, &grads)
            };
            assert!(report.unwrap().applied());
        }
        submit(&backend, commands);
        results.push(params.iter().map(|param| param.read().unwrap()).collect::<Vec<_>>());
    }
    assert!(results[0] == results[1], "other numbers");
    assert!(results[0] != start, "nothing happened");
}
