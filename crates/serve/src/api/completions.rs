//! `/v1/completions`: text or tokens go on.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Map;
use utoipa::ToSchema;

use super::common::{Plan, Timings, Unsupported, UsageBody, new_id, now, text_request};
use super::error::{ApiError, ErrorBody};
use super::run::{self, DONE, Events, Teller, data};
use super::words::finite;
use super::{Api, Ask, body};
use crate::engine::{Event, Finish, Logprob};

/// What a text begins with.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be a string, a list of strings, a list of token ids, or a list of such lists"
)]
pub(crate) enum Prompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt.
pub(crate) enum One {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    pub(crate) fn split(self) -> Vec<One> {
        match self {
            Prompt::Text(text) => vec![One::Text(text)],
            Prompt::Tokens(tokens) => vec![One::Tokens(tokens)],
            Prompt::Texts(texts) => texts.into_iter().map(One::Text).collect(),
            Prompt::TokenLists(lists) => lists.into_iter().map(One::Tokens).collect(),
        }
    }
}

text_request! {
    /// A text to go on with.
    struct CompletionRequest {
        /// What the text begins with; several prompts give several choices.
        prompt: Prompt,
        /// Whether choices begin with the prompt.
        #[schema(default = false)]
        echo: Option<bool>,
        /// Log-probabilities of tokens, and so many of the most likely alternatives; with `echo` also of the prompt.
        #[schema(minimum = 0)]
        logprobs: Option<u32>,
        /// Only the same as `n`: choices are not ranked.
        best_of: Option<u32>,
        /// Not supported.
        #[serde(default)]
        suffix: Unsupported,
    }
}

/// Texts that went on.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionResponse {
    id: String,
    /// Always `text_completion`.
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// Changes with weights, configuration and program.
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    /// In a stream only in a last chunk, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageBody>,
    /// Of an answer with one choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

/// One text that went on.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    /// Choices of the first prompt come first.
    index: usize,
    text: String,
    #[schema(required)]
    logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null in a stream that goes on.
    #[schema(required)]
    finish_reason: Option<&'static str>,
    /// Ids of new tokens, if asked for or if there is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    /// Ids of the prompt's tokens, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

/// Log-probabilities of a text's tokens, list by list.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    /// The tokens' texts.
    tokens: Vec<String>,
    /// Natural logarithms of their probabilities under the model; null for the first token of a sequence.
    token_logprobs: Vec<Option<f64>>,
    /// The most likely tokens and the one that stands there, by text.
    #[schema(value_type = Vec<Option<std::collections::BTreeMap<String, f64>>>)]
    top_logprobs: Vec<Option<Map<String, serde_json::Value>>>,
    /// Where in the text each token begins, in characters.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    fn extend(&mut self, other: CompletionLogprobs) {
        self.tokens.extend(other.tokens);
        self.token_logprobs.extend(other.token_logprobs);
        self.top_logprobs.extend(other.top_logprobs);
        self.text_offset.extend(other.text_offset);
    }
}

impl CompletionChoice {
    fn extend(&mut self, delta: CompletionChoice) {
        self.text.push_str(&delta.text);
        match (&mut self.logprobs, delta.logprobs) {
            (Some(all), Some(new)) => all.extend(new),
            (none, new) => *none = none.take().or(new),
        }
        match (&mut self.token_ids, delta.token_ids) {
            (Some(all), Some(new)) => all.extend(new),
            (none, new) => *none = none.take().or(new),
        }
        self.prompt_token_ids = self.prompt_token_ids.take().or(delta.prompt_token_ids);
        self.finish_reason = self.finish_reason.or(delta.finish_reason);
    }
}

/// Goes on with a text.
#[utoipa::path(
    post, path = "/v1/completions", tag = "text",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The texts, or a stream of them", content(
            (CompletionResponse = "application/json"), (run::StreamEvent = "text/event-stream"))),
        (status = "default", description = "What is wrong", body = ErrorBody),
    )
)]
pub(crate) async fn completions(
    State(api): State<Arc<Api>>,
    parts: Parts,
    body: axum::body::Body,
) -> Response {
    answer(api, parts, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(api: Arc<Api>, parts: Parts, body: axum::body::Body) -> Result<Response, ApiError> {
    let ask = Ask::new(&parts);
    let bytes = body::read(&parts.headers, body, &api.app.limits).await?;
    let mut permits = Vec::new();
    run::admit(&api.app.handle, 1, &mut permits)?;
    let mut request: CompletionRequest = body::parse(bytes, &api.app.limits).await?;
    let asked = request.shared();
    let plan = plan(&request, asked.plan(&api.app, &ask.caller)?, &api)?;
    let single = matches!(request.prompt, Prompt::Text(_) | Prompt::Tokens(_));
    let prompts = request.prompt.split();
    let most = api.app.limits.prompts;
    if prompts.is_empty() || prompts.len() > most {
        return Err(ApiError::invalid("prompt", format!("must hold between 1 and {most} prompts")));
    }
    run::admit(&api.app.handle, prompts.len() * plan.n, &mut permits)?;
    let param = move |at| if single { "prompt".to_owned() } else { format!("prompt[{at}]") };
    let echo = request.echo.unwrap_or(false);
    let mut texts = Vec::new();
    let mut tokens = Vec::new();
    for (at, prompt) in prompts.into_iter().enumerate() {
        let (ids, text) = match prompt {
            One::Text(text) => (run::encode(&api, &text, true, &param(at)).await?, Some(text)),
            One::Tokens(ids) => (ids, None),
        };
        texts.push(if echo { text.or_else(|| api.decode(&ids)).unwrap_or_default() } else { String::new() });
        tokens.push(ids);
    }
    let answers = run::submit(&api.app.handle, &plan, &tokens, None, permits, param)?;
    let told = Told::new(api, plan, echo, tokens, texts);
    if told.plan.stream {
        return Ok(run::stream(answers, Chunks { told }));
    }
    whole(told, Events::new(answers)).await
}

/// The shared part with what completions add to it.
fn plan(request: &CompletionRequest, mut plan: Plan, api: &Api) -> Result<Plan, ApiError> {
    let most = api.app.limits.logprobs;
    if request.logprobs.is_some_and(|n| n as usize > most) {
        return Err(ApiError::invalid("logprobs", format!("at most {most}")));
    }
    if request.best_of.is_some_and(|best| best as usize != plan.n) {
        return Err(ApiError::invalid("best_of", "must equal n: this server does not rank choices"));
    }
    plan.max_tokens = Some(plan.max_tokens.unwrap_or(16));
    plan.logprobs = request.logprobs.map(|n| n as usize);
    let echo = request.echo.unwrap_or(false);
    plan.score = plan.logprobs.filter(|_| echo);
    Ok(plan)
}

async fn whole(mut told: Told, mut events: Events) -> Result<Response, ApiError> {
    let count = told.prompts.len() * told.plan.n;
    let mut choices: Vec<CompletionChoice> =
        (0..count).map(|index| CompletionChoice { index, ..Default::default() }).collect();
    while let Some(next) = events.next().await {
        let (index, event) = next?;
        let delta = told.delta(index, event);
        choices[index].extend(delta);
    }
    let (usage, timings) = (Some(told.usage), told.timings);
    Ok(Json(CompletionResponse { usage, timings, ..told.response(choices) }).into_response())
}

/// What has been told of each choice.
struct Told {
    api: Arc<Api>,
    plan: Plan,
    id: String,
    created: u64,
    prompts: Vec<Vec<u32>>,
    /// Texts of the prompts, where they are echoed.
    texts: Vec<String>,
    echo: bool,
    /// For each choice the characters told so far; none before its beginning.
    offsets: Vec<Option<usize>>,
    usage: UsageBody,
    timings: Option<Timings>,
}

impl Told {
    fn new(api: Arc<Api>, plan: Plan, echo: bool, prompts: Vec<Vec<u32>>, texts: Vec<String>) -> Self {
        let offsets = vec![None; prompts.len() * plan.n];
        let (id, created) = (new_id("cmpl-"), now());
        let (usage, timings) = (UsageBody::default(), None);
        Told { api, plan, id, created, prompts, texts, echo, offsets, usage, timings }
    }

    fn response(&self, choices: Vec<CompletionChoice>) -> CompletionResponse {
        CompletionResponse {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.api.app.name.clone(),
            system_fingerprint: self.api.app.fingerprint.clone(),
            choices,
            usage: None,
            timings: None,
        }
    }

    /// What an event adds to its choice.
    fn delta(&mut self, index: usize, event: Event) -> CompletionChoice {
        let mut delta = CompletionChoice { index, ..Default::default() };
        let prompt = index / self.plan.n;
        if self.offsets[index].is_none() {
            self.offsets[index] = Some(0);
            if self.echo {
                delta.text.clone_from(&self.texts[prompt]);
            }
            if self.plan.token_ids {
                delta.prompt_token_ids = Some(self.prompts[prompt].clone());
            }
        }
        match event {
            Event::Prompt(scores) if self.plan.logprobs.is_some() => {
                delta.logprobs = Some(self.prompt_logprobs(prompt, &scores));
            }
            Event::Token(token) => {
                let offset = self.offsets[index].unwrap_or(0) + delta.text.chars().count();
                delta.logprobs = token.logprob.map(|logprob| self.token_logprobs(&logprob, offset));
                delta.text.push_str(&token.text);
                if self.plan.token_ids {
                    delta.token_ids = Some(vec![token.id]);
                }
            }
            Event::Done(done) => {
                delta.text.push_str(&done.text);
                delta.finish_reason = Some(finish_reason(&done.finish));
                self.usage.add(&done.usage, index.is_multiple_of(self.plan.n));
                self.timings = (self.offsets.len() == 1).then(|| Timings::from(&done.usage));
            }
            _ => {}
        }
        if let Some(offset) = &mut self.offsets[index] {
            *offset += delta.text.chars().count();
        }
        delta
    }

    fn token_logprobs(&self, logprob: &Logprob, offset: usize) -> CompletionLogprobs {
        let words = &self.api.words;
        let mut top = Map::new();
        let own = (logprob.token, logprob.logprob);
        for (id, value) in logprob.top.iter().copied().chain([own]) {
            // Of tokens that look the same the most likely one counts.
            top.entry(words.text(id)).or_insert_with(|| finite(value).into());
        }
        CompletionLogprobs {
            tokens: vec![words.text(logprob.token)],
            token_logprobs: vec![Some(finite(logprob.logprob))],
            top_logprobs: vec![(self.plan.logprobs > Some(0)).then_some(top)],
            text_offset: vec![offset],
        }
    }

    fn prompt_logprobs(&self, prompt: usize, scores: &[Option<Logprob>]) -> CompletionLogprobs {
        let words = &self.api.words;
        let mut stream = self.api.app.tokenizer.as_ref().map(|tokenizer| tokenizer.stream(true));
        let (mut all, mut offset) = (CompletionLogprobs::default(), 0);
        for (&id, score) in self.prompts[prompt].iter().zip(scores) {
            match score {
                Some(logprob) => all.extend(self.token_logprobs(logprob, offset)),
                None => all.extend(CompletionLogprobs {
                    tokens: vec![words.text(id)],
                    token_logprobs: vec![None],
                    top_logprobs: vec![None],
                    text_offset: vec![offset],
                }),
            }
            let text = stream.as_mut().and_then(|stream| stream.push(id).ok().flatten());
            offset += text.map_or(0, |text| text.chars().count());
        }
        all
    }
}

fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::End | Finish::Stop(_) => "stop",
        Finish::Length => "length",
    }
}

/// Tells choices as chunks of a stream.
struct Chunks {
    told: Told,
}

impl Teller for Chunks {
    fn event(&mut self, index: usize, event: Event, out: &mut Vec<Bytes>) {
        let delta = self.told.delta(index, event);
        let silent = delta.text.is_empty() && delta.logprobs.is_none() && delta.finish_reason.is_none();
        if silent && delta.token_ids.is_none() && delta.prompt_token_ids.is_none() {
            return;
        }
        let timings = self.told.timings.filter(|_| delta.finish_reason.is_some());
        out.push(data(&CompletionResponse { timings, ..self.told.response(vec![delta]) }));
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        if self.told.plan.include_usage {
            let usage = Some(self.told.usage);
            out.push(data(&CompletionResponse { usage, ..self.told.response(vec![]) }));
        }
        out.push(DONE);
    }
}
