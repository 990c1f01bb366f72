//! The curves of a run as SVG that sits in a page: its text takes the page's colour, and nothing is behind it.

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;
use zamba_train::log::StepRecord;

/// Width and heights in units of the picture, which is scaled to the page.
const WIDTH: u32 = 760;
const LOSS_HEIGHT: u32 = 380;
const RATE_HEIGHT: u32 = 190;
/// Stands for the colour of the page's text, which is put in afterwards.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_HEX: &str = "#010203";
/// Phases in order; these are readable on white and on black.
const PHASES: [RGBColor; 2] = [RGBColor(59, 130, 246), RGBColor(234, 88, 12)];
/// Points of a curve at most; a picture has no more columns.
const POINTS: usize = 600;
/// The smooth curve is a mean over this part of a phase.
const SMOOTH: usize = 40;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Points = Vec<(f64, f64)>;

/// Loss above, learning rate below, over the steps of all phases.
pub(super) fn svg(records: &[StepRecord]) -> anyhow::Result<String> {
    let mut svg = String::new();
    draw(&mut svg, records).map_err(|error| anyhow!("cannot draw the curves: {error}"))?;
    // A fixed size would not fit a phone; the picture's own coordinates scale.
    let size = format!("width=\"{WIDTH}\" height=\"{}\" ", LOSS_HEIGHT + RATE_HEIGHT);
    Ok(svg.replace(INK_HEX, "currentColor").replacen(&size, "", 1))
}

fn draw(svg: &mut String, records: &[StepRecord]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (WIDTH, LOSS_HEIGHT + RATE_HEIGHT)).into_drawing_area();
    let (upper, lower) = root.split_vertically(LOSS_HEIGHT);
    let finite: Vec<&StepRecord> = records.iter().filter(|r| r.loss.is_finite()).collect();
    let phases: Vec<&[&StepRecord]> = finite.chunk_by(|a, b| a.phase == b.phase).collect();
    let steps = records.len().max(2) as f64;
    losses(&upper, &phases, steps)?;
    rates(&lower, &phases, steps)?;
    root.present()?;
    Ok(())
}

fn losses(area: &Area<'_>, phases: &[&[&StepRecord]], steps: f64) -> Result<(), Box<dyn std::error::Error>> {
    let all = || phases.iter().flat_map(|phase| phase.iter()).map(|r| r.loss);
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let margin = ((high - low) * 0.05).max(0.01);
    let (low, high) = if low <= high { (low - margin, high + margin) } else { (0.0, 1.0) };
    let mut chart = builder(area).build_cartesian_2d(0.0..steps, low..high)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK.mix(0.5))
        .label_style(("sans-serif", 17, &INK))
        .y_desc("loss, nats per token")
        .x_labels(6)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.1}"))
        .draw()?;
    for (phase, colour) in phases.iter().zip(PHASES) {
        let (raw, smooth) = curves(phase);
        chart.draw_series(LineSeries::new(raw, colour.mix(0.3)))?;
        chart
            .draw_series(LineSeries::new(smooth, colour.stroke_width(3)))?
            .label(phase[0].phase.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 17, &INK))
        .border_style(TRANSPARENT)
        .draw()?;
    Ok(())
}

fn rates(area: &Area<'_>, phases: &[&[&StepRecord]], steps: f64) -> Result<(), Box<dyn std::error::Error>> {
    let highest = phases.iter().flat_map(|phase| phase.iter()).fold(0.0, |high: f64, r| high.max(r.lr));
    let mut chart = builder(area).build_cartesian_2d(0.0..steps, 0.0..highest.max(1e-12) * 1.08)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK.mix(0.5))
        .label_style(("sans-serif", 17, &INK))
        .x_desc("step")
        .y_desc("learning rate")
        .x_labels(6)
        .y_labels(4)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0e}"))
        .draw()?;
    for (phase, colour) in phases.iter().zip(PHASES) {
        let points = phase.iter().step_by(phase.len().div_ceil(POINTS)).map(|r| (r.step as f64, r.lr));
        chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
    }
    Ok(())
}

fn builder<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder.margin(8).x_label_area_size(44).y_label_area_size(68);
    builder
}

/// The losses of a phase, and their running mean.
fn curves(phase: &[&StepRecord]) -> (Points, Points) {
    let window = (phase.len() / SMOOTH).max(1);
    let stride = phase.len().div_ceil(POINTS);
    let mean = |end: usize| {
        let part = &phase[(end + 1).saturating_sub(window)..=end];
        part.iter().map(|r| r.loss).sum::<f64>() / part.len() as f64
    };
    let step = |i: usize| phase[i].step as f64;
    let at = || (0..phase.len()).step_by(stride);
    (at().map(|i| (step(i), phase[i].loss)).collect(), at().map(|i| (step(i), mean(i))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, phase: &str, loss: f64) -> StepRecord {
        StepRecord {
            step,
            phase: phase.into(),
            loss,
            lr: 1e-3 / step as f64,
            grad_norm: 1.0,
            tokens: step,
            tokens_per_second: 1.0,
            mfu: None,
            seconds: step as f64,
            skipped: None,
        }
    }

    #[test]
    fn the_picture_has_both_phases_and_no_colour_of_its_own_for_text() {
        let mut records: Vec<_> =
            (1..=5000).map(|s| record(s, "pretrain", 8.0 / (s as f64).sqrt())).collect();
        records.extend((5001..=5100).map(|s| record(s, "anneal", 0.1)));
        records[9].loss = f64::NAN;
        let svg = svg(&records).unwrap();
        for word in ["<svg", "viewBox", "pretrain", "anneal", "learning rate", "loss, nats", "currentColor"] {
            assert!(svg.contains(word), "no {word}");
        }
        assert!(!svg.contains(INK_HEX) && !svg.contains("NaN"));
        assert!(!svg[..svg.find('>').unwrap()].contains("width="), "the page decides the size");
        assert!(svg.len() < 200_000, "{} bytes", svg.len());
    }

    #[test]
    fn runs_of_two_steps_and_of_no_finite_loss_can_be_drawn() {
        svg(&[record(1, "a", 2.0), record(2, "b", 2.0)]).unwrap();
        svg(&[record(1, "a", f64::NAN), record(2, "b", f64::NAN)]).unwrap();
    }
}
