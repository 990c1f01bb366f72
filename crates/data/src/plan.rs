//! What a job reads, cut into chunks.
//!
//! A plan hangs on the inputs and the options alone: not on the number of threads, nor on how the chunks are dealt out to
//! processes. So whoever makes it again gets the same chunks, and the outputs of chunks can be put together as one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::Fields;
use crate::error::{Error, Result};
use crate::fs::{self, Fs};
use crate::job;
use crate::read::columns;

/// One input: a file, or a folder with all files below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The source of documents that name none themselves.
    pub name: String,
    /// Where it lies: a path, or a URL that the [`Fs`] in use understands.
    pub path: PathBuf,
}

impl Input {
    /// An input named by the last part of its path, up to the first dot.
    pub fn new(path: impl Into<PathBuf>) -> Input {
        let path = path.into();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.split('.').find(|part| !part.is_empty()).unwrap_or("input").to_owned();
        Input { name: stem, path }
    }
}

/// How a file holds documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// A JSON object per line.
    Lines,
    /// The file is one document.
    Text,
    /// A row per document.
    Parquet,
}

/// How the bytes of a file are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Not at all.
    Plain,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

/// What to read and how. All of it decides the output, so all of it belongs to the identity of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadOptions {
    /// Names of fields.
    pub fields: Fields,
    /// The layout of all files; by default each file's name tells.
    pub layout: Option<Layout>,
    /// Of a folder, only files with one of these extensions, without dots; all if empty.
    pub extensions: Vec<String>,
    /// Size on disk at which a chunk is full. A single compressed file is never cut.
    pub chunk_bytes: u64,
    /// A longer line or file is bad input: it would have to be held in memory whole.
    pub max_document_bytes: u64,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            fields: Fields::default(),
            layout: None,
            extensions: Vec::new(),
            chunk_bytes: 32 << 20,
            max_document_bytes: 32 << 20,
        }
    }
}

/// A file of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedFile {
    /// Name of its input and path within it; does not depend on where the input lies.
    pub name: String,
    /// The source of documents that name none themselves.
    pub source: String,
    /// Bytes.
    pub bytes: u64,
    /// [`Fs::version`] when the plan was made.
    pub version: String,
    /// How it holds documents.
    pub layout: Layout,
    /// How it is packed.
    pub packing: Packing,
    /// Where it lies.
    #[serde(skip)]
    pub path: PathBuf,
}

/// Which part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The lines that start at a byte of this range.
    Bytes {
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// Some row groups.
    RowGroups {
        /// First group.
        start: usize,
        /// One past the last.
        end: usize,
        /// Rows of the groups before.
        first_row: u64,
    },
}

/// Some of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Index into [`Plan::files`].
    pub file: usize,
    /// Which part of it.
    pub part: Part,
    /// About how many bytes of the file it takes.
    pub bytes: u64,
}

/// A unit of work: what one thread reads, and finishes or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its number, from 0.
    pub index: usize,
    /// What it reads, in order.
    pub segments: Vec<Segment>,
    /// About how many bytes on disk that is.
    pub bytes: u64,
}

/// All chunks of some inputs.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How to read.
    pub options: ReadOptions,
    /// The files, in order of inputs and then of paths.
    pub files: Vec<PlannedFile>,
    /// The chunks, in order of what they read.
    pub chunks: Vec<Chunk>,
}

impl Plan {
    /// Looks at all inputs. Names that start with a dot are passed over and links in folders are not followed; of a folder that a
    /// job wrote, the files in its manifest are taken.
    ///
    /// # Errors
    /// If an input does not exist, cannot be listed, holds no file, or is the output of a job that has not finished.
    pub fn new(fs: &dyn Fs, inputs: &[Input], options: &ReadOptions) -> Result<Plan> {
        let mut files = Vec::new();
        for input in inputs {
            let before = files.len();
            list(fs, input, options, &mut files)?;
            if files.len() == before {
                let what = "holds no file to read; look at the path and at the extensions asked for".into();
                return Err(Error::Input { path: input.path.clone(), what });
            }
        }
        let mut cutter = Cutter { options, chunks: Vec::new(), open: Vec::new(), open_bytes: 0 };
        for (index, file) in files.iter().enumerate() {
            cutter.take(fs, index, file);
        }
        cutter.close();
        Ok(Plan { options: options.clone(), chunks: cutter.chunks, files })
    }

    /// Bytes on disk of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Adds the files of an input.
fn list(fs: &dyn Fs, input: &Input, options: &ReadOptions, files: &mut Vec<PlannedFile>) -> Result<()> {
    let root = &input.path;
    if fs.kind(root).map_err(Error::io(root, "look at"))? != fs::Kind::Dir {
        // A link that the user names himself is meant, and so is any extension.
        return add(fs, input, root.clone(), input.name.clone(), options, files);
    }
    if let Some(outputs) = job::outputs(fs, root)? {
        for name in outputs {
            add(fs, input, root.join(&name), format!("{}/{name}", input.name), options, files)?;
        }
        return Ok(());
    }
    let mut found = Vec::new();
    let mut folders = vec![(root.clone(), input.name.clone())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs.list(&folder).map_err(Error::io(&folder, "list"))? {
            let name = entry.name.to_string_lossy();
            let path = folder.join(&entry.name);
            match entry.kind {
                _ if name.starts_with('.') => {}
                fs::Kind::Dir => folders.push((path, format!("{prefix}/{name}"))),
                fs::Kind::File if wanted(&name, options) => found.push((format!("{prefix}/{name}"), path)),
                fs::Kind::File | fs::Kind::Other => {}
            }
        }
    }
    found.sort();
    found.into_iter().try_for_each(|(name, path)| add(fs, input, path, name, options, files))
}

fn wanted(name: &str, options: &ReadOptions) -> bool {
    options.extensions.is_empty()
        || options
            .extensions
            .iter()
            .any(|extension| name.strip_suffix(extension.as_str()).is_some_and(|stem| stem.ends_with('.')))
}

fn add(
    fs: &dyn Fs,
    input: &Input,
    path: PathBuf,
    name: String,
    options: &ReadOptions,
    files: &mut Vec<PlannedFile>,
) -> Result<()> {
    let (layout, packing) = layout_of(&path, options.layout);
    let bytes = fs.open(&path).map_err(Error::io(&path, "open"))?.len();
    let version = fs.version(&path).map_err(Error::io(&path, "look at"))?;
    files.push(PlannedFile { name, source: input.name.clone(), bytes, version, layout, packing, path });
    Ok(())
}

/// What the name of a file says about it.
fn layout_of(path: &Path, given: Option<Layout>) -> (Layout, Packing) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let (name, packing) = match name.rsplit_once('.') {
        Some((stem, "gz")) => (stem, Packing::Gzip),
        Some((stem, "zst")) => (stem, Packing::Zstd),
        _ => (name.as_str(), Packing::Plain),
    };
    let layout = match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "jsonl" | "ndjson" => Layout::Lines,
        "parquet" => Layout::Parquet,
        _ => Layout::Text,
    };
    (given.unwrap_or(layout), packing)
}

/// Fills chunks with parts of files, in order.
struct Cutter<'a> {
    options: &'a ReadOptions,
    chunks: Vec<Chunk>,
    open: Vec<Segment>,
    open_bytes: u64,
}

impl Cutter<'_> {
    fn take(&mut self, fs: &dyn Fs, index: usize, file: &PlannedFile) {
        let target = self.options.chunk_bytes.max(1);
        if file.bytes > target {
            match (file.layout, file.packing) {
                (Layout::Lines, Packing::Plain) => return self.cut_lines(index, file.bytes, target),
                (Layout::Parquet, Packing::Plain) => {
                    // A footer that cannot be read is found again, and told, when the file is.
                    if let Ok(groups) = columns::row_groups(fs, &file.path) {
                        return self.cut_groups(index, &groups);
                    }
                }
                _ => {}
            }
        }
        self.push(Segment { file: index, part: Part::Whole, bytes: file.bytes });
    }

    /// Even pieces of at most the target.
    fn cut_lines(&mut self, file: usize, bytes: u64, target: u64) {
        let pieces = bytes.div_ceil(target);
        for piece in 0..pieces {
            let at = |piece: u64| (u128::from(bytes) * u128::from(piece) / u128::from(pieces)) as u64;
            let (start, end) = (at(piece), at(piece + 1));
            self.push(Segment { file, part: Part::Bytes { start, end }, bytes: end - start });
        }
    }

    fn cut_groups(&mut self, file: usize, groups: &[columns::RowGroup]) {
        let mut first_row = 0;
        for (index, group) in groups.iter().enumerate() {
            let part = Part::RowGroups { start: index, end: index + 1, first_row };
            self.push(Segment { file, part, bytes: group.bytes });
            first_row += group.rows;
        }
    }

    fn push(&mut self, segment: Segment) {
        if self.open_bytes + segment.bytes > self.options.chunk_bytes {
            self.close();
        }
        self.open_bytes += segment.bytes;
        match (self.open.last_mut(), segment.part) {
            // Neighbours are read in one go.
            (
                Some(Segment { file, part: Part::RowGroups { end, .. }, bytes }),
                Part::RowGroups { start, end: new, .. },
            ) if *file == segment.file && *end == start => {
                *end = new;
                *bytes += segment.bytes;
            }
            _ => self.open.push(segment),
        }
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            let segments = std::mem::take(&mut self.open);
            let bytes = std::mem::take(&mut self.open_bytes);
            self.chunks.push(Chunk { index: self.chunks.len(), segments, bytes });
        }
    }
}

#[cfg(test)]
mod tests;
