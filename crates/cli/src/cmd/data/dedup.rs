//! `zamba data dedup`: one of each.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;
use zamba_data::dedup::{Dedup, Report, Settings, Unit};
use zamba_data::job::{Job, Outcome, Shard};
use zamba_data::plan::Plan;

use super::steps::{self, JobArgs, OutArgs, ReadArgs};
use crate::error::Stop;
use crate::progress::{Progress, Unit as Counted};
use crate::{interrupt, out};

/// Remove documents that are equal to another or nearly so.
///
/// Near duplicates are found by MinHash: two documents that share a fraction s of their n-grams are found with
/// probability 1 - (1 - s^rows)^bands. Of those that belong together, directly or by way of others, the one whose source is named
/// first in --rank stays, and of these the first. DIR/report.json says what was found.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  zamba data dedup --input filtered --out unique --memory 2GiB\n  \
    zamba data dedup --input code=a web=b --rank code,web --removed --out unique\n  \
    As Zyda-2, and as FineWeb:\n  \
    zamba data dedup --input filtered --unit char --ngram 25 --bands 8 --rows 16 --out unique\n  \
    zamba data dedup --input filtered --ngram 5 --bands 14 --rows 8 --out unique\n\n\
    By several processes, each stage when all shards of the one before are through:\n  \
    zamba data dedup --input s3://b/text --out s3://b/unique --stage sketch --shard 3/8\n  \
    zamba data dedup --input s3://b/text --out s3://b/unique --stage cluster\n  \
    zamba data dedup --input s3://b/text --out s3://b/unique --stage write --shard 3/8")]
pub(super) struct Args {
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    to: OutArgs,
    /// Sources whose documents are rather kept, best first. Others come after them, as equals.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    rank: Vec<String>,
    /// Only documents that are equal byte for byte.
    #[arg(long, conflicts_with_all = ["unit", "ngram", "bands", "rows"])]
    exact: bool,
    /// What n-grams are made of.
    #[arg(long, value_name = "WHAT", default_value = "word")]
    unit: UnitName,
    /// Units of an n-gram.
    #[arg(long, value_name = "N", default_value_t = 13)]
    ngram: usize,
    /// Bands of a signature.
    #[arg(long, value_name = "N", default_value_t = 32)]
    bands: usize,
    /// Rows of a band; bands times rows is the number of permutations.
    #[arg(long, value_name = "N", default_value_t = 4)]
    rows: usize,
    /// Decides the permutations.
    #[arg(short = 's', long, value_name = "N", default_value_t = 1)]
    seed: u32,
    /// Keep what is removed too, in DIR/removed.
    #[arg(long)]
    removed: bool,
    /// Do only this stage; all of them by default.
    #[arg(long, value_name = "NAME")]
    stage: Option<Stage>,
    #[command(flatten)]
    job: JobArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum UnitName {
    Word,
    Char,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Stage {
    /// Signatures of the documents, chunk by chunk.
    Sketch,
    /// Which belong together, over all chunks: one process.
    Cluster,
    /// The documents that stay, chunk by chunk.
    Write,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let fs = steps::fs();
    let plan = args.read.plan(fs.as_ref(), 32 << 20)?;
    let settings = Settings {
        minhash: !args.exact,
        unit: match args.unit {
            UnitName::Word => Unit::Word,
            UnitName::Char => Unit::Char,
        },
        ngram: args.ngram,
        bands: args.bands,
        rows: args.rows,
        seed: args.seed,
    };
    let mut job = Job::new("dedup", json!({}), &args.to.out);
    job.format = args.to.format;
    // The line, the text, its units and n-grams, and buffers of readers and writers.
    job.chunk_memory = 4 * args.read.max_document() + (64 << 20);
    args.job.apply(&mut job);
    if job.shard != Shard::WHOLE && matches!(args.stage, None | Some(Stage::Cluster)) {
        let what = "--shard is for one stage at a time; give --stage sketch or --stage write";
        return Err(Stop::Usage(what.to_owned()).into());
    }
    let dedup = Dedup::new(settings, args.rank.clone(), args.removed, job.clone())?;
    // Bars are named after the step.
    let titled = |step: &str| Job { step: step.to_owned(), ..job.clone() };
    let does = |stage| args.stage.is_none_or(|only| only == stage);
    let mut account = Account { path: &args.to.out, sketches: None, report: None, written: None };
    if does(Stage::Sketch) {
        let sketched =
            steps::watched(&args.job, &titled("signatures"), &plan, |watch| dedup.sketch(&fs, &plan, watch))?;
        account.sketches = Some(Done::of(&sketched));
    }
    if does(Stage::Cluster) {
        account.report = Some(cluster(args, &dedup, &fs, &plan)?);
    }
    let mut outcome = None;
    if does(Stage::Write) {
        let written =
            steps::watched(&args.job, &titled("writing"), &plan, |watch| dedup.write(&fs, &plan, watch))?;
        account.written = Some(Done::of(&written));
        outcome = Some(written);
    }
    if args.job.json {
        return out::json(&account);
    }
    account.print()?;
    outcome.map_or(Ok(()), |outcome| steps::report(&job, &outcome, false))
}

fn cluster(
    args: &Args,
    dedup: &Dedup,
    fs: &std::sync::Arc<dyn zamba_data::fs::Fs>,
    plan: &Plan,
) -> anyhow::Result<Report> {
    let mut bar: Option<Progress> = None;
    let mut progress = |done: u64, steps: u64| {
        bar.get_or_insert_with(|| Progress::new("clusters", steps, Counted::Items("steps"))).set(done);
        if interrupt::requested() { Err(zamba_data::Error::Stopped) } else { Ok(()) }
    };
    let report = args.job.on_threads(|| dedup.cluster(fs, plan, &mut progress))?;
    drop(bar);
    interrupt::check("signatures are kept; the same command goes on")?;
    Ok(report?)
}

/// What a stage over chunks has come to.
#[derive(Debug, Serialize)]
struct Done {
    complete: bool,
    chunks: usize,
    finished: usize,
    resumed: usize,
}

impl Done {
    fn of(outcome: &Outcome) -> Done {
        let Outcome { manifest, chunks, finished, resumed } = outcome;
        Done { complete: manifest.is_some(), chunks: *chunks, finished: *finished, resumed: *resumed }
    }
}

/// What all stages have come to.
#[derive(Debug, Serialize)]
struct Account<'a> {
    path: &'a PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    sketches: Option<Done>,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<Done>,
}

impl Account<'_> {
    fn print(&self) -> anyhow::Result<()> {
        if let (Some(done), None) = (&self.sketches, &self.report) {
            let ready = if done.complete { "all signatures are there" } else { "others are missing" };
            let (mine, chunks) = (done.finished + done.resumed, done.chunks);
            out::line(&format!("{}: signatures of {mine} of {chunks} chunks, {ready}", self.path.display()))?;
        }
        self.report.as_ref().map_or(Ok(()), |report| out::text(&report.table()))
    }
}
