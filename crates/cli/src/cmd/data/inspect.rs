//! `zamba data inspect`: a look into token shards, mixtures, and the steps of a run.

mod lengths;
mod mixture;
mod page;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;
use zamba::tokenizer::Tokenizer;
use zamba_data::fs::{Fs, RealFs};
use zamba_data::{Manifest, Shard};

use crate::out;
use lengths::Lengths;

/// Look into token shards, into the mixture of a recipe, or into what a run was shown.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  zamba data inspect --input shards/web shards/code --html shards.html\n  \
    zamba data inspect --input shards/web --tokenizer tokenizer --document 0\n  \
    zamba data inspect --recipe run.toml --html mixture.html\n  \
    zamba data inspect --run run --base recipes --step 120 --row 3"
)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["input", "recipe", "run"]))]
pub(super) struct Args {
    /// Shards, without .idx or .bin; their hashes are checked.
    #[arg(short = 'i', long, value_name = "PREFIX", num_args = 1..)]
    input: Vec<PathBuf>,
    /// A recipe: its mixture, phase by phase.
    #[arg(long, value_name = "RUN.toml")]
    recipe: Option<PathBuf>,
    /// Replace a value of the recipe. Repeatable.
    #[arg(long, value_name = "KEY=VALUE", requires = "recipe")]
    set: Vec<String>,
    /// The folder of a run: the mixture of its newest checkpoint, which must be made of the same data as then.
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// The folder that relative paths of the run's recipe start from [default: the current one].
    #[arg(long, value_name = "DIR", requires = "run")]
    base: Option<PathBuf>,
    /// The tokens of this document of a shard, counted from 0.
    #[arg(long, value_name = "N", requires = "input")]
    document: Option<u64>,
    /// Which documents the run is shown in this step; 1 is the first, as in log.jsonl.
    #[arg(long, value_name = "N", conflicts_with = "input", value_parser = clap::value_parser!(u64).range(1..))]
    step: Option<u64>,
    /// Only this row of the step, counted from 0, with its whole text.
    #[arg(long, value_name = "N", requires = "step")]
    row: Option<usize>,
    /// A folder with tokenizer.json, to show text; by default that of the recipe.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Also write a page with tables and plots.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["document", "step"])]
    html: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.input.is_empty() { mixture::run(args) } else { shards(args) }
}

/// A shard in numbers.
#[derive(Debug, Serialize)]
struct ShardInfo {
    path: PathBuf,
    manifest: Manifest,
    lengths: Lengths,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

fn shards(args: &Args) -> anyhow::Result<()> {
    let tokenizer = args.tokenizer.as_deref().map(Tokenizer::from_dir).transpose()?;
    if args.document.is_some() && args.input.len() > 1 {
        bail!("--document is of one shard; give one --input");
    }
    let mut infos = Vec::new();
    for prefix in &args.input {
        let shard = Shard::open(Arc::new(RealFs), prefix)?;
        let tokens = match args.document {
            Some(n) if n >= shard.documents() => {
                bail!("{} has {} documents; there is no document {n}", prefix.display(), shard.documents())
            }
            Some(n) => Some(shard.doc(n)?),
            None => None,
        };
        let text = match (&tokenizer, &tokens) {
            (Some(tokenizer), Some(tokens)) => Some(tokenizer.decode(tokens, false)?),
            _ => None,
        };
        let lengths = Lengths::of((0..shard.documents()).map(|d| shard.doc_len(d)));
        infos.push(ShardInfo {
            path: prefix.clone(),
            manifest: shard.manifest().clone(),
            lengths,
            tokens,
            text,
        });
    }
    if let Some(path) = &args.html {
        let mut page = page::Page::new("Token shards");
        for info in &infos {
            page.heading(&info.path.display().to_string());
            page.table(&["", ""], &rows(info));
            page.lengths(&info.lengths)?;
        }
        write_page(path, &page)?;
    }
    if args.json {
        return if let [info] = infos.as_slice() { out::json(info) } else { out::json(&infos) };
    }
    for info in &infos {
        out::line(&info.path.display().to_string())?;
        for [name, value] in rows(info) {
            out::line(&format!("  {name:<22}{value}"))?;
        }
        match (&info.tokens, &info.text) {
            (_, Some(text)) => out::line(text)?,
            (Some(tokens), None) => {
                let tokens: Vec<_> = tokens.iter().map(u32::to_string).collect();
                out::line(&tokens.join(" "))?;
            }
            (None, None) => out::text(&info.lengths.text())?,
        }
    }
    Ok(())
}

fn rows(info: &ShardInfo) -> Vec<[String; 2]> {
    let manifest = &info.manifest;
    let per_token = manifest.source_bytes as f64 / manifest.tokens.max(1) as f64;
    let row = |name: &str, value: String| [name.to_owned(), value];
    vec![
        row("documents", out::count(manifest.documents)),
        row("tokens", out::count(manifest.tokens)),
        row("vocabulary", out::count(manifest.vocab_size.into())),
        row("text", format!("{}, {per_token:.2} bytes per token", out::bytes(manifest.source_bytes))),
        row("tokens per document", info.lengths.summary()),
    ]
}

fn write_page(path: &std::path::Path, page: &page::Page) -> anyhow::Result<()> {
    RealFs
        .replace(path, page.html().as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    out::note(&format!("wrote {}", path.display()));
    Ok(())
}
