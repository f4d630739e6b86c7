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
//! # Layout, version 2
//!
//! A safetensors file; any reader of that format can list and read it. The arrays are those of [`optim_core::state`]:
//! `state.<parameter>.<slot>`, `state.<parameter>.<slot>.scales`, `master.<parameter>`, `ema.<parameter>`, as `F32`, `F16`, `BF16`, `U16`
//! or `U8`; wider elements stand before narrower ones. `__metadata__` has these keys, whose values are strings by the format's rules and
//! hold JSON unless noted:
//!
//! | key | holds |
//! | --- | --- |
//! | `format` | the text `optimizers` |
//! | `version` | `2` |
//! | `library` | who wrote it: text |
//! | `step` | the number of updates applied |
//! | `seed` | the seed of stochastic rounding |
//! | `loss_scale` | `{"plain": 1.0}`, `{"fixed": {…}}` or `{"dynamic": {…}}` |
//! | `guard` | [`GuardState`](optim_core::state::GuardState), or `null` |
//! | `groups` | a list of [`GroupState`](optim_core::state::GroupState) |
//! | `parameters` | a list of [`ParameterState`](optim_core::state::ParameterState) |
//!
//! Lists of rates and of decays stand in each group that has them; are they more than 1,048,576 numbers in all, they are left out, as
//! closures are. Other keys are left alone. Files of version 2 will be read by every later version of this library. Version 1 had other
//! 8-bit codes and is refused.
//!
//! # From and to PyTorch
//!
//! A script, `examples/torch_state.py` of the crate `optimizers`, makes a state file of the state of PyTorch's optimizers, and PyTorch's
//! of a state file. It needs Python with `torch` and `safetensors`, and is a module too (`from torch_state import to_file, from_file`):
//!
//! ```sh
//! python torch_state.py export run.pt run.safetensors --rule AdamW --names names.txt
//! python torch_state.py import run.safetensors run.pt --names names.txt
//! ```
//!
//! The second replaces the optimizer's state in `run.pt`, if that is there, and nothing else. `names.txt` has the parameters' names, one a line, in the order in which PyTorch's optimizer took them. Either side goes on as the
//! other would have: held to 1e-6 of a tensor's largest absolute value, after 10 updates here and 10 there.
//!
//! | PyTorch | here | PyTorch's field → slot |
//! | --- | --- | --- |
//! | `Adam` | `Adam::torch()` | `exp_avg` → `moment1`, `exp_avg_sq` → `moment2`, `max_exp_avg_sq` → `vhat` |
//! | `AdamW` | `AdamW` | `exp_avg` → `moment1`, `exp_avg_sq` → `moment2`, `max_exp_avg_sq` → `vhat` |
//! | `SGD` | `Sgd::torch()` | `momentum_buffer` → `accum` |
//! | `RMSprop` | `RmsProp::torch()` | `square_avg` → `ms`, `momentum_buffer` → `moment`, `grad_avg` → `mg` |
//! | `Adagrad` | `Adagrad::torch()` | `sum` → `accum` |
//! | `Adamax` | `AdaMax::torch()` | `exp_avg` → `moment1`, `exp_inf` → `moment2` |
//! | `NAdam` | `NAdam` | `exp_avg` → `moment1`, `exp_avg_sq` → `moment2` |
//! | `RAdam` | `RAdam` | `exp_avg` → `moment1`, `exp_avg_sq` → `moment2` |
//! | `Adadelta` | `Adadelta` | `square_avg` → `accum`, `acc_delta` → `accum_update` |
//! | `Rprop` | `Rprop::torch()` | `prev` → `prev`, `step_size` → `step_size` |
//! | `ASGD` | `Asgd::torch()` | `ax` → `ax` |
//!
//! - A parameter's `step` becomes the step count, which is one for all here: parameters whose counts differ need `--step`. PyTorch's
//!   `SGD` counts none: it always does. A parameter without state there is one that was never `updated` here. PyTorch begins to count
//!   such a one at 1, this library goes on with its count: imported, it has zeros and that count, but no state where a rule's first
//!   update is unlike the others (`SGD`, `Rprop`, `ASGD`).
//! - `mu_product` of `NAdam`, `eta` and `mu` of `ASGD` follow from step count and options: they are checked when exported and made when
//!   imported. `beta_powers` are made when exported.
//! - Rates and other options go along, for [`Hyper::KeepSaved`](optim_core::Hyper::KeepSaved) here and always to PyTorch. A schedule
//!   goes to PyTorch as the rate that it last gave; what moves PyTorch's rates stays there.
//! - PyTorch decays every parameter. Here, without groups, names with `beta` or `gamma` are exempt: `decay_filter(|_| true)`
//!   [ends that](optim_core::Builder::decay_filter).
//! - Parameters and state in `f32` only. Averages and the loss scale do not go to PyTorch. Whatever else has no counterpart is an error.
//!
//! # What a file may do
//!
//! Nothing but be refused. The header is read only if the file is as long as it says; offsets must cover the data without gap or overlap,
//! in the size that shape and type give; names and keys must be unique. Before that is checked, memory is taken for the header
//! alone: a few times its length, which is at most 100 MB, but some 25 times that of a list of rates within it; then arrays are read in
//! pieces.
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
