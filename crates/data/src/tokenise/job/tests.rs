//! The same shard whatever the threads, shards and accidents.

use super::*;
use crate::fs::{Fault, FaultFs, FaultKind};
use crate::job::tests::{corpus, options, tree};
use crate::job::{MaxBad, Quiet, Shard};
use crate::plan::Input;
use crate::tokenise::tokenise;

fn bytes(text: &str) -> std::result::Result<Vec<u32>, String> {
    Ok(text.bytes().map(|byte| u32::from(byte) + 3).collect())
}

fn run(fs: &FaultFs, shard: Shard, threads: usize, force: bool, vocab_size: u32) -> Result<Tokenised> {
    let fs: Arc<dyn Fs> = Arc::new(fs.clone());
    let plan = Plan::new(fs.as_ref(), &[Input::new("/in")], &options())?;
    let step = Tokenise {
        encode: &bytes,
        marks: Marks { bos: Some(1), eos: Some(2) },
        spec: ShardSpec { vocab_size, tokenizer_sha256: "x".into() },
        prefix: "/out/shard".into(),
    };
    let job = Job { shard, force, max_bad: MaxBad::Count(3), ..step.job() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| step.run(&fs, &plan, &job, &Quiet))
}

fn whole(fs: &FaultFs) -> Result<Tokenised> {
    run(fs, Shard::WHOLE, 1, false, 300)
}

/// The three files of the shard.
fn shard(fs: &FaultFs) -> Vec<(String, Vec<u8>)> {
    tree(fs, Path::new("/out"))
        .into_iter()
        .filter(|(path, _)| {
            path.starts_with("/out/shard.") && !path.contains("parts/") && !path.contains(".tmp")
        })
        .collect()
}

fn expected() -> Vec<(String, Vec<u8>)> {
    let fs = corpus();
    whole(&fs).unwrap();
    shard(&fs)
}

#[test]
fn the_shard_is_that_of_one_pass() {
    let fs = corpus();
    let done = whole(&fs).unwrap();
    let manifest = done.shard.unwrap();
    assert_eq!((manifest.documents, manifest.made_from.as_ref().unwrap().bad), (622, 3));
    let plan = Plan::new(&fs, &[Input::new("/in")], &options()).unwrap();
    let mut texts = Vec::new();
    for chunk in &plan.chunks {
        for record in crate::read::Records::new(&fs, &plan, chunk) {
            if let crate::read::Record::Document(document) = record.unwrap() {
                texts.push(Ok(document.text));
            }
        }
    }
    let spec = ShardSpec { vocab_size: 300, tokenizer_sha256: "x".into() };
    let marks = Marks { bos: Some(1), eos: Some(2) };
    let other: Arc<dyn Fs> = Arc::new(fs.clone());
    let one_pass =
        tokenise(other.clone(), texts, &bytes, marks, spec, Path::new("/one"), &mut |_| ()).unwrap();
    assert_eq!((&one_pass.bin, &one_pass.idx), (&manifest.bin, &manifest.idx));
    assert_eq!(one_pass.source_bytes, manifest.source_bytes);
    crate::Shard::open(other, Path::new("/out/shard")).unwrap();
    let left = tree(&fs, Path::new("/out/shard.parts"));
    assert!(left.iter().all(|(path, _)| !path.ends_with(".bin") && !path.ends_with(".len")), "{left:?}");
    assert!(left.iter().any(|(path, _)| path.contains("quarantine")), "what was bad stays");
}

#[test]
fn threads_and_shards_do_not_matter() {
    let expected = expected();
    for (shards, threads) in [(1, 2), (3, 1), (8, 2)] {
        let fs = corpus();
        for index in 0..shards {
            let done = run(&fs, Shard::new(index, shards).unwrap(), threads, false, 300).unwrap();
            assert_eq!(done.shard.is_some(), index + 1 == shards);
        }
        assert_eq!(shard(&fs), expected, "{shards} shards, {threads} threads");
        let again = run(&fs, Shard::new(0, shards).unwrap(), 1, false, 300).unwrap();
        assert_eq!((again.outcome.finished, again.shard.is_some()), (0, true), "nothing is done twice");
    }
}

#[test]
fn wide_ids_are_written_wide() {
    let fs = corpus();
    let manifest = run(&fs, Shard::WHOLE, 2, false, 70_000).unwrap().shard.unwrap();
    assert_eq!((manifest.dtype, manifest.bin.bytes), (Dtype::I32, manifest.tokens * 4));
    crate::Shard::open(Arc::new(fs), Path::new("/out/shard")).unwrap();
}

#[test]
fn a_kill_or_a_full_disk_at_any_operation_ends_in_the_same_shard() {
    let expected = expected();
    let fs = corpus();
    let before = fs.ops();
    whole(&fs).unwrap();
    let ops = fs.ops() - before;
    let mut cases = 0;
    for at in (0..ops).step_by(11) {
        for kind in [FaultKind::Kill, FaultKind::Enospc, FaultKind::Fsync] {
            let fs = corpus();
            fs.plan(Some(Fault { at: fs.ops() + at, kind, forever: true }));
            let outcome = whole(&fs);
            fs.plan(None);
            assert!(kind != FaultKind::Kill || outcome.is_err());
            // The process dies; what it wrote may or may not be there after a power cut, but the inputs are.
            let fs = if kind == FaultKind::Kill { with_inputs(fs.crash(at)) } else { fs };
            whole(&fs).unwrap_or_else(|error| panic!("{kind:?} at {at}: {error}"));
            assert_eq!(shard(&fs), expected, "{kind:?} at {at}");
            cases += 1;
        }
    }
    assert!(cases > 60, "{cases}");
}

fn with_inputs(fs: FaultFs) -> FaultFs {
    for (path, bytes) in tree(&corpus(), Path::new("/in")) {
        fs.create_dirs(Path::new(&path).parent().unwrap()).unwrap();
        fs.write(Path::new(&path), &bytes).unwrap();
    }
    fs
}

#[test]
fn another_shard_is_replaced_only_by_force() {
    let fs = corpus();
    whole(&fs).unwrap();
    fs.write(Path::new("/in/more.txt"), b"more").unwrap();
    let error = whole(&fs).unwrap_err().to_string();
    assert!(error.contains("/out/shard: ") && error.contains("--force"), "{error}");
    let manifest = run(&fs, Shard::WHOLE, 1, true, 300).unwrap().shard.unwrap();
    assert_eq!(manifest.documents, 623);
}

#[test]
fn ids_outside_the_vocabulary_name_the_document() {
    let fs = corpus();
    let error = run(&fs, Shard::WHOLE, 1, false, 100).unwrap_err().to_string();
    assert!(error.contains("in/big.jsonl:0") && error.contains("not below 100"), "{error}");
}
