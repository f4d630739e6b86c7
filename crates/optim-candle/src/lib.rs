//! The optimizers library for [candle](https://docs.rs/candle-core): every rule as a [`candle_nn::Optimizer`] that updates `Var`s in place.
//!
//! A [`VarOptimizer`] stands where [`candle_nn::AdamW`] stood; the rest of a training program stays as it is:
//!
//! ```
//! use candle_core::{DType, Device, Result, Tensor};
//! use candle_nn::{Module, Optimizer, VarBuilder, VarMap};
//! use optim_candle::{VarOptimizer, core::AdamW};
//!
//! # fn main() -> Result<()> {
//! let varmap = VarMap::new();
//! let model = candle_nn::linear(4, 1, VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu))?;
//!
//! // Before: candle_nn::AdamW::new(varmap.all_vars(), ParamsAdamW { lr: 0.1, ..Default::default() })?
//! let mut optimizer = VarOptimizer::from_varmap(&varmap, AdamW::new(0.1))?;
//!
//! let (x, y) = (Tensor::randn(0_f32, 1.0, (64, 4), &Device::Cpu)?, Tensor::ones((64, 1), DType::F32, &Device::Cpu)?);
//! for _ in 0..100 {
//!     let loss = candle_nn::loss::mse(&model.forward(&x)?, &y)?;
//!     optimizer.backward_step(&loss)?;
//! }
//! assert!(candle_nn::loss::mse(&model.forward(&x)?, &y)?.to_scalar::<f32>()? < 0.01);
//! # Ok(())
//! # }
//! ```
//!
//! Whatever else there is to say goes into a [`Builder`]: groups by name, schedules, clipping, loss scales, averages, types of state.
//! It needs no parameters: those are the vars.
//!
//! ```
//! use candle_core::{DType, Device};
//! use candle_nn::{VarBuilder, VarMap};
//! use optim_candle::VarOptimizer;
//! use optim_candle::core::{AdamW, Builder, ParamGroup, Select, StateDType, schedule::CosineDecay};
//!
//! # fn main() -> optim_candle::Result<()> {
//! let varmap = VarMap::new();
//! let vars = VarBuilder::from_varmap(&varmap, DType::BF16, &Device::Cpu);
//! let (_, _) = (candle_nn::linear(4, 8, vars.pp("body"))?, candle_nn::linear(8, 2, vars.pp("head"))?);
//!
//! let settings = Builder::new(AdamW::new(CosineDecay::new(0.0, 3e-4, 1000)?))
//!     .groups([
//!         ParamGroup::matching(Select::glob("*.bias")?).weight_decay(0.0),
//!         ParamGroup::matching(Select::glob("head.*")?).lr(1e-3),
//!         ParamGroup::matching(Select::rest()),
//!     ])
//!     .clip_norm(1.0)
//!     .state_dtype(StateDType::Bf16)
//!     .ema(0.999);
//! let optimizer = VarOptimizer::from_varmap(&varmap, settings)?;
//! println!("{optimizer}"); // the groups: which vars, which rates, how much state
//! assert_eq!(optimizer.inner().lr(1)?, 1e-3);
//! # Ok(())
//! # }
//! ```
//!
//! # What a step does
//!
//! It locks all vars, then updates them in one pass on rayon's threads, in their own memory: nothing is copied but gradients that are
//! not contiguous. State and arithmetic are `f32` whatever the type of a var, unless the builder says otherwise, and `f16` and
//! `bf16` vars have an `f32` master behind them: small updates are not lost.
//!
//! Vars are `f32`, `f16` or `bf16` and on the CPU. A var without a gradient is left alone, and so is its state.
//!
//! The locks stand on the stack, at most 512 KiB of the caller's; with more than some hundred vars the innermost are taken, and
//! the step is done, on a thread that lives as long. There is no limit to the number of vars. **Trap**: such a thread is in no pool
//! of rayon's, so give a pool by [`from_named_on`](VarOptimizer::from_named_on) rather than by `install`.
//!
//! **Trap**: while a step has the vars locked, another thread that computes with them waits, as does the step for one that does when it
//! begins. Should that thread read two vars in one operation (`a + b`, a normalization's scale and shift), both may wait for ever.
//! Give such a thread copies. Optimizers that share vars may step in threads of their own: all lock in one order. The same thread must not
//! use the vars while it steps: closures of schedules, of [`vary`](optim_core::ParamGroup::vary) and of rules of your own would wait for
//! themselves.
//!
//! # Differences from `candle_nn::AdamW`
//!
//! - Vars of other types are errors, not passed over; so are no vars at all.
//! - Moments of 16-bit vars are `f32`, not of the vars' type.
//! - All vars decay by default, as there, also without groups and whatever their names; a
//!   [`decay_filter`](Builder::decay_filter) or a group ends that.
//! - Running statistics (`BatchNorm`) never have a gradient and are left alone, as there. But their averages stay at what they were
//!   at the first step: with `ema`, leave them out by [`from_named`](VarOptimizer::from_named).
//!
//! # Crate layout
//!
//! `memory` borrows vars and gradients for a step, `error` is the error type; [`core`] is `optim-core`, with the rules.
#![forbid(unsafe_code)]

mod error;
mod memory;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::PoisonError;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use candle_nn::VarMap;
pub use optim_core as core;
use optim_core::{Builder, DType, Grad, IntoBackend, LoadOptions, LoadReport, ParamMut, Parameter, StepReport};
use optim_cpu::CpuBackend;

use memory::Locks;

pub use error::{Error, Result};

/// An optimizer of candle's `Var`s, with any rule of this library. It implements [`candle_nn::Optimizer`].
///
/// What it says and does beyond vars and their gradients is the [`inner`](Self::inner) optimizer's: groups, rates, explanations, state.
pub struct VarOptimizer {
    inner: optim_core::Optimizer,
    /// The vars in the order of the inner optimizer's parameters.
    locks: Locks,
    /// Where their memory is, sorted.
    addresses: Vec<usize>,
    /// What `set_learning_rate` had no way to return.
    refused: Option<Error>,
}

impl VarOptimizer {
    /// Over vars without names, which become `var0`, `var1`, ….
    ///
    /// **Trap**: [`VarMap::all_vars`] gives another order in every run, so that saved state would fit by chance only: use
    /// [`from_varmap`](Self::from_varmap) there.
    ///
    /// # Errors
    /// As [`from_named`](Self::from_named).
    pub fn new(vars: Vec<Var>, settings: impl Into<Builder>) -> Result<Self> {
        Self::from_named(vars.into_iter().enumerate().map(|(index, var)| (format!("var{index}"), var)), settings)
    }

    /// Over all vars of a map, with their names there, in the order of the names.
    ///
    /// # Errors
    /// As [`from_named`](Self::from_named).
    pub fn from_varmap(varmap: &VarMap, settings: impl Into<Builder>) -> Result<Self> {
        let vars = varmap.data().lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut vars: Vec<_> = vars.into_iter().collect();
        vars.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Self::from_named(vars, settings)
    }

    /// Over vars with names: some of a map's, or those of several maps. With these `settings`: a rule, or a builder, whose own
    /// parameters are replaced by these.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Var};
    /// # use optim_candle::{VarOptimizer, core::Lion};
    /// # fn main() -> optim_candle::Result<()> {
    /// let adapters = [("lora.a", Var::zeros((4, 2), DType::F32, &Device::Cpu)?), ("lora.b", Var::zeros((2, 4), DType::F32, &Device::Cpu)?)];
    /// let optimizer = VarOptimizer::from_named(adapters, Lion::new(1e-4))?;
    /// assert_eq!(optimizer.inner().parameters()[1].name(), "lora.b");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A var given twice; one that is not on the CPU, not contiguous or of another type than `f32`, `f16` and `bf16`; those of
    /// [`Builder::build`].
    pub fn from_named<N: Into<String>>(
        vars: impl IntoIterator<Item = (N, Var)>,
        settings: impl Into<Builder>,
    ) -> Result<Self> {
        Self::from_named_on(CpuBackend::new(), vars, settings)
    }

    /// As [`from_named`](Self::from_named), on a backend of the caller's: a [`CpuBackend`] with a pool of its own.
    ///
    /// # Errors
    /// As [`from_named`](Self::from_named).
    pub fn from_named_on<N: Into<String>>(
        backend: impl IntoBackend,
        vars: impl IntoIterator<Item = (N, Var)>,
        settings: impl Into<Builder>,
    ) -> Result<Self> {
        let named: Vec<(String, Var)> = vars.into_iter().map(|(name, var)| (name.into(), var)).collect();
        let parameters = named.iter().map(|(name, var)| parameter(name, var)).collect::<Result<Vec<_>>>()?;
        let addresses = addresses(&named)?;
        let builder = settings.into().default_decay_filter(|_| true);
        let inner = builder.params(parameters).build(backend)?;
        // The builder may have an order of its own; its names are unique.
        let mut named: HashMap<String, Var> = named.into_iter().collect();
        let vars = inner.parameters().iter().filter_map(|parameter| named.remove(parameter.name())).collect();
        Ok(Self { inner, locks: Locks::new(vars), addresses, refused: None })
    }

    /// The optimizer of parameters that are not vars: all that can be read of it.
    #[must_use]
    pub fn inner(&self) -> &optim_core::Optimizer {
        &self.inner
    }

    /// The optimizer of parameters that are not vars: rates by group, weight decay, hyper-parameters, freezing, metrics.
    ///
    /// **Trap**: a group added here has no vars, and a var does not follow rows that are resized or rearranged: every step is an error
    /// then.
    #[must_use]
    pub fn inner_mut(&mut self) -> &mut optim_core::Optimizer {
        &mut self.inner
    }

    /// The vars, in the order of the inner optimizer's parameters, which have their names.
    #[must_use]
    pub fn vars(&self) -> &[Var] {
        self.locks.vars()
    }

    /// As [`step`](candle_nn::Optimizer::step), and what it did: whether it was applied, the rates, the gradients' norm.
    ///
    /// # Errors
    /// A gradient that is not on the CPU, not shaped as its var or of another type than `f32`, `f16` and `bf16`; what
    /// [`set_learning_rate`](candle_nn::Optimizer::set_learning_rate) was refused; those of
    /// [`Optimizer::step`](optim_core::Optimizer::step).
    pub fn step_report(&mut self, grads: &GradStore) -> Result<StepReport> {
        self.refuse()?;
        let Self { inner, locks, addresses, .. } = self;
        let grads = memory::gradients(inner.parameters(), locks.vars(), addresses, grads)?;
        with_slices(inner, &grads, |inner, grads| locks.lock(|params| inner.step(params, grads)))
    }

    /// Adds the gradients of a micro-batch, `weight` times, to those for a [`step_accumulated`](Self::step_accumulated): see
    /// [`Optimizer::accumulate`](optim_core::Optimizer::accumulate).
    ///
    /// # Errors
    /// As [`step_report`](Self::step_report), of the gradients; a weight out of its range.
    pub fn accumulate(&mut self, grads: &GradStore, weight: f64) -> Result<()> {
        let Self { inner, locks, addresses, .. } = self;
        let grads = memory::gradients(inner.parameters(), locks.vars(), addresses, grads)?;
        with_slices(inner, &grads, |inner, grads| Ok(inner.accumulate(grads, weight)))
    }

    /// A step with what has been accumulated, divided by the sum of the weights.
    ///
    /// # Errors
    /// As [`Optimizer::step_accumulated`](optim_core::Optimizer::step_accumulated).
    pub fn step_accumulated(&mut self) -> Result<StepReport> {
        self.refuse()?;
        self.with_params(optim_core::Optimizer::step_accumulated)
    }

    /// The loss times the loss scale of the next step, which divides it out of the gradients again; the loss itself without one.
    /// [`backward_step`](candle_nn::Optimizer::backward_step) does it by itself.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Var};
    /// # use optim_candle::{VarOptimizer, core::{Builder, DynamicLossScale, Sgd}};
    /// # fn main() -> optim_candle::Result<()> {
    /// let w = Var::ones(2, DType::F16, &Device::Cpu)?;
    /// let settings = Builder::new(Sgd::new(0.1)).loss_scale(DynamicLossScale::default());
    /// let mut optimizer = VarOptimizer::from_named([("w", w.clone())], settings)?;
    ///
    /// let loss = w.to_dtype(DType::F32)?.sqr()?.sum_all()?; // trap: in f16 the scaled loss itself would overflow
    /// let grads = optimizer.scale_loss(&loss)?.backward()?;
    /// let report = optimizer.step_report(&grads)?;
    /// assert!(!report.applied(), "16,777,216 times the gradient is too much for f16: the next scale is smaller");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// candle's.
    pub fn scale_loss(&mut self, loss: &Tensor) -> Result<Tensor> {
        let scale = self.inner.loss_scale()?;
        #[allow(clippy::float_cmp, reason = "without a loss scale it is 1 exactly")]
        Ok(if scale == 1.0 { loss.clone() } else { (loss * scale)? })
    }

    /// Writes the averages into the vars, for an evaluation: see [`Optimizer::swap_ema_in`](optim_core::Optimizer::swap_ema_in).
    ///
    /// # Errors
    /// As there.
    pub fn swap_ema_in(&mut self) -> Result<()> {
        self.with_params(optim_core::Optimizer::swap_ema_in)
    }

    /// Brings back what was in the vars before [`swap_ema_in`](Self::swap_ema_in).
    ///
    /// # Errors
    /// As [`Optimizer::swap_ema_out`](optim_core::Optimizer::swap_ema_out).
    pub fn swap_ema_out(&mut self) -> Result<()> {
        self.with_params(optim_core::Optimizer::swap_ema_out)
    }

    /// Takes the vars as they are now for masters and averages: after they were set by other means ([`VarMap::load`], `Var::set`).
    ///
    /// # Errors
    /// As [`Optimizer::reseed`](optim_core::Optimizer::reseed).
    pub fn reseed(&mut self) -> Result<()> {
        self.with_params(optim_core::Optimizer::reseed)
    }

    /// Saves the state, not the vars ([`VarMap::save`] does that), to a safetensors file: see [`optim_checkpoint::save`].
    ///
    /// # Errors
    /// As there.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<u64> {
        Ok(optim_checkpoint::save(&mut self.inner, path)?)
    }

    /// Loads the state of the vars of the same names from a file: see [`optim_checkpoint::load`]. With the vars loaded too, training
    /// goes on bit for bit.
    ///
    /// # Errors
    /// As there.
    pub fn load(&mut self, path: impl AsRef<Path>, options: &LoadOptions) -> Result<LoadReport> {
        Ok(optim_checkpoint::load(&mut self.inner, path, options)?)
    }

    fn with_params<R: Send>(
        &mut self,
        run: impl FnOnce(&mut optim_core::Optimizer, &mut [ParamMut<'_>]) -> optim_core::Result<R> + Send,
    ) -> Result<R> {
        let Self { inner, locks, .. } = self;
        Ok(locks.lock(|params| run(inner, params))??)
    }

    /// Returns what `set_learning_rate` was refused, once.
    fn refuse(&mut self) -> Result<()> {
        self.refused.take().map_or(Ok(()), Err)
    }
}

/// Calls `run` with the gradients' memory.
fn with_slices<R>(
    inner: &mut optim_core::Optimizer,
    grads: &[Option<Tensor>],
    run: impl FnOnce(&mut optim_core::Optimizer, &[Grad<'_>]) -> Result<optim_core::Result<R>>,
) -> Result<R> {
    let readings: Vec<_> = grads.iter().map(|grad| grad.as_ref().map(Tensor::storage_and_layout)).collect();
    let slice = |(parameter, reading): (&Parameter, _)| match reading {
        Some(reading) => memory::grad(parameter.name(), reading),
        None => Ok(Grad::None),
    };
    let grads: Vec<_> =
        inner.parameters().iter().zip(readings.iter().map(Option::as_ref)).map(slice).collect::<Result<_>>()?;
    Ok(run(inner, &grads)??)
}

/// What the inner optimizer is told about a var.
fn parameter(name: &str, var: &Var) -> Result<Parameter> {
    let (what, name) = ("var", name.to_owned());
    if !var.device().is_cpu() {
        return Err(Error::Device { what, name, got: var.device().location() });
    }
    if !var.is_contiguous() {
        return Err(Error::Strided { what, name });
    }
    let dtype = match var.dtype() {
        candle_core::DType::F32 => DType::F32,
        candle_core::DType::F16 => DType::F16,
        candle_core::DType::BF16 => DType::Bf16,
        got => return Err(Error::DType { what, name, got }),
    };
    Ok(Parameter::new(name, var.dims()).with_dtype(dtype))
}

/// Where the vars' memory is, sorted.
fn addresses(named: &[(String, Var)]) -> Result<Vec<usize>> {
    let mut places: Vec<(usize, &str)> =
        named.iter().map(|(name, var)| (memory::address(var), name.as_str())).collect();
    places.sort_unstable();
    if let Some(pair) = places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Error::Shared { first: pair[0].1.into(), second: pair[1].1.into() });
    }
    Ok(places.into_iter().map(|(address, _)| address).collect())
}

impl candle_nn::Optimizer for VarOptimizer {
    /// A rule becomes one by `.into()`.
    type Config = Builder;

    fn new(vars: Vec<Var>, config: Builder) -> candle_core::Result<Self> {
        Ok(Self::new(vars, config)?)
    }

    /// Updates every var that has a gradient, in place. `Ok` also if the step was skipped, because gradients were not finite:
    /// [`step_report`](VarOptimizer::step_report) tells.
    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        let _ = self.step_report(grads)?;
        Ok(())
    }

    /// The first group's rate at the next step; not a number if there is none, which the step will return as an error.
    fn learning_rate(&self) -> f64 {
        self.inner.lr(0).unwrap_or(f64::NAN)
    }

    /// Sets the rate of every group, in place of its schedule too. A rate that is refused is an error of the next step, which does
    /// nothing else; the groups before the one that refused have it then. For one group:
    /// [`set_lr`](optim_core::Optimizer::set_lr) of [`inner_mut`](VarOptimizer::inner_mut).
    fn set_learning_rate(&mut self, lr: f64) {
        let set = (0..self.inner.groups().len()).try_for_each(|group| self.inner.set_lr(group, lr));
        self.refused = set.err().map(Error::from);
    }

    /// Multiplies the loss with the loss scale, if there is one, and does a step with its gradients.
    fn backward_step(&mut self, loss: &Tensor) -> candle_core::Result<()> {
        let grads = self.scale_loss(loss)?.backward()?;
        self.step(&grads)
    }
}

impl fmt::Debug for VarOptimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VarOptimizer").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Display for VarOptimizer {
    /// The groups and their settings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
