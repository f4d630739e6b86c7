//! Step scalars: the numbers that kernels compute with, against values computed in another way.

use optimizers::core::rule::{At, UpdateRule};
use optimizers::{
    AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Adan, Asgd, Ftrl, Lamb, Lars, LazyAdam, Lion,
    Momentum, NAdam, ProximalAdagrad, RAdam, RmsProp, Rprop, Rule, Sgd,
};

/// Updates at which scalars are looked at.
const UPDATES: [u64; 5] = [1, 2, 10, 1000, 100_000];

fn at(t: u64, lr: f64, betas: [f64; 2]) -> At {
    let beta_powers = betas.map(|beta| f64::from((0..t).fold(1.0_f32, |power, _| power * single(beta))));
    let previous_lr = if t == 1 { lr } else { lr * 1.5 };
    At { t, lr, previous_lr, weight_decay: 0.25, beta_powers, dynamic_lr: false, first: t == 1 }
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

/// What a word should be.
#[derive(Debug)]
enum Expected {
    /// This number, rounded once.
    Float(f64),
    /// This number, made in another way: the two ways may differ in the 10th digit or later, which rarely turns a rounding.
    Near(f64),
    Flag(bool),
}
use Expected::{Flag, Float, Near};

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
        Rule::Adam(Adam { beta1, beta2, eps, use_nesterov, corrected_eps: true, .. }) => {
            let (correction1, correction2) = (correction(*beta1, at.t), correction(*beta2, at.t));
            vec![
                ("alpha", Near(at.lr / correction1 * correction2.sqrt())),
                ("beta1", Float(*beta1)),
                ("one_minus_beta1", Float(1.0 - *beta1)),
                ("beta2", Float(*beta2)),
                ("one_minus_beta2", Float(1.0 - *beta2)),
                ("eps", Near(*eps * correction2.sqrt())),
                ("nesterov", Flag(*use_nesterov)),
            ]
        }
        Rule::Adam(Adam { beta1, beta2, eps, use_nesterov, .. })
        | Rule::LazyAdam(LazyAdam { beta1, beta2, eps, use_nesterov, .. })
        | Rule::AdamOffload(AdamOffload { beta1, beta2, eps, use_nesterov, .. }) => vec![
            ("alpha", Near(at.lr * (1.0 - beta2_power).sqrt() / (1.0 - beta1_power))),
            ("beta1", Float(*beta1)),
            ("one_minus_beta1", Float(1.0 - rounded(*beta1))),
            ("beta2", Float(*beta2)),
            ("one_minus_beta2", Float(1.0 - rounded(*beta2))),
            ("eps", Float(*eps)),
            ("nesterov", Flag(*use_nesterov)),
        ],
        Rule::AdamWeightDecay(AdamWeightDecay { beta1, beta2, eps, .. }) => vec![
            ("lr", Float(at.lr)),
            ("beta1", Float(*beta1)),
            ("one_minus_beta1", Float(1.0 - rounded(*beta1))),
            ("beta2", Float(*beta2)),
            ("one_minus_beta2", Float(1.0 - rounded(*beta2))),
            ("eps", Float(*eps)),
            ("weight_decay", Float(at.weight_decay)),
        ],
        Rule::AdamW(AdamW { beta1, beta2, eps, .. }) => {
            let (correction1, correction2) = (correction(*beta1, at.t), correction(*beta2, at.t));
            vec![
                ("decay", Float(at.lr * at.weight_decay)),
                ("alpha", Near(at.lr / correction1 * correction2.sqrt())),
                ("beta1", Float(*beta1)),
                ("one_minus_beta1", Float(1.0 - *beta1)),
                ("beta2", Float(*beta2)),
                ("one_minus_beta2", Float(1.0 - *beta2)),
                ("eps", Near(*eps * correction2.sqrt())),
            ]
        }
        Rule::AdaMax(AdaMax { beta1, beta2, eps, eps_inside, .. }) => {
            let (beta1_power, rounded): (_, fn(f64) -> f64) =
                if *eps_inside { (1.0 - correction(*beta1, at.t), |x| x) } else { (beta1_power, rounded) };
            vec![
                ("alpha", Near(at.lr / (1.0 - beta1_power))),
                ("beta1", Float(*beta1)),
                ("one_minus_beta1", Float(1.0 - rounded(*beta1))),
                ("beta2", Float(*beta2)),
                ("eps_inside", Float(if *eps_inside { *eps } else { 0.0 })),
                ("eps_outside", Float(if *eps_inside { 0.0 } else { *eps })),
            ]
        }
        Rule::NAdam(NAdam { beta1, beta2, eps, momentum_decay, .. }) => {
            let momentum = |t: u64| beta1 * (1.0 - 0.5 * 0.96_f64.powf(t as f64 * momentum_decay));
            let product: f64 = (1..=at.t).map(momentum).product();
            let rate = at.lr * correction(*beta2, at.t).sqrt();
            let (now, next) = (momentum(at.t), momentum(at.t + 1));
            vec![
                ("decay", Float(at.lr * at.weight_decay)),
                ("beta1", Float(*beta1)),
                ("one_minus_beta1", Float(1.0 - *beta1)),
                ("beta2", Float(*beta2)),
                ("one_minus_beta2", Float(1.0 - *beta2)),
                ("alpha", Near(rate * next / (1.0 - product * next))),
                ("kappa", Near(rate * (1.0 - now) / (1.0 - product))),
                ("eps", Near(*eps * correction(*beta2, at.t).sqrt())),
            ]
        }
        Rule::RAdam(RAdam { beta1, beta2, eps, .. }) => {
            let (t, fading) = (at.t as f64, 1.0 - correction(*beta2, at.t));
            let limit = 2.0 / (1.0 - beta2) - 1.0;
            let rho = limit - 2.0 * t * fading / (1.0 - fading);
            let mut alpha = at.lr / correction(*beta1, at.t);
            if rho > 5.0 {
                let squared = (rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho);
                alpha *= (squared * correction(*beta2, at.t)).sqrt();
            }
            vec![
                ("decay", Float(at.lr * at.weight_decay)),
                ("beta1", Float(*beta1)),
                ("one_minus_beta1", Float(1.0 - *beta1)),
                ("beta2", Float(*beta2)),
                ("one_minus_beta2", Float(1.0 - *beta2)),
                ("alpha", Near(alpha)),
                ("eps", Float(*eps)),
                ("rectified", Flag(rho > 5.0)),
            ]
        }
        Rule::Lion(Lion { beta1, beta2, .. }) => vec![
            ("lr", Float(at.lr)),
            ("beta1", Float(*beta1)),
            ("one_minus_beta1", Float(1.0 - *beta1)),
            ("beta2", Float(*beta2)),
            ("one_minus_beta2", Float(1.0 - *beta2)),
            ("weight_decay", Float(at.weight_decay)),
        ],
        Rule::Adan(Adan { beta1, beta2, beta3, eps, no_prox, .. }) => {
            let root = correction(*beta3, at.t).sqrt();
            let decay = at.lr * at.weight_decay;
            vec![
                ("beta1", Float(*beta1)),
                ("one_minus_beta1", Float(1.0 - *beta1)),
                ("beta2", Float(*beta2)),
                ("one_minus_beta2", Float(1.0 - *beta2)),
                ("beta3", Float(*beta3)),
                ("one_minus_beta3", Float(1.0 - *beta3)),
                ("alpha", Near(at.lr / correction(*beta1, at.t) * root)),
                ("kappa", Near(at.lr * beta2 / correction(*beta2, at.t) * root)),
                ("eps", Near(*eps * root)),
                ("decay", Float(if *no_prox { decay } else { 0.0 })),
                ("decay_after", Near(if *no_prox { 0.0 } else { 1.0 - 1.0 / (1.0 + decay) })),
                ("first", Flag(at.first)),
            ]
        }
        Rule::Adagrad(Adagrad { update_slots, epsilon, lr_decay, .. }) => vec![
            ("lr", Near(at.lr / (1.0 - rounded(*lr_decay) + at.t as f64 * rounded(*lr_decay)))),
            ("epsilon", Float(*epsilon)),
            ("update_slots", Flag(*update_slots)),
        ],
        Rule::ProximalAdagrad(ProximalAdagrad { l1, l2, .. }) => {
            vec![("lr", Float(at.lr)), ("l1", Float(*l1)), ("l2", Float(*l2))]
        }
        Rule::Ftrl(Ftrl { lr_power, l1, l2, .. }) => {
            let power = -rounded(*lr_power);
            let nearest = (0..=50_000_u32).min_by_key(|n| single((f64::from(*n) / 4096.0 - power).abs()).to_bits());
            let nearest = nearest.expect("a number");
            vec![
                ("inverse_lr", Float(if at.lr == 0.0 { 0.0 } else { 1.0 / at.lr })),
                ("l1", Float(*l1)),
                ("two_l2", Float(rounded(*l2) + rounded(*l2))),
                ("moves", Flag(at.lr != 0.0)),
                ("power", Float(power)),
                ("power_high", Float(f64::from(nearest) / 4096.0)),
                ("power_low", Float(power - f64::from(nearest) / 4096.0)),
            ]
        }
        Rule::RmsProp(RmsProp { decay, momentum, epsilon, eps_outside, lr_outside, .. }) => vec![
            ("decay", Float(*decay)),
            ("one_minus_decay", Float(1.0 - if *eps_outside && *lr_outside { *decay } else { rounded(*decay) })),
            ("momentum", Float(*momentum)),
            ("eps_inside", Float(if *eps_outside { 0.0 } else { *epsilon })),
            ("eps_outside", Float(if *eps_outside { *epsilon } else { 0.0 })),
            ("lr_inside", Float(if *lr_outside { 1.0 } else { at.lr })),
            ("lr_outside", Float(if *lr_outside { at.lr } else { 1.0 })),
        ],
        Rule::Adadelta(Adadelta { rho, epsilon, .. }) => vec![
            ("lr", Float(at.lr)),
            ("rho", Float(*rho)),
            ("one_minus_rho", Float(1.0 - rounded(*rho))),
            ("epsilon", Float(*epsilon)),
        ],
        Rule::Asgd(Asgd { lambd, alpha, t0, .. }) => {
            let before = at.t as f64 - 1.0;
            let eta = at.previous_lr * (-alpha * (lambd * at.previous_lr * before).ln_1p()).exp();
            let mu = if at.first { 1.0 } else { (before - t0).max(1.0).recip() };
            vec![
                ("decay", Near(lambd * eta)),
                ("eta", Near(eta)),
                ("mu", Float(mu)),
                ("copies", Flag(at.first || before - t0 <= 1.0)),
            ]
        }
        Rule::Rprop(Rprop { etas, step_sizes, .. }) => vec![
            ("lr", Float(at.lr)),
            ("first", Flag(at.first)),
            ("eta_minus", Float(etas.0)),
            ("eta_plus", Float(etas.1)),
            ("step_min", Float(step_sizes.0)),
            ("step_max", Float(step_sizes.1)),
        ],
        Rule::AdaFactor(rule) => {
            let (t, decay_rate) = (at.t as f64, rounded(rule.decay_rate));
            let forgotten = (-decay_rate * t.ln()).exp();
            let relative = if rule.warmup_init { rounded(1e-6) * t } else { rounded(1e-2) }.min(t.sqrt().recip());
            vec![
                ("rho", Near(if rule.relative_step { relative } else { at.lr })),
                ("b", Near(1.0 - forgotten)),
                ("one_minus_b", Near(forgotten)),
                ("eps1", Float(rule.eps.0)),
                ("eps2", Float(rule.eps.1)),
                ("clip", Float(rule.clip_threshold)),
                ("beta1", Float(rule.beta1)),
                ("one_minus_beta1", Float(1.0 - rounded(rule.beta1))),
                ("weight_decay", Float(at.weight_decay)),
                ("scale_parameter", Flag(rule.scale_parameter)),
                ("alpha", Float(0.0)),
                ("rate", Float(0.0)),
            ]
        }
        Rule::Lamb(Lamb { beta1, beta2, eps, .. }) => {
            let power = |beta: f64| (0..at.t).fold(1.0, |power, _| power * rounded(beta));
            vec![
                ("lr", Float(at.lr)),
                ("beta1", Float(*beta1)),
                ("one_minus_beta1", Float(1.0 - rounded(*beta1))),
                ("beta2", Float(*beta2)),
                ("one_minus_beta2", Float(1.0 - rounded(*beta2))),
                ("unbias1", Float(1.0 / (1.0 - power(*beta1)))),
                ("unbias2", Float(1.0 / (1.0 - power(*beta2)))),
                ("eps", Float(*eps)),
                ("weight_decay", Float(at.weight_decay)),
                ("ratio", Float(1.0)),
            ]
        }
        Rule::Lars(lars) => expected(&lars.inner, at),
        Rule::Custom(own) => unreachable!("{own:?} is not among all rules"),
    }
}

/// 1 − βᵗ, by the logarithm.
fn correction(beta: f64, t: u64) -> f64 {
    -(t as f64 * beta.ln()).exp_m1()
}

/// But for what it does itself, LARS is the rule that it is put around.
#[test]
fn lars_is_the_rule_inside() {
    let mut wrapped = 0;
    for rule in Rule::all() {
        let lars = Rule::from(Lars::new(rule.clone()));
        let (outer, inner) = (lars.spec(), rule.spec());
        if outer.validate().is_err() {
            continue;
        }
        wrapped += 1;
        let rates = |rule: &dyn UpdateRule| (format!("{:?}", rule.lr()), rule.own_lr(3), rule.takes_lr());
        assert_eq!(rates(outer), rates(inner), "{rule:?}");
        assert_eq!(outer.uses_previous_lr(), inner.uses_previous_lr(), "{rule:?}");
        assert_eq!(outer.first_update_differs(), inner.first_update_differs(), "{rule:?}");
        assert_eq!((outer.weight_decay(), outer.decays_all_names()), (inner.weight_decay(), inner.decays_all_names()));
        assert_eq!((outer.source(), outer.entry(), outer.betas()), (inner.source(), inner.entry(), inner.betas()));
        assert_eq!(outer.scalar_names(), inner.scalar_names());
        assert_eq!(format!("{:?}", outer.slots()), format!("{:?}", inner.slots()));
    }
    assert!(wrapped > 15, "{wrapped} rules");
}

/// Every rule and variant, with defaults and with others, at every update of the list.
#[test]
fn of_every_rule() {
    let mut rules = Rule::all();
    rules.push(Adam { beta1: 0.8, beta2: 0.95, eps: 1e-3, ..Adam::default() }.into());
    rules.push(Adam { beta1: 0.5, beta2: 0.999_999, ..Adam::default() }.into());
    rules.push(Sgd { momentum: 1.5, dampening: 2.25, ..Sgd::default() }.into());
    rules.push(Adam { beta1: 0.5, beta2: 0.7, eps: 0.1, ..Adam::torch() }.into());
    rules.push(NAdam { beta1: 0.99, beta2: 0.5, momentum_decay: 0.0, ..NAdam::default() }.into());
    rules.push(NAdam { beta1: 0.5, momentum_decay: 0.7, ..NAdam::default() }.into());
    rules.push(NAdam { beta1: 0.9999, momentum_decay: 10.0, ..NAdam::default() }.into());
    rules.push(RmsProp { decay: 0.9999, ..RmsProp::torch() }.into());
    // The limit of ρ is 5: never rectified.
    rules.push(RAdam { beta2: 2.0 / 3.0, ..RAdam::default() }.into());
    rules.push(RAdam { beta2: 0.6, ..RAdam::default() }.into());
    rules.push(Asgd { lambd: 0.3, alpha: 1.75, t0: -3.0, ..Asgd::default() }.into());
    rules.push(Asgd { lambd: 0.3, alpha: -0.3, t0: 8.5, ..Asgd::default() }.into());
    rules.push(Ftrl { lr_power: 0.0, ..Ftrl::new(0.1) }.into());
    rules.push(Ftrl { lr_power: -1.123_456, l1: 0.3, l2: 0.7, ..Ftrl::new(0.1) }.into());
    for rule in &rules {
        for (t, lr) in UPDATES.into_iter().flat_map(|t| [0.0, 1e-3, 0.1, 17.0].map(|lr| (t, lr))) {
            let at = at(t, rule.spec().own_lr(t).unwrap_or(lr), rule.spec().betas());
            let (got, expected) = (scalars(rule.spec(), &at), expected(rule, &at));
            assert_eq!(got.len(), expected.len(), "{rule:?}");
            for ((name, word), (expected_name, expected)) in got.into_iter().zip(expected) {
                assert_eq!(name, expected_name, "{rule:?}");
                let good = match expected {
                    Flag(flag) => word == u32::from(flag),
                    Float(x) => f32::from_bits(word) == single(x),
                    Near(x) => word.abs_diff(single(x).to_bits()) <= 1,
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
        let scalars = scalars(&sgd, &At { t, lr: 0.1, first, ..At::default() });
        assert_eq!(scalars[2], ("one_minus_dampening", expected.to_bits()));
    }
}
