//! `/v1/embeddings`: a text as one vector.
//!
//! The vector is the mean over the prompt's tokens of the hidden states after the model's final norm. It is not scaled
//! to length one.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zamba::sampler::SamplerConfig;

use super::common::{check_model, salt};
use super::completions::{One, Prompt};
use super::error::{ApiError, ErrorBody};
use super::run::{self, Events};
use super::strict;
use super::{Api, Ask, body};
use crate::engine::{Event, Request};

strict::words!(EncodingFormat);

/// Texts to be made vectors of.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddingRequest {
    /// One text or several, as text or token ids.
    input: Prompt,
    /// Name of the model. The served one if left out.
    model: Option<String>,
    /// As numbers, or as the bytes of 32-bit floats, least significant byte first, in base64.
    encoding_format: Option<EncodingFormat>,
    /// Only the width of the model.
    dimensions: Option<u32>,
    /// Who asks on the caller's side. Of no effect.
    #[expect(dead_code, reason = "of no effect")]
    user: Option<String>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub(crate) enum EncodingFormat {
    /// As numbers.
    #[default]
    Float,
    /// As bytes.
    Base64,
}

/// Vectors of texts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingResponse {
    /// Always `list`.
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: EmbeddingUsage,
}

/// The vector of one text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Embedding {
    /// Always `embedding`.
    object: &'static str,
    index: usize,
    embedding: Vector,
}

/// A vector in either form.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Bytes in base64.
    Base64(String),
}

/// What the vectors took.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Makes vectors of texts.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "text",
    request_body = EmbeddingRequest,
    responses(
        (status = 200, description = "The vectors", body = EmbeddingResponse),
        (status = "default", description = "What is wrong", body = ErrorBody),
    )
)]
pub(crate) async fn embeddings(State(api): State<Arc<Api>>, parts: Parts, body: Body) -> Response {
    answer(api, parts, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(api: Arc<Api>, parts: Parts, body: Body) -> Result<Response, ApiError> {
    let (app, ask) = (&api.app, Ask::new(&parts));
    let bytes = body::read(&parts.headers, body, &app.limits).await?;
    let mut permits = Vec::new();
    run::admit(&app.handle, 1, &mut permits)?;
    let request: EmbeddingRequest = body::parse(bytes, &app.limits).await?;
    check_model(app, request.model.as_deref())?;
    let width = app.handle.facts().width;
    if request.dimensions.is_some_and(|n| n as usize != width) {
        let message = format!("this model's vectors have {width} numbers; leave it out");
        return Err(ApiError::invalid("dimensions", message));
    }
    let single = matches!(request.input, Prompt::Text(_) | Prompt::Tokens(_));
    let inputs = request.input.split();
    let most = app.limits.prompts;
    if inputs.is_empty() || inputs.len() > most {
        return Err(ApiError::invalid("input", format!("must hold between 1 and {most} texts")));
    }
    run::admit(&app.handle, inputs.len(), &mut permits)?;
    let salt = salt(&ask.caller, None)?;
    let mut answers = Vec::new();
    for (at, (input, permit)) in inputs.into_iter().zip(permits).enumerate() {
        let param = if single { "input".to_owned() } else { format!("input[{at}]") };
        let prompt = match input {
            One::Text(text) => run::encode(&api, &text, true, &param).await?,
            One::Tokens(tokens) => tokens,
        };
        let request = Request {
            pool: true,
            salt: salt.clone(),
            tenant: ask.caller.tenant,
            ..Request::new(prompt, 0, SamplerConfig::greedy())
        };
        let answer = app.handle.submit(permit, request);
        answers.push(answer.map_err(|refusal| ApiError::refused(&refusal, &param))?);
    }
    collect(&api, Events::new(answers), request.encoding_format.unwrap_or_default()).await
}

async fn collect(api: &Api, mut events: Events, format: EncodingFormat) -> Result<Response, ApiError> {
    let (mut vectors, mut usage) = (Vec::new(), EmbeddingUsage::default());
    while let Some(next) = events.next().await {
        match next? {
            (index, Event::Pooled(vector)) => vectors.push((index, vector)),
            (_, Event::Done(done)) => usage.prompt_tokens += done.usage.prompt_tokens,
            _ => {}
        }
    }
    if vectors.iter().any(|(_, vector)| vector.iter().any(|x| !x.is_finite())) {
        return Err(ApiError::internal(
            "the model gave numbers that are not finite; its weights may be damaged",
        ));
    }
    vectors.sort_by_key(|(index, _)| *index);
    usage.total_tokens = usage.prompt_tokens;
    let data = vectors.into_iter().map(|(index, vector)| Embedding {
        object: "embedding",
        index,
        embedding: match format {
            EncodingFormat::Float => Vector::Float(vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        },
    });
    let model = api.app.name.clone();
    Ok(Json(EmbeddingResponse { object: "list", data: data.collect(), model, usage }).into_response())
}
