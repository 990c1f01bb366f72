//! What a foreign page can make a browser send, and what browsers are told.

use crate::support::{Running, request, settings, status};
use zamba_serve::edge::Settings;

const FRIEND: &str = "https://friend.example";

/// A server that pages of a friend may ask.
fn server() -> Running {
    Running::start(Settings {
        allowed_origins: vec![FRIEND.to_owned()],
        allowed_hosts: vec!["zamba.example".to_owned()],
        ..settings()
    })
}

#[test]
fn foreign_hosts_origins_and_forms_are_refused() {
    let server = server();
    let port = server.address.port();
    let good_hosts = [
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        format!("LOCALHOST:{port}"),
        "zamba.example:443".to_owned(),
    ];
    let bad_hosts = [
        "evil.example",
        "localhost.",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "127.0.0.2",
        "127.1",
        "0.0.0.0",
        "0",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:0:0:1%25lo]",
        "[::1",
        "::1",
        "[::1]evil.example",
        "localhost:0",
        "localhost:99999",
        "localhost:",
        "localhost:80a",
        "localhost@evil.example",
        "evil.example:80@localhost",
        "localhost/x",
        "localhost evil.example",
        "127.0.0.1,evil.example",
        "zamba.example.",
        "a.zamba.example",
        "10.0.0.1",
        "192.168.1.1",
        "",
    ];
    let own = format!("http://localhost:{port}");
    let good_origins = [None, Some(FRIEND)];
    let bad_origins = [
        "null",
        "http://evil.example",
        "https://evil.example",
        "http://localhost",
        "http://localhost:1",
        "https://friend.example.",
        "http://friend.example",
        "https://friend.example:444",
        "https://friend.example/",
        "https://a.friend.example",
        "https://friend.example.evil.example",
        "http://127.0.0.1",
        "file://",
        "moz-extension://x",
        "",
        "*",
    ];
    let bad_types = [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
    ];
    let ask = |host: &str, origin: Option<&str>, kind: &str| {
        let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
        let headers = format!("Host: {host}\r\n{origin}Content-Type: {kind}\r\n");
        server.status("POST /test/echo", &headers, "{}")
    };
    let mut tried = 0;
    for host in &good_hosts {
        for origin in good_origins {
            assert_eq!(ask(host, origin, "application/json"), 200, "{host} {origin:?}");
            for kind in bad_types {
                assert_eq!(ask(host, origin, kind), 415, "{host} {origin:?} {kind}");
                tried += 1;
            }
        }
        for origin in bad_origins {
            assert_eq!(ask(host, Some(origin), "application/json"), 403, "{host} {origin}");
            tried += 1;
        }
    }
    for host in bad_hosts {
        for origin in good_origins.into_iter().chain([Some("http://evil.example"), Some(own.as_str())]) {
            for kind in ["application/json", "text/plain"] {
                let status = ask(host, origin, kind);
                assert!(matches!(status, 421 | 400), "{host} {origin:?} {kind}: {status}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 200, "{tried}");
    assert_eq!(ask(&format!("localhost:{port}"), Some(own.as_str()), "application/json"), 200);
    let twice = "Host: localhost\r\nOrigin: https://friend.example\r\nOrigin: https://evil.example\r\n";
    assert_eq!(server.status("GET /health", twice, ""), 403);
}

#[test]
fn browsers_are_told_what_the_page_may_do() {
    let server = server();
    for (line, expected) in
        [("GET /health", 200), ("GET /nowhere", 404), ("POST /health", 405), ("GET /test/panic", 500)]
    {
        let answer = server.exchange(request(line, "Host: localhost\r\n", "")).to_lowercase();
        assert_eq!(status(&answer.to_uppercase()), expected, "{line}");
        for header in [
            "content-security-policy: default-src 'self'",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
            "cache-control: no-store",
            "x-request-id: ",
        ] {
            assert!(answer.contains(header), "{line} lacks {header}: {answer}");
        }
    }
}

#[test]
fn only_a_friend_is_let_in_from_elsewhere() {
    let server = server();
    let preflight = |origin: &str| {
        let headers =
            format!("Host: localhost\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n");
        server.exchange(request("OPTIONS /test/echo", &headers, "")).to_lowercase()
    };
    let friend = preflight(FRIEND);
    assert!(friend.starts_with("http/1.1 204"), "{friend}");
    assert!(friend.contains("access-control-allow-origin: https://friend.example\r\n"), "{friend}");
    assert!(friend.contains("vary: ") && !friend.contains("access-control-allow-credentials"), "{friend}");
    let stranger = preflight("https://evil.example");
    assert!(stranger.starts_with("http/1.1 403") && !stranger.contains("access-control-allow"), "{stranger}");
    let plain =
        server.exchange(request("GET /nowhere", &format!("Host: localhost\r\nOrigin: {FRIEND}\r\n"), ""));
    assert!(plain.contains("access-control-allow-origin: https://friend.example"), "{plain}");
}

#[test]
fn methods_that_a_path_does_not_take_are_told_which_it_does() {
    let server = server();
    for (line, allowed) in [
        ("PUT /health", "GET,HEAD"),
        ("POST /v1/models", "GET,HEAD"),
        ("DELETE /v1/completions", "POST"),
        ("PATCH /v1/state", "GET,HEAD,POST"),
        ("TRACE /tokenize", "POST"),
        ("TRACE /", "GET,HEAD"),
        ("BREW /v1/messages", "POST"),
    ] {
        let answer = server.exchange(request(line, "Host: localhost\r\n", ""));
        assert_eq!(status(&answer), 405, "{line}: {answer}");
        assert!(
            answer.to_lowercase().contains(&format!("\r\nallow: {}\r\n", allowed.to_lowercase())),
            "{line}: {answer}"
        );
        assert!(answer.contains("does not take this method"), "{line}: {answer}");
    }
    assert_eq!(server.status("PUT /nowhere", "Host: localhost\r\n", ""), 404);
    let traced = server.exchange(request("TRACE /health", "Host: localhost\r\n", "")).to_lowercase();
    assert!(traced.contains("\r\nconnection: close\r\n"), "{traced}");
}
