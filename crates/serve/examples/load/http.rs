//! A client of HTTP/1.1 that can also misbehave: it owns its socket.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// How long anything may take. Waiting in the server's queue is the longest of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The connection was not taken.
    Connect(String),
    /// It was ended before the answer was complete.
    Cut(String),
    /// The answer is no HTTP.
    Nonsense(String),
    /// Nothing came for too long.
    Silence,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Connect(why) => write!(f, "no connection: {why}"),
            Trouble::Cut(why) => write!(f, "cut: {why}"),
            Trouble::Nonsense(why) => write!(f, "not HTTP: {why}"),
            Trouble::Silence => write!(f, "no answer in time"),
        }
    }
}

type Result<T> = std::result::Result<T, Trouble>;

/// What stands before a body.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// How long a body is.
#[derive(Debug, Clone, Copy)]
enum Length {
    Known(usize),
    /// What is left of the chunk.
    Chunked(usize),
    UntilClosed,
    Over,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    length: Length,
    /// The part of an event stream that has no end yet.
    events: Vec<u8>,
}

/// A request as bytes.
pub(crate) fn request(method: &str, path: &str, body: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n").into_bytes();
    if let Some(body) = body {
        let more = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        bytes.extend(more.into_bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body.unwrap_or_default());
    bytes
}

impl Connection {
    pub(crate) async fn open(to: SocketAddr) -> Result<Self> {
        Self::with_buffer(to, None).await
    }

    /// A connection that holds no more than about `receive` bytes that were not read.
    pub(crate) async fn with_buffer(to: SocketAddr, receive: Option<u32>) -> Result<Self> {
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            if let Some(bytes) = receive {
                socket.set_recv_buffer_size(bytes)?;
            }
            let stream = socket.connect(to).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let made = timeout(PATIENCE, connect).await.map_err(|_| Trouble::Silence)?;
        let stream = made.map_err(|e: std::io::Error| Trouble::Connect(e.to_string()))?;
        Ok(Connection { stream, buffer: vec![], length: Length::Over, events: vec![] })
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = timeout(PATIENCE, self.stream.write_all(bytes)).await.map_err(|_| Trouble::Silence)?;
        sent.map_err(|e| Trouble::Cut(e.to_string()))
    }

    /// Ends the connection in the middle of what it is doing: in order, or as if the machine were gone.
    pub(crate) fn drop_dead(self, reset: bool) {
        if reset {
            // If it cannot be set, the connection ends in order.
            let _ = self.stream.set_zero_linger();
        }
    }

    /// More bytes into the buffer; how many.
    async fn fill(&mut self) -> Result<usize> {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
        read.map_err(|_| Trouble::Silence)?.map_err(|e| Trouble::Cut(e.to_string()))
    }

    /// A line without its end.
    async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).take(at).collect();
                return String::from_utf8(line).map_err(|e| Trouble::Nonsense(e.to_string()));
            }
            if self.fill().await? == 0 {
                return Err(Trouble::Cut("in a line".to_owned()));
            }
        }
    }

    /// Status and headers of an answer.
    pub(crate) async fn head(&mut self) -> Result<Head> {
        let first = self.line().await?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or(Trouble::Nonsense(first))?;
        let mut headers = vec![];
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| Trouble::Nonsense(line.clone()))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let head = Head { status, headers };
        self.length = match (head.header("content-length"), head.header("transfer-encoding")) {
            (Some(n), _) => Length::Known(n.parse().map_err(|_| Trouble::Nonsense(n.to_owned()))?),
            (None, Some("chunked")) => Length::Chunked(0),
            _ => Length::UntilClosed,
        };
        Ok(head)
    }

    /// The next bytes of the body; none at its end.
    pub(crate) async fn body_part(&mut self) -> Result<Option<Vec<u8>>> {
        match self.length {
            Length::Over | Length::Known(0) => {
                self.length = Length::Over;
                Ok(None)
            }
            Length::Known(left) => {
                let part = self.take(left).await?;
                self.length = Length::Known(left - part.len());
                Ok(Some(part))
            }
            Length::UntilClosed => {
                if self.buffer.is_empty() && self.fill().await? == 0 {
                    self.length = Length::Over;
                    return Ok(None);
                }
                Ok(Some(std::mem::take(&mut self.buffer)))
            }
            Length::Chunked(0) => self.begin_chunk().await,
            Length::Chunked(left) => self.chunk_part(left).await,
        }
    }

    async fn begin_chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let line = self.line().await?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(|_| Trouble::Nonsense(line))?;
        if size > 0 {
            return self.chunk_part(size).await;
        }
        self.line().await?;
        self.length = Length::Over;
        Ok(None)
    }

    async fn chunk_part(&mut self, left: usize) -> Result<Option<Vec<u8>>> {
        let part = self.take(left).await?;
        self.length = Length::Chunked(left - part.len());
        if part.len() == left {
            self.line().await?;
        }
        Ok(Some(part))
    }

    /// At least one byte and at most `most`.
    async fn take(&mut self, most: usize) -> Result<Vec<u8>> {
        if self.buffer.is_empty() && self.fill().await? == 0 {
            return Err(Trouble::Cut("in a body".to_owned()));
        }
        let count = most.min(self.buffer.len());
        Ok(self.buffer.drain(..count).collect())
    }

    /// The whole body.
    pub(crate) async fn body(&mut self) -> Result<Vec<u8>> {
        let mut all = vec![];
        while let Some(part) = self.body_part().await? {
            all.extend(part);
        }
        Ok(all)
    }

    /// The data of the next event of a stream; none at its end.
    pub(crate) async fn event(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(at) = self.events.windows(2).position(|w| w == b"\n\n") {
                let event: Vec<u8> = self.events.drain(..at + 2).take(at).collect();
                let event = String::from_utf8(event).map_err(|e| Trouble::Nonsense(e.to_string()))?;
                if let Some(data) = event.strip_prefix("data: ") {
                    return Ok(Some(data.to_owned()));
                }
                continue;
            }
            let Some(part) = self.body_part().await? else { return Ok(None) };
            self.events.extend(part);
        }
    }

    /// Some bytes of whatever comes, how many; none at the end.
    pub(crate) async fn raw(&mut self, most: usize) -> Result<usize> {
        Ok(self.raw_bytes(most).await?.len())
    }

    /// As [`Connection::raw`], with the bytes. No more than these are taken from the system.
    pub(crate) async fn raw_bytes(&mut self, most: usize) -> Result<Vec<u8>> {
        if self.buffer.is_empty() {
            let mut bytes = vec![0; most];
            let read = timeout(PATIENCE, self.stream.read(&mut bytes)).await.map_err(|_| Trouble::Silence)?;
            bytes.truncate(read.map_err(|e| Trouble::Cut(e.to_string()))?);
            return Ok(bytes);
        }
        let count = most.min(self.buffer.len());
        Ok(self.buffer.drain(..count).collect())
    }
}

/// An answer as a whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl Connection {
    /// One request and its answer.
    pub(crate) async fn ask(&mut self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Reply> {
        self.send(&request(method, path, body)).await?;
        self.reply().await
    }

    pub(crate) async fn reply(&mut self) -> Result<Reply> {
        let head = self.head().await?;
        let body = self.body().await?;
        Ok(Reply { head, body })
    }
}
