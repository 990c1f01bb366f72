//! What the steps of `zamba data` share: inputs, the job, the bar, the report.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use serde::Serialize;
use zamba_data::document::Fields;
use zamba_data::fs::{Fs, UrlFs};
use zamba_data::job::{ChunkRun, Job, Manifest, MaxBad, Outcome, Shard, Watch};
use zamba_data::plan::{Input, Layout, Plan, ReadOptions};
use zamba_data::write::Format;

use crate::progress::{Progress, Unit};
use crate::{common, interrupt, out};

/// What to read.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Input")]
pub(super) struct ReadArgs {
    /// Files or folders, local or s3://bucket/path: JSON lines (.jsonl, also .gz and .zst), Parquet, any other file as one
    /// document. NAME becomes the source of documents that name none; by default the last part of the path.
    #[arg(short = 'i', long, value_name = "[NAME=]PATH", required = true, num_args = 1..)]
    input: Vec<String>,
    /// The field or column with the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_field: String,
    /// The field or column with the id.
    #[arg(long, value_name = "NAME", default_value = "id")]
    id_field: String,
    /// The field or column with the source.
    #[arg(long, value_name = "NAME", default_value = "source")]
    source_field: String,
    /// What all files are, whatever their names.
    #[arg(long, value_name = "KIND")]
    layout: Option<LayoutName>,
    /// Of folders, only files with these extensions, such as rs,md.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    extensions: Vec<String>,
    /// Work is cut into chunks of about this size on disk; a file that can be cut is.
    #[arg(long, value_name = "SIZE", value_parser = common::parse_size)]
    chunk: Option<u64>,
    /// A longer document is bad input.
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = common::parse_size)]
    max_document: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LayoutName {
    Lines,
    Text,
    Parquet,
}

/// How to run.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Job")]
pub(super) struct JobArgs {
    /// Do only chunks i, i + n, i + 2n and so on: one of n processes that share the output folder. Whoever finishes last writes
    /// the manifest.
    #[arg(long, value_name = "i/n", value_parser = Shard::from_str, default_value = "0/1")]
    shard: Shard,
    /// How much bad input to put up with: a number of records, or a share such as 1%.
    #[arg(long, value_name = "N|P%", value_parser = MaxBad::from_str, default_value = "1%")]
    max_bad: MaxBad,
    /// Start over where another job was begun, instead of refusing.
    #[arg(long)]
    force: bool,
    /// Memory for all chunks at work; under a small one, fewer threads work.
    #[arg(long, value_name = "SIZE", value_parser = common::parse_size)]
    memory: Option<u64>,
    /// Threads [default: one per core].
    #[arg(short = 't', long, value_name = "N", env = "ZAMBA_THREADS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print one JSON document.
    #[arg(long)]
    pub(super) json: bool,
}

/// Where documents go, and how.
#[derive(Debug, clap::Args)]
pub(super) struct OutArgs {
    /// The folder for what stays. A job that was stopped goes on there.
    #[arg(short = 'o', long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// How documents are written: jsonl, jsonl.gz, jsonl.zst or parquet.
    #[arg(long, value_name = "NAME", value_parser = Format::from_str, default_value = "jsonl.zst")]
    pub(super) format: Format,
}

/// The file system that paths and URLs on the command line mean. Object stores are set up by the usual AWS_ variables.
pub(super) fn fs() -> Arc<dyn Fs> {
    let options = std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
    Arc::new(UrlFs::new(options.collect()))
}

impl ReadArgs {
    /// Looks at the inputs and cuts them.
    pub(super) fn plan(&self, fs: &dyn Fs, chunk: u64) -> anyhow::Result<Plan> {
        let options = ReadOptions {
            fields: Fields {
                text: self.text_field.clone(),
                id: self.id_field.clone(),
                source: self.source_field.clone(),
            },
            layout: self.layout.map(|layout| match layout {
                LayoutName::Lines => Layout::Lines,
                LayoutName::Text => Layout::Text,
                LayoutName::Parquet => Layout::Parquet,
            }),
            extensions: self.extensions.clone(),
            chunk_bytes: self.chunk.unwrap_or(chunk),
            max_document_bytes: self.max_document,
        };
        Ok(Plan::new(fs, &self.inputs(), &options)?)
    }

    fn inputs(&self) -> Vec<Input> {
        self.input.iter().map(|text| input(text)).collect()
    }

    /// All inputs, for messages.
    pub(super) fn names(&self) -> String {
        self.input.join(", ")
    }

    /// The longest document in bytes.
    pub(super) fn max_document(&self) -> u64 {
        self.max_document
    }
}

/// `NAME=PATH` or `PATH`; a path that exists as it is written is one.
fn input(text: &str) -> Input {
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    match text.split_once('=') {
        Some((name, path)) if is_name(name) && !Path::new(text).exists() => {
            Input { name: name.to_owned(), path: path.into() }
        }
        _ => Input::new(text),
    }
}

impl JobArgs {
    /// Sets what the flags say about a job.
    pub(super) fn apply(&self, job: &mut Job) {
        job.shard = self.shard;
        job.max_bad = self.max_bad;
        job.force = self.force;
        job.memory = self.memory;
    }

    /// Runs something on as many threads as asked for.
    pub(super) fn on_threads<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let threads = self.threads.map_or(0, usize::from);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        Ok(pool.context("cannot start threads; lower --threads")?.install(work))
    }
}

/// A bar over the bytes of a job. Ctrl-C stops it at the next document.
pub(super) struct Bar(Mutex<Progress>);

impl Bar {
    pub(super) fn new(title: &str, bytes: u64) -> Bar {
        Bar(Mutex::new(Progress::new(title, bytes, Unit::Bytes)))
    }
}

impl Watch for Bar {
    fn advance(&self, bytes: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(bytes);
    }

    fn stopped(&self) -> bool {
        interrupt::requested()
    }
}

/// Runs a job with a bar.
pub(super) fn run(
    args: &JobArgs,
    fs: &Arc<dyn Fs>,
    job: &Job,
    plan: &Plan,
    work: &(dyn Fn(&mut ChunkRun<'_>) -> zamba_data::Result<()> + Sync),
) -> anyhow::Result<Outcome> {
    watched(args, job, plan, |watch| job.run(fs, plan, watch, work))
}

/// Runs something that runs a job, with a bar.
pub(super) fn watched<T: Send>(
    args: &JobArgs,
    job: &Job,
    plan: &Plan,
    work: impl FnOnce(&dyn Watch) -> zamba_data::Result<T> + Send,
) -> anyhow::Result<T> {
    let total = plan.chunks.iter().filter(|chunk| job.shard.has(chunk.index)).map(|chunk| chunk.bytes).sum();
    let bar = Bar::new(&job.step, total);
    let done = args.on_threads(|| work(&bar))?;
    drop(bar);
    interrupt::check("finished chunks are kept; the same command goes on")?;
    Ok(done?)
}

/// What a job has come to, as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    path: &'a PathBuf,
    complete: bool,
    chunks: usize,
    finished: usize,
    resumed: usize,
    manifest: Option<&'a Manifest>,
}

/// Prints what a job has come to.
pub(super) fn report(job: &Job, outcome: &Outcome, json: bool) -> anyhow::Result<()> {
    let Outcome { manifest, chunks, finished, resumed } = outcome;
    let manifest = manifest.as_ref();
    if json {
        let (chunks, finished, resumed) = (*chunks, *finished, *resumed);
        let complete = manifest.is_some();
        return out::json(&Report { path: &job.out, complete, chunks, finished, resumed, manifest });
    }
    let path = job.out.display();
    let Some(manifest) = manifest else {
        return out::line(&format!(
            "{path}: {} of {chunks} chunks are finished by this shard; others are missing",
            finished + resumed
        ));
    };
    let (kept, read) = (out::count(manifest.documents()), out::count(manifest.documents_read));
    out::line(&format!("{path}: {kept} of {read} documents, {} read", out::bytes(manifest.text_bytes_read)))?;
    for (name, n) in &manifest.counts {
        out::line(&format!("{:>12}  {name}", out::count(*n)))?;
    }
    if manifest.bad > 0 {
        out::line(&format!("{:>12}  bad input, in {path}/quarantine", out::count(manifest.bad)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_may_be_named() {
        for (text, name, path) in [
            ("web=texts/a", "web", "texts/a"),
            ("texts/a.jsonl.zst", "a", "texts/a.jsonl.zst"),
            ("a/b=c/d", "d", "a/b=c/d"),
            ("s3=s3://bucket/x", "s3", "s3://bucket/x"),
            ("=x", "=x", "=x"),
        ] {
            assert_eq!(input(text), Input { name: name.into(), path: path.into() }, "{text}");
        }
    }
}
