//! The folder that a demo fills: what lies where, and what may be replaced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use zamba_data::fs::{Fs, Kind, parent};

use crate::out;

/// The file by which a demo's folder is known; in the end it holds the summary.
const MARK: &str = "demo.json";
/// All that a demo leaves beside its mark. Only these are ever removed.
const OURS: [&str; 8] =
    ["report.html", "phase1", "phase2", "run", "recipe.toml", "tokenizer", "data", "text"];
/// Bytes that text, checkpoints and models take on disk, with room to spare.
const NEED: u64 = 600 << 20;

/// A folder that is, or is going to be, a demo's.
pub(super) struct Folder {
    fs: Arc<dyn Fs>,
    root: PathBuf,
    used: bool,
}

impl Folder {
    /// Checks that a demo may be put there: the folder is absent, empty, or another demo's.
    pub(super) fn check(fs: Arc<dyn Fs>, root: &Path) -> anyhow::Result<Self> {
        let name = root.display();
        let used = match fs.kind(root) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(e).with_context(|| format!("cannot look at {name}")),
            // A link to a folder is as good as the folder.
            Ok(Kind::File) => bail!("{name} is not a folder; choose another --out"),
            Ok(_) => !fs.list(root).with_context(|| format!("cannot read the folder {name}"))?.is_empty(),
        };
        let folder = Folder { fs, root: root.to_owned(), used };
        if used && !folder.is_demo() {
            bail!(
                "the folder {name} holds something other than a demo and is left alone; choose another --out"
            );
        }
        folder.check_space()?;
        Ok(folder)
    }

    fn is_demo(&self) -> bool {
        let bytes = self.fs.read(&self.root.join(MARK)).unwrap_or_default();
        serde_json::from_slice::<Value>(&bytes).is_ok_and(|mark| mark.get("zamba_demo").is_some())
    }

    fn check_space(&self) -> anyhow::Result<()> {
        let mut place = self.root.as_path();
        while place != parent(place) && !self.fs.exists(place).unwrap_or(false) {
            place = parent(place);
        }
        // Where the system does not say, the writes themselves will tell. What a replaced demo gives back counts too,
        // but is not known.
        let free = self.fs.free_space(place).unwrap_or(u64::MAX);
        if free < NEED && !self.used {
            let (free, need, name) = (out::bytes(free), out::bytes(NEED), self.root.display());
            bail!(
                "the disk of {name} has {free} left and a demo takes up to {need}; make room or choose another --out"
            );
        }
        Ok(())
    }

    /// Removes an older demo and marks the folder as one that is under way.
    pub(super) fn prepare(&self) -> anyhow::Result<()> {
        let root = self.root.display();
        self.fs.create_dirs(&self.root).with_context(|| format!("cannot make the folder {root}"))?;
        let mark = json!({"zamba_demo": 1, "finished": false});
        self.replace(&self.root.join(MARK), mark.to_string().as_bytes())?;
        if self.used {
            out::note(&format!("   replacing the demo in {root}"));
        }
        for name in OURS {
            let path = self.root.join(name);
            let removed = match self.fs.kind(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Ok(Kind::Dir) => self.fs.remove_tree(&path),
                Ok(_) => self.fs.remove_file(&path),
                Err(e) => Err(e),
            };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Marks the demo as finished; `summary` is a JSON object.
    pub(super) fn finish(&self, summary: &[u8]) -> anyhow::Result<()> {
        let mut mark = json!({"zamba_demo": 1, "finished": true});
        mark["summary"] = serde_json::from_slice(summary).context("cannot read back the summary")?;
        self.replace(&self.root.join(MARK), format!("{mark:#}\n").as_bytes())
    }

    /// Writes a file as a whole.
    pub(super) fn replace(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        self.fs.replace(path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Copies the files directly in `from`, but not its folders, into the new folder `to`, which appears when it is
    /// complete.
    pub(super) fn copy_files(&self, from: &Path, to: &Path) -> anyhow::Result<()> {
        let mut unfinished = to.as_os_str().to_owned();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        let copied = self.fs.remove_tree(&unfinished).and_then(|()| {
            self.fs.create_dir(&unfinished)?;
            for entry in self.fs.list(from)?.into_iter().filter(|entry| entry.kind == Kind::File) {
                let bytes = self.fs.read(&from.join(&entry.name))?;
                self.fs.write(&unfinished.join(&entry.name), &bytes)?;
            }
            self.fs.sync_dir(&unfinished)?;
            self.fs.rename(&unfinished, to)?;
            self.fs.sync_dir(parent(to))
        });
        if copied.is_err() {
            // Best effort: the error that matters is the first one.
            let _ = self.fs.remove_tree(&unfinished);
        }
        copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    }

    pub(super) fn fs(&self) -> &Arc<dyn Fs> {
        &self.fs
    }

    /// A token shard, without suffix. The name is relative to the recipe as well.
    pub(super) fn shard(&self, name: &str) -> PathBuf {
        self.root.join("data").join(name)
    }

    /// The text of a part on its way to the shard of that name.
    pub(super) fn text(&self, name: &str) -> PathBuf {
        self.root.join("text").join(name)
    }

    pub(super) fn tokenizer(&self) -> PathBuf {
        self.root.join("tokenizer")
    }

    pub(super) fn recipe(&self) -> PathBuf {
        self.root.join("recipe.toml")
    }

    /// Checkpoints and log of the run.
    pub(super) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The exported model at the end of phase 1 or 2.
    pub(super) fn model(&self, phase: usize) -> PathBuf {
        self.root.join(format!("phase{phase}"))
    }

    pub(super) fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }
}

#[cfg(test)]
mod tests {
    use zamba_data::fs::FaultFs;

    use super::*;

    fn folder(fs: &FaultFs) -> anyhow::Result<Folder> {
        Folder::check(Arc::new(fs.clone()), Path::new("/out"))
    }

    #[test]
    fn only_demos_are_replaced_and_what_is_not_ours_stays() {
        let fs = FaultFs::new();
        let first = folder(&fs).unwrap();
        first.prepare().unwrap();
        fs.create_dirs(&first.run()).unwrap();
        fs.write(&first.run().join("x"), b"old").unwrap();
        fs.write(Path::new("/out/notes.txt"), b"mine").unwrap();
        folder(&fs).unwrap().prepare().unwrap();
        assert!(!fs.exists(&first.run()).unwrap());
        assert_eq!(fs.read(Path::new("/out/notes.txt")).unwrap(), b"mine");
        fs.remove_file(Path::new("/out/demo.json")).unwrap();
        let refused = folder(&fs).err().unwrap().to_string();
        assert!(refused.contains("/out") && refused.contains("--out"), "{refused}");
        assert_eq!(fs.read(Path::new("/out/notes.txt")).unwrap(), b"mine");
    }

    #[test]
    fn a_full_disk_is_found_before_the_work() {
        let fs = FaultFs::new();
        fs.set_capacity(1 << 20);
        let refused = folder(&fs).err().unwrap().to_string();
        assert!(refused.contains("make room"), "{refused}");
    }

    #[test]
    fn a_copy_is_whole_or_absent() {
        let fs = FaultFs::new();
        let folder = folder(&fs).unwrap();
        folder.prepare().unwrap();
        let from = folder.run().join("step-1");
        fs.create_dirs(&from.join("state")).unwrap();
        fs.write(&from.join("a"), b"a").unwrap();
        fs.write(&from.join("b"), b"b").unwrap();
        folder.copy_files(&from, &folder.model(1)).unwrap();
        let names: Vec<_> = fs.list(&folder.model(1)).unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["a", "b"]);
        fs.set_capacity(0);
        folder.copy_files(&from, &folder.model(2)).unwrap_err();
        assert!(!fs.exists(&folder.model(2)).unwrap());
    }
}
