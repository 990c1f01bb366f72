//! Output folders and files that appear under their name only when they are complete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::{NamedTempFile, TempDir};

use crate::out;

/// A folder under construction beside its final place. Dropped before [`NewFolder::publish`], it is gone.
pub(crate) struct NewFolder {
    target: PathBuf,
    temp: TempDir,
}

impl NewFolder {
    /// Begins a folder that is to become `target`. One that exists must be empty, or `force` says that the new files
    /// may replace those of the same name in it.
    pub(crate) fn begin(target: &Path, force: bool) -> anyhow::Result<Self> {
        match fs::read_dir(target) {
            Ok(mut entries) if entries.next().is_some() && !force => {
                bail!("the folder {} is not empty; choose another --out, or --force to overwrite", target.display())
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                bail!("--out {} is not a folder; choose another name", target.display())
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read the folder {}", target.display())),
        }
        // A link to a folder stays a link.
        let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        let parent = parent(&target);
        fs::create_dir_all(&parent).with_context(|| format!("cannot make the folder {}", parent.display()))?;
        let temp = temp_dir(&parent).with_context(|| format!("cannot write into {}", parent.display()))?;
        Ok(NewFolder { target, temp })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Fails early where a disk plainly lacks the space for `bytes`.
    pub(crate) fn need(&self, bytes: u64) -> anyhow::Result<()> {
        need(&parent(&self.target), bytes)
    }

    /// Gives the folder its name. Into a folder that has files, the new ones are moved one by one; weights of another
    /// checkpoint are removed from it, since loaders would take them for part of this one.
    pub(crate) fn publish(self) -> anyhow::Result<()> {
        let target = &self.target;
        let moved = self.sync().and_then(|()| match fs::rename(self.temp.path(), target) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => self.merge(),
            result => result,
        });
        moved.with_context(|| format!("cannot write the folder {}", target.display()))?;
        sync_dir(&parent(target)).with_context(|| format!("cannot write the folder {}", target.display()))
    }

    fn merge(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.target)? {
            let entry = entry?;
            let name = entry.file_name();
            let weights = name.to_str().is_some_and(|n| n.starts_with("model") && n.contains(".safetensors"));
            if weights && !self.path().join(&name).exists() {
                fs::remove_file(entry.path())?;
            }
        }
        for entry in fs::read_dir(self.path())? {
            let entry = entry?;
            fs::rename(entry.path(), self.target.join(entry.file_name()))?;
        }
        sync_dir(&self.target)
    }

    /// Makes contents and names durable before the folder gets its name.
    fn sync(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.path())? {
            fs::File::open(entry?.path())?.sync_all()?;
        }
        sync_dir(self.path())
    }
}

/// A file under construction beside its final place. Dropped before [`NewFile::publish`], it is gone.
pub(crate) struct NewFile {
    target: PathBuf,
    temp: NamedTempFile,
}

impl NewFile {
    /// Begins a file that is to become or replace `target`.
    pub(crate) fn begin(target: &Path) -> anyhow::Result<Self> {
        if target.is_dir() {
            bail!("{} is a folder; name a file to write", target.display());
        }
        let parent = parent(target);
        let temp = builder().tempfile_in(&parent).with_context(|| format!("cannot write into {}", parent.display()))?;
        Ok(NewFile { target: target.to_owned(), temp })
    }

    /// Fails early where a disk plainly lacks the space for `bytes`.
    pub(crate) fn need(&self, bytes: u64) -> anyhow::Result<()> {
        need(&parent(&self.target), bytes)
    }

    /// The file to write.
    pub(crate) fn file(&mut self) -> &mut fs::File {
        self.temp.as_file_mut()
    }

    /// Gives the file its name.
    pub(crate) fn publish(self) -> anyhow::Result<()> {
        let target = self.target;
        let named = self.temp.as_file().sync_all().and_then(|()| self.temp.persist(&target).map_err(io::Error::from));
        named.with_context(|| format!("cannot write {}", target.display()))?;
        sync_dir(&parent(&target)).with_context(|| format!("cannot write {}", target.display()))
    }
}

fn need(place: &Path, bytes: u64) -> anyhow::Result<()> {
    // Where the system does not say, the write itself will tell.
    let free = fs4::available_space(place).unwrap_or(u64::MAX);
    if bytes > free {
        let (need, free) = (out::bytes(bytes), out::bytes(free));
        bail!("the disk of {} has {free} left and {need} are needed; make room or choose another place", place.display());
    }
    Ok(())
}

/// The folder that holds `path`.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Temporary names begin alike, so that whoever finds one after a power cut knows what it is.
fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".zamba-unfinished-");
    // The library's default is for the owner alone; results get what the user's umask allows.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

fn temp_dir(parent: &Path) -> io::Result<TempDir> {
    let mut builder = builder();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(parent)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    // Other systems cannot open a folder as a file and make names durable by themselves.
    if cfg!(unix) { fs::File::open(dir)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a/b");
        let folder = NewFolder::begin(&target, false).unwrap();
        fs::write(folder.path().join("x"), "1").unwrap();
        drop(folder);
        assert!(names(&dir.path().join("a")).is_empty());
        let folder = NewFolder::begin(&target, false).unwrap();
        fs::write(folder.path().join("x"), "1").unwrap();
        folder.publish().unwrap();
        assert_eq!(names(&target), ["x"]);
        assert_eq!(names(&dir.path().join("a")), ["b"]);
    }

    #[test]
    fn a_full_folder_is_kept_unless_forced_and_then_loses_only_old_weights() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["notes.txt", "config.json", "model-00001-of-00002.safetensors"] {
            fs::write(dir.path().join(name), "old").unwrap();
        }
        let error = NewFolder::begin(dir.path(), false).err().unwrap().to_string();
        assert!(error.contains("not empty") && error.contains("--force"), "{error}");
        let folder = NewFolder::begin(dir.path(), true).unwrap();
        fs::write(folder.path().join("config.json"), "new").unwrap();
        fs::write(folder.path().join("model.safetensors"), "new").unwrap();
        folder.publish().unwrap();
        assert_eq!(names(dir.path()), ["config.json", "model.safetensors", "notes.txt"]);
        assert_eq!(fs::read_to_string(dir.path().join("config.json")).unwrap(), "new");
        assert_eq!(fs::read_to_string(dir.path().join("notes.txt")).unwrap(), "old");
    }

    #[test]
    fn files_replace_others_only_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        fs::write(&target, "old").unwrap();
        let mut file = NewFile::begin(&target).unwrap();
        io::Write::write_all(file.file(), b"new").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        file.publish().unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        assert_eq!(names(dir.path()), ["x"]);
        let error = NewFile::begin(dir.path()).err().unwrap().to_string();
        assert!(error.contains("is a folder"), "{error}");
    }
}
