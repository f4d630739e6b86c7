//! What a step costs, as a ratio to the memory limit, and whether groups cost anything. `README.md` says what each figure means.

#[cfg(feature = "candle")]
mod candle;
mod cases;
mod chart;
mod check;
mod cpu;
mod engine;
mod gpu;
mod groups;
mod limit;
mod memory;
mod table;
mod timing;

use crate::cases::{Case, settings};
use crate::table::Output;

fn main() {
    let (options, words): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a.starts_with("--"));
    let output = if options.iter().any(|option| option == "--json") { Output::Json } else { Output::Table };
    let (every, filters): (Vec<_>, Vec<_>) = words.iter().partition(|word| *word == "all");
    let wanted = |label: &str| filters.iter().all(|filter| label.contains(filter.as_str()));

    if let [word, file] = &*words
        && word == "chart"
    {
        return chart::run(file.as_ref());
    }
    if filters.iter().any(|filter| filter.starts_with("groups")) {
        return groups::run(wanted);
    }
    output.head();
    if filters.iter().any(|filter| filter.starts_with("gpu")) {
        return gpu::run(wanted, output);
    }
    #[cfg(feature = "candle")]
    if filters.iter().any(|filter| filter.starts_with("candle")) {
        return candle::run(wanted, output);
    }
    for case in Case::all() {
        let mut settings = settings(case.name, !every.is_empty());
        settings.retain(|setting| wanted(&setting.label("cpu", case.name)));
        cpu::run(&case, &settings, output);
    }
}
