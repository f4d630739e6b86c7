//! Rows that come, go and move: vocabularies that grow, points that split.

use crate::backend::{Element, Engine, Part, Plan, Tensor};
use crate::builder::check_shape;
use crate::format;
use crate::rule::{Slot, SlotShape};
use crate::{DType, Error, Optimizer, Parameter, Result};

use super::state::encode;

/// In place of random bits: the nearer of two codes.
const NEAREST: u32 = 0x2000;

impl Optimizer {
    /// Rearranges the rows of a parameter, that is of its first axis, with all its state, in one call: row `i` from now on is what row
    /// `rows[i]` was, or a new one for `None`, whose slots begin anew. `[Some(0), Some(2)]` prunes row 1 of three, `[Some(0), Some(0)]`
    /// doubles row 0, `[Some(0), None]` appends one.
    ///
    /// The parameter's memory is the caller's: from the next step on it must have the new shape. `new` holds the values of the new rows,
    /// one after the other, where the parameter has a master or an average, which begin with them; else it may be empty.
    ///
    /// All state of the optimizer is copied once. State in 8 bits is encoded anew, to the nearest code.
    ///
    /// ```
    /// # use optim_core::{Optimizer, Result};
    /// # fn grow(optimizer: &mut Optimizer) -> Result<()> {
    /// // Two more words for a vocabulary of three.
    /// let rows = [Some(0), Some(1), Some(2), None, None];
    /// optimizer.rearrange_rows("embedding", &rows, &[])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is no such parameter; [`Error::RowIndex`]; [`Error::Length`] of `new`; [`Error::Unsupported`] for a
    /// scalar; [`Error::State`] while gradients are accumulated or averages stand in the parameters; what allocating returns. Nothing
    /// has changed then.
    pub fn rearrange_rows(&mut self, parameter: &str, rows: &[Option<u32>], new: &[f32]) -> Result<()> {
        self.settle()?;
        self.refuse_unfinished("rearranging rows")?;
        let index = self.index(parameter)?;
        let old = &self.tensors[index];
        let [old_rows, rest @ ..] = old.parameter.shape() else {
            let what = format!("rearranging rows of the scalar {parameter:?}");
            return Err(Error::Unsupported { what, backend: self.backend.name().into() });
        };
        let width: usize = rest.iter().product();
        if let Some(&row) = rows.iter().flatten().find(|&&row| row as usize >= *old_rows) {
            return Err(Error::RowIndex { name: parameter.into(), index: row, rows: *old_rows });
        }
        let rearranged = old.parameter.with_rows(rows.len());
        let others = self.parameters.iter().enumerate().filter(|(other, _)| *other != index);
        check_shape(&rearranged, others.map(|(_, parameter)| parameter.len()).sum())?;
        let added = rows.iter().filter(|row| row.is_none()).count();
        let may_miss = !(old.needs_seed() && self.seeded[index]);
        if new.len() != added * width && !(may_miss && new.is_empty()) {
            let (what, expected) = ("new rows", added * width);
            return Err(Error::Length { what, name: parameter.into(), expected, got: new.len() });
        }

        let mut tensors = self.tensors.clone();
        tensors[index].parameter = rearranged;
        let rules: Vec<_> = self.groups.iter().map(|group| group.rule().clone()).collect();
        let plan = Plan { rules: &rules, tensors: &tensors, groups: rules.len() };
        let mut engine = self.backend.engine(&plan)?;
        self.copy_state(&mut *engine, Some(index))?;
        if self.seeded[index] || self.updated[index] {
            self.move_rows(&mut *engine, index, &tensors[index], rows, new)?;
        }
        self.engine = engine;
        self.parameters[index] = tensors[index].parameter.clone();
        self.tensors = tensors;
        self.classify();
        Ok(())
    }

    /// Fills another engine's arrays of one tensor, which has other rows there.
    fn move_rows(
        &self,
        engine: &mut dyn Engine,
        index: usize,
        tensor: &Tensor,
        rows: &[Option<u32>],
        new: &[f32],
    ) -> Result<()> {
        let old = &self.tensors[index];
        let slots = self.slots_of(index);
        let narrow = format::f32_to_bf16;
        for (part, element, len) in old.arrays(&slots) {
            let width = match part {
                Part::Slot(nth) => row_width(slots[nth].shape, old.parameter.shape()),
                Part::Scales(_) => continue,
                Part::Master | Part::Ema => Some(old.rows_width()),
            };
            if let (Part::Slot(nth), Element::U8) = (part, element) {
                self.recode(engine, index, tensor, (nth, &slots[nth]), rows)?;
                continue;
            }
            let mut bytes = vec![0; len * element.size()];
            self.engine.read(index, part, 0, &mut bytes)?;
            let Some(width) = width else {
                engine.write(index, part, 0, &bytes)?;
                continue;
            };
            let size = width * element.size();
            let mut fresh = new.chunks_exact(old.rows_width().max(1));
            let mut moved = Vec::with_capacity(rows.len() * size);
            for row in rows {
                match (row, part) {
                    (Some(row), _) => moved.extend_from_slice(&bytes[*row as usize * size..][..size]),
                    (None, Part::Slot(nth)) => {
                        let init = slots[nth].init;
                        for _ in 0..width {
                            match element {
                                Element::F32 => moved.extend(init.to_ne_bytes()),
                                Element::Bf16 => moved.extend(narrow(init).to_ne_bytes()),
                                Element::F16 => moved.extend(format::f32_to_f16(init).to_ne_bytes()),
                                Element::U16 | Element::U8 => unreachable!("no slot is kept so"),
                            }
                        }
                    }
                    (None, _) => {
                        for &value in fresh.next().unwrap_or_default() {
                            match element {
                                Element::U16 => moved.extend(0_u16.to_ne_bytes()),
                                _ => moved.extend(as_stored(value, tensor.parameter.dtype()).to_ne_bytes()),
                            }
                        }
                    }
                }
            }
            engine.write(index, part, 0, &moved)?;
        }
        Ok(())
    }

    /// The same for a slot in 8 bits, whose blocks do not end where rows do.
    fn recode(
        &self,
        engine: &mut dyn Engine,
        index: usize,
        tensor: &Tensor,
        (nth, slot): (usize, &Slot),
        rows: &[Option<u32>],
    ) -> Result<()> {
        let values = self.read_slot(index, nth, slot)?;
        let width = tensor.rows_width();
        let mut moved = Vec::with_capacity(rows.len() * width);
        for row in rows {
            match row {
                Some(row) => moved.extend_from_slice(&values[*row as usize * width..][..width]),
                None => moved.extend(std::iter::repeat_n(slot.init, width)),
            }
        }
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        encode(tensor.slot_format(slot), &moved, |_| NEAREST, &mut codes, &mut scales);
        engine.write(index, Part::Slot(nth), 0, &codes)?;
        engine.write(index, Part::Scales(nth), 0, &scales)
    }

    /// As [`rearrange_rows`](Self::rearrange_rows): keeps the first `rows` rows, and appends new ones if there are fewer.
    ///
    /// # Errors
    /// As [`rearrange_rows`](Self::rearrange_rows).
    pub fn resize_rows(&mut self, parameter: &str, rows: u32, new: &[f32]) -> Result<()> {
        let old = self.parameters[self.index(parameter)?].shape().first().copied().unwrap_or_default();
        let rows: Vec<_> = (0..rows).map(|row| ((row as usize) < old).then_some(row)).collect();
        self.rearrange_rows(parameter, &rows, new)
    }

    /// As [`rearrange_rows`](Self::rearrange_rows): keeps the rows for which `keep` is true, in their order.
    ///
    /// # Errors
    /// As [`rearrange_rows`](Self::rearrange_rows).
    pub fn prune_rows(&mut self, parameter: &str, keep: impl Fn(u32) -> bool) -> Result<()> {
        let old = self.parameters[self.index(parameter)?].shape().first().copied().unwrap_or_default();
        let rows: Vec<_> = (0_u32..).take(old).filter(|&row| keep(row)).map(Some).collect();
        self.rearrange_rows(parameter, &rows, &[])
    }
}

impl Tensor {
    /// The elements of a row of the parameter.
    fn rows_width(&self) -> usize {
        self.parameter.shape().iter().skip(1).product()
    }
}

/// What a parameter's memory of this type holds for a value.
fn as_stored(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => value,
        DType::F16 => format::f16_to_f32(format::f32_to_f16(value)),
        DType::Bf16 => format::bf16_to_f32(format::f32_to_bf16(value)),
    }
}

/// The elements of a slot that belong to one row of the parameter; `None` if they belong to all.
fn row_width(slot: SlotShape, shape: &[usize]) -> Option<usize> {
    match (slot, shape) {
        (SlotShape::Columns, [_, _]) => None,
        // One row stands for all: an empty array has no elements for any.
        _ => Some(slot.len(Parameter::new("", shape).with_rows(1).shape())),
    }
}
