//! The chart of the front page: nanoseconds a parameter beside the limit and others' optimizers, from lines of JSON.
//!
//! A bar for each way to step, together for each case; a logarithmic axis. Text and lines are of a grey that can be read on white
//! and on black, and the ground is transparent.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::table::Row;
use crate::timing::middle;

const WIDTH: f64 = 860.0;
/// Where bars begin and end.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 800.0;
const TOP: f64 = 84.0;
const BAR: f64 = 15.0;
/// Between two groups of bars.
const GAP: f64 = 12.0;
const TEXT: &str = "#7d8590";

/// What is drawn: the name and the colour, in this order.
const SERIES: [(&str, &str); 7] = [
    ("memory limit", "#9aa4ae"),
    ("optimizers", "#2f81f7"),
    ("optimizers, bf16 state", "#58a6ff"),
    ("optimizers, 8-bit state", "#79c0ff"),
    ("PyTorch fused", "#e8743b"),
    ("PyTorch foreach", "#c9a227"),
    ("candle", "#a371f7"),
];

/// On which machine, and when.
#[derive(Debug, Default, Deserialize)]
struct Head {
    machine: String,
    date: String,
}

/// The bars of one case: the name, and for each series the nanoseconds.
struct Group {
    name: String,
    times: [Vec<f64>; SERIES.len()],
}

/// Draws the lines of a file into `chart.svg`.
pub(crate) fn run(file: &Path) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let head = text.lines().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    let rows: Vec<Row> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if rows.is_empty() {
        return Err(format!("{}: no line of it is a row of these benches", file.display()));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("chart.svg");
    fs::write(&path, draw(&head, &rows)).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// One group for each case, rule and clipping, in the order of the rows; those with the most threads.
fn groups(rows: &[Row]) -> Vec<Group> {
    let threads = rows.iter().map(|row| row.threads).max();
    let mut groups: Vec<Group> = Vec::new();
    for row in rows.iter().filter(|row| Some(row.threads) == threads && row.dtype == "f32") {
        let rule = if row.rule == rows[0].rule { String::new() } else { format!(", {}", row.rule) };
        let name = format!("{}{rule}{}", row.case, if row.clip { ", clipped" } else { "" });
        let nth = groups.iter().position(|group| group.name == name).unwrap_or_else(|| {
            groups.push(Group { name, times: Default::default() });
            groups.len() - 1
        });
        let series = match (&*row.backend, &*row.state, row.form.as_deref()) {
            ("cpu", "bf16", _) => 2,
            ("cpu", "8bit", _) => 3,
            ("cpu", ..) => 1,
            ("torch", _, Some("fused")) => 4,
            ("torch", ..) => 5,
            ("candle", ..) => 6,
            _ => continue,
        };
        let times = &mut groups[nth].times;
        match (series, row.ratio_to_limit, row.ratio_to_f32) {
            (1, Some(ratio), _) => {
                times[1].push(row.ns_per_param);
                times[0].push(row.ns_per_param / ratio);
            }
            (2 | 3, _, Some(ratio)) => times[series].push(ratio),
            _ => times[series].push(row.ns_per_param),
        }
    }
    // Narrow state was measured at another time, and memory has its moods: what is known is its ratio to the same limit.
    for times in groups.iter_mut().map(|group| &mut group.times) {
        if !times[0].is_empty() {
            let limit = middle(times[0].iter().copied());
            times[2..4].iter_mut().flatten().for_each(|ratio| *ratio *= limit);
        }
    }
    groups
}

fn draw(head: &Head, rows: &[Row]) -> String {
    let groups = groups(rows);
    let bars: Vec<(&str, Vec<(usize, f64)>)> = groups
        .iter()
        .map(|group| {
            let bars = group.times.iter().enumerate().filter(|(_, times)| !times.is_empty());
            (&*group.name, bars.map(|(series, times)| (series, middle(times.iter().copied()))).collect())
        })
        .collect();
    let times = || bars.iter().flat_map(|(_, bars)| bars.iter().map(|(_, time)| time.log10()));
    // Half decades around all bars, the shortest of which stays visible.
    let low = (2.0 * (times().fold(f64::INFINITY, f64::min) - 0.15)).floor() / 2.0;
    let high = (2.0 * times().fold(f64::NEG_INFINITY, f64::max)).ceil() / 2.0;
    let x = |log: f64| LEFT + (log - low) / (high - low) * (RIGHT - LEFT);
    let height: f64 = bars.iter().map(|(_, bars)| BAR * bars.len() as f64 + GAP).sum();
    let (bottom, whole) = (TOP + height, TOP + height + 36.0);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {whole}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{TEXT}\">\n"
    );
    let mut add = |line: String| writeln!(svg, "{line}").expect("memory");
    let first = &rows[0];
    let title =
        format!("{}, {} threads: nanoseconds a parameter and step, shorter is better", first.rule, first.threads);
    add(format!("<text x=\"10\" y=\"20\" font-size=\"15\" font-weight=\"bold\">{title}</text>"));
    add(format!("<text x=\"10\" y=\"39\">{}, {}. Logarithmic.</text>", escaped(&head.machine), escaped(&head.date)));
    let mut at = 10.0;
    for (nth, (name, colour)) in SERIES.into_iter().enumerate() {
        if groups.iter().any(|group| !group.times[nth].is_empty()) {
            add(format!("<rect x=\"{at}\" y=\"52\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"));
            add(format!("<text x=\"{}\" y=\"62\">{name}</text>", at + 16.0));
            at += 36.0 + 6.6 * name.len() as f64;
        }
    }
    let mut decade = low.ceil();
    while decade <= high {
        let (x, label) = (x(decade), 10_f64.powf(decade));
        add(format!("<path d=\"M{x:.1} {:.1}V{bottom:.1}\" stroke=\"{TEXT}\" stroke-opacity=\"0.35\"/>", TOP - 6.0));
        add(format!("<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label} ns</text>", bottom + 18.0));
        decade += 1.0;
    }
    let mut y = TOP;
    for (name, bars) in bars {
        let middle = y + BAR * bars.len() as f64 / 2.0 + 4.0;
        add(format!("<text x=\"{}\" y=\"{middle:.1}\" text-anchor=\"end\">{name}</text>", LEFT - 8.0));
        for (series, time) in bars {
            let (width, colour) = (x(time.log10()) - LEFT, SERIES[series].1);
            add(format!(
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                BAR - 2.0
            ));
            let value = if time < 10.0 { format!("{time:.2}") } else { format!("{time:.0}") };
            add(format!("<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\">{value}</text>", LEFT + width + 4.0, y + 10.5));
            y += BAR;
        }
        y += GAP;
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
