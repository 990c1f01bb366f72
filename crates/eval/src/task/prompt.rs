//! Prompts: from a document to what the model is asked.

use serde_json::Value;

use super::config::{OutputType, Sampler, Source, Strings};
use super::data::Rows;
use super::functions::kind;
use super::{Task, TaskError};
use crate::python::{self, Doc, Random};

/// What the model is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Request {
    /// How likely a continuation is.
    Loglikelihood { context: String, continuation: String },
    /// How likely a whole text is.
    Rolling { text: String },
    /// What comes next.
    Generate { context: String, until: Vec<String>, max_tokens: usize },
}

/// A document with its requests and what is right.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Number of the document.
    pub(crate) index: usize,
    pub(crate) requests: Vec<Request>,
    /// The choices by whose lengths likelihoods are normed.
    pub(crate) choices: Vec<String>,
    pub(crate) gold: Gold,
    /// The target as the task's file has it.
    pub(crate) target: Value,
    /// Words and bytes of the text of [`Request::Rolling`].
    pub(crate) size: (u64, u64),
}

/// What is right.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Gold {
    /// One of these choices.
    Choices(Vec<usize>),
    /// One of these texts.
    Texts(Vec<String>),
    /// Nothing can be wrong.
    None,
}

/// Tokens to generate unless a task says otherwise.
const MAX_TOKENS: usize = 256;

impl Task {
    /// The cases of all documents to be evaluated, in order.
    pub(crate) fn cases(&self) -> Result<Vec<Case>, TaskError> {
        let mut random = self.shots.random();
        (0..self.limit).map(|index| self.case(index, &mut random)).collect()
    }

    fn case(&self, index: usize, random: &mut Random) -> Result<Case, TaskError> {
        let contexts = self.contexts(index, random)?;
        let target = self.target_of(&self.rows, index)?;
        let choices = match &self.config.doc_to_choice {
            Some(source) => self.choices_of(&self.rows, index, source)?,
            None => vec![],
        };
        let fail = |what, reason| self.fail(&self.rows, index, what, reason);
        let delimiter = &self.config.target_delimiter;
        let one = || contexts.first().cloned().unwrap_or_default();
        let mut size = (0, 0);
        let (requests, gold) = match self.config.output_type {
            OutputType::MultipleChoice => {
                let gold =
                    if self.multiple_inputs { self.text_of(&self.rows, index)? } else { target.clone() };
                let gold = gold_choices(&gold, &choices).map_err(|e| fail("doc_to_target", e))?;
                let pair = |context: &String, end: &str| Request::Loglikelihood {
                    context: context.clone(),
                    continuation: format!("{delimiter}{end}"),
                };
                let end = python::str(&target);
                let requests = if self.multiple_inputs {
                    contexts.iter().map(|context| pair(context, &end)).collect()
                } else {
                    choices.iter().map(|choice| pair(&contexts[0], choice)).collect()
                };
                (requests, gold)
            }
            OutputType::Loglikelihood => {
                let continuation = text(&target).map_err(|e| fail("doc_to_target", e))?.to_owned();
                (vec![Request::Loglikelihood { context: one(), continuation }], Gold::None)
            }
            OutputType::LoglikelihoodRolling => {
                let text = text(&target).map_err(|e| fail("doc_to_target", e))?.to_owned();
                size = match self.count {
                    Some(count) => count(self.doc(index)).map_err(|e| fail("process_results", e))?,
                    None => (python::count_words(&text), text.len() as u64),
                };
                (vec![Request::Rolling { text }], Gold::None)
            }
            OutputType::GenerateUntil => {
                let gold = self.gold_texts(&target, &choices).map_err(|e| fail("doc_to_target", e))?;
                (vec![self.generation(one())], gold)
            }
        };
        Ok(Case { index, requests, choices, gold, target, size })
    }

    fn generation(&self, context: String) -> Request {
        let own = self.config.generation_kwargs.as_ref();
        let until = match own.map(|g| &g.until) {
            Some(until @ (Strings::One(_) | Strings::Many(_))) => until.as_slice().to_vec(),
            _ => vec![self.config.fewshot_delimiter.clone()],
        };
        let max_tokens = own.and_then(|g| g.max_gen_toks).unwrap_or(MAX_TOKENS);
        Request::Generate { context, until, max_tokens }
    }

    fn gold_texts(&self, target: &Value, choices: &[String]) -> Result<Gold, String> {
        if self.config.doc_to_choice.is_some() {
            let Gold::Choices(places) = gold_choices(target, choices)? else { return Ok(Gold::None) };
            return Ok(Gold::Texts(places.into_iter().map(|i| choices[i].clone()).collect()));
        }
        Ok(Gold::Texts(match target {
            Value::Array(many) if self.multiple_targets => many.iter().map(python::str).collect(),
            one => vec![python::str(one)],
        }))
    }

    /// The prompt of a document, or those of its inputs where it has several.
    fn contexts(&self, index: usize, random: &mut Random) -> Result<Vec<String>, TaskError> {
        let fail = |what, reason| self.fail(&self.rows, index, what, reason);
        let doc = self.doc(index);
        let mut prompt = match doc.get(&self.config.description) {
            Some(value) => python::str(value),
            None => {
                self.templates.render(&self.config.description, doc).map_err(|e| fail("description", e))?
            }
        };
        for shot in self.choose_shots(index, random)? {
            self.write_shot(shot, &mut prompt)?;
        }
        if self.multiple_inputs {
            let source = self.config.doc_to_choice.as_ref();
            let choices = source.map_or(Ok(vec![]), |s| self.choices_of(&self.rows, index, s))?;
            return Ok(choices.iter().map(|choice| format!("{prompt}{choice}")).collect());
        }
        if self.config.output_type == OutputType::LoglikelihoodRolling {
            return Ok(vec![prompt]);
        }
        let question = self.text_of(&self.rows, index)?;
        prompt.push_str(text(&question).map_err(|e| fail("doc_to_text", e))?);
        Ok(vec![prompt])
    }

    /// Numbers of the documents that are shown before document `index`.
    fn choose_shots(&self, index: usize, random: &mut Random) -> Result<Vec<usize>, TaskError> {
        let (n, pool) = (self.num_fewshot, &self.shots.rows.docs);
        if n == 0 {
            return Ok(vec![]);
        }
        let short = |wanted, there| TaskError::Shots {
            task: self.config.task.clone(),
            wanted,
            split: self.shots.name.clone(),
            there,
        };
        let differs = |i: &usize| !self.shots.excludes || pool[*i] != *self.doc(index);
        if self.shots.sampler == Sampler::FirstN {
            let first: Vec<usize> = (0..pool.len()).filter(differs).take(n).collect();
            return if first.len() == n { Ok(first) } else { Err(short(n, first.len())) };
        }
        let draw = n + usize::from(self.shots.excludes);
        if pool.len() < draw {
            return Err(short(draw, pool.len()));
        }
        let drawn = random.sample(pool.len(), draw);
        let mut chosen: Vec<usize> = drawn.into_iter().filter(differs).take(n).collect();
        if chosen.len() < n {
            // The document stands more than once in the pool.
            let others: Vec<usize> = (0..pool.len()).filter(differs).collect();
            if others.len() < n {
                return Err(short(n, others.len()));
            }
            chosen = random.sample(others.len(), n).into_iter().map(|i| others[i]).collect();
        }
        Ok(chosen)
    }

    /// A document with its answer.
    fn write_shot(&self, shot: usize, prompt: &mut String) -> Result<(), TaskError> {
        let (own, config, rows) = (&self.config.fewshot_config, &self.config, &self.shots.rows);
        let fail = |what, reason| self.fail(rows, shot, what, reason);
        let doc = &rows.docs[shot];
        let question = self.text_by(own.doc_to_text.as_ref().unwrap_or(&config.doc_to_text), doc);
        let question = question.map_err(|e| fail("doc_to_text", e))?;
        let answer = self.target_by(own.doc_to_target.as_ref().unwrap_or(&config.doc_to_target), doc);
        let answer = answer.map_err(|e| fail("doc_to_target", e))?;
        let choices = match own.doc_to_choice.as_ref().or(config.doc_to_choice.as_ref()) {
            Some(source) => self.choices_of(rows, shot, source)?,
            None => vec![],
        };
        let at = |value: &Value| whole(value).and_then(|i| choices.get(i));
        let (question, answer) = if self.multiple_inputs {
            let chosen =
                at(&question).ok_or_else(|| fail("doc_to_text", format!("there is no choice {question}")))?;
            (chosen.clone(), python::str(&answer))
        } else {
            let question = text(&question).map_err(|e| fail("doc_to_text", e))?.to_owned();
            let answer = match &answer {
                Value::Number(_) | Value::Bool(_) if !choices.is_empty() => at(&answer)
                    .ok_or_else(|| fail("doc_to_target", format!("there is no choice {answer}")))?
                    .clone(),
                Value::Array(many) => many.first().map(python::str).unwrap_or_default(),
                Value::Null => String::new(),
                other => text(other).map_err(|e| fail("doc_to_target", e))?.to_owned(),
            };
            (question, answer)
        };
        prompt.push_str(&question);
        if !answer.is_empty() {
            prompt.push_str(own.target_delimiter.as_ref().unwrap_or(&config.target_delimiter));
            prompt.push_str(&answer);
            prompt.push_str(own.fewshot_delimiter.as_ref().unwrap_or(&config.fewshot_delimiter));
        }
        Ok(())
    }

    /// `doc_to_text` of a document: text, or the number of a choice.
    pub(super) fn text_of(&self, rows: &Rows, index: usize) -> Result<Value, TaskError> {
        let text = self.text_by(&self.config.doc_to_text, &rows.docs[index]);
        text.map_err(|e| self.fail(rows, index, "doc_to_text", e))
    }

    /// `doc_to_target` of a document: text, the number of a choice, or several.
    pub(super) fn target_of(&self, rows: &Rows, index: usize) -> Result<Value, TaskError> {
        let target = self.target_by(&self.config.doc_to_target, &rows.docs[index]);
        target.map_err(|e| self.fail(rows, index, "doc_to_target", e))
    }

    fn text_by(&self, source: &Source, doc: &Doc) -> Result<Value, String> {
        let value = self.value(source, doc)?;
        if self.is_template(source) { self.number_if_digits(value) } else { Ok(value) }
    }

    fn target_by(&self, source: &Source, doc: &Doc) -> Result<Value, String> {
        let value = self.value(source, doc)?;
        if !self.is_template(source) {
            return Ok(value);
        }
        match value.as_str() {
            Some(list) if list.len() >= 2 && list.starts_with('[') && list.ends_with(']') => {
                Ok(python::literal_eval(list).unwrap_or(value))
            }
            _ => self.number_if_digits(value),
        }
    }

    /// Whether a source is a template rather than a column or function.
    fn is_template(&self, source: &Source) -> bool {
        matches!(source, Source::Text(name) if !self.rows.docs[0].contains_key(name))
    }

    /// Digits that a template makes are the number of a choice where there are choices.
    fn number_if_digits(&self, value: Value) -> Result<Value, String> {
        match value.as_str() {
            Some(digits) if self.config.doc_to_choice.is_some() && python::is_digits(digits) => {
                python::literal_eval(digits)
            }
            _ => Ok(value),
        }
    }

    fn choices_of(&self, rows: &Rows, index: usize, source: &Source) -> Result<Vec<String>, TaskError> {
        let choices = self.choices_by(source, &rows.docs[index]);
        choices.map_err(|e| self.fail(rows, index, "doc_to_choice", e))
    }

    fn choices_by(&self, source: &Source, doc: &Doc) -> Result<Vec<String>, String> {
        let value = match source {
            Source::Text(template) if self.is_template(source) => self.templates.evaluate(template, doc)?,
            _ => self.value(source, doc)?,
        };
        let items: Vec<Value> = match value {
            Value::Array(items) => items,
            Value::Object(fields) => fields.into_iter().map(|(_, v)| v).collect(),
            other => return Err(format!("the choices are {} and must be a list", kind(&other))),
        };
        if items.is_empty() {
            return Err("there are no choices".to_owned());
        }
        items.iter().map(|item| text(item).map(str::to_owned)).collect()
    }
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("{value} is {} and must be text", kind(value)))
}

fn whole(value: &Value) -> Option<usize> {
    match value {
        Value::Bool(b) => Some(usize::from(*b)),
        other => other.as_u64().and_then(|n| usize::try_from(n).ok()),
    }
}

/// The choices that are right: by number, by text, or several of either.
fn gold_choices(gold: &Value, choices: &[String]) -> Result<Gold, String> {
    let one = |gold: &Value| match gold {
        Value::String(text) => choices.iter().position(|c| c == text),
        other => whole(other).filter(|i| *i < choices.len()),
    };
    let wrong = |gold: &Value| format!("label {gold} is none of the {} choices", choices.len());
    let places: Option<Vec<usize>> = match gold {
        Value::Array(many) => many.iter().map(one).collect(),
        single => one(single).map(|i| vec![i]),
    };
    places.map(Gold::Choices).ok_or_else(|| wrong(gold))
}
