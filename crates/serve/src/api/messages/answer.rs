//! The answer in Anthropic's words, whole or as a stream of events.

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::api::Api;
use crate::api::common::new_id;
use crate::api::error::ApiError;
use crate::api::run::{Events, Teller, named};
use crate::api::tools::{Piece, Reader};
use crate::engine::{Event, Finish, Usage};

/// An answer to a conversation.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct MessageResponse {
    id: String,
    /// Always `message`.
    r#type: &'static str,
    /// Always `assistant`.
    role: &'static str,
    model: String,
    content: Vec<AnswerBlock>,
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`.
    #[schema(required)]
    stop_reason: Option<&'static str>,
    /// The text at which the answer ended, if it was one.
    #[schema(required)]
    stop_sequence: Option<String>,
    usage: MessageUsage,
}

/// A block of an answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum AnswerBlock {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A call of a function.
    ToolUse {
        /// Its id.
        id: String,
        /// The function.
        name: String,
        /// The arguments, which follow the function's schema.
        #[schema(value_type = Object)]
        input: Value,
    },
}

/// What an answer took.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct MessageUsage {
    /// Prompt tokens that were computed.
    input_tokens: usize,
    /// New tokens.
    output_tokens: usize,
    /// Prompt tokens whose state was found in the cache.
    cache_read_input_tokens: usize,
    /// Always 0: keeping a state costs nothing extra.
    cache_creation_input_tokens: usize,
}

impl From<&Usage> for MessageUsage {
    fn from(usage: &Usage) -> Self {
        MessageUsage {
            input_tokens: usage.prompt_tokens.saturating_sub(usage.cached_tokens),
            output_tokens: usage.completion_tokens,
            cache_read_input_tokens: usage.cached_tokens,
            cache_creation_input_tokens: 0,
        }
    }
}

/// What has been told of the answer.
pub(super) struct Told {
    reader: Option<Reader>,
    message: MessageResponse,
    /// Whether the last block has not been closed.
    open: bool,
    begun: bool,
    /// JSON of the last call so far.
    arguments: String,
}

impl Told {
    pub(super) fn new(api: &Api, calls: bool) -> Self {
        let message = MessageResponse {
            id: new_id("msg_"),
            r#type: "message",
            role: "assistant",
            model: api.app.name.clone(),
            content: vec![],
            stop_reason: None,
            stop_sequence: None,
            usage: MessageUsage::default(),
        };
        let reader = calls.then(Reader::default);
        Told { reader, message, open: false, begun: false, arguments: String::new() }
    }

    /// The whole answer.
    pub(super) async fn whole(mut self, mut events: Events) -> Result<Response, ApiError> {
        let mut told = Vec::new();
        while let Some(next) = events.next().await {
            let (index, event) = next?;
            self.event(index, event, &mut told);
            told.clear();
        }
        Ok(Json(self.message).into_response())
    }

    fn pieces(&mut self, text: &str) -> Vec<Piece> {
        match &mut self.reader {
            Some(reader) => reader.push(text),
            None if text.is_empty() => vec![],
            None => vec![Piece::Text(text.to_owned())],
        }
    }

    fn tell(&mut self, piece: Piece, out: &mut Vec<Bytes>) {
        match piece {
            Piece::Text(text) => {
                if !self.open || !matches!(self.message.content.last(), Some(AnswerBlock::Text { .. })) {
                    self.start(AnswerBlock::Text { text: String::new() }, out);
                }
                self.delta(&json!({ "type": "text_delta", "text": text }), out);
                if let Some(AnswerBlock::Text { text: all }) = self.message.content.last_mut() {
                    all.push_str(&text);
                }
            }
            Piece::Call(name) => {
                self.start(AnswerBlock::ToolUse { id: new_id("toolu_"), name, input: json!({}) }, out);
            }
            Piece::Arguments(json) => {
                self.delta(&json!({ "type": "input_json_delta", "partial_json": json }), out);
                self.arguments.push_str(&json);
            }
        }
    }

    fn start(&mut self, block: AnswerBlock, out: &mut Vec<Bytes>) {
        self.close(out);
        let index = self.message.content.len();
        let event = json!({ "type": "content_block_start", "index": index, "content_block": block });
        out.push(named(Some("content_block_start"), &event));
        self.message.content.push(block);
        self.open = true;
    }

    fn delta(&self, delta: &Value, out: &mut Vec<Bytes>) {
        let index = self.message.content.len().saturating_sub(1);
        let event = json!({ "type": "content_block_delta", "index": index, "delta": delta });
        out.push(named(Some("content_block_delta"), &event));
    }

    /// Ends the block that is open. Arguments that were cut off are left out of the whole answer.
    fn close(&mut self, out: &mut Vec<Bytes>) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let index = self.message.content.len().saturating_sub(1);
        let arguments = std::mem::take(&mut self.arguments);
        if let Some(AnswerBlock::ToolUse { input, .. }) = self.message.content.last_mut()
            && let Ok(value) = serde_json::from_str(&arguments)
        {
            *input = value;
        }
        let event = json!({ "type": "content_block_stop", "index": index });
        out.push(named(Some("content_block_stop"), &event));
    }
}

impl Teller for Told {
    fn event(&mut self, _: usize, event: Event, out: &mut Vec<Bytes>) {
        if !std::mem::replace(&mut self.begun, true) {
            let event = json!({ "type": "message_start", "message": self.message });
            out.push(named(Some("message_start"), &event));
        }
        let (text, done) = match event {
            Event::Token(token) => (token.text, None),
            Event::Done(done) => (done.text.clone(), Some(done)),
            _ => return,
        };
        for piece in self.pieces(&text) {
            self.tell(piece, out);
        }
        let Some(done) = done else { return };
        if let Some(piece) = self.reader.as_mut().and_then(Reader::finish) {
            self.tell(piece, out);
        }
        self.close(out);
        let called = self.reader.as_ref().is_some_and(|reader| reader.calls > 0);
        self.message.usage = MessageUsage::from(&done.usage);
        self.message.stop_reason = Some(match &done.finish {
            Finish::Length => "max_tokens",
            Finish::Stop(_) => "stop_sequence",
            Finish::End if called => "tool_use",
            Finish::End => "end_turn",
        });
        if let Finish::Stop(stop) = done.finish {
            self.message.stop_sequence = Some(stop);
        }
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        let MessageResponse { stop_reason, stop_sequence, usage, .. } = &self.message;
        let delta = json!({ "stop_reason": stop_reason, "stop_sequence": stop_sequence });
        let event = json!({ "type": "message_delta", "delta": delta, "usage": usage });
        out.push(named(Some("message_delta"), &event));
        out.push(named(Some("message_stop"), &json!({ "type": "message_stop" })));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<Bytes>) {
        out.push(named(Some("error"), &error.anthropic_body()));
    }

    fn ping(&self) -> Bytes {
        named(Some("ping"), &json!({ "type": "ping" }))
    }
}
