use std::path::Path;

use super::*;
use crate::fs::{FaultFs, Fs};
use crate::read::{Record, Records};

fn texts(fs: &dyn Fs, plan: &Plan) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    for chunk in &plan.chunks {
        for record in Records::new(fs, plan, chunk) {
            match record.unwrap() {
                Record::Document(document) => all.push((document.at.offset, document.text)),
                Record::Bad(bad) => all.push((bad.at.offset, bad.reason)),
            }
        }
    }
    all
}

#[test]
fn a_file_cut_anywhere_gives_the_same_lines_in_the_same_places() {
    let fs = FaultFs::new();
    // Lines of one byte, empty lines, no line feed at the end.
    let lines = [
        "{\"text\":\"a\"}",
        "",
        "x",
        "{\"text\":\"a longer text of some words\"}",
        "",
        "",
        "{\"text\":\"z\"}",
    ];
    let mut starts = Vec::new();
    let mut at = 0;
    for line in &lines {
        if !line.is_empty() {
            starts.push(at);
        }
        at += line.len() as u64 + 1;
    }
    for end in ["", "\n", "\n\n"] {
        fs.write(Path::new("/x.jsonl"), (lines.join("\n") + end).as_bytes()).unwrap();
        let plan = |chunk_bytes| {
            let options = ReadOptions { chunk_bytes, ..ReadOptions::default() };
            Plan::new(&fs, &[Input::new("/x.jsonl")], &options).unwrap()
        };
        let whole = texts(&fs, &plan(1 << 20));
        assert_eq!(whole.iter().map(|(at, _)| *at).collect::<Vec<_>>(), starts);
        for chunk_bytes in 1..80 {
            let plan = plan(chunk_bytes);
            assert!(plan.chunks.iter().all(|chunk| chunk.bytes <= chunk_bytes));
            assert_eq!(texts(&fs, &plan), whole, "chunks of {chunk_bytes}");
        }
    }
}

#[test]
fn small_files_share_a_chunk_and_names_do_not_hang_on_the_place() {
    let plan = |root: &str| {
        let fs = FaultFs::new();
        let folder = Path::new(root).join("texts");
        fs.create_dirs(&folder.join("b")).unwrap();
        for (name, bytes) in [("b/y.txt", 3), ("a.md", 4), ("c.rs", 5), (".hidden", 5), ("d.md", 90)] {
            fs.write(&folder.join(name), &vec![b'x'; bytes]).unwrap();
        }
        let options = ReadOptions {
            chunk_bytes: 8,
            extensions: vec!["md".into(), "txt".into()],
            ..ReadOptions::default()
        };
        Plan::new(&fs, &[Input::new(folder)], &options).unwrap()
    };
    let one = plan("/here");
    let names: Vec<&str> = one.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["texts/a.md", "texts/b/y.txt", "texts/d.md"]);
    let chunks: Vec<usize> = one.chunks.iter().map(|chunk| chunk.segments.len()).collect();
    assert_eq!(chunks, [2, 1]);
    let other = plan("/there/and/elsewhere");
    assert_eq!((one.chunks, serde_json::json!(one.files)), (other.chunks, serde_json::json!(other.files)));
}

#[test]
fn nothing_to_read_is_an_error() {
    let fs = FaultFs::new();
    fs.create_dirs(Path::new("/empty")).unwrap();
    let plan = |path: &str| Plan::new(&fs, &[Input::new(path)], &ReadOptions::default());
    assert!(plan("/empty").unwrap_err().to_string().contains("no file to read"));
    assert!(plan("/none").is_err());
}
