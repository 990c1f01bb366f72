//! Opening the files of a model folder: regular files inside it, read by position.
//!
//! A mapped file that another process truncates kills this one; a read returns an error. So files are mapped
//! only on request. And what a file claims is compared with the size of the handle that is read, not of
//! whatever has that name now.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zamba_kernels::FileMap;

use super::LoadError;

/// A model folder and the folders that links inside it may lead to.
pub(super) struct Folder {
    path: PathBuf,
    roots: Vec<PathBuf>,
}

impl Folder {
    pub(super) fn open(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.canonicalize().map_err(|source| LoadError::Io { path: dir.to_owned(), source })?;
        if !path.is_dir() {
            return Err(LoadError::NotAFolder { path });
        }
        let mut roots = vec![path.clone()];
        // The Hugging Face cache keeps snapshots as links: models--o--n/snapshots/COMMIT/file leads to
        // models--o--n/blobs/HASH.
        let repository = path.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent);
        if let Some(repository) = repository
            && repository.file_name().is_some_and(|name| name.to_string_lossy().starts_with("models--"))
        {
            roots.push(repository.join("blobs"));
        }
        Ok(Folder { path, roots })
    }

    /// Where the folder really is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether an entry of this name exists, a dangling link included.
    pub(super) fn has(&self, name: &str) -> bool {
        self.path.join(name).symlink_metadata().is_ok()
    }

    /// Opens the regular file `name`, a plain name, following links only within the allowed roots.
    pub(super) fn file(&self, name: &str) -> Result<OpenFile, LoadError> {
        let io = |source| LoadError::Io { path: self.path.join(name), source };
        let real = self.path.join(name).canonicalize().map_err(io)?;
        if !self.roots.iter().any(|root| real.starts_with(root)) {
            return Err(LoadError::Outside { file: name.to_owned(), target: real });
        }
        // Looked at before opening, because opening a pipe waits for a writer.
        if !real.metadata().map_err(io)?.is_file() {
            return Err(LoadError::NotAFile { file: name.to_owned() });
        }
        let file = File::open(&real).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(LoadError::NotAFile { file: name.to_owned() });
        }
        Ok(OpenFile {
            name: name.to_owned(),
            path: real,
            stamp: stamp(&metadata),
            size: metadata.len(),
            file,
        })
    }
}

fn stamp(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}

/// An open regular file whose size was taken from the handle.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) name: String,
    pub(super) size: u64,
    path: PathBuf,
    stamp: (u64, Option<SystemTime>),
    file: File,
}

impl OpenFile {
    /// Fills `out` from byte `at`. The caller has compared the range with `size`.
    pub(super) fn read_at(&self, at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        match self.file.read_exact_at(out, at) {
            Ok(()) => self.unchanged(),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(LoadError::Changed { file: self.name.clone() })
            }
            Err(source) => Err(LoadError::Io { path: self.path.clone(), source }),
        }
    }

    /// The file as memory, after a look at whether it is the one that was opened. See [`FileMap`] for the risk.
    pub(super) fn map(&self) -> Result<FileMap, LoadError> {
        let map =
            FileMap::new(&self.file).map_err(|source| LoadError::Io { path: self.path.clone(), source })?;
        self.unchanged().map(|()| map)
    }

    /// Refuses the file if its size or time of change is not what it was when opened.
    fn unchanged(&self) -> Result<(), LoadError> {
        let metadata =
            self.file.metadata().map_err(|source| LoadError::Io { path: self.path.clone(), source })?;
        if stamp(&metadata) == self.stamp {
            return Ok(());
        }
        Err(LoadError::Changed { file: self.name.clone() })
    }

    /// The whole file as text, if it has at most `limit` bytes.
    pub(super) fn text(&self, limit: u64) -> Result<String, LoadError> {
        if self.size > limit {
            return Err(LoadError::FileTooLarge { file: self.name.clone(), size: self.size, limit });
        }
        let mut bytes = vec![0; self.size as usize];
        self.read_at(0, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| LoadError::Encoding { file: self.name.clone() })
    }

    /// Hands the whole file to `each` in pieces of at most 1 MiB.
    pub(super) fn stream(&self, each: &mut dyn FnMut(&[u8])) -> Result<(), LoadError> {
        let mut buffer = vec![0; (1 << 20).min(self.size as usize)];
        let mut at = 0;
        while at < self.size {
            let part = buffer.len().min((self.size - at) as usize);
            self.read_at(at, &mut buffer[..part])?;
            each(&buffer[..part]);
            at += part as u64;
        }
        Ok(())
    }
}
