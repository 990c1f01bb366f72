//! Documents to shards.
//!
//! A document becomes `<s> text </s>`: prompts begin with `<s>` when the model is used, so it must know what follows one,
//! and `</s>` is how it learns to stop.

mod job;

pub use job::{Tokenise, Tokenised};

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::shards::{Manifest, ShardSpec, ShardWriter};

/// Ids put around each document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Before the text, if the model was trained with such a mark.
    pub bos: Option<u32>,
    /// After the text. Without it a model does not learn where a text ends.
    pub eos: Option<u32>,
}

/// Text to ids, without marks; called from several threads. An error is told in words.
pub type Encode<'a> = dyn Fn(&str) -> std::result::Result<Vec<u32>, String> + Sync + 'a;

/// How far tokenising has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Documents written.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Their tokens, with marks.
    pub tokens: u64,
}

/// Text that is encoded at once, in parallel: enough for all threads, little enough to sit in memory.
const BATCH_BYTES: usize = 4 << 20;

/// Encodes documents with `encode` (text to ids, without marks) on all threads of rayon's pool and writes them to the
/// shard at `prefix`, in order. `progress` is called after each batch of a few MiB. Returns the shard's manifest.
///
/// # Errors
/// If a document cannot be read or encoded, an id lies outside the vocabulary of `spec`, or writing fails.
pub fn tokenise<T: AsRef<str> + Sync>(
    fs: Arc<dyn Fs>,
    documents: impl IntoIterator<Item = Result<T>>,
    encode: &Encode<'_>,
    marks: Marks,
    spec: ShardSpec,
    prefix: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest> {
    let mut writer = ShardWriter::create(fs, prefix, spec)?;
    let mut documents = documents.into_iter();
    let mut done = Progress::default();
    let mut batch: Vec<T> = Vec::new();
    loop {
        batch.clear();
        let mut bytes = 0;
        for document in documents.by_ref() {
            let document = document?;
            bytes += document.as_ref().len();
            batch.push(document);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        if batch.is_empty() {
            return writer.finish();
        }
        let encoded: Vec<_> = batch.par_iter().map(|text| encode(text.as_ref())).collect();
        for (text, ids) in batch.iter().zip(encoded) {
            let ids = ids.map_err(|what| Error::Document {
                path: prefix.to_owned(),
                document: done.documents,
                what,
            })?;
            let tokens: Vec<u32> = marks.bos.into_iter().chain(ids).chain(marks.eos).collect();
            let bytes = text.as_ref().len() as u64;
            writer.push(&tokens, bytes)?;
            done.documents += 1;
            done.bytes += bytes;
            done.tokens += tokens.len() as u64;
        }
        progress(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::FaultFs;
    use crate::shards::Shard;

    fn bytes(text: &str) -> std::result::Result<Vec<u32>, String> {
        if text.contains('!') { Err("no shouting".into()) } else { Ok(text.bytes().map(u32::from).collect()) }
    }

    fn run(fs: &FaultFs, texts: Vec<Result<String>>, seen: &mut Vec<Progress>) -> Result<Manifest> {
        let marks = Marks { bos: Some(1), eos: Some(2) };
        let spec = ShardSpec { vocab_size: 256, tokenizer_sha256: String::new() };
        let fs = Arc::new(fs.clone());
        tokenise(fs, texts, &bytes, marks, spec, Path::new("/x"), &mut |progress| seen.push(progress))
    }

    #[test]
    fn documents_keep_their_order_and_get_marks() {
        let fs = FaultFs::new();
        // Texts of very unlike lengths, over several batches.
        let texts: Vec<String> =
            (0..40).map(|i| format!("{i:03}").repeat(1 + (i * 7919) % 200_000)).collect();
        let mut seen = Vec::new();
        let manifest = run(&fs, texts.iter().cloned().map(Ok).collect(), &mut seen).unwrap();
        let total: u64 = texts.iter().map(|text| text.len() as u64).sum();
        assert_eq!((manifest.documents, manifest.source_bytes, manifest.tokens), (40, total, total + 80));
        let last = Progress { documents: 40, bytes: total, tokens: total + 80 };
        assert!(seen.len() > 1 && seen.last() == Some(&last), "{seen:?}");
        let shard = Shard::open(Arc::new(fs), Path::new("/x")).unwrap();
        for (d, text) in texts.iter().enumerate() {
            let ids = shard.doc(d as u64).unwrap();
            let (first, rest) = ids.split_first().unwrap();
            let (last, text_ids) = rest.split_last().unwrap();
            assert_eq!((*first, *last), (1, 2));
            assert_eq!(text_ids, bytes(text).unwrap());
        }
    }

    #[test]
    fn a_document_that_fails_is_named_and_nothing_is_left() {
        let fs = FaultFs::new();
        let texts = ["a", "b", "c!", "d"].into_iter().map(|text| Ok(text.to_owned())).collect();
        let error = run(&fs, texts, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, Error::Document { document: 2, .. }), "{error}");
        let texts = vec![Ok("a".to_owned()), Err(Error::TooLittle("broken input".into()))];
        assert!(matches!(run(&fs, texts, &mut Vec::new()), Err(Error::TooLittle(_))));
        assert!(fs.list(Path::new("/")).unwrap().is_empty());
    }
}
