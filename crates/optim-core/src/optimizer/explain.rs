//! What an optimizer says about itself.

use std::fmt;

use crate::backend::{Element, Part};
use crate::estimate::Estimate;
use crate::settings::Origin;
use crate::{Optimizer, Rate, Result, Rule};

/// The settings by which one parameter is updated, and where each comes from: see [`Optimizer::explain`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Explanation {
    /// The parameter's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its place in a step.
    pub place: usize,
    /// "group 1 (head)", or "the optimizer" without groups.
    pub group: String,
    /// The rule, at the coming update.
    pub rule: (Rule, Origin),
    /// The rate as configured; 0 where the rule makes its own.
    pub lr: (Rate, Origin),
    /// What the rate is multiplied with for this parameter.
    pub lr_scale: f64,
    /// The rate of the coming update, all told; `None` if it cannot be told (a list at its end).
    pub next_lr: Option<f64>,
    /// The weight decay as configured.
    pub weight_decay: (Rate, Origin),
    /// Whether the parameter decays at all.
    pub decays: bool,
    /// Whether its gradient is centralized, and where that comes from.
    pub centralized: (bool, &'static str, Origin),
    /// The largest norm of its gradient, within the scope that is clipped.
    pub max_norm: Option<f64>,
    /// Whether it is frozen.
    pub frozen: bool,
    /// The arrays of its state: name, element type, number of elements.
    pub state: Vec<(String, Element, usize)>,
}

impl Optimizer {
    /// The effective settings of one parameter, and where each comes from. Prints as a small table.
    ///
    /// # Errors
    /// [`Error::Unknown`](crate::Error::Unknown) if there is no such parameter; what its group's [`vary`](crate::ParamGroup::vary) puts out
    /// of range.
    pub fn explain(&self, parameter: &str) -> Result<Explanation> {
        let index = self.index(parameter)?;
        let tensor = &self.tensors[index];
        let group = &self.groups[tensor.group];
        let mut rule = group.rule.clone();
        super::vary(group, &mut rule.0, self.step)?;
        let slots = self.slots_of(index);
        let state = tensor.arrays(&slots).into_iter().map(|(part, element, len)| {
            let name = match part {
                Part::Slot(nth) => slots[nth].name.to_owned(),
                Part::Scales(nth) => format!("{} (scales)", slots[nth].name),
                Part::Master => "master".into(),
                Part::Ema => "average".into(),
            };
            (name, element, len)
        });
        let next_lr = group.lr_at(&rule.0, self.step).ok();
        let (centralization, origin) = group.centralization;
        let centralized = self.classes[self.class_of[index]].centralized;
        Ok(Explanation {
            name: tensor.parameter.name().into(),
            shape: tensor.parameter.shape().to_vec(),
            place: index,
            group: group.place.clone(),
            rule,
            lr: group.lr.clone(),
            lr_scale: self.scales[index],
            next_lr: next_lr.map(|lr| lr * self.scales[index]),
            weight_decay: group.weight_decay.clone(),
            decays: self.decays[index],
            centralized: (centralized, centralization.describe(), origin),
            max_norm: group.max_norm(),
            frozen: self.frozen[index],
            state: state.collect(),
        })
    }

    /// What the state takes, group by group.
    #[must_use]
    pub fn memory(&self) -> Estimate {
        Estimate::new(&self.groups, &self.tensors)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, shape, place, group, .. } = self;
        writeln!(f, "{name} {shape:?}, parameter {place}, {group}{}", if self.frozen { ", frozen" } else { "" })?;
        writeln!(f, "  rule            {:?} ({})", self.rule.0, self.rule.1)?;
        if self.rule.0.spec().takes_lr() {
            write!(f, "  rate            {:?} ({})", self.lr.0, self.lr.1)?;
        } else {
            write!(f, "  rate            the rule's own")?;
        }
        if self.lr_scale.to_bits() != 1.0_f64.to_bits() {
            write!(f, ", times {}", self.lr_scale)?;
        }
        match self.next_lr {
            Some(lr) => writeln!(f, "; {lr} at the next update")?,
            None => writeln!(f, "; none at the next update")?,
        }
        let decays = if self.decays { "" } else { "; not for this parameter, by its name or a filter" };
        writeln!(f, "  weight decay    {:?} ({}){decays}", self.weight_decay.0, self.weight_decay.1)?;
        let (centralized, how, origin) = self.centralized;
        writeln!(
            f,
            "  centralization  {how} ({origin}); {} here",
            if centralized { "applies" } else { "does not apply" }
        )?;
        if let Some(max_norm) = self.max_norm {
            writeln!(f, "  largest norm    {max_norm}")?;
        }
        let state: Vec<_> =
            self.state.iter().map(|(name, element, len)| format!("{name}: {len} of {element:?}")).collect();
        write!(f, "  state           {}", if state.is_empty() { "none".into() } else { state.join(", ") })
    }
}

/// A table of the groups.
impl fmt::Display for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {} after {} updates", self.rule.spec().name(), self.backend.describe(), self.step)?;
        let mut rows = vec![
            ["group", "rule", "parameters", "elements", "rate", "decay", "centralized", "state"].map(String::from),
        ];
        for (index, (group, memory)) in self.groups.iter().zip(self.memory().groups).enumerate() {
            let shown = |rate: Result<f64>| rate.map_or("none".into(), |rate| rate.to_string());
            rows.push([
                memory.place,
                group.rule().spec().name().into(),
                memory.parameters.to_string(),
                memory.elements.to_string(),
                shown(self.lr(index)),
                shown(group.decay_at(self.step)),
                group.grad_centralization().describe().into(),
                format!("{} bytes", memory.bytes),
            ]);
        }
        let widths: [usize; 8] =
            std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
        for (nth, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            write!(f, "{}{}", if nth == 0 { "" } else { "\n" }, line.trim_end())?;
        }
        Ok(())
    }
}
