// What the guard measures of a gradient: the squares of its elements, and whether one is not finite. It stands after the prelude
// and `reduce.wgsl`, and needs `bits_grad`, `decoded` and `EXPONENT` of the gradient's format.

// A slice of a gradient, as far as it lies in one binding.
struct Stretch {
    // The element of the gradient that the slice begins with, within its binding; it may lie before that.
    grad: u32,
    // Of the slice's elements those from `begin` on and before `end` lie here.
    begin: u32,
    end: u32,
    // Where its sums go.
    part: u32,
    // Which of the two carries it goes on from and which it is carried on in, or NO_CARRY.
    resumed: u32,
    carried: u32,
}

const NO_CARRY = 0xffffffffu;

// The running sums of a lane.
struct Carry {
    sums: vec4<f32>,
    bad: u32,
}

@group(0) @binding(0) var<storage, read> guard_factor: f32;
@group(0) @binding(1) var<storage, read> slices: array<Stretch>;
@group(0) @binding(2) var<storage, read> loss_scale: f32;
@group(0) @binding(4) var<storage, read_write> parts: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> carries: array<Carry>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // No lane leaves early: all meet in the tree.
    let index = workgroup_index(id);
    var slice = Stretch(0u, 0u, 0u, 0u, NO_CARRY, 0u);
    if (index < arrayLength(&slices)) {
        slice = slices[index];
    }
    let factor = guard_factor * (1.0 / loss_scale);
    var sums = vec4<f32>();
    var bad = 0u;
    if (slice.resumed != NO_CARRY) {
        sums = carries[slice.resumed * LANES + lane].sums;
        bad = carries[slice.resumed * LANES + lane].bad;
    }
    for (var row = 0u; row < ROWS; row = row + 1u) {
        let i = row * ROW + lane * 4u;
        let on = within(i, slice.begin, slice.end);
        if (any(on)) {
            let bits = bits_grad(slice.grad + i, on);
            if (any(on & ((bits & vec4<u32>(EXPONENT)) == vec4<u32>(EXPONENT)))) {
                bad = 1u;
            }
            var x = decoded(bits);
            if (!(factor == 1.0)) {
                x = factor * x;
            }
            let squares = x * x;
            if (on.x) {
                sums.x = sums.x + squares.x;
            }
            if (on.y) {
                sums.y = sums.y + squares.y;
            }
            if (on.z) {
                sums.z = sums.z + squares.z;
            }
            if (on.w) {
                sums.w = sums.w + squares.w;
            }
        }
    }
    let whole = index < arrayLength(&slices) && slice.carried == NO_CARRY;
    if (index < arrayLength(&slices) && !whole) {
        carries[slice.carried * LANES + lane] = Carry(sums, bad);
    }
    let total = tree(lane, vec2<f32>((sums.x + sums.y) + (sums.z + sums.w), f32(bad)));
    if (lane == 0u && whole) {
        parts[slice.part] = total;
    }
}
