//! What a finished job says about its output: `manifest.json`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::state::{Done, FOLDER};
use super::{Format, Job};
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::plan::Plan;
use crate::write::Written;

/// Its name within the output folder.
pub(super) const NAME: &str = "manifest.json";
/// By this a manifest is told from other files of that name.
const KIND: &str = "zamba-data job 1";

/// What a job made of what. It holds no time and no path of a machine, so equal jobs have equal manifests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Kind and version of this file.
    pub kind: String,
    /// Version of the program.
    pub program: String,
    /// The step.
    pub step: String,
    /// All its settings.
    pub config: Value,
    /// SHA-256 of the whole identity of the job, each input's size and version included (`.zamba/job.json`).
    pub job: String,
    /// The inputs.
    pub inputs: Vec<InputInfo>,
    /// How documents are written.
    pub format: Format,
    /// Chunks of the plan.
    pub chunks: usize,
    /// Documents read.
    pub documents_read: u64,
    /// Bytes of their text.
    pub text_bytes_read: u64,
    /// Bad records, see `quarantine/`.
    pub bad: u64,
    /// Counts of the step.
    pub counts: BTreeMap<String, u64>,
    /// All files, in order of streams and chunks; those of the main output are the ones without a folder.
    pub files: Vec<Written>,
}

/// An input of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputInfo {
    /// Its source name.
    pub source: String,
    /// Files in it.
    pub files: u64,
    /// Their bytes on disk.
    pub bytes: u64,
}

impl Manifest {
    pub(super) fn new(job: &Job, plan: &Plan, identity: &str, all: &[Done]) -> Manifest {
        let mut inputs: Vec<InputInfo> = Vec::new();
        for file in &plan.files {
            match inputs.iter_mut().find(|input| input.source == file.source) {
                Some(input) => {
                    input.files += 1;
                    input.bytes += file.bytes;
                }
                None => inputs.push(InputInfo { source: file.source.clone(), files: 1, bytes: file.bytes }),
            }
        }
        let mut counts = BTreeMap::new();
        for (name, n) in all.iter().flat_map(|done| &done.counts) {
            *counts.entry(name.clone()).or_insert(0) += n;
        }
        let mut files: Vec<Written> = all.iter().flat_map(|done| done.files.clone()).collect();
        // The sort is stable: within a stream the order of chunks remains.
        files.sort_by_key(|file| folder(file).to_owned());
        let sum = |of: &dyn Fn(&Done) -> u64| all.iter().map(of).sum::<u64>();
        let bad = sum(&|done| done.bad);
        Manifest {
            kind: KIND.to_owned(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            step: job.step.clone(),
            config: job.config.clone(),
            job: identity.to_owned(),
            inputs,
            format: job.format,
            chunks: plan.chunks.len(),
            documents_read: sum(&|done| done.records) - bad,
            text_bytes_read: sum(&|done| done.text_bytes),
            bad,
            counts,
            files,
        }
    }

    /// The files of a stream, in order of chunks; "" is the main output.
    pub fn stream<'a>(&'a self, stream: &'a str) -> impl Iterator<Item = &'a Written> {
        self.files
            .iter()
            .filter(move |file| file.path.rsplit_once('/').map_or("", |(folder, _)| folder) == stream)
    }

    /// Documents in the main output.
    pub fn documents(&self) -> u64 {
        self.stream("").map(|file| file.documents).sum()
    }

    pub(super) fn write(&self, fs: &dyn Fs, out: &Path) -> Result<()> {
        let path = out.join(NAME);
        let text = format!("{:#}\n", json!(self));
        match fs.replace(&path, text.as_bytes()) {
            // Another process may have finished at the same moment, and has written the same.
            Err(error) if error.kind() == ErrorKind::NotFound => match fs.read(&path) {
                Ok(bytes) if bytes == text.as_bytes() => Ok(()),
                _ => Err(Error::io(&path, "write")(error)),
            },
            other => other.map_err(Error::io(&path, "write")),
        }
    }

    /// Reads the manifest of an output folder; `None` if there is none.
    ///
    /// # Errors
    /// If there is a file of that name that cannot be read, or is of a job and is damaged.
    pub fn read(fs: &dyn Fs, out: &Path) -> Result<Option<Manifest>> {
        let path = out.join(NAME);
        let bytes = match fs.read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io(&path, "read"))?,
        };
        // Other programs have files of that name too.
        let any: Option<Value> = serde_json::from_slice(&bytes).ok();
        if any.as_ref().is_none_or(|any| any["kind"] != KIND) {
            return Ok(None);
        }
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::Input { path, what: format!("is damaged: {error}; run the job again") })
    }
}

/// The stream that a file belongs to.
fn folder(file: &Written) -> &str {
    file.path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// If `folder` is the output of a job: the names of the files of its main output.
///
/// # Errors
/// If the job has not finished, or a file is not as long as it was.
pub(crate) fn outputs(fs: &dyn Fs, folder: &Path) -> Result<Option<Vec<String>>> {
    let Some(manifest) = Manifest::read(fs, folder)? else {
        let begun = folder.join(FOLDER).join("job.json");
        if fs.exists(&begun).map_err(Error::io(&begun, "look at"))? {
            let what = "is the output of a step that has not finished; run that again first".into();
            return Err(Error::Input { path: folder.to_owned(), what });
        }
        return Ok(None);
    };
    let mut names = Vec::new();
    for file in manifest.stream("") {
        let path = folder.join(&file.path);
        let found = fs.open(&path).map_err(Error::io(&path, "open"))?.len();
        if found != file.bytes {
            return Err(Error::Size { path, expected: file.bytes, found });
        }
        names.push(file.path.clone());
    }
    Ok(Some(names))
}
