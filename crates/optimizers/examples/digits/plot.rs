//! The pictures: loss, accuracy and rate of one run over the steps; the accuracies of all runs over the epochs.

use std::error::Error;
use std::path::Path;

use plotters::chart::SeriesLabelPosition::{LowerRight, UpperRight};
use plotters::prelude::*;

use crate::chart::{Area, FONT, Line, bounds, chart, save};
use crate::network::Evaluation;
use crate::{Epoch, Run};

const SIZE: (u32, u32) = (900, 1050);
/// Of one chart among many.
const PANEL: (u32, u32) = (260, 220);
const COLUMNS: usize = 6;
/// The lowest accuracy in those charts: what is below is drawn on the edge.
const LOWEST: f64 = 0.8;
const TRAIN: RGBColor = RGBColor(31, 119, 180);
const TEST: RGBColor = RGBColor(214, 96, 20);
const FAINT: RGBColor = RGBColor(190, 205, 220);

/// Draws a run into an SVG file.
pub(crate) fn draw(run: &Run, path: &Path) -> Result<(), Box<dyn Error>> {
    save(path, SIZE, |area| draw_charts(run, area))
}

/// Draws the accuracies of runs with the same number of epochs into an SVG file: a chart for each run, and one more place
/// for the legend.
pub(crate) fn compare(runs: &[Run], path: &Path) -> Result<(), Box<dyn Error>> {
    let rows = (runs.len() + 1).div_ceil(COLUMNS);
    let size = (PANEL.0 * u32::try_from(COLUMNS)?, PANEL.1 * u32::try_from(rows)? + 40);
    save(path, size, |area| draw_panels(runs, rows, area))
}

fn draw_charts(run: &Run, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    area.fill(&WHITE)?;
    let title = format!("digits: {} on {}", run.optimizer.name, run.backend);
    let charts = area.titled(&title, (FONT, 22))?.split_evenly((3, 1));

    let steps = run.steps.iter().zip(1_u32..).map(|(step, index)| (f64::from(index), step));
    let per_epoch = run.steps.len() as f64 / run.epochs.len() as f64;
    let epochs = run.epochs.iter().zip(1_u32..).map(|(epoch, index)| (f64::from(index) * per_epoch, epoch));

    let losses = [
        Line { label: "mini-batch", color: FAINT, points: steps.clone().map(|(x, step)| (x, step.loss)).collect() },
        Line { label: "train", color: TRAIN, points: epochs.clone().map(|(x, epoch)| (x, epoch.train.loss)).collect() },
        Line { label: "test", color: TEST, points: epochs.clone().map(|(x, epoch)| (x, epoch.test.loss)).collect() },
    ];
    let (low, high) = bounds(&losses);
    let range = (low.max(1e-6)..high.max(1e-5)).log_scale();
    chart(&charts[0], ["step", "loss (cross-entropy)"], range, UpperRight, &losses)?;

    let accuracies = [
        Line {
            label: "train",
            color: TRAIN,
            points: epochs.clone().map(|(x, epoch)| (x, epoch.train.accuracy)).collect(),
        },
        Line { label: "test", color: TEST, points: epochs.map(|(x, epoch)| (x, epoch.test.accuracy)).collect() },
    ];
    let (low, _) = bounds(&accuracies);
    chart(&charts[1], ["step", "accuracy"], (low - 0.02).max(0.0)..1.005, LowerRight, &accuracies)?;

    let rates = [Line { label: "rate", color: TRAIN, points: steps.map(|(x, step)| (x, step.rate)).collect() }];
    let (_, high) = bounds(&rates);
    chart(&charts[2], ["step", "learning rate"], 0.0..high * 1.05, UpperRight, &rates)?;
    area.present()?;
    Ok(())
}

fn draw_panels(runs: &[Run], rows: usize, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    area.fill(&WHITE)?;
    let backend = runs.first().map_or("", |run| &run.backend);
    let title = format!("digits: accuracy of all optimizers over the epochs, on {backend}");
    let panels = area.titled(&title, (FONT, 22))?.split_evenly((rows, COLUMNS));
    let others: Vec<_> = runs.iter().map(|run| accuracies(run, |epoch| &epoch.test)).collect();
    for (run, panel) in runs.iter().zip(&panels) {
        let train = accuracies(run, |epoch| &epoch.train);
        let test = accuracies(run, |epoch| &epoch.test);
        let lines = others.iter().map(|points| (points, FAINT)).chain([(&train, TRAIN), (&test, TEST)]);
        let mut chart = ChartBuilder::on(panel)
            .caption(format!("{}  {:.3}", run.optimizer.name, run.last().test.accuracy), (FONT, 15))
            .margin(8)
            .x_label_area_size(18)
            .y_label_area_size(38)
            .build_cartesian_2d(1.0..run.epochs.len().max(2) as f64, LOWEST..1.0)?;
        chart
            .configure_mesh()
            .x_labels(5)
            .y_labels(5)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.2}"))
            .label_style((FONT, 12))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (points, color) in lines {
            chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        }
    }
    let labels = [("test, with its last value", TEST), ("train", TRAIN), ("the other optimizers' test", FAINT)];
    if let Some(place) = panels.get(runs.len()) {
        for ((label, color), y) in labels.into_iter().zip((60..).step_by(24)) {
            place.draw(&PathElement::new([(46, y), (70, y)], color.stroke_width(3)))?;
            place.draw(&Text::new(label, (78, y - 7), (FONT, 14)))?;
        }
        place.draw(&Text::new(format!("below {LOWEST:.2}: on the edge"), (46, 130), (FONT, 14)))?;
    }
    area.present()?;
    Ok(())
}

/// The points of one line in those charts.
fn accuracies(run: &Run, part: fn(&Epoch) -> &Evaluation) -> Vec<(f64, f64)> {
    let epochs = run.epochs.iter().zip(1_u32..);
    epochs.map(|(epoch, index)| (f64::from(index), part(epoch).accuracy.max(LOWEST))).collect()
}
