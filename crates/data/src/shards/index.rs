//! The bytes of a Megatron `.idx` file.
//!
//! Little-endian, as `megatron/core/datasets/indexed_dataset.py` writes them:
//!
//! | bytes | what |
//! |---|---|
//! | 9 | `MMIDIDX\0\0` |
//! | 8 | u64 version, 1 |
//! | 1 | u8 code of the type of a token: 4 = i32, 8 = u16 |
//! | 8 | u64 number s of sequences |
//! | 8 | u64 number d of document boundaries (documents + 1) |
//! | 4 s | i32 tokens of each sequence |
//! | 8 s | i64 byte offset of each sequence in the `.bin` file |
//! | 8 d | i64 first sequence of each document, then s |
//!
//! The optional modes of multimodal data at the end are refused: nothing here could honour them.

use std::path::Path;

use crate::error::{Error, Result};

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const VERSION: u64 = 1;
/// Bytes before the first length.
const HEADER: u64 = 34;

/// How a token id is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Two bytes.
    U16,
    /// Four bytes; never negative.
    I32,
}

impl Dtype {
    /// Megatron's choice (`DType.optimal_dtype`): two bytes for vocabularies below 65,500.
    pub fn for_vocab(vocab_size: u32) -> Dtype {
        if vocab_size < 65_500 { Dtype::U16 } else { Dtype::I32 }
    }

    /// Bytes of a token.
    pub fn size(self) -> u64 {
        match self {
            Dtype::U16 => 2,
            Dtype::I32 => 4,
        }
    }

    fn code(self) -> u8 {
        match self {
            Dtype::U16 => 8,
            Dtype::I32 => 4,
        }
    }

    fn from_code(code: u8) -> Option<Dtype> {
        [Dtype::U16, Dtype::I32].into_iter().find(|dtype| dtype.code() == code)
    }
}

/// What an index says: where each document lies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) dtype: Dtype,
    /// Position in tokens of the start of each document, and the number of tokens at the end: documents + 1 numbers.
    pub(crate) starts: Vec<u64>,
}

impl Index {
    /// The bytes of the index of documents of these lengths, one sequence each. The lengths must not exceed `i32`.
    pub(crate) fn encode(dtype: Dtype, lengths: &[u32]) -> Vec<u8> {
        let count = lengths.len() as u64;
        let mut bytes = Vec::with_capacity(HEADER as usize + lengths.len() * 20 + 8);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(dtype.code());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&(count + 1).to_le_bytes());
        for length in lengths {
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        let mut offset = 0u64;
        for &length in lengths {
            bytes.extend_from_slice(&offset.to_le_bytes());
            offset += u64::from(length) * dtype.size();
        }
        for document in 0..=count {
            bytes.extend_from_slice(&document.to_le_bytes());
        }
        bytes
    }

    /// Reads an index and checks it against the size of its `.bin` file. `path` is for messages.
    pub(crate) fn decode(path: &Path, bytes: &[u8], bin_bytes: u64) -> Result<Index> {
        let bad = |offset: u64, what: String| Error::Index { path: path.to_owned(), offset, what };
        if bytes.len() < HEADER as usize || &bytes[..9] != MAGIC {
            return Err(bad(0, "does not start with a Megatron index header".into()));
        }
        let version = u64_at(bytes, 9);
        if version != VERSION {
            return Err(bad(9, format!("version {version} instead of {VERSION}")));
        }
        let dtype = Dtype::from_code(bytes[17])
            .ok_or_else(|| bad(17, format!("token type {} is neither u16 (8) nor i32 (4)", bytes[17])))?;
        let (sequences, boundaries) = (u64_at(bytes, 18), u64_at(bytes, 26));
        // In 128 bits: a hostile count must not wrap round to the file's size.
        let size = u128::from(HEADER) + 12 * u128::from(sequences) + 8 * u128::from(boundaries);
        if size != bytes.len() as u128 {
            let what = format!(
                "{sequences} sequences and {boundaries} boundaries need {size} bytes, not {}",
                bytes.len()
            );
            return Err(bad(18, what));
        }
        let lengths_at = HEADER;
        let offsets_at = lengths_at + 4 * sequences;
        let documents_at = offsets_at + 8 * sequences;
        // Positions of the sequences, in tokens.
        let mut positions = Vec::with_capacity(sequences as usize + 1);
        let mut position = 0u64;
        for s in 0..sequences {
            let length = i32_at(bytes, lengths_at + 4 * s);
            if length < 0 {
                return Err(bad(lengths_at + 4 * s, format!("length {length} of sequence {s} is negative")));
            }
            let offset = u64_at(bytes, offsets_at + 8 * s);
            if offset != position * dtype.size() {
                let what =
                    format!("sequence {s} starts at byte {offset} instead of {}", position * dtype.size());
                return Err(bad(offsets_at + 8 * s, what));
            }
            positions.push(position);
            position += length as u64;
        }
        positions.push(position);
        if position * dtype.size() != bin_bytes {
            let what =
                format!("the sequences need {} bytes, the .bin has {bin_bytes}", position * dtype.size());
            return Err(bad(lengths_at, what));
        }
        let mut starts = Vec::with_capacity(boundaries as usize);
        let mut last = 0;
        for d in 0..boundaries {
            let at = documents_at + 8 * d;
            let first = u64_at(bytes, at);
            if (d == 0 && first != 0) || first < last || first > sequences {
                let what =
                    format!("document {d} starts at sequence {first} of {sequences}, after one at {last}");
                return Err(bad(at, what));
            }
            last = first;
            starts.push(positions[first as usize]);
        }
        if boundaries == 0 || last != sequences {
            return Err(bad(documents_at, format!("the documents end at sequence {last} of {sequences}")));
        }
        if let Some(d) = starts.windows(2).position(|pair| pair[1] - pair[0] > i32::MAX as u64) {
            return Err(bad(documents_at + 8 * d as u64, format!("document {d} has more than 2^31 tokens")));
        }
        Ok(Index { dtype, starts })
    }
}

fn u64_at(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    u64::from_le_bytes(std::array::from_fn(|j| bytes[at + j]))
}

fn i32_at(bytes: &[u8], at: u64) -> i32 {
    let at = at as usize;
    i32::from_le_bytes(std::array::from_fn(|j| bytes[at + j]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], bin_bytes: u64) -> Result<Index> {
        Index::decode(Path::new("x.idx"), bytes, bin_bytes)
    }

    /// The offset that the error names.
    fn offset(result: Result<Index>) -> u64 {
        match result {
            Err(Error::Index { offset, .. }) => offset,
            other => panic!("{other:?} instead of an index error"),
        }
    }

    #[test]
    fn bytes_are_megatrons() {
        let mut expected = b"MMIDIDX\0\0".to_vec();
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([3, 0, 0, 0, 1, 0, 0, 0]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Index::encode(Dtype::U16, &[3, 1]), expected);
    }

    #[test]
    fn documents_of_several_sequences_are_joined() {
        let mut bytes = Index::encode(Dtype::I32, &[3, 1, 4]);
        // Drop the boundary between the second and third sequence: documents are sequences 0..1 and 1..3.
        let at = bytes.len() - 16;
        bytes.drain(at..at + 8);
        bytes[26] = 3;
        assert_eq!(decode(&bytes, 32).unwrap(), Index { dtype: Dtype::I32, starts: vec![0, 3, 8] });
    }

    #[test]
    fn each_damaged_field_is_named() {
        let good = Index::encode(Dtype::U16, &[3, 0, 2]);
        assert_eq!(decode(&good, 10).unwrap().starts, [0, 3, 3, 5]);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            decode(&bytes, 10)
        };
        assert_eq!(offset(with(0, b'X')), 0);
        assert_eq!(offset(with(9, 2)), 9);
        assert_eq!(offset(with(17, 5)), 17);
        assert_eq!(offset(with(18, 4)), 18);
        assert_eq!(offset(with(33, 0x80)), 18);
        assert_eq!(offset(with(37, 0xff)), 34);
        assert_eq!(offset(with(34, 4)), 54, "the next sequence's offset no longer fits");
        assert_eq!(offset(with(46 + 8, 8)), 54);
        assert_eq!(offset(with(70, 1)), 70);
        assert_eq!(offset(with(78, 9)), 78);
        assert_eq!(offset(with(94, 2)), 70, "the documents do not reach the end");
        assert_eq!(offset(decode(&good, 12)), 34);
        assert_eq!(offset(decode(&good[..20], 10)), 0);
        assert_eq!(offset(decode(&good[..100], 10)), 18);
        assert_eq!(offset(decode(b"", 0)), 0);
    }

    proptest! {
        #[test]
        fn any_lengths_come_back(lengths in proptest::collection::vec(0u32..1000, 0..50)) {
            let bytes = Index::encode(Dtype::U16, &lengths);
            let index = decode(&bytes, 2 * u64::from(lengths.iter().sum::<u32>())).unwrap();
            let back: Vec<u32> = index.starts.windows(2).map(|p| (p[1] - p[0]) as u32).collect();
            prop_assert_eq!(back, lengths);
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), bin in 0u64..100) {
            let _ = decode(&bytes, bin);
            let head = Index::encode(Dtype::U16, &[1]);
            let n = bytes.len().min(18);
            bytes[..n].copy_from_slice(&head[..n]);
            let _ = decode(&bytes, bin);
        }
    }
}
