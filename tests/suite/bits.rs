//! What every rule computes, as numbers that are the same on every processor.
//!
//! Another test that compares bits has both sides computed by one processor. Here one side was computed once, and stands in the list
//! below. A change of it is a change of what users compute: the failing test prints the new list.

use std::slice;

use optim_tests::engine::{Case, Driven, Formats, at, record};
use optim_tests::{Target, on_every_backend};
use optimizers::core::backend::{Shaping, Tensor};
use optimizers::core::guard::{Clip, Guard};
use optimizers::core::rule::Passes;
use optimizers::{DType, Grad, Rule};

/// For each rule its name, the [hash](optim_tests::engine::Snapshot::hash) of what it makes in `f32`, and of what it makes in every
/// format.
const RULES: &[(&str, u64, u64)] = &[
    ("sgd", 0x68f6_34c0_98e8_a463, 0x2098_b191_49f3_7ec4),
    ("sgd", 0x78f0_1e46_4cdb_a1d1, 0xbfc7_8093_fe29_64b9),
    ("sgd", 0xd7fa_4dc7_02ab_d63a, 0x487e_a25d_bc79_8215),
    ("momentum", 0xafb4_4eac_6051_f13f, 0xc2c4_6153_31d7_12d5),
    ("momentum", 0xd7fa_4dc7_02ab_d63a, 0x487e_a25d_bc79_8215),
    ("adam", 0x75ba_1418_d130_e2e9, 0x5c7e_9f34_9f24_8584),
    ("adam", 0xf95a_a81d_84d6_a74c, 0xb87d_be6c_7675_ec0d),
    ("ada_factor", 0x9dac_e2c8_0e12_a2dc, 0x248e_8d1f_3825_54cb),
    ("ada_factor", 0xd55e_a236_89ca_5206, 0x010e_cc1a_633a_5122),
    ("ada_factor", 0x213b_8c70_8e4c_253f, 0x092d_e06e_1962_c8ec),
    ("adam", 0x0db7_8627_4ef9_bbf0, 0xec98_a143_d6c2_ab91),
    ("adam", 0xcfd4_75de_f2a6_237e, 0x3cc1_53e9_3a37_2003),
    ("adam_weight_decay", 0xd742_f43e_d2bf_bdb1, 0xf29b_ee38_458a_299f),
    ("adamw", 0x0804_80c7_299f_2712, 0xd788_aa1c_eedd_77d2),
    ("adamw", 0x3496_40d5_3f5f_059f, 0xb53e_a545_669a_d5a8),
    ("lazy_adam", 0xf95a_a81d_84d6_a74c, 0xb87d_be6c_7675_ec0d),
    ("adam_offload", 0x75ba_1418_d130_e2e9, 0x5c7e_9f34_9f24_8584),
    ("ada_max", 0x9abe_a5aa_3ced_497b, 0x5281_87ea_8f59_fe15),
    ("ada_max", 0x6b4a_2c1f_61bd_d6b5, 0x592c_0827_441c_3ad5),
    ("nadam", 0x4082_37b7_c9d1_a830, 0xb861_0440_1d6f_b8e2),
    ("nadam", 0xb520_0329_d175_4a92, 0x5633_3f59_6a51_7e0a),
    ("radam", 0x583f_c774_aeba_4b09, 0xf604_a21d_c11b_ed6b),
    ("radam", 0x3bc7_e152_22c6_7086, 0xa552_41f8_8759_cf59),
    ("lion", 0xa80e_c041_f400_e703, 0x540c_8f46_ca45_36fa),
    ("adan", 0x3676_a3e5_1695_45e4, 0x8cd9_bd3f_8873_b189),
    ("adan", 0xe1c7_c6ca_414f_a182, 0x578d_0ead_4477_c875),
    ("adagrad", 0xc71b_fa2c_190b_3640, 0xa0b2_4435_7d13_75c6),
    ("adagrad", 0xea94_6070_0bad_5505, 0x02ea_6a90_19bb_9609),
    ("proximal_adagrad", 0x0267_39ca_5778_5c4a, 0x1e9b_d603_6e82_fdb2),
    ("ftrl", 0x1bdd_0805_81ab_0e58, 0x9adb_84dd_ea9e_5380),
    ("ftrl", 0xf8a3_c838_282a_1b54, 0x712d_7467_4adb_02ee),
    ("rms_prop", 0x03a8_0084_80b6_ce7e, 0x3f93_8bab_3229_99e5),
    ("rms_prop", 0x4296_1414_ad66_02ae, 0x3cfe_ad59_9888_ef71),
    ("rms_prop", 0xf6fb_8624_0fcb_42fb, 0x68cf_93cd_1bba_cb97),
    ("rms_prop", 0x9f28_d83f_ed80_fd9d, 0xb2bd_4934_327b_8ca9),
    ("adadelta", 0xd9b5_cf8f_e3cf_9f30, 0xf2f8_f7d9_13b0_8662),
    ("asgd", 0xe8cd_0c74_e71a_d145, 0xcad6_f872_3e65_b9a0),
    ("rprop", 0x08f3_1960_b1c5_a2d7, 0xe3cd_f5f7_af66_210a),
    ("lamb", 0x476b_52d8_056a_eacd, 0xc60a_8e78_3137_5b4c),
    ("lars", 0xbc6e_218b_ccc2_37f1, 0x58b8_6d45_57e2_d200),
];

/// The hash of two updates of parameters in these formats, one with nothing around the rule, one guarded with all that can be: with
/// this factor.
fn hash(target: Target, rule: &Rule, formats: &[Formats], factor: f32) -> u64 {
    let mut case = Case::new(slice::from_ref(rule), 3);
    // Stacks of matrices, of which small ones are worked on together, are what only factored rules tell from one matrix.
    let stacks: &[&[usize]] =
        if rule.spec().passes() == Passes::Factored { &[&[40, 2, 3], &[70, 1, 1], &[2, 3, 90]] } else { &[] };
    for (nth, &formats) in formats.iter().enumerate() {
        for shape in [&[&[3, 90][..], &[257]], stacks].concat() {
            case.push(shape, formats, 0).ema = nth % 2 == 0;
        }
    }
    let dtypes = [DType::F32, DType::F32, DType::F16, DType::Bf16];
    let gradients = [(); 2].map(|()| case.gradients(|i| dtypes[i % 4]));
    let [first, second] =
        gradients.each_ref().map(|gradients| gradients.iter().map(|g| g.as_ref().into()).collect::<Vec<Grad<'_>>>());
    let record_of: Vec<u32> = (0..).take(case.tensors.len()).collect();
    let one = |t: u32, tensor: &Tensor| {
        let mut record = record(rule, t);
        match rule.spec().trust(&tensor.parameter, &at(rule, t), 0.01) {
            Some(trust) => record.trust = trust,
            None => record.shaping.weight_decay = 0.01,
        }
        record
    };
    let mut driven = Driven::new(target, &case).unwrap();
    let plain: Vec<_> = case.tensors.iter().map(|tensor| one(1, tensor)).collect();
    driven.step(&plain, &record_of, &first).unwrap();
    let guard = Guard { factor, clip: Clip::Global, first: 0, records: 0, scaler: None };
    let around = |applied| {
        let around = case.tensors.iter().map(|tensor| {
            let mut record = one(2 + applied, tensor);
            record.shaping = Shaping { factor, limit: 0.05, flags: Shaping::CENTRALIZE, ..record.shaping };
            (record.stages.ema, record.stages.max_norm) = (0.1, 2.0);
            (record.stages.units, record.stages.units_epsilon) = (if tensor.ema { 0.1 } else { 0.0 }, 1e-3);
            record
        });
        around.collect()
    };
    driven.guarded(&guard, around, &record_of, &second).unwrap();
    driven.snapshot().unwrap().hash()
}

on_every_backend! {
    /// Every rule in `f32`, and on the CPU in every format: that a GPU rounds to the others alike is `engine::parity`'s matter.
    fn of_every_rule(target) {
        if !target.is_exact() {
            println!("nothing to compare: {} contracts products and sums", target.name());
            return;
        }
        let all = target.name() == "cpu";
        let formats = Formats::all();
        let mut list = String::new();
        let mut same = RULES.len() == Rule::all().len();
        for (nth, rule) in Rule::all().iter().enumerate() {
            let (name, wide) = (rule.spec().name(), hash(target, rule, &[Formats::F32], 0.3));
            let (_, _, known) = RULES.get(nth).copied().unwrap_or_default();
            let every = if all { hash(target, rule, &formats, 0.3) } else { known };
            let grouped = |hash: u64| [48, 32, 16, 0].map(|shift| format!("{:04x}", hash >> shift & 0xffff)).join("_");
            list += &format!("    ({name:?}, 0x{}, 0x{}),\n", grouped(wide), grouped(every));
            same &= RULES.get(nth) == Some(&(name, wide, every));
        }
        assert!(same, "other numbers than ever; now they are\n{list}");
    }

    /// Control: a factor with another last bit is another number, for every rule.
    fn notice_another_factor(target) {
        for rule in Rule::all() {
            let [one, other] = [0.3, 0.3_f32.next_up()].map(|factor| hash(target, &rule, &[Formats::F32], factor));
            assert_ne!(one, other, "{rule:?}");
        }
    }
}
