//! Checkpoints that survive kills, full disks and rotten bits.
//!
//! A checkpoint is a folder `step-N`: a model folder that every other command reads, with the model's own
//! `MANIFEST.json`, and under `state/` what only training needs. `state/MANIFEST.json` lists every other
//! file with size and SHA-256, says where the run stands, and carries a hash of itself.
//!
//! Saving writes `step-N.tmp-<random>` in the same folder, syncs each file, the manifest and the folders,
//! renames it to `step-N`, syncs the parent, and only then points `LATEST` at it and prunes. So a name
//! `step-N` never stands for a half-written checkpoint, whatever moment the process or the machine dies.
//!
//! Loading trusts nothing but a manifest that verifies: it takes the newest one and, where that fails,
//! steps back and says so. `LATEST` is for people and scripts; loading does not depend on it.
//!
//! An error of a sync means that the file is lost (the kernel may have dropped its pages and will not
//! fail again), so the whole temporary folder is given up and the next save starts from new files.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use zamba::checkpoint::manifest::FILE as MODEL_MANIFEST;
use zamba_data::fs::{Fs, FsWrite, Kind};

/// The manifest of the run in a checkpoint folder. The model's own is one of the files that it covers.
pub const MANIFEST: &str = "state/MANIFEST.json";
/// Folder of what only training needs.
const STATE: &str = "state";
/// Name of the file beside the checkpoints that holds the name of the newest one.
pub const LATEST: &str = "LATEST";
/// Checkpoints that pruning never removes: the newest two that verify.
pub const MIN_KEEP: usize = 2;

const FORMAT: u32 = 1;
/// Space for the manifest, folders and block rounding, on top of the files.
const SPACE_MARGIN: u64 = 1 << 20;

/// Why a checkpoint could not be saved, verified or found.
#[derive(Debug, thiserror::Error)]
pub enum CkptError {
    /// The operating system refused.
    #[error("cannot {what} {path}: {source}; older checkpoints are untouched")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is not enough space to begin.
    #[error("{path}: a checkpoint needs {need} bytes and {free} are free; make space or lower `keep`")]
    NoSpace {
        /// Folder of the checkpoints.
        path: PathBuf,
        /// Bytes needed.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// A file is not what the manifest says, or the manifest is not what was written.
    #[error("{path} is damaged: {why}; an older checkpoint or a copy is needed")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There are checkpoints, and none of them verifies.
    #[error(
        "{path} has {found} checkpoints and none verifies; restore one from a copy, or train into a new folder"
    )]
    NoneVerifies {
        /// Folder of the checkpoints.
        path: PathBuf,
        /// Number of folders looked at.
        found: usize,
    },
    /// The thread that saves died.
    #[error("the thread that saves {path} died; see its message above")]
    Died {
        /// Folder of the checkpoints.
        path: PathBuf,
    },
}

type Result<T> = std::result::Result<T, CkptError>;

trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| CkptError::Io { what, path: path.to_owned(), source })
    }
}

fn damaged(path: &Path, why: impl Into<String>) -> CkptError {
    CkptError::Damaged { path: path.to_owned(), why: why.into() }
}

/// Where a run stands; the part of the manifest that does not concern files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Optimiser steps done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Phase that the next step belongs to, or the last phase when the run is over.
    pub phase: String,
    /// Whether this is the end of a phase; such checkpoints are never pruned.
    pub milestone: bool,
    /// Hash of everything in the recipe that the weights depend on.
    pub config_sha256: String,
    /// Samples of `phase` that were consumed.
    pub data_cursor: u64,
    /// Fingerprint of the data that the samples so far came from.
    pub data_sha256: String,
}

/// Size and hash of one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSum {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

/// What `state/MANIFEST.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this layout.
    pub format: u32,
    /// Where the run stood.
    pub head: Head,
    /// Every other file of the folder by its name, folders separated by `/`.
    pub files: BTreeMap<String, FileSum>,
}

/// The manifest with a hash of itself, as it lies on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    sha256: String,
    manifest: Manifest,
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

impl Manifest {
    fn seal(self) -> Vec<u8> {
        let sha256 = sha256_hex(&json(&self));
        json(&Sealed { sha256, manifest: self })
    }

    /// Accepts the very bytes that [`Manifest::seal`] writes, so that no flipped bit passes, not even in
    /// white space or in the case of a digit.
    fn unseal(bytes: &[u8], path: &Path) -> Result<Manifest> {
        let sealed: Sealed = serde_json::from_slice(bytes).map_err(|e| damaged(path, e.to_string()))?;
        if sealed.manifest.format != FORMAT {
            return Err(damaged(path, format!("format {} is not {FORMAT}", sealed.manifest.format)));
        }
        if sealed.manifest.clone().seal() != bytes {
            return Err(damaged(path, "its own SHA-256 differs"));
        }
        Ok(sealed.manifest)
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // The types are plain structs with string keys, which always serialise.
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain structs serialise");
    bytes.push(b'\n');
    bytes
}

/// Writes the contents of one file.
pub type WriteFn = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// One file of a checkpoint to be written.
pub struct FileJob {
    /// Name in the checkpoint folder: plain for a file of the model, or `state/` and a plain name.
    pub name: String,
    /// Expected bytes, for the check of free space.
    pub bytes: u64,
    /// Writes the contents.
    pub write: WriteFn,
}

impl FileJob {
    /// A file whose contents are at hand.
    pub fn bytes(name: impl Into<String>, bytes: Vec<u8>) -> FileJob {
        let len = bytes.len() as u64;
        FileJob { name: name.into(), bytes: len, write: Box::new(move |w| w.write_all(&bytes)) }
    }
}

/// A whole checkpoint in memory, on its way to the disk.
pub struct Snapshot {
    /// Where the run stands.
    pub head: Head,
    /// The files.
    pub files: Vec<FileJob>,
}

/// Hashes and counts what passes through.
struct Hashing {
    file: Box<dyn FsWrite>,
    hasher: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Folder of the checkpoint of a step.
pub fn step_dir(root: &Path, step: u64) -> PathBuf {
    root.join(format!("step-{step}"))
}

/// Steps of all `step-N` folders, newest first, and the names of unfinished ones.
fn survey(fs: &dyn Fs, root: &Path) -> Result<(Vec<u64>, Vec<PathBuf>)> {
    let entries = match fs.list(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((vec![], vec![])),
        other => other.at("list", root)?,
    };
    let (mut steps, mut unfinished) = (Vec::new(), Vec::new());
    for entry in entries.iter().filter(|e| e.kind == Kind::Dir) {
        let Some(rest) = entry.name.to_str().and_then(|n| n.strip_prefix("step-")) else { continue };
        match rest.parse::<u64>() {
            Ok(step) if rest == step.to_string() => steps.push(step),
            _ if rest.contains(".tmp-") => unfinished.push(root.join(&entry.name)),
            _ => {}
        }
    }
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok((steps, unfinished))
}

/// Saves a checkpoint under `root` by the protocol of the module text. What is there already under the
/// same step and verifies with the same head is left as it is: a resumed run repeats the same steps.
///
/// # Errors
/// On any failure the earlier checkpoints are as they were, and the next save starts afresh.
pub fn save(fs: &dyn Fs, root: &Path, snapshot: Snapshot) -> Result<Manifest> {
    fs.create_dirs(root).at("make", root)?;
    let dir = step_dir(root, snapshot.head.step);
    if let Ok(found) = verify(fs, &dir)
        && found.head == snapshot.head
    {
        point_latest(fs, root, &dir)?;
        return Ok(found);
    }
    let need = snapshot.files.iter().map(|f| f.bytes).sum::<u64>() + SPACE_MARGIN;
    let free = fs.free_space(root).at("measure the free space of", root)?;
    if free < need {
        return Err(CkptError::NoSpace { path: root.to_owned(), need, free });
    }
    let tmp = make_tmp(fs, root, snapshot.head.step)?;
    let written = write_all(fs, &tmp, snapshot).and_then(|()| publish(fs, root, &tmp, &dir));
    if let Err(e) = written {
        // Best effort: what cannot be removed now is removed by the next prune.
        let _ = fs.remove_tree(&tmp);
        return Err(e);
    }
    point_latest(fs, root, &dir)?;
    verify(fs, &dir)
}

fn make_tmp(fs: &dyn Fs, root: &Path, step: u64) -> Result<PathBuf> {
    use std::hash::{BuildHasher, Hasher};
    loop {
        // The standard hasher is seeded by the operating system; the name only has to be unused.
        let random = std::hash::RandomState::new().build_hasher().finish();
        let tmp = root.join(format!("step-{step}.tmp-{random:016x}"));
        match fs.create_dir(&tmp) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.at("make", &tmp).map(|()| tmp),
        }
    }
}

fn write_all(fs: &dyn Fs, tmp: &Path, snapshot: Snapshot) -> Result<()> {
    let state = tmp.join(STATE);
    fs.create_dir(&state).at("make", &state)?;
    let mut files = BTreeMap::new();
    for job in snapshot.files {
        let sum = write_file(fs, &tmp.join(&job.name), job.write)?;
        files.insert(job.name, sum);
    }
    let model = model_manifest(&files);
    let sum = write_file(fs, &tmp.join(MODEL_MANIFEST), Box::new(move |w| w.write_all(model.as_bytes())))?;
    files.insert(MODEL_MANIFEST.into(), sum);
    let manifest = Manifest { format: FORMAT, head: snapshot.head, files }.seal();
    let path = tmp.join(MANIFEST);
    fs.write(&path, &manifest).at("write", &path)?;
    fs.sync_dir(&state).at("sync", &state)?;
    fs.sync_dir(tmp).at("sync", tmp)
}

/// The manifest of the model folder: the files that are not under `state/`.
fn model_manifest(files: &BTreeMap<String, FileSum>) -> String {
    let list: Vec<_> = files
        .iter()
        .filter(|(name, _)| !name.contains('/'))
        .map(|(name, sum)| (name.clone(), sum.bytes, sum.sha256.clone()))
        .collect();
    zamba::checkpoint::manifest::text(&list)
}

fn write_file(fs: &dyn Fs, path: &Path, write: WriteFn) -> Result<FileSum> {
    let file = fs.create(path).at("create", path)?;
    let mut out = BufWriter::with_capacity(1 << 20, Hashing { file, hasher: Sha256::new(), bytes: 0 });
    write(&mut out).at("write", path)?;
    out.flush().at("write", path)?;
    let mut hashing = out.into_inner().map_err(|e| e.into_error()).at("write", path)?;
    hashing.file.sync().at("sync", path)?;
    Ok(FileSum { bytes: hashing.bytes, sha256: hex(hashing.hasher) })
}

fn publish(fs: &dyn Fs, root: &Path, tmp: &Path, dir: &Path) -> Result<()> {
    if fs.exists(dir).at("look at", dir)? {
        // Only a damaged checkpoint gets here: one that verifies is not saved again.
        discard(fs, dir)?;
    }
    fs.rename(tmp, dir).at("rename", tmp)?;
    fs.sync_dir(root).at("sync", root).inspect_err(|_| {
        // The new name may or may not outlive a power cut, so it must not pass for a safe copy.
        let _ = discard(fs, dir);
    })
}

fn point_latest(fs: &dyn Fs, root: &Path, dir: &Path) -> Result<()> {
    let latest = root.join(LATEST);
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    fs.replace(&latest, format!("{name}\n").as_bytes()).at("write", &latest)
}

/// Removes a checkpoint, its manifest first, so that a half-removed one cannot pass for a whole one.
fn discard(fs: &dyn Fs, dir: &Path) -> Result<()> {
    let manifest = dir.join(MANIFEST);
    match fs.remove_file(&manifest) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => {
            other.at("remove", &manifest)?;
            fs.sync_dir(&dir.join(STATE)).at("sync", dir)?;
        }
    }
    fs.remove_tree(dir).at("remove", dir)
}

fn read_manifest(fs: &dyn Fs, dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    let bytes = fs.read(&path).at("read", &path)?;
    Manifest::unseal(&bytes, &path)
}

/// Reads every file of a checkpoint and compares it with the manifest.
///
/// # Errors
/// Names the first file that differs.
pub fn verify(fs: &dyn Fs, dir: &Path) -> Result<Manifest> {
    let manifest = read_manifest(fs, dir)?;
    if dir.file_name().and_then(|n| n.to_str()) != Some(&format!("step-{}", manifest.head.step)) {
        return Err(damaged(dir, format!("its manifest is that of step {}", manifest.head.step)));
    }
    for (name, want) in &manifest.files {
        VerifiedFile::open(fs, dir, name, want)?.finish()?;
    }
    Ok(manifest)
}

/// A file of a checkpoint that is hashed while it is read, so that what was used is what was verified.
pub struct VerifiedFile {
    stream: zamba_data::fs::Stream,
    hasher: Sha256,
    path: PathBuf,
    want: FileSum,
}

impl VerifiedFile {
    /// Opens a file of a checkpoint whose size agrees with the manifest.
    ///
    /// # Errors
    /// If it is missing or of another size.
    pub fn open(fs: &dyn Fs, dir: &Path, name: &str, want: &FileSum) -> Result<Self> {
        let path = dir.join(name);
        let len = fs.open(&path).at("open", &path)?.len();
        if len != want.bytes {
            return Err(damaged(&path, format!("{len} bytes instead of {}", want.bytes)));
        }
        let stream = fs.stream(&path).at("open", &path)?;
        Ok(VerifiedFile { stream, hasher: Sha256::new(), path, want: want.clone() })
    }

    /// Reads what is left and compares the hash.
    ///
    /// # Errors
    /// If the contents differ from the manifest; then nothing that was read may be used.
    pub fn finish(mut self) -> Result<()> {
        let path = self.path.clone();
        let mut buf = vec![0; 1 << 20];
        while self.read(&mut buf).at("read", &path)? > 0 {}
        if hex(self.hasher) != self.want.sha256 {
            return Err(damaged(&path, "its SHA-256 differs from the manifest's"));
        }
        Ok(())
    }
}

impl Read for VerifiedFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = loop {
            match self.stream.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

/// Reads a whole file of a checkpoint, hash checked.
///
/// # Errors
/// If it is not in the manifest, cannot be read or differs.
pub fn read_file(fs: &dyn Fs, dir: &Path, manifest: &Manifest, name: &str) -> Result<Vec<u8>> {
    let want = manifest.files.get(name).ok_or_else(|| damaged(&dir.join(name), "not in the manifest"))?;
    let mut file = VerifiedFile::open(fs, dir, name, want)?;
    let mut bytes = Vec::with_capacity(want.bytes as usize);
    file.read_to_end(&mut bytes).at("read", &dir.join(name))?;
    file.finish()?;
    Ok(bytes)
}

/// Finds the newest checkpoint that verifies. `tell` hears about each one that does not.
///
/// # Errors
/// If there are checkpoints and none verifies; a folder without any is `None`.
pub fn newest(fs: &dyn Fs, root: &Path, tell: &mut dyn FnMut(String)) -> Result<Option<(PathBuf, Manifest)>> {
    let (steps, _) = survey(fs, root)?;
    for &step in &steps {
        let dir = step_dir(root, step);
        match verify(fs, &dir) {
            Ok(manifest) => return Ok(Some((dir, manifest))),
            Err(e) => tell(format!("checkpoint of step {step} is unusable, stepping back: {e}")),
        }
    }
    if steps.is_empty() {
        return Ok(None);
    }
    Err(CkptError::NoneVerifies { path: root.to_owned(), found: steps.len() })
}

/// The checkpoints of a run with where each stands, oldest first. Their manifests are checked and their files
/// are not; loading a model checks those.
///
/// # Errors
/// If the folder or a manifest cannot be read, or a manifest is damaged.
pub fn all(fs: &dyn Fs, root: &Path) -> Result<Vec<(PathBuf, Head)>> {
    let (steps, _) = survey(fs, root)?;
    let head = |step: &u64| {
        let dir = step_dir(root, *step);
        read_manifest(fs, &dir).map(|manifest| (dir, manifest.head))
    };
    steps.iter().rev().map(head).collect()
}

/// Finishes what a killed process may have left undone after its last rename: the name is made durable,
/// `LATEST` points to it, and what should have been pruned is. `dir` was found by [`newest`].
///
/// # Errors
/// If the disk fails; the checkpoint is as good as before.
pub fn settle(fs: &dyn Fs, root: &Path, dir: &Path, keep: usize) -> Result<()> {
    fs.sync_dir(root).at("sync", root)?;
    point_latest(fs, root, dir)?;
    prune(fs, root, keep, &mut Known::default())
}

/// What one process knows about the checkpoints of a run.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Steps whose checkpoints were verified, so that each is read once.
    pub verified: BTreeSet<u64>,
    /// Steps whose save failed. Such a folder may be there and look whole, and yet be gone after a power
    /// cut because a sync failed.
    pub failed: BTreeSet<u64>,
}

/// Removes unfinished and failed saves and all but the newest `keep` (at least [`MIN_KEEP`]) checkpoints that
/// verify. The ends of phases stay, and so does what is newer than the kept ones, damaged or not.
///
/// Must not run while a save is under way in the same folder.
///
/// # Errors
/// If something cannot be listed or removed.
pub fn prune(fs: &dyn Fs, root: &Path, keep: usize, known: &mut Known) -> Result<()> {
    let (mut steps, unfinished) = survey(fs, root)?;
    if steps.is_empty() && unfinished.is_empty() {
        return Ok(());
    }
    // A run that was killed between rename and sync left a name that a power cut may still take back;
    // nothing older may go before that name is durable.
    fs.sync_dir(root).at("sync", root)?;
    for step in std::mem::take(&mut known.failed) {
        if steps.contains(&step) {
            discard(fs, &step_dir(root, step)).inspect_err(|_| {
                known.failed.insert(step);
            })?;
            steps.retain(|s| *s != step);
        }
    }
    let mut kept = 0;
    for &step in &steps {
        let dir = step_dir(root, step);
        if kept < keep.max(MIN_KEEP) {
            if known.verified.contains(&step) || verify(fs, &dir).is_ok() {
                known.verified.insert(step);
                kept += 1;
            }
        } else if removable(fs, &dir)? {
            discard(fs, &dir)?;
            known.verified.remove(&step);
        }
    }
    for dir in unfinished {
        fs.remove_tree(&dir).at("remove", &dir)?;
    }
    Ok(())
}

/// Whether a folder is known not to be the end of a phase: its manifest says so or is gone because an
/// earlier removal was cut short.
fn removable(fs: &dyn Fs, dir: &Path) -> Result<bool> {
    if !fs.exists(&dir.join(MANIFEST)).at("look at", dir)? {
        return Ok(true);
    }
    Ok(read_manifest(fs, dir).is_ok_and(|m| !m.head.milestone))
}
