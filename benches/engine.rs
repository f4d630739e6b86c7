//! The CPU backend with a door: the state of its engine can be reached while an optimizer holds it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use optim_cpu::CpuEngine;
use optimizers::core::backend::{Backend, Engine, Part, Plan, Progress, Update};
use optimizers::core::guard::Control;
use optimizers::{CpuBackend, Grad, ParamMut, Result};

/// An engine that the bench holds too. Its lock is never waited for.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Mutex<CpuEngine>>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, CpuEngine> {
        self.0.lock().expect("no panic before")
    }
}

/// A backend of one engine, which it leaves behind.
#[derive(Debug)]
pub(crate) struct Open {
    backend: CpuBackend,
    engine: Arc<OnceLock<Shared>>,
}

impl Open {
    /// The backend, and the place where its engine will be.
    pub(crate) fn new(backend: CpuBackend) -> (Self, Arc<OnceLock<Shared>>) {
        let engine = Arc::default();
        (Self { backend, engine: Arc::clone(&engine) }, engine)
    }
}

impl Backend for Open {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn describe(&self) -> String {
        self.backend.describe()
    }

    fn engine(&self, plan: &Plan<'_>) -> Result<Box<dyn Engine>> {
        let shared = Shared(Arc::new(Mutex::new(self.backend.open(plan)?)));
        self.engine.set(shared.clone()).expect("one engine");
        Ok(Box::new(shared))
    }
}

impl Engine for Shared {
    fn begin(&mut self) {
        self.lock().begin();
    }

    fn update(&mut self, update: &Update<'_>, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<Progress> {
        self.lock().update(update, params, grads)
    }

    fn control(&self) -> Result<Control> {
        self.lock().control()
    }

    fn set_control(&mut self, control: &Control) -> Result<()> {
        self.lock().set_control(control)
    }

    fn seed(&mut self, seeds: &[bool], params: &mut [ParamMut<'_>]) -> Result<()> {
        self.lock().seed(seeds, params)
    }

    fn accumulate(&mut self, weight: f32, fresh: &[bool], grads: &[Grad<'_>]) -> Result<()> {
        self.lock().accumulate(weight, fresh, grads)
    }

    fn swap_ema(&mut self, into: bool, params: &mut [ParamMut<'_>]) -> Result<()> {
        self.lock().swap_ema(into, params)
    }

    fn read(&self, parameter: usize, part: Part, first: usize, bytes: &mut [u8]) -> Result<()> {
        self.lock().read(parameter, part, first, bytes)
    }

    fn write(&mut self, parameter: usize, part: Part, first: usize, bytes: &[u8]) -> Result<()> {
        self.lock().write(parameter, part, first, bytes)
    }
}
