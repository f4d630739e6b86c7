//! Softmax regression on handwritten digits, with weights and gradients in `ndarray`: `cargo run --release --example ndarray`.
//!
//! An optimizer takes slices, so any array library that lends its memory as one will do. Here that is
//! `as_slice_mut`.

#[path = "digits/data.rs"]
mod data;
#[path = "digits/random.rs"]
mod random;

use std::error::Error;

use ndarray::{Array1, Array2, Axis};
use optimizers::schedule::CosineDecay;
use optimizers::{AdamW, Backend, Parameter};

use crate::data::{DIGITS, Digits, Image, PIXELS};
use crate::random::Random;

const EPOCHS: u64 = 20;
const BATCH: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut random = Random::new(0);
    let Digits { mut train, test } = Digits::load(&mut random)?;
    let mut weight = Array2::from_shape_simple_fn((PIXELS, DIGITS), || random.uniform(0.01));
    let mut bias = Array1::<f32>::zeros(DIGITS);

    let updates = EPOCHS * train.len().div_ceil(BATCH) as u64;
    let parameters = [Parameter::new("weight", weight.shape()), Parameter::new("bias", bias.shape())];
    let mut optimizer =
        AdamW::new(CosineDecay::new(0.0, 0.01, updates)?).params(parameters).no_decay_1d().build(Backend::Cpu)?;

    for _ in 0..EPOCHS {
        random.shuffle(&mut train);
        for batch in train.chunks(BATCH) {
            let (x, y) = arrays(batch);
            // ∂loss / ∂scores = (probabilities − one-hot) / batch
            let delta = (softmax(x.dot(&weight) + &bias) - y) / batch.len() as f32;
            // A product may come out in either order of memory.
            let weight_gradient = x.t().dot(&delta).as_standard_layout().into_owned();
            let bias_gradient = delta.sum_axis(Axis(0));

            // `None` is for memory in another order than the shape says, such as a transposed view.
            let params = [weight.as_slice_mut(), bias.as_slice_mut()];
            let grads = [weight_gradient.as_slice(), bias_gradient.as_slice()];
            let ([Some(w), Some(b)], [Some(gw), Some(gb)]) = (params, grads) else {
                return Err("not in standard order".into());
            };
            let report = optimizer.step(&mut [w.into(), b.into()], &[gw.into(), gb.into()])?;
            debug_assert!(report.applied(), "nothing skips a step here");
        }
    }

    let (x, y) = arrays(&test);
    let scores = x.dot(&weight) + &bias;
    let best = |row: ndarray::ArrayView1<'_, f32>| (0..DIGITS).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let recognized =
        scores.outer_iter().zip(y.outer_iter()).filter(|&(scores, digit)| best(scores) == best(digit)).count();
    let accuracy = recognized as f64 / test.len() as f64;
    println!("{} updates on {}, test accuracy: {accuracy:.3}", optimizer.step_count(), optimizer.backend().describe());
    if accuracy < 0.9 {
        return Err("softmax regression recognizes nine digits out of ten".into());
    }
    Ok(())
}

/// Pixels and one-hot digits, a row for each image.
fn arrays(images: &[Image]) -> (Array2<f32>, Array2<f32>) {
    let x = Array2::from_shape_fn((images.len(), PIXELS), |(image, pixel)| images[image].pixels[pixel]);
    let y = Array2::from_shape_fn((images.len(), DIGITS), |(image, digit)| {
        f32::from(u8::from(images[image].digit == digit))
    });
    (x, y)
}

fn softmax(mut scores: Array2<f32>) -> Array2<f32> {
    for mut row in scores.outer_iter_mut() {
        let highest = row.fold(f32::NEG_INFINITY, |highest, &score| highest.max(score));
        row.mapv_inplace(|score| (score - highest).exp());
        let sum = row.sum();
        row /= sum;
    }
    scores
}
