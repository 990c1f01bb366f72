//! A request in Anthropic's words, as it comes.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::api::conversation::{self, Conversation};
use crate::api::error::ApiError;
use crate::api::strict;
use crate::api::tools::{Choice, Tool, Tools};
use crate::app::Limits;

strict::objects!(Notes, Turn, MessageTool);
strict::tagged!(Thinking, TextBlock, CacheControl, Block, MessageToolChoice);
strict::words!(MessageTier, Speaker, MessageToolKind);

/// A conversation to be answered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageRequest {
    /// Name of the model. The served one if left out.
    pub(super) model: Option<String>,
    /// Most new tokens.
    #[schema(minimum = 1)]
    pub(super) max_tokens: u32,
    /// The conversation so far. If it ends with words of the assistant, the answer goes on with them.
    #[schema(min_items = 1)]
    messages: Vec<Turn>,
    /// How to answer.
    system: Option<Said>,
    /// Texts before which the answer ends.
    pub(super) stop_sequences: Option<Vec<String>>,
    /// Whether the answer comes as it is made.
    pub(super) stream: Option<bool>,
    /// 0 always takes the most likely token.
    #[schema(minimum = 0, maximum = 1)]
    pub(super) temperature: Option<f64>,
    /// Keep the most likely tokens that together have this probability.
    #[schema(minimum = 0, maximum = 1)]
    pub(super) top_p: Option<f64>,
    /// Keep so many of the most likely tokens; 0 keeps all.
    pub(super) top_k: Option<u32>,
    /// Functions that may be called.
    tools: Option<Vec<MessageTool>>,
    /// Which functions are to be called: `auto` if left out.
    tool_choice: Option<MessageToolChoice>,
    /// Notes of the caller. Of no effect.
    #[expect(dead_code, reason = "of no effect")]
    metadata: Option<Notes>,
    /// Of no effect: there is one tier.
    #[expect(dead_code, reason = "of no effect")]
    service_tier: Option<MessageTier>,
    /// Only disabled: this server does not set thoughts apart.
    #[expect(dead_code, reason = "there is only one kind")]
    thinking: Option<Thinking>,
}

/// A conversation whose tokens are to be counted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CountRequest {
    /// Name of the model. The served one if left out.
    pub(super) model: Option<String>,
    /// The conversation so far.
    #[schema(min_items = 1)]
    messages: Vec<Turn>,
    /// How to answer.
    system: Option<Said>,
    /// Functions that may be called.
    tools: Option<Vec<MessageTool>>,
    /// Which functions are to be called: `auto` if left out.
    tool_choice: Option<MessageToolChoice>,
    /// Only disabled.
    #[expect(dead_code, reason = "there is only one kind")]
    thinking: Option<Thinking>,
}

/// Notes of the caller.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct Notes {
    /// Who asks on the caller's side.
    user_id: Option<String>,
}

/// There is one tier, whatever its name.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", remote = "Self")]
pub(crate) enum MessageTier {
    /// The only one.
    Auto,
    /// The same.
    StandardOnly,
}

/// Whether thoughts are set apart.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub(crate) enum Thinking {
    /// They are not.
    Disabled {},
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub(crate) enum Speaker {
    /// Asks.
    User,
    /// Answers.
    Assistant,
}

/// A message of a conversation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct Turn {
    role: Speaker,
    content: TurnContent,
}

/// What a message says.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be a string or a list of blocks of type text, tool_use or tool_result; this model reads text only"
)]
pub(crate) enum TurnContent {
    /// A text.
    Text(String),
    /// Blocks.
    Blocks(Vec<Block>),
}

/// A text, or one in blocks.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a list of blocks of type text")]
pub(crate) enum Said {
    /// A text.
    Text(String),
    /// A text in blocks.
    Blocks(Vec<TextBlock>),
}

impl Said {
    fn text(&self) -> String {
        match self {
            Said::Text(text) => text.clone(),
            Said::Blocks(blocks) => blocks.iter().map(|TextBlock::Text { text, .. }| text.as_str()).collect(),
        }
    }
}

/// A block of text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub(crate) enum TextBlock {
    /// Text.
    Text {
        /// The text.
        text: String,
        /// Of no effect: every prompt is looked up in the cache.
        cache_control: Option<CacheControl>,
    },
}

/// Where the caller wants the cache to keep the conversation.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub(crate) enum CacheControl {
    /// Here.
    Ephemeral {},
}

/// A block of a message.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub(crate) enum Block {
    /// Text.
    Text {
        /// The text.
        text: String,
        /// Of no effect: every prompt is looked up in the cache.
        cache_control: Option<CacheControl>,
    },
    /// A call that the assistant made.
    ToolUse {
        /// Its id.
        id: String,
        /// The function.
        name: String,
        /// The arguments.
        #[schema(value_type = Object)]
        input: Map<String, Value>,
        /// Of no effect.
        cache_control: Option<CacheControl>,
    },
    /// The result of a call.
    ToolResult {
        /// Which call this is the result of.
        tool_use_id: String,
        /// The result.
        content: Option<Said>,
        /// Whether the call failed. The model is told by the word `Error: `.
        is_error: Option<bool>,
        /// Of no effect.
        cache_control: Option<CacheControl>,
    },
}

/// A function that may be called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct MessageTool {
    /// Only `custom`.
    #[serde(rename = "type")]
    kind: Option<MessageToolKind>,
    /// 1 to 64 letters, digits, `_` and `-`.
    name: String,
    description: Option<String>,
    /// JSON schema of the arguments, an object.
    #[schema(value_type = Object)]
    input_schema: Map<String, Value>,
    /// Of no effect.
    cache_control: Option<CacheControl>,
}

/// The kind of a tool.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub(crate) enum MessageToolKind {
    /// A function of the caller.
    Custom,
}

/// Which functions are to be called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub(crate) enum MessageToolChoice {
    /// The model decides.
    Auto {
        /// Whether at most one call is made.
        disable_parallel_tool_use: Option<bool>,
    },
    /// At least one is called.
    Any {
        /// Whether at most one call is made.
        disable_parallel_tool_use: Option<bool>,
    },
    /// This one is called.
    Tool {
        /// Its name.
        name: String,
        /// Of no effect: one call is made.
        disable_parallel_tool_use: Option<bool>,
    },
    /// None is called, and the model is not told of any.
    None {},
}

impl MessageRequest {
    pub(super) fn conversation(self, limits: &Limits) -> Result<(Conversation, Option<Tools>), ApiError> {
        conversation(&self.messages, self.system, self.tools, self.tool_choice, limits)
    }
}

impl CountRequest {
    pub(super) fn conversation(self, limits: &Limits) -> Result<(Conversation, Option<Tools>), ApiError> {
        conversation(&self.messages, self.system, self.tools, self.tool_choice, limits)
    }
}

fn conversation(
    messages: &[Turn],
    system: Option<Said>,
    tools: Option<Vec<MessageTool>>,
    choice: Option<MessageToolChoice>,
    limits: &Limits,
) -> Result<(Conversation, Option<Tools>), ApiError> {
    if messages.is_empty() || messages.len() > limits.messages {
        let message = format!("must hold between 1 and {} messages", limits.messages);
        return Err(ApiError::invalid("messages", message));
    }
    let mut turns = Vec::new();
    if let Some(system) = system {
        turns.push(json!({ "role": "system", "content": system.text() }));
    }
    for (at, message) in messages.iter().enumerate() {
        add(message, at, &mut turns)?;
    }
    let begun = match turns.last() {
        Some(last) if last["role"] == "assistant" && last.get("tool_calls").is_none() => {
            turns.pop().and_then(|turn| turn["content"].as_str().map(str::to_owned))
        }
        _ => None,
    };
    let tools = self::tools(tools, choice, limits)?;
    if begun.is_some() && tools.is_some() {
        return Err(ApiError::invalid("messages", "with tools, the last message must be of role user"));
    }
    let list = tools.as_ref().map(|tools| tools.list.clone()).unwrap_or_default();
    let conversation =
        Conversation { turns, tools: list, begun, add_generation_prompt: true, add_special: false };
    Ok((conversation, tools))
}

/// Adds a message in the form that chat templates know: results of calls are messages of their own there.
fn add(message: &Turn, at: usize, turns: &mut Vec<Value>) -> Result<(), ApiError> {
    let wrong = |n: usize, what: &str| ApiError::invalid(format!("messages[{at}].content[{n}]"), what);
    let user = message.role == Speaker::User;
    let role = if user { "user" } else { "assistant" };
    let blocks = match &message.content {
        TurnContent::Text(text) => {
            turns.push(json!({ "role": role, "content": text }));
            return Ok(());
        }
        TurnContent::Blocks(blocks) => blocks,
    };
    let (mut text, mut calls, before) = (String::new(), Vec::new(), turns.len());
    for (n, block) in blocks.iter().enumerate() {
        match block {
            Block::Text { text: more, .. } => text.push_str(more),
            Block::ToolUse { .. } if user => return Err(wrong(n, "only an assistant calls functions")),
            Block::ToolUse { id, name, input, .. } => {
                calls.push(conversation::call(id, name, Value::Object(input.clone())));
            }
            Block::ToolResult { .. } if !user => return Err(wrong(n, "only a user gives results of calls")),
            Block::ToolResult { tool_use_id, content, is_error, .. } => {
                let error = if is_error.unwrap_or(false) { "Error: " } else { "" };
                let content = format!("{error}{}", content.as_ref().map(Said::text).unwrap_or_default());
                turns.push(json!({ "role": "tool", "content": content, "tool_call_id": tool_use_id }));
            }
        }
    }
    if !text.is_empty() || !calls.is_empty() || turns.len() == before {
        let mut turn = json!({ "role": role, "content": text });
        if !calls.is_empty() {
            turn["tool_calls"] = Value::Array(calls);
        }
        turns.push(turn);
    }
    Ok(())
}

fn tools(
    list: Option<Vec<MessageTool>>,
    choice: Option<MessageToolChoice>,
    limits: &Limits,
) -> Result<Option<Tools>, ApiError> {
    let list: Vec<Tool> = list.unwrap_or_default().into_iter().map(Tool::from).collect();
    let (choice, single) = match choice {
        Some(MessageToolChoice::None {}) => (None, false),
        None => (Some(Choice::Auto), false),
        Some(MessageToolChoice::Auto { disable_parallel_tool_use }) => {
            (Some(Choice::Auto), disable_parallel_tool_use.unwrap_or(false))
        }
        Some(MessageToolChoice::Any { disable_parallel_tool_use }) => {
            (Some(Choice::Required), disable_parallel_tool_use.unwrap_or(false))
        }
        Some(MessageToolChoice::Tool { name, .. }) => {
            let at = list.iter().position(|tool| tool.name == name);
            let missing = || ApiError::invalid("tool_choice.name", "no tool has this name");
            (Some(Choice::Named(at.ok_or_else(missing)?)), true)
        }
    };
    if list.is_empty() {
        return match choice {
            None | Some(Choice::Auto) => Ok(None),
            Some(_) => Err(ApiError::invalid("tool_choice", "there are no tools to choose from")),
        };
    }
    let tools = Tools { list, choice: choice.unwrap_or(Choice::Auto), parallel: !single };
    tools.check(limits.grammar_bytes)?;
    Ok(choice.map(|_| tools))
}

impl From<MessageTool> for Tool {
    fn from(tool: MessageTool) -> Self {
        Tool { name: tool.name, description: tool.description, parameters: tool.input_schema }
    }
}
