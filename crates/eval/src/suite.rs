//! A run: requests of all tasks through the model, and the answers back to their documents.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zamba::Zamba;
use zamba::checkpoint::manifest::hex;
use zamba::tokenizer::{Tokenizer, TokenizerError};

use crate::encode::{EncodeError, Encoder};
use crate::filter::Filter;
use crate::generate::{self, Generator, Prompt};
use crate::metric::{self, PreparedMetric, Response};
use crate::results::{Outcome, Sample, TaskOutcome};
use crate::score::{self, Item, Limits, Score, Scorer, Slots, Tree};
use crate::task::{Case, Request, Suite, Task, TaskError};

/// How to run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// What scoring may use.
    pub limits: Limits,
    /// Whether to compute for each item of its own what several have in common. Slower; results are the same.
    pub no_reuse: bool,
    /// Tokens that end a generated text.
    pub ends: Vec<u32>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Tokens that have gone through the model.
    pub done: u64,
    /// Tokens that will have; of generated texts only an upper bound is known.
    pub total: u64,
}

/// An answer that can be kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stored {
    /// Of a continuation: its log-likelihood, and whether it is what the model would have said.
    Score(f64, bool),
    /// A generated text.
    Text(String),
}

/// Answers of earlier runs of the same model.
pub trait Cache {
    /// The answer to a request.
    fn get(&self, key: &str) -> Option<Stored>;
    /// Keeps an answer.
    ///
    /// # Errors
    /// In words, if it cannot be kept.
    fn put(&mut self, key: &str, answer: &Stored) -> Result<(), String>;
}

/// Why a run failed.
#[derive(Debug, Error)]
pub enum RunError {
    /// A document is wrong.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A request cannot be encoded.
    #[error("{place}: {source} (task {task})")]
    Encode {
        /// File and row.
        place: String,
        /// The task.
        task: String,
        /// What is wrong.
        source: EncodeError,
    },
    /// The tokenizer does not serve.
    #[error(transparent)]
    Encoder(#[from] EncodeError),
    /// Generated tokens cannot be decoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A pattern of a task is wrong.
    #[error("task {task}: {reason}")]
    Pattern {
        /// The task.
        task: String,
        /// What is wrong.
        reason: String,
    },
    /// An answer cannot be kept.
    #[error("{0}")]
    Cache(String),
}

/// Where the answer to a request comes from.
enum Source {
    Item(usize),
    /// The sum of several items.
    Items(std::ops::Range<usize>),
    Prompt(usize),
}

/// A task's cases with the sources of their answers.
struct Prepared<'s> {
    task: &'s Task,
    cases: Vec<Case>,
    sources: Vec<Vec<Source>>,
    filters: Vec<Filter>,
    metrics: Vec<PreparedMetric>,
}

/// Requests in tokens.
#[derive(Default)]
struct Requests {
    items: Vec<Item>,
    prompts: Vec<Prompt>,
}

impl Suite {
    /// Runs all tasks.
    ///
    /// # Errors
    /// [`RunError`], and what `hear` returns; answers until then are in the cache.
    pub fn run<E: From<RunError>>(
        &self,
        model: &Zamba,
        tokenizer: &Tokenizer,
        options: &RunOptions,
        cache: &mut dyn Cache,
        hear: &mut dyn FnMut(Progress) -> Result<(), E>,
    ) -> Result<Outcome, E> {
        let encoder =
            Encoder::new(tokenizer, model.config.max_position_embeddings).map_err(RunError::from)?;
        let end = end_text(tokenizer).map_err(RunError::from)?;
        let mut requests = Requests::default();
        let mut prepared = vec![];
        for task in &self.tasks {
            prepared.push(prepare(task, &encoder, &end, &mut requests)?);
        }
        let mut run = Run { model, options, cache, hear, progress: Progress { done: 0, total: 0 } };
        let (scores, texts) = run.all(tokenizer, &requests)?;
        let tasks = prepared.into_iter().map(|p| p.outcome(&scores, &texts)).collect();
        Ok(Outcome { tasks, groups: self.groups.clone(), tokens: run.progress.done })
    }
}

/// The text of the token that ends a document: it also ends a generated one.
fn end_text(tokenizer: &Tokenizer) -> Result<Option<String>, TokenizerError> {
    let end = tokenizer.eos_id().map(|id| tokenizer.decode(&[id], false)).transpose()?;
    Ok(end.filter(|text| !text.is_empty()))
}

fn prepare<'s>(
    task: &'s Task,
    encoder: &Encoder<'_>,
    end: &Option<String>,
    requests: &mut Requests,
) -> Result<Prepared<'s>, RunError> {
    let name = || task.config.task.clone();
    let pattern = |reason| RunError::Pattern { task: name(), reason };
    let filters = Filter::of(task.config.filter_list.as_deref()).map_err(pattern)?;
    let metrics = task.metrics.iter().cloned().map(PreparedMetric::new);
    let metrics = metrics.collect::<Result<_, _>>().map_err(pattern)?;
    let cases = task.cases()?;
    let mut sources = vec![];
    for case in &cases {
        let encoded: Result<Vec<Source>, EncodeError> =
            case.requests.iter().map(|request| requests.add(request, encoder, end)).collect();
        let fail = |source| RunError::Encode { place: task.place(case.index), task: name(), source };
        sources.push(encoded.map_err(fail)?);
    }
    Ok(Prepared { task, cases, sources, filters, metrics })
}

impl Requests {
    fn add(
        &mut self,
        request: &Request,
        encoder: &Encoder<'_>,
        end: &Option<String>,
    ) -> Result<Source, EncodeError> {
        Ok(match request {
            Request::Loglikelihood { context, continuation } => {
                self.items.push(encoder.pair(context, continuation)?);
                Source::Item(self.items.len() - 1)
            }
            Request::Rolling { text } => {
                let first = self.items.len();
                self.items.extend(encoder.rolling(text)?);
                Source::Items(first..self.items.len())
            }
            Request::Generate { context, until, max_tokens } => {
                let tokens = encoder.prompt(context, *max_tokens)?;
                let until = until.iter().chain(end).cloned().collect();
                self.prompts.push(Prompt { tokens, until, max_tokens: *max_tokens });
                Source::Prompt(self.prompts.len() - 1)
            }
        })
    }
}

impl Prepared<'_> {
    fn outcome(self, scores: &[Score], texts: &[String]) -> TaskOutcome {
        let output = self.task.config.output_type;
        let mut samples = vec![];
        for filter in &self.filters {
            for (case, sources) in self.cases.iter().zip(&self.sources) {
                let responses: Vec<Response> = sources.iter().map(|s| s.response(scores, texts)).collect();
                let filtered: Vec<Response> = responses
                    .iter()
                    .map(|response| match response {
                        Response::Text(text) => Response::Text(filter.apply(text)),
                        other => other.clone(),
                    })
                    .collect();
                let values = metric::of_case(output, &self.metrics, case, &filtered);
                let (case, filter) = (case.clone(), filter.name.clone());
                let doc = self.task.doc(case.index).clone();
                samples.push(Sample { case, doc, responses, filtered, filter, values });
            }
        }
        let filters = self.filters.into_iter().map(|f| f.name).collect();
        TaskOutcome {
            config: self.task.config.clone(),
            num_fewshot: self.task.num_fewshot,
            documents: self.task.documents(),
            evaluated: self.cases.len(),
            metrics: self.metrics,
            filters,
            samples,
        }
    }
}

impl Source {
    fn response(&self, scores: &[Score], texts: &[String]) -> Response {
        match self {
            Source::Item(i) => Response::Score(scores[*i]),
            Source::Items(range) => {
                Response::Rolling(scores[range.clone()].iter().map(|s| s.loglikelihood).sum())
            }
            Source::Prompt(i) => Response::Text(texts[*i].clone()),
        }
    }
}

struct Run<'r, E> {
    model: &'r Zamba,
    options: &'r RunOptions,
    cache: &'r mut dyn Cache,
    hear: &'r mut dyn FnMut(Progress) -> Result<(), E>,
    progress: Progress,
}

impl<E: From<RunError>> Run<'_, E> {
    /// Answers all requests, those first that were answered before.
    fn all(&mut self, tokenizer: &Tokenizer, requests: &Requests) -> Result<(Vec<Score>, Vec<String>), E> {
        let item_keys: Vec<String> = requests.items.iter().map(item_key).collect();
        let prompt_keys: Vec<String> = requests.prompts.iter().map(prompt_key).collect();
        let mut scores: Vec<Option<Score>> = item_keys
            .iter()
            .map(|key| match self.cache.get(key) {
                Some(Stored::Score(loglikelihood, greedy)) => Some(Score { loglikelihood, greedy }),
                _ => None,
            })
            .collect();
        let mut texts: Vec<Option<String>> = prompt_keys
            .iter()
            .map(|key| match self.cache.get(key) {
                Some(Stored::Text(text)) => Some(text),
                _ => None,
            })
            .collect();
        let open = |done: Vec<bool>| done.iter().enumerate().filter(|(_, d)| !**d).map(|(i, _)| i).collect();
        let items: Vec<usize> = open(scores.iter().map(Option::is_some).collect());
        let prompts: Vec<usize> = open(texts.iter().map(Option::is_some).collect());
        let generated =
            |i: &usize| (requests.prompts[*i].tokens.len() + requests.prompts[*i].max_tokens) as u64;
        self.progress.total = prompts.iter().map(generated).sum();
        self.score(&items, &requests.items, &item_keys, &mut scores)?;
        self.generate(tokenizer, &prompts, &requests.prompts, &prompt_keys, &mut texts)?;
        let missing = "every request was answered";
        let scores = scores.into_iter().map(|s| s.expect(missing)).collect();
        Ok((scores, texts.into_iter().map(|t| t.expect(missing)).collect()))
    }

    fn score(
        &mut self,
        open: &[usize],
        all: &[Item],
        keys: &[String],
        scores: &mut [Option<Score>],
    ) -> Result<(), E> {
        let items: Vec<Item> = open.iter().map(|i| all[*i].clone()).collect();
        let Some(longest) = items.iter().map(|i| i.tokens.len() - 1).max() else { return Ok(()) };
        let slots = Slots::new(self.model, &self.options.limits, longest);
        let tree = Tree::new(&items, (!self.options.no_reuse).then_some(slots.levels));
        self.progress.total += tree.tokens();
        let mut scorer = Scorer::new(self.model, slots);
        let Run { cache, hear, progress, .. } = self;
        scorer.run(&items, &tree, &mut |event| match event {
            score::Event::Tokens(tokens) => {
                progress.done += tokens;
                hear(*progress)
            }
            score::Event::Score(i, score) => {
                scores[open[i]] = Some(score);
                let stored = Stored::Score(score.loglikelihood, score.greedy);
                cache.put(&keys[open[i]], &stored).map_err(|e| RunError::Cache(e).into())
            }
        })
    }

    fn generate(
        &mut self,
        tokenizer: &Tokenizer,
        open: &[usize],
        all: &[Prompt],
        keys: &[String],
        texts: &mut [Option<String>],
    ) -> Result<(), E> {
        let prompts: Vec<Prompt> = open.iter().map(|i| all[*i].clone()).collect();
        let longest = prompts.iter().map(|p| p.tokens.len() + p.max_tokens).max();
        let Some(longest) = longest else { return Ok(()) };
        let slots = Slots::new(self.model, &self.options.limits, longest);
        let mut generator = Generator::new(self.model, tokenizer, slots, self.options.ends.clone());
        let Run { cache, hear, progress, .. } = self;
        let mut failed = None;
        let ran = generator.run::<RunError>(&prompts, &mut |event| match event {
            generate::Event::Tokens(tokens) => {
                progress.done += tokens;
                hear(*progress).map_err(|e| {
                    failed = Some(e);
                    RunError::Cache(String::new())
                })
            }
            generate::Event::Text(i, text) => {
                let stored = Stored::Text(text.clone());
                texts[open[i]] = Some(text);
                cache.put(&keys[open[i]], &stored).map_err(RunError::Cache)
            }
        });
        match failed {
            Some(error) => Err(error),
            None => ran.map_err(E::from),
        }
    }
}

fn item_key(item: &Item) -> String {
    let mut hash = Sha256::new_with_prefix("score");
    hash.update((item.scored as u64).to_le_bytes());
    item.tokens.iter().for_each(|t| hash.update(t.to_le_bytes()));
    hex(&hash.finalize())
}

fn prompt_key(prompt: &Prompt) -> String {
    let mut hash = Sha256::new_with_prefix("greedy");
    hash.update((prompt.max_tokens as u64).to_le_bytes());
    for stop in &prompt.until {
        hash.update((stop.len() as u64).to_le_bytes());
        hash.update(stop);
    }
    hash.update([0xff]);
    prompt.tokens.iter().for_each(|t| hash.update(t.to_le_bytes()));
    hex(&hash.finalize())
}
