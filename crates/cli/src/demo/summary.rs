//! The account of a demo: what is printed, and what the report is made from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::corpus::CorpusSummary;
use super::plan::ModelCounts;
use super::results::{PartScores, Sample};
use super::training::RunCounts;
use crate::out;

/// Seconds of each chapter.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Seconds {
    #[serde(flatten)]
    pub(super) chapters: BTreeMap<&'static str, f64>,
    pub(super) total: f64,
    #[serde(skip)]
    last: Instant,
}

impl Seconds {
    pub(super) fn new() -> Self {
        Seconds { chapters: BTreeMap::new(), total: 0.0, last: Instant::now() }
    }

    /// A chapter has just ended.
    pub(super) fn end(&mut self, chapter: &'static str) {
        self.chapters.insert(chapter, self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }
}

/// Everything that a demo found out.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Summary {
    pub(super) out: PathBuf,
    pub(super) report: PathBuf,
    pub(super) seed: u64,
    pub(super) device: String,
    pub(super) isa: String,
    pub(super) threads: usize,
    pub(super) corpus: CorpusSummary,
    pub(super) model: ModelCounts,
    pub(super) run: RunCounts,
    pub(super) bits_per_byte: Vec<PartScores>,
    pub(super) samples: Vec<Sample>,
    pub(super) seconds: Seconds,
}

impl Summary {
    /// Prints what a person wants to know.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        out::line("")?;
        for sample in self.samples.iter().filter(|sample| sample.phase == 2) {
            out::line(&format!("{}{} ...\n", sample.prompt, sample.text.trim_end()))?;
        }
        out::line("bits per byte of held-out text    bytes  unigram  gzip -9  phase 1  phase 2")?;
        for s in &self.bits_per_byte {
            out::line(&format!(
                "{:<29} {:>9} {:>8.3} {:>8.3} {:>8.3} {:>8.3}",
                s.part.title(),
                out::count(s.bytes),
                s.unigram,
                s.gzip,
                s.phase1,
                s.phase2
            ))?;
        }
        out::line("")?;
        let model = self.out.join("phase2");
        out::table(&[
            ("parameters", out::count(self.model.parameters)),
            ("steps", out::count(self.run.steps)),
            ("tokens", out::count(self.run.tokens)),
            ("tokens per second", format!("{:.0}", self.run.tokens_per_second)),
            ("seconds in all", format!("{:.0}", self.seconds.total)),
            ("report", self.report.display().to_string()),
            ("model", model.display().to_string()),
            ("go on", format!("zamba generate -m {} -p \"This crate\"", model.display())),
        ])
    }
}
