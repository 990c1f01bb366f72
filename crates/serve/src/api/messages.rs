//! `/v1/messages`: the next message of a conversation, in Anthropic's words.

mod answer;
mod request;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

pub(crate) use answer::MessageResponse;
pub(crate) use request::{CountRequest, MessageRequest};

use super::common::{Plan, check_model, check_stops, random, salt, within};
use super::error::{AnthropicErrorBody, ApiError};
use super::run::{self, Events};
use super::{Api, Ask, body};
use crate::app::Caller;
use zamba::sampler::SamplerConfig;

/// How many tokens a conversation has.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenCount {
    input_tokens: usize,
}

/// Answers a conversation.
#[utoipa::path(
    post, path = "/v1/messages", tag = "text",
    request_body = MessageRequest,
    responses(
        (status = 200, description = "The answer, or a stream of it", content(
            (MessageResponse = "application/json"), (run::StreamEvent = "text/event-stream"))),
        (status = "default", description = "What is wrong", body = AnthropicErrorBody),
    )
)]
pub(crate) async fn messages(State(api): State<Arc<Api>>, parts: Parts, body: Body) -> Response {
    answer(api, parts, body).await.unwrap_or_else(ApiError::into_anthropic)
}

async fn answer(api: Arc<Api>, parts: Parts, body: Body) -> Result<Response, ApiError> {
    let ask = Ask::new(&parts);
    let bytes = body::read(&parts.headers, body, &api.app.limits).await?;
    let mut permits = Vec::new();
    run::admit(&api.app.handle, 1, &mut permits)?;
    let mut request: MessageRequest = body::parse(bytes, &api.app.limits).await?;
    let plan = plan(&mut request, &api, &ask.caller)?;
    let (conversation, tools) = request.conversation(&api.app.limits)?;
    let rule = match &tools {
        Some(tools) => Some(api.compile(tools.grammar(None)?, "tools").await?),
        None => None,
    };
    let prompt = conversation.encode(&api).await?;
    let answers =
        run::submit(&api.app.handle, &plan, &[prompt], rule.as_ref(), permits, |_| "messages".to_owned())?;
    let told = answer::Told::new(&api, tools.is_some());
    if plan.stream {
        return Ok(run::stream(answers, told));
    }
    told.whole(Events::new(answers)).await
}

fn plan(request: &mut MessageRequest, api: &Api, caller: &Caller) -> Result<Plan, ApiError> {
    let app = &api.app;
    check_model(app, request.model.as_deref())?;
    if request.max_tokens == 0 {
        return Err(ApiError::invalid("max_tokens", "must be at least 1"));
    }
    let stops = request.stop_sequences.take().unwrap_or_default();
    check_stops(&stops, app, "stop_sequences")?;
    let sampler = SamplerConfig {
        temperature: within("temperature", request.temperature, 0.0, 1.0, 1.0)?,
        top_k: request.top_k.unwrap_or(0) as usize,
        top_p: within("top_p", request.top_p, 0.0, 1.0, 1.0)?,
        repeat_last_n: 0,
        seed: random(),
        ..SamplerConfig::greedy()
    };
    Ok(Plan {
        sampler,
        max_tokens: Some(request.max_tokens as usize),
        ends: app.ends.clone(),
        stops,
        logprobs: None,
        score: None,
        n: 1,
        stream: request.stream.unwrap_or(false),
        include_usage: false,
        token_ids: false,
        salt: salt(caller, None)?,
        tenant: caller.tenant,
    })
}

/// Counts the tokens of a conversation.
#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "tokens", request_body = CountRequest, responses(
    (status = 200, description = "The number", body = TokenCount),
    (status = "default", description = "What is wrong", body = AnthropicErrorBody),
))]
pub(crate) async fn count(State(api): State<Arc<Api>>, parts: Parts, body: Body) -> Response {
    let counted = async {
        let bytes: Bytes = body::read(&parts.headers, body, &api.app.limits).await?;
        let request: CountRequest = body::parse(bytes, &api.app.limits).await?;
        check_model(&api.app, request.model.as_deref())?;
        let (conversation, _) = request.conversation(&api.app.limits)?;
        Ok(Json(TokenCount { input_tokens: conversation.encode(&api).await?.len() }).into_response())
    };
    counted.await.unwrap_or_else(ApiError::into_anthropic)
}
