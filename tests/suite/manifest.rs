//! The strict reader of the golden trajectories: unknown fields, kinds, classes and keywords are errors, never skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use optimizers::schedule::{CosineDecay, ExponentialDecay, InverseDecay, NaturalExpDecay, PolynomialDecay, WarmUp};
use optimizers::{Rate, Schedule};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// `manifest.json`. Fields that nothing reads are here so that a field which nobody knows is an error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read strictly, used in part")]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    note: String,
    pub(crate) set: String,
    seed: u64,
    /// The updates of the longest cases.
    pub(crate) steps: usize,
    origins: BTreeMap<String, String>,
    layout: BTreeMap<String, String>,
    pub(crate) datasets: BTreeMap<String, Vec<Tensor>>,
    versions: BTreeMap<String, String>,
    pub(crate) cases: Vec<Case>,
    not_run: Vec<NotRun>,
    pub(crate) dynamic_lr: Vec<DynamicLr>,
    pub(crate) schedules: Vec<ScheduleValues>,
    pub(crate) loss_scale: Vec<LossScale>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

/// One trajectory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read strictly, used in part")]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) optimizer: String,
    origin: String,
    pub(crate) dataset: String,
    pub(crate) learning_rate: Option<RateSpec>,
    pub(crate) kwargs: Map<String, Value>,
    pub(crate) groups: Option<Vec<Group>>,
    pub(crate) order_params: Option<Vec<usize>>,
    pub(crate) grad_multiplier: f32,
    pub(crate) sparse_indices: Option<String>,
    /// Which kernels MindSpore was told to use. It changes no number.
    target: Option<Device>,
    pub(crate) steps: usize,
    pub(crate) status: Status,
    bug: Option<String>,
    pub(crate) slots: Vec<String>,
    pub(crate) final_global_step: Option<u64>,
    agreement: BTreeMap<String, f64>,
    pub(crate) semantics: Semantics,
    /// The optimizer that LARS wraps.
    pub(crate) inner: Option<Inner>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) enum Device {
    #[serde(rename = "CPU")]
    Cpu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    Reference,
    MindsporeCpuBug,
    OptaxBug,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Semantics {
    #[serde(rename = "both")]
    Both,
    #[serde(rename = "r1.5")]
    R1,
    #[serde(rename = "2.x")]
    R2,
    #[serde(rename = "torch")]
    Torch,
    #[serde(rename = "optax")]
    Optax,
}

impl Semantics {
    /// Whether it is one of MindSpore's. Others exempt no name from weight decay.
    pub(crate) fn is_mindspores(self) -> bool {
        match self {
            Self::Both | Self::R1 | Self::R2 => true,
            Self::Torch | Self::Optax => false,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    pub(crate) params: Vec<usize>,
    pub(crate) lr: Option<RateSpec>,
    pub(crate) weight_decay: Option<f64>,
    pub(crate) grad_centralization: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Inner {
    pub(crate) optimizer: String,
    pub(crate) lr: RateSpec,
    pub(crate) kwargs: Map<String, Value>,
}

/// A learning rate, by MindSpore's kinds.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum RateSpec {
    Float { value: f64 },
    Int { value: i64 },
    Tensor0d { value: f64 },
    List { values: Vec<f64> },
    Tensor1d { values: Vec<f64> },
    Schedule { class: String, args: Map<String, Value> },
}

impl RateSpec {
    pub(crate) fn rate(&self) -> Rate {
        match self {
            Self::Float { value } | Self::Tensor0d { value } => (*value).into(),
            Self::Int { value } => f64::from(i32::try_from(*value).expect("a small integer")).into(),
            Self::List { values } | Self::Tensor1d { values } => values.clone().into(),
            Self::Schedule { class, args } => {
                Boxed(schedule(class, args).unwrap_or_else(|| panic!("no schedule of the class {class}"))).into()
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read strictly, used in part")]
struct NotRun {
    id: String,
    origin: String,
    error: String,
    message: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read strictly, used in part")]
pub(crate) struct DynamicLr {
    pub(crate) r#fn: String,
    pub(crate) args: Vec<Value>,
    pub(crate) values: Vec<f64>,
    max_abs_diff_2_10: f64,
}

/// The values of one schedule at some indices.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScheduleValues {
    pub(crate) class: String,
    pub(crate) args: Map<String, Value>,
    pub(crate) steps: Vec<u64>,
    pub(crate) values_1_5: Option<Vec<f64>>,
    pub(crate) values_2_10: Option<Vec<f64>>,
}

/// A sequence of overflows, and the loss scale after each step: by MindSpore's manager, and by its cells on a device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LossScale {
    pub(crate) init_loss_scale: f64,
    pub(crate) scale_factor: f64,
    pub(crate) scale_window: u32,
    pub(crate) overflow: Vec<bool>,
    pub(crate) manager: Vec<f64>,
    pub(crate) cell_1_5: Vec<Option<f64>>,
    pub(crate) cell_2_10: Vec<Option<f64>>,
}

/// A schedule of a class that is chosen at run time.
#[derive(Debug)]
struct Boxed(Box<dyn Schedule>);

impl Schedule for Boxed {
    fn at(&self, update: u64) -> f64 {
        self.0.at(update)
    }
}

/// The schedule of a MindSpore class; `None` if there is none of that name.
pub(crate) fn schedule(class: &str, args: &Map<String, Value>) -> Option<Box<dyn Schedule>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct WarmUpLr {
        learning_rate: f64,
        warmup_steps: u64,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct CosineDecayLr {
        min_lr: f64,
        max_lr: f64,
        decay_steps: u64,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct PolynomialDecayLr {
        learning_rate: f64,
        end_learning_rate: f64,
        decay_steps: u64,
        power: f64,
        update_decay_steps: Option<bool>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct DecayLr {
        learning_rate: f64,
        decay_rate: f64,
        decay_steps: u64,
        is_stair: Option<bool>,
    }
    match class {
        "ExponentialDecayLR" => {
            let a: DecayLr = arguments(class, args);
            let schedule = ExponentialDecay::new(a.learning_rate, a.decay_rate, a.decay_steps).unwrap();
            Some(Box::new(schedule.is_stair(a.is_stair.unwrap_or(false))))
        }
        "NaturalExpDecayLR" => {
            let a: DecayLr = arguments(class, args);
            let schedule = NaturalExpDecay::new(a.learning_rate, a.decay_rate, a.decay_steps).unwrap();
            Some(Box::new(schedule.is_stair(a.is_stair.unwrap_or(false))))
        }
        "InverseDecayLR" => {
            let a: DecayLr = arguments(class, args);
            let schedule = InverseDecay::new(a.learning_rate, a.decay_rate, a.decay_steps).unwrap();
            Some(Box::new(schedule.is_stair(a.is_stair.unwrap_or(false))))
        }
        "WarmUpLR" => {
            let a: WarmUpLr = arguments(class, args);
            Some(Box::new(WarmUp::new(a.learning_rate, a.warmup_steps).unwrap()))
        }
        "CosineDecayLR" => {
            let a: CosineDecayLr = arguments(class, args);
            Some(Box::new(CosineDecay::new(a.min_lr, a.max_lr, a.decay_steps).unwrap()))
        }
        "PolynomialDecayLR" => {
            let a: PolynomialDecayLr = arguments(class, args);
            let schedule = PolynomialDecay::new(a.learning_rate, a.end_learning_rate, a.decay_steps, a.power).unwrap();
            Some(Box::new(schedule.update_decay_steps(a.update_decay_steps.unwrap_or(false))))
        }
        _ => None,
    }
}

/// Keyword arguments as a struct which refuses those it does not know.
pub(crate) fn arguments<T: DeserializeOwned>(of: &str, args: &Map<String, Value>) -> T {
    serde_json::from_value(Value::Object(args.clone())).unwrap_or_else(|error| panic!("arguments of {of}: {error}"))
}

/// A folder with a manifest and its numbers.
pub(crate) struct Golden {
    pub(crate) manifest: Manifest,
    /// Whether the folder is the repository's and not the one that `OPTIM_GOLDEN_DIR` names.
    pub(crate) own: bool,
    data: Vec<u8>,
}

/// The repository's folders: MindSpore's trajectories, and PyTorch's and optax's.
const OWN: [&str; 2] = ["golden", "golden/torch"];

impl Golden {
    /// The folder that `OPTIM_GOLDEN_DIR` names, or else all of the repository's.
    pub(crate) fn sets() -> Vec<Self> {
        match env::var_os("OPTIM_GOLDEN_DIR").map(PathBuf::from) {
            Some(folder) => vec![Self::read(&folder, false)],
            None => OWN.map(|folder| Self::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), true)).into(),
        }
    }

    fn read(folder: &Path, own: bool) -> Self {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let manifest: Manifest =
            serde_json::from_slice(&read("manifest.json")).unwrap_or_else(|error| panic!("manifest.json: {error}"));
        assert_eq!(manifest.format, 1, "the only format of the manifest that is known");
        Self { manifest, own, data: read("data.safetensors") }
    }

    pub(crate) fn tensors(&self) -> Tensors<'_> {
        Tensors(SafeTensors::deserialize(&self.data).unwrap_or_else(|error| panic!("data.safetensors: {error}")))
    }
}

/// The numbers by name.
pub(crate) struct Tensors<'a>(SafeTensors<'a>);

impl Tensors<'_> {
    pub(crate) fn get(&self, name: &str) -> Vec<f32> {
        self.words(name, Dtype::F32, f32::from_le_bytes)
    }

    /// Row numbers, which are stored with a sign.
    pub(crate) fn rows(&self, name: &str) -> Vec<u32> {
        let rows = self.words(name, Dtype::I32, i32::from_le_bytes);
        rows.into_iter().map(|row| u32::try_from(row).expect("no negative row")).collect()
    }

    fn words<T>(&self, name: &str, dtype: Dtype, word: fn([u8; 4]) -> T) -> Vec<T> {
        let tensor = self.0.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tensor.dtype(), dtype, "{name}");
        tensor.data().chunks_exact(4).map(|bytes| word(bytes.try_into().expect("four bytes"))).collect()
    }
}
