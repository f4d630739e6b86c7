//! A rule: one update formula, described as data for the backends.

use std::fmt;
use std::sync::Arc;

use bytemuck::{NoUninit, Zeroable};

use crate::backend::Trust;
use crate::format::Code8;
use crate::rules::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Adan, Asgd, Ftrl, Lamb, Lars,
    LazyAdam, Lion, Momentum, NAdam, ProximalAdagrad, RAdam, RmsProp, Rprop, Sgd,
};
use crate::{DType, Parameter, Rate, Result};

/// One state array of a rule, by its MindSpore name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slot {
    /// The name: `moment1`, `accum`, …. Not empty, without dots, and another than those of the rule's other slots.
    pub name: &'static str,
    /// The value of every element before the first update.
    pub init: f32,
    /// The shape.
    pub shape: SlotShape,
    /// The element type in memory. [`DType::F16`] only for the second moments of a rule with [`Passes::Factored`]: see
    /// [`compressed`](crate::compressed). Kernels compute in `f32`, and [`Optimizer::slot`](crate::Optimizer::slot) gives `f32`.
    pub dtype: DType,
    /// How it may be kept in fewer bits: see [`StateDType`](crate::format::StateDType). `None`: always as `dtype`.
    pub narrow: Option<Code8>,
}

impl Slot {
    /// A slot of `f32` shaped like the parameter.
    #[must_use]
    pub const fn new(name: &'static str, init: f32) -> Self {
        Self { name, init, shape: SlotShape::Same, dtype: DType::F32, narrow: None }
    }

    /// A slot of `f32` or fewer bits, shaped like the parameter: one whose rounding the rule bears, if it errs to either side
    /// alike. A [`Code8::Positive`] one is never negative, and what is not 0 does not become 0.
    #[must_use]
    pub const fn narrow(name: &'static str, init: f32, code: Code8) -> Self {
        Self { narrow: Some(code), ..Self::new(name, init) }
    }
}

/// What weight decay does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// `g ← g + wd · p` before the rule sees the gradient. The engine does it; the rule knows nothing of it.
    L2,
    /// The rule itself shrinks the parameter, apart from the gradient. It gets the decay in [`At::weight_decay`].
    Decoupled,
}

/// How often a rule walks over memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Passes {
    /// One walk; every element is updated from itself, its gradient and its slots alone.
    Elementwise,
    /// Two walks. The first sums up to [`MAX_TERMS`] terms (squares: never negative) over each parameter, by the kernel's
    /// function `terms`; its function `finish` completes the step scalars from the sums; the second walk updates. No backend
    /// code is needed for it.
    Norms,
    /// Three walks, for second moments that are kept by row and by column of the last two axes (AdaFactor): sums over rows and
    /// columns, sums over the parameter, the update.
    Factored,
}

/// The shape of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotShape {
    /// That of the parameter.
    Same,
    /// Without the last axis: a number for each row. No elements for a parameter of fewer than two axes.
    Rows,
    /// Without the second last axis: a number for each column. No elements for a parameter of fewer than two axes.
    Columns,
    /// That of a parameter of fewer than two axes; no elements for another.
    SameIfVector,
}

impl SlotShape {
    /// The number of elements for a parameter of this shape.
    #[must_use]
    pub fn len(self, shape: &[usize]) -> usize {
        let len: usize = shape.iter().product();
        match (self, shape) {
            (Self::Same, _) | (Self::SameIfVector, [] | [_]) => len,
            (Self::Rows | Self::Columns, [] | [_]) | (Self::SameIfVector, _) => 0,
            (Self::Rows, [rest @ .., _]) => rest.iter().product(),
            (Self::Columns, [rest @ .., _, columns]) => rest.iter().product::<usize>() * columns,
        }
    }
}

/// The most sums that a first walk makes for each parameter.
pub const MAX_TERMS: usize = 2;

/// What a row-sparse gradient does to the rows that it does not list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparse {
    /// They are updated as by a gradient of zeros (without weight decay): state decays and the rows move.
    AllRows,
    /// They stay as they are, and so does their state.
    ListedRows,
    /// The rule takes no row-sparse gradients.
    Unsupported,
}

/// Where an update stands: what a rule makes its step scalars from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct At {
    /// The number of this update, 1 for the first.
    pub t: u64,
    /// The rate at this update: the group's, or the rule's [`own`](UpdateRule::own_lr), times the parameter's scale.
    pub lr: f64,
    /// That of the update before; at the first update the same as `lr`.
    pub previous_lr: f64,
    /// The weight decay, if the rule's is [`Decay::Decoupled`] and the parameter decays; else 0.
    pub weight_decay: f64,
    /// The running products `βᵗ` of the rule's [`betas`](UpdateRule::betas), this update's included.
    pub beta_powers: [f64; 2],
    /// Whether the rate is a list or a schedule.
    pub dynamic_lr: bool,
    /// Whether the parameter has never been updated (it is the first update, or gradients were missing until now).
    pub first: bool,
}

impl Default for At {
    /// The first update, with a rate of 0.
    fn default() -> Self {
        Self {
            t: 1,
            lr: 0.0,
            previous_lr: 0.0,
            weight_decay: 0.0,
            beta_powers: [0.0; 2],
            dynamic_lr: false,
            first: true,
        }
    }
}

/// The most slots that a rule may have.
pub const MAX_SLOTS: usize = 4;

/// The number of 32-bit words that step scalars may have.
pub const MAX_SCALARS: usize = 16;

/// The few numbers a kernel needs at one step, as the words of the rule's `Step` struct.
///
/// They are made once a step, here in core, in `f64` and rounded at the end, so both backends compute from the same bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StepScalars {
    words: [u32; MAX_SCALARS],
    len: usize,
}

impl StepScalars {
    /// From a rule's `Step`, a `#[repr(C)]` struct of 32-bit fields whose size is a multiple of 16 bytes.
    ///
    /// # Panics
    /// If `S` is larger than [`MAX_SCALARS`] words or not a multiple of four words: a mistake in the rule, found by any test.
    #[must_use]
    pub fn new<S: NoUninit>(step: &S) -> Self {
        let source = bytemuck::cast_slice::<u8, u32>(bytemuck::bytes_of(step));
        assert!(source.len() <= MAX_SCALARS && source.len().is_multiple_of(4), "a Step has 4, 8, 12 or 16 words");
        let mut words = <[u32; MAX_SCALARS]>::zeroed();
        words[..source.len()].copy_from_slice(source);
        Self { words, len: source.len() }
    }

    /// The words of the `Step`.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words[..self.len]
    }

    /// The words of the `Step` as `f32`: for a `Step` that has no integers.
    #[must_use]
    pub fn floats(&self) -> &[f32] {
        bytemuck::cast_slice(self.words())
    }

    /// The words of the `Step`, for a kernel's `finish` to complete.
    #[must_use]
    pub fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words[..self.len]
    }
}

impl<const N: usize> From<[f32; N]> for StepScalars {
    /// From the fields of a `Step` that has no integers: 4, 8, 12 or 16 of them, which is checked when the program is compiled.
    fn from(step: [f32; N]) -> Self {
        const { assert!(N.is_multiple_of(4) && N <= MAX_SCALARS, "a Step has 4, 8, 12 or 16 words") };
        let mut words = [0; MAX_SCALARS];
        words[..N].copy_from_slice(&step.map(f32::to_bits));
        Self { words, len: N }
    }
}

impl fmt::Debug for StepScalars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.words().iter().map(|&word| f32::from_bits(word))).finish()
    }
}

/// Declares a rule's `Step`: `#[repr(C)]`, 32-bit fields only, with the field names as data so that a test can hold the
/// WGSL struct of the same name against it.
macro_rules! step_scalars {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty),* $(,)?) => {
        /// The step scalars, in the order of the WGSL twin's `struct Step`.
        #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C)]
        pub struct Step {
            $($(#[doc = $doc])* pub $field: $type,)*
        }

        impl Step {
            /// The field names, in memory order.
            pub const FIELDS: &[&str] = &[$(stringify!($field)),*];
        }
    };
}
pub(crate) use step_scalars;

/// What a rule tells the engine about itself. Implemented by every config in [`rules`](crate::rules).
pub trait UpdateRule: fmt::Debug + Send + Sync {
    /// The rule's name, which is its file's name in every layer.
    fn name(&self) -> &'static str;

    /// The default rate of the optimizer.
    fn lr(&self) -> &Rate;

    /// The default weight decay of the optimizer.
    fn weight_decay(&self) -> f64;

    /// Checks every hyper-parameter but rate and decay, which the optimizer checks.
    fn validate(&self) -> Result<()>;

    /// The state arrays, in the order of the kernel's arguments; at most four.
    fn slots(&self) -> Vec<Slot>;

    /// The `β₁` and `β₂` whose powers are wanted as MindSpore keeps them: running products in `f32` (its `beta1_power` and
    /// `beta2_power`). With 0.999 `1 − βᵗ` differs from that of the powers by up to 3e-5 of itself, and by ten times as much with
    /// each further 9.
    fn betas(&self) -> [f64; 2] {
        [0.0; 2]
    }

    /// The step scalars of one update.
    fn scalars(&self, at: &At) -> StepScalars;

    /// The names of the fields of the rule's `Step`, in memory order.
    fn scalar_names(&self) -> &'static [&'static str];

    /// The name of the kernel's file: the rule's own, or that of the rule whose kernel it shares.
    fn source(&self) -> &'static str {
        self.name()
    }

    /// The kernel's function: `update`, or a variant of it that needs fewer slots.
    fn entry(&self) -> &'static str {
        "update"
    }

    /// The rate of the update `t` (1 for the first) if the rule makes its own, which groups then may not set. It comes back as
    /// [`At::lr`], times the parameter's scale.
    fn own_lr(&self, _t: u64) -> Option<f64> {
        None
    }

    /// Whether groups may set a rate.
    fn takes_lr(&self) -> bool {
        self.own_lr(1).is_none()
    }

    /// Whether the step scalars depend on [`At::previous_lr`].
    fn uses_previous_lr(&self) -> bool {
        false
    }

    /// What weight decay does.
    fn decay(&self) -> Decay {
        Decay::L2
    }

    /// How often memory is walked.
    fn passes(&self) -> Passes {
        Passes::Elementwise
    }

    /// Whether the state stays in the host's memory on every backend, for models whose state does not fit beside them on the
    /// device. Not for rules with norms or a trust ratio.
    fn offloaded(&self) -> bool {
        false
    }

    /// Whether a parameter's first update has other step scalars ([`At::first`]).
    fn first_update_differs(&self) -> bool {
        false
    }

    /// What a row-sparse gradient does.
    fn sparse(&self) -> Sparse {
        Sparse::Unsupported
    }

    /// Whether, without groups and without a filter, every parameter decays, also with `beta` or `gamma` in its name.
    fn decays_all_names(&self) -> bool {
        false
    }

    /// The layer-wise trust ratio of a parameter, if the rule asks for one ([`Lars`]). `decay` is the weight decay that the
    /// parameter's group asks for.
    fn trust(&self, _parameter: &Parameter, _at: &At, _decay: f64) -> Option<Trust> {
        None
    }

    /// Whether [`trust`](Self::trust) can be `Some`. L2 decay is then the trust ratio's business.
    fn has_trust(&self) -> bool {
        false
    }
}

/// A rule of the user's own: its description, a Rust body and a WGSL fragment. Made into a [`Rule`] by [`Rule::custom`]; the
/// example `custom_rule` of the crate `optimizers` shows one.
///
/// It takes part in everything: groups, rates, decay, loss scale, missing gradients. It has at most four slots.
///
/// Its hyper-parameters are changed by putting a rule with other numbers in its place, as a [`Rule`]: for a group by
/// [`hyper`](crate::ParamGroup::hyper), with every update by [`vary`](crate::ParamGroup::vary), between steps by
/// [`edit`](crate::Optimizer::edit). With the latter two, name, slots, scalars, WGSL and all that it says of itself but numbers must stay
/// as they are. `|rule: &mut Rule| *rule = Rule::custom(Own { lr: rule.spec().lr().clone(), beta: 0.5 })` keeps the rate, which `edit` asks
/// for.
///
/// The Rust body and the fragment must do the same arithmetic in the same order if both backends are to give the same bits;
/// compare them as this library's own tests do.
pub trait CustomRule: UpdateRule {
    /// The update on the CPU: for each `i` from `p[i]`, the shaped gradient `g[i]` and `slots[k][i]`. All slices have one
    /// length; it differs from call to call. `step` holds the words of the rule's scalars.
    fn update(&self, step: &StepScalars, p: &mut [f32], g: &[f32], slots: &mut [&mut [f32]]);

    /// WGSL for the GPU: `struct Step` with the fields of [`scalar_names`](UpdateRule::scalar_names), in that order, and
    /// `fn update(s: Step, p: ptr<function, f32>, g: f32, …)` with a `ptr<function, f32>` for each slot. Trap: `!=` of floats is false for
    /// NaN in the SPIR-V that naga writes; `!(x == y)` is not.
    fn wgsl(&self) -> &str;
}

/// Every rule. Deliberately not `non_exhaustive`: the backends match on it without a `_` arm, so that the compiler names each
/// list a new rule must enter.
#[derive(Debug, Clone)]
pub enum Rule {
    /// [`Sgd`].
    Sgd(Sgd),
    /// [`Momentum`].
    Momentum(Momentum),
    /// [`Adam`].
    Adam(Adam),
    /// [`AdaFactor`].
    AdaFactor(AdaFactor),
    /// [`AdamWeightDecay`].
    AdamWeightDecay(AdamWeightDecay),
    /// [`AdamW`].
    AdamW(AdamW),
    /// [`LazyAdam`].
    LazyAdam(LazyAdam),
    /// [`AdamOffload`].
    AdamOffload(AdamOffload),
    /// [`AdaMax`].
    AdaMax(AdaMax),
    /// [`NAdam`].
    NAdam(NAdam),
    /// [`RAdam`].
    RAdam(RAdam),
    /// [`Lion`].
    Lion(Lion),
    /// [`Adan`].
    Adan(Adan),
    /// [`Adagrad`].
    Adagrad(Adagrad),
    /// [`ProximalAdagrad`].
    ProximalAdagrad(ProximalAdagrad),
    /// [`Ftrl`].
    Ftrl(Ftrl),
    /// [`RmsProp`].
    RmsProp(RmsProp),
    /// [`Adadelta`].
    Adadelta(Adadelta),
    /// [`Asgd`].
    Asgd(Asgd),
    /// [`Rprop`].
    Rprop(Rprop),
    /// [`Lamb`].
    Lamb(Lamb),
    /// [`Lars`].
    Lars(Lars),
    /// A rule of the user's own.
    Custom(Arc<dyn CustomRule>),
}

impl Rule {
    /// A rule of your own.
    #[must_use]
    pub fn custom(rule: impl CustomRule + 'static) -> Self {
        Self::Custom(Arc::new(rule))
    }

    /// The rule whose kernel runs: the inner one of a wrapper, else the rule itself.
    #[must_use]
    pub fn kernel(&self) -> &Self {
        match self {
            Self::Lars(lars) => lars.inner.kernel(),
            Self::Sgd(_)
            | Self::Momentum(_)
            | Self::Adam(_)
            | Self::AdaFactor(_)
            | Self::AdaMax(_)
            | Self::AdamOffload(_)
            | Self::AdamWeightDecay(_)
            | Self::AdamW(_)
            | Self::Adan(_)
            | Self::LazyAdam(_)
            | Self::Lion(_)
            | Self::NAdam(_)
            | Self::RAdam(_)
            | Self::Adagrad(_)
            | Self::ProximalAdagrad(_)
            | Self::Ftrl(_)
            | Self::RmsProp(_)
            | Self::Adadelta(_)
            | Self::Asgd(_)
            | Self::Rprop(_)
            | Self::Lamb(_)
            | Self::Custom(_) => self,
        }
    }

    /// The rule's description of itself.
    #[must_use]
    pub fn spec(&self) -> &dyn UpdateRule {
        match self {
            Self::Sgd(rule) => rule,
            Self::Momentum(rule) => rule,
            Self::Adam(rule) => rule,
            Self::AdaFactor(rule) => rule,
            Self::AdamWeightDecay(rule) => rule,
            Self::AdamW(rule) => rule,
            Self::LazyAdam(rule) => rule,
            Self::AdamOffload(rule) => rule,
            Self::AdaMax(rule) => rule,
            Self::NAdam(rule) => rule,
            Self::RAdam(rule) => rule,
            Self::Lion(rule) => rule,
            Self::Adan(rule) => rule,
            Self::Adagrad(rule) => rule,
            Self::ProximalAdagrad(rule) => rule,
            Self::Ftrl(rule) => rule,
            Self::RmsProp(rule) => rule,
            Self::Adadelta(rule) => rule,
            Self::Asgd(rule) => rule,
            Self::Rprop(rule) => rule,
            Self::Lamb(rule) => rule,
            Self::Lars(rule) => rule,
            Self::Custom(rule) => &**rule,
        }
    }

    /// One of each rule and kernel variant, with default hyper-parameters: what the test suites and benches iterate over.
    #[must_use]
    pub fn all() -> Vec<Self> {
        vec![
            Sgd::default().into(),
            Sgd { momentum: 0.9, dampening: 0.1, ..Sgd::default() }.into(),
            Sgd { momentum: 0.9, nesterov: true, ..Sgd::default() }.into(),
            Momentum::new(0.1, 0.9).into(),
            Momentum { use_nesterov: true, ..Momentum::new(0.1, 0.9) }.into(),
            Adam::default().into(),
            Adam { use_nesterov: true, ..Adam::default() }.into(),
            AdaFactor { weight_decay: 0.01, ..AdaFactor::with_lr(0.01) }.into(),
            AdaFactor { beta1: 0.0, ..AdaFactor::with_lr(0.01) }.into(),
            AdaFactor { compression: true, ..AdaFactor::with_lr(0.01) }.into(),
            Adam { use_amsgrad: true, ..Adam::default() }.into(),
            Adam { weight_decay: 0.01, ..Adam::torch() }.into(),
            AdamWeightDecay { weight_decay: 0.01, ..AdamWeightDecay::default() }.into(),
            AdamW::default().into(),
            AdamW { amsgrad: true, weight_decay: 0.1, ..AdamW::default() }.into(),
            LazyAdam { use_nesterov: true, ..LazyAdam::default() }.into(),
            AdamOffload { weight_decay: 0.01, ..AdamOffload::default() }.into(),
            AdaMax::default().into(),
            AdaMax { eps: 1e-3, ..AdaMax::torch() }.into(),
            NAdam { weight_decay: 0.01, ..NAdam::default() }.into(),
            NAdam { weight_decay: 0.1, decoupled_weight_decay: true, ..NAdam::default() }.into(),
            RAdam { beta2: 0.95, weight_decay: 0.01, ..RAdam::default() }.into(),
            RAdam { weight_decay: 0.1, decoupled_weight_decay: true, ..RAdam::default() }.into(),
            Lion { weight_decay: 0.1, ..Lion::default() }.into(),
            Adan { weight_decay: 0.02, ..Adan::default() }.into(),
            Adan { weight_decay: 0.02, no_prox: true, ..Adan::default() }.into(),
            Adagrad { lr_decay: 0.1, epsilon: 1e-6, ..Adagrad::new(0.1) }.into(),
            Adagrad { update_slots: false, ..Adagrad::new(0.1) }.into(),
            ProximalAdagrad { l1: 0.1, l2: 0.2, ..ProximalAdagrad::new(0.1) }.into(),
            Ftrl { l1: 0.1, l2: 0.2, ..Ftrl::new(0.1) }.into(),
            Ftrl { lr_power: -0.7, ..Ftrl::new(0.1) }.into(),
            RmsProp { momentum: 0.9, ..RmsProp::new(0.01) }.into(),
            RmsProp { momentum: 0.9, centered: true, ..RmsProp::new(0.01) }.into(),
            RmsProp::torch().into(),
            RmsProp { centered: true, ..RmsProp::new(0.01) }.into(),
            Adadelta::default().into(),
            Asgd { lambd: 0.01, t0: 2.0, ..Asgd::default() }.into(),
            Rprop::torch().into(),
            Lamb { weight_decay: 0.01, ..Lamb::new(0.01) }.into(),
            Lars::new(Momentum { weight_decay: 0.1, ..Momentum::new(0.5, 0.9) }).into(),
        ]
    }
}

/// The hyper-parameters of one rule: what [`ParamGroup::hyper`](crate::ParamGroup::hyper), [`ParamGroup::vary`](crate::ParamGroup::vary) and
/// [`Optimizer::edit`](crate::Optimizer::edit) change. Implemented by every config, and by [`Rule`] itself, whatever it is: so a rule of
/// your own is replaced by one with other numbers.
pub trait Config: 'static {
    /// The rule's name.
    const NAME: &'static str;

    /// The config in a rule, if the rule is this one.
    fn of(rule: &mut Rule) -> Option<&mut Self>;
}

impl Config for Rule {
    const NAME: &'static str = "Rule";

    fn of(rule: &mut Rule) -> Option<&mut Self> {
        Some(rule)
    }
}

/// Gives a config its place in [`Rule`] and the two ways to a [`Builder`](crate::Builder).
macro_rules! config {
    ($config:ident) => {
        impl crate::rule::Config for $config {
            const NAME: &'static str = stringify!($config);

            fn of(rule: &mut crate::Rule) -> Option<&mut Self> {
                if let crate::Rule::$config(config) = rule { Some(config) } else { None }
            }
        }

        impl From<$config> for crate::Rule {
            fn from(config: $config) -> Self {
                Self::$config(config)
            }
        }

        impl $config {
            /// An optimizer over these parameters, all with the same settings.
            pub fn params<P: Into<crate::Parameter>>(self, params: impl IntoIterator<Item = P>) -> crate::Builder {
                crate::Builder::new(self).params(params)
            }

            /// An optimizer over groups with settings of their own.
            pub fn groups(self, groups: impl IntoIterator<Item = crate::ParamGroup>) -> crate::Builder {
                crate::Builder::new(self).groups(groups)
            }
        }
    };
}
pub(crate) use config;
