//! What tells one model from another.

use std::fs;
use std::path::Path;

use anyhow::Context;
use sha2::{Digest, Sha256};
use zamba::checkpoint::Checkpoint;
use zamba::checkpoint::manifest;

use crate::hash::{add_file, short};

/// A hash of configuration and weights, and the version of the program. With a manifest, which has the hashes of
/// all files, it is made of that. Without one weights count by their names and sizes, or, if states are to be
/// kept, byte by byte.
pub(super) fn of(checkpoint: &Checkpoint, keep_states: bool) -> anyhow::Result<String> {
    let folder = checkpoint.path();
    let mut hash = Sha256::new();
    let listed = folder.join(manifest::FILE);
    if listed.exists() {
        add_file(&mut hash, &listed)?;
    } else {
        add_folder(&mut hash, folder, keep_states)?;
    }
    Ok(format!("zamba-{}-{}", env!("CARGO_PKG_VERSION"), short(hash)))
}

fn add_folder(hash: &mut Sha256, folder: &Path, whole: bool) -> anyhow::Result<()> {
    add_file(hash, &folder.join("config.json"))?;
    let unreadable = || format!("cannot read {}", folder.display());
    let mut files = vec![];
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    for path in files {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        let size = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
        hash.update(size.to_le_bytes());
        if whole {
            add_file(hash, &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_hash(folder: &Path, whole: bool) -> Vec<u8> {
        let mut hash = Sha256::new();
        add_folder(&mut hash, folder, whole).unwrap();
        hash.finalize().to_vec()
    }

    #[test]
    fn every_byte_of_the_weights_counts_where_states_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        fs::write(dir.path().join("a.safetensors"), [1, 2, 3]).unwrap();
        let (whole, sizes) = (folder_hash(dir.path(), true), folder_hash(dir.path(), false));
        fs::write(dir.path().join("a.safetensors"), [1, 2, 4]).unwrap();
        assert_ne!(folder_hash(dir.path(), true), whole);
        assert_eq!(folder_hash(dir.path(), false), sizes);
        fs::write(dir.path().join("config.json"), "{ }").unwrap();
        assert_ne!(folder_hash(dir.path(), false), sizes);
    }
}
