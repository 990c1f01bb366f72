//! What requests mean, in the words of OpenAI and Anthropic.

use std::sync::Arc;

use axum::Router;

use crate::app::App;

/// Everything under `/v1`, and what belongs to it.
pub fn routes(_app: Arc<App>) -> Router {
    Router::new()
}
