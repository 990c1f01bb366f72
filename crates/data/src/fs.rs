//! The one door through which data and training touch files.
//!
//! Everything that must survive a crash is written through [`Fs`], so that a test can put a disk behind
//! it that fails at any operation or forgets what was not synced ([`FaultFs`]). The trait says what
//! POSIX says and no more: a write is durable after [`FsWrite::sync`], a name after [`Fs::sync_dir`] of
//! its folder, and a rename swaps the target in one step for everyone who looks at the live tree.

mod fault;
mod url;

pub use fault::{Fault, FaultFs, FaultKind};
pub use url::UrlFs;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What a name in a folder stands for. Links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Dir,
    /// Anything else: link, pipe, device.
    Other,
}

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name without its folder.
    pub name: OsString,
    /// What it stands for.
    pub kind: Kind,
}

/// A file that is open for writing at its end.
pub trait FsWrite: Write + Send {
    /// Makes everything written so far durable.
    ///
    /// After an error the contents count as lost: the kernel may have dropped the dirty pages and a
    /// second call may report success without having written them, so it must not be retried.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that is open for reading at any position.
pub trait FsRead: Send + Sync {
    /// Bytes in the file when it was opened.
    fn len(&self) -> u64;

    /// Whether the file was empty when it was opened.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads at `offset`; 0 means the end of the file. May read less than asked for.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills `buf` from `offset`; a file that ends before is an `UnexpectedEof` error.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Reads an open file from its start as a stream.
pub struct Stream {
    file: Box<dyn FsRead>,
    at: u64,
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A file system. Errors are those of the operating system; they do not name the path, callers do.
pub trait Fs: Send + Sync {
    /// A new file for writing; one that exists is emptied.
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsWrite>>;

    /// A file for writing at its end; it is created when there is none.
    fn append(&self, path: &Path) -> io::Result<Box<dyn FsWrite>>;

    /// An existing file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn FsRead>>;

    /// What `path` stands for; a `NotFound` error if nothing. Links are not followed.
    fn kind(&self, path: &Path) -> io::Result<Kind>;

    /// The names in a folder, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;

    /// Gives a file or folder another name, replacing a file or an empty folder of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes one folder; an `AlreadyExists` error if there is something of that name.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Something that changes when the contents of a file do: on a disk its size and time of change, in an object store the tag
    /// of its contents. By default a hash of the contents.
    fn version(&self, path: &Path) -> io::Result<String> {
        Ok(crate::mix::hex(&<sha2::Sha256 as sha2::Digest>::digest(self.read(path)?)))
    }

    /// Bytes that this process may still write into the file system of `dir`.
    fn free_space(&self, dir: &Path) -> io::Result<u64>;

    /// An existing file as a stream.
    fn stream(&self, path: &Path) -> io::Result<Stream> {
        Ok(Stream { file: self.open(path)?, at: 0 })
    }

    /// The whole of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether there is something of that name.
    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.kind(path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Writes a file and makes its contents, not its name, durable.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create(path)?;
        file.write_all(bytes)?;
        file.flush()?;
        file.sync()
    }

    /// Swaps in a whole new file: whoever reads `path`, also after a crash, finds the old bytes or the
    /// new ones and nothing between. The last component of `path` with `.tmp` added is used on the way.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(".tmp");
        let tmp = path.with_file_name(name);
        let written = self.write(&tmp, bytes).and_then(|()| self.rename(&tmp, path));
        if written.is_err() {
            // Best effort: the error that matters is the first one.
            let _ = self.remove_file(&tmp);
            return written;
        }
        self.sync_dir(parent(path))
    }

    /// Makes a folder and those above it where they are missing.
    fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        let mut missing: Vec<PathBuf> = Vec::new();
        let mut at = dir;
        while !at.as_os_str().is_empty() && !self.exists(at)? {
            missing.push(at.to_owned());
            at = at.parent().unwrap_or(Path::new(""));
        }
        for dir in missing.iter().rev() {
            match self.create_dir(dir) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            self.sync_dir(parent(dir))?;
        }
        Ok(())
    }

    /// Removes a folder with everything in it. A folder that is gone already is fine.
    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        let entries = match self.list(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let path = dir.join(&entry.name);
            match entry.kind {
                Kind::Dir => self.remove_tree(&path)?,
                Kind::File | Kind::Other => self.remove_file(&path)?,
            }
        }
        self.remove_dir(dir)
    }
}

/// The folder that holds `path`: `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if p.as_os_str().is_empty() => Path::new("."),
        Some(p) => p,
        None => path,
    }
}

/// The file system of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

struct RealWrite(std::fs::File);

impl Write for RealWrite {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl FsWrite for RealWrite {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

struct RealRead {
    file: std::fs::File,
    len: u64,
}

impl FsRead for RealRead {
    fn len(&self) -> u64 {
        self.len
    }

    #[cfg(unix)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, buf, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.file, buf, offset)
    }
}

fn kind_of(t: std::fs::FileType) -> Kind {
    if t.is_file() {
        Kind::File
    } else if t.is_dir() {
        Kind::Dir
    } else {
        Kind::Other
    }
}

impl Fs for RealFs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsWrite>> {
        Ok(Box::new(RealWrite(std::fs::File::create(path)?)))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn FsWrite>> {
        Ok(Box::new(RealWrite(std::fs::File::options().append(true).create(true).open(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn FsRead>> {
        let file = std::fs::File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Box::new(RealRead { file, len }))
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        Ok(kind_of(std::fs::symlink_metadata(path)?.file_type()))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            entries.push(Entry { name: entry.file_name(), kind: kind_of(entry.file_type()?) });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Windows cannot open a folder as a file; NTFS journals the names itself.
        if cfg!(unix) { std::fs::File::open(dir)?.sync_all() } else { Ok(()) }
    }

    fn version(&self, path: &Path) -> io::Result<String> {
        let metadata = std::fs::metadata(path)?;
        let since = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(format!("{}-{}.{:09}", metadata.len(), since.as_secs(), since.subsec_nanos()))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        fs4::available_space(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both file systems must answer alike, or tests on one say nothing about the other.
    fn behaves(fs: &dyn Fs, root: &Path) {
        let p = |s: &str| root.join(s);
        fs.create_dirs(&p("a/b")).unwrap();
        assert_eq!(fs.create_dir(&p("a")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs.write(&p("a/f"), b"hello").unwrap();
        fs.append(&p("a/f")).unwrap().write_all(b" there").unwrap();
        assert_eq!(fs.read(&p("a/f")).unwrap(), b"hello there");
        let file = fs.open(&p("a/f")).unwrap();
        assert_eq!(file.len(), 11);
        let mut buf = [0; 5];
        file.read_exact_at(&mut buf, 6).unwrap();
        assert_eq!(&buf, b"there");
        assert_eq!(file.read_exact_at(&mut buf, 7).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        fs.replace(&p("a/f"), b"new").unwrap();
        assert_eq!(fs.read(&p("a/f")).unwrap(), b"new");
        let names: Vec<_> = fs.list(&p("a")).unwrap().into_iter().map(|e| (e.name, e.kind)).collect();
        assert_eq!(names, [("b".into(), Kind::Dir), ("f".into(), Kind::File)]);
        assert!(fs.remove_dir(&p("a")).is_err(), "a folder that is not empty");
        assert_eq!(fs.open(&p("a/none")).err().unwrap().kind(), io::ErrorKind::NotFound);
        assert!(!fs.exists(&p("a/none")).unwrap());
        assert_eq!(fs.create(&p("none/f")).err().unwrap().kind(), io::ErrorKind::NotFound);
        fs.rename(&p("a"), &p("c")).unwrap();
        assert_eq!(fs.read(&p("c/f")).unwrap(), b"new");
        fs.create_dirs(&p("full/x")).unwrap();
        assert!(fs.rename(&p("c"), &p("full")).is_err(), "over a folder that is not empty");
        assert!(fs.free_space(root).unwrap() > 0);
        fs.remove_tree(&p("c")).unwrap();
        fs.remove_tree(&p("c")).unwrap();
        assert!(!fs.exists(&p("c")).unwrap());
    }

    #[test]
    fn real_and_fault_file_systems_behave_alike() {
        let dir = tempfile::tempdir().unwrap();
        behaves(&RealFs, dir.path());
        behaves(&FaultFs::new(), Path::new("/"));
    }
}
