//! The network: dense layers with a ReLU between them, and softmax cross-entropy. Sums run in one fixed order: the same
//! weights and images give the same bits.

use crate::data::{DIGITS, Image};
use crate::random::Random;

/// The parameters, or their gradients: they have the same shapes.
pub(crate) struct Network {
    layers: Vec<Dense>,
}

/// `y = W x + b`.
struct Dense {
    inputs: usize,
    /// A row for each output.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// How well a network does on some images.
pub(crate) struct Evaluation {
    /// The mean cross-entropy.
    pub(crate) loss: f64,
    /// The share of images whose digit is recognized.
    pub(crate) accuracy: f64,
}

impl Network {
    /// Layers from each of these widths to the next, with weights by chance. The last width is [`DIGITS`].
    pub(crate) fn random(widths: &[usize], random: &mut Random) -> Self {
        Self { layers: widths.windows(2).map(|pair| Dense::random(pair[0], pair[1], random)).collect() }
    }

    /// The same layers, all 0.
    pub(crate) fn zero(&self) -> Self {
        let zero = |layer: &Dense| Dense::zero(layer.inputs, layer.bias.len());
        Self { layers: self.layers.iter().map(zero).collect() }
    }

    /// The weights of all layers, then the biases.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Vec<f32>> {
        let weights = self.layers.iter().map(|layer| &layer.weight);
        weights.chain(self.layers.iter().map(|layer| &layer.bias))
    }

    /// The same, to be changed.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        let layers = self.layers.iter_mut().map(|layer| (&mut layer.weight, &mut layer.bias));
        let (weights, biases): (Vec<_>, Vec<_>) = layers.unzip();
        weights.into_iter().chain(biases)
    }

    /// The mean loss of a batch, and the gradient of `loss_scale` times that loss by backpropagation.
    pub(crate) fn loss_and_gradient(&self, batch: &[Image], loss_scale: f32, gradient: &mut Self) -> f64 {
        gradient.tensors_mut().for_each(|tensor| tensor.fill(0.0));
        let share = loss_scale / batch.len() as f32;
        let mut loss = 0.0;
        for Image { pixels, digit } in batch {
            let activations = self.forward(pixels);
            let (probabilities, image_loss) = softmax_cross_entropy(&activations[self.layers.len() - 1], *digit);
            loss += f64::from(image_loss);

            // ∂loss / ∂scores = probabilities − one-hot(digit)
            let mut outgoing = probabilities;
            outgoing[*digit] -= 1.0;
            outgoing.iter_mut().for_each(|g| *g *= share);
            for nth in (0..self.layers.len()).rev() {
                let Some(before) = nth.checked_sub(1) else {
                    gradient.layers[nth].accumulate(&outgoing, pixels);
                    break;
                };
                gradient.layers[nth].accumulate(&outgoing, &activations[before]);
                // The ReLU passes the gradient on where it passed its input.
                outgoing = self.layers[nth].transposed(&outgoing);
                for (g, a) in outgoing.iter_mut().zip(&activations[before]) {
                    if *a == 0.0 {
                        *g = 0.0;
                    }
                }
            }
        }
        loss / batch.len() as f64
    }

    pub(crate) fn evaluate<'a>(&self, images: impl IntoIterator<Item = &'a Image>) -> Evaluation {
        let (mut count, mut loss, mut recognized) = (0_u32, 0.0, 0_u32);
        for Image { pixels, digit } in images {
            let activations = self.forward(pixels);
            let scores = &activations[self.layers.len() - 1];
            loss += f64::from(softmax_cross_entropy(scores, *digit).1);
            let best = (0..DIGITS).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            recognized += u32::from(best == Some(*digit));
            count += 1;
        }
        let count = f64::from(count);
        Evaluation { loss: loss / count, accuracy: f64::from(recognized) / count }
    }

    /// FNV-1a over the bits of all weights and biases.
    pub(crate) fn hash(&self) -> u64 {
        let bytes = self.tensors().flatten().flat_map(|value| value.to_bits().to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// What each layer gives: after the ReLU, but for the last.
    fn forward(&self, pixels: &[f32]) -> Vec<Vec<f32>> {
        let mut activations: Vec<Vec<f32>> = Vec::with_capacity(self.layers.len());
        for (nth, layer) in self.layers.iter().enumerate() {
            let mut outputs = layer.forward(activations.last().map_or(pixels, |before| before));
            if nth + 1 < self.layers.len() {
                outputs.iter_mut().for_each(|output| *output = output.max(0.0));
            }
            activations.push(outputs);
        }
        activations
    }
}

impl Dense {
    /// He's uniform initialization; the biases are 0.
    fn random(inputs: usize, outputs: usize, random: &mut Random) -> Self {
        let bound = (6.0 / inputs as f32).sqrt();
        let weight = (0..outputs * inputs).map(|_| random.uniform(bound)).collect();
        Self { inputs, weight, bias: vec![0.0; outputs] }
    }

    fn zero(inputs: usize, outputs: usize) -> Self {
        Self { inputs, weight: vec![0.0; outputs * inputs], bias: vec![0.0; outputs] }
    }

    /// `W x + b`.
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(self.inputs).zip(&self.bias);
        rows.map(|(row, bias)| bias + row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>()).collect()
    }

    /// `Wᵀ g`: the gradient of the input from that of the output.
    fn transposed(&self, g: &[f32]) -> Vec<f32> {
        let mut sums = vec![0.0; self.inputs];
        for (row, g) in self.weight.chunks_exact(self.inputs).zip(g) {
            for (sum, w) in sums.iter_mut().zip(row) {
                *sum += w * g;
            }
        }
        sums
    }

    /// Adds `g xᵀ` and `g`: the gradients of the weight and the bias for one image.
    fn accumulate(&mut self, g: &[f32], x: &[f32]) {
        for ((row, bias), g) in self.weight.chunks_exact_mut(self.inputs).zip(&mut self.bias).zip(g) {
            for (w, x) in row.iter_mut().zip(x) {
                *w += g * x;
            }
            *bias += g;
        }
    }
}

/// The probability of each digit, and `−ln` of the right one's.
fn softmax_cross_entropy(scores: &[f32], digit: usize) -> (Vec<f32>, f32) {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut powers: Vec<f32> = scores.iter().map(|score| (score - highest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter_mut().for_each(|power| *power /= sum);
    (powers, sum.ln() + highest - scores[digit])
}
