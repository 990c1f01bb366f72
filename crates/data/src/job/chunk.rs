//! A chunk at work.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::Run;
use super::state::{Done, part_name};
use crate::document::Document;
use crate::error::{Error, Result};
use crate::plan::Chunk;
use crate::read::{Bad, Record, Records};
use crate::write::{DocumentWriter, Pending, Written, temporary};

/// The stream of bad input.
const QUARANTINE: &str = "quarantine";

/// What a step sees of a chunk: its documents one by one, and outputs for them.
///
/// Outputs are files named after the chunk, each in the folder of its stream; nothing is written for a stream that is not used.
/// They get their names when the step has returned without an error.
pub struct ChunkRun<'a> {
    run: &'a Run<'a>,
    chunk: &'a Chunk,
    /// Whether another chunk has failed.
    failed: &'a AtomicBool,
    records: Records<'a>,
    advanced: u64,
    documents: BTreeMap<String, DocumentWriter>,
    files: BTreeMap<String, (String, Pending)>,
    quarantine: Option<Pending>,
    counts: BTreeMap<String, u64>,
    records_read: u64,
    uncounted: u64,
    bad: u64,
    text_bytes: u64,
}

impl<'a> ChunkRun<'a> {
    pub(super) fn new(run: &'a Run<'a>, chunk: &'a Chunk, failed: &'a AtomicBool) -> ChunkRun<'a> {
        ChunkRun {
            run,
            chunk,
            failed,
            records: Records::new(run.fs.as_ref(), run.plan, chunk),
            advanced: 0,
            documents: BTreeMap::new(),
            files: BTreeMap::new(),
            quarantine: None,
            counts: BTreeMap::new(),
            records_read: 0,
            uncounted: 0,
            bad: 0,
            text_bytes: 0,
        }
    }

    /// The number of the chunk in the plan.
    pub fn index(&self) -> usize {
        self.chunk.index
    }

    /// The next document; `None` at the end of the chunk. Bad input on the way is counted and quarantined.
    ///
    /// # Errors
    /// If a file cannot be read, there is too much bad input, or the job is to stop.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Document>> {
        loop {
            if self.failed.load(Ordering::Relaxed) || self.run.watch.stopped() {
                return Err(Error::Stopped);
            }
            let record = self.records.next().transpose()?;
            self.advance(self.records.bytes_read());
            match record {
                None => return Ok(None),
                Some(Record::Document(document)) => {
                    self.records_read += 1;
                    self.uncounted += 1;
                    self.text_bytes += document.text.len() as u64;
                    return Ok(Some(document));
                }
                Some(Record::Bad(bad)) => {
                    self.records_read += 1;
                    self.bad += 1;
                    self.quarantine(&bad)?;
                    self.run.tally.bad(std::mem::take(&mut self.uncounted), &bad)?;
                }
            }
        }
    }

    /// Writes a document to the main output: `OUT/part-N`.
    ///
    /// # Errors
    /// If writing fails.
    pub fn keep(&mut self, document: &Document) -> Result<()> {
        self.put("", document)
    }

    /// Writes a document to a stream of its own: `OUT/STREAM/part-N`.
    ///
    /// # Errors
    /// If writing fails.
    pub fn put(&mut self, stream: &str, document: &Document) -> Result<()> {
        if !self.documents.contains_key(stream) {
            let format = self.run.job.format;
            let file = self.create(stream, format.extension())?;
            let writer = DocumentWriter::new(file, format, &self.run.plan.options.fields)?;
            self.documents.insert(stream.to_owned(), writer);
        }
        let Some(writer) = self.documents.get_mut(stream) else { return Ok(()) };
        writer.write(document).map_err(self.write_error(stream, self.run.job.format.extension()))
    }

    /// An output of other contents: `OUT/STREAM/part-N.EXTENSION`. It is created by the first call.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn file(&mut self, stream: &str, extension: &str) -> Result<&mut dyn Write> {
        let key = format!("{stream}.{extension}");
        if !self.files.contains_key(&key) {
            let file = self.create(stream, extension)?;
            self.files.insert(key.clone(), (part_path(stream, self.chunk.index, extension), file));
        }
        match self.files.get_mut(&key) {
            Some((_, file)) => Ok(file),
            None => Err(Error::Stopped),
        }
    }

    /// Appends to the output of [`ChunkRun::file`], with an error that names the file.
    ///
    /// # Errors
    /// If it cannot be created or written.
    pub fn write(&mut self, stream: &str, extension: &str, bytes: &[u8]) -> Result<()> {
        let written = self.file(stream, extension)?.write_all(bytes);
        written.map_err(self.write_error(stream, extension))
    }

    /// Adds to a count that the manifest will show.
    pub fn count(&mut self, name: &str, n: u64) {
        match self.counts.get_mut(name) {
            Some(count) => *count += n,
            None => drop(self.counts.insert(name.to_owned(), n)),
        }
    }

    fn create(&self, stream: &str, extension: &str) -> Result<Pending> {
        let (fs, out) = (self.run.fs.as_ref(), &self.run.job.out);
        if !stream.is_empty() {
            let folder = out.join(stream);
            fs.create_dirs(&folder).map_err(Error::io(&folder, "create"))?;
        }
        Pending::create(fs, &out.join(part_path(stream, self.chunk.index, extension)))
    }

    fn write_error(&self, stream: &str, extension: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.run.job.out.join(part_path(stream, self.chunk.index, extension));
        move |source| Error::io(&path, "write")(source)
    }

    fn quarantine(&mut self, bad: &Bad) -> Result<()> {
        if self.quarantine.is_none() {
            self.quarantine = Some(self.create(QUARANTINE, "jsonl")?);
        }
        let mut line = json!({ "file": &*bad.at.file, "offset": bad.at.offset, "reason": bad.reason });
        if let Some(raw) = &bad.raw {
            line["raw"] = json!(raw);
        }
        let written = match &mut self.quarantine {
            Some(file) => writeln!(file, "{line}"),
            None => Ok(()),
        };
        written.map_err(self.write_error(QUARANTINE, "jsonl"))
    }

    /// Tells the watcher how far the chunk is; what it reads beyond its end does not count.
    fn advance(&mut self, bytes: u64) {
        let bytes = bytes.min(self.chunk.bytes);
        if bytes > self.advanced {
            self.run.watch.advance(bytes - self.advanced);
            self.advanced = bytes;
        }
    }

    /// Makes all outputs durable under their names.
    pub(super) fn finish(mut self) -> Result<Done> {
        let index = self.chunk.index;
        let mut written = Vec::new();
        for (stream, writer) in std::mem::take(&mut self.documents) {
            let extension = self.run.job.format.extension();
            let (file, documents) = writer.end().map_err(self.write_error(&stream, extension))?;
            self.close(file, part_path(&stream, index, extension), documents, &mut written)?;
        }
        for (path, file) in std::mem::take(&mut self.files).into_values() {
            self.close(file, path, 0, &mut written)?;
        }
        if let Some(file) = self.quarantine.take() {
            self.close(file, part_path(QUARANTINE, index, "jsonl"), 0, &mut written)?;
        }
        let mut folders: Vec<_> = written.iter().map(|file| self.run.job.out.join(&file.path)).collect();
        for folder in &mut folders {
            folder.pop();
        }
        folders.sort();
        folders.dedup();
        for folder in &folders {
            self.run.fs.sync_dir(folder).map_err(Error::io(folder, "sync"))?;
        }
        self.run.tally.add(self.uncounted, 0);
        self.advance(self.chunk.bytes);
        Ok(Done::new(
            self.run.state,
            index,
            written,
            self.counts,
            self.records_read,
            self.bad,
            self.text_bytes,
        ))
    }

    fn close(&self, file: Pending, path: String, documents: u64, written: &mut Vec<Written>) -> Result<()> {
        let (bytes, sha256) = file.finish(self.run.fs.as_ref())?;
        written.push(Written { path, bytes, sha256, documents });
        Ok(())
    }

    /// Removes what was written, as far as that is possible: the error that led here is the one to tell. The quarantine stays
    /// if it is the reason.
    pub(super) fn abandon(mut self, keep_quarantine: bool) {
        let (fs, out, index) = (self.run.fs.as_ref(), &self.run.job.out, self.chunk.index);
        let extension = self.run.job.format.extension();
        let mut paths: Vec<String> =
            self.documents.keys().map(|stream| part_path(stream, index, extension)).collect();
        paths.extend(self.files.values().map(|(path, _)| path.clone()));
        self.documents.clear();
        self.files.clear();
        if let Some(file) = self.quarantine.take() {
            if keep_quarantine {
                let _ = file.finish(fs);
            } else {
                drop(file);
                paths.push(part_path(QUARANTINE, index, "jsonl"));
            }
        }
        for path in paths {
            let _ = fs.remove_file(&temporary(&out.join(path)));
        }
    }
}

/// Path of an output of a chunk within the output folder.
fn part_path(stream: &str, chunk: usize, extension: &str) -> String {
    let name = part_name(chunk);
    if stream.is_empty() { format!("{name}.{extension}") } else { format!("{stream}/{name}.{extension}") }
}
