//! The CPU and the GPU: the same bits on llvmpipe, within a stated bound on other GPUs.

use optim_tests::run::Worst;
use optim_tests::tolerance::{CONTROL_BITS, CONTROL_BOUND, PARITY};
use optim_tests::{
    AWKWARD, Bound, Problem, Run, SHAPES, STACKS, Setup, Target, compare, gpu, gpu_is_llvmpipe, reference,
};
use optimizers::rule::Passes;
use optimizers::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Adan, Asgd, Ftrl, Grad, Lamb,
    Lars, LazyAdam, Lion, Momentum, NAdam, ParamMut, Parameter, ProximalAdagrad, RAdam, RmsProp, Rprop, Rule, Sgd,
};

/// Trains on the CPU with one setup and on the GPU with another, and compares.
fn verdict(cpu: &Setup, gpu: &Setup, problem: &Problem) -> Result<Worst, Worst> {
    let a = Run::train(cpu.builder(&problem.parameters), Target::Cpu, problem).unwrap();
    let b = Run::train(gpu.builder(&problem.parameters), Target::Gpu, problem).unwrap();
    if gpu_is_llvmpipe() {
        return compare(&a, &b, &Bound::Bits);
    }
    let (_, scale) = reference::train(cpu, problem);
    compare(&a, &b, &Bound::Units(PARITY, &scale))
}

fn assert_equal(setup: &Setup, problem: &Problem) -> Worst {
    match verdict(setup, setup, problem) {
        Ok(worst) => worst,
        Err(worst) => panic!("{:?}\n{worst}", setup.rule),
    }
}

/// All lengths in one optimizer, three groups, decay, a loss scale that is no power of two, 20 steps with gaps.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn together() {
    let problem = Problem::new(AWKWARD, 20, 1).with_gaps(2);
    for rule in Rule::all() {
        let groups = vec![(1e-2, 0.1), (3e-3, 0.0), (0.1, 0.02)];
        let worst = assert_equal(&Setup { rule: rule.clone(), groups, loss_scale: 1000.0 }, &problem);
        println!("{rule:?}: {worst}");
    }
}

/// Each length as the only parameter, without anything to shape.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn alone() {
    for (seed, &len) in (10..).zip(AWKWARD) {
        let problem = Problem::new(&[len], 3, seed);
        for rule in Rule::all() {
            assert_equal(&Setup::new(&rule, 1e-2), &problem);
        }
    }
}

/// Parameters of all shapes.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn of_all_shapes() {
    let problem = Problem::shaped(SHAPES, 10, 5).with_gaps(6);
    for rule in Rule::all() {
        // A factored rule reads a gradient that is not shaped several rows at a time.
        let plain = (rule.spec().passes() == Passes::Factored).then_some(1.0);
        for loss_scale in [8.0].into_iter().chain(plain) {
            let groups = vec![(1e-2, 0.1), (3e-3, 0.0)];
            assert_equal(&Setup { rule: rule.clone(), groups, loss_scale }, &problem);
        }
    }
}

/// Stacks of small matrices, with second moments by row and column.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn of_small_matrices() {
    let problem = Problem::shaped(STACKS, 6, 7).with_gaps(8);
    for rule in Rule::all().into_iter().filter(|rule| rule.spec().passes() == Passes::Factored) {
        for loss_scale in [1.0, 1000.0] {
            let groups = vec![(1e-2, 0.1), (3e-3, 0.0)];
            assert_equal(&Setup { rule: rule.clone(), groups, loss_scale }, &problem);
        }
    }
}

/// Gradients that are not finite, which nothing guards: the same numbers become so. (On other GPUs than Mesa's, which may assume that
/// there are none, at least those.)
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn of_what_is_not_finite() {
    let mut problem = Problem::shaped(&[&[5, 7], &[300], &[4, 3, 3], &[20]], 4, 11);
    let places =
        [(0, 3, f32::NAN), (1, 17, f32::INFINITY), (1, 18, f32::NEG_INFINITY), (1, 19, f32::NAN), (2, 8, f32::NAN)];
    for (tensor, element, x) in places {
        problem.gradients[1][tensor].as_mut().unwrap()[element] = x;
    }
    for rule in Rule::all() {
        for (decay, loss_scale) in [(0.0, 1.0), (0.1, 3.0)] {
            let setup = Setup { rule: rule.clone(), groups: vec![(1e-2, decay)], loss_scale };
            let [cpu, gpu] = [Target::Cpu, Target::Gpu]
                .map(|target| Run::train(setup.builder(&problem.parameters), target, &problem).unwrap());
            let mut broken = 0;
            for (a, b) in cpu.arrays().iter().zip(gpu.arrays()) {
                for (i, (p, q)) in a.values.iter().zip(&b.values).enumerate() {
                    let same = p.to_bits() == q.to_bits() || (p.is_nan() && q.is_nan());
                    let agree = if gpu_is_llvmpipe() { same } else { p.is_finite() || !q.is_finite() };
                    assert!(agree, "{rule:?}: {}[{i}] is {p:e} on the CPU, {q:e} on the GPU", a.name);
                    broken += usize::from(!p.is_finite());
                }
            }
            assert!(broken > 0, "{rule:?}");
        }
    }
}

/// Many updates: errors that a single step hides would add up.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn long() {
    let problem = Problem::new(&[300, 5], 150, 3).with_gaps(4);
    for rule in Rule::all() {
        assert_equal(&Setup { rule, groups: vec![(1e-3, 0.01)], loss_scale: 3.0 }, &problem);
    }
}

/// The power function of FTRL: as many bases as expose what a driver's compiler does to it, over twelve decades. One in 17,000
/// was enough to differ when a sum in it could be reordered.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn powers() {
    const LEN: usize = 1 << 20;
    // All bits of the fraction vary, and so does the exponent.
    let gradients: Vec<f32> = (0..LEN).map(|i| 1e-6 * (i as f32 * (27.6 / LEN as f32)).exp()).collect();
    for power in [0.7, 0.3, 1.25, 3.9] {
        // From p = −1, n = 0 and z = 0, z becomes g + nᵏ / γ.
        let rule = Ftrl { lr_power: -power, initial_accum: 0.0, ..Ftrl::new(1e-3) };
        let [cpu, gpu] = [Target::Cpu, Target::Gpu].map(|target| {
            let mut optimizer = rule.clone().params([Parameter::new("w", [LEN])]).build(target).unwrap();
            let mut p = vec![-1.0_f32; LEN];
            let report = optimizer.step(&mut [(&mut p).into()], &[(&gradients).into()]).unwrap();
            assert!(report.applied(), "{report:?}");
            optimizer.slot("w", "linear").unwrap()
        });
        let exact = gpu_is_llvmpipe();
        for (g, (a, b)) in gradients.iter().zip(cpu.iter().zip(&gpu)) {
            let same = a.to_bits() == b.to_bits() || (!exact && (a - b).abs() <= 4e-6 * a.abs());
            assert!(same, "{g:e} squared to the power {power}: {a:e} on the CPU, {b:e} on the GPU");
        }
    }
}

/// Rules with one hyper-parameter changed by a part of itself: what a comparison must notice.
fn changed(rule: &Rule, part: f64) -> Rule {
    match rule.clone() {
        // Plain SGD has no hyper-parameter but its rate.
        Rule::Sgd(sgd) => Sgd { momentum: sgd.momentum * (1.0 + part), ..sgd }.into(),
        Rule::Momentum(momentum) => Momentum { momentum: momentum.momentum * (1.0 + part), ..momentum }.into(),
        Rule::Adam(rule) => Adam { beta2: rule.beta2 * (1.0 - part), ..rule }.into(),
        Rule::AdamWeightDecay(rule) => AdamWeightDecay { beta2: rule.beta2 * (1.0 - part), ..rule }.into(),
        Rule::AdamW(rule) => AdamW { beta2: rule.beta2 * (1.0 - part), ..rule }.into(),
        Rule::LazyAdam(rule) => LazyAdam { beta2: rule.beta2 * (1.0 - part), ..rule }.into(),
        Rule::AdamOffload(rule) => AdamOffload { beta2: rule.beta2 * (1.0 - part), ..rule }.into(),
        Rule::AdaMax(rule) => AdaMax { beta2: rule.beta2 * (1.0 - part), ..rule }.into(),
        Rule::NAdam(rule) => NAdam { beta2: rule.beta2 * (1.0 - part), ..rule }.into(),
        Rule::RAdam(rule) => RAdam { beta2: rule.beta2 * (1.0 - part), ..rule }.into(),
        Rule::Lion(rule) => Lion { beta2: rule.beta2 * (1.0 - part), ..rule }.into(),
        Rule::Adan(rule) => Adan { beta3: rule.beta3 * (1.0 - part), ..rule }.into(),
        Rule::Adagrad(rule) => Adagrad { accum: rule.accum * (1.0 + part), ..rule }.into(),
        Rule::ProximalAdagrad(rule) => ProximalAdagrad { accum: rule.accum * (1.0 + part), ..rule }.into(),
        Rule::Ftrl(rule) => Ftrl { initial_accum: rule.initial_accum * (1.0 + part), ..rule }.into(),
        Rule::RmsProp(rule) => RmsProp { decay: rule.decay * (1.0 - part), ..rule }.into(),
        Rule::Adadelta(rule) => Adadelta { rho: rule.rho * (1.0 - part), ..rule }.into(),
        Rule::Asgd(rule) => Asgd { t0: rule.t0 * (1.0 - part), ..rule }.into(),
        Rule::Rprop(rule) => Rprop { etas: (rule.etas.0, rule.etas.1 * (1.0 + part)), ..rule }.into(),
        Rule::AdaFactor(rule) => AdaFactor { decay_rate: rule.decay_rate * (1.0 + part), ..rule }.into(),
        Rule::Lamb(lamb) => Lamb { beta2: lamb.beta2 * (1.0 - part), ..lamb }.into(),
        Rule::Lars(lars) => Lars { coefficient: lars.coefficient * (1.0 + part), ..lars }.into(),
        Rule::Custom(own) => unreachable!("{own:?} is not among all rules"),
    }
}

/// Control: a rate or another hyper-parameter that is a little off on one side must be noticed.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn notices_a_changed_hyper_parameter() {
    let problem = Problem::new(&[2000], 20, 5);
    let part = if gpu_is_llvmpipe() { CONTROL_BITS } else { CONTROL_BOUND };
    for rule in Rule::all() {
        let setup = Setup::new(&rule, 1e-2);
        let other_rate = Setup::new(&rule, 1e-2 * (1.0 + part));
        assert!(verdict(&setup, &other_rate, &problem).is_err(), "{rule:?}: a rate {part} off passed");
        if rule.spec().slots().is_empty() {
            continue;
        }
        let other_rule = Setup::new(&changed(&rule, part), 1e-2);
        assert!(verdict(&setup, &other_rule, &problem).is_err(), "{rule:?}: {:?} passed", other_rule.rule);
    }
}

/// Parameters and gradients in the GPU's memory give the bits that the host's give.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn host_and_device_memory() {
    let problem = Problem::new(&[0, 1, 65, 257, 1025, 30_001], 6, 6).with_gaps(7);
    for rule in Rule::all() {
        let setup = Setup { rule, groups: vec![(1e-2, 0.1), (3e-3, 0.0)], loss_scale: 1000.0 };
        let host = Run::train(setup.builder(&problem.parameters), Target::Gpu, &problem).unwrap();

        let mut optimizer = setup.builder(&problem.parameters).build(Target::Gpu).unwrap();
        let buffer = |values: &Vec<f32>| gpu().buffer(values).unwrap();
        let p: Vec<_> = problem.start.iter().map(buffer).collect();
        for gradients in &problem.gradients {
            let gradients: Vec<_> = gradients.iter().map(|g| g.as_ref().map(buffer)).collect();
            let grads: Vec<Grad<'_>> = gradients.iter().map(|g| g.as_ref().into()).collect();
            let mut params: Vec<ParamMut<'_>> = p.iter().map(Into::into).collect();
            assert!(optimizer.step(&mut params, &grads).unwrap().applied(), "a step is applied");
        }
        let p: Vec<_> = p.iter().map(|p| p.read().unwrap()).collect();
        let device = Run::of(&optimizer, &p).unwrap().by("gpu, memory on the device");
        if let Err(worst) = compare(&host, &device, &Bound::Bits) {
            panic!("{:?}\n{worst}", setup.rule);
        }
    }
}
