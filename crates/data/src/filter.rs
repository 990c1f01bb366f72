//! Keeping documents that are worth learning from, by rules with thresholds.
//!
//! The preset `zyda` is the filter of Zyda (arXiv 2406.01981, `zyda/utils/filtering.py` and `preprocess_and_filter.py`), `gopher`
//! the quality rules and the line and paragraph repetition rules of Gopher (arXiv 2112.11446, table A1) as datatrove has them, and
//! `fineweb` those and the line rules of FineWeb; `code` is about sources (The Stack). Any rule can be given another threshold or be
//! switched off, see [`Settings`]. A document is rejected by the first rule that it breaks, in the order of [`RULES`], then
//! patterns, then word lists.
//!
//! Differences from the originals, all of them on purpose:
//! - A letter or digit is one by Unicode's properties `Alphabetic` and `N*`; Python's `\w` leaves out some combining vowels, and its
//!   `\d` knows only decimal digits.
//! - Patterns and words are looked for as they are written. Zyda takes them for regular expressions, so that its `www.` also finds
//!   `www-`, and its `<?xml version=` also `xml version=`.
//! - Gopher and FineWeb count words with NLTK's English tokenizer. Here a word is a piece between white space without the ASCII
//!   punctuation around it; pieces of nothing but punctuation count as symbols.

mod measure;
mod rules;
mod settings;
mod terms;
#[cfg(test)]
mod tests;

pub use measure::{LineLengths, digit_share};
pub use rules::{RULES, Rule};
pub use settings::{Limit, Pattern, Preset, Settings, WordList};

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::error::Result;
use crate::fs::Fs;
use crate::job::ChunkRun;
use measure::Measures;
use settings::Resolved;
use terms::{Terms, count};

/// A filter that is ready to judge.
#[derive(Debug)]
pub struct Filter {
    settings: Resolved,
    lists: Vec<Terms>,
    config: Value,
}

/// What became of a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict<'a> {
    /// It may stay, as this: runs of the same character may have been shortened.
    Keep(Cow<'a, str>),
    /// It broke this rule.
    Reject {
        /// The rule, or the pattern or word list.
        rule: &'a str,
        /// What was measured.
        measured: f64,
    },
}

impl Filter {
    /// Reads the word lists that the settings name.
    ///
    /// # Errors
    /// If a setting is unknown or makes no sense, or a list cannot be read.
    pub fn new(fs: &dyn Fs, settings: &Settings) -> Result<Filter> {
        let resolved = settings.resolve()?;
        let lists: Vec<Terms> =
            resolved.words.iter().map(|list| Terms::read(fs, &list.file)).collect::<Result<_>>()?;
        let words: Vec<Value> = resolved
            .words
            .iter()
            .zip(&lists)
            .map(|(list, terms)| {
                json!({
                    "name": list.name, "max_count": list.max_count, "max_share": list.max_share,
                    "words": terms.len(), "sha256": terms.sha256(),
                })
            })
            .collect();
        let rules: serde_json::Map<String, Value> =
            resolved.rules.iter().map(|(rule, limit)| (rule.name.to_owned(), json!(limit))).collect();
        let config = json!({
            "collapse_runs": resolved.collapse_runs,
            "skip_sources": resolved.skip_sources,
            "rules": rules,
            "patterns": resolved.patterns,
            "words": words,
        });
        Ok(Filter { settings: resolved, lists, config })
    }

    /// All that decides what the filter does: the part of a job's identity that is its own.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Judges a text.
    pub fn judge<'a>(&'a self, text: &'a str, source: &str) -> Verdict<'a> {
        if self.settings.skip_sources.iter().any(|skipped| skipped == source) {
            return Verdict::Keep(Cow::Borrowed(text));
        }
        let measures = Measures::new(text, self.settings.collapse_runs);
        for (rule, limit) in &self.settings.rules {
            let measured = (rule.measure)(&measures);
            if rule.breaks(measured, *limit) {
                return Verdict::Reject { rule: rule.name, measured };
            }
        }
        let chars = measures.chars().max(1) as f64;
        let over = |found: f64, max_count: Option<f64>, max_share: Option<f64>| {
            if max_count.is_some_and(|most| found > most) {
                return Some(found);
            }
            max_share.is_some_and(|most| found / chars > most).then_some(found / chars)
        };
        for pattern in &self.settings.patterns {
            let found = count(text, &pattern.text) as f64;
            if let Some(measured) = over(found, pattern.max_count, pattern.max_share) {
                return Verdict::Reject { rule: &pattern.text, measured };
            }
        }
        for (list, terms) in self.settings.words.iter().zip(&self.lists) {
            let found = terms.count(text) as f64;
            if let Some(measured) = over(found, list.max_count, list.max_share) {
                return Verdict::Reject { rule: &list.name, measured };
            }
        }
        Verdict::Keep(measures.into_text())
    }

    /// Filters a chunk; the work of a [`crate::job::Job`]. Counts: `kept`, and `rejected: RULE` each. With `keep_rejected`, what is
    /// rejected goes to the stream `rejected`, with the fields `rejected_by` and `measured`.
    ///
    /// # Errors
    /// If reading or writing fails.
    pub fn run(&self, chunk: &mut ChunkRun<'_>, keep_rejected: bool) -> Result<()> {
        while let Some(mut document) = chunk.next()? {
            match self.judge(&document.text, &document.source) {
                Verdict::Keep(Cow::Borrowed(_)) => {
                    chunk.count("kept", 1);
                    chunk.keep(&document)?;
                }
                Verdict::Keep(Cow::Owned(text)) => {
                    chunk.count("kept", 1);
                    document.text = text;
                    chunk.keep(&document)?;
                }
                Verdict::Reject { rule, measured } => {
                    chunk.count(&format!("rejected: {rule}"), 1);
                    if keep_rejected {
                        document.meta.insert("rejected_by".into(), json!(rule));
                        document.meta.insert("measured".into(), json!(measured));
                        chunk.put("rejected", &document)?;
                    }
                }
            }
        }
        Ok(())
    }
}
