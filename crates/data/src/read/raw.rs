//! Bytes of files, unpacked.

use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::fs::FsRead;
use crate::plan::Packing;

/// Counts bytes read from files.
#[derive(Clone, Default)]
pub(super) struct Meter(Arc<AtomicU64>);

impl Meter {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The first failure of the file itself. A decoder passes errors of what it reads on as its own: here one learns whether the
/// file could not be read, or could be and is no archive.
#[derive(Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<io::Error>>>);

impl Failure {
    pub(super) fn set(&self, error: &io::Error) {
        let copy = io::Error::new(error.kind(), error.to_string());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(copy);
    }

    /// An error if the file could not be read.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(Error::io(path, "read")(error)),
            None => Ok(()),
        }
    }
}

/// A file from some byte on.
pub(super) struct Source {
    file: Arc<dyn FsRead>,
    at: u64,
    meter: Meter,
    failure: Failure,
}

/// What a file unpacks to.
pub(super) struct Unpacked {
    pub(super) reader: Box<dyn Read>,
    pub(super) failure: Failure,
}

impl Source {
    pub(super) fn new(file: Arc<dyn FsRead>, at: u64, meter: Meter) -> Source {
        Source { file, at, meter, failure: Failure::default() }
    }

    pub(super) fn with_failure(mut self, failure: Failure) -> Source {
        self.failure = failure;
        self
    }

    pub(super) fn unpack(self, packing: Packing) -> Unpacked {
        let failure = self.failure.clone();
        let reader: Box<dyn Read> = match packing {
            Packing::Plain => Box::new(self),
            Packing::Gzip => Box::new(MultiGzDecoder::new(io::BufReader::with_capacity(BUFFER, self))),
            Packing::Zstd => {
                let buffered = io::BufReader::with_capacity(BUFFER, self);
                match zstd::stream::read::Decoder::with_buffer(buffered) {
                    Ok(decoder) => Box::new(decoder),
                    Err(error) => Box::new(Broken(error.to_string())),
                }
            }
        };
        Unpacked { reader, failure }
    }
}

/// Bytes asked from a file at once: enough that a request to an object store is worth its latency.
pub(super) const BUFFER: usize = 1 << 20;

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read_at(buf, self.at) {
                Ok(n) => {
                    self.at += n as u64;
                    self.meter.add(n as u64);
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failure.set(&error);
                    return Err(error);
                }
            }
        }
    }
}

/// A decoder that could not be made.
struct Broken(String);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other(self.0.clone()))
    }
}
