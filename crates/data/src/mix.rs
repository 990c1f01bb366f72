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
//! - **Rows.** The rows that begin in one epoch are taken in a seeded order of their own, as Megatron-LM does with its
//!   shuffle index: taken one after the other, a document of a hundred rows would be all that a small batch sees for
//!   as many rows.
//! - **Blend.** Which source serves sample `i` is Megatron-LM's greedy rule (see `blend.rs`).
//! - **Caps.** A source that would be read more often than its `max_epochs` until the end of a phase gets a smaller
//!   weight in it, the others in proportion more.
//! - **Phases.** A later phase that uses a source again goes on where the earlier phases stopped reading it, so replay
//!   shows rows not yet seen for as long as there are any, and then the next epoch. This needs the number of samples
//!   of every earlier phase ([`PhaseSpec::samples`]).
//!
//! Memory: 8 bytes per document in the shard's index, and 4 per document and per row for each cached epoch (two per
//! source).

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::blend::Blend;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::sample::{Piece, Sample, assemble};
use crate::shards::Shard;
use stream::Stream;

mod caps;
mod stream;

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
    /// Rows that the phase consumes: steps × rows per step. The phase's own samples depend on it only by way of
    /// [`SourceWeight::max_epochs`]; where later phases go on always does.
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
    /// How often its documents may have been read at the end of the phase, earlier phases included; any number of
    /// times if not given. A phase that replays this one keeps to it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_epochs: Option<f64>,
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
    /// What that would be without [`SourceWeight::max_epochs`].
    pub uncapped: f64,
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

/// What a phase wants of a source.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    weight: f64,
    max_epochs: Option<f64>,
}

struct Phase {
    name: String,
    samples: u64,
    /// Index of the source of each member of the blend.
    members: Vec<usize>,
    /// What was asked for; the blend has the weights that caps left of it.
    wanted: Vec<Wanted>,
    blend: Blend,
    /// For each member, the row of its source's stream at which the phase begins.
    first_rows: Vec<u64>,
}

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
        let sources =
            sources.into_iter().map(|source| Stream::new(source, seq_len)).collect::<Result<Vec<_>>>()?;
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
        assemble(&stream.shards, &stream.pieces(self.seed, row), source)
    }

    /// The source of sample `i`, and which documents are in it: the runs of tokens of its window, which has one token
    /// more than the row has positions.
    ///
    /// # Panics
    /// If `phase` is out of range.
    pub fn pieces(&self, phase: usize, i: u64) -> (usize, Vec<Piece>) {
        let (source, row) = self.row(phase, i);
        (source, self.sources[source].pieces(self.seed, row))
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
                uncapped: phase.wanted[m].weight,
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
        let mut text = format!("zamba-data mixture 2\nseed {}\nseq_len {}\n", self.seed, self.seq_len);
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

    /// The shards of a source, by its number in [`Sample::source`] and [`Mixture::sources`].
    ///
    /// # Panics
    /// If there is no such source.
    pub fn shards(&self, source: usize) -> &[Shard] {
        &self.sources[source].shards
    }

    /// Source of sample `i`, and how many rows were taken from it before.
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
        let mut own: Vec<(usize, Wanted)> = Vec::new();
        for SourceWeight { source, weight, max_epochs } in &spec.sources {
            let Some(index) = self.sources.iter().position(|stream| stream.name == *source) else {
                return bad(format!("source `{source}` is not defined; add it to the data sources"));
            };
            if own.iter().any(|&(other, _)| other == index) {
                return bad(format!("source `{source}` is listed twice; add up its weights"));
            }
            if !(weight.is_finite() && *weight > 0.0) {
                return bad(format!("weight {weight} of source `{source}` is not a positive number"));
            }
            if max_epochs.is_some_and(|most| !(most.is_finite() && most > 0.0)) {
                let most = max_epochs.unwrap_or_default();
                return bad(format!("max_epochs {most} of source `{source}` is not a positive number"));
            }
            own.push((index, Wanted { weight: *weight, max_epochs: *max_epochs }));
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
            let wanted = earlier.blend.weights().iter().zip(&earlier.wanted);
            let wanted = wanted.map(|(&weight, wanted)| Wanted { weight, ..*wanted });
            let replayed = earlier.members.iter().copied().zip(wanted).collect();
            parts[0].0 = 1.0 - fraction;
            parts.push((*fraction, replayed));
        }
        parts.retain(|&(share, _)| share > 0.0);
        if parts.iter().any(|(_, members)| members.is_empty()) {
            return bad("has no source; list some, or replay an earlier phase with fraction 1".into());
        }
        self.start(spec, merge(parts))
    }

    fn start(&self, spec: &PhaseSpec, members: Vec<(usize, Wanted)>) -> Result<Phase> {
        let (mut members, mut wanted): (Vec<usize>, Vec<Wanted>) = members.into_iter().unzip();
        let used = |source: usize| {
            let in_phase = |phase: &Phase| {
                let counts = phase.blend.counts_before(phase.samples);
                phase.members.iter().position(|&m| m == source).map_or(0, |member| counts[member])
            };
            self.phases.iter().map(in_phase).sum()
        };
        let mut first_rows: Vec<u64> = members.iter().map(|&source| used(source)).collect();
        let room = |m: usize| {
            let tokens = wanted[m].max_epochs? * self.sources[members[m]].tokens as f64;
            Some(((tokens / self.seq_len as f64) as u64).saturating_sub(first_rows[m]))
        };
        let rooms: Vec<Option<u64>> = (0..members.len()).map(room).collect();
        let mut weights = caps::weights(&wanted, &rooms, spec.samples).ok_or_else(|| {
            let rows: u64 = rooms.iter().flatten().sum();
            Error::Mixture(format!(
                "phase `{}`: its {} rows are more than the {rows} or so that max_epochs leaves of its sources; raise \
                 max_epochs, add a source, or shorten the phase",
                spec.name, spec.samples
            ))
        })?;
        // A source with no room left is not read at all.
        let some: Vec<bool> = weights.iter().map(|&weight| weight > 0.0).collect();
        retain(&mut members, &some);
        retain(&mut wanted, &some);
        retain(&mut first_rows, &some);
        retain(&mut weights, &some);
        let (name, samples) = (spec.name.clone(), spec.samples);
        Ok(Phase { name, samples, members, wanted, blend: Blend::new(&weights), first_rows })
    }
}

fn retain<T>(items: &mut Vec<T>, some: &[bool]) {
    let mut some = some.iter();
    items.retain(|_| some.next() == Some(&true));
}

/// Adds up parts of a mixture, each normalised and scaled to its share; a source in two parts gets both weights and the
/// smaller cap. The weights of the result sum to 1.
fn merge(parts: Vec<(f64, Vec<(usize, Wanted)>)>) -> Vec<(usize, Wanted)> {
    let mut merged: Vec<(usize, Wanted)> = Vec::new();
    for (share, members) in parts {
        let sum: f64 = members.iter().map(|(_, wanted)| wanted.weight).sum();
        for (source, Wanted { weight, max_epochs }) in members {
            let weight = share * weight / sum;
            match merged.iter_mut().find(|(other, _)| *other == source) {
                Some((_, both)) => {
                    both.weight += weight;
                    both.max_epochs = both.max_epochs.into_iter().chain(max_epochs).reduce(f64::min);
                }
                None => merged.push((source, Wanted { weight, max_epochs })),
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

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
