//! Row-sparse gradients and rules of the user's own: the CPU and the GPU, bit for bit on llvmpipe.

use optim_tests::{Bound, Problem, Random, Run, Setup, Target, compare, gpu, gpu_is_llvmpipe};
use optimizers::core::Backend as _;
use optimizers::core::backend::{Part, Plan, Tensor};
use optimizers::core::format::{Master, StateDType};
use optimizers::core::rule::{At, CustomRule, Slot, Sparse, StepScalars, UpdateRule};
use optimizers::gpu::GpuOptions;
use optimizers::{Builder, Error, GpuBackend, Grad, ParamGroup, ParamMut, Parameter, Rate, Result, Rule, Sgd};

/// Bit for bit on llvmpipe, within a rounding or two elsewhere.
fn assert_same(got: &[f32], expected: &[f32], what: &str) {
    let exact = gpu_is_llvmpipe();
    let near =
        |a: f32, b: f32| if exact { a.to_bits() == b.to_bits() } else { (a - b).abs() <= 4e-6 * (1.0 + b.abs()) };
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (&a, &b)) in got.iter().zip(expected).enumerate() {
        assert!(near(a, b), "{what}, element {index}: {a:e} instead of {b:e}");
    }
}

/// The shared device with this window, as if it were the caller's.
fn adopted(window_bytes: Option<u64>) -> GpuBackend {
    let options = GpuOptions { window_bytes, ..GpuOptions::default() };
    GpuBackend::from_wgpu_with_options(gpu().device().clone(), gpu().queue().clone(), &options).unwrap()
}

/// Where parameters and values lie on the GPU's side.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Host,
    Device,
    Mixed,
}

/// Two tables, and a dense tensor between them; each step lists other rows.
struct Case {
    rows: usize,
    width: usize,
    lists: Vec<Vec<u32>>,
}

impl Case {
    /// Rows drawn at random, so that some stand more than once.
    fn random(rows: usize, width: usize, listed: usize, random: &mut Random) -> Self {
        let row = |random: &mut Random| u32::try_from(random.below(rows as u64)).unwrap();
        Self { rows, width, lists: (0..4).map(|_| (0..listed).map(|_| row(random)).collect()).collect() }
    }
}

fn check(rule: &Rule, case: &Case, place: Place, window_bytes: Option<u64>) {
    let what = format!("{rule:?}, {} × {}, {place:?}, window {window_bytes:?}", case.rows, case.width);
    let backend = adopted(window_bytes);
    let names = [("a", vec![case.rows, case.width]), ("dense", vec![77]), ("b", vec![case.rows, case.width])];
    let parameters = names.map(|(name, shape)| Parameter::new(name, shape));
    let groups = || [ParamGroup::new(&parameters).lr(1e-2).weight_decay(0.1)];
    let builder = || Builder::new(rule.clone()).groups(groups()).loss_scale(3.0);
    let mut on_cpu = builder().build(Target::Cpu).unwrap();
    let mut on_gpu = builder().build(backend.clone()).unwrap();

    let mut random = Random::new(9);
    let start: Vec<_> = parameters.iter().map(|p| random.tensor(p.len())).collect();
    let (mut cpu, mut host) = (start.clone(), start.clone());
    let buffers: Vec<_> = start.iter().map(|start| backend.buffer(start).unwrap()).collect();
    let on_device = |index: usize| place == Place::Device || (place == Place::Mixed && index == 0);
    for (step, list) in case.lists.iter().enumerate() {
        // The second table sometimes lists nothing, or has a dense gradient, or none.
        let other: Vec<u32> = list.iter().rev().copied().collect();
        let values =
            [random.tensor(list.len() * case.width), random.tensor(77), random.tensor(list.len() * case.width)];
        let dense = random.tensor(case.rows * case.width);
        let held: Vec<_> = values.iter().map(|values| backend.buffer(values).unwrap()).collect();
        let held_dense = backend.buffer(&dense).unwrap();
        let grads = |device: bool| -> Vec<Grad<'_>> {
            let rows = |index: usize, list| {
                if device && (on_device(index) || place == Place::Mixed) {
                    Grad::rows(list, &held[index])
                } else {
                    Grad::rows(list, &values[index])
                }
            };
            let last = match step {
                0 => rows(2, &other),
                1 => Grad::rows(&[], &[] as &[f32]),
                2 => {
                    if device && on_device(2) {
                        (&held_dense).into()
                    } else {
                        (&dense).into()
                    }
                }
                _ => Grad::None,
            };
            let middle = if device && on_device(1) { (&held[1]).into() } else { (&values[1]).into() };
            vec![rows(0, list), middle, last]
        };
        let mut params: Vec<ParamMut<'_>> = cpu.iter_mut().map(Into::into).collect();
        assert!(on_cpu.step(&mut params, &grads(false)).unwrap().applied(), "{what}");
        let mut params: Vec<ParamMut<'_>> = (host.iter_mut().zip(&buffers).enumerate())
            .map(|(index, (host, buffer))| if on_device(index) { buffer.into() } else { host.into() })
            .collect();
        let before = backend.counters();
        assert!(on_gpu.step(&mut params, &grads(true)).unwrap().applied(), "{what}");
        if place == Place::Device && !rule.spec().offloaded() {
            assert_eq!(backend.counters().waits, before.waits, "{what}: nothing is waited for");
        }
    }
    for (index, parameter) in parameters.iter().enumerate() {
        let name = parameter.name();
        let got = if on_device(index) { buffers[index].read().unwrap() } else { host[index].clone() };
        assert_same(&got, &cpu[index], &format!("{what}: {name}"));
        for slot in rule.spec().slots() {
            let [got, expected] = [&on_gpu, &on_cpu].map(|optimizer| optimizer.slot(name, slot.name).unwrap());
            assert_same(&got, &expected, &format!("{what}: {name}.{}", slot.name));
        }
    }
}

/// Every rule that takes row-sparse gradients: rows listed more than once, of any width, over windows that cut rows.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn rows_on_both_backends() {
    let mut random = Random::new(8);
    let mut kinds = Vec::new();
    for rule in Rule::all().into_iter().chain([Rule::custom(Decaying), Rule::custom(Offloaded)]) {
        if rule.spec().sparse() == Sparse::Unsupported {
            continue;
        }
        kinds.push(rule.spec().sparse());
        for (rows, width, listed) in [(50, 16, 30), (40, 5, 60), (9, 1, 4), (7, 130, 9), (3, 4, 0), (300, 64, 200)] {
            let case = Case::random(rows, width, listed, &mut random);
            for place in [Place::Host, Place::Device, Place::Mixed] {
                for window_bytes in [None, Some(256), Some(1024)] {
                    check(&rule, &case, place, window_bytes);
                }
            }
        }
        // Each once: the values are used where they are.
        let once = Case { rows: 20, width: 12, lists: vec![vec![4, 3, 19], vec![0], (0..20).collect(), vec![7, 8]] };
        check(&rule, &once, Place::Device, None);
    }
    assert!(kinds.contains(&Sparse::AllRows) && kinds.contains(&Sparse::ListedRows), "both kinds: {kinds:?}");
}

/// Control: the order of the list matters, so a comparison of bits would notice another order of summation.
#[test]
fn another_order_is_noticed() {
    let train = |values: &[f32; 3]| {
        let mut p = [1.0_f32];
        let mut optimizer = Sgd::new(1.0).params([Parameter::new("w", [1, 1])]).build(Target::Cpu).unwrap();
        assert!(optimizer.step(&mut [(&mut p).into()], &[Grad::rows(&[0, 0, 0], values)]).unwrap().applied());
        p[0].to_bits()
    };
    assert_ne!(train(&[1e8, -1e8, 1.0]), train(&[1.0, 1e8, -1e8]));
}

/// A gradient of sums over more than one tile's worth of slices: 5 million elements, several windows.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn long_sums_on_both_backends() {
    let len = 16_384 * 256 + 16_385;
    let mut random = Random::new(10);
    let (start, grad) = (random.tensor(len), random.tensor(len));
    let norms = Rule::all().into_iter().filter(|rule| matches!(rule, Rule::Lamb(_) | Rule::Lars(_)));
    for rule in norms {
        let parameters = [Parameter::new("w", [len])];
        let builder = || Builder::new(rule.clone()).groups([ParamGroup::new(&parameters).lr(1e-2).weight_decay(0.1)]);
        let mut cpu = start.clone();
        let mut on_cpu = builder().build(Target::Cpu).unwrap();
        assert!(on_cpu.step(&mut [(&mut cpu).into()], &[(&grad).into()]).unwrap().applied());
        for window_bytes in [None, Some(1 << 20)] {
            let backend = adopted(window_bytes);
            // The caller's own buffer has an odd length, so its end is walked in single elements.
            let own = backend.buffer(&start).unwrap();
            let param = backend.wrap(own.wgpu().clone(), 0, len).unwrap();
            let gradient = backend.buffer(&grad).unwrap();
            let mut on_gpu = builder().build(backend.clone()).unwrap();
            let before = backend.counters();
            assert!(on_gpu.step(&mut [(&param).into()], &[(&gradient).into()]).unwrap().applied());
            let after = backend.counters();
            assert_eq!((after.submits - before.submits, after.waits - before.waits), (1, 0), "submits, waits");
            assert_same(&param.read().unwrap(), &cpu, &format!("{rule:?}, window {window_bytes:?}"));
        }
    }
}

/// A rule of one's own with decay inside: `p ← p − γ (g + ½ s)`, `s ← ½ s + g`.
#[derive(Debug)]
struct Decaying;

/// The same with its state on the host.
#[derive(Debug)]
struct Offloaded;

/// The same with another text.
#[derive(Clone, Copy)]
struct Broken(&'static str);

const WGSL: &str = "struct Step { lr: f32, pad0: f32, pad1: f32, pad2: f32 }
    fn update(s: Step, p: ptr<function, f32>, g: f32, state: ptr<function, f32>) {
        *p = *p - s.lr * (g + 0.5 * *state);
        *state = 0.5 * *state + g;
    }";

macro_rules! own_rule {
    ($rule:ty, $wgsl:expr, $offloaded:expr) => {
        impl UpdateRule for $rule {
            fn name(&self) -> &'static str {
                "decaying"
            }
            fn lr(&self) -> &Rate {
                static RATE: Rate = Rate::Fixed(0.1);
                &RATE
            }
            fn weight_decay(&self) -> f64 {
                0.0
            }
            fn validate(&self) -> Result<()> {
                Ok(())
            }
            fn slots(&self) -> Vec<Slot> {
                vec![Slot::new("state", 0.25)]
            }
            #[allow(clippy::cast_possible_truncation, reason = "kernels compute in f32")]
            fn scalars(&self, at: &At) -> StepScalars {
                StepScalars::new(&[at.lr as f32, 0.0, 0.0, 0.0])
            }
            fn scalar_names(&self) -> &'static [&'static str] {
                &["lr", "pad0", "pad1", "pad2"]
            }
            fn sparse(&self) -> Sparse {
                Sparse::ListedRows
            }
            fn offloaded(&self) -> bool {
                $offloaded
            }
        }

        impl CustomRule for $rule {
            fn update(&self, step: &StepScalars, p: &mut [f32], g: &[f32], slots: &mut [&mut [f32]]) {
                let lr = f32::from_bits(step.words()[0]);
                for ((p, &g), state) in p.iter_mut().zip(g).zip(slots[0].iter_mut()) {
                    *p -= lr * (g + 0.5 * *state);
                    *state = 0.5 * *state + g;
                }
            }
            fn wgsl(&self) -> &str {
                let wgsl: fn(&Self) -> &str = $wgsl;
                wgsl(self)
            }
        }
    };
}
own_rule!(Decaying, |_| WGSL, false);
own_rule!(Offloaded, |_| WGSL, true);
own_rule!(Broken, |rule| rule.0, false);

impl std::fmt::Debug for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Broken")
    }
}

#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn a_rule_of_ones_own_on_both_backends() {
    let mut random = Random::new(11);
    let (start, grads) = (random.tensor(1025), [random.tensor(1025), random.tensor(1025)]);
    let train = |target: Target| {
        let builder = Builder::new(Rule::custom(Decaying)).params([Parameter::new("w", [1025])]).weight_decay(0.1);
        let (mut p, mut optimizer) = (start.clone(), builder.loss_scale(3.0).build(target).unwrap());
        for grad in &grads {
            assert!(optimizer.step(&mut [(&mut p).into()], &[grad.into()]).unwrap().applied());
        }
        (p, optimizer.slot("w", "state").unwrap())
    };
    let (cpu, gpu) = (train(Target::Cpu), train(Target::Gpu));
    assert_ne!(cpu.0, start);
    assert_same(&gpu.0, &cpu.0, "w");
    assert_same(&gpu.1, &cpu.1, "state");

    // The same name and another text is another kernel.
    let source = "struct Step { lr: f32, pad0: f32, pad1: f32, pad2: f32 }
        fn update(s: Step, p: ptr<function, f32>, g: f32, state: ptr<function, f32>) { *p = 7.0; }";
    let builder = Builder::new(Rule::custom(Broken(source))).params([Parameter::new("w", [3])]);
    let (mut p, mut optimizer) = ([0.0_f32; 3], builder.build(Target::Gpu).unwrap());
    assert!(optimizer.step(&mut [(&mut p).into()], &[(&[1.0_f32; 3]).into()]).unwrap().applied());
    assert_eq!(p, [7.0; 3]);
}

#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn broken_wgsl_is_an_error_when_built() {
    let missing = "struct Step { lr: f32, pad0: f32, pad1: f32, pad2: f32 }";
    let unbalanced = "struct Step { lr: f32, pad0: f32, pad1: f32, pad2: f32 }}";
    for (source, said) in [(unbalanced, "expected"), (missing, "update")] {
        let builder = Builder::new(Rule::custom(Broken(source))).params([Parameter::new("w", [3])]);
        match builder.build(Target::Gpu) {
            Err(Error::Shader { rule, detail }) => {
                assert_eq!(rule, "decaying");
                assert!(detail.contains(said), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(gpu().name(), "gpu");
}

/// State that stays on the host: the same bits as on the CPU for any window, and it can be replaced.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn offloaded_state() {
    let rule = Rule::custom(Offloaded);
    let problem = Problem::new(&[1000, 0, 3, 70_001], 3, 12).with_gaps(13);
    let setup = Setup { rule: rule.clone(), groups: vec![(1e-2, 0.1)], loss_scale: 3.0 };
    let expected = Run::train(setup.builder(&problem.parameters), Target::Cpu, &problem).unwrap();
    for window_bytes in [None, Some(1 << 16), Some(1 << 10)] {
        let got = Run::train(setup.builder(&problem.parameters), adopted(window_bytes), &problem).unwrap();
        if gpu_is_llvmpipe() {
            compare(&expected, &got, &Bound::Bits).unwrap();
        }
    }

    let tensor = Tensor {
        parameter: Parameter::new("w", [1000]),
        group: 0,
        rule: 0,
        master: Master::F32,
        state: StateDType::F32,
        ema: false,
        key: 0,
    };
    let plan = Plan { rules: &[rule], tensors: &[tensor], groups: 1 };
    let mut engine = adopted(Some(512)).engine(&plan).unwrap();
    let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_ne_bytes()).collect() };
    let mut read = vec![0; 4000];
    engine.read(0, Part::Slot(0), 0, &mut read).unwrap();
    assert_eq!(read, bytes(&[0.25; 1000]), "the initial values");
    let values = bytes(&Random::new(14).tensor(1000));
    engine.write(0, Part::Slot(0), 0, &values).unwrap();
    engine.read(0, Part::Slot(0), 0, &mut read).unwrap();
    assert_eq!(read, values, "what was written");
}
