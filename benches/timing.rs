//! Clocks: rounds of several things that take turns, so that whatever else the machine does meets all of them.

use std::time::{Duration, Instant};

/// Timed rounds of a measurement; medians count.
pub(crate) const ROUNDS: usize = 9;

/// The fewest rounds of something slow, and the seconds that more of them may take.
const FEW: usize = 3;
const PATIENCE: f64 = 5.0;

/// The least duration of one round of one thing.
const ROUND: Duration = Duration::from_millis(40);

/// How many rounds there are of what takes so many seconds a round.
pub(crate) fn rounds(seconds: f64) -> usize {
    (FEW..ROUNDS).rev().find(|&rounds| rounds as f64 * seconds < PATIENCE).map_or(FEW, |rounds| rounds + 1)
}

/// How many calls fill a round, and the seconds that they take.
pub(crate) fn enough(mut round: impl FnMut(u32)) -> (u32, f64) {
    round(1);
    let time = seconds(1, &mut round).max(1e-9);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let calls = (ROUND.as_secs_f64() / time).ceil().clamp(1.0, 1e5) as u32;
    (calls, f64::from(calls) * time)
}

/// Seconds of each of so many calls, together a round.
pub(crate) fn seconds(calls: u32, mut round: impl FnMut(u32)) -> f64 {
    let start = Instant::now();
    round(calls);
    start.elapsed().as_secs_f64() / f64::from(calls)
}

/// The median.
pub(crate) fn middle(times: impl IntoIterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = times.into_iter().collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The median of `times[i]` over the mean of what was measured just before it and just after.
pub(crate) fn ratio(times: &[f64], limits: &[f64]) -> f64 {
    middle(times.iter().zip(limits.windows(2)).map(|(time, around)| 2.0 * time / (around[0] + around[1])))
}
