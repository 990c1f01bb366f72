//! Connections: how they are accepted, and how the server lets go of them when it ends.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use super::answer::{answer, note_route};
use super::framed::Framed;
use super::hosts::Hosts;
use super::paced::{Paced, Rest};
use super::record::Ids;
use super::traffic::{Cut, Traffic};
use super::{EdgeError, Settings};
use crate::app::App;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Connections beyond the most that are told so at once.
const TURNED_AWAY: usize = 64;
/// Bytes that the system may hold back for a reader without having sent them. It bounds what a stalled one
/// costs, and how long a slow one takes to make room for more.
const UNSENT: u32 = 16 << 10;
/// How long requests that were sent before their client could know of the end are still listened for.
const SETTLE: Duration = Duration::from_millis(250);
/// How long answers may take to end once they have been broken off, and connections to close after that.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often it is looked whether all is done.
const GLANCE: Duration = Duration::from_millis(10);
/// Shortest and longest wait after a connection could not be accepted.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

const CROWDED: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n",
    "connection: close\r\ncontent-length: 135\r\n\r\n",
    r#"{"type":"error","error":{"message":"too many connections; try again later","type":"overloaded_error","#,
    r#""param":null,"code":"overloaded"}}"#,
);

/// What all connections know.
pub(crate) struct Edge {
    pub(crate) app: Arc<App>,
    pub(crate) router: Router,
    pub(crate) settings: Settings,
    pub(crate) hosts: Hosts,
    pub(crate) ids: Ids,
    pub(crate) traffic: Arc<Traffic>,
    /// Requests under way.
    pub(crate) in_flight: Arc<AtomicUsize>,
}

/// An address that was taken. Whoever connects to it is turned away by the system until there is a [`Server`].
#[derive(Debug)]
pub struct Bound {
    socket: Socket,
    address: SocketAddr,
    hosts: Hosts,
    settings: Settings,
}

/// A server that listens and answers nobody yet.
pub struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    edge: Arc<Edge>,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Requests that were still under way when their time was over.
    pub cut: usize,
}

impl Bound {
    /// Takes an address; port 0 is any that is free.
    ///
    /// # Errors
    /// If the address cannot be had, or could be reached from elsewhere while nobody needs a key; if a setting
    /// makes no sense.
    pub fn new(address: SocketAddr, settings: Settings) -> Result<Self, EdgeError> {
        if settings.keys.is_empty() && !address.ip().is_loopback() {
            return Err(EdgeError::Public(address));
        }
        let hosts = Hosts::new(&settings, address)?;
        let (socket, address) = take(address).map_err(|error| EdgeError::Listen { address, error })?;
        Ok(Bound { socket, address, hosts, settings })
    }

    /// Listens.
    ///
    /// # Errors
    /// If another program has begun to listen there.
    pub fn listen(self, app: Arc<App>, routes: Router) -> Result<Server, EdgeError> {
        let Bound { socket, address, hosts, settings } = self;
        socket.listen(BACKLOG).map_err(|error| EdgeError::Listen { address, error })?;
        let traffic = Traffic::new(app.handle.metrics());
        let router = routes
            .route_layer(axum::middleware::from_fn(note_route))
            // The body is bounded before any handler sees it.
            .layer(DefaultBodyLimit::disable());
        let edge = Edge { app, router, settings, hosts, ids: Ids::new(), traffic, in_flight: Arc::default() };
        Ok(Server { listener: socket.into(), address, edge: Arc::new(edge) })
    }
}

impl Server {
    /// The address that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where a browser on this machine finds the page.
    pub fn url(&self) -> String {
        let scheme = if self.edge.settings.tls.is_some() { "https" } else { "http" };
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("{scheme}://{address}")
    }

    /// Answers until `stop` is ready. From then on nothing new is begun, which clients are told; requests under
    /// way end by themselves within the time that the settings give, or are broken off with an event that says
    /// so. The engine has ended after that.
    ///
    /// # Errors
    /// If the system does not let the listener be used.
    pub async fn run(self, stop: impl Future<Output = ()>) -> io::Result<Drained> {
        let Server { listener, edge, .. } = self;
        let listener = TcpListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(edge.settings.max_connections));
        let (drain, draining) = watch::channel(false);
        let accepting = tokio::spawn(accept_all(edge.clone(), listener, places.clone(), draining));
        stop.await;

        edge.app.handle.close();
        drain.send_replace(true);
        sleep(SETTLE.min(edge.settings.grace)).await;
        let idle = || edge.in_flight.load(Ordering::Acquire) == 0;
        until(&idle, edge.settings.grace).await;
        let cut = edge.in_flight.load(Ordering::Acquire);
        edge.app.handle.stop();
        accepting.abort();
        // An abort is what it ends with; the listener is closed then.
        let _ = accepting.await;
        until(&idle, FAREWELL).await;
        let closed = || places.available_permits() == edge.settings.max_connections;
        if !until(&closed, FAREWELL.min(edge.settings.linger + SETTLE)).await {
            edge.traffic.cut(Cut::Drained);
        }
        Ok(Drained { cut })
    }

    /// As [`Server::run`], on so many threads of its own, until `stop` says so.
    ///
    /// # Errors
    /// If the system gives no threads, or does not let the listener be used.
    pub fn run_until(self, threads: usize, stop: impl Fn() -> bool) -> io::Result<Drained> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("zamba-http")
            .enable_all()
            .build()?;
        let drained = runtime.block_on(self.run(async {
            while !stop() {
                sleep(GLANCE).await;
            }
        }));
        // What still runs then has been told, and had its time.
        runtime.shutdown_background();
        drained
    }
}

/// Waits for something to become true, but not for ever.
async fn until(done: &impl Fn() -> bool, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(GLANCE).await;
    }
    true
}

fn take(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A server that has just ended must not keep the next one from its port.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    let taken = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((socket, taken))
}

/// Accepts connections for as long as it is left alone.
async fn accept_all(
    edge: Arc<Edge>,
    listener: TcpListener,
    places: Arc<Semaphore>,
    draining: watch::Receiver<bool>,
) {
    let lobby = Arc::new(Semaphore::new(TURNED_AWAY));
    let mut pause = BACK_OFF[0];
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                pause = BACK_OFF[0];
                edge.traffic.accepted.inc();
                match places.clone().try_acquire_owned() {
                    Ok(place) => {
                        tokio::spawn(connection(edge.clone(), socket, peer, draining.clone(), place));
                    }
                    Err(_) => {
                        let Ok(place) = lobby.clone().acquire_owned().await else { return };
                        tokio::spawn(turn_away(edge.clone(), socket, place));
                    }
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            // Out of descriptors or memory: others will give some back.
            Err(error) => {
                edge.traffic.accept_errors.inc();
                tracing::warn!(%error, "cannot accept connections; trying again in {} ms", pause.as_millis());
                sleep(pause).await;
                pause = (pause * 2).min(BACK_OFF[1]);
            }
        }
    }
}

/// Whether an error says only that a client has gone again.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

fn paced(edge: &Edge, socket: TcpStream, rest: &Arc<Rest>) -> Paced<TcpStream> {
    // Neither is needed for answers to be right.
    let _ = socket.set_nodelay(true);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT);
    let Settings { stall_timeout, linger, .. } = edge.settings;
    Paced::new(socket, stall_timeout, linger, rest.clone(), edge.traffic.clone())
}

/// Says that there are too many.
async fn turn_away(edge: Arc<Edge>, socket: TcpStream, _place: OwnedSemaphorePermit) {
    edge.traffic.cut(Cut::Crowded);
    if edge.settings.tls.is_some() {
        return;
    }
    let rest = Rest::new();
    rest.set(false);
    let mut socket = paced(&edge, socket, &rest);
    if socket.write_all(CROWDED.as_bytes()).await.is_ok() {
        // A client that has gone needs no good-bye.
        let _ = socket.shutdown().await;
    }
}

async fn connection(
    edge: Arc<Edge>,
    socket: TcpStream,
    peer: SocketAddr,
    draining: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    edge.traffic.connections.inc();
    let rest = Rest::new();
    let socket = paced(&edge, socket, &rest);
    let patience = edge.settings.header_timeout;
    match &edge.settings.tls {
        None => {
            let stream = Framed::new(socket, patience, rest, edge.traffic.clone());
            converse(&edge, stream, peer, draining).await;
        }
        Some(tls) => match timeout(patience, tls.acceptor().accept(socket)).await {
            Ok(Ok(stream)) => {
                let stream = Framed::new(stream, patience, rest, edge.traffic.clone());
                converse(&edge, stream, peer, draining).await;
            }
            Ok(Err(_)) | Err(_) => edge.traffic.cut(Cut::Handshake),
        },
    }
    edge.traffic.connections.dec();
}

/// Answers the requests of one connection.
async fn converse<S>(edge: &Arc<Edge>, stream: S, peer: SocketAddr, mut draining: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let settings = &edge.settings;
    let service = service_fn(|request| {
        let answer = answer(edge.clone(), peer.ip(), request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Counted from the end of the last answer on. A head that has begun has less time, see `framed`.
        .header_read_timeout(settings.idle_timeout)
        .max_headers(settings.max_headers)
        .max_header_size(settings.max_header_bytes)
        .max_buf_size(settings.max_header_bytes.max(16 << 10))
        // Frames of an answer are queued as they are, and then no more than sixteen.
        .writev(true);
    let mut conversation = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = conversation.as_mut() => ended,
        () = settled(&mut draining) => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended");
    }
}

/// Ready a moment after the server began to end.
async fn settled(draining: &mut watch::Receiver<bool>) {
    // Without a sender the server is gone, which is an end too.
    let _ = draining.wait_for(|draining| *draining).await;
    sleep(SETTLE).await;
}
