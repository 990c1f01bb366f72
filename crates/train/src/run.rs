//! The run itself.
//!
//! `Run::go` is the loop, in the open. Everything that it changes is in [`RunState`], so a run that was
//! stopped and resumed at any step goes on bit for bit as one that was not.

mod setup;

pub use setup::{DryRun, dry_run};

use crate::ckpt::{self, CkptError};
use crate::data::{DataError, EvalShards};
use crate::log::{EvalRecord, Observer, RunLog, StepRecord, TaskRecord};
use crate::mfu;
use crate::recipe::{Plan, Recipe, RecipeError, trajectory, trajectory_sha256};
use crate::saver::{Outcome, Saver};
use crate::state::{Context, RunState, StateError};
use crate::step;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use zamba::{Batch, Workspace, Zamba};
use zamba_data::fs::Fs;
use zamba_data::{IGNORE, Loader, Mixture, Sample, eval_rows};
use zamba_kernels::{Buf, Device};

/// Why a run cannot start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe is refused.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The data is refused.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A sample cannot be read.
    #[error("cannot read a training sample: {0}")]
    Sample(#[from] zamba_data::Error),
    /// A checkpoint cannot be written or found.
    #[error(transparent)]
    Ckpt(#[from] CkptError),
    /// A checkpoint cannot be continued.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file of the output folder cannot be read or written.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is a run in the output folder.
    #[error("{path} has a run up to step {step}; continue it with --resume or choose another folder")]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// Its newest step.
        step: u64,
    },
    /// The recipe differs from that of the checkpoint in what the weights depend on.
    #[error(
        "the recipe differs from that of the checkpoint in {keys}; use the old values or train into a new folder"
    )]
    RecipeChanged {
        /// The keys.
        keys: String,
    },
    /// The data differs from that of the checkpoint.
    #[error(
        "the data of phase `{phase}` differs from what the checkpoint was trained on; restore it or train into a new folder"
    )]
    DataChanged {
        /// The phase.
        phase: String,
    },
    /// Too many steps were skipped one after the other.
    #[error(
        "stopped at step {step} after skipping {skips} steps in a row ({why}); lower the learning rate or resume from an older checkpoint"
    )]
    Diverged {
        /// Steps done.
        step: u64,
        /// Steps skipped since the last good one.
        skips: u64,
        /// Why the last one was.
        why: String,
    },
}

/// What a run is given from outside.
pub struct Job<'a> {
    /// What to do.
    pub recipe: &'a Recipe,
    /// Folder of checkpoints and log.
    pub out: &'a Path,
    /// Whether to go on from the newest checkpoint in `out`; without one the run starts at step 0.
    pub resume: bool,
    /// The door to all files.
    pub fs: Arc<dyn Fs>,
    /// Where to compute.
    pub device: Arc<dyn Device>,
    /// Asked between passes: true means save and leave. Once true it must stay true.
    pub stop: &'a dyn Fn() -> bool,
    /// Hears about steps, scores and troubles.
    pub observer: &'a mut dyn Observer,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Steps done.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Steps whose update was skipped.
    pub skipped: u64,
    /// Loss of the last step, if there was one.
    pub loss: Option<f64>,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
    /// Scores after the last step, if it was evaluated.
    pub evals: Vec<EvalRecord>,
}

/// Runs a recipe, from the start or from the newest checkpoint, to its end or until told to stop.
///
/// # Errors
/// [`TrainError`]. Trouble in writing a checkpoint or a line of the log does not end a run, except at
/// its very end, when there is no later chance.
pub fn train(job: Job) -> Result<Summary, TrainError> {
    Run::open(job)?.go()
}

struct Run<'a> {
    recipe: &'a Recipe,
    plan: Plan,
    fs: Arc<dyn Fs>,
    out: &'a Path,
    stop: &'a dyn Fn() -> bool,
    observer: &'a mut dyn Observer,
    device: Arc<dyn Device>,
    model: Zamba,
    /// The model's configuration as it is published.
    config: zamba::ZambaConfig,
    workspace: Workspace,
    grads: Buf,
    state: RunState,
    mixture: Arc<Mixture>,
    eval_shards: EvalShards,
    rows: Option<(usize, Loader)>,
    saver: Saver,
    saved: Option<u64>,
    files: Vec<(String, Vec<u8>)>,
    log: RunLog,
    seconds: f64,
    flops_per_token: f64,
    evals: Vec<EvalRecord>,
}

impl Run<'_> {
    fn go(mut self) -> Result<Summary, TrainError> {
        while self.state.step < self.plan.steps() && !self.stopped() {
            let started = Instant::now();
            let (phase, at) = self.plan.place(self.state.step);
            if at == 0 {
                // Another phase has losses of another kind, which are not spikes of this one's.
                self.state.guard.forget();
            }

            // Forward and backward, one micro-batch after another; a stop in between drops the partial
            // gradients, and the step is done again after the resume.
            let rows = self.next_rows(phase, at)?;
            let targets: usize = rows.iter().map(Sample::predictions).sum();
            let mut nll = 0.0;
            for rows in rows.chunks(self.recipe.micro_batch) {
                if self.stopped() {
                    break;
                }
                nll += self.pass(rows, 1.0 / targets.max(1) as f32);
            }
            if self.stopped() {
                break;
            }

            // Clip, guard, update.
            let loss = nll / targets.max(1) as f64;
            let norm = step::norm(&*self.device, &self.grads);
            let lr = self.plan.lr(self.state.step);
            let verdict = self.state.guard.judge(&self.recipe.guard, loss, norm);
            if verdict.is_ok() {
                let o = &self.recipe.optimiser;
                step::update(&mut self.model, &mut self.state, &*self.device, &mut self.grads, o, lr, norm);
            } else {
                self.device.fill(&mut self.grads, 0.0);
            }
            self.state.step += 1;
            self.state.tokens += self.recipe.tokens_per_step();

            // Log, stop if the run has gone astray, now and then evaluate and save.
            let seconds = started.elapsed().as_secs_f64();
            let why = verdict.err().map(|skip| skip.to_string());
            self.record(phase, loss, lr, norm, seconds, why.clone());
            if self.state.guard.must_stop(&self.recipe.guard) {
                return Err(self.diverged(why));
            }
            let ends_phase = self.plan.ends_phase(self.state.step);
            if ends_phase
                || self.recipe.eval.as_ref().is_some_and(|e| self.state.step.is_multiple_of(e.every))
            {
                self.evaluate()?;
            }
            if ends_phase {
                self.report_mixture(phase);
            }
            if ends_phase || self.state.step.is_multiple_of(self.recipe.checkpoint_every) {
                self.save();
            }
            self.hear_saver();
        }
        self.leave()
    }

    fn stopped(&self) -> bool {
        (self.stop)()
    }

    /// The rows of a step, from a thread that reads ahead.
    fn next_rows(&mut self, phase: usize, at: u64) -> Result<Vec<Sample>, TrainError> {
        let batch = self.recipe.global_batch;
        let loader = match &mut self.rows {
            Some((p, loader)) if *p == phase => loader,
            stale => {
                let end = self.plan.phases[phase].schedule.steps * batch as u64;
                let start = at * batch as u64;
                let loader = Loader::new(self.mixture.clone(), phase, start, Some(end), 2 * batch)?;
                &mut stale.insert((phase, loader)).1
            }
        };
        Ok(loader.take(batch).collect::<Result<_, _>>()?)
    }

    /// One micro-batch: adds its gradients, scaled, and returns the sum of its losses in nats.
    fn pass(&mut self, rows: &[Sample], scale: f32) -> f64 {
        let (batch, targets) = pack(rows);
        let mut ctx = self.workspace.train(batch, self.recipe.recompute);
        let hidden = self.model.forward(&mut ctx);
        let nll_t = self.model.backward(ctx, hidden, &targets, scale, &mut self.grads);
        nll_t.iter().map(|x| f64::from(*x)).sum()
    }

    fn record(&mut self, phase: usize, loss: f64, lr: f64, norm: f64, seconds: f64, why: Option<String>) {
        self.seconds += seconds;
        let tokens_per_second = self.recipe.tokens_per_step() as f64 / seconds.max(1e-9);
        let record = StepRecord {
            step: self.state.step,
            phase: self.plan.phases[phase].name.clone(),
            loss,
            lr,
            grad_norm: norm,
            tokens: self.state.tokens,
            tokens_per_second,
            mfu: mfu::mfu(self.flops_per_token, tokens_per_second, self.recipe.peak_tflops),
            seconds: self.seconds,
            skipped: why,
        };
        if let Some(why) = &record.skipped {
            self.observer.note(&format!("step {}: update skipped, {why}", record.step));
        }
        self.observer.step(&record, self.plan.steps());
        if let Err(e) = self.log.step(record) {
            self.observer.note(&format!("cannot write the log: {e}"));
        }
    }

    /// Bits per byte of every held-out shard.
    fn evaluate(&mut self) -> Result<(), TrainError> {
        self.evals.clear();
        for (name, shard) in &self.eval_shards {
            let (mut nats, mut tokens) = (0.0, 0);
            let mut rows = eval_rows(shard, self.recipe.sequence);
            loop {
                let rows = rows.by_ref().take(self.recipe.micro_batch).collect::<Result<Vec<_>, _>>()?;
                if rows.is_empty() || self.stopped() {
                    break;
                }
                nats += score(&self.model, &self.workspace, &rows);
                tokens += rows.iter().map(Sample::predictions).sum::<usize>() as u64;
            }
            if self.stopped() {
                return Ok(());
            }
            let bits = nats / std::f64::consts::LN_2;
            let record = EvalRecord {
                step: self.state.step,
                phase: self.phase_of_last_step().1,
                shard: name.clone(),
                bits_per_byte: bits / shard.manifest().source_bytes.max(1) as f64,
                loss: nats / tokens.max(1) as f64,
                tokens,
            };
            self.observer.eval(&record);
            if let Err(e) = self.log.eval(&record) {
                self.observer.note(&format!("cannot write the log: {e}"));
            }
            self.evals.push(record);
        }
        self.run_tasks();
        Ok(())
    }

    /// The benchmarks of the recipe, by way of the observer.
    fn run_tasks(&mut self) {
        if self.recipe.eval.as_ref().is_none_or(|e| e.tasks.is_none()) {
            return;
        }
        match self.observer.tasks(&self.model) {
            Ok(scores) => {
                let (step, tokens, phase) = (self.state.step, self.state.tokens, self.phase_of_last_step().1);
                for score in scores {
                    let record = TaskRecord { step, phase: phase.clone(), tokens, score };
                    self.observer.task(&record);
                    if let Err(e) = self.log.task(&record) {
                        self.observer.note(&format!("cannot write the log: {e}"));
                    }
                }
            }
            // A stop is no trouble of the benchmarks.
            Err(_) if self.stopped() => {}
            Err(e) => self.observer.note(&format!("step {}: benchmarks were not run: {e}", self.state.step)),
        }
    }

    /// Says and writes down what the phase was made of.
    fn report_mixture(&mut self, phase: usize) {
        let plan = &self.plan.phases[phase];
        let realised = self.mixture.realised(phase, 0, plan.schedule.steps * self.recipe.global_batch as u64);
        for part in &realised {
            let capped = match part.weight < part.uncapped {
                true => format!(", held at share {:.3} by max_epochs", part.weight),
                false => String::new(),
            };
            self.observer.note(&format!(
                "phase {}: {} gave {} rows, {} tokens, {:.2} epochs{capped}",
                plan.name, part.name, part.samples, part.tokens, part.epochs
            ));
        }
        let path = self.out.join(format!("mixture-{}.json", phase));
        // The rows are plain structs with string keys, which always serialise.
        let json = serde_json::to_vec_pretty(&realised).expect("plain structs serialise");
        if let Err(e) = self.fs.replace(&path, &json) {
            self.observer.note(&format!("cannot write {}: {e}", path.display()));
        }
    }

    /// Number and name of the phase of the last step done, or the first phase.
    fn phase_of_last_step(&self) -> (usize, String) {
        let (phase, _) = self.plan.place(self.state.step.saturating_sub(1));
        (phase, self.plan.phases[phase].name.clone())
    }

    /// Copies the state and starts to write it, unless that was done for this step.
    fn save(&mut self) {
        if self.saved == Some(self.state.step) {
            return;
        }
        // The log must not be behind a checkpoint that a resume starts from.
        if let Err(e) = self.log.flush() {
            self.observer.note(&format!("cannot write the log: {e}"));
        }
        let (phase, name) = self.phase_of_last_step();
        let trajectory = trajectory(self.recipe, &self.config, &self.plan, phase);
        let head = ckpt::Head {
            step: self.state.step,
            tokens: self.state.tokens,
            phase: name,
            milestone: self.plan.ends_phase(self.state.step),
            config_sha256: trajectory_sha256(&trajectory),
            data_cursor: (self.state.step - self.plan.phases[phase].start) * self.recipe.global_batch as u64,
            data_sha256: self.mixture.fingerprint(phase),
        };
        let context = Context { config: &self.config, trajectory: &trajectory, files: &self.files, head };
        let snapshot = self.state.snapshot(&*self.device, context);
        self.saved = Some(self.state.step);
        let before = self.saver.start(snapshot);
        self.hear(before);
    }

    fn hear_saver(&mut self) {
        let outcome = self.saver.poll();
        self.hear(outcome);
    }

    /// A save that failed is said and tried again at the next checkpoint; the run goes on.
    fn hear(&mut self, outcome: Option<Outcome>) {
        match outcome {
            Some(Ok(manifest)) => self.observer.note(&format!("saved step {}", manifest.head.step)),
            Some(Err(e)) => {
                self.saved = None;
                self.observer.note(&format!("a checkpoint was not saved: {e}"));
            }
            None => {}
        }
    }

    fn diverged(&mut self, why: Option<String>) -> TrainError {
        let outcome = self.saver.finish();
        self.hear(outcome);
        TrainError::Diverged {
            step: self.state.step,
            skips: self.state.guard.consecutive_skips,
            why: why.unwrap_or_default(),
        }
    }

    /// Saves what is not saved yet and waits for it.
    fn leave(mut self) -> Result<Summary, TrainError> {
        let outcome = self.saver.finish();
        self.hear(outcome);
        self.save();
        if let Some(outcome) = self.saver.finish() {
            outcome?;
        }
        Ok(Summary {
            step: self.state.step,
            steps: self.plan.steps(),
            tokens: self.state.tokens,
            skipped: self.state.guard.skipped,
            loss: self.log.history().last().map(|r| r.loss),
            checkpoint: ckpt::step_dir(self.out, self.state.step),
            evals: self.evals,
        })
    }
}

/// Rows as one batch of spans, each from zero state, and their targets.
fn pack(rows: &[Sample]) -> (Batch, Vec<u32>) {
    let (mut batch, mut targets) = (Batch::default(), Vec::new());
    for row in rows {
        for &(start, len) in &row.spans {
            batch.push(batch.spans.len(), 0, &row.tokens[start..start + len]);
        }
        targets.extend_from_slice(&row.targets);
    }
    debug_assert_eq!(batch.len(), targets.len());
    (batch, targets)
}

/// Sum of the losses of rows in nats, without gradients.
fn score(model: &Zamba, workspace: &Workspace, rows: &[Sample]) -> f64 {
    let (batch, targets) = pack(rows);
    let mut ctx = workspace.infer(batch, None);
    let hidden = model.forward(&mut ctx);
    let nll = model.nll(&mut ctx, &hidden, &targets);
    let mut nll_t = vec![0.0; targets.len()];
    ctx.read(&nll, 0, &mut nll_t);
    nll_t.iter().zip(&targets).filter(|(_, t)| **t != IGNORE).map(|(x, _)| f64::from(*x)).sum()
}
