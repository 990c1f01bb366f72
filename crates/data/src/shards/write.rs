//! Writing a shard, document by document.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::index::Index;
use super::manifest::Counts;
use super::{Dtype, FileInfo, Manifest, Provenance, ShardSpec, file};
use crate::error::{Error, Result};
use crate::fs::{Fs, FsWrite, parent};
use crate::mix::hex;

/// Writes a shard. Tokens go to a temporary file as they come (4 bytes of memory per document are kept for the
/// index); only [`ShardWriter::finish`] gives the files their names, the manifest last, so a shard that was not
/// finished does not exist. Dropping an unfinished writer removes its temporary file.
pub struct ShardWriter {
    fs: Arc<dyn Fs>,
    prefix: PathBuf,
    spec: ShardSpec,
    dtype: Dtype,
    /// `None` only once the writer is finished.
    bin: Option<BufWriter<Box<dyn FsWrite>>>,
    /// The temporary `.bin`.
    tmp: PathBuf,
    bin_hash: Sha256,
    lengths: Vec<u32>,
    tokens: u64,
    source_bytes: u64,
    scratch: Vec<u8>,
}

impl ShardWriter {
    /// Begins a shard at `prefix` (a path without `.idx` or `.bin`); its folder is made where it is missing. A shard
    /// that is there already stays until [`ShardWriter::finish`] replaces it.
    ///
    /// # Errors
    /// If the folder or file cannot be made, or the vocabulary does not fit `i32` ids.
    pub fn create(fs: Arc<dyn Fs>, prefix: &Path, spec: ShardSpec) -> Result<ShardWriter> {
        ShardWriter::create_as(fs, prefix, spec, "")
    }

    /// As [`ShardWriter::create`], with temporary files that bear a mark: several processes may write the same shard at once, and
    /// as long as it is the same bytes it does not matter who is last.
    pub(crate) fn create_as(
        fs: Arc<dyn Fs>,
        prefix: &Path,
        spec: ShardSpec,
        mark: &str,
    ) -> Result<ShardWriter> {
        if spec.vocab_size == 0 || spec.vocab_size > i32::MAX as u32 {
            let what = format!("vocabulary size {} is not between 1 and 2^31 - 1", spec.vocab_size);
            return Err(Error::Document { path: prefix.to_owned(), document: 0, what });
        }
        let folder = parent(prefix);
        fs.create_dirs(folder).map_err(Error::io(folder, "create"))?;
        let tmp = file(prefix, &format!(".bin.tmp{mark}"));
        let bin = fs.create(&tmp).map_err(Error::io(&tmp, "create"))?;
        Ok(ShardWriter {
            dtype: Dtype::for_vocab(spec.vocab_size),
            prefix: prefix.to_owned(),
            spec,
            bin: Some(BufWriter::with_capacity(1 << 20, bin)),
            tmp,
            bin_hash: Sha256::new(),
            lengths: Vec::new(),
            tokens: 0,
            source_bytes: 0,
            scratch: Vec::new(),
            fs,
        })
    }

    /// Appends one document. `source_bytes` is the length of its text in UTF-8.
    ///
    /// # Errors
    /// If an id is not below the vocabulary size, the document has 2^31 tokens or more, or writing fails.
    pub fn push(&mut self, tokens: &[u32], source_bytes: u64) -> Result<()> {
        let document = self.lengths.len() as u64;
        let bad = |what: String| Error::Document { path: self.prefix.clone(), document, what };
        if tokens.len() > i32::MAX as usize {
            return Err(bad("has 2^31 tokens or more; split it".into()));
        }
        if let Some(id) = tokens.iter().find(|&&id| id >= self.spec.vocab_size) {
            let vocab_size = self.spec.vocab_size;
            return Err(bad(format!("token id {id} is not below the vocabulary size {vocab_size}")));
        }
        self.scratch.clear();
        match self.dtype {
            Dtype::U16 => tokens.iter().for_each(|&id| self.scratch.extend((id as u16).to_le_bytes())),
            Dtype::I32 => tokens.iter().for_each(|&id| self.scratch.extend(id.to_le_bytes())),
        }
        if let Some(bin) = &mut self.bin {
            bin.write_all(&self.scratch).map_err(Error::io(&self.tmp, "write"))?;
        }
        self.bin_hash.update(&self.scratch);
        self.lengths.push(tokens.len() as u32);
        self.tokens += tokens.len() as u64;
        self.source_bytes += source_bytes;
        Ok(())
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Makes the shard durable and gives it its name.
    ///
    /// # Errors
    /// If writing, syncing or renaming fails. A shard that was there before may then be incomplete, which its reader
    /// finds.
    pub fn finish(self) -> Result<Manifest> {
        self.finish_from(None)
    }

    /// As [`ShardWriter::finish`]; the manifest says what the shard was made from.
    ///
    /// # Errors
    /// As [`ShardWriter::finish`].
    pub(crate) fn finish_from(mut self, made_from: Option<Provenance>) -> Result<Manifest> {
        let bin = self.finish_bin()?;
        let idx_bytes = Index::encode(self.dtype, &self.lengths);
        let idx = FileInfo { bytes: idx_bytes.len() as u64, sha256: hex(&Sha256::digest(&idx_bytes)) };
        let path = file(&self.prefix, ".idx");
        self.fs.replace(&path, &idx_bytes).map_err(Error::io(&path, "write"))?;
        let counts = Counts {
            dtype: self.dtype,
            tokens: self.tokens,
            documents: self.lengths.len() as u64,
            source_bytes: self.source_bytes,
        };
        let manifest = Manifest::new(&self.spec, idx, bin, counts, made_from);
        manifest.write(self.fs.as_ref(), &self.prefix)?;
        Ok(manifest)
    }

    fn finish_bin(&mut self) -> Result<FileInfo> {
        let (tmp, path) = (self.tmp.clone(), file(&self.prefix, ".bin"));
        if let Some(bin) = &mut self.bin {
            bin.flush().map_err(Error::io(&tmp, "write"))?;
            bin.get_mut().sync().map_err(Error::io(&tmp, "sync"))?;
        }
        self.fs.rename(&tmp, &path).map_err(Error::io(&tmp, "rename"))?;
        self.bin = None;
        let sha256 = hex(&std::mem::take(&mut self.bin_hash).finalize());
        Ok(FileInfo { bytes: self.tokens * self.dtype.size(), sha256 })
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if let Some(bin) = self.bin.take() {
            // What is still buffered is not worth writing any more, and what was written is not worth keeping; there
            // is nobody left to tell if the removal fails.
            let _ = bin.into_parts();
            let _ = self.fs.remove_file(&self.tmp);
        }
    }
}
