// What every kernel shares. Nothing here knows a rule.

// Lanes of a workgroup.
const WORKGROUP = 64u;

// Workgroups in x. A dimension holds at most 65535, so the grid is folded: as many rows of this width in y as it takes.
const GRID_WIDTH = 32768u;

// The number of a workgroup, counted through the folded grid.
fn workgroup_index(id: vec3<u32>) -> u32 {
    return id.x + id.y * GRID_WIDTH;
}

// What one workgroup works on: a run of one tensor's elements.
struct Tile {
    // The first element, within the bindings of this dispatch.
    first: u32,
    // The number of elements, at least 1.
    count: u32,
    // The index of the record to compute with.
    record: u32,
    // The first element, within its tensor; the low 32 bits.
    element: u32,
    // The first element of the gradient, within its binding; or NO_GRAD.
    grad: u32,
}

// There is no gradient here: it is 0, and is not shaped.
const NO_GRAD = 0xffffffffu;

// What happens to the gradient before the rule sees it.
struct Shaping {
    factor: f32,
    weight_decay: f32,
    pad0: f32,
    pad1: f32,
}

// What a layer-wise trust ratio is made of; a negative coefficient for none.
struct Trust {
    coefficient: f32,
    epsilon: f32,
    weight_decay: f32,
    clip: f32,
}

// g ← factor · g + weight_decay · p, each term only where it does something
fn shape(s: Shaping, g: f32, p: f32) -> f32 {
    var shaped = g;
    if (s.factor != 1.0) {
        shaped = s.factor * shaped;
    }
    if (s.weight_decay != 0.0) {
        shaped = shaped + s.weight_decay * p;
    }
    return shaped;
}
