//! The answer to a conversation, whole or in chunks.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Api;
use crate::api::common::{Plan, Timings, UsageBody, new_id, now};
use crate::api::error::ApiError;
use crate::api::run::{DONE, Events, Teller, data};
use crate::api::tools::{Piece, Reader};
use crate::api::words::ChatLogprobs;
use crate::engine::{Event, Finish};

/// Answers to a conversation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatResponse {
    id: String,
    /// Always `chat.completion`.
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// Changes with weights, configuration and program.
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: UsageBody,
    /// Of an answer with one choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
    /// Ids of the prompt's tokens, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

/// One answer.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    index: usize,
    message: AnswerMessage,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    finish_reason: &'static str,
    /// Ids of new tokens, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// The assistant's message.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnswerMessage {
    /// Always `assistant`.
    role: &'static str,
    /// Null if it only calls functions.
    #[schema(required)]
    content: Option<String>,
    /// Always null: there is no separate refusal.
    #[schema(required, value_type = Option<String>)]
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    tool_calls: Vec<AnswerCall>,
}

impl Default for AnswerMessage {
    fn default() -> Self {
        AnswerMessage { role: "assistant", content: None, refusal: None, tool_calls: Vec::new() }
    }
}

/// A call of a function.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnswerCall {
    id: String,
    /// Always `function`.
    r#type: &'static str,
    function: AnswerFunction,
}

/// What is called.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnswerFunction {
    name: String,
    /// JSON that follows the function's schema.
    arguments: String,
}

/// A part of an answer, as an event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChunk {
    id: String,
    /// Always `chat.completion.chunk`.
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// Changes with weights, configuration and program.
    system_fingerprint: String,
    choices: Vec<ChunkChoice>,
    /// In a last chunk, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageBody>,
    /// In the chunk that ends an answer with one choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
    /// In the first chunk of a choice, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

/// What is new in one answer.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChunkChoice {
    index: usize,
    delta: Delta,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    /// Null while the answer goes on.
    #[schema(required)]
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// What is new in a message.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    tool_calls: Vec<CallDelta>,
}

/// What is new in a call.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta,
}

/// What is new in what is called.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

/// What has been told of each choice.
pub(super) struct Told {
    api: Arc<Api>,
    plan: Plan,
    id: String,
    created: u64,
    prompt: Vec<u32>,
    /// For each choice what takes calls out of its text, if calls are possible.
    readers: Vec<Option<Reader>>,
    usage: UsageBody,
    timings: Option<Timings>,
}

/// What an event adds to a choice.
#[derive(Default)]
struct News {
    text: String,
    calls: Vec<CallDelta>,
    logprobs: Option<ChatLogprobs>,
    token_ids: Option<Vec<u32>>,
    finish_reason: Option<&'static str>,
}

impl Told {
    pub(super) fn new(api: Arc<Api>, plan: Plan, calls: bool, prompt: Vec<u32>) -> Self {
        let readers = (0..plan.n).map(|_| calls.then(Reader::default)).collect();
        let (id, created) = (new_id("chatcmpl-"), now());
        Told { api, plan, id, created, prompt, readers, usage: UsageBody::default(), timings: None }
    }

    pub(super) fn streams(&self) -> bool {
        self.plan.stream
    }

    /// The whole answer.
    pub(super) async fn whole(mut self, mut events: Events) -> Result<Response, ApiError> {
        let mut choices: Vec<ChatChoice> =
            (0..self.plan.n).map(|index| ChatChoice { index, ..Default::default() }).collect();
        while let Some(next) = events.next().await {
            let (index, event) = next?;
            let news = self.news(index, event);
            choices[index].add(news);
        }
        for choice in &mut choices {
            if choice.message.tool_calls.is_empty() {
                choice.message.content.get_or_insert_default();
            }
        }
        let app = &self.api.app;
        Ok(Json(ChatResponse {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: app.name.clone(),
            system_fingerprint: app.fingerprint.clone(),
            choices,
            usage: self.usage,
            timings: self.timings,
            prompt_token_ids: self.plan.token_ids.then_some(self.prompt),
        })
        .into_response())
    }

    fn news(&mut self, index: usize, event: Event) -> News {
        let mut news = News::default();
        match event {
            Event::Token(token) => {
                self.read(index, &token.text, &mut news);
                news.logprobs = token.logprob.map(|logprob| ChatLogprobs {
                    content: vec![self.api.words.chat(&logprob)],
                    refusal: None,
                });
                news.token_ids = self.plan.token_ids.then(|| vec![token.id]);
            }
            Event::Done(done) => {
                self.read(index, &done.text, &mut news);
                let reader = self.readers[index].as_mut();
                if let Some(Piece::Text(text)) = reader.and_then(Reader::finish) {
                    news.text.push_str(&text);
                }
                let called = self.readers[index].as_ref().is_some_and(|reader| reader.calls > 0);
                news.finish_reason = Some(match done.finish {
                    Finish::Length => "length",
                    Finish::End if called => "tool_calls",
                    Finish::End | Finish::Stop(_) => "stop",
                });
                self.usage.add(&done.usage, index == 0);
                self.timings = (self.plan.n == 1).then(|| Timings::from(&done.usage));
            }
            _ => {}
        }
        news
    }

    /// Takes calls out of new text, where calls are possible.
    fn read(&mut self, index: usize, text: &str, news: &mut News) {
        let Some(reader) = &mut self.readers[index] else {
            news.text.push_str(text);
            return;
        };
        let mut number = reader.calls;
        for piece in reader.push(text) {
            match piece {
                Piece::Text(text) => news.text.push_str(&text),
                Piece::Call(name) => {
                    news.calls.push(CallDelta {
                        index: number,
                        id: Some(new_id("call_")),
                        r#type: Some("function"),
                        function: FunctionDelta { name: Some(name), arguments: String::new() },
                    });
                    number += 1;
                }
                Piece::Arguments(arguments) => news.calls.push(CallDelta {
                    index: number - 1,
                    id: None,
                    r#type: None,
                    function: FunctionDelta { name: None, arguments },
                }),
            }
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.api.app.name.clone(),
            system_fingerprint: self.api.app.fingerprint.clone(),
            choices,
            usage: None,
            timings: None,
            prompt_token_ids: None,
        }
    }
}

impl ChatChoice {
    fn add(&mut self, news: News) {
        if !news.text.is_empty() {
            self.message.content.get_or_insert_default().push_str(&news.text);
        }
        for call in news.calls {
            match (call.id, call.function.name) {
                (Some(id), Some(name)) => self.message.tool_calls.push(AnswerCall {
                    id,
                    r#type: "function",
                    function: AnswerFunction { name, arguments: String::new() },
                }),
                _ => {
                    if let Some(last) = self.message.tool_calls.last_mut() {
                        last.function.arguments.push_str(&call.function.arguments);
                    }
                }
            }
        }
        if let Some(new) = news.logprobs {
            self.logprobs.get_or_insert_default().content.extend(new.content);
        }
        if let Some(new) = news.token_ids {
            self.token_ids.get_or_insert_default().extend(new);
        }
        self.finish_reason = news.finish_reason.unwrap_or(self.finish_reason);
    }
}

/// Tells answers as chunks of a stream.
pub(super) struct Chunks {
    told: Told,
    /// Choices whose role has been told.
    begun: Vec<bool>,
}

impl Chunks {
    pub(super) fn new(told: Told) -> Self {
        let begun = vec![false; told.plan.n];
        Chunks { told, begun }
    }
}

impl Teller for Chunks {
    fn event(&mut self, index: usize, event: Event, out: &mut Vec<Bytes>) {
        if !std::mem::replace(&mut self.begun[index], true) {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), tool_calls: vec![] };
            let mut chunk = self.told.chunk(vec![ChunkChoice { index, delta, ..Default::default() }]);
            chunk.prompt_token_ids = self.told.plan.token_ids.then(|| self.told.prompt.clone());
            out.push(data(&chunk));
        }
        let news = self.told.news(index, event);
        let silent = news.text.is_empty() && news.calls.is_empty();
        if !silent || news.logprobs.is_some() || news.token_ids.is_some() {
            let content = (!news.text.is_empty() || news.calls.is_empty()).then_some(news.text);
            let delta = Delta { role: None, content, tool_calls: news.calls };
            let (logprobs, token_ids) = (news.logprobs, news.token_ids);
            let choice = ChunkChoice { index, delta, logprobs, token_ids, finish_reason: None };
            out.push(data(&self.told.chunk(vec![choice])));
        }
        if news.finish_reason.is_some() {
            let (finish_reason, timings) = (news.finish_reason, self.told.timings);
            let choice = ChunkChoice { index, finish_reason, ..Default::default() };
            out.push(data(&ChatChunk { timings, ..self.told.chunk(vec![choice]) }));
        }
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        if self.told.plan.include_usage {
            let usage = Some(self.told.usage);
            out.push(data(&ChatChunk { usage, ..self.told.chunk(vec![]) }));
        }
        out.push(DONE);
    }
}
