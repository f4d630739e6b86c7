//! A training loop of PyTorch's, side by side with this library's: `cargo run --release --example from_pytorch`.
//!
//! The Python stands in comments above the Rust that does the same. The tables of arguments are in the guide,
//! `optimizers::guide::from_pytorch`.

#[path = "digits/data.rs"]
mod data;
#[path = "digits/network.rs"]
mod network;
#[path = "digits/random.rs"]
mod random;

use std::error::Error;

use optimizers::schedule::{CosineDecay, Linear};
use optimizers::{AdamW, Backend, Grad, ParamMut, Parameter, Schedule};

use crate::data::{DIGITS, Digits, PIXELS};
use crate::network::{Evaluation, Network};
use crate::random::Random;

const EPOCHS: u64 = 10;
const BATCH: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut random = Random::new(0);
    let Digits { mut train, test } = Digits::load(&mut random)?;

    // model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    let mut network = Network::random(&[PIXELS, 32, DIGITS], &mut random);
    let params = [
        Parameter::new("0.weight", [32, PIXELS]),
        Parameter::new("2.weight", [DIGITS, 32]),
        Parameter::new("0.bias", [32]),
        Parameter::new("2.bias", [DIGITS]),
    ];

    // warmup = LinearLR(optimizer, start_factor=0.01, total_iters=40)
    // cosine = CosineAnnealingLR(optimizer, T_max=epochs * steps - 40)
    // scheduler = SequentialLR(optimizer, [warmup, cosine], milestones=[40])
    let updates = EPOCHS * train.len().div_ceil(BATCH) as u64;
    let rate = Linear::new(1e-4, 1e-2, 40)?.then(40, CosineDecay::new(0.0, 1e-2, updates - 40)?);

    // decay = [p for p in model.parameters() if p.dim() >= 2]
    // other = [p for p in model.parameters() if p.dim() < 2]
    // optimizer = AdamW([{"params": decay}, {"params": other, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.99))
    let mut optimizer = AdamW { beta2: 0.99, ..AdamW::new(rate) }
        .params(params)
        .no_decay_1d()
        .clip_norm(1.0)
        .ema(0.99)
        .build(Backend::Cpu)?;

    // averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    // for x, y in loader:
    //     F.cross_entropy(model(x), y).backward()
    //     norm = clip_grad_norm_(model.parameters(), 1.0)
    //     optimizer.step(); scheduler.step(); optimizer.zero_grad(); averaged.update_parameters(model)
    let mut gradient = network.zero();
    for epoch in 1..=EPOCHS {
        random.shuffle(&mut train);
        let mut largest = 0.0_f32;
        for batch in train.chunks(BATCH) {
            network.loss_and_gradient(batch, 1.0, &mut gradient);
            let mut params: Vec<ParamMut<'_>> = network.tensors_mut().map(Into::into).collect();
            let grads: Vec<Grad<'_>> = gradient.tensors().map(Into::into).collect();
            let report = optimizer.step(&mut params, &grads)?;
            largest = report.gradients.map_or(largest, |measured| measured.norm.max(largest));
        }
        println!("epoch {epoch:2}: largest norm before clipping {largest:.2}");
    }

    // averaged.eval()
    optimizer.swap_ema_in(&mut network.tensors_mut().map(Into::into).collect::<Vec<_>>())?;
    let Evaluation { loss, accuracy } = network.evaluate(&test);
    println!("{} updates, test loss {loss:.4}, averages hash {:016x}", optimizer.step_count(), network.hash());
    println!("test accuracy of the averages: {accuracy:.3}");
    if accuracy < 0.9 {
        return Err("nine digits out of ten are recognized".into());
    }
    Ok(())
}
