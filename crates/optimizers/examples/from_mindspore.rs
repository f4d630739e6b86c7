//! A training loop of MindSpore's, side by side with this library's: `cargo run --release --example from_mindspore`.
//!
//! The Python stands in comments above the Rust that does the same. The tables of arguments are in the guide,
//! `optimizers::guide::from_mindspore`.

#[path = "digits/data.rs"]
mod data;
#[path = "digits/network.rs"]
mod network;
#[path = "digits/random.rs"]
mod random;

use std::error::Error;

use optimizers::dynamic_lr::cosine_decay_lr;
use optimizers::{Backend, DynamicLossScale, Grad, Momentum, ParamGroup, ParamMut, Parameter};

use crate::data::{DIGITS, Digits, PIXELS};
use crate::network::{Evaluation, Network};
use crate::random::Random;

const EPOCHS: u64 = 10;
const BATCH: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut random = Random::new(0);
    let Digits { mut train, test } = Digits::load(&mut random)?;

    // net = nn.SequentialCell(nn.Dense(64, 32), nn.ReLU(), nn.Dense(32, 10))
    let mut network = Network::random(&[PIXELS, 32, DIGITS], &mut random);
    let params = [
        Parameter::new("0.weight", [32, PIXELS]),
        Parameter::new("2.weight", [DIGITS, 32]),
        Parameter::new("0.bias", [32]),
        Parameter::new("2.bias", [DIGITS]),
    ];

    // weights = [p for p in net.trainable_params() if 'weight' in p.name]
    // biases = [p for p in net.trainable_params() if 'weight' not in p.name]
    let trainable = params.iter().filter(|p| p.is_trainable());
    let (weights, biases): (Vec<_>, Vec<_>) = trainable.partition(|p| p.name().contains("weight"));

    // lr = nn.cosine_decay_lr(0.0, 0.1, epochs * steps, steps, epochs)
    let steps = train.len().div_ceil(BATCH) as u64;
    let lr = cosine_decay_lr(0.0, 0.1, EPOCHS * steps, steps, EPOCHS)?;

    // params = [{'params': weights, 'weight_decay': 1e-4}, {'params': biases}, {'order_params': net.trainable_params()}]
    // optimizer = nn.Momentum(params, learning_rate=lr, momentum=0.9, use_nesterov=True)
    // manager = DynamicLossScaleManager(init_loss_scale=1024, scale_window=100)
    let mut optimizer = Momentum { use_nesterov: true, ..Momentum::new(lr, 0.9) }
        .groups([ParamGroup::new(weights).weight_decay(1e-4), ParamGroup::new(biases)])
        .order_params(&params)
        .loss_scale(DynamicLossScale { init_loss_scale: 1024.0, scale_window: 100, ..DynamicLossScale::default() })
        .build(Backend::Cpu)?;

    // model = Model(net, loss_fn=loss, optimizer=optimizer, loss_scale_manager=manager)
    // model.train(epochs, dataset)
    let mut gradient = network.zero();
    for _ in 0..EPOCHS {
        random.shuffle(&mut train);
        for batch in train.chunks(BATCH) {
            #[allow(clippy::cast_possible_truncation, reason = "a loss scale is a power of two")]
            let scale = optimizer.loss_scale()? as f32;
            network.loss_and_gradient(batch, scale, &mut gradient);
            let mut params: Vec<ParamMut<'_>> = network.tensors_mut().map(Into::into).collect();
            let grads: Vec<Grad<'_>> = gradient.tensors().map(Into::into).collect();
            if !optimizer.step(&mut params, &grads)?.applied() {
                println!("an overflow: the loss scale is now {}", optimizer.loss_scale()?);
            }
        }
    }

    // print(optimizer.global_step, model.eval(test))
    let Evaluation { loss, accuracy } = network.evaluate(&test);
    println!("{} updates, test loss {loss:.4}, weights hash {:016x}", optimizer.step_count(), network.hash());
    println!("test accuracy: {accuracy:.3}");
    if accuracy < 0.9 {
        return Err("nine digits out of ten are recognized".into());
    }
    Ok(())
}
