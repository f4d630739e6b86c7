//! The rows: a table for people, lines of JSON for programs.

use serde::{Deserialize, Serialize};

use crate::cases::{Case, Setting, dtype_name, state_name};

/// One row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// `cpu`, `gpu`, or whose optimizer else it is.
    pub(crate) backend: String,
    /// Which of its ways to step, if it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) form: Option<String>,
    pub(crate) rule: String,
    pub(crate) case: String,
    /// 0 on the GPU.
    pub(crate) threads: usize,
    /// Of parameters and gradients.
    pub(crate) dtype: String,
    pub(crate) state: String,
    pub(crate) clip: bool,
    pub(crate) us_per_step: f64,
    /// By the device's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device_us: Option<f64>,
    pub(crate) ns_per_param: f64,
    pub(crate) gbps: f64,
    /// Bytes that a step has to read and write, for each element.
    pub(crate) bytes_per_param: f64,
    pub(crate) limit_us: Option<f64>,
    pub(crate) ratio_to_limit: Option<f64>,
    pub(crate) ratio_to_f32: Option<f64>,
}

impl Row {
    /// Without a limit. `time`: seconds of a step; `bytes`: that it moves.
    pub(crate) fn new(backend: &str, setting: &Setting, case: &Case, time: f64, bytes: usize) -> Self {
        let elements = case.elements() as f64;
        Self {
            backend: backend.into(),
            form: None,
            rule: setting.rule_name(),
            case: case.name.into(),
            threads: setting.threads,
            dtype: dtype_name(setting.dtype).into(),
            state: state_name(setting.state).into(),
            clip: setting.clip,
            us_per_step: time * 1e6,
            ns_per_param: time * 1e9 / elements,
            gbps: bytes as f64 / time / 1e9,
            bytes_per_param: bytes as f64 / elements,
            device_us: None,
            limit_us: None,
            ratio_to_limit: None,
            ratio_to_f32: None,
        }
    }
}

/// Where rows go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Output {
    Table,
    Json,
}

impl Output {
    pub(crate) fn head(self) {
        if let Self::Table = self {
            println!(
                "{:<11} {:<13} {:<24} {:>2} {:<5} {:<5} {:<4} {:>10} {:>10} {:>8} {:>6} {:>7} {:>14} {:>12}",
                "backend",
                "case",
                "rule",
                "th",
                "dtype",
                "state",
                "clip",
                "us/step",
                "device us",
                "ns/param",
                "GB/s",
                "B/param",
                "ratio_to_limit",
                "ratio_to_f32"
            );
        }
    }

    pub(crate) fn row(self, row: &Row) {
        if let Self::Json = self {
            println!("{}", serde_json::to_string(row).expect("numbers and names"));
            return;
        }
        let Row { case, rule, threads, dtype, state, .. } = row;
        let backend = row.form.iter().fold(row.backend.clone(), |backend, form| format!("{backend} {form}"));
        let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
        println!(
            "{backend:<11} {case:<13} {rule:<24} {threads:>2} {dtype:<5} {state:<5} {:<4} {:>10.1} {:>10} {:>8.4} {:>6.1} {:>7.2} {:>14} {:>12}",
            if row.clip { "yes" } else { "no" },
            row.us_per_step,
            row.device_us.map_or_else(|| "-".into(), |us| format!("{us:.1}")),
            row.ns_per_param,
            row.gbps,
            row.bytes_per_param,
            ratio(row.ratio_to_limit),
            ratio(row.ratio_to_f32),
        );
    }
}
