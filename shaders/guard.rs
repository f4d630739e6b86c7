//! The kernels of the guard: what is measured of gradients, and what is decided from it.

use std::fmt::Write as _;

use crate::access::{self, Array, four};
use crate::{Access, FORMATS, Format, PRELUDE, RECORD, REDUCE, UNUSED_STEP, line};

/// The decision: the twin of `optim_core::guard::decide`. It needs [`PRELUDE`], [`REDUCE`] and the record.
pub const GUARD: &str = include_str!("guard.wgsl");

/// The kernel that measures slices of a gradient.
///
/// The bindings of group 0, in order: `guard_factor`, `slices`, `loss_scale`, `grads`, `parts`, `carries`.
#[must_use]
pub fn compose_guard_measure(grad: Format, access: Access) -> String {
    let formats = if grad == Format::F32 { "" } else { FORMATS };
    let (exponent, lanes) = match grad {
        Format::F32 => (0x7f80_0000_u32, access::lanes(grad, access)),
        Format::F16 => (0x7c00, access::lanes(grad, access)),
        Format::Bf16 => (0x7f80, access::lanes(grad, access)),
    };
    let mut text = format!("{PRELUDE}\n{formats}\n{REDUCE}\n{}\n", include_str!("measure.wgsl"));
    let element = access::element(lanes);
    let _ = writeln!(text, "@group(0) @binding(3) var<storage, read> grads: array<{element}>;\n");
    let _ = writeln!(text, "// Set in what is not finite.\nconst EXPONENT = {exponent:#x}u;\n");
    Array { name: "grad", buffer: "grads", lanes, base: "0u", bits: grad.bits(), access }.reader(&mut text);
    line(&mut text, "fn decoded(bits: vec4<u32>) -> vec4<f32> {");
    let _ = writeln!(text, "    return {};\n}}", four(|c| grad.decoded(&format!("bits.{c}")), "f32"));
    text
}

/// The kernel that adds up the slices of each parameter.
///
/// The bindings of group 0, in order: `spans`, `parts`, `measured`.
#[must_use]
pub fn compose_guard_totals() -> String {
    format!("{PRELUDE}\n{REDUCE}\n{}", include_str!("totals.wgsl"))
}

/// The kernel that decides: one workgroup.
///
/// The bindings of group 0, in order: `records`, `variants`, `measured`, `group_of`, `control`, `verdict`.
#[must_use]
pub fn compose_decide() -> String {
    format!("{PRELUDE}\n{REDUCE}\n{UNUSED_STEP}\n{RECORD}{GUARD}")
}
