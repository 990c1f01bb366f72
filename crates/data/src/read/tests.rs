//! Whatever an input holds, it is read to its end: no panic, and nothing that is good is lost.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::fs::{Fault, FaultFs, FaultKind};
use crate::job::{ChunkRun, Job, Quiet};
use crate::plan::{Input, Plan, ReadOptions};
use crate::write::Format;

fn read(name: &str, bytes: &[u8], options: &ReadOptions) -> (Vec<Document>, Vec<Bad>) {
    let fs = FaultFs::new();
    let path = format!("/{name}");
    fs.write(Path::new(&path), bytes).unwrap();
    let plan = Plan::new(&fs, &[Input::new(path)], options).unwrap();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for chunk in &plan.chunks {
        for record in Records::new(&fs, &plan, chunk) {
            match record.unwrap() {
                Record::Document(document) => good.push(document),
                Record::Bad(one) => bad.push(one),
            }
        }
    }
    (good, bad)
}

fn texts(documents: &[Document]) -> Vec<&str> {
    documents.iter().map(|document| document.text.as_str()).collect()
}

fn small_chunks() -> ReadOptions {
    ReadOptions { chunk_bytes: 64, ..ReadOptions::default() }
}

const LINES: usize = 40;

fn lines() -> String {
    (0..LINES)
        .map(|i| format!("{}\n", json!({ "text": format!("text {i} é"), "n": i, "deep": { "a": [i] } })))
        .collect()
}

/// The lines in every format, by file name.
fn formats() -> Vec<(&'static str, Vec<u8>)> {
    let plain = lines().into_bytes();
    let gz = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        std::io::Write::write_all(&mut encoder, &plain).unwrap();
        encoder.finish().unwrap()
    };
    let zst = zstd::stream::encode_all(plain.as_slice(), 3).unwrap();
    let fs: Arc<dyn Fs> = Arc::new(FaultFs::new());
    fs.write(Path::new("/x.jsonl"), &plain).unwrap();
    let plan = Plan::new(fs.as_ref(), &[Input::new("/x.jsonl")], &ReadOptions::default()).unwrap();
    let job = Job { format: Format::Parquet, ..Job::new("copy", json!(null), Path::new("/out")) };
    let copy = |chunk: &mut ChunkRun<'_>| {
        while let Some(document) = chunk.next()? {
            chunk.keep(&document)?;
        }
        Ok(())
    };
    job.run(&fs, &plan, &Quiet, &copy).unwrap();
    let parquet = fs.read(Path::new("/out/part-00000.parquet")).unwrap();
    vec![("x.jsonl", plain), ("x.jsonl.gz", gz), ("x.jsonl.zst", zst), ("x.parquet", parquet)]
}

#[test]
fn a_truncated_file_gives_what_is_before_and_one_bad_record() {
    for (name, bytes) in formats() {
        let whole = read(name, &bytes, &ReadOptions::default());
        assert_eq!((whole.0.len(), whole.1.len()), (LINES, 0), "{name}");
        for cut in 1..bytes.len() {
            let (good, bad) = read(name, &bytes[..cut], &ReadOptions::default());
            let n = good.len();
            assert_eq!(texts(&good), texts(&whole.0[..n]), "{name} cut at {cut}");
            // A plain file may end between two lines, or before a line feed.
            let between = name == "x.jsonl" && (bytes[cut - 1] == b'\n' || bytes[cut] == b'\n');
            assert_eq!(bad.len(), usize::from(!between), "{name} cut at {cut}: {bad:?}");
        }
    }
}

#[test]
fn several_members_and_frames_are_one_file() {
    for (name, bytes) in formats().into_iter().filter(|(name, _)| !name.ends_with("parquet")) {
        let (good, bad) = read(name, &[bytes.as_slice(), &bytes].concat(), &ReadOptions::default());
        assert_eq!((good.len(), bad.len()), (2 * LINES, 0), "{name}");
    }
}

#[test]
fn a_disk_that_fails_is_an_error_and_not_bad_input() {
    for (name, bytes) in formats() {
        let fs = FaultFs::new();
        let path = format!("/{name}");
        fs.write(Path::new(&path), &bytes).unwrap();
        let plan = Plan::new(&fs, &[Input::new(&path)], &ReadOptions::default()).unwrap();
        for at in 0..2 {
            fs.plan(Some(Fault { at: fs.ops() + at, kind: FaultKind::Eio, forever: true }));
            let records: Vec<_> = Records::new(&fs, &plan, &plan.chunks[0]).collect();
            assert!(records.iter().any(Result::is_err), "{name} at {at}");
            assert!(
                !records.iter().flatten().any(|record| matches!(record, Record::Bad(_))),
                "{name} at {at}"
            );
        }
    }
}

#[test]
fn every_kind_of_bad_line_is_told() {
    let long = format!("{{\"text\": \"{}\"}}", "x".repeat(101));
    let huge = format!("{{\"text\": \"{}\"}}", "x".repeat(70_000));
    let cases: Vec<(&[u8], &str)> = vec![
        (b"nothing", "expected"),
        (b"{\"text\": \"a\"", "EOF"),
        (b"{\"text\": \"a\"} more", "trailing"),
        (b"{\"txt\": \"a\"}", "no field `text`"),
        (b"{\"text\": null}", "`text`"),
        (b"{\"text\": \"a\", \"text\": \"b\"}", "twice"),
        (b"{\"text\": \"a\", \"x\": 1, \"x\": 1}", "twice"),
        (b"{\"text\": \"a\", \"id\": 1.5}", "`id`"),
        (b"{\"text\": \"a\", \"source\": 1}", "`source`"),
        (b"[\"text\"]", "object"),
        (b"{\"text\": \"\xff\"}", "UTF-8"),
        (b"{\"text\": \"\\ud800\"}", "hex escape"),
        (long.as_bytes(), "more than 100"),
        (huge.as_bytes(), "more than 100"),
    ];
    let options = ReadOptions { max_document_bytes: 100, ..ReadOptions::default() };
    for (line, reason) in cases {
        let bytes = [b"{\"text\":\"before\"}\n", line, b"\n{\"text\":\"after\"}"].concat();
        let (good, bad) = read("x.jsonl", &bytes, &options);
        assert_eq!(texts(&good), ["before", "after"], "{}", String::from_utf8_lossy(line));
        assert_eq!((bad.len(), bad[0].at.offset), (1, 18));
        assert!(bad[0].reason.contains(reason), "{reason}: {}", bad[0].reason);
    }
    let deep = format!("{{\"text\":\"a\",\"x\":{}}}", "[".repeat(100_000));
    assert_eq!(read("x.jsonl", deep.as_bytes(), &ReadOptions::default()).1.len(), 1);
    let mark = b"\xef\xbb\xbf{\"text\":\"after a byte order mark\"}";
    assert_eq!(read("x.jsonl", mark, &ReadOptions::default()).0.len(), 1);
}

#[test]
fn wrong_columns_are_told_once_per_file() {
    let (_, bytes) = formats().pop().unwrap();
    let mut options = ReadOptions::default();
    options.fields.text = "content".into();
    let (good, bad) = read("x.parquet", &bytes, &options);
    assert_eq!((good.len(), bad.len()), (0, 1));
    assert!(
        bad[0].reason.contains("`content`") && bad[0].reason.contains("id, source, text"),
        "{:?}",
        bad[0]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_are_read_to_the_end(
        name in prop_oneof![
            Just("x.jsonl"), Just("x.txt"), Just("x.jsonl.gz"), Just("x.jsonl.zst"), Just("x.parquet"), Just("x.rs.zst"),
        ],
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        read(name, &bytes, &small_chunks());
        read(name, &bytes, &ReadOptions::default());
    }

    #[test]
    fn lines_of_arbitrary_bytes_cost_no_other_line(noise in proptest::collection::vec(any::<u8>(), 0..80)) {
        let bytes = [b"{\"text\":\"before\"}\n", noise.as_slice(), b"\n{\"text\":\"after\"}\n"].concat();
        for options in [ReadOptions::default(), small_chunks()] {
            let (good, _) = read("x.jsonl", &bytes, &options);
            prop_assert_eq!(good.first().map(|d| d.text.as_str()), Some("before"));
            prop_assert_eq!(good.last().map(|d| d.text.as_str()), Some("after"));
        }
    }

    #[test]
    fn damage_anywhere_is_survived(which in 0usize..4, at in any::<proptest::sample::Index>(), with in 1u8..) {
        let (name, mut bytes) = FORMATS.with(|formats| formats[which].clone());
        let at = at.index(bytes.len());
        bytes[at] ^= with;
        let (good, bad) = read(name, &bytes, &ReadOptions::default());
        // Damage inside an archive may unpack to any number of lines, but never to silence.
        prop_assert!(good.len() + bad.len() > 0);
    }
}

thread_local! {
    static FORMATS: Vec<(&'static str, Vec<u8>)> = formats();
}
