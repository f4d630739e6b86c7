//! Whole runs with everything that a state has to remember: a schedule, a rate that follows a metric, decay, averages, a dynamic
//! loss scale that overflows, clipping, missing gradients, stochastic rounding.

use std::hash::{DefaultHasher, Hash, Hasher};

use optimizers::core::{DynamicLossScale, Ema, StateDType};
use optimizers::schedule::{Linear, ReduceOnPlateau};
use optimizers::{Builder, Grad, IntoBackend, Optimizer, ParamGroup, Parameter, Result, Rule};

use crate::engine::{Formats, Numbers};
use crate::problem::Random;

/// The shapes of the parameters: matrices, more than a block of 8-bit codes, a stack, a scalar, nothing.
pub const SHAPES: [&[usize]; 5] = [&[5, 7], &[300], &[2, 3, 33], &[], &[4, 0]];

/// The steps at which a gradient overflows.
const OVERFLOWS: [u64; 2] = [5, 14];

/// An optimizer, its parameters and the gradients that it is fed.
#[derive(Debug)]
pub struct Resumable {
    rule: Rule,
    formats: Formats,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The parameters' memory.
    pub params: Vec<Numbers>,
    step: u64,
}

/// All that a run can be told by, to the bit; numbers as hashes.
#[derive(Debug, PartialEq, Eq)]
pub struct Everything {
    /// The parameters' memory.
    pub params: Vec<u64>,
    /// The description of the state.
    pub meta: String,
    /// Its arrays.
    pub arrays: Vec<(String, u64)>,
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl Resumable {
    /// A run at its start.
    pub fn new(backend: impl IntoBackend, rule: &Rule, formats: Formats) -> Result<Self> {
        let mut random = Random::new(11);
        let params = SHAPES.map(|shape| Numbers::random(formats.dtype, shape.iter().product(), &mut random));
        let optimizer = builder(rule, formats)?.build(backend)?;
        Ok(Self { rule: rule.clone(), formats, optimizer, params: params.into(), step: 0 })
    }

    /// The same run at the same place, with the same parameters and an optimizer that knows nothing of it.
    pub fn fresh(&self, backend: impl IntoBackend) -> Result<Self> {
        let fresh = Self::new(backend, &self.rule, self.formats)?;
        Ok(Self { params: self.params.clone(), step: self.step, ..fresh })
    }

    /// Does steps. Some are skipped, for their gradients overflow.
    pub fn run(&mut self, steps: u64) -> Result<()> {
        for _ in 0..steps {
            let step = self.step + 1;
            let scale = self.optimizer.loss_scale()?;
            let gradients: Vec<_> = (0_u64..).zip(&self.params).map(|(i, _)| gradient(step, i, scale)).collect();
            let grads: Vec<Grad<'_>> = gradients.iter().map(|g| g.as_ref().into()).collect();
            let mut params: Vec<_> = self.params.iter_mut().map(Numbers::param).collect();
            let _ = self.optimizer.step(&mut params, &grads)?;
            self.step = step;
            if self.step.is_multiple_of(3) {
                self.optimizer.observe(1.0)?;
            }
        }
        Ok(())
    }

    /// All of it.
    pub fn everything(&mut self) -> Result<Everything> {
        let params = self.params.iter().map(|params| hash(&params.bytes())).collect();
        let state = self.optimizer.state()?;
        let arrays = state.arrays().iter().enumerate().map(|(index, array)| {
            let mut bytes = vec![0; array.bytes().expect("it is in memory")];
            state.read(index, 0, &mut bytes)?;
            Ok((array.name.clone(), hash(&bytes)))
        });
        Ok(Everything { params, arrays: arrays.collect::<Result<_>>()?, meta: format!("{:?}", state.meta()) })
    }
}

/// The builder of such a run's optimizer.
pub fn builder(rule: &Rule, formats: Formats) -> Result<Builder> {
    let parameters: Vec<_> = (SHAPES.iter().enumerate())
        .map(|(i, &shape)| Parameter::new(format!("w{i}"), shape).with_dtype(formats.dtype))
        .collect();
    let members = |group| parameters.iter().skip(group).step_by(2);
    let plateau = ReduceOnPlateau::new(0.01)?.factor(0.5)?.patience(1);
    let groups = [
        ParamGroup::new(members(0)).lr(Linear::new(0.01, 0.002, 15)?).weight_decay(0.01),
        ParamGroup::new(members(1)).lr(plateau).name("odd"),
    ];
    let loss_scale = DynamicLossScale { init_loss_scale: 64.0, scale_window: 3, ..DynamicLossScale::default() };
    Ok(Builder::new(rule.clone())
        .groups(groups)
        .order_params(&parameters)
        .master(formats.master)
        .state_dtype(kept(rule, formats.state))
        .ema(Ema { decay: 0.9, warmup: true })
        .loss_scale(loss_scale)
        .clip_norm(1.0)
        .seed(7))
}

/// How the state of a rule is kept where it is asked for so: building refuses fewer bits for state that takes none.
#[must_use]
pub fn kept(rule: &Rule, state: StateDType) -> StateDType {
    let slots = rule.spec().slots();
    let is_wide = !slots.is_empty() && slots.iter().all(|slot| slot.narrow.is_none());
    if is_wide { StateDType::F32 } else { state }
}

/// The gradient of a parameter at a step, 1 for the first; the third parameter has its first at step 13.
fn gradient(step: u64, parameter: u64, scale: f64) -> Option<Numbers> {
    if (parameter + step).is_multiple_of(4) || (parameter == 2 && step < 13) {
        return None;
    }
    let mut random = Random::new(step << 8 | parameter);
    let len = SHAPES[usize::try_from(parameter).expect("a few parameters")].iter().product();
    #[allow(clippy::cast_possible_truncation, reason = "a power of two")]
    let mut values: Vec<f32> = random.tensor(len).into_iter().map(|x| x * scale as f32).collect();
    if parameter < 2 && OVERFLOWS.contains(&step) {
        values[3] = f32::INFINITY;
    }
    Some(Numbers::F32(values))
}
