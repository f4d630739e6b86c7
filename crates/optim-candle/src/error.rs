//! The error type.

use candle_core::{DType, DeviceLocation};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Becomes a [`candle_core::Error`] by `?`, with the same message.
///
/// Errors of the caller's input are found before anything is changed: after one, vars, state and step count are what they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two vars are one, or views of the same memory.
    #[error("the vars {first:?} and {second:?} share their memory: leave one of them out")]
    Shared {
        /// The name of the one.
        first: String,
        /// The name of the other.
        second: String,
    },
    /// Memory that is not the host's.
    #[error("{what} {name:?} is on {got:?}, expected the CPU")]
    Device {
        /// "var" or "gradient".
        what: &'static str,
        /// The var's name.
        name: String,
        /// Where it is.
        got: DeviceLocation,
    },
    /// An element type that is not trained in.
    #[error("{what} {name:?} is {}, expected f32, f16 or bf16", got.as_str())]
    DType {
        /// "var" or "gradient".
        what: &'static str,
        /// The var's name.
        name: String,
        /// Its element type.
        got: DType,
    },
    /// Elements that do not stand side by side in the order of the shape.
    #[error("{what} {name:?} is not contiguous")]
    Strided {
        /// "var" or "gradient".
        what: &'static str,
        /// The var's name.
        name: String,
    },
    /// A gradient that is not shaped as its var.
    #[error("gradient {name:?} has the shape {got:?}, its var {expected:?}")]
    Shape {
        /// The var's name.
        name: String,
        /// The var's shape.
        expected: Vec<usize>,
        /// The gradient's shape.
        got: Vec<usize>,
    },
    /// The optimizer refuses; its errors name vars "parameters".
    #[error(transparent)]
    Optimizer(#[from] optim_core::Error),
    /// candle refuses.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            error => Self::wrap(error),
        }
    }
}
