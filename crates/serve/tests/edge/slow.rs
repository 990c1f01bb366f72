//! Clients that take their time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use zamba_serve::Limits;
use zamba_serve::edge::Settings;

use crate::support::{Running, SOON, eventually, read_to_end, request, settings, status};

const SHORT: Duration = Duration::from_millis(100);
const HOST: &str = "Host: localhost\r\n";

/// A connection that can hold little that was not read.
fn narrow(server: &Running) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.address.into()).unwrap();
    let socket: TcpStream = socket.into();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

#[test]
fn heads_that_do_not_end_are_cut() {
    let server = Running::start(Settings { header_timeout: SHORT, ..settings() });
    for begun in ["", "G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: localhost\r\nX: "] {
        let mut socket = server.connect();
        socket.write_all(begun.as_bytes()).unwrap();
        assert_eq!(read_to_end(&mut socket), "", "{begun:?}");
    }
    // One byte now and then is no more than none.
    let mut socket = server.connect();
    let start = Instant::now();
    while socket.write_all(b"G").is_ok() {
        std::thread::sleep(Duration::from_millis(10));
        assert!(start.elapsed() < SOON);
    }
    assert!(server.metric("zamba_http_connections_cut", "header") >= 5.0);
    server.assert_alive();
}

#[test]
fn a_second_head_has_its_own_time_and_waiting_has_another() {
    let server = Running::start(Settings { header_timeout: SHORT, idle_timeout: SHORT * 4, ..settings() });
    let mut socket = server.connect();
    let plain = format!("GET /health HTTP/1.1\r\n{HOST}\r\n");
    for _ in 0..2 {
        socket.write_all(plain.as_bytes()).unwrap();
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        // The rest of the answer, which is shorter than a block.
        let mut block = [0; 4096];
        let n = socket.read(&mut block).unwrap();
        assert!(block[..n].ends_with(b"{\"status\":\"ok\"}"));
        std::thread::sleep(SHORT * 2);
    }
    // Idle for longer than that.
    let start = Instant::now();
    assert_eq!(read_to_end(&mut socket), "");
    assert!(start.elapsed() >= SHORT, "it was cut at once");
}

#[test]
fn bodies_that_do_not_end_are_cut_with_a_word() {
    let server = Running::start(Settings { body_timeout: SHORT, ..settings() });
    let head = format!("POST /test/echo HTTP/1.1\r\n{HOST}Content-Type: application/json\r\n");
    for begun in ["Content-Length: 10\r\n\r\n12345", "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"] {
        let mut socket = server.connect();
        socket.write_all(format!("{head}{begun}").as_bytes()).unwrap();
        let answer = read_to_end(&mut socket);
        assert_eq!(status(&answer), 408, "{answer}");
    }
    let mut socket = server.connect();
    socket.write_all(format!("{head}Content-Length: 10\r\n\r\n12345").as_bytes()).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    // Who stops sending half-way has gone.
    read_to_end(&mut socket);
    server.assert_alive();
}

#[test]
fn bodies_that_are_too_long_are_refused_and_the_client_gets_to_know() {
    let server = Running::start(settings());
    let head = format!("POST /test/echo HTTP/1.1\r\n{HOST}Content-Type: application/json\r\n");
    let whole = format!("{head}Content-Length: 1000\r\nConnection: close\r\n\r\n{}", "x".repeat(1000));
    assert_eq!(status(&server.exchange(whole)), 200);
    // Much is on its way already when the answer comes; it must not be lost to a reset.
    for length in [1001, 10_000, 1_000_000] {
        let announced = format!("{head}Content-Length: {length}\r\n\r\n{}", "x".repeat(length));
        let answer = server.exchange(announced);
        assert_eq!(status(&answer), 413, "{length}: {answer}");
        assert!(answer.contains("1000 bytes"), "{answer}");
        let chunk = format!("{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length));
        let answer = server.exchange(format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}"));
        assert_eq!(status(&answer), 413, "{length} in a chunk: {answer}");
    }
    let zipped = format!("{head}Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\u{1f}xx");
    assert_eq!(status(&server.exchange(zipped)), 415);
    assert_eq!(server.seen.handled.load(Ordering::SeqCst), 1);
}

#[test]
fn a_reader_that_stops_is_cut_and_others_are_not() {
    let server = Running::start(Settings { stall_timeout: SHORT * 3, ..settings() });
    let stalled: Vec<_> = (0..8)
        .map(|_| {
            let mut socket = narrow(&server);
            socket.write_all(request("GET /test/endless", HOST, "").as_bytes()).unwrap();
            socket
        })
        .collect();
    server.assert_alive();
    eventually("stalled streams stay", || server.seen.dropped.load(Ordering::SeqCst) == stalled.len());
    assert_eq!(server.metric("zamba_http_connections_cut", "stalled"), 8.0);
}

#[test]
fn a_reader_that_is_slow_gets_every_byte() {
    // Twice as long as a reader may stop for, and a busy machine does not stop a reader for that long.
    let server = Running::start(Settings { stall_timeout: SHORT * 10, ..settings() });
    let mut socket = narrow(&server);
    socket.write_all(request("GET /test/pieces", HOST, "").as_bytes()).unwrap();
    let (mut answer, mut block) = (vec![], [0; 1000]);
    loop {
        match socket.read(&mut block).unwrap() {
            0 => break,
            n => answer.extend_from_slice(&block[..n]),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let text = String::from_utf8(answer).unwrap();
    let pieces = text.lines().filter(|line| line.len() == 99).count();
    assert_eq!(pieces, 1000);
    assert!(text.ends_with("0\r\n\r\n"), "the end is marked");
    assert_eq!(server.metric("zamba_http_connections_cut", "stalled"), 0.0);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let server =
        Running::with(Settings { max_connections: 2, ..settings() }, Limits::default(), |_, router| router);
    let held: Vec<_> = (0..2).map(|_| server.connect()).collect();
    eventually("connections are accepted", || server.metric("zamba_http_connections ", "") == 2.0);
    let answer = server.exchange(request("GET /health", HOST, ""));
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(answer.contains("retry-after: ") && answer.ends_with("}}"), "{answer}");
    drop(held);
    eventually("places are given back", || server.metric("zamba_http_connections ", "") == 0.0);
    server.assert_alive();
}
