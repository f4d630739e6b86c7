//! Whether groups cost anything: the same tensors in one group, and each in a group with a rate of its own.

use std::sync::Arc;

use optimizers::{Adam, CpuBackend, Error, GpuBackend, Grad, IntoBackend, Optimizer, ParamGroup, ParamMut, Parameter};

use crate::cases::extents;
use crate::timing::{ROUNDS, enough, middle, seconds};

/// Each with the factor of its widths.
const CASES: [(&str, usize); 2] = [("groups465", 4), ("groups465slim", 1)];
const TENSORS: &str = include_str!("cases/groups465.txt");

/// What is more is a width; what is not is a kernel or has another reason.
const KERNEL: usize = 7;

/// Prints a row for each place, threads or the GPU, whose label is wanted; whether there are any.
pub(crate) fn run(wanted: impl Fn(&str) -> bool) -> bool {
    let all = CASES.into_iter().flat_map(|(case, factor)| ["1", "2", "gpu"].map(|place| (case, factor, place)));
    // What is wide on the GPU is slow on a software adapter, and tells nothing more.
    let all = all.filter(|&(_, factor, place)| place != "gpu" || factor == 1);
    let rows: Vec<_> = all.filter(|(case, _, place)| wanted(&format!("{case} adam {place}"))).collect();
    if rows.is_empty() {
        return false;
    }
    println!(
        "{:<13} {:<19} {:>7} {:>12} {:>9} {:>8} {:>14} {:>10}",
        "case", "rule", "threads", "ns/param", "in groups", "ratio", "us apart", "dispatches"
    );
    for (case, factor, place) in rows {
        let wide = |extent| if extent > KERNEL { factor * extent } else { extent };
        let elements = |shape| extents(shape).into_iter().map(wide).product();
        let lens: Vec<usize> = TENSORS.lines().map(elements).collect();
        match place.parse() {
            Ok(threads) => on_cpu(case, &lens, threads),
            Err(_) => match on_gpu(case, &lens) {
                Ok(()) => {}
                Err(error @ Error::NoAdapter { .. }) => println!("{case:<13} {:<19} {place:>7} {error}", "adam"),
                Err(error) => panic!("{error}"),
            },
        }
    }
    true
}

fn on_cpu(case: &str, lens: &[usize], threads: usize) {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start"));
    let backend = CpuBackend::with_pool(Arc::clone(&pool));
    let mut optimizers = optimizers(lens, &backend).expect("valid optimizers");
    let ones = || lens.iter().map(|&len| vec![1.0_f32; len]).collect::<Vec<_>>();
    let grads: Vec<Vec<f32>> = lens.iter().map(|&len| vec![0.01; len]).collect();
    let times = pool.install(|| {
        optimizers.iter_mut().for_each(|optimizer| check(optimizer, &mut ones(), &grads));
        let mut memory = ones();
        let mut params: Vec<ParamMut<'_>> = memory.iter_mut().map(Into::into).collect();
        let grads: Vec<Grad<'_>> = grads.iter().map(Into::into).collect();
        compare(&mut optimizers, |optimizer, calls| {
            for _ in 0..calls {
                assert!(optimizer.step(&mut params, &grads).expect("a step").applied(), "applied");
            }
        })
    });
    print(case, lens, &threads.to_string(), times, "");
}

fn on_gpu(case: &str, lens: &[usize]) -> optimizers::Result<()> {
    let gpu = GpuBackend::new()?;
    let mut optimizers = optimizers(lens, &gpu)?;
    let (memory, grads) = (gpu.arena(lens)?, gpu.arena(lens)?);
    for (grad, &len) in grads.iter().zip(lens) {
        grad.write(&vec![0.01; len])?;
    }
    let mut params: Vec<ParamMut<'_>> = memory.iter().map(Into::into).collect();
    let grads: Vec<Grad<'_>> = grads.iter().map(Into::into).collect();

    let mut dispatches = [0; 2];
    for (optimizer, dispatches) in optimizers.iter_mut().zip(&mut dispatches) {
        for (tensor, &len) in memory.iter().zip(lens) {
            tensor.write(&vec![1.0; len])?;
        }
        let before = gpu.counters().dispatches;
        let _ = optimizer.step(&mut params, &grads)?;
        *dispatches = gpu.counters().dispatches - before;
        for tensor in &memory {
            assert!(tensor.read()?.iter().all(|&p| p < 1.0), "every element moved against its gradient");
        }
    }
    let [one, many] = dispatches;
    assert_eq!(one, many, "groups take no dispatches");
    let times = compare(&mut optimizers, |optimizer, calls| {
        for _ in 0..calls {
            let _ = optimizer.step(&mut params, &grads).expect("a step");
        }
        // Waits for the device.
        memory[1].read().expect("values");
    });
    print(case, lens, "gpu", times, &one.to_string());
    println!("{}", gpu.adapter_info().name);
    Ok(())
}

/// A step must do something before it is worth timing: every element walks against its gradient.
fn check(optimizer: &mut Optimizer, params: &mut [Vec<f32>], grads: &[Vec<f32>]) {
    let grads: Vec<Grad<'_>> = grads.iter().map(Into::into).collect();
    let mut memory: Vec<ParamMut<'_>> = params.iter_mut().map(Into::into).collect();
    assert!(optimizer.step(&mut memory, &grads).expect("a step").applied(), "the step is applied");
    assert!(params.iter().flatten().all(|&p| p < 1.0), "every element moved against its gradient");
}

/// One with one group, and one with a group for each tensor.
fn optimizers<B: IntoBackend + Clone>(lens: &[usize], backend: &B) -> optimizers::Result<[Optimizer; 2]> {
    let parameters: Vec<_> = lens.iter().enumerate().map(|(i, &len)| Parameter::new(format!("p{i}"), [len])).collect();
    let group = |(i, parameter)| ParamGroup::new([parameter]).lr(1e-3 * (1.0 + 1e-3 * i as f64));
    let groups = parameters.iter().enumerate().map(group);
    Ok([
        Adam::new(1e-3).params(&parameters).build(backend.clone())?,
        Adam::new(1e-3).groups(groups).build(backend.clone())?,
    ])
}

/// Seconds of a call of each: medians over rounds in turn, so that what else the machine does meets both.
fn compare(optimizers: &mut [Optimizer; 2], mut round: impl FnMut(&mut Optimizer, u32)) -> [f64; 2] {
    let (calls, _) = enough(|calls| round(&mut optimizers[0], calls));
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..3 * ROUNDS {
        for (optimizer, times) in optimizers.iter_mut().zip(&mut times) {
            times.push(seconds(calls, |calls| round(optimizer, calls)));
        }
    }
    times.map(middle)
}

fn print(case: &str, lens: &[usize], place: &str, [one, many]: [f64; 2], dispatches: &str) {
    let ns = 1e9 / lens.iter().sum::<usize>() as f64;
    println!(
        "{case:<13} {:<19} {place:>7} {:>12.3} {:>9.3} {:>8.3} {:>14.1} {dispatches:>10}",
        "adam",
        one * ns,
        many * ns,
        many / one,
        (many - one) * 1e6,
    );
}
