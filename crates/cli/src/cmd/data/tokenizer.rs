//! `zamba data tokenizer`: a byte-level BPE from text.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use serde::Serialize;
use zamba_data::bpe::Bpe;
use zamba_data::fs::{Fs, RealFs};
use zamba_data::job::MaxBad;
use zamba_data::read::draw;

use super::steps::{self, ReadArgs};
use crate::{common, interrupt, out};

/// Learn a byte-level BPE tokenizer from text.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  zamba data tokenizer --input texts --vocab-size 4096 --out tokenizer")]
pub(super) struct Args {
    #[command(flatten)]
    read: ReadArgs,
    /// Tokens to learn, special ones included.
    #[arg(long, value_name = "N", default_value_t = 32_000)]
    vocab_size: u32,
    /// Most text to learn from; of more, documents are drawn.
    #[arg(long, value_name = "SIZE", default_value = "20MB", value_parser = common::parse_size)]
    sample: u64,
    /// Longest text that models with this tokenizer are meant for, in tokens.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    model_max_length: usize,
    /// The folder for tokenizer.json and its neighbours.
    #[arg(short = 'o', long, value_name = "DIR")]
    out: PathBuf,
    /// How much bad input to put up with: a number of records, or a share such as 1%.
    #[arg(long, value_name = "N|P%", value_parser = MaxBad::from_str, default_value = "1%")]
    max_bad: MaxBad,
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
    let fs = steps::fs();
    let plan = args.read.plan(fs.as_ref(), 8 << 20)?;
    let bar = steps::Bar::new("reading", plan.bytes());
    let drawn = draw(fs.as_ref(), &plan, args.sample, args.max_bad, &bar);
    drop(bar);
    interrupt::check("nothing was written")?;
    let drawn = drawn?;
    if drawn.bytes == 0 {
        bail!("{} holds no text to learn from", args.read.names());
    }
    if drawn.bad > 0 {
        out::note(&format!("{} bad records were left out", out::count(drawn.bad)));
    }
    let (texts, bytes) = (drawn.texts, drawn.bytes);
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
        documents: drawn.documents,
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
