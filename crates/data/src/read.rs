//! Reading the documents of a chunk.
//!
//! What is not a document is a [`Record::Bad`]: the reader goes on behind it as well as the format allows. Only a file that
//! cannot be read at all is an error.

pub(crate) mod columns;
mod draw;
mod lines;
mod object;
mod raw;

pub use draw::{Drawn, draw};

use std::io::Read;
use std::sync::Arc;

use serde_json::Map;

use crate::document::{Document, Location};
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::plan::{Chunk, Layout, Packing, Part, Plan, PlannedFile, ReadOptions, Segment};
use raw::{Meter, Source, Unpacked};

/// What stood in an input where a document was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// Where.
    pub at: Location,
    /// What is wrong with it, as the end of a sentence.
    pub reason: String,
    /// The bytes of the line, as far as they are text and at most [`Bad::MAX_RAW`] of them; `None` where there is no line.
    pub raw: Option<String>,
}

impl Bad {
    /// Most bytes of a bad line that are kept.
    pub const MAX_RAW: usize = 4096;
}

/// What comes out of an input.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A document.
    Document(Document),
    /// Something else.
    Bad(Bad),
}

/// The records of one segment.
type SegmentRecords = Box<dyn Iterator<Item = Result<Record>>>;

/// The records of a chunk, in order. See [`Record`].
pub struct Records<'a> {
    fs: &'a dyn Fs,
    plan: &'a Plan,
    segments: std::slice::Iter<'a, Segment>,
    open: Option<SegmentRecords>,
    meter: Meter,
}

impl<'a> Records<'a> {
    /// Begins to read a chunk; no file is opened yet.
    pub fn new(fs: &'a dyn Fs, plan: &'a Plan, chunk: &'a Chunk) -> Self {
        Records { fs, plan, segments: chunk.segments.iter(), open: None, meter: Meter::default() }
    }

    /// Bytes read from files so far.
    pub fn bytes_read(&self) -> u64 {
        self.meter.get()
    }

    fn open(&self, segment: &Segment) -> Result<SegmentRecords> {
        let file = &self.plan.files[segment.file];
        let options = &self.plan.options;
        let handle = self.fs.open(&file.path).map_err(Error::io(&file.path, "open"))?;
        if handle.len() != file.bytes {
            let what = format!(
                "has {} bytes now and had {}; it changed while it was read",
                handle.len(),
                file.bytes
            );
            return Err(Error::Input { path: file.path.clone(), what });
        }
        let place = Place { name: file.name.as_str().into(), source: file.source.clone() };
        if file.layout == Layout::Parquet {
            return Ok(columns::records(handle, file, segment.part, options, place, self.meter.clone()));
        }
        let start = if let Part::Bytes { start, .. } = segment.part { start } else { 0 };
        // The byte before tells whether a line starts at `start`.
        let source = Source::new(handle.into(), start.saturating_sub(1), self.meter.clone());
        Ok(match (file.layout, segment.part) {
            (Layout::Lines, Part::Bytes { start, end }) => Box::new(lines::Lines::range(
                source.unpack(Packing::Plain),
                start..end,
                options,
                file.path.clone(),
                place,
            )),
            (Layout::Lines, _) => {
                Box::new(lines::Lines::whole(source.unpack(file.packing), options, file.path.clone(), place))
            }
            _ => Box::new(std::iter::once(whole(source.unpack(file.packing), file, options, place))),
        })
    }
}

/// What documents of a file are named after.
#[derive(Clone)]
pub(crate) struct Place {
    name: Arc<str>,
    source: String,
}

impl Place {
    fn at(&self, offset: u64) -> Location {
        Location { file: self.name.clone(), offset }
    }

    fn bad(&self, offset: u64, reason: String) -> Record {
        Record::Bad(Bad { at: self.at(offset), reason, raw: None })
    }
}

/// A file as one document.
fn whole(mut file: Unpacked, planned: &PlannedFile, options: &ReadOptions, place: Place) -> Result<Record> {
    let limit = options.max_document_bytes;
    let mut bytes = Vec::new();
    if let Err(error) = file.reader.by_ref().take(limit + 1).read_to_end(&mut bytes) {
        file.failure.check(&planned.path)?;
        return Ok(place.bad(0, format!("cannot be unpacked: {error}")));
    }
    if bytes.len() as u64 > limit {
        return Ok(place.bad(0, format!("is longer than {limit} bytes")));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Record::Document(Document {
            text,
            id: place.name.to_string(),
            source: place.source.clone(),
            meta: Map::new(),
            at: place.at(0),
        }),
        Err(error) => place.bad(error.utf8_error().valid_up_to() as u64, "is not UTF-8".into()),
    })
}

impl Iterator for Records<'_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.open.as_mut().and_then(Iterator::next) {
                return Some(record);
            }
            let segment = self.segments.next()?;
            match self.open(segment) {
                Ok(records) => self.open = Some(records),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
