//! Counting substrings: one, or a list of them at once.

use std::path::Path;

use aho_corasick::AhoCorasick;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::mix::hex;

/// Occurrences of a string, none overlapping the one before.
pub(super) fn count(text: &str, term: &str) -> u64 {
    match term.as_bytes() {
        [byte] => memchr::memchr_iter(*byte, text.as_bytes()).count() as u64,
        bytes => memchr::memmem::find_iter(text.as_bytes(), bytes).count() as u64,
    }
}

/// A list of words, or of other strings, to look for.
#[derive(Debug)]
pub(super) struct Terms {
    automaton: AhoCorasick,
    terms: usize,
    sha256: String,
}

/// The ways in which a list may be written; a text with a word per line is the fourth.
#[derive(Deserialize)]
#[serde(untagged)]
enum Listed {
    Array(Vec<String>),
    Object { words: Vec<String> },
}

impl Terms {
    /// Reads a list: a JSON array of strings, an object with such an array as `words`, or a word per line.
    pub(super) fn read(fs: &dyn Fs, path: &Path) -> Result<Terms> {
        let bad = |what: String| Error::Input { path: path.to_owned(), what };
        let bytes = fs.read(path).map_err(Error::io(path, "read"))?;
        let text = String::from_utf8(bytes).map_err(|_| bad("is not UTF-8; convert it".into()))?;
        let mut terms: Vec<String> = match serde_json::from_str(&text) {
            Ok(Listed::Array(words) | Listed::Object { words }) => words,
            Err(_) if text.trim_start().starts_with(['[', '{']) => {
                return Err(bad(
                    "is neither a JSON array of strings nor an object with one as `words`".into()
                ));
            }
            Err(_) => text.lines().map(|line| line.trim().to_owned()).collect(),
        };
        terms.retain(|term| !term.is_empty());
        terms.sort();
        terms.dedup();
        if terms.is_empty() {
            return Err(bad("holds no words; leave the list out instead".into()));
        }
        let sha256 = hex(&Sha256::digest(terms.join("\n")));
        let automaton = AhoCorasick::new(&terms).map_err(|error| bad(format!("is too large: {error}")))?;
        Ok(Terms { automaton, terms: terms.len(), sha256 })
    }

    /// Occurrences of all of them: each is counted by itself, so one inside another counts too, as if the text were searched for
    /// every one in turn.
    pub(super) fn count(&self, text: &str) -> u64 {
        let mut ends = vec![0; self.terms];
        let mut count = 0;
        for found in self.automaton.find_overlapping_iter(text) {
            let end = &mut ends[found.pattern().as_usize()];
            if found.start() >= *end {
                *end = found.end();
                count += 1;
            }
        }
        count
    }

    pub(super) fn len(&self) -> usize {
        self.terms
    }

    pub(super) fn sha256(&self) -> &str {
        &self.sha256
    }
}
