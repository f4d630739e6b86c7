//! The CPU and the GPU: the same bits on llvmpipe, within a stated bound on other GPUs.

use optim_tests::run::Worst;
use optim_tests::tolerance::{CONTROL_BITS, CONTROL_BOUND, PARITY};
use optim_tests::{AWKWARD, Bound, Problem, Run, Setup, Target, compare, gpu, gpu_is_llvmpipe, reference};
use optimizers::{Adam, Grad, Lamb, Lars, Momentum, ParamMut, Rule, Sgd};

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

/// Many updates: errors that a single step hides would add up.
#[test]
#[cfg_attr(skip_gpu, ignore = "OPTIM_TEST_GPU=skip")]
fn long() {
    let problem = Problem::new(&[300, 5], 150, 3).with_gaps(4);
    for rule in Rule::all() {
        assert_equal(&Setup { rule, groups: vec![(1e-3, 0.01)], loss_scale: 3.0 }, &problem);
    }
}

/// Rules with one hyper-parameter changed by a part of itself: what a comparison must notice.
fn changed(rule: &Rule, part: f64) -> Rule {
    match rule.clone() {
        // Plain SGD has no hyper-parameter but its rate.
        Rule::Sgd(sgd) => Sgd { momentum: sgd.momentum * (1.0 + part), ..sgd }.into(),
        Rule::Momentum(momentum) => Momentum { momentum: momentum.momentum * (1.0 + part), ..momentum }.into(),
        Rule::Adam(adam) => Adam { beta2: adam.beta2 * (1.0 - part), ..adam }.into(),
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
