// What every kernel shares. Nothing here knows a rule.

// Lanes of a workgroup.
const WORKGROUP = 64u;

// Workgroups in x. A dimension holds at most 65535, so the grid is folded: as many rows of this width in y as it takes.
const GRID_WIDTH = 32768u;

// The number of a workgroup, counted through the folded grid.
fn workgroup_index(id: vec3<u32>) -> u32 {
    return id.x + id.y * GRID_WIDTH;
}

// What one workgroup works on: a run of one tensor's elements. Its lanes have four each, the first of which is a multiple of four
// within its piece of the tensor.
struct Tile {
    // The first element, within each of the bindings; of the gradient also NO_GRAD.
    param: u32,
    grad: u32,
    state: u32,
    // The same, within its tensor; the low 32 bits.
    element: u32,
    // Of the elements from there on those before `begin` and from `count` on are left alone.
    count: u32,
    begin: u32,
    // The index of the record to compute with.
    record: u32,
    // The key of the tensor's random bits.
    key: u32,
    // The row of the first element among those of its kind, the elements from there to the row's end, and those of a row.
    row: u32,
    left: u32,
    width: u32,
}

// There is no gradient here: it is 0, and is not shaped.
const NO_GRAD = 0x80000000u;

// Where the arrays begin in a page of state, in words.
struct Page {
    slots: vec4<u32>,
    scales: vec4<u32>,
    master: u32,
    ema: u32,
    pad0: u32,
    pad1: u32,
}

// Where the four elements of a lane lie, and what their random bits depend on.
struct Place {
    param: u32,
    grad: u32,
    state: u32,
    element: u32,
    key: u32,
    step: u32,
}

// Which of the four elements of a lane, from i on, lie within these bounds.
fn within(i: u32, begin: u32, end: u32) -> vec4<bool> {
    let four = vec4<u32>(i, i + 1u, i + 2u, i + 3u);
    return (four >= vec4<u32>(begin)) & (four < vec4<u32>(end));
}

// What happens to the gradient before the rule sees it.
struct Shaping {
    factor: f32,
    weight_decay: f32,
    limit: f32,
    flags: u32,
}

// The mean of the row is subtracted.
const CENTRALIZE = 1u;

// Nothing is updated.
const SKIP = 2u;

// What a layer-wise trust ratio is made of; a negative coefficient for none.
struct Trust {
    coefficient: f32,
    epsilon: f32,
    weight_decay: f32,
    clip: f32,
}

// The numbers of the stages around a rule.
struct Stages {
    step: u32,
    ema: f32,
    max_norm: f32,
    owner: u32,
    units: f32,
    units_epsilon: f32,
    pad0: u32,
    pad1: u32,
}

// g ← min(max(factor · g, −limit), limit), each term only where it does something. A trust ratio may have made factor and decay NaN,
// for which `!=` is false where naga writes SPIR-V.
fn limited(s: Shaping, g: f32) -> f32 {
    var shaped = g;
    if (!(s.factor == 1.0)) {
        shaped = s.factor * shaped;
    }
    if (s.limit > 0.0) {
        // By the bits: comparisons may be made a minimum and a maximum, which lose NaN.
        let bits = bitcast<u32>(shaped);
        let magnitude = bits & 0x7fffffffu;
        if (magnitude > bitcast<u32>(s.limit) && magnitude <= 0x7f800000u) {
            shaped = bitcast<f32>((bits & 0x80000000u) | bitcast<u32>(s.limit));
        }
    }
    return shaped;
}

// The same, and g ← g + weight_decay · p.
fn shape(s: Shaping, g: f32, p: f32) -> f32 {
    var shaped = limited(s, g);
    if (!(s.weight_decay == 0.0)) {
        shaped = shaped + s.weight_decay * p;
    }
    return shaped;
}

// The same with what is done row by row: g ← a · g before the decay, g ← g − mean after it. `row`: a and the mean.
fn shape_in_row(s: Shaping, units: f32, row: vec2<f32>, g: f32, p: f32) -> f32 {
    var shaped = limited(s, g);
    if (units > 0.0) {
        shaped = row.x * shaped;
    }
    if (!(s.weight_decay == 0.0)) {
        shaped = shaped + s.weight_decay * p;
    }
    if ((s.flags & CENTRALIZE) != 0u) {
        shaped = shaped - row.y;
    }
    return shaped;
}

// The row of the i-th element of a run whose first lies in `row`, `left` elements before its end.
fn row_at(i: u32, row: u32, left: u32, width: u32) -> u32 {
    if (i < left) {
        return row;
    }
    return row + 1u + (i - left) / width;
}
