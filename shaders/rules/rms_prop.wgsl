// RMSProp. The equations: optim-core/src/rules/rms_prop.rs. The twin: optim-cpu/src/rules/rms_prop.rs.

struct Step {
    decay: f32,
    one_minus_decay: f32,
    momentum: f32,
    eps_inside: f32,
    eps_outside: f32,
    lr_inside: f32,
    lr_outside: f32,
    pad0: u32,
}

// d of a plain rule
fn root(s: Step, g: f32, ms: ptr<function, f32>) -> f32 {
    // (1) ms ← ρ · ms + (1 − ρ) · g²
    *ms = s.decay * *ms + s.one_minus_decay * g * g;
    // (3) d = √(ms + ε);  eps_outside: √ms + ε
    return sqrt(*ms + s.eps_inside) + s.eps_outside;
}

// d of a centered rule
fn root_centered(s: Step, g: f32, ms: ptr<function, f32>, mg: ptr<function, f32>) -> f32 {
    // (1) ms ← ρ · ms + (1 − ρ) · g²
    *ms = s.decay * *ms + s.one_minus_decay * g * g;
    // (2) mg ← ρ · mg + (1 − ρ) · g
    *mg = s.decay * *mg + s.one_minus_decay * g;
    // (3) d = √(max(ms − mg², 0) + ε);  eps_outside: √max(ms − mg², 0) + ε
    var variance = *ms - *mg * *mg;
    if (variance < 0.0) {
        variance = 0.0;
    }
    return sqrt(variance + s.eps_inside) + s.eps_outside;
}

fn update(s: Step, p: ptr<function, f32>, g: f32, ms: ptr<function, f32>, moment: ptr<function, f32>) {
    let d = root(s, g, ms);
    // (4) moment ← μ · moment + γ · g / d;  lr_outside: without γ
    *moment = s.momentum * *moment + s.lr_inside * g / d;
    // (5) p ← p − moment;  lr_outside: p − γ · moment
    *p = *p - s.lr_outside * *moment;
}

fn update_centered(
    s: Step,
    p: ptr<function, f32>,
    g: f32,
    ms: ptr<function, f32>,
    moment: ptr<function, f32>,
    mg: ptr<function, f32>,
) {
    let d = root_centered(s, g, ms, mg);
    // (4) moment ← μ · moment + γ · g / d;  lr_outside: without γ
    *moment = s.momentum * *moment + s.lr_inside * g / d;
    // (5) p ← p − moment;  lr_outside: p − γ · moment
    *p = *p - s.lr_outside * *moment;
}

fn update_plain(s: Step, p: ptr<function, f32>, g: f32, ms: ptr<function, f32>) {
    let d = root(s, g, ms);
    // (4), (5) p ← p − γ · g / d
    *p = *p - s.lr_outside * (s.lr_inside * g / d);
}

fn update_plain_centered(s: Step, p: ptr<function, f32>, g: f32, ms: ptr<function, f32>, mg: ptr<function, f32>) {
    let d = root_centered(s, g, ms, mg);
    // (4), (5) p ← p − γ · g / d
    *p = *p - s.lr_outside * (s.lr_inside * g / d);
}
