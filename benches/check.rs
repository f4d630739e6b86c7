//! Whether a step does what its rule says: steps are held against the judge of the conformance suite, which computes in naive `f64`.

use optim_tests::reference::{Now, judge};
use optimizers::{DType, Optimizer, Rate, StateDType};

use crate::cases::{Case, Setting};
use crate::memory::Tensors;

/// The norm to which gradients are clipped: those of every case are larger.
pub(crate) const MAX_NORM: f64 = 1.0;

/// How many elements are looked at.
const SAMPLES: usize = 64;

/// The most elements of a tensor that is looked at whole, if there is such a tensor.
const WHOLE: usize = 300_000;

/// The relative error of a step in `f32`, of which sums over many elements are a part.
const ERROR: f64 = 1e-4;

/// Steps, and asserts that the sampled elements moved as they should.
pub(crate) fn check(case: &Case, setting: &Setting, optimizer: &mut Optimizer, params: &mut Tensors, grads: &Tensors) {
    let spec = setting.rule.spec();
    let Rate::Fixed(lr) = *spec.lr() else { panic!("rates are numbers here") };
    let (shape, sample) = sample(case, setting);
    let gather = |tensors: &Tensors| sample.iter().map(|&(tensor, k)| tensors.at(tensor, k)).collect::<Vec<_>>();

    let clip = if setting.clip { MAX_NORM / grads.square().sqrt() } else { 1.0 };
    let gradients: Vec<f64> = gather(grads).into_iter().map(|g| g * clip).collect();
    let mut expected = gather(params);
    let mut judge = judge(&setting.rule, &shape);
    // What the first step has left in a narrow state is rounded.
    let steps = if setting.state == StateDType::F32 { 2 } else { 1 };
    for t in 1..=steps {
        let (before, label) = (expected.clone(), setting.label(case.name));
        let (l2, decoupled) = if judge.decoupled() { (0.0, spec.weight_decay()) } else { (spec.weight_decay(), 0.0) };
        let decayed: Vec<f64> = gradients.iter().zip(&expected).map(|(g, p)| g + l2 * p).collect();
        judge.step(&mut expected, &decayed, &Now { t, lr, weight_decay: decoupled, shake: 0.0 });

        step(optimizer, params, grads);
        for (((got, p), before), place) in gather(params).into_iter().zip(&expected).zip(&before).zip(&sample) {
            let error = match setting.dtype {
                DType::F16 => 2_f64.powi(-11),
                DType::Bf16 => 2_f64.powi(-8),
                _ => 2_f64.powi(-22),
            };
            let bound = error * before.abs().max(p.abs()) + ERROR * (p - before).abs();
            assert!((got - p).abs() <= bound, "{label}: step {t} from {before} to {got}, not to {p} at {place:?}");
        }
    }
}

/// One step of everything.
pub(crate) fn step(optimizer: &mut Optimizer, params: &mut Tensors, grads: &Tensors) {
    let report = optimizer.step(&mut params.params(), &grads.grads()).expect("a step");
    assert!(report.applied(), "the step is applied");
}

/// The elements that are looked at, and the shape of the tensor that they make: a whole one, if an element's update depends on
/// others.
fn sample(case: &Case, setting: &Setting) -> (Vec<usize>, Vec<(usize, usize)>) {
    let lens = case.lens();
    if setting.looks_around() {
        let fits = |i: &usize| lens[*i] <= WHOLE;
        let largest = (0..lens.len()).filter(fits).max_by_key(|&i| lens[i]);
        let tensor = largest.or((0..lens.len()).min_by_key(|&i| lens[i])).expect("a tensor");
        return (case.shapes[tensor].clone(), (0..lens[tensor]).map(|k| (tensor, k)).collect());
    }
    // Evenly over all, the last element among them.
    let total = case.elements();
    let sample = (1..=SAMPLES).map(|nth| {
        let mut element = total * nth / SAMPLES - 1;
        let tensor = lens.iter().position(|&len| {
            let here = element < len;
            element -= if here { 0 } else { len };
            here
        });
        (tensor.expect("an element"), element)
    });
    (vec![SAMPLES], sample.collect())
}
