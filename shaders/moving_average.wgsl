// m ← β m + (1 − β) x: stands before the rules that need it. The twin, with an explanation: optim-cpu/src/math.rs.
fn moving_average(m: ptr<function, f32>, x: f32, beta: f32, one_minus_beta: f32) {
    if (beta < 0.5) {
        *m = beta * *m + one_minus_beta * x;
    } else {
        *m = *m + one_minus_beta * (x - *m);
    }
}
