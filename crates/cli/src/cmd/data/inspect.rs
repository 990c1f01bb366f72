//! `zamba data inspect`: a look into token shards.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use zamba::tokenizer::Tokenizer;
use zamba_data::Shard;
use zamba_data::fs::RealFs;

use super::{Inspected, report};
use crate::out;

/// Look into a token shard, after a check of its hashes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  zamba data inspect --input shards/texts --tokenizer tokenizer --document 0"
)]
pub(super) struct Args {
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

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
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
