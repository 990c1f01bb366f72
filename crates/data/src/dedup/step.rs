//! Deduplication as a step over a plan, in three stages.
//!
//! 1. [`Dedup::sketch`], chunk by chunk: a job of its own, in `OUT/.zamba/sketches`.
//! 2. [`Dedup::cluster`], by one process when all sketches are there: `OUT/.zamba/clusters.bin` and `OUT/report.json`.
//! 3. [`Dedup::write`], chunk by chunk: the documents that stay, in `OUT`.
//!
//! The first and last may be shared out to any number of processes; what is finished is not done again.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::cluster::{self, Clusters};
use super::report::Report;
use super::{ChunkSketch, Settings, Sketcher};
use crate::document::Document;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::job::{ChunkRun, Job, Manifest, Outcome, Watch};
use crate::mix::hex;
use crate::plan::Plan;
use crate::read::{Record, Records};

/// Bound on the memory of clustering where the job names none.
const MEMORY: u64 = 2 << 30;
/// Stream for what does not stay.
const REMOVED: &str = "removed";
/// Clusters whose texts are looked up for the report, and characters of each text.
const SHOWN: usize = 5;
const SHOWN_CHARS: usize = 90;
const MAGIC: &[u8; 8] = b"zdclust\x01";

/// A deduplication: what is a duplicate, which copy stays, where it all goes.
#[derive(Debug, Clone)]
pub struct Dedup {
    settings: Settings,
    ranks: Vec<String>,
    keep_removed: bool,
    job: Job,
}

impl Dedup {
    /// Of each cluster the document stays whose source comes first in `ranks`, and of these the first. With `keep_removed`
    /// the others go to `OUT/removed`. `job` says where to and how; its step and config are set here.
    ///
    /// # Errors
    /// If the settings make no sense.
    pub fn new(settings: Settings, ranks: Vec<String>, keep_removed: bool, job: Job) -> Result<Dedup> {
        settings.check()?;
        let config = json!({ "settings": settings, "ranks": ranks, "keep_removed": keep_removed });
        let job = Job { step: "dedup".to_owned(), config, ..job };
        Ok(Dedup { settings, ranks, keep_removed, job })
    }

    /// The job of the first stage. Ranks do not matter to it.
    fn sketches(&self) -> Job {
        let config = json!({ "settings": self.settings });
        let out = self.folder().join("sketches");
        Job { step: "dedup-sketches".to_owned(), config, out, ..self.job.clone() }
    }

    fn folder(&self) -> PathBuf {
        self.job.out.join(".zamba")
    }

    /// Stage 1: the sketches of the job's shard of the chunks.
    ///
    /// # Errors
    /// As [`Job::run`].
    pub fn sketch(&self, fs: &Arc<dyn Fs>, plan: &Plan, watch: &dyn Watch) -> Result<Outcome> {
        // The folder is taken for the whole first, so that no other step's output is written into.
        self.job.claim(fs.as_ref(), plan)?;
        let work = |chunk: &mut ChunkRun<'_>| {
            let mut sketcher = Sketcher::new(&self.settings);
            let mut sketches = ChunkSketch::default();
            while let Some(Document { text, source, .. }) = chunk.next()? {
                sketches.push(&source, sketcher.sketch(&text));
            }
            let path = self.sketches().out;
            let file = chunk.file("", "sketch")?;
            file.write_all(&sketches.encode(&self.settings)).map_err(Error::io(&path, "write"))
        };
        self.sketches().run(fs, plan, watch, &work)
    }

    /// Stage 2: the clusters over all chunks. `progress` is told steps done and steps in all; an error from it ends the work.
    ///
    /// # Errors
    /// If sketches of some chunks are missing or damaged, there is too little memory, or files cannot be written.
    pub fn cluster(
        &self,
        fs: &Arc<dyn Fs>,
        plan: &Plan,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Report> {
        let key = self.key(fs.as_ref())?;
        let report_path = self.job.out.join("report.json");
        if self.read_clusters(fs.as_ref(), &key, plan)?.is_some()
            && let Ok(bytes) = fs.read(&report_path)
            && let Ok(report) = serde_json::from_slice(&bytes)
        {
            return Ok(report);
        }
        let steps = cluster::Job::steps(plan.chunks.len());
        let Clusters { keep, mut report } = cluster::cluster(cluster::Job {
            chunks: plan.chunks.len(),
            read: &|chunk| self.read_sketches(fs.as_ref(), chunk),
            ranks: &self.ranks,
            memory: self.job.memory.unwrap_or(MEMORY),
            fs: fs.as_ref(),
            scratch: &self.folder().join("scratch"),
            progress: &mut |done| progress(done, steps),
        })?;
        show(fs.as_ref(), plan, &mut report)?;
        let text = format!("{:#}\n", json!(report));
        fs.replace(&report_path, text.as_bytes()).map_err(Error::io(&report_path, "write"))?;
        let path = self.clusters_path();
        fs.replace(&path, &encode(&key, &keep)).map_err(Error::io(&path, "write"))?;
        Ok(report)
    }

    /// Stage 3: the documents that stay, of the job's shard of the chunks.
    ///
    /// # Errors
    /// If the clusters are not there, and as [`Job::run`].
    pub fn write(&self, fs: &Arc<dyn Fs>, plan: &Plan, watch: &dyn Watch) -> Result<Outcome> {
        let keep = self.read_clusters(fs.as_ref(), &self.key(fs.as_ref())?, plan)?;
        let keep = keep.ok_or_else(|| self.missing("the clusters are", "cluster"))?;
        let work = |chunk: &mut ChunkRun<'_>| {
            let keep = &keep[chunk.index()];
            let mut index = 0;
            while let Some(document) = chunk.next()? {
                match keep.get(index) {
                    Some(true) => chunk.keep(&document)?,
                    Some(false) => {
                        chunk.count("removed_documents", 1);
                        chunk.count("removed_bytes", document.text.len() as u64);
                        if self.keep_removed {
                            chunk.put(REMOVED, &document)?;
                        }
                    }
                    None => return Err(self.changed(plan, chunk.index())),
                }
                index += 1;
            }
            if index == keep.len() { Ok(()) } else { Err(self.changed(plan, chunk.index())) }
        };
        self.job.run(fs, plan, watch, &work)
    }

    fn changed(&self, plan: &Plan, chunk: usize) -> Error {
        let path = plan.files[plan.chunks[chunk].segments[0].file].path.clone();
        let what = "changed since its sketches were made; start over with --force".into();
        Error::Input { path, what }
    }

    fn missing(&self, what: &str, stage: &str) -> Error {
        let what = format!("{what} not there yet; run `--stage {stage}` first, all shards of it");
        Error::Input { path: self.job.out.clone(), what }
    }

    fn read_sketches(&self, fs: &dyn Fs, chunk: usize) -> Result<ChunkSketch> {
        let path = self.sketches().out.join(format!("part-{chunk:05}.sketch"));
        let bytes = fs.read(&path).map_err(Error::io(&path, "read"))?;
        ChunkSketch::decode(&bytes, &self.settings).map_err(|what| Error::Input {
            path,
            what: format!("{what}; remove it and run `--stage sketch` again"),
        })
    }

    fn clusters_path(&self) -> PathBuf {
        self.folder().join("clusters.bin")
    }

    /// What the clusters hang on: the sketches, by the hashes of all their files, and the ranks.
    fn key(&self, fs: &dyn Fs) -> Result<String> {
        let manifest = Manifest::read(fs, &self.sketches().out)?;
        let manifest = manifest.ok_or_else(|| self.missing("sketches of some chunks are", "sketch"))?;
        Ok(hex(&Sha256::digest(json!([manifest, self.ranks]).to_string())))
    }

    /// Whether each document of each chunk stays, if that has been decided for these very sketches.
    fn read_clusters(&self, fs: &dyn Fs, key: &str, plan: &Plan) -> Result<Option<Vec<Vec<bool>>>> {
        let path = self.clusters_path();
        let bytes = match fs.read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io(&path, "read"))?,
        };
        Ok(decode(key, &bytes).filter(|keep| keep.len() == plan.chunks.len()))
    }
}

/// Fills in how the members of the first examples begin.
fn show(fs: &dyn Fs, plan: &Plan, report: &mut Report) -> Result<()> {
    for member in report.examples.iter_mut().take(SHOWN).flat_map(|example| &mut example.members) {
        let mut left = member.index;
        for record in Records::new(fs, plan, &plan.chunks[member.chunk]) {
            let Record::Document(document) = record? else { continue };
            if left == 0 {
                let text: Vec<&str> = document.text.split_whitespace().take(SHOWN_CHARS).collect();
                let text: String = text.join(" ").chars().take(SHOWN_CHARS).collect();
                member.text = format!("{}: {text}", document.id);
                break;
            }
            left -= 1;
        }
    }
    Ok(())
}

/// The file of the clusters: a bit per document, each chunk's in bytes of their own, and a hash over all of it.
fn encode(key: &str, keep: &[Vec<bool>]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&Sha256::digest(key));
    for chunk in keep {
        bytes.extend_from_slice(&(chunk.len() as u64).to_le_bytes());
        let byte = |bits: &[bool]| bits.iter().enumerate().map(|(i, &bit)| u8::from(bit) << i).sum::<u8>();
        bytes.extend(chunk.chunks(8).map(byte));
    }
    let hash = Sha256::digest(&bytes);
    bytes.extend_from_slice(&hash);
    bytes
}

/// `None` if the bytes are damaged or belong to another key.
fn decode(key: &str, bytes: &[u8]) -> Option<Vec<Vec<bool>>> {
    let (body, hash) = bytes.split_last_chunk::<32>()?;
    let mut left = body.strip_prefix(MAGIC)?.strip_prefix(&Sha256::digest(key)[..])?;
    if Sha256::digest(body)[..] != hash[..] {
        return None;
    }
    let mut keep = Vec::new();
    while let Some((count, rest)) = left.split_first_chunk::<8>() {
        let count = u64::from_le_bytes(*count) as usize;
        let (bits, rest) = rest.split_at_checked(count.div_ceil(8))?;
        keep.push((0..count).map(|i| bits[i / 8] >> (i % 8) & 1 == 1).collect());
        left = rest;
    }
    left.is_empty().then_some(keep)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::dedup::tests::corpus;
    use crate::fs::{Fault, FaultFs, FaultKind, Kind};
    use crate::job::{MaxBad, Quiet, Shard};
    use crate::plan::{Input, ReadOptions};

    /// The test corpus in two files, one of them cut in many chunks, and a bad line.
    fn input() -> FaultFs {
        let fs = FaultFs::new();
        fs.create_dirs(Path::new("/in")).unwrap();
        let lines: Vec<String> = corpus()
            .into_iter()
            .enumerate()
            .map(|(id, (source, text))| json!({ "id": id, "source": source, "text": text }).to_string())
            .collect();
        let (a, b) = lines.split_at(120);
        fs.write(Path::new("/in/a.jsonl"), (a.join("\n") + "\nnot json\n").as_bytes()).unwrap();
        fs.write(Path::new("/in/b.jsonl"), b.join("\n").as_bytes()).unwrap();
        fs
    }

    fn plan(fs: &FaultFs) -> Plan {
        let options = ReadOptions { chunk_bytes: 20_000, ..ReadOptions::default() };
        Plan::new(fs, &[Input::new("/in")], &options).unwrap()
    }

    fn dedup(shard: Shard, memory: u64) -> Dedup {
        let job = Job {
            max_bad: MaxBad::Count(1),
            shard,
            memory: Some(memory),
            chunk_memory: 1000,
            ..Job::new("", json!({}), Path::new("/out"))
        };
        Dedup::new(Settings::default(), vec!["papers".into()], true, job).unwrap()
    }

    fn all(fs: &FaultFs, dedup: &Dedup) -> Result<Report> {
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        let plan = Plan::new(
            fs,
            &[Input::new("/in")],
            &ReadOptions { chunk_bytes: 20_000, ..ReadOptions::default() },
        )?;
        dedup.sketch(&shared, &plan, &Quiet)?;
        let report = dedup.cluster(&shared, &plan, &mut |_, _| Ok(()))?;
        dedup.write(&shared, &plan, &Quiet)?;
        Ok(report)
    }

    fn tree(fs: &FaultFs, root: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        for entry in fs.list(root).unwrap() {
            let path = root.join(&entry.name);
            match entry.kind {
                Kind::Dir => files.extend(tree(fs, &path)),
                _ => files.push((path.display().to_string(), fs.read(&path).unwrap())),
            }
        }
        files.retain(|(path, _)| !path.ends_with(".tmp"));
        files
    }

    fn expected() -> Vec<(String, Vec<u8>)> {
        let fs = input();
        let report = all(&fs, &dedup(Shard::WHOLE, 1 << 30)).unwrap();
        let manifest = Manifest::read(&fs, Path::new("/out")).unwrap().unwrap();
        assert_eq!(manifest.documents(), report.kept);
        assert_eq!(manifest.counts["removed_documents"], report.documents - report.kept);
        assert_eq!(report.documents as usize, corpus().len());
        assert!(plan(&fs).chunks.len() > 8);
        assert!(report.examples[0].members[0].text.contains(": "), "texts are looked up");
        assert!(report.table().contains("kept"));
        tree(&fs, Path::new("/out"))
    }

    #[test]
    fn threads_shards_and_memory_do_not_matter() {
        let expected = expected();
        for (shards, threads, memory) in [(1, 2, 1 << 30), (1, 2, 20_000), (3, 1, 8_000), (8, 2, 1 << 20)] {
            let fs = input();
            let shared: Arc<dyn Fs> = Arc::new(fs.clone());
            let plan = plan(&fs);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let shard = |index| dedup(Shard::new(index, shards).unwrap(), memory);
            pool.install(|| {
                for index in 0..shards {
                    let early = shard(index).cluster(&shared, &plan, &mut |_, _| Ok(()));
                    assert!(early.unwrap_err().to_string().contains("--stage sketch"));
                    shard(index).sketch(&shared, &plan, &Quiet).unwrap();
                }
                let early = shard(0).write(&shared, &plan, &Quiet).unwrap_err();
                assert!(early.to_string().contains("--stage cluster"), "{early}");
                shard(0).cluster(&shared, &plan, &mut |_, _| Ok(())).unwrap();
                (0..shards).for_each(|index| drop(shard(index).write(&shared, &plan, &Quiet).unwrap()));
            });
            assert!(
                tree(&fs, Path::new("/out")) == expected,
                "{shards} shards, {threads} threads, {memory} bytes"
            );
        }
    }

    #[test]
    fn a_kill_or_a_full_disk_at_any_operation_loses_nothing_that_was_finished() {
        let expected = expected();
        let fs = input();
        // So little memory that runs go to disk.
        let dedup = dedup(Shard::WHOLE, 8_000);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let all = |fs: &FaultFs| pool.install(|| all(fs, &dedup));
        let before = fs.ops();
        all(&fs).unwrap();
        let ops = fs.ops() - before;
        let mut cases = 0;
        for at in (0..ops).step_by(ops as usize / 60) {
            for kind in [FaultKind::Kill, FaultKind::Enospc] {
                let fs = input();
                fs.plan(Some(Fault { at: fs.ops() + at, kind, forever: true }));
                let stopped = all(&fs);
                fs.plan(None);
                assert!(stopped.is_err() || kind == FaultKind::Enospc, "{at}");
                let fs = if kind == FaultKind::Kill { crash(&fs, at) } else { fs };
                all(&fs).unwrap_or_else(|error| panic!("{kind:?} at {at}: {error}"));
                assert!(tree(&fs, Path::new("/out")) == expected, "{kind:?} at {at}");
                cases += 1;
            }
        }
        assert!(cases > 100, "{cases}");
    }

    /// The disk after a power cut; the inputs were there long before.
    fn crash(fs: &FaultFs, seed: u64) -> FaultFs {
        let after = fs.crash(seed);
        after.create_dirs(Path::new("/in")).unwrap();
        for (path, bytes) in tree(&input(), Path::new("/in")) {
            after.write(Path::new(&path), &bytes).unwrap();
        }
        after
    }

    #[test]
    fn a_file_of_clusters_belongs_to_its_key_and_damage_is_found() {
        let keep = vec![vec![true, false, true], vec![], vec![false; 9]];
        let bytes = encode("a", &keep);
        assert_eq!(decode("a", &bytes), Some(keep));
        assert_eq!(decode("b", &bytes), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(decode("a", &damaged), None);
            assert_eq!(decode("a", &bytes[..at]), None);
        }
    }
}
