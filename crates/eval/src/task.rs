//! Tasks: definitions by name, their documents, and the requests made of them.

mod config;
mod data;
mod error;
mod functions;
mod library;
mod prompt;
mod template;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::python::{Doc, Random};

pub(crate) use config::{
    Aggregation, FilterConfig, FilterList, Metric, MetricConfig, OutputType, TaskConfig,
};
pub use data::{DataSource, Fetch, Wanted};
pub use error::TaskError;
pub(crate) use library::SelectedGroup;
pub use library::{Library, Selection};
pub(crate) use prompt::{Case, Gold, Request};

use config::{GenerationConfig, Sampler, Source};
use data::{Rows, Store};
use functions::{COUNT, CountFunction, DOC, DocFunction, PROCESS};
use library::SelectedTask;
use template::Templates;

/// How much of a task to run, and with how many shots.
#[derive(Debug, Clone, Copy, Default)]
pub struct TaskOptions {
    /// Shots before each question, where the task's file does not insist on none.
    pub num_fewshot: Option<usize>,
    /// Documents of each task: below 1 a share of them, else a number.
    pub limit: Option<f64>,
    /// Seed of the choice of shots; 1234 in lm-evaluation-harness.
    pub seed: u64,
}

/// A task with its documents.
pub(crate) struct Task {
    pub(crate) config: TaskConfig,
    pub(crate) num_fewshot: usize,
    rows: Rows,
    /// Documents to be evaluated, from the first on.
    pub(crate) limit: usize,
    shots: Shots,
    templates: Templates,
    functions: BTreeMap<String, DocFunction>,
    count: Option<CountFunction>,
    /// What metrics the task has.
    pub(crate) metrics: Vec<MetricConfig>,
    multiple_inputs: bool,
    multiple_targets: bool,
}

/// Where shots come from and how they are chosen.
struct Shots {
    rows: Rows,
    name: String,
    sampler: Sampler,
    /// Whether the document itself may be among them and must be left out.
    excludes: bool,
    seed: u64,
}

impl Task {
    /// Reads what a task needs.
    pub(crate) fn open(
        selected: SelectedTask,
        source: &DataSource<'_>,
        options: &TaskOptions,
        store: &mut Store,
    ) -> Result<Self, TaskError> {
        let SelectedTask { config, file, folder } = selected;
        let wrong =
            |reason: String| TaskError::Definition { file: format!("{file}, task {}", config.task), reason };
        let metrics = check(&config).map_err(wrong)?;
        let process = config.process_docs.as_ref().map(|f| functions::find(PROCESS, &f.name));
        let process = process.transpose().map_err(wrong)?;
        let count = config.process_results.as_ref().map(|f| functions::find(COUNT, &f.name));
        let count = count.transpose().map_err(wrong)?;
        let functions = doc_functions(&config).map_err(wrong)?;
        let num_fewshot = match (options.num_fewshot, config.num_fewshot) {
            (Some(_), Some(0)) => 0,
            (Some(n), _) => n,
            (None, own) => own.unwrap_or(0),
        };

        let mut load = |split: &str| -> Result<Rows, TaskError> {
            let mut rows = source.rows(&config, &folder, split, store)?;
            let Some(process) = process else { return Ok(rows) };
            for i in 0..rows.docs.len() {
                process(&mut rows.docs[i]).map_err(|reason| TaskError::Document {
                    place: rows.place(i),
                    task: config.task.clone(),
                    what: "process_docs",
                    reason,
                })?;
            }
            Ok(rows)
        };
        let split = config.test_split.as_deref().or(config.validation_split.as_deref());
        let split = split.ok_or_else(|| wrong("test_split or validation_split must be named".into()))?;
        let rows = load(split)?;
        let shots = shots(&config, num_fewshot, options.seed, &mut load)?;
        let limit = limit(rows.docs.len(), options.limit);
        let mut task = Task {
            num_fewshot,
            rows,
            limit,
            shots,
            templates: Templates::new(),
            functions,
            count,
            metrics,
            multiple_inputs: false,
            multiple_targets: false,
            config,
        };
        // The first document decides, as in lm-evaluation-harness.
        let text = task.text_of(&task.rows, 0)?;
        task.multiple_inputs = text.is_number() && task.config.doc_to_choice.is_some();
        task.multiple_targets = task.target_of(&task.rows, 0)?.is_array();
        Ok(task)
    }

    /// Number of documents there are, evaluated or not.
    pub(crate) fn documents(&self) -> usize {
        self.rows.docs.len()
    }

    /// A document.
    pub(crate) fn doc(&self, index: usize) -> &Doc {
        &self.rows.docs[index]
    }

    /// File and row of a document.
    pub(crate) fn place(&self, index: usize) -> String {
        self.rows.place(index)
    }

    fn fail(&self, rows: &Rows, index: usize, what: &'static str, reason: String) -> TaskError {
        TaskError::Document { place: rows.place(index), task: self.config.task.clone(), what, reason }
    }

    /// The value that a source has for a document.
    fn value(&self, source: &Source, doc: &Doc) -> Result<Value, String> {
        match source {
            Source::Fixed(value) => Ok(value.clone()),
            Source::Function(function) => self.functions[&function.name](doc),
            // Columns are those of the documents to be evaluated, also where the document is a shot.
            Source::Text(name) if self.rows.docs[0].contains_key(name) => {
                doc.get(name).cloned().ok_or_else(|| format!("there is no field `{name}`"))
            }
            Source::Text(template) => self.templates.render(template, doc).map(Value::String),
        }
    }
}

/// The number of documents to evaluate.
fn limit(documents: usize, limit: Option<f64>) -> usize {
    match limit {
        None => documents,
        Some(share) if share < 1.0 => ((documents as f64 * share).ceil() as usize).min(documents),
        Some(number) => (number as usize).min(documents),
    }
}

fn shots(
    config: &TaskConfig,
    num_fewshot: usize,
    seed: u64,
    load: &mut dyn FnMut(&str) -> Result<Rows, TaskError>,
) -> Result<Shots, TaskError> {
    let own = &config.fewshot_config;
    let split = own.split.as_ref().or(config.fewshot_split.as_ref());
    let (rows, name) = if num_fewshot == 0 {
        (Rows::default(), String::new())
    } else {
        let fallback = [&config.training_split, &config.validation_split, &config.test_split]
            .into_iter()
            .flatten()
            .next();
        match (split, &own.samples, fallback) {
            (Some(split), _, _) => (load(split)?, split.clone()),
            (None, Some(samples), _) => (Rows::inline(samples.clone()), "fewshot_config.samples".to_owned()),
            (None, None, Some(split)) => (load(split)?, split.clone()),
            (None, None, None) => (Rows::default(), "no split".to_owned()),
        }
    };
    Ok(Shots { rows, name, sampler: own.sampler, excludes: split == config.test_split.as_ref(), seed })
}

/// Refuses what cannot be honoured, and gives the figures of the task.
fn check(config: &TaskConfig) -> Result<Vec<MetricConfig>, String> {
    if config.repeats.is_some_and(|n| n != 1) {
        return Err("repeats other than 1 are not supported: generation has no random choice".to_owned());
    }
    let random = |g: &GenerationConfig| g.do_sample == Some(true) || g.temperature.is_some_and(|t| t > 0.0);
    if config.generation_kwargs.as_ref().is_some_and(random) {
        return Err("generation_kwargs: only greedy generation is supported; set do_sample: false".to_owned());
    }
    if config.output_type == OutputType::MultipleChoice && config.doc_to_choice.is_none() {
        return Err("a multiple_choice task needs doc_to_choice".to_owned());
    }
    if config.process_results.is_some() && config.output_type != OutputType::LoglikelihoodRolling {
        return Err("process_results is for tasks of loglikelihood_rolling only".to_owned());
    }
    let plain = |metric| MetricConfig {
        metric,
        aggregation: None,
        higher_is_better: None,
        ignore_case: None,
        ignore_punctuation: None,
        ignore_numbers: None,
        regexes_to_ignore: None,
    };
    let defaults = || Metric::defaults(config.output_type).into_iter().map(plain).collect();
    let metrics: Vec<MetricConfig> = config.metric_list.clone().unwrap_or_else(defaults);
    for metric in &metrics {
        if !metric.metric.fits(config.output_type) {
            let name = metric.metric.name();
            return Err(format!("metric {name} does not belong to the output_type of the task"));
        }
        if metric.aggregation.is_some_and(|a| a != metric.metric.aggregation()) {
            return Err(format!("metric {} has another aggregation", metric.metric.name()));
        }
    }
    Ok(metrics)
}

fn doc_functions(config: &TaskConfig) -> Result<BTreeMap<String, DocFunction>, String> {
    let own = &config.fewshot_config;
    let sources = [
        Some(&config.doc_to_text),
        Some(&config.doc_to_target),
        config.doc_to_choice.as_ref(),
        own.doc_to_text.as_ref(),
        own.doc_to_target.as_ref(),
        own.doc_to_choice.as_ref(),
    ];
    let mut found = BTreeMap::new();
    for source in sources.into_iter().flatten() {
        if let Source::Function(function) = source {
            found.insert(function.name.clone(), functions::find(DOC, &function.name)?);
        }
    }
    Ok(found)
}

/// Tasks with their documents, and the groups above them.
pub struct Suite {
    pub(crate) tasks: Vec<Task>,
    pub(crate) groups: Vec<SelectedGroup>,
}

impl Suite {
    /// Reads the documents of the chosen tasks.
    ///
    /// # Errors
    /// [`TaskError`], with the file, row and field where it is one of these that is wrong.
    pub fn open(
        selection: Selection,
        source: &DataSource<'_>,
        options: &TaskOptions,
    ) -> Result<Self, TaskError> {
        let mut store = Store::new();
        let mut tasks = vec![];
        for selected in selection.tasks {
            tasks.push(Task::open(selected, source, options, &mut store)?);
        }
        Ok(Suite { tasks, groups: selection.groups })
    }

    /// Number of documents that will be evaluated.
    pub fn documents(&self) -> usize {
        self.tasks.iter().map(|t| t.limit).sum()
    }
}

impl Shots {
    fn random(&self) -> Random {
        Random::new(self.seed)
    }
}
