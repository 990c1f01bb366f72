//! Requests that two readers could take for different ones. None is answered as if it were fine.

use crate::support::{Running, settings, status};

/// What a smuggled request would look like.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A POST with these header lines, each of which has its own line break, and what follows the head.
fn post(lines: &str, rest: &str) -> Vec<u8> {
    let head = "POST /test/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    format!("{head}{lines}\r\n{rest}").into_bytes()
}

fn get(lines: &str) -> Vec<u8> {
    format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{HIDDEN}").into_bytes()
}

fn first_line(line: &str) -> Vec<u8> {
    format!("{line}\r\nHost: localhost\r\n\r\n{HIDDEN}").into_bytes()
}

/// Lengths that are said twice, or not in plain digits.
fn lengths() -> Vec<Vec<u8>> {
    let hidden = HIDDEN.len();
    let odd = [
        "+5",
        "-5",
        "5.0",
        "5 5",
        "5,5",
        "5, 6",
        "0x5",
        "5;",
        "five",
        "",
        " ",
        "05",
        "\t",
        "1e1",
        "5_0",
        "\"5\"",
        "٥",
        "18446744073709551616",
        "18446744073709551615",
        "99999999999999999999999",
        "-0",
        "+0",
        "5\u{b}",
        "0x0",
    ];
    let mut all: Vec<_> =
        odd.iter().map(|value| post(&format!("Content-Length: {value}\r\n"), HIDDEN)).collect();
    for (a, b) in [(0, hidden), (hidden, 0), (hidden, hidden), (5, 6), (0, 0)] {
        all.push(post(&format!("Content-Length: {a}\r\nContent-Length: {b}\r\n"), HIDDEN));
        all.push(post(&format!("content-length: {a}\r\nContent-length: {b}\r\n"), HIDDEN));
        all.push(post(&format!("Content-Length: {a}\r\nX: y\r\nCONTENT-LENGTH: {b}\r\n"), HIDDEN));
    }
    for name in
        ["Content-Length ", "Content-Length\t", " Content-Length", "Content_Length", "Content-Length\u{b}"]
    {
        all.push(post(&format!("X: y\r\n{name}: 0\r\n"), HIDDEN));
    }
    all
}

/// A length and chunks, in every order, and chunks said in a way that not everybody understands.
fn encodings() -> Vec<Vec<u8>> {
    let mut all = vec![];
    let rest = format!("0\r\n\r\n{HIDDEN}");
    for length in ["Content-Length: 5", "content-length: 0", "Content-Length: 999"] {
        for chunked in
            ["Transfer-Encoding: chunked", "transfer-encoding: Chunked", "Transfer-Encoding:\tchunked"]
        {
            all.push(post(&format!("{length}\r\n{chunked}\r\n"), &rest));
            all.push(post(&format!("{chunked}\r\n{length}\r\n"), &rest));
        }
    }
    let odd = [
        "xchunked",
        "chunked, chunked",
        "chunked, identity",
        "identity",
        "identity, chunked",
        "gzip",
        "gzip, chunked",
        "chunked;q=1",
        "\"chunked\"",
        "'chunked'",
        "chunked,",
        ",chunked",
        "",
        "chunk",
        "chunkedd",
        "c\u{b}hunked",
        "chunked\u{b}",
        "\u{b}chunked",
        "chu nked",
        "chunked\0",
        "x, chunked",
        "cow",
        "trailers",
        "deflate",
    ];
    all.extend(odd.iter().map(|value| post(&format!("Transfer-Encoding: {value}\r\n"), &rest)));
    let names = [
        "Transfer-Encoding ",
        "Transfer-Encoding\t",
        "Transfer_Encoding",
        " Transfer-Encoding",
        "\tTransfer-Encoding",
        "Transfer-Encoding\u{b}",
        "Transfer-Encoding\0",
    ];
    all.extend(names.iter().map(|name| post(&format!("X: y\r\n{name}: chunked\r\n"), &rest)));
    all.push(post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &rest));
    all.push(post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &rest));
    all.push(post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", &rest));
    all.push(post("Foo: bar\nTransfer-Encoding: chunked\r\n", &rest));
    all.push(post("Foo: bar\rTransfer-Encoding: chunked\r\n", &rest));
    let old =
        format!("POST /test/echo HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{rest}");
    all.push(old.into_bytes());
    all
}

/// Chunks that do not end where they say.
fn chunks() -> Vec<Vec<u8>> {
    let bodies = [
        "1\r\nab\r\n0\r\n\r\n",
        "2\r\na\r\n0\r\n\r\n",
        "-1\r\na\r\n0\r\n\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1 \r\na\r\n0\r\n\r\n",
        " 1\r\na\r\n0\r\n\r\n",
        "\r\n1\r\na\r\n0\r\n\r\n",
        "1\na\n0\n\n",
        "1\r\na\n0\r\n\r\n",
        "1\ra\r0\r\r",
        "1\r\na0\r\n\r\n",
        "g\r\n",
        "1;ext\r\na\r\n0\r\n\r\n",
        "1;a=b\r\na\r\n0\r\n\r\n",
        "1;\na\r\n0\r\n\r\n",
        "1;\"\r\n\"\r\na\r\n0\r\n\r\n",
        "ffffffffffffffff\r\na\r\n0\r\n\r\n",
        "fffffffffffffffff\r\na\r\n0\r\n\r\n",
        "10000000000000001\r\na\r\n0\r\n\r\n",
        "000000001\r\na\r\n0\r\n\r\n",
        "0\r\nX: y\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\n\n",
        "0\n\r\n",
        "0\r\n \r\n",
        "1\r\na\r\n0\r\r\n",
        "1\r\na\r\n\r\n0\r\n\r\n",
        "\0\r\n\r\n",
        "1\r\na\r\n0;x\r\n\r\n",
        "1\u{b}\r\na\r\n0\r\n\r\n",
        "_1\r\na\r\n0\r\n\r\n",
        "1_0\r\n",
        "\r\n\r\n",
        "1\r\r\na\r\n0\r\n\r\n",
    ];
    let with = |body: &&str| post("Transfer-Encoding: chunked\r\n", &format!("{body}{HIDDEN}"));
    bodies.iter().map(with).collect()
}

/// Lines that end too early, go on, or hold what no line can.
fn lines() -> Vec<Vec<u8>> {
    let mut all: Vec<_> = [
        "X: y\r\n z\r\n",
        "X: y\r\n\tz\r\n",
        " X: y\r\n",
        "\tX: y\r\n",
        "X: y\n",
        "X: y\n\r\n",
        "X: y\r",
        "X: a\rb\r\n",
        "X: a\0b\r\n",
        "X\0: y\r\n",
        "X: a\u{1}b\r\n",
        "X: a\u{7f}b\r\n",
        "X y\r\n",
        "X\r\n",
        ": y\r\n",
        "X : y\r\n",
        "X\t: y\r\n",
        "(X): y\r\n",
        "X@: y\r\n",
        "X[0]: y\r\n",
        "é: y\r\n",
        "X: y\r\n\n",
        "\nX: y\r\n",
        "X: y\r\r\n",
        "Host: evil.example\r\n",
        "Host: localhost\r\n",
        "Expect: the-worst\r\n",
    ]
    .iter()
    .map(|lines| get(lines))
    .collect();
    all.push(b"GET /health HTTP/1.1\nHost: localhost\n\n".to_vec());
    all.push(b"GET /health HTTP/1.1\r\nHost: localhost\n\n".to_vec());
    all.push(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\n".to_vec());
    all.push(b"GET /health HTTP/1.1\rHost: localhost\r\r".to_vec());
    all.push(b"\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec());
    all.push(b"\n\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec());
    all.push(b"GET /health HTTP/1.1\r\n\r\n".to_vec());
    all
}

/// Requests for something else than a path of this server, or in another language.
fn targets() -> Vec<Vec<u8>> {
    let mut all: Vec<_> = [
        "GET http://localhost/health HTTP/1.1",
        "GET http://evil.example/health HTTP/1.1",
        "GET https://localhost HTTP/1.1",
        "GET //evil.example@localhost/../x HTTP/1.1",
        "GET localhost:80 HTTP/1.1",
        "GET health HTTP/1.1",
        "GET ?x HTTP/1.1",
        "GET * HTTP/1.1",
        "CONNECT localhost:80 HTTP/1.1",
        "CONNECT /health HTTP/1.1",
        "TRACE /health HTTP/1.1",
        "OPTIONS http://evil.example/ HTTP/1.1",
        "GET  /health HTTP/1.1",
        "GET /health  HTTP/1.1",
        "GET /health HTTP/1.1 ",
        "GET\t/health HTTP/1.1",
        "GET /health\tHTTP/1.1",
        " GET /health HTTP/1.1",
        "GET /health",
        "GET /health HTTP",
        "GET /health HTTP/1",
        "GET /health HTTP/0.9",
        "GET /health HTTP/1.2",
        "GET /health HTTP/2.0",
        "GET /health HTTP/11",
        "GET /health http/1.1",
        "GET /health HTTPS/1.1",
        "GET /health HTTP/1.1 HTTP/1.1",
        "GET /he alth HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        "GE\0T /health HTTP/1.1",
        "G(T /health HTTP/1.1",
        "/health HTTP/1.1",
        "HTTP/1.1 200 OK",
        "GET /\\health HTTP/1.1",
        "GET /#/../health HTTP/1.1",
        "GET file:///etc/passwd HTTP/1.1",
        "\u{16}\u{3}\u{1}\u{2}",
    ]
    .iter()
    .map(|line| first_line(line))
    .collect();
    all.push(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec());
    all.push([&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat());
    all.push(vec![0; 100]);
    all.push(vec![0xff; 100]);
    all
}

/// Heads that are too long.
fn sizes() -> Vec<Vec<u8>> {
    let many = |n: usize| (0..n).map(|i| format!("X-{i}: y\r\n")).collect::<String>();
    vec![
        get(&format!("X: {}\r\n", "y".repeat(64 << 10))),
        get(&format!("{}: y\r\n", "X".repeat(70_000))),
        get(&many(101)),
        get(&many(5000)),
        first_line(&format!("GET /{} HTTP/1.1", "x".repeat(70_000))),
        first_line(&format!("{} / HTTP/1.1", "X".repeat(70_000))),
        get(&format!("X: {}", "y".repeat(1 << 20))),
    ]
}

#[test]
fn nothing_is_smuggled() {
    let server = Running::start(settings());
    let vectors = [lengths(), encodings(), chunks(), lines(), targets(), sizes()].concat();
    assert!(vectors.len() >= 120, "{}", vectors.len());
    for vector in &vectors {
        let shown = String::from_utf8_lossy(&vector[..vector.len().min(300)]).into_owned();
        let answer = server.exchange(vector);
        let status = status(&answer);
        assert!(answer.is_empty() || (400..500).contains(&status), "{shown:?}: {answer}");
        let answers = answer.matches("HTTP/1.1 ").count();
        assert!(answers <= 1, "{shown:?} is answered {answers} times: {answer}");
    }
    assert_eq!(server.seen.smuggled.load(std::sync::atomic::Ordering::SeqCst), 0);
    server.assert_alive();
    eventually_closed(&server);
}

/// All connections come to an end.
fn eventually_closed(server: &Running) {
    crate::support::eventually("connections stay", || server.metric("zamba_http_connections ", "") == 0.0);
}

#[test]
fn what_is_plain_is_answered() {
    let server = Running::start(settings());
    let echo =
        |rest: &str| server.exchange(post("Transfer-Encoding: chunked\r\nConnection: close\r\n", rest));
    assert!(echo("3\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\n").ends_with("abc0123456789"));
    let pipelined = format!(
        "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n{}",
        HIDDEN.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
    );
    assert!(server.exchange(pipelined).ends_with("smuggled"), "two whole requests are two requests");
    let many = (0..97).map(|i| format!("X-{i}: y\r\n")).collect::<String>();
    assert_eq!(server.status("GET /health", &format!("Host: localhost\r\n{many}"), ""), 200);
}

#[test]
fn a_good_request_before_a_bad_one_is_answered_and_no_more() {
    let server = Running::start(settings());
    let answer = server.exchange(format!("{HIDDEN}GET /smuggled HTTP/1.1\r\nHost: localhost\n\r\n{HIDDEN}"));
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
    assert_eq!(server.seen.smuggled.load(std::sync::atomic::Ordering::SeqCst), 1);
}
