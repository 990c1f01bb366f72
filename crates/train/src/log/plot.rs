//! `loss.svg`: the loss of each phase and the learning rate over the steps.

use super::StepRecord;
use plotters::prelude::*;
use std::ops::Range;

/// Points drawn at most per phase; more than the picture has pixels would only make it heavy.
const MAX_POINTS: usize = 1000;
const SIZE: (u32, u32) = (960, 540);
const PHASE_COLOURS: [RGBColor; 5] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];
const LR_COLOUR: RGBColor = RGBColor(150, 150, 150);

/// A phase's name and its curves as (step, value) points.
struct Curve {
    name: String,
    loss: Vec<(f64, f64)>,
    lr: Vec<(f64, f64)>,
}

/// The picture, or `None` when there is nothing to draw yet.
pub(super) fn loss_svg(history: &[StepRecord]) -> Option<String> {
    let curves = curves(history);
    if curves.iter().map(|c| c.loss.len()).sum::<usize>() < 2 {
        return None;
    }
    let mut svg = String::new();
    // Drawing into a string fails only on sizes that are not used here.
    draw(&mut svg, &curves).ok()?;
    Some(svg)
}

fn curves(history: &[StepRecord]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for phase in history.chunk_by(|a, b| a.phase == b.phase) {
        let good: Vec<&StepRecord> = phase.iter().filter(|r| r.loss.is_finite()).collect();
        let bucket = good.len().div_ceil(MAX_POINTS).max(1);
        let mean = |part: &[&StepRecord], f: fn(&StepRecord) -> f64| {
            part.iter().map(|r| f(r)).sum::<f64>() / part.len() as f64
        };
        let points = |f: fn(&StepRecord) -> f64| {
            good.chunks(bucket).map(|part| (mean(part, |r| r.step as f64), mean(part, f))).collect()
        };
        curves.push(Curve { name: phase[0].phase.clone(), loss: points(|r| r.loss), lr: points(|r| r.lr) });
    }
    curves
}

/// Smallest and largest of one coordinate, a little apart so that a flat curve has an axis.
fn span<'a>(points: impl Iterator<Item = &'a (f64, f64)>, pick: fn(&(f64, f64)) -> f64) -> Range<f64> {
    let (lo, hi) =
        points.map(pick).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let margin = ((hi - lo) * 0.05).max(hi.abs() * 1e-3).max(1e-12);
    lo - margin..hi + margin
}

fn draw(svg: &mut String, curves: &[Curve]) -> Result<(), Box<dyn std::error::Error>> {
    let loss = || curves.iter().flat_map(|c| &c.loss);
    let steps = span(loss(), |p| p.0);
    let losses = span(loss(), |p| p.1);
    let rates = 0.0..span(curves.iter().flat_map(|c| &c.lr), |p| p.1).end;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .right_y_label_area_size(70)
        .build_cartesian_2d(steps.clone(), losses)?
        .set_secondary_coord(steps, rates);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("step")
        .y_desc("loss (nats per token)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()?;
    chart
        .configure_secondary_axes()
        .y_desc("learning rate")
        .y_label_formatter(&|y| format!("{y:.1e}"))
        .draw()?;
    for (i, curve) in curves.iter().enumerate() {
        chart.draw_secondary_series(LineSeries::new(curve.lr.iter().copied(), LR_COLOUR))?;
        let colour = PHASE_COLOURS[i % PHASE_COLOURS.len()];
        chart
            .draw_series(LineSeries::new(curve.loss.iter().copied(), colour.stroke_width(2)))?
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(LR_COLOUR)
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn the_picture_shows_every_phase_and_both_axes() {
        let mut history: Vec<_> =
            (1..=3000).map(|s| record(s, "pretrain", 9.0 / (s as f64).sqrt())).collect();
        history.extend((3001..=3100).map(|s| record(s, "anneal", 0.1)));
        history[5].loss = f64::NAN;
        let svg = loss_svg(&history).unwrap();
        for word in ["<svg", "pretrain", "anneal", "learning rate", "loss (nats per token)", "step"] {
            assert!(svg.contains(word), "no {word}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(svg.len() < 200_000, "{} bytes", svg.len());
    }

    #[test]
    fn too_little_to_draw_is_no_picture() {
        assert!(loss_svg(&[]).is_none());
        assert!(loss_svg(&[record(1, "a", 1.0)]).is_none());
        assert!(loss_svg(&[record(1, "a", 1.0), record(2, "a", 1.0)]).is_some());
    }
}
