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

use std::process::ExitCode;

use crate::cases::{Case, settings};
use crate::table::Output;

fn main() -> ExitCode {
    let (options, words): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a.starts_with('-'));
    match run(&options, &words) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => eprintln!("error: no row's label has {}", words.join(" and ")),
        Err(error) => eprintln!("error: {error}"),
    }
    ExitCode::FAILURE
}

/// Prints what the words ask for; whether there is anything.
fn run(options: &[String], words: &[String]) -> Result<bool, String> {
    // Cargo gives the second.
    if let Some(option) = options.iter().find(|option| !["--json", "--bench"].contains(&&***option)) {
        return Err(format!("there is no option {option}, but --json; benches/README.md names the words"));
    }
    let output = if options.iter().any(|option| option == "--json") { Output::Json } else { Output::Table };
    let (every, filters): (Vec<_>, Vec<_>) = words.iter().partition(|word| *word == "all");
    let wanted = |label: &str| filters.iter().all(|filter| label.contains(filter.as_str()));
    let asks_for = |kind: &str| filters.iter().any(|filter| filter.starts_with(kind));

    if let [word, file] = words
        && word == "chart"
    {
        return chart::run(file.as_ref()).map(|()| true);
    }
    if asks_for("groups") {
        return Ok(groups::run(wanted));
    }
    if asks_for("gpu") {
        return gpu::run(wanted, output).map_err(|error| error.to_string());
    }
    #[cfg(feature = "candle")]
    if asks_for("candle") {
        return Ok(candle::run(wanted, output));
    }
    let rows = Case::all().into_iter().map(|case| {
        let mut settings = settings(case.name, !every.is_empty());
        settings.retain(|setting| wanted(&setting.label("cpu", case.name)));
        (case, settings)
    });
    let rows: Vec<_> = rows.filter(|(_, settings)| !settings.is_empty()).collect();
    if !rows.is_empty() {
        output.head();
    }
    rows.iter().for_each(|(case, settings)| cpu::run(case, settings, output));
    Ok(!rows.is_empty())
}
