//! Sockets: who may ask, how much, and for how long.
//!
//! Read `answer` first: what happens to a request, in order. A connection is wrapped twice below
//! it: `paced` cuts those who do not read, `framing` those whose messages could be read in two ways and those who
//! take too long to begin. `listen` accepts and lets go of connections.

mod answer;
mod body;
mod framed;
mod framing;
mod hosts;
mod keys;
mod listen;
pub(crate) mod operations;
mod otlp;
mod paced;
mod problem;
mod record;
mod tls;
mod traffic;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;

pub use keys::Keys;
pub use listen::{Bound, Drained, Server};
pub use otlp::{Exporter, exporter};
pub(crate) use record::note_usage;
pub use tls::Tls;

use crate::app::App;

/// How connections are treated. Each is a flag of `zamba serve`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who may ask; none means everybody, and then only this machine.
    pub keys: Keys,
    /// Whether each key has cached beginnings of its own.
    pub cache_per_key: bool,
    /// Names under which the server may be asked for, besides its address; `*` allows all.
    pub allowed_hosts: Vec<String>,
    /// Pages of other origins that may ask, such as `https://example.org`.
    pub allowed_origins: Vec<String>,
    /// Certificate and key.
    pub tls: Option<Tls>,
    /// Connections at once.
    pub max_connections: usize,
    /// Bytes of a head: request line and headers.
    pub max_header_bytes: usize,
    /// Headers of a request.
    pub max_headers: usize,
    /// How long a head may take, from the connection or its first byte on; also a TLS handshake.
    pub header_timeout: Duration,
    /// How long a body may take.
    pub body_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// How long a reader may take nothing of what is written to it.
    pub stall_timeout: Duration,
    /// How long requests under way may go on once the server is to end.
    pub grace: Duration,
    /// How long a connection that is closed early is listened to, so that its client gets to read why.
    pub linger: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            keys: Keys::default(),
            cache_per_key: false,
            allowed_hosts: vec![],
            allowed_origins: vec![],
            tls: None,
            max_connections: 4096,
            max_header_bytes: 64 << 10,
            max_headers: 100,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            linger: Duration::from_secs(1),
        }
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The address is taken, or not one of this machine.
    #[error("cannot listen on {address}: {error}; choose another --host or --port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// Others than this machine could ask, and nobody would ask them who they are.
    #[error(
        "{0} can be reached from other machines; give an --api-key (or --api-key-file), or listen on 127.0.0.1"
    )]
    Public(SocketAddr),
    /// A key that no header can carry.
    #[error("an API key must be 1 to 512 visible ASCII characters without spaces; key number {0} is not")]
    Key(usize),
    /// A host name that no request can carry.
    #[error("--allowed-host {0:?} is not a host name; give it without scheme, port and path, or * for all")]
    Host(String),
    /// An origin that no browser sends.
    #[error("--allowed-origin {0:?} is not an origin such as https://example.org or http://localhost:3000")]
    Origin(String),
    /// A certificate or key.
    #[error("{file}: {what}")]
    Tls {
        /// The file.
        file: String,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// The place that traces go to.
    #[error("cannot send traces to {endpoint}: {what}")]
    Traces {
        /// The place.
        endpoint: String,
        /// What is wrong with it.
        what: String,
    },
}

/// All routes: the page, what requests mean, and what keeps a server in order.
pub fn routes(app: &Arc<App>) -> Router {
    let others = crate::page::routes().merge(operations::routes(app));
    others.method_not_allowed_fallback(crate::api::no_such_method).merge(crate::api::routes(app.clone()))
}
