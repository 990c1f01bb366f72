//! What keeps a server in order: numbers, metrics, and faults that stay where they are.

use crate::support::{Running, eventually, request, settings, status};

const HOST: &str = "Host: localhost\r\n";

#[test]
fn a_fault_is_an_answer_to_one_request() {
    let server = Running::start(settings());
    let answer = server.exchange(request("GET /test/panic", HOST, ""));
    assert_eq!(status(&answer), 500, "{answer}");
    assert!(answer.contains("\"message\":\"internal error\"") && !answer.contains("a fault"), "{answer}");
    let answer = server.exchange(request("GET /test/panic-late", HOST, ""));
    assert!(!answer.ends_with("0\r\n\r\n"), "a stream that broke must not look whole: {answer}");
    server.assert_alive();
    assert_eq!(server.metric("zamba_http_panics_total", ""), 2.0);
}

#[test]
fn numbers_of_requests_are_kept_and_given() {
    let server = Running::start(settings());
    let id = |headers: &str| {
        let answer = server.exchange(request("GET /health", &format!("{HOST}{headers}"), ""));
        let line = answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
        line.to_owned()
    };
    assert_eq!(id("x-request-id: abc-1.2_3\r\n"), "abc-1.2_3");
    assert_ne!(id("x-request-id: a b\r\n"), "a b");
    assert_ne!(id(""), id(""));
}

#[test]
fn requests_are_counted_by_route() {
    let server = Running::start(settings());
    for line in
        ["GET /health", "GET /health?x=1", "HEAD /health", "GET /nowhere", "GET /elsewhere", "BREW /health"]
    {
        server.exchange(request(line, HOST, ""));
    }
    let json = format!("{HOST}Content-Type: application/json\r\n");
    assert_eq!(server.status("POST /test/echo", &json, "12345"), 200);
    eventually("requests end", || server.metric("http_requests_in_flight", "") == 0.0);
    let count = |labels: &str| server.metric("http_requests_total", labels);
    assert_eq!(count(r#"route="/health",method="GET",status="200""#), 2.0);
    assert_eq!(count(r#"route="/health",method="HEAD",status="200""#), 1.0);
    assert_eq!(count(r#"route="none",method="GET",status="404""#), 2.0);
    assert_eq!(count(r#"method="other""#), 1.0);
    assert_eq!(server.metric("http_request_body_bytes_total", ""), 5.0);
    assert!(server.metric("http_request_duration_seconds_count", "") >= 6.0);
    let answer = server.exchange(request("GET /metrics", HOST, ""));
    assert!(answer.contains("vllm:num_requests_running") && answer.ends_with("# EOF\n"), "{answer}");
    let answer = server.exchange(request("GET /version", HOST, ""));
    assert!(answer.contains(env!("CARGO_PKG_VERSION")), "{answer}");
}
