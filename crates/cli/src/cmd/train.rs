//! `zamba train`: a run from a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use zamba::Zamba;
use zamba_data::fs::RealFs;
use zamba_eval::{Figure, Suite, TaskOptions};
use zamba_train::log::{EvalRecord, Observer, StepRecord, TaskRecord, TaskScore};
use zamba_train::run::DryRun;
use zamba_train::{Job, Recipe, RecipeError, dry_run, train};

use crate::cmd::eval;
use crate::cmd::eval::tasks::DEFAULT_SEED;
use crate::common::DeviceArgs;
use crate::error::Stop;
use crate::progress::{Progress, Unit};
use crate::text::Text;
use crate::{interrupt, out};

/// Train a model from a recipe, through all its phases.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The folder gets log.jsonl, TensorBoard events, loss.svg and checkpoints; each checkpoint is \
    also a model folder.\n\
    Ctrl-C and SIGTERM save and leave; --resume goes on from the newest checkpoint that verifies.\n\n\
    Examples:\n  zamba train recipes/tiny.toml --out run\n  \
    zamba train recipes/tiny.toml --out run --set seed=7 --resume"
)]
pub(crate) struct Args {
    /// The recipe.
    #[arg(value_name = "RUN.toml")]
    recipe: PathBuf,
    /// The folder of the run.
    #[arg(short = 'o', long, value_name = "DIR", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Replace a value of the recipe, such as optimiser.clip=0.5 or phase.anneal.steps=100. Repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on from the newest checkpoint in the folder.
    #[arg(long)]
    resume: bool,
    /// Only say what the run would do and cost.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document at the end.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let fs = Arc::new(RealFs);
    let recipe = Recipe::load(&*fs, &args.recipe, &args.set).map_err(usage)?;
    let Some(out) = args.out.as_deref().filter(|_| !args.dry_run) else {
        let cost = dry_run(&recipe, &*fs)?;
        return if args.json { out::json(&cost) } else { out::table(&rows(&cost)) };
    };
    let mut bar = Bar { benchmarks: Benchmarks::of(&recipe)?, ..Bar::new() };
    let job = Job {
        recipe: &recipe,
        out,
        resume: args.resume,
        fs,
        device: args.device.open()?,
        stop: &interrupt::requested,
        observer: &mut bar,
    };
    let summary = train(job).with_context(|| format!("cannot train {}", args.recipe.display()))?;
    drop(bar);
    if args.json {
        out::json(&summary)?;
    } else {
        let loss = summary.loss.map(|loss| format!(", loss {loss:.4}")).unwrap_or_default();
        let (step, steps, tokens) = (summary.step, summary.steps, out::count(summary.tokens));
        out::line(&format!("{}: step {step} of {steps}, {tokens} tokens{loss}", shown(&summary.checkpoint)))?;
    }
    if summary.step < summary.steps {
        return Err(Stop::Interrupted("the run is saved, --resume goes on").into());
    }
    Ok(())
}

/// A wrong `--set` is wrong usage; a wrong recipe is not.
fn usage(error: RecipeError) -> anyhow::Error {
    match error {
        RecipeError::Set { .. } => Stop::Usage(error.to_string()).into(),
        error => error.into(),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn rows(cost: &DryRun) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("parameters", out::count(cost.parameters)),
        ("steps", out::count(cost.steps)),
        ("tokens", out::count(cost.tokens)),
        ("FLOPs per token", format!("{:.3e}", cost.flops_per_token)),
        ("FLOPs of the run", format!("{:.3e}", cost.flops)),
        ("weights, moments, gradients", out::bytes(cost.state_bytes)),
        ("activations, about", out::bytes(cost.activation_bytes_estimate)),
        ("copy while saving", out::bytes(cost.snapshot_bytes)),
        ("a checkpoint on disk", out::bytes(cost.checkpoint_bytes)),
    ];
    rows.extend(cost.phases.iter().map(|phase| {
        let [first, peak, last] = phase.lr;
        let (steps, tokens) = (out::count(phase.steps), out::count(phase.tokens));
        let rates = format!("rate {first:.2e} to {peak:.2e} to {last:.2e}");
        (
            "phase",
            format!("{}: {steps} steps from step {}, {tokens} tokens, {rates}", phase.name, phase.start),
        )
    }));
    rows
}

/// Between two lines of progress where there is no terminal to draw a bar on.
const QUIET: Duration = Duration::from_secs(10);

/// The benchmarks of a recipe, ready to run.
struct Benchmarks {
    suite: Suite,
    text: Text,
}

impl Benchmarks {
    /// Reads them before the run begins, so that what is wrong with them is said at once.
    fn of(recipe: &Recipe) -> anyhow::Result<Option<Self>> {
        let Some(tasks) = recipe.eval.as_ref().and_then(|e| e.tasks.as_ref()) else { return Ok(None) };
        let options = TaskOptions { num_fewshot: tasks.num_fewshot, limit: tasks.limit, seed: DEFAULT_SEED };
        let include: Vec<PathBuf> = tasks.include_path.iter().map(|p| recipe.resolve(p)).collect();
        let suite =
            eval::tasks::open(&tasks.names, Some(recipe.resolve(&tasks.data)), &include, &options, false)
                .context("recipe key `eval.tasks`")?;
        let vocab = recipe.model_config(&RealFs)?.vocab_size;
        let folder = recipe.tokenizer.as_ref().map(|path| recipe.resolve(path));
        let folder = folder.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
        let text =
            Text::find(folder, vocab)?.context("recipe key `tokenizer`: eval.tasks need a tokenizer.json")?;
        Ok(Some(Benchmarks { suite, text }))
    }

    fn run(&self, model: &Zamba) -> anyhow::Result<Vec<TaskScore>> {
        let figures = eval::tasks::figures(&self.suite, model, &self.text)?;
        let score = |f: Figure| TaskScore {
            task: f.task,
            metric: f.metric,
            filter: f.filter,
            value: f.value,
            stderr: f.error,
        };
        Ok(figures.into_iter().map(score).collect())
    }
}

/// Shows the run on stderr, and runs its benchmarks.
struct Bar {
    bar: Option<Progress>,
    spoken: Instant,
    benchmarks: Option<Benchmarks>,
}

impl Bar {
    fn new() -> Self {
        Bar { bar: None, spoken: Instant::now(), benchmarks: None }
    }
}

impl Observer for Bar {
    fn step(&mut self, record: &StepRecord, total: u64) {
        let bar = self.bar.get_or_insert_with(|| {
            // A resumed run does not begin at step 0, and its speed must not count what others did.
            Progress::resumed("training", record.step.saturating_sub(1), total, Unit::Items("steps"))
        });
        let mfu = record.mfu.map(|mfu| format!(", MFU {:.1} %", 100.0 * mfu)).unwrap_or_default();
        let words = format!(
            "{} loss {:.4}, {:.0} tokens/s{mfu}",
            record.phase, record.loss, record.tokens_per_second
        );
        bar.say(&words);
        bar.set(record.step);
        if !bar.draws() && self.spoken.elapsed() > QUIET {
            self.spoken = Instant::now();
            out::note(&format!("step {}/{total}: {words}", record.step));
        }
    }

    fn eval(&mut self, record: &EvalRecord) {
        self.note(&format!(
            "step {}: {} {:.4} bits per byte",
            record.step, record.shard, record.bits_per_byte
        ));
    }

    fn tasks(&mut self, model: &Zamba) -> Result<Vec<TaskScore>, String> {
        match &self.benchmarks {
            Some(benchmarks) => benchmarks.run(model).map_err(|e| format!("{e:#}")),
            None => Ok(vec![]),
        }
    }

    fn task(&mut self, record: &TaskRecord) {
        let TaskScore { task, metric, value, stderr, .. } = &record.score;
        let error = stderr.map(|e| format!(" ± {e:.4}")).unwrap_or_default();
        self.note(&format!("step {}: {task} {metric} {value:.4}{error}", record.step));
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| out::note(text)),
            None => out::note(text),
        }
    }
}
