//! `zamba data tokenize`: text to token shards.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use zamba::tokenizer::Tokenizer;
use zamba_data::fs::{Fs, RealFs};
use zamba_data::tokenise::{Marks, tokenise};
use zamba_data::{Error, ShardSpec, input};
use zamba_train::ckpt::sha256_hex;

use super::report;
use crate::progress::{Progress, Unit};
use crate::{interrupt, out};

/// Write the tokens of documents as a shard that training reads (Megatron's .idx and .bin, and a manifest).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  zamba data tokenize --input texts --tokenizer tokenizer --out shards/texts"
)]
pub(super) struct Args {
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

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
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
