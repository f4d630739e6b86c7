//! The steady-state step on the CPU allocates nothing: counted by the allocator of this test binary.
#![allow(unsafe_code, reason = "an allocator is an unsafe trait; this one adds a counter to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

thread_local! {
    /// Where this thread's allocations are counted. `const`, without a destructor: reading it never allocates.
    static COUNTER: Cell<Option<&'static AtomicUsize>> = const { Cell::new(None) };
    /// The bytes that this thread has asked for.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

/// The bytes that a call asks for on this thread, whether it gives them back or not.
pub(crate) fn bytes_in<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = BYTES.get();
    let result = call();
    (result, BYTES.get().wrapping_sub(before))
}

fn count(bytes: usize) {
    BYTES.set(BYTES.get().wrapping_add(bytes));
    if let Some(counter) = COUNTER.get() {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every method hands its arguments to `System` unchanged, whose contract is the same, and `count` neither allocates
// nor unwinds: it reads a constant-initialized thread-locals without a destructor and adds to an atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: the caller's promises are those that `System` asks for; `ptr` came from `System`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those that `System` asks for; `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// A counter for this test alone: other tests run at the same time, on threads that do not count into it.
fn counter() -> &'static AtomicUsize {
    Box::leak(Box::new(AtomicUsize::new(0)))
}

/// The allocator counts at all.
#[test]
fn allocations_are_counted() {
    let counter = counter();
    COUNTER.set(Some(counter));
    drop(std::hint::black_box(vec![1_u8; 100]));
    COUNTER.set(None);
    assert_eq!(counter.load(Ordering::Relaxed), 1);
    assert_eq!(bytes_in(|| drop(std::hint::black_box(vec![1_u8; 100]))), ((), 100));
}

#[cfg(feature = "cpu")]
mod cpu {
    use std::sync::Arc;

    use optim_tests::engine::{Case, Formats, Numbers, record};
    use optim_tests::{Problem, Setup};
    use optimizers::core::backend::{Plan, Progress, RowList, Shaping, Stages, Update};
    use optimizers::core::guard::{Clip, Control, Guard};
    use optimizers::core::{Backend, DynamicLossScale};
    use optimizers::{Adam, Builder, CpuBackend, DType, Grad, Optimizer, ParamMut, Rule};
    use rayon::ThreadPoolBuilder;

    use super::*;

    const STEPS: usize = 200;

    /// Small enough to be done by the calling thread, to be shared with threads that are awake (by some rules with any), and large
    /// enough to wake one.
    const SETS: [&[usize]; 3] =
        [&[100, 7, 2000, 1, 64], &[60_000, 3, 40_001, 1, 16_384], &[100_000, 3, 50_001, 1, 16_384]];

    /// A pool whose threads count.
    fn pool(counter: &'static AtomicUsize) -> Arc<rayon::ThreadPool> {
        let pool = ThreadPoolBuilder::new().num_threads(3).start_handler(|_| COUNTER.set(Some(counter)));
        Arc::new(pool.build().unwrap())
    }

    /// Hands over a step of each rule: an optimizer with its memory, already borrowed. `change` is for its settings, which a rule may
    /// refuse.
    fn with_optimizer(
        lens: &[usize],
        backend: &CpuBackend,
        change: impl Fn(&Rule, Builder) -> Option<Builder>,
        use_it: impl Fn(&Rule, &mut (dyn FnMut() + Send)),
    ) {
        let problem = Problem::new(lens, 1, 1);
        for rule in Rule::all() {
            // Two groups, decay and a loss scale: nothing is left out of the step.
            let setup = Setup { rule: rule.clone(), groups: vec![(1e-2, 0.1), (1e-3, 0.0)], loss_scale: 3.0 };
            let Some(builder) = change(&rule, setup.builder(&problem.parameters)) else { continue };
            let mut optimizer: Optimizer = builder.build(backend.clone()).unwrap();
            let mut p = problem.start.clone();
            let mut params: Vec<ParamMut<'_>> = p.iter_mut().map(Into::into).collect();
            let grads: Vec<Grad<'_>> = problem.gradients[0].iter().map(|g| g.as_ref().into()).collect();
            use_it(&rule, &mut || assert!(optimizer.step(&mut params, &grads).unwrap().applied(), "a step is applied"));
        }
    }

    /// The allocations of a round of steps: of the first round that has at most so many, or the fewest. More than one round,
    /// since a thread of a pool allocates when it first looks for work, and on a busy machine that may be late.
    fn fewest(counter: &AtomicUsize, most: usize, step: &mut dyn FnMut()) -> usize {
        let mut fewest = usize::MAX;
        for _ in 0..20 {
            let before = counter.load(Ordering::SeqCst);
            (0..STEPS).for_each(|_| step());
            fewest = fewest.min(counter.load(Ordering::SeqCst) - before);
            if fewest <= most {
                break;
            }
        }
        fewest
    }

    /// Inside a pool: nothing, on no thread.
    #[test]
    fn none_inside_a_pool() {
        for lens in SETS {
            let counter = counter();
            let pool = pool(counter);
            pool.install(|| drop(std::hint::black_box(vec![1_u8; 100])));
            assert!(counter.load(Ordering::SeqCst) > 0, "the pool's threads count");
            // The optimizer is built outside, with the pool's number of threads; its steps run inside.
            let backend = CpuBackend::with_pool(Arc::clone(&pool));
            let none = |rule: &Rule, step: &mut (dyn FnMut() + Send)| {
                let allocations = pool.install(|| fewest(counter, 0, step));
                assert_eq!(allocations, 0, "{rule:?}: allocations in {STEPS} steps");
            };
            with_optimizer(lens, &backend, |_, builder| Some(builder), none);
            // All that may surround a rule.
            let scale =
                DynamicLossScale { init_loss_scale: 2.0, scale_window: 10, cap: 8.0, ..DynamicLossScale::default() };
            let all =
                |_: &Rule, builder: Builder| Some(builder.loss_scale(scale).clip_norm(0.5).clip_value(0.1).ema(0.99));
            with_optimizer(lens, &backend, all, none);
            let by_group = |rule: &Rule, builder: Builder| {
                let takes_rows = !rule.spec().has_trust();
                takes_rows.then(|| builder.clip_norm_per_group(0.5).clip_adaptive(0.1, 1e-3))
            };
            with_optimizer(lens, &backend, by_group, none);
        }
    }

    /// From outside: the queue by which rayon takes work from other threads is a list of blocks of 63 jobs; a step hands over
    /// one job, or none if it is small. Nothing else.
    #[test]
    fn a_block_every_63_steps_from_outside() {
        for (lens, shared) in SETS.into_iter().zip([false, true, true]) {
            let counter = counter();
            let pool = pool(counter);
            with_optimizer(
                lens,
                &CpuBackend::with_pool(pool),
                |_, builder| Some(builder),
                |rule, step| {
                    let most = if shared { STEPS / 63 + 1 } else { 0 };
                    COUNTER.set(Some(counter));
                    let allocations = fewest(counter, most, step);
                    COUNTER.set(None);
                    assert!(
                        allocations <= most,
                        "{rule:?}: {allocations} allocations in {STEPS} steps, at most {most}"
                    );
                },
            );
        }
    }

    /// With every format, a guard, numbers of rows, averages, and gradients of every kind.
    #[test]
    fn none_with_everything_around_a_rule() {
        let counter = counter();
        let pool = pool(counter);
        let rules = [Adam::default().into()];
        let mut case = Case::new(&rules, 1);
        for (nth, formats) in Formats::all().into_iter().enumerate() {
            case.push(&[40 + nth, 257], formats, 0).ema = true;
        }
        let plan = Plan { rules: &rules, tensors: &case.tensors, groups: case.groups };
        let mut engine = CpuBackend::with_pool(Arc::clone(&pool)).engine(&plan).unwrap();
        let mut start = case.start.clone();
        let mut params: Vec<ParamMut<'_>> = start.iter_mut().map(Numbers::param).collect();
        let dtypes = [DType::F32, DType::F16, DType::Bf16];
        let gradients = case.gradients(|index| dtypes[index % 3]);
        let mut grads: Vec<Grad<'_>> = gradients.iter().map(|g| g.as_ref().into()).collect();
        grads.iter_mut().step_by(4).for_each(|grad| *grad = Grad::Accumulated);
        let mut record = record(&rules[0], 1);
        record.shaping = Shaping { factor: 0.5, weight_decay: 0.1, limit: 2.0, flags: Shaping::CENTRALIZE };
        record.stages = Stages { ema: 0.1, max_norm: 1.0, units: 0.1, units_epsilon: 1e-3, ..record.stages };
        let guard = Guard { factor: 0.5, clip: Clip::Global, first: 0, records: 1, scaler: None };
        let (record_of, rows) = (vec![0; params.len()], vec![RowList::default(); params.len()]);
        engine.seed(&vec![true; params.len()], &mut params).unwrap();
        let fresh = vec![true; params.len()];
        let added: Vec<Grad<'_>> = gradients.iter().map(|g| g.as_ref().into()).collect();
        let mut step = || {
            engine.accumulate(0.5, &fresh, &added).unwrap();
            engine.set_control(&Control::default()).unwrap();
            record.stages.step += 1;
            let update =
                Update { rules: &rules, records: &[record], record_of: &record_of, rows: &rows, guard: Some(&guard) };
            let progress = engine.update(&update, &mut params, &grads).unwrap();
            assert!(matches!(progress, Progress::Decided(verdict) if verdict.skip.is_none()), "a step is applied");
        };
        let allocations = pool.install(|| fewest(counter, 0, &mut step));
        assert_eq!(allocations, 0, "allocations in {STEPS} steps");
    }
}
