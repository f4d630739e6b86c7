// What the guard measured of each parameter, from its slices. It stands after the prelude and `reduce.wgsl`.

struct Measured {
    squares: f32,
    bad: u32,
}

@group(0) @binding(0) var<storage, read> spans: array<Span>;
@group(0) @binding(1) var<storage, read> parts: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> measured: array<Measured>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // No lane leaves early: all meet in the tree.
    let index = workgroup_index(id);
    var span = Span();
    if (index < arrayLength(&spans)) {
        span = spans[index];
    }
    var sum = vec2<f32>();
    for (var part = lane; part < span.count; part = part + LANES) {
        sum = sum + parts[span.first + part];
    }
    let total = tree(lane, sum);
    if (lane == 0u && index < arrayLength(&spans)) {
        measured[index] = Measured(total.x, u32(total.y > 0.0));
    }
}
