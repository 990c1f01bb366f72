//! The cache of `huggingface_hub`, of one repository.
//!
//! `blobs/ETAG` hold the bytes, `snapshots/COMMIT/FILE` are links to them, `refs/REVISION` hold the
//! commit that a branch or tag stood for when it was last asked.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::HubError;
use super::id::{ModelId, is_commit};

pub(super) struct Cache {
    /// `models--owner--name`.
    repository: PathBuf,
    /// Where `huggingface_hub` too locks its downloads.
    locks: PathBuf,
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_owned();
    move |source| HubError::Cache { path, source }
}

impl Cache {
    pub(super) fn of(root: &Path, id: &ModelId) -> Self {
        let name = format!("{}--{}--{}", id.kind.plural(), id.owner, id.repository);
        Cache { repository: root.join(&name), locks: root.join(".locks").join(name) }
    }

    /// The snapshot that `revision` meant when it was last asked.
    pub(super) fn snapshot_of(&self, revision: &str) -> Option<PathBuf> {
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            fs::read_to_string(self.repository.join("refs").join(revision)).ok()?.trim().to_owned()
        };
        is_commit(&commit).then(|| self.snapshot(&commit)).filter(|path| path.is_dir())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.repository.join("snapshots").join(commit)
    }

    /// Makes the folders for a snapshot and returns its path.
    pub(super) fn create(&self, commit: &str) -> Result<PathBuf, HubError> {
        let snapshot = self.snapshot(commit);
        for folder in [&snapshot, &self.repository.join("blobs"), &self.locks] {
            fs::create_dir_all(folder).map_err(failed(folder))?;
        }
        Ok(snapshot)
    }

    /// Where the bytes of a file with this tag are or go.
    pub(super) fn blob(&self, tag: &str) -> PathBuf {
        self.repository.join("blobs").join(tag)
    }

    /// Where they are collected until they are complete.
    pub(super) fn incomplete(&self, tag: &str) -> PathBuf {
        self.repository.join("blobs").join(format!("{tag}.incomplete"))
    }

    /// Waits until no other process fetches this file. The lock ends with the value.
    pub(super) fn lock(&self, tag: &str) -> Result<File, HubError> {
        let path = self.locks.join(format!("{tag}.lock"));
        let file = File::options().create(true).append(true).open(&path).map_err(failed(&path))?;
        file.lock().map_err(failed(&path))?;
        Ok(file)
    }

    /// Puts the blob `tag` into the snapshot under `name`.
    pub(super) fn link(&self, commit: &str, name: &str, tag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(name);
        // A name may have folders in it, and then the blobs are farther up.
        let up = "../".repeat(name.matches('/').count());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed(folder))?;
        }
        let target = format!("{up}../../blobs/{tag}");
        match symlink(&target, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_file() => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A link whose blob was deleted.
                fs::remove_file(&path).map_err(failed(&path))?;
                symlink(&target, &path).map_err(failed(&path))
            }
            other => other.map_err(failed(&path)),
        }
    }

    /// Notes what commit a branch or tag stands for. Done last, so that it means a complete snapshot.
    pub(super) fn set_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.repository.join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(&self.repository);
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        File::create(&temporary)
            .and_then(|mut file| file.write_all(commit.as_bytes()))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(failed(&path))
    }
}
