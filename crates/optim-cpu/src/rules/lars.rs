//! LARS. The equations: [`optim_core::rules::Lars`]. The twin: `shaders/rules/lars.wgsl`.

use multiversion::multiversion;
use optim_core::backend::{Shaping, Trust};

use crate::reduce::{Columns, Sums};

/// How many [`terms`] are not 0.
pub(crate) const TERMS: usize = 2;

/// The squares that are summed, `g` unscaled.
#[inline(always)]
fn terms(p: f32, g: f32) -> Sums {
    [p * p, g * g]
}

/// Completes the shaping from the sums.
pub(crate) fn finish(s: &Trust, shaping: &mut Shaping, sums: Sums) {
    let p_norm = sums[0].sqrt();
    let g_norm = sums[1].sqrt();
    // (1) r ← η ‖p‖ / (δ ‖p‖ + ‖g‖ + ε); 0 where that is 0
    let scale = s.weight_decay * p_norm + g_norm + s.epsilon;
    let mut r = s.coefficient * p_norm / scale;
    if scale == 0.0 {
        r = 0.0;
    }
    // (2) r ← min(max(r / γ, 0), 1); 1 where γ = 0 and r > 0
    if s.clip < Trust::UNCLIPPED && r > 0.0 {
        if s.clip < 0.0 {
            r = 0.0;
        } else if r >= s.clip {
            r = 1.0;
        } else {
            r = r / s.clip;
        }
    }
    // (3) g ← r (g + δ p); what bounds g, times r, bounds r g
    shaping.factor = r * shaping.factor;
    shaping.weight_decay = r * s.weight_decay;
    if shaping.limit > 0.0 {
        shaping.limit = r * shaping.limit;
        // 0 would be no bound
        if shaping.limit < f32::MIN_POSITIVE {
            shaping.limit = f32::MIN_POSITIVE;
        }
    }
}

/// Adds the terms of one row to the running sums.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub(crate) fn measure(p: &[f32], g: &[f32], sums: &mut Columns) {
    let [first, second] = sums;
    for (((p, g), first), second) in p.iter().zip(g).zip(first).zip(second) {
        let terms = terms(*p, *g);
        *first += terms[0];
        *second += terms[1];
    }
}
