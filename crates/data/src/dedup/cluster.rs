//! From sketches to clusters of duplicates, and which document of each stays.
//!
//! Documents are numbered by the rank of their source and then in input order. So the smallest number of a cluster is
//! the one to keep, and numbers alone decide: not the order in which pairs are found, nor the bound on memory.
//!
//! Memory: 9 bytes per document; the pairs (16 bytes per document and band) lie in sorted runs beyond the bound.

use std::collections::BTreeMap;
use std::path::Path;

use super::ChunkSketch;
use super::report::{Example, Member, Report, SourceCount};
use super::sort::Sorter;
use crate::error::{Error, Result};
use crate::fs::Fs;

/// Largest clusters that are shown in the report, and members of each.
const EXAMPLES: usize = 20;
const MEMBERS: usize = 4;

/// Which documents stay.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// For each chunk and each of its documents, in order, whether it stays.
    pub keep: Vec<Vec<bool>>,
    /// The account.
    pub report: Report,
}

/// Where sketches come from and how much room there is.
pub struct Job<'a> {
    /// Number of chunks.
    pub chunks: usize,
    /// Reads the sketches of a chunk; called three times for each, in order.
    pub read: &'a (dyn Fn(usize) -> Result<ChunkSketch> + Sync),
    /// Names of sources, the one whose documents are kept first first. Sources not named come after all of them, as equals.
    pub ranks: &'a [String],
    /// Bound on memory in bytes.
    pub memory: u64,
    /// For runs.
    pub fs: &'a dyn Fs,
    /// A folder for runs that is nobody else's; what is in it is removed.
    pub scratch: &'a Path,
    /// Told how many of [`Job::steps`] are done; an error ends the work.
    pub progress: &'a mut dyn FnMut(u64) -> Result<()>,
}

impl Job<'_> {
    /// Steps of work, for a bar: each chunk is read three times.
    pub fn steps(chunks: usize) -> u64 {
        3 * chunks as u64
    }

    fn rank(&self, source: &str) -> usize {
        self.ranks.iter().position(|name| name == source).unwrap_or(self.ranks.len())
    }

    fn ranks_of(&self, chunk: &ChunkSketch) -> Vec<usize> {
        chunk.sources.iter().map(|source| self.rank(source)).collect()
    }
}

/// Finds the clusters.
///
/// # Errors
/// If sketches cannot be read, runs cannot be written, or the documents are too many for the bound.
pub fn cluster(mut job: Job<'_>) -> Result<Clusters> {
    let clear = |job: &Job<'_>| job.fs.remove_tree(job.scratch).map_err(Error::io(job.scratch, "remove"));
    clear(&job)?;
    let clusters = find(&mut job);
    // The first error is the one that matters.
    let cleared = clear(&job);
    let clusters = clusters?;
    cleared.map(|()| clusters)
}

fn find(job: &mut Job<'_>) -> Result<Clusters> {
    let firsts = first_numbers(job)?;
    let documents = firsts.documents();
    let (mut content, mut keys) = sorters(job, documents)?;
    let mut numbers = firsts.clone();
    for chunk in 0..job.chunks {
        let sketch = (job.read)(chunk)?;
        let ranks = job.ranks_of(&sketch);
        for (source, document) in &sketch.documents {
            let number = numbers.take(ranks[*source as usize]);
            content.push([document.content[0], document.content[1], number])?;
            document.keys.iter().try_for_each(|&key| keys.push([key, number]))?;
        }
        (job.progress)(job.chunks as u64 + chunk as u64 + 1)?;
    }
    let mut forest = Forest::new(documents as u32);
    let equal = forest.join_groups(content.finish()?)?;
    forest.join_groups(keys.finish()?)?;
    let sizes = forest.sizes();
    settle(job, firsts, &mut forest, &sizes, equal)
}

/// The sorters of content hashes and of band keys: what the union-find leaves of the memory, shared out by their records.
fn sorters<'a>(job: &Job<'a>, documents: u64) -> Result<(Sorter<'a, 3>, Sorter<'a, 2>)> {
    let needed = 9 * documents;
    if documents > u64::from(u32::MAX) || needed > job.memory / 4 * 3 {
        return Err(Error::TooMany { documents, needed: needed.saturating_mul(4) / 3 });
    }
    let free = job.memory - needed;
    let content = Sorter::new(job.fs, &job.scratch.join("content"), free / 8);
    let keys = Sorter::new(job.fs, &job.scratch.join("keys"), free / 2);
    Ok((content, keys))
}

/// The next number of each rank.
#[derive(Debug, Clone)]
struct Numbers {
    next: Vec<u64>,
    documents: u64,
}

impl Numbers {
    fn take(&mut self, rank: usize) -> u64 {
        self.next[rank] += 1;
        self.next[rank] - 1
    }

    fn documents(&self) -> u64 {
        self.documents
    }
}

/// The first number of each rank.
fn first_numbers(job: &mut Job<'_>) -> Result<Numbers> {
    let mut counts = vec![0u64; job.ranks.len() + 1];
    for chunk in 0..job.chunks {
        let sketch = (job.read)(chunk)?;
        let ranks = job.ranks_of(&sketch);
        sketch.documents.iter().for_each(|(source, _)| counts[ranks[*source as usize]] += 1);
        (job.progress)(chunk as u64 + 1)?;
    }
    let mut documents = 0;
    let next = counts
        .into_iter()
        .map(|count| {
            documents += count;
            documents - count
        })
        .collect();
    Ok(Numbers { next, documents })
}

/// Union-find in which the root of a tree is its smallest number.
struct Forest {
    parents: Vec<u32>,
}

impl Forest {
    fn new(count: u32) -> Forest {
        Forest { parents: (0..count).collect() }
    }

    fn root(&mut self, mut at: u32) -> u32 {
        loop {
            let parent = self.parents[at as usize];
            if parent == at {
                return at;
            }
            // Halving the way for the next one who comes along.
            let above = self.parents[parent as usize];
            self.parents[at as usize] = above;
            at = above;
        }
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a.max(b) as usize] = a.min(b);
    }

    /// Joins the documents whose records agree in all but the last word, the number; says how many records were not
    /// the first of their group.
    fn join_groups<const W: usize>(&mut self, sorted: impl Iterator<Item = Result<[u64; W]>>) -> Result<u64> {
        let mut first: Option<[u64; W]> = None;
        let mut joined = 0;
        for record in sorted {
            let record = record?;
            match first {
                Some(first) if first[..W - 1] == record[..W - 1] => {
                    self.join(first[W - 1] as u32, record[W - 1] as u32);
                    joined += 1;
                }
                _ => first = Some(record),
            }
        }
        Ok(joined)
    }

    /// For each root the size of its tree, 0 for all others.
    fn sizes(&mut self) -> Vec<u32> {
        let mut sizes = vec![0; self.parents.len()];
        for at in 0..self.parents.len() as u32 {
            sizes[self.root(at) as usize] += 1;
        }
        sizes
    }
}

/// The largest clusters as `(size, root)`, largest first and of equals the one whose kept document comes first.
fn largest(sizes: &[u32]) -> Vec<(u32, u32)> {
    let mut top: Vec<(u32, u32)> = Vec::new();
    for (root, &size) in sizes.iter().enumerate().filter(|(_, size)| **size > 1) {
        let at = top.partition_point(|&(other, _)| other >= size);
        if at < EXAMPLES {
            top.insert(at, (size, root as u32));
            top.truncate(EXAMPLES);
        }
    }
    top
}

/// Walks the chunks once more: what stays, and the account.
fn settle(
    job: &mut Job<'_>,
    firsts: Numbers,
    forest: &mut Forest,
    sizes: &[u32],
    equal: u64,
) -> Result<Clusters> {
    let mut report = Report { equal, ..Report::default() };
    for &size in sizes.iter().filter(|size| **size > 0) {
        *report.cluster_sizes.entry(size).or_default() += 1;
    }
    let mut examples: BTreeMap<u32, Example> = BTreeMap::new();
    let top = largest(sizes);
    for &(size, root) in &top {
        examples.insert(root, Example { size, members: Vec::new() });
    }
    let mut keep = Vec::with_capacity(job.chunks);
    let mut numbers = firsts;
    for chunk in 0..job.chunks {
        let sketch = (job.read)(chunk)?;
        let ranks = job.ranks_of(&sketch);
        let mut stays = Vec::with_capacity(sketch.documents.len());
        for (index, (source, document)) in sketch.documents.iter().enumerate() {
            let number = numbers.take(ranks[*source as usize]) as u32;
            let root = forest.root(number);
            let source = &sketch.sources[*source as usize];
            stays.push(root == number);
            report.count(source, document.bytes, root == number);
            if let Some(example) = examples.get_mut(&root) {
                let kept = root == number;
                let member = Member {
                    chunk,
                    index,
                    source: source.clone(),
                    kept,
                    bytes: document.bytes,
                    text: String::new(),
                };
                // The kept one comes first, wherever it stands in the input.
                match example.members.iter().filter(|member| !member.kept).count() {
                    _ if kept => example.members.insert(0, member),
                    others if others + 1 < MEMBERS => example.members.push(member),
                    _ => {}
                }
            }
        }
        keep.push(stays);
        (job.progress)(2 * job.chunks as u64 + chunk as u64 + 1)?;
    }
    report.examples = top.iter().filter_map(|(_, root)| examples.remove(root)).collect();
    Ok(Clusters { keep, report })
}

impl Report {
    fn count(&mut self, source: &str, bytes: u64, kept: bool) {
        // Looked up before it is inserted, because the name is nearly always known.
        if !self.sources.contains_key(source) {
            self.sources.insert(source.to_owned(), SourceCount::default());
        }
        let Some(counts) = self.sources.get_mut(source) else { return };
        self.documents += 1;
        self.bytes += bytes;
        counts.documents += 1;
        counts.bytes += bytes;
        if kept {
            self.kept += 1;
            self.bytes_kept += bytes;
            counts.kept += 1;
            counts.bytes_kept += bytes;
        }
    }
}
