//! A step that also says how far it moved each parameter.

use crate::{Grad, Optimizer, Outcome, ParamMut, Result, StepReport};

impl Optimizer {
    /// As [`step`](Self::step), and the report says how far each parameter moved, relative to its size:
    /// [`update_ratios`](StepReport::update_ratios). For a look now and then, not for every step: it copies all parameters, and memory
    /// on a device is read back twice, which waits for it. So the report is never [`Pending`](Outcome::Pending).
    ///
    /// # Errors
    /// As [`step`](Self::step); memory on a device that cannot be read.
    pub fn step_watched(&mut self, params: &mut [ParamMut<'_>], grads: &[Grad<'_>]) -> Result<StepReport> {
        self.check_memory(params, grads)?;
        let before = params.iter().map(values).collect::<Result<Vec<_>>>()?;
        let mut report = self.step(params, grads)?;
        if report.outcome == Outcome::Pending {
            self.settle()?;
            report = self.reports.pop_back().unwrap_or(report);
        }
        let ratio = |(before, param): (&Vec<f32>, &ParamMut<'_>)| Ok(ratio(before, &values(param)?));
        report.update_ratios = Some(before.iter().zip(&*params).map(ratio).collect::<Result<_>>()?);
        Ok(report)
    }
}

/// A parameter's elements.
fn values(param: &ParamMut<'_>) -> Result<Vec<f32>> {
    Ok(match param {
        ParamMut::F32(values) => values.to_vec(),
        ParamMut::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
        ParamMut::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
        ParamMut::Device(memory) => memory.to_host()?,
    })
}

/// `‖p′ − p‖ / ‖p‖`, where 0 / 0 = 0.
fn ratio(before: &[f32], after: &[f32]) -> f64 {
    let pairs = || before.iter().zip(after).map(|(&p, &q)| (f64::from(p), f64::from(q)));
    let moved: f64 = pairs().map(|(p, q)| (q - p) * (q - p)).sum();
    let size: f64 = pairs().map(|(p, _)| p * p).sum();
    if moved == 0.0 { 0.0 } else { (moved / size).sqrt() }
}
