//! State files: an optimizer's state in the [safetensors](https://huggingface.co/docs/safetensors) format.
//!
//! [`save`] writes a file whole or not at all, [`load`] takes it back strictly; a run that is resumed goes on bit for bit. A [`Reader`]
//! is also a [`StateSource`](optim_core::StateSource) of its own, whose description can be looked at before an optimizer is built.
//!
//! ```no_run
//! # use optim_core::{LoadOptions, Optimizer, Result};
//! # fn example(optimizer: &mut Optimizer, again: &mut Optimizer) -> Result<()> {
//! optim_checkpoint::save(optimizer, "run.safetensors")?;
//! let report = optim_checkpoint::load(again, "run.safetensors", &LoadOptions::default())?;
//! assert_eq!(report.step, again.step_count());
//! # Ok(())
//! # }
//! ```
//!
//! # Layout, version 1
//!
//! A safetensors file; any reader of that format can list and read it. The arrays are those of [`optim_core::state`]:
//! `state.<parameter>.<slot>`, `state.<parameter>.<slot>.scales`, `master.<parameter>`, `ema.<parameter>`, as `F32`, `F16`, `BF16`, `U16`
//! or `U8`; wider elements stand before narrower ones. `__metadata__` has these keys, whose values are strings by the format's rules and
//! hold JSON unless noted:
//!
//! | key | holds |
//! | --- | --- |
//! | `format` | the text `optimizers` |
//! | `version` | `1` |
//! | `library` | who wrote it: text |
//! | `step` | the number of updates applied |
//! | `seed` | the seed of stochastic rounding |
//! | `loss_scale` | `{"plain": 1.0}`, `{"fixed": {…}}` or `{"dynamic": {…}}` |
//! | `guard` | [`GuardState`](optim_core::state::GuardState), or `null` |
//! | `groups` | a list of [`GroupState`](optim_core::state::GroupState) |
//! | `parameters` | a list of [`ParameterState`](optim_core::state::ParameterState) |
//!
//! Other keys are left alone. Files of version 1 will be read by every later version of this library.
//!
//! # What a file may do
//!
//! Nothing but be refused. The header is read only if the file is as long as it says; offsets must cover the data without gap or overlap,
//! in the size that shape and type give; names and keys must be unique. Before that is checked, memory is taken for the header
//! alone, a small multiple of its length, which is at most 100 MB; then arrays are read in pieces.
#![forbid(unsafe_code)]

mod header;
mod read;
mod write;

use std::path::Path;

use optim_core::{LoadOptions, LoadReport, Optimizer, Result};

pub use read::Reader;
pub use write::{save, write};

/// Loads a file into an optimizer: see [`Optimizer::load_state`].
///
/// # Errors
/// [`Error::File`](optim_core::Error::File) and [`Error::StateFile`](optim_core::Error::StateFile) for a file that cannot be read or is
/// not one; those of [`Optimizer::load_state`].
pub fn load(optimizer: &mut Optimizer, path: impl AsRef<Path>, options: &LoadOptions) -> Result<LoadReport> {
    optimizer.load_state(&mut Reader::open(path)?, options)
}
