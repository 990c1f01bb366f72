//! Duplicates: texts that are equal, and texts that share most of their word n-grams.
//!
//! - [`shingles`] turns a text into hashes of its n-grams, [`minhash`] those into a signature and band keys:
//!   the scheme of Zyda-1 (13-grams of words, 128 permutations, 32 bands of 4 rows), each number settable.
//! - [`sketch`] is what is kept of a document: a hash of its content and its band keys.
//! - [`cluster`](mod@cluster) joins documents that agree in a content hash or a band key, directly or by way of others, and
//!   keeps one of each cluster. `sort` brings equal keys together within a bound on memory.
//! - [`report`] is the account, [`step`] the step over a plan.
//!
//! Two documents whose sets of n-grams have Jaccard similarity s agree in at least one of b bands of r rows with
//! probability `1 - (1 - s^r)^b`. Nothing is compared beyond that, as in Zyda.

pub mod cluster;
pub mod minhash;
pub mod report;
pub mod shingles;
pub mod sketch;
pub mod step;

mod mt19937;
mod sort;

pub use cluster::{Clusters, cluster};
pub use report::Report;
pub use sketch::{ChunkSketch, Sketcher};
pub use step::Dedup;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What an n-gram is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Words: what stands between white space once punctuation is gone.
    Word,
    /// Characters of the normalised text.
    Char,
}

/// What counts as a duplicate. The default is Zyda-1's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whether near duplicates are looked for; otherwise only equal texts are.
    pub minhash: bool,
    /// What an n-gram is made of.
    pub unit: Unit,
    /// Units of an n-gram.
    pub ngram: usize,
    /// Bands; two documents that agree in one of them are duplicates.
    pub bands: usize,
    /// Rows of a band. Bands times rows is the number of permutations.
    pub rows: usize,
    /// Decides the permutations, as the seed of `datasketch.MinHash` does.
    pub seed: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { minhash: true, unit: Unit::Word, ngram: 13, bands: 32, rows: 4, seed: 1 }
    }
}

impl Settings {
    /// Permutations of a signature.
    pub fn permutations(&self) -> usize {
        self.bands * self.rows
    }

    /// The probability that two documents whose n-grams have this Jaccard similarity share a band.
    pub fn probability(&self, similarity: f64) -> f64 {
        1.0 - (1.0 - similarity.powi(self.rows as i32)).powi(self.bands as i32)
    }

    /// # Errors
    /// If a number is zero or beyond reason.
    pub fn check(&self) -> Result<()> {
        for (name, value, most) in
            [("ngram", self.ngram, 10_000), ("bands", self.bands, 4096), ("rows", self.rows, 4096)]
        {
            if !(1..=most).contains(&value) {
                return Err(Error::Settings(format!("{name} is {value}; give a number from 1 to {most}")));
            }
        }
        if self.permutations() > 1 << 16 {
            let (bands, rows) = (self.bands, self.rows);
            return Err(Error::Settings(format!(
                "{bands} bands of {rows} rows are more than 65536 permutations; give fewer"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
