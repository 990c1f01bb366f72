//! Real text without a network: the sources and docs that cargo has fetched on this machine, or any folder.
//!
//! Files are looked at in an order that a seed decides, until there is enough text; so a small sample is still spread
//! over all packages. Of equal texts the first in that order is kept. What was left out is counted by rule.

mod packages;
mod prose;
mod rules;
mod split;

pub use packages::{Package, Packages, cargo_packages, folder_packages};
pub use rules::Rule;
pub use split::{Split, SplitSummary, split};

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::fs::{self, Fs};
use crate::rng::Rng;

/// What kind of text a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Source code, with its comments.
    Code,
    /// Read-me files, change logs, guides.
    Prose,
    /// The doc comments of a Rust source file as running text, without code. It repeats text that is in a
    /// [`Kind::Code`] document of the same package.
    DocProse,
}

/// One text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Package and path; a name for messages and for order.
    pub id: String,
    /// Family of its package ([`Package::family`]); held out or trained on as one.
    pub family: String,
    /// What kind of text it is.
    pub kind: Kind,
    /// The text, with `\n` line ends.
    pub text: String,
}

/// What is added to the id of a source file to name the prose taken out of it.
const DOC_SUFFIX: &str = "#doc";

/// How much to gather.
#[derive(Debug, Clone, PartialEq)]
pub struct GatherOptions {
    /// Stop once code and prose reach this many bytes; documentation prose comes on top.
    pub max_bytes: u64,
    /// The largest share of `max_bytes` that one package may fill, in `0..=1`: some are
    /// mostly tables of constants. No less than twice an equal share.
    pub package_share: f64,
    /// Decides which files are looked at first.
    pub seed: u64,
}

impl Default for GatherOptions {
    fn default() -> Self {
        GatherOptions { max_bytes: 32 << 20, package_share: 0.01, seed: 0 }
    }
}

/// Documents, sorted by id, and the account of what was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gathered {
    /// The documents.
    pub documents: Vec<Document>,
    /// The account.
    pub report: Report,
}

/// Files or documents, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many.
    pub files: u64,
    /// Their bytes on disk (for what was left out by name alone: 0, they were not opened).
    pub bytes: u64,
}

/// What was found, kept and left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Packages looked into.
    pub packages: u64,
    /// Packages passed over because a later version of the same crate is there.
    pub older_versions: u64,
    /// Files found.
    pub files: u64,
    /// Files left out, by rule.
    pub left_out: BTreeMap<Rule, Count>,
    /// Documents kept, by kind; bytes of text.
    pub kept: BTreeMap<Kind, Count>,
}

impl Report {
    fn leave_out(&mut self, rule: Rule, bytes: u64) {
        let count = self.left_out.entry(rule).or_default();
        count.files += 1;
        count.bytes += bytes;
    }
}

/// A file that its name does not rule out.
struct Candidate {
    id: String,
    package: usize,
    kind: Kind,
    path: PathBuf,
}

/// Files read at once, in parallel.
const CHUNK: usize = 256;
/// Folders deeper than this are not entered.
const MAX_DEPTH: usize = 64;

/// Gathers the documents of some packages.
///
/// # Errors
/// If a folder cannot be listed or no document is left. A file that cannot be read is counted, not an error.
pub fn gather(fs: &dyn Fs, packages: &Packages, options: &GatherOptions) -> Result<Gathered> {
    let mut report = Report {
        packages: packages.packages.len() as u64,
        older_versions: packages.older_versions,
        ..Report::default()
    };
    let mut candidates = Vec::new();
    for (index, package) in packages.packages.iter().enumerate() {
        walk(fs, index, package, &mut candidates, &mut report)?;
    }
    candidates.sort_by(|a, b| a.id.cmp(&b.id));
    Rng::keyed("zamba-data gather 1", "", &[options.seed]).shuffle(&mut candidates);
    let mut keeper = Keeper::new(&packages.packages, options, report);
    for chunk in candidates.chunks(CHUNK) {
        if keeper.is_full() {
            chunk.iter().for_each(|_| keeper.report.leave_out(Rule::NotNeeded, 0));
            continue;
        }
        let judged: Vec<_> = chunk.par_iter().map(|candidate| judge(fs, candidate)).collect();
        for (candidate, judged) in chunk.iter().zip(judged) {
            keeper.take(candidate, judged);
        }
    }
    keeper.finish()
}

/// Collects the files of a package, in sorted order and without following links.
fn walk(
    fs: &dyn Fs,
    index: usize,
    package: &Package,
    candidates: &mut Vec<Candidate>,
    report: &mut Report,
) -> Result<()> {
    let mut consider = |relative: &str, path: &Path, report: &mut Report| {
        report.files += 1;
        match rules::by_name(relative) {
            Ok(kind) => {
                let folder = package.path.file_name().unwrap_or_default().to_string_lossy();
                let id =
                    if relative == folder { relative.to_owned() } else { format!("{folder}/{relative}") };
                candidates.push(Candidate { id, package: index, kind, path: path.to_owned() });
            }
            Err(rule) => report.leave_out(rule, 0),
        }
    };
    if fs.kind(&package.path).map_err(Error::io(&package.path, "look at"))? == fs::Kind::File {
        let name = package.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        consider(&name, &package.path, report);
        return Ok(());
    }
    let mut folders = vec![(package.path.clone(), String::new(), 0)];
    while let Some((folder, relative, depth)) = folders.pop() {
        for entry in fs.list(&folder).map_err(Error::io(&folder, "list"))? {
            let name = entry.name.to_string_lossy();
            let relative =
                if relative.is_empty() { name.clone().into_owned() } else { format!("{relative}/{name}") };
            let path = folder.join(&entry.name);
            match entry.kind {
                fs::Kind::File => consider(&relative, &path, report),
                fs::Kind::Dir if rules::enter(&name) && depth < MAX_DEPTH => {
                    folders.push((path, relative, depth + 1));
                }
                fs::Kind::Dir => report.leave_out(Rule::Hidden, 0),
                fs::Kind::Other => report.leave_out(Rule::NotAFile, 0),
            }
        }
    }
    Ok(())
}

/// A file that passed every rule about itself.
struct Accepted {
    text: String,
    hash: [u8; 32],
    doc_blocks: Vec<String>,
}

/// Reads a file and judges it by itself; also tells its size. The second is an error for the rule that it breaks.
fn judge(fs: &dyn Fs, candidate: &Candidate) -> (u64, std::result::Result<Accepted, Rule>) {
    let Ok(file) = fs.open(&candidate.path) else { return (0, Err(Rule::Unreadable)) };
    let size = file.len();
    if size < rules::MIN_BYTES {
        return (size, Err(Rule::TooSmall));
    }
    if size > rules::MAX_BYTES {
        return (size, Err(Rule::TooLarge));
    }
    let mut bytes = vec![0; size as usize];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        return (size, Err(Rule::Unreadable));
    }
    let accept = |text: String| {
        let is_rust = candidate.kind == Kind::Code && candidate.id.ends_with(".rs");
        let doc_blocks = if is_rust { prose::doc_blocks(&text) } else { Vec::new() };
        Accepted { hash: content_hash(&text), doc_blocks, text }
    };
    (size, rules::by_contents(candidate.kind, bytes).map(accept))
}

/// SHA-256 of a text in which every run of white space is one space.
fn content_hash(text: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    for word in text.split_whitespace() {
        hash.update(word.as_bytes());
        hash.update(b" ");
    }
    hash.finalize().into()
}

/// Judges accepted files against those kept before, in order.
struct Keeper<'a> {
    packages: &'a [Package],
    max_bytes: u64,
    max_package_bytes: u64,
    bytes: u64,
    package_bytes: Vec<u64>,
    /// Content hashes of files and of blocks of documentation.
    seen: HashSet<[u8; 32]>,
    documents: Vec<Document>,
    report: Report,
}

impl Keeper<'_> {
    fn new<'a>(packages: &'a [Package], options: &GatherOptions, report: Report) -> Keeper<'a> {
        // A folder of a handful of packages has no other text to give the room to.
        let share = options.package_share.max(2.0 / packages.len().max(1) as f64).min(1.0);
        Keeper {
            packages,
            max_bytes: options.max_bytes,
            max_package_bytes: (options.max_bytes as f64 * share) as u64,
            bytes: 0,
            package_bytes: vec![0; packages.len()],
            seen: HashSet::new(),
            documents: Vec::new(),
            report,
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.max_bytes
    }

    fn take(&mut self, candidate: &Candidate, (size, judged): (u64, std::result::Result<Accepted, Rule>)) {
        let accepted = match judged {
            Ok(accepted) => accepted,
            Err(rule) => return self.report.leave_out(rule, size),
        };
        let bytes = accepted.text.len() as u64;
        let package_bytes = &mut self.package_bytes[candidate.package];
        if self.bytes >= self.max_bytes {
            return self.report.leave_out(Rule::NotNeeded, size);
        }
        if *package_bytes + bytes > self.max_package_bytes {
            return self.report.leave_out(Rule::PackageShare, size);
        }
        if !self.seen.insert(accepted.hash) {
            return self.report.leave_out(Rule::Duplicate, size);
        }
        *package_bytes += bytes;
        self.bytes += bytes;
        self.keep(candidate, candidate.kind, candidate.id.clone(), accepted.text);
        let new = |block: &String| self.seen.insert(content_hash(block));
        let blocks: Vec<String> = accepted.doc_blocks.into_iter().filter(new).collect();
        let prose = blocks.join("\n\n");
        if prose.len() as u64 >= rules::MIN_BYTES {
            self.keep(candidate, Kind::DocProse, format!("{}{DOC_SUFFIX}", candidate.id), prose);
        }
    }

    fn keep(&mut self, candidate: &Candidate, kind: Kind, id: String, text: String) {
        let count = self.report.kept.entry(kind).or_default();
        count.files += 1;
        count.bytes += text.len() as u64;
        let family = self.packages[candidate.package].family().to_owned();
        self.documents.push(Document { id, family, kind, text });
    }

    fn finish(mut self) -> Result<Gathered> {
        if self.documents.is_empty() {
            return Err(Error::TooLittle(format!(
                "none of {} files is usable text; name another folder",
                self.report.files
            )));
        }
        self.documents.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Gathered { documents: self.documents, report: self.report })
    }
}

#[cfg(test)]
mod tests;
