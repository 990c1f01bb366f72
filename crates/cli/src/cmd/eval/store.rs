//! Answers of a model that were found before, so that an evaluation goes on where it was stopped.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zamba_data::fs::{Fs, FsWrite, RealFs};
use zamba_eval::{Cache, Stored};

use crate::hash::{add_file, short};

/// A file of answers, or nothing.
pub(super) struct Store {
    known: HashMap<String, Stored>,
    file: Option<(PathBuf, Box<dyn FsWrite>)>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    answer: Stored,
}

impl Store {
    /// Keeps nothing.
    pub(super) fn none() -> Self {
        Store { known: HashMap::new(), file: None }
    }

    /// The answers in a file, which may not exist yet. What a killed process left at its end is passed over.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let known = lines.map(|line| (line.key, line.answer)).collect();
        let cannot = || format!("cannot write {}", path.display());
        let mut file = RealFs.append(path).with_context(cannot)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").with_context(cannot)?;
        }
        Ok(Store { known, file: Some((path.to_owned(), file)) })
    }

    /// Whether answers are kept.
    pub(super) fn keeps(&self) -> bool {
        self.file.is_some()
    }

    /// How many answers are known.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

impl Cache for Store {
    fn get(&self, key: &str) -> Option<Stored> {
        self.known.get(key).cloned()
    }

    fn put(&mut self, key: &str, answer: &Stored) -> Result<(), String> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let line = Line { key: key.to_owned(), answer: answer.clone() };
        // Plain structs with string keys always serialise.
        let mut text = serde_json::to_string(&line).expect("a line serialises");
        text.push('\n');
        file.write_all(text.as_bytes()).map_err(|e| format!("cannot write {}: {e}", path.display()))
    }
}

/// A hash of what answers depend on: the files of the model and how it is computed.
pub(super) fn model_hash(folder: &Path, how: &str) -> anyhow::Result<String> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .with_context(|| format!("cannot read {}", folder.display()))?;
    names.sort();
    let named = |name: &str| names.iter().any(|p| p.file_name().is_some_and(|n| n == name));
    // The manifest holds the hashes of the other files, and they were compared when the model was loaded.
    let manifest = named("MANIFEST.json");
    let counts = |path: &&PathBuf| match path.file_name().and_then(|n| n.to_str()) {
        Some("MANIFEST.json") => manifest,
        Some("config.json" | "tokenizer.json") => true,
        Some(name) => !manifest && name.ends_with(".safetensors"),
        None => false,
    };
    let mut hash = Sha256::new_with_prefix(how);
    for path in names.iter().filter(counts) {
        add_file(&mut hash, path)?;
    }
    Ok(short(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let (score, text) = (Stored::Score(-1.0 / 3.0, true), Stored::Text("é\n".into()));
        let mut store = Store::open(&path).unwrap();
        store.put("a", &score).unwrap();
        store.put("b", &text).unwrap();
        drop(store);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        let mut store = Store::open(&path).unwrap();
        assert_eq!((store.get("a"), store.get("b")), (Some(score), None));
        store.put("b", &text).unwrap();
        drop(store);
        assert_eq!(Store::open(&path).unwrap().get("b"), Some(text));
    }

    #[test]
    fn the_hash_is_of_what_answers_depend_on() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let hash = |how: &str| model_hash(dir.path(), how).unwrap();
        write("model.safetensors", "a");
        let first = hash("avx2");
        write("notes.txt", "x");
        assert_eq!(hash("avx2"), first);
        assert_ne!(hash("scalar"), first);
        write("model.safetensors", "b");
        assert_ne!(hash("avx2"), first);
    }
}
