//! What a job leaves in its folder so that it can go on later: `.zamba/job.json` and a marker per finished chunk.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Job;
use super::limits::Tally;
use super::manifest::{self, Manifest};
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::mix::hex;
use crate::plan::Plan;
use crate::write::Written;

/// The folder of all this within the output folder. A name with a dot is passed over when the folder is read as an input.
pub(super) const FOLDER: &str = ".zamba";
const VERSION: u32 = 1;

/// The state of a job on disk.
pub(super) struct State {
    folder: PathBuf,
    out: PathBuf,
    /// SHA-256 of the job's identity.
    job: String,
}

/// A marker: the chunk is finished, and this is what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Done {
    /// SHA-256 of the job's identity: inputs, config, chunks.
    job: String,
    pub(super) chunk: usize,
    pub(super) files: Vec<Written>,
    pub(super) counts: BTreeMap<String, u64>,
    /// Documents and bad records read.
    pub(super) records: u64,
    pub(super) bad: u64,
    /// Bytes of text read.
    pub(super) text_bytes: u64,
}

impl Done {
    pub(super) fn new(
        state: &State,
        chunk: usize,
        files: Vec<Written>,
        counts: BTreeMap<String, u64>,
        records: u64,
        bad: u64,
        text_bytes: u64,
    ) -> Done {
        Done { job: state.job.clone(), chunk, files, counts, records, bad, text_bytes }
    }
}

/// The name of a chunk's files, without extension.
pub(super) fn part_name(chunk: usize) -> String {
    format!("part-{chunk:05}")
}

impl State {
    /// Takes the folder for a job: an empty one, or one in which this very job has begun.
    pub(super) fn open(fs: &dyn Fs, job: &Job, plan: &Plan) -> Result<State> {
        let (identity, sha256) = identity(job, plan);
        let text = format!("{identity:#}\n");
        let state = State { folder: job.out.join(FOLDER), out: job.out.clone(), job: sha256 };
        fs.create_dirs(&job.out).map_err(Error::io(&job.out, "create"))?;
        let path = state.folder.join("job.json");
        match fs.read(&path) {
            Ok(bytes) if bytes == text.as_bytes() => return Ok(state),
            Ok(bytes) => {
                let what = difference(&bytes, &identity);
                if !job.force {
                    return Err(Error::Job { path: job.out.clone(), what });
                }
                state.clear(fs)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => state.refuse_others(fs)?,
            Err(error) => return Err(Error::io(&path, "read")(error)),
        }
        fs.create_dirs(&state.folder).map_err(Error::io(&state.folder, "create"))?;
        fs.replace(&path, text.as_bytes()).map_err(Error::io(&path, "write"))?;
        Ok(state)
    }

    /// An output folder must hold nothing that is not a job's.
    fn refuse_others(&self, fs: &dyn Fs) -> Result<()> {
        let entries = fs.list(&self.out).map_err(Error::io(&self.out, "list"))?;
        match entries.iter().find(|entry| entry.name != FOLDER) {
            Some(entry) => Err(Error::Job {
                path: self.out.clone(),
                what: format!("it holds `{}`, which no job has written", entry.name.to_string_lossy()),
            }),
            None => Ok(()),
        }
    }

    /// Removes all that another job has finished here, each marker after its files, so that this can be broken off too.
    fn clear(&self, fs: &dyn Fs) -> Result<()> {
        let gone = |path: &Path| match fs.remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, "remove")(error)),
            _ => Ok(()),
        };
        gone(&self.out.join(manifest::NAME))?;
        for entry in fs.list(&self.folder).map_err(Error::io(&self.folder, "list"))? {
            let path = self.folder.join(&entry.name);
            if entry.name.to_string_lossy().starts_with("part-") {
                let bytes = fs.read(&path).map_err(Error::io(&path, "read"))?;
                let done: Option<Done> = serde_json::from_slice(&bytes).ok();
                for file in done.iter().flat_map(|done| &done.files) {
                    gone(&self.out.join(&file.path))?;
                }
                gone(&path)?;
            }
        }
        Ok(())
    }

    fn marker(&self, chunk: usize) -> PathBuf {
        self.folder.join(format!("{}.json", part_name(chunk)))
    }

    /// What came of a chunk, if it is finished and its outputs are still there.
    pub(super) fn done(&self, fs: &dyn Fs, chunk: usize) -> Result<Option<Done>> {
        let path = self.marker(chunk);
        let bytes = match fs.read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io(&path, "read"))?,
        };
        let Ok(done) = serde_json::from_slice::<Done>(&bytes) else { return Ok(None) };
        if done.job != self.job || done.chunk != chunk {
            return Ok(None);
        }
        for file in &done.files {
            let path = self.out.join(&file.path);
            match fs.open(&path) {
                Ok(open) if open.len() == file.bytes => {}
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::io(&path, "open")(error));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(done))
    }

    /// Marks a chunk as finished. Its outputs must be durable.
    pub(super) fn mark(&self, fs: &dyn Fs, done: &Done) -> Result<()> {
        let path = self.marker(done.chunk);
        let text = format!("{:#}\n", json!(done));
        fs.replace(&path, text.as_bytes()).map_err(Error::io(&path, "write"))
    }

    /// Writes the manifest if all chunks are finished, and there is not too much bad input in all of them together.
    pub(super) fn finish(
        &self,
        fs: &dyn Fs,
        job: &Job,
        plan: &Plan,
        tally: &Tally,
    ) -> Result<Option<Manifest>> {
        let mut all = Vec::with_capacity(plan.chunks.len());
        for chunk in &plan.chunks {
            match self.done(fs, chunk.index)? {
                Some(done) => all.push(done),
                None => return Ok(None),
            }
        }
        let (records, bad) = all.iter().fold((0, 0), |(r, b), done| (r + done.records, b + done.bad));
        tally.check(records, bad)?;
        let manifest = Manifest::new(job, plan, &self.job, &all);
        manifest.write(fs, &self.out)?;
        Ok(Some(manifest))
    }
}

/// All that decides what a job writes, and its SHA-256.
pub(super) fn identity(job: &Job, plan: &Plan) -> (Value, String) {
    let identity = json!({
        "version": VERSION,
        "program": env!("CARGO_PKG_VERSION"),
        "step": job.step,
        "config": job.config,
        "format": job.format,
        "read": plan.options,
        "chunks": plan.chunks.len(),
        "inputs": plan.files,
    });
    let sha256 = hex(&Sha256::digest(identity.to_string()));
    (identity, sha256)
}

/// What is different about the job that began here, in words.
fn difference(before: &[u8], now: &Value) -> String {
    let Ok(before) = serde_json::from_slice::<Value>(before) else {
        return "its .zamba/job.json is damaged".into();
    };
    for key in ["version", "program", "step"] {
        if before[key] != now[key] {
            return format!("`{key}` was {} and is {}", before[key], now[key]);
        }
    }
    for (group, what) in [("config", ""), ("read", "read.")] {
        if let Some(what) = difference_in(&before[group], &now[group], what) {
            return what;
        }
    }
    if before["format"] != now["format"] {
        return format!("`format` was {} and is {}", before["format"], now["format"]);
    }
    let names = |value: &Value| -> BTreeMap<String, Value> {
        let files = value["inputs"].as_array().map_or(&[][..], Vec::as_slice);
        files.iter().map(|file| (file["name"].as_str().unwrap_or("").to_owned(), file.clone())).collect()
    };
    let (old, new) = (names(&before), names(now));
    let changed = old.iter().find(|(name, file)| new.get(*name).is_some_and(|other| other != *file));
    if let Some((name, _)) = changed {
        return format!("the input {name} has changed");
    }
    if let Some(name) = old.keys().find(|name| !new.contains_key(*name)) {
        return format!("the input {name} is not there any more");
    }
    match new.keys().find(|name| !old.contains_key(*name)) {
        Some(name) => format!("the input {name} was not there"),
        None => "the order of inputs has changed".into(),
    }
}

/// The first key by which two values differ, by its path.
fn difference_in(before: &Value, now: &Value, path: &str) -> Option<String> {
    let (Some(old), Some(new)) = (before.as_object(), now.as_object()) else {
        let name = path.trim_end_matches('.');
        let name = if name.is_empty() { "config" } else { name };
        return (before != now).then(|| format!("`{name}` was {before} and is {now}"));
    };
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    let null = Value::Null;
    keys.into_iter().find_map(|key| {
        let side = |map: &serde_json::Map<String, Value>| map.get(key).unwrap_or(&null).clone();
        difference_in(&side(old), &side(new), &format!("{path}{key}."))
    })
}
