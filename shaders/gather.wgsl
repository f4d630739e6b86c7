// Many small buffers into the ranges of one, or back: one workgroup for each piece. It needs the prelude and
// `move_piece(piece: Piece, lane: u32)`.

// So many words of a buffer, from one place to another.
struct Piece {
    // Which of the bound ones.
    buffer: u32,
    // The first word, within its binding.
    first: u32,
    // The same, within the one that they share.
    together: u32,
    count: u32,
}

@group(0) @binding(0) var<storage, read> pieces: array<Piece>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = workgroup_index(id);
    if (index < arrayLength(&pieces)) {
        move_piece(pieces[index], lane);
    }
}
