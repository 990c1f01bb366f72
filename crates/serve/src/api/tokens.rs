//! `/tokenize`, `/detokenize` and `/tokenizer_info`, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::chat::request::{ChatMessage, ChatTool, tools};
use super::common::check_model;
use super::conversation::Conversation;
use super::error::{ApiError, ErrorBody};
use super::{Api, body, run};

/// A text or a conversation to be made tokens of.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeRequest {
    /// Name of the model. The served one if left out.
    model: Option<String>,
    /// A text. Either this or `messages`.
    prompt: Option<String>,
    /// A conversation.
    messages: Option<Vec<ChatMessage>>,
    /// Functions that the conversation tells of.
    tools: Option<Vec<ChatTool>>,
    /// Whether the conversation goes up to where the assistant speaks: true if left out.
    add_generation_prompt: Option<bool>,
    /// Whether special tokens are put around the text: true for a text, false for a conversation, if left out.
    add_special_tokens: Option<bool>,
    /// Whether the tokens' own spelling is given too.
    return_token_strs: Option<bool>,
}

/// Tokens of a text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenizeResponse {
    /// How many there are.
    count: usize,
    /// Most tokens of a prompt and its answer together.
    max_model_len: usize,
    tokens: Vec<u32>,
    /// The tokens as the vocabulary spells them, if asked for.
    #[schema(required)]
    token_strs: Option<Vec<String>>,
}

/// Tokens to be made text of.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeRequest {
    /// Name of the model. The served one if left out.
    model: Option<String>,
    /// The tokens.
    tokens: Vec<u32>,
}

/// Text of tokens, special ones included.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DetokenizeResponse {
    prompt: String,
}

/// What is known of the tokenizer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenizerInfo {
    /// The class of `transformers` that reads such a tokenizer.
    tokenizer_class: &'static str,
    /// Number of its tokens.
    vocab_size: usize,
    /// Most tokens of a prompt and its answer together.
    model_max_length: usize,
    #[schema(required)]
    bos_token: Option<String>,
    #[schema(required)]
    bos_token_id: Option<u32>,
    #[schema(required)]
    eos_token: Option<String>,
    #[schema(required)]
    eos_token_id: Option<u32>,
    /// Tokens at which an answer ends.
    eos_token_ids: Vec<u32>,
    /// The template that makes text of conversations.
    #[schema(required)]
    chat_template: Option<String>,
}

fn no_tokenizer(param: &str) -> ApiError {
    ApiError::invalid(param, "the model has no tokenizer; requests speak in token ids")
}

/// Makes tokens of a text or a conversation.
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest, responses(
    (status = 200, description = "The tokens", body = TokenizeResponse),
    (status = "default", description = "What is wrong", body = ErrorBody),
))]
pub(crate) async fn tokenize(State(api): State<Arc<Api>>, parts: Parts, body: Body) -> Response {
    encode(api, parts, body).await.map_or_else(IntoResponse::into_response, IntoResponse::into_response)
}

async fn encode(api: Arc<Api>, parts: Parts, body: Body) -> Result<Json<TokenizeResponse>, ApiError> {
    let bytes = body::read(&parts.headers, body, &api.app.limits).await?;
    let request: TokenizeRequest = body::decode(&bytes, &api.app.limits)?;
    check_model(&api.app, request.model.as_deref())?;
    let tokens = match (&request.prompt, &request.messages) {
        (Some(_), Some(_)) => return Err(ApiError::invalid("messages", "give either prompt or messages")),
        (None, None) => return Err(ApiError::invalid("prompt", "this field or messages is required")),
        (Some(_), None) if request.tools.is_some() || request.add_generation_prompt.is_some() => {
            let param = if request.tools.is_some() { "tools" } else { "add_generation_prompt" };
            return Err(ApiError::invalid(param, "only allowed with messages"));
        }
        (Some(text), None) => {
            run::encode(&api, text, request.add_special_tokens.unwrap_or(true), "prompt").await?
        }
        (None, Some(messages)) => {
            let limits = &api.app.limits;
            if messages.is_empty() || messages.len() > limits.messages {
                let message = format!("must hold between 1 and {} messages", limits.messages);
                return Err(ApiError::invalid("messages", message));
            }
            let turns = messages.iter().enumerate().map(|(at, message)| message.turn(at));
            let tools = tools(request.tools, None, None, limits.grammar_bytes)?;
            let conversation = Conversation {
                turns: turns.collect::<Result<_, _>>()?,
                tools: tools.map(|tools| tools.list).unwrap_or_default(),
                begun: None,
                add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
                add_special: request.add_special_tokens.unwrap_or(false),
            };
            conversation.encode(&api).await?
        }
    };
    let spelled = |tokenizer: &zamba::tokenizer::Tokenizer| {
        tokens.iter().map(|&id| tokenizer.id_to_piece(id).unwrap_or_default()).collect()
    };
    let wanted = request.return_token_strs.unwrap_or(false);
    Ok(Json(TokenizeResponse {
        count: tokens.len(),
        max_model_len: api.app.handle.facts().context,
        token_strs: api.app.tokenizer.as_ref().filter(|_| wanted).map(spelled),
        tokens,
    }))
}

/// Makes text of tokens.
#[utoipa::path(post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text", body = DetokenizeResponse),
    (status = "default", description = "What is wrong", body = ErrorBody),
))]
pub(crate) async fn detokenize(State(api): State<Arc<Api>>, parts: Parts, body: Body) -> Response {
    decode(api, parts, body).await.map_or_else(IntoResponse::into_response, IntoResponse::into_response)
}

async fn decode(api: Arc<Api>, parts: Parts, body: Body) -> Result<Json<DetokenizeResponse>, ApiError> {
    let bytes = body::read(&parts.headers, body, &api.app.limits).await?;
    let request: DetokenizeRequest = body::decode(&bytes, &api.app.limits)?;
    check_model(&api.app, request.model.as_deref())?;
    let Some(tokenizer) = api.app.tokenizer.clone() else { return Err(no_tokenizer("tokens")) };
    let vocab = api.app.handle.facts().vocab;
    if let Some(id) = request.tokens.iter().find(|&&id| id as usize >= vocab) {
        let message = format!("token {id} is outside the vocabulary, which has {vocab} tokens");
        return Err(ApiError::invalid("tokens", message));
    }
    let work = tokio::task::spawn_blocking(move || tokenizer.decode(&request.tokens, false)).await;
    let text = work.map_err(|_| ApiError::internal("the tokenizer failed on these tokens"))?;
    let prompt = text.map_err(|error| ApiError::invalid("tokens", error.to_string()))?;
    Ok(Json(DetokenizeResponse { prompt }))
}

/// Tells what is known of the tokenizer.
#[utoipa::path(get, path = "/tokenizer_info", tag = "tokens", responses(
    (status = 200, description = "The tokenizer", body = TokenizerInfo),
    (status = "default", description = "What is wrong", body = ErrorBody),
))]
pub(crate) async fn info(State(api): State<Arc<Api>>) -> Response {
    let app = &api.app;
    let Some(tokenizer) = &app.tokenizer else {
        return ApiError::not_found("model", "the model has no tokenizer; requests speak in token ids")
            .into_response();
    };
    let piece = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_piece(id));
    let (bos, eos) = (tokenizer.bos_id(), tokenizer.eos_id());
    Json(TokenizerInfo {
        tokenizer_class: "PreTrainedTokenizerFast",
        vocab_size: tokenizer.vocab_size(),
        model_max_length: app.handle.facts().context,
        bos_token: piece(bos),
        bos_token_id: bos,
        eos_token: piece(eos),
        eos_token_id: eos,
        eos_token_ids: app.ends.clone(),
        chat_template: app.template.as_ref().map(|template| template.source().to_owned()),
    })
    .into_response()
}
