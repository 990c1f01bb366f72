//! A page of tables and plots that needs nothing else.

use std::fmt::Write;

use anyhow::anyhow;
use plotters::prelude::*;

use super::lengths::Lengths;
use crate::html::escape;

const STYLE: &str = include_str!("../../../demo/report.css");
/// Size in units of the picture, which is scaled to the page.
const SIZE: (u32, u32) = (760, 260);
/// Stands for the colour of the page's text, which is put in afterwards.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_HEX: &str = "#010203";
/// Readable on white and on black.
const BARS: [RGBColor; 2] = [RGBColor(59, 130, 246), RGBColor(234, 88, 12)];

/// A page that is being written.
pub(super) struct Page {
    title: String,
    body: String,
}

impl Page {
    pub(super) fn new(title: &str) -> Page {
        Page { title: escape(title), body: String::new() }
    }

    pub(super) fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(text));
    }

    /// A table; the first column is words, the others are numbers.
    pub(super) fn table<const N: usize>(&mut self, head: &[&str; N], rows: &[[String; N]]) {
        let class = |column: usize| if column == 0 { "" } else { " class=\"n\"" };
        self.body.push_str("<div class=\"scroll\"><table>\n");
        if head.iter().any(|name| !name.is_empty()) {
            let cells =
                head.iter().enumerate().map(|(i, name)| format!("<th{}>{}</th>", class(i), escape(name)));
            let _ = writeln!(self.body, "<tr>{}</tr>", cells.collect::<String>());
        }
        for row in rows {
            let cells =
                row.iter().enumerate().map(|(i, cell)| format!("<td{}>{}</td>", class(i), escape(cell)));
            let _ = writeln!(self.body, "<tr>{}</tr>", cells.collect::<String>());
        }
        self.body.push_str("</table></div>\n");
    }

    /// A histogram of documents, and of their tokens, by length.
    pub(super) fn lengths(&mut self, lengths: &Lengths) -> anyhow::Result<()> {
        if lengths.classes.is_empty() {
            return Ok(());
        }
        let mut svg = String::new();
        histogram(&mut svg, lengths).map_err(|error| anyhow!("cannot draw the histogram: {error}"))?;
        // A fixed size would not fit a phone; the picture's own coordinates scale.
        let size = format!("width=\"{}\" height=\"{}\" ", SIZE.0, SIZE.1);
        let svg = svg.replace(INK_HEX, "currentColor").replacen(&size, "", 1);
        let _ = writeln!(self.body, "<figure><div class=\"scroll\">{svg}</div></figure>");
        Ok(())
    }

    pub(super) fn html(&self) -> String {
        let (title, body) = (&self.title, &self.body);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
        )
    }
}

/// Two bars per class: its share of the documents and its share of the tokens.
fn histogram(svg: &mut String, lengths: &Lengths) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let classes = &lengths.classes;
    let documents = |i: usize| 100.0 * classes[i].documents as f64 / lengths.documents.max(1) as f64;
    let tokens = |i: usize| lengths.share(&classes[i]);
    let most = (0..classes.len()).map(|i| documents(i).max(tokens(i))).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .margin(8)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..classes.len() as f64, 0.0..most * 1.05)?;
    let label = |x: &f64| match classes.get(*x as usize) {
        Some(class) if x.fract() == 0.0 => class.from.to_string(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK.mix(0.5))
        .label_style(("sans-serif", 15, &INK))
        .x_desc("tokens of a document, from")
        .y_desc("%")
        .x_labels(classes.len().min(16) + 1)
        .y_labels(5)
        .x_label_formatter(&label)
        .draw()?;
    let shares: [(&dyn Fn(usize) -> f64, &str); 2] = [(&documents, "documents"), (&tokens, "tokens")];
    for (number, (share, name)) in shares.into_iter().enumerate() {
        let (colour, left) = (BARS[number], 0.08 + 0.42 * number as f64);
        let bar = |i: usize| {
            let x = i as f64 + left;
            Rectangle::new([(x, 0.0), (x + 0.42, share(i))], colour.filled())
        };
        chart
            .draw_series((0..classes.len()).map(bar))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 15, &INK))
        .border_style(TRANSPARENT)
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_its_tables_and_plots_and_fetches_nothing() {
        let mut page = Page::new("Shards <of> \"x\"");
        page.heading("a & b");
        page.table(&["source", "rows"], &[["<web>".to_owned(), "7".to_owned()]]);
        page.lengths(&Lengths::of((0..1000).map(|i| i * i))).unwrap();
        page.lengths(&Lengths::of(std::iter::empty())).unwrap();
        page.lengths(&Lengths::of(std::iter::once(3))).unwrap();
        let html = page.html();
        for word in [
            "Shards &lt;of&gt; &quot;x&quot;",
            "a &amp; b",
            "&lt;web&gt;",
            "<svg",
            "documents",
            "currentColor",
        ] {
            assert!(html.contains(word), "no {word}");
        }
        assert!(!html.contains(INK_HEX) && !html.contains("NaN"));
        assert!(!html.contains("src=") && !html.contains("href=") && !html.contains("url("));
    }
}
