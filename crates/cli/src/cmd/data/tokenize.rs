//! `zamba data tokenize`: text to token shards.

use std::path::PathBuf;

use anyhow::Context;
use zamba::tokenizer::Tokenizer;
use zamba_data::ShardSpec;
use zamba_data::bpe::Fast;
use zamba_data::tokenise::{Marks, Tokenise};
use zamba_train::ckpt::sha256_hex;

use super::report;
use super::steps::{self, JobArgs, ReadArgs};
use crate::out;

/// Write the tokens of documents as a shard that training reads (Megatron's .idx and .bin, and a manifest).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  zamba data tokenize --input texts --tokenizer tokenizer --out shards/texts\n  zamba data tokenize --input filtered --tokenizer tokenizer --shard 0/8 --out shards/web\n\nParts lie in PREFIX.parts until all are there; then whoever wrote the last puts them together."
)]
pub(super) struct Args {
    #[command(flatten)]
    read: ReadArgs,
    /// A folder with tokenizer.json, or that file.
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// The shard, without .idx or .bin.
    #[arg(short = 'o', long, value_name = "PREFIX")]
    out: PathBuf,
    #[command(flatten)]
    job: JobArgs,
}

/// Size of a chunk: a thread tokenises it in about a second.
const CHUNK: u64 = 8 << 20;

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let file = args.tokenizer.file_name().is_some_and(|name| name == "tokenizer.json");
    let folder = if file { args.tokenizer.with_file_name("") } else { args.tokenizer.clone() };
    let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
    let tokenizer = Tokenizer::from_dir(&folder)?;
    let json = folder.join("tokenizer.json");
    let json = std::fs::read_to_string(&json).with_context(|| format!("cannot read {}", json.display()))?;
    // A folder that adds special tokens beside tokenizer.json, or takes them away, is the library's.
    let fast = Fast::new(&json)?.filter(|fast| fast.vocab_size() == tokenizer.vocab_size());
    let encode = |text: &str| match fast.as_ref().map(|fast| fast.encode(text)) {
        Some(Ok(Some(ids))) => Ok(ids),
        _ => tokenizer.encode(text, false).map_err(|error| error.to_string()),
    };
    let fs = steps::fs();
    let plan = args.read.plan(fs.as_ref(), CHUNK)?;
    let step = Tokenise {
        encode: &encode,
        marks: Marks { bos: tokenizer.bos_id(), eos: tokenizer.eos_id() },
        spec: ShardSpec { vocab_size: tokenizer.max_id() + 1, tokenizer_sha256: sha256_hex(json.as_bytes()) },
        prefix: args.out.clone(),
    };
    let mut job = step.job();
    // The library needs some fifty bytes per byte of text.
    let per_byte = if fast.is_some() { 8 } else { 50 };
    job.chunk_memory = args.read.max_document().saturating_mul(per_byte).saturating_add(64 << 20);
    args.job.apply(&mut job);
    let done = steps::watched(&args.job, &job, &plan, |watch| step.run(&fs, &plan, &job, watch))?;
    match &done.shard {
        Some(manifest) => {
            let bad = manifest.made_from.as_ref().map_or(0, |from| from.bad);
            if bad > 0 {
                let folder = job.out.display();
                out::note(&format!("{} bad records were left out, see {folder}/quarantine", out::count(bad)));
            }
            report(&args.out, manifest, args.job.json)
        }
        None => steps::report(&job, &done.outcome, args.job.json),
    }
}
