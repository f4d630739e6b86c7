//! Sequences of overflows that MindSpore's loss scale managers went through, on a real optimizer.

use optim_tests::{Bound, Run, Target, compare, final_report, on_every_backend};
use optimizers::core::guard::Skip;
use optimizers::core::{DynamicLossScale, FixedLossScale, LossScale};
use optimizers::{Adam, Grad, Optimizer, Outcome, Parameter, Rate, StepReport};

use crate::manifest::Golden;

/// An optimizer with its memory.
struct Training {
    optimizer: Optimizer,
    p: [Vec<f32>; 2],
}

impl Training {
    /// A schedule tells by its rate whether it went on.
    fn new(loss_scale: impl Into<LossScale>, target: Target) -> Self {
        let lr = Rate::from((1..=100).map(|n| 1e-3 * f64::from(n)).collect::<Vec<_>>());
        let parameters = [Parameter::new("weight", [3, 4]), Parameter::new("bias", [4])];
        let builder = Adam::new(lr).params(&parameters).loss_scale(loss_scale);
        Self { optimizer: builder.build(target).unwrap(), p: [vec![0.5; 12], vec![-0.25; 4]] }
    }

    /// A step with gradients of 0.125, scaled as the optimizer says; with `overflow` one element of the second is `bad`.
    fn step(&mut self, overflow: Option<f32>) -> StepReport {
        let scale = self.optimizer.loss_scale().unwrap();
        #[allow(clippy::cast_possible_truncation, reason = "the scale is an f32")]
        let g = 0.125 * scale as f32;
        let (weight, mut bias) = ([g; 12], [g; 4]);
        if let Some(bad) = overflow {
            bias[2] = bad;
        }
        let [w, b] = &mut self.p;
        let grads: [Grad<'_>; 2] = [(&weight).into(), (&bias).into()];
        let report = self.optimizer.step(&mut [w.into(), b.into()], &grads).unwrap();
        final_report(&mut self.optimizer, report).unwrap()
    }

    fn run(&self, by: &str) -> Run {
        Run::of(&self.optimizer, &self.p).unwrap().by(by)
    }
}

#[track_caller]
fn assert_same(a: &Run, b: &Run) {
    if let Err(worst) = compare(a, b, &Bound::Bits) {
        panic!("{worst}");
    }
}

fn dynamic_scale(init_loss_scale: f64) -> DynamicLossScale {
    DynamicLossScale { init_loss_scale, ..DynamicLossScale::default() }
}

/// What an overflow looks like.
const BAD: [f32; 3] = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN];

on_every_backend! {
    /// Bounds hold for a factor below 1 as well, which turns growing and falling round.
    fn bounds(target) {
        let scale = DynamicLossScale { scale_factor: 0.5, scale_window: 1, floor: 1.0, cap: 8.0, ..dynamic_scale(4.0) };
        let mut training = Training::new(scale, target);
        let scales = |training: &mut Training, overflow: Option<f32>| -> Vec<f64> {
            let step = |_| {
                assert_eq!(training.step(overflow).applied(), overflow.is_none(), "{overflow:?}");
                training.optimizer.loss_scale().unwrap()
            };
            (0..4).map(step).collect()
        };
        assert_eq!(scales(&mut training, None), [2.0, 1.0, 1.0, 1.0]);
        assert_eq!(scales(&mut training, Some(f32::NAN)), [2.0, 4.0, 8.0, 8.0]);
    }

    /// The recorded sequences: scale and counters after each step; nothing but them moves on overflow.
    fn dynamic(target) {
        let mut sequences = 0;
        for golden in Golden::sets() {
            for recorded in &golden.manifest.loss_scale {
                let mut training = Training::new(
                    DynamicLossScale {
                        init_loss_scale: recorded.init_loss_scale,
                        scale_factor: recorded.scale_factor,
                        scale_window: recorded.scale_window,
                        ..DynamicLossScale::default()
                    },
                    target,
                );
                let mut before = recorded.init_loss_scale;
                let (mut applied, mut skips) = (0_u32, 0);
                assert_eq!(recorded.overflow.len(), recorded.manager.len(), "a scale after each step");
                for (index, (&overflow, &after)) in recorded.overflow.iter().zip(&recorded.manager).enumerate() {
                    let (known, params) = (training.run("before"), training.p.clone());
                    let report = training.step(overflow.then(|| BAD[index % BAD.len()]));
                    if overflow {
                        skips += 1;
                        assert_eq!(report.outcome, Outcome::Skipped(Skip::NotFinite), "step {index}");
                        assert_same(&known, &training.run("after a skip"));
                    } else {
                        (applied, skips) = (applied + 1, 0);
                        assert_eq!(report.outcome, Outcome::Applied, "step {index}");
                        assert_ne!(params, training.p, "step {index} moves");
                    }
                    let gradients = report.gradients.expect("a guard measures");
                    let bits = |x: f64| x.to_bits();
                    assert_eq!(bits(gradients.loss_scale), bits(before), "the scale divided out at step {index}");
                    assert_eq!(bits(gradients.next_loss_scale), bits(after), "the scale after step {index}");
                    assert_eq!(bits(training.optimizer.loss_scale().unwrap()), bits(after), "step {index}");
                    assert_eq!(gradients.skips, skips, "step {index}");
                    assert_eq!(gradients.first_non_finite.as_deref(), overflow.then_some("bias"), "step {index}");
                    assert_eq!(training.optimizer.step_count(), u64::from(applied), "step {index}");
                    assert_eq!(report.step, u64::from(applied) + u64::from(overflow), "step {index}");
                    let rate = 1e-3 * f64::from(applied + u32::from(overflow));
                    assert_eq!(bits(report.rates[0]), bits(rate), "the rate of step {index}");
                    before = after;
                }
                for (cells, version) in [(&recorded.cell_1_5, "1.5"), (&recorded.cell_2_10, "2.10")] {
                    for (cell, manager) in cells.iter().zip(&recorded.manager) {
                        assert!(cell.is_none_or(|cell| cell.to_bits() == manager.to_bits()), "{version}: one sequence");
                    }
                }
                // The same weights as of an optimizer that never saw the overflows.
                let mut undisturbed = Training::new(1.0, target);
                (0..applied).for_each(|_| assert!(undisturbed.step(None).applied(), "a good step"));
                assert_same(&undisturbed.run("undisturbed"), &training.run("with overflows"));
                sequences += 1;
            }
        }
        assert!(sequences > 0, "there are sequences");
    }

    /// A fixed scale goes through the same overflows and stays as it is.
    fn fixed(target) {
        for golden in Golden::sets() {
            for recorded in &golden.manifest.loss_scale {
                let scale = FixedLossScale { loss_scale: recorded.init_loss_scale, ..FixedLossScale::default() };
                let mut training = Training::new(scale, target);
                let mut applied = 0;
                for (index, &overflow) in recorded.overflow.iter().enumerate() {
                    let known = training.run("before");
                    let report = training.step(overflow.then(|| BAD[index % BAD.len()]));
                    applied += u64::from(!overflow);
                    assert_eq!(report.applied(), !overflow, "step {index}");
                    let changed = compare(&known, &training.run("after"), &Bound::Bits).is_err();
                    assert_eq!(changed, !overflow, "step {index}");
                    assert_eq!(training.optimizer.step_count(), applied, "step {index}");
                    let gradients = report.gradients.expect("a guard measures");
                    for got in [gradients.loss_scale, gradients.next_loss_scale, training.optimizer.loss_scale().unwrap()] {
                        assert_eq!(got.to_bits(), recorded.init_loss_scale.to_bits(), "step {index}");
                    }
                }
            }
        }
    }
}
