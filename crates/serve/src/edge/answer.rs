//! What happens to a request, in order.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use hyper::body::Incoming;
use tower::ServiceExt;
use tracing::Instrument;

use super::body::{Limited, Verdict, Watched, too_long};
use super::hosts::Foreign;
use super::keys;
use super::listen::Edge;
use super::problem::Problem;
use super::record::Record;
use crate::app::{Caller, RequestId};
use crate::media::{declared_length, is_encoded, is_json};

/// What browsers are told of every answer: nothing but what this server itself sends may run or be loaded in the
/// page, nobody may frame it or guess at types, and nothing is kept.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Answers one request. Whatever goes wrong, this request gets to know and no other notices.
pub(crate) async fn answer(edge: Arc<Edge>, peer: IpAddr, request: Request<Incoming>) -> Response<Watched> {
    let id = edge.ids.of(request.headers());
    let path = request.uri().path().to_owned();
    let mut record = Record::new(id.clone(), request.method(), &path, &edge.traffic, &edge.in_flight);
    let origin = request.headers().get(header::ORIGIN).cloned();
    // What follows on such a connection would be for somebody else. No path takes these methods.
    let last = matches!(*request.method(), Method::CONNECT | Method::TRACE);
    let checked = check_place(&edge, &request);
    // An answer that says no must be readable for a page that may ask.
    let origin = origin.filter(|_| checked.is_ok());
    let mut response = match checked {
        Err(problem) => problem.answer(&path),
        Ok(()) if origin.is_some() && is_preflight(&request) => preflight(),
        Ok(()) => match check_asker(&edge, peer, &request) {
            Err(problem) => problem.answer(&path),
            Ok(_)
                if lacks_json(&request)
                    && takes(&edge, request.method().clone(), request.uri().clone()).await =>
            {
                not_json().answer(&path)
            }
            Ok(caller) => route(&edge, caller, RequestId(id.clone()), request, &record).await,
        },
    };
    add_headers(response.headers_mut(), &id, origin.as_ref());
    if last || edge.app.handle.is_closed() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let matched = response.extensions_mut().remove::<MatchedPath>();
    record.answered(response.status().as_u16(), matched.map(|path| path.as_str().into()));
    response.map(|body| Watched::new(body, record, edge.traffic.clone()))
}

/// Checks what is asked for: this server, in a form that it knows, by a page that may.
fn check_place<B>(edge: &Edge, request: &Request<B>) -> Result<(), Problem> {
    check_target(request.uri())?;
    match edge.hosts.check(request.headers()) {
        Ok(_) => Ok(()),
        Err(Foreign::NoHost) => {
            Err(Problem::closing(StatusCode::BAD_REQUEST, "a request needs one Host header"))
        }
        Err(Foreign::Host) => Err(Problem::closing(
            StatusCode::MISDIRECTED_REQUEST,
            "this server does not go by that name; ask for its address, or start it with --allowed-host NAME",
        )),
        Err(Foreign::Origin) => Err(Problem::closing(
            StatusCode::FORBIDDEN,
            "pages of that origin may not ask; start the server with --allowed-origin ORIGIN if they should",
        )),
    }
}

/// Checks that a target is a path of this server that means the same however it is read.
fn check_target(uri: &Uri) -> Result<(), Problem> {
    let bad = |what: &str| Err(Problem::closing(StatusCode::BAD_REQUEST, what));
    if uri.scheme().is_some() || uri.authority().is_some() || !uri.path().starts_with('/') {
        return bad("the request must name a path of this server, not a whole address");
    }
    if is_straight(uri.path()) {
        Ok(())
    } else {
        bad("the path has parts that lead elsewhere or mean nothing")
    }
}

/// Whether a path goes down only, even if somebody decodes it more than once.
fn is_straight(path: &str) -> bool {
    let mut bytes = path.as_bytes().to_vec();
    loop {
        let Ok(text) = std::str::from_utf8(&bytes) else { return false };
        let odd = text.chars().any(|c| c.is_control() || c == '\\');
        if odd || text.split('/').any(|part| part.trim() == ".." || part == "." || part.starts_with("..;")) {
            return false;
        }
        if !bytes.contains(&b'%') {
            return true;
        }
        match decoded(&bytes) {
            Some(next) => bytes = next,
            None => return false,
        }
    }
}

/// Replaces each `%xx` by its byte.
fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            out.push((digit(at + 1)? * 16 + digit(at + 2)?) as u8);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    Some(out)
}

/// Checks who asks, and that what they bring can be taken.
fn check_asker<B>(edge: &Edge, peer: IpAddr, request: &Request<B>) -> Result<Caller, Problem> {
    let caller = identify(edge, peer, request)?;
    let headers = request.headers();
    let most = edge.app.limits.body_bytes;
    if declared_length(headers).is_some_and(|length| length > most as u64) {
        return Err(Problem::closing(StatusCode::PAYLOAD_TOO_LARGE, too_long(most)));
    }
    if headers.get(header::EXPECT).is_some_and(|v| !v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        let message = "nothing can be expected of this server but 100-continue";
        return Err(Problem::closing(StatusCode::EXPECTATION_FAILED, message));
    }
    if is_encoded(headers) {
        let message = "bodies are taken as they are; send this one without Content-Encoding";
        return Err(Problem::closing(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    Ok(caller)
}

/// Whether a request brings a body, and not as JSON.
fn lacks_json<B>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) && !is_json(request.headers())
}

fn not_json() -> Problem {
    let message = "the body must be JSON; send it with Content-Type: application/json";
    Problem::closing(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
}

/// Whether there is a handler for a method at a path. Asks for OPTIONS, which no path takes, so the
/// answer names the methods that are, and nothing else happens.
async fn takes(edge: &Edge, method: Method, uri: Uri) -> bool {
    let mut question = Request::new(Body::empty());
    *question.method_mut() = Method::OPTIONS;
    *question.uri_mut() = uri;
    let Ok(answer) = edge.router.clone().oneshot(question).await;
    let allowed = answer.headers().get(header::ALLOW).and_then(|value| value.to_str().ok());
    allowed.is_some_and(|list| list.split(',').any(|taken| taken.trim() == method.as_str()))
}

fn identify<B>(edge: &Edge, peer: IpAddr, request: &Request<B>) -> Result<Caller, Problem> {
    let (keys, path) = (&edge.settings.keys, request.uri().path());
    if keys.is_empty() {
        return Ok(keys::stranger(peer));
    }
    match keys::given(request.headers()).and_then(|given| keys.find(given)) {
        Some(digest) => Ok(keys::caller(digest, edge.settings.cache_per_key)),
        None if is_public(request.method(), path) => Ok(keys::stranger(peer)),
        None => Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "a valid API key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`",
        )),
    }
}

/// Whether anybody may see this: whether the server is well, and the page, which knows nothing by itself.
fn is_public(method: &Method, path: &str) -> bool {
    let looks = matches!(*method, Method::GET | Method::HEAD);
    looks && (path == "/health" || crate::page::paths().any(|public| public == path))
}

fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Tells a browser what a page of another origin may send. Whether that origin may ask has been checked.
fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, x-api-key, x-request-id, *"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

fn add_headers(headers: &mut HeaderMap, id: &str, origin: Option<&HeaderValue>) {
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("x-request-id, retry-after, retry-after-ms"),
        );
    }
}

/// Gives a request to its handler.
async fn route(
    edge: &Edge,
    caller: Caller,
    id: RequestId,
    request: Request<Incoming>,
    record: &Record,
) -> Response {
    let verdict = Verdict::default();
    let limit = edge.app.limits.body_bytes;
    let patience = edge.settings.body_timeout;
    let path = request.uri().path().to_owned();
    let mut request = request
        .map(|body| Body::new(Limited::new(body, limit, patience, record.received(), verdict.clone())));
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(id);
    let handled = AssertUnwindSafe(edge.router.clone().oneshot(request)).catch_unwind();
    match (handled.instrument(record.span().clone()).await, verdict.get()) {
        // The handler saw that its body failed, and cannot know why.
        (Ok(_), Some(problem)) => problem.clone().answer(&path),
        (Ok(Ok(response)), None) => response,
        (Err(_), _) => {
            edge.traffic.panics.inc();
            tracing::error!(id = %record.id(), "a request ended by a fault of the program");
            Problem::closing(StatusCode::INTERNAL_SERVER_ERROR, "internal error").answer(&path)
        }
    }
}

/// Lets the answer know by which route it came.
pub(crate) async fn note_route(path: MatchedPath, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.extensions_mut().insert(path);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_down_only() {
        for good in ["/", "/v1/models", "/v1/models/a%2Fb", "/a..b/c.", "/...", "/a%20b", "/%E2%82%AC", "//"]
        {
            assert!(is_straight(good), "{good}");
        }
        for bad in [
            "/..",
            "/a/../b",
            "/.",
            "/%2e%2e/",
            "/%2E./a",
            "/..%2f..",
            "/%252e%252e%252f",
            "/a%5c..",
            "/a\\b",
            "/%00",
            "/%c0%ae%c0%ae/",
            "/%zz",
            "/%",
            "/%2",
            "/..;/a",
            "/%25%32%65%25%32%65/",
        ] {
            assert!(!is_straight(bad), "{bad}");
        }
    }
}
