//! Fine-tunes a network on more digits than it knows: `cargo run --release --example finetune -- --help`.
//!
//! Four dense layers learn the digits 0 to 4. Then they learn all ten, the way pretrained networks are taught something new:
//! the head in a group of its own with a higher rate, the layers before it with rates that fall layer by layer towards the
//! input, no decay of biases, and the first layer frozen until the last epochs. Shown are what an optimizer tells of itself
//! and how far each layer has moved.

#[path = "digits/data.rs"]
mod data;
#[path = "digits/network.rs"]
mod network;
#[path = "digits/place.rs"]
mod place;
#[path = "digits/random.rs"]
mod random;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use optimizers::schedule::CosineDecay;
use optimizers::{AdamW, Grad, Optimizer, ParamGroup, ParamMut, Parameter, Select};

use crate::data::{DIGITS, Digits, Image, PIXELS};
use crate::network::Network;
use crate::place::Place;
use crate::random::Random;

/// Of the pixels, of three layers, and of the head.
const WIDTHS: [usize; 5] = [PIXELS, 64, 64, 64, DIGITS];
/// The digits from this one on are new to the pretrained network.
const FIRST_NEW: usize = 5;
const BATCH: usize = 32;
const PRETRAINING_EPOCHS: u64 = 10;
const FROZEN_EPOCHS: u64 = 12;
const LAST_EPOCHS: u64 = 8;
const FROZEN: [&str; 2] = ["layers.0.weight", "layers.0.bias"];

/// Teaches a network that knows the digits 0 to 4 all ten.
#[derive(Parser)]
struct Options {
    /// Where the updates run.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Place,
    /// Decides the split, the initial weights and the order of the images.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
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
    let mut random = Random::new(options.seed);
    let Digits { train, test } = Digits::load(&mut random)?;
    let (mut images, new): (Vec<_>, Vec<_>) = train.into_iter().partition(|image| image.digit < FIRST_NEW);
    let mut network = Network::random(&WIDTHS, &mut random);

    let mut optimizer = AdamW::new(2e-3).params(parameters()).no_decay_1d().build(options.backend.backend())?;
    train_epochs(PRETRAINING_EPOCHS, &mut optimizer, &mut network, &mut images, &mut random)?;
    let pretrained: Vec<_> = network.tensors().cloned().collect();
    let pretrained_line = line("pretrained on 0 to 4", &network, &pretrained, &test);

    images.extend(new);
    let updates = (FROZEN_EPOCHS + LAST_EPOCHS) * images.len().div_ceil(BATCH) as u64;
    let builder = AdamW::new(CosineDecay::new(0.0, 2e-3, updates)?)
        .params(parameters())
        .groups([
            ParamGroup::matching(Select::glob("head.*")?).name("head").lr(CosineDecay::new(0.0, 4e-3, updates)?),
            ParamGroup::matching(Select::rest()).name("body"),
        ])
        .weight_decay(0.05)
        .no_decay_1d()
        .layer_decay(0.75);
    println!("{}\n", builder.estimate()?);

    let mut optimizer = builder.build(options.backend.backend())?;
    for name in FROZEN {
        optimizer.freeze(name)?;
    }
    println!("{optimizer}\n\n{}\n", optimizer.explain(FROZEN[0])?);

    println!("{:<31}      test    test accuracy on         distance from the pretrained weights", "");
    println!("{:<31}      loss     all     0-4     5-9    layers.0  layers.1  layers.2      head", "");
    println!("{pretrained_line}");
    train_epochs(FROZEN_EPOCHS, &mut optimizer, &mut network, &mut images, &mut random)?;
    println!("{}", line("all digits, first layer frozen", &network, &pretrained, &test));

    for name in FROZEN {
        optimizer.unfreeze(name)?;
    }
    train_epochs(LAST_EPOCHS, &mut optimizer, &mut network, &mut images, &mut random)?;
    println!("{}", line("all digits, all layers", &network, &pretrained, &test));
    println!("\nweights hash: {:016x}", network.hash());
    println!("test accuracy: {:.3}", network.evaluate(&test).accuracy);
    Ok(())
}

/// The parameters in the order of [`Network::tensors`]: `layers.0.weight` to `head.weight`, then the biases.
///
/// The numbers in the names are what `layer_decay` goes by; the head, without one and behind the first numbered layer,
/// counts as the last.
fn parameters() -> Vec<Parameter> {
    let layer = |nth| if nth + 2 == WIDTHS.len() { "head".to_owned() } else { format!("layers.{nth}") };
    let shapes = WIDTHS.windows(2).map(|pair| [pair[1], pair[0]]).enumerate();
    let weights = shapes.clone().map(|(nth, shape)| Parameter::new(format!("{}.weight", layer(nth)), shape));
    let biases = shapes.map(|(nth, [outputs, _])| Parameter::new(format!("{}.bias", layer(nth)), [outputs]));
    weights.chain(biases).collect()
}

fn train_epochs(
    epochs: u64,
    optimizer: &mut Optimizer,
    network: &mut Network,
    images: &mut [Image],
    random: &mut Random,
) -> Result<(), Box<dyn Error>> {
    let mut gradient = network.zero();
    for _ in 0..epochs {
        random.shuffle(images);
        for batch in images.chunks(BATCH) {
            let loss = network.loss_and_gradient(batch, 1.0, &mut gradient);
            if !loss.is_finite() {
                return Err(format!("the loss is {loss} before update {}", optimizer.step_count() + 1).into());
            }
            let mut params: Vec<ParamMut<'_>> = network.tensors_mut().map(Into::into).collect();
            let grads: Vec<Grad<'_>> = gradient.tensors().map(Into::into).collect();
            let _ = optimizer.step(&mut params, &grads)?;
        }
    }
    Ok(())
}

/// One line of the table: accuracies, and the root mean square of each layer's change.
fn line(phase: &str, network: &Network, pretrained: &[Vec<f32>], test: &[Image]) -> String {
    let evaluate = |chosen: fn(&Image) -> bool| network.evaluate(test.iter().filter(|image| chosen(image)));
    let all = evaluate(|_| true);
    let old = evaluate(|image| image.digit < FIRST_NEW).accuracy;
    let new = evaluate(|image| image.digit >= FIRST_NEW).accuracy;
    let weights = network.tensors().zip(pretrained).take(WIDTHS.len() - 1);
    let distances = weights.map(|(now, then)| {
        let squares: f64 = now.iter().zip(then).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        format!("{:>10.4}", (squares / now.len() as f64).sqrt())
    });
    let distances: String = distances.collect();
    format!("{phase:<31} {:>9.4} {:>7.3} {old:>7.3} {new:>7.3}  {distances}", all.loss, all.accuracy)
}
