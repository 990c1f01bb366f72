//! The table of figures.

use serde_json::Value;

use super::Results;
use crate::python;

impl Results {
    /// The table that lm-evaluation-harness prints, in Markdown.
    pub fn table(&self) -> String {
        let mut rows: Vec<[String; 9]> = vec![];
        let heads = ["Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"];
        rows.push(heads.map(str::to_owned));
        let mut last = None;
        for figure in &self.figures {
            let name = figure.task.as_str();
            let first = last != Some(name);
            last = Some(name);
            let shown = |value: &Value| if first { python::str(value) } else { String::new() };
            let arrow = if figure.higher_is_better { "↑" } else { "↓" };
            rows.push([
                shown(&name.into()),
                shown(&self.document["versions"][name]),
                figure.filter.clone(),
                python::str(&self.document["n-shot"][name]).replace("None", ""),
                figure.metric.clone(),
                arrow.to_owned(),
                format!("{:.4}", figure.value),
                "±".to_owned(),
                figure.error.map_or("N/A".to_owned(), |e| format!("{e:.4}")),
            ]);
        }
        table(&rows)
    }
}

/// Rows as a Markdown table; the first are the heads. Numbers go to the right.
fn table(rows: &[[String; 9]]) -> String {
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0).max(1);
    let right = [1, 3, 6, 8];
    let line = |row: &[String; 9]| {
        let cells: Vec<String> = (0..9)
            .map(|c| {
                let (cell, width) = (&row[c], width(c));
                if right.contains(&c) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            })
            .collect();
        format!("|{}|\n", cells.join("|"))
    };
    let rule: Vec<String> = (0..9)
        .map(|c| {
            let dashes = "-".repeat(width(c).saturating_sub(1));
            if right.contains(&c) { dashes + ":" } else { dashes + "-" }
        })
        .collect();
    let mut text = rows.first().map(line).unwrap_or_default();
    text.push_str(&format!("|{}|\n", rule.join("|")));
    text.extend(rows.iter().skip(1).map(line));
    text
}
