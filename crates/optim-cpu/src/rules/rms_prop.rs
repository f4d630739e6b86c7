//! RMSProp. The equations: [`optim_core::rules::RmsProp`]. The twin: `shaders/rules/rms_prop.wgsl`.

use optim_core::rules::rms_prop::Step;

use crate::kernel::elementwise;

// d of a plain rule
#[inline(always)]
fn root(s: &Step, g: f32, ms: &mut f32) -> f32 {
    // (1) ms ← ρ · ms + (1 − ρ) · g²
    *ms = s.decay * *ms + s.one_minus_decay * g * g;
    // (3) d = √(ms + ε);  eps_outside: √ms + ε
    (*ms + s.eps_inside).sqrt() + s.eps_outside
}

// d of a centered rule
#[inline(always)]
fn root_centered(s: &Step, g: f32, ms: &mut f32, mg: &mut f32) -> f32 {
    // (1) ms ← ρ · ms + (1 − ρ) · g²
    *ms = s.decay * *ms + s.one_minus_decay * g * g;
    // (2) mg ← ρ · mg + (1 − ρ) · g
    *mg = s.decay * *mg + s.one_minus_decay * g;
    // (3) d = √(max(ms − mg², 0) + ε);  eps_outside: √max(ms − mg², 0) + ε
    let mut variance = *ms - *mg * *mg;
    if variance < 0.0 {
        variance = 0.0;
    }
    (variance + s.eps_inside).sqrt() + s.eps_outside
}

#[inline(always)]
fn update(s: &Step, p: &mut f32, g: f32, ms: &mut f32, moment: &mut f32) {
    let d = root(s, g, ms);
    // (4) moment ← μ · moment + γ · g / d;  lr_outside: without γ
    *moment = s.momentum * *moment + s.lr_inside * g / d;
    // (5) p ← p − moment;  lr_outside: p − γ · moment
    *p = *p - s.lr_outside * *moment;
}

#[inline(always)]
fn update_centered(s: &Step, p: &mut f32, g: f32, ms: &mut f32, moment: &mut f32, mg: &mut f32) {
    let d = root_centered(s, g, ms, mg);
    // (4) moment ← μ · moment + γ · g / d;  lr_outside: without γ
    *moment = s.momentum * *moment + s.lr_inside * g / d;
    // (5) p ← p − moment;  lr_outside: p − γ · moment
    *p = *p - s.lr_outside * *moment;
}

#[inline(always)]
fn update_plain(s: &Step, p: &mut f32, g: f32, ms: &mut f32) {
    let d = root(s, g, ms);
    // (4), (5) p ← p − γ · g / d
    *p = *p - s.lr_outside * (s.lr_inside * g / d);
}

#[inline(always)]
fn update_plain_centered(s: &Step, p: &mut f32, g: f32, ms: &mut f32, mg: &mut f32) {
    let d = root_centered(s, g, ms, mg);
    // (4), (5) p ← p − γ · g / d
    *p = *p - s.lr_outside * (s.lr_inside * g / d);
}

elementwise!(kernel = update, Step, [ms: Positive, moment: Signed]);
elementwise!(kernel_centered = update_centered, Step, [ms, moment, mg]);
elementwise!(kernel_plain = update_plain, Step, [ms: Positive]);
elementwise!(kernel_plain_centered = update_plain_centered, Step, [ms, mg]);
