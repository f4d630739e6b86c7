//! Every kernel, without a driver: naga validates it and writes it in every language that drivers take, and what Rust and
//! WGSL both say is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, TypeInner};
use optim_shaders::{
    ACCUMULATE, Access, BLOCK, FACTORED_WALKS, FORMATS, Format, GRID_WIDTH, LANES, LARS, MAX_SLOTS, Master, Moments,
    NO_GRAD, Norms, PRELUDE, REDUCE, RULES, SLICE, SlotFormat, Storage, TILE, WORKGROUP, Work, compose, compose_decide,
    compose_factored, compose_finish, compose_gather, compose_guard_measure, compose_guard_totals, compose_measure,
    compose_rows, compose_units, compose_work, rule,
};
use optimizers::Rule;
use optimizers::core::backend::{Shaping, Stages, Trust};
use optimizers::core::guard::{Clip, Control, INFINITE, Skip};
use optimizers::core::rule::Passes;

/// The module, if it is valid without any optional capability.
fn validated(what: &str, source: &str) -> (Module, ModuleInfo) {
    let module =
        naga::front::wgsl::parse_str(source).unwrap_or_else(|error| panic!("{what}: {}", error.emit_to_string(source)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{what}: {}", error.emit_to_string(source)));
    (module, info)
}

/// The names and offsets of a struct's 32-bit members, and the size of the struct.
fn layout(module: &Module, name: &str) -> (Vec<(String, usize)>, usize) {
    let found = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name));
    let Some((_, naga::Type { inner: TypeInner::Struct { members, span }, .. })) = found else {
        panic!("no struct {name}");
    };
    let members = members.iter().map(|member| {
        let TypeInner::Scalar(scalar) = module.types[member.ty].inner else { panic!("{member:?} is not a scalar") };
        assert_eq!(scalar.width, 4, "{member:?}");
        (member.name.clone().expect("struct members have names"), member.offset as usize)
    });
    (members.collect(), *span as usize)
}

/// In what a WGSL struct differs from Rust's: fields of four bytes each, in order, padded to 16 bytes.
fn differences(source: &str, name: &str, fields: &[&str]) -> Vec<String> {
    let (module, _) = validated(name, source);
    let (members, size) = layout(&module, name);
    let expected: Vec<_> = fields.iter().enumerate().map(|(index, field)| ((*field).to_owned(), 4 * index)).collect();
    let mut differences = Vec::new();
    for index in 0..members.len().max(expected.len()) {
        let (wgsl, rust) = (members.get(index), expected.get(index));
        if wgsl != rust {
            differences.push(format!("{name} field {index}: {wgsl:?} in WGSL, {rust:?} in Rust"));
        }
    }
    if size != (4 * fields.len()).next_multiple_of(16) {
        differences.push(format!("{name} has {size} bytes in WGSL"));
    }
    differences
}

#[test]
fn every_fragment_is_valid_alone() {
    validated("prelude", PRELUDE);
    validated("reduce", REDUCE);
    validated("formats", FORMATS);
    validated("lars", &format!("{PRELUDE}\n{LARS}"));
    validated("accumulate", ACCUMULATE);
    for (name, source) in RULES {
        validated(name, source);
    }
}

/// Every way in which a parameter with so many slots can be kept, but for combinations of different slots; the first is `f32`
/// throughout.
fn storages(slots: usize) -> Vec<Storage> {
    let mut storages = Vec::new();
    for slot in [SlotFormat::F32, SlotFormat::Bf16, SlotFormat::Signed8, SlotFormat::Positive8] {
        for (param, master) in [
            (Format::F32, Master::None),
            (Format::F16, Master::F32),
            (Format::F16, Master::Stochastic),
            (Format::Bf16, Master::None),
            (Format::Bf16, Master::Split),
        ] {
            for ema in [false, true] {
                storages.push(Storage { param, master, slots: vec![slot; slots], ema });
            }
        }
    }
    storages
}

/// Whether floats are compared by `!=`, which naga writes for SPIR-V as `OpFOrdNotEqual`: false for NaN, unlike in WGSL, Rust and all
/// other languages.
fn has_float_not_equal(module: &Module, info: &ModuleInfo) -> bool {
    let functions = module.functions.iter().map(|(handle, function)| (function, &info[handle]));
    let entries =
        module.entry_points.iter().enumerate().map(|(nth, entry)| (&entry.function, info.get_entry_point(nth)));
    functions.chain(entries).any(|(function, info)| {
        function.expressions.iter().any(|(_, expression)| match *expression {
            naga::Expression::Binary { op: naga::BinaryOperator::NotEqual, left, .. } => {
                info[left].ty.inner_with(&module.types).scalar_kind() == Some(naga::ScalarKind::Float)
            }
            _ => false,
        })
    })
}

/// Validates a kernel of so many lanes and writes it in every language that drivers take.
fn written(what: &str, source: &str, lanes: u32) {
    let (module, info) = validated(what, source);
    assert_eq!(module.entry_points.len(), 1, "{what}");
    assert_eq!(module.entry_points[0].workgroup_size, [lanes, 1, 1], "{what}");
    written_as(what, &module, &info, &["main"]);
}

/// Writes a module with these entry points in every language that drivers take.
fn written_as(what: &str, module: &Module, info: &ModuleInfo, entry_points: &[&str]) {
    // What WebGPU promises of any device.
    let is_storage = |space: AddressSpace| matches!(space, AddressSpace::Storage { .. });
    let buffers = module.global_variables.iter().filter(|(_, variable)| is_storage(variable.space)).count();
    assert!(buffers <= 8, "{what} binds {buffers} buffers");
    assert!(!has_float_not_equal(module, info), "{what}: `!=` of floats");

    for entry_point in entry_points {
        let entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: (*entry_point).into() };
        spv::write_vec(module, info, &spv::Options::default(), Some(&entry))
            .unwrap_or_else(|error| panic!("{what}, {entry_point}, SPIR-V: {error}"));
    }

    msl::write_string(module, info, &msl::Options::default(), &msl::PipelineOptions::default())
        .unwrap_or_else(|error| panic!("{what}, MSL: {error}"));

    let (options, pipeline, mut text) = (hlsl::Options::default(), hlsl::PipelineOptions::default(), String::new());
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .unwrap_or_else(|error| panic!("{what}, HLSL: {error}"));
}

#[test]
fn every_kernel_is_valid_and_can_be_written_for_every_driver() {
    let mut sums = 0;
    for rule_under_test in Rule::all() {
        let spec = rule_under_test.spec();
        let source = rule(spec.source()).unwrap_or_else(|| panic!("no WGSL for {}", spec.name()));
        let slots = spec.slots().len();
        if spec.passes() == Passes::Factored {
            for moments in Moments::ALL {
                let what = format!("{} {} {moments:?}", spec.name(), spec.entry());
                let (module, info) = validated(&what, &compose_factored(source, moments));
                written_as(&what, &module, &info, &FACTORED_WALKS);
            }
            continue;
        }
        let norms = match spec.passes() {
            _ if spec.has_trust() => Some(Norms::Trust),
            Passes::Norms => Some(Norms::Rule(source)),
            _ => None,
        };
        for (nth, access) in Access::ALL.into_iter().enumerate() {
            // All of a rule's kernels in f32; of the others, which differ around the rule alone, some.
            let others = storages(slots).into_iter().skip(1).skip((slots + nth) % 7).step_by(7);
            for storage in [Storage::plain(slots)].into_iter().chain(others) {
                let what = format!("{} {} {access:?} {storage:?}", spec.name(), spec.entry());
                let grad = Format::ALL[if storage == Storage::plain(slots) { 0 } else { nth + 1 }];
                let by_rows = nth == 1 && storage == Storage::plain(slots);
                written(&what, &compose(source, spec.entry(), &storage, grad, access, by_rows), WORKGROUP);
                for (norms, by_rows) in norms.iter().flat_map(|norms| [(norms, false), (norms, true)]) {
                    let text = compose_measure(norms, &storage, grad, access, by_rows);
                    written(&format!("{what}, measure, {by_rows}"), &text, LANES);
                }
            }
        }
        if let Some(norms) = &norms {
            written(&format!("{}, finish", spec.name()), &compose_finish(norms), LANES);
            sums += 1;
        }
    }
    assert!(sums >= 2, "LAMB and LARS sum");
    for values in Format::ALL {
        written("rows", &compose_rows(values), WORKGROUP);
        for access in Access::ALL {
            written("what a guard measures", &compose_guard_measure(values, access), LANES);
        }
    }
    for back in [false, true] {
        // As many as with the limits of WebGPU.
        written("a gather", &compose_gather(6, back), WORKGROUP);
    }
    written("a guard's totals", &compose_guard_totals(), LANES);
    written("a guard's decision", &compose_decide(), LANES);
}

#[test]
fn the_guard_has_the_fields_of_its_rust_twin() {
    let text = compose_decide();
    let control = ["scale", "current", "last", "bad", "applied", "skipped", "pad0", "pad1"];
    assert_eq!(differences(&text, "Control", &control), [""; 0]);
    let offsets = [
        offset_of!(Control, scale),
        offset_of!(Control, current),
        offset_of!(Control, last),
        offset_of!(Control, bad),
        offset_of!(Control, applied),
        offset_of!(Control, skipped),
        offset_of!(Control, pad),
    ];
    assert_eq!((offsets, size_of::<Control>()), ([0, 4, 8, 12, 16, 20, 24], 32));
}

#[test]
fn every_format_composes() {
    let source = rule("lion").expect("there is lion");
    for storage in storages(1) {
        for access in Access::ALL {
            for grad in Format::ALL {
                let what = format!("{access:?} {storage:?}, {grad:?}");
                for by_rows in [false, true] {
                    written(&what, &compose(source, "update", &storage, grad, access, by_rows), WORKGROUP);
                }
                written(&what, &compose_units(&storage, grad), LANES);
            }
            for work in Work::ALL {
                let grad = match work {
                    Work::SwapIn | Work::SwapOut => storage.param,
                    _ => Format::F32,
                };
                written(
                    &format!("{access:?} {storage:?}, {work:?}"),
                    &compose_work(work, &storage, grad, access),
                    WORKGROUP,
                );
            }
        }
    }
}

#[test]
fn every_number_of_slots_composes() {
    for slots in 0..=MAX_SLOTS {
        let pointers: String = (0..slots).map(|slot| format!(", s{slot}: ptr<function, f32>")).collect();
        let source = format!(
            "struct Step {{ lr: f32, pad0: f32, pad1: f32, pad2: f32 }}
            fn update(s: Step, p: ptr<function, f32>, g: f32{pointers}) {{ *p = *p - s.lr * g; }}"
        );
        for access in Access::ALL {
            let text = compose(&source, "update", &Storage::plain(slots), Format::F32, access, false);
            let (module, _) = validated("own rule", &text);
            let bindings: BTreeSet<_> = module
                .global_variables
                .iter()
                .filter_map(|(_, variable)| variable.binding)
                .map(|b| b.binding)
                .collect();
            assert_eq!(bindings, (0..6).collect(), "{slots} slots");
        }
    }
}

#[test]
fn steps_have_the_fields_of_their_rust_twins() {
    for rule_under_test in Rule::all() {
        let spec = rule_under_test.spec();
        let source = rule(spec.source()).expect("every rule has WGSL");
        assert_eq!(differences(source, "Step", spec.scalar_names()), [""; 0], "{}", spec.name());
    }
}

#[test]
fn shaping_has_the_fields_of_its_rust_twin() {
    assert_eq!(differences(PRELUDE, "Shaping", &["factor", "weight_decay", "limit", "flags"]), [""; 0]);
    let offsets = [
        offset_of!(Shaping, factor),
        offset_of!(Shaping, weight_decay),
        offset_of!(Shaping, limit),
        offset_of!(Shaping, flags),
    ];
    assert_eq!((offsets, size_of::<Shaping>()), ([0, 4, 8, 12], 16));
}

#[test]
fn stages_have_the_fields_of_their_rust_twin() {
    let fields = ["step", "ema", "max_norm", "owner", "units", "units_epsilon", "pad0", "pad1"];
    assert_eq!(differences(PRELUDE, "Stages", &fields), [""; 0]);
    let offsets = [
        offset_of!(Stages, step),
        offset_of!(Stages, ema),
        offset_of!(Stages, max_norm),
        offset_of!(Stages, owner),
        offset_of!(Stages, units),
        offset_of!(Stages, units_epsilon),
        offset_of!(Stages, pad),
    ];
    assert_eq!((offsets, size_of::<Stages>()), ([0, 4, 8, 12, 16, 20, 24], 32));
}

/// Records lie at the same distance, whatever their step.
#[test]
fn records_have_one_size() {
    for rule_under_test in Rule::all() {
        let spec = rule_under_test.spec();
        let source = rule(spec.source()).expect("every rule has WGSL");
        let text = match spec.passes() {
            Passes::Factored => compose_factored(source, Moments::F32),
            _ => compose(source, spec.entry(), &Storage::plain(spec.slots().len()), Format::F32, Access::Whole, false),
        };
        let (module, _) = validated(spec.name(), &text);
        let found = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Record"));
        let Some((_, naga::Type { inner: TypeInner::Struct { members, span }, .. })) = found else {
            panic!("{} has no record", spec.name());
        };
        let offsets: Vec<_> = members.iter().map(|member| member.offset).collect();
        assert_eq!((offsets, *span), (vec![0, 16, 32, 64], 128), "{}", spec.name());
    }
}

#[test]
fn trust_has_the_fields_of_its_rust_twin() {
    assert_eq!(differences(PRELUDE, "Trust", &["coefficient", "epsilon", "weight_decay", "clip"]), [""; 0]);
    let offsets = [
        offset_of!(Trust, coefficient),
        offset_of!(Trust, epsilon),
        offset_of!(Trust, weight_decay),
        offset_of!(Trust, clip),
    ];
    assert_eq!((offsets, size_of::<Trust>()), ([0, 4, 8, 12], 16));
}

/// The control of the two tests above.
#[test]
fn swapped_fields_are_noticed() {
    let names = Rule::from(optimizers::Adam::default()).spec().scalar_names();
    let source = rule("adam").expect("there is adam");
    let swapped = source.replace("    alpha: f32,\n    beta1: f32,\n", "    beta1: f32,\n    alpha: f32,\n");
    assert_ne!(source, swapped, "the text to swap was found");
    assert_eq!(differences(&swapped, "Step", names).len(), 2, "two fields are at each other's place");

    let short = source.replace("    pad0: u32,\n", "");
    assert_eq!(differences(&short, "Step", names).len(), 2, "a field is missing, and so are four bytes");
}

#[test]
fn constants_are_the_same_on_both_sides() {
    let number = |source: &str, name: &str| {
        let (module, _) = validated(name, source);
        let found = module.constants.iter().find(|(_, constant)| constant.name.as_deref() == Some(name));
        match found.map(|(_, constant)| &module.global_expressions[constant.init]) {
            Some(naga::Expression::Literal(naga::Literal::U32(number))) => *number,
            other => panic!("{name}: {other:?}"),
        }
    };
    for (name, expected) in [("WORKGROUP", WORKGROUP), ("GRID_WIDTH", GRID_WIDTH), ("NO_GRAD", NO_GRAD)] {
        assert_eq!(number(PRELUDE, name), expected, "{name}");
    }
    assert_eq!((number(PRELUDE, "CENTRALIZE"), number(PRELUDE, "SKIP")), (Shaping::CENTRALIZE, Shaping::SKIP));
    let decide = compose_decide();
    for (name, expected) in [
        ("CLIP_GLOBAL", Clip::Global as u32),
        ("CLIP_GROUP", Clip::Group as u32),
        ("CLIP_PARAMETER", Clip::Parameter as u32),
        ("NOT_FINITE", Skip::NotFinite as u32),
        ("NORM_OVERFLOW", Skip::NormOverflow as u32),
        ("INFINITE", INFINITE),
    ] {
        assert_eq!(number(&decide, name), expected, "{name}");
    }
    assert_eq!((BLOCK as usize, TILE), (optimizers::core::format::BLOCK, BLOCK), "a workgroup has a block");
    for moments in Moments::ALL {
        assert_eq!(number(moments.wgsl(), "PER_WORD") as usize, moments.per_word());
    }
    assert_eq!(number(REDUCE, "LANES"), LANES);
    assert_eq!(number(REDUCE, "ROW") * number(REDUCE, "ROWS"), SLICE);
    assert_eq!(number(REDUCE, "ROW"), 4 * LANES, "a lane has four columns");
}

/// The functions of a rule's file by name: their lines in one notation, comments included.
fn functions(source: &str) -> BTreeMap<String, Vec<String>> {
    let mut functions = BTreeMap::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let Some(signature) = line.strip_prefix("pub(crate) ").unwrap_or(line).strip_prefix("fn ") else { continue };
        let name = signature.split('(').next().expect("a name").to_owned();
        // A long signature goes on over lines of its own.
        if !line.ends_with('{') {
            assert!(lines.by_ref().any(|line| line.ends_with('{')), "{name} has a body");
        }
        let body = lines.by_ref().take_while(|line| *line != "}").map(|line| in_one_notation(line.trim())).collect();
        functions.insert(name, body);
    }
    functions
}

/// A statement of Rust or WGSL: without what only one of the two writes.
fn in_one_notation(line: &str) -> String {
    if line.starts_with("//") {
        return line.to_owned();
    }
    let mut line = line.replace("let mut ", "var ").replace("0u", "0").replace("&mut ", "&").replace("(*s).", "s.");
    // The result of a function, and the condition of a branch.
    let result = line.strip_prefix("return ").and_then(|value| value.strip_suffix(';')).map(str::to_owned);
    line = result.unwrap_or(line);
    let array = line.strip_prefix("vec2(").and_then(|terms| terms.strip_suffix(')')).map(|terms| format!("[{terms}]"));
    line = array.unwrap_or(line);
    let condition = line.strip_prefix("if (").and_then(|rest| rest.strip_suffix(") {")).map(|c| format!("if {c} {{"));
    line = condition.unwrap_or(line);
    // Methods to functions: from the end, as the outermost comes last.
    for method in ["sqrt", "abs"] {
        let call = format!(".{method}()");
        while let Some(end) = line.find(&call) {
            let start = receiver(&line[..end]);
            let inner = line[start..end].trim_start_matches('(').trim_end_matches(')');
            line = format!("{}{method}({inner}){}", &line[..start], &line[end + call.len()..]);
        }
    }
    // Through a pointer: `*m`, unlike the product `a * b`.
    let chars: Vec<char> = line.chars().collect();
    let follows = |i: usize| chars.get(i + 1).is_some_and(|next| next.is_alphabetic());
    chars.iter().enumerate().filter(|&(i, &c)| !(c == '*' && follows(i))).map(|(_, c)| c).collect()
}

/// Where the receiver of a method call begins: a name, or the parenthesis that matches the last one.
fn receiver(before: &str) -> usize {
    if before.ends_with(')') {
        let mut depth = 0;
        for (i, c) in before.char_indices().rev() {
            depth += i32::from(c == ')') - i32::from(c == '(');
            if depth == 0 {
                return i;
            }
        }
    }
    before.rfind(|c: char| !(c.is_alphanumeric() || "_[]".contains(c))).map_or(0, |i| i + 1)
}

/// The kernels of the CPU and of the GPU, line for line: comments, order, names. FTRL's power function and its caller are compared
/// bit for bit by the parity tests alone: its casts have no common notation, and on the CPU it is cut into short loops.
#[test]
fn kernels_read_like_their_rust_twins() {
    let read = |file: &str| {
        let path = format!("{}/../crates/optim-cpu/src/{file}.rs", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let shared = read("math");
    for (name, source) in RULES {
        let twin = read(&format!("rules/{name}")) + &shared;
        let mut kernels = functions(source);
        kernels.retain(|name, _| !["power", "update_power"].contains(&name.as_str()));
        assert!(kernels.keys().any(|name| name.starts_with("update")), "{name} has a kernel");
        // What only Rust has are the loops around these functions.
        let mut twin = functions(&twin);
        twin.retain(|name, _| kernels.contains_key(name));
        assert_eq!(kernels, twin, "{name}");
    }
}

/// The control: other arithmetic is other text.
#[test]
fn another_statement_is_noticed() {
    let source = rule("rms_prop").expect("there is rms_prop");
    for (from, to) in
        [("s.decay * *ms", "s.decay + *ms"), ("sqrt(*ms", "abs(*ms"), ("- s.lr_outside", "+ s.lr_outside")]
    {
        let other = source.replacen(from, to, 1);
        assert_ne!(source, other, "{from} was found");
        assert_ne!(functions(source), functions(&other), "{from} for {to}");
    }
}
