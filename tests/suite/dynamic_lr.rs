//! Lists of rates against MindSpore's, and what their functions refuse.

use optim_tests::tolerance::LIST;
use optimizers::dynamic_lr::{
    cosine_decay_lr, exponential_decay_lr, inverse_decay_lr, natural_exp_decay_lr, piecewise_constant_lr,
    polynomial_decay_lr, warmup_lr,
};
use optimizers::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::manifest::Golden;

/// The list of a MindSpore function; `None` if there is none of that name. Arguments that do not fit are a panic.
fn list(function: &str, args: &[Value]) -> Option<Result<Vec<f64>>> {
    fn read<T: DeserializeOwned>(args: &[Value]) -> T {
        serde_json::from_value(args.into()).unwrap_or_else(|error| panic!("arguments {args:?}: {error}"))
    }
    type Decay = fn(f64, f64, u64, u64, u64, bool) -> Result<Vec<f64>>;
    let decay = |decay: Decay| {
        let (learning_rate, decay_rate, total_step, step_per_epoch, decay_epoch, is_stair) = read(args);
        decay(learning_rate, decay_rate, total_step, step_per_epoch, decay_epoch, is_stair)
    };
    Some(match function {
        "piecewise_constant_lr" => {
            let (milestone, learning_rates): (Vec<u64>, Vec<f64>) = read(args);
            piecewise_constant_lr(&milestone, &learning_rates)
        }
        "exponential_decay_lr" => decay(exponential_decay_lr),
        "natural_exp_decay_lr" => decay(natural_exp_decay_lr),
        "inverse_decay_lr" => decay(inverse_decay_lr),
        "cosine_decay_lr" => {
            let (min_lr, max_lr, total_step, step_per_epoch, decay_epoch) = read(args);
            cosine_decay_lr(min_lr, max_lr, total_step, step_per_epoch, decay_epoch)
        }
        "polynomial_decay_lr" => {
            let (learning_rate, end_learning_rate, total_step, step_per_epoch, decay_epoch, power, update) = read(args);
            polynomial_decay_lr(
                learning_rate,
                end_learning_rate,
                total_step,
                step_per_epoch,
                decay_epoch,
                power,
                update,
            )
        }
        "warmup_lr" => {
            let (learning_rate, total_step, step_per_epoch, warmup_epoch) = read(args);
            warmup_lr(learning_rate, total_step, step_per_epoch, warmup_epoch)
        }
        _ => return None,
    })
}

/// Every list of the manifest.
#[test]
fn values_are_mindspores() {
    let sets = Golden::sets();
    let mut compared = 0;
    for entry in sets.iter().flat_map(|golden| &golden.manifest.dynamic_lr) {
        let place = format!("{} {:?}", entry.r#fn, entry.args);
        let list = list(&entry.r#fn, &entry.args).unwrap_or_else(|| panic!("no function {place}"));
        let list = list.unwrap_or_else(|error| panic!("{place}: {error}"));
        assert_eq!(list.len(), entry.values.len(), "{place}");
        for (i, (got, expected)) in list.iter().zip(&entry.values).enumerate() {
            let close = (got - expected).abs() <= LIST * expected.abs();
            assert!(close, "{place} at {i}: {got}, MindSpore has {expected}");
        }
        compared += 1;
    }
    assert!(!sets[0].own || compared == 26, "{compared} lists were compared");
}

/// The comparison knows no function that there is not, and reads no argument for another.
#[test]
fn unknown_things_are_errors() {
    assert!(list("linear_lr", &[]).is_none(), "there is no linear_lr");
    let good = [json!(0.1), json!(6), json!(2), json!(2)];
    assert!(list("warmup_lr", &good).is_some_and(|list| list.is_ok()), "the arguments are good as they stand");
    for bad in [vec![json!(0.1), json!(6)], vec![json!(0.1), json!(6.5), json!(2), json!(2)]] {
        assert!(std::panic::catch_unwind(|| list("warmup_lr", &bad)).is_err(), "{bad:?} were accepted");
    }
}

#[track_caller]
fn refused(list: Result<Vec<f64>>, argument: &str) {
    match list {
        Err(Error::HyperParameter { name, .. }) if name == argument => {}
        other => panic!("expected {argument} to be refused, got {other:?}"),
    }
}

/// What MindSpore refuses for its range, and its edges that pass.
#[test]
fn ranges_are_mindspores() {
    refused(piecewise_constant_lr(&[2, 5], &[0.1]), "piecewise_constant_lr: learning_rates");
    refused(piecewise_constant_lr(&[5, 2], &[0.1, 0.2]), "piecewise_constant_lr: milestone");
    refused(piecewise_constant_lr(&[0, 2], &[0.1, 0.2]), "piecewise_constant_lr: milestone");
    refused(piecewise_constant_lr(&[2], &[f64::NAN]), "piecewise_constant_lr: learning_rates");
    refused(piecewise_constant_lr(&[u64::MAX], &[0.1]), "piecewise_constant_lr: milestone");
    assert_eq!(piecewise_constant_lr(&[2, 2], &[0.1, 0.2]).unwrap(), [0.1, 0.1]);
    assert_eq!(piecewise_constant_lr(&[2], &[-0.1]).unwrap(), [-0.1, -0.1]);
    assert_eq!(piecewise_constant_lr(&[], &[]).unwrap(), [0.0; 0]);

    for (name, decay) in [
        ("exponential_decay_lr", exponential_decay_lr as fn(_, _, _, _, _, _) -> _),
        ("natural_exp_decay_lr", natural_exp_decay_lr),
        ("inverse_decay_lr", inverse_decay_lr),
    ] {
        for bad in [0.0, -0.1, f64::NAN, f64::INFINITY] {
            refused(decay(bad, 0.9, 6, 2, 2, false), &format!("{name}: learning_rate"));
            refused(decay(0.1, bad, 6, 2, 2, false), &format!("{name}: decay_rate"));
        }
        for is_stair in [false, true] {
            refused(decay(0.1, 0.9, 0, 2, 2, is_stair), &format!("{name}: total_step"));
            refused(decay(0.1, 0.9, 6, 0, 2, is_stair), &format!("{name}: step_per_epoch"));
            refused(decay(0.1, 0.9, 6, 2, 0, is_stair), &format!("{name}: decay_epoch"));
            refused(decay(0.1, 0.9, u64::MAX, 2, 2, is_stair), &format!("{name}: total_step"));
        }
        assert!(decay(0.1, 2.0, 6, 2, 2, false).is_ok(), "{name} with a decay rate above 1");
    }

    refused(cosine_decay_lr(0.1, 0.1, 6, 2, 2), "cosine_decay_lr: max_lr");
    refused(cosine_decay_lr(0.2, 0.1, 6, 2, 2), "cosine_decay_lr: max_lr");
    refused(cosine_decay_lr(-0.1, 0.1, 6, 2, 2), "cosine_decay_lr: min_lr");
    refused(cosine_decay_lr(0.0, 0.1, 6, 2, 0), "cosine_decay_lr: decay_epoch");
    assert!(cosine_decay_lr(0.0, 0.1, 6, 2, 2).is_ok(), "a lowest rate of 0");

    refused(polynomial_decay_lr(0.0, 0.0, 6, 2, 2, 0.5, false), "polynomial_decay_lr: learning_rate");
    refused(polynomial_decay_lr(0.1, -0.1, 6, 2, 2, 0.5, false), "polynomial_decay_lr: end_learning_rate");
    refused(polynomial_decay_lr(0.1, 0.0, 6, 2, 2, 0.0, false), "polynomial_decay_lr: power");
    refused(polynomial_decay_lr(0.1, 0.0, 6, 2, 0, 0.5, true), "polynomial_decay_lr: decay_epoch");
    assert!(polynomial_decay_lr(0.1, 0.2, 6, 2, 2, 0.5, false).is_ok(), "an end above the start");

    refused(warmup_lr(-0.1, 6, 2, 2), "warmup_lr: learning_rate");
    refused(warmup_lr(0.1, 6, 2, 0), "warmup_lr: warmup_epoch");
    assert_eq!(warmup_lr(0.0, 3, 2, 2).unwrap(), [0.0; 3]);
}
