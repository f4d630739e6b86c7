//! Vars trained by this library: beside `candle_nn::AdamW`, and bit for bit beside the same optimizer on plain slices.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, Module, Storage, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use half::{bf16, f16};
use optim_candle::core::guard::DynamicLossScale;
use optim_candle::core::schedule::PolynomialDecay;
use optim_candle::core::{
    self, AdaFactor, AdamW, Builder, Grad, Lion, LoadOptions, Momentum, ParamGroup, ParamMut, Parameter, Rule, Select,
    Sgd, StateDType,
};
use optim_candle::{Error, Result, VarOptimizer};
use optim_cpu::CpuBackend;

/// Numbers in [−1, 1) that follow from a seed.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(noise(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

fn var(seed: u64, shape: &[usize], dtype: DType) -> Var {
    Var::from_tensor(&tensor(seed, shape).to_dtype(dtype).unwrap()).unwrap()
}

fn ones(len: usize) -> Var {
    Var::ones(len, DType::F32, &Device::Cpu).unwrap()
}

fn store<'a>(grads: impl IntoIterator<Item = (&'a Var, Tensor)>) -> GradStore {
    let mut store = GradStore::default();
    for (var, grad) in grads {
        store.insert(var, grad);
    }
    store
}

/// All elements, widened to `f32`.
fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

/// Where a var's first element is.
fn address(var: &Var) -> usize {
    match &*var.storage_and_layout().0 {
        Storage::Cpu(CpuStorage::F32(values)) => values.as_ptr().addr(),
        Storage::Cpu(CpuStorage::F16(values)) => values.as_ptr().addr(),
        Storage::Cpu(CpuStorage::BF16(values)) => values.as_ptr().addr(),
        other => panic!("{other:?}"),
    }
}

/// The largest difference of two tensors, over the magnitude of what is compared with where that is above 1.
fn distance(ours: &Tensor, theirs: &Tensor) -> f32 {
    let differences = values(ours).into_iter().zip(values(theirs)).map(|(a, b)| (a - b).abs() / b.abs().max(1.0));
    differences.fold(0.0, f32::max)
}

const SHAPES: [&[usize]; 3] = [&[16, 8], &[8], &[3, 1, 5]];

/// 200 steps on fixed gradients with candle's AdamW and with ours; the largest difference of any parameter at any step.
fn beside_candle(theirs: ParamsAdamW, ours: AdamW) -> f32 {
    let vars = || -> Vec<Var> { (0..).zip(SHAPES).map(|(seed, shape)| var(seed, shape, DType::F32)).collect() };
    let (our_vars, their_vars) = (vars(), vars());
    let mut ours = VarOptimizer::new(our_vars.clone(), ours).unwrap();
    let mut theirs = candle_nn::AdamW::new(their_vars.clone(), theirs).unwrap();
    let mut worst = 0.0_f32;
    for step in 0..200 {
        let grads: Vec<Tensor> = (0..).zip(SHAPES).map(|(seed, shape)| tensor(1000 * step + seed, shape)).collect();
        ours.step(&store(our_vars.iter().zip(grads.clone()))).unwrap();
        theirs.step(&store(their_vars.iter().zip(grads))).unwrap();
        worst = our_vars.iter().zip(&their_vars).map(|(a, b)| distance(a, b)).fold(worst, f32::max);
    }
    worst
}

/// What 200 steps may differ by where `γ λ` is a power of 2: the rounding of each update to `f32`, in another order of operations.
const TOLERANCE: f32 = 5e-7;

/// The same for any `γ λ`: candle multiplies by `1 − γ λ` rounded to `f32`, which is off by up to 3e-8 at every one of the 200 steps.
const TOLERANCE_DECAY: f32 = TOLERANCE + 200.0 * 3e-8;

#[test]
fn two_hundred_steps_are_those_of_candles_adamw() {
    let theirs = |lr, weight_decay| ParamsAdamW { lr, weight_decay, ..ParamsAdamW::default() };
    let ours = |lr, weight_decay| AdamW { weight_decay, ..AdamW::new(lr) };
    for (lr, weight_decay, tolerance) in [
        (1.0 / 1024.0, 1.0 / 128.0, TOLERANCE),
        (1.0 / 128.0, 1.0 / 8.0, TOLERANCE),
        (1e-3, 0.0, TOLERANCE),
        (1e-3, 0.01, TOLERANCE_DECAY),
    ] {
        let worst = beside_candle(theirs(lr, weight_decay), ours(lr, weight_decay));
        assert!(worst <= tolerance, "with the rate {lr} and the decay {weight_decay} off by {worst}");
    }
    let strong = ParamsAdamW { beta1: 0.8, beta2: 0.95, eps: 1e-6, ..theirs(1.0 / 128.0, 1.0 / 8.0) };
    let worst = beside_candle(strong, AdamW { beta1: 0.8, beta2: 0.95, eps: 1e-6, ..ours(1.0 / 128.0, 1.0 / 8.0) });
    assert!(worst <= TOLERANCE, "with other betas off by {worst}");
    // The comparison sees a difference of 1 % of a hyper-parameter.
    let other = beside_candle(theirs(1e-3, 0.01), ours(1e-3, 0.0101));
    assert!(other > TOLERANCE_DECAY, "another decay is only {other} off");
}

#[test]
fn it_stands_where_candles_optimizers_stand() {
    fn train<O: Optimizer>(config: O::Config) -> f32 {
        let varmap = VarMap::new();
        let vars = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let model = candle_nn::linear(4, 2, vars).unwrap();
        let mut optimizer = O::new(varmap.all_vars(), config).unwrap();
        let (x, y) = (tensor(1, &[32, 4]), Tensor::ones((32, 2), DType::F32, &Device::Cpu).unwrap());
        let loss = || candle_nn::loss::mse(&model.forward(&x).unwrap(), &y).unwrap();
        for _ in 0..200 {
            optimizer.set_learning_rate(0.5 * optimizer.learning_rate() + 0.01);
            optimizer.backward_step(&loss()).unwrap();
        }
        loss().to_scalar().unwrap()
    }
    assert!(train::<candle_nn::AdamW>(ParamsAdamW::default()) < 1e-3, "candle's");
    assert!(train::<VarOptimizer>(AdamW::default().into()) < 1e-3, "ours");
    assert!(train::<VarOptimizer>(Momentum::new(0.1, 0.9).into()) < 1e-3, "another rule");
}

/// A parameter of the twin: what a var is, on a slice.
enum Slice {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Slice {
    fn of(tensor: &Tensor) -> Self {
        let values = values(tensor);
        match tensor.dtype() {
            DType::F16 => Self::F16(values.into_iter().map(f16::from_f32).collect()),
            DType::BF16 => Self::Bf16(values.into_iter().map(bf16::from_f32).collect()),
            _ => Self::F32(values),
        }
    }

    fn param(&mut self) -> ParamMut<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::F16(values) => values.into(),
            Self::Bf16(values) => values.into(),
        }
    }

    fn grad(&self) -> Grad<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::F16(values) => values.into(),
            Self::Bf16(values) => values.into(),
        }
    }

    fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(values) => values.iter().map(|x| x.to_bits()).collect(),
            Self::F16(values) => values.iter().map(|x| x.to_f32().to_bits()).collect(),
            Self::Bf16(values) => values.iter().map(|x| x.to_f32().to_bits()).collect(),
        }
    }
}

/// Five steps on a var and on a slice, compared bit for bit.
fn beside_a_slice(settings: &Builder, shape: &[usize], var_type: DType, grad_type: DType) {
    let var = var(7, shape, var_type);
    let dtype = match var_type {
        DType::F16 => core::DType::F16,
        DType::BF16 => core::DType::Bf16,
        _ => core::DType::F32,
    };
    let mut slice = Slice::of(&var);
    let mut ours = VarOptimizer::from_named([("w", var.clone())], settings.clone()).unwrap();
    let parameters = [Parameter::new("w", shape).with_dtype(dtype)];
    let mut twin = settings.clone().params(parameters).build(CpuBackend::new()).unwrap();
    let before = (address(&var), bits(&var));
    for step in 0..5 {
        let grad = tensor(100 + step, shape).to_dtype(grad_type).unwrap();
        let _ = twin.step(&mut [slice.param()], &[Slice::of(&grad).grad()]).unwrap();
        let report = ours.step_report(&store([(&var, grad)])).unwrap();
        assert!(report.applied(), "{report:?}");
        assert_eq!(bits(&var), slice.bits(), "{settings:?}, {var_type:?} and {grad_type:?} after step {}", report.step);
    }
    assert_eq!(address(&var), before.0, "the var's memory has moved");
    assert_ne!(bits(&var), before.1, "nothing has changed");
}

#[test]
fn every_rule_updates_a_var_in_place() {
    for rule in Rule::all() {
        beside_a_slice(&rule.into(), &[5, 7], DType::F32, DType::F32);
    }
}

#[test]
fn every_pair_of_types() {
    for var_type in [DType::F32, DType::F16, DType::BF16] {
        for grad_type in [DType::F32, DType::F16, DType::BF16] {
            beside_a_slice(&AdamW::new(0.1).into(), &[3, 11], var_type, grad_type);
        }
    }
    let narrow = Builder::new(AdamW::new(0.1)).state_dtype(StateDType::Block8);
    beside_a_slice(&narrow, &[600], DType::BF16, DType::BF16);
}

#[test]
fn small_updates_of_16_bits_are_not_lost() {
    let weights = || Var::ones(8, DType::BF16, &Device::Cpu).unwrap();
    let (ours, theirs) = (weights(), weights());
    let mut optimizer = VarOptimizer::new(vec![ours.clone()], AdamW::new(1e-4)).unwrap();
    let mut candles = candle_nn::AdamW::new_lr(vec![theirs.clone()], 1e-4).unwrap();
    for _ in 0..100 {
        optimizer.step(&store([(&ours, weights().as_tensor().clone())])).unwrap();
        candles.step(&store([(&theirs, weights().as_tensor().clone())])).unwrap();
    }
    assert_eq!(values(&theirs), [1.0; 8], "candle's moments and updates are rounded to bf16");
    assert!(values(&ours).iter().all(|x| (x - 0.99).abs() < 0.003), "{ours}");
}

/// What a step of plain gradient descent makes of a var, with a rate of 1.
fn descend(var: &Var, grad: Tensor) -> Vec<f32> {
    let mut optimizer = VarOptimizer::new(vec![var.clone()], Sgd::new(1.0)).unwrap();
    optimizer.step(&store([(var, grad)])).unwrap();
    values(var)
}

#[test]
fn gradients_in_any_layout() {
    let grad = tensor(3, &[4, 6]);
    let expected = descend(&var(1, &[4, 6], DType::F32), grad.clone());
    let transposed = grad.t().unwrap().contiguous().unwrap().t().unwrap();
    assert!(!transposed.is_contiguous(), "the test needs strides");
    assert_eq!(descend(&var(1, &[4, 6], DType::F32), transposed), expected);
    // A part of a larger tensor, and one element in all places.
    let part = Tensor::cat(&[&tensor(9, &[2, 6]), &grad, &tensor(8, &[1, 6])], 0).unwrap().narrow(0, 2, 4).unwrap();
    assert_eq!(descend(&var(1, &[4, 6], DType::F32), part), expected);
    let broadcast = Tensor::new(0.5_f32, &Device::Cpu).unwrap().broadcast_as(3).unwrap();
    assert_eq!(descend(&ones(3), broadcast), [0.5; 3]);
    let scalar = Var::new(2.0_f32, &Device::Cpu).unwrap();
    assert_eq!(descend(&scalar, Tensor::new(0.5_f32, &Device::Cpu).unwrap()), [1.5]);
}

#[test]
fn gradients_in_the_memory_of_vars() {
    let (a, b) = (var(1, &[5], DType::F32), var(2, &[5], DType::F32));
    let expected: Vec<f32> = values(&a).into_iter().zip(values(&b)).map(|(a, b)| a - b).collect();
    let mut optimizer = VarOptimizer::new(vec![a.clone(), b.clone()], Sgd::new(1.0)).unwrap();
    let grads = store([(&a, b.as_tensor().clone()), (&b, b.as_tensor().clone())]);
    optimizer.step(&grads).unwrap();
    assert_eq!(values(&a), expected);
    assert_eq!(values(&b), [0.0; 5]);
}

#[test]
fn a_var_without_a_gradient_is_left_alone() {
    let (a, b) = (ones(4), ones(4));
    let mut optimizer = VarOptimizer::new(vec![a.clone(), b.clone()], AdamW::new(0.1)).unwrap();
    optimizer.step(&store([(&b, ones(4).as_tensor().clone())])).unwrap();
    assert_eq!(values(&a), [1.0; 4]);
    assert_eq!(optimizer.inner().slot("var0", "moment1").unwrap(), [0.0; 4]);
    assert!(values(&b)[0] < 1.0, "{b}");
    assert!(optimizer.inner().slot("var1", "moment1").unwrap()[0] > 0.0, "the other's state moves");
}

#[test]
fn vars_that_cannot_be_trained_are_refused() {
    let new = |vars: Vec<(&'static str, Var)>| VarOptimizer::from_named(vars, AdamW::default()).unwrap_err();
    let (a, b) = (ones(2), ones(2));
    let error = new(vec![("a", a.clone()), ("b", b), ("c", Var::from_tensor(&a).unwrap())]);
    assert!(matches!(&error, Error::Shared { first, second } if first == "a" && second == "c"), "{error}");
    for dtype in [DType::F64, DType::U32, DType::I64] {
        let error = new(vec![("a", a.clone()), ("index", Var::zeros(2, dtype, &Device::Cpu).unwrap())]);
        assert!(matches!(&error, Error::DType { name, got, .. } if name == "index" && *got == dtype), "{error}");
    }
    let error = new(vec![("a", a), ("a", ones(2))]);
    assert!(matches!(error, Error::Optimizer(core::Error::DuplicateParameter { .. })), "{error}");
    let error = new(vec![]);
    assert!(matches!(error, Error::Optimizer(core::Error::NoParameters { .. })), "{error}");
    let error = VarOptimizer::new(vec![ones(1)], AdamW { beta1: 1.5, ..AdamW::default() }).unwrap_err();
    assert!(matches!(error, Error::Optimizer(core::Error::HyperParameter { .. })), "{error}");
    // Vars without elements have no memory to share.
    let empty = || Var::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
    assert!(VarOptimizer::new(vec![empty(), empty()], AdamW::default()).is_ok(), "two empty vars");
}

#[test]
fn gradients_that_do_not_fit_change_nothing() {
    let (a, b) = (ones(6), ones(6));
    let mut optimizer = VarOptimizer::from_named([("a", a.clone()), ("b", b.clone())], Sgd::new(0.1)).unwrap();
    let fits = || tensor(1, &[6]);
    let shape = optimizer.step_report(&store([(&a, fits()), (&b, tensor(1, &[2, 3]))])).unwrap_err();
    assert_eq!(shape.to_string(), "gradient \"b\" has the shape [2, 3], its var [6]");
    let wide = fits().to_dtype(DType::F64).unwrap();
    let dtype = optimizer.step_report(&store([(&a, fits()), (&b, wide)])).unwrap_err();
    assert_eq!(dtype.to_string(), "gradient \"b\" is f64, expected f32, f16 or bf16");
    // As candle's error it says the same.
    let candles = optimizer.step(&store([(&b, tensor(1, &[1]))])).unwrap_err().to_string();
    assert!(candles.starts_with("gradient \"b\" has the shape [1], its var [6]"), "{candles}");
    assert_eq!((values(&a), values(&b)), (vec![1.0; 6], vec![1.0; 6]));
    assert_eq!(optimizer.inner().step_count(), 0);
}

#[test]
fn names_are_the_maps_in_order() {
    let varmap = VarMap::new();
    let vars = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    for layer in ["l2", "l10", "l1"] {
        let _ = candle_nn::linear(2, 2, vars.pp(layer)).unwrap();
    }
    let names = |optimizer: &VarOptimizer| -> Vec<String> {
        optimizer.inner().parameters().iter().map(|parameter| parameter.name().to_owned()).collect()
    };
    let optimizer = VarOptimizer::from_varmap(&varmap, Lion::default()).unwrap();
    assert_eq!(names(&optimizer), ["l1.bias", "l1.weight", "l10.bias", "l10.weight", "l2.bias", "l2.weight"]);
    let map = varmap.data().lock().unwrap();
    for (var, name) in optimizer.vars().iter().zip(names(&optimizer)) {
        assert_eq!(var.id(), map[&name].id(), "{name}");
    }
}

#[test]
fn a_builder_may_order_the_vars() {
    let (a, b) = (ones(2), ones(3));
    let settings = Builder::new(Sgd::new(1.0)).order_params([Parameter::new("b", [3]), Parameter::new("a", [2])]);
    let mut optimizer = VarOptimizer::from_named([("a", a.clone()), ("b", b.clone())], settings).unwrap();
    optimizer.step(&store([(&a, ones(2).as_tensor().clone())])).unwrap();
    assert_eq!((values(&a), values(&b)), (vec![0.0; 2], vec![1.0; 3]));
}

#[test]
fn groups_by_name() -> Result<()> {
    let vars = [("body.weight", ones(2)), ("body.bias", ones(2)), ("head.weight", ones(2)), ("norm.gamma", ones(2))];
    let settings = Builder::new(Sgd::new(0.5)).groups([
        ParamGroup::matching(Select::glob("*.bias")?).lr(0.25),
        ParamGroup::matching(Select::glob("head.*")?).lr(PolynomialDecay::new(1.0, 0.0, 4, 1.0)?),
        ParamGroup::matching(Select::rest()).weight_decay(0.5),
    ]);
    let mut optimizer = VarOptimizer::from_named(vars.clone(), settings)?;
    let grads = || store(vars.iter().map(|(_, var)| (var, ones(2).as_tensor().clone())));
    let report = optimizer.step_report(&grads())?;
    assert_eq!(&*report.rates, [0.25, 1.0, 0.5]);
    let firsts: Vec<f32> = vars.iter().map(|(_, var)| values(var)[0]).collect();
    assert_eq!(firsts, [0.25, 0.75, 0.0, 0.25]);
    assert_eq!(optimizer.inner().lr(1)?, 0.75, "the schedule goes on");
    optimizer.inner_mut().set_lr(0, 0.0)?;
    let _ = optimizer.step_report(&grads())?;
    assert_eq!(values(&vars[1].1), [0.75; 2]);
    assert!(optimizer.to_string().contains("group 1"), "{optimizer}");
    Ok(())
}

#[test]
fn all_vars_decay_unless_told_otherwise() {
    let decayed = |settings: Builder| {
        let vars = [("norm.gamma", ones(1)), ("bias", ones(1))];
        let mut optimizer = VarOptimizer::from_named(vars.clone(), settings).unwrap();
        optimizer.step(&store(vars.iter().map(|(_, var)| (var, var.zeros_like().unwrap())))).unwrap();
        vars.map(|(_, var)| values(&var)[0])
    };
    let rule = AdamW { weight_decay: 0.5, ..AdamW::new(0.5) };
    assert_eq!(decayed(rule.clone().into()), [0.75; 2], "as candle's");
    assert_eq!(decayed(Builder::new(rule.clone()).clip_norm(1.0)), [0.75; 2], "with a builder too");
    let biases = |parameter: &Parameter| parameter.name() == "bias";
    assert_eq!(decayed(Builder::new(rule).decay_filter(biases)), [1.0, 0.75]);
}

#[test]
fn rates_are_set_and_read() {
    let w = ones(1);
    let grads = || store([(&w, ones(1).as_tensor().clone())]);
    let mut optimizer = VarOptimizer::new(vec![w.clone()], Sgd::new(vec![0.5, 0.25])).unwrap();
    assert_eq!(optimizer.learning_rate(), 0.5);
    optimizer.step(&grads()).unwrap();
    assert_eq!(optimizer.learning_rate(), 0.25);
    optimizer.step(&grads()).unwrap();
    assert!(optimizer.learning_rate().is_nan(), "the list is exhausted");
    assert!(optimizer.step(&grads()).is_err(), "the list is exhausted");
    optimizer.set_learning_rate(0.125);
    optimizer.step(&grads()).unwrap();
    assert_eq!(values(&w), [0.125]);

    optimizer.set_learning_rate(-1.0);
    let refused = optimizer.step(&grads()).unwrap_err().to_string();
    assert!(refused.contains("lr must be finite and ≥ 0, got -1"), "{refused}");
    assert_eq!((values(&w), optimizer.learning_rate()), (vec![0.125], 0.125));
    optimizer.step(&grads()).unwrap();
    assert_eq!(values(&w), [0.0]);

    let mut own_rate = VarOptimizer::new(vec![ones(1)], AdaFactor::default()).unwrap();
    own_rate.set_learning_rate(0.1);
    assert!(own_rate.step(&GradStore::default()).is_err(), "the rule makes its own rate");
}

#[test]
fn gradients_are_clipped() {
    let (a, b) = (ones(1), ones(1));
    let settings = Builder::new(Sgd::new(1.0)).clip_norm(1.0);
    let mut optimizer = VarOptimizer::new(vec![a.clone(), b.clone()], settings).unwrap();
    let scaled = |factor: f64| (ones(1).as_tensor() * factor).unwrap();
    let report = optimizer.step_report(&store([(&a, scaled(3.0)), (&b, scaled(4.0))])).unwrap();
    let gradients = report.gradients.unwrap();
    assert_eq!((gradients.norm, gradients.clip), (5.0, 0.2));
    assert_eq!((values(&a)[0], values(&b)[0]), (1.0 - 3.0 * 0.2, 1.0 - 4.0 * 0.2));
}

#[test]
fn a_scaled_loss_that_overflows_is_skipped() {
    let w = Var::ones(4, DType::F16, &Device::Cpu).unwrap();
    let scale = DynamicLossScale { init_loss_scale: 65536.0, scale_factor: 4.0, ..DynamicLossScale::default() };
    let settings = Builder::new(Sgd::new(0.125)).loss_scale(scale);
    let mut optimizer = VarOptimizer::new(vec![w.clone()], settings).unwrap();
    let loss = || w.to_dtype(DType::F32).unwrap().sqr().unwrap().sum_all().unwrap();
    let grads = optimizer.scale_loss(&loss()).unwrap().backward().unwrap();
    let report = optimizer.step_report(&grads).unwrap();
    assert!(!report.applied(), "{report:?}");
    let gradients = report.gradients.unwrap();
    assert_eq!((gradients.loss_scale, gradients.next_loss_scale), (65536.0, 16384.0));
    assert_eq!(gradients.first_non_finite.as_deref(), Some("var0"));
    assert_eq!((values(&w), optimizer.inner().step_count()), (vec![1.0; 4], 0));
    // With the smaller scale the gradient is 2; `backward_step` scales by itself.
    optimizer.backward_step(&loss()).unwrap();
    assert_eq!((values(&w), optimizer.inner().step_count()), (vec![0.75; 4], 1));
}

#[test]
fn gradients_accumulate() {
    let w = ones(2);
    let mut optimizer = VarOptimizer::new(vec![w.clone()], Sgd::new(1.0)).unwrap();
    for factor in [0.5, 0.25] {
        optimizer.accumulate(&store([(&w, (ones(2).as_tensor() * factor).unwrap())]), 1.0).unwrap();
    }
    assert!(optimizer.step_accumulated().unwrap().applied(), "the mean is 0.375");
    assert_eq!(values(&w), [0.625; 2]);
    assert!(optimizer.step_accumulated().is_err(), "nothing is left");
}

#[test]
fn averages_are_swapped_in_and_out() {
    let w = Var::ones(3, DType::BF16, &Device::Cpu).unwrap();
    let mut optimizer = VarOptimizer::new(vec![w.clone()], Builder::new(Sgd::new(0.5)).ema(0.75)).unwrap();
    assert!(optimizer.swap_ema_in().is_err(), "before the first step");
    optimizer.step(&store([(&w, ones(3).as_tensor().clone())])).unwrap();
    let (trained, place) = (values(&w), address(&w));
    assert_eq!(trained, [0.5; 3]);
    optimizer.swap_ema_in().unwrap();
    assert_eq!(values(&w), [0.875; 3]);
    assert!(optimizer.step(&store([(&w, ones(3).as_tensor().clone())])).is_err(), "averages stand in the vars");
    optimizer.swap_ema_out().unwrap();
    assert_eq!((values(&w), address(&w)), (trained, place));
}

#[test]
fn vars_set_by_other_means_are_taken_up() {
    let w = Var::ones(2, DType::F16, &Device::Cpu).unwrap();
    let mut optimizer = VarOptimizer::new(vec![w.clone()], Sgd::new(0.5)).unwrap();
    let grads = || store([(&w, ones(2).as_tensor().clone())]);
    optimizer.step(&grads()).unwrap();
    w.set(&(w.ones_like().unwrap() * 8.0).unwrap()).unwrap();
    optimizer.reseed().unwrap();
    optimizer.step(&grads()).unwrap();
    assert_eq!(values(&w), [7.5; 2]);
}

#[test]
fn a_run_that_is_resumed_goes_on_bit_for_bit() {
    let folder = std::env::temp_dir().join(format!("optim-candle-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (vars_file, state_file) = (folder.join("vars.safetensors"), folder.join("state.safetensors"));
    let model = || {
        let varmap = VarMap::new();
        let vars = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let layers = candle_nn::linear(4, 8, vars.pp("first")).unwrap();
        let settings =
            Builder::new(AdamW::new(PolynomialDecay::new(0.1, 0.0, 20, 1.0).unwrap())).clip_norm(1.0).ema(0.9);
        let optimizer = VarOptimizer::from_varmap(&varmap, settings).unwrap();
        (varmap, layers, optimizer)
    };
    let train = |layers: &candle_nn::Linear, optimizer: &mut VarOptimizer, steps: std::ops::Range<u64>| {
        for step in steps {
            let loss = layers.forward(&tensor(step, &[16, 4])).unwrap().sqr().unwrap().mean_all().unwrap();
            optimizer.backward_step(&loss).unwrap();
        }
    };
    let (varmap, layers, mut optimizer) = model();
    train(&layers, &mut optimizer, 0..6);
    varmap.save(&vars_file).unwrap();
    let len = optimizer.save(&state_file).unwrap();
    assert_eq!(len, std::fs::metadata(&state_file).unwrap().len());
    train(&layers, &mut optimizer, 6..12);

    let (mut again, layers, mut resumed) = model();
    again.load(&vars_file).unwrap();
    let report = resumed.load(&state_file, &LoadOptions::default()).unwrap();
    assert_eq!(report.step, 6);
    train(&layers, &mut resumed, 6..12);
    for (name, var) in varmap.data().lock().unwrap().iter() {
        assert_eq!(bits(var), bits(&again.data().lock().unwrap()[name]), "{name}");
        assert_eq!(optimizer.inner().average(name).unwrap(), resumed.inner().average(name).unwrap(), "{name}");
    }
    let mut other = VarOptimizer::new(vec![ones(1)], AdamW::default()).unwrap();
    let error = other.load(&state_file, &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Optimizer(core::Error::StateMismatch { .. })), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A step on so many vars, from a thread with a stack of so many bytes.
fn step_many(vars: usize, stack: usize) {
    let run = move || {
        let vars: Vec<Var> = (0..vars).map(|_| ones(2)).collect();
        let mut optimizer = VarOptimizer::new(vars.clone(), Sgd::new(0.5)).unwrap();
        let grads = store(vars.iter().map(|var| (var, ones(2).as_tensor().clone())));
        optimizer.step(&grads).unwrap();
        assert!(vars.iter().all(|var| values(var) == [0.5; 2]), "a var was not updated");
    };
    thread::Builder::new().stack_size(stack).spawn(run).unwrap().join().unwrap();
}

#[test]
fn thousands_of_vars_fit_a_small_stack() {
    for vars in [1, 500, 2000, 20_000] {
        step_many(vars, 2 << 20);
    }
    step_many(2000, 1 << 20);
}

#[test]
fn a_pool_of_ones_own() {
    let vars = [("a", ones(5)), ("b", ones(5))];
    let backend = CpuBackend::with_threads(1).unwrap();
    let mut optimizer = VarOptimizer::from_named_on(backend, vars.clone(), Sgd::new(0.5)).unwrap();
    optimizer.step(&store(vars.iter().map(|(_, var)| (var, ones(5).as_tensor().clone())))).unwrap();
    assert!(vars.iter().all(|(_, var)| values(var) == [0.5; 5]), "a var was not updated");
    assert!(optimizer.inner().backend().describe().ends_with("1 threads"), "{optimizer}");
}

/// Two optimizers take the same vars, each in another order and in a thread of its own. Locked in those orders they would wait for one
/// another.
#[test]
fn optimizers_share_vars() {
    let (a, b) = (ones(1000), ones(1000));
    let steps = 2000;
    let (done, all) = mpsc::channel();
    for vars in [[("first", a.clone()), ("second", b.clone())], [("first", b.clone()), ("second", a.clone())]] {
        let done = done.clone();
        thread::spawn(move || {
            let backend = CpuBackend::with_threads(1).unwrap();
            let grads = store(vars.iter().map(|(_, var)| (var, ones(1000).as_tensor().clone())));
            let mut optimizer = VarOptimizer::from_named_on(backend, vars, Sgd::new(2.0_f64.powi(-12))).unwrap();
            (0..steps).for_each(|_| optimizer.step(&grads).unwrap());
            done.send(()).unwrap();
        });
    }
    for _ in 0..2 {
        all.recv_timeout(Duration::from_secs(60)).expect("the optimizers wait for one another");
    }
    let expected = 1.0 - 2.0 * f32::from(u16::try_from(steps).unwrap()) / 4096.0;
    assert!([a, b].iter().all(|var| values(var) == [expected; 1000]), "a step was lost");
}
