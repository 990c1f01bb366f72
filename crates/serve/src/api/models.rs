//! `/v1/models`: which model is served.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::common::check_model;
use super::error::ErrorBody;

/// The models that are served: one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// Always `list`.
    object: &'static str,
    data: Vec<Model>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    /// The name that requests give.
    id: String,
    /// Always `model`.
    object: &'static str,
    /// When it was loaded, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
    /// Most tokens of a prompt and its answer together.
    max_model_len: usize,
}

impl Model {
    fn of(api: &Api) -> Self {
        Model {
            id: api.app.name.clone(),
            object: "model",
            created: api.app.created,
            owned_by: "zamba",
            max_model_len: api.app.handle.facts().context,
        }
    }
}

/// Lists the models.
#[utoipa::path(get, path = "/v1/models", tag = "model", responses(
    (status = 200, description = "The models", body = ModelList),
    (status = "default", description = "What is wrong", body = ErrorBody),
))]
pub(crate) async fn list(State(api): State<Arc<Api>>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: vec![Model::of(&api)] })
}

/// Tells of one model.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "model",
    params(("id" = String, Path, description = "Name of the model")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 404, description = "It is not served here", body = ErrorBody),
        (status = "default", description = "What is wrong", body = ErrorBody),
    ))]
pub(crate) async fn one(State(api): State<Arc<Api>>, id: Option<Path<String>>) -> Response {
    let id = id.map(|Path(id)| id).unwrap_or_default();
    match check_model(&api.app, Some(&id)) {
        Ok(()) => Json(Model::of(&api)).into_response(),
        Err(error) => error.into_response(),
    }
}
