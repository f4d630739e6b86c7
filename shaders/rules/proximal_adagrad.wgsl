// Proximal Adagrad. The equations: optim-core/src/rules/proximal_adagrad.rs. The twin:
// optim-cpu/src/rules/proximal_adagrad.rs.

struct Step {
    lr: f32,
    l1: f32,
    l2: f32,
    pad0: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, accum: ptr<function, f32>) {
    // (1) accum ← accum + g²
    *accum = *accum + g * g;
    // (2) η = γ / √accum
    let eta = s.lr / sqrt(*accum);
    // (3) q = p − η · g
    let q = *p - eta * g;
    // (4) p ← sign(q) · max(|q| − η · l1, 0) / (1 + η · l2);  where accum = 0: no change
    var shrunk = abs(q) - eta * s.l1;
    if (shrunk < 0.0) {
        shrunk = 0.0;
    }
    if (q < 0.0) {
        shrunk = -shrunk;
    }
    if (s.l2 > 0.0) {
        shrunk = shrunk / (1.0 + eta * s.l2);
    }
    if (*accum == 0.0) {
        shrunk = *p;
    }
    *p = shrunk;
}
