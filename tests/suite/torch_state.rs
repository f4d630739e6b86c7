//! The state of PyTorch's optimizers: what PyTorch exported is gone on from, and what it went on from is what is written.
//! `golden/torch_state/make.py` made the files with PyTorch and `examples/torch_state.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use optim_tests::tolerance::TORCH_STATE;
use optim_tests::{Target, on_every_backend};
use optimizers::checkpoint::{self, Reader};
use optimizers::{
    AdaMax, Adadelta, Adagrad, Adam, AdamW, Asgd, Builder, Grad, Hyper, LoadOptions, NAdam, Optimizer, ParamGroup,
    Parameter, RAdam, RmsProp, Rprop, Rule, Sgd, StateMeta, StateSource,
};
use safetensors::SafeTensors;

/// The parameters, in the order of a step.
const SHAPES: [(&str, &[usize]); 5] =
    [("fc.weight", &[4, 6]), ("conv.weight", &[3, 2, 1, 3]), ("bn.gamma", &[7]), ("scale", &[]), ("late", &[5])];

/// The updates after which a state moves, and all.
const HALF: usize = 10;
const STEPS: usize = 20;

/// The cases: the rule of all parameters, or those of two groups: `bn.gamma` and `fc.weight`, and the others.
fn cases() -> Vec<(&'static str, Vec<Rule>)> {
    let adam = Adam { beta1: 0.8, beta2: 0.95, eps: 1e-3, lr: 0.02.into(), ..Adam::torch() };
    let adamw = AdamW { beta1: 0.8, beta2: 0.95, eps: 1e-3, ..AdamW::new(0.02) };
    let nadam = NAdam { beta1: 0.8, beta2: 0.95, eps: 1e-3, decoupled_weight_decay: true, ..NAdam::new(0.02) };
    let radam = RAdam { beta1: 0.8, beta2: 0.95, eps: 1e-3, decoupled_weight_decay: true, ..RAdam::new(0.02) };
    let rms_prop = RmsProp { decay: 0.9, epsilon: 1e-2, momentum: 0.5, centered: true, ..RmsProp::torch() };
    let rprop = Rprop { etas: (0.4, 1.3), step_sizes: (1e-3, 0.1), ..Rprop::new(0.02) };
    vec![
        ("adam", vec![Adam::torch().into()]),
        ("adam_amsgrad", vec![Adam { use_amsgrad: true, weight_decay: 0.1, ..adam }.into()]),
        ("adamw", vec![AdamW::default().into()]),
        ("adamw_amsgrad", vec![AdamW { amsgrad: true, weight_decay: 0.2, ..adamw.clone() }.into()]),
        (
            "adamw_groups",
            vec![AdamW { weight_decay: 0.0, ..adamw }.into(), AdamW { weight_decay: 0.3, ..AdamW::new(0.01) }.into()],
        ),
        ("sgd", vec![Sgd { weight_decay: 0.1, ..Sgd::new(0.05) }.into()]),
        ("sgd_dampening", vec![Sgd { momentum: 0.9, dampening: 0.3, ..Sgd::new(0.05) }.into()]),
        ("sgd_nesterov", vec![Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.1, ..Sgd::new(0.02) }.into()]),
        ("rms_prop", vec![RmsProp::torch().into()]),
        ("rms_prop_centered", vec![RmsProp { lr: 0.005.into(), weight_decay: 0.1, ..rms_prop }.into()]),
        (
            "adagrad",
            vec![Adagrad { lr: 0.1.into(), lr_decay: 0.05, accum: 0.3, weight_decay: 0.1, ..Adagrad::torch() }.into()],
        ),
        (
            "ada_max",
            vec![
                AdaMax { lr: 0.02.into(), beta1: 0.8, beta2: 0.9, eps: 1e-3, weight_decay: 0.1, ..AdaMax::torch() }
                    .into(),
            ],
        ),
        ("nadam", vec![NAdam { momentum_decay: 0.05, ..NAdam::default() }.into()]),
        ("nadam_decoupled", vec![NAdam { weight_decay: 0.1, ..nadam }.into()]),
        ("radam", vec![RAdam::default().into()]),
        ("radam_decoupled", vec![RAdam { weight_decay: 0.1, ..radam }.into()]),
        ("adadelta", vec![Adadelta { rho: 0.8, epsilon: 1e-2, weight_decay: 0.1, ..Adadelta::new(0.5) }.into()]),
        ("rprop", vec![rprop.into()]),
        ("asgd", vec![Asgd { lambd: 0.05, alpha: 0.6, t0: 4.0, weight_decay: 0.1, ..Asgd::new(0.05) }.into()]),
    ]
}

/// Whether the parameter `late` has no gradient in the first half.
fn is_late(case: &str) -> bool {
    ["sgd_dampening", "rprop"].contains(&case)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/torch_state")
}

/// The arrays of a file of `f32`, by name.
fn arrays(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let arrays = file.iter().map(|(name, tensor)| (name.into(), tensor.data().chunks_exact(4).map(number).collect()));
    arrays.collect()
}

/// A training by this library.
struct Run {
    optimizer: Optimizer,
    params: Vec<Vec<f32>>,
    late: bool,
}

impl Run {
    fn new(target: Target, case: &str, rules: &[Rule], params: Vec<Vec<f32>>) -> Self {
        let all: Vec<_> = SHAPES.iter().map(|&(name, shape)| Parameter::new(name, shape)).collect();
        let pick = |names: &[usize]| names.iter().map(|&i| all[i].clone()).collect::<Vec<_>>();
        let members = match rules {
            [_] => vec![pick(&[0, 1, 2, 3, 4])],
            [_, _] => vec![pick(&[2, 0]), pick(&[1, 3, 4])],
            _ => panic!("{case}: one group or two"),
        };
        let groups = members.into_iter().zip(rules).map(|(members, rule)| ParamGroup::new(members).rule(rule.clone()));
        let builder = Builder::new(rules[0].clone()).groups(groups).order_params(&all);
        Self { optimizer: builder.build(target).unwrap(), params, late: is_late(case) }
    }

    /// Does the updates of these numbers, 0 for the first.
    fn train(&mut self, data: &BTreeMap<String, Vec<f32>>, updates: std::ops::Range<usize>) {
        for update in updates {
            let gradient = |&(name, shape): &(&str, &[usize])| {
                if self.late && name == "late" && update < HALF {
                    return Grad::None;
                }
                let len: usize = shape.iter().product();
                (&data[&format!("g/{name}")][update * len..(update + 1) * len]).into()
            };
            let grads: Vec<Grad<'_>> = SHAPES.iter().map(gradient).collect();
            let mut params: Vec<_> = self.params.iter_mut().map(Into::into).collect();
            assert!(self.optimizer.step(&mut params, &grads).unwrap().applied(), "applied");
        }
    }
}

/// Parameters of the data.
fn params(data: &BTreeMap<String, Vec<f32>>, prefix: &str) -> Vec<Vec<f32>> {
    SHAPES.iter().map(|(name, _)| data[&format!("{prefix}/{name}")].clone()).collect()
}

/// The largest difference, as a part of the tensor's largest absolute value.
#[track_caller]
fn error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len(), "the numbers of one tensor");
    let scale = expected.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    largest(got.iter().zip(expected).map(|(a, b)| if a == b { 0.0 } else { f64::from((a - b).abs() / scale) }))
}

/// The largest error of parameters.
#[track_caller]
fn worst(got: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    largest(got.iter().zip(expected).map(|(a, b)| error(a, b)))
}

/// The largest number; infinite if one is none.
fn largest(errors: impl Iterator<Item = f64>) -> f64 {
    errors.map(|error| if error.is_nan() { f64::INFINITY } else { error }).fold(0.0, f64::max)
}

/// A description without its author.
fn described(meta: &StateMeta) -> String {
    format!("{:?}", StateMeta { library: String::new(), ..meta.clone() })
}

on_every_backend! {
    /// What PyTorch exported is gone on from, with the settings of the program or with those of the file.
    fn goes_on_from_pytorch(target) {
        let data = arrays(&folder().join("data.safetensors"));
        for (case, rules) in cases() {
            let file = folder().join(format!("{case}.torch.safetensors"));
            for hyper in [Hyper::UseNew, Hyper::KeepSaved] {
                let mut run = Run::new(target, case, &rules, params(&data, &format!("{case}/torch/{HALF}")));
                if hyper == Hyper::KeepSaved {
                    for group in 0..rules.len() {
                        run.optimizer.set_lr(group, 123.0).unwrap();
                    }
                }
                let options = LoadOptions { hyper, ..LoadOptions::default() };
                let report = checkpoint::load(&mut run.optimizer, &file, &options).unwrap();
                assert_eq!(report.step, HALF as u64, "{case}");
                run.train(&data, HALF..STEPS);
                let worst = worst(&run.params, &params(&data, &format!("{case}/torch/{STEPS}")));
                println!("{case:20} ours from PyTorch's, {hyper:?}: {worst:.1e}");
                assert!(worst <= target.allows(TORCH_STATE), "{case}, {hyper:?}: {worst:e}");
            }
            // The control: without the state it comes to something else, where there is one.
            let mut run = Run::new(target, case, &rules, params(&data, &format!("{case}/torch/{HALF}")));
            run.train(&data, HALF..STEPS);
            let worst = worst(&run.params, &params(&data, &format!("{case}/torch/{STEPS}")));
            assert!(worst > 100.0 * TORCH_STATE || case == "sgd", "{case}: {worst:e} without the state");
        }
    }

    /// What PyTorch went on from is what is written, and it came to what an uninterrupted run comes to.
    fn pytorch_goes_on(target) {
        let data = arrays(&folder().join("data.safetensors"));
        for (case, rules) in cases() {
            let mut run = Run::new(target, case, &rules, params(&data, "p"));
            run.train(&data, 0..HALF);
            let here = worst(&run.params, &params(&data, &format!("{case}/ours/{HALF}")));
            assert!(here <= target.allows(TORCH_STATE), "{case}: {here:e} after {HALF} updates");

            let file = folder().join(format!("{case}.ours.safetensors"));
            let written = arrays(&file);
            let state = run.optimizer.state().unwrap();
            let names: BTreeSet<_> = state.arrays().iter().map(|array| &array.name).collect();
            assert_eq!(names, written.keys().collect(), "{case}");
            for (index, array) in state.arrays().iter().enumerate() {
                let mut bytes = vec![0; array.bytes().unwrap()];
                state.read(index, 0, &mut bytes).unwrap();
                let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("four bytes"));
                let values: Vec<_> = bytes.chunks_exact(4).map(number).collect();
                let error = error(&values, &written[&array.name]);
                assert!(error <= target.allows(TORCH_STATE), "{case}, {}: {error:e}", array.name);
            }
            assert_eq!(described(state.meta()), described(Reader::open(&file).unwrap().meta()), "{case}");

            run.train(&data, HALF..STEPS);
            let worst = worst(&run.params, &params(&data, &format!("{case}/from_ours/{STEPS}")));
            println!("{case:20} PyTorch from ours: {worst:.1e}");
            assert!(worst <= target.allows(TORCH_STATE), "{case}: {worst:e}");
        }
    }
}

/// PyTorch's export describes itself as a state of this library does: rules, rates, counts, flags.
#[test]
fn the_export_is_what_would_be_written() {
    for (case, _) in cases() {
        let meta = |by: &str| {
            let file = folder().join(format!("{case}.{by}.safetensors"));
            let reader = Reader::open(file).unwrap();
            let mut meta = reader.meta().clone();
            // The order of PyTorch's optimizer: that of its groups.
            meta.parameters.sort_by(|a, b| a.name.cmp(&b.name));
            let arrays: BTreeSet<_> = reader.arrays().iter().map(|array| format!("{array:?}")).collect();
            (described(&meta), arrays)
        };
        assert_eq!(meta("torch"), meta("ours"), "{case}");
    }
}

/// Every file belongs to a case.
#[test]
fn every_file_is_read() {
    let files = fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<_> = files.filter(|name| name.ends_with(".safetensors")).collect();
    let of_cases =
        cases().into_iter().flat_map(|(case, _)| ["torch", "ours"].map(|by| format!("{case}.{by}.safetensors")));
    let expected: BTreeSet<_> = of_cases.chain(["data.safetensors".to_owned()]).collect();
    assert_eq!(files, expected);
}

/// Writes what `make.py` gives to PyTorch: the state after half of the updates, and the parameters then and at the end.
#[cfg(feature = "cpu")]
#[test]
#[ignore = "golden/torch_state/make.py runs it"]
fn writes() {
    let out = PathBuf::from(std::env::var_os("OPTIM_TORCH_STATE_OUT").expect("OPTIM_TORCH_STATE_OUT names a folder"));
    let data = arrays(&folder().join("data.safetensors"));
    for (case, rules) in cases() {
        let mut run = Run::new(Target::Cpu, case, &rules, params(&data, "p"));
        let mut all = Vec::new();
        for updates in [0..HALF, HALF..STEPS] {
            let end = updates.end;
            run.train(&data, updates);
            if end == HALF {
                checkpoint::save(&mut run.optimizer, out.join(format!("{case}.state.safetensors"))).unwrap();
            }
            let bytes = |p: &Vec<f32>| p.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
            let params = run.params.iter().map(bytes).zip(SHAPES);
            all.extend(params.map(|(bytes, (name, shape))| (format!("{end}/{name}"), shape, bytes)));
        }
        let views = all.iter().map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        let file = out.join(format!("{case}.params.safetensors"));
        fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}
