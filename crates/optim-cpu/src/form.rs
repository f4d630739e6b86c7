//! How one parameter and its state are kept, and with which kernel it is updated.

use std::ops::Range;

use optim_core::backend::{Part, Plan, SlotFormat, Tensor};
use optim_core::format::Master;
use optim_core::rule::{MAX_SLOTS, Passes, Slot, SlotShape, Sparse};
use optim_core::{Error, Result};

use crate::kernel::{NarrowKernel, Update};
use crate::rules;

/// All of a parameter that does not change from step to step.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) tensor: Tensor,
    pub(crate) slots: Vec<Slot>,
    /// The number of elements.
    pub(crate) len: usize,
    /// The elements of a row.
    pub(crate) width: usize,
    /// What stands behind a 16-bit parameter.
    pub(crate) master: Option<Master>,
    /// The formats of the slots that have an element for each of the parameter's.
    pub(crate) formats: [Option<SlotFormat>; MAX_SLOTS],
    /// Whether parameter and what has an element for each of its are `f32` throughout.
    pub(crate) plain: bool,
    /// Whether a kernel takes parameter and slots as they lie in memory.
    pub(crate) at_rest: bool,
    /// Whether a kernel updates it that scales gradients.
    pub(crate) scales: bool,
    /// Whether all slots are kept in one way of fewer bits, and that kernel reads and stores them.
    pub(crate) narrow: Option<Narrow>,
    /// Whether all slots are `f32`: what a first walk leaves in them, a second one finds.
    pub(crate) wide: bool,
    /// Whether it is measured and updated by one task, without another walk. Set when memory has been cut.
    pub(crate) at_once: bool,
    /// Whether it is measured before it is updated.
    pub(crate) measured: bool,
    /// Whether the rule's second moments are kept by row and column.
    pub(crate) factored: bool,
    /// Whether they are of this parameter, which has two axes or more: one thread works on it.
    pub(crate) whole: bool,
    /// What a row-sparse gradient does.
    pub(crate) sparse: Sparse,
}

/// How all slots of a parameter are kept, in fewer bits than 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Narrow {
    /// As `bf16`.
    Bf16,
    /// As 8-bit codes.
    Block8,
}

impl Narrow {
    /// How a kernel takes slots of these formats.
    fn of(formats: &[Option<SlotFormat>], kernel: NarrowKernel) -> Option<Self> {
        let bf16 = [SlotFormat::Bf16].into_iter().cycle().take(kernel.codes.len());
        let block8 = kernel.codes.iter().map(|code| SlotFormat::Block8(*code));
        let formats = || formats.iter().copied();
        if formats().eq(bf16.map(Some)) {
            return Some(Self::Bf16);
        }
        formats().eq(block8.map(Some)).then_some(Self::Block8)
    }
}

impl Form {
    pub(crate) fn new(plan: &Plan<'_>, tensor: &Tensor) -> Self {
        let spec = plan.rules[tensor.rule].spec();
        let slots = spec.slots();
        let mut formats = [None; MAX_SLOTS];
        for (format, slot) in formats.iter_mut().zip(&slots).filter(|(_, slot)| slot.shape == SlotShape::Same) {
            *format = Some(tensor.slot_format(slot));
        }
        let master = tensor.master();
        let kernel = match rules::kernels(&plan.rules[tensor.rule]).update {
            Update::BuiltIn(kernel) => Some(kernel),
            Update::Custom | Update::Factored => None,
        };
        let narrow = kernel.and_then(|kernel| Narrow::of(&formats[..slots.len()], kernel.narrow?));
        let wide = formats.iter().flatten().all(|format| *format == SlotFormat::F32);
        Self {
            len: tensor.parameter.len(),
            width: tensor.rows().1,
            plain: master.is_none() && wide,
            at_rest: master.is_none() && (wide || narrow.is_some()),
            wide,
            at_once: false,
            scales: kernel.is_some(),
            narrow,
            slots,
            master,
            formats,
            measured: spec.passes() == Passes::Norms || spec.has_trust(),
            factored: spec.passes() == Passes::Factored,
            whole: spec.passes() == Passes::Factored && tensor.parameter.shape().len() >= 2,
            sparse: spec.sparse(),
            tensor: tensor.clone(),
        }
    }

    /// The parameter's name.
    pub(crate) fn name(&self) -> &str {
        self.tensor.parameter.name()
    }

    /// The number of matrices, and the rows and columns of one; no columns for a parameter of fewer than two axes.
    pub(crate) fn matrices(&self) -> (usize, usize, usize) {
        match self.tensor.parameter.shape() {
            [rest @ .., rows, columns] => (rest.iter().product(), *rows, *columns),
            _ => (0, 0, 0),
        }
    }

    /// The elements of a row of a row-sparse gradient.
    pub(crate) fn row(&self) -> usize {
        self.tensor.parameter.shape().iter().skip(1).product()
    }

    /// Where elements of an array lie within it, in bytes.
    ///
    /// # Errors
    /// There is no such array, or it has fewer elements.
    pub(crate) fn bytes(&self, part: Part, first: usize, bytes: usize) -> Result<Range<usize>> {
        let arrays = self.tensor.arrays(&self.slots);
        let found = arrays.iter().find(|(candidate, ..)| *candidate == part).and_then(|(_, element, len)| {
            let start = first.checked_mul(element.size())?;
            let end = start.checked_add(bytes)?;
            (end <= len * element.size()).then_some(start..end)
        });
        found.ok_or_else(|| Error::Unknown {
            what: "array",
            name: format!("{part:?} of {} from element {first} on, {bytes} bytes", self.name()),
            expected: format!("{arrays:?}"),
        })
    }
}
