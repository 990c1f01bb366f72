//! `zamba data`: text to tokenizers and token shards. One file per step.

mod dedup;
mod filter;
mod inspect;
mod steps;
mod tokenize;
mod tokenizer;

use std::path::Path;

use serde::Serialize;
use zamba_data::Manifest;

use crate::out;

/// Prepare text: filter, deduplicate, learn a tokenizer, tokenise, look into shards and runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Filter(filter::Args),
    Dedup(dedup::Args),
    Tokenizer(tokenizer::Args),
    Tokenize(tokenize::Args),
    Inspect(inspect::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Filter(args) => filter::run(args),
        Command::Dedup(args) => dedup::run(args),
        Command::Tokenizer(args) => tokenizer::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Inspect(args) => inspect::run(args),
    }
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

fn report(path: &Path, manifest: &Manifest, json: bool) -> anyhow::Result<()> {
    if json {
        return out::json(&Inspected { path, manifest, tokens: None, text: None });
    }
    let (documents, tokens) = (out::count(manifest.documents), out::count(manifest.tokens));
    let (bytes, vocab) = (out::bytes(manifest.source_bytes), out::count(manifest.vocab_size.into()));
    let path = path.display();
    out::line(&format!("{path}: {documents} documents, {tokens} tokens of {vocab}, {bytes} of text"))
}
