//! A corpus of any size out of the sources of the crates that cargo has fetched: to try the steps of `zamba data` on.
//!
//! ```text
//! corpus CARGO_HOME OUT SIZE_GB
//! ```
//!
//! The first round writes every text as it is. Each later round writes of every text, by the draw of a seeded generator: an
//! equal copy (1 in 10), a copy with one word in 400 replaced (4 in 10), or one with the words of every line in another
//! order (5 in 10), which has hardly a 13-gram in common with the first and is no duplicate. Files of JSON lines,
//! compressed with zstd, of 128 MiB of text each.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::json;
use zamba_data::dedup::shingles::fmix64;
use zamba_data::fs::RealFs;
use zamba_data::gather::{Document, GatherOptions, Kind, cargo_packages, gather};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Text of a file.
const FILE_BYTES: usize = 128 << 20;
/// Most text of the first round, which is held in memory.
const FIRST_ROUND: u64 = 1 << 30;

fn main() -> Result {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [home, out, gb] = args.as_slice() else { return Err("usage: corpus CARGO_HOME OUT SIZE_GB".into()) };
    let bytes = (gb.parse::<f64>()? * 1e9) as usize;
    std::fs::create_dir_all(out)?;
    let packages = cargo_packages(&RealFs, Path::new(home))?;
    let options = GatherOptions { max_bytes: FIRST_ROUND.min(bytes as u64), package_share: 0.05, seed: 1 };
    let documents = gather(&RealFs, &packages, &options)?.documents;
    let documents: Vec<Document> = documents.into_iter().filter(|d| d.kind != Kind::DocProse).collect();
    let mut files = Vec::new();
    let (mut written, mut file, mut filled) = (0, Vec::new(), 0);
    'all: for round in 0.. {
        for (number, document) in documents.iter().enumerate() {
            if written >= bytes {
                break 'all;
            }
            file.push((round, number));
            filled += document.text.len();
            written += document.text.len();
            if filled >= FILE_BYTES {
                files.push(std::mem::take(&mut file));
                filled = 0;
            }
        }
    }
    files.push(file);
    let write = |(index, parts): (usize, &Vec<(u64, usize)>)| -> std::io::Result<()> {
        let path: PathBuf = [out, &format!("code-{index:04}.jsonl.zst")].iter().collect();
        let mut file = zstd::Encoder::new(BufWriter::new(File::create(path)?), 3)?;
        for &(round, number) in parts {
            let document = &documents[number];
            let text = edited(&document.text, round, number as u64);
            let line = json!({ "id": format!("{}@{round}", document.id), "text": text });
            writeln!(file, "{line}")?;
        }
        file.finish()?.flush()
    };
    files.par_iter().enumerate().try_for_each(write)?;
    println!(
        "{} texts, {:.2} GB of text in {} files",
        files.iter().map(Vec::len).sum::<usize>(),
        written as f64 / 1e9,
        files.len()
    );
    Ok(())
}

fn edited(text: &str, round: u64, number: u64) -> String {
    let mut seed = fmix64(round << 40 | number);
    let mut next = |n: u64| {
        seed = fmix64(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
        seed % n
    };
    match if round == 0 { 0 } else { next(10) } {
        0 => text.to_owned(),
        1..5 => {
            let word = |word: &str| match next(400) {
                0 => format!("edit{} ", next(1 << 32)),
                _ => word.to_owned(),
            };
            text.split_inclusive(char::is_whitespace).map(word).collect()
        }
        _ => {
            let mut out = String::with_capacity(text.len());
            for line in text.lines() {
                let mut words: Vec<&str> = line.split(' ').collect();
                for i in (1..words.len()).rev() {
                    words.swap(i, next(i as u64 + 1) as usize);
                }
                out.push_str(&words.join(" "));
                out.push('\n');
            }
            out
        }
    }
}
