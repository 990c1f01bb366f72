//! Saving in the background: a thread writes while the run goes on.

use crate::ckpt::{self, CkptError, Known, Manifest, Snapshot};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use zamba_data::fs::Fs;

/// What came of a save: the manifest, or why there is none.
pub type Outcome = Result<Manifest, CkptError>;

/// Writes snapshots one at a time and prunes after each.
pub struct Saver {
    fs: Arc<dyn Fs>,
    root: PathBuf,
    keep: usize,
    job: Option<JoinHandle<(Outcome, Known)>>,
    known: Known,
}

impl Saver {
    /// A saver into `root` that keeps the newest `keep` checkpoints (at least two).
    pub fn new(fs: Arc<dyn Fs>, root: PathBuf, keep: usize) -> Self {
        Saver { fs, root, keep, job: None, known: Known::default() }
    }

    /// Starts a save. If one is still under way, waits for it and returns what came of it.
    pub fn start(&mut self, snapshot: Snapshot) -> Option<Outcome> {
        let before = self.finish();
        let (fs, root, keep) = (self.fs.clone(), self.root.clone(), self.keep);
        let mut known = std::mem::take(&mut self.known);
        self.job = Some(std::thread::spawn(move || {
            let outcome = save_and_prune(&*fs, &root, keep, snapshot, &mut known);
            (outcome, known)
        }));
        before
    }

    /// What came of the last save, if it has ended since the last call.
    pub fn poll(&mut self) -> Option<Outcome> {
        if self.job.as_ref()?.is_finished() { self.finish() } else { None }
    }

    /// Waits for a save that is under way.
    pub fn finish(&mut self) -> Option<Outcome> {
        let (outcome, known) = match self.job.take()?.join() {
            Ok(done) => done,
            Err(_) => (Err(CkptError::Died { path: self.root.clone() }), Known::default()),
        };
        self.known = known;
        Some(outcome)
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Saves a checkpoint and then prunes; without a good save nothing is pruned.
///
/// # Errors
/// As [`ckpt::save`] and [`ckpt::prune`].
pub fn save_and_prune(
    fs: &dyn Fs,
    root: &std::path::Path,
    keep: usize,
    snapshot: Snapshot,
    known: &mut Known,
) -> Outcome {
    let step = snapshot.head.step;
    let manifest = ckpt::save(fs, root, snapshot).inspect_err(|_| {
        known.failed.insert(step);
    })?;
    known.failed.remove(&step);
    known.verified.insert(step);
    ckpt::prune(fs, root, keep, known)?;
    Ok(manifest)
}
