//! How much memory the state of an optimizer takes.

use std::fmt;

use crate::backend::Tensor;
use crate::settings::Group;

/// The memory of an optimizer's state, group by group: see [`Builder::estimate`](crate::Builder::estimate).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estimate {
    /// One entry for each group.
    pub groups: Vec<GroupEstimate>,
}

/// The memory of one group's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupEstimate {
    /// "group 1 (head)", or "the optimizer" without groups.
    pub place: String,
    /// The number of its parameters.
    pub parameters: usize,
    /// The number of their elements.
    pub elements: usize,
    /// The bytes of their state: slots, masters and averages, without padding.
    pub bytes: usize,
}

impl Estimate {
    pub(crate) fn new(groups: &[Group], tensors: &[Tensor]) -> Self {
        let estimate = |(index, group): (usize, &Group)| {
            let members = || tensors.iter().filter(move |tensor| tensor.group == index);
            let slots = group.rule().spec().slots();
            GroupEstimate {
                place: group.place.clone(),
                parameters: members().count(),
                elements: members().map(|tensor| tensor.parameter.len()).sum(),
                bytes: members().map(|tensor| tensor.state_bytes(&slots)).sum(),
            }
        };
        Self { groups: groups.iter().enumerate().map(estimate).collect() }
    }

    /// The bytes of all groups together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.groups.iter().map(|group| group.bytes).sum()
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.groups.iter().map(|group| group.place.chars().count()).max().unwrap_or(0).max(5);
        writeln!(f, "{:width$} {:>10} {:>12} {:>14}", "group", "parameters", "elements", "bytes of state")?;
        for GroupEstimate { place, parameters, elements, bytes } in &self.groups {
            writeln!(f, "{place:width$} {parameters:>10} {elements:>12} {bytes:>14}")?;
        }
        write!(f, "{:width$} {:>10} {:>12} {:>14}", "all", "", "", self.bytes())
    }
}
