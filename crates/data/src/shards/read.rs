//! Opening a shard: everything is verified before the first token is handed out.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::index::Index;
use super::manifest::Counts;
use super::{Dtype, FileInfo, Manifest, ShardSpec, file};
use crate::error::{Error, Result};
use crate::fs::{Fs, FsRead};
use crate::mix::hex;

/// A `.bin` of at most this many bytes is kept in memory whole; a larger one is read at the places asked for.
pub const IN_MEMORY_BYTES: u64 = 1 << 30;

/// Unit in which a large `.bin` is read and verified again: 24 bytes of hash are kept per block.
const BLOCK: usize = 1 << 16;

/// A verified shard. No file is mapped: one that is truncated while it is in use gives an error, not a signal.
///
/// Memory: 8 bytes per document, and the tokens if the `.bin` is small.
#[derive(Debug)]
pub struct Shard {
    prefix: PathBuf,
    manifest: Manifest,
    /// Positions of the documents in tokens; one more at the end.
    starts: Vec<u64>,
    tokens: Tokens,
}

enum Tokens {
    /// The bytes that were verified, themselves.
    Memory(Vec<u8>),
    /// The file, and the hash that each block had when the whole was verified: what is read later is compared again,
    /// because it may have changed in between.
    File { file: Box<dyn FsRead>, blocks: Vec<[u8; 24]> },
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Tokens::Memory(bytes) => write!(f, "Memory({} bytes)", bytes.len()),
            Tokens::File { file, .. } => write!(f, "File({} bytes)", file.len()),
        }
    }
}

impl Shard {
    /// Opens the shard at `prefix` (a path without `.idx` or `.bin`) and reads it once from end to end: sizes and
    /// SHA-256 of both files against the manifest, header, counts and offsets of the index, every token id against
    /// the vocabulary size.
    ///
    /// # Errors
    /// The first of these that does not hold, with the file and the offset.
    pub fn open(fs: Arc<dyn Fs>, prefix: &Path) -> Result<Shard> {
        Shard::open_with(fs, prefix, IN_MEMORY_BYTES)
    }

    /// As [`Shard::open`], with another bound than [`IN_MEMORY_BYTES`].
    ///
    /// # Errors
    /// As [`Shard::open`].
    pub fn open_with(fs: Arc<dyn Fs>, prefix: &Path, in_memory_bytes: u64) -> Result<Shard> {
        let manifest = Manifest::read(fs.as_ref(), prefix)?;
        let files = Files::read(fs.as_ref(), prefix, Some(&manifest), manifest.vocab_size, in_memory_bytes)?;
        let (tokens, documents) = (files.index.tokens(), files.index.documents());
        if (manifest.dtype, manifest.tokens, manifest.documents) != (files.index.dtype, tokens, documents) {
            let what = format!(
                "says {:?} with {} tokens in {} documents, the index {:?} with {tokens} in {documents}",
                manifest.dtype, manifest.tokens, manifest.documents, files.index.dtype
            );
            return Err(Error::Manifest { path: file(prefix, ".manifest.json"), what });
        }
        Ok(Shard { prefix: prefix.to_owned(), manifest, starts: files.index.starts, tokens: files.tokens })
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    /// Tokens of all documents.
    pub fn tokens(&self) -> u64 {
        self.manifest.tokens
    }

    /// Every id is below it.
    pub fn vocab_size(&self) -> u32 {
        self.manifest.vocab_size
    }

    /// The manifest that the files were verified against.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The path that names the shard.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Tokens of document `doc`.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn doc_len(&self, doc: u64) -> u32 {
        let doc = doc as usize;
        // The index refuses documents of 2^31 tokens and more.
        (self.starts[doc + 1] - self.starts[doc]) as u32
    }

    /// Fills `out` with the tokens of document `doc` from its token `start` on.
    ///
    /// # Errors
    /// If the file is not in memory and cannot be read, or changed since it was verified.
    ///
    /// # Panics
    /// If the document is shorter than that.
    pub fn read(&self, doc: u64, start: u32, out: &mut [u32]) -> Result<()> {
        let end = start as usize + out.len();
        assert!(end <= self.doc_len(doc) as usize, "tokens {start}..{end} of document {doc} do not exist");
        let size = self.manifest.dtype.size() as usize;
        let first = (self.starts[doc as usize] + u64::from(start)) * size as u64;
        match &self.tokens {
            Tokens::Memory(bytes) => {
                let first = first as usize;
                decode(self.manifest.dtype, &bytes[first..first + out.len() * size], out);
            }
            Tokens::File { file, blocks } => {
                let bytes = self.read_blocks(file.as_ref(), blocks, first, out.len() * size)?;
                decode(self.manifest.dtype, &bytes, out);
            }
        }
        Ok(())
    }

    /// All tokens of document `doc`.
    ///
    /// # Errors
    /// As [`Shard::read`].
    ///
    /// # Panics
    /// If there is no such document.
    pub fn doc(&self, doc: u64) -> Result<Vec<u32>> {
        let mut tokens = vec![0; self.doc_len(doc) as usize];
        self.read(doc, 0, &mut tokens)?;
        Ok(tokens)
    }

    /// Bytes `first..first + len` of the file, by way of whole blocks that are verified again.
    fn read_blocks(&self, bin: &dyn FsRead, blocks: &[[u8; 24]], first: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        let mut buffer = vec![0; BLOCK];
        let mut at = first;
        let end = first + len as u64;
        while at < end {
            let block = at / BLOCK as u64;
            let offset = block * BLOCK as u64;
            let size = (self.manifest.bin.bytes - offset).min(BLOCK as u64) as usize;
            let buffer = &mut buffer[..size];
            let path = || file(&self.prefix, ".bin");
            bin.read_exact_at(buffer, offset).map_err(|error| Error::io(&path(), "read")(error))?;
            if block_hash(buffer) != blocks[block as usize] {
                return Err(Error::Changed { path: path(), offset });
            }
            let upto = (end - offset).min(size as u64) as usize;
            bytes.extend_from_slice(&buffer[(at - offset) as usize..upto]);
            at = offset + upto as u64;
        }
        Ok(bytes)
    }
}

/// Writes a manifest for a pair of files that was made elsewhere, by Megatron-LM for example, after checking all that
/// can be checked without one. `source_bytes` may be 0 where it is not known; bits per byte are then not defined.
///
/// # Errors
/// As [`Shard::open`], and if the manifest cannot be written.
pub fn adopt(fs: &dyn Fs, prefix: &Path, spec: &ShardSpec, source_bytes: u64) -> Result<Manifest> {
    // No tokens are wanted here, so nothing needs to stay in memory.
    let files = Files::read(fs, prefix, None, spec.vocab_size, 0)?;
    let counts = Counts {
        dtype: files.index.dtype,
        tokens: files.index.tokens(),
        documents: files.index.documents(),
        source_bytes,
    };
    let manifest = Manifest::new(spec, files.idx_info, files.bin_info, counts, None);
    manifest.write(fs, prefix)?;
    Ok(manifest)
}

/// Both files, read and checked.
struct Files {
    index: Index,
    idx_info: FileInfo,
    bin_info: FileInfo,
    tokens: Tokens,
}

impl Files {
    fn read(
        fs: &dyn Fs,
        prefix: &Path,
        expected: Option<&Manifest>,
        vocab_size: u32,
        in_memory_bytes: u64,
    ) -> Result<Files> {
        let (idx_path, bin_path) = (file(prefix, ".idx"), file(prefix, ".bin"));
        let bin = fs.open(&bin_path).map_err(Error::io(&bin_path, "open"))?;
        let bin_bytes = bin.len();
        check_size(&bin_path, expected.map(|manifest| &manifest.bin), bin_bytes)?;
        let idx = fs.open(&idx_path).map_err(Error::io(&idx_path, "open"))?;
        check_size(&idx_path, expected.map(|manifest| &manifest.idx), idx.len())?;
        let mut idx_bytes = vec![0; idx.len() as usize];
        idx.read_exact_at(&mut idx_bytes, 0).map_err(Error::io(&idx_path, "read"))?;
        let idx_info = FileInfo { bytes: idx_bytes.len() as u64, sha256: hex(&Sha256::digest(&idx_bytes)) };
        check_hash(&idx_path, expected.map(|manifest| &manifest.idx), &idx_info)?;
        let index = Index::decode(&idx_path, &idx_bytes, bin_bytes)?;
        drop(idx_bytes);
        let mut scan = Scan::new(index.dtype, vocab_size, bin_bytes <= in_memory_bytes, bin_bytes);
        let mut stream = fs.stream(&bin_path).map_err(Error::io(&bin_path, "open"))?;
        scan.run(&mut stream, &bin_path)?;
        let bin_info = FileInfo { bytes: bin_bytes, sha256: hex(&scan.hash.finalize()) };
        // The hash is judged first: in a damaged file a bad id is a consequence, not the cause.
        check_hash(&bin_path, expected.map(|manifest| &manifest.bin), &bin_info)?;
        if let Some((offset, id)) = scan.bad_id {
            return Err(Error::Token { path: bin_path, offset, id, vocab_size });
        }
        let tokens = match scan.memory {
            Some(bytes) => Tokens::Memory(bytes),
            None => Tokens::File { file: bin, blocks: scan.blocks },
        };
        Ok(Files { index, idx_info, bin_info, tokens })
    }
}

/// One pass over a `.bin` file.
struct Scan {
    dtype: Dtype,
    vocab_size: u32,
    bytes: u64,
    hash: Sha256,
    memory: Option<Vec<u8>>,
    blocks: Vec<[u8; 24]>,
    bad_id: Option<(u64, i64)>,
}

impl Scan {
    fn new(dtype: Dtype, vocab_size: u32, keep: bool, bytes: u64) -> Scan {
        let memory = keep.then(|| Vec::with_capacity(bytes as usize));
        Scan { dtype, vocab_size, bytes, hash: Sha256::new(), memory, blocks: Vec::new(), bad_id: None }
    }

    fn run(&mut self, stream: &mut dyn Read, path: &Path) -> Result<()> {
        let mut buffer = vec![0; BLOCK];
        let mut at = 0;
        while at < self.bytes {
            let size = (self.bytes - at).min(BLOCK as u64) as usize;
            let block = &mut buffer[..size];
            stream.read_exact(block).map_err(Error::io(path, "read"))?;
            self.hash.update(&*block);
            if self.bad_id.is_none() {
                self.bad_id = find_bad_id(self.dtype, block, self.vocab_size).map(|(i, id)| (at + i, id));
            }
            match &mut self.memory {
                Some(memory) => memory.extend_from_slice(block),
                None => self.blocks.push(block_hash(block)),
            }
            at += size as u64;
        }
        Ok(())
    }
}

fn block_hash(block: &[u8]) -> [u8; 24] {
    let digest = Sha256::digest(block);
    std::array::from_fn(|i| digest[i])
}

/// Byte offset and value of the first id that is not below `vocab_size`.
fn find_bad_id(dtype: Dtype, bytes: &[u8], vocab_size: u32) -> Option<(u64, i64)> {
    let bad = |&(_, id): &(usize, i64)| !(0..i64::from(vocab_size)).contains(&id);
    let (i, id) = match dtype {
        Dtype::U16 => {
            let ids = bytes.as_chunks::<2>().0.iter().map(|&id| i64::from(u16::from_le_bytes(id)));
            ids.enumerate().find(bad)
        }
        Dtype::I32 => {
            let ids = bytes.as_chunks::<4>().0.iter().map(|&id| i64::from(i32::from_le_bytes(id)));
            ids.enumerate().find(bad)
        }
    }?;
    Some((i as u64 * dtype.size(), id))
}

fn decode(dtype: Dtype, bytes: &[u8], out: &mut [u32]) {
    match dtype {
        Dtype::U16 => {
            for (token, &id) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *token = u32::from(u16::from_le_bytes(id));
            }
        }
        Dtype::I32 => {
            for (token, &id) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *token = u32::from_le_bytes(id);
            }
        }
    }
}

fn check_size(path: &Path, expected: Option<&FileInfo>, found: u64) -> Result<()> {
    match expected {
        Some(info) if info.bytes != found => {
            Err(Error::Size { path: path.to_owned(), expected: info.bytes, found })
        }
        _ => Ok(()),
    }
}

fn check_hash(path: &Path, expected: Option<&FileInfo>, found: &FileInfo) -> Result<()> {
    match expected {
        Some(info) if info.sha256 != found.sha256 => {
            let (expected, found) = (info.sha256.clone(), found.sha256.clone());
            Err(Error::Hash { path: path.to_owned(), expected, found })
        }
        _ => Ok(()),
    }
}

impl Index {
    fn documents(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    fn tokens(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
}
