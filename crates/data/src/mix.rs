//! The order of a run's data: sample `i` of a phase is a function of the seed and of `i` alone.
//!
//! Nothing here knows the batch size, the accumulation, the number of workers or of machines, so none of them can
//! change which text a run sees, and a run that is stopped goes on at sample `i + 1` without a replay.
//!
//! - **Stream of a source.** Epoch after epoch, each a seeded permutation of the documents, joined end to end without
//!   end. Row `j` of the source is the window of `seq_len + 1` tokens from stream position `j * seq_len` on:
//!   neighbours share one token, which is the last target of one and the first input of the other, so every token but
//!   the first of each document is predicted exactly once per epoch. A document cut by the end of a row goes on in
//!   the next row of its source, as a new span that starts from zero state.
//! - **Blend.** Which source serves sample `i` is Megatron-LM's greedy rule (see `blend.rs`); the source's rows
//!   are taken in order.
//! - **Phases.** A later phase that uses a source again goes on where the earlier phases stopped reading it, so replay
//!   shows rows not yet seen for as long as there are any, and then the next epoch. This needs the number of samples
//!   of every earlier phase ([`PhaseSpec::samples`]).
//!
//! Memory: 8 bytes per document in the shard's index and 4 per document and cached epoch (two per source).

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::blend::Blend;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::order::EpochOrder;
use crate::sample::{Piece, Sample, assemble};
use crate::shards::Shard;

/// A named set of shards that is sampled as one.
pub struct Source {
    /// The name by which phases refer to it. It is part of the key of the order of its documents.
    pub name: String,
    /// Its shards; their documents count through in this order.
    pub shards: Vec<Shard>,
}

impl Source {
    /// Opens and verifies the shards at `prefixes` (paths without `.idx` or `.bin`).
    ///
    /// # Errors
    /// As [`Shard::open`].
    pub fn open<P: AsRef<Path>>(fs: &Arc<dyn Fs>, name: &str, prefixes: &[P]) -> Result<Source> {
        let shards =
            prefixes.iter().map(|prefix| Shard::open(fs.clone(), prefix.as_ref())).collect::<Result<_>>()?;
        Ok(Source { name: name.to_owned(), shards })
    }
}

/// One phase of a run, as a recipe writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseSpec {
    /// The name by which later phases refer to it.
    pub name: String,
    /// Rows that the phase consumes: steps × rows per step. The phase's own samples do not depend on it; where
    /// later phases go on does.
    pub samples: u64,
    /// The phase's own sources.
    #[serde(default)]
    pub sources: Vec<SourceWeight>,
    /// An earlier phase to go on reading from.
    #[serde(default)]
    pub replay: Option<Replay>,
}

/// A source and its weight; weights need not sum to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceWeight {
    /// Name of a [`Source`].
    pub source: String,
    /// Positive; relative to the other weights of the phase.
    pub weight: f64,
}

/// Replay of an earlier phase: its whole mixture, scaled to a fraction of this one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// Name of an earlier phase.
    pub phase: String,
    /// Its part of the samples, in `0..=1`.
    pub fraction: f64,
}

/// What a range of samples was made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Realised {
    /// The source.
    pub name: String,
    /// Its normalised weight in the phase.
    pub weight: f64,
    /// Samples in the range that it served.
    pub samples: u64,
    /// Input tokens of those samples.
    pub tokens: u64,
    /// How often its documents have been read through at the end of the range, earlier phases included.
    pub epochs: f64,
}

/// The mixtures of all phases over a set of sources.
pub struct Mixture {
    sources: Vec<Stream>,
    phases: Vec<Phase>,
    seed: u64,
    seq_len: usize,
}

struct Phase {
    name: String,
    samples: u64,
    /// Index of the source of each member of the blend.
    members: Vec<usize>,
    blend: Blend,
    /// For each member, the row of its source's stream at which the phase begins.
    first_rows: Vec<u64>,
}

struct Stream {
    name: String,
    shards: Vec<Shard>,
    /// `firsts[s]` is the number of documents before shard s; one more entry at the end.
    firsts: Vec<u32>,
    tokens: u64,
    orders: Mutex<Vec<(u64, Arc<EpochOrder>)>>,
}

/// Epoch orders kept per source: a row may lie across the border of two.
const CACHED_EPOCHS: usize = 2;

impl Mixture {
    /// The mixtures of `phases` over `sources`, cut in rows of `seq_len`.
    ///
    /// # Errors
    /// If a phase or weight makes no sense, a source holds no token, or shards come from different tokenizers.
    pub fn new(sources: Vec<Source>, phases: &[PhaseSpec], seed: u64, seq_len: usize) -> Result<Mixture> {
        if seq_len == 0 || seq_len >= u32::MAX as usize {
            return Err(Error::Mixture("seq_len must be between 1 and 2^32 - 2".into()));
        }
        if phases.is_empty() {
            return Err(Error::Mixture("no phase is given; name at least one".into()));
        }
        check_tokenizers(&sources)?;
        let sources = sources.into_iter().map(Stream::new).collect::<Result<Vec<_>>>()?;
        for (i, source) in sources.iter().enumerate() {
            if sources[..i].iter().any(|other| other.name == source.name) {
                return Err(Error::Mixture(format!("source `{}` is given twice; rename one", source.name)));
            }
        }
        let mut mixture = Mixture { sources, phases: Vec::new(), seed, seq_len };
        for spec in phases {
            let phase = mixture.expand(spec)?;
            mixture.phases.push(phase);
        }
        Ok(mixture)
    }

    /// Sample `i` of phase `phase`. `i` may lie beyond the phase's own length: the streams do not end.
    ///
    /// # Errors
    /// If a shard that is too large to be held in memory changed under us or cannot be read.
    ///
    /// # Panics
    /// If `phase` is out of range.
    pub fn sample(&self, phase: usize, i: u64) -> Result<Sample> {
        let (source, row) = self.row(phase, i);
        let stream = &self.sources[source];
        assemble(&stream.shards, &stream.pieces(self.seed, row, self.seq_len), source)
    }

    /// The source of sample `i`, and which documents are in it: the runs of tokens of its window, which has one token
    /// more than the row has positions.
    ///
    /// # Panics
    /// If `phase` is out of range.
    pub fn pieces(&self, phase: usize, i: u64) -> (usize, Vec<Piece>) {
        let (source, row) = self.row(phase, i);
        (source, self.sources[source].pieces(self.seed, row, self.seq_len))
    }

    /// What the samples `from..to` of a phase are made of.
    ///
    /// # Panics
    /// If `phase` is out of range or `from > to`.
    pub fn realised(&self, phase: usize, from: u64, to: u64) -> Vec<Realised> {
        assert!(from <= to, "the range {from}..{to} is reversed");
        let phase = &self.phases[phase];
        let before = phase.blend.counts_before(from);
        let after = phase.blend.counts_before(to);
        let member = |m: usize| {
            let stream = &self.sources[phase.members[m]];
            let rows = phase.first_rows[m] + after[m];
            Realised {
                name: stream.name.clone(),
                weight: phase.blend.weights()[m],
                samples: after[m] - before[m],
                tokens: (after[m] - before[m]) * self.seq_len as u64,
                epochs: rows as f64 * self.seq_len as f64 / stream.tokens as f64,
            }
        };
        (0..phase.members.len()).map(member).collect()
    }

    /// A hash of all that decides the samples of `phase`: contents of the shards, weights, seed, row length, and the
    /// lengths of the phases before. Two mixtures with the same fingerprint give the same samples.
    ///
    /// # Panics
    /// If `phase` is out of range.
    pub fn fingerprint(&self, phase: usize) -> String {
        let mut text = format!("zamba-data mixture 1\nseed {}\nseq_len {}\n", self.seed, self.seq_len);
        for (p, one) in self.phases[..=phase].iter().enumerate() {
            // The length of a phase decides only where later ones go on.
            let samples = if p < phase { one.samples.to_string() } else { String::new() };
            text += &format!("phase {p} {samples}\n");
            for (&source, weight) in one.members.iter().zip(one.blend.weights()) {
                let stream = &self.sources[source];
                text += &format!("source {:?} weight {:016x}\n", stream.name, weight.to_bits());
                for shard in &stream.shards {
                    let manifest = shard.manifest();
                    text += &format!("shard {} {}\n", manifest.idx.sha256, manifest.bin.sha256);
                }
            }
        }
        hex(&Sha256::digest(text.as_bytes()))
    }

    /// The largest vocabulary of any shard: every token id is below it.
    pub fn vocab_size(&self) -> u32 {
        self.sources.iter().flat_map(|source| &source.shards).map(Shard::vocab_size).max().unwrap_or(0)
    }

    /// Positions of a row.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Number of phases.
    pub fn phases(&self) -> usize {
        self.phases.len()
    }

    /// The phase of that name.
    pub fn phase_index(&self, name: &str) -> Option<usize> {
        self.phases.iter().position(|phase| phase.name == name)
    }

    /// Name and tokens per epoch of each source, in the order of [`Sample::source`].
    pub fn sources(&self) -> impl Iterator<Item = (&str, u64)> {
        self.sources.iter().map(|source| (source.name.as_str(), source.tokens))
    }

    /// Source and row of that source's stream of sample `i`.
    fn row(&self, phase: usize, i: u64) -> (usize, u64) {
        let phase = &self.phases[phase];
        let (member, row) = phase.blend.at(i);
        (phase.members[member], phase.first_rows[member] + row)
    }

    /// Resolves names and replay of one more phase and finds where its streams begin.
    fn expand(&self, spec: &PhaseSpec) -> Result<Phase> {
        let bad = |what: String| Err(Error::Mixture(format!("phase `{}`: {what}", spec.name)));
        if self.phase_index(&spec.name).is_some() {
            return bad("another phase has this name; rename one".into());
        }
        let mut own: Vec<(usize, f64)> = Vec::new();
        for SourceWeight { source, weight } in &spec.sources {
            let Some(index) = self.sources.iter().position(|stream| stream.name == *source) else {
                return bad(format!("source `{source}` is not defined; add it to the data sources"));
            };
            if own.iter().any(|&(other, _)| other == index) {
                return bad(format!("source `{source}` is listed twice; add up its weights"));
            }
            if !(weight.is_finite() && *weight > 0.0) {
                return bad(format!("weight {weight} of source `{source}` is not a positive number"));
            }
            own.push((index, *weight));
        }
        let mut parts = vec![(1.0, own)];
        if let Some(Replay { phase, fraction }) = &spec.replay {
            let Some(earlier) = self.phase_index(phase) else {
                return bad(format!("replays `{phase}`, which is not an earlier phase"));
            };
            if !(0.0..=1.0).contains(fraction) {
                return bad(format!("replay fraction {fraction} is not between 0 and 1"));
            }
            let earlier = &self.phases[earlier];
            let replayed =
                earlier.members.iter().copied().zip(earlier.blend.weights().iter().copied()).collect();
            parts[0].0 = 1.0 - fraction;
            parts.push((*fraction, replayed));
        }
        parts.retain(|&(share, _)| share > 0.0);
        if parts.iter().any(|(_, members)| members.is_empty()) {
            return bad("has no source; list some, or replay an earlier phase with fraction 1".into());
        }
        Ok(self.start(spec, merge(parts)))
    }

    fn start(&self, spec: &PhaseSpec, members: Vec<(usize, f64)>) -> Phase {
        let (members, weights): (Vec<usize>, Vec<f64>) = members.into_iter().unzip();
        let used = |source: usize| {
            let in_phase = |phase: &Phase| {
                let counts = phase.blend.counts_before(phase.samples);
                phase.members.iter().position(|&m| m == source).map_or(0, |member| counts[member])
            };
            self.phases.iter().map(in_phase).sum()
        };
        let first_rows = members.iter().map(|&source| used(source)).collect();
        Phase {
            name: spec.name.clone(),
            samples: spec.samples,
            members,
            blend: Blend::new(&weights),
            first_rows,
        }
    }
}

/// Adds up parts of a mixture, each normalised and scaled to its share; a source in two parts gets both weights.
fn merge(parts: Vec<(f64, Vec<(usize, f64)>)>) -> Vec<(usize, f64)> {
    let mut merged: Vec<(usize, f64)> = Vec::new();
    for (share, members) in parts {
        let sum: f64 = members.iter().map(|(_, weight)| weight).sum();
        for (source, weight) in members {
            let weight = share * weight / sum;
            match merged.iter_mut().find(|(other, _)| *other == source) {
                Some((_, total)) => *total += weight,
                None => merged.push((source, weight)),
            }
        }
    }
    merged
}

fn check_tokenizers(sources: &[Source]) -> Result<()> {
    let mut first: Option<&Shard> = None;
    for shard in sources.iter().flat_map(|source| &source.shards) {
        let hash = &shard.manifest().tokenizer_sha256;
        match first {
            _ if hash.is_empty() => {}
            None => first = Some(shard),
            Some(other) if other.manifest().tokenizer_sha256 == *hash => {}
            Some(other) => {
                return Err(Error::Mixture(format!(
                    "shards {} and {} were made with different tokenizers; tokenise one of them again",
                    other.prefix().display(),
                    shard.prefix().display()
                )));
            }
        }
    }
    Ok(())
}

impl Stream {
    fn new(source: Source) -> Result<Stream> {
        let mut firsts = vec![0];
        let mut documents = 0u64;
        for shard in &source.shards {
            documents += shard.documents();
            firsts.push(u32::try_from(documents).map_err(|_| {
                Error::Mixture(format!("source `{}` has more than 2^32 documents; split it", source.name))
            })?);
        }
        let tokens = source.shards.iter().map(Shard::tokens).sum();
        if tokens == 0 {
            return Err(Error::Mixture(format!("source `{}` holds no token; remove it", source.name)));
        }
        Ok(Stream {
            name: source.name,
            shards: source.shards,
            firsts,
            tokens,
            orders: Mutex::new(Vec::new()),
        })
    }

    /// The window of row `row`: `seq_len + 1` tokens.
    fn pieces(&self, seed: u64, row: u64, seq_len: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        // In 128 bits, so that a row number far beyond any run cannot wrap round to an earlier text.
        let position = u128::from(row) * seq_len as u128;
        let mut epoch = (position / u128::from(self.tokens)) as u64;
        let mut position = (position % u128::from(self.tokens)) as u64;
        let mut missing = seq_len as u32 + 1;
        while missing > 0 {
            let order = self.order(seed, epoch);
            for (document, doc_start) in order.from(position, |d| self.doc_len(d)) {
                let len = (self.doc_len(document) - doc_start).min(missing);
                if len > 0 {
                    let (shard, doc) = self.locate(document);
                    pieces.push(Piece { shard, doc, doc_start, len });
                }
                missing -= len;
                if missing == 0 {
                    break;
                }
            }
            (epoch, position) = (epoch + 1, 0);
        }
        pieces
    }

    fn order(&self, seed: u64, epoch: u64) -> Arc<EpochOrder> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(cached, _)| *cached == epoch) {
            return order.clone();
        }
        let documents = self.firsts[self.shards.len()];
        let order = Arc::new(EpochOrder::new(seed, &self.name, epoch, documents, |d| self.doc_len(d)));
        if orders.len() == CACHED_EPOCHS {
            orders.remove(0);
        }
        orders.push((epoch, order.clone()));
        order
    }

    /// Shard and document within it of a document of the source.
    fn locate(&self, document: u32) -> (usize, u64) {
        let shard = self.firsts.partition_point(|&first| first <= document) - 1;
        (shard, u64::from(document - self.firsts[shard]))
    }

    fn doc_len(&self, document: u32) -> u32 {
        let (shard, doc) = self.locate(document);
        self.shards[shard].doc_len(doc)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
