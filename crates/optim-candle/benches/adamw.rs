//! What a step on 16 million parameters costs, beside `candle_nn::AdamW`: `cargo bench -p optim-candle`.
//!
//! First both do a step from the same vars, which must agree; then they are timed in turns, and the medians count. The gradients stay
//! the same, so the time is that of the optimizer alone. A second line times thousands of small vars, where the work is per var.

use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use optim_candle::VarOptimizer;
use optim_candle::core::AdamW;

/// The feed-forward layers of two transformer blocks of width 1,024, and a vector: 16,778,240 parameters.
const MODEL: [(usize, usize); 5] = [(4096, 1024), (1024, 4096), (4096, 1024), (1024, 4096), (1, 1024)];

/// Timed steps of each.
const ROUNDS: usize = 15;

/// The same step by this much at most: both round each operation, in another order.
const TOLERANCE: f32 = 1e-6;

/// What the large model must gain.
const EXPECTED: f64 = 30.0;

fn main() -> Result<()> {
    println!("{:<24} {:>12} {:>12} {:>8}", "vars", "candle ms", "ours ms", "ratio");
    let gain = compare("16M parameters in 5", &MODEL)?;
    compare("2,000 of 64", &[(8, 8); 2000])?;
    assert!(gain >= EXPECTED, "a gain of at least {EXPECTED} is expected, got {gain:.1}");
    Ok(())
}

/// Prints the medians; by what ours is faster.
fn compare(name: &str, shapes: &[(usize, usize)]) -> Result<f64> {
    let vars =
        || -> Result<Vec<Var>> { shapes.iter().map(|&shape| Var::ones(shape, DType::F32, &Device::Cpu)).collect() };
    let (our_vars, their_vars) = (vars()?, vars()?);
    let (mut our_grads, mut their_grads) = (GradStore::default(), GradStore::default());
    for (our, their) in our_vars.iter().zip(&their_vars) {
        let grad = our.randn_like(0.0, 1.0)?;
        our_grads.insert(our, grad.clone());
        their_grads.insert(their, grad);
    }
    let mut theirs = candle_nn::AdamW::new(their_vars.clone(), ParamsAdamW { lr: 1e-3, ..ParamsAdamW::default() })?;
    let mut ours = VarOptimizer::new(our_vars.clone(), AdamW::new(1e-3))?;

    theirs.step(&their_grads)?;
    ours.step(&our_grads)?;
    for (our, their) in our_vars.iter().zip(&their_vars) {
        let off = (our.as_tensor() - their.as_tensor())?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off <= TOLERANCE, "after a step the two differ by {off}");
    }

    let (mut their_times, mut our_times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        their_times.push(milliseconds(|| theirs.step(&their_grads))?);
        our_times.push(milliseconds(|| ours.step(&our_grads))?);
    }
    let (their_time, our_time) = (median(their_times), median(our_times));
    let gain = their_time / our_time;
    println!("{name:<24} {their_time:>12.3} {our_time:>12.3} {gain:>7.1}x");
    Ok(gain)
}

fn milliseconds(step: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    step()?;
    Ok(1e3 * start.elapsed().as_secs_f64())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}
