//! A server in this process, and clients that speak bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use futures_util::stream;
use zamba_kernels::cpu::{Cpu, Isa};
use zamba_serve::edge::{self, Bound, Drained, Settings};
use zamba_serve::{App, Engine, Limits};

use crate::common::{lively, small_config};

/// Long enough for anything that is to happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What the routes of a test have seen.
#[derive(Default)]
pub(crate) struct Seen {
    /// Requests that came to a handler.
    pub(crate) handled: AtomicUsize,
    /// Requests that came to `/smuggled`.
    pub(crate) smuggled: AtomicUsize,
    /// Streams that have been let go of.
    pub(crate) dropped: AtomicUsize,
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) app: Arc<App>,
    pub(crate) seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<Drained>>,
    engine: Option<JoinHandle<()>>,
}

/// Times short enough for a test. Those that a test is about it sets itself.
pub(crate) fn settings() -> Settings {
    Settings { linger: Duration::from_millis(200), grace: SOON, ..Settings::default() }
}

/// A model that answers nobody yet.
pub(crate) fn app(limits: Limits) -> (Arc<App>, JoinHandle<()>) {
    let device = Arc::new(Cpu::with(Isa::detect(), 1));
    let model = lively(&small_config(), device, zamba_kernels::Dtype::F32, 3);
    let settings = zamba_serve::Settings { slots: 2, context: 4096, ..zamba_serve::Settings::default() };
    let (handle, engine) = Engine::start(model, None, settings).unwrap();
    let app = App {
        handle,
        tokenizer: None,
        template: None,
        name: "small".to_owned(),
        created: 0,
        ends: vec![],
        limits,
        fingerprint: "f".to_owned(),
        states: None,
    };
    (Arc::new(app), engine)
}

impl Running {
    /// A server with routes of its own besides the usual ones.
    pub(crate) fn start(settings: Settings) -> Self {
        Running::with(settings, Limits { body_bytes: 1000, ..Limits::default() }, |_, router| router)
    }

    pub(crate) fn with(
        settings: Settings,
        limits: Limits,
        more: impl FnOnce(&Arc<App>, Router) -> Router,
    ) -> Self {
        let (app, engine) = app(limits);
        let seen = Arc::new(Seen::default());
        let routes = more(&app, edge::routes(&app).merge(routes(&seen)));
        let bound = Bound::new("127.0.0.1:0".parse().unwrap(), settings).unwrap();
        let server = bound.listen(app.clone(), routes).unwrap();
        let address = server.address();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let server =
            std::thread::spawn(move || server.run_until(2, || stopped.load(Ordering::SeqCst)).unwrap());
        Running { address, app, seen, stop, server: Some(server), engine: Some(engine) }
    }

    /// Asks the server to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Waits for the server to end.
    pub(crate) fn join(mut self) -> Drained {
        self.stop();
        let drained = self.server.take().unwrap().join().unwrap();
        self.engine.take().unwrap().join().unwrap();
        drained
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.set_write_timeout(Some(SOON)).unwrap();
        socket
    }

    /// Sends bytes and reads until the server closes the connection.
    #[track_caller]
    pub(crate) fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut socket = self.connect();
        // A server that refuses may have closed before all is written.
        let _ = socket.write_all(request.as_ref());
        read_to_end(&mut socket)
    }

    /// The status of a request whose connection is to be closed after it.
    #[track_caller]
    pub(crate) fn status(&self, line: &str, headers: &str, body: &str) -> u16 {
        status(&self.exchange(request(line, headers, body)))
    }

    #[track_caller]
    pub(crate) fn assert_alive(&self) {
        assert_eq!(self.status("GET /health", "Host: localhost\r\n", ""), 200);
    }

    /// The value of a metric, summed over labels that contain `label`.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.app.handle.metrics().text();
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// A request, whole and right, that asks for its connection to be closed.
pub(crate) fn request(line: &str, headers: &str, body: &str) -> String {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("{line} HTTP/1.1\r\n{headers}{length}Connection: close\r\n\r\n{body}")
}

/// The status of an answer; 0 if there is none.
pub(crate) fn status(answer: &str) -> u16 {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0)
}

#[track_caller]
pub(crate) fn read_to_end(socket: &mut TcpStream) -> String {
    let mut answer = vec![];
    let mut block = [0; 4096];
    loop {
        match socket.read(&mut block) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&block[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("the connection stays open: {error}; {}", String::from_utf8_lossy(&answer)),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Waits for something to become true.
#[track_caller]
pub(crate) fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Counts when it is dropped.
struct Held(Arc<Seen>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

fn routes(seen: &Arc<Seen>) -> Router {
    let (echo, smuggled, streams, pieces) = (seen.clone(), seen.clone(), seen.clone(), seen.clone());
    Router::new()
        .route(
            "/test/echo",
            post(async move |body: Bytes| {
                echo.handled.fetch_add(1, Ordering::SeqCst);
                body
            }),
        )
        .route(
            "/smuggled",
            get(async move || {
                smuggled.smuggled.fetch_add(1, Ordering::SeqCst);
                "smuggled"
            }),
        )
        .route("/test/panic", get(async || -> &'static str { panic!("a fault") }))
        .route("/test/panic-late", get(async || Body::from_stream(stream::poll_fn(late_fault))))
        .route(
            "/test/endless",
            get(async move || {
                let held = Held(streams);
                let block = Bytes::from_static(&[b'x'; 1024]);
                Body::from_stream(stream::repeat_with(move || {
                    let _ = &held;
                    Ok::<_, std::io::Error>(block.clone())
                }))
            }),
        )
        .route(
            "/test/pieces",
            get(async move || {
                let held = Held(pieces);
                Body::from_stream(stream::iter((0..1000).map(move |i| {
                    let _ = &held;
                    Ok::<_, std::io::Error>(Bytes::from(format!("{i:>99}\n")))
                })))
            }),
        )
}

fn late_fault(_: &mut std::task::Context<'_>) -> std::task::Poll<Option<std::io::Result<Bytes>>> {
    panic!("a late fault")
}
