//! Every schedule in one picture: `cargo run --release --example schedules -- --plot PATH`.
//!
//! A schedule is a function of the update's index, so drawing it is a loop. The title of each chart is its code, less `::new` and `?`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use optimizers::Schedule;
use optimizers::schedule::{
    Constant, CosineDecay, CosineRestarts, Cyclic, ExponentialDecay, InverseDecay, InverseSqrt, Linear, MultiStep,
    NaturalExpDecay, Noam, OneCycle, PolynomialDecay, StepDecay, WarmUp, WarmupStableDecay, from_fn,
};
use plotters::prelude::*;

/// The updates that are drawn.
const UPDATES: u32 = 120;
/// Of one chart.
const PANEL: (u32, u32) = (340, 210);
const COLUMNS: usize = 4;
const FONT: &str = "sans-serif";
const LINE: RGBColor = RGBColor(31, 119, 180);

/// Draws every schedule into one SVG file.
#[derive(Debug, Parser)]
struct Options {
    /// The picture's file.
    #[arg(long, value_name = "PATH", default_value = "target/schedules.svg")]
    plot: PathBuf,
}

fn main() -> ExitCode {
    let Options { plot } = Options::parse();
    match charts().map_err(Into::into).and_then(|charts| draw(&charts, &plot)) {
        Ok(()) => {
            println!("picture: {}", plot.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One schedule as the chart shows it.
struct Chart {
    title: &'static str,
    schedule: Box<dyn Schedule>,
}

/// The charts of these schedules; titles are the code itself.
macro_rules! charts {
    ($($schedule:expr),* $(,)?) => {
        vec![$(Chart { title: stringify!($schedule), schedule: Box::new($schedule) }),*]
    };
}

fn charts() -> optimizers::Result<Vec<Chart>> {
    Ok(charts![
        // MindSpore's.
        WarmUp::new(0.1, 40)?,
        CosineDecay::new(0.01, 0.1, 100)?,
        PolynomialDecay::new(0.1, 0.01, 100, 2.0)?,
        PolynomialDecay::new(0.1, 0.01, 30, 2.0)?.update_decay_steps(true),
        ExponentialDecay::new(0.1, 0.5, 30)?,
        ExponentialDecay::new(0.1, 0.5, 30)?.is_stair(true),
        NaturalExpDecay::new(0.1, 0.02, 30)?,
        NaturalExpDecay::new(0.1, 0.02, 30)?.is_stair(true),
        InverseDecay::new(0.1, 1.0, 30)?,
        InverseDecay::new(0.1, 1.0, 30)?.is_stair(true),
        // PyTorch's.
        Constant::new(0.1)?,
        Linear::new(0.1, 0.02, 80)?,
        StepDecay::new(0.1, 0.5, 30)?,
        MultiStep::new(0.1, 0.3, [40, 90])?,
        CosineRestarts::new(0.0, 0.1, 20, 2)?,
        OneCycle::new(0.1, 120)?,
        Cyclic::new(0.02, 0.1, 20, 10)?,
        // Papers'.
        InverseSqrt::new(0.1, 20)?,
        Noam::new(1.0, 512, 20)?,
        WarmupStableDecay::new(0.1, 20, 60, 40)?,
        // Made of others.
        WarmUp::new(0.1, 20)?.then(20, ExponentialDecay::new(0.1, 0.5, 30)?),
        CosineDecay::new(0.0, 0.1, 100)?.warmup(20),
        CosineDecay::new(0.0, 0.1, 40)?.repeat(40)?.scale(0.5)?,
        from_fn("waves", |i| 0.1 * (i as f64 / 9.0).sin().powi(2)),
    ])
}

fn draw(charts: &[Chart], path: &Path) -> Result<(), Box<dyn Error>> {
    let rows = charts.len().div_ceil(COLUMNS);
    let size = (PANEL.0 * u32::try_from(COLUMNS)?, PANEL.1 * u32::try_from(rows)? + 40);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let panels = area.titled("schedules: the rate over the updates", (FONT, 22))?;
        for (chart, panel) in charts.iter().zip(&panels.split_evenly((rows, COLUMNS))) {
            let points: Vec<_> = (0..UPDATES).map(|i| (f64::from(i), chart.schedule.at(i.into()))).collect();
            let highest = points.iter().map(|point| point.1).fold(0.0, f64::max);
            let title = chart.title.replace("::new", "").replace('?', "");
            let mut axes = ChartBuilder::on(panel)
                .caption(title, (FONT, 12))
                .margin(8)
                .x_label_area_size(32)
                .y_label_area_size(52)
                .build_cartesian_2d(0.0..f64::from(UPDATES), 0.0..highest * 1.05)?;
            axes.configure_mesh()
                .x_desc("update")
                .y_desc("rate")
                .x_labels(5)
                .y_labels(5)
                .x_label_formatter(&|x| format!("{x:.0}"))
                .y_label_formatter(&|y| format!("{y:.3}"))
                .label_style((FONT, 12))
                .axis_desc_style((FONT, 12))
                .light_line_style(TRANSPARENT)
                .draw()?;
            axes.draw_series(LineSeries::new(points, LINE.stroke_width(2)))?;
        }
        area.present()?;
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    fs::write(path, svg).map_err(|error| format!("{}: {error}", path.display()).into())
}
