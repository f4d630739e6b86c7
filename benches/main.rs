//! What a CPU step costs, as a ratio to the memory limit, and whether groups cost anything. `benches/README.md` says what each
//! figure means.

mod groups;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use optimizers::{CpuBackend, Grad, Optimizer, ParamMut, Parameter, Rule};
use rayon::prelude::*;

/// The tensors of each case: one shape a line.
const CASES: [(&str, &str); 5] = [
    ("flat64M", include_str!("cases/flat64M.txt")),
    ("gpt2-small", include_str!("cases/gpt2-small.txt")),
    ("resnet50", include_str!("cases/resnet50.txt")),
    ("tiny2000x256", include_str!("cases/tiny2000x256.txt")),
    ("one100k", include_str!("cases/one100k.txt")),
];

/// The rules that are measured unless `all` is asked for.
const USUAL: [&str; 3] = ["sgd", "momentum", "adam"];

/// Timed rounds of a measurement; the median counts.
const ROUNDS: usize = 9;

/// The least duration of one round.
const ROUND: Duration = Duration::from_millis(60);

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    println!(
        "{:<13} {:<19} {:>7} {:>12} {:>9} {:>8} {:>14}",
        "case", "rule", "threads", "us/step", "ns/param", "GB/s", "ratio_to_limit"
    );
    for (case, shapes) in CASES {
        let lens: Vec<usize> = shapes.lines().filter(|line| !line.trim().is_empty()).map(elements).collect();
        let mut seen = Vec::new();
        for rule in Rule::all() {
            let variant = (rule.spec().name(), rule.spec().entry(), rule.spec().slots().len());
            if seen.contains(&variant) {
                continue;
            }
            seen.push(variant);
            let chosen = USUAL.contains(&rule.spec().name()) || filters.iter().any(|filter| filter == "all");
            let filters: Vec<_> = filters.iter().filter(|filter| *filter != "all").collect();
            for threads in [1, 2] {
                let label = format!("{case} {} {threads}", rule.spec().name());
                if chosen && filters.iter().all(|filter| label.contains(filter.as_str())) {
                    measure(case, &lens, &rule, threads);
                }
            }
        }
    }
    groups::run(|label| filters.iter().all(|filter| filter == "all" || label.contains(filter.as_str())));
}

/// The elements of a shape written as `64x3x7x7` or as numbers apart.
fn elements(shape: &str) -> usize {
    let extents = shape.split(|c: char| !c.is_ascii_digit()).filter(|extent| !extent.is_empty());
    extents.map(|extent| extent.parse::<usize>().expect("a shape")).product()
}

fn measure(case: &str, lens: &[usize], rule: &Rule, threads: usize) {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start"));
    let parameters = lens.iter().enumerate().map(|(i, &len)| Parameter::new(format!("p{i}"), [len]));
    let mut optimizer = optimizers::Builder::new(rule.clone())
        .params(parameters)
        .build(CpuBackend::with_pool(Arc::clone(&pool)))
        .expect("a valid optimizer");
    let mut params: Vec<Vec<f32>> = lens.iter().map(|&len| vec![1.0; len]).collect();
    let grads: Vec<Vec<f32>> = lens.iter().map(|&len| vec![0.01; len]).collect();
    let slots = rule.spec().slots().len();

    let total: usize = lens.iter().sum();
    let mut written = vec![vec![1.0; total]; 1 + slots];
    let read = vec![0.01; total];
    let bytes = total * (12 + 8 * slots);
    let (before, time, after) = pool.install(|| {
        check(&mut optimizer, &mut params, &grads);
        let before = median(|| limit(&mut written, &read));
        let grads_now: Vec<Grad<'_>> = grads.iter().map(Into::into).collect();
        let time = {
            let mut params: Vec<ParamMut<'_>> = params.iter_mut().map(Into::into).collect();
            median(|| assert!(optimizer.step(&mut params, &grads_now).expect("a step").applied(), "applied"))
        };
        (before, time, median(|| limit(&mut written, &read)))
    });
    let limit = (before + after) / 2.0;
    println!(
        "{case:<13} {:<19} {threads:>7} {:>12.1} {:>9.3} {:>8.1} {:>14.2}",
        rule.spec().name(),
        time * 1e6,
        time * 1e9 / total as f64,
        bytes as f64 / time / 1e9,
        time / limit
    );
}

/// A step must do what its rule says before it is worth timing: every rule here walks against a constant gradient.
fn check(optimizer: &mut Optimizer, params: &mut [Vec<f32>], grads: &[Vec<f32>]) {
    let grads: Vec<Grad<'_>> = grads.iter().map(Into::into).collect();
    let mut step = |params: &mut [Vec<f32>]| {
        let mut params: Vec<ParamMut<'_>> = params.iter_mut().map(Into::into).collect();
        assert!(optimizer.step(&mut params, &grads).expect("a step").applied(), "the step is applied");
    };
    step(params);
    assert!(params.iter().flatten().all(|&p| p < 1.0), "every element moved against its gradient");
}

/// The same reads and writes as a step, and an addition: the time that no step can beat. `written` holds an array for the
/// parameters and one for each slot.
fn limit(written: &mut [Vec<f32>], g: &[f32]) {
    let chunk = if g.len() < 30_000 { g.len() } else { 1 << 14 };
    let mut arrays: Vec<_> = written.iter_mut().map(|array| array.chunks_mut(chunk)).collect();
    let chunks = g.chunks(chunk).map(|g| (arrays.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>(), g));
    let chunks: Vec<_> = chunks.collect();
    chunks.into_par_iter().for_each(|(mut arrays, g)| add(&mut arrays, g));
}

/// Adds `g` to every array, in one loop.
fn add(arrays: &mut [&mut [f32]], g: &[f32]) {
    macro_rules! all {
        ($($array:ident),*) => {{
            $(let $array = &mut $array[..g.len()];)*
            for i in 0..g.len() {
                $($array[i] += g[i];)*
            }
        }};
    }
    match arrays {
        [p] => all!(p),
        [p, a] => all!(p, a),
        [p, a, b] => all!(p, a, b),
        [p, a, b, c] => all!(p, a, b, c),
        [p, a, b, c, d] => all!(p, a, b, c, d),
        _ => unreachable!("a rule has at most four slots"),
    }
}

/// Seconds of one call: the median over rounds of enough calls each.
fn median(mut call: impl FnMut()) -> f64 {
    let mut round = |calls| (0..calls).for_each(|_| call());
    let calls = enough(&mut round);
    middle((0..ROUNDS).map(|_| seconds(calls, &mut round)).collect())
}

/// How many calls fill a round.
fn enough(mut round: impl FnMut(u32)) -> u32 {
    round(1);
    let calls = ROUND.as_secs_f64() / seconds(1, &mut round).max(1e-9);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let calls = calls.ceil().clamp(1.0, 1e5) as u32;
    calls
}

/// Seconds of each of so many calls, together a round.
fn seconds(calls: u32, mut round: impl FnMut(u32)) -> f64 {
    let start = Instant::now();
    round(calls);
    black_box(start.elapsed().as_secs_f64() / f64::from(calls))
}

fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
