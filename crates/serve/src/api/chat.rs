//! `/v1/chat/completions`: the next message of a conversation.

mod answer;
pub(crate) mod request;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};

pub(crate) use answer::{ChatChunk, ChatResponse};
pub(crate) use request::ChatRequest;

use super::common::Plan;
use super::conversation::Conversation;
use super::error::{ApiError, ErrorBody};
use super::run::{self, Events};
use super::tools::Tools;
use super::{Api, Ask, body};
use crate::grammar::Grammar;

/// Answers a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "text",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answers, or a stream of them", content(
            (ChatResponse = "application/json"), (run::StreamEvent = "text/event-stream"))),
        (status = "default", description = "What is wrong", body = ErrorBody),
    )
)]
pub(crate) async fn chat(State(api): State<Arc<Api>>, parts: Parts, body: Body) -> Response {
    answer(api, parts, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(api: Arc<Api>, parts: Parts, body: Body) -> Result<Response, ApiError> {
    let ask = Ask::new(&parts);
    let bytes = body::read(&parts.headers, body, &api.app.limits).await?;
    let mut permits = Vec::new();
    run::admit(&api.app.handle, 1, &mut permits)?;
    let mut request: ChatRequest = body::parse(bytes, &api.app.limits).await?;
    let shared = request.shared();
    let ignore_eos = shared.ignore_eos;
    let plan = plan(&request, shared.plan(&api.app, &ask.caller)?, &api)?;
    let asked = asked(request, &api)?;
    if asked.grammar.is_some() && ignore_eos {
        let message = "an answer that follows a grammar ends where the grammar does; leave one of them out";
        return Err(ApiError::invalid("ignore_eos", message));
    }
    run::admit(&api.app.handle, plan.n, &mut permits)?;
    let rule = match asked.grammar {
        Some(grammar) => Some(api.compile(grammar, asked.param).await?),
        None => None,
    };
    let prompt = asked.conversation.encode(&api).await?;
    let prompts = [prompt];
    let answers =
        run::submit(&api.app.handle, &plan, &prompts, rule.as_ref(), permits, |_| "messages".to_owned())?;
    let [prompt] = prompts;
    let told = answer::Told::new(api, plan, asked.calls, prompt);
    if told.streams() {
        return Ok(run::stream(answers, answer::Chunks::new(told)));
    }
    told.whole(Events::new(answers)).await
}

/// The shared part with what a chat adds to it.
fn plan(request: &ChatRequest, mut plan: Plan, api: &Api) -> Result<Plan, ApiError> {
    let most = api.app.limits.logprobs;
    let wanted = request.logprobs.unwrap_or(false);
    match request.top_logprobs {
        Some(_) if !wanted => {
            return Err(ApiError::invalid("top_logprobs", "only allowed with logprobs: true"));
        }
        Some(n) if n as usize > most => {
            return Err(ApiError::invalid("top_logprobs", format!("at most {most}")));
        }
        _ => {}
    }
    plan.logprobs = wanted.then(|| request.top_logprobs.unwrap_or(0) as usize);
    if let Some(tokens) = request.max_completion_tokens {
        if request.max_tokens.is_some_and(|other| other != tokens) {
            let message = "max_tokens says another number; give only one of them";
            return Err(ApiError::invalid("max_completion_tokens", message));
        }
        plan.max_tokens = Some(tokens as usize);
    }
    if plan.max_tokens == Some(0) {
        let param = if request.max_tokens.is_some() { "max_tokens" } else { "max_completion_tokens" };
        return Err(ApiError::invalid(param, "must be at least 1"));
    }
    if request.modalities.as_ref().is_some_and(Vec::is_empty) {
        return Err(ApiError::invalid("modalities", "must hold \"text\""));
    }
    Ok(plan)
}

/// What is asked, checked.
struct Asked {
    conversation: Conversation,
    grammar: Option<Grammar>,
    /// The field that asks for the grammar.
    param: &'static str,
    /// Whether the answer may hold calls.
    calls: bool,
}

fn asked(request: ChatRequest, api: &Api) -> Result<Asked, ApiError> {
    let limits = &api.app.limits;
    let most = limits.messages;
    if request.messages.is_empty() || request.messages.len() > most {
        return Err(ApiError::invalid("messages", format!("must hold between 1 and {most} messages")));
    }
    let turns = request.messages.iter().enumerate().map(|(at, message)| message.turn(at));
    let turns = turns.collect::<Result<Vec<_>, _>>()?;
    let (list, choice, parallel) = (request.tools, request.tool_choice, request.parallel_tool_calls);
    let tools = request::tools(list, choice, parallel, limits.grammar_bytes)?;
    let schema = match request.response_format {
        Some(format) => format.schema(limits.grammar_bytes)?,
        None => None,
    };
    let (grammar, param) = match (&tools, schema) {
        (Some(tools), schema) => (Some(tools.grammar(schema)?), "tools"),
        (None, Some(schema)) => (Some(Grammar::Json(schema)), "response_format"),
        (None, None) => (None, ""),
    };
    let calls = tools.is_some();
    let tools = tools.map(|tools: Tools| tools.list).unwrap_or_default();
    let conversation =
        Conversation { turns, tools, begun: None, add_generation_prompt: true, add_special: false };
    Ok(Asked { conversation, grammar, param, calls })
}
