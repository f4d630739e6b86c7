//! What a step on 16 million parameters costs, beside `candle_nn::AdamW`: `cargo bench -p optim-candle`.
//!
//! First both do a step from the same vars, which must agree; then they are timed in turns. The gradients stay the same, so the time is
//! that of the optimizer alone. A second line times thousands of small vars, where the work is per var.
//!
//! Medians and, in brackets, the fastest steps. On a machine that is busy with something else the medians tell little of a step
//! that uses all cores and all of the memory's speed, so what is required is required of the fastest.

use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use optim_candle::VarOptimizer;
use optim_candle::core::AdamW;

/// The feed-forward layers of two transformer blocks of width 1,024, and a vector: 16,778,240 parameters.
const MODEL: [(usize, usize); 5] = [(4096, 1024), (1024, 4096), (4096, 1024), (1024, 4096), (1, 1024)];

/// Timed rounds: a step of candle's, then some of ours, which are short.
const ROUNDS: usize = 15;

/// Timed steps of ours in a round.
const OURS: usize = 5;

/// The same step by this much at most: both round each operation, in another order.
const TOLERANCE: f32 = 1e-6;

/// What the large model must gain.
const EXPECTED: f64 = 30.0;

fn main() -> Result<()> {
    println!("{:<20} {:>20} {:>20} {:>16}", "vars", "candle ms", "ours ms", "ratio");
    let gain = compare("16M parameters in 5", &MODEL)?;
    compare("2,000 of 64", &[(8, 8); 2000])?;
    assert!(gain >= EXPECTED, "a gain of at least {EXPECTED} is expected, got {gain:.1}");
    Ok(())
}

/// Prints what both take; by what the fastest step of ours is faster.
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
        for _ in 0..OURS {
            our_times.push(milliseconds(|| ours.step(&our_grads))?);
        }
    }
    let ([their_median, their_best], [our_median, our_best]) = (summary(their_times), summary(our_times));
    let (ratio, best) = (their_median / our_median, their_best / our_best);
    let [theirs, ours] = [(their_median, their_best), (our_median, our_best)].map(|(a, b)| format!("{a:.3} ({b:.3})"));
    println!("{name:<20} {theirs:>20} {ours:>20} {:>16}", format!("{ratio:.1} ({best:.1})"));
    Ok(best)
}

fn milliseconds(step: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    step()?;
    Ok(1e3 * start.elapsed().as_secs_f64())
}

/// The median and the least.
fn summary(mut times: Vec<f64>) -> [f64; 2] {
    times.sort_unstable_by(f64::total_cmp);
    [times[times.len() / 2], times[0]]
}
