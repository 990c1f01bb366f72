//! `/openapi.json`: what may be asked, for programs.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{PathItem, RefOr};

use super::Api;
use super::chat::ChatChunk;
use super::{chat, completions, embeddings, messages, models, states, tokens};
use crate::edge::operations;

/// The paths of this module. Shapes come from the types that requests are decoded into.
#[derive(OpenApi)]
#[openapi(
    info(title = "zamba serve", description = "OpenAI's and Anthropic's protocols, served by one Zamba model."),
    paths(
        completions::completions,
        chat::chat,
        messages::messages,
        messages::count,
        embeddings::embeddings,
        models::list,
        models::one,
        tokens::tokenize,
        tokens::detokenize,
        tokens::info,
        states::list,
        states::save,
        states::restore,
        states::delete,
        operations::health,
        operations::metrics,
        operations::version,
    ),
    components(schemas(ChatChunk)),
    tags(
        (name = "text", description = "Text"),
        (name = "tokens", description = "Tokens"),
        (name = "model", description = "The model"),
        (name = "state", description = "Saved conversations"),
        (name = "server", description = "The server"),
    )
)]
struct Document;

/// What a request may be answered with that gets no answer.
const REFUSALS: [(&str, &str); 14] = [
    ("400", "The request is wrong; `param` names the field"),
    ("401", "A key is needed"),
    ("403", "This host or origin may not ask"),
    ("404", "There is no such model"),
    ("405", "The path does not take this method; see Allow"),
    ("408", "The request did not come in time"),
    ("413", "The body is too large"),
    ("415", "The body is not declared to be JSON"),
    ("421", "This server does not answer for this host"),
    ("429", "Too many requests wait; see Retry-After"),
    ("431", "The headers are too large"),
    ("500", "The server is at fault"),
    ("503", "The server is going away or the queue did not move; see Retry-After"),
    ("504", "The request took too long"),
];

/// What only requests for saved states may be answered with.
const STATE_REFUSALS: [(&str, &str); 2] =
    [("409", "The state belongs to another model or is damaged"), ("507", "There is no room for it")];

/// The document as text.
pub(crate) fn document() -> String {
    let mut document = Document::openapi();
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            spell_out(operation);
        }
    }
    // Every part of it is a plain value.
    let mut document = serde_json::to_value(document).unwrap_or_default();
    bound_integers(&mut document);
    document.to_string()
}

/// Says how large numbers without a sign may be: they are taken to be of 32 bits, sign included, by their format.
fn bound_integers(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let unsigned = fields.get("minimum").and_then(Value::as_f64).is_some_and(|least| least >= 0.0);
            if unsigned && fields.get("format").is_some_and(|format| format == "int32") {
                fields.remove("format");
                fields.entry("maximum").or_insert(u32::MAX.into());
            }
            fields.values_mut().for_each(bound_integers);
        }
        Value::Array(items) => items.iter_mut().for_each(bound_integers),
        _ => {}
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.delete].into_iter().filter_map(Option::as_mut)
}

/// Puts the statuses of refusals in place of the one word for all of them.
fn spell_out(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    let Some(RefOr::T(default)) = responses.remove("default") else { return };
    let about_states = operation.tags.iter().flatten().any(|tag| tag == "state");
    let more: &[_] = if about_states { &STATE_REFUSALS } else { &[] };
    for (status, description) in REFUSALS.iter().chain(more) {
        let mut response = default.clone();
        response.description = (*description).to_owned();
        responses.entry((*status).to_owned()).or_insert(RefOr::T(response));
    }
}

/// Gives the document.
pub(crate) async fn openapi(State(api): State<Arc<Api>>) -> Response {
    let mut response = api.document.get_or_init(document).clone().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
