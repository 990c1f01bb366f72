//! How a server ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use zamba::sampler::SamplerConfig;
use zamba_serve::edge::{Drained, Settings};
use zamba_serve::engine::{Event, Failure, Request};
use zamba_serve::{App, Limits};

use crate::support::{Running, eventually, read_to_end, request, settings, status};

const HOST: &str = "Host: localhost\r\n";

/// Generates so many tokens and tells of each event on a line.
async fn tokens(app: Arc<App>, max_tokens: usize) -> Response {
    let Ok(permit) = app.handle.admit() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let sampler = SamplerConfig { temperature: 1.0, ..SamplerConfig::default() };
    let request = Request::new(vec![1, 2, 3], max_tokens, sampler);
    let answer = app.handle.submit(permit, request).unwrap();
    let lines = stream::unfold(answer, async |mut answer| {
        let line = match answer.next().await? {
            Event::Failed(Failure::ShuttingDown) => "event: error\n",
            Event::Done(_) => "event: done\n",
            _ => "token\n",
        };
        Some((Ok::<_, std::io::Error>(Bytes::from(line)), answer))
    });
    Body::from_stream(lines).into_response()
}

fn server(grace: Duration) -> Running {
    let more = |app: &Arc<App>, router: Router| {
        let (short, long) = (app.clone(), app.clone());
        router
            .route("/test/short", get(async move || tokens(short, 200).await))
            .route("/test/long", get(async move || tokens(long, 1_000_000).await))
    };
    Running::with(Settings { grace, ..settings() }, Limits::default(), more)
}

/// Begins a request and waits for the first token of its answer.
fn begin(server: &Running, path: &str) -> TcpStream {
    let mut socket = server.connect();
    socket.write_all(format!("GET {path} HTTP/1.1\r\n{HOST}\r\n").as_bytes()).unwrap();
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains("token") {
        socket.read_exact(&mut byte).unwrap();
        seen.push(byte[0].into());
    }
    socket
}

#[test]
fn what_is_under_way_ends_by_itself_and_nothing_new_begins() {
    let server = server(Duration::from_secs(20));
    let mut idle = server.connect();
    idle.write_all(format!("GET /health HTTP/1.1\r\n{HOST}\r\n").as_bytes()).unwrap();
    let mut first = begin(&server, "/test/short");
    server.stop();
    eventually("the server closes", || server.app.handle.is_closed());
    // While it drains it says so, to those who ask whether it is well too.
    let health = server.exchange(format!("GET /health HTTP/1.1\r\n{HOST}\r\n"));
    assert_eq!(status(&health), 503, "{health}");
    assert!(health.contains("draining") && health.contains("connection: close"), "{health}");
    assert_eq!(server.status("GET /test/short", HOST, ""), 503);
    let answer = read_to_end(&mut first);
    assert!(answer.contains("event: done") && answer.ends_with("0\r\n\r\n"), "{answer}");
    assert!(read_to_end(&mut idle).contains("\"ok\""), "an idle connection ends after its answer");
    let address = server.address;
    assert_eq!(server.join(), Drained { cut: 0 });
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn what_takes_too_long_is_told_why_it_ends() {
    let server = server(Duration::from_millis(300));
    let mut streams: Vec<_> = (0..2).map(|_| begin(&server, "/test/long")).collect();
    // A third waits for a slot.
    let mut waiting = server.connect();
    waiting.write_all(request("GET /test/long", HOST, "").as_bytes()).unwrap();
    eventually("it waits", || server.app.handle.in_flight() == 3);
    server.stop();
    for stream in streams.iter_mut().chain([&mut waiting]) {
        let answer = read_to_end(stream);
        assert!(answer.contains("event: error\n") && answer.ends_with("0\r\n\r\n"), "{answer}");
    }
    let start = Instant::now();
    assert_eq!(server.join(), Drained { cut: 3 });
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_idle_server_ends_at_once() {
    let server = server(Duration::from_secs(20));
    let _silent = server.connect();
    let start = Instant::now();
    assert_eq!(server.join(), Drained { cut: 0 });
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_client_that_goes_gives_its_slot_back() {
    let server = server(Duration::from_secs(20));
    for _ in 0..8 {
        drop(begin(&server, "/test/long"));
    }
    eventually("slots are free", || server.app.handle.in_flight() == 0);
    server.assert_alive();
}
