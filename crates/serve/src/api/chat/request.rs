//! A request for the next message, as it comes.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::api::common::{Unsupported, text_request};
use crate::api::conversation;
use crate::api::error::ApiError;
use crate::api::strict;
use crate::api::tools::{Choice, Tool, Tools};

strict::objects!(
    ChatMessage,
    TextPart,
    EarlierCall,
    EarlierFunction,
    ChatTool,
    ChatFunction,
    NamedTool,
    NamedFunction,
    JsonSchema
);
strict::tagged!(ResponseFormat);
strict::words!(Modality, Role, ToolKind, ToolMode);

text_request! {
    /// A conversation to be answered.
    struct ChatRequest {
        /// The conversation so far.
        #[schema(min_items = 1)]
        messages: Vec<ChatMessage>,
        /// Most new tokens; the newer name of `max_tokens`.
        max_completion_tokens: Option<u32>,
        /// Whether choices hold the log-probabilities of their tokens.
        #[schema(default = false)]
        logprobs: Option<bool>,
        /// So many of the most likely alternatives for each token. Only with `logprobs`.
        #[schema(minimum = 0)]
        top_logprobs: Option<u32>,
        /// What the answer must be like.
        response_format: Option<ResponseFormat>,
        /// Functions that may be called.
        #[schema(max_items = 128)]
        tools: Option<Vec<ChatTool>>,
        /// Which functions are to be called: `auto` if left out.
        tool_choice: Option<ToolChoice>,
        /// Whether more than one call is allowed.
        #[schema(default = true)]
        parallel_tool_calls: Option<bool>,
        /// Only `["text"]`.
        modalities: Option<Vec<Modality>>,
        /// Of no effect: every prompt is looked up in the cache.
        prompt_cache_key: Option<String>,
        /// Who asks on the caller's side. Of no effect.
        safety_identifier: Option<String>,
        /// Not supported.
        #[serde(default)]
        audio: Unsupported,
        /// Not supported: use `tools`.
        #[serde(default)]
        functions: Unsupported,
        /// Not supported: use `tool_choice`.
        #[serde(default)]
        function_call: Unsupported,
        /// Not supported.
        #[serde(default)]
        prediction: Unsupported,
        /// Not supported.
        #[serde(default)]
        prompt_cache_retention: Unsupported,
        /// Not supported.
        #[serde(default)]
        reasoning_effort: Unsupported,
        /// Not supported.
        #[serde(default)]
        verbosity: Unsupported,
        /// Not supported.
        #[serde(default)]
        web_search_options: Unsupported,
    }
}

/// What an answer can be made of.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub(crate) enum Modality {
    /// Text.
    Text,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub(crate) enum Role {
    /// Says how to answer.
    System,
    /// The same.
    Developer,
    /// Asks.
    User,
    /// Answers.
    Assistant,
    /// Gives the result of a call.
    Tool,
}

impl Role {
    /// As chat templates name it.
    fn name(self) -> &'static str {
        match self {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// A message of a conversation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct ChatMessage {
    pub(crate) role: Role,
    /// What is said. An assistant that calls functions may say nothing.
    content: Option<Content>,
    /// Name of the speaker.
    name: Option<String>,
    /// Calls that the assistant made.
    tool_calls: Option<Vec<EarlierCall>>,
    /// Which call this is the result of.
    tool_call_id: Option<String>,
    /// Not supported.
    #[serde(default)]
    refusal: Unsupported,
    /// Not supported.
    #[serde(default)]
    audio: Unsupported,
    /// Not supported.
    #[serde(default)]
    function_call: Unsupported,
    /// Only empty: this server makes none.
    #[schema(max_items = 0)]
    annotations: Option<Vec<Unsupported>>,
}

/// What a message says.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be a string or a list of parts {\"type\": \"text\", \"text\": …}; this model reads text only"
)]
pub(crate) enum Content {
    /// A text.
    Text(String),
    /// A text in parts.
    Parts(Vec<TextPart>),
}

impl Content {
    pub(crate) fn text(&self) -> String {
        match self {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => parts.iter().map(|part| part.text.as_str()).collect(),
        }
    }
}

/// A part of a text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct TextPart {
    #[serde(rename = "type")]
    kind: Modality,
    text: String,
}

/// The kind of a tool.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub(crate) enum ToolKind {
    /// A function of the caller.
    Function,
}

/// A call that the assistant made earlier.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct EarlierCall {
    id: String,
    #[serde(rename = "type")]
    kind: ToolKind,
    function: EarlierFunction,
}

/// What was called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct EarlierFunction {
    name: String,
    /// JSON.
    arguments: String,
}

/// A tool that may be called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct ChatTool {
    #[serde(rename = "type")]
    kind: ToolKind,
    function: ChatFunction,
}

/// A function that may be called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct ChatFunction {
    /// 1 to 64 letters, digits, `_` and `-`.
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    /// JSON schema of its arguments, an object. None if left out.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Map<String, Value>>,
    /// Of no effect: arguments always follow the schema.
    strict: Option<bool>,
}

/// Which functions are to be called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}"
)]
pub(crate) enum ToolChoice {
    /// A rule.
    Mode(ToolMode),
    /// This one.
    Named(NamedTool),
}

/// A rule for calls.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub(crate) enum ToolMode {
    /// None is called, and the model is not told of any.
    None,
    /// The model decides.
    Auto,
    /// At least one is called.
    Required,
}

/// A function to be called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct NamedTool {
    #[serde(rename = "type")]
    kind: ToolKind,
    function: NamedFunction,
}

/// Its name.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct NamedFunction {
    name: String,
}

/// What an answer must be like.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub(crate) enum ResponseFormat {
    /// Anything.
    Text {},
    /// A JSON object.
    JsonObject {},
    /// JSON that follows a schema.
    JsonSchema {
        /// The schema and its name.
        json_schema: JsonSchema,
    },
}

/// A schema and its name.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct JsonSchema {
    /// 1 to 64 letters, digits, `_` and `-`.
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    /// The schema. Parts that this server cannot follow are refused.
    #[schema(value_type = Object)]
    schema: Map<String, Value>,
    /// Of no effect: the schema is always followed.
    strict: Option<bool>,
}

impl ResponseFormat {
    /// The schema that the answer must follow, if there is one.
    pub(crate) fn schema(self, grammar_bytes: usize) -> Result<Option<Value>, ApiError> {
        match self {
            ResponseFormat::Text {} => Ok(None),
            ResponseFormat::JsonObject {} => Ok(Some(json!({ "type": "object" }))),
            ResponseFormat::JsonSchema { json_schema } => {
                let name = &json_schema.name;
                let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
                if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
                    let message = "a schema's name has 1 to 64 letters, digits, _ and -";
                    return Err(ApiError::invalid("response_format.json_schema.name", message));
                }
                let schema = Value::Object(json_schema.schema);
                if schema.to_string().len() > grammar_bytes {
                    let message = format!("the schema has more than {grammar_bytes} bytes");
                    return Err(ApiError::invalid("response_format.json_schema.schema", message));
                }
                Ok(Some(schema))
            }
        }
    }
}

/// The functions of a request, if any may be called.
pub(crate) fn tools(
    list: Option<Vec<ChatTool>>,
    choice: Option<ToolChoice>,
    parallel: Option<bool>,
    grammar_bytes: usize,
) -> Result<Option<Tools>, ApiError> {
    let list: Vec<Tool> =
        list.unwrap_or_default().into_iter().map(|tool| Tool::from(tool.function)).collect();
    let choice = match choice {
        _ if list.is_empty() => match choice {
            None | Some(ToolChoice::Mode(ToolMode::None | ToolMode::Auto)) => return Ok(None),
            Some(_) => return Err(ApiError::invalid("tool_choice", "there are no tools to choose from")),
        },
        Some(ToolChoice::Mode(ToolMode::None)) => None,
        None | Some(ToolChoice::Mode(ToolMode::Auto)) => Some(Choice::Auto),
        Some(ToolChoice::Mode(ToolMode::Required)) => Some(Choice::Required),
        Some(ToolChoice::Named(named)) => {
            let at = list.iter().position(|tool| tool.name == named.function.name);
            let missing =
                || ApiError::invalid("tool_choice.function.name", "no function of tools has this name");
            Some(Choice::Named(at.ok_or_else(missing)?))
        }
    };
    let tools = Tools { list, choice: choice.unwrap_or(Choice::Auto), parallel: parallel.unwrap_or(true) };
    tools.check(grammar_bytes)?;
    Ok(choice.map(|_| tools))
}

impl From<ChatFunction> for Tool {
    fn from(function: ChatFunction) -> Self {
        let none = || match json!({ "type": "object", "properties": {}, "additionalProperties": false }) {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        Tool {
            name: function.name,
            description: function.description,
            parameters: function.parameters.unwrap_or_else(none),
        }
    }
}

impl ChatMessage {
    /// In the form that chat templates know.
    pub(crate) fn turn(&self, at: usize) -> Result<Value, ApiError> {
        let wrong =
            |field: &str, message: &str| Err(ApiError::invalid(format!("messages[{at}].{field}"), message));
        let calls = self.tool_calls.as_deref().unwrap_or_default();
        if self.content.is_none() && (self.role != Role::Assistant || calls.is_empty()) {
            return wrong("content", "this field is required");
        }
        if !calls.is_empty() && self.role != Role::Assistant {
            return wrong("tool_calls", "only an assistant calls functions");
        }
        if self.tool_call_id.is_some() != (self.role == Role::Tool) {
            return wrong(
                "tool_call_id",
                "messages of role tool, and only those, say which call they answer",
            );
        }
        let content = self.content.as_ref().map(Content::text).unwrap_or_default();
        let mut turn = json!({ "role": self.role.name(), "content": content });
        if let Some(name) = &self.name {
            turn["name"] = name.as_str().into();
        }
        if let Some(id) = &self.tool_call_id {
            turn["tool_call_id"] = id.as_str().into();
        }
        let mut list = Vec::with_capacity(calls.len());
        for (n, call) in calls.iter().enumerate() {
            let EarlierFunction { name, arguments } = &call.function;
            let Ok(arguments @ Value::Object(_)) = serde_json::from_str(arguments) else {
                return wrong(
                    &format!("tool_calls[{n}].function.arguments"),
                    "must be a JSON object, as a string",
                );
            };
            list.push(conversation::call(&call.id, name, arguments));
        }
        if !list.is_empty() {
            turn["tool_calls"] = Value::Array(list);
        }
        Ok(turn)
    }
}
