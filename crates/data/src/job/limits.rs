//! Which chunks, and how much bad input.

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::error::{Error, Result};
use crate::read::Bad;

/// One of several processes that share the chunks of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// All chunks.
    pub const WHOLE: Shard = Shard { index: 0, count: 1 };

    /// Process `index` of `count`; `None` unless `index < count`.
    pub fn new(index: usize, count: usize) -> Option<Shard> {
        (index < count).then_some(Shard { index, count })
    }

    /// A mark for files that this process alone may write; empty if it is the only one.
    pub(crate) fn mark(self) -> String {
        if self.count == 1 { String::new() } else { format!("-{}", self.index) }
    }

    /// Whether the chunk is this process's to do: chunks are dealt out in turn.
    pub fn has(self, chunk: usize) -> bool {
        chunk % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Shard, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        parts
            .and_then(|(index, count)| Shard::new(index, count))
            .ok_or_else(|| format!("`{text}` is not i/n with i from 0 to n - 1, such as 0/8"))
    }
}

/// How much bad input a job puts up with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxBad {
    /// So many records.
    Count(u64),
    /// So large a share of all records, in `0..=1`. Looked at once there are a thousand, and at the end.
    Share(f64),
}

/// Records before a share means something.
const ENOUGH: u64 = 1000;

impl Default for MaxBad {
    fn default() -> Self {
        MaxBad::Share(0.01)
    }
}

impl fmt::Display for MaxBad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxBad::Count(count) => write!(f, "{count}"),
            MaxBad::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

impl FromStr for MaxBad {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<MaxBad, String> {
        let share = |number: &str, unit: f64| {
            number.parse::<f64>().ok().map(|n| n / unit).filter(|share| (0.0..=1.0).contains(share))
        };
        let parsed = match text.strip_suffix('%') {
            Some(percent) => share(percent, 100.0).map(MaxBad::Share),
            None => match text.parse() {
                Ok(count) => Some(MaxBad::Count(count)),
                Err(_) => share(text, 1.0).map(MaxBad::Share),
            },
        };
        parsed
            .ok_or_else(|| format!("`{text}` is neither a number such as 100 nor a share such as 1% or 0.01"))
    }
}

impl MaxBad {
    /// Whether that is too much; `whole` tells that nothing is to come any more.
    pub(crate) fn exceeded(self, records: u64, bad: u64, whole: bool) -> bool {
        match self {
            MaxBad::Count(most) => bad > most,
            MaxBad::Share(most) => (whole || records >= ENOUGH) && bad as f64 > most * records as f64,
        }
    }
}

/// Records of a job so far.
pub(super) struct Tally {
    most: MaxBad,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    records: u64,
    bad: u64,
    last: Option<Bad>,
}

impl Tally {
    pub(super) fn new(most: MaxBad) -> Tally {
        Tally { most, counts: Mutex::default() }
    }

    /// Counts records of a finished chunk.
    pub(super) fn add(&self, records: u64, bad: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.records += records;
        counts.bad += bad;
    }

    /// Counts a bad record, and `good` ones before it that have not been counted yet.
    pub(super) fn bad(&self, good: u64, bad: &Bad) -> Result<()> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.records += good + 1;
        counts.bad += 1;
        counts.last = Some(bad.clone());
        self.judge(&counts, false)
    }

    /// Judges the whole job, of which this process may have seen a part only.
    pub(super) fn check(&self, records: u64, bad: u64) -> Result<()> {
        let last = self.counts.lock().unwrap_or_else(PoisonError::into_inner).last.take();
        self.judge(&Counts { records, bad, last }, true)
    }

    fn judge(&self, counts: &Counts, whole: bool) -> Result<()> {
        if !self.most.exceeded(counts.records, counts.bad, whole) {
            return Ok(());
        }
        let last = counts.last.as_ref().map_or(String::new(), |bad| format!("{} {}; ", bad.at, bad.reason));
        Err(Error::TooBad { last, bad: counts.bad, records: counts.records, most: self.most.to_string() })
    }
}
