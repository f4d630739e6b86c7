//! Learning rates: a number, a list, a function of the step, or one that follows a metric.

use std::fmt;
use std::sync::Arc;

use crate::error::{check, shown};
use crate::rules::single;
use crate::schedule::ReduceOnPlateau;
use crate::{Error, Result, Schedule};

/// A learning rate. Everything that asks for one takes `impl Into<Rate>`.
///
/// The first update uses index 0 in every form, as in MindSpore; so a warm-up's first rate is 0.
///
/// ```
/// use optim_core::{Rate, schedule::WarmUp};
///
/// # fn main() -> optim_core::Result<()> {
/// let fixed = Rate::from(0.1);
/// let list = Rate::from(vec![0.1, 0.05, 0.01]);
/// let schedule = Rate::from(WarmUp::new(0.1, 4)?);
/// # let _ = (fixed, list);
/// # let _ = schedule;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum Rate {
    /// The same rate at every update: finite and ≥ 0.
    Fixed(f64),
    /// Entry `i` at update `i` (MindSpore's dynamic list). Entries must be finite. An update past the end is
    /// [`Error::RateExhausted`].
    List(Arc<[f64]>),
    /// A function of the update's index. It must return finite numbers.
    Schedule(Arc<dyn Schedule>),
    /// Whatever the metrics have made of it: see [`observe`](Self::observe).
    Plateau(ReduceOnPlateau),
}

impl Rate {
    /// Checks what can be checked before training. `name` is the argument as the user knows it.
    pub(crate) fn validate(&self, name: &str) -> Result<()> {
        match self {
            Self::Fixed(lr) => check(name, "finite and ≥ 0", *lr, |x| x.is_finite() && x >= 0.0),
            Self::List(list) => {
                if list.is_empty() {
                    let expected = "a list of at least one rate";
                    return Err(Error::HyperParameter { name: name.to_owned(), expected, got: "an empty list".into() });
                }
                list.iter().try_for_each(|lr| check(name, "a list of finite numbers", *lr, |x| x.is_finite()))
            }
            Self::Schedule(_) | Self::Plateau(_) => Ok(()),
        }
    }

    /// As [`validate`](Self::validate), where nothing negative will do, and nothing that follows a metric.
    pub(crate) fn validate_decay(&self, name: &str) -> Result<()> {
        self.validate(name)?;
        match self {
            Self::Plateau(_) => {
                let expected = "a number, a list or a schedule";
                Err(Error::HyperParameter { name: name.to_owned(), expected, got: format!("{self:?}") })
            }
            Self::List(list) => {
                list.iter().try_for_each(|decay| check(name, "a list of numbers ≥ 0", *decay, |x| x >= 0.0))
            }
            _ => Ok(()),
        }
    }

    /// The rate of the 0-based update `update`. `what` and `place` say which and whose rate it is, for errors; `place` is called only
    /// then.
    pub(crate) fn at(&self, update: u64, what: &'static str, place: impl Fn() -> String) -> Result<f64> {
        match self {
            Self::Fixed(lr) => Ok(*lr),
            Self::List(list) => usize::try_from(update)
                .ok()
                .and_then(|i| list.get(i).copied())
                .ok_or_else(|| Error::RateExhausted { what, place: place(), update, len: list.len() }),
            Self::Schedule(schedule) => {
                let lr = schedule.at(update);
                if single(lr).is_finite() {
                    Ok(lr)
                } else {
                    Err(Error::RateNotFinite { what, place: place(), update, got: lr })
                }
            }
            Self::Plateau(plateau) => Ok(plateau.lr()),
        }
    }

    /// Whether both are one and the same rate: equal numbers, or copies of one schedule.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed(own), Self::Fixed(other)) => own.to_bits() == other.to_bits(),
            (Self::List(own), Self::List(other)) => own == other,
            (Self::Schedule(own), Self::Schedule(other)) => Arc::ptr_eq(own, other),
            (Self::Plateau(_), Self::Plateau(_)) => format!("{self:?}") == format!("{other:?}"),
            _ => false,
        }
    }

    /// Hands a metric to a rate that follows one ([`ReduceOnPlateau::observe`]); `true` if the rate was reduced. Other rates
    /// take no notice: `false`.
    ///
    /// # Errors
    /// Those of [`ReduceOnPlateau::observe`].
    pub fn observe(&mut self, metric: f64) -> Result<bool> {
        match self {
            Self::Plateau(plateau) => plateau.observe(metric),
            Self::Fixed(_) | Self::List(_) | Self::Schedule(_) => Ok(false),
        }
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(lr) => f.write_str(&shown(*lr)),
            Self::List(list) => write!(f, "list of {}", list.len()),
            Self::Schedule(schedule) => write!(f, "{schedule:?}"),
            Self::Plateau(plateau) => write!(f, "{plateau:?}"),
        }
    }
}

impl From<f64> for Rate {
    fn from(lr: f64) -> Self {
        Self::Fixed(lr)
    }
}

impl From<Vec<f64>> for Rate {
    fn from(list: Vec<f64>) -> Self {
        Self::List(list.into())
    }
}

impl From<&[f64]> for Rate {
    fn from(list: &[f64]) -> Self {
        Self::List(list.into())
    }
}

impl<const N: usize> From<[f64; N]> for Rate {
    fn from(list: [f64; N]) -> Self {
        Self::List(list.as_slice().into())
    }
}

impl<S: Schedule + 'static> From<S> for Rate {
    fn from(schedule: S) -> Self {
        Self::Schedule(Arc::new(schedule))
    }
}

impl From<ReduceOnPlateau> for Rate {
    fn from(plateau: ReduceOnPlateau) -> Self {
        Self::Plateau(plateau)
    }
}
