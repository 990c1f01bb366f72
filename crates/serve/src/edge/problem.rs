//! Refusals of the edge, in the shapes of OpenAI and Anthropic.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    message: String,
    /// Whether nothing more is read from this connection.
    close: bool,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Problem { status, message: message.into(), close: false }
    }

    /// A request after which the connection cannot be trusted to be in step.
    pub(crate) fn closing(status: StatusCode, message: impl Into<String>) -> Self {
        Problem { close: true, ..Problem::new(status, message) }
    }

    /// The answer to a request for `path`.
    pub(crate) fn answer(self, path: &str) -> Response {
        let (message, status) = (self.message, self.status);
        let body = if path.starts_with("/v1/messages") {
            json!({ "type": "error", "error": { "type": anthropic(status), "message": message } })
        } else {
            let (kind, code) = openai(status);
            json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Kind and code of an error in OpenAI's words.
fn openai(status: StatusCode) -> (&'static str, Option<&'static str>) {
    match status {
        StatusCode::UNAUTHORIZED => ("authentication_error", Some("invalid_api_key")),
        StatusCode::FORBIDDEN => ("authentication_error", None),
        StatusCode::INTERNAL_SERVER_ERROR => ("internal_error", None),
        StatusCode::PAYLOAD_TOO_LARGE => ("invalid_request_error", Some("body_too_large")),
        _ => ("invalid_request_error", None),
    }
}

/// Kind of an error in Anthropic's words.
fn anthropic(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::INTERNAL_SERVER_ERROR => "api_error",
        _ => "invalid_request_error",
    }
}
