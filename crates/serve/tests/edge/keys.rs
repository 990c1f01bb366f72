//! Keys: who gets in, and where.

use std::sync::{Arc, Mutex};

use axum::Extension;
use axum::routing::post;
use zamba_serve::edge::{Keys, Settings};
use zamba_serve::{Caller, Limits};

use crate::support::{Running, settings};

const KEY: &str = "sk-Secret-1234567890";

/// Routes that there are, whatever else there will be.
const ROUTES: &[(&str, &str)] = &[
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("POST", "/test/echo"),
    ("GET", "/smuggled"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/x"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/state"),
    ("POST", "/v1/state"),
    ("DELETE", "/v1/state/x"),
    ("GET", "/nowhere"),
    ("GET", "/assets/nowhere"),
    ("GET", "/health/"),
    ("GET", "//health"),
    ("POST", "/health"),
    ("OPTIONS", "/v1/models"),
    ("PUT", "/"),
    ("HEAD", "/metrics"),
    ("BREW", "/metrics"),
];

fn server() -> Running {
    Running::start(Settings { keys: Keys::new(&["another-key", KEY]).unwrap(), ..settings() })
}

/// All paths that the server says it has, with their methods.
fn described(server: &Running) -> Vec<(String, String)> {
    let headers = format!("Host: localhost\r\nAuthorization: Bearer {KEY}\r\n");
    let answer = server.exchange(crate::support::request("GET /openapi.json", &headers, ""));
    let Some((_, body)) = answer.split_once("\r\n\r\n").filter(|_| answer.starts_with("HTTP/1.1 200")) else {
        return vec![];
    };
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let methods = |path: &String, item: &serde_json::Value| {
        let path = path.replace(['{', '}'], "");
        item.as_object().unwrap().keys().map(|m| (m.to_uppercase(), path.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(|(path, item)| methods(path, item)).filter(|(_, path)| path != "/health").collect()
}

#[test]
fn every_route_needs_the_key_itself() {
    let server = server();
    let flipped = KEY.to_lowercase();
    let (short, long) = (&KEY[..KEY.len() - 1], format!("{KEY}x"));
    let mut wrong =
        vec![String::new(), "Authorization: \r\n".to_owned(), format!("Authorization: Basic {KEY}\r\n")];
    for key in ["x", "", &flipped, short, &long, "another-ke", "sk-Secret-1234567890, x"] {
        wrong.push(format!("Authorization: Bearer {key}\r\n"));
        wrong.push(format!("x-api-key: {key}\r\n"));
    }
    wrong.push(format!("Authorization: {KEY}\r\n"));
    wrong.push(format!("Authorization: Bearer {KEY}\r\nAuthorization: Bearer {KEY}\r\n"));
    wrong.push(format!("Authorization: Bearer wrong\r\nx-api-key: {KEY}\r\n"));
    wrong.push(format!("X-Forwarded-For: 127.0.0.1\r\nCookie: key={KEY}\r\n"));
    let mut routes: Vec<_> = ROUTES.iter().map(|&(m, p)| (m.to_owned(), p.to_owned())).collect();
    routes.extend(described(&server));
    for (method, path) in &routes {
        for headers in &wrong {
            let headers = format!("Host: localhost\r\nContent-Type: application/json\r\n{headers}");
            let status = server.status(&format!("{method} {path}"), &headers, "");
            assert_eq!(status, 401, "{method} {path} {headers:?}");
        }
    }
    for (method, path) in &routes {
        for header in [format!("Authorization: bearer {KEY}\r\n"), format!("X-API-Key: {KEY}\r\n")] {
            let status =
                server.status(&format!("{method} {path}"), &format!("Host: localhost\r\n{header}"), "");
            assert!(status != 401 && status != 0, "{method} {path}: {status}");
        }
    }
}

#[test]
fn whether_the_server_is_well_and_the_page_are_for_all() {
    let server = server();
    for path in zamba_serve::page::paths().chain(["/health"]) {
        assert_eq!(server.status(&format!("GET {path}"), "Host: localhost\r\n", ""), 200, "{path}");
        assert_eq!(server.status(&format!("HEAD {path}"), "Host: localhost\r\n", ""), 200, "{path}");
    }
}

/// What the handler of a request with these headers learns of who asks.
fn callers(cache_per_key: bool, keys: &[&str], headers: &[&str]) -> Vec<Caller> {
    let seen = Arc::new(Mutex::new(vec![]));
    let note = seen.clone();
    let more = move |_: &_, router: axum::Router| {
        let handler = async move |Extension(caller): Extension<Caller>| note.lock().unwrap().push(caller);
        router.route("/test/who", post(handler))
    };
    let settings = Settings { keys: Keys::new(keys).unwrap(), cache_per_key, ..settings() };
    let server = Running::with(settings, Limits::default(), more);
    for header in headers {
        let headers = format!("Host: localhost\r\nContent-Type: application/json\r\n{header}");
        assert_eq!(server.status("POST /test/who", &headers, "{}"), 200);
    }
    seen.lock().unwrap().clone()
}

#[test]
fn callers_are_told_apart_by_their_keys() {
    let (a, b) = ("x-api-key: aaa\r\n", "Authorization: Bearer bbb\r\n");
    let salted = callers(true, &["aaa", "bbb"], &[a, b, a]);
    assert!(salted[0].tenant != salted[1].tenant && salted[0].salt != salted[1].salt);
    assert!(salted[0].tenant == salted[2].tenant && salted[0].salt == salted[2].salt);
    let shared = callers(false, &["aaa", "bbb"], &[a, b]);
    assert!(shared[0].tenant != shared[1].tenant && shared[0].salt == shared[1].salt);
    let open = callers(false, &[], &["", ""]);
    assert!(open[0].tenant == open[1].tenant && open[0].salt == open[1].salt);
}
