//! The naive engine: what an engine does, one element after the other in plain `f32` loops.
//!
//! It shares no code with the backends: only core's conversions ([`format`](mod@format)), which define bits. It knows some of
//! the elementwise rules, without a trust ratio; row-sparse gradients without what is done row by row.

use std::collections::{BTreeMap, VecDeque};

use optimizers::core::backend::{
    Element, FROZEN, Part, Plan, Progress, Record, RowList, Shaping, SlotFormat, Tensor, Update,
};
use optimizers::core::format::{self, BLOCK, Code8, Master};
use optimizers::core::guard::{Clip, Control, Guard, Skip, Verdict};
use optimizers::core::{Backend, Engine};
use optimizers::rule::{MAX_SLOTS, Slot, Sparse};
use optimizers::{DType, Grad, ParamMut, Result, Rule, Values};

/// The naive backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Naive {
    /// How many updates later a guard's verdict is there; 0 for at once. The updates themselves are never late.
    pub late: usize,
}

impl Backend for Naive {
    fn name(&self) -> &'static str {
        "naive"
    }

    fn describe(&self) -> String {
        format!("one element after the other, verdicts {} updates late", self.late)
    }

    fn engine(&self, plan: &Plan<'_>) -> Result<Box<dyn Engine>> {
        let state = |tensor: &Tensor| State::new(tensor, &plan.rules[tensor.rule].spec().slots());
        Ok(Box::new(NaiveEngine {
            late: self.late,
            groups: plan.groups,
            tensors: plan.tensors.to_vec(),
            slots: plan.tensors.iter().map(|tensor| plan.rules[tensor.rule].spec().slots()).collect(),
            states: plan.tensors.iter().map(state).collect(),
            control: Control::default(),
            verdicts: VecDeque::new(),
        }))
    }
}

/// An array in memory order and the host's byte order.
#[derive(Debug, Clone)]
struct Array {
    size: usize,
    bytes: Vec<u8>,
}

impl Array {
    fn zeros(element: Element, len: usize) -> Self {
        Self { size: element.size(), bytes: vec![0; element.size() * len] }
    }

    fn bytes_of<const N: usize>(&self, index: usize) -> [u8; N] {
        self.bytes[N * index..N * (index + 1)].try_into().unwrap()
    }

    fn f32(&self, index: usize) -> f32 {
        f32::from_ne_bytes(self.bytes_of(index))
    }

    fn u16(&self, index: usize) -> u16 {
        u16::from_ne_bytes(self.bytes_of(index))
    }

    fn u8(&self, index: usize) -> u8 {
        self.bytes[index]
    }

    fn set<const N: usize>(&mut self, index: usize, bytes: [u8; N]) {
        assert_eq!(N, self.size, "an element is as large as the array's");
        self.bytes[N * index..N * (index + 1)].copy_from_slice(&bytes);
    }
}

/// A gradient.
struct Gradient {
    /// For each element of the parameter; 0 for what is not listed.
    g: Vec<f32>,
    /// Whether an element is not finite.
    bad: bool,
    /// What a guard measures: the elements that there are.
    measured: Vec<f32>,
    /// Of a row-sparse gradient: which elements are listed.
    listed: Option<Vec<bool>>,
}

/// What a guard measures of a gradient.
#[derive(Debug, Clone, Copy, Default)]
struct Measure {
    /// The sum of the squares.
    squares: f32,
    /// Whether an element is not finite.
    bad: bool,
}

/// What is kept for one parameter.
#[derive(Debug)]
struct State {
    arrays: BTreeMap<Part, Array>,
    accumulated: Vec<f32>,
    /// What was in the parameter's memory before its average was written there.
    kept: Vec<u32>,
}

impl State {
    fn new(tensor: &Tensor, slots: &[Slot]) -> Self {
        let arrays = tensor.arrays(slots);
        let mut arrays: BTreeMap<Part, Array> =
            arrays.into_iter().map(|(part, element, len)| (part, Array::zeros(element, len))).collect();
        let len = tensor.parameter.len();
        for (nth, slot) in slots.iter().enumerate() {
            for i in 0..len {
                match tensor.slot_format(slot) {
                    SlotFormat::F32 => array(&mut arrays, Part::Slot(nth)).set(i, slot.init.to_ne_bytes()),
                    SlotFormat::Bf16 => {
                        array(&mut arrays, Part::Slot(nth)).set(i, format::f32_to_bf16(slot.init).to_ne_bytes());
                    }
                    SlotFormat::Block8(code) => {
                        array(&mut arrays, Part::Scales(nth)).set(i / BLOCK, slot.init.abs().to_ne_bytes());
                        // Where all are 0 the scale is 0, and then the code is.
                        let most = match code {
                            _ if slot.init == 0.0 => 0,
                            Code8::Positive => 255,
                            Code8::Signed if slot.init > 0.0 => 127,
                            Code8::Signed => 129,
                        };
                        array(&mut arrays, Part::Slot(nth)).set(i, [most]);
                    }
                    SlotFormat::F16 => unreachable!("factored rules are not the naive engine's"),
                }
            }
        }
        Self { arrays, accumulated: vec![0.0; len], kept: Vec::new() }
    }
}

fn array(arrays: &mut BTreeMap<Part, Array>, part: Part) -> &mut Array {
    arrays.get_mut(&part).unwrap()
}

#[derive(Debug)]
struct NaiveEngine {
    late: usize,
    groups: usize,
    tensors: Vec<Tensor>,
    slots: Vec<Vec<Slot>>,
    states: Vec<State>,
    control: Control,
    verdicts: VecDeque<Verdict>,
}

impl NaiveEngine {
    /// A parameter's gradient; `None` if there is none.
    fn gradient(&self, index: usize, grad: &Grad<'_>, rows: Option<&RowList>) -> Option<Gradient> {
        let dense = |(g, bad): (Vec<f32>, bool)| Gradient { measured: g.clone(), g, bad, listed: None };
        Some(match grad {
            Grad::None => return None,
            Grad::F32(g) => dense(wide(Values::F32(g))),
            Grad::F16(g) => dense(wide(Values::F16(g))),
            Grad::Bf16(g) => dense(wide(Values::Bf16(g))),
            Grad::Accumulated => dense(wide(Values::F32(&self.states[index].accumulated))),
            Grad::Rows(_, values) => {
                let (values, bad) = wide(*values);
                let parameter = &self.tensors[index].parameter;
                let width: usize = parameter.shape()[1..].iter().product();
                let mut sparse = Gradient {
                    g: vec![0.0; parameter.len()],
                    bad,
                    measured: Vec::new(),
                    listed: Some(vec![false; parameter.len()]),
                };
                for (row, positions) in rows.into_iter().flat_map(RowList::iter) {
                    for column in 0..width {
                        let mut values = positions.iter().map(|&position| values[position as usize * width + column]);
                        let first = values.next().unwrap();
                        let sum = values.fold(first, |sum, value| sum + value);
                        let element = row as usize * width + column;
                        sparse.g[element] = sum;
                        sparse.measured.push(sum);
                        sparse.listed.as_mut().unwrap()[element] = true;
                    }
                }
                sparse
            }
            grad => unreachable!("{grad:?} is not the naive engine's"),
        })
    }

    /// The numbers that the kernel takes for the parameter.
    fn weights(&self, index: usize, param: &ParamMut<'_>) -> Vec<f32> {
        let arrays = &self.states[index].arrays;
        let weight = |i| match (self.tensors[index].master(), arrays.get(&Part::Master)) {
            (Some(Master::F32), Some(master)) => master.f32(i),
            (Some(Master::Split), Some(master)) => {
                format::join(u16::try_from(bits_of(param, i)).unwrap(), master.u16(i))
            }
            _ => value_of(param, i),
        };
        (0..self.tensors[index].parameter.len()).map(weight).collect()
    }

    fn slot(&self, index: usize, nth: usize) -> Vec<f32> {
        let arrays = &self.states[index].arrays;
        let kept = &arrays[&Part::Slot(nth)];
        let element = |i| match self.tensors[index].slot_format(&self.slots[index][nth]) {
            SlotFormat::F32 => kept.f32(i),
            SlotFormat::F16 => format::f16_to_f32(kept.u16(i)),
            SlotFormat::Bf16 => format::bf16_to_f32(kept.u16(i)),
            SlotFormat::Block8(code) => {
                let scale = arrays[&Part::Scales(nth)].f32(i / BLOCK);
                match code {
                    Code8::Signed => format::decode_signed(kept.u8(i), scale),
                    Code8::Positive => format::decode_positive(kept.u8(i), scale),
                }
            }
        };
        (0..self.tensors[index].parameter.len()).map(element).collect()
    }

    fn set_slot(&mut self, index: usize, nth: usize, step: u32, values: &[f32]) {
        let tensor = &self.tensors[index];
        let arrays = &mut self.states[index].arrays;
        let slot = u32::try_from(nth).unwrap();
        let stream = format::slot_stream(tensor.key, step, slot);
        let slot_format = tensor.slot_format(&self.slots[index][nth]);
        let mut scale = 0.0;
        for (i, &x) in values.iter().enumerate() {
            let random = format::of_slot(format::random_at(stream, u32::try_from(i).unwrap()), slot);
            match slot_format {
                SlotFormat::F32 => array(arrays, Part::Slot(nth)).set(i, x.to_ne_bytes()),
                SlotFormat::Bf16 => {
                    let bits = format::f32_to_bf16_stochastic(x, random);
                    array(arrays, Part::Slot(nth)).set(i, bits.to_ne_bytes());
                }
                SlotFormat::Block8(code) => {
                    if i % BLOCK == 0 {
                        scale = format::scale_of(&values[i..values.len().min(i + BLOCK)]);
                        array(arrays, Part::Scales(nth)).set(i / BLOCK, scale.to_ne_bytes());
                    }
                    let code = match code {
                        Code8::Signed => format::encode_signed(x, scale, random),
                        Code8::Positive => format::encode_positive(x, scale, random),
                    };
                    array(arrays, Part::Slot(nth)).set(i, [code]);
                }
                SlotFormat::F16 => unreachable!("factored rules are not the naive engine's"),
            }
        }
    }

    /// Stores what the kernel made of the parameter.
    fn set_weights(&mut self, index: usize, step: u32, values: &[f32], param: &mut ParamMut<'_>) {
        let tensor = &self.tensors[index];
        let arrays = &mut self.states[index].arrays;
        let stream = format::stream(tensor.key, step, 0);
        for (i, &x) in values.iter().enumerate() {
            let random = format::random_at(stream, u32::try_from(i).unwrap());
            let bits = match (tensor.master(), tensor.parameter.dtype()) {
                (Some(Master::Stochastic), DType::F16) => format::f32_to_f16_stochastic(x, random).into(),
                (Some(Master::Stochastic), _) => format::f32_to_bf16_stochastic(x, random).into(),
                (Some(Master::Split), _) => {
                    let (upper, correction) = format::split(x);
                    array(arrays, Part::Master).set(i, correction.to_ne_bytes());
                    upper.into()
                }
                (master, _) => {
                    if master == Some(Master::F32) {
                        array(arrays, Part::Master).set(i, x.to_ne_bytes());
                    }
                    nearest(param, x)
                }
            };
            set_bits(param, i, bits);
        }
    }

    /// What a guard decides: the record's last factor, or that nothing is updated; the next loss scale; the counters.
    fn decide(&mut self, guard: &Guard, measures: &[Measure], records: &mut [Record]) -> Verdict {
        let norm = row_sum(measures.len(), |i| measures[i].squares).sqrt();
        let group_norm = |group: usize| {
            let members = measures.iter().zip(&self.tensors).filter(|(_, tensor)| tensor.group == group);
            members.fold(0.0, |sum, (measure, _)| sum + measure.squares).sqrt()
        };
        let group_norms: Vec<f32> = (0..self.groups).map(group_norm).collect();
        let first_bad = measures.iter().position(|measure| measure.bad);
        let skip = match first_bad {
            Some(_) => Some(Skip::NotFinite),
            None if !norm.is_finite() => Some(Skip::NormOverflow),
            None => None,
        };

        let before = self.control;
        let mut clip = 1.0;
        for record in records {
            if skip.is_some() {
                record.shaping.flags |= Shaping::SKIP;
                continue;
            }
            let owner = record.stages.owner as usize;
            let own = match guard.clip {
                Clip::Global => norm,
                Clip::Group => group_norms[owner],
                Clip::Parameter => measures[owner].squares.sqrt(),
            };
            record.shaping.factor *= 1.0 / before.scale;
            let most = record.stages.max_norm;
            if most > 0.0 && own > most {
                record.shaping.factor *= most / own;
                if guard.clip == Clip::Global {
                    clip = most / own;
                }
            }
        }

        let Control { scale, current, last, bad, applied, skipped, .. } = &mut self.control;
        if skip.is_some() {
            *bad += 1;
            *skipped += 1;
        } else {
            *bad = 0;
            *applied += 1;
        }
        if let Some(scaler) = guard.scaler {
            if skip.is_some() {
                *scale = (*scale / scaler.factor).clamp(scaler.floor, scaler.cap);
                *last = *current;
            } else if (*current - *last) % scaler.window == 0 {
                if *scale * scaler.factor <= scaler.cap {
                    *scale *= scaler.factor;
                }
                *scale = scale.max(scaler.floor);
            }
        }
        *current += 1;
        let (applied, scale_before) = (before.applied, before.scale);
        Verdict {
            skip,
            first_bad,
            norm,
            clip,
            scale_before,
            scale: *scale,
            bad: *bad,
            applied,
            group_norms: group_norms.into(),
        }
    }

    /// One parameter's update.
    fn apply(&mut self, index: usize, rule: &Rule, record: &Record, gradient: &Gradient, param: &mut ParamMut<'_>) {
        let mut p = self.weights(index, param);
        let listed = |i: usize| gradient.listed.as_ref().is_none_or(|listed| listed[i]);
        let g = shaped(record, self.tensors[index].rows(), &p, &gradient.g, listed);
        let mut slots: Vec<_> = (0..self.slots[index].len()).map(|nth| self.slot(index, nth)).collect();
        let all = rule.spec().sparse() != Sparse::ListedRows;
        for i in (0..p.len()).filter(|&i| all || listed(i)) {
            let mut element = [0.0; MAX_SLOTS];
            element.iter_mut().zip(&slots).for_each(|(x, slot)| *x = slot[i]);
            p[i] = updated(rule, record, p[i], g[i], &mut element[..slots.len()]);
            slots.iter_mut().zip(element).for_each(|(slot, x)| slot[i] = x);
        }
        let step = record.stages.step;
        for (nth, slot) in slots.iter().enumerate() {
            self.set_slot(index, nth, step, slot);
        }
        self.set_weights(index, step, &p, param);
        if let Some(ema) = self.states[index].arrays.get_mut(&Part::Ema)
            && record.stages.ema != 0.0
        {
            for (i, p) in p.iter().enumerate() {
                let average = ema.f32(i);
                ema.set(i, (average + record.stages.ema * (p - average)).to_ne_bytes());
            }
        }
    }
}

impl Engine for NaiveEngine {
    fn update(&mut self, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<Progress> {
        let gradients: Vec<_> = (0..grads.len())
            .map(|index| {
                let rows = update.rows.get(index);
                self.gradient(index, &grads[index], rows).filter(|_| update.record_of[index] != FROZEN)
            })
            .collect();
        let mut records = update.records.to_vec();
        let mut verdict = None;
        if let Some(guard) = update.guard {
            let variant = self.control.applied.wrapping_sub(guard.first) as usize;
            records = records[variant * guard.records..][..guard.records].to_vec();
            let pre = guard.factor * (1.0 / self.control.scale);
            let measure = |gradient: &Option<Gradient>| match gradient {
                None => Measure::default(),
                Some(g) => Measure { squares: sum_of_squares(&g.measured, pre), bad: g.bad },
            };
            let measures: Vec<_> = gradients.iter().map(measure).collect();
            verdict = Some(self.decide(guard, &measures, &mut records));
        }
        for (index, gradient) in gradients.into_iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let record = records[update.record_of[index] as usize];
            if record.shaping.flags & Shaping::SKIP == 0 {
                let rule = &update.rules[self.tensors[index].rule];
                self.apply(index, rule, &record, &gradient, &mut params[index]);
            }
        }
        Ok(match verdict {
            None => Progress::Applied,
            Some(verdict) if self.late == 0 => Progress::Decided(verdict),
            Some(verdict) => {
                self.verdicts.push_back(verdict);
                Progress::Pending
            }
        })
    }

    fn verdict(&mut self, wait: bool) -> Result<Option<Verdict>> {
        Ok(if wait || self.verdicts.len() > self.late { self.verdicts.pop_front() } else { None })
    }

    fn control(&self) -> Result<Control> {
        Ok(self.control)
    }

    fn set_control(&mut self, control: &Control) -> Result<()> {
        assert!(self.verdicts.is_empty(), "no update is pending");
        self.control = *control;
        Ok(())
    }

    fn seed(&mut self, seeds: &[bool], params: &mut [ParamMut<'_>]) -> Result<()> {
        for ((state, param), _) in self.states.iter_mut().zip(params).zip(seeds).filter(|(_, seed)| **seed) {
            for (&part, array) in &mut state.arrays {
                for i in 0..param.len() {
                    match part {
                        Part::Master if array.size == 2 => array.set(i, [0, 0]),
                        Part::Master | Part::Ema => array.set(i, value_of(param, i).to_ne_bytes()),
                        Part::Slot(_) | Part::Scales(_) => {}
                    }
                }
            }
        }
        Ok(())
    }

    fn accumulate(&mut self, weight: f32, fresh: &[bool], grads: &[Grad<'_>]) -> Result<()> {
        for index in 0..self.tensors.len() {
            let gradient = self.gradient(index, &grads[index], None);
            let sums = &mut self.states[index].accumulated;
            if fresh[index] {
                sums.fill(0.0);
            }
            for (sum, g) in sums.iter_mut().zip(gradient.into_iter().flat_map(|gradient| gradient.g)) {
                let added = weight * g;
                *sum = if fresh[index] { added } else { *sum + added };
            }
        }
        Ok(())
    }

    fn swap_ema(&mut self, into: bool, params: &mut [ParamMut<'_>]) -> Result<()> {
        for (state, param) in self.states.iter_mut().zip(params) {
            let Some(ema) = state.arrays.get(&Part::Ema) else { continue };
            if into {
                state.kept = (0..param.len()).map(|i| bits_of(param, i)).collect();
            }
            for i in 0..param.len() {
                let bits = if into { nearest(param, ema.f32(i)) } else { state.kept[i] };
                set_bits(param, i, bits);
            }
        }
        Ok(())
    }

    fn read(&self, parameter: usize, part: Part, first: usize, bytes: &mut [u8]) -> Result<()> {
        let array = &self.states[parameter].arrays[&part];
        bytes.copy_from_slice(&array.bytes[first * array.size..][..bytes.len()]);
        Ok(())
    }

    fn write(&mut self, parameter: usize, part: Part, first: usize, bytes: &[u8]) -> Result<()> {
        let array = array(&mut self.states[parameter].arrays, part);
        array.bytes[first * array.size..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// Values as `f32`, and whether one is not finite, which its own bits tell.
fn wide(values: Values<'_>) -> (Vec<f32>, bool) {
    match values {
        Values::F32(values) => (values.to_vec(), values.iter().any(|x| x.to_bits() & 0x7f80_0000 == 0x7f80_0000)),
        Values::F16(values) => (
            values.iter().map(|x| format::f16_to_f32(x.to_bits())).collect(),
            values.iter().any(|x| x.to_bits() & 0x7c00 == 0x7c00),
        ),
        Values::Bf16(values) => (
            values.iter().map(|x| format::bf16_to_f32(x.to_bits())).collect(),
            values.iter().any(|x| x.to_bits() & 0x7f80 == 0x7f80),
        ),
        values => unreachable!("{values:?} are not the naive engine's"),
    }
}

/// An element as a number.
fn value_of(param: &ParamMut<'_>, i: usize) -> f32 {
    match param {
        ParamMut::F32(p) => p[i],
        ParamMut::F16(p) => format::f16_to_f32(p[i].to_bits()),
        ParamMut::Bf16(p) => format::bf16_to_f32(p[i].to_bits()),
        param => unreachable!("{param:?} is not the naive engine's"),
    }
}

/// The bits of an element.
fn bits_of(param: &ParamMut<'_>, i: usize) -> u32 {
    match param {
        ParamMut::F32(p) => p[i].to_bits(),
        ParamMut::F16(p) => p[i].to_bits().into(),
        ParamMut::Bf16(p) => p[i].to_bits().into(),
        param => unreachable!("{param:?} is not the naive engine's"),
    }
}

/// The bits of the nearest number of the parameter's type.
fn nearest(param: &ParamMut<'_>, x: f32) -> u32 {
    match param.dtype() {
        DType::F32 => x.to_bits(),
        DType::F16 => format::f32_to_f16(x).into(),
        DType::Bf16 => format::f32_to_bf16(x).into(),
    }
}

fn set_bits(param: &mut ParamMut<'_>, i: usize, bits: u32) {
    let half = || u16::try_from(bits).expect("16 bits");
    match param {
        ParamMut::F32(p) => p[i] = f32::from_bits(bits),
        ParamMut::F16(p) => p[i] = half::f16::from_bits(half()),
        ParamMut::Bf16(p) => p[i] = half::bf16::from_bits(half()),
        param => unreachable!("{param:?} is not the naive engine's"),
    }
}

/// The gradient as the rule sees it.
fn shaped(
    record: &Record,
    (rows, width): (usize, usize),
    p: &[f32],
    g: &[f32],
    listed: impl Fn(usize) -> bool,
) -> Vec<f32> {
    let Shaping { factor, weight_decay, limit, flags } = record.shaping;
    let centralize = flags & Shaping::CENTRALIZE != 0;
    let units = record.stages.units;

    let mut g = g.to_vec();
    for g in &mut g {
        if factor != 1.0 {
            *g *= factor;
        }
        if limit > 0.0 && *g > limit {
            *g = limit;
        }
        if limit > 0.0 && *g < -limit {
            *g = -limit;
        }
    }
    for row in 0..rows {
        let columns = row * width..(row + 1) * width;
        let (p, g) = (&p[columns.clone()], &mut g[columns]);
        let mut a = 1.0;
        if units > 0.0 {
            let g_norm = row_sum(width, |i| g[i] * g[i]).sqrt();
            let mut p_norm = row_sum(width, |i| p[i] * p[i]).sqrt();
            if p_norm < record.stages.units_epsilon {
                p_norm = record.stages.units_epsilon;
            }
            let most = units * p_norm;
            if g_norm > most {
                a = most / g_norm;
            }
        }
        let mut mean = 0.0;
        if centralize {
            let mut sum = a * row_sum(width, |i| g[i]);
            if weight_decay != 0.0 {
                sum += weight_decay * row_sum(width, |i| p[i]);
            }
            mean = sum / width as f32;
        }
        for (i, (g, p)) in g.iter_mut().zip(p).enumerate() {
            if units > 0.0 {
                *g *= a;
            }
            if weight_decay != 0.0 && listed(row * width + i) {
                *g += weight_decay * p;
            }
            if centralize {
                *g -= mean;
            }
        }
    }
    g
}

/// The lanes that a sum is made over.
const LANES: usize = 256;

/// Lane l adds the l-th, the l + 256-th, … term from +0 on; then lanes are added that are 128, 64, …, 1 apart.
fn row_sum(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    for i in 0..len {
        lanes[i % LANES] += term(i);
    }
    tree(lanes)
}

fn tree(mut lanes: [f32; LANES]) -> f32 {
    for stride in [128, 64, 32, 16, 8, 4, 2, 1] {
        for lane in 0..stride {
            lanes[lane] += lanes[lane + stride];
        }
    }
    lanes[0]
}

/// Σ (pre · g)²: slices of 16 rows of 1,024 columns; a running sum for each column; the sums of four columns to a lane; the tree.
fn sum_of_squares(g: &[f32], pre: f32) -> f32 {
    let slice_sum = |slice: &[f32]| {
        let mut columns = [0.0_f32; 1024];
        for (i, &g) in slice.iter().enumerate() {
            let x = if pre == 1.0 { g } else { pre * g };
            columns[i % 1024] += x * x;
        }
        let lane = |l: usize| (columns[4 * l] + columns[4 * l + 1]) + (columns[4 * l + 2] + columns[4 * l + 3]);
        tree(std::array::from_fn(lane))
    };
    let slices: Vec<f32> = g.chunks(16 * 1024).map(slice_sum).collect();
    row_sum(slices.len(), |i| slices[i])
}

/// `β m + (1 − β) x`, in the order that is right for this `β`.
fn averaged(m: f32, x: f32, beta: f32, rest: f32) -> f32 {
    if beta < 0.5 { beta * m + rest * x } else { m + rest * (x - m) }
}

/// The rule: the element's new value; its slots are updated in place.
fn updated(rule: &Rule, record: &Record, p: f32, g: f32, slots: &mut [f32]) -> f32 {
    let s = record.scalars.floats();
    let words = record.scalars.words();
    match (rule.spec().source(), rule.spec().entry(), slots) {
        ("sgd", "update_plain", []) => p - s[0] * g,
        ("sgd", "update", [accum]) => {
            *accum = s[1] * *accum + s[2] * g;
            let d = if words[3] != 0 { g + s[1] * *accum } else { *accum };
            p - s[0] * d
        }
        ("momentum", "update", [v]) => {
            *v = s[1] * *v + g;
            let d = if words[2] != 0 { g + s[1] * *v } else { *v };
            p - s[0] * d
        }
        ("adam", "update", [m, v]) => {
            *m = averaged(*m, g, s[1], s[2]);
            *v = averaged(*v, g * g, s[3], s[4]);
            let d = if words[6] != 0 { s[1] * *m + s[2] * g } else { *m };
            p - s[0] * d / (v.sqrt() + s[5])
        }
        ("adam", "update_amsgrad", [m, v, vhat]) => {
            *m = averaged(*m, g, s[1], s[2]);
            *v = averaged(*v, g * g, s[3], s[4]);
            if *v > *vhat {
                *vhat = *v;
            }
            p - s[0] * *m / (vhat.sqrt() + s[5])
        }
        ("adamw", "update", [m, v]) => {
            let p = p - s[0] * p;
            *m = averaged(*m, g, s[2], s[3]);
            *v = averaged(*v, g * g, s[4], s[5]);
            p - s[1] * *m / (v.sqrt() + s[6])
        }
        ("lion", "update", [m]) => {
            let c = s[1] * *m + s[2] * g;
            *m = s[3] * *m + s[4] * g;
            let d = if c > 0.0 {
                1.0
            } else if c < 0.0 {
                -1.0
            } else {
                c
            };
            p - s[0] * (d + s[5] * p)
        }
        ("rms_prop", "update", [ms, moment]) => {
            *ms = s[0] * *ms + s[1] * g * g;
            let d = (*ms + s[3]).sqrt() + s[4];
            *moment = s[2] * *moment + s[5] * g / d;
            p - s[6] * *moment
        }
        ("rms_prop", "update_centered", [ms, moment, mg]) => {
            *ms = s[0] * *ms + s[1] * g * g;
            *mg = s[0] * *mg + s[1] * g;
            let variance = *ms - *mg * *mg;
            let d = (if variance < 0.0 { 0.0 } else { variance } + s[3]).sqrt() + s[4];
            *moment = s[2] * *moment + s[5] * g / d;
            p - s[6] * *moment
        }
        ("adagrad", "update", [accum]) => {
            if words[2] != 0 {
                *accum += g * g;
            }
            let d = accum.sqrt() + s[1];
            if d == 0.0 { p } else { p - s[0] * g / d }
        }
        ("adan", "update", [m, v, n, q]) => {
            let delta = if words[11] != 0 { 0.0 } else { g - *q };
            *m = averaged(*m, g, s[0], s[1]);
            *v = averaged(*v, delta, s[2], s[3]);
            let u = g + s[2] * delta;
            *n = averaged(*n, u * u, s[4], s[5]);
            *q = g;
            let p = p - s[9] * p;
            let p = p - (s[6] * *m + s[7] * *v) / (n.sqrt() + s[8]);
            p - s[10] * p
        }
        (source, entry, slots) => {
            unreachable!("{source}, {entry} with {} slots is not the naive engine's", slots.len())
        }
    }
}
