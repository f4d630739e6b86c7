//! The schedules of this library as one type.

use std::fmt;

use super::{
    Constant, CosineDecay, CosineRestarts, Cyclic, ExponentialDecay, InverseDecay, InverseSqrt, Linear, MultiStep,
    NaturalExpDecay, Noam, OneCycle, PolynomialDecay, Repeated, Scaled, Schedule, StepDecay, Then, WarmUp, Warmed,
    WarmupStableDecay,
};

/// In how many others a schedule may be nested as data. What is written must be readable: `serde_json` reads 128 levels.
pub(crate) const MAX_DEPTH: usize = 32;

/// [`AnySchedule`], its conversions and its matches, from the list of the schedules that are made of nothing else.
macro_rules! any_schedule {
    ($($schedule:ident),* $(,)?) => {
        /// Any schedule of this library: a value that can be looked into, compared and, with the feature `serde`, written and
        /// read. [`Schedule::describe`] gives it.
        ///
        /// `Debug` prints the schedule inside.
        ///
        /// ```
        /// use optim_core::{Schedule, schedule::{AnySchedule, CosineDecay, Linear}};
        /// # fn main() -> optim_core::Result<()> {
        /// // Two types, one list.
        /// let schedules: [AnySchedule; 2] =
        ///     [Linear::new(0.2, 0.1, 4)?.into(), CosineDecay::new(0.0, 0.1, 900)?.warmup(100).into()];
        /// assert_eq!((schedules[0].at(4), schedules[1].at(50)), (0.1, 0.05));
        /// # Ok(())
        /// # }
        /// ```
        #[derive(Clone, PartialEq)]
        #[non_exhaustive]
        pub enum AnySchedule {
            $(
                #[doc = concat!("[`", stringify!($schedule), "`].")]
                $schedule($schedule),
            )*
            /// [`Then`].
            Then(Box<Then<Self, Self>>),
            /// [`Warmed`].
            Warmed(Box<Warmed<Self>>),
            /// [`Scaled`].
            Scaled(Box<Scaled<Self>>),
            /// [`Repeated`].
            Repeated(Box<Repeated<Self>>),
        }

        impl AnySchedule {
            /// In how many others its innermost schedule is nested.
            pub(crate) fn depth(&self) -> usize {
                match self {
                    $(Self::$schedule(_) => 0,)*
                    Self::Then(schedule) => 1 + schedule.first.depth().max(schedule.next.depth()),
                    Self::Warmed(schedule) => 1 + schedule.schedule.depth(),
                    Self::Scaled(schedule) => 1 + schedule.schedule.depth(),
                    Self::Repeated(schedule) => 1 + schedule.schedule.depth(),
                }
            }
        }

        impl Schedule for AnySchedule {
            fn at(&self, update: u64) -> f64 {
                match self {
                    $(Self::$schedule(schedule) => schedule.at(update),)*
                    Self::Then(schedule) => schedule.at(update),
                    Self::Warmed(schedule) => schedule.at(update),
                    Self::Scaled(schedule) => schedule.at(update),
                    Self::Repeated(schedule) => schedule.at(update),
                }
            }

            describe!();
        }

        impl fmt::Debug for AnySchedule {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$schedule(schedule) => schedule.fmt(f),)*
                    Self::Then(schedule) => schedule.fmt(f),
                    Self::Warmed(schedule) => schedule.fmt(f),
                    Self::Scaled(schedule) => schedule.fmt(f),
                    Self::Repeated(schedule) => schedule.fmt(f),
                }
            }
        }

        $(
            impl From<$schedule> for AnySchedule {
                fn from(schedule: $schedule) -> Self {
                    Self::$schedule(schedule)
                }
            }
        )*
    };
}

/// [`Schedule::describe`] of a schedule that is made of nothing else.
macro_rules! describe {
    () => {
        fn describe(&self) -> Option<$crate::schedule::AnySchedule> {
            Some(Clone::clone(self).into())
        }
    };
}
pub(super) use describe;

any_schedule!(
    WarmUp,
    CosineDecay,
    PolynomialDecay,
    ExponentialDecay,
    NaturalExpDecay,
    InverseDecay,
    Constant,
    Linear,
    StepDecay,
    MultiStep,
    CosineRestarts,
    OneCycle,
    Cyclic,
    InverseSqrt,
    Noam,
    WarmupStableDecay,
);

impl<A: Into<Self>, B: Into<Self>> From<Then<A, B>> for AnySchedule {
    fn from(Then { first, updates, next }: Then<A, B>) -> Self {
        Self::Then(Box::new(Then { first: first.into(), updates, next: next.into() }))
    }
}

impl<S: Into<Self>> From<Warmed<S>> for AnySchedule {
    fn from(Warmed { schedule, steps }: Warmed<S>) -> Self {
        Self::Warmed(Box::new(Warmed { schedule: schedule.into(), steps }))
    }
}

impl<S: Into<Self>> From<Scaled<S>> for AnySchedule {
    fn from(Scaled { schedule, factor }: Scaled<S>) -> Self {
        Self::Scaled(Box::new(Scaled { schedule: schedule.into(), factor }))
    }
}

impl<S: Into<Self>> From<Repeated<S>> for AnySchedule {
    fn from(Repeated { schedule, period }: Repeated<S>) -> Self {
        Self::Repeated(Box::new(Repeated { schedule: schedule.into(), period }))
    }
}
