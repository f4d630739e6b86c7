// Second moments as f32.

const PER_WORD = 1u;

fn decoded(word: u32, nth: u32) -> f32 {
    return bitcast<f32>(word);
}

fn encoded(x: f32, nth: u32) -> u32 {
    return bitcast<u32>(x);
}

