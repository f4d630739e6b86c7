// Row-sparse gradients: the sum of each listed row, in the order of the list. It needs the prelude
// and `value(i: u32) -> f32`, the i-th of `values`.

// The rows that a gradient lists.
struct Rows {
    // The elements of a row.
    width: u32,
    // The number of distinct rows.
    count: u32,
    // For each row where its positions begin, and last where they end; then the positions.
    words: array<u32>,
}

@group(0) @binding(0) var<storage, read> list: Rows;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = workgroup_index(id);
    let across = (list.width + WORKGROUP - 1u) / WORKGROUP;
    let row = index / across;
    let column = index % across * WORKGROUP + lane;
    if (row >= list.count || column >= list.width) {
        return;
    }
    let positions = list.count + 1u;
    let start = list.words[row];
    let end = list.words[row + 1u];
    var sum = value(list.words[positions + start] * list.width + column);
    for (var nth = start + 1u; nth < end; nth = nth + 1u) {
        sum = sum + value(list.words[positions + nth] * list.width + column);
    }
    sums[row * list.width + column] = sum;
}
