//! LARS: see [`Lars`].

use std::fmt;
use std::sync::{Arc, LazyLock};

use crate::backend::Trust;
use crate::error::check;
use crate::rule::{At, Decay, Passes, Slot, Sparse, StepScalars, UpdateRule, config};
use crate::rules::single;
use crate::{Error, Parameter, Rate, Result, Rule};

/// Layer-wise adaptive rate scaling: a wrapper that scales each parameter's gradient by the ratio of norms, then lets another
/// rule work (MindSpore `nn.LARS`). For large batches, where one rate does not suit every layer.
///
/// With `p` a parameter, `g` its unscaled gradient, `δ` its weight decay, `γ` the rate, `η` the coefficient, norms over the
/// whole tensor:
///
/// ```text
/// r ← η ‖p‖ / (δ ‖p‖ + ‖g‖ + ε)                  (1)    0 where what it is divided by is 0
/// r ← min(max(r / γ, 0), 1)                      (2)    only with use_clip; 1 where γ = 0 and r > 0
/// g ← r (g + δ p)                                (3)    then the inner rule, without decay of its own
/// ```
///
/// A parameter that the filter leaves out keeps its gradient, and **has no weight decay at all**.
///
/// # Differences
/// - **MindSpore**: the same; with an inner `SGD`, MindSpore 1.5 decays a second time in its kernel, this does not.
/// - **PyTorch** has no LARS. Others treat `‖p‖ = 0` as `r = 1`; here as in MindSpore `r = 0`: **an all-zero weight never
///   moves**.
///
/// ```
/// use optim_core::{rules::Lars, Momentum, Parameter};
///
/// let weight = Parameter::new("fc.weight", [3]);
/// let builder = Lars::new(Momentum { weight_decay: 1e-4, ..Momentum::new(0.1, 0.9) }).params([&weight]);
/// # let _ = builder;
/// // p = (3, 4), g = (0, 1), δ = 0: r = 0.001 · 5 / 1 = 0.005, so the inner rule sees g = (0, 0.005).
/// ```
///
/// Sources: You, Gitman & Ginsburg 2017, "Large Batch Training of Convolutional Networks", arXiv 1708.03888; MindSpore `LARS`.
#[derive(Clone)]
pub struct Lars {
    /// The rule that gets the scaled gradients. Rate and weight decay are its own. Not another `Lars`, nor a rule with norms.
    pub inner: Box<Rule>,
    /// `ε`, finite and ≥ 0. Default 1e-5.
    pub epsilon: f64,
    /// `η`, finite and ≥ 0. Default 1e-3. Trap: the effective rate is `γ r`, so inner rates are much larger than usual.
    pub coefficient: f64,
    /// Caps `γ r` at `γ`. Default `false`.
    pub use_clip: bool,
    /// The parameters that it applies to. Default: those whose name contains neither `LayerNorm` nor `bias`.
    pub filter: Arc<dyn Fn(&Parameter) -> bool + Send + Sync>,
}

impl Lars {
    /// LARS around another rule, with MindSpore's defaults.
    #[must_use]
    pub fn new(inner: impl Into<Rule>) -> Self {
        Self {
            inner: Box::new(inner.into()),
            epsilon: EPSILON,
            coefficient: COEFFICIENT,
            use_clip: false,
            filter: default_filter(),
        }
    }
}

type Filter = Arc<dyn Fn(&Parameter) -> bool + Send + Sync>;

pub(crate) const EPSILON: f64 = 1e-5;
pub(crate) const COEFFICIENT: f64 = 1e-3;

/// One for all, so that it can be recognised.
pub(crate) fn default_filter() -> Filter {
    static FILTER: LazyLock<Filter> = LazyLock::new(|| {
        Arc::new(|parameter| !(parameter.name().contains("LayerNorm") || parameter.name().contains("bias")))
    });
    Arc::clone(&FILTER)
}

impl fmt::Debug for Lars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lars")
            .field("inner", &self.inner)
            .field("epsilon", &self.epsilon)
            .field("coefficient", &self.coefficient)
            .field("use_clip", &self.use_clip)
            .finish_non_exhaustive()
    }
}

config!(Lars);

impl UpdateRule for Lars {
    fn name(&self) -> &'static str {
        "lars"
    }

    fn lr(&self) -> &Rate {
        self.inner.spec().lr()
    }

    fn weight_decay(&self) -> f64 {
        self.inner.spec().weight_decay()
    }

    fn validate(&self) -> Result<()> {
        let Self { epsilon, coefficient, .. } = *self;
        check("lars.epsilon", "finite and ≥ 0", epsilon, |x| x.is_finite() && x >= 0.0)?;
        check("lars.coefficient", "finite and ≥ 0", coefficient, |x| x.is_finite() && x >= 0.0)?;
        let inner = self.inner.spec();
        if inner.has_trust() || inner.offloaded() || inner.passes() != Passes::Elementwise {
            let expected = "a rule without norms of its own whose state is not offloaded";
            return Err(Error::HyperParameter { name: "lars.inner".into(), expected, got: inner.name().into() });
        }
        inner.validate()
    }

    fn slots(&self) -> Vec<Slot> {
        self.inner.spec().slots()
    }

    fn betas(&self) -> [f64; 2] {
        self.inner.spec().betas()
    }

    fn scalars(&self, at: &At) -> StepScalars {
        self.inner.spec().scalars(at)
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        self.inner.spec().scalar_names()
    }

    fn source(&self) -> &'static str {
        self.inner.spec().source()
    }

    fn entry(&self) -> &'static str {
        self.inner.spec().entry()
    }

    fn own_lr(&self, t: u64) -> Option<f64> {
        self.inner.spec().own_lr(t)
    }

    fn takes_lr(&self) -> bool {
        self.inner.spec().takes_lr()
    }

    fn uses_previous_lr(&self) -> bool {
        self.inner.spec().uses_previous_lr()
    }

    fn decay(&self) -> Decay {
        Decay::L2
    }

    fn first_update_differs(&self) -> bool {
        self.inner.spec().first_update_differs()
    }

    fn decays_all_names(&self) -> bool {
        self.inner.spec().decays_all_names()
    }

    fn sparse(&self) -> Sparse {
        Sparse::Unsupported
    }

    fn trust(&self, parameter: &Parameter, at: &At, decay: f64) -> Option<Trust> {
        (self.filter)(parameter).then(|| Trust {
            coefficient: single(self.coefficient),
            epsilon: single(self.epsilon),
            weight_decay: single(decay),
            clip: if self.use_clip { single(at.lr) } else { Trust::UNCLIPPED },
        })
    }

    fn has_trust(&self) -> bool {
        true
    }
}
