//! What those who run a server ask it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::ErrorBody;
use crate::app::App;

pub(crate) fn routes(app: &Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .with_state(app.clone())
}

/// Whether the server is well.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`, or `draining` once the server is to end.
    status: &'static str,
}

/// What is served by what.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Version {
    /// Of the program.
    version: &'static str,
    /// Name of the model.
    model: String,
    /// Changes with weights, configuration and program.
    fingerprint: String,
}

/// Tells whether new requests are taken.
#[utoipa::path(get, path = "/health", tag = "server", responses(
    (status = 200, description = "They are", body = Health),
    (status = 503, description = "The server is going away", body = Health),
    (status = "default", description = "What is wrong", body = ErrorBody),
))]
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    match app.handle.is_closed() {
        false => Json(Health { status: "ok" }).into_response(),
        true => (StatusCode::SERVICE_UNAVAILABLE, Json(Health { status: "draining" })).into_response(),
    }
}

/// Gives counters and gauges, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "server", responses(
    (status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"),
    (status = "default", description = "What is wrong", body = ErrorBody),
))]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.handle.metrics().text()).into_response()
}

/// Tells what is served by what.
#[utoipa::path(get, path = "/version", tag = "server", responses(
    (status = 200, description = "Program and model", body = Version),
    (status = "default", description = "What is wrong", body = ErrorBody),
))]
pub(crate) async fn version(State(app): State<Arc<App>>) -> Response {
    let (model, fingerprint) = (app.name.clone(), app.fingerprint.clone());
    Json(Version { version: env!("CARGO_PKG_VERSION"), model, fingerprint }).into_response()
}
