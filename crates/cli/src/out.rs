//! Printing: results to standard output, notes to standard error.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

use crate::error::Stop;

/// Prints text as it is and at once.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    closed(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// Prints text and a line break.
pub(crate) fn line(line: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    closed(writeln!(stdout, "{line}").and_then(|()| stdout.flush()))
}

/// Prints one JSON document on one line.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value).context("cannot write the result as JSON")?)
}

/// Prints names and values in two columns.
pub(crate) fn table(rows: &[(&str, String)]) -> anyhow::Result<()> {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().try_for_each(|(name, value)| line(&format!("{name:width$}  {value}")))
}

/// Prints a line to standard error. Nobody may be listening there, and that is no reason to fail.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Prints to standard error without a line break.
pub(crate) fn prompt(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn closed(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Stop::OutputClosed.into()),
        result => result.context("cannot write to standard output"),
    }
}

/// A count with commas between thousands.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest binary unit that leaves a number of at least 1.
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.2} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(count(7_232_490_496), "7,232,490,496");
        assert_eq!(count(999), "999");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(u64::MAX), "16.00 EiB");
    }
}
