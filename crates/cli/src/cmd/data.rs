//! `zamba data`: text to tokenizers and token shards.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;
use zamba::tokenizer::Tokenizer;
use zamba_data::bpe::Bpe;
use zamba_data::fs::{Fs, RealFs};
use zamba_data::tokenise::{Marks, tokenise};
use zamba_data::{Error, Manifest, Shard, ShardSpec, input};
use zamba_train::ckpt::sha256_hex;

use crate::common;
use crate::progress::{Progress, Unit};
use crate::{interrupt, out};

/// Prepare text: learn a tokenizer, tokenise, look into shards.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Tokenizer(TokenizerArgs),
    Tokenize(TokenizeArgs),
    Inspect(InspectArgs),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Tokenizer(args) => tokenizer(args),
        Command::Tokenize(args) => tokenize(args),
        Command::Inspect(args) => inspect(args),
    }
}

/// Learn a byte-level BPE tokenizer from text.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  zamba data tokenizer --input texts --vocab-size 4096 --out tokenizer")]
struct TokenizerArgs {
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

fn tokenizer(args: &TokenizerArgs) -> anyhow::Result<()> {
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

/// Write the tokens of documents as a shard that training reads (Megatron's .idx and .bin, and a manifest).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  zamba data tokenize --input texts --tokenizer tokenizer --out shards/texts"
)]
struct TokenizeArgs {
    /// A text file, a .jsonl file with a document {"text":"..."} per line, or a folder of such files.
    #[arg(short = 'i', long, value_name = "FILE|DIR")]
    input: PathBuf,
    /// A folder with tokenizer.json, or that file.
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// The shard, without .idx or .bin.
    #[arg(short = 'o', long, value_name = "PREFIX")]
    out: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

fn tokenize(args: &TokenizeArgs) -> anyhow::Result<()> {
    let file = args.tokenizer.file_name().is_some_and(|name| name == "tokenizer.json");
    let folder = if file { args.tokenizer.with_file_name("") } else { args.tokenizer.clone() };
    let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
    let tokenizer = Tokenizer::from_dir(&folder)?;
    let json = folder.join("tokenizer.json");
    let json = std::fs::read(&json).with_context(|| format!("cannot read {}", json.display()))?;
    let spec = ShardSpec { vocab_size: tokenizer.max_id() + 1, tokenizer_sha256: sha256_hex(&json) };
    let marks = Marks { bos: tokenizer.bos_id(), eos: tokenizer.eos_id() };
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    if let Some(parent) = args.out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs.create_dirs(parent).with_context(|| format!("cannot make the folder {}", parent.display()))?;
    }
    let encode = |text: &str| tokenizer.encode(text, false).map_err(|e| e.to_string());
    let mut progress = Progress::new("tokenising", 0, Unit::Bytes);
    // An error is what stops the library below; the words that the user sees follow from the flag.
    let stop = || Error::Io {
        path: args.out.clone(),
        action: "write",
        source: std::io::ErrorKind::Interrupted.into(),
    };
    let documents = input::documents(&RealFs, &args.input)?;
    let documents = documents.map(|text| if interrupt::requested() { Err(stop()) } else { text });
    let written = tokenise(fs, documents, &encode, marks, spec, &args.out, &mut |done| {
        progress.say(&format!(
            "{} documents, {} tokens",
            out::count(done.documents),
            out::count(done.tokens)
        ));
        progress.set(done.bytes);
    });
    drop(progress);
    interrupt::check("no shard was written")?;
    report(&args.out, &written?, args.json)
}

/// Look into a token shard, after a check of its hashes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  zamba data inspect --input shards/texts --tokenizer tokenizer --document 0"
)]
struct InspectArgs {
    /// The shard, without .idx or .bin.
    #[arg(short = 'i', long, value_name = "PREFIX")]
    input: PathBuf,
    /// Also print the tokens of this document, counted from 0.
    #[arg(long, value_name = "N")]
    document: Option<u64>,
    /// A folder with tokenizer.json, to print that document's text too.
    #[arg(long, value_name = "DIR", requires = "document")]
    tokenizer: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Inspected<'a> {
    path: &'a Path,
    manifest: &'a Manifest,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let shard = Shard::open(Arc::new(RealFs), &args.input)?;
    let tokens = match args.document {
        Some(n) if n >= shard.documents() => {
            bail!("{} has {} documents; there is no document {n}", args.input.display(), shard.documents())
        }
        Some(n) => Some(shard.doc(n)?),
        None => None,
    };
    let tokenizer = args.tokenizer.as_deref().map(Tokenizer::from_dir).transpose()?;
    let text = match (&tokenizer, &tokens) {
        (Some(tokenizer), Some(tokens)) => Some(tokenizer.decode(tokens, false)?),
        _ => None,
    };
    if args.json {
        return out::json(&Inspected { path: &args.input, manifest: shard.manifest(), tokens, text });
    }
    report(&args.input, shard.manifest(), false)?;
    match (tokens, text) {
        (_, Some(text)) => out::line(&text),
        (Some(tokens), None) => {
            let tokens: Vec<_> = tokens.iter().map(u32::to_string).collect();
            out::line(&tokens.join(" "))
        }
        (None, None) => Ok(()),
    }
}

fn report(path: &Path, manifest: &Manifest, json: bool) -> anyhow::Result<()> {
    if json {
        return out::json(&Inspected { path, manifest, tokens: None, text: None });
    }
    let (documents, tokens) = (out::count(manifest.documents), out::count(manifest.tokens));
    let (bytes, vocab) = (out::bytes(manifest.source_bytes), out::count(manifest.vocab_size.into()));
    let path = path.display();
    out::line(&format!("{path}: {documents} documents, {tokens} tokens of {vocab}, {bytes} of text"))
}
