//! Which parameters a group takes, by name, shape or type.

use std::fmt;
use std::sync::Arc;

use crate::{Error, Parameter, Result};

/// A rule by which a group takes parameters: see [`ParamGroup::matching`](crate::ParamGroup::matching).
///
/// Groups take in their order: **the first that matches wins**. A rule that takes no parameter at all is an error.
///
/// ```
/// use optim_core::{AdamW, ParamGroup, Parameter, Select};
///
/// # fn main() -> optim_core::Result<()> {
/// let all = [Parameter::new("layer.0.weight", [8, 4]), Parameter::new("layer.0.bias", [8]), Parameter::new("head", [8])];
/// let builder = AdamW::new(1e-3).params(&all).groups([
///     ParamGroup::matching(Select::glob("*.bias")?).weight_decay(0.0),
///     ParamGroup::matching(Select::regex(r"^layer\.\d+\.")?).lr(1e-4),
///     ParamGroup::matching(Select::rest()),
/// ]);
/// # let _ = builder;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Select(Kind);

#[derive(Clone)]
enum Kind {
    Name(String),
    Glob(glob::Pattern),
    Regex(regex_lite::Regex),
    Predicate(String, Arc<dyn Fn(&Parameter) -> bool + Send + Sync>),
    Rest,
}

impl Select {
    /// The parameter of exactly this name.
    #[must_use]
    pub fn name(name: impl Into<String>) -> Self {
        Self(Kind::Name(name.into()))
    }

    /// Names that match a glob as a whole: `*` for any run of characters (dots and slashes too), `?` for one, `[ab]` for one of
    /// several, `[!ab]` for one of the others. Case-sensitive.
    ///
    /// # Errors
    /// [`Error::Pattern`] if it does not parse.
    pub fn glob(pattern: &str) -> Result<Self> {
        match glob::Pattern::new(pattern) {
            Ok(glob) => Ok(Self(Kind::Glob(glob))),
            Err(error) => Err(Error::Pattern { pattern: pattern.into(), detail: error.to_string() }),
        }
    }

    /// Names in which a regular expression is found (the syntax of the crate `regex-lite`). Trap: it is found anywhere in the
    /// name unless `^` and `$` tie it down.
    ///
    /// # Errors
    /// [`Error::Pattern`] if it does not parse.
    pub fn regex(pattern: &str) -> Result<Self> {
        match regex_lite::Regex::new(pattern) {
            Ok(regex) => Ok(Self(Kind::Regex(regex))),
            Err(error) => Err(Error::Pattern { pattern: pattern.into(), detail: error.to_string() }),
        }
    }

    /// Parameters for which a function of name, shape and type is true. `what` describes it in errors.
    #[must_use]
    pub fn by(what: impl Into<String>, predicate: impl Fn(&Parameter) -> bool + Send + Sync + 'static) -> Self {
        Self(Kind::Predicate(what.into(), Arc::new(predicate)))
    }

    /// All that no other group takes, whatever its place among them. It may be none.
    #[must_use]
    pub fn rest() -> Self {
        Self(Kind::Rest)
    }

    pub(crate) fn is_rest(&self) -> bool {
        matches!(self.0, Kind::Rest)
    }

    /// Whether the group takes this parameter.
    #[must_use]
    pub fn matches(&self, parameter: &Parameter) -> bool {
        match &self.0 {
            Kind::Name(name) => parameter.name() == name,
            Kind::Glob(glob) => glob.matches(parameter.name()),
            Kind::Regex(regex) => regex.is_match(parameter.name()),
            Kind::Predicate(_, predicate) => predicate(parameter),
            Kind::Rest => true,
        }
    }
}

impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Name(name) => write!(f, "the name {name:?}"),
            Kind::Glob(glob) => write!(f, "the glob {:?}", glob.as_str()),
            Kind::Regex(regex) => write!(f, "the regex {:?}", regex.as_str()),
            Kind::Predicate(what, _) => write!(f, "{what:?}"),
            Kind::Rest => f.write_str("the rest"),
        }
    }
}

impl fmt::Debug for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
