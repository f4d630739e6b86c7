//! Trains a network on handwritten digits with candle, by candle's AdamW and by this library's:
//! `cargo run --release -p optim-candle --example candle_digits`.
//!
//! The training loop knows `candle_nn::Optimizer` alone. What differs is the line that makes the optimizer.

#[path = "../../optimizers/examples/digits/data.rs"]
mod data;
#[path = "../../optimizers/examples/digits/random.rs"]
mod random;

use std::error::Error;
use std::time::{Duration, Instant};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{Module, Optimizer, ParamsAdamW, Sequential, VarBuilder, VarMap};
use optim_candle::VarOptimizer;
use optim_candle::core::AdamW;

use crate::data::{DIGITS, Digits, Image, PIXELS};
use crate::random::Random;

const HIDDEN: usize = 256;
const BATCH: usize = 32;
const EPOCHS: usize = 10;
const SEED: u64 = 0;
const RATE: f64 = 1e-3;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let digits = Digits::load(&mut Random::new(SEED))?;
    let (train, test) = (tensors(&digits.train)?, tensors(&digits.test)?);

    let (varmap, model) = network()?;
    let candles = candle_nn::AdamW::new(varmap.all_vars(), ParamsAdamW { lr: RATE, ..ParamsAdamW::default() })?;
    let (theirs, their_time) = fit(&model, candles, &train, &test)?;

    let (varmap, model) = network()?;
    let ours = VarOptimizer::from_varmap(&varmap, AdamW::new(RATE))?;
    println!("{ours}");
    let (ours, our_time) = fit(&model, ours, &train, &test)?;

    println!("{:<20} {:>8} {:>16}", "", "accuracy", "optimizer steps");
    println!("{:<20} {:>7.2}% {:>16.1?}", "candle_nn::AdamW", 100.0 * theirs, their_time);
    println!("{:<20} {:>7.2}% {:>16.1?}", "optim_candle", 100.0 * ours, our_time);
    println!("{:.0} times less time in the optimizer", their_time.as_secs_f64() / our_time.as_secs_f64());
    if (ours - theirs).abs() > 0.01 {
        return Err("the accuracies differ by more than 0.01".into());
    }
    Ok(())
}

/// Trains the model; its accuracy on the test images, and the time in the optimizer.
fn fit(
    model: &Sequential,
    mut optimizer: impl Optimizer,
    train: &[Tensor; 2],
    test: &[Tensor; 2],
) -> Result<(f32, Duration)> {
    let [images, digits] = train;
    let mut time = Duration::ZERO;
    for _ in 0..EPOCHS {
        for first in (0..digits.dim(0)?).step_by(BATCH) {
            let len = BATCH.min(digits.dim(0)? - first);
            let logits = model.forward(&images.narrow(0, first, len)?)?;
            let loss = candle_nn::loss::cross_entropy(&logits, &digits.narrow(0, first, len)?)?;
            let grads = loss.backward()?;
            let start = Instant::now();
            optimizer.step(&grads)?;
            time += start.elapsed();
        }
    }
    let [images, digits] = test;
    let right = model.forward(images)?.argmax(D::Minus1)?.eq(digits)?.to_dtype(DType::F32)?;
    Ok((right.mean_all()?.to_scalar()?, time))
}

/// A network of three layers, the same in every call: candle has no seed on the CPU, so the initial weights are set here.
fn network() -> Result<(VarMap, Sequential)> {
    let varmap = VarMap::new();
    let mut random = Random::new(SEED);
    let mut model = candle_nn::seq();
    for (index, (inputs, outputs)) in [(PIXELS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, DIGITS)].into_iter().enumerate() {
        if index > 0 {
            model = model.add(candle_nn::Activation::Relu);
        }
        let bound = (inputs as f32).sqrt().recip();
        let mut insert = |name: &str, shape: &[usize]| {
            let values = (0..shape.iter().product()).map(|_| random.uniform(bound)).collect();
            let var = Var::from_vec(values, shape, &Device::Cpu)?;
            varmap.data().lock().expect("no other thread").insert(format!("layer{index}.{name}"), var);
            Result::Ok(())
        };
        insert("weight", &[outputs, inputs])?;
        insert("bias", &[outputs])?;
        let vars = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        model = model.add(candle_nn::linear(inputs, outputs, vars.pp(format!("layer{index}")))?);
    }
    Ok((varmap, model))
}

/// The images, a row each, and what they show.
fn tensors(images: &[Image]) -> Result<[Tensor; 2]> {
    let pixels: Vec<f32> = images.iter().flat_map(|image| image.pixels).collect();
    let digits = images.iter().map(|image| u32::try_from(image.digit)).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok([
        Tensor::from_vec(pixels, (images.len(), PIXELS), &Device::Cpu)?,
        Tensor::from_vec(digits, images.len(), &Device::Cpu)?,
    ])
}
