// LARS. The equations: optim-core/src/rules/lars.rs. The twin: optim-cpu/src/rules/lars.rs. It needs the prelude.

// In place of a rate: no clipping.
const UNCLIPPED = 3.40282347e38;

// The squares that are summed, `g` unscaled.
fn terms(p: f32, g: f32) -> vec2<f32> {
    return vec2(p * p, g * g);
}

// Completes the shaping from the sums.
fn finish(s: Trust, shaping: ptr<function, Shaping>, sums: vec2<f32>) {
    let p_norm = sqrt(sums[0]);
    let g_norm = sqrt(sums[1]);
    // (1) r ← η ‖p‖ / (δ ‖p‖ + ‖g‖ + ε); 0 where that is 0
    let scale = s.weight_decay * p_norm + g_norm + s.epsilon;
    var r = s.coefficient * p_norm / scale;
    if (scale == 0.0) {
        r = 0.0;
    }
    // (2) r ← min(max(r / γ, 0), 1); 1 where γ = 0 and r > 0
    if (s.clip < UNCLIPPED && r > 0.0) {
        if (s.clip < 0.0) {
            r = 0.0;
        } else if (r >= s.clip) {
            r = 1.0;
        } else {
            r = r / s.clip;
        }
    }
    // (3) g ← r (g + δ p); what bounds g, times r, bounds r g
    (*shaping).factor = r * (*shaping).factor;
    (*shaping).weight_decay = r * s.weight_decay;
    if ((*shaping).limit > 0.0) {
        (*shaping).limit = r * (*shaping).limit;
        // 0 would be no bound
        if ((*shaping).limit < 1.17549435e-38) {
            (*shaping).limit = 1.17549435e-38;
        }
    }
}
