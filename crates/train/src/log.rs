//! What a run leaves to be looked at: `log.jsonl`, `eval.jsonl`, `tasks.jsonl`, TensorBoard event files, `loss.svg`.
//!
//! Nothing here may stop a run: a line that cannot be written is reported once to the caller and the next
//! one is tried again. On resume both files are cut back to the resumed step, so that a step that was
//! done twice is logged once.

mod plot;
mod tensorboard;

use serde::{Deserialize, Deserializer, Serialize};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tensorboard::EventFile;
use zamba::Zamba;
use zamba_data::fs::{Fs, FsWrite};

/// A line of `log.jsonl`: one optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimiser steps done, this one included.
    pub step: u64,
    /// Phase it belongs to.
    pub phase: String,
    /// Mean negative log-likelihood per predicted token, in nats; null in the file if it is not finite.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradients before clipping; null in the file if it is not finite.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Tokens trained on since the run began.
    pub tokens: u64,
    /// Tokens of this step over its seconds.
    pub tokens_per_second: f64,
    /// Model FLOPs utilisation, if the peak of the machine is known.
    pub mfu: Option<f64>,
    /// Seconds spent in steps since the run began, those before a resume included.
    pub seconds: f64,
    /// Why the update was skipped, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// A line of `eval.jsonl`: one held-out shard after one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimiser steps done.
    pub step: u64,
    /// Phase of the last step.
    pub phase: String,
    /// Name of the shard in the recipe.
    pub shard: String,
    /// Bits per byte of its text.
    pub bits_per_byte: f64,
    /// Nats per predicted token.
    pub loss: f64,
    /// Tokens predicted.
    pub tokens: u64,
}

/// A figure of a benchmark, as whoever runs them gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// Task or group.
    pub task: String,
    /// What was measured, such as `acc`.
    pub metric: String,
    /// How answers were taken from responses; `none` where there is no choice.
    pub filter: String,
    /// The figure.
    pub value: f64,
    /// Its standard error, where it has one.
    pub stderr: Option<f64>,
}

/// A line of `tasks.jsonl`: one figure of a benchmark after one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Optimiser steps done.
    pub step: u64,
    /// Phase of the last step.
    pub phase: String,
    /// Tokens trained on.
    pub tokens: u64,
    /// The figure.
    #[serde(flatten)]
    pub score: TaskScore,
}

fn null_is_nan<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
}

/// Who watches a run: the progress bar of the command line, or a test.
pub trait Observer {
    /// A step was done; `total` is the number of steps of the whole run.
    fn step(&mut self, record: &StepRecord, total: u64);
    /// A held-out shard was scored.
    fn eval(&mut self, record: &EvalRecord);
    /// Runs the benchmarks of the recipe, if it has any, and gives their figures. This crate knows no benchmarks;
    /// whoever starts the run brings them.
    ///
    /// # Errors
    /// In words. The run goes on.
    fn tasks(&mut self, _model: &Zamba) -> Result<Vec<TaskScore>, String> {
        Ok(vec![])
    }
    /// A figure of a benchmark was logged.
    fn task(&mut self, _record: &TaskRecord) {}
    /// Something that a person should know.
    fn note(&mut self, text: &str);
}

/// An observer that looks away.
pub struct Silent;

impl Observer for Silent {
    fn step(&mut self, _: &StepRecord, _: u64) {}
    fn eval(&mut self, _: &EvalRecord) {}
    fn note(&mut self, _: &str) {}
}

/// A file of JSON lines that is only appended to.
struct Lines {
    file: Box<dyn FsWrite>,
    /// A write failed half-way, so the next line must not be glued to the remains.
    torn: bool,
}

impl Lines {
    /// Opens `path` with the lines of `keep` in it, and returns those.
    fn open<T>(fs: &dyn Fs, path: &Path, keep: impl Fn(&T) -> bool) -> io::Result<(Self, Vec<T>)>
    where
        T: Serialize + for<'de> Deserialize<'de>,
    {
        let old = if fs.exists(path)? { fs.read(path)? } else { Vec::new() };
        let (mut kept, mut text) = (Vec::new(), Vec::new());
        for line in old.split(|b| *b == b'\n') {
            // A torn line is what a kill leaves; the step behind it is done again or was never logged.
            let Ok(record) = serde_json::from_slice::<T>(line) else { continue };
            if keep(&record) {
                text.extend_from_slice(line);
                text.push(b'\n');
                kept.push(record);
            }
        }
        if text != old || old.is_empty() {
            fs.replace(path, &text)?;
        }
        Ok((Lines { file: fs.append(path)?, torn: false }, kept))
    }

    fn push(&mut self, record: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if self.torn {
            line.insert(0, b'\n');
        }
        let written = self.file.write_all(&line);
        self.torn = written.is_err();
        written
    }
}

/// The files of a run's log.
pub struct RunLog {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    steps: Lines,
    evals: Lines,
    tasks: Lines,
    events: Option<EventFile>,
    history: Vec<StepRecord>,
}

impl RunLog {
    /// Opens the log in `dir` for a run that stands at step `step`; what was logged after it is removed.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, step: u64) -> io::Result<Self> {
        fs.create_dirs(dir)?;
        let (steps, history) = Lines::open(&*fs, &dir.join("log.jsonl"), |r: &StepRecord| r.step <= step)?;
        let (evals, _) = Lines::open(&*fs, &dir.join("eval.jsonl"), |r: &EvalRecord| r.step <= step)?;
        let (tasks, _) = Lines::open(&*fs, &dir.join("tasks.jsonl"), |r: &TaskRecord| r.step <= step)?;
        let events = EventFile::create(&*fs, &dir.join("tensorboard"), now(), step)?;
        Ok(RunLog { fs, dir: dir.to_owned(), steps, evals, tasks, events: Some(events), history })
    }

    /// Seconds that the logged steps took.
    pub fn seconds(&self) -> f64 {
        self.history.last().map_or(0.0, |r| r.seconds)
    }

    /// All steps so far.
    pub fn history(&self) -> &[StepRecord] {
        &self.history
    }

    /// Logs a step.
    ///
    /// # Errors
    /// If a file cannot be written; the run may go on.
    pub fn step(&mut self, record: StepRecord) -> io::Result<()> {
        let written = self.steps.push(&record);
        let mut scalars = vec![
            ("train/loss", record.loss),
            ("train/lr", record.lr),
            ("train/grad_norm", record.grad_norm),
            ("train/tokens_per_second", record.tokens_per_second),
        ];
        scalars.extend(record.mfu.map(|mfu| ("train/mfu", mfu)));
        let events = self.events(record.step, &scalars);
        self.history.push(record);
        written.and(events)
    }

    /// Logs a score.
    ///
    /// # Errors
    /// If a file cannot be written; the run may go on.
    pub fn eval(&mut self, record: &EvalRecord) -> io::Result<()> {
        let tag = format!("eval/{}/bits_per_byte", record.shard);
        let events = self.events(record.step, &[(&tag, record.bits_per_byte)]);
        self.evals.push(record).and(events)
    }

    /// Logs a figure of a benchmark.
    ///
    /// # Errors
    /// If a file cannot be written; the run may go on.
    pub fn task(&mut self, record: &TaskRecord) -> io::Result<()> {
        let TaskScore { task, metric, filter, value, .. } = &record.score;
        let tag = match filter.as_str() {
            "none" => format!("tasks/{task}/{metric}"),
            filter => format!("tasks/{task}/{metric}/{filter}"),
        };
        let events = self.events(record.step, &[(&tag, *value)]);
        self.tasks.push(record).and(events)
    }

    fn events(&mut self, step: u64, scalars: &[(&str, f64)]) -> io::Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let written = events.scalars(now(), step, scalars);
        if written.is_err() {
            // Half a record makes the rest of an event file unreadable, so nothing more goes into it.
            self.events = None;
        }
        written
    }

    /// Makes the log durable and draws `loss.svg` anew.
    ///
    /// # Errors
    /// If a file cannot be written; the run may go on.
    pub fn flush(&mut self) -> io::Result<()> {
        self.steps.file.sync()?;
        self.evals.file.sync()?;
        self.tasks.file.sync()?;
        if let Some(svg) = plot::loss_svg(&self.history) {
            self.fs.replace(&self.dir.join("loss.svg"), svg.as_bytes())?;
        }
        Ok(())
    }
}

/// Seconds since 1970, which TensorBoard shows beside each value.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zamba_data::fs::{Fault, FaultFs, FaultKind};

    pub(super) fn record(step: u64, phase: &str, loss: f64) -> StepRecord {
        StepRecord {
            step,
            phase: phase.into(),
            loss,
            lr: 1e-3 / step as f64,
            grad_norm: 1.0,
            tokens: step * 64,
            tokens_per_second: 1000.0,
            mfu: None,
            seconds: step as f64,
            skipped: None,
        }
    }

    fn lines(fs: &FaultFs) -> Vec<StepRecord> {
        let text = fs.read(Path::new("/out/log.jsonl")).unwrap();
        text.split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .filter_map(|l| serde_json::from_slice(l).ok())
            .collect()
    }

    #[test]
    fn a_resumed_log_has_every_step_once() {
        let fs = FaultFs::new();
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        let mut log = RunLog::open(shared.clone(), Path::new("/out"), 0).unwrap();
        for step in 1..=7 {
            log.step(record(step, "a", 3.0)).unwrap();
        }
        fs.append(Path::new("/out/log.jsonl")).unwrap().write_all(b"{\"step\": 8, \"lo").unwrap();
        let mut log = RunLog::open(shared, Path::new("/out"), 5).unwrap();
        assert_eq!((log.history().len(), log.seconds()), (5, 5.0));
        log.step(record(6, "a", 2.0)).unwrap();
        assert_eq!(lines(&fs).iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn the_keys_are_those_that_scripts_rely_on_and_nan_is_null() {
        let line = serde_json::to_value(record(1, "a", f64::NAN)).unwrap();
        let keys: Vec<_> = line.as_object().unwrap().keys().cloned().collect();
        let want = "step phase loss lr grad_norm tokens tokens_per_second mfu seconds";
        assert_eq!(keys, want.split(' ').collect::<Vec<_>>());
        assert!(line["loss"].is_null());
        assert!(serde_json::from_value::<StepRecord>(line).unwrap().loss.is_nan());
    }

    #[test]
    fn a_full_disk_costs_lines_and_not_the_log() {
        let fs = FaultFs::new();
        let mut log = RunLog::open(Arc::new(fs.clone()), Path::new("/out"), 0).unwrap();
        log.step(record(1, "a", 3.0)).unwrap();
        for (kind, forever) in [(FaultKind::ShortWrite, true), (FaultKind::Enospc, false)] {
            fs.plan(Some(Fault { at: fs.ops(), kind, forever }));
            log.step(record(2, "a", 3.0)).unwrap_err();
            fs.plan(None);
        }
        log.step(record(3, "a", 3.0)).unwrap();
        // All but the line's end got through before the disk was full for good, so it may count or not.
        let steps: Vec<_> = lines(&fs).iter().map(|r| r.step).collect();
        assert!(steps == [1, 3] || steps == [1, 2, 3], "{steps:?}");
    }
}
