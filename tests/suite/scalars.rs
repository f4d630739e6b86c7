//! Step scalars: the numbers that kernels compute with, against values computed in another way.

use optimizers::core::rule::{At, UpdateRule};
use optimizers::{Adam, Lamb, Momentum, Rule, Sgd};

/// Updates at which scalars are looked at.
const UPDATES: [u64; 5] = [1, 2, 10, 1000, 100_000];

fn at(t: u64, lr: f64, betas: [f64; 2]) -> At {
    let beta_powers = betas.map(|beta| f64::from((0..t).fold(1.0_f32, |power, _| power * single(beta))));
    At { t, lr, previous_lr: lr, weight_decay: 0.0, beta_powers, first: t == 1 }
}

/// The scalars by name; those that only fill up must be 0.
fn scalars(rule: &dyn UpdateRule, at: &At) -> Vec<(&'static str, u32)> {
    let (names, scalars) = (rule.scalar_names(), rule.scalars(at));
    assert_eq!(names.len(), scalars.words().len(), "{}: a name for each word", rule.name());
    let (named, filling): (Vec<_>, Vec<_>) =
        names.iter().copied().zip(scalars.words().iter().copied()).partition(|(name, _)| !name.starts_with("pad"));
    assert!(filling.iter().all(|(_, word)| *word == 0), "{}: padding is not 0", rule.name());
    named
}

/// What a word should be: a float within so many units in the last place, or an integer.
#[derive(Debug)]
enum Expected {
    Float(f64),
    Flag(bool),
}
use Expected::{Flag, Float};

/// `single(x)` is `x` as MindSpore stores it.
#[allow(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is the purpose")]
fn single(x: f64) -> f32 {
    x as f32
}

fn rounded(x: f64) -> f64 {
    f64::from(single(x))
}

/// The scalars of a rule, by name and in order. No `_` arm: the compiler asks for a new rule's.
fn expected(rule: &Rule, at: &At) -> Vec<(&'static str, Expected)> {
    let [beta1_power, beta2_power] = at.beta_powers;
    match rule {
        Rule::Sgd(Sgd { momentum, dampening, nesterov, .. }) => vec![
            ("lr", Float(at.lr)),
            ("momentum", Float(*momentum)),
            ("one_minus_dampening", Float(if at.first { 1.0 } else { 1.0 - rounded(*dampening) })),
            ("nesterov", Flag(*nesterov)),
        ],
        Rule::Momentum(Momentum { momentum, use_nesterov, .. }) => {
            vec![("lr", Float(at.lr)), ("momentum", Float(*momentum)), ("nesterov", Flag(*use_nesterov))]
        }
        Rule::Adam(Adam { beta1, beta2, eps, use_nesterov, .. }) => vec![
            ("alpha", Float(at.lr * (1.0 - beta2_power).sqrt() / (1.0 - beta1_power))),
            ("beta1", Float(*beta1)),
            ("one_minus_beta1", Float(1.0 - rounded(*beta1))),
            ("one_minus_beta2", Float(1.0 - rounded(*beta2))),
            ("eps", Float(*eps)),
            ("nesterov", Flag(*use_nesterov)),
        ],
        Rule::Lamb(Lamb { beta1, beta2, eps, .. }) => {
            let power = |beta: f64| (0..at.t).fold(1.0, |power, _| power * rounded(beta));
            vec![
                ("lr", Float(at.lr)),
                ("beta1", Float(*beta1)),
                ("one_minus_beta1", Float(1.0 - rounded(*beta1))),
                ("beta2", Float(*beta2)),
                ("one_minus_beta2", Float(1.0 - rounded(*beta2))),
                ("correction1", Float(1.0 - power(*beta1))),
                ("correction2", Float(1.0 - power(*beta2))),
                ("eps", Float(*eps)),
                ("weight_decay", Float(at.weight_decay)),
                ("ratio", Float(1.0)),
            ]
        }
        Rule::Lars(lars) => expected(&lars.inner, at),
        Rule::Custom(own) => unreachable!("{own:?} is not among all rules"),
    }
}

/// Every rule and variant, with defaults and with others, at every update of the list.
#[test]
fn of_every_rule() {
    let mut rules = Rule::all();
    rules.push(Adam { beta1: 0.8, beta2: 0.95, eps: 1e-3, ..Adam::default() }.into());
    rules.push(Adam { beta1: 0.5, beta2: 0.999_999, ..Adam::default() }.into());
    rules.push(Sgd { momentum: 1.5, dampening: 2.25, ..Sgd::default() }.into());
    for rule in &rules {
        for (t, lr) in UPDATES.into_iter().flat_map(|t| [0.0, 1e-3, 0.1, 17.0].map(|lr| (t, lr))) {
            let at = at(t, lr, rule.spec().betas());
            let (got, expected) = (scalars(rule.spec(), &at), expected(rule, &at));
            assert_eq!(got.len(), expected.len(), "{rule:?}");
            for ((name, word), (expected_name, expected)) in got.into_iter().zip(expected) {
                assert_eq!(name, expected_name, "{rule:?}");
                let good = match expected {
                    Flag(flag) => word == u32::from(flag),
                    // Rounded once from f64. The two ways to it may differ in the 15th digit, which rarely turns a rounding.
                    Float(x) => word.abs_diff(single(x).to_bits()) <= u32::from(name == "alpha"),
                };
                assert!(good, "{rule:?} at {t}: {name} is {:e}, expected {expected:?}", f32::from_bits(word));
            }
        }
    }
}

/// A group's rate and a missing first update reach the scalars through a whole step: see the judge. Here: the first update of
/// a parameter, whenever it comes, has no dampening.
#[test]
fn first_update_has_no_dampening() {
    let sgd = Sgd { momentum: 0.9, dampening: 0.25, ..Sgd::default() };
    assert!(sgd.first_update_differs(), "with dampening it does");
    for (t, first, expected) in [(1, true, 1.0_f32), (2, false, 0.75), (50, true, 1.0)] {
        let scalars =
            scalars(&sgd, &At { t, lr: 0.1, previous_lr: 0.1, weight_decay: 0.0, beta_powers: [0.0; 2], first });
        assert_eq!(scalars[2], ("one_minus_dampening", expected.to_bits()));
    }
}
