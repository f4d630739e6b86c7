//! The threads that a step may be shared with, and whether they are awake.
//!
//! A worker of rayon's that finds nothing to do looks for work 33 times, giving up the processor in between, and then sleeps:
//! after 5 to 15 µs. Work that is handed over before that begins at once; later the system has to wake the worker, which costs the
//! caller more than a small step takes. rayon does not tell who sleeps, so the clock does: where steps follow one another at once,
//! the workers of the last one are awake for the next.
//!
//! Keeping them awake for longer would take a job that outlives the step: an allocation, and a thread of the pool that may be in the
//! midst of a wait of the caller's.

use std::cell::Cell;
use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::ThreadPool;

/// How long workers are awake after a step, at least.
const AWAKE: Duration = Duration::from_micros(5);

/// How often the caller looks whether a worker has stirred: half a microsecond.
const WAIT: u32 = 64;

thread_local! {
    /// When this thread was last done with something that it shares, or would share if threads were awake.
    static DONE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The caller's pool; without one that of the calling thread, or the global one.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Option<Arc<ThreadPool>>);

impl Pool {
    pub(crate) fn new(pool: Option<Arc<ThreadPool>>) -> Self {
        Self(pool)
    }

    /// Runs something in the pool.
    pub(crate) fn run(&self, run: impl FnOnce() + Send) {
        match &self.0 {
            Some(pool) => pool.install(run),
            None => run(),
        }
    }

    /// Runs something that shares its work many times by a thread of the pool, which is waited for once.
    pub(crate) fn enter(&self, run: impl FnOnce() + Send) {
        match &self.0 {
            Some(pool) => pool.install(run),
            None if self.is_inside() => run(),
            None => {
                rayon::join(run, || ());
            }
        }
    }

    /// Whether the calling thread belongs to the pool and has been done with a step a moment ago.
    pub(crate) fn is_awake(&self) -> bool {
        self.is_inside() && DONE.get().is_some_and(|done| done.elapsed() <= AWAKE)
    }

    /// Keeps a worker awake, or wakes it, by work that is nothing: before and after what a step does not share, so that it finds a
    /// worker awake when it does. Only inside the pool.
    pub(crate) fn stir(&self) {
        if !self.is_inside() {
            return;
        }
        let stirred = AtomicBool::new(false);
        let wait = || {
            for _ in 0..WAIT {
                if stirred.load(Ordering::Relaxed) {
                    break;
                }
                hint::spin_loop();
            }
        };
        rayon::join(wait, || stirred.store(true, Ordering::Relaxed));
    }

    /// Whether the calling thread belongs to the pool.
    fn is_inside(&self) -> bool {
        let index = match &self.0 {
            Some(pool) => pool.current_thread_index(),
            None => rayon::current_thread_index(),
        };
        index.is_some()
    }

    /// Notes that the calling thread is done.
    pub(crate) fn done() {
        DONE.set(Some(Instant::now()));
    }
}
