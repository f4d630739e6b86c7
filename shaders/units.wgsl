// What is made of each row of a gradient before its update: the factor of adaptive clipping and the mean. It stands after the
// prelude, the record and the bindings, with the functions that read parameters and gradients. The twin: optim-cpu/src/units.rs.
//
// S = Σ g,  Q = Σ g²,  P₂ = Σ p²,  P = Σ p        g: unscaled and limited
// a = units · max(√P₂, ε) / √Q  where that is less than 1, else 1
// mean = (a · S + weight_decay · P) / width
//
// Lane l adds the columns l, l + LANES, …; then a tree over the lanes.

// Lanes of a workgroup that sums a row.
const LANES = 256u;

// A row, as far as it lies in one piece of its tensor.
struct Stretch {
    // The first element, within each of the bindings.
    param: u32,
    grad: u32,
    state: u32,
    // The number of elements.
    count: u32,
    // The lane that adds the first of them.
    lane: u32,
    // The index of the record to compute with.
    record: u32,
    // Where its numbers go.
    row: u32,
    // The elements of the whole row.
    width: f32,
    // Which of the two carries it goes on from and which it is carried on in, or NO_CARRY.
    resumed: u32,
    carried: u32,
}

const NO_CARRY = 0xffffffffu;

@group(0) @binding(6) var<storage, read_write> units: array<vec2<f32>>;
@group(0) @binding(7) var<storage, read_write> carries: array<vec4<f32>>;

var<workgroup> lanes: array<vec4<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // No lane leaves early: all meet in the tree.
    let index = workgroup_index(id);
    var stretch = Stretch(0u, 0u, 0u, 0u, 0u, 0u, 0u, 1.0, NO_CARRY, 0u);
    if (index < arrayLength(&tiles)) {
        stretch = tiles[index];
    }
    let record = records[stretch.record];
    let clips = record.stages.units > 0.0;
    let decays = (record.shaping.flags & CENTRALIZE) != 0u && !(record.shaping.weight_decay == 0.0);
    let on = vec4<bool>(true, false, false, false);

    // S, Q, P₂, P.
    var sums = vec4<f32>();
    if (stretch.resumed != NO_CARRY) {
        sums = carries[stretch.resumed * LANES + lane];
    }
    for (var i = (lane + LANES - stretch.lane) % LANES; i < stretch.count; i = i + LANES) {
        let at = Place(stretch.param + i, stretch.grad + i, stretch.state + i, 0u, 0u, 0u);
        let g = limited(record.shaping, load_g(at, on).x);
        sums.x = sums.x + g;
        if (clips) {
            sums.y = sums.y + g * g;
        }
        if (clips || decays) {
            let p = load_p(at, on).x;
            sums.z = sums.z + p * p;
            sums.w = sums.w + p;
        }
    }
    let whole = index < arrayLength(&tiles) && stretch.carried == NO_CARRY;
    if (index < arrayLength(&tiles) && !whole) {
        carries[stretch.carried * LANES + lane] = sums;
    }

    lanes[lane] = sums;
    workgroupBarrier();
    for (var stride = LANES / 2u; stride > 0u; stride = stride / 2u) {
        if (lane < stride) {
            lanes[lane] = lanes[lane] + lanes[lane + stride];
        }
        workgroupBarrier();
    }
    if (lane != 0u || !whole) {
        return;
    }
    let total = lanes[0];
    var factor = 1.0;
    if (clips) {
        let g_norm = sqrt(total.y);
        var p_norm = sqrt(total.z);
        if (p_norm < record.stages.units_epsilon) {
            p_norm = record.stages.units_epsilon;
        }
        let most = record.stages.units * p_norm;
        if (g_norm > most) {
            factor = most / g_norm;
        }
    }
    var sum = factor * total.x;
    if (decays) {
        sum = sum + record.shaping.weight_decay * total.w;
    }
    units[stretch.row] = vec2<f32>(factor, sum / stretch.width);
}
