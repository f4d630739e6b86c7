//! Whether a step does what its rule says: steps are held against the judge of the conformance suite, which computes in naive `f64`.

use optim_tests::reference::{Now, judge};
use optimizers::{DType, Rate, StateDType};

use crate::cases::{Case, Setting};

/// The norm to which gradients are clipped: those of every case are larger.
pub(crate) const MAX_NORM: f64 = 1.0;

/// How many elements are looked at.
const SAMPLES: usize = 64;

/// The most elements of a tensor that is looked at whole, if there is such a tensor.
const WHOLE: usize = 300_000;

/// The relative error of a step in `f32`, of which sums over many elements are a part.
const ERROR: f64 = 1e-4;

/// The relative error of a second moment that is then rounded to `f16`, by which it may become the neighbour.
const SHAKE: f64 = 1.0 / (1 << 20) as f64;

/// The elements that are looked at.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Each with its tensor.
    pub(crate) places: Vec<(usize, usize)>,
    /// Of the tensor that they make.
    shape: Vec<usize>,
}

/// Steps, and asserts that the sampled elements moved as they should. `step` gives their values after it; `norm` is that of all
/// gradients.
pub(crate) fn check(
    label: &str,
    setting: &Setting,
    sample: &Sample,
    start: Vec<f64>,
    grads: &[f64],
    norm: f64,
    mut step: impl FnMut() -> Vec<f64>,
) {
    let spec = setting.rule.spec();
    let Rate::Fixed(lr) = *spec.lr() else { panic!("rates are numbers here") };
    let clip = if setting.clip { MAX_NORM / norm } else { 1.0 };
    let shakes: &[f64] = if setting.compresses() { &[0.0, -SHAKE, SHAKE] } else { &[0.0] };
    let judge = |&shake: &f64| (judge(&setting.rule, &sample.shape), start.clone(), shake);
    let mut judges: Vec<_> = shakes.iter().map(judge).collect();
    let (l2, decoupled) = if judges[0].0.decoupled() { (0.0, spec.weight_decay()) } else { (spec.weight_decay(), 0.0) };
    let error = match setting.dtype {
        DType::F16 => 2_f64.powi(-11),
        DType::Bf16 => 2_f64.powi(-8),
        _ => 2_f64.powi(-22),
    };

    // What the first step has left in a narrow state is rounded.
    let steps = if setting.state == StateDType::F32 { 2 } else { 1 };
    for t in 1..=steps {
        let before = judges[0].1.clone();
        let decayed: Vec<f64> = grads.iter().zip(&before).map(|(g, p)| clip * g + l2 * p).collect();
        for (judge, p, shake) in &mut judges {
            judge.step(p, &decayed, &Now { t, lr, weight_decay: decoupled, shake: *shake });
        }
        let (_, expected, _) = &judges[0];
        let numbers = step().into_iter().zip(expected).zip(&before).zip(&sample.places);
        for (i, (((got, p), before), place)) in numbers.enumerate() {
            let shaken: f64 = judges[1..].iter().map(|(_, other, _)| (other[i] - p).abs()).sum();
            let bound = error * before.abs().max(p.abs()) + ERROR * (p - before).abs() + shaken;
            assert!((got - p).abs() <= bound, "{label}: step {t} from {before} to {got}, not to {p} at {place:?}");
        }
    }
}

impl Sample {
    /// Some elements of all tensors; all of one tensor, if an element's update depends on others.
    pub(crate) fn new(case: &Case, setting: &Setting) -> Self {
        let lens = case.lens();
        if setting.looks_around() {
            let fits = |i: &usize| lens[*i] <= WHOLE;
            let largest = (0..lens.len()).filter(fits).max_by_key(|&i| lens[i]);
            let tensor = largest.or((0..lens.len()).min_by_key(|&i| lens[i])).expect("a tensor");
            return Self {
                places: (0..lens[tensor]).map(|k| (tensor, k)).collect(),
                shape: case.shapes[tensor].clone(),
            };
        }
        // Evenly over all, the last element among them.
        let place = |nth: usize| {
            let mut element = case.elements() * nth / SAMPLES - 1;
            let tensor = lens.iter().position(|&len| {
                let here = element < len;
                element -= if here { 0 } else { len };
                here
            });
            (tensor.expect("an element"), element)
        };
        Self { places: (1..=SAMPLES).map(place).collect(), shape: vec![SAMPLES] }
    }
}
