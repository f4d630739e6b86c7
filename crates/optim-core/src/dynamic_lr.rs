//! Lists of rates: MindSpore's `dynamic_lr` functions, with its argument order and its checks.
//!
//! A list has one rate for every update of the training, and is handed over as it is: a [`Rate`](crate::Rate) is made of a
//! `Vec<f64>`. Trap: unlike the schedules of the same names, all but [`piecewise_constant_lr`] count whole *epochs*, so
//! that every update of an epoch has one rate.
//!
//! In the equations `i` is the index of the update, from 0, `e = ⌊i / step_per_epoch⌋` its epoch, `D` is `decay_epoch`,
//! and `r` is `decay_rate`.
//!
//! ```
//! use optim_core::Rate;
//! use optim_core::dynamic_lr::polynomial_decay_lr;
//! # fn main() -> optim_core::Result<()> {
//! // Six updates, two an epoch, from 0.1 to 0.01 within two epochs.
//! let list = polynomial_decay_lr(0.1, 0.01, 6, 2, 2, 0.5, false)?;
//! let rounded: Vec<_> = list.iter().map(|lr| (lr * 1e4).round() / 1e4).collect();
//! assert_eq!(rounded, [0.1, 0.1, 0.0736, 0.0736, 0.01, 0.01]);
//! let rate = Rate::from(list);
//! # let _ = rate;
//! # Ok(())
//! # }
//! ```

use std::f64::consts::PI;

use crate::error::{at_least_one, check};
use crate::{Error, Result};

/// `learning_rates[k]` until `milestone[k]` updates have been made. The list ends there, with `milestone`'s last entry as
/// its length.
///
/// Milestones are ≥ 1 and never fall; of two equal ones the second has no update. There are as many rates as milestones,
/// all finite; a negative rate is accepted. Two empty slices make an empty list.
///
/// ```
/// use optim_core::dynamic_lr::piecewise_constant_lr;
/// # fn main() -> optim_core::Result<()> {
/// // The example of MindSpore's guide.
/// let list = piecewise_constant_lr(&[1, 3, 10], &[0.1, 0.05, 0.01])?;
/// assert_eq!(list, [0.1, 0.05, 0.05, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01]);
/// # Ok(())
/// # }
/// ```
pub fn piecewise_constant_lr(milestone: &[u64], learning_rates: &[f64]) -> Result<Vec<f64>> {
    const MILESTONE: &str = "piecewise_constant_lr: milestone";
    const RATES: &str = "piecewise_constant_lr: learning_rates";
    if milestone.len() != learning_rates.len() {
        let got = format!("{} rates for {} milestones", learning_rates.len(), milestone.len());
        return Err(Error::HyperParameter { name: RATES.into(), expected: "as many as there are milestones", got });
    }
    milestone.iter().try_for_each(|&end| at_least_one(end, MILESTONE))?;
    if let Some(pair) = milestone.windows(2).find(|pair| pair[1] < pair[0]) {
        let got = format!("{} after {}", pair[1], pair[0]);
        return Err(Error::HyperParameter { name: MILESTONE.into(), expected: "a list that never falls", got });
    }
    learning_rates.iter().try_for_each(|&lr| check(RATES, "a list of finite numbers", lr, f64::is_finite))?;
    let mut list = reserved(MILESTONE, milestone.last().copied().unwrap_or(0))?;
    for (&end, &lr) in milestone.iter().zip(learning_rates) {
        // The length has been reserved, so it fits.
        list.extend((list.len() as u64..end).map(|_| lr));
    }
    Ok(list)
}

/// `learning_rate · r^(e / D)`; with `is_stair` the exponent is `⌊e / D⌋`.
///
/// `learning_rate` and `decay_rate` are finite and > 0 (above 1 the list grows), the three counts ≥ 1.
///
/// ```
/// use optim_core::dynamic_lr::exponential_decay_lr;
/// # fn main() -> optim_core::Result<()> {
/// assert_eq!(exponential_decay_lr(0.1, 0.25, 5, 1, 2, false)?, [0.1, 0.05, 0.025, 0.0125, 0.00625]);
/// assert_eq!(exponential_decay_lr(0.1, 0.25, 5, 1, 2, true)?, [0.1, 0.1, 0.025, 0.025, 0.00625]);
/// # Ok(())
/// # }
/// ```
pub fn exponential_decay_lr(
    learning_rate: f64,
    decay_rate: f64,
    total_step: u64,
    step_per_epoch: u64,
    decay_epoch: u64,
    is_stair: bool,
) -> Result<Vec<f64>> {
    const NAME: &str = "exponential_decay_lr";
    positive(NAME, "learning_rate", learning_rate)?;
    positive(NAME, "decay_rate", decay_rate)?;
    let decays = |e| decays(e, decay_epoch, is_stair);
    list(NAME, [total_step, step_per_epoch], ("decay_epoch", decay_epoch), |e| {
        learning_rate * decay_rate.powf(decays(e))
    })
}

/// `learning_rate · exp(−r · e)`; with `is_stair` it is `learning_rate · exp(−r · D · ⌊e / D⌋)`.
///
/// Trap: without `is_stair`, `decay_epoch` is checked and then has no part in it, as in MindSpore. Arguments are those of
/// [`exponential_decay_lr`].
///
/// ```
/// use optim_core::dynamic_lr::natural_exp_decay_lr;
/// # fn main() -> optim_core::Result<()> {
/// let list = natural_exp_decay_lr(0.1, 0.9, 6, 2, 2, false)?;
/// assert_eq!(list, natural_exp_decay_lr(0.1, 0.9, 6, 2, 50, false)?);
/// assert!((list[2] - 0.0406570).abs() < 1e-7 && list[2] == list[3]);
/// # Ok(())
/// # }
/// ```
pub fn natural_exp_decay_lr(
    learning_rate: f64,
    decay_rate: f64,
    total_step: u64,
    step_per_epoch: u64,
    decay_epoch: u64,
    is_stair: bool,
) -> Result<Vec<f64>> {
    const NAME: &str = "natural_exp_decay_lr";
    positive(NAME, "learning_rate", learning_rate)?;
    positive(NAME, "decay_rate", decay_rate)?;
    list(NAME, [total_step, step_per_epoch], ("decay_epoch", decay_epoch), |e| {
        let e = if is_stair { e / decay_epoch * decay_epoch } else { e };
        learning_rate * (-decay_rate * e as f64).exp()
    })
}

/// `learning_rate / (1 + r · e / D)`; with `is_stair` it is `learning_rate / (1 + r · ⌊e / D⌋)`.
///
/// Arguments are those of [`exponential_decay_lr`].
///
/// ```
/// use optim_core::dynamic_lr::inverse_decay_lr;
/// # fn main() -> optim_core::Result<()> {
/// assert_eq!(inverse_decay_lr(0.5, 2.0, 4, 1, 2, false)?, [0.5, 0.25, 0.5 / 3.0, 0.125]);
/// assert_eq!(inverse_decay_lr(0.5, 2.0, 4, 1, 2, true)?, [0.5, 0.5, 0.5 / 3.0, 0.5 / 3.0]);
/// # Ok(())
/// # }
/// ```
pub fn inverse_decay_lr(
    learning_rate: f64,
    decay_rate: f64,
    total_step: u64,
    step_per_epoch: u64,
    decay_epoch: u64,
    is_stair: bool,
) -> Result<Vec<f64>> {
    const NAME: &str = "inverse_decay_lr";
    positive(NAME, "learning_rate", learning_rate)?;
    positive(NAME, "decay_rate", decay_rate)?;
    let decays = |e| decays(e, decay_epoch, is_stair);
    list(NAME, [total_step, step_per_epoch], ("decay_epoch", decay_epoch), |e| {
        learning_rate / (1.0 + decay_rate * decays(e))
    })
}

/// `min_lr + ½ (max_lr − min_lr) (1 + cos(π · min(e, D) / D))`. It stays at `min_lr` from epoch `D` on.
///
/// `0 ≤ min_lr < max_lr`, both finite; the three counts ≥ 1.
///
/// ```
/// use optim_core::dynamic_lr::cosine_decay_lr;
/// # fn main() -> optim_core::Result<()> {
/// let list = cosine_decay_lr(0.01, 0.1, 8, 2, 2)?;
/// assert!(list.iter().zip([0.1, 0.1, 0.055, 0.055, 0.01, 0.01, 0.01, 0.01]).all(|(a, b)| (a - b).abs() < 1e-15));
/// # Ok(())
/// # }
/// ```
pub fn cosine_decay_lr(
    min_lr: f64,
    max_lr: f64,
    total_step: u64,
    step_per_epoch: u64,
    decay_epoch: u64,
) -> Result<Vec<f64>> {
    const NAME: &str = "cosine_decay_lr";
    not_negative(NAME, "min_lr", min_lr)?;
    check("cosine_decay_lr: max_lr", "finite and > min_lr", max_lr, |x| x.is_finite() && max_lr > min_lr)?;
    list(NAME, [total_step, step_per_epoch], ("decay_epoch", decay_epoch), |e| {
        let progress = e.min(decay_epoch) as f64 / decay_epoch as f64;
        min_lr + 0.5 * (max_lr - min_lr) * (1.0 + (PI * progress).cos())
    })
}

/// `(learning_rate − end_learning_rate) (1 − min(e, D) / D)^power + end_learning_rate`.
///
/// With `update_decay_epoch` the horizon grows instead of ending: `D' = D · max(⌈e / D⌉, 1)` takes the place of `D`, and `e`
/// is not capped: a saw-tooth of decays that are slower each time.
///
/// `learning_rate` and `power` are finite and > 0, `end_learning_rate` finite and ≥ 0 (it may exceed `learning_rate`), the
/// three counts ≥ 1.
///
/// ```
/// use optim_core::dynamic_lr::polynomial_decay_lr;
/// # fn main() -> optim_core::Result<()> {
/// assert_eq!(polynomial_decay_lr(1.0, 0.0, 5, 1, 2, 1.0, false)?, [1.0, 0.5, 0.0, 0.0, 0.0]);
/// assert_eq!(polynomial_decay_lr(1.0, 0.0, 5, 1, 2, 1.0, true)?, [1.0, 0.5, 0.0, 0.25, 0.0]);
/// # Ok(())
/// # }
/// ```
pub fn polynomial_decay_lr(
    learning_rate: f64,
    end_learning_rate: f64,
    total_step: u64,
    step_per_epoch: u64,
    decay_epoch: u64,
    power: f64,
    update_decay_epoch: bool,
) -> Result<Vec<f64>> {
    const NAME: &str = "polynomial_decay_lr";
    positive(NAME, "learning_rate", learning_rate)?;
    not_negative(NAME, "end_learning_rate", end_learning_rate)?;
    positive(NAME, "power", power)?;
    list(NAME, [total_step, step_per_epoch], ("decay_epoch", decay_epoch), |e| {
        let (e, horizon) = if update_decay_epoch {
            (e, decay_epoch.saturating_mul(e.div_ceil(decay_epoch).max(1)))
        } else {
            (e.min(decay_epoch), decay_epoch)
        };
        (learning_rate - end_learning_rate) * (1.0 - e as f64 / horizon as f64).powf(power) + end_learning_rate
    })
}

/// `learning_rate · min(e, W) / W`, where `W` is `warmup_epoch`. Trap: the rate is 0 during the whole first epoch.
///
/// `learning_rate` is finite and ≥ 0, the three counts ≥ 1.
///
/// ```
/// use optim_core::dynamic_lr::warmup_lr;
/// # fn main() -> optim_core::Result<()> {
/// assert_eq!(warmup_lr(0.1, 8, 2, 2)?, [0.0, 0.0, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1]);
/// # Ok(())
/// # }
/// ```
pub fn warmup_lr(learning_rate: f64, total_step: u64, step_per_epoch: u64, warmup_epoch: u64) -> Result<Vec<f64>> {
    const NAME: &str = "warmup_lr";
    not_negative(NAME, "learning_rate", learning_rate)?;
    list(NAME, [total_step, step_per_epoch], ("warmup_epoch", warmup_epoch), |e| {
        learning_rate * e.min(warmup_epoch) as f64 / warmup_epoch as f64
    })
}

/// The rates of all updates: `rate` of each one's epoch. Counts are checked before `rate` is called.
fn list(
    function: &str,
    [total_step, step_per_epoch]: [u64; 2],
    (horizon_name, horizon): (&str, u64),
    rate: impl Fn(u64) -> f64,
) -> Result<Vec<f64>> {
    let length = format!("{function}: total_step");
    at_least_one(total_step, &length)?;
    at_least_one(step_per_epoch, &format!("{function}: step_per_epoch"))?;
    at_least_one(horizon, &format!("{function}: {horizon_name}"))?;
    let mut list = reserved(&length, total_step)?;
    list.extend((0..total_step).map(|i| rate(i / step_per_epoch)));
    Ok(list)
}

/// An empty list with room for `len` rates.
fn reserved(name: &str, len: u64) -> Result<Vec<f64>> {
    let mut list = Vec::new();
    match usize::try_from(len).ok().and_then(|len| list.try_reserve_exact(len).ok()) {
        Some(()) => Ok(list),
        None => Err(Error::HyperParameter {
            name: name.to_owned(),
            expected: "a length that fits into memory",
            got: len.to_string(),
        }),
    }
}

/// `e / D`, or how often it has been whole.
fn decays(epoch: u64, decay_epoch: u64, is_stair: bool) -> f64 {
    if is_stair { (epoch / decay_epoch) as f64 } else { epoch as f64 / decay_epoch as f64 }
}

fn positive(function: &str, argument: &str, value: f64) -> Result<()> {
    check(&format!("{function}: {argument}"), "finite and > 0", value, |x| x.is_finite() && x > 0.0)
}

fn not_negative(function: &str, argument: &str, value: f64) -> Result<()> {
    check(&format!("{function}: {argument}"), "finite and ≥ 0", value, |x| x.is_finite() && x >= 0.0)
}
