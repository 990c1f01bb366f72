//! Traces for a collector that speaks OTLP over HTTP.

use std::time::Duration;

use axum::http::{Request, Response};
use bytes::Bytes;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::EdgeError;

/// How long a collector may take for one batch.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends finished spans to a collector, from a thread of its own. What a collector does not take is lost.
#[derive(Debug)]
pub struct Exporter {
    provider: SdkTracerProvider,
}

/// An exporter to a collector, such as `http://localhost:4318`; the usual path is added to an address without one.
///
/// # Errors
/// If the address makes no sense. Nothing is sent yet.
pub fn exporter(endpoint: &str) -> Result<Exporter, EdgeError> {
    let error = |what: String| EdgeError::Traces { endpoint: endpoint.to_owned(), what };
    let uri: axum::http::Uri = endpoint.parse().map_err(|e| error(format!("{e}")))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(error("give an address such as http://localhost:4318".to_owned()));
    }
    let path = if uri.path() == "/" { "/v1/traces" } else { "" };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client::new())
        .with_endpoint(format!("{}{path}", endpoint.trim_end_matches('/')))
        .with_timeout(PATIENCE)
        .build()
        .map_err(|e| error(e.to_string()))?;
    let resource = Resource::builder_empty().with_service_name("zamba").build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    Ok(Exporter { provider })
}

impl Exporter {
    /// What a `tracing` layer writes to.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("zamba")
    }

    /// Sends what is left.
    pub fn finish(self) {
        // A collector that is not there has been missed before.
        let _ = self.provider.shutdown_with_timeout(PATIENCE);
    }
}

/// Sends from the thread that asks, which has nothing else to do.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
}

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Client { agent: config.into() }
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.agent.run(request.map(|body| body.to_vec()))?;
        let (parts, mut body) = answer.into_parts();
        let body = body.with_config().limit(1 << 20).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}
