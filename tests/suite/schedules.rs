//! Schedules against MindSpore's values.

use optim_tests::tolerance::SCHEDULE;
use optimizers::Schedule;
use optimizers::schedule::{CosineDecay, ExponentialDecay, InverseDecay, NaturalExpDecay, PolynomialDecay, WarmUp};

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
