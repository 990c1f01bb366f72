//! What requests mean, in the words of OpenAI and Anthropic.
//!
//! JSON has its shapes in this folder and nowhere else: a request is read whole, decoded into a type that knows every
//! field by name, checked, let in by the engine, and only then worked on.

mod body;
mod chat;
mod common;
mod completions;
mod conversation;
mod embeddings;
mod error;
mod messages;
mod models;
mod openapi;
mod run;
mod states;
mod strict;
mod tokens;
mod tools;
mod words;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::http::Uri;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use tokio::sync::Semaphore;

use crate::app::{App, Caller};
use crate::grammar::{Grammar, GrammarError, Grammars, Rule};
use error::ApiError;
pub(crate) use error::ErrorBody;
use words::Words;

/// What handlers share.
pub(crate) struct Api {
    pub(crate) app: Arc<App>,
    /// Long texts that are encoded at once: no more than there are processors.
    encoders: Semaphore,
    document: OnceLock<String>,
    /// What tokens spell.
    words: Words,
    grammars: OnceLock<Result<Grammars, GrammarError>>,
}

impl Api {
    fn new(app: Arc<App>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let words = Words::new(app.tokenizer.as_ref());
        let encoders = Semaphore::new(threads);
        Api { app, encoders, words, document: OnceLock::new(), grammars: OnceLock::new() }
    }

    /// Compiles the grammar that the field `param` asks for.
    async fn compile(self: &Arc<Self>, grammar: Grammar, param: &str) -> Result<Rule, ApiError> {
        let wrong = |error: GrammarError| match error {
            GrammarError::Internal(_) => ApiError::internal(error.to_string()),
            error => ApiError::invalid(param, error.to_string()),
        };
        let Some(tokenizer) = self.app.tokenizer.clone() else {
            let message = "the model has no tokenizer, so no text can be held to a grammar";
            return Err(ApiError::invalid(param, message));
        };
        let api = self.clone();
        let prepare = move || api.grammars.get_or_init(|| Grammars::new(&tokenizer, &api.app.ends)).clone();
        let grammars = match self.grammars.get() {
            Some(grammars) => grammars.clone(),
            // The first one takes a while: it sorts the whole vocabulary.
            None => tokio::task::spawn_blocking(prepare)
                .await
                .unwrap_or_else(|error| Err(GrammarError::Internal(error.to_string()))),
        };
        grammars.map_err(wrong)?.compile(grammar).await.map_err(wrong)
    }

    /// The text of tokens, without special ones.
    fn decode(&self, ids: &[u32]) -> Option<String> {
        self.app.tokenizer.as_ref()?.decode(ids, true).ok()
    }
}

/// Who asks.
struct Ask {
    caller: Caller,
}

impl Ask {
    fn new(parts: &Parts) -> Self {
        Ask { caller: parts.extensions.get().cloned().unwrap_or_default() }
    }
}

/// Everything under `/v1` and what belongs to it. What is asked of whom is the edge's business.
pub fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/messages", post(messages::messages))
        .route("/v1/messages/count_tokens", post(messages::count))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::info))
        .route("/openapi.json", get(openapi::openapi))
        .route("/v1/state", get(states::list).post(states::save))
        .route("/v1/state/{name}", delete(states::delete))
        .route("/v1/state/{name}/restore", post(states::restore))
        .method_not_allowed_fallback(no_such_method)
        .with_state(Arc::new(Api::new(app)))
}

/// Says that a path does not take a method. The router adds those that it does.
pub(crate) async fn no_such_method(uri: Uri) -> Response {
    match uri.path().starts_with("/v1/messages") {
        true => ApiError::method().into_anthropic(),
        false => ApiError::method().into_response(),
    }
}
