//! Trains a small network on handwritten digits: `cargo run --release --example digits -- --help`.
//!
//! The network is plain Rust on plain `Vec<f32>`s. What is shown here is all that such a program needs of the library:
//! parameters in two groups, a rate that warms up and decays, and one `step` for each mini-batch, on the CPU or the
//! GPU. The same seed gives the same weights in every run, for any number of threads, and also on a GPU if its
//! divisions and square roots round correctly.
//!
//! `--optimizer all` compares every rule. Its times are for 4,810 parameters, mostly the fixed cost of a step: they say
//! nothing of the speed on networks that do not fit into a cache.

mod chart;
mod data;
mod network;
mod place;
mod plot;
mod random;
mod rules;
mod table;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use optimizers::schedule::{CosineDecay, WarmUp};
use optimizers::{Grad, Optimizer, ParamGroup, ParamMut, Parameter, Rate, Schedule};

use crate::data::{DIGITS, Digits, PIXELS};
use crate::network::{Evaluation, Network};
use crate::place::Place;
use crate::random::Random;
use crate::rules::{Choice, Entry};

const HIDDEN: usize = 64;
const WEIGHT_DECAY: f64 = 1e-4;

/// Trains a 64-64-10 network on handwritten digits.
#[derive(Parser)]
struct Options {
    /// Where the updates run.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Place,
    /// The update rule; `all` runs every one in turn and compares them.
    #[arg(long, value_name = "RULE", default_value = "adam", value_parser = rules::parser())]
    optimizer: Choice,
    /// How often every training image is seen.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Decides the split, the initial weights and the order of the images.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Draws loss, accuracy and rate over the steps into this SVG file.
    #[arg(long, value_name = "PATH")]
    plot: Option<PathBuf>,
}

/// One training run: what the tables and the pictures are made of.
struct Run {
    optimizer: &'static Entry,
    backend: String,
    steps: Vec<Step>,
    epochs: Vec<Epoch>,
    /// Spent inside `Optimizer::step`.
    updating: Duration,
    /// The number of weights and biases.
    parameters: usize,
    /// The size of the optimizer's state.
    state_bytes: usize,
    weights_hash: u64,
}

impl Run {
    /// A run has at least one epoch.
    fn last(&self) -> &Epoch {
        self.epochs.last().expect("at least one epoch")
    }
}

struct Step {
    /// Of the mini-batch, before the update.
    loss: f64,
    rate: f64,
}

struct Epoch {
    train: Evaluation,
    test: Evaluation,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    match options.optimizer {
        Choice::One(entry) => run_one(entry, options),
        Choice::All => run_all(options),
    }
}

fn run_one(entry: &'static Entry, options: &Options) -> Result<(), Box<dyn Error>> {
    let run = train(entry, options)?;
    table::print(&run);
    picture(options, |path| plot::draw(&run, path))?;
    println!("weights hash: {:016x}", run.weights_hash);
    println!("test accuracy: {:.3}", run.last().test.accuracy);
    Ok(())
}

/// Every optimizer from the same initial weights, with the same images in the same order.
fn run_all(options: &Options) -> Result<(), Box<dyn Error>> {
    let run = |entry: &'static Entry| train(entry, options).map_err(|error| format!("{}: {error}", entry.name));
    let runs = rules::ALL.iter().map(run).collect::<Result<Vec<_>, _>>()?;
    table::compare(&runs);
    picture(options, |path| plot::compare(&runs, path))?;
    let accuracy = |run: &Run| run.last().test.accuracy;
    let worst = runs.iter().min_by(|a, b| accuracy(a).total_cmp(&accuracy(b))).expect("at least one rule");
    println!("the lowest test accuracy of all is that of {}", worst.optimizer.name);
    println!("test accuracy: {:.3}", accuracy(worst));
    Ok(())
}

fn picture(options: &Options, draw: impl Fn(&Path) -> Result<(), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    match &options.plot {
        Some(path) => {
            draw(path)?;
            println!("picture: {}", path.display());
        }
        None => println!("picture: none, for want of --plot PATH"),
    }
    Ok(())
}

fn train(entry: &'static Entry, options: &Options) -> Result<Run, Box<dyn Error>> {
    let mut random = Random::new(options.seed);
    let Digits { mut train, test } = Digits::load(&mut random)?;
    let mut network = Network::random(&[PIXELS, HIDDEN, DIGITS], &mut random);
    let mut gradient = network.zero();

    let updates = u64::from(options.epochs) * train.len().div_ceil(entry.batch) as u64;
    let mut optimizer = build(entry, updates, options.backend)?;

    let mut steps = Vec::new();
    let mut epochs = Vec::new();
    let mut updating = Duration::ZERO;
    let bar = progress_bar(entry.name, updates)?;
    for _ in 0..options.epochs {
        random.shuffle(&mut train);
        for batch in train.chunks(entry.batch) {
            let loss = network.loss_and_gradient(batch, 1.0, &mut gradient);
            let mut params: Vec<ParamMut<'_>> = network.tensors_mut().map(Into::into).collect();
            let grads: Vec<Grad<'_>> = gradient.tensors().map(Into::into).collect();
            let start = Instant::now();
            let report = optimizer.step(&mut params, &grads)?;
            updating += start.elapsed();
            steps.push(Step { loss, rate: report.rates[0] });
            bar.inc(1);
        }
        let epoch = Epoch { train: network.evaluate(&train), test: network.evaluate(&test) };
        bar.set_message(format!("loss {:.4}, test accuracy {:.3}", epoch.train.loss, epoch.test.accuracy));
        epochs.push(epoch);
    }
    bar.finish_and_clear();

    Ok(Run {
        optimizer: entry,
        backend: format!("{} ({})", optimizer.backend().name(), optimizer.backend().describe()),
        steps,
        epochs,
        updating,
        parameters: optimizer.parameters().iter().map(Parameter::len).sum(),
        state_bytes: optimizer.memory().bytes(),
        weights_hash: network.hash(),
    })
}

/// The optimizer of a run of so many updates: weights with decay, biases without; a warm-up over a tenth of the run,
/// then a cosine down to 0, unless the rate is fixed.
fn build(entry: &Entry, updates: u64, place: Place) -> optimizers::Result<Optimizer> {
    let warm_up = updates.div_ceil(10);
    let cosine = CosineDecay::new(0.0, entry.lr, (updates - warm_up).max(1))?;
    let rate = if entry.is_scheduled {
        Rate::from(WarmUp::new(entry.lr, warm_up)?.then(warm_up, cosine))
    } else {
        Rate::from(entry.lr)
    };

    let weights =
        [Parameter::new("hidden.weight", [HIDDEN, PIXELS]), Parameter::new("output.weight", [DIGITS, HIDDEN])];
    let biases = [Parameter::new("hidden.bias", [HIDDEN]), Parameter::new("output.bias", [DIGITS])];
    (entry.with_rate)(rate)
        .groups([ParamGroup::new(weights).weight_decay(WEIGHT_DECAY), ParamGroup::new(biases).weight_decay(0.0)])
        .build(place.backend())
}

/// A bar on standard error; hidden if that is no terminal.
fn progress_bar(name: &'static str, updates: u64) -> Result<ProgressBar, Box<dyn Error>> {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} steps  {msg}")?;
    Ok(ProgressBar::new(updates).with_style(style).with_prefix(name))
}
