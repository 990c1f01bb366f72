//! JSON lines, whole or a range of bytes of them.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::path::PathBuf;

use super::raw::{BUFFER, Failure, Unpacked};
use super::{Bad, Place, Record, object};
use crate::document::Fields;
use crate::error::Result;
use crate::plan::ReadOptions;

/// The records of the lines that start in a range of a file. A range begins with the first line that starts in it: the reader
/// before goes on to the end of its last line.
pub(super) struct Lines {
    reader: BufReader<Box<dyn Read>>,
    failure: Failure,
    path: PathBuf,
    place: Place,
    fields: Fields,
    limit: u64,
    /// Offset of the next line.
    at: u64,
    end: u64,
    /// Whether the reader stands before the range and has to find its first line.
    seek: bool,
    done: bool,
    line: Vec<u8>,
}

/// How a line ended.
enum End {
    /// With a line feed or the end of the file.
    Proper,
    /// It was longer than the limit; the rest of it was passed over.
    TooLong,
}

impl Lines {
    pub(super) fn whole(file: Unpacked, options: &ReadOptions, path: PathBuf, place: Place) -> Lines {
        Lines {
            reader: BufReader::with_capacity(BUFFER, file.reader),
            failure: file.failure,
            path,
            place,
            fields: options.fields.clone(),
            limit: options.max_document_bytes,
            at: 0,
            end: u64::MAX,
            seek: false,
            done: false,
            line: Vec::new(),
        }
    }

    /// `file` must stand one byte before the range unless that starts at 0.
    pub(super) fn range(
        file: Unpacked,
        range: Range<u64>,
        options: &ReadOptions,
        path: PathBuf,
        place: Place,
    ) -> Lines {
        let at = range.start.saturating_sub(1);
        Lines { at, end: range.end, seek: range.start > 0, ..Lines::whole(file, options, path, place) }
    }

    /// Reads a line with its line feed; also says how many bytes it has. 0 means the end of the file.
    fn read_line(&mut self) -> io::Result<(u64, End)> {
        self.line.clear();
        // JSON may spell a character with six bytes; the text itself is measured later.
        let limit = self.limit.saturating_mul(6).saturating_add(1 << 16);
        let mut read = 0;
        let mut end = End::Proper;
        loop {
            let buffer = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            let feed = memchr::memchr(b'\n', buffer);
            let taken = feed.map_or(buffer.len(), |at| at + 1);
            if read + taken as u64 > limit {
                end = End::TooLong;
                self.line.clear();
            } else {
                self.line.extend_from_slice(&buffer[..taken]);
            }
            let last = feed.is_some() || taken == 0;
            self.reader.consume(taken);
            read += taken as u64;
            if last {
                return Ok((read, end));
            }
        }
    }

    fn record(&self, at: u64, end: &End) -> Option<Record> {
        let bad = |reason: String, raw: Option<&[u8]>| {
            let raw =
                raw.map(|raw| String::from_utf8_lossy(&raw[..raw.len().min(Bad::MAX_RAW)]).into_owned());
            Some(Record::Bad(Bad { at: self.place.at(at), reason, raw }))
        };
        if matches!(end, End::TooLong) {
            return bad(format!("is a line for more than {} bytes of text", self.limit), None);
        }
        let mut line = self.line.trim_ascii();
        if at == 0 {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            return None;
        }
        let text = match std::str::from_utf8(line) {
            Ok(text) => text,
            Err(error) => {
                return bad(
                    format!("is not UTF-8 from byte {} of the line", error.valid_up_to()),
                    Some(line),
                );
            }
        };
        match object::parse(text, &self.fields, &self.place, at) {
            Ok(document) if document.text.len() as u64 > self.limit => {
                bad(format!("has a text of more than {} bytes", self.limit), None)
            }
            Ok(document) => Some(Record::Document(document)),
            Err(reason) => bad(reason, Some(line)),
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done && self.at < self.end {
            let (read, end) =
                match self.read_line() {
                    Ok(line) => line,
                    Err(error) => {
                        self.done = true;
                        return Some(self.failure.check(&self.path).map(|()| {
                            self.place.bad(self.at, format!("the rest cannot be unpacked: {error}"))
                        }));
                    }
                };
            let at = self.at;
            self.at += read;
            self.done = read == 0;
            if std::mem::take(&mut self.seek) {
                continue;
            }
            if let Some(record) = self.record(at, &end) {
                return Some(Ok(record));
            }
        }
        None
    }
}
