//! A trained problem, and the comparison of two.

use std::fmt;

use optimizers::{Builder, Grad, IntoBackend, Optimizer, Outcome, ParamMut, Result, StepReport};

use crate::Problem;
use crate::tolerance::UNIT;

/// The report of a step once it is decided: the same one, unless the device had yet to tell. No other step may be pending.
///
/// # Errors
/// What waiting for the device returns.
///
/// # Panics
/// If a report is awaited and none comes.
pub fn final_report(optimizer: &mut Optimizer, report: StepReport) -> Result<StepReport> {
    if report.outcome != Outcome::Pending {
        return Ok(report);
    }
    let report = optimizer.wait_report()?;
    Ok(report.expect("a step that was pending has a report"))
}

/// A parameter (`w0`) or one of its slots (`w0.moment1`) after training. `f64` holds every `f32` exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The name.
    pub name: String,
    /// The numbers.
    pub values: Vec<f64>,
}

impl Array {
    /// An array of this name.
    #[must_use]
    pub fn new(name: &str, values: Vec<f64>) -> Self {
        Self { name: name.to_owned(), values }
    }
}

/// The result of a training, with the name of who made it.
#[derive(Debug, Clone)]
pub struct Run {
    by: String,
    arrays: Vec<Array>,
}

impl Run {
    /// A result made by `by`.
    #[must_use]
    pub fn new(by: &str, mut arrays: Vec<Array>) -> Self {
        arrays.sort_by(|a, b| a.name.cmp(&b.name));
        Self { by: by.to_owned(), arrays }
    }

    /// Trains a problem on a backend.
    ///
    /// # Errors
    /// What building or stepping returns.
    pub fn train(builder: Builder, backend: impl IntoBackend, problem: &Problem) -> Result<Self> {
        let mut optimizer = builder.build(backend)?;
        let mut p = problem.start.clone();
        for gradients in &problem.gradients {
            let mut params: Vec<ParamMut<'_>> = p.iter_mut().map(Into::into).collect();
            let grads: Vec<Grad<'_>> = gradients.iter().map(|g| g.as_ref().into()).collect();
            let report = optimizer.step(&mut params, &grads)?;
            let report = final_report(&mut optimizer, report)?;
            assert!(report.applied(), "{report:?}");
        }
        Self::of(&optimizer, &p)
    }

    /// The result that these parameters and the optimizer's slots are. It carries the name and description of the
    /// optimizer's backend.
    ///
    /// # Errors
    /// What reading a slot returns.
    pub fn of(optimizer: &Optimizer, params: &[Vec<f32>]) -> Result<Self> {
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect();
        let mut arrays = Vec::new();
        for (parameter, values) in optimizer.parameters().iter().zip(params) {
            arrays.push(Array::new(parameter.name(), wide(values)));
            for slot in optimizer.rule_of(parameter.name())?.spec().slots() {
                let values = optimizer.slot(parameter.name(), slot.name)?;
                arrays.push(Array::new(&format!("{}.{}", parameter.name(), slot.name), wide(&values)));
            }
        }
        let backend = optimizer.backend();
        Ok(Self::new(&format!("{} ({})", backend.name(), backend.describe()), arrays))
    }

    /// The same result under another maker's name: for two ways to one result on one backend.
    #[must_use]
    pub fn by(mut self, by: &str) -> Self {
        by.clone_into(&mut self.by);
        self
    }

    /// Who made it.
    #[must_use]
    pub fn maker(&self) -> &str {
        &self.by
    }

    /// The arrays, in the order of their names.
    #[must_use]
    pub fn arrays(&self) -> &[Array] {
        &self.arrays
    }
}

/// How equal two runs must be.
#[derive(Debug, Clone, Copy)]
pub enum Bound<'a> {
    /// In every bit.
    Bits,
    /// Within so many [`UNIT`]s of the judge's scale, which [`reference::train`](crate::reference::train) gives.
    Units(f64, &'a Run),
}

/// The largest error of a comparison.
#[derive(Debug, Clone)]
pub struct Worst {
    /// In [`UNIT`]s of the scale; of the larger number, if bits are compared.
    pub units: f64,
    /// The bound it was held against.
    pub bound: f64,
    /// Where, and which numbers.
    pub place: String,
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} units, bound {}: {}", self.units, self.bound, self.place)
    }
}

/// Compares two runs and gives the worst error: in `Ok` if it is within the bound, else in `Err`.
///
/// # Panics
/// If both were made by the same maker: such a comparison cannot fail and so proves nothing. If they are not of the same
/// arrays.
pub fn compare(a: &Run, b: &Run, bound: &Bound<'_>) -> std::result::Result<Worst, Worst> {
    assert_ne!(a.by, b.by, "a backend is compared with itself");
    let names = |run: &Run| run.arrays.iter().map(|x| (x.name.clone(), x.values.len())).collect::<Vec<_>>();
    assert_eq!(names(a), names(b), "{} and {} have other arrays", a.by, b.by);
    let limit = match bound {
        Bound::Bits => 0.0,
        Bound::Units(limit, scale) => {
            assert_eq!(names(a), names(scale), "{} has other arrays", scale.by);
            *limit
        }
    };
    let mut worst = Worst { units: 0.0, bound: limit, place: "everywhere equal".into() };
    for (index, (x, y)) in a.arrays.iter().zip(&b.arrays).enumerate() {
        for (i, (&p, &q)) in x.values.iter().zip(&y.values).enumerate() {
            if p.to_bits() == q.to_bits() {
                continue;
            }
            let scale = match bound {
                Bound::Bits => p.abs().max(q.abs()),
                Bound::Units(_, scale) => scale.arrays[index].values[i],
            };
            // No number, or a difference where everything was zero, is infinitely wrong.
            let mut units = (p - q).abs() / scale / UNIT;
            if matches!(bound, Bound::Units(..)) && p == q {
                units = 0.0;
            } else if units.is_nan() || (matches!(bound, Bound::Bits) && units == 0.0) {
                units = f64::INFINITY;
            }
            if units > worst.units {
                let place = format!("{}[{i}] is {p:e} by {}, {q:e} by {}", x.name, a.by, b.by);
                worst = Worst { units, place, ..worst };
            }
        }
    }
    if worst.units <= limit { Ok(worst) } else { Err(worst) }
}
