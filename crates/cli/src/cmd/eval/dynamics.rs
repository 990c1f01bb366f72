//! The course of figures over a run: a table, a picture and a page.

use std::fmt::Write;

use plotters::coord::Shift;
use plotters::prelude::*;
use serde::Serialize;
use zamba_eval::Figure;

use crate::html::escape;

/// The figures of a checkpoint.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Point {
    pub(super) step: u64,
    /// Tokens trained on.
    pub(super) tokens: u64,
    /// Phase of the last step.
    pub(super) phase: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bits_per_byte: Option<f64>,
    pub(super) scores: Vec<Score>,
}

/// A figure of a benchmark.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Score {
    task: String,
    metric: String,
    filter: String,
    value: f64,
    stderr: Option<f64>,
}

impl From<Figure> for Score {
    fn from(f: Figure) -> Self {
        Score { task: f.task, metric: f.metric, filter: f.filter, value: f.value, stderr: f.error }
    }
}

impl Score {
    fn name(&self) -> String {
        match self.filter.as_str() {
            "none" => format!("{} {}", self.task, self.metric),
            filter => format!("{} {} ({filter})", self.task, self.metric),
        }
    }
}

/// A figure at one number of tokens, with its standard error.
type Value = (f64, f64, Option<f64>);

/// A figure over the run.
struct Curve {
    name: String,
    values: Vec<Value>,
}

/// A picture of figures that have an axis in common.
struct Panel {
    title: &'static str,
    curves: Vec<Curve>,
}

const WIDTH: u32 = 960;
const HEIGHT: u32 = 420;
/// Curves in a picture; more cannot be told apart. The subjects of a group give way to the group.
const CURVES: usize = 12;
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
];
const GREY: RGBColor = RGBColor(120, 120, 120);

fn panels(points: &[Point]) -> Vec<Panel> {
    let bits: Vec<Value> =
        points.iter().filter_map(|p| p.bits_per_byte.map(|b| (p.tokens as f64, b, None))).collect();
    let mut shares: Vec<Curve> = vec![];
    let mut others: Vec<Curve> = vec![];
    for point in points {
        for score in &point.scores {
            let list = if matches!(score.metric.as_str(), "acc" | "acc_norm" | "acc_bytes" | "exact_match") {
                &mut shares
            } else {
                &mut others
            };
            let value = (point.tokens as f64, score.value, score.stderr);
            let name = score.name();
            match list.iter_mut().find(|c| c.name == name) {
                Some(curve) => curve.values.push(value),
                None => list.push(Curve { name, values: vec![value] }),
            }
        }
    }
    // Groups come last, and are what remains of many.
    shares.drain(..shares.len().saturating_sub(CURVES));
    let bits =
        if bits.is_empty() { vec![] } else { vec![Curve { name: "bits per byte".into(), values: bits }] };
    let mut panels = vec![
        Panel { title: "benchmark score", curves: shares },
        Panel { title: "bits per byte", curves: bits },
    ];
    panels.extend(
        others.into_iter().map(|curve| Panel { title: "perplexity and the like", curves: vec![curve] }),
    );
    panels.retain(|panel| !panel.curves.is_empty());
    panels
}

/// Tokens at which a phase ended and another began, with the name of that.
fn changes(points: &[Point]) -> Vec<(f64, &str)> {
    let pairs = points.windows(2).filter(|p| p[0].phase != p[1].phase);
    pairs.map(|p| (p[0].tokens as f64, p[1].phase.as_str())).collect()
}

/// The pictures, one below the other, as one SVG.
pub(super) fn charts(points: &[Point]) -> anyhow::Result<String> {
    let panels = panels(points);
    let mut svg = String::new();
    let drawn = (|| -> Result<(), Box<dyn std::error::Error>> {
        let height = HEIGHT * panels.len().max(1) as u32;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, panel) in root.split_evenly((panels.len().max(1), 1)).iter().zip(&panels) {
            draw(area, panel, points)?;
        }
        root.present()?;
        Ok(())
    })();
    drawn.map_err(|e| anyhow::anyhow!("cannot draw the figures: {e}"))?;
    Ok(svg)
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    panel: &Panel,
    points: &[Point],
) -> Result<(), Box<dyn std::error::Error>> {
    let finite = || panel.curves.iter().flat_map(|c| &c.values).filter(|v| v.1.is_finite());
    let error = |v: &Value| v.2.unwrap_or(0.0);
    let low = finite().fold(f64::INFINITY, |m, v| m.min(v.1 - error(v)));
    let high = finite().fold(f64::NEG_INFINITY, |m, v| m.max(v.1 + error(v)));
    let (low, high) = if low.is_finite() { (low, high) } else { (0.0, 1.0) };
    let margin = ((high - low) * 0.08).max(high.abs() * 0.01).max(1e-9);
    let end = points.iter().map(|p| p.tokens as f64).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(panel.title, ("sans-serif", 20))
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end * 1.04, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("tokens trained on")
        .x_label_formatter(&|x| short(*x))
        .draw()?;
    for (tokens, phase) in changes(points) {
        let line = [(tokens, low - margin), (tokens, high + margin)];
        chart.draw_series(DashedLineSeries::new(line, 6, 4, GREY.stroke_width(1)))?;
        let label = format!("{phase} begins");
        chart.draw_series([Text::new(
            label,
            (tokens, high + margin * 0.7),
            ("sans-serif", 15).into_font().color(&GREY),
        )])?;
    }
    for (i, curve) in panel.curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let values = || curve.values.iter().filter(|v| v.1.is_finite());
        chart
            .draw_series(LineSeries::new(values().map(|v| (v.0, v.1)), colour.stroke_width(2)))?
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(values().map(|v| Circle::new((v.0, v.1), 3, colour.filled())))?;
        let bar = |v: &Value, e: f64| PathElement::new([(v.0, v.1 - e), (v.0, v.1 + e)], colour.mix(0.5));
        chart.draw_series(values().filter_map(|v| v.2.map(|e| bar(v, e))))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(GREY.mix(0.5))
        .draw()?;
    Ok(())
}

/// A count with a unit of a thousand.
fn short(x: f64) -> String {
    for (size, unit) in [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")] {
        if x >= size {
            let value = format!("{:.1}", x / size);
            return format!("{}{unit}", value.strip_suffix(".0").unwrap_or(&value));
        }
    }
    format!("{x:.0}")
}

/// Rows of a table in columns: a checkpoint each.
pub(super) fn table(points: &[Point]) -> Vec<String> {
    let rows = rows(points);
    let width = |column: usize| rows.iter().map(|r| r[column].len()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().enumerate().map(|(i, cell)| format!("{cell:>0$}", width(i))).collect();
        cells.join("  ")
    };
    rows.iter().map(line).collect()
}

/// Heads, and then a row for each checkpoint.
fn rows(points: &[Point]) -> Vec<Vec<String>> {
    let mut names: Vec<String> = vec![];
    for score in points.iter().flat_map(|p| &p.scores) {
        let name = score.name();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let bits = points.iter().any(|p| p.bits_per_byte.is_some());
    let mut heads: Vec<String> = ["step", "tokens", "phase"].map(str::to_owned).to_vec();
    heads.extend(bits.then(|| "bits per byte".to_owned()));
    heads.extend(names.iter().cloned());
    let mut rows = vec![heads];
    for point in points {
        let mut row = vec![point.step.to_string(), short(point.tokens as f64), point.phase.clone()];
        if bits {
            row.push(point.bits_per_byte.map(|b| format!("{b:.4}")).unwrap_or_default());
        }
        for name in &names {
            let score = point.scores.iter().find(|s| s.name() == *name);
            let error = |s: &Score| s.stderr.map(|e| format!(" ± {e:.4}")).unwrap_or_default();
            row.push(score.map(|s| format!("{:.4}{}", s.value, error(s))).unwrap_or_default());
        }
        rows.push(row);
    }
    rows
}

/// A page with the pictures and the table, without anything from elsewhere.
pub(super) fn page(run: &str, points: &[Point], charts: &str) -> String {
    let mut table = String::new();
    for (i, row) in rows(points).iter().enumerate() {
        let tag = if i == 0 { "th" } else { "td" };
        table.push_str("<tr>");
        for cell in row {
            // Writing to a string cannot fail.
            let _ = write!(table, "<{tag}>{}</{tag}>", escape(cell));
        }
        table.push_str("</tr>\n");
    }
    let run = escape(run);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Learning dynamics of {run}</title>\n\
         <style>body{{font:16px sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222;background:#fff}}\
         svg{{max-width:100%;height:auto}}div{{overflow-x:auto}}\
         table{{border-collapse:collapse}}td,th{{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}}</style>\
         </head><body>\n<h1>Learning dynamics of {run}</h1>\n\
         <p>Figures of every checkpoint against the tokens that it was trained on. Dashed lines mark where a phase of \
         training begins; bars are standard errors.</p>\n{charts}\n<div><table>\n{table}</table></div>\n</body></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, phase: &str, acc: f64) -> Point {
        let score = |task: &str, metric: &str, value| Score {
            task: task.into(),
            metric: metric.into(),
            filter: "none".into(),
            value,
            stderr: Some(0.05),
        };
        Point {
            step,
            tokens: step * 1_500_000,
            phase: phase.into(),
            bits_per_byte: Some(3.0 / step as f64),
            scores: vec![score("piqa", "acc", acc), score("lambada", "perplexity", 100.0 * acc)],
        }
    }

    #[test]
    fn pictures_and_page_show_figures_and_the_change_of_phase() {
        let points = [point(1, "pretrain", 0.5), point(2, "pretrain", 0.6), point(3, "anneal<", 0.8)];
        let svg = charts(&points).unwrap();
        for word in [
            "<svg",
            "piqa acc",
            "bits per byte",
            "lambada perplexity",
            "anneal&lt; begins",
            "tokens trained on",
        ] {
            assert!(svg.contains(word), "no {word}");
        }
        assert_eq!(changes(&points), [(3_000_000.0, "anneal<")]);
        let page = page("run<1>", &points, &svg);
        for word in ["run&lt;1&gt;", "<td>4.5M</td>", "<td>0.8000 ± 0.0500</td>", "<td>anneal&lt;</td>"] {
            assert!(page.contains(word), "no {word}");
        }
        assert!(
            !page.contains("http://")
                || page.matches("http://").count() == page.matches("http://www.w3.org").count()
        );
        assert_eq!(table(&points).len(), 4);
    }

    #[test]
    fn one_checkpoint_and_figures_that_are_no_numbers_can_be_drawn() {
        charts(&[point(1, "a", f64::NAN)]).unwrap();
        charts(&[]).unwrap();
    }
}
