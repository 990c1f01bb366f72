//! `/v1/state`: the state of a conversation as a file, so that it goes on after a restart without its prompt being
//! computed again.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::chat::request::ChatMessage;
use super::common::{check_model, salt};
use super::conversation::Conversation;
use super::error::{ApiError, ErrorBody};
use super::{Api, Ask, body, run};
use crate::engine::{Salt, SavedError};
use crate::states::{Listed, States, StatesError};

/// Saves the state after the longest beginning that is cached.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaveRequest {
    /// Its name: letters, digits, dots, dashes and underscores. A state of the same name is replaced.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
    name: String,
    /// The text or the tokens that have been answered; either this or `messages`.
    prompt: Option<StatePrompt>,
    /// The conversation that has been answered, its last answer included.
    messages: Option<Vec<ChatMessage>>,
    /// Name of the model, as `/v1/models` lists it. The served one if left out.
    model: Option<String>,
    /// The salt under which it was asked, if there was one.
    #[schema(max_length = 1024)]
    cache_salt: Option<String>,
}

/// What a state belongs to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a list of token ids")]
enum StatePrompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// Puts a saved state into the cache.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreRequest {
    /// The salt under which it is to be found, if there is to be one.
    #[schema(max_length = 1024)]
    cache_salt: Option<String>,
}

/// A saved state.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StateBody {
    /// Always `state`.
    object: &'static str,
    name: String,
    /// Tokens that it has seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<usize>,
    /// Size of its file.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// When it was saved, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<u64>,
    /// Whether it was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<bool>,
}

/// All saved states of the caller.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StateList {
    /// Always `list`.
    object: &'static str,
    data: Vec<StateBody>,
}

impl StateBody {
    fn named(name: impl Into<String>) -> Self {
        StateBody {
            object: "state",
            name: name.into(),
            tokens: None,
            bytes: None,
            created: None,
            deleted: None,
        }
    }
}

impl From<Listed> for StateBody {
    fn from(listed: Listed) -> Self {
        let Listed { name, bytes, created } = listed;
        StateBody { bytes: Some(bytes), created: Some(created), ..StateBody::named(name) }
    }
}

impl From<StatesError> for ApiError {
    fn from(error: StatesError) -> Self {
        let (status, param) = match &error {
            StatesError::Name => (StatusCode::BAD_REQUEST, Some("name")),
            StatesError::Missing(_) => (StatusCode::NOT_FOUND, Some("name")),
            StatesError::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, None),
            StatesError::Model(_) | StatesError::Damaged { .. } => (StatusCode::CONFLICT, Some("name")),
            StatesError::Saved(SavedError::ShuttingDown) => (StatusCode::SERVICE_UNAVAILABLE, None),
            StatesError::Saved(_) => (StatusCode::CONFLICT, Some("name")),
            StatesError::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        let param = param.map(str::to_owned);
        ApiError { status, message: error.to_string(), param, code: None, retry_after: None }
    }
}

/// Saves a state.
#[utoipa::path(
    post, path = "/v1/state", tag = "state",
    request_body = SaveRequest,
    responses(
        (status = 200, description = "What was saved", body = StateBody),
        (status = "default", description = "What is wrong", body = ErrorBody),
    )
)]
pub(crate) async fn save(State(api): State<Arc<Api>>, parts: Parts, body: Body) -> Response {
    keep(api, parts, body).await.map(Json).into_response()
}

async fn keep(api: Arc<Api>, parts: Parts, body: Body) -> Result<StateBody, ApiError> {
    let ask = Ask::new(&parts);
    states(&api)?;
    let bytes = body::read(&parts.headers, body, &api.app.limits).await?;
    // Held until the end: it bounds how many are saved at once.
    let _permit = api.app.handle.admit().map_err(|refusal| ApiError::refused(&refusal, "prompt"))?;
    let request: SaveRequest = body::decode(&bytes, &api.app.limits)?;
    drop(bytes);
    check_model(&api.app, request.model.as_deref())?;
    let salt = salt(&ask.caller, request.cache_salt.as_deref())?;
    let tokens = tokens(&api, request.prompt, request.messages).await?;
    let Some(saved) = api.app.handle.export(salt, tokens).await else {
        let message = "nothing of this is in the cache; ask for an answer to it first";
        return Err(ApiError::not_found("prompt", message));
    };
    let (count, name, owner) = (saved.tokens.len(), request.name.clone(), ask.caller.salt);
    let bytes = on_disk(&api, move |states| states.save(&owner, &name, &saved)).await?;
    Ok(StateBody { tokens: Some(count), bytes: Some(bytes), ..StateBody::named(request.name) })
}

async fn tokens(
    api: &Arc<Api>,
    prompt: Option<StatePrompt>,
    messages: Option<Vec<ChatMessage>>,
) -> Result<Vec<u32>, ApiError> {
    match (prompt, messages) {
        (Some(StatePrompt::Text(text)), None) => run::encode(api, &text, true, "prompt").await,
        (Some(StatePrompt::Tokens(tokens)), None) => Ok(tokens),
        (None, Some(messages)) => {
            let turns = messages.iter().enumerate().map(|(at, message)| message.turn(at));
            let turns = turns.collect::<Result<Vec<_>, _>>()?;
            Conversation { turns, ..Conversation::default() }.encode(api).await
        }
        _ => Err(ApiError::invalid("prompt", "give either prompt or messages")),
    }
}

/// Lists the caller's states.
#[utoipa::path(
    get, path = "/v1/state", tag = "state",
    responses(
        (status = 200, description = "All states of the caller", body = StateList),
        (status = "default", description = "What is wrong", body = ErrorBody),
    )
)]
pub(crate) async fn list(State(api): State<Arc<Api>>, parts: Parts) -> Result<Json<StateList>, ApiError> {
    let owner = Ask::new(&parts).caller.salt;
    let listed = on_disk(&api, move |states| states.list(&owner)).await?;
    Ok(Json(StateList { object: "list", data: listed.into_iter().map(StateBody::from).collect() }))
}

/// Puts a saved state into the cache: the next request that begins with its tokens goes on from it.
#[utoipa::path(
    post, path = "/v1/state/{name}/restore", tag = "state",
    params(("name" = String, Path, description = "Its name")),
    request_body = RestoreRequest,
    responses(
        (status = 200, description = "What was restored", body = StateBody),
        (status = "default", description = "What is wrong", body = ErrorBody),
    )
)]
pub(crate) async fn restore(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    parts: Parts,
    body: Body,
) -> Result<Json<StateBody>, ApiError> {
    let ask = Ask::new(&parts);
    states(&api)?;
    let bytes = body::read(&parts.headers, body, &api.app.limits).await?;
    let _permit = api.app.handle.admit().map_err(|refusal| ApiError::refused(&refusal, "name"))?;
    let request: RestoreRequest = body::decode(&bytes, &api.app.limits)?;
    let salt = salt(&ask.caller, request.cache_salt.as_deref())?;
    let (owner, wanted) = (ask.caller.salt, name.clone());
    let saved = on_disk(&api, move |states| states.load(&owner, &wanted)).await?;
    let count = api.app.handle.import(salt, saved).await.map_err(StatesError::from)?;
    Ok(Json(StateBody { tokens: Some(count), ..StateBody::named(name) }))
}

/// Deletes a saved state.
#[utoipa::path(
    delete, path = "/v1/state/{name}", tag = "state",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "What was deleted", body = StateBody),
        (status = "default", description = "What is wrong", body = ErrorBody),
    )
)]
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    parts: Parts,
) -> Result<Json<StateBody>, ApiError> {
    let owner: Salt = Ask::new(&parts).caller.salt;
    let gone = name.clone();
    on_disk(&api, move |states| states.delete(&owner, &gone)).await?;
    Ok(Json(StateBody { deleted: Some(true), ..StateBody::named(name) }))
}

fn states(api: &Api) -> Result<&States, ApiError> {
    let message = "states are not saved here; start the server with --state-dir";
    api.app.states.as_ref().ok_or_else(|| ApiError::not_found("name", message))
}

/// Works on files away from the threads that answer others.
async fn on_disk<T: Send + 'static>(
    api: &Arc<Api>,
    work: impl FnOnce(&States) -> Result<T, StatesError> + Send + 'static,
) -> Result<T, ApiError> {
    states(api)?;
    let api = api.clone();
    let done = tokio::task::spawn_blocking(move || states(&api).map(work)).await;
    Ok(done.map_err(|_| ApiError::internal("a saved state could not be worked on"))???)
}
