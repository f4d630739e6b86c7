// LAMB. The equations: optim-core/src/rules/lamb.rs. The twin: optim-cpu/src/rules/lamb.rs.

struct Step {
    lr: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    unbias1: f32,
    unbias2: f32,
    eps: f32,
    weight_decay: f32,
    ratio: f32,
    pad0: u32,
    pad1: u32,
}

fn moments(s: Step, g: f32, m: ptr<function, f32>, v: ptr<function, f32>) {
    // (1) m ← β₁ m + (1 − β₁) g
    *m = s.beta1 * *m + s.one_minus_beta1 * g;
    // (2) v ← β₂ v + (1 − β₂) g²
    *v = s.beta2 * *v + s.one_minus_beta2 * g * g;
}

fn terms(s: Step, p: f32, g: f32, m_old: f32, v_old: f32) -> vec2<f32> {
    var m = m_old;
    var v = v_old;
    moments(s, g, &m, &v);
    // (3) m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
    let m_hat = m * s.unbias1;
    let v_hat = v * s.unbias2;
    // (4) n = m̂ / √(v̂ + ε) + λ p
    let n = m_hat / sqrt(v_hat + s.eps) + s.weight_decay * p;
    return vec2(p * p, n * n);
}

fn finish(s: ptr<function, Step>, sums: vec2<f32>) {
    // (5) r = min(‖p‖ / ‖n‖, 10), or 1 if a norm is 0
    let p_norm = sqrt(sums[0]);
    let n_norm = sqrt(sums[1]);
    (*s).ratio = 1.0;
    if (p_norm > 0.0 && n_norm > 0.0) {
        (*s).ratio = p_norm / n_norm;
    }
    if ((*s).ratio > 10.0) {
        (*s).ratio = 10.0;
    }
}

fn apply(s: Step, p: ptr<function, f32>, m: f32, v: f32) {
    // (3) m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
    let m_hat = m * s.unbias1;
    let v_hat = v * s.unbias2;
    // (6) u = m̂ / (√v̂ + ε) + λ p
    let u = m_hat / (sqrt(v_hat) + s.eps) + s.weight_decay * *p;
    // (7) p ← p − γ r u
    *p = *p - s.lr * s.ratio * u;
}

fn update(s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>, v: ptr<function, f32>) {
    moments(s, g, m, v);
    apply(s, p, *m, *v);
}
