//! The tables on standard output.

use crate::{Epoch, Run};

/// One run.
pub(crate) fn print(run: &Run) {
    let Epoch { train, test } = run.last();
    println!("backend: {}", run.backend);
    println!(
        "optimizer          epochs   steps  train loss  train accuracy  test accuracy  time per step  weights hash"
    );
    println!(
        "{:<18} {:>6} {:>7} {:>11.5} {:>15.3} {:>14.3} {:>11.1} µs  {:016x}",
        run.optimizer.name,
        run.epochs.len(),
        run.steps.len(),
        train.loss,
        train.accuracy,
        test.accuracy,
        run.updating.as_secs_f64() * 1e6 / run.steps.len() as f64,
        run.weights_hash,
    );
}

/// One line for each run.
///
/// The time is that inside `Optimizer::step`, divided by steps and parameters: here, as said above, hardly more than
/// the fixed cost of a step.
pub(crate) fn compare(runs: &[Run]) {
    if let Some(run) = runs.first() {
        println!("backend: {}; {} parameters, {} epochs", run.backend, run.parameters, run.epochs.len());
    }
    println!(
        "{:<17}  {:>6}  {:>13}  {:>10}  {:>21}  {:>21}  weights hash",
        "optimizer", "rate", "test accuracy", "train loss", "ns/(parameter × step)", "state bytes/parameter",
    );
    for run in runs {
        let parameters = run.parameters as f64;
        println!(
            "{:<17}  {:>6}  {:>13.3}  {:>10.5}  {:>21.2}  {:>21.2}  {:016x}",
            run.optimizer.name,
            run.optimizer.lr,
            run.last().test.accuracy,
            run.last().train.loss,
            run.updating.as_secs_f64() * 1e9 / (parameters * run.steps.len() as f64),
            run.state_bytes as f64 / parameters,
            run.weights_hash,
        );
    }
}
