//! An optimizer in training: with the memory of its parameters, step by step.

use optimizers::{Builder, Grad, IntoBackend, Optimizer, ParamMut, Result, StepReport};

use crate::engine::Numbers;
use crate::{Run, final_report};

/// An optimizer with its parameters' memory on the host.
#[derive(Debug)]
pub struct Training {
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The parameters, in the order of a step.
    pub p: Vec<Numbers>,
}

impl Training {
    /// Builds an optimizer whose parameters start with these numbers, rounded to their types.
    ///
    /// # Errors
    /// What building returns.
    pub fn new(builder: Builder, backend: impl IntoBackend, start: &[Vec<f32>]) -> Result<Self> {
        let optimizer = builder.build(backend)?;
        let parameters = optimizer.parameters().iter().zip(start);
        let p = parameters.map(|(parameter, start)| Numbers::new(parameter.dtype(), start)).collect();
        Ok(Self { optimizer, p })
    }

    /// Calls a function of the optimizer that takes the parameters.
    ///
    /// # Errors
    /// What the function returns.
    pub fn with<T>(&mut self, call: impl FnOnce(&mut Optimizer, &mut [ParamMut<'_>]) -> Result<T>) -> Result<T> {
        let mut params: Vec<ParamMut<'_>> = self.p.iter_mut().map(Numbers::param).collect();
        call(&mut self.optimizer, &mut params)
    }

    /// One step, and its [final report](final_report).
    ///
    /// # Errors
    /// What the step returns.
    pub fn try_step<'a, G: Into<Grad<'a>> + Copy>(&mut self, grads: &[G]) -> Result<StepReport> {
        let grads: Vec<Grad<'_>> = grads.iter().map(|&grad| grad.into()).collect();
        let report = self.with(|optimizer, params| optimizer.step(params, &grads))?;
        final_report(&mut self.optimizer, report)
    }

    /// As [`try_step`](Self::try_step), where it must not fail.
    ///
    /// # Panics
    /// If it does.
    pub fn step<'a, G: Into<Grad<'a>> + Copy>(&mut self, grads: &[G]) -> StepReport {
        self.try_step(grads).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A step with what was accumulated, and its [final report](final_report).
    ///
    /// # Errors
    /// What the step returns.
    pub fn step_accumulated(&mut self) -> Result<StepReport> {
        let report = self.with(Optimizer::step_accumulated)?;
        final_report(&mut self.optimizer, report)
    }

    /// The parameters as `f32`.
    #[must_use]
    pub fn values(&self) -> Vec<Vec<f32>> {
        let wide = |numbers: &Numbers| match numbers {
            Numbers::F32(values) => values.clone(),
            Numbers::F16(values) => values.iter().map(|x| x.to_f32()).collect(),
            Numbers::Bf16(values) => values.iter().map(|x| x.to_f32()).collect(),
        };
        self.p.iter().map(wide).collect()
    }

    /// Parameters and slots, under this name.
    ///
    /// # Panics
    /// If a slot cannot be read.
    #[must_use]
    pub fn run(&self, by: &str) -> Run {
        Run::of(&self.optimizer, &self.values()).unwrap_or_else(|error| panic!("{error}")).by(by)
    }
}
