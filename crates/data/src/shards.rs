//! Token shards: Megatron-LM's `.idx`/`.bin` pair, and beside it a manifest by which damage is found before use.
//!
//! A shard is named by its prefix: `out/code` stands for `out/code.idx`, `out/code.bin` and
//! `out/code.manifest.json`. Megatron reads the pair without the manifest; here the manifest is required.

mod index;
mod manifest;
mod read;
mod write;

pub use index::Dtype;
pub use manifest::{FileInfo, Manifest, Provenance, ShardSpec};
pub use read::{IN_MEMORY_BYTES, Shard, adopt};
pub use write::ShardWriter;

use std::path::{Path, PathBuf};

/// The three files of the shard at `prefix`. The suffix is appended: a prefix may itself hold dots.
fn file(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = prefix.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    prefix.with_file_name(name)
}

#[cfg(test)]
mod tests;
