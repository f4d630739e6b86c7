//! Every kernel, without a driver: naga validates it and writes it in every language that drivers take, and what Rust and
//! WGSL both say is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage, TypeInner};
use optim_shaders::{GRID_WIDTH, MAX_SLOTS, PRELUDE, RULES, WORKGROUP, Width, compose, rule};
use optim_tests::rules;
use optimizers::Rule;
use optimizers::core::backend::Shaping;

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
    for (name, source) in RULES {
        validated(name, source);
    }
}

#[test]
fn every_kernel_is_valid_and_can_be_written_for_every_driver() {
    for rule_under_test in rules() {
        let spec = rule_under_test.spec();
        let source = rule(spec.source()).unwrap_or_else(|| panic!("no WGSL for {}", spec.name()));
        for width in Width::ALL {
            let what = format!("{} {} {width:?}", spec.name(), spec.entry());
            let (module, info) = validated(&what, &compose(source, spec.entry(), spec.slots().len(), width));
            assert_eq!(module.entry_points.len(), 1, "{what}");
            assert_eq!(module.entry_points[0].workgroup_size, [WORKGROUP, 1, 1], "{what}");

            let entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: "main".into() };
            spv::write_vec(&module, &info, &spv::Options::default(), Some(&entry))
                .unwrap_or_else(|error| panic!("{what}, SPIR-V: {error}"));

            msl::write_string(&module, &info, &msl::Options::default(), &msl::PipelineOptions::default())
                .unwrap_or_else(|error| panic!("{what}, MSL: {error}"));

            let (options, pipeline, mut text) =
                (hlsl::Options::default(), hlsl::PipelineOptions::default(), String::new());
            hlsl::Writer::new(&mut text, &options, &pipeline)
                .write(&module, &info, None)
                .unwrap_or_else(|error| panic!("{what}, HLSL: {error}"));
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
        for width in Width::ALL {
            let (module, _) = validated("own rule", &compose(&source, "update", slots, width));
            let bindings: BTreeSet<_> = module
                .global_variables
                .iter()
                .filter_map(|(_, variable)| variable.binding)
                .map(|b| b.binding)
                .collect();
            assert_eq!(bindings, (0..4 + u32::try_from(slots).unwrap()).collect(), "{slots} slots");
        }
    }
}

#[test]
fn steps_have_the_fields_of_their_rust_twins() {
    for rule_under_test in rules() {
        let spec = rule_under_test.spec();
        let source = rule(spec.source()).expect("every rule has WGSL");
        assert_eq!(differences(source, "Step", spec.scalar_names()), [""; 0], "{}", spec.name());
    }
}

#[test]
fn shaping_has_the_fields_of_its_rust_twin() {
    assert_eq!(differences(PRELUDE, "Shaping", &["factor", "weight_decay", "pad0", "pad1"]), [""; 0]);
    assert_eq!((offset_of!(Shaping, factor), offset_of!(Shaping, weight_decay)), (0, 4));
    assert_eq!(size_of::<Shaping>(), 8, "the backend adds two words of padding");
}

/// The control of the two tests above.
#[test]
fn swapped_fields_are_noticed() {
    let names = Rule::from(optimizers::Adam::default()).spec().scalar_names();
    let source = rule("adam").expect("there is adam");
    let swapped = source.replace("    alpha: f32,\n    beta1: f32,\n", "    beta1: f32,\n    alpha: f32,\n");
    assert_ne!(source, swapped, "the text to swap was found");
    assert_eq!(differences(&swapped, "Step", names).len(), 2, "two fields are at each other's place");

    let short = source.replace("    pad1: u32,\n", "");
    assert_eq!(differences(&short, "Step", names).len(), 2, "a field is missing, and so are four bytes");
}

#[test]
fn constants_are_the_same_on_both_sides() {
    let (module, _) = validated("prelude", PRELUDE);
    for (name, expected) in [("WORKGROUP", WORKGROUP), ("GRID_WIDTH", GRID_WIDTH)] {
        let found = module.constants.iter().find(|(_, constant)| constant.name.as_deref() == Some(name));
        let value = found.map(|(_, constant)| &module.global_expressions[constant.init]);
        let literal = naga::Expression::Literal(naga::Literal::U32(expected));
        assert_eq!(value, Some(&literal), "{name}");
    }
}

/// The functions of a rule's file by name: their lines in one notation, comments included.
fn functions(source: &str) -> BTreeMap<String, Vec<String>> {
    let mut functions = BTreeMap::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let Some(signature) = line.strip_prefix("fn ") else { continue };
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
    let mut line = line.replace("let mut ", "var ").replace("0u", "0");
    // The result of a function, and the condition of a branch.
    let result = line.strip_prefix("return ").and_then(|value| value.strip_suffix(';')).map(str::to_owned);
    line = result.unwrap_or(line);
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
    before.rfind(|c: char| !(c.is_alphanumeric() || c == '_')).map_or(0, |i| i + 1)
}

/// The kernels of the CPU and of the GPU, line for line: comments, order, names. The power function is compared bit for bit by
/// the parity tests; its casts have no common notation.
#[test]
fn kernels_read_like_their_rust_twins() {
    for (name, source) in RULES {
        let path = format!("{}/../crates/optim-cpu/src/rules/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let twin = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut kernels = functions(source);
        kernels.remove("power");
        assert!(kernels.keys().any(|name| name.starts_with("update")), "{name} has a kernel");
        assert_eq!(kernels, functions(&twin), "{name}");
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
