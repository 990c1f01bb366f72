//! The TOML of a run: complete, strict, and resolved before anything starts.
//!
//! A key that is not known is an error, as is a value out of range; each message names the key. Paths are
//! relative to the folder of the recipe. `--set key=value` replaces or adds one value: `--set seed=7`,
//! `--set optimiser.clip=0.5`, `--set phase.anneal.steps=100` (phases by name or by number from 0).

mod plan;

pub use plan::{PhasePlan, Plan, differences, trajectory, trajectory_sha256};

use crate::guard::GuardConfig;
use crate::schedule::{From, Shape};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zamba::config::{ConfigError, ZambaConfig};
use zamba_data::fs::{Fs, parent};

/// Why a recipe cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file, or one that it names, cannot be read.
    #[error("cannot read {path} ({key}): {source}")]
    Read {
        /// Key that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Not TOML, or a key or type that a recipe does not have.
    #[error("{path}: {message}")]
    Syntax {
        /// The recipe.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// A `--set` that does not fit.
    #[error("--set {key}: {problem}")]
    Set {
        /// The key as given.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A value that cannot be.
    #[error("recipe key `{key}`: {problem}")]
    Value {
        /// The key, dotted.
        key: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The model's configuration is refused.
    #[error("recipe key `model`: {0}")]
    Model(#[from] ConfigError),
}

fn value(key: impl Into<String>, problem: impl Into<String>) -> RecipeError {
    RecipeError::Value { key: key.into(), problem: problem.into() }
}

/// Arithmetic of the matrices. Master weights, moments and gradients are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// f32 throughout.
    #[default]
    F32,
    /// Matrices and their operands in bf16, sums in f32.
    Bf16,
}

/// Which model to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ModelSource {
    /// A preset's name, or else the path of a `config.json`.
    Named(String),
    /// The fields of a `config.json`.
    Inline(serde_json::Map<String, serde_json::Value>),
}

/// AdamW and clipping. Learning rates are those of the phases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimiser {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the tensors that decay.
    pub weight_decay: f64,
    /// Largest global norm of the gradients; 0 for no clipping.
    pub clip: f64,
}

impl Default for Optimiser {
    fn default() -> Self {
        Optimiser { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0 }
    }
}

/// A source of documents: one or more token shards under one name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// Name in reports; the same name in several phases is the same source and continues where it was.
    pub name: String,
    /// Shards without `.idx`/`.bin`.
    #[serde(alias = "path")]
    pub paths: OneOrMany,
    /// Share among the phase's own sources; they need not add up to 1.
    pub weight: f64,
    /// How often its documents may have been read at the end of the phase, earlier phases included. A source that would
    /// be read more often gets a smaller share, the others in proportion more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_epochs: Option<f64>,
}

/// One path or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(PathBuf),
    /// Several.
    Many(Vec<PathBuf>),
}

impl OneOrMany {
    /// As a slice.
    pub fn as_slice(&self) -> &[PathBuf] {
        match self {
            OneOrMany::One(p) => std::slice::from_ref(p),
            OneOrMany::Many(p) => p,
        }
    }
}

/// The share of a phase that repeats the mixture of an earlier one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaySpec {
    /// Name of the earlier phase.
    pub phase: String,
    /// Its share, from 0 to 1.
    pub fraction: f64,
}

/// One phase of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Name in logs and reports.
    pub name: String,
    /// Optimiser steps; or give `tokens`.
    pub steps: Option<u64>,
    /// Tokens, rounded up to whole steps; or give `steps`.
    pub tokens: Option<u64>,
    /// Highest learning rate.
    pub peak: f64,
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warmup: u64,
    /// Where the warm-up starts.
    #[serde(default)]
    pub warmup_from: From,
    /// Form of the rate after the warm-up.
    pub schedule: Shape,
    /// What is trained on.
    pub sources: Vec<SourceSpec>,
    /// Repetition of an earlier phase's data.
    pub replay: Option<ReplaySpec>,
}

/// Evaluation during the run: bits per byte on held-out shards, and benchmarks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// Steps between evaluations; there is always one at the end of a phase.
    pub every: u64,
    /// Held-out shards by name.
    #[serde(default)]
    pub shards: BTreeMap<String, PathBuf>,
    /// Benchmarks, for which the recipe must name a `tokenizer`.
    pub tasks: Option<TaskEval>,
}

/// Benchmarks during the run; what `zamba eval` has as flags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskEval {
    /// Tasks, groups and tags.
    pub names: Vec<String>,
    /// Folder of data sets.
    pub data: PathBuf,
    /// Folders with more task files.
    #[serde(default)]
    pub include_path: Vec<PathBuf>,
    /// Solved examples before each question.
    pub num_fewshot: Option<usize>,
    /// Only the first questions of each task, or a share of them if below 1.
    pub limit: Option<f64>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Decides the initial weights and the order of the data.
    #[serde(default)]
    pub seed: u64,
    /// The model.
    pub model: ModelSource,
    /// A `tokenizer.json`; it and its neighbours are copied into the checkpoints.
    pub tokenizer: Option<PathBuf>,
    /// Arithmetic.
    #[serde(default)]
    pub compute: Compute,
    /// Storage of the published weights in each checkpoint; by default that of `compute`.
    pub publish: Option<Compute>,
    /// Whether layers are computed again in the backward pass to save memory.
    #[serde(default)]
    pub recompute: bool,
    /// Tokens per row.
    pub sequence: usize,
    /// Rows per forward and backward pass.
    pub micro_batch: usize,
    /// Rows per optimiser step; a multiple of `micro_batch`.
    pub global_batch: usize,
    /// Steps between checkpoints; there is always one at the end of a phase.
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept, at least 2. Ends of phases are always kept.
    #[serde(default = "three")]
    pub keep: usize,
    /// What the machine can do in 10^12 operations per second, measured or from its data sheet; without it
    /// `mfu` is null in the log.
    pub peak_tflops: Option<f64>,
    /// Optimiser.
    #[serde(default)]
    pub optimiser: Optimiser,
    /// Guards in front of the update.
    #[serde(default)]
    pub guard: GuardConfig,
    /// Evaluation.
    pub eval: Option<Eval>,
    /// The phases in order.
    pub phase: Vec<Phase>,
    /// Folder that paths are relative to.
    #[serde(skip)]
    pub base: PathBuf,
}

fn three() -> usize {
    3
}

impl Recipe {
    /// Reads a recipe, applies `sets` (`key=value`) in order, and checks every value.
    ///
    /// # Errors
    /// [`RecipeError`], naming the key.
    pub fn load(fs: &dyn Fs, path: &Path, sets: &[String]) -> Result<Recipe, RecipeError> {
        let bytes = fs.read(path);
        let bytes =
            bytes.map_err(|source| RecipeError::Read { key: "recipe", path: path.to_owned(), source })?;
        let text = String::from_utf8(bytes).map_err(|_| RecipeError::Syntax {
            path: path.to_owned(),
            message: "is not UTF-8 text".into(),
        })?;
        Recipe::parse(&text, path, sets)
    }

    /// As [`Recipe::load`], from text; `path` is for messages and for the folder of relative paths.
    ///
    /// # Errors
    /// [`RecipeError`], naming the key.
    pub fn parse(text: &str, path: &Path, sets: &[String]) -> Result<Recipe, RecipeError> {
        let syntax = |message: String| RecipeError::Syntax { path: path.to_owned(), message };
        // The text is parsed into the types first, because only then can a message point to a line.
        let typed = |text: &str| {
            toml::from_str::<Recipe>(text).map_err(|e| {
                let line = e.span().map(|s| text.bytes().take(s.start).filter(|b| *b == b'\n').count() + 1);
                let place = line.map(|n| format!("line {n}: ")).unwrap_or_default();
                syntax(format!("{place}{}", one_line(e.message())))
            })
        };
        let mut recipe = if sets.is_empty() {
            typed(text)?
        } else {
            let mut table: toml::Table = toml::from_str(text).map_err(|e| syntax(one_line(e.message())))?;
            for set in sets {
                apply_set(&mut table, set)?;
            }
            table.try_into().map_err(|e: toml::de::Error| syntax(one_line(e.message())))?
        };
        recipe.base = parent(path).to_owned();
        recipe.check()?;
        Ok(recipe)
    }

    /// Passes per step.
    pub fn accumulation(&self) -> usize {
        self.global_batch / self.micro_batch
    }

    /// Tokens per optimiser step.
    pub fn tokens_per_step(&self) -> u64 {
        (self.global_batch * self.sequence) as u64
    }

    /// A path of the recipe as the process sees it.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// The configuration of the model, with `dtype` set to what is published.
    ///
    /// # Errors
    /// If the model is unknown, cannot be read or is refused.
    pub fn model_config(&self, fs: &dyn Fs) -> Result<ZambaConfig, RecipeError> {
        let mut config = match &self.model {
            ModelSource::Inline(map) => {
                ZambaConfig::from_json(&serde_json::Value::Object(map.clone()).to_string())?
            }
            ModelSource::Named(name) if ZambaConfig::preset_names().contains(&name.as_str()) => {
                ZambaConfig::preset(name)?
            }
            ModelSource::Named(name) if name.ends_with(".json") => {
                let path = self.resolve(Path::new(name));
                let bytes = fs.read(&path);
                let bytes = bytes.map_err(|source| RecipeError::Read { key: "model", path, source })?;
                ZambaConfig::from_json(&String::from_utf8_lossy(&bytes))?
            }
            ModelSource::Named(name) => ZambaConfig::preset(name)?,
        };
        if config.quantization.is_some() {
            let problem = "quantised weights have no gradients; remove `quantization_config`".to_owned();
            return Err(RecipeError::Value { key: "model".into(), problem });
        }
        config.dtype = match self.publish.unwrap_or(self.compute) {
            Compute::F32 => zamba::config::FileDtype::F32,
            Compute::Bf16 => zamba::config::FileDtype::Bf16,
        };
        Ok(config)
    }

    fn check(&self) -> Result<(), RecipeError> {
        let positive = [
            ("sequence", self.sequence as u64),
            ("micro_batch", self.micro_batch as u64),
            ("global_batch", self.global_batch as u64),
            ("checkpoint_every", self.checkpoint_every),
        ];
        for (key, n) in positive {
            if n == 0 {
                return Err(value(key, "must be at least 1"));
            }
        }
        if self.sequence > 1 << 24 || self.global_batch > 1 << 24 {
            return Err(value("sequence", "rows and tokens per row must be below 2^24"));
        }
        if !self.global_batch.is_multiple_of(self.micro_batch) {
            let problem =
                format!("{} is not a multiple of micro_batch {}", self.global_batch, self.micro_batch);
            return Err(value("global_batch", problem));
        }
        if self.keep < crate::ckpt::MIN_KEEP {
            return Err(value("keep", "must be at least 2, so that one damaged checkpoint is not the end"));
        }
        self.check_optimiser()?;
        self.check_eval()?;
        self.check_phases()
    }

    fn check_eval(&self) -> Result<(), RecipeError> {
        let Some(eval) = &self.eval else { return Ok(()) };
        if eval.every == 0 || (eval.shards.is_empty() && eval.tasks.is_none()) {
            return Err(value("eval", "needs `every` of at least 1 and at least one shard, or tasks"));
        }
        let Some(tasks) = &eval.tasks else { return Ok(()) };
        if tasks.names.is_empty() {
            return Err(value("eval.tasks.names", "must name at least one task"));
        }
        if tasks.limit.is_some_and(|limit| limit.is_nan() || limit <= 0.0) {
            return Err(value("eval.tasks.limit", "must be above 0"));
        }
        if self.tokenizer.is_none() {
            return Err(value("tokenizer", "must be named, or there is no text to run eval.tasks on"));
        }
        Ok(())
    }

    fn check_optimiser(&self) -> Result<(), RecipeError> {
        let o = &self.optimiser;
        let checks = [
            ("optimiser.beta1", (0.0..1.0).contains(&o.beta1), "must be in [0, 1)"),
            ("optimiser.beta2", (0.0..1.0).contains(&o.beta2), "must be in [0, 1)"),
            ("optimiser.eps", o.eps > 0.0 && o.eps.is_finite(), "must be positive"),
            (
                "optimiser.weight_decay",
                o.weight_decay >= 0.0 && o.weight_decay.is_finite(),
                "must not be negative",
            ),
            ("optimiser.clip", o.clip >= 0.0 && o.clip.is_finite(), "must not be negative (0: off)"),
            ("guard.spike_sigmas", self.guard.spike_sigmas > 0.0, "must be positive (off: spike_window = 0)"),
            ("peak_tflops", self.peak_tflops.is_none_or(|p| p > 0.0 && p.is_finite()), "must be positive"),
        ];
        match checks.into_iter().find(|(_, good, _)| !good) {
            Some((key, _, problem)) => Err(value(key, problem)),
            None => Ok(()),
        }
    }

    fn check_phases(&self) -> Result<(), RecipeError> {
        if self.phase.is_empty() {
            return Err(value("phase", "a run needs at least one [[phase]]"));
        }
        let mut paths: BTreeMap<&str, &OneOrMany> = BTreeMap::new();
        for (i, phase) in self.phase.iter().enumerate() {
            let key = |field: &str| format!("phase.{}.{field}", phase.name);
            let earlier = &self.phase[..i];
            if phase.name.is_empty() || earlier.iter().any(|p| p.name == phase.name) {
                return Err(value(
                    format!("phase.{i}.name"),
                    "must be there and differ from the other phases'",
                ));
            }
            if phase.steps.is_some() == phase.tokens.is_some() {
                return Err(value(key("steps"), "give either `steps` or `tokens`"));
            }
            if phase.steps == Some(0) || phase.tokens == Some(0) {
                return Err(value(key("steps"), "must be at least 1"));
            }
            check_schedule(phase)?;
            for source in &phase.sources {
                if !(source.weight > 0.0 && source.weight.is_finite()) {
                    return Err(value(key(&format!("sources.{}.weight", source.name)), "must be positive"));
                }
                if source.max_epochs.is_some_and(|most| !(most > 0.0 && most.is_finite())) {
                    return Err(value(
                        key(&format!("sources.{}.max_epochs", source.name)),
                        "must be positive",
                    ));
                }
                if *paths.entry(&source.name).or_insert(&source.paths) != &source.paths {
                    let problem = "has other paths in an earlier phase; give it another name";
                    return Err(value(key(&format!("sources.{}", source.name)), problem));
                }
            }
            let replayed = phase.replay.as_ref().map_or(0.0, |r| r.fraction);
            if phase.replay.as_ref().is_some_and(|r| !earlier.iter().any(|p| p.name == r.phase)) {
                return Err(value(key("replay.phase"), "must be the name of an earlier phase"));
            }
            if !(0.0..=1.0).contains(&replayed) {
                return Err(value(key("replay.fraction"), "must be from 0 to 1"));
            }
            if phase.sources.is_empty() && replayed < 1.0 {
                return Err(value(key("sources"), "must name at least one source"));
            }
        }
        Ok(())
    }
}

fn check_schedule(phase: &Phase) -> Result<(), RecipeError> {
    let key = |field: &str| format!("phase.{}.{field}", phase.name);
    if !(phase.peak > 0.0 && phase.peak.is_finite()) {
        return Err(value(key("peak"), "must be positive"));
    }
    let (Shape::Linear { end }
    | Shape::Cosine { end }
    | Shape::Exponential { end, .. }
    | Shape::Wsd { end, .. }) = phase.schedule
    else {
        return Ok(());
    };
    if !(0.0..=phase.peak).contains(&end) {
        return Err(value(key("schedule.end"), "must be from 0 to the peak"));
    }
    if let Shape::Exponential { gamma, .. } = phase.schedule
        && !(gamma > 0.0 && gamma.is_finite())
    {
        return Err(value(key("schedule.gamma"), "must be positive"));
    }
    Ok(())
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Sets one dotted key of a recipe. What is not TOML is taken as text, so that paths need no quotes.
fn apply_set(table: &mut toml::Table, set: &str) -> Result<(), RecipeError> {
    let error = |problem: &str| RecipeError::Set { key: set.to_owned(), problem: problem.into() };
    let (key, text) = set.split_once('=').ok_or_else(|| error("must have the form key=value"))?;
    let new = match toml::from_str::<toml::Table>(&format!("x = {text}")) {
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("x").unwrap_or_else(|| text.into()),
        _ => toml::Value::String(text.to_owned()),
    };
    let (mut parts, last) = match key.trim().rsplit_once('.') {
        Some((front, last)) => (front.split('.').collect::<Vec<_>>(), last),
        None => (Vec::new(), key.trim()),
    };
    if last.is_empty() || parts.iter().any(|p| p.is_empty()) {
        return Err(error("the key has an empty part"));
    }
    parts.reverse();
    let mut at = table;
    while let Some(part) = parts.pop() {
        let next = at.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = match next {
            toml::Value::Table(t) => t,
            toml::Value::Array(items) => {
                let which = parts.pop().ok_or_else(|| error("names a list; add a number or a name"))?;
                pick(items, which).ok_or_else(|| error("there is no such entry in the list"))?
            }
            _ => return Err(error("goes through something that is not a table")),
        };
    }
    at.insert(last.to_owned(), new);
    Ok(())
}

/// A table of a list, by its `name` or its number from 0.
fn pick<'a>(items: &'a mut [toml::Value], which: &str) -> Option<&'a mut toml::Table> {
    let named = |v: &toml::Value| v.get("name").and_then(|n| n.as_str()) == Some(which);
    let i = items.iter().position(named).or_else(|| which.parse().ok())?;
    items.get_mut(i)?.as_table_mut()
}

#[cfg(test)]
mod tests;
