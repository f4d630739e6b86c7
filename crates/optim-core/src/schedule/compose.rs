//! What a schedule is, and schedules made of others.

use std::fmt;

use super::AnySchedule;
use super::more::times;
use crate::Result;
use crate::error::{at_least_one, check};

/// A rate as a function of the 0-based index of the update.
///
/// ```
/// use optim_core::Schedule;
///
/// #[derive(Debug)]
/// struct Halving;
/// impl Schedule for Halving {
///     fn at(&self, update: u64) -> f64 {
///         0.1 * 0.5_f64.powf(update as f64 / 1000.0)
///     }
/// }
/// assert_eq!(Halving.at(1000), 0.05);
/// ```
pub trait Schedule: fmt::Debug + Send + Sync {
    /// The rate of the update with this index. It must be finite, and the same whenever it is asked for.
    fn at(&self, update: u64) -> f64;

    /// This schedule as a value that can be written and read: `Some` for every schedule of this library and those made of
    /// them alone. Default: `None`, which is right for a closure and for a type of your own, unless it equals one of ours.
    fn describe(&self) -> Option<AnySchedule> {
        None
    }

    /// This schedule for the first `updates` updates, then `next`, whose own index starts at 0 there.
    ///
    /// ```
    /// use optim_core::{Schedule, schedule::{CosineDecay, WarmUp}};
    /// # fn main() -> optim_core::Result<()> {
    /// let rate = WarmUp::new(0.1, 100)?.then(100, CosineDecay::new(0.0, 0.1, 900)?);
    /// assert_eq!((rate.at(50), rate.at(100)), (0.05, 0.1));
    /// assert!(rate.at(1000) < 1e-12);
    /// # Ok(())
    /// # }
    /// ```
    fn then<S: Schedule>(self, updates: u64, next: S) -> Then<Self, S>
    where
        Self: Sized,
    {
        Then { first: self, updates, next }
    }

    /// A linear warm-up before this schedule: from 0 to the schedule's first rate within `steps` updates, `s(0) · i / steps`,
    /// then the schedule from its own index 0. Trap: the first update has the rate 0, and the schedule ends `steps` later.
    ///
    /// ```
    /// use optim_core::{Schedule, schedule::CosineDecay};
    /// # fn main() -> optim_core::Result<()> {
    /// let rate = CosineDecay::new(0.0, 0.1, 900)?.warmup(100);
    /// assert_eq!((rate.at(0), rate.at(50), rate.at(100)), (0.0, 0.05, 0.1));
    /// assert!(rate.at(1000) < 1e-12);
    /// # Ok(())
    /// # }
    /// ```
    fn warmup(self, steps: u64) -> Warmed<Self>
    where
        Self: Sized,
    {
        Warmed { schedule: self, steps }
    }

    /// This schedule times `factor`, which is finite and ≥ 0.
    ///
    /// ```
    /// use optim_core::{Schedule, schedule::StepDecay};
    /// # fn main() -> optim_core::Result<()> {
    /// // Half the rate, as for a group of its own.
    /// let rate = StepDecay::new(0.5, 0.5, 30)?;
    /// assert_eq!((rate.at(30), rate.scale(0.5)?.at(30)), (0.25, 0.125));
    /// # Ok(())
    /// # }
    /// ```
    fn scale(self, factor: f64) -> Result<Scaled<Self>>
    where
        Self: Sized,
    {
        check("Schedule: factor", "finite and ≥ 0", factor, |x| x.is_finite() && x >= 0.0)?;
        Ok(Scaled { schedule: self, factor })
    }

    /// The first `period` ≥ 1 updates of this schedule, over and over.
    ///
    /// ```
    /// use optim_core::{Schedule, schedule::Linear};
    /// # fn main() -> optim_core::Result<()> {
    /// let rate = Linear::new(0.4, 0.0, 4)?.repeat(4)?;
    /// assert_eq!((rate.at(3), rate.at(4), rate.at(6)), (rate.at(7), 0.4, 0.2));
    /// # Ok(())
    /// # }
    /// ```
    fn repeat(self, period: u64) -> Result<Repeated<Self>>
    where
        Self: Sized,
    {
        at_least_one(period, "Schedule: period")?;
        Ok(Repeated { schedule: self, period })
    }
}

/// Two schedules one after the other: see [`Schedule::then`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Then<A, B> {
    pub(crate) first: A,
    pub(crate) updates: u64,
    pub(crate) next: B,
}

impl<A: Schedule, B: Schedule> Schedule for Then<A, B> {
    fn at(&self, update: u64) -> f64 {
        if update < self.updates { self.first.at(update) } else { self.next.at(update - self.updates) }
    }

    fn describe(&self) -> Option<AnySchedule> {
        Some(Then { first: self.first.describe()?, updates: self.updates, next: self.next.describe()? }.into())
    }
}

/// A schedule after its warm-up: see [`Schedule::warmup`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmed<S> {
    pub(crate) schedule: S,
    pub(crate) steps: u64,
}

impl<S: Schedule> Schedule for Warmed<S> {
    fn at(&self, update: u64) -> f64 {
        if update < self.steps {
            self.schedule.at(0) * update as f64 / self.steps as f64
        } else {
            self.schedule.at(update - self.steps)
        }
    }

    fn describe(&self) -> Option<AnySchedule> {
        Some(Warmed { schedule: self.schedule.describe()?, steps: self.steps }.into())
    }
}

/// A schedule times a factor: see [`Schedule::scale`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaled<S> {
    pub(crate) schedule: S,
    pub(crate) factor: f64,
}

impl<S: Schedule> Schedule for Scaled<S> {
    fn at(&self, update: u64) -> f64 {
        times(self.factor, self.schedule.at(update))
    }

    fn describe(&self) -> Option<AnySchedule> {
        Some(Scaled { schedule: self.schedule.describe()?, factor: self.factor }.into())
    }
}

/// The beginning of a schedule over and over: see [`Schedule::repeat`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Repeated<S> {
    pub(crate) schedule: S,
    pub(crate) period: u64,
}

impl<S: Schedule> Schedule for Repeated<S> {
    fn at(&self, update: u64) -> f64 {
        self.schedule.at(update % self.period)
    }

    fn describe(&self) -> Option<AnySchedule> {
        Some(Repeated { schedule: self.schedule.describe()?, period: self.period }.into())
    }
}

/// A schedule from a closure, with a name for `Debug`. The closure must return finite numbers, the same whenever it is
/// called.
///
/// ```
/// use optim_core::{Schedule, schedule::from_fn};
///
/// let rate = from_fn("halving", |i| 0.1 * 0.5_f64.powf(i as f64 / 1000.0));
/// assert_eq!(rate.at(1000), 0.05);
/// assert_eq!(format!("{rate:?}"), "halving");
/// ```
pub fn from_fn<F: Fn(u64) -> f64 + Send + Sync>(name: impl Into<String>, rate: F) -> FromFn<F> {
    FromFn { name: name.into(), rate }
}

/// A closure as a schedule: see [`from_fn`].
#[derive(Clone)]
pub struct FromFn<F> {
    name: String,
    rate: F,
}

impl<F: Fn(u64) -> f64 + Send + Sync> Schedule for FromFn<F> {
    fn at(&self, update: u64) -> f64 {
        (self.rate)(update)
    }
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
