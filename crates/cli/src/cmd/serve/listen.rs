//! Where to listen and to whom, as typed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use zamba_serve::edge::{Keys, Settings, Tls};

use super::limits::parse_seconds;
use crate::common;
use crate::error::Stop;
use crate::{out, system};

/// Descriptors for anything but connections.
const OTHER_DESCRIPTORS: u64 = 256;

/// Who may ask, and where.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Who may ask")]
pub(crate) struct ListenArgs {
    /// The address to listen on. Others than this machine can only be let in with a key.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = parse_host)]
    host: IpAddr,
    /// The port; 0 is any that is free.
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// A key that requests must have, as `Authorization: Bearer` or `x-api-key`. Repeatable. Better put it into
    /// ZAMBA_API_KEY or a file: others on this machine can see the command line.
    #[arg(long, value_name = "KEY", env = "ZAMBA_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    /// A file of such keys, one per line; empty lines and those that begin with # do not count.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Whether each key has cached beginnings of its own, so that nobody can find out by timing what others have
    /// asked [default: true if there is more than one key].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    cache_per_key: Option<bool>,
    /// A name, besides the address, under which the server is asked for; * is any. Repeatable.
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<String>,
    /// A page of another origin that may ask, such as https://example.org. Repeatable.
    #[arg(long, value_name = "ORIGIN")]
    allowed_origin: Vec<String>,
    /// Certificates for TLS, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of the first certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

fn parse_host(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| format!("`{text}` is not an address such as 127.0.0.1, 0.0.0.0 or ::1"))
}

impl ListenArgs {
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let keys = self.keys()?;
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificates), Some(key)) => Some(Tls::open(certificates, key)?),
            _ => None,
        };
        Ok(Settings {
            cache_per_key: self.cache_per_key.unwrap_or(keys.len() > 1),
            keys,
            allowed_hosts: self.allowed_host.clone(),
            allowed_origins: self.allowed_origin.clone(),
            tls,
            ..Settings::default()
        })
    }

    fn keys(&self) -> anyhow::Result<Keys> {
        let mut keys = self.api_key.clone();
        if let Some(file) = &self.api_key_file {
            let text = common::read_text(file)?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let before = keys.len();
            keys.extend(lines.map(str::to_owned));
            // A file that was meant to keep others out and has no keys must not let them in.
            anyhow::ensure!(keys.len() > before, "{} has no keys; put one on each line", file.display());
        }
        Keys::new(&keys).map_err(|e| Stop::Usage(e.to_string()).into())
    }
}

/// How connections are treated.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connections")]
pub(crate) struct ConnectionArgs {
    /// Connections at once; more are told so with 503.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_connections: u32,
    /// Bytes of a request line with all headers.
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = parse_header_bytes)]
    max_header_bytes: u64,
    /// How long request line and headers may take; also a TLS handshake.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    header_timeout: Duration,
    /// How long a body may take.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds)]
    body_timeout: Duration,
    /// How long a connection may wait for its next request.
    #[arg(long, value_name = "SECONDS", default_value = "75", value_parser = parse_seconds)]
    idle_timeout: Duration,
    /// How long requests under way may go on after Ctrl-C or SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    grace: Duration,
    /// Threads for connections; the model has its own [default: one for every four cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    http_threads: Option<u8>,
}

fn parse_header_bytes(text: &str) -> Result<u64, String> {
    let bytes = common::parse_size(text)?;
    if (1 << 10..=1 << 20).contains(&bytes) { Ok(bytes) } else { Err("give 1KiB to 1MiB".to_owned()) }
}

impl ConnectionArgs {
    pub(super) fn settings(&self, rest: Settings, stall_timeout: Duration) -> Settings {
        Settings {
            max_connections: self.max_connections as usize,
            max_header_bytes: self.max_header_bytes as usize,
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            idle_timeout: self.idle_timeout,
            stall_timeout,
            grace: self.grace,
            ..rest
        }
    }

    /// Asks the system for as many descriptors as all connections need.
    pub(super) fn prepare(&self) {
        let wanted = u64::from(self.max_connections) + OTHER_DESCRIPTORS;
        if let Some(given) = system::allow_descriptors(wanted).filter(|&given| given < wanted) {
            out::note(&format!(
                "warning: the system allows {given} open files, too few for {} connections; raise `ulimit -n`, or \
                 lower --max-connections",
                self.max_connections
            ));
        }
    }

    /// Few, for each one that runs takes a core from the model, and the rest of the model waits for that one.
    pub(super) fn http_threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        self.http_threads.map_or_else(|| cores().div_ceil(4).min(8), usize::from)
    }
}
