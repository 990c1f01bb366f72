//! What requests mean, in the words of OpenAI and Anthropic.
//!
//! JSON has its shapes in this folder and nowhere else: a request is read whole, decoded into a type that knows every
//! field by name, checked, let in by the engine, and only then worked on.

mod body;
mod chat;
mod common;
mod completions;
mod conversation;
mod error;
mod run;
mod states;
mod tools;
mod words;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::http::request::Parts;
use axum::routing::{delete, get, post};
use tokio::sync::Semaphore;

use crate::app::{App, Caller, RequestId};
use crate::grammar::{Grammar, GrammarError, Grammars, Rule};
use error::ApiError;
use words::Words;

/// What handlers share.
pub(crate) struct Api {
    pub(crate) app: Arc<App>,
    /// Long texts that are encoded at once: no more than there are processors.
    encoders: Semaphore,
    /// Grammars that are compiled at once, likewise.
    compilers: Semaphore,
    words: OnceLock<Words>,
    grammars: OnceLock<Result<Grammars, GrammarError>>,
}

impl Api {
    fn new(app: Arc<App>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (encoders, compilers) = (Semaphore::new(threads), Semaphore::new(threads));
        Api { app, encoders, compilers, words: OnceLock::new(), grammars: OnceLock::new() }
    }

    /// What tokens spell.
    fn words(&self) -> &Words {
        self.words.get_or_init(|| Words::new(self.app.tokenizer.as_ref()))
    }

    /// Compiles the grammar that the field `param` asks for.
    async fn compile(&self, grammar: Grammar, param: &str) -> Result<Rule, ApiError> {
        let Some(tokenizer) = &self.app.tokenizer else {
            return Err(ApiError::invalid(
                param,
                "the model has no tokenizer, so no text can be held to a grammar",
            ));
        };
        let prepared = self.grammars.get_or_init(|| Grammars::new(tokenizer, &self.app.ends));
        let grammars = prepared.clone().map_err(|error| ApiError::invalid(param, error.to_string()))?;
        let turn = self.compilers.acquire().await;
        let rule = grammars.compile(grammar).await;
        drop(turn);
        rule.map_err(|error| match error {
            GrammarError::Internal(_) => ApiError::internal(error.to_string()),
            error => ApiError::invalid(param, error.to_string()),
        })
    }

    /// The text of tokens, without special ones.
    fn decode(&self, ids: &[u32]) -> Option<String> {
        self.app.tokenizer.as_ref()?.decode(ids, true).ok()
    }
}

/// Who asks, and under which number.
struct Ask {
    caller: Caller,
    #[expect(dead_code, reason = "x")]
    request: RequestId,
}

impl Ask {
    fn new(parts: &Parts) -> Self {
        Ask {
            caller: parts.extensions.get().cloned().unwrap_or_default(),
            request: parts.extensions.get().cloned().unwrap_or_default(),
        }
    }
}

/// Everything under `/v1` and what belongs to it. What is asked of whom is the edge's business.
pub fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/state", get(states::list).post(states::save))
        .route("/v1/state/{name}", delete(states::delete))
        .route("/v1/state/{name}/restore", post(states::restore))
        .with_state(Arc::new(Api::new(app)))
}
