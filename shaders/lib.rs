//! The update kernels of the [`optimizers`](https://docs.rs/optimizers) library as WGSL text. Strings only, no dependencies.
//!
//! A rule's file holds the arithmetic for one element and is valid WGSL by itself. [`compose`] writes around it what a GPU
//! needs: bindings, the loads and stores of a lane, `main`. A storage format or another stage is a change there and touches
//! no rule.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

/// What every kernel shares: the shaping of the gradient, the tile, the folded grid.
pub const PRELUDE: &str = include_str!("prelude.wgsl");

/// Every rule's name and source.
pub const RULES: &[(&str, &str)] = &[
    ("ada_max", include_str!("rules/ada_max.wgsl")),
    ("adadelta", include_str!("rules/adadelta.wgsl")),
    ("adagrad", include_str!("rules/adagrad.wgsl")),
    ("adam", include_str!("rules/adam.wgsl")),
    ("adam_weight_decay", include_str!("rules/adam_weight_decay.wgsl")),
    ("adamw", include_str!("rules/adamw.wgsl")),
    ("adan", include_str!("rules/adan.wgsl")),
    ("asgd", include_str!("rules/asgd.wgsl")),
    ("ftrl", include_str!("rules/ftrl.wgsl")),
    ("lion", include_str!("rules/lion.wgsl")),
    ("momentum", include_str!("rules/momentum.wgsl")),
    ("nadam", include_str!("rules/nadam.wgsl")),
    ("proximal_adagrad", include_str!("rules/proximal_adagrad.wgsl")),
    ("radam", include_str!("rules/radam.wgsl")),
    ("rms_prop", include_str!("rules/rms_prop.wgsl")),
    ("rprop", include_str!("rules/rprop.wgsl")),
    ("sgd", include_str!("rules/sgd.wgsl")),
];

/// The source of a rule; `None` if there is none of that name.
#[must_use]
pub fn rule(name: &str) -> Option<&'static str> {
    RULES.iter().find(|(known, _)| *known == name).map(|(_, source)| *source)
}

/// The lanes of a workgroup; the prelude's `WORKGROUP`.
pub const WORKGROUP: u32 = 64;

/// The workgroups of a dispatch in x; the prelude's `GRID_WIDTH`.
pub const GRID_WIDTH: u32 = 32_768;

/// The most slots a kernel can have: WebGPU promises eight storage buffers, and four are taken.
pub const MAX_SLOTS: usize = 4;

/// What one lane loads and stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// One `f32`: for memory whose length is not a multiple of four.
    Scalar,
    /// One `vec4<f32>`: for everything else. Elements past a tile's end, up to the next multiple of four, are updated too.
    Vec4,
}

impl Width {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Scalar, Self::Vec4];

    /// The elements of a lane.
    #[must_use]
    pub const fn elements(self) -> u32 {
        match self {
            Self::Scalar => 1,
            Self::Vec4 => 4,
        }
    }

    /// The elements of a workgroup, which is the most that a tile can have.
    #[must_use]
    pub const fn tile(self) -> u32 {
        WORKGROUP * self.elements()
    }

    /// The WGSL type.
    #[must_use]
    pub const fn wgsl(self) -> &'static str {
        match self {
            Self::Scalar => "f32",
            Self::Vec4 => "vec4<f32>",
        }
    }
}

/// A whole kernel: the prelude, the rule, the bindings and `main`.
///
/// `rule` is the source of a rule: a `struct Step` of 32-bit scalars whose size is a multiple of 16 bytes, and the function
/// `entry(s: Step, p: ptr<function, f32>, g: f32, …)` with one further `ptr<function, f32>` for each of `slots`. It can be
/// one of [`RULES`] or a text of your own; it must not use the names of the prelude or of what is written here.
///
/// The bindings of group 0, in order: `records` (dynamic offset), `tiles`, `params`, `grads`, `slot0`, `slot1`, ….
///
/// # Panics
/// If there are more than [`MAX_SLOTS`] slots.
#[must_use]
pub fn compose(rule: &str, entry: &str, slots: usize, width: Width) -> String {
    assert!(slots <= MAX_SLOTS, "a kernel has at most {MAX_SLOTS} slots, not {slots}");
    let mut text = format!("{PRELUDE}\n{rule}\n");
    bindings(&mut text, slots, width);
    main(&mut text, entry, slots, width);
    text
}

fn bindings(text: &mut String, slots: usize, width: Width) {
    let element = width.wgsl();
    text.push_str(
        "// The numbers of one update.
struct Record {
    shaping: Shaping,
    step: Step,
}

@group(0) @binding(0) var<storage, read> records: array<Record>;
@group(0) @binding(1) var<storage, read> tiles: array<Tile>;
",
    );
    let arrays = [("read_write", "params".to_owned()), ("read", "grads".to_owned())];
    let arrays = arrays.into_iter().chain((0..slots).map(|slot| ("read_write", format!("slot{slot}"))));
    for (binding, (access, name)) in (2..).zip(arrays) {
        line(text, &format!("@group(0) @binding({binding}) var<storage, {access}> {name}: array<{element}>;"));
    }
}

fn main(text: &mut String, entry: &str, slots: usize, width: Width) {
    let lane = width.elements();
    let _ = write!(
        text,
        "
// Elements of a lane.
const LANE = {lane}u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {{
    let index = workgroup_index(id);
    if (index >= arrayLength(&tiles)) {{
        return;
    }}
    let tile = tiles[index];
    if (lane * LANE >= tile.count) {{
        return;
    }}
    let record = records[tile.record];
    let at = tile.first / LANE + lane;

"
    );

    // What a lane holds: p, the slots (both written back), and g.
    let held: Vec<_> = (0..slots).map(|slot| (format!("s{slot}"), format!("slot{slot}"))).collect();
    let held = || [("p".to_owned(), "params".to_owned())].into_iter().chain(held.iter().cloned());
    let pointers: String = (0..slots).map(|slot| format!(", &s{slot}")).collect();
    let update = format!("{entry}(record.step, &p, g{pointers});");
    match width {
        Width::Scalar => {
            for (name, array) in held() {
                line(text, &format!("    var {name} = {array}[at];"));
            }
            line(text, "    let g = shape(record.shaping, grads[at], p);");
            line(text, &format!("    {update}"));
            for (name, array) in held() {
                line(text, &format!("    {array}[at] = {name};"));
            }
        }
        Width::Vec4 => {
            // A pointer to a component does not exist in WGSL: each is taken out, updated and put back.
            line(text, "    let g_4 = grads[at];");
            for (name, array) in held() {
                line(text, &format!("    var {name}_4 = {array}[at];"));
            }
            for component in ["x", "y", "z", "w"] {
                line(text, "    {");
                for (name, _) in held() {
                    line(text, &format!("        var {name} = {name}_4.{component};"));
                }
                line(text, &format!("        let g = shape(record.shaping, g_4.{component}, p);"));
                line(text, &format!("        {update}"));
                for (name, _) in held() {
                    line(text, &format!("        {name}_4.{component} = {name};"));
                }
                line(text, "    }");
            }
            for (name, array) in held() {
                line(text, &format!("    {array}[at] = {name}_4;"));
            }
        }
    }
    line(text, "}");
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}
