//! What is written down of each request, however it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Method};
use tracing::Span;

use super::traffic::Traffic;
use crate::engine::Usage;

/// What the log says of an answer that nobody was there to receive, after the custom of nginx.
const GONE: u16 = 499;

/// One request, from its head to the last byte of its answer. Dropping it writes its line.
#[derive(Debug)]
pub(crate) struct Record {
    id: Arc<str>,
    method: Method,
    path: String,
    route: Arc<str>,
    since: Instant,
    status: Option<u16>,
    received: Arc<AtomicU64>,
    sent: u64,
    complete: bool,
    span: Span,
    traffic: Arc<Traffic>,
    in_flight: Arc<AtomicUsize>,
}

impl Record {
    pub(crate) fn new(
        id: Arc<str>,
        method: &Method,
        path: &str,
        traffic: &Arc<Traffic>,
        in_flight: &Arc<AtomicUsize>,
    ) -> Self {
        traffic.in_flight.inc();
        in_flight.fetch_add(1, Ordering::AcqRel);
        let span = tracing::info_span!(
            target: "zamba_serve::span",
            "request",
            otel.kind = "server",
            request.id = %id,
            http.request.method = %method,
            url.path = path,
            http.route = tracing::field::Empty,
            http.response.status_code = tracing::field::Empty,
            gen_ai.usage.input_tokens = tracing::field::Empty,
            gen_ai.usage.output_tokens = tracing::field::Empty,
            zamba.cached_tokens = tracing::field::Empty,
            zamba.queue_ms = tracing::field::Empty,
            zamba.prefill_ms = tracing::field::Empty,
            zamba.decode_ms = tracing::field::Empty,
        );
        Record {
            id,
            method: method.clone(),
            path: path.to_owned(),
            route: "none".into(),
            since: Instant::now(),
            status: None,
            received: Arc::default(),
            sent: 0,
            complete: false,
            span,
            traffic: traffic.clone(),
            in_flight: in_flight.clone(),
        }
    }

    /// What the request is part of, as seen by those who trace it.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Counts bytes of the request's body.
    pub(crate) fn received(&self) -> Arc<AtomicU64> {
        self.received.clone()
    }

    /// Notes that there is an answer, and which route gave it.
    pub(crate) fn answered(&mut self, status: u16, route: Option<Arc<str>>) {
        self.status = Some(status);
        if let Some(route) = route {
            self.route = route;
        }
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        let status = if self.complete { self.status.unwrap_or(GONE) } else { GONE };
        let received = self.received.load(Ordering::Relaxed);
        self.traffic.in_flight.dec();
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.traffic.answered(&self.route, method(&self.method), status, took);
        self.traffic.bytes_received.inc_by(received);
        self.traffic.bytes_sent.inc_by(self.sent);
        self.span.record("http.route", &*self.route);
        self.span.record("http.response.status_code", status);
        tracing::info!(
            target: "zamba_serve::access",
            id = %self.id,
            method = %self.method,
            path = %self.path,
            status,
            ms = (took.as_secs_f64() * 1e4).round() / 10.0,
            received,
            bytes = self.sent,
        );
    }
}

/// Tells those who trace requests what the present one took.
pub(crate) fn note_usage(usage: &Usage) {
    let span = Span::current();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    span.record("gen_ai.usage.input_tokens", usage.prompt_tokens);
    span.record("gen_ai.usage.output_tokens", usage.completion_tokens);
    span.record("zamba.cached_tokens", usage.cached_tokens);
    span.record("zamba.queue_ms", ms(usage.queued));
    span.record("zamba.prefill_ms", ms(usage.prefill));
    span.record("zamba.decode_ms", ms(usage.decode));
}

/// The name of a method, as a label of which there are few.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Numbers of requests: of this process, and one after the other.
#[derive(Debug)]
pub(crate) struct Ids {
    process: u64,
    next: AtomicU64,
}

impl Ids {
    pub(crate) fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Ids { process: RandomState::new().hash_one(std::process::id()), next: AtomicU64::new(0) }
    }

    /// The number that a request brings along, if it is one that can stand in a log, or a new one.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Arc<str> {
        let plain = |id: &&str| {
            (1..=64).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        match headers.get("x-request-id").and_then(|id| id.to_str().ok()).filter(plain) {
            Some(id) => id.into(),
            None => format!("{:016x}-{}", self.process, self.next.fetch_add(1, Ordering::Relaxed)).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sane_ids_are_kept_and_others_replaced() {
        let ids = Ids::new();
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", value.parse().unwrap());
            ids.of(&headers)
        };
        assert_eq!(&*of("a-B_9.x"), "a-B_9.x");
        for bad in ["", "a b", "a\"b", "{}", &"x".repeat(65)] {
            assert_ne!(&*of(bad), bad);
        }
        assert_ne!(ids.of(&HeaderMap::new()), ids.of(&HeaderMap::new()));
    }
}
