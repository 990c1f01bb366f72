//! What is said when a request cannot be answered, in the shapes of OpenAI and Anthropic.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{Failure, Refusal};

/// When to try again if the server is going away, or its queue does not move.
const AWAY: Duration = Duration::from_secs(5);

/// Why a request gets no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field that is at fault.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    /// When to try again.
    pub(crate) retry_after: Option<Duration>,
}

/// An error in OpenAI's shape.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
struct ErrorDetail {
    /// What is wrong, in one line.
    message: String,
    /// Kind of error, such as `invalid_request_error`.
    r#type: &'static str,
    /// The field that is at fault.
    #[schema(required)]
    param: Option<String>,
    /// A word for programs, such as `context_length_exceeded`.
    #[schema(required)]
    code: Option<&'static str>,
}

/// An error in Anthropic's shape.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnthropicErrorBody {
    /// Always `error`.
    r#type: &'static str,
    error: AnthropicErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
struct AnthropicErrorDetail {
    /// Kind of error, such as `invalid_request_error`.
    r#type: &'static str,
    /// What is wrong, in one line.
    message: String,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        // A message is one line, whatever library made it, and no longer than a reader bears.
        let message: String = message.into();
        let mut line = message.lines().next().unwrap_or_default().to_owned();
        if let Some((end, _)) = line.char_indices().nth(500) {
            line.truncate(end);
            line.push('…');
        }
        ApiError { status, message: line, param: None, code: None, retry_after: None }
    }

    /// The request is wrong at the field `param`.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param: String = param.into();
        let message = format!("{param}: {}", message.into());
        ApiError { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// The request as a whole is wrong.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(param: &str, message: impl Into<String>) -> Self {
        let code = Some("model_not_found");
        ApiError { param: Some(param.to_owned()), code, ..Self::new(StatusCode::NOT_FOUND, message) }
    }

    pub(crate) fn method() -> Self {
        let message = "this path does not take this method; see the Allow header or /openapi.json";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, message)
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes, the limit of this server");
        ApiError { code: Some("body_too_large"), ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, message) }
    }

    pub(crate) fn media_type() -> Self {
        let message = "the body must be JSON: send Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    fn unavailable(message: impl Into<String>, code: &'static str) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, message);
        ApiError { code: Some(code), retry_after: Some(AWAY), ..error }
    }

    /// A refusal of the engine about the field that holds the prompt.
    pub(crate) fn refused(refusal: &Refusal, prompt: &str) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Busy { retry_after } => ApiError {
                code: Some("rate_limit_exceeded"),
                retry_after: Some(*retry_after),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
            },
            Refusal::ShuttingDown => Self::unavailable(message, "shutting_down"),
            Refusal::TooLong { .. } => {
                ApiError { code: Some("context_length_exceeded"), ..Self::invalid(prompt, message) }
            }
            Refusal::Empty | Refusal::Vocabulary { .. } | Refusal::Text(_) => Self::invalid(prompt, message),
            Refusal::NoText => Self::invalid("stop", message),
            Refusal::Sampler(error) => Self::invalid(sampler_field(error), message),
        }
    }

    /// `invalid_request_error` and the like, in OpenAI's words.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            429 => "rate_limit_error",
            401 | 403 => "authentication_error",
            500 => "internal_error",
            503 => "service_unavailable",
            504 => "timeout",
            _ => "invalid_request_error",
        }
    }

    fn anthropic_kind(&self) -> &'static str {
        match self.status.as_u16() {
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            500 | 504 => "api_error",
            503 => "overloaded_error",
            _ => "invalid_request_error",
        }
    }

    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                message: self.message.clone(),
                r#type: self.kind(),
                param: self.param.clone(),
                code: self.code,
            },
        }
    }

    pub(crate) fn anthropic_body(&self) -> AnthropicErrorBody {
        let error = AnthropicErrorDetail { r#type: self.anthropic_kind(), message: self.message.clone() };
        AnthropicErrorBody { r#type: "error", error }
    }

    /// The response in Anthropic's shape.
    pub(crate) fn into_anthropic(self) -> Response {
        let body = self.anthropic_body();
        self.respond(Json(body).into_response())
    }

    fn respond(&self, mut response: Response) -> Response {
        *response.status_mut() = self.status;
        if let Some(time) = self.retry_after {
            let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
            // OpenAI's and Anthropic's clients take this one, if it is there.
            headers.insert("retry-after-ms", HeaderValue::from(ms));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.body();
        self.respond(Json(body).into_response())
    }
}

/// What broke off an answer that was under way.
impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::Internal(_) | Failure::Sampling(_) => Self::internal(message),
            // Which grammars end here depends on what was asked for.
            Failure::Constraint(_) => ApiError { code: Some("grammar_failed"), ..Self::bad(message) },
            Failure::QueueTimeout => Self::unavailable(message, "queue_timeout"),
            Failure::ShuttingDown => Self::unavailable(message, "shutting_down"),
            Failure::RequestTimeout | Failure::Stalled => {
                ApiError { code: Some("timeout"), ..Self::new(StatusCode::GATEWAY_TIMEOUT, message) }
            }
        }
    }
}

/// The name under which requests know an option of the sampler.
fn sampler_field(error: &zamba::sampler::SamplerError) -> &'static str {
    use zamba::sampler::SamplerError;
    match error {
        SamplerError::OutOfRange { field: "repeat_penalty", .. } => "repetition_penalty",
        SamplerError::OutOfRange { field, .. } => field,
        SamplerError::BiasOutsideVocabulary { .. } => "logit_bias",
        SamplerError::NothingToChoose { .. } => "logit_bias",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_say_what_a_client_may_do() {
        let retry_after = Duration::from_millis(2301);
        let busy = ApiError::refused(&Refusal::Busy { retry_after }, "prompt").into_response();
        assert_eq!(busy.status(), 429);
        assert_eq!(busy.headers()["retry-after"], "3");
        assert_eq!(busy.headers()["retry-after-ms"], "2301");
        let long = ApiError::refused(&Refusal::TooLong { tokens: 9, context: 8 }, "messages");
        assert_eq!((long.status.as_u16(), long.code), (400, Some("context_length_exceeded")));
        assert_eq!(long.param.as_deref(), Some("messages"));
        for (failure, status) in [
            (Failure::Internal("x".into()), 500),
            (Failure::QueueTimeout, 503),
            (Failure::ShuttingDown, 503),
            (Failure::RequestTimeout, 504),
        ] {
            assert_eq!(ApiError::from(failure).status.as_u16(), status);
        }
    }

    #[test]
    fn messages_are_one_short_line() {
        let error = ApiError::bad(format!("{}\nsecond", "é".repeat(2000)));
        assert_eq!(error.message.chars().count(), 501);
        assert!(!error.message.contains('\n'));
    }
}
