//! The one error type.

use crate::parameter::DType;
use crate::rules::rounded;

/// `Result` with this library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
///
/// Errors of the caller's input are found before anything is changed: after one, parameters, state and step count are what
/// they were. A failing device ([`DeviceLost`](Self::DeviceLost), [`Timeout`](Self::Timeout),
/// [`OutOfMemory`](Self::OutOfMemory) in the middle of a step) may leave that step half done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An optimizer or a group was given no parameter.
    #[error("{place} has no parameters: expected at least one")]
    NoParameters {
        /// "the optimizer" or the group.
        place: String,
    },
    /// Two parameters have one name.
    #[error("parameter {name:?} is listed twice: names must be unique within an optimizer")]
    DuplicateParameter {
        /// The name.
        name: String,
    },
    /// A parameter with `requires_grad(false)` was handed to an optimizer.
    #[error("parameter {name:?} does not require a gradient: leave it out of the optimizer")]
    FrozenParameter {
        /// The name.
        name: String,
    },
    /// A shape has more elements than memory can have, were none of its extents 0.
    #[error("parameter {name:?} has a shape of too many elements: {shape:?}")]
    ShapeOverflow {
        /// The name.
        name: String,
        /// The shape as given.
        shape: Vec<usize>,
    },
    /// A hyper-parameter is out of its range or not a number.
    #[error("{name} must be {expected}, got {got}")]
    HyperParameter {
        /// The hyper-parameter, with its rule or group where there is one (`adam.beta1`, `group 1: weight_decay`).
        name: String,
        /// The values that are accepted.
        expected: &'static str,
        /// The value that was given.
        got: String,
    },
    /// A list of rates is shorter than the training.
    #[error("the {what}s of {place} are exhausted: update {update} needs index {update}, the list has {len} entries")]
    RateExhausted {
        /// "learning rate" or "weight decay".
        what: &'static str,
        /// "the optimizer" or the group.
        place: String,
        /// The 0-based index of this update.
        update: u64,
        /// The length of the list.
        len: usize,
    },
    /// A schedule returned a value that is not a finite number, or a negative one for a weight decay.
    #[error(
        "the {what} of {place} at update {update} is {}: expected a finite number, of a weight decay not a negative one",
        shown(*got)
    )]
    RateNotFinite {
        /// "learning rate" or "weight decay".
        what: &'static str,
        /// "the optimizer" or the group.
        place: String,
        /// The 0-based index of this update.
        update: u64,
        /// What the schedule returned.
        got: f64,
    },
    /// A step got more or fewer parameters or gradients than are registered.
    #[error("expected {expected} {what}s, in the order of registration, got {got}")]
    Count {
        /// "parameter" or "gradient".
        what: &'static str,
        /// The number of registered parameters.
        expected: usize,
        /// The number handed over.
        got: usize,
    },
    /// Parameters are left out where all must be named.
    #[error("{what} leaves out {}", names.join(", "))]
    LeftOut {
        /// "the order" or "the step".
        what: &'static str,
        /// Their names.
        names: Vec<String>,
    },
    /// Memory has another length than its parameter's shape says, or than that for which it is meant.
    #[error("{}", length(what, name, *expected, *got))]
    Length {
        /// "parameter", "gradient", "buffer" for what is written into one, or "new rows" for their values.
        what: &'static str,
        /// The parameter's name, or the buffer's.
        name: String,
        /// Elements by the shape, of the buffer or of the rows.
        expected: usize,
        /// Elements handed over.
        got: usize,
    },
    /// Memory handed to a step has another element type than registered or supported.
    #[error("{what} {name:?} is {got}, expected {expected}{}", declared(what))]
    DType {
        /// "parameter" or "gradient".
        what: &'static str,
        /// The parameter's name.
        name: String,
        /// The type that is accepted here.
        expected: DType,
        /// The type handed over.
        got: DType,
    },
    /// A row-sparse gradient with a rule that takes none.
    #[error("gradient {name:?} is row-sparse, which the rule {rule:?} does not take")]
    RowSparse {
        /// The parameter's name.
        name: String,
        /// The rule.
        rule: &'static str,
    },
    /// A row-sparse gradient lists a row that the parameter does not have.
    #[error("gradient {name:?} lists row {index}, the parameter has {rows} rows")]
    RowIndex {
        /// The parameter's name.
        name: String,
        /// The index.
        index: u32,
        /// The number of rows: the first extent of the shape.
        rows: usize,
    },
    /// A row-sparse gradient has more or fewer values than the rows that it lists have elements.
    #[error("gradient {name:?} has {got} elements, the rows that it lists ({rows}) have {expected}")]
    RowLength {
        /// The parameter's name.
        name: String,
        /// The number of rows that are listed.
        rows: usize,
        /// The elements of so many rows.
        expected: usize,
        /// Elements handed over.
        got: usize,
    },
    /// Memory of one backend was handed to another, or a buffer is not fit for use.
    #[error("{what} {name:?}: expected {expected}, got {got}")]
    Memory {
        /// "parameter" or "gradient".
        what: &'static str,
        /// The parameter's name, or the buffer's where it is not yet tied to a parameter.
        name: String,
        /// What the backend needs.
        expected: String,
        /// What it was given.
        got: String,
    },
    /// There is no such parameter, or the rule keeps no such slot.
    #[error("no {what} named {name:?}: {}", known(what, expected))]
    Unknown {
        /// "parameter", "slot" or "group".
        what: &'static str,
        /// The name that was asked for.
        name: String,
        /// The names there are; empty if there are none.
        expected: String,
    },
    /// More steps in a row were skipped than the loss scale allows. The last of them was skipped too; nothing else has changed.
    #[error("{skips} steps in a row were skipped: {}", not_finite(name))]
    TooManySkips {
        /// The first parameter whose gradient is not finite; empty if all are finite and only the square of their norm is not.
        name: String,
        /// Steps skipped in a row.
        skips: u32,
    },
    /// A pattern chooses no parameter.
    #[error("{place}: {pattern} matches no parameter that is not in an earlier group")]
    NoMatch {
        /// The group.
        place: String,
        /// The pattern.
        pattern: String,
    },
    /// No group takes a parameter.
    #[error("parameter {name:?} is in no group: add one for the rest")]
    Unclaimed {
        /// The parameter.
        name: String,
    },
    /// A pattern does not parse.
    #[error("the pattern {pattern:?} does not parse: {detail}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Something is asked for at a time when it cannot be done.
    #[error("{what}: {expected}")]
    State {
        /// What was asked for.
        what: &'static str,
        /// What has to be done first.
        expected: &'static str,
    },
    /// A step was recorded, and its commands were dropped or refused in place of being run. Parameters and state are as if it had not
    /// been. Its number is used up unless it was guarded. Reported once, as soon as it is known; the optimizer goes on.
    #[error("a recorded step was lost: its commands were never run")]
    StepLost,
    /// A state does not fit the optimizer that is to load it. Nothing has changed.
    #[error("the state does not fit the optimizer: {}", problems.join("; "))]
    StateMismatch {
        /// All that does not fit, one line each.
        problems: Vec<String>,
    },
    /// A file of state is damaged, or not one. Nothing has changed, unless an array could not be read: see
    /// [`Optimizer::load_state`](crate::Optimizer::load_state).
    #[error("{path} cannot be read as a state file: {detail}")]
    StateFile {
        /// The file.
        path: String,
        /// What is wrong with it, and where.
        detail: String,
    },
    /// The operating system refused something about a file.
    #[error("{path}: {detail}")]
    File {
        /// The file that was asked for.
        path: String,
        /// What was tried, with another file where that is not this one, and the answer.
        detail: String,
    },
    /// A combination that this version does not run. Never a silent fallback.
    #[error("{what} is not supported by the {backend} backend")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// The backend that refuses.
        backend: String,
    },
    /// The WGSL of a rule of the user's own does not compile.
    #[error("the WGSL of the rule {rule:?} does not compile: {detail}")]
    Shader {
        /// The rule.
        rule: String,
        /// What the compiler said.
        detail: String,
    },
    /// This build does not contain the backend.
    #[error(
        "the {backend} backend is not part of this build: enable the feature {feature:?} of the crate `optimizers`"
    )]
    BackendNotBuilt {
        /// The backend's name.
        backend: &'static str,
        /// The feature that brings it.
        feature: &'static str,
    },
    /// No GPU, not even a software one, was found.
    #[error("no GPU adapter found: {hint} ({detail})")]
    NoAdapter {
        /// How to get one.
        hint: &'static str,
        /// What the graphics library said.
        detail: String,
    },
    /// The device lacks something that the kernels need.
    #[error("the device is not sufficient: {what} must be at least {expected}, got {got}")]
    DeviceLimit {
        /// The limit's name.
        what: &'static str,
        /// The least that is needed.
        expected: u64,
        /// What the device has.
        got: u64,
    },
    /// The device ran out of memory. It is still usable.
    #[error("the device is out of memory: {detail}")]
    OutOfMemory {
        /// What the graphics library said.
        detail: String,
    },
    /// The device is gone (driver reset, unplugged, destroyed). Make a new backend and restore the state.
    #[error("the device is lost: {detail}")]
    DeviceLost {
        /// What the graphics library said.
        detail: String,
    },
    /// The device did not finish in time. It may still finish.
    #[error("the device did not finish within {seconds} s")]
    Timeout {
        /// The limit that passed.
        seconds: u64,
    },
    /// The graphics library refused a call: of this library, which after its own checks is a defect of it, so please report it; of a
    /// callback of the caller's that wgpu called meanwhile; or because an encoder was of another device.
    #[error("the device refused a call: {detail}")]
    Device {
        /// What the graphics library said.
        detail: String,
    },
}

/// Where a parameter's type comes from.
fn declared(what: &str) -> &'static str {
    if what == "parameter" { ": Parameter::with_dtype declares another type than f32" } else { "" }
}

/// What is wrong with a length.
fn length(what: &str, name: &str, expected: usize, got: usize) -> String {
    match what {
        "buffer" => format!("buffer {name:?} has {expected} elements, {got} were to be written"),
        "new rows" => format!(
            "the new rows of {name:?} have {expected} elements, got {got}: masters and averages begin with them, \
             only without either they may be left out"
        ),
        _ => format!("{what} {name:?} has {got} elements, its shape has {expected}"),
    }
}

/// The names there are.
fn known(what: &str, names: &str) -> String {
    match (what, names) {
        ("group", "") => "no group has a name".into(),
        (_, "") => format!("there is no {what}"),
        _ => format!("expected one of {names}"),
    }
}

/// What kept a step from being applied.
fn not_finite(name: &str) -> String {
    if name.is_empty() {
        "the norm of all gradients is not finite".into()
    } else {
        format!("the gradient of {name:?} is not finite")
    }
}

/// Checks one hyper-parameter: `Ok` if it is valid as given and as the `f32` that kernels see, else an
/// [`Error::HyperParameter`] that names it.
pub fn check(name: &str, expected: &'static str, got: f64, valid: impl Fn(f64) -> bool) -> Result<()> {
    let valid_as_given = valid(got);
    if valid_as_given && valid(rounded(got)) {
        Ok(())
    } else {
        let (single, mut got) = (rounded(got), shown(got));
        if valid_as_given {
            got = format!("{got}, which as an f32 is {}", shown(single));
        }
        Err(Error::HyperParameter { name: name.to_owned(), expected, got })
    }
}

impl Error {
    /// The same, with where a hyper-parameter stands before its name.
    pub(crate) fn placed(self, place: &str) -> Self {
        match self {
            Self::HyperParameter { name, expected, got } => {
                Self::HyperParameter { name: format!("{place}{name}"), expected, got }
            }
            error => error,
        }
    }
}

/// A number in as many characters as its digits need: not in hundreds of zeros.
pub(crate) fn shown(x: f64) -> String {
    if x == 0.0 || !x.is_finite() || (1e-5..1e15).contains(&x.abs()) { x.to_string() } else { format!("{x:e}") }
}

/// Checks a count.
pub(crate) fn at_least_one(value: u64, name: &str) -> Result<()> {
    if value == 0 {
        return Err(Error::HyperParameter { name: name.to_owned(), expected: "≥ 1", got: "0".into() });
    }
    Ok(())
}
