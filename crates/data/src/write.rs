//! Writing documents and other outputs of a chunk.

pub(crate) mod columns;

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::document::{AsObject, Document, Fields};
use crate::error::{Error, Result};
use crate::fs::{Fs, FsWrite};
use crate::mix::hex;
use columns::Columns;

/// How documents are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// JSON lines.
    #[serde(rename = "jsonl")]
    Jsonl,
    /// JSON lines, gzip.
    #[serde(rename = "jsonl.gz")]
    JsonlGz,
    /// JSON lines, zstd.
    #[default]
    #[serde(rename = "jsonl.zst")]
    JsonlZst,
    /// Parquet: id, source, text, and all other fields as JSON in a column `meta`.
    #[serde(rename = "parquet")]
    Parquet,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 4] = [Format::Jsonl, Format::JsonlGz, Format::JsonlZst, Format::Parquet];

    /// The end of the names of files, without the dot; also the name of the format.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Jsonl => "jsonl",
            Format::JsonlGz => "jsonl.gz",
            Format::JsonlZst => "jsonl.zst",
            Format::Parquet => "parquet",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Format, String> {
        Format::ALL.into_iter().find(|format| format.extension() == name).ok_or_else(|| {
            let names: Vec<&str> = Format::ALL.iter().map(|format| format.extension()).collect();
            format!("`{name}` is none of {}", names.join(", "))
        })
    }
}

/// A file that was written: what a manifest says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Path within the output folder, with `/` between parts.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
    /// Documents in it; 0 for other contents.
    pub documents: u64,
}

/// A file under its temporary name, hashed as it is written.
pub(crate) struct Pending {
    file: BufWriter<Box<dyn FsWrite>>,
    path: PathBuf,
    hash: Sha256,
    bytes: u64,
}

impl Pending {
    /// Begins the file that will be called `path`.
    pub(crate) fn create(fs: &dyn Fs, path: &Path) -> Result<Pending> {
        let tmp = temporary(path);
        let file = fs.create(&tmp).map_err(Error::io(&tmp, "create"))?;
        Ok(Pending {
            file: BufWriter::with_capacity(1 << 18, file),
            path: path.to_owned(),
            hash: Sha256::new(),
            bytes: 0,
        })
    }

    /// Makes the contents durable and gives them their name; the name is durable after a sync of the folder.
    pub(crate) fn finish(mut self, fs: &dyn Fs) -> Result<(u64, String)> {
        let tmp = temporary(&self.path);
        self.file.flush().map_err(Error::io(&tmp, "write"))?;
        self.file.get_mut().sync().map_err(Error::io(&tmp, "sync"))?;
        drop(self.file);
        fs.rename(&tmp, &self.path).map_err(Error::io(&tmp, "rename"))?;
        Ok((self.bytes, hex(&self.hash.finalize())))
    }

    fn error(&self) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::io(&path, "write")(source)
    }
}

impl Write for Pending {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The name of a file that is being written.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Writes documents into one file.
pub(crate) struct DocumentWriter {
    sink: Sink,
    fields: Fields,
    documents: u64,
    line: Vec<u8>,
}

enum Sink {
    Plain(Pending),
    Gzip(GzEncoder<Pending>),
    Zstd(zstd::stream::write::Encoder<'static, Pending>),
    Parquet(Box<Columns>),
}

/// Compression levels of gzip and zstd: the usual ones of both tools.
const GZIP: u32 = 6;
const ZSTD: i32 = 3;

impl DocumentWriter {
    pub(crate) fn new(file: Pending, format: Format, fields: &Fields) -> Result<DocumentWriter> {
        let failed = file.error();
        let sink = match format {
            Format::Jsonl => Sink::Plain(file),
            Format::JsonlGz => Sink::Gzip(GzEncoder::new(file, Compression::new(GZIP))),
            Format::JsonlZst => Sink::Zstd(zstd::stream::write::Encoder::new(file, ZSTD).map_err(failed)?),
            Format::Parquet => Sink::Parquet(Box::new(Columns::new(file, fields).map_err(failed)?)),
        };
        Ok(DocumentWriter { sink, fields: fields.clone(), documents: 0, line: Vec::new() })
    }

    pub(crate) fn write(&mut self, document: &Document) -> io::Result<()> {
        self.documents += 1;
        if let Sink::Parquet(columns) = &mut self.sink {
            return columns.push(document);
        }
        self.line.clear();
        serde_json::to_writer(&mut self.line, &AsObject(document, &self.fields))?;
        self.line.push(b'\n');
        match &mut self.sink {
            Sink::Plain(file) => file.write_all(&self.line),
            Sink::Gzip(file) => file.write_all(&self.line),
            Sink::Zstd(file) => file.write_all(&self.line),
            Sink::Parquet(_) => Ok(()),
        }
    }

    /// Ends the format; returns the file, which has yet to be finished, and the number of documents.
    pub(crate) fn end(self) -> io::Result<(Pending, u64)> {
        let file = match self.sink {
            Sink::Plain(file) => file,
            Sink::Gzip(file) => file.finish()?,
            Sink::Zstd(file) => file.finish()?,
            Sink::Parquet(columns) => columns.finish()?,
        };
        Ok((file, self.documents))
    }
}
