// The guard's decision, on the device. It stands after the prelude, `reduce.wgsl` and the record. The twin, statement by
// statement: `decide` in optim-core/src/guard.rs.

// What it decides by at one step.
struct Guard {
    factor: f32,
    clip: u32,
    first: u32,
    records: u32,
    // A dynamic loss scale; a window of 0 for none.
    growth: f32,
    window: u32,
    floor: f32,
    cap: f32,
    // The updates that the step may be.
    updates: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

// Whose norm is clipped.
const CLIP_GLOBAL = 0u;
const CLIP_GROUP = 1u;
const CLIP_PARAMETER = 2u;

// The loss scale of the next step, and the counters.
struct Control {
    scale: f32,
    current: u32,
    last: u32,
    bad: u32,
    applied: u32,
    skipped: u32,
    pad0: u32,
    pad1: u32,
}

// What was measured of one parameter's gradient.
struct Measured {
    squares: f32,
    bad: u32,
}

// The records of each update that the step may be.
struct Variants {
    guard: Guard,
    records: array<Record>,
}

// What was decided.
struct Verdict {
    // Why nothing is updated; 0 if it is.
    skip: u32,
    // The first parameter whose gradient is not finite, or NONE.
    first_bad: u32,
    norm: f32,
    clip: f32,
    scale_before: f32,
    scale: f32,
    bad: u32,
    applied: u32,
    // One for each group.
    group_norms: array<f32>,
}

const NOT_FINITE = 1u;
const NORM_OVERFLOW = 2u;
// There are no records of the update that it is: it runs in another order than it was recorded in.
const OUT_OF_TURN = 3u;
const NONE = 0xffffffffu;

// The exponent bits of an f32: all set in what is not finite.
const INFINITE = 0x7f800000u;

@group(0) @binding(0) var<storage, read_write> records: array<Record>;
@group(0) @binding(1) var<storage, read> variants: Variants;
@group(0) @binding(2) var<storage, read> measured: array<Measured>;
@group(0) @binding(3) var<storage, read> group_of: array<u32>;
@group(0) @binding(4) var<storage, read_write> control: Control;
@group(0) @binding(5) var<storage, read_write> verdict: Verdict;

var<workgroup> words: array<u32, LANES>;

// The largest of what the lanes hold, in every lane. All lanes of the workgroup must come here.
fn largest(lane: u32, held: u32) -> u32 {
    words[lane] = held;
    workgroupBarrier();
    for (var stride = LANES / 2u; stride > 0u; stride = stride / 2u) {
        if (lane < stride && words[lane + stride] > words[lane]) {
            words[lane] = words[lane + stride];
        }
        workgroupBarrier();
    }
    let most = words[0];
    workgroupBarrier();
    return most;
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    let guard = variants.guard;
    let before = control;
    let parameters = arrayLength(&measured);

    // Counted from the end, so that the largest is the first.
    var held = 0u;
    var sum = vec2<f32>();
    for (var i = lane; i < parameters; i = i + LANES) {
        sum.x = sum.x + measured[i].squares;
        if (held == 0u && measured[i].bad != 0u) {
            held = parameters - i;
        }
    }
    let from_end = largest(lane, held);
    _ = tree(lane, sum);
    let norm = sqrt(lanes[0].x);

    for (var group = lane; group < arrayLength(&verdict.group_norms); group = group + LANES) {
        var squares = 0.0;
        for (var i = 0u; i < parameters; i = i + 1u) {
            if (group_of[i] == group) {
                squares = squares + measured[i].squares;
            }
        }
        verdict.group_norms[group] = sqrt(squares);
    }
    storageBarrier();

    var skip = 0u;
    if (from_end != 0u) {
        skip = NOT_FINITE;
    } else if ((bitcast<u32>(norm) & INFINITE) == INFINITE) {
        skip = NORM_OVERFLOW;
    }

    let inverse = 1.0 / before.scale;
    let update = before.applied - guard.first;
    var variant = update * guard.records;
    if (update >= guard.updates) {
        skip = OUT_OF_TURN;
        variant = 0u;
    }
    // The last record that was clipped by the norm of all, counted from 1.
    var clipped = 0u;
    for (var i = lane; i < guard.records; i = i + LANES) {
        var record = variants.records[variant + i];
        if (skip != 0u) {
            record.shaping.flags = record.shaping.flags | SKIP;
        } else {
            var own = norm;
            if (guard.clip == CLIP_GROUP) {
                own = verdict.group_norms[record.stages.owner];
            }
            if (guard.clip == CLIP_PARAMETER) {
                own = sqrt(measured[record.stages.owner].squares);
            }
            var factor = record.shaping.factor * inverse;
            if (record.stages.max_norm > 0.0 && own > record.stages.max_norm) {
                let smaller = record.stages.max_norm / own;
                factor = factor * smaller;
                if (guard.clip == CLIP_GLOBAL) {
                    clipped = i + 1u;
                }
            }
            record.shaping.factor = factor;
        }
        records[i] = record;
    }
    let last_clipped = largest(lane, clipped);
    if (lane != 0u) {
        return;
    }
    var clip = 1.0;
    if (last_clipped != 0u) {
        clip = variants.records[variant + last_clipped - 1u].stages.max_norm / norm;
    }

    var next = before;
    if (skip != 0u) {
        next.bad = next.bad + 1u;
        next.skipped = next.skipped + 1u;
    } else {
        next.bad = 0u;
        next.applied = next.applied + 1u;
    }
    if (guard.window != 0u) {
        if (skip != 0u) {
            next.scale = next.scale / guard.growth;
            if (next.scale < guard.floor) {
                next.scale = guard.floor;
            }
            // With a factor below 1 it has grown.
            if (next.scale > guard.cap) {
                next.scale = guard.cap;
            }
            next.last = next.current;
        } else if ((next.current - next.last) % guard.window == 0u) {
            let grown = next.scale * guard.growth;
            if (grown <= guard.cap) {
                next.scale = grown;
            }
            if (next.scale < guard.floor) {
                next.scale = guard.floor;
            }
        }
    }
    next.current = next.current + 1u;
    if (skip == OUT_OF_TURN) {
        next = before;
    }
    control = next;

    verdict.skip = skip;
    verdict.first_bad = NONE;
    if (from_end != 0u) {
        verdict.first_bad = parameters - from_end;
    }
    verdict.norm = norm;
    verdict.clip = clip;
    verdict.scale_before = before.scale;
    verdict.scale = next.scale;
    verdict.bad = next.bad;
    verdict.applied = before.applied;
}
