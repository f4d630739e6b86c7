//! What a backend must do. Two small traits: [`Backend`] is a place where arrays live and updates run; [`Engine`] is what it
//! makes for one optimizer.
//!
//! **Backends never validate what core has checked**: counts, lengths, element types, hyper-parameters. They report only what
//! core cannot know: that a buffer is not fit for their device, that the device failed.

use std::any::Any;
use std::fmt;

use crate::format::{BLOCK, Code8, Master, StateDType};
use crate::guard::{Control, Guard, Verdict};
use crate::rule::{Slot, StepScalars};
use crate::{DType, DeviceMemory, Error, Grad, ParamMut, Parameter, Result, Rule};

/// Where arrays live and updates run. Object-safe; an optimizer has no type parameter for it. As `Any` it can be recognized: a
/// backend may take optimizers that it has made only.
pub trait Backend: Any + fmt::Debug + Send + Sync {
    /// A short name for reports and errors: `cpu`, `gpu`.
    fn name(&self) -> &'static str;

    /// One line for people: which processor or adapter, which instruction set or driver, how many threads.
    fn describe(&self) -> String;

    /// Makes the engine of one optimizer: allocates its state and fills it with initial values.
    fn engine(&self, plan: &Plan<'_>) -> Result<Box<dyn Engine>>;
}

/// What an engine is made for.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The rules in use; equal ones may stand more than once.
    pub rules: &'a [Rule],
    /// The parameters, in the order in which a step hands them over.
    pub tensors: &'a [Tensor],
    /// The number of groups, for the guard's norms.
    pub groups: usize,
}

/// One parameter as an engine sees it.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Name, shape, element type.
    pub parameter: Parameter,
    /// The index of its group.
    pub group: usize,
    /// The index of its rule in [`Plan::rules`].
    pub rule: usize,
    /// What stands behind a 16-bit parameter; without meaning for an `f32` one.
    pub master: Master,
    /// How slots are kept that can be kept narrow.
    pub state: StateDType,
    /// Whether an average of the parameter is kept.
    pub ema: bool,
    /// The key of its random bits: [`format::tensor_key`](crate::format::tensor_key).
    pub key: u32,
}

/// One of the arrays that an engine keeps for a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// A slot of the rule; its codes, if it is kept in 8 bits.
    Slot(usize),
    /// The scales of a slot that is kept in 8 bits: one for each block of 256 elements.
    Scales(usize),
    /// What stands behind a 16-bit parameter: `f32` values, or the 16 correction bits of a split master.
    Master,
    /// The average of the parameter.
    Ema,
}

/// The element type of an array in an engine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// 16 bits without a meaning of their own.
    U16,
    /// 8-bit codes.
    U8,
}

impl Element {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 | Self::U16 => 2,
            Self::U8 => 1,
        }
    }
}

/// How a slot is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotFormat {
    /// As `f32`.
    F32,
    /// As `f16`, rounded as [`compressed`](crate::compressed) says: second moments of a factored rule.
    F16,
    /// As bf16, rounded stochastically.
    Bf16,
    /// In 8 bits with a scale for each block of 256 elements, rounded stochastically.
    Block8(Code8),
}

impl Tensor {
    /// How a slot is kept: narrow if the parameter's state is and the slot can be.
    #[must_use]
    pub fn slot_format(&self, slot: &Slot) -> SlotFormat {
        match (slot.dtype, self.state, slot.narrow) {
            (DType::F16, ..) => SlotFormat::F16,
            (DType::Bf16, ..) | (DType::F32, StateDType::Bf16, Some(_)) => SlotFormat::Bf16,
            (DType::F32, StateDType::Block8, Some(code)) => SlotFormat::Block8(code),
            (DType::F32, StateDType::F32, _) | (DType::F32, _, None) => SlotFormat::F32,
        }
    }

    /// What stands behind the parameter in the state; `None` for an `f32` parameter.
    #[must_use]
    pub fn master(&self) -> Option<Master> {
        (self.parameter.dtype() != DType::F32).then_some(self.master)
    }

    /// Whether there is a master in the state.
    #[must_use]
    pub fn has_master(&self) -> bool {
        matches!(self.master(), Some(Master::F32 | Master::Split))
    }

    /// Whether there is state that begins as the parameter does: a master or an average.
    #[must_use]
    pub fn needs_seed(&self) -> bool {
        self.has_master() || self.ema
    }

    /// The arrays kept for the parameter, with their element types and numbers of elements: the slots of its rule in order, each
    /// followed by its scales, then master and average.
    #[must_use]
    pub fn arrays(&self, slots: &[Slot]) -> Vec<(Part, Element, usize)> {
        let len = self.parameter.len();
        let mut arrays = Vec::new();
        for (nth, slot) in slots.iter().enumerate() {
            let len = slot.shape.len(self.parameter.shape());
            let element = match self.slot_format(slot) {
                SlotFormat::F32 => Element::F32,
                SlotFormat::F16 => Element::F16,
                SlotFormat::Bf16 => Element::Bf16,
                SlotFormat::Block8(_) => {
                    arrays.push((Part::Slot(nth), Element::U8, len));
                    arrays.push((Part::Scales(nth), Element::F32, len.div_ceil(BLOCK)));
                    continue;
                }
            };
            arrays.push((Part::Slot(nth), element, len));
        }
        match self.master() {
            Some(Master::F32) => arrays.push((Part::Master, Element::F32, len)),
            Some(Master::Split) => arrays.push((Part::Master, Element::U16, len)),
            Some(Master::None | Master::Stochastic) | None => {}
        }
        if self.ema {
            arrays.push((Part::Ema, Element::F32, len));
        }
        arrays
    }

    /// The bytes of those arrays.
    #[must_use]
    pub fn state_bytes(&self, slots: &[Slot]) -> usize {
        self.arrays(slots).iter().map(|(_, element, len)| element.size() * len).sum()
    }

    /// The rows over which a gradient is centralized or clipped by units, and the elements of each: the first axis and the product
    /// of the others; one row for a parameter of fewer than two axes, none for one without elements.
    #[must_use]
    pub fn rows(&self) -> (usize, usize) {
        match self.parameter.shape() {
            [0, ..] => (0, 0),
            [] | [_] => (1, self.parameter.len()),
            [rows, rest @ ..] => match rest.iter().product() {
                0 => (0, 0),
                width => (*rows, width),
            },
        }
    }
}

/// One optimizer's state on a backend, and the kernels that update it.
pub trait Engine: fmt::Debug + Send {
    /// Says that an update is coming, unless core finds in a moment that it cannot be: what takes time to make ready may begin. Nothing
    /// by default.
    fn begin(&mut self) {}

    /// Updates every parameter that has a gradient and a record. Lengths and types have been checked; checks that only the
    /// backend can make come first, before anything is changed. No row-sparse gradient comes with 8-bit state, or where something is
    /// done row by row.
    ///
    /// With a [guard](Update::guard) it first measures and decides; [`Progress`] says whether the verdict is there.
    fn update(&mut self, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<Progress>;

    /// As [`seed`](Self::seed), then [`update`](Self::update), but the commands are recorded into `target`, whose type the backend
    /// knows, in place of being run: nothing is submitted, polled or waited for. With a guard the progress is
    /// [`Progress::Pending`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] from a backend that has no commands, as by default; memory that cannot be recorded.
    fn record(
        &mut self,
        target: &mut dyn Any,
        seeds: &[bool],
        update: &Update<'_>,
        params: &mut [ParamMut<'_>],
        grads: &[Grad<'_>],
    ) -> Result<Progress> {
        let _ = (target, seeds, update, params, grads);
        Err(Error::Unsupported { what: "recording a step".into(), backend: "optimizer's".into() })
    }

    /// The verdict of the oldest update that was still [`Progress::Pending`]; `None` if there is no such update or, without
    /// `wait`, if it has not been told yet.
    ///
    /// # Errors
    /// [`Error::StepLost`] in place of the verdict of an update that was recorded and will never run; a failing device.
    fn verdict(&mut self, wait: bool) -> Result<Option<Verdict>> {
        let _ = wait;
        Ok(None)
    }

    /// Has the device tell the verdicts that are there, if any are pending. Does not wait.
    fn poll(&mut self) -> Result<()> {
        Ok(())
    }

    /// Where loss scale and counters stand. Waits for the device.
    fn control(&self) -> Result<Control>;

    /// Replaces them. No update is pending.
    fn set_control(&mut self, control: &Control) -> Result<()>;

    /// Sets the master and the average of parameters to what is in their memory, for those whose flag is set. Nothing else
    /// changes.
    fn seed(&mut self, seeds: &[bool], params: &mut [ParamMut<'_>]) -> Result<()>;

    /// Adds `weight · g` to what has been accumulated, in `f32`; for a parameter whose flag is set it takes the place of that. A missing
    /// gradient changes nothing.
    fn accumulate(&mut self, weight: f32, fresh: &[bool], grads: &[Grad<'_>]) -> Result<()>;

    /// Writes averages into parameters' memory (`into` true) and keeps what was there, or brings that back.
    fn swap_ema(&mut self, into: bool, params: &mut [ParamMut<'_>]) -> Result<()>;

    /// Copies elements of an array from the `first` on, in memory order and the host's byte order. Waits for the device.
    fn read(&self, parameter: usize, part: Part, first: usize, bytes: &mut [u8]) -> Result<()>;

    /// Replaces elements of an array.
    fn write(&mut self, parameter: usize, part: Part, first: usize, bytes: &[u8]) -> Result<()>;

    /// The loss scale in the device's memory: one `f32` that a kernel of the caller's can read. `None` if it is on the host.
    fn loss_scale_memory(&self) -> Option<&dyn DeviceMemory> {
        None
    }
}

/// How far an update has come when [`Engine::update`] returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// There was nothing to decide: it is applied, or will be.
    Applied,
    /// The guard has decided.
    Decided(Verdict),
    /// The device decides; [`Engine::verdict`] will tell.
    Pending,
}

/// One update as numbers: which parameter computes with which record.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// The rules, as in the plan but for hyper-parameters.
    pub rules: &'a [Rule],
    /// The distinct records of this update. With a guard whose verdicts are pending: those of the first update that it may be,
    /// then those of the next, …; [`Guard::records`] of each.
    pub records: &'a [Record],
    /// For each parameter the index of its record; [`FROZEN`] for one that is left alone.
    pub record_of: &'a [u32],
    /// For each parameter with a row-sparse gradient its rows in order; else without entries.
    pub rows: &'a [RowList],
    /// What is measured and decided first, if anything is.
    pub guard: Option<&'a Guard>,
}

/// In place of the index of a record: the parameter is left alone, and its gradient is not looked at.
pub const FROZEN: u32 = u32::MAX;

/// The rows that a row-sparse gradient lists, in ascending order, each once, and where they stand in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowList {
    /// The rows.
    pub rows: Vec<u32>,
    /// For each row where its positions begin, and last where they end.
    pub starts: Vec<u32>,
    /// The positions, within the gradient, at which a row stands; ascending for each row. Its sum is made in this order.
    pub positions: Vec<u32>,
    /// `row << 32 | position`, to be sorted.
    keys: Vec<u64>,
}

impl RowList {
    /// Forgets all rows, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.starts.clear();
        self.positions.clear();
        self.keys.clear();
    }

    /// The rows of these indices, of which there are fewer than 2³².
    pub(crate) fn set(&mut self, indices: &[u32]) {
        self.clear();
        self.keys.extend((0_u64..).zip(indices).map(|(position, &row)| u64::from(row) << 32 | position));
        self.keys.sort_unstable();
        for (start, key) in (0_u32..).zip(&self.keys) {
            let [row, position] = [key >> 32, key & 0xffff_ffff].map(|half| u32::try_from(half).unwrap_or_default());
            if self.rows.last() != Some(&row) {
                self.rows.push(row);
                self.starts.push(start);
            }
            self.positions.push(position);
        }
        self.starts.extend(u32::try_from(self.keys.len()));
    }

    /// Each row with the positions at which it stands.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u32])> {
        let positions = self.starts.windows(2).map(|ends| &self.positions[ends[0] as usize..ends[1] as usize]);
        self.rows.iter().copied().zip(positions)
    }
}

/// The numbers that one parameter's update needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// What happens to the gradient before the rule sees it.
    pub shaping: Shaping,
    /// The layer-wise trust ratio; [`Trust::NONE`] for none. It needs a first walk over parameter and gradient, which
    /// completes the shaping.
    pub trust: Trust,
    /// What is done row by row, and what happens beside the rule.
    pub stages: Stages,
    /// What the rule's kernel computes with.
    pub scalars: StepScalars,
}

/// How a gradient is shaped, each term only where it does something, in this order:
///
/// ```text
/// g ← factor · g
/// g ← min(max(g, −limit), limit)
/// g ← a · g                       a: the row's factor of adaptive clipping (Stages::units)
/// g ← g + weight_decay · p
/// g ← g − mean                    mean: of what stands here, over the row (CENTRALIZE)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Shaping {
    /// `1 / loss_scale`, and what the guard makes of it. 1 leaves the gradient's bits as they are.
    pub factor: f32,
    /// The L2 decay; 0 leaves the gradient's bits as they are.
    pub weight_decay: f32,
    /// The largest magnitude of an element; 0 for no limit.
    pub limit: f32,
    /// [`CENTRALIZE`](Self::CENTRALIZE), [`SKIP`](Self::SKIP).
    pub flags: u32,
}

impl Shaping {
    /// The gradient as it is.
    pub const NONE: Self = Self { factor: 1.0, weight_decay: 0.0, limit: 0.0, flags: 0 };

    /// The mean over all axes but the first is subtracted.
    pub const CENTRALIZE: u32 = 1;

    /// Nothing is updated: set by the guard.
    pub const SKIP: u32 = 2;
}

/// The numbers of the stages around a rule.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Stages {
    /// The number of this update, low 32 bits, for stochastic rounding.
    pub step: u32,
    /// `1 − decay` of the average: `ema ← ema + weight · (p − ema)` after the update. 0 leaves it alone.
    pub ema: f32,
    /// The largest norm of the gradient, within what [`Guard::clip`] says; 0 for no limit.
    pub max_norm: f32,
    /// The group, or the parameter where the guard clips parameters: whose norm counts.
    pub owner: u32,
    /// Adaptive gradient clipping: `λ`; 0 for none. For each row `a = 1` if `‖g‖ ≤ λ · max(‖p‖, ε)`, else
    /// `λ · max(‖p‖, ε) / ‖g‖`.
    pub units: f32,
    /// Its `ε`.
    pub units_epsilon: f32,
    /// Fill 32 bytes.
    pub pad: [u32; 2],
}

impl Record {
    /// Whether sums over rows are needed before the update.
    #[must_use]
    pub fn needs_rows(&self) -> bool {
        self.shaping.flags & Shaping::CENTRALIZE != 0 || self.stages.units > 0.0
    }
}

/// What a layer-wise trust ratio is made of: see [`Lars`](crate::rules::Lars).
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Trust {
    /// `η`; negative for no trust ratio.
    pub coefficient: f32,
    /// `ε`.
    pub epsilon: f32,
    /// `δ`, the weight decay inside the ratio.
    pub weight_decay: f32,
    /// The rate `γ` against which the ratio is clipped, which may be 0; [`UNCLIPPED`](Self::UNCLIPPED) for no clipping.
    pub clip: f32,
}

impl Trust {
    /// No trust ratio.
    pub const NONE: Self = Self { coefficient: -1.0, epsilon: 0.0, weight_decay: 0.0, clip: Self::UNCLIPPED };

    /// In place of a rate: the largest number, which is none.
    pub const UNCLIPPED: f32 = f32::MAX;

    /// Whether there is a trust ratio.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.coefficient >= 0.0
    }
}

/// What can be turned into a backend: a backend itself, or a choice that is only made now (and may fail).
pub trait IntoBackend {
    /// Opens the backend.
    fn into_backend(self) -> Result<Box<dyn Backend>>;
}

impl<B: Backend + 'static> IntoBackend for B {
    fn into_backend(self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(self))
    }
}

/// The error for memory of a kind that a backend does not take.
#[must_use]
pub fn wrong_memory(what: &'static str, name: &str, expected: &str, got: &str) -> Error {
    Error::Memory { what, name: name.to_owned(), expected: expected.to_owned(), got: got.to_owned() }
}
