//! A page to talk to the model.

use axum::Router;

/// The page and its parts.
pub fn routes() -> Router {
    Router::new()
}
