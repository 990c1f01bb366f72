//! From messages to tokens, by the model's chat template.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::tools::{Tool, describe, written};

/// A conversation in the form that chat templates know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conversation {
    /// Objects with `role`, `content` and, where they have them, `tool_calls`, `tool_call_id` and `name`.
    pub(crate) turns: Vec<Value>,
    pub(crate) tools: Vec<Tool>,
    /// Words with which the answer begins.
    pub(crate) begun: Option<String>,
    /// Whether the assistant is to speak next.
    pub(crate) add_generation_prompt: bool,
    /// Whether the tokenizer puts its own special tokens around the text; templates write theirs themselves.
    pub(crate) add_special: bool,
}

/// A call that an assistant made earlier.
pub(crate) fn call(id: &str, name: &str, arguments: Value) -> Value {
    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
}

impl Conversation {
    /// The tokens of the conversation, up to where the assistant goes on.
    pub(crate) async fn encode(self, api: &Arc<Api>) -> Result<Vec<u32>, ApiError> {
        if api.app.tokenizer.is_none() {
            let message = "the model has no tokenizer; use /v1/completions with token ids";
            return Err(ApiError::invalid("messages", message));
        }
        if api.app.template.is_none() {
            let message = "the model has no chat template; add one to its folder or use /v1/completions";
            return Err(ApiError::invalid("messages", message));
        }
        let turn = api.encoders.acquire().await;
        let shared = api.clone();
        let work = tokio::task::spawn_blocking(move || self.encode_here(&shared)).await;
        drop(turn);
        work.map_err(|_| ApiError::internal("the chat template failed on these messages"))?
    }

    fn encode_here(self, api: &Api) -> Result<Vec<u32>, ApiError> {
        let (Some(tokenizer), Some(template)) = (&api.app.tokenizer, &api.app.template) else {
            return Ok(Vec::new());
        };
        let tools: Vec<Value> = self.tools.iter().map(Tool::template).collect();
        let rendered = if template.knows_tools() {
            template.render_json(
                &self.turns,
                (!tools.is_empty()).then_some(&tools),
                self.add_generation_prompt,
            )
        } else {
            template.render_json(&plain(self.turns, &self.tools), None, self.add_generation_prompt)
        };
        let wrong = |error: &dyn std::fmt::Display| ApiError::invalid("messages", error.to_string());
        let mut text = rendered.map_err(|error| wrong(&error))?;
        text.push_str(&self.begun.unwrap_or_default());
        tokenizer.encode(&text, self.add_special).map_err(|error| wrong(&error))
    }
}

/// The same conversation without anything but roles and texts, for templates that know nothing else.
fn plain(turns: Vec<Value>, tools: &[Tool]) -> Vec<Value> {
    let mut plain: Vec<Value> = turns.into_iter().map(plain_turn).collect();
    if !tools.is_empty() {
        let words = describe(tools);
        match plain.first_mut().filter(|turn| turn["role"] == "system") {
            Some(system) => {
                let before = system["content"].as_str().unwrap_or_default();
                system["content"] = format!("{before}\n\n{words}").into();
            }
            None => plain.insert(0, json!({ "role": "system", "content": words })),
        }
    }
    plain
}

fn plain_turn(turn: Value) -> Value {
    let content = turn["content"].as_str().unwrap_or_default();
    if turn["role"] == "tool" {
        let content = format!("<tool_response>\n{content}\n</tool_response>");
        return json!({ "role": "user", "content": content });
    }
    let Some(calls) = turn["tool_calls"].as_array() else {
        return turn;
    };
    let mut text = content.to_owned();
    for call in calls {
        let function = &call["function"];
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&written(function["name"].as_str().unwrap_or_default(), &function["arguments"]));
    }
    json!({ "role": turn["role"], "content": text })
}
