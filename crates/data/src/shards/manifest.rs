//! The manifest of a shard: what its files must be, and what text they came from.

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Dtype, file};
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::job::InputInfo;
use crate::mix::hex;

const VERSION: u32 = 1;

/// What the writer of a shard must know about its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSpec {
    /// Every id is below it. It also decides how ids are stored ([`Dtype::for_vocab`]).
    pub vocab_size: u32,
    /// SHA-256 of the `tokenizer.json` in hex, or empty where it is not known.
    pub tokenizer_sha256: String,
}

/// Size and hash of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileInfo {
    /// Its length.
    pub bytes: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
}

/// What a job made a shard from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// SHA-256 of the identity of the job: options, and size and version of every input.
    pub job: String,
    /// The inputs.
    pub inputs: Vec<InputInfo>,
    /// Bad records that were left out.
    pub bad: u64,
    /// The id before each document.
    pub bos: Option<u32>,
    /// The id after each document.
    pub eos: Option<u32>,
}

/// What stands in `<prefix>.manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// How a token is stored.
    pub dtype: Dtype,
    /// The `.idx` file.
    pub idx: FileInfo,
    /// The `.bin` file.
    pub bin: FileInfo,
    /// Tokens of all documents.
    pub tokens: u64,
    /// Number of documents.
    pub documents: u64,
    /// Bytes of UTF-8 text that the tokens stand for, without begin and end marks: the denominator of bits per byte.
    pub source_bytes: u64,
    /// Every id is below it.
    pub vocab_size: u32,
    /// SHA-256 of the `tokenizer.json` in hex, or empty where it is not known.
    pub tokenizer_sha256: String,
    /// What the shard was made from, where a job made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_from: Option<Provenance>,
    /// SHA-256 of this manifest with this field empty, so that damage to the manifest itself is found too.
    pub manifest_sha256: String,
}

impl Manifest {
    pub(super) fn new(
        spec: &ShardSpec,
        idx: FileInfo,
        bin: FileInfo,
        counts: Counts,
        made_from: Option<Provenance>,
    ) -> Manifest {
        let mut manifest = Manifest {
            version: VERSION,
            dtype: counts.dtype,
            idx,
            bin,
            tokens: counts.tokens,
            documents: counts.documents,
            source_bytes: counts.source_bytes,
            vocab_size: spec.vocab_size,
            tokenizer_sha256: spec.tokenizer_sha256.clone(),
            made_from,
            manifest_sha256: String::new(),
        };
        manifest.manifest_sha256 = hex(&Sha256::digest(manifest.text()));
        manifest
    }

    /// The one spelling of a manifest: the reader accepts no other, so that no flipped bit can hide in white space.
    fn text(&self) -> String {
        // Serialising a struct of numbers and strings cannot fail.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    pub(super) fn write(&self, fs: &dyn Fs, prefix: &Path) -> Result<()> {
        let path = file(prefix, ".manifest.json");
        fs.replace(&path, self.text().as_bytes()).map_err(Error::io(&path, "write"))
    }

    /// Reads the manifest of the shard at `prefix`, without looking at its other files.
    ///
    /// # Errors
    /// If it is missing, damaged, or of another version.
    pub fn read(fs: &dyn Fs, prefix: &Path) -> Result<Manifest> {
        let path = file(prefix, ".manifest.json");
        let bytes = match fs.read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Error::NoManifest { path }),
            other => other.map_err(Error::io(&path, "read"))?,
        };
        let bad = |what: String| Error::Manifest { path: path.clone(), what };
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if manifest.version != VERSION {
            return Err(bad(format!("version {} instead of {VERSION}", manifest.version)));
        }
        let unsigned = Manifest { manifest_sha256: String::new(), ..manifest.clone() };
        if hex(&Sha256::digest(unsigned.text())) != manifest.manifest_sha256
            || manifest.text().as_bytes() != bytes
        {
            return Err(bad("its own hash does not fit".into()));
        }
        Ok(manifest)
    }
}

/// What was counted while a shard was written or checked.
pub(super) struct Counts {
    pub(super) dtype: Dtype,
    pub(super) tokens: u64,
    pub(super) documents: u64,
    pub(super) source_bytes: u64,
}
