//! Parquet: a row per document.
//!
//! The library may panic on files that are damaged with care; that counts as damage.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, FileReader, Length};
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::raw::{Failure, Meter, Source};
use super::{Place, Record, SegmentRecords, object};
use crate::document::{Document, Fields};
use crate::error::Result;
use crate::fs::{Fs, FsRead};
use crate::plan::{Part, PlannedFile, ReadOptions};
use crate::write::columns::META;

/// Size of a row group.
pub(crate) struct RowGroup {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// The row groups of a file.
///
/// # Errors
/// If it cannot be read or is no Parquet file; in words.
pub(crate) fn row_groups(fs: &dyn Fs, path: &Path) -> std::result::Result<Vec<RowGroup>, String> {
    let file = fs.open(path).map_err(|error| error.to_string())?;
    let file = ParquetFile { file: file.into(), meter: Meter::default(), failure: Failure::default() };
    let reader = calmly(|| SerializedFileReader::new(file))?;
    let size = |value: i64| u64::try_from(value).map_err(|_| "negative size".to_owned());
    reader
        .metadata()
        .row_groups()
        .iter()
        .map(|group| Ok(RowGroup { rows: size(group.num_rows())?, bytes: size(group.compressed_size())? }))
        .collect()
}

/// The records of a file, or of some of its row groups.
pub(super) fn records(
    handle: Box<dyn FsRead>,
    planned: &PlannedFile,
    part: Part,
    options: &ReadOptions,
    place: Place,
    meter: Meter,
) -> SegmentRecords {
    let failure = Failure::default();
    let file = ParquetFile { file: handle.into(), meter, failure: failure.clone() };
    let first_row = if let Part::RowGroups { first_row, .. } = part { first_row } else { 0 };
    match open(file, part, &options.fields) {
        Ok((rows, meta_is_json)) => Box::new(Rows {
            rows,
            meta_is_json,
            failure,
            path: planned.path.clone(),
            place,
            fields: options.fields.clone(),
            limit: options.max_document_bytes,
            at: first_row,
            done: false,
        }),
        Err(reason) => {
            let record = failure.check(&planned.path).map(|()| place.bad(first_row, reason));
            Box::new(std::iter::once(record))
        }
    }
}

fn open(
    file: ParquetFile,
    part: Part,
    fields: &Fields,
) -> std::result::Result<(RowIter<'static>, bool), String> {
    let mut options = ReadOptionsBuilder::new();
    if let Part::RowGroups { start, end, .. } = part {
        options = options.with_predicate(Box::new(move |_, index| (start..end).contains(&index)));
    }
    let reader = calmly(|| SerializedFileReader::new_with_options(file, options.build()))?;
    let meta_is_json = check_schema(reader.metadata(), fields)?;
    Ok((calmly(|| Ok(RowIter::from_file_into(Box::new(reader))))?, meta_is_json))
}

/// Whether there is a column [`META`] of JSON.
fn check_schema(metadata: &ParquetMetaData, fields: &Fields) -> std::result::Result<bool, String> {
    let columns = metadata.file_metadata().schema().get_fields();
    if !columns.iter().any(|column| column.name() == fields.text) {
        let names: Vec<&str> = columns.iter().map(|column| column.name()).collect();
        return Err(format!("has no column `{}`, but {}", fields.text, names.join(", ")));
    }
    Ok(columns.iter().any(|column| {
        let info = column.get_basic_info();
        column.name() == META
            && column.is_primitive()
            && (info.converted_type() == ConvertedType::JSON
                || matches!(info.logical_type_ref(), Some(LogicalType::Json)))
    }))
}

/// Runs code of the library.
fn calmly<T>(code: impl FnOnce() -> std::result::Result<T, ParquetError>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(done) => done.map_err(|error| format!("is not sound Parquet: {error}")),
        Err(_) => Err("is not sound Parquet".into()),
    }
}

struct Rows {
    rows: RowIter<'static>,
    meta_is_json: bool,
    failure: Failure,
    path: PathBuf,
    place: Place,
    fields: Fields,
    limit: u64,
    at: u64,
    done: bool,
}

impl Iterator for Rows {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match calmly(|| self.rows.next().transpose()) {
            Ok(None) => None,
            Ok(Some(row)) => {
                let at = self.at;
                self.at += 1;
                // Dates and decimals that cannot be are found only when they are spelt.
                let record = catch_unwind(AssertUnwindSafe(|| self.record(row, at)));
                let record = record.unwrap_or_else(|_| Err("has a value that cannot be".into()));
                Some(Ok(record.unwrap_or_else(|reason| self.place.bad(at, reason))))
            }
            Err(reason) => {
                self.done = true;
                let reason = format!("the rest cannot be read: {reason}");
                Some(self.failure.check(&self.path).map(|()| self.place.bad(self.at, reason)))
            }
        }
    }
}

impl Rows {
    fn record(&self, row: Row, at: u64) -> std::result::Result<Record, String> {
        let mut document = Document {
            text: String::new(),
            id: String::new(),
            source: self.place.source.clone(),
            meta: Map::new(),
            at: self.place.at(at),
        };
        let mut id = None;
        for (key, field) in row.into_columns() {
            if key == self.fields.text {
                document.text = string(&key, field)?;
            } else if key == self.fields.id {
                let value = field.to_json_value();
                id = match value {
                    Value::Null => None,
                    value => Some(object::name(value).map_err(|what| format!("column `{key}` {what}"))?),
                };
            } else if key == self.fields.source {
                document.source = string(&key, field)?;
            } else if self.meta_is_json && key == META {
                let text = string(&key, field)?;
                let meta: Map<String, Value> =
                    serde_json::from_str(&text).map_err(|error| format!("column `{key}`: {error}"))?;
                document.meta.extend(meta);
            } else {
                document.meta.insert(key, field.to_json_value());
            }
        }
        if document.text.len() as u64 > self.limit {
            return Err(format!("has a text of more than {} bytes", self.limit));
        }
        document.id = id.unwrap_or_else(|| document.at.to_string());
        Ok(Record::Document(document))
    }
}

fn string(key: &str, field: Field) -> std::result::Result<String, String> {
    match field {
        Field::Str(text) => Ok(text),
        // Old writers do not say that bytes are text.
        Field::Bytes(bytes) => {
            String::from_utf8(bytes.data().to_vec()).map_err(|_| format!("column `{key}` is not UTF-8"))
        }
        Field::Null => Err(format!("column `{key}` is null")),
        _ => Err(format!("column `{key}` is not text")),
    }
}

/// A file as the library wants to see it.
struct ParquetFile {
    file: Arc<dyn FsRead>,
    meter: Meter,
    failure: Failure,
}

impl Length for ParquetFile {
    fn len(&self) -> u64 {
        self.file.len()
    }
}

impl ChunkReader for ParquetFile {
    type T = io::BufReader<Source>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let source = Source::new(self.file.clone(), start, self.meter.clone());
        Ok(io::BufReader::new(source.with_failure(self.failure.clone())))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        // A damaged length must not decide how much memory is asked for.
        if start.checked_add(length as u64).is_none_or(|end| end > self.file.len()) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are past the end")));
        }
        let mut bytes = vec![0; length];
        if let Err(error) = self.file.read_exact_at(&mut bytes, start) {
            self.failure.set(&error);
            return Err(error.into());
        }
        self.meter.add(length as u64);
        Ok(bytes.into())
    }
}
