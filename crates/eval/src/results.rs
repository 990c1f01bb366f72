//! Results in the words of lm-evaluation-harness, so that what reads its files reads these.

mod about;
mod sample;
mod table;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use zamba::checkpoint::manifest::hex;

use crate::metric::{self, PreparedMetric};
use crate::python;
use crate::task::{SelectedGroup, TaskConfig};

pub use about::{About, sanitize};
pub(crate) use sample::Sample;

/// What a run found.
pub struct Outcome {
    pub(crate) tasks: Vec<TaskOutcome>,
    pub(crate) groups: Vec<SelectedGroup>,
    /// Tokens that went through the model.
    pub tokens: u64,
}

pub(crate) struct TaskOutcome {
    pub(crate) config: TaskConfig,
    pub(crate) num_fewshot: usize,
    pub(crate) documents: usize,
    pub(crate) evaluated: usize,
    pub(crate) metrics: Vec<PreparedMetric>,
    pub(crate) filters: Vec<String>,
    pub(crate) samples: Vec<Sample>,
}

/// A figure of a task or group.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Name of the task or group.
    pub task: String,
    /// `acc` and so on.
    pub metric: String,
    /// The filter, `none` where there is no choice.
    pub filter: String,
    /// The figure.
    pub value: f64,
    /// Its standard error, where it has one.
    pub error: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// The figures of a run with what is to be written about them.
pub struct Results {
    /// `results_*.json`
    pub document: Value,
    /// The lines of `samples_TASK_*.jsonl` by task.
    pub samples: Vec<(String, Vec<String>)>,
    /// The figures: of each task, and of groups with figures of their own after their members.
    pub figures: Vec<Figure>,
}

impl Outcome {
    /// The figures alone.
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures: Vec<Figure> = self.tasks.iter().flat_map(TaskOutcome::figures).collect();
        for group in &self.groups {
            let found = self.group_figures(group, &figures);
            figures.extend(found);
        }
        figures
    }

    fn group_figures(&self, group: &SelectedGroup, of_tasks: &[Figure]) -> Vec<Figure> {
        let mut figures = vec![];
        for wanted in &group.config.aggregate_metric_list {
            let of_leaf = |f: &&Figure| f.metric == wanted.metric && group.leaves.contains(&f.task);
            let mut filters: Vec<&str> = match &wanted.filter_list {
                Some(list) => list.as_slice().iter().map(String::as_str).collect(),
                None => of_tasks.iter().filter(of_leaf).map(|f| f.filter.as_str()).collect(),
            };
            filters.sort_unstable();
            filters.dedup();
            for filter in filters {
                let members: Vec<&Figure> =
                    of_tasks.iter().filter(of_leaf).filter(|f| f.filter == filter).collect();
                let Some(first) = members.first() else { continue };
                let sized: Vec<_> =
                    members.iter().map(|f| (f.value, f.error, self.evaluated(&f.task))).collect();
                let (value, error) = metric::of_group(&sized, wanted.weight_by_size);
                figures.push(Figure {
                    task: group.config.group.clone(),
                    metric: wanted.metric.clone(),
                    filter: filter.to_owned(),
                    value,
                    error,
                    higher_is_better: first.higher_is_better,
                });
            }
        }
        figures
    }

    fn evaluated(&self, task: &str) -> usize {
        self.tasks.iter().find(|t| t.config.task == task).map_or(0, |t| t.evaluated)
    }

    /// Everything that is written and shown.
    pub fn results(&self, about: &About) -> Results {
        let figures = self.figures();
        let samples: Vec<(String, Vec<Map<String, Value>>)> =
            self.tasks.iter().map(|t| (t.config.task.clone(), t.sample_lines())).collect();
        let document = self.document(about, &figures, &samples);
        let lines = |maps: Vec<Map<String, Value>>| {
            maps.into_iter().map(|m| python::json(&Value::Object(m), None)).collect()
        };
        let samples = samples.into_iter().map(|(name, maps)| (name, lines(maps))).collect();
        Results { document, samples, figures }
    }

    fn document(
        &self,
        about: &About,
        figures: &[Figure],
        samples: &[(String, Vec<Map<String, Value>>)],
    ) -> Value {
        let of = |name: &str| figures.iter().filter(move |f| f.task == name).collect::<Vec<_>>();
        let mut results = Map::new();
        let mut sorted: Vec<&TaskOutcome> = self.tasks.iter().collect();
        for task in &self.tasks {
            let name = &task.config.task;
            let alias = task.config.task_alias.as_ref().unwrap_or(name);
            let head = json!({"name": name, "alias": alias, "sample_len": task.evaluated});
            results.insert(name.clone(), with_figures(head, &of(name)));
        }
        let mut groups = Map::new();
        for group in &self.groups {
            let name = &group.config.group;
            let alias = group.config.group_alias.as_ref().unwrap_or(name);
            let mut entry = json!({"alias": alias, "name": name});
            if !group.config.aggregate_metric_list.is_empty() {
                let sizes: usize = group.leaves.iter().map(|t| self.evaluated(t)).sum();
                entry["sample_len"] = sizes.into();
                entry = with_figures(entry, &of(name));
                groups.insert(name.clone(), entry.clone());
            }
            results.insert(name.clone(), entry);
        }
        sorted.sort_by(|a, b| a.config.task.cmp(&b.config.task));
        let by_task = |value: &dyn Fn(&TaskOutcome) -> Value| -> Map<String, Value> {
            sorted.iter().map(|t| (t.config.task.clone(), value(t))).collect()
        };
        let mut document = json!({ "results": results });
        if !groups.is_empty() {
            document["groups"] = groups.into();
        }
        document["group_subtasks"] =
            self.groups.iter().rev().map(|g| (g.config.group.clone(), json!(g.children))).collect();
        document["configs"] = by_task(&|t| t.config_dump()).into();
        document["versions"] = self.versions(by_task(&|t| version(t.config.metadata.as_ref()))).into();
        document["n-shot"] = self.with_groups(by_task(&|t| t.num_fewshot.into()), same).into();
        document["higher_is_better"] = self.with_groups(by_task(&TaskOutcome::directions), union).into();
        document["n-samples"] =
            by_task(&|t| json!({"original": t.documents, "effective": t.evaluated})).into();
        about.describe(&mut document);
        document["task_hashes"] =
            samples.iter().map(|(name, lines)| (name.clone(), Value::String(task_hash(lines)))).collect();
        document["total_evaluation_time_seconds"] = about.seconds.to_string().into();
        document
    }

    fn versions(&self, mut versions: Map<String, Value>) -> Map<String, Value> {
        for group in &self.groups {
            let version = version(group.config.metadata.as_ref());
            versions.insert(group.config.group.clone(), python::str(&version).into());
        }
        versions
    }

    /// Adds to values of tasks those of groups, made of their members'.
    fn with_groups(
        &self,
        mut values: Map<String, Value>,
        combine: fn(&[&Value]) -> Option<Value>,
    ) -> Map<String, Value> {
        for group in &self.groups {
            let members: Vec<&Value> = group.children.iter().filter_map(|c| values.get(c)).collect();
            if let Some(value) = combine(&members) {
                values.insert(group.config.group.clone(), value);
            }
        }
        values
    }
}

fn version(metadata: Option<&Map<String, Value>>) -> Value {
    metadata.and_then(|m| m.get("version")).cloned().unwrap_or_else(|| "N/A".into())
}

/// The value that all have.
fn same(values: &[&Value]) -> Option<Value> {
    let first = *values.first()?;
    values.iter().all(|v| *v == first).then(|| first.clone())
}

/// The entries of all; where they differ, none.
fn union(values: &[&Value]) -> Option<Value> {
    let mut all = Map::new();
    for (key, value) in values.iter().filter_map(|v| v.as_object()).flatten() {
        let known = all.entry(key.clone()).or_insert_with(|| value.clone());
        if known != value {
            *known = Value::Null;
        }
    }
    (!all.is_empty()).then_some(Value::Object(all))
}

fn with_figures(mut entry: Value, figures: &[&Figure]) -> Value {
    for figure in figures {
        let Figure { metric, filter, value, error, .. } = figure;
        entry[format!("{metric},{filter}")] = json!(value);
        entry[format!("{metric}_stderr,{filter}")] = error.map_or("N/A".into(), |e| json!(e));
    }
    entry
}

fn task_hash(samples: &[Map<String, Value>]) -> String {
    let hashes = samples.iter().flat_map(|s| ["doc_hash", "prompt_hash", "target_hash"].map(|k| &s[k]));
    sha256(&hashes.filter_map(Value::as_str).collect::<String>())
}

fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text))
}

impl TaskOutcome {
    fn figures(&self) -> Vec<Figure> {
        let mut figures = vec![];
        for filter in &self.filters {
            for (i, metric) in self.metrics.iter().enumerate() {
                let values: Vec<metric::Value> =
                    self.samples.iter().filter(|s| s.filter == *filter).map(|s| s.values[i]).collect();
                let (value, error) = metric::of_all(metric.aggregation(), &values);
                figures.push(Figure {
                    task: self.config.task.clone(),
                    metric: metric.config.metric.name().to_owned(),
                    filter: filter.clone(),
                    value,
                    error,
                    higher_is_better: metric.higher_is_better(),
                });
            }
        }
        figures
    }

    fn directions(&self) -> Value {
        let direction =
            |m: &PreparedMetric| (m.config.metric.name().to_owned(), Value::Bool(m.higher_is_better()));
        self.metrics.iter().map(direction).collect()
    }

    /// The task's file without what it does not say.
    fn config_dump(&self) -> Value {
        // A config is made of strings, numbers and lists, which always serialise.
        let Ok(Value::Object(mut config)) = serde_json::to_value(&self.config) else { return Value::Null };
        config.retain(|_, value| !value.is_null());
        config.insert("num_fewshot".to_owned(), self.num_fewshot.into());
        Value::Object(config)
    }

    fn sample_lines(&self) -> Vec<Map<String, Value>> {
        let names: Vec<&str> = self.metrics.iter().map(|m| m.config.metric.name()).collect();
        let generation = self.config.generation_kwargs.as_ref().map(|g| {
            let mut value = serde_json::to_value(g).unwrap_or_default();
            if let Some(fields) = value.as_object_mut() {
                fields.retain(|_, v| !v.is_null());
            }
            value
        });
        self.samples.iter().map(|s| s.line(&names, generation.as_ref())).collect()
    }
}
