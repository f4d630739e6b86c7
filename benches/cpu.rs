//! Steps on the CPU, beside the limit over the same memory.

use std::sync::Arc;

use optim_cpu::CpuEngine;
use optimizers::rule::Slot;
use optimizers::{Builder, CpuBackend, DType, Master, Optimizer, StateDType};
use rayon::ThreadPool;

use crate::cases::{Case, Setting};
use crate::check::{MAX_NORM, Sample, check};
use crate::engine::{Open, Shared};
use crate::limit::Traffic;
use crate::memory::{SCALES, Tensors};
use crate::table::{Output, Row};
use crate::timing::{ROUNDS, enough, middle, ratio, rounds, seconds};

/// Below this many elements the limit is looked for with one thread, too: handing work over may cost more than it saves.
const SMALL: usize = 1 << 20;

/// The rate with which steps are timed: parameters stay where they are. Thousands of steps by one gradient would train them until
/// the gradient with its decay is 0, and then moments become subnormal numbers, which some processors are slow with.
const STILL: f64 = 1e-12;

/// What takes turns: the limit over the step's own memory, that of the same rule in `f32`, the step.
const LIMIT: usize = 0;
const WIDE: usize = 1;
const STEP: usize = 2;

/// What times so many calls of something.
type Clock<'a> = dyn FnMut(&mut dyn FnMut(u32)) -> f64 + 'a;

/// Parameters and gradients of one case and element type, which all its rows use.
#[derive(Debug)]
pub(crate) struct Memory {
    dtype: DType,
    params: Tensors,
    grads: Tensors,
}

impl Memory {
    fn new(dtype: DType, lens: &[usize]) -> Self {
        let [params, grads] = SCALES.map(|scale| Tensors::new(dtype, lens, scale));
        Self { dtype, params, grads }
    }
}

/// Measures rows of a case.
pub(crate) fn run(case: &Case, settings: &[Setting], output: Output) {
    let mut memory = None;
    for setting in settings {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(setting.threads).build().expect("threads start");
        let pool = Arc::new(pool);
        // What another type needs is given back first.
        memory = memory.filter(|memory: &Memory| memory.dtype == setting.dtype);
        let row = pool.install(|| {
            let memory = memory.get_or_insert_with(|| Memory::new(setting.dtype, &case.lens()));
            measure(case, setting, &pool, memory)
        });
        output.row(&row);
    }
}

fn measure(case: &Case, setting: &Setting, pool: &Arc<ThreadPool>, memory: &mut Memory) -> Row {
    let lens = case.lens();
    let (mut optimizer, engine) = build(case, setting, pool);

    memory.params.refill(SCALES[0]);
    let sample = Sample::new(case, setting);
    let (start, grads, norm) = (memory.params.at(&sample.places), memory.grads.at(&sample.places), memory.grads.norm());
    check(&setting.label("cpu", case.name), setting, &sample, start, &grads, norm, || {
        let report = optimizer.step(&mut memory.params.params(), &memory.grads.grads()).expect("a step");
        assert!(report.applied(), "the step is applied");
        memory.params.at(&sample.places)
    });
    if setting.rule.spec().takes_lr() {
        optimizer.set_lr(0, STILL).expect("a valid rate");
    }
    let mut wide = (!setting.is_plain()).then(|| Wide::new(case, setting));

    let mut parallel = setting.threads > 1;
    if parallel && case.elements() < SMALL {
        let mut locked = engine.lock();
        let (params, grads) = (memory.params.bytes_mut(), memory.grads.bytes());
        parallel = faster(&mut Traffic::new(&lens, params, grads, locked.state_mut(), setting.clip));
    }
    let mut bytes = 0;
    let mut turn = |thing: usize, clock: &mut Clock<'_>| match (thing, &mut wide) {
        (STEP, _) => {
            let (mut params, grads) = (memory.params.params(), memory.grads.grads());
            let mut step = || assert!(optimizer.step(&mut params, &grads).expect("a step").applied(), "applied");
            clock(&mut |calls| (0..calls).for_each(|_| step()))
        }
        (WIDE, Some(wide)) => {
            let mut locked = engine.lock();
            let mut traffic = wide.traffic(&lens, memory, &mut locked);
            clock(&mut |calls| (0..calls).for_each(|_| traffic.run(parallel)))
        }
        _ => {
            let mut locked = engine.lock();
            let (params, grads) = (memory.params.bytes_mut(), memory.grads.bytes());
            let mut traffic = Traffic::new(&lens, params, grads, locked.state_mut(), setting.clip);
            bytes = traffic.bytes();
            clock(&mut |calls| (0..calls).for_each(|_| traffic.run(parallel)))
        }
    };

    let around = if setting.is_plain() { LIMIT..WIDE } else { LIMIT..STEP };
    let things = || around.clone().chain([STEP]);
    let (mut calls, mut times) = ([1; 3], [const { Vec::new() }; 3]);
    let mut round = 0.0;
    for thing in things() {
        round += turn(thing, &mut |run| {
            let seconds;
            (calls[thing], seconds) = enough(run);
            seconds
        });
    }
    for _ in 0..rounds(round) {
        for thing in things() {
            times[thing].push(turn(thing, &mut |round| seconds(calls[thing], round)));
        }
    }
    for thing in around.clone() {
        times[thing].push(turn(thing, &mut |round| seconds(calls[thing], round)));
    }

    let [limits, wide_limits, steps] = times;
    let over = ratio(&steps, &limits);
    let over_f32 = if setting.is_plain() { over } else { ratio(&steps, &wide_limits) };
    Row {
        limit_us: Some(middle(limits) * 1e6),
        ratio_to_limit: Some(over),
        ratio_to_f32: Some(over_f32),
        ..Row::new("cpu", setting, case, middle(steps), bytes)
    }
}

/// An optimizer, and its engine.
fn build(case: &Case, setting: &Setting, pool: &Arc<ThreadPool>) -> (Optimizer, Shared) {
    let (backend, engine) = Open::new(CpuBackend::with_pool(Arc::clone(pool)));
    let mut builder =
        Builder::new(setting.rule.clone()).params(case.parameters(setting.dtype)).state_dtype(setting.state);
    if setting.dtype == DType::Bf16 {
        builder = builder.master(Master::Split);
    }
    if setting.clip {
        builder = builder.clip_norm(MAX_NORM);
    }
    let expected = builder.estimate().expect("a valid optimizer").bytes();
    let optimizer = builder.build(backend).expect("a valid optimizer");
    let engine = engine.get().expect("an engine was made").clone();
    let bytes: usize = engine.lock().state_mut().iter().flatten().map(|array| array.len()).sum();
    assert_eq!(bytes, expected, "the limit walks over the whole state");
    (optimizer, engine)
}

/// Whether the limit is lower with all threads than with one.
fn faster(traffic: &mut Traffic<'_>) -> bool {
    let [alone, together] = [false, true].map(|parallel| {
        let mut call = |calls: u32| (0..calls).for_each(|_| traffic.run(parallel));
        let (calls, _) = enough(&mut call);
        middle((0..ROUNDS).map(|_| seconds(calls, &mut call)))
    });
    together < alone
}

/// What the rule would move if all numbers were `f32`: arrays in place of those that are not.
#[derive(Debug)]
struct Wide {
    memory: Option<Memory>,
    /// Of each slot.
    state: Option<Vec<Tensors>>,
}

impl Wide {
    fn new(case: &Case, setting: &Setting) -> Self {
        let memory = (setting.dtype != DType::F32).then(|| Memory::new(DType::F32, &case.lens()));
        let narrow = setting.state != StateDType::F32 || setting.compresses();
        let state = (memory.is_some() || narrow).then(|| {
            let slots = setting.rule.spec().slots().into_iter();
            let lens = |slot: Slot| case.shapes.iter().map(|shape| slot.shape.len(shape)).collect::<Vec<_>>();
            slots.map(|slot| Tensors::new(DType::F32, &lens(slot), SCALES[1])).collect()
        });
        Self { memory, state }
    }

    fn traffic<'a>(&'a mut self, lens: &[usize], memory: &'a mut Memory, engine: &'a mut CpuEngine) -> Traffic<'a> {
        let Memory { params, grads, .. } = self.memory.as_mut().unwrap_or(memory);
        let state = match &mut self.state {
            None => engine.state_mut(),
            Some(slots) => {
                let mut state: Vec<_> = lens.iter().map(|_| Vec::new()).collect();
                for slot in slots {
                    state.iter_mut().zip(slot.bytes_mut()).for_each(|(arrays, array)| arrays.push(array));
                }
                state
            }
        };
        Traffic::new(lens, params.bytes_mut(), grads.bytes(), state, false)
    }
}
