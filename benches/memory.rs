//! The caller's memory: parameters and gradients.

use half::{bf16, f16};
use optimizers::{DType, Grad, ParamMut};
use rayon::prelude::*;

/// The magnitudes of parameters and gradients.
pub(crate) const SCALES: [f32; 2] = [1.0, 0.01];

/// The least elements that a thread fills at a time.
const GRAIN: usize = 1 << 14;

/// Tensors of one element type, each in an allocation of its own, first touched by the threads of the pool.
#[derive(Debug)]
pub(crate) enum Tensors {
    F32(Vec<Vec<f32>>),
    F16(Vec<Vec<f16>>),
    Bf16(Vec<Vec<bf16>>),
}

macro_rules! each {
    ($tensors:expr, $list:ident => $body:expr) => {
        match $tensors {
            Tensors::F32($list) => $body,
            Tensors::F16($list) => $body,
            Tensors::Bf16($list) => $body,
        }
    };
}

impl Tensors {
    /// Filled with numbers of either sign from half of `scale` to one and a half of it.
    pub(crate) fn new(dtype: DType, lens: &[usize], scale: f32) -> Self {
        match dtype {
            DType::F16 => Self::F16(filled(lens, |i, k| f16::from_f32(value(i, k, scale)))),
            DType::Bf16 => Self::Bf16(filled(lens, |i, k| bf16::from_f32(value(i, k, scale)))),
            _ => Self::F32(filled(lens, |i, k| value(i, k, scale))),
        }
    }

    /// Brings those numbers back.
    pub(crate) fn refill(&mut self, scale: f32) {
        match self {
            Self::F32(list) => fill(list, |i, k| value(i, k, scale)),
            Self::F16(list) => fill(list, |i, k| f16::from_f32(value(i, k, scale))),
            Self::Bf16(list) => fill(list, |i, k| bf16::from_f32(value(i, k, scale))),
        }
    }

    pub(crate) fn params(&mut self) -> Vec<ParamMut<'_>> {
        each!(self, list => list.iter_mut().map(Into::into).collect())
    }

    pub(crate) fn grads(&self) -> Vec<Grad<'_>> {
        each!(self, list => list.iter().map(Into::into).collect())
    }

    pub(crate) fn bytes(&self) -> Vec<&[u8]> {
        each!(self, list => list.iter().map(|tensor| bytemuck::cast_slice(tensor)).collect())
    }

    pub(crate) fn bytes_mut(&mut self) -> Vec<&mut [u8]> {
        each!(self, list => list.iter_mut().map(|tensor| bytemuck::cast_slice_mut(tensor)).collect())
    }

    /// These elements of these tensors.
    pub(crate) fn at(&self, places: &[(usize, usize)]) -> Vec<f64> {
        each!(self, list => places.iter().map(|&(tensor, element)| f64::from(list[tensor][element])).collect())
    }

    /// The norm over all elements.
    pub(crate) fn norm(&self) -> f64 {
        each!(self, list => list.par_iter().map(|tensor| square(tensor)).sum::<f64>().sqrt())
    }
}

fn square<T: Copy + Into<f64> + Sync>(tensor: &[T]) -> f64 {
    let square = |&x: &T| x.into() * x.into();
    tensor.par_iter().with_min_len(GRAIN).map(square).sum()
}

fn filled<T: Send>(lens: &[usize], value: impl Fn(usize, usize) -> T + Sync) -> Vec<Vec<T>> {
    let tensor =
        |(i, &len): (usize, &usize)| (0..len).into_par_iter().with_min_len(GRAIN).map(|k| value(i, k)).collect();
    lens.iter().enumerate().map(tensor).collect()
}

fn fill<T: Send>(tensors: &mut [Vec<T>], value: impl Fn(usize, usize) -> T + Sync) {
    for (i, tensor) in tensors.iter_mut().enumerate() {
        tensor.par_iter_mut().with_min_len(GRAIN).enumerate().for_each(|(k, x)| *x = value(i, k));
    }
}

/// The number of an element: the same each time.
#[allow(clippy::cast_precision_loss, reason = "23 bits fit")]
fn value(tensor: usize, element: usize, scale: f32) -> f32 {
    let mixed = (element as u64 ^ (tensor as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let magnitude = 0.5 + (mixed >> 41) as f32 / (1 << 23) as f32;
    if mixed >> 40 & 1 == 0 { scale * magnitude } else { -scale * magnitude }
}
