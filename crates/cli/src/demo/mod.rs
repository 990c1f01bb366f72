//! `zamba demo`: the whole life of a small model on this machine, from files on disk to text of its own.
//!
//! [`run`] is the story; each file beside this one is a chapter. Every number that is printed or reported comes
//! from the run that printed it.

mod chart;
mod clean;
mod corpus;
mod folder;
mod pace;
mod plan;
mod report;
mod results;
mod summary;
mod training;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use zamba_data::fs::{Fs, RealFs};

use crate::common::DeviceArgs;
use crate::{interrupt, out};
use folder::Folder;
use summary::{Seconds, Summary};

/// Gather text, train a tokenizer and a model in two phases, evaluate it and let it talk.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The text is the sources and docs of the crates that cargo has fetched; nothing is downloaded. How \
    many steps fit into --minutes is measured first, so it differs between machines; with --steps the results are the same \
    every time.\n\nExamples:\n  zamba demo\n  zamba demo --minutes 15 --out demo-15\n  zamba demo --text notes --steps 400"
)]
pub(crate) struct Args {
    /// The folder to fill. A demo that is in it is replaced; anything else is refused.
    #[arg(short = 'o', long, value_name = "DIR", default_value = "demo-out")]
    out: PathBuf,
    /// A folder of text to use instead of cargo's sources; its subfolders count as packages.
    #[arg(long, value_name = "DIR")]
    text: Option<PathBuf>,
    /// How long it may take in all.
    #[arg(long, value_name = "N", default_value_t = 3.0, value_parser = minutes)]
    minutes: f64,
    /// Training steps of both phases together, instead of as many as fit.
    #[arg(long, value_name = "N", conflicts_with = "minutes", value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    steps: Option<u64>,
    /// Decides what is held out, the initial weights, the order of the data, and the samples.
    #[arg(short = 's', long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print the summary as one JSON document.
    #[arg(long)]
    json: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(n) if (0.5..=10_000.0).contains(&n) => Ok(n),
        _ => Err("expected a number of minutes from 0.5 to 10000".to_owned()),
    }
}

/// Text for a minute of training on two fast cores, so that hardly any is read twice.
const BYTES_PER_MINUTE: f64 = 4e6;
/// Bytes that a token stands for, or somewhat more.
const BYTES_PER_TOKEN: u64 = 4;

impl Args {
    /// How much text the run can use.
    fn bytes_of_text(&self) -> u64 {
        match self.steps {
            Some(steps) => steps * (plan::SEQUENCE * plan::BATCH) as u64 * BYTES_PER_TOKEN,
            None => (self.minutes * BYTES_PER_MINUTE) as u64,
        }
    }
}

/// What to say when nothing was left that could be continued.
const NOTHING_TO_CONTINUE: &str = "there is no model yet; run the same command again";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut seconds = Seconds::new();
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let folder = Folder::check(fs.clone(), &args.out)?;
    let device = args.device.open()?;

    out::note("1. gathering text");
    let found = corpus::gather(&*fs, args.text.as_deref(), args.bytes_of_text(), args.seed)?;
    interrupt::check(NOTHING_TO_CONTINUE)?;
    folder.prepare()?;
    let texts = corpus::clean(&folder, found, args.seed);
    interrupt::check(NOTHING_TO_CONTINUE)?;
    let texts = texts?;
    seconds.end("gather");

    out::note("2. training a tokenizer and tokenising");
    let corpus = corpus::tokenise(&folder, texts)?;
    interrupt::check(NOTHING_TO_CONTINUE)?;
    seconds.end("tokenise");

    let config = plan::model(corpus.tokenizer.vocabulary)?;
    out::note(&format!("3. planning: {} parameters", out::count(config.parameters())));
    let steps = match args.steps {
        Some(steps) => steps,
        None => pace::steps(&config, &device, &corpus, args.minutes * 60.0, began)?,
    };
    let recipe = plan::write(&folder, corpus.tokenizer.vocabulary, args.seed, steps)?;
    interrupt::check(NOTHING_TO_CONTINUE)?;
    seconds.end("plan");

    out::note(&format!("4. training {} steps in two phases", out::count(steps)));
    let trained = training::train(&folder, &recipe, device.clone())?;
    seconds.end("train");

    out::note("5. exporting, evaluating, generating");
    let results = results::of_phases(&folder, &trained, &corpus, &args.device, args.seed)?;
    seconds.end("evaluate");

    let mut summary = Summary {
        out: args.out.clone(),
        report: folder.report(),
        seed: args.seed,
        device: device.name(),
        isa: args.device.isa_name()?,
        threads: device.threads(),
        corpus: corpus.summary(),
        model: plan::describe(&config),
        run: trained.summary(steps),
        bits_per_byte: results.bits_per_byte,
        samples: results.samples,
        seconds,
    };
    summary.seconds.total = began.elapsed().as_secs_f64();
    folder.replace(&folder.report(), report::html(&summary, &trained.records)?.as_bytes())?;
    let finished = serde_json::to_vec_pretty(&summary).context("cannot write the summary as JSON")?;
    folder.finish(&finished)?;
    if args.json { out::json(&summary) } else { summary.print() }
}
