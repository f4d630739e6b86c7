//! The update kernels of the [`optimizers`](https://docs.rs/optimizers) library as WGSL text. Strings only, no dependencies.
//!
//! A rule's file holds the arithmetic for one element and is valid WGSL by itself. [`compose`] writes around it what a GPU
//! needs: bindings, the loads and stores of a lane, `main`. How numbers are kept ([`Storage`]) is known there alone, and
//! touches no rule.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

mod access;
mod guard;

pub use access::{Access, Format, Master, SlotFormat, Storage};

pub use guard::{GUARD, compose_decide, compose_guard_measure, compose_guard_totals};

use access::{Accessors, COMPONENTS};

/// What every kernel shares: the shaping of the gradient, the tile, the folded grid.
pub const PRELUDE: &str = include_str!("prelude.wgsl");

/// The sums over a parameter that rules with norms begin with.
pub const REDUCE: &str = include_str!("reduce.wgsl");

/// How numbers are kept in fewer bits than 32, and the random bits to round with: functions only, of the names of
/// `optim_core::format`.
pub const FORMATS: &str = include_str!("formats.wgsl");

/// Adds up gradients: a rule without slots, whose parameter is the sum.
pub const ACCUMULATE: &str = include_str!("accumulate.wgsl");

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

/// The source of a rule that needs `moving_average`.
macro_rules! averaging {
    ($rule:literal) => {
        concat!(include_str!("moving_average.wgsl"), "\n", include_str!($rule))
    };
}

/// Every rule's name and source; of those that only wrap another there is none.
pub const RULES: &[(&str, &str)] = &[
    ("ada_factor", include_str!("rules/ada_factor.wgsl")),
    ("ada_max", averaging!("rules/ada_max.wgsl")),
    ("adadelta", include_str!("rules/adadelta.wgsl")),
    ("adagrad", include_str!("rules/adagrad.wgsl")),
    ("adam", averaging!("rules/adam.wgsl")),
    ("adam_weight_decay", include_str!("rules/adam_weight_decay.wgsl")),
    ("adamw", averaging!("rules/adamw.wgsl")),
    ("adan", averaging!("rules/adan.wgsl")),
    ("asgd", include_str!("rules/asgd.wgsl")),
    ("ftrl", include_str!("rules/ftrl.wgsl")),
    ("lamb", include_str!("rules/lamb.wgsl")),
    ("lion", include_str!("rules/lion.wgsl")),
    ("momentum", include_str!("rules/momentum.wgsl")),
    ("nadam", averaging!("rules/nadam.wgsl")),
    ("proximal_adagrad", include_str!("rules/proximal_adagrad.wgsl")),
    ("radam", averaging!("rules/radam.wgsl")),
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

/// The most slots a kernel can have.
pub const MAX_SLOTS: usize = 4;

/// The lanes of a workgroup that sums; `reduce.wgsl`'s `LANES`.
pub const LANES: u32 = 256;

/// The elements that a workgroup sums, counted from a tensor's start: `ROWS` rows of `ROW` elements in `reduce.wgsl`.
pub const SLICE: u32 = 16 * 1024;

/// The first element of a tile's gradient where there is none; the prelude's `NO_GRAD`. No binding is that long, nor does a
/// gradient begin that far before one.
pub const NO_GRAD: u32 = 1 << 31;

/// The most elements of a tile: four for each lane.
pub const TILE: u32 = 4 * WORKGROUP;

/// The elements that share a scale; `BLOCK` in the kernels. A tile is one block.
pub const BLOCK: u32 = 256;

/// The kernel of a rule's update: the prelude, the rule, the bindings and `main`.
///
/// `rule` is the source of a rule: a `struct Step` of 32-bit scalars of at most 64 bytes, and the function
/// `entry(s: Step, p: ptr<function, f32>, g: f32, …)` with one further `ptr<function, f32>` for each slot. It can be
/// one of [`RULES`] or a text of your own; it must not use the names of the prelude or of what is written here.
///
/// The bindings of group 0, in order: `records`, `tiles`, `params`, `grads`, `state`, `page` (uniform); with
/// `rows`, what [`compose_units`] has made of each row, `units`.
///
/// # Panics
/// If there are more than [`MAX_SLOTS`] slots.
#[must_use]
pub fn compose(rule: &str, entry: &str, storage: &Storage, grad: Format, access: Access, rows: bool) -> String {
    let slots = storage.slots.len();
    assert!(slots <= MAX_SLOTS, "a kernel has at most {MAX_SLOTS} slots, not {slots}");
    let accessors = Accessors { storage, grad, access, write: true };
    let mut text = accessors.head(&format!("{PRELUDE}\n"), rule);
    bindings(&mut text, &accessors, "Tile", "read");
    if rows {
        units(&mut text, 6, "tile");
    }
    if storage.in_blocks() {
        text.push_str(LARGEST);
    }
    main(&mut text, storage, entry, rows);
    text
}

/// What else a kernel does with parameters and their state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Work {
    /// Sets what stands behind the parameter, and the average, to the parameter.
    Seed,
    /// Writes the average into the parameter and keeps what was there in `grads`, which it writes.
    SwapIn,
    /// Brings that back.
    SwapOut,
    /// Copies parameter and gradient as `f32` to two more bindings, `scratch_p` and `scratch_g`, at the place of the state.
    Load,
    /// As [`Load`](Self::Load), with the gradient shaped by what one more binding holds, `units`.
    Shape,
    /// Replaces the parameter by `grads`, as an update does.
    Store,
    /// Moves the average alone.
    Average,
}

impl Work {
    /// All.
    pub const ALL: [Self; 7] =
        [Self::Seed, Self::SwapIn, Self::SwapOut, Self::Load, Self::Shape, Self::Store, Self::Average];

    /// Whether it writes `grads`.
    #[must_use]
    pub const fn writes_grads(self) -> bool {
        matches!(self, Self::SwapIn)
    }
}

/// A kernel without a rule. Its bindings are those of [`compose`]. `grad` is the format of `grads`, which is the parameter's where
/// that is kept, and `f32` for [`Work::Store`].
#[must_use]
pub fn compose_work(work: Work, storage: &Storage, grad: Format, access: Access) -> String {
    let accessors = Accessors { storage, grad, access, write: true };
    let mut text = accessors.head(&format!("{PRELUDE}\n"), UNUSED_STEP);
    bindings(&mut text, &accessors, "Tile", if work.writes_grads() { "read_write" } else { "read" });
    if work.writes_grads() {
        accessors.write_grads(&mut text);
    }
    if matches!(work, Work::Load | Work::Shape) {
        text.push_str(
            "@group(0) @binding(6) var<storage, read_write> scratch_p: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> scratch_g: array<vec4<f32>>;
",
        );
    }
    if work == Work::Shape {
        units(&mut text, 8, "tile");
    }
    text.push_str(MAIN);
    if matches!(work, Work::Seed | Work::Store | Work::Average) {
        text.push_str(RETURN_IF_SKIPPED);
    }
    text.push_str(RETURN_BEYOND);
    match work {
        Work::Seed => {
            line(&mut text, "    let p_4 = load_stored(at, on);");
            match storage.master {
                Master::F32 => line(&mut text, "    set_bits_master(at.state, on, bitcast<vec4<u32>>(p_4));"),
                Master::Split => line(&mut text, "    set_bits_master(at.state, on, vec4<u32>());"),
                Master::None | Master::Stochastic => {}
            }
            if storage.ema {
                line(&mut text, "    store_ema(at, on, p_4);");
            }
        }
        Work::SwapIn => {
            line(&mut text, "    set_bits_grad(at.grad, on, bits_param(at.param, on));");
            if storage.ema {
                line(&mut text, "    store_nearest(at, on, load_ema(at, on));");
            }
        }
        Work::SwapOut => line(&mut text, "    set_bits_param(at.param, on, bits_grad(at.grad, on));"),
        Work::Load => {
            line(&mut text, "    scratch_p[at.state / 4u] = load_p(at, on);");
            line(&mut text, "    scratch_g[at.state / 4u] = load_g(at, on);");
        }
        Work::Shape => {
            line(&mut text, "    let p_4 = load_p(at, on);\n    var g_4 = load_g(at, on);");
            for (nth, component) in COMPONENTS.into_iter().enumerate() {
                shape(&mut text, nth, component, true);
            }
            line(&mut text, "    scratch_p[at.state / 4u] = p_4;\n    scratch_g[at.state / 4u] = g_4;");
        }
        Work::Store => {
            line(&mut text, "    let p_4 = load_g(at, on);\n    store_p(at, on, p_4);");
            average(&mut text, storage);
        }
        Work::Average => {
            line(&mut text, "    let p_4 = load_p(at, on);");
            average(&mut text, storage);
        }
    }
    line(&mut text, "}");
    text
}

/// What a first walk over a parameter sums, and what it completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms<'a> {
    /// A rule's `terms(s: Step, p: f32, g: f32, …) -> vec2<f32>`, with one further `f32` for each slot. Its
    /// `finish(s: ptr<function, Step>, sums: vec2<f32>)` completes the step scalars.
    Rule(&'a str),
    /// The trust ratio, [`LARS`], which completes the shaping.
    Trust,
}

impl Norms<'_> {
    /// The text before the record.
    fn source(&self) -> String {
        match self {
            Self::Rule(source) => (*source).to_owned(),
            Self::Trust => format!("{LARS}\n{UNUSED_STEP}"),
        }
    }
}

/// A whole kernel that sums the terms of slices: [`PRELUDE`], [`REDUCE`], the source, the bindings and `main`.
///
/// The bindings of group 0, in order: `records`, `slices`, `params`, `grads`, `state`, `page` (uniform),
/// `parts`; with `rows`, what [`compose_units`] has made of each row, `units`.
#[must_use]
pub fn compose_measure(norms: &Norms<'_>, storage: &Storage, grad: Format, access: Access, rows: bool) -> String {
    let accessors = Accessors { storage, grad, access, write: false };
    let mut text = accessors.head(&format!("{PRELUDE}\n{REDUCE}\n"), &norms.source());
    bindings(&mut text, &accessors, "Slice", "read");
    text.push_str("@group(0) @binding(6) var<storage, read_write> parts: array<vec2<f32>>;\n");
    if rows {
        units(&mut text, 7, "slice");
    }
    let (skip, step, slots) = match norms {
        Norms::Rule(_) => ("", "record.step, ", storage.slots.len()),
        Norms::Trust => ("    if (record.trust.coefficient < 0.0) {\n        slice.count = 0u;\n    }\n", "", 0),
    };
    let _ = write!(
        text,
        "
@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {{
    // No lane leaves early: all meet in the tree.
    let index = workgroup_index(id);
    var slice = Slice();
    if (index < arrayLength(&tiles)) {{
        slice = tiles[index];
    }}
    let record = records[slice.record];
{skip}
    // The running sums of four columns. What lies beyond the slice's end is left out.
    var sum_x = vec2<f32>();
    var sum_y = vec2<f32>();
    var sum_z = vec2<f32>();
    var sum_w = vec2<f32>();
    for (var row = 0u; row < ROWS; row = row + 1u) {{
        let i = row * ROW + lane * 4u;
        if (i < slice.count) {{
            let on = within(i, 0u, slice.count);
            let at = Place(slice.param + i, slice.grad + i, slice.state + i, 0u, 0u, 0u);
            let p_4 = load_p(at, on);
            let g_4 = load_g(at, on);
"
    );
    for slot in 0..slots {
        line(&mut text, &format!("            let s{slot}_4 = load_s{slot}(at, on);"));
    }
    for (nth, component) in COMPONENTS.into_iter().enumerate() {
        let shaped = shaped(nth, component, "p", rows.then_some("slice"));
        let state: String = (0..slots).map(|slot| format!(", s{slot}_4.{component}")).collect();
        let _ = write!(
            text,
            "            if (on.{component}) {{
                let p = p_4.{component};
                let g = {shaped};
                sum_{component} = sum_{component} + terms({step}p, g{state});
            }}
"
        );
    }
    text.push_str(
        "        }
    }
    let sums = tree(lane, (sum_x + sum_y) + (sum_z + sum_w));
    if (lane == 0u && index < arrayLength(&tiles)) {
        parts[slice.part] = sums;
    }
}
",
    );
    text
}

/// A whole kernel that adds up the parts of parameters and completes their records.
///
/// The bindings of group 0, in order: `records`, `spans`, `parts`.
#[must_use]
pub fn compose_finish(norms: &Norms<'_>) -> String {
    let mut text = format!("{PRELUDE}\n{REDUCE}\n{}\n{RECORD}", norms.source());
    text.push_str(
        "@group(0) @binding(0) var<storage, read_write> records: array<Record>;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> parts: array<vec2<f32>>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // No lane leaves early: all meet in the tree.
    let index = workgroup_index(id);
    var span = Span();
    if (index < arrayLength(&spans)) {
        span = spans[index];
    }
    var sum = vec2<f32>();
    for (var part = lane; part < span.count; part = part + LANES) {
        sum = sum + parts[span.first + part];
    }
    let sums = tree(lane, sum);
    if (lane == 0u && index < arrayLength(&spans)) {
",
    );
    text.push_str(match norms {
        Norms::Rule(_) => {
            "        var step = records[span.record].step;
        finish(&step, sums);
        records[span.record].step = step;
"
        }
        Norms::Trust => {
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

/// The kernel that makes of each row of a gradient the numbers that it is shaped with: the factor of adaptive clipping and the mean.
/// A row may be cut where bindings end.
///
/// The bindings of group 0, in order: `records`, `stretches`, `params`, `grads`, `state`, `page` (uniform),
/// `units`, `carries`. Numbers are read one by one.
#[must_use]
pub fn compose_units(storage: &Storage, grad: Format) -> String {
    let storage = Storage { slots: Vec::new(), ema: false, ..*storage };
    let accessors = Accessors { storage: &storage, grad, access: Access::Each, write: false };
    let mut text = accessors.head(&format!("{PRELUDE}\n"), UNUSED_STEP);
    bindings(&mut text, &accessors, "Stretch", "read");
    text.push_str(include_str!("units.wgsl"));
    text
}

/// The kernel that sums the rows of a row-sparse gradient, as `f32`. It knows no rule.
///
/// The bindings of group 0, in order: `list`, `values`, `sums`.
#[must_use]
pub fn compose_rows(values: Format) -> String {
    let formats = if values == Format::F32 { "" } else { FORMATS };
    let mut text = format!("{PRELUDE}\n{formats}\n{}\n", include_str!("rows.wgsl"));
    line(&mut text, "@group(0) @binding(1) var<storage, read> values: array<u32>;\n");
    let bits = match values {
        Format::F32 => "values[i]",
        Format::F16 | Format::Bf16 => "(values[i / 2u] >> (i % 2u * 16u)) & 0xffffu",
    };
    let _ = writeln!(text, "fn value(i: u32) -> f32 {{\n    return {};\n}}", values.decoded(bits));
    text
}

/// The kernel that moves words between so many small buffers and the ranges of one that they share: into it, or back. It knows no rule.
///
/// The bindings of group 0, in order: `pieces`, `together`, then the buffers. `buffers` must be at least 1.
#[must_use]
pub fn compose_gather(buffers: usize, back: bool) -> String {
    let mut text = format!("{PRELUDE}\n{}\n", include_str!("gather.wgsl"));
    let [together, others] = if back { ["read", "read_write"] } else { ["read_write", "read"] };
    line(&mut text, &format!("@group(0) @binding(1) var<storage, {together}> together: array<u32>;"));
    for nth in 0..buffers {
        line(&mut text, &format!("@group(0) @binding({}) var<storage, {others}> b{nth}: array<u32>;", nth + 2));
    }
    line(&mut text, "\nfn move_piece(piece: Piece, lane: u32) {\n    switch (piece.buffer) {");
    for nth in 0..buffers {
        let [to, from] = ["together[piece.together + i]".to_owned(), format!("b{nth}[piece.first + i]")];
        let [to, from] = if back { [from, to] } else { [to, from] };
        let _ = writeln!(
            text,
            "        case {nth}u: {{
            for (var i = lane; i < piece.count; i += WORKGROUP) {{
                {to} = {from};
            }}
        }}"
        );
    }
    line(&mut text, "        default: {}\n    }\n}");
    text
}

/// The kernels of a rule whose second moments are kept by row and by column: one module with the entry points
/// [`FACTORED_WALKS`].
///
/// The bindings of group 0, in order: `records`, `dims` (uniform), `params`, `grads`, `row_moments`,
/// `column_moments`, `first_moments`, `row_factors`, `parts`.
#[must_use]
pub fn compose_factored(rule: &str, moments: Moments) -> String {
    format!("{PRELUDE}\n{rule}\n{RECORD}{}{FACTORED}", moments.wgsl())
}

/// What stands at the record's place in every kernel. Its size is that of the largest step.
const RECORD: &str = "// The numbers of one update.
struct Record {
    shaping: Shaping,
    trust: Trust,
    stages: Stages,
    @size(64) step: Step,
}

";

/// The step of a kernel that knows no rule.
const UNUSED_STEP: &str = "// Not used here.
struct Step {
    words: array<vec4<u32>, 4>,
}
";

/// The scales of a tile's new slots.
const LARGEST: &str = "
var<workgroup> largest: array<vec4<u32>, WORKGROUP>;

// The magnitudes of numbers that count.
fn magnitudes(x: vec4<f32>, on: vec4<bool>) -> u32 {
    let bits = select(vec4<u32>(), bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu), on);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

// The largest of what the lanes hold, for each slot. All lanes of the workgroup must come here.
fn largest_of(lane: u32, held: vec4<u32>) -> vec4<u32> {
    largest[lane] = held;
    workgroupBarrier();
    if (lane < 8u) {
        var most = largest[lane * 8u];
        for (var nth = 1u; nth < 8u; nth = nth + 1u) {
            most = max(most, largest[lane * 8u + nth]);
        }
        largest[lane * 8u] = most;
    }
    workgroupBarrier();
    var most = largest[0];
    for (var nth = 1u; nth < 8u; nth = nth + 1u) {
        most = max(most, largest[nth * 8u]);
    }
    return most;
}
";

/// How the kernels begin that work on tiles.
const MAIN: &str = "
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = workgroup_index(id);
    if (index >= arrayLength(&tiles)) {
        return;
    }
    let tile = tiles[index];
    let record = records[tile.record];
    let i = lane * 4u;
    let on = within(i, tile.begin, tile.count);
    let at = Place(tile.param + i, tile.grad + i, tile.state + i, tile.element + i, tile.key, record.stages.step);
";

/// It is the same for all lanes.
const RETURN_IF_SKIPPED: &str = "    if ((record.shaping.flags & SKIP) != 0u) {
        return;
    }
";

/// Where no lanes meet.
const RETURN_BEYOND: &str = "    if (i >= tile.count) {
        return;
    }
";

impl Accessors<'_> {
    /// The text before the bindings.
    fn head(&self, prelude: &str, source: &str) -> String {
        let formats = if self.storage.is_narrow() || self.grad != Format::F32 { FORMATS } else { "" };
        let block = if self.storage.in_blocks() {
            format!("// The elements that share a scale.\nconst BLOCK = {BLOCK}u;\n\n")
        } else {
            String::new()
        };
        format!("{prelude}{formats}\n{source}\n{RECORD}{block}")
    }
}

/// The bindings, and the functions to get at what is bound.
fn bindings(text: &mut String, accessors: &Accessors<'_>, runs: &str, grads: &str) {
    let Accessors { storage, grad, access, write } = *accessors;
    let written = if write { "read_write" } else { "read" };
    let params = access::element(access::lanes(storage.param, access));
    let grad = access::element(access::lanes(grad, access));
    let state = accessors.state();
    let _ = write!(
        text,
        "@group(0) @binding(0) var<storage, read> records: array<Record>;
@group(0) @binding(1) var<storage, read> tiles: array<{runs}>;
@group(0) @binding(2) var<storage, {written}> params: array<{params}>;
@group(0) @binding(3) var<storage, {grads}> grads: array<{grad}>;
@group(0) @binding(4) var<storage, {written}> state: array<{state}>;
@group(0) @binding(5) var<uniform> page: Page;

"
    );
    accessors.write(text);
}

/// The numbers of rows, and how a kernel that works on such runs finds the one of an element.
fn units(text: &mut String, binding: usize, run: &str) {
    let _ = write!(
        text,
        "@group(0) @binding({binding}) var<storage, read> units: array<vec2<f32>>;

fn unit(run: {}, i: u32) -> vec2<f32> {{
    return units[row_at(i, run.row, run.left, run.width)];
}}
",
        if run == "tile" { "Tile" } else { "Slice" }
    );
}

fn main(text: &mut String, storage: &Storage, entry: &str, rows: bool) {
    let slots = storage.slots.len();
    text.push_str(MAIN);
    text.push_str(RETURN_IF_SKIPPED);
    if !storage.in_blocks() {
        text.push_str(RETURN_BEYOND);
    }
    // What a lane holds: p, the slots (both written back), and g.
    let held: Vec<_> = std::iter::once("p".to_owned()).chain((0..slots).map(|slot| format!("s{slot}"))).collect();
    for name in &held {
        line(text, &format!("    var {name}_4 = load_{name}(at, on);"));
    }
    line(text, "    var g_4 = vec4<f32>();\n    if (tile.grad != NO_GRAD) {\n        g_4 = load_g(at, on);");
    for (nth, component) in COMPONENTS.into_iter().enumerate() {
        shape(text, nth, component, rows);
    }
    line(text, "    }");
    // A pointer to a component does not exist in WGSL: each is taken out, updated and put back.
    let pointers: String = held.iter().skip(1).map(|name| format!(", &{name}")).collect();
    for component in COMPONENTS {
        line(text, "    {");
        for name in &held {
            line(text, &format!("        var {name} = {name}_4.{component};"));
        }
        line(text, &format!("        let g = g_4.{component};"));
        line(text, &format!("        {entry}(record.step, &p, g{pointers});"));
        for name in &held {
            line(text, &format!("        {name}_4.{component} = {name};"));
        }
        line(text, "    }");
    }
    if storage.in_blocks() {
        let magnitudes = |slot: usize| match storage.slots.get(slot) {
            Some(format) if format.in_blocks() => format!("magnitudes(s{slot}_4, on)"),
            _ => "0u".to_owned(),
        };
        let [x, y, z, w] = [0, 1, 2, 3].map(magnitudes);
        line(text, &format!("    let most = largest_of(lane, vec4<u32>({x}, {y}, {z}, {w}));"));
        text.push_str(RETURN_BEYOND);
    }
    for (slot, format) in storage.slots.iter().enumerate() {
        if format.in_blocks() {
            let component = COMPONENTS[slot];
            let _ = write!(
                text,
                "    let scale{slot} = scale_from(most.{component});
    store_s{slot}(at, on, s{slot}_4, scale{slot});
    if (lane == 0u) {{
        state[page.scales.{component} + at.state / BLOCK] = bitcast<u32>(scale{slot});
    }}
"
            );
        } else {
            line(text, &format!("    store_s{slot}(at, on, s{slot}_4);"));
        }
    }
    line(text, "    store_p(at, on, p_4);");
    average(text, storage);
    line(text, "}");
}

/// The shaped gradient of a lane's element, with the parameter `p`. `run` is what holds its row.
fn shaped(nth: usize, component: &str, p: &str, run: Option<&str>) -> String {
    match run {
        None => format!("shape(record.shaping, g_4.{component}, {p})"),
        Some(run) => {
            let row = format!("unit({run}, i + {nth}u)");
            format!("shape_in_row(record.shaping, record.stages.units, {row}, g_4.{component}, {p})")
        }
    }
}

/// Shapes the gradient of a lane's element. What lies beyond a row belongs to no other.
fn shape(text: &mut String, nth: usize, component: &str, rows: bool) {
    let shaped = shaped(nth, component, &format!("p_4.{component}"), rows.then_some("tile"));
    let shape = format!("g_4.{component} = {shaped};");
    if rows {
        line(text, &format!("        if (on.{component}) {{\n            {shape}\n        }}"));
    } else {
        line(text, &format!("        {shape}"));
    }
}

/// Moves the average towards the new parameter.
fn average(text: &mut String, storage: &Storage) {
    if storage.ema {
        text.push_str(
            "    if (record.stages.ema > 0.0) {
        let ema_4 = load_ema(at, on);
        store_ema(at, on, ema_4 + record.stages.ema * (p_4 - ema_4));
    }
",
        );
    }
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}
