//! Tokenising inputs of any size: chunk by chunk into parts, which are put together as one shard at the end.
//!
//! The parts of the shard at PREFIX lie in the folder `PREFIX.parts`, the output of a [`Job`]: a `.bin` of tokens as in the shard,
//! and a `.len` with the tokens (u32) and text bytes (u64) of each document, little-endian. They are removed once the shard is whole.

use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Encode, Marks};
use crate::error::{Error, Result};
use crate::fs::{self, Fs};
use crate::job::{self, ChunkRun, Job, Outcome, Watch};
use crate::mix::hex;
use crate::plan::Plan;
use crate::shards::{Dtype, Manifest, Provenance, ShardSpec, ShardWriter};
use crate::write::Written;

/// Bytes of tokens that are handed on at once.
const BUFFER: usize = 1 << 20;
/// Bytes of an entry of `.len`.
const ENTRY: usize = 12;

/// How text becomes tokens, and the shard that they go to.
pub struct Tokenise<'a> {
    /// Text to ids, without marks; called from several threads.
    pub encode: &'a Encode<'a>,
    /// Ids around each document.
    pub marks: Marks,
    /// What the shard must know.
    pub spec: ShardSpec,
    /// The shard's path, without `.idx` or `.bin`.
    pub prefix: PathBuf,
}

/// What a run has come to.
#[derive(Debug)]
pub struct Tokenised {
    /// The job over the parts.
    pub outcome: Outcome,
    /// The manifest of the shard, if it is whole now.
    pub shard: Option<Manifest>,
}

impl Tokenise<'_> {
    /// The job that writes the parts, to be set up further.
    pub fn job(&self) -> Job {
        let config = json!({
            "vocab_size": self.spec.vocab_size,
            "tokenizer_sha256": self.spec.tokenizer_sha256,
            "bos": self.marks.bos,
            "eos": self.marks.eos,
        });
        let mut name = self.prefix.file_name().unwrap_or_default().to_owned();
        name.push(".parts");
        Job::new("tokenise", config, &self.prefix.with_file_name(name))
    }

    /// Runs the job, and puts the shard together if no chunk is missing. A shard that this very job has made before is left as it
    /// is.
    ///
    /// # Errors
    /// As [`Job::run`]; if a text cannot be encoded; if there is a shard that was made from something else and `job.force` is not
    /// set.
    pub fn run(&self, fs: &Arc<dyn Fs>, plan: &Plan, job: &Job, watch: &dyn Watch) -> Result<Tokenised> {
        let folder = fs::parent(&self.prefix);
        fs.create_dirs(folder).map_err(Error::io(folder, "create"))?;
        let identity = job.identity(plan);
        if let Some(shard) = self.made_before(fs.as_ref(), &identity, job.force)? {
            plan.chunks
                .iter()
                .filter(|chunk| job.shard.has(chunk.index))
                .for_each(|c| watch.advance(c.bytes));
            let (chunks, resumed) = (plan.chunks.len(), plan.chunks.len());
            let outcome = Outcome { manifest: None, chunks, finished: 0, resumed };
            // A kill may have come between the shard and the end of its parts.
            if let Some(parts) =
                job::Manifest::read(fs.as_ref(), &job.out)?.filter(|parts| parts.job == identity)
            {
                self.remove_parts(fs.as_ref(), &job.out, &parts)?;
            }
            return Ok(Tokenised { outcome, shard: Some(shard) });
        }
        let outcome = job.run(fs, plan, watch, &|chunk| self.chunk(chunk))?;
        let shard = match &outcome.manifest {
            Some(parts) => match self.merge(fs, job, parts, watch) {
                Ok(shard) => Some(shard),
                // Another process may have found all parts at the same moment, and has been faster.
                Err(error) => Some(self.made_before(fs.as_ref(), &identity, true)?.ok_or(error)?),
            },
            None => None,
        };
        Ok(Tokenised { outcome, shard })
    }

    /// The shard at the prefix, if it comes from this job; with `replace`, any other does not count.
    fn made_before(&self, fs: &dyn Fs, identity: &str, replace: bool) -> Result<Option<Manifest>> {
        match Manifest::read(fs, &self.prefix) {
            Ok(manifest) if manifest.made_from.as_ref().is_some_and(|from| from.job == identity) => {
                Ok(Some(manifest))
            }
            Err(Error::NoManifest { .. }) => Ok(None),
            Ok(_) | Err(Error::Manifest { .. }) if replace => Ok(None),
            Ok(_) => Err(Error::Job {
                path: self.prefix.clone(),
                what: "a shard of that name was made from other input or with other settings".into(),
            }),
            Err(error) => Err(error),
        }
    }

    fn chunk(&self, chunk: &mut ChunkRun<'_>) -> Result<()> {
        let dtype = Dtype::for_vocab(self.spec.vocab_size);
        let (mut bin, mut len) = (Vec::with_capacity(BUFFER), Vec::new());
        let mut tokens = 0;
        while let Some(document) = chunk.next()? {
            let bad = |what: String| Error::Encode { at: document.at.to_string(), what };
            let ids = (self.encode)(&document.text).map_err(bad)?;
            let all = self.marks.bos.into_iter().chain(ids).chain(self.marks.eos);
            let start = bin.len();
            for id in all {
                if id >= self.spec.vocab_size {
                    return Err(bad(format!("token id {id} is not below {}", self.spec.vocab_size)));
                }
                match dtype {
                    Dtype::U16 => bin.extend((id as u16).to_le_bytes()),
                    Dtype::I32 => bin.extend(id.to_le_bytes()),
                }
            }
            let count = (bin.len() - start) as u64 / dtype.size();
            tokens += count;
            let count = i32::try_from(count).map_err(|_| bad("has 2^31 tokens or more; split it".into()))?;
            len.extend((count as u32).to_le_bytes());
            len.extend((document.text.len() as u64).to_le_bytes());
            if bin.len() >= BUFFER {
                append(chunk, &mut bin, &mut len)?;
            }
        }
        chunk.count("tokens", tokens);
        append(chunk, &mut bin, &mut len)
    }

    /// Puts the parts together, each verified on the way, and removes them.
    fn merge(
        &self,
        fs: &Arc<dyn Fs>,
        job: &Job,
        parts: &job::Manifest,
        watch: &dyn Watch,
    ) -> Result<Manifest> {
        let mark = job.shard.mark();
        let mut writer = ShardWriter::create_as(fs.clone(), &self.prefix, self.spec.clone(), &mark)?;
        let named =
            |extension: &'static str| parts.stream("").filter(move |file| file.path.ends_with(extension));
        for (len, bin) in named(".len").zip(named(".bin")) {
            self.merge_part(fs.as_ref(), &job.out, (len, bin), &mut writer, watch)?;
        }
        let made_from = Provenance {
            job: parts.job.clone(),
            inputs: parts.inputs.clone(),
            bad: parts.bad,
            bos: self.marks.bos,
            eos: self.marks.eos,
        };
        let manifest = writer.finish_from(Some(made_from))?;
        // What is quarantined stays for the user.
        self.remove_parts(fs.as_ref(), &job.out, parts)?;
        Ok(manifest)
    }

    fn merge_part(
        &self,
        fs: &dyn Fs,
        folder: &Path,
        (len, bin): (&Written, &Written),
        writer: &mut ShardWriter,
        watch: &dyn Watch,
    ) -> Result<()> {
        let mut lengths = Checked::open(fs, folder, len)?;
        let mut tokens = Checked::open(fs, folder, bin)?;
        let size = Dtype::for_vocab(self.spec.vocab_size).size() as usize;
        let mut entry = [0; ENTRY];
        let (mut bytes, mut ids) = (Vec::new(), Vec::new());
        for _ in 0..len.bytes / ENTRY as u64 {
            if watch.stopped() {
                return Err(Error::Stopped);
            }
            lengths.read(&mut entry)?;
            let (count, text) = entry.split_at(4);
            let count = count.iter().rev().fold(0usize, |n, &byte| n << 8 | usize::from(byte));
            let text = text.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
            bytes.resize(count * size, 0);
            tokens.read(&mut bytes)?;
            ids.clear();
            ids.extend(
                bytes.chunks(size).map(|id| id.iter().rev().fold(0u32, |n, &b| n << 8 | u32::from(b))),
            );
            writer.push(&ids, text)?;
        }
        lengths.finish()?;
        tokens.finish()
    }

    fn remove_parts(&self, fs: &dyn Fs, folder: &Path, parts: &job::Manifest) -> Result<()> {
        if parts.bad == 0 {
            return fs.remove_tree(folder).map_err(Error::io(folder, "remove"));
        }
        for file in parts.stream("") {
            let path = folder.join(&file.path);
            match fs.remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => other.map_err(Error::io(&path, "remove"))?,
            }
        }
        Ok(())
    }
}

/// Hands the tokens and lengths on to the chunk's outputs.
fn append(chunk: &mut ChunkRun<'_>, bin: &mut Vec<u8>, len: &mut Vec<u8>) -> Result<()> {
    if len.is_empty() {
        return Ok(());
    }
    for (extension, bytes) in [("bin", bin), ("len", len)] {
        chunk.write("", extension, bytes)?;
        bytes.clear();
    }
    Ok(())
}

/// A file that is read once from end to end, and must be the one that was written.
struct Checked<'a> {
    path: PathBuf,
    reader: BufReader<fs::Stream>,
    hash: Sha256,
    expected: &'a Written,
}

impl<'a> Checked<'a> {
    fn open(fs: &dyn Fs, folder: &Path, expected: &'a Written) -> Result<Checked<'a>> {
        let path = folder.join(&expected.path);
        let stream = fs.stream(&path).map_err(Error::io(&path, "open"))?;
        Ok(Checked { path, reader: BufReader::with_capacity(BUFFER, stream), hash: Sha256::new(), expected })
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(Error::io(&self.path, "read"))?;
        self.hash.update(bytes);
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let found = hex(&self.hash.finalize());
        let expected = self.expected.sha256.clone();
        if found == expected { Ok(()) } else { Err(Error::Hash { path: self.path, expected, found }) }
    }
}

#[cfg(test)]
mod tests;
