//! State files: resumed runs, damaged files, killed saves.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use optim_tests::engine::{Formats, Numbers};
use optim_tests::resume::builder;
use optim_tests::{Naive, Random, Resumable, on_every_backend};
use optimizers::checkpoint::{self, Reader};
use optimizers::core::format::{Master, StateDType};
use optimizers::schedule::{AnySchedule, Constant};
use optimizers::{
    Adam, Backend, DType, Error, Grad, Hyper, Lion, LoadOptions, LoadReport, Momentum, Optimizer, ParamGroup,
    Parameter, Rate, Result, Rule, Schedule, StateSource,
};
use safetensors::SafeTensors;

use crate::allocations::bytes_in;

/// The files of tests: `v2.safetensors`, which will be read forever, and what the reader was once fed.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/checkpoint");

/// A bf16 run of Adam with split masters and 8-bit state: a bit of everything.
fn small() -> (Rule, Formats) {
    let formats = Formats { dtype: DType::Bf16, master: Master::Split, state: StateDType::Block8 };
    (Adam::default().into(), formats)
}

/// A file in memory.
fn file(optimizer: &mut Optimizer) -> Vec<u8> {
    let mut file = Vec::new();
    let len = checkpoint::write(&optimizer.state().unwrap(), &mut file).unwrap();
    assert_eq!(len, file.len() as u64, "the bytes written");
    file
}

fn load(optimizer: &mut Optimizer, file: &[u8], options: LoadOptions) -> Result<LoadReport> {
    optimizer.load_state(&mut Reader::new(Cursor::new(file), "a file")?, &options)
}

/// Lists of rates that would fill a file stay out of it, as closures do, and so do schedules that are nested too deep: the run goes on,
/// but its settings cannot be kept.
#[test]
fn long_rates_do_not_hinder_saving() {
    let short: Rate = vec![0.1; 100].into();
    let long: Rate = vec![0.1; 1_000_000].into();
    let deep = (0..40).fold(AnySchedule::from(Constant::new(0.1).unwrap()), |next, _| next.warmup(1).into());
    for (rate, is_kept) in [(short, true), (long, false), (deep.into(), false)] {
        let builder = || {
            let groups = ["a", "b", "c"].map(|name| ParamGroup::new([Parameter::new(name, [1])]).weight_decay(0.5));
            Adam::new(rate.clone()).groups(groups).build(Naive::default()).unwrap()
        };
        let mut optimizer = builder();
        let file = file(&mut optimizer);
        assert!(file.len() < 50_000, "{} bytes", file.len());
        let _ = load(&mut builder(), &file, LoadOptions::default()).unwrap();
        let kept = load(&mut builder(), &file, LoadOptions { hyper: Hyper::KeepSaved, ..LoadOptions::default() });
        match kept {
            Ok(report) => assert!(is_kept && report.kept == [0, 1, 2], "{report:?}"),
            Err(error) => assert!(!is_kept && error.to_string().contains("too long"), "{error}"),
        }
    }
}

/// A folder of a test's own, emptied.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

on_every_backend! {
    /// Twenty steps are ten, a file, and ten by an optimizer that knows nothing but the file.
    fn resumes_bit_for_bit(target) {
        let rules = Rule::all();
        let cases: Vec<_> = rules.iter().flat_map(|rule| Formats::all().into_iter().map(move |formats| (rule, formats))).collect();
        for (rule, formats) in cases.into_iter().step_by(stride(target)) {
            let mut straight = Resumable::new(target, rule, formats).unwrap();
            straight.run(10).unwrap();
            let mut second = straight.fresh(target).unwrap();
            let report = load(&mut second.optimizer, &file(&mut straight.optimizer), LoadOptions::default()).unwrap();
            assert_eq!(report.step, 9, "one of ten steps overflows");
            assert_eq!(second.everything().unwrap(), straight.everything().unwrap(), "{rule:?}, {formats:?}: loaded");
            straight.run(10).unwrap();
            second.run(10).unwrap();
            assert_eq!(second.everything().unwrap(), straight.everything().unwrap(), "{rule:?}, {formats:?}: resumed");
        }
    }

    /// Saving leaves no trace in the run, and what is saved matters: without it the run is another.
    fn saving_changes_nothing(target) {
        let (rule, formats) = small();
        let [mut saved, mut never] = [(), ()].map(|()| Resumable::new(target, &rule, formats).unwrap());
        saved.run(10).unwrap();
        never.run(10).unwrap();
        let first = file(&mut saved.optimizer);
        assert_eq!(first, file(&mut saved.optimizer), "the same bytes");
        let mut forgetful = saved.fresh(target).unwrap();
        for run in [&mut saved, &mut never, &mut forgetful] {
            run.run(10).unwrap();
        }
        let [saved, never, forgetful] = [saved, never, forgetful].map(|mut run| run.everything().unwrap());
        assert_eq!(saved, never, "with and without a save");
        assert_ne!(forgetful.params, never.params, "with and without a state");
    }
}

/// How sparsely cases are taken: each is a few pipelines on the GPU.
fn stride(target: optim_tests::Target) -> usize {
    match target {
        #[cfg(feature = "cpu")]
        optim_tests::Target::Cpu => 1,
        #[cfg(feature = "gpu")]
        optim_tests::Target::Gpu => 17,
    }
}

/// A reader that this project did not write finds the same names, shapes and bytes.
#[test]
fn others_can_read_it() {
    let (rule, formats) = small();
    let mut run = Resumable::new(Naive::default(), &rule, formats).unwrap();
    run.run(10).unwrap();
    let file = file(&mut run.optimizer);
    let (_, header) = SafeTensors::read_metadata(&file).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!((&*metadata["format"], &*metadata["version"], &*metadata["step"]), ("optimizers", "2", "9"));
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let state = run.optimizer.state().unwrap();
    assert_eq!(tensors.len(), state.arrays().len());
    for (index, array) in state.arrays().iter().enumerate() {
        let view = tensors.tensor(&array.name).unwrap();
        assert_eq!(view.shape(), array.shape, "{}", array.name);
        assert_eq!(format!("{}", view.dtype()).to_lowercase(), array.element.to_string());
        let mut bytes = vec![0; array.bytes().unwrap()];
        state.read(index, 0, &mut bytes).unwrap();
        assert_eq!(view.data(), bytes, "{}", array.name);
    }
}

/// The run behind `v2.safetensors`.
fn golden() -> Resumable {
    let (rule, formats) = small();
    let mut run = Resumable::new(Naive::default(), &rule, formats).unwrap();
    run.run(10).unwrap();
    run
}

/// The first file of version 2 is still read, with every number in its place.
#[test]
fn version_2_is_read_forever() {
    let path = format!("{GOLDEN}/v2.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut run = golden().fresh(Naive::default()).unwrap();
    let report = checkpoint::load(&mut run.optimizer, &path, &LoadOptions::default()).unwrap();
    assert_eq!((report.step, run.optimizer.step_count()), (9, 9));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let state = run.optimizer.state().unwrap();
    for (index, array) in state.arrays().iter().enumerate() {
        let mut bytes = vec![0; array.bytes().unwrap()];
        state.read(index, 0, &mut bytes).unwrap();
        assert_eq!(tensors.tensor(&array.name).unwrap().data(), bytes, "{}", array.name);
    }
    let meta = state.meta();
    let guard = meta.guard.unwrap();
    assert_eq!((guard.scale.to_bits(), guard.current, guard.last), (128.0_f64.to_bits(), 11, 5));
    assert_eq!(meta.groups[0].beta_powers.map(f32::from_bits), [0.387_420_42, 0.991_036_06]);
    assert_eq!(meta.groups[1].plateau.unwrap().lr.to_bits(), 0.005_f64.to_bits());
    let updated: Vec<bool> = meta.parameters.iter().map(|parameter| parameter.updated).collect();
    assert_eq!(updated, [true, true, false, true, true]);
    let keep = LoadOptions { hyper: Hyper::KeepSaved, ..LoadOptions::default() };
    assert_eq!(checkpoint::load(&mut run.optimizer, &path, &keep).unwrap().kept, [0, 1]);
}

/// Makes `v2.safetensors` and the valid files of the corpus. The former must never change: only where it is missing.
#[test]
#[ignore = "writes into the repository"]
fn write_golden() {
    fs::create_dir_all(format!("{GOLDEN}/corpus")).unwrap();
    let v2 = format!("{GOLDEN}/v2.safetensors");
    if !Path::new(&v2).exists() {
        checkpoint::save(&mut golden().optimizer, &v2).unwrap();
    }
    let w = [Parameter::new("w", [3])];
    let f32 = Formats::F32;
    let split = Formats { dtype: DType::Bf16, master: Master::Split, state: StateDType::Bf16 };
    for (name, rule, formats) in
        [("lion", Rule::from(Lion::default()), f32), ("momentum", Momentum::new(0.1, 0.9).into(), split)]
    {
        let mut run = Resumable::new(Naive::default(), &rule, formats).unwrap();
        run.run(10).unwrap();
        fs::write(format!("{GOLDEN}/corpus/{name}.safetensors"), file(&mut run.optimizer)).unwrap();
    }
    let mut plain = Adam::default().params(&w).build(Naive::default()).unwrap();
    fs::write(format!("{GOLDEN}/corpus/plain.safetensors"), file(&mut plain)).unwrap();
}

/// Errors of the operating system name the file, and leave the old one.
#[test]
fn files_that_cannot_be() {
    let folder = folder("files");
    let mut optimizer = Adam::default().params([Parameter::new("w", [3])]).build(Naive::default()).unwrap();
    let missing = folder.join("missing").join("run.safetensors");
    for error in [
        checkpoint::save(&mut optimizer, &missing).unwrap_err(),
        checkpoint::load(&mut optimizer, &missing, &LoadOptions::default()).unwrap_err(),
    ] {
        // The temporary file beside it is a detail.
        assert!(matches!(&error, Error::File { path, .. } if *path == missing.display().to_string()), "{error}");
    }
    let error = checkpoint::save(&mut optimizer, "/").unwrap_err();
    assert!(error.to_string().contains("it names no file"), "{error}");
    let path = folder.join("run.safetensors");
    let len = checkpoint::save(&mut optimizer, &path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), len);
    checkpoint::save(&mut optimizer, &path).unwrap();
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["run.safetensors"], "nothing is left beside it");
    // A folder is in the way: what was written beside it is removed again.
    let taken = folder.join("taken");
    fs::create_dir_all(taken.join("inside")).unwrap();
    let error = checkpoint::save(&mut optimizer, &taken).unwrap_err();
    assert!(matches!(&error, Error::File { detail, .. } if detail.starts_with("replacing")), "{error}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    let error = Reader::open(&folder).unwrap_err();
    assert!(matches!(error, Error::File { .. } | Error::StateFile { .. }), "{error}");
}

/// A small file with this header, and so many bytes of data.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let len = header.len() as u64;
    [&len.to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

/// The header of a file.
fn header(file: &[u8]) -> &str {
    let len = u64::from_le_bytes(file[..8].try_into().unwrap());
    std::str::from_utf8(&file[8..][..usize::try_from(len).unwrap()]).unwrap()
}

/// A file that is refused before anything is changed or much memory taken; the error's text.
#[track_caller]
fn refused(optimizer: &mut Optimizer, bytes: &[u8]) -> String {
    let (result, taken) = bytes_in(|| load(optimizer, bytes, LoadOptions::default()));
    assert!(taken < 64 * bytes.len() + 64 * 1024, "{taken} bytes for a file of {}", bytes.len());
    let error = result.expect_err("it was loaded");
    assert!(matches!(error, Error::StateFile { .. } | Error::StateMismatch { .. }), "{error}");
    error.to_string()
}

/// Cut anywhere, a file is refused.
#[test]
fn truncated_files_are_refused() {
    let mut optimizer = Adam::default().params([Parameter::new("w", [3])]).build(Naive::default()).unwrap();
    let file = file(&mut optimizer);
    for len in 0..file.len() {
        refused(&mut optimizer, &file[..len]);
    }
    refused(&mut optimizer, &[&file[..], &[0]].concat());
    assert_eq!(load(&mut optimizer, &file, LoadOptions::default()).unwrap().step, 0, "the control: whole");
}

/// Headers that lie.
#[test]
fn hostile_headers_are_refused() {
    let mut optimizer = Adam::default().params([Parameter::new("w", [3])]).build(Naive::default()).unwrap();
    let whole = file(&mut optimizer);
    let good = header(&whole).to_owned();
    let data = whole.len() - 8 - good.len();
    let m1 = r#""state.w.moment1":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}"#;
    assert!(good.contains(m1), "{good}");
    for (from, to, expected) in [
        (m1, r#""state.w.moment1":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}"#, "expected to begin at 16"),
        (m1, r#""state.w.moment1":{"dtype":"F32","shape":[3],"data_offsets":[12,24]}"#, "expected to begin at 0"),
        (m1, r#""state.w.moment1":{"dtype":"F32","shape":[3],"data_offsets":[12,0]}"#, "expected to begin at 0"),
        (m1, r#""state.w.moment1":{"dtype":"F32","shape":[4],"data_offsets":[0,12]}"#, "has 12 bytes"),
        (m1, r#""state.w.moment1":{"dtype":"U8","shape":[3],"data_offsets":[0,12]}"#, "has 12 bytes"),
        (
            m1,
            r#""state.w.moment1":{"dtype":"F32","shape":[3,18446744073709551615],"data_offsets":[0,12]}"#,
            "has 12 bytes",
        ),
        (
            m1,
            r#""state.w.moment1":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,12]}"#,
            "has 12 bytes",
        ),
        (
            m1,
            r#""state.w.moment1":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,12]}"#,
            "has 12 bytes",
        ),
        (m1, r#""state.w.moment1":{"dtype":"F32","shape":[3.0],"data_offsets":[0,12]}"#, "invalid type"),
        (m1, r#""state.w.moment1":{"dtype":"F32","shape":[-3],"data_offsets":[0,12]}"#, "invalid value"),
        (
            m1,
            r#""state.w.moment1":{"dtype":"F32","shape":[3],"data_offsets":[0,9223372036854775808]}"#,
            "expected to begin at",
        ),
        (m1, r#""state.w.moment1":{"dtype":"F64","shape":[3],"data_offsets":[0,12]}"#, "unknown type"),
        (m1, r#""state.w.moment1":{"dtype":"F32","dtype":"F32","shape":[3],"data_offsets":[0,12]}"#, "duplicate field"),
        (m1, r#""state.w.moment1":{"dtype":"F32","shape":[3],"data_offsets":[0,12],"more":1}"#, "unknown field"),
        (m1, r#""state.w.moment2":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}"#, "stands twice"),
        (m1, &format!("{m1},{m1}"), "expected to begin at 12"),
        (r#""step":"0""#, r#""step":"0","step":"0""#, "stands twice"),
        (r#""step":"0""#, r#""step":"-1""#, "\"step\""),
        (r#""step":"0""#, r#""step":"18446744073709551615""#, "step count"),
        (r#""step":"0""#, r#""step":0"#, "invalid type"),
        (r#""version":"2""#, r#""version":"1""#, "version 1"),
        (r#""version":"2""#, r#""version":"3""#, "version 3"),
        (r#""version":"2""#, r#""verse":"2""#, "no \"version\""),
        (r#""format":"optimizers""#, r#""format":"pt""#, "its format is \"pt\""),
        ("__metadata__", "__meta__", "unknown field `format`"),
        (r#"\"beta1\":0.9"#, r#"\"beta1\":NaN"#, "\"groups\""),
        (r#"\"beta1\":0.9"#, r#"\"beta1\":null"#, "\"groups\""),
        (r#"\"beta1\":0.9"#, r#"\"beta1\":1e999"#, "\"groups\""),
        (r#"\"beta1\":0.9"#, r#"\"beta1\":1.5"#, "adam.beta1"),
        (r#"\"plain\":1.0"#, r#"\"plain\":1.0,\"plain\":1.0"#, "\"loss_scale\""),
        (r#"\"shape\":[3]"#, r#"\"shape\":[9223372036854775808,2]"#, "shape [9223372036854775808, 2] in the state"),
        (r#"\"group\":0"#, r#"\"group\":1"#, "in group 1 of 1"),
    ] {
        assert!(good.contains(from), "{from} is not in {good}");
        let bad = with_header(&good.replacen(from, to, 1), data);
        let error = refused(&mut optimizer, &bad);
        assert!(error.contains(expected), "{to}: {error}");
    }
    let axes = format!("\"shape\":[{}3]", "1,".repeat(100_000));
    let many = with_header(&good.replacen("\"shape\":[3]", &axes, 1), data);
    assert!(refused(&mut optimizer, &many).contains("more than 64 axes"), "a shape as long as the file");
    let deep = with_header(&format!("{{\"a\":{}", "[".repeat(100_000)), 0);
    assert!(refused(&mut optimizer, &deep).contains("the header"), "depth");
    for (text, expected) in
        [("", "not a JSON object"), ("[]", "not a JSON object"), (" {}", "not a JSON object"), ("{}", "no \"format\"")]
    {
        assert!(refused(&mut optimizer, &with_header(text, 0)).contains(expected), "{text:?}");
    }
    for len in [u64::MAX, 1 << 63, 100_000_001, whole.len() as u64 - 7] {
        let mut bad = whole.clone();
        bad[..8].copy_from_slice(&len.to_le_bytes());
        assert!(refused(&mut optimizer, &bad).contains("its header should have"), "{len}");
    }
    assert_eq!(load(&mut optimizer, &with_header(&good, data), LoadOptions::default()).unwrap().step, 0, "the control");
}

/// Seconds of fuzzing: a few by default.
fn fuzz_time() -> Duration {
    Duration::from_secs(number("OPTIM_TEST_FUZZ_SECONDS", 2))
}

/// A number from the environment.
fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}")))
}

/// Files that were changed at random are read or refused; what is read can be trained on. Nothing panics, and no memory is taken for
/// what is not there.
#[test]
fn mutated_files_do_no_harm() {
    let mut corpus: Vec<Vec<u8>> = fs::read_dir(format!("{GOLDEN}/corpus"))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(corpus.len() >= 3, "a corpus");
    corpus.sort();
    let mut random = Random::new(number("OPTIM_TEST_FUZZ_SEED", 1));
    let (end, mut loaded, mut tried) = (Instant::now() + fuzz_time(), 0, 0);
    for file in &corpus {
        try_file(file);
    }
    while Instant::now() < end {
        let mut file = corpus[below(&mut random, corpus.len())].clone();
        for _ in 0..=below(&mut random, 4) {
            let other = &corpus[below(&mut random, corpus.len())];
            mutate(&mut file, other, &mut random);
        }
        tried += 1;
        match std::panic::catch_unwind(|| try_file(&file)) {
            Ok(is_loaded) => loaded += usize::from(is_loaded),
            Err(panic) => {
                let path = folder("fuzz").join("harmful.safetensors");
                fs::write(&path, &file).unwrap();
                println!("{} does harm: add it to the corpus", path.display());
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{tried} files, {loaded} loaded");
    assert!(tried > 100 && loaded > 0, "{tried} files, {loaded} loaded");
}

fn below(random: &mut Random, n: usize) -> usize {
    usize::try_from(random.below(n.max(1) as u64)).unwrap()
}

/// What stands in place of something else.
const TOKENS: [&str; 16] = [
    "0",
    "1",
    "-1",
    "4",
    "null",
    "true",
    "[]",
    "{}",
    "1e999",
    "NaN",
    "18446744073709551615",
    "9223372036854775808",
    "\\\"inf\\\"",
    "\\\"",
    "2147483648",
    "0.5",
];

fn mutate(file: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let header = 8..file.get(..8).map_or(8, |len| {
        let len = u64::from_le_bytes(len.try_into().unwrap());
        usize::try_from(len).unwrap_or(usize::MAX).saturating_add(8).min(file.len())
    });
    // Mostly in the header.
    let at = if !header.is_empty() && random.below(8) > 0 {
        header.start + below(random, header.len())
    } else {
        below(random, file.len())
    };
    let before = file.len();
    match random.below(7) {
        0 if !file.is_empty() => file[at] ^= 1 << random.below(8),
        1 => file.truncate(at),
        2 => {
            let from = below(random, other.len());
            let piece = &other[from..(from + below(random, 64)).min(other.len())];
            file.splice(at.min(file.len())..at.min(file.len()), piece.iter().copied());
        }
        3 => {
            let end = (at + below(random, 64)).min(file.len());
            file.drain(at.min(end)..end);
        }
        // A number or a word becomes another.
        4 | 5 => {
            let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'.' || *byte == b'-';
            let start = (at..file.len()).find(|&at| word(&file[at])).unwrap_or(file.len());
            let end = (start..file.len()).find(|&at| !word(&file[at])).unwrap_or(file.len());
            let token = TOKENS[below(random, TOKENS.len())].bytes();
            file.splice(start..end, token);
        }
        _ => {
            if let Some(len) = file.get_mut(..8) {
                len.copy_from_slice(
                    &random.bits().wrapping_shr(u32::try_from(random.below(64)).unwrap()).to_le_bytes(),
                );
            }
        }
    }
    // Half of those that are longer or shorter now say so.
    if file.len() != before && file.len() >= 8 && random.below(4) > 0 {
        let len = u64::from_le_bytes(file[..8].try_into().unwrap());
        let grown = len.wrapping_add(file.len() as u64).wrapping_sub(before as u64);
        file[..8].copy_from_slice(&grown.to_le_bytes());
    }
}

/// Loads a file that may be anything, in every way; whether it can be loaded strictly in any.
fn try_file(file: &[u8]) -> bool {
    let (reader, taken) = bytes_in(|| Reader::new(Cursor::new(file), "a file"));
    assert!(taken < 64 * file.len() + 64 * 1024, "{taken} bytes for a file of {}", file.len());
    let Ok(mut reader) = reader else { return false };
    let rule = match reader.meta().groups.first().map(|group| &*group.rule) {
        Some("lion") => Rule::from(Lion::default()),
        Some("momentum") => Momentum::new(0.1, 0.9).into(),
        _ => Adam::default().into(),
    };
    let formats = Formats { dtype: DType::Bf16, master: Master::Split, state: StateDType::Bf16 };
    let formats = if matches!(rule, Rule::Momentum(_)) { formats } else { Formats::F32 };
    let mut loaded = false;
    for hyper in [Hyper::UseNew, Hyper::KeepSaved] {
        for lenient in [false, true] {
            let options = LoadOptions { allow_missing: lenient, ignore_unexpected: lenient, hyper, convert: lenient };
            let mut optimizer = if matches!(rule, Rule::Adam(_)) {
                Adam::default().params([Parameter::new("w", [3])]).build(Naive::default()).unwrap()
            } else {
                builder(&rule, formats).unwrap().build(Naive::default()).unwrap()
            };
            if optimizer.load_state(&mut reader, &options).is_err() {
                continue;
            }
            loaded |= !lenient;
            let parameters = optimizer.parameters().to_vec();
            let numbers = |p: &Parameter| Numbers::new(p.dtype(), &vec![0.5; p.len()]);
            let (mut params, grads): (Vec<_>, Vec<_>) = parameters.iter().map(|p| (numbers(p), numbers(p))).unzip();
            for _ in 0..2 {
                let mut params: Vec<_> = params.iter_mut().map(Numbers::param).collect();
                let grads: Vec<Grad<'_>> = grads.iter().map(Into::into).collect();
                // A rate may be exhausted, a schedule may give no number: errors, not panics.
                let _ = optimizer.step(&mut params, &grads);
            }
            if let Ok(state) = optimizer.state() {
                assert!(checkpoint::write(&state, &mut Vec::new()).is_ok(), "what was read can be written");
            }
        }
    }
    loaded
}

/// What a run of this test binary as another process is told by.
const CHILD: &str = "OPTIM_TEST_CHECKPOINT_CHILD";

/// This test binary again, to run one test that is ignored otherwise.
fn child(test: &str, path: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env(CHILD, path);
    command
}

fn given_path() -> PathBuf {
    env::var_os(CHILD).expect("run by another test").into()
}

/// The fastest backend that needs no GPU.
fn host() -> Backend {
    if cfg!(feature = "cpu") { Backend::Cpu } else { Backend::Custom(Box::new(Naive::default())) }
}

/// A few runs, at step 10.
fn runs() -> Vec<Resumable> {
    let stochastic = Formats { dtype: DType::Bf16, master: Master::Stochastic, state: StateDType::Bf16 };
    let cases = [small(), (Lion::default().into(), Formats::F32), (Adam::default().into(), stochastic)];
    let run = |(rule, formats): &(Rule, Formats)| {
        let mut run = Resumable::new(host(), rule, *formats).unwrap();
        run.run(10).unwrap();
        run
    };
    cases.iter().map(run).collect()
}

/// Resumed in a process of its own, a run goes on bit for bit.
#[test]
fn resumes_in_a_fresh_process() {
    let folder = folder("process");
    let mut expected = Vec::new();
    for (nth, mut run) in runs().into_iter().enumerate() {
        checkpoint::save(&mut run.optimizer, folder.join(nth.to_string())).unwrap();
        let bytes: Vec<u8> = run.params.iter().flat_map(Numbers::bytes).collect();
        fs::write(folder.join(nth.to_string()).with_extension("params"), bytes).unwrap();
        run.run(10).unwrap();
        expected.push(format!("{:?}", run.everything().unwrap()));
    }
    let output = child("checkpoint::resumed_child", &folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    for expected in expected {
        assert!(text.contains(&expected), "{text}\n{expected}");
    }
}

#[test]
#[ignore = "run by resumes_in_a_fresh_process"]
fn resumed_child() {
    let folder = given_path();
    for (nth, run) in runs().into_iter().enumerate() {
        let mut fresh = run.fresh(host()).unwrap();
        let path = folder.join(nth.to_string());
        let bytes = fs::read(path.with_extension("params")).unwrap();
        let mut bytes = bytes.into_iter();
        let mut word =
            |len| bytes.by_ref().take(len).fold((0, 0), |(at, word), byte| (at + 8, word | u32::from(byte) << at)).1;
        for params in &mut fresh.params {
            match params {
                Numbers::F32(values) => values.iter_mut().for_each(|value| *value = f32::from_bits(word(4))),
                Numbers::F16(_) => panic!("no run has f16"),
                Numbers::Bf16(values) => values.iter_mut().for_each(|value| {
                    *value = half::bf16::from_bits(u16::try_from(word(2)).unwrap());
                }),
            }
        }
        let report = checkpoint::load(&mut fresh.optimizer, &path, &LoadOptions::default()).unwrap();
        assert_eq!(report.step, 9);
        fresh.run(10).unwrap();
        println!("{:?}", fresh.everything().unwrap());
    }
}

/// An optimizer whose state tells at which step it is, in every element.
/// A process of the same number was killed while it saved: its file is left alone.
#[test]
fn what_a_killed_save_left_is_passed_over() {
    let folder = folder("left-behind");
    let path = folder.join("run.safetensors");
    let left: Vec<PathBuf> =
        (0..1000).map(|n| folder.join(format!(".run.safetensors.{}.{n}.tmp", std::process::id()))).collect();
    left.iter().for_each(|path| fs::write(path, "half").unwrap());
    let mut optimizer = counting();
    assert_eq!(checkpoint::save(&mut optimizer, &path).unwrap(), fs::metadata(&path).unwrap().len());
    assert!(left.iter().all(|path| fs::read(path).unwrap() == b"half"), "a file of another process was touched");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), left.len() + 1, "nothing else is left");
}

/// What others may not read stays so.
#[cfg(unix)]
#[test]
fn permissions_are_kept() {
    use std::os::unix::fs::PermissionsExt;
    let path = folder("permissions").join("run.safetensors");
    let mut optimizer = counting();
    for mode in [0o600, 0o640] {
        checkpoint::save(&mut optimizer, &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        checkpoint::save(&mut optimizer, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
    }
}

/// Nor may they read it while it is written.
#[cfg(unix)]
#[test]
fn permissions_are_kept_from_the_first_byte_on() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder("permissions_from_the_first_byte_on");
    let path = folder.join("run.safetensors");
    let parameters = [Parameter::new("w", [2_000_000])];
    let mut optimizer = Adam::default().params(parameters).build(host()).unwrap();
    checkpoint::save(&mut optimizer, &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let (done, begun) = (AtomicBool::new(false), AtomicBool::new(false));
    let modes = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut modes = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let files = fs::read_dir(&folder).unwrap().filter_map(|entry| entry.ok()?.metadata().ok());
                let filled = files.filter(|file| file.len() > 0);
                modes.extend(filled.map(|file| format!("{:o}", file.permissions().mode() & 0o777)));
                begun.store(true, Ordering::Relaxed);
            }
            modes
        });
        while !begun.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let saved = checkpoint::save(&mut optimizer, &path);
        done.store(true, Ordering::Relaxed);
        saved.unwrap();
        watch.join().unwrap()
    });
    assert!(modes.len() > 1 && modes.iter().all(|mode| mode == "600"), "{modes:?}");
}

fn counting() -> Optimizer {
    Momentum::new(0.0, 1.0 - 1.0 / 1024.0).params([Parameter::new("w", [100_000])]).build(host()).unwrap()
}

fn count(optimizer: &mut Optimizer) {
    let (mut p, g) = (vec![0.0_f32; 100_000], vec![1.0_f32; 100_000]);
    assert!(optimizer.step(&mut [(&mut p).into()], &[(&g).into()]).unwrap().applied(), "applied");
}

/// Killed at any moment, a save leaves a file that loads: the old one or the new one.
#[test]
fn killed_saves_leave_a_whole_file() {
    let path = folder("killed").join("run.safetensors");
    checkpoint::save(&mut counting(), &path).unwrap();
    // What the momentum is after each step.
    let mut expected = vec![0.0_f32];
    let mut random = Random::new(number("OPTIM_TEST_FUZZ_SEED", 1));
    let kills = number("OPTIM_TEST_KILLS", 25);
    let (mut last, mut torn) = (0, 0);
    for _ in 0..kills {
        let mut process = child("checkpoint::saving_child", &path).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = std::io::BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("saving") {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut ready, &mut line).unwrap() > 0, "it saves");
        }
        thread::sleep(Duration::from_micros(random.below(40_000)));
        process.kill().unwrap();
        process.wait().unwrap();
        let mut optimizer = counting();
        let report = checkpoint::load(&mut optimizer, &path, &LoadOptions::default()).unwrap();
        assert!(report.step >= last, "step {} after {last}", report.step);
        last = report.step;
        let slot = optimizer.slot("w", "moments").unwrap();
        while expected.len() <= usize::try_from(last).unwrap() {
            expected.push(expected[expected.len() - 1] * (1.0 - 1.0 / 1024.0) + 1.0);
        }
        let value = expected[usize::try_from(last).unwrap()];
        assert!(slot.iter().all(|x| x.to_bits() == value.to_bits()), "step {last}: {value}, {:?}", &slot[..4]);
        // Files beside it: a save that was killed.
        for entry in fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()) {
            if entry != path {
                torn += 1;
                fs::remove_file(entry).unwrap();
            }
        }
    }
    println!("{kills} kills, {torn} in the middle of a save, {last} steps");
    assert!(last > 0 && torn > 0, "{kills} kills, {torn} in the middle of a save, {last} steps");
}

#[test]
#[ignore = "run by killed_saves_leave_a_whole_file"]
fn saving_child() {
    let path = given_path();
    let mut optimizer = counting();
    let report = checkpoint::load(&mut optimizer, &path, &LoadOptions::default()).unwrap();
    assert_eq!(report.step, optimizer.step_count());
    println!("saving");
    loop {
        count(&mut optimizer);
        // Most of the time goes into saves, so most kills hit one.
        for _ in 0..8 {
            checkpoint::save(&mut optimizer, &path).unwrap();
        }
    }
}
