//! The guard: what is measured of the gradients before an update, and what follows from it.
//!
//! ```text
//! measure   q = Σ (f · g)² and whether an element is not finite, for each parameter          f = factor / scale
//! norms     of all parameters, and of each group: √ of the sum of q. Over all, lane l of 256 adds the l-th, the l + 256-th, …, then
//!           lanes are added that are 128, 64, …, 1 apart; over a group, one parameter is added after the other
//! decide    not finite: nothing changes but the loss scale and the counters
//!           finite:     the record's factor becomes f, times max_norm / norm where the norm is larger
//! ```
//!
//! [`decide`] is what the CPU runs; `shaders/guard.wgsl` is its twin, so that a device can decide without the host.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::Result;
use crate::backend::{Record, Shaping};
use crate::error::{at_least_one, check};

/// The lanes over which norms are summed.
const LANES: usize = 256;

/// Whose norm is held against a record's [`max_norm`](crate::backend::Stages::max_norm).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Clip {
    /// That of all parameters together.
    Global = 0,
    /// That of the record's group.
    Group = 1,
    /// That of the record's only parameter.
    Parameter = 2,
}

/// What a guard measures with and decides by, at one update. Core makes it; backends only follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guard {
    /// What gradients are multiplied with beside `1 / scale`; the records' [`factor`](Shaping::factor) as well.
    pub factor: f32,
    /// Whose norm is clipped.
    pub clip: Clip,
    /// The number (low 32 bits) of updates applied before the one that the first records are for.
    pub first: u32,
    /// The records of one update.
    pub records: usize,
    /// The rule of a dynamic loss scale.
    pub scaler: Option<Scaler>,
}

/// A dynamic loss scale, as numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaler {
    /// What the scale is multiplied with after `window` finite steps, and divided by after another.
    pub factor: f32,
    /// The steps after which the scale grows.
    pub window: u32,
    /// The scale never falls below.
    pub floor: f32,
    /// The scale never grows beyond.
    pub cap: f32,
}

/// The loss scale and the counters of a guard; on a device, in its memory.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Control {
    /// The loss scale of the next step; 1 without a dynamic one.
    pub scale: f32,
    /// The number of the next step: 1 for the first.
    pub current: u32,
    /// The number of the last step that was skipped; 0 for none.
    pub last: u32,
    /// Steps skipped since one was applied.
    pub bad: u32,
    /// Updates applied, low 32 bits.
    pub applied: u32,
    /// Steps skipped.
    pub skipped: u32,
    /// Fill 32 bytes.
    pub pad: [u32; 2],
}

impl Default for Control {
    fn default() -> Self {
        Self { scale: 1.0, current: 1, last: 0, bad: 0, applied: 0, skipped: 0, pad: [0; 2] }
    }
}

/// What was measured of one parameter's gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Measured {
    /// The sum of the squares.
    pub squares: f32,
    /// 1 if an element is not finite, else 0.
    pub bad: u32,
}

/// Why a step was skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum Skip {
    /// A gradient has an element that is not finite.
    NotFinite = 1,
    /// All elements are finite, the square of the norm is not.
    NormOverflow = 2,
}

/// What a guard decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Why nothing was updated; `None` if it was.
    pub skip: Option<Skip>,
    /// The first parameter whose gradient is not finite.
    pub first_bad: Option<usize>,
    /// The norm of all gradients, unscaled.
    pub norm: f32,
    /// The factor by which clipping over all parameters made them smaller; 1 for none.
    pub clip: f32,
    /// The loss scale of this step.
    pub scale_before: f32,
    /// The loss scale of the next.
    pub scale: f32,
    /// Steps skipped since one was applied, this one included.
    pub bad: u32,
    /// Updates applied before this step, low 32 bits: which of the records were used.
    pub applied: u32,
    /// The norm of each group.
    pub group_norms: Arc<[f32]>,
}

/// Decides: completes the records of the update, or marks them to be skipped, and moves the counters on.
///
/// `measured`, `group_of`: one for each parameter; those without a gradient measure 0. `group_norms`: one for each group; filled here
/// and shared with the verdict, so that nothing is allocated once the verdict before has been dropped.
pub fn decide(
    guard: &Guard,
    control: &mut Control,
    measured: &[Measured],
    group_of: &[u32],
    records: &mut [Record],
    shared_norms: &mut Arc<[f32]>,
) -> Verdict {
    if Arc::get_mut(shared_norms).is_none() {
        *shared_norms = vec![0.0; shared_norms.len()].into();
    }
    let group_norms = Arc::get_mut(shared_norms).map_or(&mut [][..], |norms| norms);
    let first_bad = measured.iter().position(|measured| measured.bad != 0);

    let mut lanes = [0.0; LANES];
    for row in measured.chunks(LANES) {
        for (lane, measured) in lanes.iter_mut().zip(row) {
            *lane += measured.squares;
        }
    }
    let mut stride = LANES / 2;
    while stride > 0 {
        for lane in 0..stride {
            lanes[lane] += lanes[lane + stride];
        }
        stride /= 2;
    }
    let norm = lanes[0].sqrt();

    group_norms.fill(0.0);
    for (measured, &group) in measured.iter().zip(group_of) {
        group_norms[group as usize] += measured.squares;
    }
    group_norms.iter_mut().for_each(|norm| *norm = norm.sqrt());

    let skip = if first_bad.is_some() {
        Some(Skip::NotFinite)
    } else if norm.to_bits() & INFINITE == INFINITE {
        Some(Skip::NormOverflow)
    } else {
        None
    };

    let scale_before = control.scale;
    let applied = control.applied;
    let inverse = 1.0 / scale_before;
    let mut clip = 1.0;
    for record in records {
        if skip.is_some() {
            record.shaping.flags |= Shaping::SKIP;
            continue;
        }
        let own = match guard.clip {
            Clip::Global => norm,
            Clip::Group => group_norms[record.stages.owner as usize],
            Clip::Parameter => measured[record.stages.owner as usize].squares.sqrt(),
        };
        let mut factor = record.shaping.factor * inverse;
        if record.stages.max_norm > 0.0 && own > record.stages.max_norm {
            let smaller = record.stages.max_norm / own;
            factor *= smaller;
            if guard.clip == Clip::Global {
                clip = smaller;
            }
        }
        record.shaping.factor = factor;
    }

    if skip.is_some() {
        control.bad = control.bad.wrapping_add(1);
        control.skipped = control.skipped.wrapping_add(1);
    } else {
        control.bad = 0;
        control.applied = control.applied.wrapping_add(1);
    }
    if let Some(scaler) = guard.scaler {
        if skip.is_some() {
            control.scale /= scaler.factor;
            if control.scale < scaler.floor {
                control.scale = scaler.floor;
            }
            // With a factor below 1 it has grown.
            if control.scale > scaler.cap {
                control.scale = scaler.cap;
            }
            control.last = control.current;
        } else if control.current.wrapping_sub(control.last).is_multiple_of(scaler.window) {
            let grown = control.scale * scaler.factor;
            if grown <= scaler.cap {
                control.scale = grown;
            }
            if control.scale < scaler.floor {
                control.scale = scaler.floor;
            }
        }
    }
    control.current = control.current.wrapping_add(1);
    let (scale, bad) = (control.scale, control.bad);
    Verdict { skip, first_bad, norm, clip, scale_before, scale, bad, applied, group_norms: Arc::clone(shared_norms) }
}

/// The exponent bits of an `f32`: all set in what is not finite.
pub const INFINITE: u32 = 0x7f80_0000;

/// A loss scale that stays as it is (MindSpore `FixedLossScaleManager`).
///
/// The loss, and so every gradient, is multiplied by it; the optimizer divides it out again. With `drop_overflow_update` a step
/// whose gradients are not finite is skipped; without, nothing is checked.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct FixedLossScale {
    /// The scale, finite and ≥ 1. Default 128.
    pub loss_scale: f64,
    /// Whether a step whose gradients are not finite is skipped. Default `true`.
    pub drop_overflow_update: bool,
}

impl Default for FixedLossScale {
    fn default() -> Self {
        Self { loss_scale: 128.0, drop_overflow_update: true }
    }
}

/// A loss scale that falls when gradients overflow and grows while they do not (MindSpore `DynamicLossScaleManager`).
///
/// ```text
/// not finite:                           skip; scale ← max(scale / factor, floor), last ← current
/// else, (current − last) mod window = 0: scale ← scale · factor, unless that is beyond the cap
/// current ← current + 1                  current = 1, last = 0 at the start
/// ```
///
/// So it grows after exactly `scale_window` finite steps since the last overflow, or the start, and then every `scale_window`.
/// On overflow nothing advances: no weight, state, step count or schedule.
///
/// # Differences
/// - **MindSpore** has no cap, and counts 1000 skips in a row before it raises; so does this.
/// - **PyTorch** `GradScaler`: starts at 2¹⁶, has no floor and no limit of skips.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct DynamicLossScale {
    /// The first scale, finite and ≥ 1. Default 2²⁴. Trap: far too large for most models, so that the first steps are skipped until
    /// it fits.
    pub init_loss_scale: f64,
    /// The factor of growth, finite and > 0. Default 2. Trap: below 1 the scale falls while steps are finite and grows when they are
    /// not, as in MindSpore; here within the bounds.
    pub scale_factor: f64,
    /// The finite steps after which it grows, ≥ 1. Default 2000.
    pub scale_window: u32,
    /// The scale never falls below; finite and > 0. Default 1.
    pub floor: f64,
    /// The scale never grows beyond; ≥ `init_loss_scale`. Default 2¹²⁶, the largest power of two that WGSL promises to
    /// divide by.
    pub cap: f64,
    /// Skipping more steps than this in a row is [`Error::TooManySkips`](crate::Error::TooManySkips). Default 1000.
    pub max_skips: u32,
}

impl Default for DynamicLossScale {
    fn default() -> Self {
        Self {
            init_loss_scale: 16_777_216.0,
            scale_factor: 2.0,
            scale_window: 2000,
            floor: 1.0,
            cap: 2_f64.powi(126),
            max_skips: 1000,
        }
    }
}

/// How losses are scaled. Made by `.into()` from a number, a [`FixedLossScale`] or a [`DynamicLossScale`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum LossScale {
    /// By this factor, > 0, without a check.
    Plain(f64),
    /// See [`FixedLossScale`].
    Fixed(FixedLossScale),
    /// See [`DynamicLossScale`].
    Dynamic(DynamicLossScale),
}

impl From<f64> for LossScale {
    fn from(loss_scale: f64) -> Self {
        Self::Plain(loss_scale)
    }
}

impl From<FixedLossScale> for LossScale {
    fn from(loss_scale: FixedLossScale) -> Self {
        Self::Fixed(loss_scale)
    }
}

impl From<DynamicLossScale> for LossScale {
    fn from(loss_scale: DynamicLossScale) -> Self {
        Self::Dynamic(loss_scale)
    }
}

/// What [`divides`].
pub(crate) const DIVISOR: &str = "finite and > 0, and so that an f32 can divide by it";

/// Whether gradients can be divided by it: the factor `1 / x` is an `f32`, and not 0.
pub(crate) fn divides(x: f64) -> bool {
    let factor = crate::rules::rounded(1.0 / x);
    x.is_finite() && x > 0.0 && factor.is_finite() && factor > 0.0
}

impl LossScale {
    /// Checks the numbers.
    pub(crate) fn validate(&self) -> Result<()> {
        let positive = |x: f64| x.is_finite() && x > 0.0 && crate::rules::rounded(1.0 / x).is_finite();
        match self {
            Self::Plain(scale) => check("loss_scale", DIVISOR, *scale, divides),
            Self::Fixed(fixed) => {
                check("FixedLossScale.loss_scale", "finite and ≥ 1", fixed.loss_scale, |x| x >= 1.0 && divides(x))
            }
            Self::Dynamic(dynamic) => {
                let DynamicLossScale { init_loss_scale, scale_factor, scale_window, floor, cap, .. } = *dynamic;
                let name = |field: &str| format!("DynamicLossScale.{field}");
                check(&name("init_loss_scale"), "finite and ≥ 1", init_loss_scale, |x| x.is_finite() && x >= 1.0)?;
                check(&name("scale_factor"), "finite and > 0", scale_factor, positive)?;
                at_least_one(scale_window.into(), &name("scale_window"))?;
                check(&name("floor"), "finite and > 0, and at most init_loss_scale", floor, |x| {
                    positive(x) && floor <= init_loss_scale
                })?;
                check(&name("cap"), "finite and at least init_loss_scale", cap, |x| {
                    x.is_finite() && cap >= init_loss_scale
                })
            }
        }
    }

    /// The factor that is known beforehand.
    pub(crate) fn plain(&self) -> f64 {
        match self {
            Self::Plain(scale) => *scale,
            Self::Fixed(fixed) => fixed.loss_scale,
            Self::Dynamic(_) => 1.0,
        }
    }

    /// Whether steps whose gradients are not finite are skipped.
    pub(crate) fn drops(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Fixed(fixed) => fixed.drop_overflow_update,
            Self::Dynamic(_) => true,
        }
    }

    /// The most steps that may be skipped in a row.
    pub(crate) fn max_skips(&self) -> u32 {
        match self {
            Self::Plain(_) | Self::Fixed(_) => u32::MAX,
            Self::Dynamic(dynamic) => dynamic.max_skips,
        }
    }
}
