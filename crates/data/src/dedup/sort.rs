//! Sorting more records than fit into memory: sorted runs on disk, merged while they are read.
//!
//! What comes out hangs on what went in alone, not on the bound. Runs are scratch: a process that dies leaves them in
//! their folder, which the next one empties.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::fs::{Fs, Stream};

/// Runs merged at once: each is an open file with a buffer.
const FAN_IN: usize = 256;
/// Least and most bytes of a merge's buffer per run.
const BUFFER: [usize; 2] = [1 << 13, 1 << 20];

/// Takes records of `W` words and gives them back in order.
pub(crate) struct Sorter<'a, const W: usize> {
    fs: &'a dyn Fs,
    /// The folder of the runs; it is made when the first is written.
    dir: PathBuf,
    memory: usize,
    records: Vec<[u64; W]>,
    runs: Vec<PathBuf>,
    written: usize,
}

impl<'a, const W: usize> Sorter<'a, W> {
    const BYTES: usize = 8 * W;

    /// Keeps about `memory` bytes of records in memory and the rest in files in `dir`.
    pub(crate) fn new(fs: &'a dyn Fs, dir: &Path, memory: u64) -> Sorter<'a, W> {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX).max(64 * Self::BYTES);
        Sorter { fs, dir: dir.to_owned(), memory, records: Vec::new(), runs: Vec::new(), written: 0 }
    }

    /// Takes a record.
    ///
    /// # Errors
    /// If a run cannot be written.
    pub(crate) fn push(&mut self, record: [u64; W]) -> Result<()> {
        let most = self.memory / Self::BYTES;
        if self.records.len() == most {
            self.spill()?;
        }
        if self.records.len() == self.records.capacity() {
            // Doubling would overshoot the bound by up to a factor of two.
            let more = self.records.len().max(1 << 12).min(most - self.records.len());
            self.records.reserve_exact(more);
        }
        self.records.push(record);
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        self.records.par_sort_unstable();
        let records = std::mem::take(&mut self.records);
        let path = self.write(records.iter().map(|record| Ok(*record)))?;
        self.runs.push(path);
        self.records = records;
        self.records.clear();
        Ok(())
    }

    fn write(&mut self, records: impl Iterator<Item = Result<[u64; W]>>) -> Result<PathBuf> {
        self.fs.create_dirs(&self.dir).map_err(Error::io(&self.dir, "create"))?;
        let path = self.dir.join(format!("run-{:06}", self.written));
        self.written += 1;
        let file = self.fs.create(&path).map_err(Error::io(&path, "create"))?;
        let mut file = BufWriter::with_capacity(BUFFER[1], file);
        for record in records {
            for word in record? {
                file.write_all(&word.to_le_bytes()).map_err(Error::io(&path, "write"))?;
            }
        }
        file.flush().map_err(Error::io(&path, "write"))?;
        Ok(path)
    }

    /// All records in order.
    ///
    /// # Errors
    /// If runs cannot be written or read.
    pub(crate) fn finish(mut self) -> Result<Sorted<W>> {
        self.records.par_sort_unstable();
        if self.runs.is_empty() {
            return Ok(Sorted { memory: self.records.into_iter(), merge: None });
        }
        self.spill()?;
        self.records = Vec::new();
        while self.runs.len() > FAN_IN {
            let rest = self.runs.split_off(FAN_IN);
            let first = std::mem::replace(&mut self.runs, rest);
            let merged = Merge::open(self.fs, &first, self.memory)?;
            let path = self.write(merged)?;
            self.runs.push(path);
            for run in first {
                self.fs.remove_file(&run).map_err(Error::io(&run, "remove"))?;
            }
        }
        let merge = Merge::open(self.fs, &self.runs, self.memory)?;
        Ok(Sorted { memory: Vec::new().into_iter(), merge: Some(merge) })
    }
}

/// Records in order, from memory or from runs.
pub(crate) struct Sorted<const W: usize> {
    memory: std::vec::IntoIter<[u64; W]>,
    merge: Option<Merge<W>>,
}

impl<const W: usize> Iterator for Sorted<W> {
    type Item = Result<[u64; W]>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.merge {
            Some(merge) => merge.next(),
            None => self.memory.next().map(Ok),
        }
    }
}

struct Run {
    path: PathBuf,
    reader: BufReader<Stream>,
    left: u64,
}

impl Run {
    fn next<const W: usize>(&mut self) -> Result<Option<[u64; W]>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut record = [0; W];
        for word in &mut record {
            let mut bytes = [0; 8];
            self.reader.read_exact(&mut bytes).map_err(Error::io(&self.path, "read"))?;
            *word = u64::from_le_bytes(bytes);
        }
        Ok(Some(record))
    }
}

struct Merge<const W: usize> {
    runs: Vec<Run>,
    heads: BinaryHeap<Reverse<([u64; W], usize)>>,
}

impl<const W: usize> Merge<W> {
    fn open(fs: &dyn Fs, paths: &[PathBuf], memory: usize) -> Result<Merge<W>> {
        let buffer = (memory / paths.len()).clamp(BUFFER[0], BUFFER[1]);
        let mut merge = Merge { runs: Vec::new(), heads: BinaryHeap::new() };
        for (i, path) in paths.iter().enumerate() {
            let bytes = fs.open(path).map_err(Error::io(path, "open"))?.len();
            let stream = fs.stream(path).map_err(Error::io(path, "open"))?;
            let reader = BufReader::with_capacity(buffer, stream);
            let mut run = Run { path: path.clone(), reader, left: bytes / (8 * W as u64) };
            if let Some(record) = run.next()? {
                merge.heads.push(Reverse((record, i)));
            }
            merge.runs.push(run);
        }
        Ok(merge)
    }
}

impl<const W: usize> Iterator for Merge<W> {
    type Item = Result<[u64; W]>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut head = self.heads.peek_mut()?;
        let Reverse((record, i)) = *head;
        match self.runs[i].next() {
            // Changed in place: one pass down the heap in place of two.
            Ok(Some(next)) => *head = Reverse((next, i)),
            Ok(None) => {
                std::collections::binary_heap::PeekMut::pop(head);
            }
            Err(error) => return Some(Err(error)),
        }
        Some(Ok(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dedup::shingles::fmix64;
    use crate::fs::FaultFs;

    #[test]
    fn any_bound_gives_the_same_order() {
        // Many ties in the first word, and with the least bound more runs than are merged at once.
        let records: Vec<[u64; 2]> = (0..40_000).map(|i| [fmix64(i) % 1000, fmix64(i + 7)]).collect();
        let mut expected = records.clone();
        expected.sort_unstable();
        for memory in [1, 100_000, u64::MAX] {
            let fs = FaultFs::new();
            let mut sorter = Sorter::<2>::new(&fs, Path::new("/runs"), memory);
            records.iter().for_each(|record| sorter.push(*record).unwrap());
            let runs = sorter.runs.len();
            assert_eq!(runs > FAN_IN, memory == 1, "{runs} runs");
            assert_eq!(runs == 0, memory == u64::MAX, "{runs} runs");
            let sorted: Vec<[u64; 2]> = sorter.finish().unwrap().map(|record| record.unwrap()).collect();
            assert!(sorted == expected, "memory {memory}");
        }
        let fs = FaultFs::new();
        assert_eq!(Sorter::<3>::new(&fs, Path::new("/runs"), 1).finish().unwrap().count(), 0);
    }
}
