//! Equal outputs whatever the threads, shards and accidents.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use super::*;
use crate::fs::{Fault, FaultFs, FaultKind, Kind};
use crate::plan::{Input, Plan, ReadOptions};

/// A folder with files of all layouts, and three bad records.
pub(crate) fn corpus() -> FaultFs {
    let fs = FaultFs::new();
    fs.create_dirs(Path::new("/in/code")).unwrap();
    let lines: String = (0..300)
        .map(|i| {
            format!("{}\n", json!({ "id": i, "text": format!("line {i} ").repeat(1 + i % 40), "lang": "en" }))
        })
        .collect();
    fs.write(Path::new("/in/big.jsonl"), lines.as_bytes()).unwrap();
    let small =
        "{\"text\":\"one\"}\nnot json\n\n{\"text\":\"two\",\"meta\":{\"a\":[1,null]}}\n{\"text\":3}\n";
    fs.write(Path::new("/in/small.jsonl"), small.as_bytes()).unwrap();
    let zst = zstd::stream::encode_all(lines.as_bytes(), 3).unwrap();
    fs.write(Path::new("/in/packed.jsonl.zst"), &zst).unwrap();
    for i in 0..20 {
        fs.write(
            Path::new(&format!("/in/code/f{i:02}.rs")),
            format!("fn f{i}() {{}}\n").repeat(30).as_bytes(),
        )
        .unwrap();
    }
    fs.write(Path::new("/in/code/logo.png"), b"\x89PNG\xff").unwrap();
    fs
}

pub(crate) fn options() -> ReadOptions {
    ReadOptions { chunk_bytes: 4000, ..ReadOptions::default() }
}

/// Every file below a folder.
pub(crate) fn tree(fs: &dyn Fs, root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs.list(root).unwrap() {
        let path = root.join(&entry.name);
        match entry.kind {
            Kind::Dir => files.extend(tree(fs, &path)),
            _ => files.push((path.display().to_string(), fs.read(&path).unwrap())),
        }
    }
    files
}

fn job() -> Job {
    Job { max_bad: MaxBad::Count(3), ..Job::new("test", json!({ "least": 40 }), Path::new("/out")) }
}

fn work(chunk: &mut ChunkRun<'_>) -> Result<()> {
    while let Some(document) = chunk.next()? {
        writeln!(chunk.file("names", "txt")?, "{}", document.id).unwrap();
        if document.text.len() >= 40 {
            chunk.keep(&document)?;
        } else {
            chunk.count("short", 1);
            chunk.put("rejected", &document)?;
        }
    }
    Ok(())
}

fn run_with(fs: &FaultFs, job: &Job, threads: usize) -> Result<Outcome> {
    let fs: Arc<dyn Fs> = Arc::new(fs.clone());
    let plan = Plan::new(fs.as_ref(), &[Input::new("/in")], &options())?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| job.run(&fs, &plan, &Quiet, &work))
}

fn expected() -> Vec<(String, Vec<u8>)> {
    let fs = corpus();
    let outcome = run_with(&fs, &job(), 1).unwrap();
    let manifest = outcome.manifest.unwrap();
    assert!(outcome.chunks > 10, "{}", outcome.chunks);
    assert_eq!((manifest.documents_read, manifest.bad), (300 + 2 + 300 + 20, 3));
    assert_eq!(manifest.documents() + manifest.counts["short"], manifest.documents_read);
    tree(&fs, Path::new("/out"))
}

#[test]
fn threads_and_shards_do_not_matter() {
    let expected = expected();
    for (shards, threads) in [(1, 2), (3, 1), (8, 2)] {
        let fs = corpus();
        for index in 0..shards {
            let job = Job { shard: Shard::new(index, shards).unwrap(), ..job() };
            let outcome = run_with(&fs, &job, threads).unwrap();
            assert_eq!(outcome.manifest.is_some(), index + 1 == shards, "only with the last chunk");
        }
        assert_eq!(tree(&fs, Path::new("/out")), expected, "{shards} shards, {threads} threads");
    }
}

#[test]
fn documents_come_back_with_all_their_fields() {
    let fs = corpus();
    for format in Format::ALL {
        let out = format!("/{format}");
        let job = Job { format, out: out.clone().into(), max_bad: MaxBad::Count(3), ..job() };
        let keep = |chunk: &mut ChunkRun<'_>| {
            while let Some(document) = chunk.next()? {
                chunk.keep(&document)?;
            }
            Ok(())
        };
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        let plan = Plan::new(&fs, &[Input::new("/in")], &options()).unwrap();
        job.run(&shared, &plan, &Quiet, &keep).unwrap();
        let read = |path: &str| {
            let plan = Plan::new(&fs, &[Input::new(path)], &ReadOptions::default()).unwrap();
            let mut all = Vec::new();
            for chunk in &plan.chunks {
                for record in crate::read::Records::new(&fs, &plan, chunk) {
                    if let crate::read::Record::Document(document) = record.unwrap() {
                        all.push((document.id, document.source, document.text, document.meta));
                    }
                }
            }
            all
        };
        assert_eq!(read(&out), read("/in"), "{format}");
    }
}

#[test]
fn a_kill_or_a_full_disk_at_any_operation_loses_nothing_that_was_finished() {
    let expected = expected();
    let fs = corpus();
    let before = fs.ops();
    run_with(&fs, &job(), 1).unwrap();
    let (ops, step) = (fs.ops() - before, 7);
    let (mut cases, mut resumed) = (0, 0);
    for at in (0..ops).step_by(step) {
        for kind in [FaultKind::Kill, FaultKind::Enospc, FaultKind::Eio, FaultKind::Fsync] {
            let fs = corpus();
            fs.plan(Some(Fault { at: fs.ops() + at, kind, forever: kind != FaultKind::Eio }));
            let outcome = run_with(&fs, &job(), 1);
            fs.plan(None);
            let fs = if kind == FaultKind::Kill { crash(&fs, at) } else { fs };
            if kind == FaultKind::Kill {
                assert!(outcome.is_err());
            }
            let again = run_with(&fs, &job(), 1).unwrap_or_else(|error| panic!("{kind:?} at {at}: {error}"));
            resumed += again.resumed;
            cases += 1;
            assert_eq!(without_leftovers(&fs), expected, "{kind:?} at {at}");
        }
    }
    assert!(cases > 100 && resumed > cases, "{cases} cases, {resumed} chunks were not done again");
}

/// The disk after a power cut; the inputs were there long before.
fn crash(fs: &FaultFs, seed: u64) -> FaultFs {
    let after = fs.crash(seed);
    for (path, bytes) in tree(&corpus(), Path::new("/in")) {
        after.create_dirs(Path::new(&path).parent().unwrap()).unwrap();
        after.write(Path::new(&path), &bytes).unwrap();
    }
    after
}

/// Temporary files of the attempt that failed may be left if there was no chance to remove them.
fn without_leftovers(fs: &FaultFs) -> Vec<(String, Vec<u8>)> {
    tree(fs, Path::new("/out")).into_iter().filter(|(path, _)| !path.ends_with(".tmp")).collect()
}

#[test]
fn another_job_is_refused_by_name_and_force_starts_over() {
    let fs = corpus();
    run_with(&fs, &job(), 1).unwrap();
    let other = Job { config: json!({ "least": 41 }), ..job() };
    let error = run_with(&fs, &other, 1).unwrap_err().to_string();
    assert!(error.contains("`least` was 40 and is 41") && error.contains("--force"), "{error}");
    fs.write(Path::new("/in/code/f00.rs"), b"changed").unwrap();
    let error = run_with(&fs, &job(), 1).unwrap_err().to_string();
    assert!(error.contains("in/code/f00.rs has changed"), "{error}");
    let forced = run_with(&fs, &Job { force: true, ..job() }, 1).unwrap();
    assert_eq!((forced.resumed, forced.finished), (0, forced.chunks));
    let again = run_with(&fs, &Job { force: true, ..job() }, 1).unwrap();
    assert_eq!((again.resumed, again.finished), (again.chunks, 0), "force does not undo the same job");
    fs.write(Path::new("/in/new.txt"), b"new").unwrap();
    let error = run_with(&fs, &job(), 1).unwrap_err().to_string();
    assert!(error.contains("in/new.txt was not there"), "{error}");
}

#[test]
fn other_peoples_files_are_left_alone() {
    let fs = corpus();
    fs.create_dirs(Path::new("/out")).unwrap();
    fs.write(Path::new("/out/thesis.tex"), b"x").unwrap();
    let error = run_with(&fs, &Job { force: true, ..job() }, 1).unwrap_err().to_string();
    assert!(error.contains("thesis.tex"), "{error}");
    assert_eq!(tree(&fs, Path::new("/out")).len(), 1);
}

#[test]
fn outputs_are_inputs_only_once_they_are_whole() {
    let fs = corpus();
    let half = Job { shard: Shard::new(0, 2).unwrap(), ..job() };
    run_with(&fs, &half, 1).unwrap();
    let plan = || Plan::new(&fs, &[Input::new("/out")], &ReadOptions::default());
    let error = plan().unwrap_err().to_string();
    assert!(error.contains("has not finished"), "{error}");
    run_with(&fs, &job(), 1).unwrap();
    let plan = plan().unwrap();
    assert!(plan.files.iter().all(|file| file.name.starts_with("out/part-")), "no side outputs");
    let first = plan.files[0].path.clone();
    let bytes = fs.read(&first).unwrap();
    fs.write(&first, &bytes[1..]).unwrap();
    assert!(matches!(
        Plan::new(&fs, &[Input::new("/out")], &ReadOptions::default()),
        Err(crate::Error::Size { .. })
    ));
    let again = run_with(&fs, &job(), 1).unwrap();
    assert_eq!(again.finished, 1, "a chunk whose output was damaged is done again");
}

#[test]
fn bad_input_stops_only_past_the_limit() {
    let fs = corpus();
    let error = run_with(&fs, &Job { max_bad: MaxBad::Count(2), ..job() }, 1).unwrap_err();
    assert!(matches!(error, crate::Error::TooBad { bad: 3, .. }), "{error}");
    let quarantine = tree(&fs, Path::new("/out/quarantine"));
    let text: String = quarantine.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect();
    for place in ["\"in/small.jsonl\",\"offset\":15", "\"in/code/logo.png\"", "not json"] {
        assert!(text.contains(place), "{place} in {text}");
    }
    run_with(&fs, &job(), 1).unwrap();
    // One of eight shards may have more than its share of what is bad; only the whole is judged.
    let fs = corpus();
    for index in 0..8 {
        let share = MaxBad::Share(0.005);
        run_with(&fs, &Job { max_bad: share, shard: Shard::new(index, 8).unwrap(), ..job() }, 1).unwrap();
    }
    let error = run_with(&corpus(), &Job { max_bad: MaxBad::Share(0.0045), ..job() }, 1).unwrap_err();
    assert!(matches!(error, crate::Error::TooBad { records: 625, .. }), "{error}");
    for (text, limit, records, bad, whole, exceeded) in [
        ("3", MaxBad::Count(3), 10, 3, true, false),
        ("3", MaxBad::Count(3), 10, 4, false, true),
        ("1%", MaxBad::Share(0.01), 999, 999, false, false),
        ("0.01", MaxBad::Share(0.01), 1000, 10, false, false),
        ("0.01", MaxBad::Share(0.01), 1000, 11, false, true),
        ("0", MaxBad::Count(0), 5, 1, true, true),
    ] {
        assert_eq!(text.parse::<MaxBad>().unwrap(), limit);
        assert_eq!(limit.exceeded(records, bad, whole), exceeded, "{text} {records} {bad}");
    }
    for bad in ["", "-1", "2.5", "101%", "x"] {
        assert!(bad.parse::<MaxBad>().is_err(), "{bad}");
    }
}

#[test]
fn memory_bounds_the_threads_and_too_little_is_refused() {
    let fs = corpus();
    let tight = Job { memory: Some(100), chunk_memory: 101, ..job() };
    assert!(matches!(run_with(&fs, &tight, 2), Err(crate::Error::Memory { .. })));
    let tight = Job { memory: Some(199), chunk_memory: 100, ..job() };
    run_with(&fs, &tight, 2).unwrap();
    assert_eq!(tree(&fs, Path::new("/out")), expected());
}

struct StopAfter(AtomicU64, u64);

impl Watch for StopAfter {
    fn advance(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
    fn stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed) > self.1
    }
}

#[test]
fn a_watcher_sees_every_byte_and_may_stop_the_job() {
    let fs = corpus();
    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let plan = Plan::new(&fs, &[Input::new("/in")], &options()).unwrap();
    let total: u64 = plan.chunks.iter().map(|chunk| chunk.bytes).sum();
    assert_eq!(total, plan.bytes());
    let watch = StopAfter(AtomicU64::new(0), total / 2);
    assert!(matches!(job().run(&shared, &plan, &watch, &work), Err(crate::Error::Stopped)));
    assert!(without_leftovers(&fs).len() > 2);
    let watch = StopAfter(AtomicU64::new(0), u64::MAX);
    job().run(&shared, &plan, &watch, &work).unwrap();
    assert_eq!(watch.0.into_inner(), total);
    assert_eq!(tree(&fs, Path::new("/out")), expected());
}
