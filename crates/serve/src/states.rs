//! Saved states as files: a conversation goes on after a restart without its prompt being computed again.
//!
//! A state is a safetensors file: `tokens` (u32), `recurrent` (f32, windows and SSM states) and `rows.N` (bytes, the
//! N-th run of keys and values as the device arranges them). Its metadata names the model by the hash of its weights,
//! the arrangement, and the SHA-256 of everything else. Each owner has a folder of their own, so nobody can read, list
//! or overwrite what belongs to another.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use zamba::checkpoint::manifest::hex;

use crate::engine::{Salt, Saved, SavedError};

const FORMAT: &str = "zamba-state";
const VERSION: &str = "1";
const ENDING: &str = "safetensors";

/// What the names of files begin with that are not whole yet.
const UNFINISHED: &str = ".writing-";

/// Age from which on an unfinished file has no writer any more. Another process may be writing to the same folder.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Longest name of a state.
const NAME_LEN: usize = 64;

/// A folder of saved states.
pub struct States {
    folder: PathBuf,
    /// Hash of the weights that the states belong to.
    model: String,
    /// Most bytes of all files together.
    most_bytes: u64,
    /// One writer at a time, so that the limit holds.
    writing: Mutex<()>,
}

/// A file in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, in seconds since 1970.
    pub created: u64,
}

/// Why a state could not be saved or found.
#[derive(Debug, thiserror::Error)]
pub enum StatesError {
    /// The name could be a path, or is none.
    #[error(
        "a state's name has 1 to {NAME_LEN} letters, digits, dots, dashes or underscores, and does not begin with a dot"
    )]
    Name,
    /// There is no such state.
    #[error("there is no state `{0}`")]
    Missing(String),
    /// The folder is full.
    #[error(
        "saved states have {used} bytes and this one {bytes}, more than the limit of {most}; delete some"
    )]
    Full {
        /// Bytes in use.
        used: u64,
        /// Bytes of the new one.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// The state belongs to other weights.
    #[error("the state `{0}` was made by other weights; only the model that made it can go on from it")]
    Model(String),
    /// The file is not what was written.
    #[error("the state `{name}` is damaged: {what}; delete it")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The engine cannot use it.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// The system failed.
    #[error("cannot {what} saved states: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> StatesError {
    move |source| StatesError::Io { what, source }
}

impl States {
    /// States in `folder`, which is made if it is not there, of the model whose weights have the hash `model`. What
    /// a process left unfinished that was killed an hour ago or longer is removed.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn open(folder: &Path, model: String, most_bytes: u64) -> Result<Self, StatesError> {
        fs::create_dir_all(folder).map_err(failed("make a folder for"))?;
        remove_abandoned(folder)?;
        Ok(States { folder: folder.to_owned(), model, most_bytes, writing: Mutex::new(()) })
    }

    /// Writes a state whole or not at all; one of the same name is replaced. Gives the size of the file.
    ///
    /// # Errors
    /// If the name is none, the folder is full, or the system fails.
    pub fn save(&self, owner: &Salt, name: &str, saved: &Saved) -> Result<u64, StatesError> {
        let target = self.path(owner, name)?;
        let _one = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = size(saved);
        let replaced = fs::metadata(&target).map_or(0, |m| m.len());
        let used = self.used()?.saturating_sub(replaced);
        if used + bytes > self.most_bytes {
            return Err(StatesError::Full { used, bytes, most: self.most_bytes });
        }
        let folder = self.folder_of(owner);
        fs::create_dir_all(&folder).map_err(failed("make a folder for"))?;
        let temporary = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&folder);
        let temporary = temporary.map_err(failed("write"))?;
        self.write(saved, temporary.path()).map_err(failed("write"))?;
        temporary.as_file().sync_all().map_err(failed("write"))?;
        temporary.persist(&target).map_err(|e| failed("write")(e.error))?;
        File::open(&folder).and_then(|f| f.sync_all()).map_err(failed("write"))?;
        fs::metadata(&target).map(|m| m.len()).map_err(failed("read"))
    }

    fn write(&self, saved: &Saved, path: &Path) -> io::Result<()> {
        let tokens: Vec<u8> = saved.tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("version".to_owned(), VERSION.to_owned()),
            ("model".to_owned(), self.model.clone()),
            ("layout".to_owned(), saved.layout.clone()),
            ("sha256".to_owned(), digest(&self.model, &saved.layout, &tokens, saved)),
        ]);
        let mut tensors = vec![
            ("tokens".to_owned(), view(Dtype::U32, 4, &tokens)?),
            ("recurrent".to_owned(), view(Dtype::F32, 4, &saved.recurrent)?),
        ];
        for (i, run) in saved.rows.iter().enumerate() {
            tensors.push((format!("rows.{i:05}"), view(Dtype::U8, 1, run)?));
        }
        safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(io::Error::other)
    }

    /// Reads a state.
    ///
    /// # Errors
    /// If there is none of that name, it is damaged, or it belongs to another model.
    pub fn load(&self, owner: &Salt, name: &str) -> Result<Saved, StatesError> {
        let path = self.path(owner, name)?;
        // Not through a link, and not more than may ever have been written.
        let about = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(StatesError::Missing(name.to_owned())),
            other => other.map_err(failed("read"))?,
        };
        let damaged = |what: &str| StatesError::Damaged { name: name.to_owned(), what: what.to_owned() };
        if !about.is_file() || about.len() > self.most_bytes {
            return Err(damaged("it is not a file of a saved state"));
        }
        let bytes = fs::read(&path).map_err(failed("read"))?;
        self.parse(name, &bytes)
    }

    fn parse(&self, name: &str, bytes: &[u8]) -> Result<Saved, StatesError> {
        let damaged = |what: &str| StatesError::Damaged { name: name.to_owned(), what: what.to_owned() };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(&e.to_string()))?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(&e.to_string()))?;
        let about = header.metadata().clone().unwrap_or_default();
        let get = |key: &str| about.get(key).map(String::as_str).unwrap_or_default();
        if (get("format"), get("version")) != (FORMAT, VERSION) {
            return Err(damaged("it has another format or version"));
        }
        if get("model") != self.model {
            return Err(StatesError::Model(name.to_owned()));
        }
        let tensor = |key: &str, dtype: Dtype| {
            file.tensor(key).ok().filter(|t| t.dtype() == dtype).map(|t| t.data().to_vec())
        };
        let tokens = tensor("tokens", Dtype::U32).ok_or_else(|| damaged("it has no tokens"))?;
        let recurrent =
            tensor("recurrent", Dtype::F32).ok_or_else(|| damaged("it has no recurrent state"))?;
        let rows = (0..file.len() - 2).map(|i| tensor(&format!("rows.{i:05}"), Dtype::U8));
        let rows: Option<Vec<Vec<u8>>> = rows.collect();
        let rows = rows.ok_or_else(|| damaged("runs of rows are missing"))?;
        let (words, _) = tokens.as_chunks();
        let saved = Saved {
            tokens: words.iter().map(|b| u32::from_le_bytes(*b)).collect(),
            layout: get("layout").to_owned(),
            recurrent,
            rows,
        };
        if get("sha256") != digest(&self.model, &saved.layout, &tokens, &saved) {
            return Err(damaged("its contents do not have the hash that was written"));
        }
        Ok(saved)
    }

    /// All states of an owner, by name.
    ///
    /// # Errors
    /// If the system fails.
    pub fn list(&self, owner: &Salt) -> Result<Vec<Listed>, StatesError> {
        let mut all = vec![];
        for (path, about) in files(&self.folder_of(owner))? {
            let Some(name) = name_of(&path) else { continue };
            let written = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let created = written.map_or(0, |time| time.as_secs());
            all.push(Listed { name, bytes: about.len(), created });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Removes a state.
    ///
    /// # Errors
    /// If there is none of that name, or the system fails.
    pub fn delete(&self, owner: &Salt, name: &str) -> Result<(), StatesError> {
        match fs::remove_file(self.path(owner, name)?) {
            Err(e) if e.kind() == ErrorKind::NotFound => Err(StatesError::Missing(name.to_owned())),
            other => other.map_err(failed("delete")),
        }
    }

    /// Bytes of the files of all owners.
    fn used(&self) -> Result<u64, StatesError> {
        Ok(all_files(&self.folder)?.iter().map(|(_, about)| about.len()).sum())
    }

    fn folder_of(&self, owner: &Salt) -> PathBuf {
        let hash = Sha256::digest(owner.0.as_bytes());
        self.folder.join(hex(&hash[..16]))
    }

    fn path(&self, owner: &Salt, name: &str) -> Result<PathBuf, StatesError> {
        let sane = |c: u8| c.is_ascii_alphanumeric() || b".-_".contains(&c);
        let good = (1..=NAME_LEN).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(sane);
        if good { Ok(self.folder_of(owner).join(format!("{name}.{ENDING}"))) } else { Err(StatesError::Name) }
    }
}

fn remove_abandoned(folder: &Path) -> Result<(), StatesError> {
    for (path, about) in all_files(folder)? {
        let unfinished =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()));
        let age = about.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        if unfinished && age.is_some_and(|age| age > ABANDONED) {
            fs::remove_file(&path).map_err(failed("remove what is left of"))?;
        }
    }
    Ok(())
}

/// Plain files of the folders of all owners.
fn all_files(folder: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>, StatesError> {
    let mut all = vec![];
    for owner in fs::read_dir(folder).map_err(failed("list"))? {
        all.extend(files(&owner.map_err(failed("list"))?.path())?);
    }
    Ok(all)
}

/// Plain files of a folder; none if it is not there.
fn files(folder: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>, StatesError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&e.kind()) => return Ok(vec![]),
        other => other.map_err(failed("list"))?,
    };
    let mut all = vec![];
    for entry in entries {
        let entry = entry.map_err(failed("list"))?;
        // What is deleted meanwhile is not there.
        if let Ok(about) =
            entry.metadata().and_then(|m| if m.is_file() { Ok(m) } else { Err(io::Error::other("")) })
        {
            all.push((entry.path(), about));
        }
    }
    Ok(all)
}

fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(ENDING)?.strip_suffix('.')?;
    (!name.starts_with('.')).then(|| name.to_owned())
}

fn view(dtype: Dtype, size: usize, bytes: &[u8]) -> io::Result<TensorView<'_>> {
    TensorView::new(dtype, vec![bytes.len() / size], bytes).map_err(io::Error::other)
}

fn size(saved: &Saved) -> u64 {
    // The header has about as many bytes for each tensor.
    let header = 1024 + 96 * saved.rows.len();
    let rows: usize = saved.rows.iter().map(Vec::len).sum();
    (header + 4 * saved.tokens.len() + saved.recurrent.len() + rows) as u64
}

fn digest(model: &str, layout: &str, tokens: &[u8], saved: &Saved) -> String {
    let mut hash = Sha256::new();
    let parts = [model.as_bytes(), layout.as_bytes(), tokens, &saved.recurrent];
    for part in parts.into_iter().chain(saved.rows.iter().map(Vec::as_slice)) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Saved {
        let rows = vec![vec![7; 96], (0..40).collect()];
        Saved { tokens: (0..41).collect(), layout: "some".to_owned(), recurrent: vec![3; 64], rows }
    }

    fn owner(name: &str) -> Salt {
        Salt(name.into())
    }

    fn open(folder: &Path) -> States {
        States::open(folder, "weights".to_owned(), 1 << 20).unwrap()
    }

    #[test]
    fn what_is_saved_is_what_is_loaded_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let states = open(dir.path());
        let bytes = states.save(&owner("a"), "talk-1", &saved()).unwrap();
        assert_eq!(open(dir.path()).load(&owner("a"), "talk-1").unwrap(), saved());
        let listed = states.list(&owner("a")).unwrap();
        assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].bytes), (1, "talk-1", bytes));
        assert!(listed[0].created > 1_700_000_000);
        assert!(states.list(&owner("b")).unwrap().is_empty());
        assert!(matches!(states.load(&owner("b"), "talk-1"), Err(StatesError::Missing(_))));
        assert!(matches!(states.delete(&owner("b"), "talk-1"), Err(StatesError::Missing(_))));
        let other = States::open(dir.path(), "others".to_owned(), 1 << 20).unwrap();
        assert!(matches!(other.load(&owner("a"), "talk-1"), Err(StatesError::Model(_))));
        states.delete(&owner("a"), "talk-1").unwrap();
        assert!(matches!(states.load(&owner("a"), "talk-1"), Err(StatesError::Missing(_))));
    }

    #[test]
    fn what_a_killed_process_left_is_removed_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let states = open(dir.path());
        states.save(&owner("a"), "whole", &saved()).unwrap();
        let folder = states.folder_of(&owner("a"));
        let old = SystemTime::now() - 2 * ABANDONED;
        for (name, time) in [(".writing-old", old), (".writing-new", SystemTime::now())] {
            let file = File::create(folder.join(name)).unwrap();
            file.set_modified(time).unwrap();
        }
        File::open(folder.join("whole.safetensors")).unwrap().set_modified(old).unwrap();
        let states = open(dir.path());
        assert_eq!(
            (folder.join(".writing-old").exists(), folder.join(".writing-new").exists()),
            (false, true)
        );
        assert_eq!(states.load(&owner("a"), "whole").unwrap(), saved());
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let states = open(dir.path());
        states.save(&owner("a"), "x", &saved()).unwrap();
        let path = states.path(&owner("a"), "x").unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(states.parse("x", &bad).ok().is_none_or(|s| s == saved()), "byte {at}");
            assert!(states.parse("x", &good[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(states.parse("x", &good).unwrap(), saved());
    }

    #[test]
    fn names_are_never_paths() {
        let dir = tempfile::tempdir().unwrap();
        let states = open(&dir.path().join("states"));
        fs::write(dir.path().join("secret.safetensors"), "secret").unwrap();
        let long = "x".repeat(NAME_LEN + 1);
        for name in [
            "",
            ".",
            "..",
            "../secret",
            "a/b",
            "a\\b",
            "/etc/passwd",
            ".x",
            "a\0b",
            "a b",
            "é",
            "%2e%2e",
            &long,
        ] {
            assert!(matches!(states.load(&owner("a"), name), Err(StatesError::Name)), "{name:?}");
            assert!(matches!(states.save(&owner("a"), name, &saved()), Err(StatesError::Name)), "{name:?}");
            assert!(matches!(states.delete(&owner("a"), name), Err(StatesError::Name)), "{name:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let states = open(dir.path());
        states.save(&owner("a"), "x", &saved()).unwrap();
        let target = states.path(&owner("a"), "x").unwrap();
        std::os::unix::fs::symlink(&target, target.with_file_name("link.safetensors")).unwrap();
        assert!(matches!(states.load(&owner("a"), "link"), Err(StatesError::Damaged { .. })));
    }

    #[test]
    fn a_full_folder_takes_nothing_more_and_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let most = 2 * size(&saved());
        let states = States::open(dir.path(), "weights".to_owned(), most).unwrap();
        states.save(&owner("a"), "one", &saved()).unwrap();
        states.save(&owner("a"), "one", &saved()).unwrap();
        states.save(&owner("b"), "two", &saved()).unwrap();
        assert!(matches!(states.save(&owner("a"), "three", &saved()), Err(StatesError::Full { .. })));
        assert_eq!(states.load(&owner("b"), "two").unwrap(), saved());
        assert_eq!(files(&states.folder_of(&owner("a"))).unwrap().len(), 1, "nothing half-written is left");
    }
}
