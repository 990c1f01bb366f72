//! Rows of data sets: Parquet or JSON lines, in the folders of a copy of the hub or named one by one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;

use super::TaskError;
use super::config::TaskConfig;
use crate::python::Doc;

/// Where data sets are.
#[derive(Default)]
pub struct DataSource<'a> {
    /// A folder with the files of one or more data sets.
    pub folder: Option<PathBuf>,
    /// Brings the files of a data set of the hub, for what is not in the folder.
    pub fetch: Option<&'a Fetch<'a>>,
}

/// Brings the files of a split; an error is in words.
pub type Fetch<'a> = dyn Fn(&Wanted<'_>) -> Result<Vec<PathBuf>, String> + 'a;

/// A split of a data set.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its name on the hub, `owner/name`.
    pub dataset: &'a str,
    /// The configuration, if it has several.
    pub config: Option<&'a str>,
    /// `train`, `validation`, `test` or what the task calls it.
    pub split: &'a str,
}

impl Wanted<'_> {
    /// Of the files of a repository (paths with `/`), those of this split, in order; empty if there are none.
    ///
    /// Known arrangements: `[CONFIG/|data/]SPLIT[-00000-of-00001].parquet` and `CONFIG/SPLIT/0000.parquet`;
    /// `.jsonl`, `.ndjson` and `.json` too.
    pub fn choose<'f>(&self, files: &[&'f str]) -> Vec<&'f str> {
        let config = self.config.unwrap_or("default");
        let folders =
            [format!("{config}/{}/", self.split), format!("{config}/"), "data/".to_owned(), String::new()];
        for (i, folder) in folders.iter().enumerate() {
            let mut found: Vec<&str> = files
                .iter()
                .copied()
                .filter(|file| {
                    let Some(name) = file.strip_prefix(folder.as_str()).filter(|n| !n.contains('/')) else {
                        return false;
                    };
                    format_of(Path::new(name)).is_some() && (i == 0 || names_split(name, self.split))
                })
                .collect();
            if !found.is_empty() {
                found.sort_unstable();
                return found;
            }
        }
        vec![]
    }
}

/// Whether a file `name` holds a part of `split`: `SPLIT.parquet`, `SPLIT-00000-of-00001.parquet`.
fn names_split(name: &str, split: &str) -> bool {
    name.strip_prefix(split).is_some_and(|rest| rest.starts_with(['.', '-']))
}

#[derive(Clone, Copy)]
enum Format {
    Parquet,
    Json,
}

fn format_of(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "parquet" => Some(Format::Parquet),
        "jsonl" | "ndjson" | "json" => Some(Format::Json),
        _ => None,
    }
}

/// The rows of a split.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    pub(crate) docs: Vec<Doc>,
    /// Files with the number of the first row of each.
    files: Vec<(PathBuf, usize)>,
}

impl Rows {
    /// File and row of a document, for errors.
    pub(crate) fn place(&self, index: usize) -> String {
        let part = self.files.partition_point(|(_, first)| *first <= index);
        match part.checked_sub(1).map(|i| &self.files[i]) {
            Some((path, first)) => format!("{}, row {}", path.display(), index - first + 1),
            None => format!("sample {}", index + 1),
        }
    }

    /// Documents that stand in a task's file.
    pub(crate) fn inline(docs: Vec<Doc>) -> Self {
        Rows { docs, files: vec![] }
    }
}

/// Rows that were read, by files, as several tasks may share them.
pub(crate) type Store = HashMap<Vec<PathBuf>, Rows>;

impl DataSource<'_> {
    /// The rows of a split of a task's data set.
    pub(crate) fn rows(
        &self,
        config: &TaskConfig,
        base: &Path,
        split: &str,
        store: &mut Store,
    ) -> Result<Rows, TaskError> {
        let files = self.files(config, base, split)?;
        let rows = match store.get(&files) {
            Some(rows) => rows.clone(),
            None => {
                let rows = read(&files)?;
                store.insert(files.clone(), rows.clone());
                rows
            }
        };
        if rows.docs.is_empty() {
            let path = files.into_iter().next().unwrap_or_default();
            return Err(TaskError::Empty { task: config.task.clone(), split: split.to_owned(), path });
        }
        Ok(rows)
    }

    fn files(&self, config: &TaskConfig, base: &Path, split: &str) -> Result<Vec<PathBuf>, TaskError> {
        let (task, dataset) = (config.task.clone(), config.dataset_path.as_str());
        if let Some(files) = config.dataset_kwargs.as_ref().and_then(|k| k.data_files.as_ref()) {
            let names = files.get(split).ok_or_else(|| TaskError::Definition {
                file: format!("task {task}"),
                reason: format!("dataset_kwargs.data_files names no file for the split {split}"),
            })?;
            return Ok(names.as_slice().iter().map(|name| base.join(name)).collect());
        }
        let wanted = Wanted { dataset, config: config.dataset_name.as_deref(), split };
        if let Some(folder) = &self.folder
            && let Some(found) = local(folder, &wanted)?
        {
            return Ok(found);
        }
        let short = dataset.rsplit('/').next().unwrap_or(dataset);
        let inner = wanted.config.map_or_else(|| "[data/]".to_owned(), |c| format!("[{c}/]"));
        let (folder, expected) = match &self.folder {
            Some(folder) => {
                (folder.display().to_string(), format!("{short}/{inner}{split}*.parquet or .jsonl below it"))
            }
            None => ("no folder".to_owned(), "--data DIR".to_owned()),
        };
        let none = |expected| TaskError::NoFiles {
            task,
            split: split.to_owned(),
            dataset: wanted.config.map_or(dataset.to_owned(), |c| format!("{dataset} ({c})")),
            folder,
            expected,
        };
        match self.fetch {
            Some(fetch) => {
                fetch(&wanted).map_err(|reason| none(format!("{expected}; and from the hub: {reason}")))
            }
            None => Err(none(expected)),
        }
    }
}

/// The files of a split below `folder`: in a folder named like the data set, or in the folder itself.
fn local(folder: &Path, wanted: &Wanted<'_>) -> Result<Option<Vec<PathBuf>>, TaskError> {
    let name = wanted.dataset.rsplit('/').next().unwrap_or(wanted.dataset);
    let roots = [
        folder.join(wanted.dataset),
        folder.join(wanted.dataset.replace('/', "__")),
        folder.join(name),
        folder.to_owned(),
    ];
    for root in roots.iter().filter(|r| r.is_dir()) {
        let mut files = vec![];
        list(root, "", 0, &mut files)?;
        let names: Vec<&str> = files.iter().map(String::as_str).collect();
        let found = wanted.choose(&names);
        if !found.is_empty() {
            return Ok(Some(found.into_iter().map(|name| root.join(name)).collect()));
        }
    }
    Ok(None)
}

/// Paths of files at most two folders down, with `/` between the parts.
fn list(root: &Path, below: &str, depth: usize, files: &mut Vec<String>) -> Result<(), TaskError> {
    let folder = root.join(below);
    let failed = |source| TaskError::Io { path: folder.clone(), source };
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{below}{name}");
        if !entry.path().is_dir() {
            files.push(path);
        } else if depth < 2 {
            list(root, &(path + "/"), depth + 1, files)?;
        }
    }
    Ok(())
}

fn read(files: &[PathBuf]) -> Result<Rows, TaskError> {
    let mut rows = Rows::default();
    for path in files {
        rows.files.push((path.clone(), rows.docs.len()));
        match format_of(path) {
            Some(Format::Parquet) => read_parquet(path, &mut rows.docs)?,
            _ => read_json(path, &mut rows.docs)?,
        }
    }
    order(&mut rows.docs);
    Ok(rows)
}

fn read_parquet(path: &Path, docs: &mut Vec<Doc>) -> Result<(), TaskError> {
    let file = File::open(path).map_err(|source| TaskError::Io { path: path.to_owned(), source })?;
    let first = docs.len();
    let wrong = |row: usize, reason: String| TaskError::Row { path: path.to_owned(), row, reason };
    let reader = SerializedFileReader::new(file).map_err(|e| wrong(0, e.to_string()))?;
    let rows = reader.get_row_iter(None).map_err(|e| wrong(0, e.to_string()))?;
    for row in rows {
        let number = docs.len() - first + 1;
        let row = row.map_err(|e| wrong(number, e.to_string()))?;
        match row.to_json_value() {
            Value::Object(doc) => docs.push(doc),
            other => return Err(wrong(number, format!("{other} is no row"))),
        }
    }
    Ok(())
}

fn read_json(path: &Path, docs: &mut Vec<Doc>) -> Result<(), TaskError> {
    let text = fs::read_to_string(path).map_err(|source| TaskError::Io { path: path.to_owned(), source })?;
    let wrong = |row: usize, reason: String| TaskError::Row { path: path.to_owned(), row, reason };
    if text.trim_start().starts_with('[') {
        let list: Vec<Doc> = serde_json::from_str(&text).map_err(|e| wrong(e.line(), e.to_string()))?;
        docs.extend(list);
        return Ok(());
    }
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        docs.push(serde_json::from_str(line).map_err(|e| wrong(i + 1, format!("no JSON object: {e}")))?);
    }
    Ok(())
}

/// Puts the fields of all rows in the order in which they first occur, as a table has them.
fn order(docs: &mut [Doc]) {
    let Some(first) = docs.first().cloned() else { return };
    for doc in docs.iter_mut().skip(1).filter(|d| !d.keys().eq(first.keys())) {
        let mut sorted: Doc =
            first.keys().filter_map(|key| doc.get(key).map(|v| (key.clone(), v.clone()))).collect();
        sorted.extend(std::mem::take(doc));
        *doc = sorted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_split_are_found_in_the_arrangements_of_the_hub() {
        let wanted = |config, split| Wanted { dataset: "o/d", config, split };
        let files = [
            "README.md",
            "ARC-Easy/test-00000-of-00002.parquet",
            "ARC-Easy/test-00001-of-00002.parquet",
            "ARC-Easy/train-00000-of-00001.parquet",
            "main/test/0000.parquet",
            "data/validation-00000-of-00001.parquet",
            "test.jsonl",
            "tests.jsonl",
        ];
        assert_eq!(wanted(Some("ARC-Easy"), "test").choose(&files), files[1..3]);
        assert_eq!(wanted(Some("main"), "test").choose(&files), files[4..5]);
        assert_eq!(wanted(None, "validation").choose(&files), files[5..6]);
        assert_eq!(wanted(None, "test").choose(&files), files[6..7]);
        assert!(wanted(None, "dev").choose(&files).is_empty());
    }

    #[test]
    fn rows_that_are_no_json_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        fs::write(&path, "{\"a\":1,\"b\":2}\n\n{\"b\":3,\"a\":4}\n{\"a\":\n").unwrap();
        let error = read(std::slice::from_ref(&path)).unwrap_err().to_string();
        assert!(error.contains("a.jsonl, row 4"), "{error}");
        fs::write(&path, "{\"a\":1,\"b\":2}\n\n{\"b\":3,\"a\":4}\n").unwrap();
        let rows = read(&[path]).unwrap();
        assert_eq!(serde_json::to_string(&rows.docs[1]).unwrap(), "{\"a\":4,\"b\":3}");
        assert!(rows.place(1).ends_with("row 2"), "rows are counted without empty lines");
        let none = dir.path().join("none.parquet");
        assert!(matches!(read(std::slice::from_ref(&none)), Err(TaskError::Io { .. })));
        fs::write(&none, "no parquet").unwrap();
        assert!(read(&[none]).unwrap_err().to_string().contains("none.parquet"));
    }
}
