//! What is kept of the documents of a chunk to find duplicates by: a few hundred bytes each.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::Settings;
use super::minhash::{Permutations, band_keys};
use super::shingles::Shingler;

/// Start of the file of a chunk's sketches; the number is the version.
const MAGIC: &[u8; 8] = b"zdedup\0\x01";

/// Computes sketches; one per thread, as it keeps its buffers.
#[derive(Debug, Clone)]
pub struct Sketcher {
    settings: Settings,
    permutations: Permutations,
    shingler: Shingler,
    hashes: Vec<u32>,
    signature: Vec<u32>,
}

impl Sketcher {
    /// For these settings, which have been checked.
    pub fn new(settings: &Settings) -> Sketcher {
        Sketcher {
            settings: settings.clone(),
            permutations: Permutations::new(settings),
            shingler: Shingler::new(settings),
            hashes: Vec::new(),
            signature: Vec::new(),
        }
    }

    /// The signature of a text; `None` if it has no n-gram.
    pub fn signature(&mut self, text: &str) -> Option<&[u32]> {
        self.hashes.clear();
        self.hashes.extend_from_slice(self.shingler.hashes(text));
        if self.hashes.is_empty() {
            return None;
        }
        self.permutations.signature(&mut self.hashes, &mut self.signature);
        Some(&self.signature)
    }

    /// The sketch of a text.
    pub fn sketch(&mut self, text: &str) -> Sketch {
        let digest = Sha256::digest(text.as_bytes());
        let word = |i: usize| u64::from_be_bytes(std::array::from_fn(|j| digest[8 * i + j]));
        let rows = self.settings.rows;
        let keys = match self.settings.minhash.then(|| self.signature(text)).flatten() {
            Some(signature) => band_keys(signature, rows).collect(),
            None => Vec::new(),
        };
        Sketch { content: [word(0), word(1)], bytes: text.len() as u64, keys }
    }
}

/// What is kept of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sketch {
    /// The first half of the SHA-256 of the text.
    pub content: [u64; 2],
    /// Length of the text.
    pub bytes: u64,
    /// A key per band, none if the text has no n-gram. Keys of different bands are never equal but by chance.
    pub keys: Vec<u64>,
}

/// The sketches of a chunk, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChunkSketch {
    /// The sources that occur, in order of appearance.
    pub sources: Vec<String>,
    /// For each document its source, as an index into `sources`, and its sketch.
    pub documents: Vec<(u32, Sketch)>,
    /// The index of each source pushed.
    numbers: HashMap<String, u32>,
}

impl ChunkSketch {
    /// Adds a document.
    pub fn push(&mut self, source: &str, sketch: Sketch) {
        let index = self.numbers.get(source).copied().unwrap_or_else(|| {
            let index = self.sources.len() as u32;
            self.sources.push(source.to_owned());
            self.numbers.insert(source.to_owned(), index);
            index
        });
        self.documents.push((index, sketch));
    }

    /// The bytes of its file: header, names of sources, fixed-size records, and a hash of all that.
    pub fn encode(&self, settings: &Settings) -> Vec<u8> {
        let bands = bands(settings);
        let mut bytes = MAGIC.to_vec();
        let mut put = |word: u64| bytes.extend_from_slice(&word.to_le_bytes());
        put(bands as u64);
        put(self.sources.len() as u64);
        put(self.documents.len() as u64);
        for source in &self.sources {
            bytes.extend_from_slice(&(source.len() as u64).to_le_bytes());
            bytes.extend_from_slice(source.as_bytes());
        }
        for (source, sketch) in &self.documents {
            let head = [u64::from(*source), sketch.bytes, sketch.content[0], sketch.content[1]];
            let keys = (0..bands).map(|band| sketch.keys.get(band).copied().unwrap_or(0));
            head.into_iter().chain(keys).for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        }
        let hash = Sha256::digest(&bytes);
        bytes.extend_from_slice(&hash[..8]);
        bytes
    }

    /// Reads what [`ChunkSketch::encode`] wrote with the same settings.
    ///
    /// # Errors
    /// A word on what does not fit.
    pub fn decode(bytes: &[u8], settings: &Settings) -> Result<ChunkSketch, String> {
        let damaged = || "is damaged".to_owned();
        let (body, hash) = bytes.split_last_chunk::<8>().ok_or_else(damaged)?;
        if Sha256::digest(body)[..8] != hash[..] {
            return Err(damaged());
        }
        let mut left = body.strip_prefix(MAGIC).ok_or("is not a file of sketches of this version")?;
        let bands = bands(settings);
        if word(&mut left)? != bands as u64 {
            return Err("was made with another number of bands".to_owned());
        }
        let (sources, documents) = (word(&mut left)?, word(&mut left)?);
        let mut chunk = ChunkSketch::default();
        for _ in 0..sources {
            let length = word(&mut left)? as usize;
            let (name, rest) = left.split_at_checked(length).ok_or_else(damaged)?;
            chunk.sources.push(String::from_utf8(name.to_vec()).map_err(|_| damaged())?);
            left = rest;
        }
        for _ in 0..documents {
            let source = word(&mut left)? as u32;
            let (bytes, content) = (word(&mut left)?, [word(&mut left)?, word(&mut left)?]);
            let keys = (0..bands).map(|_| word(&mut left)).collect::<Result<Vec<_>, _>>()?;
            let keys = if keys.contains(&0) { Vec::new() } else { keys };
            chunk.documents.push((source, Sketch { content, bytes, keys }));
        }
        if left.is_empty() && chunk.documents.iter().all(|(source, _)| u64::from(*source) < sources) {
            Ok(chunk)
        } else {
            Err(damaged())
        }
    }
}

/// Keys per document.
fn bands(settings: &Settings) -> usize {
    if settings.minhash { settings.bands } else { 0 }
}

fn word(left: &mut &[u8]) -> Result<u64, String> {
    let (bytes, rest) = left.split_first_chunk::<8>().ok_or("is damaged")?;
    *left = rest;
    Ok(u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_sketches_comes_back_and_damage_is_found() {
        for minhash in [true, false] {
            let settings = Settings { minhash, bands: 3, rows: 2, ..Settings::default() };
            let mut sketcher = Sketcher::new(&settings);
            let mut chunk = ChunkSketch::default();
            for (source, text) in [("web", "some words"), ("code", "fn f() {}"), ("web", ""), ("web", "...")]
            {
                let sketch = sketcher.sketch(text);
                chunk.push(source, sketch);
            }
            assert_eq!(chunk.sources, ["web", "code"]);
            let bytes = chunk.encode(&settings);
            let back = ChunkSketch::decode(&bytes, &settings).unwrap();
            assert_eq!((back.sources, back.documents), (chunk.sources.clone(), chunk.documents.clone()));
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                assert!(ChunkSketch::decode(&damaged, &settings).is_err(), "byte {at}");
                assert!(ChunkSketch::decode(&bytes[..at], &settings).is_err(), "cut at {at}");
            }
            let other = Settings { bands: 4, minhash: true, ..settings.clone() };
            assert!(ChunkSketch::decode(&bytes, &other).is_err());
        }
    }

    #[test]
    fn equal_words_give_equal_keys_and_other_content() {
        let mut sketcher = Sketcher::new(&Settings::default());
        let (a, b) = (sketcher.sketch("One, two."), sketcher.sketch("one two"));
        assert_eq!(a.keys, b.keys);
        assert_eq!(a.keys.len(), 32);
        assert_ne!(a.content, b.content);
        assert!(sketcher.sketch("--").keys.is_empty());
    }
}
