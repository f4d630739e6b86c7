//! Trains in 16 and 8 bits, and compares with `f32`: `cargo run --release --example mixed_precision -- --help`.
//!
//! The network of the example `digits` computes in `f32`, from weights that are kept in fewer bits; its gradients are
//! rounded too before the optimizer sees them. With `f16` the loss is multiplied by a scale that is far too large at the
//! start: gradients overflow, those steps are skipped, and the scale falls until it fits.
//!
//! The second table is the trap that masters and stochastic rounding are for: weights of 1 and updates that are smaller
//! than half the distance to the next `bf16`. Rounded to nearest, every one is lost. PyTorch 2.15 does the same:
//! its `AdamW` moves 0 of 768 `bf16` weights in 100 steps.

#[path = "digits/chart.rs"]
mod chart;
#[path = "digits/data.rs"]
mod data;
#[path = "digits/network.rs"]
mod network;
#[path = "digits/place.rs"]
mod place;
#[path = "digits/random.rs"]
mod random;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use half::{bf16, f16};
use optimizers::schedule::{CosineDecay, WarmUp};
use optimizers::{
    Adam, AdamW, Builder, DType, DynamicLossScale, Grad, Master, ParamMut, Parameter, Schedule, StateDType,
};
use plotters::chart::SeriesLabelPosition::{LowerRight, UpperRight};
use plotters::prelude::*;

use crate::chart::{FONT, Line, bounds, chart, save};
use crate::data::{DIGITS, Digits, PIXELS};
use crate::network::{Evaluation, Network};
use crate::place::Place;
use crate::random::Random;

const HIDDEN: usize = 64;
const BATCH: usize = 32;
const SIZE: (u32, u32) = (900, 800);

/// Trains a 64-64-10 network on handwritten digits, with weights, gradients and state in fewer bits.
#[derive(Parser)]
struct Options {
    /// Where the updates run.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Place,
    /// How often every training image is seen.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Decides the split, the initial weights, the order of the images and the stochastic rounding.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Draws training loss and test accuracy over the epochs into this SVG file.
    #[arg(long, value_name = "PATH")]
    plot: Option<PathBuf>,
}

/// A way to train.
struct Recipe {
    name: &'static str,
    /// Of weights and gradients.
    dtype: DType,
    color: RGBColor,
    settings: fn(Builder) -> Builder,
}

/// The first is what the others are held against.
const RECIPES: [Recipe; 6] = [
    Recipe { name: "f32", dtype: DType::F32, color: RGBColor(90, 90, 90), settings: |builder| builder },
    Recipe {
        name: "f16, f32 master, loss scale",
        dtype: DType::F16,
        color: RGBColor(31, 119, 180),
        settings: |builder| builder.loss_scale(DynamicLossScale { scale_window: 200, ..DynamicLossScale::default() }),
    },
    Recipe {
        name: "bf16, split master",
        dtype: DType::Bf16,
        color: RGBColor(44, 160, 44),
        settings: |builder| builder.master(Master::Split),
    },
    Recipe {
        name: "bf16, stochastic",
        dtype: DType::Bf16,
        color: RGBColor(148, 103, 189),
        settings: |builder| builder.master(Master::Stochastic),
    },
    Recipe {
        name: "bf16, stochastic, 8-bit state",
        dtype: DType::Bf16,
        color: RGBColor(214, 96, 20),
        settings: |builder| builder.master(Master::Stochastic).state_dtype(StateDType::Block8),
    },
    Recipe {
        name: "bf16, to nearest",
        dtype: DType::Bf16,
        color: RGBColor(200, 60, 60),
        settings: |builder| builder.master(Master::None),
    },
];

/// One tensor's memory.
enum Memory {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Memory {
    /// The nearest numbers of that type.
    fn new(dtype: DType, values: &[f32]) -> Self {
        match dtype {
            DType::F32 => Self::F32(values.to_vec()),
            DType::F16 => Self::F16(values.iter().copied().map(f16::from_f32).collect()),
            DType::Bf16 => Self::Bf16(values.iter().copied().map(bf16::from_f32).collect()),
        }
    }

    fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(values) => values.clone(),
            Self::F16(values) => values.iter().copied().map(f16::to_f32).collect(),
            Self::Bf16(values) => values.iter().copied().map(bf16::to_f32).collect(),
        }
    }

    fn param(&mut self) -> ParamMut<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::F16(values) => values.into(),
            Self::Bf16(values) => values.into(),
        }
    }

    fn grad(&self) -> Grad<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::F16(values) => values.into(),
            Self::Bf16(values) => values.into(),
        }
    }
}

/// One training run.
struct Run {
    recipe: &'static Recipe,
    /// One entry for each epoch.
    train: Vec<Evaluation>,
    test: Vec<Evaluation>,
    /// Of weights and state.
    bytes_per_parameter: f64,
    skipped: usize,
    /// For the step after the last.
    loss_scale: f64,
    hash: u64,
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
    let runs = RECIPES.iter().map(|recipe| train(recipe, options)).collect::<Result<Vec<_>, _>>()?;
    println!(
        "{:<29}  test accuracy  train loss  bytes/parameter  skipped steps  last loss scale  weights hash",
        "weights and gradients"
    );
    for run in &runs {
        let (Some(train), Some(test)) = (run.train.last(), run.test.last()) else { continue };
        println!(
            "{:<29}  {:>13.3}  {:>10.5}  {:>15.2}  {:>13}  {:>15}  {:016x}",
            run.recipe.name, test.accuracy, train.loss, run.bytes_per_parameter, run.skipped, run.loss_scale, run.hash,
        );
    }
    println!();
    lose_updates(options)?;
    match &options.plot {
        Some(path) => {
            draw(&runs, path)?;
            println!("\npicture: {}", path.display());
        }
        None => println!("\npicture: none, for want of --plot PATH"),
    }
    Ok(())
}

/// Each run starts from the same weights, rounded, and sees the same images in the same order.
fn train(recipe: &'static Recipe, options: &Options) -> Result<Run, Box<dyn Error>> {
    let mut random = Random::new(options.seed);
    let Digits { mut train, test } = Digits::load(&mut random)?;
    let mut network = Network::random(&[PIXELS, HIDDEN, DIGITS], &mut random);
    let mut gradient = network.zero();

    let updates = u64::from(options.epochs) * train.len().div_ceil(BATCH) as u64;
    let warm_up = updates.div_ceil(10);
    let rate = WarmUp::new(0.01, warm_up)?.then(warm_up, CosineDecay::new(0.0, 0.01, (updates - warm_up).max(1))?);
    let parameters = [
        Parameter::new("hidden.weight", [HIDDEN, PIXELS]),
        Parameter::new("output.weight", [DIGITS, HIDDEN]),
        Parameter::new("hidden.bias", [HIDDEN]),
        Parameter::new("output.bias", [DIGITS]),
    ];
    let parameters = parameters.map(|parameter| parameter.with_dtype(recipe.dtype));
    let elements: usize = parameters.iter().map(Parameter::len).sum();
    let builder = (recipe.settings)(Adam::new(rate).params(parameters)).seed(options.seed);
    let bytes = builder.estimate()?.bytes() + elements * recipe.dtype.size();
    let mut optimizer = builder.build(options.backend.backend())?;

    let mut weights: Vec<Memory> = network.tensors().map(|tensor| Memory::new(recipe.dtype, tensor)).collect();
    load(&mut network, &weights);
    let (mut trained, mut tested, mut skipped) = (Vec::new(), Vec::new(), 0);
    for _ in 0..options.epochs {
        random.shuffle(&mut train);
        for batch in train.chunks(BATCH) {
            #[allow(clippy::cast_possible_truncation, reason = "a power of two, at most 2¹²⁶")]
            let loss_scale = optimizer.loss_scale()? as f32;
            let loss = network.loss_and_gradient(batch, loss_scale, &mut gradient);
            if !loss.is_finite() {
                return Err(format!("{}: the loss is {loss}", recipe.name).into());
            }
            let gradients: Vec<_> = gradient.tensors().map(|tensor| Memory::new(recipe.dtype, tensor)).collect();
            let mut params: Vec<_> = weights.iter_mut().map(Memory::param).collect();
            let grads: Vec<_> = gradients.iter().map(Memory::grad).collect();
            let report = optimizer.step(&mut params, &grads)?;
            skipped += usize::from(!report.applied());
            load(&mut network, &weights);
        }
        trained.push(network.evaluate(&train));
        tested.push(network.evaluate(&test));
    }
    Ok(Run {
        recipe,
        train: trained,
        test: tested,
        bytes_per_parameter: bytes as f64 / elements as f64,
        skipped,
        loss_scale: optimizer.loss_scale()?,
        hash: network.hash(),
    })
}

/// Makes the network compute with these weights.
fn load(network: &mut Network, weights: &[Memory]) {
    for (tensor, memory) in network.tensors_mut().zip(weights) {
        *tensor = memory.to_f32();
    }
}

/// 100 steps of `AdamW` at a rate of 6e-4, from weights of 1 and with a gradient of 1. Below 1 the next `bf16` is 1/256
/// away, more than six such steps.
fn lose_updates(options: &Options) -> Result<(), Box<dyn Error>> {
    const WEIGHTS: usize = 768;
    println!("{WEIGHTS} weights of 1 after 100 steps of AdamW at 6e-4   moved      mean");
    let masters = [
        ("f32", DType::F32, Master::F32),
        ("bf16, f32 master", DType::Bf16, Master::F32),
        ("bf16, split master", DType::Bf16, Master::Split),
        ("bf16, stochastic", DType::Bf16, Master::Stochastic),
        ("bf16, to nearest", DType::Bf16, Master::None),
    ];
    for (name, dtype, master) in masters {
        let mut optimizer = AdamW::new(6e-4)
            .params([Parameter::new("weight", [WEIGHTS]).with_dtype(dtype)])
            .master(master)
            .seed(options.seed)
            .build(options.backend.backend())?;
        let mut weight = Memory::new(dtype, &[1.0; WEIGHTS]);
        let gradient = Memory::new(dtype, &[1.0; WEIGHTS]);
        for _ in 0..100 {
            let _ = optimizer.step(&mut [weight.param()], &[gradient.grad()])?;
        }
        let weight = weight.to_f32();
        let moved = weight.iter().filter(|&&w| w < 1.0).count();
        let mean = weight.iter().copied().map(f64::from).sum::<f64>() / WEIGHTS as f64;
        println!("{name:<50} {moved:>6} {mean:>9.5}");
    }
    Ok(())
}

fn draw(runs: &[Run], path: &Path) -> Result<(), Box<dyn Error>> {
    let lines = |points: fn(&Run) -> Vec<f64>| -> Vec<Line> {
        let line = |run: &Run| Line {
            label: run.recipe.name,
            color: run.recipe.color,
            points: (1_u32..).map(f64::from).zip(points(run)).collect(),
        };
        runs.iter().map(line).collect()
    };
    let losses = lines(|run| run.train.iter().map(|epoch| epoch.loss).collect());
    let accuracies = lines(|run| run.test.iter().map(|epoch| epoch.accuracy).collect());
    save(path, SIZE, |area| {
        area.fill(&WHITE)?;
        let charts = area.titled("digits: Adam in fewer bits", (FONT, 22))?.split_evenly((2, 1));
        let (low, high) = bounds(&losses);
        let range = (0.9 * low.max(1e-6)..high.max(1e-5)).log_scale();
        chart(&charts[0], ["epoch", "training loss"], range, UpperRight, &losses)?;
        let (low, _) = bounds(&accuracies);
        chart(&charts[1], ["epoch", "test accuracy"], (low - 0.02).max(0.0)..1.0, LowerRight, &accuracies)?;
        area.present()?;
        Ok(())
    })
}
