//! What is trained: a name, a shape and an element type. The numbers stay with the caller.

use std::fmt;

/// The element type of a parameter, a gradient or a slot in memory. Kernels always compute in `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// The description of one trainable tensor, as an optimizer is told about it.
///
/// It holds no numbers: a step borrows those from the caller, in the order in which parameters were registered.
///
/// ```
/// use optim_core::{DType, Parameter};
///
/// let weight = Parameter::new("conv1.weight", [6, 1, 5, 5]);
/// assert_eq!((weight.name(), weight.len(), weight.dtype()), ("conv1.weight", 150, DType::F32));
///
/// let mean = Parameter::new("bn.moving_mean", [6]).requires_grad(false);
/// assert!(!mean.is_trainable(), "an optimizer refuses it");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    name: String,
    shape: Vec<usize>,
    /// The product of the shape.
    len: usize,
    dtype: DType,
    trainable: bool,
}

impl Parameter {
    /// A trainable `f32` parameter. `shape` may be empty (a scalar: one element) and may hold zeros (no element).
    ///
    /// The name identifies the parameter in errors, reports and saved state, so it must be unique within an optimizer.
    /// Without groups it also decides about weight decay: see [`Builder::decay_filter`](crate::Builder::decay_filter).
    #[must_use]
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let len = product(&shape);
        Self { name: name.into(), shape, len, dtype: DType::F32, trainable: true }
    }

    /// The same parameter stored as `dtype`. Default: [`DType::F32`].
    #[must_use]
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Whether the parameter is trained. Default: `true`. An optimizer refuses a parameter with `false`
    /// ([`Error::FrozenParameter`](crate::Error::FrozenParameter)): filter with [`is_trainable`](Self::is_trainable) first,
    /// as with MindSpore's `trainable_params()`.
    #[must_use]
    pub fn requires_grad(mut self, requires_grad: bool) -> Self {
        self.trainable = requires_grad;
        self
    }

    /// The name given to [`new`](Self::new).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape, outermost axis first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type in memory.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether an optimizer may update it.
    #[must_use]
    pub fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// The same parameter with another first extent.
    pub(crate) fn with_rows(&self, rows: usize) -> Self {
        let mut parameter = self.clone();
        if let Some(first) = parameter.shape.first_mut() {
            *first = rows;
        }
        parameter.len = product(&parameter.shape);
        parameter
    }

    /// The number of elements: the product of the shape.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<&Self> for Parameter {
    fn from(parameter: &Self) -> Self {
        parameter.clone()
    }
}

impl From<&&Self> for Parameter {
    fn from(parameter: &&Self) -> Self {
        (*parameter).clone()
    }
}

/// The number of elements. A builder refuses a shape of more than the largest number.
fn product(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product, &extent| product.saturating_mul(extent))
}
