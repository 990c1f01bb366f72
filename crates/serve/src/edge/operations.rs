//! What those who run a server ask it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::app::App;

pub(crate) fn routes(app: &Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .with_state(app.clone())
}

/// Whether new requests are taken.
async fn health(State(app): State<Arc<App>>) -> Response {
    match app.handle.is_closed() {
        false => Json(json!({ "status": "ok" })).into_response(),
        true => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "draining" }))).into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.handle.metrics().text()).into_response()
}

async fn version(State(app): State<Arc<App>>) -> Response {
    let version = env!("CARGO_PKG_VERSION");
    Json(json!({ "version": version, "model": app.name, "fingerprint": app.fingerprint })).into_response()
}
