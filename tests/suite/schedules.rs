//! Schedules against the values of MindSpore and PyTorch, and their laws; the rate that follows a metric.

use std::fs;
use std::path::Path;

use optim_tests::Target;
use optim_tests::tolerance::{LIST, SCHEDULE};
use optimizers::schedule::{
    AnySchedule, Constant, CosineDecay, CosineRestarts, Cyclic, ExponentialDecay, InverseDecay, InverseSqrt, Linear,
    Mode, MultiStep, NaturalExpDecay, Noam, OneCycle, PlateauState, PolynomialDecay, ReduceOnPlateau, StepDecay,
    Threshold, WarmUp, WarmupStableDecay, from_fn,
};
use optimizers::{Error, Momentum, Parameter, Rate, Result, Schedule};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::manifest::{Golden, schedule};

/// Every schedule, at every index of the manifest, in both versions.
#[test]
fn values_are_mindspores() {
    let sets = Golden::sets();
    let (mut entries, mut compared) = (0, 0);
    for entry in sets.iter().flat_map(|golden| &golden.manifest.schedules) {
        let schedule = schedule(&entry.class, &entry.args).unwrap_or_else(|| panic!("no schedule {}", entry.class));
        assert!(entry.values_1_5.is_some() || entry.values_2_10.is_some(), "{} has no values", entry.class);
        for values in [&entry.values_1_5, &entry.values_2_10].into_iter().flatten() {
            assert_eq!(values.len(), entry.steps.len(), "{}", entry.class);
            let largest = values.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
            for (&step, &expected) in entry.steps.iter().zip(values) {
                let got = schedule.at(step);
                let scale = if entry.class == "WarmUpLR" { expected } else { largest };
                let place = format!("{} {:?} at {step}: {got}, MindSpore has {expected}", entry.class, entry.args);
                assert!((got - expected).abs() <= SCHEDULE * scale, "{place}");
                compared += 1;
            }
        }
        entries += 1;
    }
    // Two of the 20 schedules have no values of 1.5.
    let all = entries == 20 && compared == 38 * 12;
    assert!(!sets[0].own || all, "{compared} values of {entries} schedules were compared");
}

/// The second schedule starts from its own index 0, whatever the first did.
#[test]
fn then_hands_over() {
    let (first, second) = (WarmUp::new(0.1, 4).unwrap(), CosineDecay::new(0.01, 0.1, 10).unwrap());
    let third = PolynomialDecay::new(0.5, 0.1, 3, 1.0).unwrap();
    let both = first.then(4, second).then(9, third);
    for update in 0..4 {
        assert_eq!(both.at(update), first.at(update));
    }
    for update in 4..9 {
        assert_eq!(both.at(update), second.at(update - 4));
    }
    for update in [9, 10, 12, 13, 1_000_000, u64::MAX] {
        assert_eq!(both.at(update), third.at(update - 9));
    }
    assert_eq!(first.then(0, second).at(0), 0.1, "no update of the first");
}

/// A stair holds the value that the smooth decay has at its foot, for as many updates as a step is long.
#[test]
fn stairs_hold_their_feet() {
    let pairs: [(Box<dyn Schedule>, Box<dyn Schedule>); 3] = [
        {
            let smooth = ExponentialDecay::new(0.3, 0.7, 5).unwrap();
            (Box::new(smooth), Box::new(smooth.is_stair(true)))
        },
        {
            let smooth = NaturalExpDecay::new(0.3, 0.07, 5).unwrap();
            (Box::new(smooth), Box::new(smooth.is_stair(true)))
        },
        {
            let smooth = InverseDecay::new(0.3, 0.7, 5).unwrap();
            (Box::new(smooth), Box::new(smooth.is_stair(true)))
        },
    ];
    for (smooth, stair) in &pairs {
        assert_eq!(smooth.at(0), 0.3, "{smooth:?} starts at its rate");
        for update in 0..40 {
            assert_eq!(stair.at(update), smooth.at(update / 5 * 5), "{stair:?} at {update}");
            assert!(smooth.at(update + 1) < smooth.at(update), "{smooth:?} falls at {update}");
        }
    }
}

/// `decay_steps` has no part in the smooth natural decay, as in MindSpore and not as on its page.
#[test]
fn natural_decay_ignores_its_steps() {
    let (short, long) = (NaturalExpDecay::new(0.1, 0.3, 2).unwrap(), NaturalExpDecay::new(0.1, 0.3, 50).unwrap());
    for update in 0..60 {
        assert_eq!(short.at(update), long.at(update), "at {update}");
    }
}

/// No index overflows or leaves the range, however far.
#[test]
fn ends_are_flat() {
    for update in [10, 11, 1 << 31, 1 << 53, u64::MAX - 1, u64::MAX] {
        assert_eq!(WarmUp::new(0.3, 10).unwrap().at(update), 0.3);
        assert!((CosineDecay::new(0.01, 0.3, 10).unwrap().at(update) - 0.01).abs() < 1e-16, "at {update}");
        assert_eq!(PolynomialDecay::new(0.3, 0.01, 10, 2.0).unwrap().at(update), 0.01);
        let grown = PolynomialDecay::new(0.3, 0.01, 10, 2.0).unwrap().update_decay_steps(true).at(update);
        assert!((0.01..=0.3).contains(&grown), "{grown} at {update}");
        for stair in [false, true] {
            let decays: [Box<dyn Schedule>; 3] = [
                Box::new(ExponentialDecay::new(0.3, 0.5, 10).unwrap().is_stair(stair)),
                Box::new(NaturalExpDecay::new(0.3, 0.5, 10).unwrap().is_stair(stair)),
                Box::new(InverseDecay::new(0.3, 0.5, 10).unwrap().is_stair(stair)),
            ];
            for decay in decays {
                assert!((0.0..=0.2).contains(&decay.at(update)), "{decay:?} at {update}");
            }
        }
    }
}

/// From PyTorch 2.15.0:
///
/// ```python
/// import torch
/// from torch.optim import lr_scheduler as L
///
/// def run(updates, make):
///     parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
///     optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
///     scheduler = make(optimizer)
///     for _ in range(updates):
///         print(repr(float(optimizer.param_groups[0]["lr"])))
///         optimizer.step()
///         scheduler.step()
///
/// run(10, lambda o: L.StepLR(o, 3, 0.5))
/// run(10, lambda o: L.MultiStepLR(o, [2, 5, 5, 8], 0.5))
/// run(8, lambda o: L.LinearLR(o, 0.25, 1.0, 5))
/// run(14, lambda o: L.CyclicLR(o, 0.1, 0.5, 4, 2))
/// run(16, lambda o: L.CosineAnnealingWarmRestarts(o, 2, 2, 0.01))
/// run(9, lambda o: L.CosineAnnealingWarmRestarts(o, 4, 1, 0.0))
/// run(10, lambda o: L.OneCycleLR(o, 0.5, total_steps=10))
/// run(12, lambda o: L.OneCycleLR(o, 0.5, total_steps=12, pct_start=0.25, div_factor=10, final_div_factor=100))
/// ```
#[test]
#[rustfmt::skip]
fn values_are_pytorchs() {
    let short_start = OneCycle::new(0.5, 12).unwrap().pct_start(0.25).unwrap();
    let short_start = short_start.div_factor(10.0).unwrap().final_div_factor(100.0).unwrap();
    let schedules: [(Box<dyn Schedule>, &[f64]); 8] = [
        (Box::new(StepDecay::new(0.1, 0.5, 3).unwrap()),
         &[0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.0125]),
        (Box::new(MultiStep::new(0.1, 0.5, [2, 5, 5, 8]).unwrap()),
         &[0.1, 0.1, 0.05, 0.05, 0.05, 0.0125, 0.0125, 0.0125, 0.00625, 0.00625]),
        (Box::new(Linear::new(0.025, 0.1, 5).unwrap()),
         &[0.025, 0.04000000000000001, 0.05500000000000001, 0.07, 0.085, 0.1, 0.1, 0.1]),
        (Box::new(Cyclic::new(0.1, 0.5, 4, 2).unwrap()),
         &[0.1, 0.20000000000000007, 0.29999999999999993, 0.4, 0.4999999999999999, 0.2999999999999998, 0.1,
           0.20000000000000018, 0.2999999999999998, 0.4, 0.49999999999999967, 0.3000000000000003, 0.1,
           0.19999999999999993]),
        (Box::new(CosineRestarts::new(0.01, 0.1, 2, 2).unwrap()),
         &[0.1, 0.05500000000000001, 0.1, 0.08681980515339464, 0.05500000000000001, 0.023180194846605363, 0.1,
           0.0965745789630079, 0.08681980515339464, 0.07222075445642905, 0.05500000000000001, 0.03777924554357097,
           0.023180194846605363, 0.013425421036992097, 0.1, 0.09913533761814537]),
        (Box::new(CosineRestarts::new(0.0, 0.1, 4, 1).unwrap()),
         &[0.1, 0.08535533905932738, 0.05, 0.014644660940672627, 0.1, 0.08535533905932738, 0.05,
           0.014644660940672627, 0.1]),
        (Box::new(OneCycle::new(0.5, 10).unwrap()),
         &[0.020000000000000018, 0.26, 0.5, 0.47524231600673683, 0.40587282697488153, 0.30563101096814466,
           0.19437098903185537, 0.09412917302511849, 0.024759683993263143, 2e-06]),
        (Box::new(short_start),
         &[0.04999999999999999, 0.275, 0.5, 0.4849382320412806, 0.44156959966896475, 0.375125, 0.2936186323723159,
           0.20688136762768417, 0.12537500000000004, 0.05893040033103527, 0.015561767958719398, 0.0005]),
    ];
    for (schedule, values) in &schedules {
        for (update, &expected) in (0..).zip(*values) {
            let got = schedule.at(update);
            let place = format!("{schedule:?} at {update}: {got}, PyTorch has {expected}");
            assert!((got - expected).abs() <= LIST * expected, "{place}");
        }
    }
}

/// PyTorch 2.15: `OneCycleLR(SGD(momentum=0.9), 0.5, total_steps=10)` and `CyclicLR(…, 0.1, 0.4, step_size_up=4, step_size_down=2)`.
#[test]
fn momenta_are_pytorchs() {
    let one = OneCycle::new(0.5, 10).unwrap();
    let expected = [
        0.95,
        0.9,
        0.85,
        0.854_951_556_604_879,
        0.868_825_509_907_063_3,
        0.888_873_953_302_184_2,
        0.911_126_046_697_815_7,
        0.931_174_490_092_936_6,
        0.945_048_443_395_121,
        0.95,
    ];
    for (i, expected) in (0..).zip(expected) {
        let momentum = one.momentum_at(i, 0.85, 0.95);
        assert!((momentum - expected).abs() < 1e-12, "one cycle at {i}: {momentum}, expected {expected}");
    }
    let cyclic = Cyclic::new(0.1, 0.4, 4, 2).unwrap();
    for (i, expected) in (0..).zip([0.9, 0.875, 0.85, 0.825, 0.8, 0.85, 0.9, 0.875]) {
        let momentum = cyclic.momentum_at(i, 0.8, 0.9);
        assert!((momentum - expected).abs() < 1e-12, "cyclic at {i}: {momentum}, expected {expected}");
    }
}

/// The formulas of the papers, term by term.
#[test]
fn values_are_the_papers() {
    let (noam, root) = (Noam::new(2.0, 512, 40).unwrap(), InverseSqrt::new(0.3, 40).unwrap());
    for t in 1..=400_u64 {
        let x = t as f64;
        let paper = x.powf(-0.5).min(x * 40_f64.powf(-1.5));
        let expected = 2.0 * 512_f64.powf(-0.5) * paper;
        assert!((noam.at(t - 1) - expected).abs() <= LIST * expected, "Noam at {t}");
        let expected = 0.3 * (x / 40.0).min((40.0 / x).sqrt());
        assert!((root.at(t) - expected).abs() <= LIST * expected, "InverseSqrt at {t}");
    }
    assert_eq!(root.at(0), 0.0);

    let parts = WarmUp::new(0.3, 10).unwrap().then(10, Constant::new(0.3).unwrap());
    let parts = parts.then(30, Linear::new(0.3, 0.03, 20).unwrap());
    let whole = WarmupStableDecay::new(0.3, 10, 20, 20).unwrap().end_lr(0.03).unwrap();
    for update in (0..80).chain([u64::MAX]) {
        assert_eq!(whole.at(update), parts.at(update), "WarmupStableDecay at {update}");
    }
}

/// Schedules beyond MindSpore's, each with the lowest and the highest rate.
fn more() -> Vec<(Box<dyn Schedule>, f64, f64)> {
    vec![
        (Box::new(Constant::new(0.3).unwrap()), 0.3, 0.3),
        (Box::new(Linear::new(0.3, 0.1, 10).unwrap()), 0.1, 0.3),
        (Box::new(Linear::new(0.1, 0.3, 10).unwrap()), 0.1, 0.3),
        (Box::new(StepDecay::new(0.3, 0.5, 10).unwrap()), 0.0, 0.3),
        (Box::new(MultiStep::new(0.3, 0.5, [0, 5, 10]).unwrap()), 0.3 / 8.0, 0.15),
        (Box::new(MultiStep::new(0.3, 0.5, []).unwrap()), 0.3, 0.3),
        (Box::new(CosineRestarts::new(0.1, 0.3, 10, 1).unwrap()), 0.1, 0.3),
        (Box::new(CosineRestarts::new(0.1, 0.3, 10, 2).unwrap()), 0.1, 0.3),
        (Box::new(CosineRestarts::new(0.1, 0.3, 1, u64::MAX).unwrap()), 0.1, 0.3),
        (Box::new(OneCycle::new(0.3, 10).unwrap()), 0.3 / 25.0 / 1e4, 0.3),
        (Box::new(OneCycle::new(0.3, 10).unwrap().pct_start(0.1).unwrap()), 0.3 / 25.0 / 1e4, 0.3),
        (Box::new(OneCycle::new(0.3, 1).unwrap()), 0.3 / 25.0 / 1e4, 0.3),
        (Box::new(OneCycle::new(0.3, 1).unwrap().pct_start(1.0).unwrap()), 0.3, 0.3),
        (Box::new(OneCycle::new(0.3, 7).unwrap().pct_start(0.0).unwrap()), 0.3 / 25.0 / 1e4, 0.3),
        (Box::new(OneCycle::new(0.3, 7).unwrap().pct_start(1.0).unwrap()), 0.3 / 25.0, 0.3),
        (Box::new(OneCycle::new(0.3, u64::MAX).unwrap()), 0.3 / 25.0 / 1e4, 0.3),
        (Box::new(Cyclic::new(0.1, 0.3, 4, 2).unwrap()), 0.1, 0.3),
        (Box::new(Cyclic::new(0.1, 0.3, u64::MAX, u64::MAX).unwrap()), 0.1, 0.3),
        (Box::new(InverseSqrt::new(0.3, 10).unwrap()), 0.0, 0.3),
        (Box::new(Noam::new(1.0, 64, 10).unwrap()), 0.0, 0.04),
        (Box::new(WarmupStableDecay::new(0.3, 10, 20, 10).unwrap()), 0.0, 0.3),
        (Box::new(WarmupStableDecay::new(0.3, 0, 0, 1).unwrap()), 0.0, 0.3),
        (Box::new(WarmupStableDecay::new(0.3, 0, u64::MAX, u64::MAX).unwrap()), 0.3, 0.3),
        (Box::new(Linear::new(0.3, 0.1, 10).unwrap().warmup(5)), 0.0, 0.3),
        (Box::new(Linear::new(0.3, 0.1, 10).unwrap().warmup(0)), 0.1, 0.3),
        (Box::new(Linear::new(0.3, 0.1, 10).unwrap().scale(0.5).unwrap()), 0.05, 0.15),
        (Box::new(Linear::new(0.3, 0.1, 10).unwrap().repeat(7).unwrap()), 0.1, 0.3),
    ]
}

/// Rates are within their bounds at any index, however far.
#[test]
fn rates_are_bounded() {
    for (schedule, lowest, highest) in more() {
        for update in (0..200).chain([1 << 31, 1 << 53, u64::MAX - 1, u64::MAX]) {
            let lr = schedule.at(update);
            let slack = 1e-15;
            assert!((lowest - slack..=highest + slack).contains(&lr), "{schedule:?} at {update}: {lr}");
        }
    }
}

/// No jump between two updates where a schedule promises none: with ten times the length, at most a tenth of the step.
#[test]
fn joins_are_smooth() {
    type Make = fn(u64) -> Box<dyn Schedule>;
    let schedules: [Make; 8] = [
        |n| Box::new(Linear::new(0.3, 0.1, 10 * n).unwrap()),
        |n| Box::new(OneCycle::new(0.3, 30 * n).unwrap()),
        |n| Box::new(Cyclic::new(0.1, 0.3, 8 * n, 4 * n).unwrap()),
        |n| Box::new(InverseSqrt::new(0.3, 10 * n).unwrap()),
        |n| Box::new(WarmupStableDecay::new(0.3, 10 * n, 5 * n, 10 * n).unwrap()),
        |n| Box::new(CosineDecay::new(0.1, 0.3, 10 * n).unwrap().warmup(10 * n)),
        |n| Box::new(InverseSqrt::new(0.3, 10 * n).unwrap().scale(0.5).unwrap()),
        |n| Box::new(Cyclic::new(0.1, 0.3, 8 * n, 4 * n).unwrap().repeat(12 * n).unwrap()),
    ];
    for make in schedules {
        let largest = |n: u64| {
            let schedule = make(n);
            (0..40 * n).map(|i| (schedule.at(i + 1) - schedule.at(i)).abs()).fold(0.0, f64::max)
        };
        let (coarse, fine) = (largest(10), largest(100));
        assert!(fine <= 0.11 * coarse, "{:?}: steps of {coarse} and of {fine}", make(10));
    }
    // The control: a restart is a jump.
    let restarts = CosineRestarts::new(0.0, 0.3, 1000, 1).unwrap();
    assert!(restarts.at(1000) - restarts.at(999) > 0.299, "no jump at a restart");
}

/// Composed schedules are their parts, index by index, and compose again.
#[test]
fn composition() {
    let decay = CosineDecay::new(0.01, 0.1, 10).unwrap();
    let warmed = decay.warmup(4);
    let by_hand = WarmUp::new(0.1, 4).unwrap().then(4, decay);
    for update in (0..30).chain([u64::MAX]) {
        assert_eq!(warmed.at(update), by_hand.at(update), "at {update}");
        assert_eq!(warmed.scale(0.5).unwrap().at(update), 0.5 * warmed.at(update), "at {update}");
        assert_eq!(warmed.repeat(9).unwrap().at(update), warmed.at(update % 9), "at {update}");
    }
    assert_eq!(format!("{:?}", from_fn("flat", |_| 0.1).warmup(2)), "Warmed { schedule: flat, steps: 2 }");
}

/// A closure is a rate; what it returns is judged when it is asked for.
#[test]
fn closures_are_rates() {
    let base = 0.5;
    let rate =
        Rate::from(from_fn("halving once, then broken", move |i| if i < 2 { base / (i + 1) as f64 } else { f64::NAN }));
    assert_eq!(format!("{rate:?}"), "halving once, then broken");
    let mut optimizer = Momentum::new(rate, 0.0).params([Parameter::new("w", [1])]).build(Target::ALL[0]).unwrap();
    let mut w = [1.0_f32];
    let mut step =
        || optimizer.step(&mut [(&mut w).into()], &[(&[1.0_f32]).into()]).map(|report| report.rates.to_vec());
    assert_eq!((step(), step()), (Ok(vec![0.5]), Ok(vec![0.25])));
    assert!(matches!(step(), Err(Error::RateNotFinite { update: 2, .. })), "NaN was accepted");
    assert_eq!(w, [0.25]);
}

#[track_caller]
fn refused<T: std::fmt::Debug>(rate: Result<T>, argument: &str) {
    match rate {
        Err(Error::HyperParameter { name, .. }) if name == argument => {}
        other => panic!("expected {argument} to be refused, got {other:?}"),
    }
}

/// `golden/torch/plateau.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plateaus {
    origin: String,
    columns: [String; 5],
    cases: Vec<PlateauCase>,
}

/// A setting, and what PyTorch made of its metrics. Numbers that may be infinite or NaN are words.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlateauCase {
    lr: f64,
    kwargs: Map<String, Value>,
    rows: Vec<(String, String, String, u64, u64)>,
}

impl PlateauCase {
    fn rate(&self) -> ReduceOnPlateau {
        let mut rate = ReduceOnPlateau::new(self.lr).unwrap();
        for (keyword, value) in &self.kwargs {
            let (number, count) = (value.as_f64().unwrap_or(f64::NAN), value.as_u64());
            rate = match (&**keyword, value.as_str()) {
                ("mode", Some("max")) => rate.mode(Mode::Max),
                ("threshold_mode", Some("abs")) => rate.threshold_mode(Threshold::Absolute),
                ("patience", None) => rate.patience(count.unwrap()),
                ("cooldown", None) => rate.cooldown(count.unwrap()),
                ("factor", None) => rate.factor(number).unwrap(),
                ("threshold", None) => rate.threshold(number).unwrap(),
                ("min_lr", None) => rate.min_lr(number).unwrap(),
                ("eps", None) => rate.eps(number).unwrap(),
                _ => panic!("unknown: {keyword} {value}"),
            };
        }
        rate
    }
}

/// After every metric the rate and the memory are PyTorch's, to the bit; also when the run is resumed from a saved progress.
#[test]
fn plateaus_are_pytorchs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/torch/plateau.json");
    let golden: Plateaus = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(golden.columns.join(" "), "metric lr best num_bad_epochs cooldown_counter", "{}", golden.origin);
    let (mut compared, mut reductions) = (0, 0);
    for case in &golden.cases {
        let mut rate = case.rate();
        for (nth, (metric, lr, best, num_bad_epochs, cooldown_counter)) in case.rows.iter().enumerate() {
            let place = format!("{} {:?}, metric {nth}", case.lr, case.kwargs);
            let before = rate.lr();
            let reduced = rate.observe(metric.parse().unwrap()).unwrap();
            let (lr, best) = (lr.parse().unwrap(), best.parse().unwrap());
            let (num_bad_epochs, cooldown_counter) = (*num_bad_epochs, *cooldown_counter);
            assert_eq!(
                rate.state(),
                PlateauState { lr, mode: case.rate().state().mode, best, num_bad_epochs, cooldown_counter },
                "{place}"
            );
            assert_eq!((rate.lr(), rate.best()), (lr, best), "{place}");
            assert_eq!((rate.num_bad_epochs(), rate.cooldown_counter()), (num_bad_epochs, cooldown_counter), "{place}");
            assert_eq!(reduced, lr < before, "{place}");
            compared += 1;
            reductions += u32::from(reduced);

            let mut resumed = case.rate();
            resumed.restore(rate.state()).unwrap();
            assert_eq!(resumed, rate, "{place}");
            rate = resumed;
        }
    }
    assert!(
        golden.cases.len() == 20 && compared == 392 && reductions > 50,
        "{compared} metrics, {reductions} reductions"
    );
}

/// A rate that follows a metric is asked as any other, and only it takes note of metrics.
#[test]
fn rates_observe() {
    let mut rate = Rate::from(ReduceOnPlateau::new(0.5).unwrap().factor(0.5).unwrap().patience(0));
    assert_eq!([1.0, 1.0, 2.0, 0.5].map(|metric| rate.observe(metric)), [Ok(false), Ok(true), Ok(true), Ok(false)]);
    assert!(matches!(&rate, Rate::Plateau(plateau) if plateau.lr() == 0.125), "{rate:?}");

    let mut optimizer = Momentum::new(rate, 0.0).params([Parameter::new("w", [1])]).build(Target::ALL[0]).unwrap();
    let mut w = [1.0_f32];
    for expected in [0.875, 0.75] {
        let report = optimizer.step(&mut [(&mut w).into()], &[(&[1.0_f32]).into()]).unwrap();
        assert_eq!((&*report.rates, w[0]), (&[0.125][..], expected));
    }

    for mut rate in [Rate::from(0.1), Rate::from([0.1]), Rate::from(Constant::new(0.1).unwrap())] {
        let before = format!("{rate:?}");
        assert_eq!((rate.observe(1.0), rate.observe(f64::NAN)), (Ok(false), Ok(false)), "{rate:?}");
        assert_eq!(format!("{rate:?}"), before);
    }
}

/// Every setting and every part of a saved progress out of its range is refused by its name, and changes nothing.
#[test]
fn plateaus_are_checked() {
    let rate = || ReduceOnPlateau::new(0.3).unwrap();
    let state = rate().state();
    let mut restored = rate();
    for bad in [-0.1, f64::NAN, f64::INFINITY, 1e60] {
        refused(ReduceOnPlateau::new(bad), "ReduceOnPlateau: lr");
        refused(rate().factor(bad), "ReduceOnPlateau: factor");
        refused(rate().threshold(bad), "ReduceOnPlateau: threshold");
        refused(rate().min_lr(bad), "ReduceOnPlateau: min_lr");
        refused(rate().eps(bad), "ReduceOnPlateau: eps");
        refused(restored.restore(PlateauState { lr: bad, ..state }), "ReduceOnPlateau: state.lr");
    }
    refused(rate().factor(0.0), "ReduceOnPlateau: factor");
    refused(rate().factor(1.0), "ReduceOnPlateau: factor");
    refused(restored.restore(PlateauState { best: f64::NAN, ..state }), "ReduceOnPlateau: state.best");
    refused(restored.restore(rate().mode(Mode::Max).state()), "ReduceOnPlateau: state.mode");
    assert_eq!(restored, rate());

    // A rate that can never fall to its bound would stay below it.
    let mut bounded = rate().min_lr(0.05).unwrap();
    bounded.restore(PlateauState { lr: 1e-5, ..state }).unwrap();
    assert_eq!(bounded.lr(), 0.05);
    let mut above = rate().min_lr(0.5).unwrap();
    above.restore(state).unwrap();
    assert_eq!(above.lr(), 0.3);
}

/// What grows from 0 stays 0, however often it grows.
#[test]
fn nothing_grows_from_zero() {
    let zeros: [AnySchedule; 3] = [
        StepDecay::new(0.0, 10.0, 1).unwrap().into(),
        MultiStep::new(0.0, 1e38, vec![1; 400]).unwrap().into(),
        StepDecay::new(1.0, 10.0, 1).unwrap().scale(0.0).unwrap().into(),
    ];
    for schedule in zeros {
        assert_eq!([0, 1, 300, 400].map(|update| schedule.at(update)), [0.0; 4], "{schedule:?}");
    }
}

/// Every argument out of its range is refused by its name.
#[test]
fn arguments_are_checked() {
    let cycle = || OneCycle::new(0.3, 10).unwrap();
    let plateau = || WarmupStableDecay::new(0.3, 1, 1, 1).unwrap();
    for bad in [-0.1, f64::NAN, f64::INFINITY, 1e60] {
        refused(Constant::new(bad), "Constant: lr");
        refused(Linear::new(bad, 0.1, 4), "Linear: start");
        refused(Linear::new(0.1, bad, 4), "Linear: end");
        refused(StepDecay::new(bad, 0.5, 4), "StepDecay: lr");
        refused(StepDecay::new(0.1, bad, 4), "StepDecay: gamma");
        refused(MultiStep::new(bad, 0.5, [4]), "MultiStep: lr");
        refused(MultiStep::new(0.1, bad, [4]), "MultiStep: gamma");
        refused(CosineRestarts::new(bad, 0.1, 4, 1), "CosineRestarts: min_lr");
        refused(CosineRestarts::new(0.0, bad, 4, 1), "CosineRestarts: max_lr");
        refused(OneCycle::new(bad, 4), "OneCycle: max_lr");
        refused(cycle().pct_start(bad), "OneCycle: pct_start");
        refused(cycle().div_factor(bad), "OneCycle: div_factor");
        refused(cycle().final_div_factor(bad), "OneCycle: final_div_factor");
        refused(Cyclic::new(bad, 0.1, 4, 4), "Cyclic: base_lr");
        refused(Cyclic::new(0.0, bad, 4, 4), "Cyclic: max_lr");
        refused(InverseSqrt::new(bad, 4), "InverseSqrt: lr");
        refused(Noam::new(bad, 512, 4), "Noam: factor");
        refused(WarmupStableDecay::new(bad, 1, 1, 1), "WarmupStableDecay: lr");
        refused(plateau().end_lr(bad), "WarmupStableDecay: end_lr");
        refused(cycle().scale(bad), "Schedule: factor");
    }
    refused(StepDecay::new(0.1, 0.0, 4), "StepDecay: gamma");
    refused(MultiStep::new(0.1, 0.0, [4]), "MultiStep: gamma");
    refused(MultiStep::new(0.1, 0.5, [4, 3]), "MultiStep: milestones");
    refused(CosineRestarts::new(0.1, 0.1, 4, 1), "CosineRestarts: max_lr");
    refused(Cyclic::new(0.1, 0.1, 4, 4), "Cyclic: max_lr");
    refused(OneCycle::new(0.0, 4), "OneCycle: max_lr");
    refused(cycle().pct_start(1.1), "OneCycle: pct_start");
    refused(cycle().div_factor(0.0), "OneCycle: div_factor");
    refused(cycle().final_div_factor(0.0), "OneCycle: final_div_factor");
    refused(Linear::new(0.1, 0.1, 0), "Linear: steps");
    refused(StepDecay::new(0.1, 0.5, 0), "StepDecay: every");
    refused(CosineRestarts::new(0.0, 0.1, 0, 1), "CosineRestarts: first");
    refused(CosineRestarts::new(0.0, 0.1, 4, 0), "CosineRestarts: growth");
    refused(OneCycle::new(0.3, 0), "OneCycle: total_steps");
    refused(Cyclic::new(0.0, 0.1, 0, 4), "Cyclic: up");
    refused(Cyclic::new(0.0, 0.1, 4, 0), "Cyclic: down");
    refused(InverseSqrt::new(0.1, 0), "InverseSqrt: warmup_steps");
    refused(Noam::new(1.0, 0, 4), "Noam: model_size");
    refused(Noam::new(1.0, 512, 0), "Noam: warmup_steps");
    refused(WarmupStableDecay::new(0.1, 1, 1, 0), "WarmupStableDecay: decay_steps");
    refused(cycle().repeat(0), "Schedule: period");
}
