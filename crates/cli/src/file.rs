//! Output files and model folders, which appear under their name only when they are complete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::NamedTempFile;

use crate::out;

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
        let temp = builder()
            .tempfile_in(&parent)
            .with_context(|| format!("cannot write into {}", parent.display()))?;
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
        let named =
            self.temp.as_file().sync_all().and_then(|()| self.temp.persist(&target).map_err(io::Error::from));
        named.with_context(|| format!("cannot write {}", target.display()))?;
        sync_dir(&parent(&target)).with_context(|| format!("cannot write {}", target.display()))
    }
}

/// Checks that a model folder of `bytes` can be written as `target`: it must be absent or empty, unless
/// `force` says that a model there is to be replaced.
pub(crate) fn check_folder(target: &Path, force: bool, bytes: u64) -> anyhow::Result<()> {
    let name = target.display();
    match fs::read_dir(target) {
        Ok(entries) => check_occupied(target, force, entries.count() > 0)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            bail!("{name} is not a folder; choose another --out")
        }
        Err(e) => return Err(e).with_context(|| format!("cannot read the folder {name}")),
    }
    // The folder may be the first of several that are still to be made.
    match target
        .ancestors()
        .skip(1)
        .map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p })
        .find(|p| p.exists())
    {
        Some(place) => need(place, bytes),
        None => Ok(()),
    }
}

fn check_occupied(target: &Path, force: bool, occupied: bool) -> anyhow::Result<()> {
    let name = target.display();
    match (occupied, force) {
        (true, false) => bail!(
            "the folder {name} is not empty; choose another --out, or --force to replace the model in it"
        ),
        // Replacing deletes all that is there, and a slip of the pen must not cost a home directory.
        (true, true) if !target.join("config.json").is_file() => {
            bail!(
                "the folder {name} holds something other than a model and is not replaced; choose another --out"
            )
        }
        _ => Ok(()),
    }
}

fn need(place: &Path, bytes: u64) -> anyhow::Result<()> {
    // Where the system does not say, the write itself will tell.
    let free = fs4::available_space(place).unwrap_or(u64::MAX);
    if bytes > free {
        let (need, free) = (out::bytes(bytes), out::bytes(free));
        bail!(
            "the disk of {} has {free} left and {need} are needed; make room or choose another place",
            place.display()
        );
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

/// Temporary names say what they are, for whoever finds one after a power cut.
fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".zamba-unfinished-");
    // The library's default is for the owner alone; results get what the user's umask allows.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
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
    fn only_models_are_replaced_and_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a/b");
        check_folder(&target, false, 1).unwrap();
        fs::create_dir_all(&target).unwrap();
        check_folder(&target, false, 1).unwrap();
        fs::write(target.join("notes.txt"), "mine").unwrap();
        let error = |force| check_folder(&target, force, 1).unwrap_err().to_string();
        assert!(error(false).contains("not empty") && error(true).contains("not replaced"));
        fs::write(target.join("config.json"), "{}").unwrap();
        assert!(error(false).contains("--force"));
        check_folder(&target, true, 1).unwrap();
        let error = check_folder(&target, true, u64::MAX - 1).unwrap_err().to_string();
        assert!(error.contains("make room"), "{error}");
        assert!(
            check_folder(&target.join("notes.txt"), true, 1)
                .unwrap_err()
                .to_string()
                .contains("not a folder")
        );
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
