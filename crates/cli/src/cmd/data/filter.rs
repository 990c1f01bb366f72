//! `zamba data filter`: the documents that are worth learning from.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use zamba_data::filter::{Filter, Preset, Settings, WordList};
use zamba_data::fs::Fs;
use zamba_data::job::Job;

use super::steps::{self, JobArgs, OutArgs, ReadArgs};
use crate::error::Stop;

/// Keep documents that pass rules such as Zyda's; count the others by the rule that they break.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  zamba data filter --input web=dump.jsonl.zst --out filtered\n  zamba data filter --input s3://bucket/code --config filter.toml --rejected --shard 3/8 --out s3://bucket/filtered\n\nA --config file sets a preset and any thresholds; docs/DATA.md lists the rules:\n\n    preset = \"zyda\"\n    skip_sources = [\"starcoder\"]\n    [rules]\n    max_digit_share = 0.25\n    min_mean_word_chars = false    # off\n    [[words]]\n    name = \"profanity\"\n    file = \"profanity.json\""
)]
pub(super) struct Args {
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    to: OutArgs,
    /// Where thresholds come from that --config does not set [default: that of --config, or else zyda].
    #[arg(long, value_name = "NAME")]
    preset: Option<PresetName>,
    /// Settings in TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A word list: JSON or a word per line. The names sexual, profanity, cursed and zh_pornsignals have Zyda's limits.
    #[arg(long, value_name = "NAME=FILE")]
    words: Vec<String>,
    /// Keep what is rejected too, in DIR/rejected, with the rule.
    #[arg(long)]
    rejected: bool,
    #[command(flatten)]
    job: JobArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PresetName {
    Zyda,
    Gopher,
    Fineweb,
    Code,
    None,
}

impl From<PresetName> for Preset {
    fn from(name: PresetName) -> Preset {
        match name {
            PresetName::Zyda => Preset::Zyda,
            PresetName::Gopher => Preset::Gopher,
            PresetName::Fineweb => Preset::Fineweb,
            PresetName::Code => Preset::Code,
            PresetName::None => Preset::None,
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let fs = steps::fs();
    let filter = Filter::new(fs.as_ref(), &settings(args, fs.as_ref())?)?;
    let plan = args.read.plan(fs.as_ref(), 32 << 20)?;
    let config = serde_json::json!({ "filter": filter.config(), "rejected": args.rejected });
    let mut job = Job::new("filter", config, &args.to.out);
    job.format = args.to.format;
    // The line, the text, the text as it is kept, and buffers of readers and writers.
    job.chunk_memory = args.read.max_document().saturating_mul(4).saturating_add(64 << 20);
    args.job.apply(&mut job);
    let outcome = steps::run(&args.job, &fs, &job, &plan, &|chunk| filter.run(chunk, args.rejected))?;
    steps::report(&job, &outcome, args.job.json)
}

fn settings(args: &Args, fs: &dyn Fs) -> anyhow::Result<Settings> {
    let mut settings = match &args.config {
        Some(path) => {
            let bytes = fs.read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let text =
                String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
            let folder = path.parent().unwrap_or(Path::new(""));
            Settings::from_toml(&text, folder).map_err(|what| anyhow!("{}: {what}", path.display()))?
        }
        None => Settings::default(),
    };
    if let Some(preset) = args.preset {
        settings.preset = preset.into();
    }
    for words in &args.words {
        let Some((name, file)) = words.split_once('=') else {
            return Err(
                Stop::Usage(format!("--words {words}: is not NAME=FILE, such as sexual=list.json")).into()
            );
        };
        settings.words.push(WordList {
            name: name.to_owned(),
            file: file.into(),
            max_count: None,
            max_share: None,
        });
    }
    Ok(settings)
}
