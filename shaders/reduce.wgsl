// Sums over a parameter, in one fixed order. The twin: optim-cpu/src/reduce.rs.
//
// A slice is ROWS rows of ROW elements, counted from the tensor's start. A lane holds the running sums of four columns; then
// come a tree over the lanes for the slice, the slices l, l + LANES, … for lane l, and the same tree for the parameter.

// Lanes of a workgroup that sums.
const LANES = 256u;

// The elements of a row.
const ROW = 1024u;

// The rows of a slice.
const ROWS = 16u;

// What one workgroup sums.
struct Slice {
    // The first element, within each of the bindings.
    param: u32,
    grad: u32,
    state: u32,
    // The number of elements.
    count: u32,
    // The index of the record to compute with.
    record: u32,
    // Where its sums go.
    part: u32,
    // Its rows, as in a tile.
    row: u32,
    left: u32,
    width: u32,
}

// The slices of one parameter.
struct Span {
    // The first of its parts.
    first: u32,
    // The number of its parts.
    count: u32,
    // The index of the record to complete.
    record: u32,
    pad: u32,
}

var<workgroup> lanes: array<vec2<f32>, LANES>;

// The sum of what the lanes hold, in lane 0. All lanes of the workgroup must come here.
fn tree(lane: u32, held: vec2<f32>) -> vec2<f32> {
    lanes[lane] = held;
    workgroupBarrier();
    for (var stride = LANES / 2u; stride > 0u; stride = stride / 2u) {
        if (lane < stride) {
            lanes[lane] = lanes[lane] + lanes[lane + stride];
        }
        workgroupBarrier();
    }
    return lanes[lane];
}
