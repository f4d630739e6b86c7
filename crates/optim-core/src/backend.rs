//! What a backend must do. Two small traits: [`Backend`] is a place where arrays live and updates run; [`Engine`] is what it
//! makes for one optimizer.
//!
//! **Backends never validate what core has checked**: counts, lengths, element types, hyper-parameters. They report only what
//! core cannot know: that a buffer is not fit for their device, that the device failed.

use std::fmt;

use crate::rule::{Sparse, StepScalars};
use crate::{Error, Grad, ParamMut, Parameter, Result, Rule};

/// Where arrays live and updates run. Object-safe; an optimizer has no type parameter for it.
pub trait Backend: fmt::Debug + Send + Sync {
    /// A short name for reports and errors: `cpu`, `gpu`.
    fn name(&self) -> &'static str;

    /// One line for people: which processor or adapter, which instruction set or driver, how many threads.
    fn describe(&self) -> String;

    /// Makes the engine of one optimizer: allocates its slots and fills them with their initial values.
    fn engine(&self, plan: &Plan<'_>) -> Result<Box<dyn Engine>>;
}

/// What an engine is made for.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// The parameters, in the order in which a step hands them over.
    pub parameters: &'a [Parameter],
}

/// One optimizer's slots on a backend, and the kernels that update them.
pub trait Engine: fmt::Debug + Send {
    /// Updates every parameter that has a gradient. Lengths and types have been checked; checks that only the backend can
    /// make come first, before anything is changed.
    fn update(&mut self, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<()>;

    /// The values of one slot of one parameter. Waits for the device.
    fn read_slot(&self, parameter: usize, slot: usize) -> Result<Vec<f32>>;

    /// Replaces the values of one slot of one parameter; `values` has the parameter's length.
    fn write_slot(&mut self, parameter: usize, slot: usize, values: &[f32]) -> Result<()>;
}

/// One update as numbers: which parameter computes with which record.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// The distinct records of this update.
    pub records: &'a [Record],
    /// For each parameter the index of its record.
    pub record_of: &'a [u32],
    /// For each parameter with a row-sparse gradient its rows in order; else without entries.
    pub rows: &'a [RowList],
    /// What the rows do that are not listed.
    pub sparse: Sparse,
}

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
    /// What the rule's kernel computes with.
    pub scalars: StepScalars,
}

/// How a gradient is shaped: `g ← factor · g + weight_decay · p`, each term only where it does something.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Shaping {
    /// `1 / loss_scale`. 1 leaves the gradient's bits as they are.
    pub factor: f32,
    /// The L2 decay; 0 leaves the gradient's bits as they are.
    pub weight_decay: f32,
}

impl Shaping {
    /// The gradient as it is.
    pub const NONE: Self = Self { factor: 1.0, weight_decay: 0.0 };
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
    /// The rate against which the ratio is clipped; 0 for no clipping.
    pub clip: f32,
}

impl Trust {
    /// No trust ratio.
    pub const NONE: Self = Self { coefficient: -1.0, epsilon: 0.0, weight_decay: 0.0, clip: 0.0 };

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
