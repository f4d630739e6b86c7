//! What is measured: the cases, and the rows of the table.

use optimizers::rule::Passes;
use optimizers::{DType, Parameter, Rule, StateDType};

/// Lists of tensors: a name, and one shape a line.
const CASES: [(&str, &str); 5] = [
    ("flat64M", include_str!("cases/flat64M.txt")),
    ("gpt2-small", include_str!("cases/gpt2-small.txt")),
    ("resnet50", include_str!("cases/resnet50.txt")),
    ("tiny2000x256", include_str!("cases/tiny2000x256.txt")),
    ("one100k", include_str!("cases/one100k.txt")),
];

/// The rules that every case is measured with.
const USUAL: [&str; 4] = ["sgd", "momentum", "adam", "adamw"];

/// Numbers of threads.
pub(crate) const THREADS: [usize; 2] = [1, 2];

/// A list of tensors.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) shapes: Vec<Vec<usize>>,
}

impl Case {
    pub(crate) fn all() -> Vec<Self> {
        CASES.map(|(name, shapes)| Self { name, shapes: shapes.lines().map(extents).collect() }).into()
    }

    /// One tensor with as many elements.
    pub(crate) fn in_one(&self, name: &'static str) -> Self {
        Self { name, shapes: vec![vec![self.elements()]] }
    }

    /// The elements of each tensor.
    pub(crate) fn lens(&self) -> Vec<usize> {
        self.shapes.iter().map(|shape| shape.iter().product()).collect()
    }

    /// The elements of all tensors.
    pub(crate) fn elements(&self) -> usize {
        self.lens().iter().sum()
    }

    pub(crate) fn parameters(&self, dtype: DType) -> Vec<Parameter> {
        let parameter =
            |(i, shape): (usize, &Vec<usize>)| Parameter::new(format!("p{i}"), shape.clone()).with_dtype(dtype);
        self.shapes.iter().enumerate().map(parameter).collect()
    }
}

/// The extents of a shape written as `64x3x7x7`, or as numbers apart.
pub(crate) fn extents(shape: &str) -> Vec<usize> {
    let extents = shape.split(|c: char| !c.is_ascii_digit()).filter(|extent| !extent.is_empty());
    extents.map(|extent| extent.parse().expect("a number")).collect()
}

/// What one row measures, beside the case.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) rule: Rule,
    pub(crate) threads: usize,
    /// Of parameters and gradients.
    pub(crate) dtype: DType,
    pub(crate) state: StateDType,
    /// Whether gradients are clipped by their norm over all parameters.
    pub(crate) clip: bool,
}

impl Setting {
    /// The rule's name, and the variant of its kernel if it is not the first.
    pub(crate) fn rule_name(&self) -> String {
        let spec = self.rule.spec();
        match (spec.name(), spec.entry().strip_prefix("update_")) {
            ("sgd", None) => "sgd_momentum".into(),
            ("sgd", Some(_)) => "sgd".into(),
            ("ada_factor", _) => format!("ada_factor_{}", self.factored_name()),
            (name, Some(variant)) => format!("{name}_{variant}"),
            (name, None) => name.into(),
        }
    }

    fn factored_name(&self) -> &'static str {
        match (self.compresses(), self.rule.spec().slots().len()) {
            (true, _) => "compressed",
            (false, 4) => "moment",
            (false, _) => "plain",
        }
    }

    /// The words by which a row is chosen.
    pub(crate) fn label(&self, backend: &str, case: &str) -> String {
        let (dtype, state) = (dtype_name(self.dtype), state_name(self.state));
        let clip = if self.clip { "clip" } else { "no_clip" };
        format!("{backend} {case} {} {} {dtype} {state}-state {clip}", self.rule_name(), self.threads)
    }

    /// Whether all numbers are `f32` and nothing is read twice.
    pub(crate) fn is_plain(&self) -> bool {
        self.dtype == DType::F32 && self.state == StateDType::F32 && !self.compresses() && !self.clip
    }

    /// Whether the rule itself keeps some of its state as `f16`.
    pub(crate) fn compresses(&self) -> bool {
        self.rule.spec().slots().iter().any(|slot| slot.dtype == DType::F16)
    }

    /// Whether an element's update depends on other elements.
    pub(crate) fn looks_around(&self) -> bool {
        self.rule.spec().passes() != Passes::Elementwise || self.rule.spec().has_trust()
    }
}

pub(crate) fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        _ => "f32",
    }
}

pub(crate) fn state_name(state: StateDType) -> &'static str {
    match state {
        StateDType::F32 => "f32",
        StateDType::Bf16 => "bf16",
        StateDType::Block8 => "8bit",
    }
}

/// The rows of a case: every one, or those that matter.
pub(crate) fn settings(case: &str, every: bool) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for rule in Rule::all() {
            for state in [StateDType::F32, StateDType::Bf16, StateDType::Block8] {
                for clip in [false, true] {
                    for threads in THREADS {
                        let setting = Setting { rule: rule.clone(), threads, dtype, state, clip };
                        let label = setting.label("cpu", case);
                        let known = settings.iter().any(|setting| setting.label("cpu", case) == label);
                        let narrow = rule.spec().slots().iter().any(|slot| slot.narrow.is_some());
                        if !known && (state == StateDType::F32 || narrow) && (every || matters(case, &setting)) {
                            settings.push(setting);
                        }
                    }
                }
            }
        }
    }
    settings
}

/// Whether a row is measured without being asked for.
fn matters(case: &str, setting: &Setting) -> bool {
    let name = setting.rule_name();
    match (setting.dtype, setting.state, setting.clip) {
        (DType::F32, StateDType::F32, false) => USUAL.contains(&&*name) || case == "resnet50" && setting.threads == 2,
        (DType::F32, StateDType::F32, true) => name == "adam",
        (DType::F32, _, false) => name == "adam" && (setting.threads == 2 || case == "flat64M"),
        (_, StateDType::F32, false) => {
            name == "adam" && setting.threads == 2 && ["flat64M", "resnet50"].contains(&case)
        }
        _ => false,
    }
}
