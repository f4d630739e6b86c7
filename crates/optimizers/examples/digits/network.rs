//! The network: two dense layers with a ReLU between them, and softmax cross-entropy. Sums run in one fixed order: the
//! same weights and images give the same bits.

use crate::data::{DIGITS, Image, PIXELS};
use crate::random::Random;

pub(crate) const HIDDEN: usize = 64;

/// The parameters, or their gradients: they have the same shapes.
pub(crate) struct Network {
    pub(crate) hidden: Dense<PIXELS, HIDDEN>,
    pub(crate) output: Dense<HIDDEN, DIGITS>,
}

/// `y = W x + b`.
pub(crate) struct Dense<const IN: usize, const OUT: usize> {
    /// `OUT × IN`, row by row.
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// How well a network does on some images.
pub(crate) struct Evaluation {
    /// The mean cross-entropy.
    pub(crate) loss: f64,
    /// The share of images whose digit is recognized.
    pub(crate) accuracy: f64,
}

impl Network {
    pub(crate) fn random(random: &mut Random) -> Self {
        Self { hidden: Dense::random(random), output: Dense::random(random) }
    }

    pub(crate) fn zero() -> Self {
        Self { hidden: Dense::zero(), output: Dense::zero() }
    }

    /// The mean loss of a batch, and its gradient by backpropagation.
    pub(crate) fn loss_and_gradient(&self, batch: &[Image], gradient: &mut Self) -> f64 {
        *gradient = Self::zero();
        let share = 1.0 / batch.len() as f32;
        let mut loss = 0.0;
        for Image { pixels, digit } in batch {
            let (hidden, scores) = self.forward(pixels);
            let (probabilities, image_loss) = softmax_cross_entropy(&scores, *digit);
            loss += f64::from(image_loss);

            // ∂loss / ∂scores = probabilities − one-hot(digit)
            let mut scores_gradient = probabilities;
            scores_gradient[*digit] -= 1.0;
            let scores_gradient = scores_gradient.map(|g| g * share);
            gradient.output.accumulate(&scores_gradient, &hidden);

            // The ReLU passes the gradient on where it passed its input.
            let mut hidden_gradient = self.output.transposed(&scores_gradient);
            for (g, h) in hidden_gradient.iter_mut().zip(&hidden) {
                if *h == 0.0 {
                    *g = 0.0;
                }
            }
            gradient.hidden.accumulate(&hidden_gradient, pixels);
        }
        loss / batch.len() as f64
    }

    pub(crate) fn evaluate(&self, images: &[Image]) -> Evaluation {
        let (mut loss, mut recognized) = (0.0, 0_u32);
        for Image { pixels, digit } in images {
            let (_, scores) = self.forward(pixels);
            loss += f64::from(softmax_cross_entropy(&scores, *digit).1);
            let best = (0..DIGITS).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            recognized += u32::from(best == Some(*digit));
        }
        let count = images.len() as f64;
        Evaluation { loss: loss / count, accuracy: f64::from(recognized) / count }
    }

    /// FNV-1a over the bits of all weights and biases.
    pub(crate) fn hash(&self) -> u64 {
        let values = [&self.hidden.weight, &self.output.weight, &self.hidden.bias, &self.output.bias];
        let bytes = values.into_iter().flatten().flat_map(|value| value.to_bits().to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// What the hidden layer and the output layer give.
    fn forward(&self, pixels: &[f32; PIXELS]) -> ([f32; HIDDEN], [f32; DIGITS]) {
        let hidden = self.hidden.forward(pixels).map(|h| h.max(0.0));
        (hidden, self.output.forward(&hidden))
    }
}

impl<const IN: usize, const OUT: usize> Dense<IN, OUT> {
    /// He's uniform initialization; the biases are 0.
    fn random(random: &mut Random) -> Self {
        let bound = (6.0 / IN as f32).sqrt();
        Self { weight: (0..OUT * IN).map(|_| random.uniform(bound)).collect(), bias: vec![0.0; OUT] }
    }

    fn zero() -> Self {
        Self { weight: vec![0.0; OUT * IN], bias: vec![0.0; OUT] }
    }

    /// `W x + b`.
    fn forward(&self, x: &[f32; IN]) -> [f32; OUT] {
        std::array::from_fn(|o| {
            let row = &self.weight[o * IN..][..IN];
            self.bias[o] + row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>()
        })
    }

    /// `Wᵀ g`: the gradient of the input from that of the output.
    fn transposed(&self, g: &[f32; OUT]) -> [f32; IN] {
        let mut sums = [0.0; IN];
        for (row, g) in self.weight.chunks_exact(IN).zip(g) {
            for (sum, w) in sums.iter_mut().zip(row) {
                *sum += w * g;
            }
        }
        sums
    }

    /// Adds `g xᵀ` and `g`: the gradients of the weight and the bias for one image.
    fn accumulate(&mut self, g: &[f32; OUT], x: &[f32; IN]) {
        for ((row, bias), g) in self.weight.chunks_exact_mut(IN).zip(&mut self.bias).zip(g) {
            for (w, x) in row.iter_mut().zip(x) {
                *w += g * x;
            }
            *bias += g;
        }
    }
}

/// The probability of each digit, and `−ln` of the right one's.
fn softmax_cross_entropy(scores: &[f32; DIGITS], digit: usize) -> ([f32; DIGITS], f32) {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = scores.map(|score| (score - highest).exp());
    let sum: f32 = powers.iter().sum();
    (powers.map(|power| power / sum), sum.ln() + highest - scores[digit])
}
