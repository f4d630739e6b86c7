//! From how numbers are kept to the functions by which a lane reads and writes four of them. What is kept in fewer bits than 32
//! lies in words, the first number in the lowest bits.

use std::fmt::Write as _;

use crate::line;

/// How numbers of the caller's are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Format {
    /// All.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The bits of a number.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
        }
    }

    /// The number with these bits.
    pub(crate) fn decoded(self, bits: &str) -> String {
        match self {
            Self::F32 => format!("bitcast<f32>({bits})"),
            Self::F16 => format!("f16_to_f32({bits})"),
            Self::Bf16 => format!("bf16_to_f32({bits})"),
        }
    }

    /// The bits of the nearest number.
    fn nearest(self, x: &str) -> String {
        match self {
            Self::F32 => format!("bitcast<u32>({x})"),
            Self::F16 => format!("f32_to_f16({x})"),
            Self::Bf16 => format!("f32_to_bf16({x})"),
        }
    }

    /// The bits of one of the two numbers around.
    fn stochastic(self, x: &str, random: &str) -> String {
        match self {
            Self::F32 => self.nearest(x),
            Self::F16 => format!("f32_to_f16_stochastic({x}, {random})"),
            Self::Bf16 => format!("f32_to_bf16_stochastic({x}, {random})"),
        }
    }
}

/// What stands behind a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Master {
    /// Nothing: it is stored to nearest.
    None,
    /// Nothing: it is stored stochastically.
    Stochastic,
    /// An `f32`, of which it is the nearest number.
    F32,
    /// The 16 bits that a `bf16` lacks.
    Split,
}

/// How a slot is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotFormat {
    /// As `f32`.
    F32,
    /// As `bf16`, rounded stochastically.
    Bf16,
    /// As signed codes of 8 bits in blocks of [`BLOCK`](crate::BLOCK) elements with a scale.
    Signed8,
    /// As positive codes.
    Positive8,
}

impl SlotFormat {
    /// The bits of a number, without its scale.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::Bf16 => 16,
            Self::Signed8 | Self::Positive8 => 8,
        }
    }

    /// Whether blocks of elements share a scale.
    #[must_use]
    pub const fn in_blocks(self) -> bool {
        matches!(self, Self::Signed8 | Self::Positive8)
    }
}

/// How a parameter and its state are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Storage {
    /// The parameter.
    pub param: Format,
    /// What stands behind it.
    pub master: Master,
    /// The slots of the rule.
    pub slots: Vec<SlotFormat>,
    /// Whether there is an average, as `f32`.
    pub ema: bool,
}

impl Storage {
    /// An `f32` parameter with so many slots of `f32`.
    #[must_use]
    pub fn plain(slots: usize) -> Self {
        Self { param: Format::F32, master: Master::None, slots: vec![SlotFormat::F32; slots], ema: false }
    }

    /// Whether a slot is kept in blocks.
    #[must_use]
    pub fn in_blocks(&self) -> bool {
        self.slots.iter().any(|slot| slot.in_blocks())
    }

    /// Whether two elements share a word.
    #[must_use]
    pub fn shares_words(&self) -> bool {
        self.param.bits() < 32 || self.lanes() < 4
    }

    /// Whether anything but `f32` is kept.
    pub(crate) fn is_narrow(&self) -> bool {
        self.param != Format::F32 || self.slots.iter().any(|slot| *slot != SlotFormat::F32)
    }

    /// The words that an element of the array of state has: as many as four of the narrowest numbers fill, since two lanes must
    /// not write one vector.
    fn lanes(&self) -> usize {
        let slots = self.slots.iter().map(|slot| slot.bits());
        slots.chain((self.master == Master::Split).then_some(16)).min().unwrap_or(32) / 8
    }
}

/// How a lane gets at its four numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// All at once. They begin at a multiple of four in every binding, and what follows a tile's end, up to the next multiple of
    /// four, is updated too.
    Whole,
    /// One by one, and only those that are the tile's. Gradients may begin anywhere.
    Each,
}

impl Access {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Whole, Self::Each];
}

pub(crate) const COMPONENTS: [&str; 4] = ["x", "y", "z", "w"];

/// An array that a kernel binds, or a part of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Array<'a> {
    /// The functions are named after it.
    pub(crate) name: &'a str,
    /// The variable.
    pub(crate) buffer: &'a str,
    /// The words of the variable's elements.
    pub(crate) lanes: usize,
    /// Its first word, as an expression.
    pub(crate) base: &'a str,
    /// The bits of a number.
    pub(crate) bits: usize,
    pub(crate) access: Access,
}

/// The words that an element of an array of the caller's has.
pub(crate) const fn lanes(format: Format, access: Access) -> usize {
    match access {
        Access::Whole => format.bits() / 8,
        Access::Each => 1,
    }
}

/// The type of an array of so many words an element.
pub(crate) const fn element(lanes: usize) -> &'static str {
    match lanes {
        1 => "u32",
        2 => "vec2<u32>",
        _ => "vec4<u32>",
    }
}

impl Array<'_> {
    /// `fn bits_NAME(at: u32, on: vec4<bool>) -> vec4<u32>`: the bits of the numbers from the `at`-th on.
    pub(crate) fn reader(&self, text: &mut String) {
        let Self { name, buffer, lanes, base, bits, access } = *self;
        let _ = writeln!(text, "fn bits_{name}(at: u32, on: vec4<bool>) -> vec4<u32> {{");
        match (bits, access) {
            (32, Access::Whole) => {
                let _ = writeln!(text, "    let word = {base} + at;");
                let words = match lanes {
                    4 => format!("{buffer}[word / 4u]"),
                    2 => format!("vec4<u32>({buffer}[word / 2u], {buffer}[word / 2u + 1u])"),
                    _ => {
                        let word = |nth| format!("{buffer}[word + {nth}u]");
                        format!("vec4<u32>({}, {}, {}, {})", word(0), word(1), word(2), word(3))
                    }
                };
                let _ = writeln!(text, "    return {words};");
            }
            (16, Access::Whole) => {
                let _ = writeln!(text, "    let word = {base} + at / 2u;");
                let pair = match lanes {
                    2 => format!("{buffer}[word / 2u]"),
                    _ => format!("vec2<u32>({buffer}[word], {buffer}[word + 1u])"),
                };
                let _ = writeln!(text, "    let pair = {pair};");
                line(text, "    return vec4<u32>(pair.x & 0xffffu, pair.x >> 16u, pair.y & 0xffffu, pair.y >> 16u);");
            }
            (8, _) => {
                let _ = writeln!(text, "    let word = {buffer}[{base} + at / 4u];");
                line(text, "    return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);");
            }
            _ => {
                line(text, "    var bits = vec4<u32>();");
                for (nth, component) in COMPONENTS.into_iter().enumerate() {
                    let at = format!("(at + {nth}u)");
                    let value = if bits == 32 {
                        format!("{buffer}[{base} + {at}]")
                    } else {
                        format!("({buffer}[{base} + {at} / 2u] >> ({at} % 2u * 16u)) & 0xffffu")
                    };
                    let _ = writeln!(text, "    if (on.{component}) {{\n        bits.{component} = {value};\n    }}");
                }
                line(text, "    return bits;");
            }
        }
        line(text, "}\n");
    }

    /// `fn set_bits_NAME(at: u32, on: vec4<bool>, bits: vec4<u32>)`.
    fn writer(&self, text: &mut String) {
        let Self { name, buffer, lanes, base, bits, access } = *self;
        let _ = writeln!(text, "fn set_bits_{name}(at: u32, on: vec4<bool>, bits: vec4<u32>) {{");
        match (bits, access) {
            (32, Access::Whole) => {
                let _ = writeln!(text, "    let word = {base} + at;");
                match lanes {
                    4 => {
                        let _ = writeln!(text, "    {buffer}[word / 4u] = bits;");
                    }
                    2 => {
                        let _ = writeln!(text, "    {buffer}[word / 2u] = bits.xy;");
                        let _ = writeln!(text, "    {buffer}[word / 2u + 1u] = bits.zw;");
                    }
                    _ => {
                        for (nth, component) in COMPONENTS.into_iter().enumerate() {
                            let _ = writeln!(text, "    {buffer}[word + {nth}u] = bits.{component};");
                        }
                    }
                }
            }
            (16, Access::Whole) => {
                let _ = writeln!(text, "    let word = {base} + at / 2u;");
                line(text, "    let pair = vec2<u32>(bits.x | (bits.y << 16u), bits.z | (bits.w << 16u));");
                match lanes {
                    2 => {
                        let _ = writeln!(text, "    {buffer}[word / 2u] = pair;");
                    }
                    _ => {
                        let _ = writeln!(text, "    {buffer}[word] = pair.x;\n    {buffer}[word + 1u] = pair.y;");
                    }
                }
            }
            (8, _) => {
                line(text, "    let word = bits.x | (bits.y << 8u) | (bits.z << 16u) | (bits.w << 24u);");
                let _ = writeln!(text, "    {buffer}[{base} + at / 4u] = word;");
            }
            _ => {
                for (nth, component) in COMPONENTS.into_iter().enumerate() {
                    let at = format!("(at + {nth}u)");
                    let _ = writeln!(text, "    if (on.{component}) {{");
                    if bits == 32 {
                        let _ = writeln!(text, "        {buffer}[{base} + {at}] = bits.{component};");
                    } else {
                        let _ = writeln!(text, "        let word = {base} + {at} / 2u;");
                        let _ = writeln!(text, "        let shift = {at} % 2u * 16u;");
                        let _ = writeln!(
                            text,
                            "        {buffer}[word] = ({buffer}[word] & ~(0xffffu << shift)) | (bits.{component} << shift);"
                        );
                    }
                    line(text, "    }");
                }
            }
        }
        line(text, "}\n");
    }
}

/// A vector of an expression for each component.
pub(crate) fn four(of: impl Fn(&str) -> String, ty: &str) -> String {
    let [x, y, z, w] = COMPONENTS.map(of);
    format!("vec4<{ty}>({x}, {y}, {z}, {w})")
}

/// The functions of a kernel: `load_NAME(at: Place, on: vec4<bool>) -> vec4<f32>` and `store_NAME(at, on, x)` for `p`, `g`, `s0`, …,
/// `ema`.
#[derive(Debug)]
pub(crate) struct Accessors<'a> {
    pub(crate) storage: &'a Storage,
    pub(crate) grad: Format,
    pub(crate) access: Access,
    /// Whether anything is written.
    pub(crate) write: bool,
}

impl Accessors<'_> {
    /// The type of the array of state.
    pub(crate) fn state(&self) -> &'static str {
        element(self.state_lanes())
    }

    fn state_lanes(&self) -> usize {
        match self.access {
            Access::Whole => self.storage.lanes(),
            Access::Each => 1,
        }
    }

    fn in_state<'a>(&self, name: &'a str, base: &'a str, bits: usize) -> Array<'a> {
        Array { name, buffer: "state", lanes: self.state_lanes(), base, bits, access: self.access }
    }

    fn array(&self, text: &mut String, array: Array<'_>) {
        array.reader(text);
        if self.write {
            array.writer(text);
        }
    }

    /// All functions.
    pub(crate) fn write(&self, text: &mut String) {
        let Self { storage, grad, access, .. } = *self;
        let params = Array {
            name: "param",
            buffer: "params",
            lanes: lanes(storage.param, access),
            base: "0u",
            bits: storage.param.bits(),
            access,
        };
        self.array(text, params);
        let grads = Array { name: "grad", buffer: "grads", lanes: lanes(grad, access), bits: grad.bits(), ..params };
        grads.reader(text);
        self.param(text);
        line(text, "fn load_g(at: Place, on: vec4<bool>) -> vec4<f32> {\n    let bits = bits_grad(at.grad, on);");
        let _ = writeln!(text, "    return {};\n}}\n", four(|c| grad.decoded(&format!("bits.{c}")), "f32"));
        for (nth, slot) in storage.slots.iter().enumerate() {
            self.slot(text, nth, *slot);
        }
        if storage.ema {
            self.array(text, self.in_state("ema", "page.ema", 32));
            line(text, "fn load_ema(at: Place, on: vec4<bool>) -> vec4<f32> {");
            line(text, "    return bitcast<vec4<f32>>(bits_ema(at.state, on));\n}\n");
            if self.write {
                line(text, "fn store_ema(at: Place, on: vec4<bool>, x: vec4<f32>) {");
                line(text, "    set_bits_ema(at.state, on, bitcast<vec4<u32>>(x));\n}\n");
            }
        }
    }

    /// What writes `grads`.
    pub(crate) fn write_grads(&self, text: &mut String) {
        let Self { grad, access, .. } = *self;
        let lanes = lanes(grad, access);
        Array { name: "grad", buffer: "grads", lanes, base: "0u", bits: grad.bits(), access }.writer(text);
    }

    /// The parameter, with what stands behind it. `load_stored` and `store_nearest` pass that over.
    fn param(&self, text: &mut String) {
        let Storage { param, master, .. } = *self.storage;
        match master {
            Master::F32 => self.array(text, self.in_state("master", "page.master", 32)),
            Master::Split => self.array(text, self.in_state("master", "page.master", 16)),
            Master::None | Master::Stochastic => {}
        }
        line(
            text,
            "fn load_stored(at: Place, on: vec4<bool>) -> vec4<f32> {\n    let bits = bits_param(at.param, on);",
        );
        let _ = writeln!(text, "    return {};\n}}\n", four(|c| param.decoded(&format!("bits.{c}")), "f32"));
        line(text, "fn load_p(at: Place, on: vec4<bool>) -> vec4<f32> {");
        match master {
            Master::F32 => line(text, "    return bitcast<vec4<f32>>(bits_master(at.state, on));"),
            Master::Split => {
                line(text, "    let upper = bits_param(at.param, on);\n    let lower = bits_master(at.state, on);");
                let _ = writeln!(text, "    return {};", four(|c| format!("join(upper.{c}, lower.{c})"), "f32"));
            }
            Master::None | Master::Stochastic => line(text, "    return load_stored(at, on);"),
        }
        line(text, "}\n");
        if !self.write {
            return;
        }
        line(text, "fn store_nearest(at: Place, on: vec4<bool>, x: vec4<f32>) {");
        let bits = four(|c| param.nearest(&format!("x.{c}")), "u32");
        let _ = writeln!(text, "    set_bits_param(at.param, on, {bits});\n}}\n");
        line(text, "fn store_p(at: Place, on: vec4<bool>, x: vec4<f32>) {");
        match master {
            Master::None => line(text, "    store_nearest(at, on, x);"),
            Master::F32 => {
                line(text, "    set_bits_master(at.state, on, bitcast<vec4<u32>>(x));\n    store_nearest(at, on, x);");
            }
            Master::Stochastic => {
                line(text, "    let random = stream(at.key, at.step, 0u);");
                let bits = |component: &str, nth| {
                    param.stochastic(&format!("x.{component}"), &format!("random_at(random, at.element + {nth}u)"))
                };
                let bits = four(|c| bits(c, COMPONENTS.iter().position(|k| *k == c).unwrap_or(0)), "u32");
                let _ = writeln!(text, "    set_bits_param(at.param, on, {bits});");
            }
            Master::Split => {
                for component in COMPONENTS {
                    let _ = writeln!(text, "    let half_{component} = split(x.{component});");
                }
                let [upper, lower] = ["x", "y"].map(|half| four(|c| format!("half_{c}.{half}"), "u32"));
                let _ = writeln!(text, "    set_bits_param(at.param, on, {upper});");
                let _ = writeln!(text, "    set_bits_master(at.state, on, {lower});");
            }
        }
        line(text, "}\n");
    }

    fn slot(&self, text: &mut String, nth: usize, slot: SlotFormat) {
        let component = COMPONENTS[nth];
        let (name, base, scale) =
            (format!("s{nth}"), format!("page.slots.{component}"), format!("page.scales.{component}"));
        self.array(text, self.in_state(&name, &base, slot.bits()));
        let coding = if slot == SlotFormat::Positive8 { "POSITIVE" } else { "SIGNED" };
        let _ = writeln!(text, "fn load_{name}(at: Place, on: vec4<bool>) -> vec4<f32> {{");
        let _ = writeln!(text, "    let bits = bits_{name}(at.state, on);");
        if slot.in_blocks() {
            let _ = writeln!(text, "    let scale = bitcast<f32>(state[{scale} + at.state / BLOCK]);");
        }
        let value = |component: &str| match slot {
            SlotFormat::F32 => format!("bitcast<f32>(bits.{component})"),
            SlotFormat::Bf16 => format!("bf16_to_f32(bits.{component})"),
            SlotFormat::Signed8 | SlotFormat::Positive8 => format!("decode({coding}, bits.{component}, scale)"),
        };
        let _ = writeln!(text, "    return {};\n}}\n", four(value, "f32"));
        if !self.write {
            return;
        }
        let scale_arg = if slot.in_blocks() { ", scale: f32" } else { "" };
        let _ = writeln!(text, "fn store_{name}(at: Place, on: vec4<bool>, x: vec4<f32>{scale_arg}) {{");
        if slot != SlotFormat::F32 {
            let _ = writeln!(text, "    let random = slot_stream(at.key, at.step, {nth}u);");
        }
        if slot.in_blocks() {
            let _ = writeln!(text, "    let steps = steps({coding}, scale);");
        }
        let value = |component: &str| {
            let element = COMPONENTS.iter().position(|known| *known == component).unwrap_or(0);
            let random = format!("of_slot(random_at(random, at.element + {element}u), {nth}u)");
            match slot {
                SlotFormat::F32 => format!("bitcast<u32>(x.{component})"),
                SlotFormat::Bf16 => format!("f32_to_bf16_stochastic(x.{component}, {random})"),
                SlotFormat::Signed8 | SlotFormat::Positive8 => {
                    format!("encode({coding}, x.{component}, steps, {random})")
                }
            }
        };
        let _ = writeln!(text, "    set_bits_{name}(at.state, on, {});\n}}\n", four(value, "u32"));
    }
}
