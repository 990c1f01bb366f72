//! The web page: a chat in the browser, embedded in the program.
//!
//! It asks nothing of any other server. All scripts and styles are files of their own, so it works under the content
//! security policy `default-src 'self'`, and what a model writes goes into the page as text, never as markup.

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};
use zamba::checkpoint::manifest::hex;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, content type and content of everything that the page consists of.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("page/index.html")),
    ("/assets/style.css", CSS, include_str!("page/style.css")),
    ("/assets/icon.svg", SVG, include_str!("page/icon.svg")),
    ("/assets/theme.js", JS, include_str!("page/theme.js")),
    ("/assets/api.js", JS, include_str!("page/api.js")),
    ("/assets/app.js", JS, include_str!("page/app.js")),
    ("/assets/probs.js", JS, include_str!("page/probs.js")),
    ("/assets/run.js", JS, include_str!("page/run.js")),
    ("/assets/server.js", JS, include_str!("page/server.js")),
    ("/assets/settings.js", JS, include_str!("page/settings.js")),
    ("/assets/store.js", JS, include_str!("page/store.js")),
    ("/assets/view.js", JS, include_str!("page/view.js")),
];

/// The routes of the page: `/` and its files under `/assets/`.
///
/// They hold no secrets and take no input, so they need no key: a browser could not send one before the page is there.
pub fn routes() -> Router {
    FILES.iter().fold(Router::new(), |router, &(path, kind, content)| {
        let tag = etag(content);
        router.route(path, get(async move |headers: HeaderMap| answer(&headers, kind, content, &tag)))
    })
}

/// The paths of [`routes`].
pub fn paths() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(path, ..)| *path)
}

/// A name for this content and no other.
fn etag(content: &str) -> HeaderValue {
    let hex = hex(&Sha256::digest(content)[..12]);
    HeaderValue::from_str(&format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"page\""))
}

/// The content, or only its tag if the browser has it already. Browsers ask every time, so a new version of the
/// program is never mixed with files of the old one.
fn answer(headers: &HeaderMap, kind: &'static str, content: &'static str, tag: &HeaderValue) -> Response {
    let common = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (ETAG, tag.clone()),
    ];
    if headers.get_all(IF_NONE_MATCH).iter().any(|list| names(list, tag)) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, content).into_response()
}

/// Whether a list of tags has this one. Weak comparison, as RFC 9110 wants it here.
fn names(list: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(list), Ok(tag)) = (list.to_str(), tag.to_str()) else { return false };
    list.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

#[cfg(test)]
mod tests;
