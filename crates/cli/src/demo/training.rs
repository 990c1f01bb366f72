//! The run itself, as `zamba train` does it, and what is heard of it.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use zamba_kernels::Device;
use zamba_train::ckpt;
use zamba_train::log::{EvalRecord, Observer, StepRecord};
use zamba_train::{Job, Recipe};

use super::folder::Folder;
use crate::error::Stop;
use crate::progress::{Progress, Unit};
use crate::{interrupt, out};

/// Lines that stand for the progress bar where there is no terminal.
const LINES: u64 = 10;
/// Steps at the end of a phase that its last loss is the mean of: single ones are noisy.
const LAST: usize = 20;

/// A finished run.
pub(super) struct Trained {
    /// Every step.
    pub(super) records: Vec<StepRecord>,
    /// The checkpoint at the end of each phase.
    pub(super) checkpoints: Vec<PathBuf>,
    mixtures: Vec<Vec<SourceCounts>>,
    skipped: u64,
    tokens: u64,
}

/// The run in numbers.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RunCounts {
    pub(super) steps: u64,
    pub(super) tokens: u64,
    pub(super) seconds: f64,
    pub(super) tokens_per_second: f64,
    pub(super) skipped_steps: u64,
    pub(super) phases: Vec<PhaseCounts>,
}

/// A phase in numbers.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PhaseCounts {
    pub(super) name: String,
    pub(super) steps: u64,
    /// Highest learning rate, and that of the last step.
    pub(super) learning_rates: [f64; 2],
    /// Loss of the first step, and the mean of the last ones, in nats per token.
    pub(super) losses: [f64; 2],
    /// What it was trained on.
    pub(super) sources: Vec<SourceCounts>,
}

/// What a source gave to a phase; part of what the run notes about its mixture.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SourceCounts {
    pub(super) name: String,
    pub(super) tokens: u64,
    pub(super) epochs: f64,
}

impl Trained {
    pub(super) fn summary(&self, steps: u64) -> RunCounts {
        let seconds = self.records.last().map_or(0.0, |record| record.seconds);
        let phases = self.records.chunk_by(|a, b| a.phase == b.phase).zip(&self.mixtures);
        let phases = phases.map(|(records, mixture)| {
            let last = &records[records.len().saturating_sub(LAST)..];
            PhaseCounts {
                name: records[0].phase.clone(),
                steps: records.len() as u64,
                learning_rates: [records.iter().fold(0.0, |a, r| r.lr.max(a)), last[last.len() - 1].lr],
                losses: [records[0].loss, last.iter().map(|r| r.loss).sum::<f64>() / last.len() as f64],
                sources: mixture.clone(),
            }
        });
        RunCounts {
            steps,
            tokens: self.tokens,
            seconds,
            tokens_per_second: self.tokens as f64 / seconds.max(1e-9),
            skipped_steps: self.skipped,
            phases: phases.collect(),
        }
    }
}

/// Trains both phases. Ctrl-C leaves a run that `zamba train` can go on with.
pub(super) fn train(folder: &Folder, recipe: &Recipe, device: Arc<dyn Device>) -> anyhow::Result<Trained> {
    let plan = zamba_train::recipe::Plan::new(recipe)?;
    let mut watcher = Watcher::new(plan.steps());
    let root = folder.run();
    let job = Job {
        recipe,
        out: &root,
        resume: false,
        fs: folder.fs().clone(),
        device,
        stop: &interrupt::requested,
        observer: &mut watcher,
    };
    let summary = zamba_train::train(job)?;
    let Watcher { progress, records, troubles, .. } = watcher;
    drop(progress);
    if summary.step < summary.steps {
        let (recipe, root) = (folder.recipe(), root.display());
        out::note(&format!("   step {} of {} is saved; go on with", summary.step, summary.steps));
        out::note(&format!("     zamba train {} --out {root} --resume", recipe.display()));
        return Err(
            Stop::Interrupted("the run can be resumed, or run the same command again to start over").into()
        );
    }
    let mut checkpoints = Vec::new();
    let mut mixtures = Vec::new();
    for (i, phase) in plan.phases.iter().enumerate() {
        let checkpoint = ckpt::step_dir(&root, phase.start + phase.schedule.steps);
        if !folder.fs().exists(&checkpoint).unwrap_or(false) {
            let why = troubles.last().map_or("its folder is not there", String::as_str);
            bail!("the checkpoint at the end of phase `{}` cannot be exported: {why}", phase.name);
        }
        checkpoints.push(checkpoint);
        mixtures.push(mixture(folder, i)?);
    }
    Ok(Trained { records, checkpoints, mixtures, skipped: summary.skipped, tokens: summary.tokens })
}

/// What a phase was made of, as the run has noted it.
fn mixture(folder: &Folder, phase: usize) -> anyhow::Result<Vec<SourceCounts>> {
    let path = folder.run().join(format!("mixture-{phase}.json"));
    let bytes = folder.fs().read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))
}

/// Shows the run: a bar on a terminal, some lines elsewhere.
struct Watcher {
    progress: Progress,
    terminal: bool,
    total: u64,
    records: Vec<StepRecord>,
    /// Smoothed loss and speed.
    shown: Option<(f64, f64)>,
    troubles: Vec<String>,
}

impl Watcher {
    fn new(total: u64) -> Self {
        Watcher {
            progress: Progress::new("training", total, Unit::Items("steps")),
            terminal: std::io::stderr().is_terminal(),
            total,
            records: Vec::new(),
            shown: None,
            troubles: Vec::new(),
        }
    }
}

impl Observer for Watcher {
    fn step(&mut self, record: &StepRecord, _total: u64) {
        let (loss, speed) = self.shown.unwrap_or((record.loss, record.tokens_per_second));
        let near = |old: f64, new: f64| if new.is_finite() { old + 0.1 * (new - old) } else { old };
        let (loss, speed) = (near(loss, record.loss), near(speed, record.tokens_per_second));
        self.shown = Some((loss, speed));
        self.progress.say(&format!("{} loss {loss:.3} {speed:.0} tok/s", record.phase));
        self.progress.set(record.step);
        let tenth = |step: u64| step * LINES / self.total.max(1);
        if !self.terminal && (record.step == 1 || tenth(record.step) > tenth(record.step - 1)) {
            let left = (self.total - record.step) as f64 * record.seconds / record.step as f64;
            out::note(&format!(
                "   step {}/{} {} loss {loss:.3} lr {:.1e} {speed:.0} tok/s, {left:.0} s left",
                record.step, self.total, record.phase, record.lr
            ));
        }
        self.records.push(record.clone());
    }

    fn eval(&mut self, _: &EvalRecord) {}

    fn note(&mut self, text: &str) {
        // That a save went well is expected; what did not go well is said at once.
        if text.starts_with("saved step") {
            return;
        }
        if text.contains("not saved") {
            self.troubles.push(text.to_owned());
        }
        self.progress.suspend(|| out::note(&format!("   {text}")));
    }
}
