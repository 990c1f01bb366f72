//! The account of what was found.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// Sources in the table, the largest.
const SOURCES: usize = 20;

/// What was found and what stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Documents read.
    pub documents: u64,
    /// Documents that stay: one of each cluster.
    pub kept: u64,
    /// Bytes of their texts, before and after.
    pub bytes: u64,
    /// See `bytes`.
    pub bytes_kept: u64,
    /// Documents whose text is, byte for byte, that of an earlier one; part of `documents - kept`, the rest shares a band.
    pub equal: u64,
    /// The same by source.
    pub sources: BTreeMap<String, SourceCount>,
    /// How many clusters have how many documents; of size 1 are those without a duplicate.
    pub cluster_sizes: BTreeMap<u32, u64>,
    /// The largest clusters.
    pub examples: Vec<Example>,
}

/// Counts of one source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceCount {
    /// Documents read.
    pub documents: u64,
    /// Documents that stay.
    pub kept: u64,
    /// Bytes of their texts, before and after.
    pub bytes: u64,
    /// See `bytes`.
    pub bytes_kept: u64,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// Its documents.
    pub size: u32,
    /// Some of them, the one that stays first.
    pub members: Vec<Member>,
}

/// A document of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its chunk.
    pub chunk: usize,
    /// Its number within the chunk.
    pub index: usize,
    /// Its source.
    pub source: String,
    /// Whether it stays.
    pub kept: bool,
    /// Length of its text.
    pub bytes: u64,
    /// Its id and how it begins; empty until somebody looks it up.
    #[serde(default)]
    pub text: String,
}

impl Report {
    /// The account as a table for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        // Writing to a string does not fail.
        let _ =
            writeln!(out, "{:<24} {:>12} {:>12} {:>7} {:>9}", "source", "documents", "kept", "%", "MB kept");
        let total = SourceCount {
            documents: self.documents,
            kept: self.kept,
            bytes: self.bytes,
            bytes_kept: self.bytes_kept,
        };
        let mut rows: Vec<(&str, &SourceCount)> =
            self.sources.iter().map(|(name, s)| (name.as_str(), s)).collect();
        rows.sort_by_key(|(_, s)| std::cmp::Reverse(s.documents));
        rows.truncate(if rows.len() > 1 { SOURCES } else { 0 });
        for (name, s) in rows.into_iter().chain([("all", &total)]) {
            let (percent, mb) = (share(s.kept, s.documents), s.bytes_kept as f64 / 1e6);
            let _ = writeln!(out, "{name:<24} {:>12} {:>12} {percent:>7.2} {mb:>9.1}", s.documents, s.kept);
        }
        let near = self.documents - self.kept - self.equal;
        let _ = writeln!(out, "removed: {} equal to another, {near} near another", self.equal);
        let _ = writeln!(out, "{:<24} {:>12} {:>12}", "documents in a cluster", "clusters", "documents");
        for ((low, high), (clusters, documents)) in self.size_classes() {
            let range = if low == high { low.to_string() } else { format!("{low} to {high}") };
            let _ = writeln!(out, "{range:<24} {clusters:>12} {documents:>12}");
        }
        for example in self.examples.iter().filter(|example| !example.members[0].text.is_empty()).take(5) {
            let _ = writeln!(out, "a cluster of {}:", example.size);
            for member in &example.members {
                let fate = if member.kept { "kept" } else { "gone" };
                let _ = writeln!(out, "  {fate} {:>9} B  {}", member.bytes, member.text);
            }
        }
        out
    }

    /// Sizes in classes 1, 2, 3-4, 5-8, ...; for each the clusters and their documents.
    fn size_classes(&self) -> BTreeMap<(u32, u32), (u64, u64)> {
        let mut classes = BTreeMap::new();
        for (&size, &clusters) in &self.cluster_sizes {
            let high = size.checked_next_power_of_two().unwrap_or(u32::MAX);
            let low = if high <= 2 { high } else { high / 2 + 1 };
            let (c, d): &mut (u64, u64) = classes.entry((low, high)).or_default();
            *c += clusters;
            *d += clusters * u64::from(size);
        }
        classes
    }
}
