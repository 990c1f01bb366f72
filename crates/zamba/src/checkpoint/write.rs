//! Writing safetensors without holding the tensors.

use std::io::Write;

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::convert::narrow;
use crate::config::FileDtype;
use crate::spec::TensorSpec;

/// Numbers converted at a time.
const CHUNK: usize = 1 << 16;

/// Why a file could not be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The output, or the source of the values, failed.
    #[error("cannot write {what}: {source}")]
    Io {
        /// What was being written.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The source gave more or fewer numbers than the shape has.
    #[error("tensor `{tensor}` was given {given} numbers and its shape has {needed}")]
    Count {
        /// The tensor.
        tensor: String,
        /// Numbers given; those beyond the shape are not counted further.
        given: u64,
        /// Numbers of the shape.
        needed: u64,
    },
    /// A value is NaN or infinite, or becomes infinite when rounded to the file's type.
    #[error(
        "tensor `{tensor}` has the value {value} at {at}, which {dtype} cannot store; nothing was published"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The value.
        value: f32,
        /// Its index.
        at: u64,
        /// Type of the file.
        dtype: &'static str,
    },
    /// Two tensors have one name, or a shape is too large to be counted.
    #[error("tensor `{tensor}` {problem}")]
    Entry {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The target exists and was not to be replaced.
    #[error("{path} exists already; choose another place or allow it to be replaced")]
    Exists {
        /// The target.
        path: std::path::PathBuf,
    },
}

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteEntry {
    /// Name in the file.
    pub name: String,
    /// Storage in the file.
    pub dtype: FileDtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
}

impl WriteEntry {
    /// An entry of the name and shape of `spec`, stored as `dtype`.
    pub fn of(spec: &TensorSpec, dtype: FileDtype) -> Self {
        WriteEntry { name: spec.name.clone(), dtype, shape: spec.shape.clone() }
    }

    fn numbers(&self) -> Result<u64, WriteError> {
        let count = self.shape.iter().try_fold(self.dtype.size() as u64, |n, d| n.checked_mul(*d as u64));
        match count {
            Some(bytes) if bytes <= u64::MAX >> 16 => Ok(bytes / self.dtype.size() as u64),
            _ => Err(WriteError::Entry { tensor: self.name.clone(), problem: "is too large" }),
        }
    }
}

/// Takes the numbers of one tensor, in order, in pieces of any size.
pub struct Sink<'a> {
    out: &'a mut dyn Write,
    entry: &'a WriteEntry,
    given: u64,
    needed: u64,
    bytes: Vec<u8>,
}

impl Sink<'_> {
    /// Writes `values`, rounded to the type of the file; exact for values that came from that type.
    ///
    /// # Errors
    /// If the output fails, a value cannot be stored, or there are more than the shape has.
    pub fn push(&mut self, values: &[f32]) -> Result<(), WriteError> {
        self.count(values.len() as u64)?;
        let mut at = self.given - values.len() as u64;
        for part in values.chunks(CHUNK) {
            self.bytes.clear();
            narrow(self.entry.dtype, part, &mut self.bytes);
            check_stored(self.entry, part, &self.bytes, at)?;
            self.out.write_all(&self.bytes).map_err(|source| failed(&self.entry.name, source))?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes what are already little-endian numbers of the file's type, or the bytes of a quantised matrix,
    /// unchanged.
    ///
    /// # Errors
    /// If the output fails, the bytes are no whole numbers, or there are more than the shape has.
    pub fn push_raw(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        if !bytes.len().is_multiple_of(self.entry.dtype.size()) {
            let tensor = self.entry.name.clone();
            return Err(WriteError::Entry { tensor, problem: "was given a part of a number" });
        }
        self.count((bytes.len() / self.entry.dtype.size()) as u64)?;
        self.out.write_all(bytes).map_err(|source| failed(&self.entry.name, source))
    }

    fn count(&mut self, more: u64) -> Result<(), WriteError> {
        self.given += more;
        if self.given > self.needed { Err(self.wrong_count()) } else { Ok(()) }
    }

    fn wrong_count(&self) -> WriteError {
        WriteError::Count { tensor: self.entry.name.clone(), given: self.given, needed: self.needed }
    }
}

pub(super) fn failed(what: &str, source: std::io::Error) -> WriteError {
    WriteError::Io { what: what.to_owned(), source }
}

/// Refuses values whose stored form is not finite: NaN and infinities, and numbers beyond the type.
fn check_stored(entry: &WriteEntry, values: &[f32], bytes: &[u8], at: u64) -> Result<(), WriteError> {
    // Bytes come as they are. In each of the other types, all exponent bits set in the top two bytes means NaN or infinity.
    let (size, mask) = match entry.dtype {
        FileDtype::F32 => (4, 0x7f80),
        FileDtype::Bf16 => (2, 0x7f80),
        FileDtype::F16 => (2, 0x7c00),
        FileDtype::U8 => return Ok(()),
    };
    let bad = bytes
        .chunks_exact(size)
        .position(|number| u16::from_le_bytes([number[size - 2], number[size - 1]]) & mask == mask);
    let Some(bad) = bad else { return Ok(()) };
    Err(WriteError::NotFinite {
        tensor: entry.name.clone(),
        value: values[bad],
        at: at + bad as u64,
        dtype: entry.dtype.torch_name(),
    })
}

/// Multiple of bytes at which the tensors of a file begin as far as their sizes allow, so that a file can be
/// used in place as memory: a cache line.
const ALIGN: usize = 64;

/// The header of a file of `entries`, with its eight-byte length, and the order in which the tensors
/// follow it: as given, but sizes that are multiples of 64 bytes first, which keeps these at such multiples;
/// behind them wider types first, so that every number lies at a multiple of its size.
///
/// # Errors
/// If two entries have one name or a size overflows.
pub fn header(entries: &[WriteEntry]) -> Result<(Vec<u8>, Vec<usize>), WriteError> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    let odd = |entry: &WriteEntry| {
        let bytes = entry.numbers().unwrap_or(0) * entry.dtype.size() as u64;
        !bytes.is_multiple_of(ALIGN as u64)
    };
    order.sort_by_key(|i| {
        let entry = &entries[*i];
        if odd(entry) { 8 - entry.dtype.size() } else { 0 }
    });
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0u64;
    for i in &order {
        let entry = &entries[*i];
        let bytes = entry.numbers()? * entry.dtype.size() as u64;
        let begin = end;
        let problem = |problem| WriteError::Entry { tensor: entry.name.clone(), problem };
        end = begin.checked_add(bytes).ok_or_else(|| problem("is too large"))?;
        let value = json!({
            "dtype": entry.dtype.safetensors_name(),
            "shape": entry.shape,
            "data_offsets": [begin, end],
        });
        if map.insert(entry.name.clone(), value).is_some() {
            return Err(problem("is named twice"));
        }
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize((8 + text.len()).next_multiple_of(ALIGN) - 8, b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok((bytes, order))
}

/// Writes a safetensors file to `out`. `fill` is called once for each entry, with its index in
/// `entries`, in the order of [`header`], and gives the numbers to the sink; no tensor is held here.
/// Returns the bytes written. `out` is not flushed to disk.
///
/// # Errors
/// If the output or `fill` fails, or a tensor gets numbers that do not fit its shape or type.
pub fn write_safetensors(
    out: &mut dyn Write,
    entries: &[WriteEntry],
    fill: &mut dyn FnMut(usize, &mut Sink<'_>) -> Result<(), WriteError>,
) -> Result<u64, WriteError> {
    let (head, order) = header(entries)?;
    out.write_all(&head).map_err(|source| failed("the header", source))?;
    let mut total = head.len() as u64;
    for i in order {
        let entry = &entries[i];
        let needed = entry.numbers()?;
        let mut sink = Sink { out: &mut *out, entry, given: 0, needed, bytes: Vec::new() };
        fill(i, &mut sink)?;
        if sink.given != needed {
            return Err(sink.wrong_count());
        }
        total += needed * entry.dtype.size() as u64;
    }
    Ok(total)
}
