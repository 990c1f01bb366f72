//! `zamba eval --tasks`: benchmarks.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use zamba::Zamba;
use zamba::checkpoint::Checkpoint;
use zamba::hub;
use zamba::template::CivilTime;
use zamba_data::fs::{Fs, RealFs};
use zamba_eval::{
    About, DataSource, Figure, Library, Outcome, Results, RunError, RunOptions, Suite, TaskOptions, Wanted,
    sanitize,
};

use super::Args;
use super::store::{self, Store};
use crate::common;
use crate::error::Stop;
use crate::progress::{Progress, Unit};
use crate::text::{NO_TOKENIZER, Text, end_tokens};
use crate::{interrupt, out};

/// Seed of the choice of examples, as in lm-evaluation-harness.
pub(crate) const DEFAULT_SEED: u64 = 1234;

/// Benchmarks.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Benchmarks")]
pub(crate) struct TaskArgs {
    /// Tasks, groups and tags to run; `list` only prints their names.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(super) tasks: Vec<String>,
    /// Folder of data sets: as copied from the hub, or with files SPLIT.jsonl or SPLIT.parquet.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder with more task files (.yaml). Repeatable.
    #[arg(long, value_name = "DIR")]
    include_path: Vec<PathBuf>,
    /// Solved examples before each question [default: what the task says, mostly 0].
    #[arg(long, value_name = "N")]
    num_fewshot: Option<usize>,
    /// Only the first N questions of each task, or a share of them if below 1.
    #[arg(long, value_name = "N")]
    limit: Option<f64>,
    /// Seed of the choice of examples.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED)]
    fewshot_seed: u64,
    /// Folder for results_*.json; answers are kept there too, so that the same command goes on after a stop.
    #[arg(short = 'o', long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Also write samples_TASK_*.jsonl with every question and answer.
    #[arg(long, requires = "out")]
    log_samples: bool,
    /// Neither use nor keep answers of earlier runs.
    #[arg(long)]
    no_cache: bool,
    /// Compute common beginnings of questions and choices for each of them again: slower, the same scores.
    #[arg(long)]
    no_prefix_reuse: bool,
}

impl TaskArgs {
    /// Whether there are any.
    pub(super) fn wanted(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// The tasks with their documents.
    pub(super) fn open(&self, offline: bool) -> anyhow::Result<Suite> {
        if self.limit.is_some_and(|l| l.is_nan() || l <= 0.0) {
            return Err(Stop::Usage("--limit must be above 0".to_owned()).into());
        }
        let options =
            TaskOptions { num_fewshot: self.num_fewshot, limit: self.limit, seed: self.fewshot_seed };
        open(&self.tasks, self.data.clone(), &self.include_path, &options, offline)
    }
}

/// Tasks with their documents.
pub(crate) fn open(
    names: &[String],
    data: Option<PathBuf>,
    include_path: &[PathBuf],
    options: &TaskOptions,
    offline: bool,
) -> anyhow::Result<Suite> {
    let selection = Library::new(include_path)?.select(names)?;
    let fetch = |wanted: &Wanted<'_>| fetch(wanted, offline).map_err(|e| format!("{e:#}"));
    let source = DataSource { folder: data, fetch: Some(&fetch) };
    Ok(Suite::open(selection, &source, options)?)
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.tasks.tasks == ["list"] {
        let library = Library::new(&args.tasks.include_path)?;
        return library.names().into_iter().try_for_each(out::line);
    }
    let suite = args.tasks.open(args.offline)?;
    let folder = args.folder()?;
    let checkpoint = common::open(&folder, args.load)?;
    let text = Text::find(&folder, checkpoint.config.vocab_size)?.context(NO_TOKENIZER)?;
    let model = common::load(&checkpoint, &args.device, args.load)?;
    let name = args.named_model()?.name();
    let place = args.tasks.out.as_ref().map(|out| out.join(sanitize(&name)));
    let mut store = open_store(args, place.as_deref(), &folder)?;
    let (date, started) = (now(), Instant::now());
    let outcome = evaluate(args, &suite, &model, &text, &mut store)?;
    let seconds = started.elapsed().as_secs_f64();
    speed(&suite, &outcome, seconds, args.tasks.no_prefix_reuse);
    let about = About { date, seconds, ..about(args, &name, &checkpoint, &model, &text)? };
    let results = outcome.results(&about);
    if let Some(place) = &place {
        write(place, &results, date, args.tasks.log_samples)?;
    }
    if args.json { out::json(&results.document) } else { out::text(&results.table()) }
}

/// The files of a split, from the hub.
fn fetch(wanted: &Wanted<'_>, offline: bool) -> anyhow::Result<Vec<PathBuf>> {
    let choose = |files: &[&str]| wanted.choose(files).into_iter().map(str::to_owned).collect();
    let found = common::from_hub(offline, |options, progress| {
        hub::dataset(wanted.dataset, &choose, options, progress)
    });
    Ok(found?)
}

/// The answers of the model in `folder` that are kept in `place`, which is made.
pub(super) fn open_store(args: &Args, place: Option<&Path>, folder: &Path) -> anyhow::Result<Store> {
    let Some(place) = place else { return Ok(Store::none()) };
    RealFs.create_dirs(place).with_context(|| format!("cannot make {}", place.display()))?;
    if args.tasks.no_cache {
        return Ok(Store::none());
    }
    let how = format!("{} {}", args.device.isa_name()?, zamba::ARITHMETIC);
    let hash = store::model_hash(folder, &how)?;
    Store::open(&place.join(format!("answers_{hash}.jsonl")))
}

/// Runs tasks quietly and without keeping answers: in the middle of a training run.
pub(crate) fn figures(suite: &Suite, model: &Zamba, text: &Text) -> anyhow::Result<Vec<Figure>> {
    let options = RunOptions { ends: end_tokens(&model.config, Some(text)), ..RunOptions::default() };
    let outcome = suite.run(model, &text.tokenizer, &options, &mut Store::none(), &mut |_| {
        interrupt::check("the benchmarks were not finished").map_err(Failure::Stop)
    });
    Ok(outcome?.figures())
}

/// Runs the tasks with a progress bar.
pub(super) fn evaluate(
    args: &Args,
    suite: &Suite,
    model: &Zamba,
    text: &Text,
    store: &mut Store,
) -> anyhow::Result<Outcome> {
    let options = RunOptions {
        no_reuse: args.tasks.no_prefix_reuse,
        ends: end_tokens(&model.config, Some(text)),
        ..RunOptions::default()
    };
    if store.len() > 0 {
        out::note(&format!("{} answers are known from before", out::count(store.len() as u64)));
    }
    let mut bar: Option<Progress> = None;
    let kept = if store.keeps() { "the same command goes on from here" } else { "nothing was kept" };
    suite
        .run(model, &text.tokenizer, &options, store, &mut |progress| {
            let bar =
                bar.get_or_insert_with(|| Progress::new("evaluating", progress.total, Unit::Items("tokens")));
            bar.set(progress.done);
            interrupt::check(kept).map_err(Failure::Stop)
        })
        .map_err(Failure::into)
}

/// Why a run ended early.
enum Failure {
    Run(RunError),
    Stop(Stop),
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Failure::Run(error)
    }
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Run(error) => error.into(),
            Failure::Stop(stop) => stop.into(),
        }
    }
}

/// Says how fast it went.
fn speed(suite: &Suite, outcome: &Outcome, seconds: f64, plain: bool) {
    let (documents, tokens) = (suite.documents(), outcome.tokens);
    out::note(&format!(
        "{} questions in {seconds:.1} s, {:.2} per second; {} tokens computed, {:.0} per second, prefix reuse {}",
        out::count(documents as u64),
        documents as f64 / seconds.max(1e-9),
        out::count(tokens),
        tokens as f64 / seconds.max(1e-9),
        if plain { "off" } else { "on" },
    ));
}

fn about(
    args: &Args,
    name: &str,
    checkpoint: &Checkpoint,
    model: &Zamba,
    text: &Text,
) -> anyhow::Result<About> {
    let tokenizer = &text.tokenizer;
    let token = |id: Option<u32>| -> anyhow::Result<Option<(String, u32)>> {
        id.map(|id| Ok((tokenizer.decode(&[id], false)?, id))).transpose()
    };
    Ok(About {
        model: name.to_owned(),
        parameters: model.num_parameters() as u64,
        dtype: format!("{:?}", checkpoint.config.dtype).to_lowercase(),
        max_length: model.config.max_position_embeddings,
        limit: args.tasks.limit,
        seed: args.tasks.fewshot_seed,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        bos: token(tokenizer.bos_id())?,
        eos: token(tokenizer.eos_id())?,
        ..About::default()
    })
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Writes the files of lm-evaluation-harness, named after the moment at which the run began.
fn write(place: &Path, results: &Results, date: f64, samples: bool) -> anyhow::Result<()> {
    let time = CivilTime::from_seconds(date as i64);
    let CivilTime { year, month, day, hour, minute, second } = time;
    let micros = (date.fract() * 1e6) as u32;
    let id = format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}.{micros:06}");
    let put = |name: String, bytes: &[u8]| {
        let path = place.join(name);
        RealFs.replace(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    if samples {
        for (task, lines) in &results.samples {
            let mut text = lines.join("\n");
            text.push('\n');
            put(format!("samples_{task}_{id}.jsonl"), text.as_bytes())?;
        }
    }
    let document =
        serde_json::to_vec_pretty(&results.document).context("cannot write the results as JSON")?;
    put(format!("results_{id}.json"), &document)
}
