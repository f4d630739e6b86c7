//! A run that is stopped half way and resumed, beside one that is not: `cargo run --release --example resume --features safetensors`.
//!
//! Both train a network on handwritten digits in `f16`, with a dynamic loss scale, clipping, a schedule and 8-bit state that is
//! rounded stochastically: all that could get lost between two halves. The weights must be the same, bit for bit.

#[path = "digits/data.rs"]
mod data;
#[path = "digits/network.rs"]
mod network;
#[path = "digits/random.rs"]
mod random;

use std::error::Error;
use std::{env, fs, process};

use half::f16;
use optimizers::schedule::CosineDecay;
use optimizers::{
    AdamW, Backend, DType, DynamicLossScale, Grad, LoadOptions, Optimizer, ParamMut, Parameter, StateDType, checkpoint,
};

use crate::data::{DIGITS, Digits, Image, PIXELS};
use crate::network::{Evaluation, Network};
use crate::random::Random;

const WIDTHS: [usize; 3] = [PIXELS, 32, DIGITS];
const BATCH: usize = 32;
const UPDATES: usize = 400;

fn main() -> Result<(), Box<dyn Error>> {
    let mut random = Random::new(0);
    let Digits { train, test } = Digits::load(&mut random)?;
    let mut network = Network::random(&WIDTHS, &mut random);
    let first: Vec<Vec<f16>> = network.tensors().map(|tensor| halves(tensor)).collect();

    let mut whole = first.clone();
    steps(&mut optimizer()?, &mut whole, &mut network, &train, 0..UPDATES)?;

    // The first half, its state in a file; the weights are the program's own to keep.
    let path = env::temp_dir().join(format!("resume-{}.safetensors", process::id()));
    let mut weights = first;
    let mut stopped = optimizer()?;
    steps(&mut stopped, &mut weights, &mut network, &train, 0..UPDATES / 2)?;
    let bytes = checkpoint::save(&mut stopped, &path)?;
    drop(stopped);

    // As in another process: an optimizer built anew.
    let mut resumed = optimizer()?;
    let report = checkpoint::load(&mut resumed, &path, &LoadOptions::default())?;
    println!("resumed at update {} from {bytes} bytes, loss scale {}", report.step, resumed.loss_scale()?);
    steps(&mut resumed, &mut weights, &mut network, &train, UPDATES / 2..UPDATES)?;
    fs::remove_file(path)?;

    let elements = || whole.iter().flatten().zip(weights.iter().flatten());
    let same = elements().filter(|(whole, resumed)| whole.to_bits() == resumed.to_bits()).count();
    println!("{same} of {} weights are the same, bit for bit", elements().count());
    read(&weights, &mut network);
    let Evaluation { loss, accuracy } = network.evaluate(&test);
    println!("test loss {loss:.4}, accuracy {accuracy:.3}, weights hash {:016x}", network.hash());
    if whole != weights {
        return Err("the resumed run went another way".into());
    }
    Ok(())
}

fn optimizer() -> optimizers::Result<Optimizer> {
    let shapes = WIDTHS.windows(2).enumerate();
    let weights = shapes.clone().map(|(nth, pair)| Parameter::new(format!("{nth}.weight"), [pair[1], pair[0]]));
    let biases = shapes.map(|(nth, pair)| Parameter::new(format!("{nth}.bias"), [pair[1]]));
    let loss_scale = DynamicLossScale { init_loss_scale: 65_536.0, scale_window: 50, ..DynamicLossScale::default() };
    AdamW::new(CosineDecay::new(0.0, 5e-3, UPDATES as u64)?)
        .params(weights.chain(biases).map(|parameter| parameter.with_dtype(DType::F16)))
        .loss_scale(loss_scale)
        .clip_norm(1.0)
        .state_dtype(StateDType::Block8)
        .build(Backend::Cpu)
}

/// Trains with the batches of these numbers.
fn steps(
    optimizer: &mut Optimizer,
    weights: &mut [Vec<f16>],
    network: &mut Network,
    images: &[Image],
    batches: std::ops::Range<usize>,
) -> Result<(), Box<dyn Error>> {
    let mut gradient = network.zero();
    for batch in batches {
        let from = batch * BATCH % (images.len() - BATCH);
        read(weights, network);
        #[allow(clippy::cast_possible_truncation, reason = "a loss scale is a power of two")]
        let scale = optimizer.loss_scale()? as f32;
        network.loss_and_gradient(&images[from..from + BATCH], scale, &mut gradient);
        let gradients: Vec<Vec<f16>> = gradient.tensors().map(|tensor| halves(tensor)).collect();
        let mut params: Vec<ParamMut<'_>> = weights.iter_mut().map(Into::into).collect();
        let grads: Vec<Grad<'_>> = gradients.iter().map(Into::into).collect();
        // A step whose gradients overflowed is skipped, in both runs.
        let _ = optimizer.step(&mut params, &grads)?;
    }
    Ok(())
}

fn halves(tensor: &[f32]) -> Vec<f16> {
    tensor.iter().copied().map(f16::from_f32).collect()
}

/// The network with these weights.
fn read(weights: &[Vec<f16>], network: &mut Network) {
    for (tensor, weights) in network.tensors_mut().zip(weights) {
        tensor.iter_mut().zip(weights).for_each(|(to, from)| *to = from.to_f32());
    }
}
