//! The caller's memory, borrowed for one step.

use std::any::Any;
use std::fmt;

use half::{bf16, f16};

use crate::{DType, Result};

/// Memory that lives on a device: a GPU buffer with an offset and a length. Each backend brings its own type and recognizes
/// it by [`as_any`](Self::as_any).
///
/// A device orders its own reads and writes, so a shared reference is enough for parameters as well.
pub trait DeviceMemory: fmt::Debug + Send + Sync {
    /// The number of elements.
    fn len(&self) -> usize;

    /// Whether there is no element.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    fn dtype(&self) -> DType;

    /// The elements, as `f32`. Waits for the device.
    ///
    /// # Errors
    /// What the device returns; memory that cannot be read.
    fn to_host(&self) -> Result<Vec<f32>>;

    /// For the backend to find its own type.
    fn as_any(&self) -> &dyn Any;
}

/// One parameter's memory for a step: a slice of the host's, or memory on a device. Made by `.into()`.
#[derive(Debug)]
#[non_exhaustive]
pub enum ParamMut<'a> {
    /// `f32` on the host.
    F32(&'a mut [f32]),
    /// `f16` on the host.
    F16(&'a mut [f16]),
    /// `bf16` on the host.
    Bf16(&'a mut [bf16]),
    /// On a device.
    Device(&'a dyn DeviceMemory),
}

impl ParamMut<'_> {
    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(slice) => slice.len(),
            Self::F16(slice) => slice.len(),
            Self::Bf16(slice) => slice.len(),
            Self::Device(memory) => memory.len(),
        }
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::Bf16(_) => DType::Bf16,
            Self::Device(memory) => memory.dtype(),
        }
    }

    /// The same memory, borrowed for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> ParamMut<'_> {
        match self {
            Self::F32(slice) => ParamMut::F32(slice),
            Self::F16(slice) => ParamMut::F16(slice),
            Self::Bf16(slice) => ParamMut::Bf16(slice),
            Self::Device(memory) => ParamMut::Device(*memory),
        }
    }
}

/// One parameter's gradient for a step. Made by `.into()`, also from an `Option`.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub enum Grad<'a> {
    /// There is none: the parameter and its state stay as they are.
    #[default]
    None,
    /// `f32` on the host.
    F32(&'a [f32]),
    /// `f16` on the host.
    F16(&'a [f16]),
    /// `bf16` on the host.
    Bf16(&'a [bf16]),
    /// On a device.
    Device(&'a dyn DeviceMemory),
    /// For some rows only: see [`Grad::rows`].
    Rows(&'a [u32], Values<'a>),
    /// What the engine has accumulated, in `f32`: see [`Optimizer::accumulate`](crate::Optimizer::accumulate). Only an optimizer
    /// hands it to its engine.
    Accumulated,
}

/// The values of a row-sparse gradient. Made by `.into()`.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Values<'a> {
    /// `f32` on the host.
    F32(&'a [f32]),
    /// `f16` on the host.
    F16(&'a [f16]),
    /// `bf16` on the host.
    Bf16(&'a [bf16]),
    /// On a device.
    Device(&'a dyn DeviceMemory),
}

impl Values<'_> {
    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(slice) => slice.len(),
            Self::F16(slice) => slice.len(),
            Self::Bf16(slice) => slice.len(),
            Self::Device(memory) => memory.len(),
        }
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::Bf16(_) => DType::Bf16,
            Self::Device(memory) => memory.dtype(),
        }
    }
}

impl<'a> Grad<'a> {
    /// A row-sparse gradient, as of an embedding: `values` holds one row of the parameter (all axes but the first, flattened)
    /// for each of `indices`, in that order.
    ///
    /// An index may stand more than once: such rows are summed first, in the order in which they stand. What an unlisted row
    /// does is the rule's: see [`Sparse`](crate::rule::Sparse). Weight decay acts on the listed rows, once on each. The indices are
    /// on the host, the values may be on a device.
    ///
    /// ```
    /// use optim_core::Grad;
    ///
    /// // Rows 4 and 1 of a table with rows of two elements; row 4 twice.
    /// let gradient = Grad::rows(&[4, 1, 4], &[0.1_f32, 0.2, 0.3, 0.4, 0.5, 0.6]);
    /// assert_eq!(gradient.len(), Some(6));
    /// ```
    #[must_use]
    pub fn rows(indices: &'a [u32], values: impl Into<Values<'a>>) -> Self {
        Self::Rows(indices, values.into())
    }
}

impl Grad<'_> {
    /// The number of elements, of a row-sparse gradient those of the listed rows; `None` if there is no gradient.
    #[must_use]
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::None => None,
            Self::F32(slice) => Some(slice.len()),
            Self::F16(slice) => Some(slice.len()),
            Self::Bf16(slice) => Some(slice.len()),
            Self::Device(memory) => Some(memory.len()),
            Self::Rows(_, values) => Some(values.len()),
            Self::Accumulated => None,
        }
    }

    /// Whether there is a gradient without elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Whether there is no gradient.
    #[must_use]
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The element type; `None` if there is no gradient.
    #[must_use]
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Self::None => None,
            Self::F32(_) => Some(DType::F32),
            Self::F16(_) => Some(DType::F16),
            Self::Bf16(_) => Some(DType::Bf16),
            Self::Device(memory) => Some(memory.dtype()),
            Self::Rows(_, values) => Some(values.dtype()),
            Self::Accumulated => Some(DType::F32),
        }
    }
}

macro_rules! from_slices {
    ($($element:ty => $variant:ident),*) => {$(
        impl<'a> From<&'a mut [$element]> for ParamMut<'a> {
            fn from(slice: &'a mut [$element]) -> Self {
                Self::$variant(slice)
            }
        }
        impl<'a> From<&'a mut Vec<$element>> for ParamMut<'a> {
            fn from(slice: &'a mut Vec<$element>) -> Self {
                Self::$variant(slice)
            }
        }
        impl<'a, const N: usize> From<&'a mut [$element; N]> for ParamMut<'a> {
            fn from(slice: &'a mut [$element; N]) -> Self {
                Self::$variant(slice)
            }
        }
        impl<'a> From<&'a [$element]> for Grad<'a> {
            fn from(slice: &'a [$element]) -> Self {
                Self::$variant(slice)
            }
        }
        impl<'a> From<&'a [$element]> for Values<'a> {
            fn from(slice: &'a [$element]) -> Self {
                Self::$variant(slice)
            }
        }
        impl<'a> From<&'a Vec<$element>> for Grad<'a> {
            fn from(slice: &'a Vec<$element>) -> Self {
                Self::$variant(slice)
            }
        }
        impl<'a> From<&'a Vec<$element>> for Values<'a> {
            fn from(slice: &'a Vec<$element>) -> Self {
                Self::$variant(slice)
            }
        }
        impl<'a, const N: usize> From<&'a [$element; N]> for Grad<'a> {
            fn from(slice: &'a [$element; N]) -> Self {
                Self::$variant(slice)
            }
        }
        impl<'a, const N: usize> From<&'a [$element; N]> for Values<'a> {
            fn from(slice: &'a [$element; N]) -> Self {
                Self::$variant(slice)
            }
        }
    )*};
}
from_slices!(f32 => F32, f16 => F16, bf16 => Bf16);

impl<'a, M: DeviceMemory> From<&'a M> for ParamMut<'a> {
    fn from(memory: &'a M) -> Self {
        Self::Device(memory)
    }
}

impl<'a, M: DeviceMemory> From<&'a M> for Grad<'a> {
    fn from(memory: &'a M) -> Self {
        Self::Device(memory)
    }
}

impl<'a, M: DeviceMemory> From<&'a M> for Values<'a> {
    fn from(memory: &'a M) -> Self {
        Self::Device(memory)
    }
}

impl<'a, G: Into<Self>> From<Option<G>> for Grad<'a> {
    fn from(gradient: Option<G>) -> Self {
        gradient.map_or(Self::None, Into::into)
    }
}
