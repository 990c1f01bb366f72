//! Refusals, in the shape that clients of OpenAI and of Anthropic both understand.

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

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => "permission_error",
            StatusCode::INTERNAL_SERVER_ERROR => "api_error",
            _ => "invalid_request_error",
        }
    }

    fn code(&self) -> Option<&'static str> {
        (self.status == StatusCode::UNAUTHORIZED).then_some("invalid_api_key")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let error =
            json!({ "message": self.message, "type": self.kind(), "param": null, "code": self.code() });
        let mut response = (self.status, Json(json!({ "type": "error", "error": error }))).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
