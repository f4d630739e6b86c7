//! Engines driven directly: records, verdicts and state arrays, without an optimizer around them.

use std::collections::BTreeSet;
use std::fmt;

use half::{bf16, f16};
use optimizers::core::Engine;
use optimizers::core::backend::{
    Element, Part, Plan, Progress, Record, RowList, Shaping, Stages, Tensor, Trust, Update,
};
use optimizers::core::format::{Master, StateDType, tensor_key};
use optimizers::core::guard::{Control, Guard, Skip, Verdict};
use optimizers::rule::{At, Decay};
use optimizers::{DType, Grad, IntoBackend, ParamMut, Parameter, Result, Rule, Values};

use crate::Random;

/// Numbers in the host's memory, as one of the types that parameters and gradients may have.
#[derive(Debug, Clone, PartialEq)]
pub enum Numbers {
    /// As `f32`.
    F32(Vec<f32>),
    /// As `f16`.
    F16(Vec<f16>),
    /// As bf16.
    Bf16(Vec<bf16>),
}

impl Numbers {
    /// These numbers, rounded to nearest.
    #[must_use]
    pub fn new(dtype: DType, values: &[f32]) -> Self {
        match dtype {
            DType::F32 => Self::F32(values.to_vec()),
            DType::F16 => Self::F16(values.iter().map(|&x| f16::from_f32(x)).collect()),
            DType::Bf16 => Self::Bf16(values.iter().map(|&x| bf16::from_f32(x)).collect()),
        }
    }

    /// As many [wide](Random::wide) numbers as asked for; some are 0, of either sign.
    #[must_use]
    pub fn random(dtype: DType, len: usize, random: &mut Random) -> Self {
        let mut values = random.tensor(len);
        values.iter_mut().skip(7).step_by(31).for_each(|x| *x *= 0.0);
        Self::new(dtype, &values)
    }

    /// Replaces an element by one with these bits.
    pub fn set_bits(&mut self, index: usize, bits: u32) {
        let half = || u16::try_from(bits).expect("16 bits");
        match self {
            Self::F32(values) => values[index] = f32::from_bits(bits),
            Self::F16(values) => values[index] = f16::from_bits(half()),
            Self::Bf16(values) => values[index] = bf16::from_bits(half()),
        }
    }

    /// For a step.
    pub fn param(&mut self) -> ParamMut<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::F16(values) => values.into(),
            Self::Bf16(values) => values.into(),
        }
    }

    /// As the values of a row-sparse gradient.
    #[must_use]
    pub fn values(&self) -> Values<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::F16(values) => values.into(),
            Self::Bf16(values) => values.into(),
        }
    }

    fn element(&self) -> Element {
        match self {
            Self::F32(_) => Element::F32,
            Self::F16(_) => Element::F16,
            Self::Bf16(_) => Element::Bf16,
        }
    }

    /// The numbers in memory.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(values) => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
            Self::F16(values) => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
            Self::Bf16(values) => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        }
    }
}

impl<'a> From<&'a Numbers> for Grad<'a> {
    fn from(numbers: &'a Numbers) -> Self {
        match numbers {
            Numbers::F32(values) => values.into(),
            Numbers::F16(values) => values.into(),
            Numbers::Bf16(values) => values.into(),
        }
    }
}

/// How a parameter and its state are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formats {
    /// The parameter's type.
    pub dtype: DType,
    /// What stands behind it.
    pub master: Master,
    /// How slots are kept that can be narrow.
    pub state: StateDType,
}

impl Formats {
    /// As `f32`, all of it.
    pub const F32: Self = Self { dtype: DType::F32, master: Master::F32, state: StateDType::F32 };

    /// The ways to keep a parameter and what stands behind it.
    pub const PARAMETERS: [(DType, Master); 8] = [
        (DType::F32, Master::F32),
        (DType::F16, Master::F32),
        (DType::F16, Master::None),
        (DType::F16, Master::Stochastic),
        (DType::Bf16, Master::F32),
        (DType::Bf16, Master::None),
        (DType::Bf16, Master::Stochastic),
        (DType::Bf16, Master::Split),
    ];

    /// The ways to keep state.
    pub const STATES: [StateDType; 3] = [StateDType::F32, StateDType::Bf16, StateDType::Block8];

    /// All ways to keep a parameter with all ways to keep its state.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let with = |state| Self::PARAMETERS.map(|(dtype, master)| Self { dtype, master, state });
        Self::STATES.into_iter().flat_map(with).collect()
    }
}

/// What an engine is made for, and where its parameters start.
#[derive(Debug, Clone)]
pub struct Case {
    /// The rules.
    pub rules: Vec<Rule>,
    /// The parameters.
    pub tensors: Vec<Tensor>,
    /// The number of groups.
    pub groups: usize,
    /// Where the parameters start.
    pub start: Vec<Numbers>,
    random: Random,
}

impl Case {
    /// No parameters yet, in one group.
    #[must_use]
    pub fn new(rules: &[Rule], seed: u64) -> Self {
        Self { rules: rules.to_vec(), tensors: Vec::new(), groups: 1, start: Vec::new(), random: Random::new(seed) }
    }

    /// One more parameter, of random numbers. Returns the entry of the plan, to be changed.
    pub fn push(&mut self, shape: &[usize], formats: Formats, rule: usize) -> &mut Tensor {
        let Formats { dtype, master, state } = formats;
        let parameter = Parameter::new(format!("w{}", self.tensors.len()), shape).with_dtype(dtype);
        self.start.push(Numbers::random(dtype, parameter.len(), &mut self.random));
        let key = tensor_key(7, parameter.name());
        self.tensors.push(Tensor { parameter, group: 0, rule, master, state, ema: false, key });
        self.tensors.last_mut().expect("one was pushed")
    }

    /// Random gradients for all parameters; that of parameter `i` is of the type `dtype(i)`.
    pub fn gradients(&mut self, dtype: impl Fn(usize) -> DType) -> Vec<Option<Numbers>> {
        let lens = self.tensors.iter().map(|tensor| tensor.parameter.len()).enumerate();
        lens.map(|(i, len)| Some(Numbers::random(dtype(i), len, &mut self.random))).collect()
    }
}

/// Where an update stands: a rate of 0.01 or the rule's own, decoupled decay of 0.1 if the rule has it.
#[must_use]
pub fn at(rule: &Rule, t: u32) -> At {
    let (lr, weight_decay) =
        (rule.spec().own_lr(t.into()).unwrap_or(0.01), if rule.spec().decay() == Decay::Decoupled { 0.1 } else { 0.0 });
    let beta_powers = rule.spec().betas().map(|beta| beta.powi(t.try_into().expect("few updates")));
    At { t: t.into(), lr, previous_lr: lr, weight_decay, beta_powers, dynamic_lr: false, first: t == 1 }
}

/// The record of the update that stands [there](at), with nothing around the rule.
#[must_use]
pub fn record(rule: &Rule, t: u32) -> Record {
    let stages = Stages { step: t, ema: 0.0, max_norm: 0.0, owner: 0, units: 0.0, units_epsilon: 0.0, pad: [0; 2] };
    Record { shaping: Shaping::NONE, trust: Trust::NONE, stages, scalars: rule.spec().scalars(&at(rule, t)) }
}

/// The most updates that are pending at a time.
const PENDING: u32 = 3;

/// An engine with its parameters' memory, and the verdicts that came so far.
#[derive(Debug)]
pub struct Driven {
    by: String,
    /// The engine, for what is not driven here.
    pub engine: Box<dyn Engine>,
    /// The parameters' memory.
    pub params: Vec<Numbers>,
    rules: Vec<Rule>,
    tensors: Vec<Tensor>,
    rows: Vec<RowList>,
    verdicts: Vec<Verdict>,
    applied: u32,
    pending: u32,
}

impl Driven {
    /// The engine that a backend makes for a case, with masters and averages set to where the parameters start.
    ///
    /// # Errors
    /// What the backend returns.
    pub fn new(backend: impl IntoBackend, case: &Case) -> Result<Self> {
        let backend = backend.into_backend()?;
        let plan = Plan { rules: &case.rules, tensors: &case.tensors, groups: case.groups };
        let mut driven = Self {
            by: backend.describe(),
            engine: backend.engine(&plan)?,
            params: case.start.clone(),
            rules: case.rules.clone(),
            tensors: case.tensors.clone(),
            rows: Vec::new(),
            verdicts: Vec::new(),
            applied: 0,
            pending: 0,
        };
        driven.seed(&vec![true; case.tensors.len()])?;
        Ok(driven)
    }

    /// Updates without a guard.
    ///
    /// # Errors
    /// What the engine returns.
    pub fn step(&mut self, records: &[Record], record_of: &[u32], grads: &[Grad<'_>]) -> Result<()> {
        self.rows = grads.iter().map(row_list).collect();
        let Self { engine, params, rules, rows, .. } = self;
        let mut params: Vec<_> = params.iter_mut().map(Numbers::param).collect();
        let progress = engine.update(&Update { rules, records, record_of, rows, guard: None }, &mut params, grads)?;
        assert_eq!(progress, Progress::Applied, "there is nothing to decide");
        Ok(())
    }

    /// Updates with a guard. `records` makes the records of the update before which so many were applied; they are made for as many
    /// updates as this one may be.
    ///
    /// # Errors
    /// What the engine returns.
    pub fn guarded(
        &mut self,
        guard: &Guard,
        records: impl Fn(u32) -> Vec<Record>,
        record_of: &[u32],
        grads: &[Grad<'_>],
    ) -> Result<()> {
        self.rows = grads.iter().map(row_list).collect();
        let Self { engine, params, rules, rows, .. } = self;
        let mut params: Vec<_> = params.iter_mut().map(Numbers::param).collect();
        let first = self.applied;
        let variants: Vec<_> = (first..=first + self.pending).flat_map(&records).collect();
        let guard = Guard { first, records: records(first).len(), ..*guard };
        let update = Update { rules, records: &variants, record_of, rows, guard: Some(&guard) };
        match engine.update(&update, &mut params, grads)? {
            Progress::Applied => panic!("{} decided nothing", self.by),
            Progress::Decided(verdict) => self.note(verdict),
            Progress::Pending => self.pending += 1,
        }
        while self.pending > 0
            && let Some(verdict) = self.engine.verdict(self.pending == PENDING)?
        {
            self.pending -= 1;
            self.note(verdict);
        }
        Ok(())
    }

    fn note(&mut self, verdict: Verdict) {
        self.applied = verdict.applied + u32::from(verdict.skip.is_none());
        self.verdicts.push(verdict);
    }

    /// The verdicts of all guarded updates. Waits for them.
    ///
    /// # Errors
    /// What the engine returns.
    pub fn verdicts(&mut self) -> Result<&[Verdict]> {
        while let Some(verdict) = self.engine.verdict(true)? {
            self.pending -= 1;
            self.note(verdict);
        }
        assert_eq!(self.pending, 0, "verdicts are missing");
        Ok(&self.verdicts)
    }

    /// Sets masters and averages to what is in the parameters' memory.
    ///
    /// # Errors
    /// What the engine returns.
    pub fn seed(&mut self, seeds: &[bool]) -> Result<()> {
        let mut params: Vec<_> = self.params.iter_mut().map(Numbers::param).collect();
        self.engine.seed(seeds, &mut params)
    }

    /// Writes averages into the parameters' memory, or brings back what was there.
    ///
    /// # Errors
    /// What the engine returns.
    pub fn swap_ema(&mut self, into: bool) -> Result<()> {
        let mut params: Vec<_> = self.params.iter_mut().map(Numbers::param).collect();
        self.engine.swap_ema(into, &mut params)
    }

    /// The arrays that the engine keeps: parameter, part, element type, number of elements.
    #[must_use]
    pub fn arrays(&self) -> Vec<(usize, Part, Element, usize)> {
        let of = |(index, tensor): (usize, &Tensor)| {
            let arrays = tensor.arrays(&self.rules[tensor.rule].spec().slots());
            arrays.into_iter().map(move |(part, element, len)| (index, part, element, len))
        };
        self.tensors.iter().enumerate().flat_map(of).collect()
    }

    /// All bytes of an array.
    ///
    /// # Errors
    /// What the engine returns.
    pub fn read(&self, (index, part, element, len): (usize, Part, Element, usize)) -> Result<Vec<u8>> {
        let mut bytes = vec![0xaa; element.size() * len];
        self.engine.read(index, part, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Gives another engine of the same case all that this one has made.
    ///
    /// # Errors
    /// What the engines return.
    pub fn copy_to(&mut self, other: &mut Self) -> Result<()> {
        other.verdicts = self.verdicts()?.to_vec();
        other.applied = self.applied;
        other.params.clone_from(&self.params);
        other.engine.set_control(&self.engine.control()?)?;
        for array in self.arrays() {
            other.engine.write(array.0, array.1, 0, &self.read(array)?)?;
        }
        Ok(())
    }

    /// Everything that can be seen. Waits for all verdicts.
    ///
    /// # Errors
    /// What the engine returns.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        let verdicts = self.verdicts()?.to_vec();
        let named = |index: usize| self.tensors[index].parameter.name();
        let memory = |(index, numbers): (usize, &Numbers)| (named(index).into(), numbers.element(), numbers.bytes());
        let mut arrays: Vec<_> = self.params.iter().enumerate().map(memory).collect();
        for array in self.arrays() {
            arrays.push((format!("{} {:?}", named(array.0), array.1), array.2, self.read(array)?));
        }
        Ok(Snapshot { by: self.by.clone(), arrays, verdicts, control: self.engine.control()? })
    }
}

/// The rows that a gradient lists.
fn row_list(grad: &Grad<'_>) -> RowList {
    let mut list = RowList::default();
    if let Grad::Rows(indices, _) = grad {
        let rows: BTreeSet<u32> = indices.iter().copied().collect();
        list.starts.push(0);
        for row in rows {
            list.rows.push(row);
            list.positions
                .extend((0..).zip(*indices).filter(|(_, index)| **index == row).map(|(position, _)| position));
            list.starts.push(u32::try_from(list.positions.len()).expect("few rows"));
        }
    }
    list
}

/// What an engine has made: parameters' memory, its arrays, verdicts, counters.
#[derive(Debug)]
pub struct Snapshot {
    by: String,
    arrays: Vec<(String, Element, Vec<u8>)>,
    verdicts: Vec<Verdict>,
    control: Control,
}

/// The first difference of two snapshots, in words.
#[derive(Debug)]
pub struct Difference(String);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Snapshot {
    /// The same under another maker's name: for two ways to one result on one backend.
    #[must_use]
    pub fn by(mut self, by: &str) -> Self {
        by.clone_into(&mut self.by);
        self
    }

    /// Whether both are equal in every bit; all that is not a number counts as one.
    ///
    /// # Errors
    /// The first difference.
    ///
    /// # Panics
    /// If both were made by the same maker: such a comparison cannot fail.
    pub fn same_bits(&self, other: &Self) -> std::result::Result<(), Difference> {
        self.compare(other, |_, _, a, b| Bits::of(a) == Bits::of(b))
    }

    /// Whether numbers are apart by at most this part of the largest of their array, and codes and scales by what follows from it:
    /// two codes. The lower halves of split numbers are left out. Counters are equal.
    ///
    /// # Errors
    /// The first difference that is larger.
    ///
    /// # Panics
    /// If both were made by the same maker: such a comparison cannot fail.
    pub fn within(&self, other: &Self, part: f32) -> std::result::Result<(), Difference> {
        self.compare(other, |element, largest, a, b| match element {
            Element::F32 | Element::F16 | Element::Bf16 => {
                Bits::of(a) == Bits::of(b) || (a - b).abs() <= part * largest
            }
            Element::U16 => true,
            // Signed codes lie about 0 and 256.
            Element::U8 => [0.0, 256.0].iter().any(|around| ((a - b).abs() - around).abs() <= 2.0),
        })
    }

    /// A number for all of it: FNV-1a over the bits of what the arrays and the verdicts hold, whatever the processor's byte order; all
    /// that is not a number counts as one.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let arrays = self
            .arrays
            .iter()
            .flat_map(|(_, element, bytes)| bytes.chunks(element.size()).map(|bytes| number(*element, bytes)));
        let bits =
            arrays.chain(self.verdicts.iter().flat_map(numbers)).flat_map(|x| Bits::of(x).0.to_bits().to_le_bytes());
        bits.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// Compares by `equal(element, the largest magnitude of the array, a, b)`.
    fn compare(
        &self,
        other: &Self,
        equal: impl Fn(Element, f32, f32, f32) -> bool,
    ) -> std::result::Result<(), Difference> {
        assert_ne!(self.by, other.by, "a backend is compared with itself");
        let differ = |what: &str, a: &dyn fmt::Debug, b: &dyn fmt::Debug| {
            Err(Difference(format!("{what} is\n{a:?} by {},\n{b:?} by {}", self.by, other.by)))
        };
        if self.verdicts.len() != other.verdicts.len() {
            return differ("the number of verdicts", &self.verdicts.len(), &other.verdicts.len());
        }
        for (nth, (a, b)) in self.verdicts.iter().zip(&other.verdicts).enumerate() {
            let ([x, y], [counters, other_counters]) = ([a, b].map(numbers), [a, b].map(counters));
            let numbers = x.len() == y.len() && x.iter().zip(&y).all(|(&x, &y)| equal(Element::F32, x.abs(), x, y));
            if !numbers || counters != other_counters {
                return differ(&format!("verdict {nth}"), a, b);
            }
        }
        if self.control != other.control {
            return differ("the control", &self.control, &other.control);
        }
        assert_eq!(self.arrays.len(), other.arrays.len(), "both are of one case");
        for ((name, element, a), (other_name, _, b)) in self.arrays.iter().zip(&other.arrays) {
            assert_eq!((name, a.len()), (other_name, b.len()), "both are of one case");
            let [a, b] = [a, b].map(|bytes| bytes.chunks(element.size()).map(|x| number(*element, x)));
            let largest = a.clone().fold(0.0, |largest: f32, x| largest.max(x.abs()));
            for (i, (a, b)) in a.zip(b).enumerate() {
                if !equal(*element, largest, a, b) {
                    return differ(&format!("{name}[{i}]"), &Bits::of(a), &Bits::of(b));
                }
            }
        }
        Ok(())
    }
}

/// An element as a number. Different bits give different numbers, but for what is not one.
fn number(element: Element, bytes: &[u8]) -> f32 {
    let mut word = [0; 4];
    word[..bytes.len()].copy_from_slice(bytes);
    let [a, b, ..] = word;
    match element {
        Element::F32 => f32::from_ne_bytes(word),
        Element::F16 => f16::from_ne_bytes([a, b]).to_f32(),
        Element::Bf16 => bf16::from_ne_bytes([a, b]).to_f32(),
        Element::U16 => u16::from_ne_bytes([a, b]).into(),
        Element::U8 => a.into(),
    }
}

/// A number that is compared by its bits.
#[derive(Clone, Copy)]
struct Bits(f32);

impl Bits {
    fn of(x: f32) -> Self {
        Self(if x.is_nan() { f32::NAN } else { x })
    }
}

impl PartialEq for Bits {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:e} ({:#x})", self.0, self.0.to_bits())
    }
}

/// All of a verdict that is a number.
fn numbers(verdict: &Verdict) -> Vec<f32> {
    let Verdict { norm, clip, scale_before, scale, group_norms, .. } = verdict;
    [*norm, *clip, *scale_before, *scale].iter().chain(&**group_norms).copied().collect()
}

/// The rest of a verdict.
fn counters(verdict: &Verdict) -> (Option<Skip>, Option<usize>, u32, u32) {
    (verdict.skip, verdict.first_bad, verdict.bad, verdict.applied)
}
