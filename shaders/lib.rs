//! The update kernels of the [`optimizers`](https://docs.rs/optimizers) library as WGSL text. Strings only, no dependencies.
//!
//! A rule's file holds the arithmetic for one element and is valid WGSL by itself. [`compose`] writes around it what a GPU
//! needs: bindings, the loads and stores of a lane, `main`. A storage format or another stage is a change there and touches
//! no rule.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

/// What every kernel shares: the shaping of the gradient, the tile, the folded grid.
pub const PRELUDE: &str = include_str!("prelude.wgsl");

/// The sums over a parameter that rules with norms begin with.
pub const REDUCE: &str = include_str!("reduce.wgsl");

/// How numbers are kept in fewer bits than 32, and the random bits to round with: functions only, of the names of
/// `optim_core::format`.
pub const FORMATS: &str = include_str!("formats.wgsl");

/// The walks of a rule whose second moments are kept by row and by column. It needs [`PRELUDE`], the rule, the record and the
/// format of the moments.
pub const FACTORED: &str = include_str!("factored.wgsl");

/// The entry points of [`FACTORED`], in the order in which a step dispatches them for a matrix; `vectors` takes the place of
/// the first three for a vector.
pub const FACTORED_WALKS: [&str; 7] = ["rows", "columns", "means", "vectors", "norms", "totals", "updates"];

/// How second moments that are kept by row and by column are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moments {
    /// As `f32`.
    F32,
    /// As `f16`, two in a word.
    F16,
}

impl Moments {
    /// Both.
    pub const ALL: [Self; 2] = [Self::F32, Self::F16];

    /// The moments in a word; the text's `PER_WORD`.
    #[must_use]
    pub const fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::F16 => 2,
        }
    }

    /// `PER_WORD`, `decoded` and `encoded` for [`FACTORED`].
    #[must_use]
    pub const fn wgsl(self) -> &'static str {
        match self {
            Self::F32 => include_str!("moments_f32.wgsl"),
            Self::F16 => include_str!("moments_f16.wgsl"),
        }
    }
}

/// The layer-wise trust ratio: `terms` and `finish` for [`Norms::Trust`]. It needs [`PRELUDE`].
pub const LARS: &str = include_str!("rules/lars.wgsl");

/// Every rule's name and source; of those that only wrap another there is none.
pub const RULES: &[(&str, &str)] = &[
    ("ada_factor", include_str!("rules/ada_factor.wgsl")),
    ("ada_max", include_str!("rules/ada_max.wgsl")),
    ("adadelta", include_str!("rules/adadelta.wgsl")),
    ("adagrad", include_str!("rules/adagrad.wgsl")),
    ("adam", include_str!("rules/adam.wgsl")),
    ("adam_weight_decay", include_str!("rules/adam_weight_decay.wgsl")),
    ("adamw", include_str!("rules/adamw.wgsl")),
    ("adan", include_str!("rules/adan.wgsl")),
    ("asgd", include_str!("rules/asgd.wgsl")),
    ("ftrl", include_str!("rules/ftrl.wgsl")),
    ("lamb", include_str!("rules/lamb.wgsl")),
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

/// The lanes of a workgroup that sums; `reduce.wgsl`'s `LANES`.
pub const LANES: u32 = 256;

/// The elements that a workgroup sums, counted from a tensor's start: `ROWS` rows of `ROW` elements in `reduce.wgsl`.
pub const SLICE: u32 = 16 * 1024;

/// The first element of a tile's gradient where there is none; the prelude's `NO_GRAD`.
pub const NO_GRAD: u32 = u32::MAX;

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

/// What a first walk over a parameter sums, and what it completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms<'a> {
    /// A rule's `terms(s: Step, p: f32, g: f32, …) -> vec3<f32>`, with one further `f32` for each of `slots`. Its
    /// `finish(s: ptr<function, Step>, sums: vec3<f32>)` completes the step scalars.
    Rule {
        /// The source of the rule.
        source: &'a str,
        /// The number of its slots; there is room for one fewer than [`MAX_SLOTS`].
        slots: usize,
    },
    /// The trust ratio, [`LARS`], which completes the shaping.
    Trust {
        /// The number of the step scalars that stand in a record beside it.
        scalars: usize,
    },
}

impl Norms<'_> {
    /// The text before the bindings.
    fn head(&self) -> String {
        let record = RECORD;
        match self {
            Self::Rule { source, .. } => format!("{PRELUDE}\n{REDUCE}\n{source}\n{record}"),
            Self::Trust { scalars } => {
                let step = format!("struct Step {{\n    words: array<vec4<u32>, {}>,\n}}", scalars.div_ceil(4));
                format!("{PRELUDE}\n{REDUCE}\n{LARS}\n// Not used here.\n{step}\n\n{record}")
            }
        }
    }

    fn slots(&self) -> usize {
        match self {
            Self::Rule { slots, .. } => *slots,
            Self::Trust { .. } => 0,
        }
    }
}

/// A whole kernel that sums the terms of slices: [`PRELUDE`], [`REDUCE`], the source, the bindings and `main`.
///
/// The bindings of group 0, in order: `records` (dynamic offset), `slices`, `params`, `grads`, `slot0`, `slot1`, …, `parts`.
///
/// # Panics
/// If there are as many slots as [`MAX_SLOTS`]: the parts take the last one's place.
#[must_use]
pub fn compose_measure(norms: &Norms<'_>, width: Width) -> String {
    let slots = norms.slots();
    assert!(slots < MAX_SLOTS, "a kernel that sums has fewer than {MAX_SLOTS} slots, not {slots}");
    let mut text = norms.head();
    let arrays = ["params".to_owned(), "grads".to_owned()].into_iter().chain((0..slots).map(|k| format!("slot{k}")));
    let arrays: Vec<_> = arrays.collect();
    line(&mut text, "@group(0) @binding(0) var<storage, read> records: array<Record>;");
    line(&mut text, "@group(0) @binding(1) var<storage, read> slices: array<Slice>;");
    for (binding, name) in (2..).zip(&arrays) {
        line(&mut text, &format!("@group(0) @binding({binding}) var<storage, read> {name}: array<{}>;", width.wgsl()));
    }
    let parts = 2 + arrays.len();
    line(&mut text, &format!("@group(0) @binding({parts}) var<storage, read_write> parts: array<vec3<f32>>;"));
    let skip = match norms {
        Norms::Rule { .. } => "",
        Norms::Trust { .. } => "    if (record.trust.coefficient < 0.0) {\n        slice.count = 0u;\n    }\n",
    };
    let _ = write!(
        text,
        "
@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {{
    // No lane leaves early: all meet in the tree.
    let index = workgroup_index(id);
    var slice = Slice();
    if (index < arrayLength(&slices)) {{
        slice = slices[index];
    }}
    let record = records[slice.record];
{skip}
    // The running sums of four columns. What lies beyond the slice's end is left out.
    var sum_x = vec3<f32>();
    var sum_y = vec3<f32>();
    var sum_z = vec3<f32>();
    var sum_w = vec3<f32>();
    for (var row = 0u; row < ROWS; row = row + 1u) {{
        let element = row * ROW + lane * 4u;
"
    );
    for (nth, component) in COMPONENTS.into_iter().enumerate() {
        line(&mut text, &format!("        if (element + {nth}u < slice.count) {{"));
        match width {
            Width::Scalar => line(&mut text, &format!("            let at = slice.first + element + {nth}u;")),
            Width::Vec4 => line(&mut text, "            let at = (slice.first + element) / 4u;"),
        }
        let load = |array: &str| match width {
            Width::Scalar => format!("{array}[at]"),
            Width::Vec4 => format!("{array}[at].{component}"),
        };
        line(&mut text, &format!("            let p = {};", load("params")));
        line(&mut text, &format!("            let g = shape(record.shaping, {}, p);", load("grads")));
        let state: String = (0..slots).map(|slot| format!(", {}", load(&format!("slot{slot}")))).collect();
        let step = if matches!(norms, Norms::Rule { .. }) { "record.step, " } else { "" };
        line(&mut text, &format!("            sum_{component} = sum_{component} + terms({step}p, g{state});"));
        line(&mut text, "        }");
    }
    text.push_str(
        "    }
    let sums = tree(lane, (sum_x + sum_y) + (sum_z + sum_w));
    if (lane == 0u && index < arrayLength(&slices)) {
        parts[slice.part] = sums;
    }
}
",
    );
    text
}

/// A whole kernel that adds up the parts of parameters and completes their records.
///
/// The bindings of group 0, in order: `records` (dynamic offset), `spans`, `parts`.
#[must_use]
pub fn compose_finish(norms: &Norms<'_>) -> String {
    let mut text = norms.head();
    text.push_str(
        "@group(0) @binding(0) var<storage, read_write> records: array<Record>;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> parts: array<vec3<f32>>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // No lane leaves early: all meet in the tree.
    let index = workgroup_index(id);
    var span = Span();
    if (index < arrayLength(&spans)) {
        span = spans[index];
    }
    var sum = vec3<f32>();
    for (var part = lane; part < span.count; part = part + LANES) {
        sum = sum + parts[span.first + part];
    }
    let sums = tree(lane, sum);
    if (lane == 0u && index < arrayLength(&spans)) {
",
    );
    text.push_str(match norms {
        Norms::Rule { .. } => {
            "        var step = records[span.record].step;
        finish(&step, sums);
        records[span.record].step = step;
"
        }
        Norms::Trust { .. } => {
            "        let trust = records[span.record].trust;
        var shaping = records[span.record].shaping;
        if (trust.coefficient >= 0.0) {
            finish(trust, &shaping, sums);
        }
        records[span.record].shaping = shaping;
"
        }
    });
    text.push_str("    }\n}\n");
    text
}

/// The kernel that sums the rows of a row-sparse gradient. It knows no rule.
///
/// The bindings of group 0, in order: `list`, `values`, `sums`.
#[must_use]
pub fn compose_rows() -> String {
    format!("{PRELUDE}\n{}", include_str!("rows.wgsl"))
}

/// The components of a `vec4`.
/// The kernels of a rule whose second moments are kept by row and by column: one module with the entry points
/// [`FACTORED_WALKS`].
///
/// The bindings of group 0, in order: `records` (dynamic offset), `dims` (uniform), `params`, `grads`, `row_moments`,
/// `column_moments`, `first_moments`, `roots`, `parts`.
#[must_use]
pub fn compose_factored(rule: &str, moments: Moments) -> String {
    format!("{PRELUDE}\n{rule}\n{RECORD}{}{FACTORED}", moments.wgsl())
}

const COMPONENTS: [&str; 4] = ["x", "y", "z", "w"];

/// What stands at the record's place in every kernel.
const RECORD: &str = "// The numbers of one update.
struct Record {
    shaping: Shaping,
    trust: Trust,
    step: Step,
}

";

fn bindings(text: &mut String, slots: usize, width: Width) {
    let element = width.wgsl();
    text.push_str(RECORD);
    text.push_str(
        "@group(0) @binding(0) var<storage, read> records: array<Record>;
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
            line(text, "    var g = 0.0;");
            line(text, "    if (tile.grad != NO_GRAD) {");
            line(text, "        g = shape(record.shaping, grads[tile.grad + lane], p);");
            line(text, "    }");
            line(text, &format!("    {update}"));
            for (name, array) in held() {
                line(text, &format!("    {array}[at] = {name};"));
            }
        }
        Width::Vec4 => {
            // A pointer to a component does not exist in WGSL: each is taken out, updated and put back.
            for (name, array) in held() {
                line(text, &format!("    var {name}_4 = {array}[at];"));
            }
            line(text, "    var g_4 = vec4<f32>();");
            line(text, "    if (tile.grad != NO_GRAD) {");
            line(text, "        g_4 = grads[tile.grad / LANE + lane];");
            for component in COMPONENTS {
                let shaped = format!("shape(record.shaping, g_4.{component}, p_4.{component})");
                line(text, &format!("        g_4.{component} = {shaped};"));
            }
            line(text, "    }");
            for component in COMPONENTS {
                line(text, "    {");
                for (name, _) in held() {
                    line(text, &format!("        var {name} = {name}_4.{component};"));
                }
                line(text, &format!("        let g = g_4.{component};"));
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
