//! The server as a program: how it starts, what it refuses, and how it ends.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::Bench;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const KEY: &str = "sk-test-0123456789";

/// A server that takes requests.
struct Served {
    child: Child,
    stdout: BufReader<ChildStdout>,
    ready: Value,
    address: SocketAddr,
}

/// How it ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Served {
    fn start(bench: &Bench, args: &str) -> Self {
        Served::spawn(bench.command(format!("serve -m m --port 0 --json -t 1 {args}").split_whitespace()))
    }

    fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut err = String::new();
            child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
            panic!("the server does not start: {err}");
        }
        let ready: Value = serde_json::from_str(&line).unwrap();
        let port = ready["port"].as_u64().unwrap() as u16;
        Served { child, stdout, address: SocketAddr::from(([127, 0, 0, 1], port)), ready }
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    }

    /// The whole answer to a request for `path` with these header lines.
    fn get(&self, path: &str, headers: &str) -> String {
        let mut socket = self.connect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn end(mut self, signal: &str) -> Ended {
        self.signal(signal);
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        Ended { code: self.child.wait().unwrap().code(), out, err }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // One that has ended cannot be killed, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_says_where_it_is_answers_and_ends_in_order() {
    let bench = Bench::with_text_model();
    for signal in ["-TERM", "-INT"] {
        let server = Served::start(&bench, "--parallel 3 --ctx 48 --cache-size 1MiB --model-name mine");
        let ready = &server.ready;
        assert_eq!(
            (&ready["model"], &ready["slots"], &ready["context"]),
            (&"mine".into(), &3.into(), &48.into())
        );
        assert_eq!(ready["url"], format!("http://{}", server.address));
        assert!(
            ready["memory"]["weights"].as_u64() > Some(0) && ready["memory"]["cache"] == 1 << 20,
            "{ready}"
        );
        assert!(server.get("/health", "").starts_with("HTTP/1.1 200"));
        assert!(server.get("/metrics", "").contains("vllm:num_requests_running 0"));
        assert!(server.get("/version", "").contains("\"mine\""));
        assert!(server.get("/", "").contains("<html"), "the page is there");
        let Ended { code, out, err } = server.end(signal);
        assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
        assert!(err.contains("serving mine at http://127.0.0.1:"), "{err}");
        assert!(err.contains("path=/health status=200"), "{err}");
        assert!(err.ends_with("good-bye\n"), "{err}");
    }
}

#[test]
fn strangers_are_let_in_with_a_key_only() {
    let bench = Bench::with_model();
    for host in ["0.0.0.0", "::", "[::]"] {
        let run = bench.run(["serve", "-m", "m", "--port", "0", "--host", host]);
        let line = run.fails(1);
        assert!(line.contains("--api-key") && line.contains("127.0.0.1"), "{line}");
    }
    bench.write("keys.txt", format!("# of the test\n\n{KEY}\nanother\n"));
    let server = Served::start(&bench, "--host 0.0.0.0 --api-key-file keys.txt --log-format json");
    assert!(server.get("/health", "").starts_with("HTTP/1.1 200"));
    assert!(server.get("/version", "").starts_with("HTTP/1.1 401"));
    let authorised =
        server.get("/version", &format!("Authorization: Bearer {KEY}\r\nx-request-id: mine\r\n"));
    assert!(authorised.starts_with("HTTP/1.1 200"), "{authorised}");
    let Ended { err, .. } = server.end("-TERM");
    assert!(!err.contains(KEY), "{err}");
    let lines = err.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let access: Vec<_> = lines.filter(|line| line["id"] == "mine").collect();
    assert_eq!(access.len(), 1, "{err}");
    assert_eq!((&access[0]["status"], &access[0]["path"]), (&200.into(), &"/version".into()));
}

#[test]
fn a_key_may_come_from_the_environment() {
    let bench = Bench::with_model();
    let mut command = bench.command("serve -m m --port 0 --json -t 1 --log-level off".split(' '));
    command.env("ZAMBA_API_KEY", KEY);
    let server = Served::spawn(command);
    assert!(server.get("/version", "").starts_with("HTTP/1.1 401"));
    assert!(server.get("/version", &format!("x-api-key: {KEY}\r\n")).starts_with("HTTP/1.1 200"));
    let Ended { err, .. } = server.end("-TERM");
    assert!(!err.contains("/version"), "nothing is logged: {err}");
}

/// Runs each line of arguments and demands its exit code and words.
#[track_caller]
fn refuses(bench: &Bench, code: i32, cases: &[(&str, &[&str])]) {
    for (args, words) in cases {
        let port = if args.contains("--port") { "" } else { "--port 0" };
        let run = bench.run(format!("serve -m m {port} {args}").split_whitespace());
        let line = run.fails(code);
        for word in *words {
            assert!(line.contains(word), "`{args}`: no `{word}` in: {line}");
        }
    }
}

#[test]
fn flags_that_make_no_sense_are_named() {
    let bench = Bench::with_model();
    bench.write("none.txt", "# no keys\n");
    bench.write("bad.pem", "not a certificate");
    refuses(
        &bench,
        2,
        &[
            ("--host nowhere", &["nowhere", "--host"]),
            ("--port 70000", &["70000"]),
            ("--parallel 0", &["--parallel"]),
            ("--ctx 1", &["--ctx"]),
            ("--batch-tokens 8", &["--batch-tokens 8", "--parallel"]),
            ("--queue-timeout 0", &["--queue-timeout", "seconds"]),
            ("--grace nan", &["--grace"]),
            ("--cache-size lots", &["lots", "--cache-size"]),
            ("--max-header-bytes 2MiB", &["--max-header-bytes", "1MiB"]),
            ("--json-depth 200", &["--json-depth"]),
            ("--max-connections 0", &["--max-connections"]),
            ("--tls-cert bad.pem", &["--tls-key"]),
            ("--log-format xml", &["xml", "json"]),
            ("--log-level zamba=loud", &["--log-level", "loud"]),
            ("--api-key é", &["key number 1"]),
        ],
    );
    refuses(
        &bench,
        1,
        &[
            ("--api-key-file none.txt", &["none.txt", "no keys"]),
            ("--api-key-file absent.txt", &["absent.txt"]),
            ("--tls-cert bad.pem --tls-key bad.pem", &["bad.pem", "PEM"]),
            ("--allowed-host http://a", &["--allowed-host", "http://a"]),
            ("--allowed-origin a", &["--allowed-origin", "https://"]),
            ("--otlp-endpoint ftp://a", &["ftp://a", "http://localhost:4318"]),
            (
                "--parallel 1024 --ctx 16777216 --cache-size 8388607TiB",
                &["--parallel", "--ctx", "--cache-size"],
            ),
            ("--state-dir c.json", &["c.json", "--state-dir"]),
        ],
    );
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let run = bench.run(["serve", "-m", "m", "--port", &port]);
    let line = run.fails(1);
    assert!(line.contains(&port) && line.contains("--port"), "{line}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_without_descriptors_left_waits_for_some() {
    let bench = Bench::with_model();
    let mut command = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_zamba");
    command.args(["-c", &format!("ulimit -n 40; exec {program} serve -m m --port 0 --json -t 1")]);
    command
        .current_dir(bench.path(""))
        .stdin(Stdio::null())
        .env_remove("ZAMBA_API_KEY")
        .env_remove("ZAMBA_LOG");
    let server = Served::spawn(command);
    let held: Vec<_> = (0..60).map(|_| server.connect()).collect();
    let mut late = server.connect();
    late.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    drop(held);
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let metrics = server.get("/metrics", "");
    let errors =
        metrics.lines().find_map(|line| line.strip_prefix("zamba_http_accept_errors_total ")).unwrap();
    assert!(errors.parse::<u64>().unwrap() > 0, "it had run out: {errors}");
    let Ended { code, err, .. } = server.end("-TERM");
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("ulimit -n") && err.contains("cannot accept connections"), "{err}");
}

#[test]
fn traces_go_to_their_collector() {
    let bench = Bench::with_model();
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let server = Served::start(&bench, &format!("--otlp-endpoint {endpoint}"));
    server.get("/version", "x-request-id: traced-1\r\n");
    let batch = std::thread::spawn(move || {
        let (mut socket, _) = collector.accept().unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let (mut batch, mut block) = (vec![], [0; 4096]);
        while !batch.windows(8).any(|window| window == b"traced-1") {
            let n = socket.read(&mut block).unwrap();
            assert!(n > 0, "no span came: {}", String::from_utf8_lossy(&batch));
            batch.extend_from_slice(&block[..n]);
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        String::from_utf8_lossy(&batch).into_owned()
    });
    let Ended { code, err, .. } = server.end("-TERM");
    assert_eq!(code, Some(0), "{err}");
    let batch = batch.join().unwrap();
    assert!(batch.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{batch}");
    for word in ["application/x-protobuf", "http.route", "/version", "http.response.status_code"] {
        assert!(batch.contains(word), "no {word} in {batch}");
    }
}

/// Begins a stream that would go on for long, and waits for its first event.
fn stream(server: &Served) -> BufReader<TcpStream> {
    // Token 2 would end it.
    let body = r#"{"model":"m","prompt":[1,2,3],"max_tokens":900000,"stream":true,"logit_bias":{"2":-100}}"#;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let mut socket = server.connect();
    socket.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "no stream");
    }
    reader
}

#[test]
fn streams_that_outlive_the_server_end_with_an_event_that_says_so() {
    let bench = Bench::with_model();
    let server = Served::start(&bench, "--ctx 1000000 --grace 0.3 --cache-size 0");
    // One who does not read could not be told anything.
    let read = |mut stream: BufReader<TcpStream>| {
        std::thread::spawn(move || {
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            rest
        })
    };
    let streams: Vec<_> = (0..3).map(|_| read(stream(&server))).collect();
    let Ended { code, err, .. } = server.end("-TERM");
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("3 requests were broken off"), "{err}");
    for stream in streams {
        let rest = stream.join().unwrap();
        let rest = &rest[rest.len().saturating_sub(1000)..];
        assert!(rest.contains("\"error\"") && rest.contains("shutting"), "{rest:?}");
        assert!(rest.ends_with("0\r\n\r\n"), "the end is marked: {rest:?}");
    }
}

#[test]
fn the_second_signal_ends_at_once() {
    let bench = Bench::with_model();
    let server = Served::start(&bench, "--ctx 1000000 --grace 600 --cache-size 0");
    let mut stream = stream(&server);
    server.signal("-INT");
    // Draining, it says so.
    while !server.get("/health", "").contains("draining") {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let Ended { code, .. } = server.end("-INT");
    assert_eq!(code, Some(1));
}

/// The JSON that answers a JSON body. Answers have a length here, so the body is what follows the head.
fn post(server: &Served, path: &str, body: &Value) -> Value {
    let body = body.to_string();
    let mut socket = server.connect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

#[test]
fn a_conversation_goes_on_after_a_restart_without_its_prompt_being_computed() {
    let bench = Bench::with_model();
    let flags = "--ctx 2048 --state-dir states";
    let prompt: Vec<u64> = (0..700).map(|i| 3 + i * 7 % 250).collect();
    let ask = |server: &Served, prompt: &[u64], seed: u64| {
        let body = serde_json::json!({
            "prompt": prompt, "max_tokens": 12, "seed": seed, "ignore_eos": true, "return_token_ids": true
        });
        let answer = post(server, "/v1/completions", &body);
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        let ids = answer["choices"][0]["token_ids"].as_array().cloned();
        let ids: Vec<u64> = ids.unwrap_or_default().iter().filter_map(Value::as_u64).collect();
        assert_eq!(ids.len(), 12, "{answer}");
        (ids, cached.unwrap())
    };

    let server = Served::start(&bench, flags);
    let (said, _) = ask(&server, &prompt, 1);
    let mut history = prompt.clone();
    history.extend(said);
    history.extend([5, 6, 7]);
    let saved = post(&server, "/v1/state", &serde_json::json!({ "name": "talk", "prompt": history }));
    // The last token that was said has not been fed.
    assert_eq!(saved["tokens"], 711, "{saved}");
    assert_eq!(server.end("-TERM").code, Some(0));

    // Without the state the same answer is computed from the beginning.
    let server = Served::start(&bench, flags);
    let (fresh, cached) = ask(&server, &history, 2);
    assert_eq!(cached, 0);
    assert_eq!(server.end("-TERM").code, Some(0));

    let server = Served::start(&bench, flags);
    let restored = post(&server, "/v1/state/talk/restore", &serde_json::json!({}));
    assert_eq!(restored["tokens"], 711, "{restored}");
    assert_eq!(ask(&server, &history, 2), (fresh, 711));
    assert_eq!(server.end("-TERM").code, Some(0));
}
