//! An optimizer's state as data: a description and arrays that are read in pieces. No file format and no files: that is
//! another crate's work.
//!
//! [`Optimizer::state`](crate::Optimizer::state) gives it, [`Optimizer::load_state`](crate::Optimizer::load_state) takes it from any
//! [`StateSource`]; a [`State`] is one, so state goes from one optimizer to another, also from the CPU to a GPU and back, without a
//! file.
//!
//! # Layout, version 2
//!
//! Everything is keyed by the names of parameters: their order and their groups may differ between an optimizer that saves and one that
//! loads.
//!
//! | array | holds | elements |
//! | --- | --- | --- |
//! | `state.<parameter>.<slot>` | a slot of the rule, by its MindSpore name (`moment1`) | `f32`, `f16`, `bf16`, or 8-bit codes ([`Code8`](crate::format::Code8)) |
//! | `state.<parameter>.<slot>.scales` | with 8-bit codes: a scale for each block of 256 elements | `f32` |
//! | `master.<parameter>` | what stands behind a 16-bit parameter | `f32`, or 16 bits of correction |
//! | `ema.<parameter>` | the average | `f32` |
//!
//! Elements stand in memory order; their bytes, everywhere in this module, least significant first.
//!
//! Parameters themselves are not state: the caller has them.

use std::fmt;

use crate::backend::{Element, Engine, Part, Tensor};
use crate::format::{Master, StateDType};
use crate::guard::LossScale;
use crate::rule::{Slot, SlotShape};
use crate::schedule::PlateauState;
use crate::{DType, Error, Rate, Result, Rule};

/// The version of the layout that is written, and the only one that is read.
pub const VERSION: u32 = 2;

/// All of a state but its arrays.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct StateMeta {
    /// The version of the layout: [`VERSION`].
    pub version: u32,
    /// The library that made it, with its version.
    pub library: String,
    /// The number of updates applied.
    pub step: u64,
    /// The seed of stochastic rounding.
    pub seed: u64,
    /// How losses are scaled.
    pub loss_scale: LossScale,
    /// Where loss scale and counters stand; `None` if gradients are not measured.
    pub guard: Option<GuardState>,
    /// The groups.
    pub groups: Vec<GroupState>,
    /// The parameters, in the order of a step.
    pub parameters: Vec<ParameterState>,
}

/// The progress of a guard: see [`Control`](crate::guard::Control).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct GuardState {
    /// The dynamic loss scale of the next step, an `f32`; 1 without a dynamic one.
    #[cfg_attr(feature = "serde", serde(with = "crate::serialization::float"))]
    pub scale: f64,
    /// The number of the next step, skipped ones counted: 1 for the first.
    pub current: u32,
    /// The number of the last step that was skipped; 0 for none.
    pub last: u32,
    /// Steps skipped since one was applied.
    pub bad: u32,
    /// Steps skipped.
    pub skipped: u32,
}

/// One group: its settings, and what of it moves on.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct GroupState {
    /// The name, if it has one.
    pub name: Option<String>,
    /// The rule's name.
    pub rule: String,
    /// The name of the rule whose kernel runs: another for a wrapper.
    pub kernel: String,
    /// The rule with its hyper-parameters; `None` if it cannot be written: a rule of the user's own, a closure in it.
    pub config: Option<Rule>,
    /// The rate; `None` if it is a closure.
    pub lr: Option<Rate>,
    /// The weight decay; `None` if it is a closure.
    pub weight_decay: Option<Rate>,
    /// The progress of a rate that follows a metric.
    pub plateau: Option<PlateauState>,
    /// The bits of the running powers of the rule's betas, which are `f32`.
    pub beta_powers: [u32; 2],
    /// The rate of the last update, if there was one.
    pub previous_lr: Option<f64>,
}

/// One parameter, and how its state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct ParameterState {
    /// The name.
    pub name: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// The element type.
    pub dtype: DType,
    /// The index of its group in [`StateMeta::groups`].
    pub group: usize,
    /// Whether it was ever updated.
    pub updated: bool,
    /// Whether it is frozen.
    pub frozen: bool,
    /// Whether master and average have been set; else they begin as the parameter at the next step.
    pub seeded: bool,
    /// What stands behind it; without meaning for an `f32` parameter.
    pub master: Master,
    /// How slots are kept that can be kept narrow.
    pub state: StateDType,
    /// Whether an average is kept.
    pub ema: bool,
}

impl ParameterState {
    /// What stands behind the parameter in the state; `None` for an `f32` parameter.
    pub(crate) fn master(&self) -> Option<Master> {
        (self.dtype != DType::F32).then_some(self.master)
    }
}

/// One array of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateArray {
    /// The name: see the [module](self).
    pub name: String,
    /// The element type.
    pub element: Element,
    /// The shape: that of the parameter, where the array has an element for each of the parameter's.
    pub shape: Vec<usize>,
}

impl StateArray {
    /// The number of elements; `None` if it does not fit.
    #[must_use]
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent))
    }

    /// The number of bytes; `None` if it does not fit.
    #[must_use]
    pub fn bytes(&self) -> Option<usize> {
        self.elements()?.checked_mul(self.element.size())
    }
}

/// What state is loaded from: a file, another optimizer.
pub trait StateSource {
    /// All but the arrays.
    fn meta(&self) -> &StateMeta;

    /// The arrays, in any order.
    fn arrays(&self) -> &[StateArray];

    /// Reads whole elements of an array, from the `first` on, least significant byte first.
    ///
    /// # Errors
    /// What the source cannot do. The optimizer that was being loaded is then of no use until a load succeeds.
    fn read(&mut self, array: usize, first: usize, bytes: &mut [u8]) -> Result<()>;
}

/// The state of an optimizer: see [`Optimizer::state`](crate::Optimizer::state).
#[derive(Debug)]
pub struct State<'a> {
    pub(crate) meta: StateMeta,
    pub(crate) arrays: Vec<StateArray>,
    /// Where each array is: its parameter, and which of its arrays.
    pub(crate) places: Vec<(usize, Part)>,
    pub(crate) engine: &'a dyn Engine,
}

impl State<'_> {
    /// All but the arrays.
    #[must_use]
    pub fn meta(&self) -> &StateMeta {
        &self.meta
    }

    /// The arrays.
    #[must_use]
    pub fn arrays(&self) -> &[StateArray] {
        &self.arrays
    }

    /// Copies whole elements of an array, from the `first` on, least significant byte first. Pieces that begin at multiples of 256
    /// elements suit every device.
    ///
    /// # Errors
    /// [`Error::State`] for what is not whole elements of an array; what reading from the device returns.
    pub fn read(&self, array: usize, first: usize, bytes: &mut [u8]) -> Result<()> {
        let place = self.arrays.get(array).zip(self.places.get(array));
        let within = place.filter(|(array, _)| {
            let size = array.element.size();
            let end = first.checked_add(bytes.len() / size);
            bytes.len().is_multiple_of(size) && end.is_some_and(|end| array.elements().is_some_and(|len| end <= len))
        });
        let Some((array, &(parameter, part))) = within else {
            let (what, expected) = ("reading an array of a state", "ask for whole elements of one of its arrays");
            return Err(Error::State { what, expected });
        };
        self.engine.read(parameter, part, first, bytes)?;
        least_first(array.element, bytes);
        Ok(())
    }
}

impl StateSource for State<'_> {
    fn meta(&self) -> &StateMeta {
        &self.meta
    }

    fn arrays(&self) -> &[StateArray] {
        &self.arrays
    }

    fn read(&mut self, array: usize, first: usize, bytes: &mut [u8]) -> Result<()> {
        State::read(self, array, first, bytes)
    }
}

/// Whose rates, weight decays and hyper-parameters hold after a load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hyper {
    /// Those that the optimizer was built with. Only what cannot be configured comes from the state: positions and counters.
    #[default]
    UseNew,
    /// Those of the state, for each group that has the same members as one of the state's; the loss scale's as well. A seed cannot
    /// change: it must be the same.
    KeepSaved,
}

/// What a load accepts beside an exact match. The default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Parameters and arrays that the state lacks stay as they are: new layers of a model, with the fresh state of a new optimizer. After a
    /// load or step that broke off half way they begin anew.
    /// Default `false`.
    pub allow_missing: bool,
    /// Parameters and arrays that only the state has are passed over. Default `false`.
    pub ignore_unexpected: bool,
    /// Whose hyper-parameters hold. Default: the new ones.
    pub hyper: Hyper,
    /// State and masters that are kept in another format are converted; narrower ones are rounded stochastically. A master that the
    /// state lacks begins as its parameter at the next step. Split masters are not converted: they need the parameters.
    /// Default `false`.
    pub convert: bool,
}

/// What a load did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a load says what it passed over"]
#[non_exhaustive]
pub struct LoadReport {
    /// The number of updates that the state stands at.
    pub step: u64,
    /// Parameters and arrays that the state lacks, and that stayed as they were.
    pub missing: Vec<String>,
    /// Parameters and arrays that only the state has.
    pub unexpected: Vec<String>,
    /// Arrays that were converted, and the masters of parameters that have another kind of master here, or none.
    pub converted: Vec<String>,
    /// Groups whose settings are now the state's.
    pub kept: Vec<usize>,
}

/// The name of an array.
pub(crate) fn array_name(parameter: &str, part: Part, slots: &[Slot]) -> String {
    match part {
        Part::Slot(nth) => format!("state.{parameter}.{}", slots[nth].name),
        Part::Scales(nth) => format!("state.{parameter}.{}.scales", slots[nth].name),
        Part::Master => format!("master.{parameter}"),
        Part::Ema => format!("ema.{parameter}"),
    }
}

/// Whether an array belongs, by its name, to a parameter that is known.
pub(crate) fn belongs(array: &str, known: impl Fn(&str) -> bool) -> bool {
    if let Some(parameter) = array.strip_prefix("master.").or_else(|| array.strip_prefix("ema.")) {
        return known(parameter);
    }
    let Some(rest) = array.strip_prefix("state.") else { return false };
    let without = |rest: &str| rest.rsplit_once('.').map(|(parameter, _)| parameter.len());
    let slot = without(rest);
    let scales = rest.strip_suffix(".scales").and_then(without);
    slot.into_iter().chain(scales).any(|end| known(&rest[..end]))
}

/// The arrays of a parameter as a state lists them.
pub(crate) fn arrays(tensor: &Tensor, slots: &[Slot]) -> Vec<(Part, StateArray)> {
    let (name, shape) = (tensor.parameter.name(), tensor.parameter.shape());
    let arrays = tensor.arrays(slots).into_iter();
    arrays
        .map(|(part, element, len)| {
            let shape = match part {
                Part::Slot(nth) => slot_shape(slots[nth].shape, shape),
                Part::Scales(_) => vec![len],
                Part::Master | Part::Ema => shape.to_vec(),
            };
            (part, StateArray { name: array_name(name, part, slots), element, shape })
        })
        .collect()
}

/// The shape of a slot of a parameter of this shape.
fn slot_shape(slot: SlotShape, shape: &[usize]) -> Vec<usize> {
    match (slot, shape) {
        (SlotShape::Same, _) | (SlotShape::SameIfVector, [] | [_]) => shape.to_vec(),
        (SlotShape::Rows | SlotShape::Columns, [] | [_]) | (SlotShape::SameIfVector, _) => vec![0],
        (SlotShape::Rows, [rest @ .., _]) => rest.to_vec(),
        (SlotShape::Columns, [rest @ .., _, columns]) => [rest, &[*columns]].concat(),
    }
}

/// Turns elements in the host's order of bytes into elements with the least significant first, or back.
pub(crate) fn least_first(element: Element, bytes: &mut [u8]) {
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(element.size()).for_each(<[u8]>::reverse);
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::U16 => "u16",
            Self::U8 => "u8",
        })
    }
}
