// Accumulates gradients: a rule whose parameter is what has been accumulated.

struct Step {
    weight: f32,
    // 1 to start anew
    fresh: u32,
    pad0: u32,
    pad1: u32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32) {
    let added = s.weight * g;
    if (s.fresh != 0u) {
        *p = added;
    } else {
        *p = *p + added;
    }
}
