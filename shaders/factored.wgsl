// The walks of a rule whose second moments are kept by row and by column, one tensor a dispatch. It stands after the prelude,
// the rule, the record and the format of the second moments. All sums have the order that optim-cpu/src/factored.rs and
// reduce.rs write down.

// One tensor: a stack of matrices, or a vector, which has no columns.
struct Dims {
    rows: u32,
    columns: u32,
    stack: u32,
    len: u32,
    slices: u32,
    record: u32,
    // 1 if the rule has a first moment
    momentum: u32,
    // 1 if the gradient has been shaped
    shaped: u32,
}

@group(0) @binding(0) var<storage, read_write> records: array<Record>;
@group(0) @binding(1) var<uniform> dims: Dims;
@group(0) @binding(2) var<storage, read_write> params: array<f32>;
@group(0) @binding(3) var<storage, read> grads: array<f32>;
// R, PER_WORD of them in a word; unused for a vector.
@group(0) @binding(4) var<storage, read_write> row_moments: array<u32>;
// C, or V of a vector.
@group(0) @binding(5) var<storage, read_write> column_moments: array<u32>;
// M.
@group(0) @binding(6) var<storage, read_write> first_moments: array<f32>;
// √(mean of R) / √R.
@group(0) @binding(7) var<storage, read_write> row_factors: array<f32>;
// The sums of p² and u² over each slice.
@group(0) @binding(8) var<storage, read_write> parts: array<vec2<f32>>;

const LANES = 256u;
const BLOCK_ROWS = 64u;

var<workgroup> lanes: array<f32, LANES>;

// The sum over the lanes: those 128 apart first, then 64, …, 1.
fn tree(lane: u32, value: f32) -> f32 {
    lanes[lane] = value;
    workgroupBarrier();
    for (var stride = LANES / 2u; stride > 0u; stride = stride / 2u) {
        if (lane < stride) {
            lanes[lane] = lanes[lane] + lanes[lane + stride];
        }
        workgroupBarrier();
    }
    let sum = lanes[0];
    workgroupBarrier();
    return sum;
}

// Whether nothing is updated.
fn skipped() -> bool {
    return (records[dims.record].shaping.flags & SKIP) != 0u;
}

fn shaped(i: u32) -> f32 {
    if (dims.shaped != 0u) {
        return grads[i];
    }
    return shape(records[dims.record].shaping, grads[i], params[i]);
}

fn row_moment(row: u32) -> f32 {
    return decoded(row_moments[row / PER_WORD], row % PER_WORD);
}

fn column_moment(column: u32) -> f32 {
    return decoded(column_moments[column / PER_WORD], column % PER_WORD);
}

// u, before the rate.
fn raw(i: u32) -> f32 {
    if (dims.columns == 0u) {
        return direction_vector(shaped(i), column_moment(i));
    }
    let row = i / dims.columns;
    let column = row / dims.rows * dims.columns + i % dims.columns;
    return direction(shaped(i), row_factors[row], column_factor(column_moment(column)));
}

// R: a workgroup for each word of rows.
@compute @workgroup_size(256)
fn rows(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = workgroup_index(id) * PER_WORD;
    let rows = dims.rows * dims.stack;
    if (first >= rows) {
        return;
    }
    let step = records[dims.record].step;
    var word = 0u;
    for (var row = first; row < min(first + PER_WORD, rows); row = row + 1u) {
        var sum = 0.0;
        for (var column = lane; column < dims.columns; column = column + LANES) {
            sum = sum + square(step, shaped(row * dims.columns + column));
        }
        let total = tree(lane, sum);
        if (lane == 0u) {
            var r = row_moment(row);
            moment(step, &r, total * (1.0 / f32(dims.columns)));
            word = word | encoded(r, row % PER_WORD);
        }
    }
    if (lane == 0u && !skipped()) {
        row_moments[first / PER_WORD] = word;
    }
}

// C: a lane for each word of columns.
@compute @workgroup_size(256)
fn columns(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_column = (workgroup_index(id) * LANES + lane) * PER_WORD;
    let columns = dims.columns * dims.stack;
    if (first_column >= columns || skipped()) {
        return;
    }
    let step = records[dims.record].step;
    var word = 0u;
    for (var column = first_column; column < min(first_column + PER_WORD, columns); column = column + 1u) {
        let first = column / dims.columns * dims.rows * dims.columns + column % dims.columns;
        var total = 0.0;
        for (var block = 0u; block < dims.rows; block = block + BLOCK_ROWS) {
            var sum = 0.0;
            for (var row = block; row < min(block + BLOCK_ROWS, dims.rows); row = row + 1u) {
                sum = sum + square(step, shaped(first + row * dims.columns));
            }
            total = total + sum;
        }
        var c = column_moment(column);
        moment(step, &c, total * (1.0 / f32(dims.rows)));
        word = word | encoded(c, column % PER_WORD);
    }
    column_moments[first_column / PER_WORD] = word;
}

// √(mean of R) / √R: a workgroup for each matrix of the stack.
@compute @workgroup_size(256)
fn means(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let matrix = workgroup_index(id);
    if (matrix >= dims.stack) {
        return;
    }
    let first = matrix * dims.rows;
    var sum = 0.0;
    for (var row = lane; row < dims.rows; row = row + LANES) {
        sum = sum + row_moment(first + row);
    }
    let root_mean = sqrt(tree(lane, sum) * (1.0 / f32(dims.rows)));
    for (var row = lane; row < dims.rows; row = row + LANES) {
        row_factors[first + row] = row_factor(root_mean, row_moment(first + row));
    }
}

// V: a lane for each word of a vector.
@compute @workgroup_size(256)
fn vectors(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (workgroup_index(id) * LANES + lane) * PER_WORD;
    if (first >= dims.len || skipped()) {
        return;
    }
    let step = records[dims.record].step;
    var word = 0u;
    for (var i = first; i < min(first + PER_WORD, dims.len); i = i + 1u) {
        var v = column_moment(i);
        moment(step, &v, square(step, shaped(i)));
        word = word | encoded(v, i % PER_WORD);
    }
    column_moments[first / PER_WORD] = word;
}

// The sums over a slice of 16 rows of 1,024 elements: a workgroup for each.
@compute @workgroup_size(256)
fn norms(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let slice = workgroup_index(id);
    if (slice >= dims.slices) {
        return;
    }
    var p_squares = vec4<f32>();
    var u_squares = vec4<f32>();
    for (var row = 0u; row < 16u; row = row + 1u) {
        for (var k = 0u; k < 4u; k = k + 1u) {
            let i = (slice * 16u + row) * 1024u + lane * 4u + k;
            if (i < dims.len) {
                let p = params[i];
                let u = raw(i);
                p_squares[k] = p_squares[k] + p * p;
                u_squares[k] = u_squares[k] + u * u;
            }
        }
    }
    let p_sum = tree(lane, (p_squares.x + p_squares.y) + (p_squares.z + p_squares.w));
    let u_sum = tree(lane, (u_squares.x + u_squares.y) + (u_squares.z + u_squares.w));
    if (lane == 0u) {
        parts[slice] = vec2<f32>(p_sum, u_sum);
    }
}

// Completes the record: one workgroup.
@compute @workgroup_size(256)
fn totals(@builtin(local_invocation_index) lane: u32) {
    var sums = vec2<f32>();
    for (var slice = lane; slice < dims.slices; slice = slice + LANES) {
        sums = sums + parts[slice];
    }
    let p_sum = tree(lane, sums.x);
    let u_sum = tree(lane, sums.y);
    if (lane == 0u) {
        var step = records[dims.record].step;
        finish(&step, vec2<f32>(p_sum, u_sum), f32(dims.len));
        records[dims.record].step = step;
    }
}

// The update: a lane for each element.
@compute @workgroup_size(256)
fn updates(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = workgroup_index(id) * LANES + lane;
    if (i >= dims.len || skipped()) {
        return;
    }
    let step = records[dims.record].step;
    let u = raw(i);
    var p = params[i];
    if (dims.momentum != 0u) {
        var m = first_moments[i];
        update(step, &p, u, &m);
        first_moments[i] = m;
    } else {
        update_plain(step, &p, u);
    }
    params[i] = p;
}
