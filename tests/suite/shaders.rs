//! Every kernel, without a driver: naga validates it and writes it in every language that drivers take, and what Rust and
//! WGSL both say is compared.

use std::collections::BTreeSet;
use std::mem::offset_of;

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage, TypeInner};
use optim_shaders::{
    GRID_WIDTH, LANES, LARS, MAX_SLOTS, NO_GRAD, Norms, PRELUDE, REDUCE, RULES, SLICE, WORKGROUP, Width, compose,
    compose_finish, compose_measure, compose_rows, rule,
};
use optimizers::Rule;
use optimizers::core::backend::{Shaping, Trust};
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
    validated("lars", &format!("{PRELUDE}\n{LARS}"));
    for (name, source) in RULES {
        validated(name, source);
    }
}

/// Validates a kernel of so many lanes and writes it in every language that drivers take.
fn written(what: &str, source: &str, lanes: u32) {
    let (module, info) = validated(what, source);
    assert_eq!(module.entry_points.len(), 1, "{what}");
    assert_eq!(module.entry_points[0].workgroup_size, [lanes, 1, 1], "{what}");
    // What WebGPU promises of any device.
    let buffers = module.global_variables.iter().filter(|(_, variable)| variable.binding.is_some()).count();
    assert!(buffers <= 8, "{what} binds {buffers} buffers");

    let entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: "main".into() };
    spv::write_vec(&module, &info, &spv::Options::default(), Some(&entry))
        .unwrap_or_else(|error| panic!("{what}, SPIR-V: {error}"));

    msl::write_string(&module, &info, &msl::Options::default(), &msl::PipelineOptions::default())
        .unwrap_or_else(|error| panic!("{what}, MSL: {error}"));

    let (options, pipeline, mut text) = (hlsl::Options::default(), hlsl::PipelineOptions::default(), String::new());
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&module, &info, None)
        .unwrap_or_else(|error| panic!("{what}, HLSL: {error}"));
}

#[test]
fn every_kernel_is_valid_and_can_be_written_for_every_driver() {
    let mut sums = 0;
    for rule_under_test in Rule::all() {
        let spec = rule_under_test.spec();
        let source = rule(spec.source()).unwrap_or_else(|| panic!("no WGSL for {}", spec.name()));
        let slots = spec.slots().len();
        let norms = match spec.passes() {
            _ if spec.has_trust() => Some(Norms::Trust { scalars: spec.scalar_names().len() }),
            Passes::Norms => Some(Norms::Rule { source, slots }),
            _ => None,
        };
        for width in Width::ALL {
            let what = format!("{} {} {width:?}", spec.name(), spec.entry());
            written(&what, &compose(source, spec.entry(), slots, width), WORKGROUP);
            if let Some(norms) = &norms {
                written(&format!("{what}, measure"), &compose_measure(norms, width), LANES);
            }
        }
        if let Some(norms) = &norms {
            written(&format!("{}, finish", spec.name()), &compose_finish(norms), LANES);
            sums += 1;
        }
    }
    assert!(sums >= 2, "LAMB and LARS sum");
    written("rows", &compose_rows(), WORKGROUP);
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
    for rule_under_test in Rule::all() {
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

    let short = source.replace("    pad1: u32,\n", "");
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
    assert_eq!(number(REDUCE, "LANES"), LANES);
    assert_eq!(number(REDUCE, "ROW") * number(REDUCE, "ROWS"), SLICE);
    assert_eq!(number(REDUCE, "ROW"), 4 * LANES, "a lane has four columns");
}

/// The bodies of a rule's functions, in one notation.
fn statements(source: &str) -> Vec<String> {
    let body = source.lines().map(str::trim).skip_while(|line| !line.starts_with("fn "));
    let macros = ["fn ", "#", "elementwise", "norms"];
    let statements = body.filter(|line| !macros.iter().any(|start| line.starts_with(start)));
    let common = statements.map(|line| {
        let line = line.replace("let mut ", "var ").replace("(*v).sqrt()", "sqrt(*v)").replace("v.sqrt()", "sqrt(*v)");
        let line = line.replace("v_hat.sqrt()", "sqrt(v_hat)").replace("(v_hat + s.eps).sqrt()", "sqrt(v_hat + s.eps)");
        let line = line.replace("(*s).", "s.").replace("&mut ", "&").replace("return vec3(", "[");
        let line = ["sums[0]", "sums[1]"]
            .iter()
            .fold(line, |line, sum| line.replace(&format!("{sum}.sqrt()"), &format!("sqrt({sum})")));
        let line = line.replace("(p_norm / n_norm).min(10.0)", "min(p_norm / n_norm, 10.0)");
        let line = if line.starts_with('[') { line.trim_end_matches([']', ')', ';']).to_owned() } else { line };
        let line = line.strip_prefix("if (").map_or(line.clone(), |rest| format!("if {}", rest.replace(") {", " {")));
        line.replace("s.nesterov != 0u", "s.nesterov != 0")
    });
    common.filter(|line| !line.is_empty()).collect()
}

/// The kernels of the CPU and of the GPU, line for line: comments, order, names.
#[test]
fn kernels_read_like_their_rust_twins() {
    for (name, source) in RULES {
        let path = format!("{}/../crates/optim-cpu/src/rules/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let twin = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(statements(source), statements(&twin), "{name}");
    }
}
