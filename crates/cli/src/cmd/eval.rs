//! `zamba eval`: how well a model predicts text, and how it does in benchmarks.

mod checkpoints;
mod dynamics;
mod store;
pub(crate) mod tasks;
mod text;

use std::path::PathBuf;

use crate::common::{DeviceArgs, LoadArgs, ModelArgs};
use crate::error::Stop;

pub(crate) use text::documents;

/// Score a model in benchmarks as lm-evaluation-harness does, or measure in bits per byte how well it predicts text.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Benchmarks: names of tasks, groups or tags, also with * and ?; `--tasks list` shows them. \
    Their data are Parquet files or JSON lines as published, below --data, or are downloaded.\n\
    Text: a .jsonl file has a document {\"text\":\"...\"} per line, a token shard its own documents; \
    any other file is one document, and a folder holds several files.\n\nExamples:\n  \
    zamba eval -m zamba-7b --tasks piqa,arc_*,hellaswag --data benchmarks --out scores\n  \
    zamba eval -m zamba-7b --tasks mmlu --num-fewshot 5 --limit 100 --json\n  \
    zamba eval -m zamba-7b --bpb held-out.jsonl --json\n  \
    zamba eval -m zamba-7b-q4 --bpb held-out.jsonl --against zamba-7b\n  \
    zamba eval --checkpoints run --tasks piqa,arc_easy --data benchmarks --bpb held-out.jsonl"
)]
pub(crate) struct Args {
    #[command(flatten)]
    tasks: tasks::TaskArgs,
    #[command(flatten)]
    text: text::TextArgs,
    /// Measure every checkpoint of a run of `zamba train` instead of one model, with --tasks, --bpb or both, and draw
    /// how the figures went; pages go into --out [default: RUN_DIR/dynamics].
    #[arg(long, value_name = "RUN_DIR")]
    checkpoints: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// A folder as Hugging Face transformers writes it, or the id of a model on the hub.
    #[arg(short = 'm', long, value_name = "DIR|OWNER/NAME", env = "ZAMBA_MODEL", help_heading = "Model")]
    model: Option<PathBuf>,
    /// Never use the network: what has an id of the hub must be in the local cache.
    #[arg(long, help_heading = "Model")]
    offline: bool,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    /// The folder of the model.
    fn folder(&self) -> anyhow::Result<PathBuf> {
        self.named_model()?.folder()
    }

    fn named_model(&self) -> anyhow::Result<ModelArgs> {
        let missing = || Stop::Usage("a model is needed: -m DIR or -m OWNER/NAME".to_owned());
        let model = self.model.clone().ok_or_else(missing)?;
        Ok(ModelArgs::new(model, self.offline))
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(run) = &args.checkpoints {
        return checkpoints::run(args, run);
    }
    match (args.tasks.wanted(), &args.text.bpb) {
        (true, None) => tasks::run(args),
        (false, Some(path)) => text::run(args, path),
        (true, Some(_)) => {
            Err(Stop::Usage("--tasks and --bpb are two measurements; choose one of them".to_owned()).into())
        }
        (false, None) => {
            Err(Stop::Usage("nothing to measure: give --tasks NAMES or --bpb TEXT".to_owned()).into())
        }
    }
}
