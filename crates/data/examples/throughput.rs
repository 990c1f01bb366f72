//! Speed of filtering and tokenising on the text files of a folder, beside the `tokenizers` library in the same run.
//!
//! `cargo run --release -p zamba-data --example throughput -- FOLDER [MB]`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;
use zamba_data::bpe::{Bpe, Fast};
use zamba_data::filter::{Filter, Settings, Verdict};
use zamba_data::fs::{Fs, RealFs};
use zamba_data::job::{Job, MaxBad, Quiet};
use zamba_data::plan::{Input, Plan, ReadOptions};
use zamba_data::read::draw;
use zamba_data::write::Format;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const REPEATS: usize = 5;

/// Medians over alternating repetitions, in MB/s.
fn compare(bytes: usize, ways: &mut [(&str, &mut dyn FnMut() -> Outcome)]) -> Outcome<Vec<f64>> {
    let mut speeds = vec![Vec::new(); ways.len()];
    for _ in 0..REPEATS {
        for (speeds, (_, way)) in speeds.iter_mut().zip(ways.iter_mut()) {
            let started = Instant::now();
            way()?;
            speeds.push(bytes as f64 / started.elapsed().as_secs_f64() / 1e6);
        }
    }
    let mut medians = Vec::new();
    for (speeds, (name, _)) in speeds.iter_mut().zip(ways.iter()) {
        speeds.sort_by(f64::total_cmp);
        let median = speeds[REPEATS / 2];
        println!("{name:40} {median:8.1} MB/s   ({:.1} to {:.1})", speeds[0], speeds[REPEATS - 1]);
        medians.push(median);
    }
    Ok(medians)
}

fn main() -> Outcome {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("name a folder of text files")?);
    let megabytes: u64 = args.next().map_or(Ok(100), |text| text.parse())?;
    let options = ReadOptions {
        extensions: ["rs", "md", "txt", "toml", "c", "h"].map(str::to_owned).to_vec(),
        ..ReadOptions::default()
    };
    let plan = Plan::new(&RealFs, &[Input::new(folder)], &options)?;
    let drawn = draw(&RealFs, &plan, megabytes * 1_000_000, MaxBad::Share(1.0), &Quiet)?;
    let texts = drawn.texts;
    let bytes: usize = texts.iter().map(String::len).sum();
    let threads = rayon::current_num_threads();
    println!(
        "{} texts, {:.1} MB of {:.1}, {threads} threads",
        texts.len(),
        bytes as f64 / 1e6,
        drawn.bytes as f64 / 1e6
    );
    filtering(&texts, bytes)?;
    tokenising(&texts, bytes)
}

fn filtering(texts: &[String], bytes: usize) -> Outcome {
    let dir = tempfile::tempdir()?;
    let list = dir.path().join("list.txt");
    let words: Vec<String> = (0..500).map(|i| format!("unlikelyword{i}")).collect();
    std::fs::write(&list, words.join("\n"))?;
    let settings = |toml: &str| Settings::from_toml(toml, dir.path());
    let lists = "[[words]]\nname = \"sexual\"\nfile = \"list.txt\"\n[[words]]\nname = \"profanity\"\nfile = \"list.txt\"\n";
    // Every rule is reached: none rejects.
    let off = "[rules]\nmin_chars = 0\nmin_mean_word_chars = 0\nmax_mean_word_chars = 1e9\nmax_symbol_share = 1\n\
               max_digit_share = 1\nmax_repeated_runs = 1e9\n";
    let filters = [
        ("zyda", ""),
        ("zyda, every rule on every text", off),
        ("zyda, every rule, 2 lists of 500 words", &format!("{off}{lists}")),
        ("gopher", "preset = \"gopher\""),
        ("fineweb", "preset = \"fineweb\""),
    ];
    println!("\nrules alone, one thread");
    for (name, toml) in filters {
        let filter = Filter::new(&RealFs, &settings(toml)?)?;
        let mut kept = 0;
        let mut judge = || {
            kept = texts.iter().filter(|text| matches!(filter.judge(text, ""), Verdict::Keep(_))).count();
            Ok(())
        };
        compare(bytes, &mut [(name, &mut judge)])?;
        println!("{:40} keeps {kept} of {}", "", texts.len());
    }
    println!("\nthe whole step, JSON lines to JSON lines on this disk, one thread");
    let input = dir.path().join("in.jsonl");
    let lines: String =
        texts.iter().map(|text| serde_json::json!({ "text": text }).to_string() + "\n").collect();
    std::fs::write(&input, lines)?;
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let plan = Plan::new(&RealFs, &[Input::new(input)], &ReadOptions::default())?;
    let filter = Filter::new(&RealFs, &Settings::default())?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    for format in [Format::Jsonl, Format::JsonlZst, Format::Parquet] {
        let out = dir.path().join("out");
        let mut step = || {
            RealFs.remove_tree(&out)?;
            let job = Job { format, ..Job::new("filter", filter.config().clone(), &out) };
            pool.install(|| job.run(&fs, &plan, &Quiet, &|chunk| filter.run(chunk, true)))?;
            Ok(())
        };
        compare(bytes, &mut [(&format!("zyda, rejected kept too, {format}"), &mut step)])?;
    }
    Ok(())
}

fn tokenising(texts: &[String], bytes: usize) -> Outcome {
    let mut sample = 0;
    let learn = texts.iter().map(String::as_str).take_while(|text| {
        sample += text.len();
        sample < 20_000_000
    });
    let bpe = Bpe::train(learn, 32_000)?;
    let dir = tempfile::tempdir()?;
    bpe.save(&RealFs, dir.path(), 4096)?;
    let json = std::fs::read_to_string(Path::new(dir.path()).join("tokenizer.json"))?;
    let library: tokenizers::Tokenizer =
        json.parse().map_err(|error: tokenizers::Error| error.to_string())?;
    let fast = Fast::new(&json)?.ok_or("not of the fast kind")?;
    println!("\ntokenising, {} tokens, all threads", bpe.vocab_size());
    let (mut theirs, mut ours) = (0, 0);
    let mut batch = || {
        theirs = 0;
        // In batches, as a program with bounded memory would.
        for texts in texts.chunks(1000) {
            let encoded = library.encode_batch_fast(texts.iter().map(String::as_str).collect(), false);
            theirs +=
                encoded.map_err(|error| error.to_string())?.iter().map(|e| e.get_ids().len()).sum::<usize>();
        }
        Ok(())
    };
    let mut mine = || {
        let counts: Result<Vec<usize>, zamba_data::Error> = texts
            .par_iter()
            .map(|text| match fast.encode(text)? {
                Some(ids) => Ok(ids.len()),
                None => Ok(library.encode_fast(text.as_str(), false).map_or(0, |e| e.get_ids().len())),
            })
            .collect();
        ours = counts?.iter().sum();
        Ok(())
    };
    let speeds = compare(bytes, &mut [("tokenizers, encode_batch_fast", &mut batch), ("here", &mut mine)])?;
    println!("ratio {:.2}; {ours} tokens here, {theirs} there", speeds[1] / speeds[0]);
    Ok(())
}
