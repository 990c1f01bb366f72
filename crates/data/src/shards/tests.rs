use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::error::Error;
use crate::fs::{Fault, FaultFs, FaultKind, Fs};

const PREFIX: &str = "/out/a.b";

fn spec(vocab_size: u32) -> ShardSpec {
    ShardSpec { vocab_size, tokenizer_sha256: "ab".repeat(32) }
}

fn write(fs: &FaultFs, vocab_size: u32, documents: &[&[u32]]) -> crate::Result<Manifest> {
    let mut writer = ShardWriter::create(Arc::new(fs.clone()), Path::new(PREFIX), spec(vocab_size))?;
    for document in documents {
        writer.push(document, 3 * document.len() as u64)?;
    }
    writer.finish()
}

fn open(fs: &FaultFs, in_memory_bytes: u64) -> crate::Result<Shard> {
    Shard::open_with(Arc::new(fs.clone()), Path::new(PREFIX), in_memory_bytes)
}

fn path(suffix: &str) -> std::path::PathBuf {
    file(Path::new(PREFIX), suffix)
}

#[test]
fn documents_come_back_from_memory_and_from_the_file() {
    let long: Vec<u32> = (0..100_000).map(|i| i % 65_499).collect();
    let documents: [&[u32]; 4] = [&[1, 2, 3], &[], &long, &[65_498]];
    for (vocab_size, dtype) in [(65_499, Dtype::U16), (65_500, Dtype::I32)] {
        let fs = FaultFs::new();
        let manifest = write(&fs, vocab_size, &documents).unwrap();
        assert_eq!((manifest.dtype, manifest.tokens, manifest.documents), (dtype, 100_004, 4));
        assert_eq!(manifest.source_bytes, 300_012);
        for in_memory_bytes in [u64::MAX, 0] {
            let shard = open(&fs, in_memory_bytes).unwrap();
            assert_eq!(shard.manifest(), &manifest);
            for (d, document) in documents.iter().enumerate() {
                assert_eq!(shard.doc(d as u64).unwrap(), *document);
            }
            let mut part = [0; 5];
            shard.read(2, 65_533, &mut part).unwrap();
            assert_eq!(part, long[65_533..65_538]);
        }
    }
}

#[test]
fn ids_outside_the_vocabulary_are_refused_by_writer_and_reader() {
    let fs = FaultFs::new();
    let error = write(&fs, 10, &[&[1], &[2, 10]]).unwrap_err();
    assert!(matches!(error, Error::Document { document: 1, .. }), "{error}");
    assert!(!fs.exists(&path(".bin.tmp")).unwrap(), "an unfinished writer leaves nothing");

    write(&fs, 11, &[&[1], &[2, 10]]).unwrap();
    fs.remove_file(&path(".manifest.json")).unwrap();
    let error = adopt(&fs, Path::new(PREFIX), &spec(10), 0).unwrap_err();
    assert!(matches!(error, Error::Token { offset: 4, id: 10, .. }), "{error}");
    adopt(&fs, Path::new(PREFIX), &spec(11), 0).unwrap();
    assert_eq!(open(&fs, u64::MAX).unwrap().doc(1).unwrap(), [2, 10]);

    write(&fs, 70_000, &[&[1, 2]]).unwrap();
    fs.flip(&path(".bin"), 63).unwrap();
    let error = adopt(&fs, Path::new(PREFIX), &spec(70_000), 0).unwrap_err();
    assert!(matches!(error, Error::Token { offset: 4, id: -2_147_483_646, .. }), "{error}");
}

#[test]
fn every_flipped_bit_is_found_before_use() {
    let fs = FaultFs::new();
    write(&fs, 1000, &[&[1, 2, 3], &[], &[999, 998]]).unwrap();
    for suffix in [".idx", ".bin", ".manifest.json"] {
        let bits = fs.read(&path(suffix)).unwrap().len() * 8;
        for bit in 0..bits {
            fs.flip(&path(suffix), bit).unwrap();
            for in_memory_bytes in [u64::MAX, 0] {
                assert!(open(&fs, in_memory_bytes).is_err(), "bit {bit} of {suffix} was not noticed");
            }
            fs.flip(&path(suffix), bit).unwrap();
        }
    }
    open(&fs, 0).unwrap();
}

#[test]
fn lengths_are_checked_before_contents() {
    let fs = FaultFs::new();
    write(&fs, 1000, &[&[1, 2, 3]]).unwrap();
    for suffix in [".idx", ".bin"] {
        let bytes = fs.read(&path(suffix)).unwrap();
        for other in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat()] {
            fs.write(&path(suffix), other).unwrap();
            let error = open(&fs, u64::MAX).unwrap_err();
            assert!(matches!(error, Error::Size { .. }), "{error}");
        }
        fs.write(&path(suffix), &bytes).unwrap();
    }
    fs.remove_file(&path(".manifest.json")).unwrap();
    assert!(matches!(open(&fs, u64::MAX).unwrap_err(), Error::NoManifest { .. }));
}

#[test]
fn a_large_file_that_changes_after_it_was_verified_is_found_when_read() {
    let fs = FaultFs::new();
    let long: Vec<u32> = (0..100_000).map(|i| i % 1000).collect();
    write(&fs, 1000, &[&long]).unwrap();
    let (from_file, from_memory) = (open(&fs, 0).unwrap(), open(&fs, u64::MAX).unwrap());
    fs.flip(&path(".bin"), 8 * 70_000).unwrap();
    let mut part = [0; 10];
    from_file.read(0, 0, &mut part).unwrap();
    let error = from_file.read(0, 40_000, &mut part).unwrap_err();
    assert!(matches!(error, Error::Changed { offset: 65_536, .. }), "{error}");
    assert_eq!(from_memory.doc(0).unwrap(), long);
}

#[test]
fn a_failure_or_crash_while_replacing_a_shard_never_gives_a_wrong_one() {
    let old: [&[u32]; 2] = [&[1, 2, 3], &[4]];
    let new: [&[u32]; 2] = [&[5, 6, 7], &[8]];
    let plain = FaultFs::new();
    write(&plain, 1000, &old).unwrap();
    let before = plain.ops();
    write(&plain, 1000, &new).unwrap();
    let ops = plain.ops() - before;
    let mut finished = 0;
    for at in 0..ops {
        for kind in [FaultKind::Eio, FaultKind::Enospc, FaultKind::ShortWrite, FaultKind::Fsync] {
            for forever in [false, true] {
                let fs = FaultFs::new();
                write(&fs, 1000, &old).unwrap();
                fs.plan(Some(Fault { at: before + at, kind, forever }));
                let written = write(&fs, 1000, &new);
                fs.plan(None);
                if written.is_ok() {
                    finished += 1;
                    assert_eq!(open(&fs, 0).unwrap().doc(0).unwrap(), new[0]);
                }
                for disk in (0..8).map(|seed| fs.crash(seed)).chain([fs.clone()]) {
                    if let Ok(shard) = open(&disk, 0) {
                        let first = shard.doc(0).unwrap();
                        assert!(first == old[0] || first == new[0], "{first:?}");
                        assert_eq!(shard.doc(1).unwrap(), if first == old[0] { old[1] } else { new[1] });
                    }
                }
            }
        }
    }
    assert!(finished > 0, "a short write once must not stop the writer");
}
