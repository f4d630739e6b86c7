//! Schedules against MindSpore's values.

use optim_tests::tolerance::SCHEDULE;
use optimizers::Schedule;
use optimizers::schedule::{CosineDecay, PolynomialDecay, WarmUp};

use crate::manifest::{Golden, schedule};

/// Every schedule that is built, at every index of the manifest, in both versions.
#[test]
fn values_are_mindspores() {
    let golden = Golden::read();
    let mut compared = 0;
    for entry in &golden.manifest.schedules {
        let Some(schedule) = schedule(&entry.class, &entry.args) else { continue };
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
    }
    assert!(!golden.own || compared >= 150, "only {compared} values were compared");
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

/// No index overflows or leaves the range, however far.
#[test]
fn ends_are_flat() {
    for update in [10, 11, 1 << 31, 1 << 53, u64::MAX - 1, u64::MAX] {
        assert_eq!(WarmUp::new(0.3, 10).unwrap().at(update), 0.3);
        assert!((CosineDecay::new(0.01, 0.3, 10).unwrap().at(update) - 0.01).abs() < 1e-16, "at {update}");
        assert_eq!(PolynomialDecay::new(0.3, 0.01, 10, 2.0).unwrap().at(update), 0.01);
        let grown = PolynomialDecay::new(0.3, 0.01, 10, 2.0).unwrap().update_decay_steps(true).at(update);
        assert!((0.01..=0.3).contains(&grown), "{grown} at {update}");
    }
}
