//! `zamba data tokenizer`: a byte-level BPE from text.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use zamba_data::bpe::Bpe;
use zamba_data::fs::{Fs, RealFs};
use zamba_data::input;

use crate::{common, interrupt, out};

/// Learn a byte-level BPE tokenizer from text.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  zamba data tokenizer --input texts --vocab-size 4096 --out tokenizer")]
pub(super) struct Args {
    /// A text file, a .jsonl file with a document {"text":"..."} per line, or a folder of such files.
    #[arg(short = 'i', long, value_name = "FILE|DIR")]
    input: PathBuf,
    /// Tokens to learn, special ones included.
    #[arg(long, value_name = "N", default_value_t = 32_000)]
    vocab_size: u32,
    /// Most text to learn from; of more, an even sample of documents is taken.
    #[arg(long, value_name = "SIZE", default_value = "20MB", value_parser = common::parse_size)]
    sample: u64,
    /// Longest text that models with this tokenizer are meant for, in tokens.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    model_max_length: usize,
    /// The folder for tokenizer.json and its neighbours.
    #[arg(short = 'o', long, value_name = "DIR")]
    out: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Learned<'a> {
    path: &'a Path,
    vocab_size: u32,
    sha256: String,
    documents: u64,
    documents_sampled: usize,
    bytes: u64,
    bytes_sampled: u64,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let (mut documents, mut bytes) = (0, 0);
    for text in input::documents(&RealFs, &args.input)? {
        bytes += text?.len() as u64;
        documents += 1;
    }
    if bytes == 0 {
        bail!("{} holds no text to learn from", args.input.display());
    }
    let texts = sample(&args.input, (args.sample as f64 / bytes as f64).min(1.0))?;
    interrupt::check("nothing was written")?;
    let bpe = Bpe::train(texts.iter().map(String::as_str), args.vocab_size)?;
    interrupt::check("nothing was written")?;
    RealFs
        .create_dirs(&args.out)
        .with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    bpe.save(&RealFs, &args.out, args.model_max_length)?;
    let learned = Learned {
        path: &args.out,
        vocab_size: bpe.vocab_size(),
        sha256: bpe.sha256(),
        documents,
        documents_sampled: texts.len(),
        bytes,
        bytes_sampled: texts.iter().map(|text| text.len() as u64).sum(),
    };
    if args.json {
        return out::json(&learned);
    }
    let (tokens, used) = (out::count(learned.vocab_size.into()), out::bytes(learned.bytes_sampled));
    out::line(&format!("{}: {tokens} tokens, from {used} of {}", args.out.display(), out::bytes(bytes)))
}

/// About `share` of the documents, evenly spread.
fn sample(path: &Path, share: f64) -> anyhow::Result<Vec<String>> {
    let mut due = 0.0;
    let mut texts = vec![];
    for text in input::documents(&RealFs, path)? {
        due += share;
        // The first document is always there, and rounding must not lose the last of all.
        if due + 1e-9 >= 1.0 || texts.is_empty() {
            due -= 1.0;
            texts.push(text?);
        }
    }
    Ok(texts)
}
