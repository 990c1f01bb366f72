//! Hashes of files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use sha2::{Digest, Sha256};
use zamba::checkpoint::manifest::hex;

/// Adds all bytes of a file.
pub(crate) fn add_file(hash: &mut Sha256, path: &Path) -> anyhow::Result<()> {
    add_bytes(hash, path).with_context(|| format!("cannot read {}", path.display()))
}

fn add_bytes(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(()),
            n => hash.update(&block[..n]),
        }
    }
}

/// The first 16 hexadecimal digits, which tell models apart well enough.
pub(crate) fn short(hash: Sha256) -> String {
    hex(&hash.finalize()[..8])
}
