//! Measuring: tests, the limits beside them, and how both are shown.

pub(crate) mod kernels;
pub(crate) mod limits;
pub(crate) mod model;
pub(crate) mod profile;
pub(crate) mod timed;
pub(crate) mod train;

use std::time::Instant;

use serde::Serialize;

use crate::common::LoadArgs;
use crate::interrupt;
use crate::out;

/// Which tests of a model to run: every prompt length and every number of generated tokens at every depth with
/// every number of sequences.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) prompts: Vec<usize>,
    pub(crate) generated: Vec<usize>,
    pub(crate) depths: Vec<usize>,
    pub(crate) batches: Vec<usize>,
    pub(crate) repetitions: u32,
    pub(crate) first_token: bool,
    pub(crate) profile: bool,
    pub(crate) seed: u64,
    pub(crate) load: LoadArgs,
}

/// What a test did per token, by the rules of `zamba info`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PerToken {
    pub(crate) bytes: f64,
    pub(crate) flops: f64,
}

/// A test and its speed, beside the limits.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) test: String,
    pub(crate) tokens_per_second: f64,
    pub(crate) stddev: f64,
    pub(crate) best_tokens_per_second: f64,
    /// Weights, states, keys and values that are read for a token.
    pub(crate) bytes_per_token: f64,
    pub(crate) flops_per_token: f64,
    pub(crate) read_gbps: f64,
    pub(crate) gemm_tflops: f64,
    /// Bytes per second / read limit.
    pub(crate) fraction_of_read: f64,
    /// FLOPs per second / arithmetic limit.
    pub(crate) fraction_of_gemm: f64,
}

impl Row {
    /// A row from the speeds of its repetitions, in tokens per second, without limits yet.
    pub(crate) fn new(test: String, speeds: &[f64], each: PerToken) -> Row {
        let (mean, stddev) = mean_and_deviation(speeds);
        Row {
            test,
            tokens_per_second: mean,
            stddev,
            best_tokens_per_second: speeds.iter().copied().fold(0.0, f64::max),
            bytes_per_token: each.bytes,
            flops_per_token: each.flops,
            read_gbps: 0.0,
            gemm_tflops: 0.0,
            fraction_of_read: 0.0,
            fraction_of_gemm: 0.0,
        }
    }

    /// Sets the speed beside what the machine can do, per second.
    pub(crate) fn beside(&mut self, bytes: f64, flops: f64) {
        (self.read_gbps, self.gemm_tflops) = (bytes / 1e9, flops / 1e12);
        self.fraction_of_read = self.tokens_per_second * self.bytes_per_token / bytes;
        self.fraction_of_gemm = self.tokens_per_second * self.flops_per_token / flops;
    }
}

/// Prints rows as llama-bench does, with the limits in the last columns.
pub(crate) fn print(rows: &[Row]) -> anyhow::Result<()> {
    let heads = ["test", "t/s", "MB/token", "of read", "GFLOP/token", "of arithmetic"];
    let cells = |row: &Row| {
        [
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.tokens_per_second, row.stddev),
            format!("{:.1}", row.bytes_per_token / 1e6),
            format!("{:.1} %", 100.0 * row.fraction_of_read),
            format!("{:.3}", row.flops_per_token / 1e9),
            format!("{:.1} %", 100.0 * row.fraction_of_gemm),
        ]
    };
    table(&heads, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// Prints a table in Markdown: the first column to the left, the others to the right.
pub(crate) fn table<const N: usize>(heads: &[&str; N], rows: &[[String; N]]) -> anyhow::Result<()> {
    let width = |c: usize| {
        let cells = rows.iter().map(|row| row[c].chars().count());
        cells.chain([heads[c].chars().count()]).max().unwrap_or(0)
    };
    let line = |cells: &[String; N]| {
        let pad = |(c, cell): (usize, &String)| {
            let width = width(c);
            if c == 0 { format!("| {cell:width$} ") } else { format!("| {cell:>width$} ") }
        };
        cells.iter().enumerate().map(pad).collect::<String>() + "|"
    };
    out::line(&line(&heads.map(str::to_owned)))?;
    let rule = |c: usize| if c == 0 { "-".repeat(width(c)) } else { "-".repeat(width(c) - 1) + ":" };
    out::line(&line(&std::array::from_fn(rule)))?;
    rows.iter().try_for_each(|row| out::line(&line(row)))
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, if values.len() < 2 { 0.0 } else { (squares / (n - 1.0)).sqrt() })
}

/// Seconds of each of `repetitions` calls, after one that does not count; a call is told whether it does. Stops
/// between two when the user asks.
pub(crate) fn repeat(
    repetitions: u32,
    mut call: impl FnMut(bool) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<f64>> {
    call(false)?;
    (0..repetitions)
        .map(|_| {
            interrupt::check("nothing was measured")?;
            call(true)
        })
        .collect()
}

/// Seconds of one call.
pub(crate) fn seconds(call: impl FnOnce()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64().max(1e-9)
}

/// Random numbers for token ids: xorshift, of which any seed makes another stream.
pub(crate) struct Tokens {
    state: u64,
    vocab: u64,
}

impl Tokens {
    pub(crate) fn new(seed: u64, vocab: usize) -> Self {
        // Zero is the one state that xorshift never leaves.
        let state = (seed ^ 0x2545_f491_4f6c_dd1d).wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1);
        Tokens { state, vocab: vocab as u64 }
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        // Below the vocabulary, which is counted in u32.
        ((self.state >> 16) % self.vocab) as u32
    }

    pub(crate) fn take(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.next()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_mean_beside_the_limits() {
        let each = PerToken { bytes: 2e9, flops: 4e9 };
        let mut row = Row::new("tg1".into(), &[9.0, 10.0, 11.0], each);
        row.beside(25e9, 1e12);
        assert_eq!((row.tokens_per_second, row.stddev, row.best_tokens_per_second), (10.0, 1.0, 11.0));
        assert_eq!((row.read_gbps, row.gemm_tflops), (25.0, 1.0));
        assert!((row.fraction_of_read - 0.8).abs() < 1e-12 && (row.fraction_of_gemm - 0.04).abs() < 1e-12);
        assert_eq!(Row::new("tg1".into(), &[5.0], each).stddev, 0.0);
    }

    #[test]
    fn tokens_are_below_the_vocabulary_and_differ_by_seed() {
        let drawn = |seed| Tokens::new(seed, 300).take(50);
        assert!(drawn(1).iter().all(|t| *t < 300));
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }
}
