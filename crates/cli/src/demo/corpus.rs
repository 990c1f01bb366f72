//! From files on disk to token shards: what is trained on, and what is held out to measure with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use zamba_data::baseline;
use zamba_data::bpe::{Bpe, MARKS};
use zamba_data::fs::Fs;
use zamba_data::gather::{self, Count, Document, GatherOptions, Kind, Report, Rule, SplitSummary};
use zamba_data::tokenise;
use zamba_data::{Shard, ShardSpec};

use super::clean::{self, Cleaned};
use super::folder::Folder;
use crate::out;
use crate::progress::{Progress, Unit};

/// Least and most code and prose to gather. The least is what fills the held-out parts.
const TEXT_BYTES: [u64; 2] = [16 << 20, 64 << 20];
/// Share of the text that is kept away from training; a sample of it is measured.
const HELD_OUT: f64 = 0.04;
/// Bytes of each part that are measured: enough to tell models apart, little enough to take seconds.
const MEASURED_BYTES: usize = 48 << 10;
/// No single document is more than this share of what is measured.
const MEASURED_SHARE: usize = 4;
/// Longest piece of text to train on. Rows are cut from one document after the other, so a document of hundreds of
/// rows would be all that a small batch sees for as many steps.
const PIECE_BYTES: usize = 2 << 10;
/// Text that the tokenizer learns from.
const TOKENIZER_BYTES: usize = 6 << 20;
/// Entries of the tokenizer, and rows of the model's embedding.
const VOCABULARY: u32 = 4096;

/// The two parts of the text. Phase 1 trains on the first, phase 2 on the second and on the first again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Part {
    /// Source code with its comments, read-me files, guides.
    Text,
    /// The running text of documentation comments: the part of higher quality.
    DocProse,
}

impl Part {
    pub(super) const ALL: [Part; 2] = [Part::Text, Part::DocProse];

    /// Its name for people.
    pub(super) fn title(self) -> &'static str {
        match self {
            Part::Text => "code and text",
            Part::DocProse => "documentation prose",
        }
    }

    /// Name of the shard to train on.
    pub(super) fn train_shard(self) -> &'static str {
        match self {
            Part::Text => "train-text",
            Part::DocProse => "train-doc-prose",
        }
    }

    /// Name of the shard to measure with.
    pub(super) fn held_out_shard(self) -> &'static str {
        match self {
            Part::Text => "held-out-text",
            Part::DocProse => "held-out-doc-prose",
        }
    }

    pub(super) fn has(self, document: &Document) -> bool {
        (document.kind == Kind::DocProse) == (self == Part::DocProse)
    }
}

/// The documents as they were found.
pub(super) struct Found {
    source: String,
    documents: Vec<Document>,
    report: Report,
}

/// The documents, before they are tokens.
pub(super) struct Texts {
    source: String,
    train: Vec<Document>,
    held_out: Vec<Document>,
    report: Report,
    cleaned: Vec<Cleaned>,
    split: SplitSummary,
}

/// Finds about `bytes` of text in files that are worth a look.
pub(super) fn gather(fs: &dyn Fs, text: Option<&Path>, bytes: u64, seed: u64) -> anyhow::Result<Found> {
    let (source, packages) = match text {
        Some(dir) => (dir.display().to_string(), gather::folder_packages(fs, dir).context("--text")?),
        None => {
            let home = cargo_home()?;
            let packages = gather::cargo_packages(fs, &home).context("give a folder with --text")?;
            ("the crates that cargo has fetched".to_owned(), packages)
        }
    };
    let [least, most] = TEXT_BYTES;
    let options = GatherOptions { max_bytes: bytes.clamp(least, most), seed, ..GatherOptions::default() };
    let gathered = gather::gather(fs, &packages, &options)?;
    let report = gathered.report;
    out::note(&format!("   {} files in {} packages of {source}", out::count(report.files), report.packages));
    for (rule, count) in &report.left_out {
        out::note(&format!("   {:>8} left out: {}", out::count(count.files), rule_words(*rule)));
    }
    for (kind, count) in &report.kept {
        out::note(&format!(
            "   {:>8} kept: {}, {}",
            out::count(count.files),
            kind_words(*kind),
            out::bytes(count.bytes)
        ));
    }
    Ok(Found { source, documents: gathered.documents, report })
}

/// Leaves out what is not worth learning from or there twice, and holds out whole families of packages.
pub(super) fn clean(folder: &Folder, found: Found, seed: u64) -> anyhow::Result<Texts> {
    let Found { source, documents, report } = found;
    let (documents, cleaned) = clean::run(folder, documents)?;
    let split = gather::split(documents, HELD_OUT, seed)?;
    let (groups, what) = (
        split.summary.groups.len(),
        if split.summary.by_family { "families of crates" } else { "documents" },
    );
    out::note(&format!("   {groups} {what} held out"));
    let (train, held_out, split) = (split.train, split.held_out, split.summary);
    Ok(Texts { source, train, held_out, report, cleaned, split })
}

/// Where cargo keeps what it has fetched.
fn cargo_home() -> anyhow::Result<PathBuf> {
    let set = std::env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let home = set.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    home.context("there is no home folder to look for cargo's sources in; set CARGO_HOME, or give a folder with --text")
}

/// A rule in words.
pub(super) fn rule_words(rule: Rule) -> String {
    let words = match rule {
        Rule::NotAFile => "links, pipes, devices",
        Rule::Unreadable => "cannot be read",
        Rule::Hidden => "hidden or built",
        Rule::Extension => "neither code nor prose by name",
        Rule::Lock => "lock files",
        Rule::TestData => "data of tests",
        Rule::Licence => "licences",
        Rule::TooSmall => "too small",
        Rule::TooLarge => "too large",
        Rule::Binary => "binary",
        Rule::Generated => "written by a program",
        Rule::LongLines => "lines too long to be typed",
        Rule::Digits => "mostly digits",
        Rule::Duplicate => "exact duplicates",
        Rule::PackageShare => "the package has given its share",
        Rule::NotNeeded => "not looked at: there was enough",
        other => return format!("{other:?}"),
    };
    words.to_owned()
}

/// A kind of document in words.
pub(super) fn kind_words(kind: Kind) -> &'static str {
    match kind {
        Kind::Code => "source code",
        Kind::Prose => "read-me files and guides",
        Kind::DocProse => "documentation prose",
    }
}

/// A shard in numbers.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ShardCounts {
    pub(super) name: &'static str,
    pub(super) documents: u64,
    pub(super) bytes: u64,
    pub(super) tokens: u64,
}

/// The tokenizer in numbers.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TokenizerCounts {
    pub(super) vocabulary: u32,
    pub(super) trained_on_bytes: usize,
}

/// What a held-out part costs without a model, in bits per byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct Baselines {
    pub(super) unigram: f64,
    pub(super) gzip: f64,
}

/// The text as the run sees it.
pub(super) struct Corpus {
    source: String,
    report: Report,
    cleaned: Vec<Cleaned>,
    split: SplitSummary,
    pub(super) tokenizer: TokenizerCounts,
    shards: Vec<ShardCounts>,
    /// Held-out shards in the order of [`Part::ALL`].
    pub(super) held_out: Vec<(Part, Shard, Baselines)>,
}

/// The account of the text.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CorpusSummary {
    pub(super) source: String,
    pub(super) packages: u64,
    pub(super) files: u64,
    pub(super) left_out: BTreeMap<Rule, Count>,
    pub(super) kept: BTreeMap<Kind, Count>,
    pub(super) cleaned: Vec<Cleaned>,
    pub(super) split: SplitSummary,
    pub(super) tokenizer: TokenizerCounts,
    pub(super) shards: Vec<ShardCounts>,
}

impl Corpus {
    pub(super) fn summary(&self) -> CorpusSummary {
        CorpusSummary {
            source: self.source.clone(),
            packages: self.report.packages,
            files: self.report.files,
            left_out: self.report.left_out.clone(),
            kept: self.report.kept.clone(),
            cleaned: self.cleaned.clone(),
            split: self.split.clone(),
            tokenizer: self.tokenizer.clone(),
            shards: self.shards.clone(),
        }
    }

    /// Tokens of both held-out parts.
    pub(super) fn held_out_tokens(&self) -> u64 {
        self.held_out.iter().map(|(_, shard, _)| shard.tokens()).sum()
    }
}

/// Trains the tokenizer, writes the four shards, and measures what the held-out parts cost without a model.
pub(super) fn tokenise(folder: &Folder, texts: Texts) -> anyhow::Result<Corpus> {
    let sample = evenly(texts.train.iter(), TOKENIZER_BYTES, 1);
    let trained_on_bytes = sample.iter().map(|document| document.text.len()).sum();
    let bpe = Bpe::train(sample.into_iter().map(|document| document.text.as_str()), VOCABULARY)?;
    let fs = folder.fs();
    // Longer sequences than those of training work as well; no position is encoded.
    bpe.save(&**fs, &folder.tokenizer(), super::plan::CONTEXT)?;
    let tokenizer = TokenizerCounts { vocabulary: bpe.vocab_size(), trained_on_bytes };
    fs.create_dirs(&folder.shard(""))
        .with_context(|| format!("cannot make {}", folder.shard("").display()))?;

    let mut shards = Vec::new();
    let mut train = Vec::new();
    let mut measured = Vec::new();
    for part in Part::ALL {
        let documents = texts.train.iter().filter(|d| part.has(d));
        let pieces: Vec<&str> = documents.flat_map(|document| pieces(&document.text)).collect();
        let (counts, shard) = write(folder, &bpe, part.train_shard(), &pieces)?;
        shards.push(counts);
        train.push(shard);
        let documents = evenly(texts.held_out.iter().filter(|d| part.has(d)), MEASURED_BYTES, MEASURED_SHARE);
        let documents: Vec<&str> = documents.into_iter().map(|document| document.text.as_str()).collect();
        let (counts, shard) = write(folder, &bpe, part.held_out_shard(), &documents)?;
        shards.push(counts);
        measured.push((part, documents, shard));
    }
    let train: Vec<&Shard> = train.iter().collect();
    let mut held_out = Vec::new();
    for (part, documents, shard) in measured {
        let unigram = baseline::unigram_bits_per_byte(&train, &shard)?;
        let gzip = baseline::gzip_bits_per_byte(documents)?;
        held_out.push((part, shard, Baselines { unigram, gzip }));
    }
    let Texts { source, report, cleaned, split, .. } = texts;
    Ok(Corpus { source, report, cleaned, split, tokenizer, shards, held_out })
}

/// Whole documents of about `bytes` bytes in all, spread evenly over those given; ones of more than a `share`-th of that
/// are passed over, so that none outweighs the others.
fn evenly<'a>(
    documents: impl Iterator<Item = &'a Document>,
    bytes: usize,
    share: usize,
) -> Vec<&'a Document> {
    let eligible: Vec<&Document> =
        documents.filter(|document| document.text.len() <= bytes / share).collect();
    let total: usize = eligible.iter().map(|document| document.text.len()).sum();
    if total <= bytes {
        return eligible;
    }
    // Each document moves the aim on by its share of the room, and is taken if that brings the sum closer to the aim.
    let (mut aim, mut taken) = (0.0, 0.0);
    let keep = |document: &&Document| {
        let len = document.text.len() as f64;
        aim += len * bytes as f64 / total as f64;
        let take = taken + len / 2.0 <= aim && taken + len <= bytes as f64;
        taken += if take { len } else { 0.0 };
        take
    };
    eligible.into_iter().filter(keep).collect()
}

/// A text in pieces of at most [`PIECE_BYTES`], cut after a blank line or at least after a line where there is one.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > PIECE_BYTES {
        let longest = &rest[..rest.floor_char_boundary(PIECE_BYTES)];
        let after = |end: &str| longest.rfind(end).map(|at| at + end.len());
        let blank = after("\n\n").filter(|&at| at > PIECE_BYTES / 2);
        let (piece, remaining) = rest.split_at(blank.or_else(|| after("\n")).unwrap_or(longest.len()));
        pieces.push(piece);
        rest = remaining;
    }
    pieces.push(rest);
    pieces
}

/// Tokenises texts into a shard, and opens it.
fn write(
    folder: &Folder,
    bpe: &Bpe,
    name: &'static str,
    texts: &[&str],
) -> anyhow::Result<(ShardCounts, Shard)> {
    let fs = folder.fs().clone();
    let prefix = folder.shard(name);
    let spec = ShardSpec { vocab_size: bpe.vocab_size(), tokenizer_sha256: bpe.sha256() };
    let total = texts.iter().map(|text| text.len() as u64).sum();
    let mut progress = Progress::new("tokenising", total, Unit::Bytes);
    let manifest = tokenise::tokenise(
        fs.clone(),
        texts.iter().map(|text| Ok(*text)),
        &|text| bpe.encode(text).map_err(|error| error.to_string()),
        MARKS,
        spec,
        &prefix,
        &mut |done| progress.set(done.bytes),
    )?;
    drop(progress);
    let counts = ShardCounts {
        name,
        documents: manifest.documents,
        bytes: manifest.source_bytes,
        tokens: manifest.tokens,
    };
    out::note(&format!(
        "   {name}: {} texts, {}, {} tokens",
        out::count(counts.documents),
        out::bytes(counts.bytes),
        out::count(counts.tokens)
    ));
    Ok((counts, Shard::open(fs, &prefix)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_short_and_lose_nothing() {
        let blank = "fn f() {}\nfn g() {}\n\n".repeat(500);
        let texts = [blank, "ü".repeat(5_000), "a line\n".repeat(1_000), "short".to_owned()];
        for text in &texts {
            let pieces = pieces(text);
            assert_eq!(pieces.concat(), *text);
            assert!(pieces.iter().all(|piece| (1..=PIECE_BYTES).contains(&piece.len())));
        }
        assert!(pieces(&texts[0]).iter().all(|piece| piece.ends_with("\n\n")));
        assert!(pieces(&texts[2]).iter().all(|piece| piece.ends_with('\n')));
        assert_eq!(pieces(&texts[3]), ["short"]);
    }

    fn document(id: usize, len: usize) -> Document {
        Document { id: format!("{id:04}"), family: "f".into(), kind: Kind::Code, text: "x".repeat(len) }
    }

    #[test]
    fn a_sample_is_spread_evenly_and_keeps_its_bounds() {
        let documents: Vec<_> = (0..1000).map(|i| document(i, 100 + (i * 7919) % 900)).collect();
        let sample = evenly(documents.iter(), 20_000, 8);
        let bytes: usize = sample.iter().map(|d| d.text.len()).sum();
        assert!((19_000..=20_000).contains(&bytes), "{bytes}");
        let first_half = sample.iter().filter(|d| d.id.as_str() < "0500").count();
        assert!(
            (sample.len() / 3..=sample.len() * 2 / 3).contains(&first_half),
            "{first_half} of {}",
            sample.len()
        );
        let large: Vec<_> = [document(0, 5_000), document(1, 900)].into();
        assert_eq!(evenly(large.iter(), 20_000, 8).len(), 1, "a document above the share is passed over");
    }
}
