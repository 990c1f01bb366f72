//! A connection that is given up when its reader stops, and closed so that the reader gets the last word.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::traffic::{Cut, Traffic};

/// Most bytes that are still taken from a client to whom the answer has been given.
const LINGER_BYTES: usize = 4 << 20;

/// Whether all that a client has sent so far was understood.
#[derive(Debug)]
pub(crate) struct Rest(AtomicBool);

impl Rest {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Rest(AtomicBool::new(true)))
    }

    pub(crate) fn set(&self, rest: bool) {
        self.0.store(rest, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Wraps a socket.
pub(crate) struct Paced<S> {
    socket: S,
    /// How long nothing may be taken, and when that ends.
    patience: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    linger: Duration,
    closing: Closing,
    rest: Arc<Rest>,
    traffic: Arc<Traffic>,
}

enum Closing {
    Open,
    /// Our side is closed; the other may still send, until then and so much.
    Listening(Pin<Box<Sleep>>, usize),
    /// The other side is closed, or was listened to for long enough.
    Done,
}

impl<S> Paced<S> {
    pub(crate) fn new(
        socket: S,
        patience: Duration,
        linger: Duration,
        rest: Arc<Rest>,
        traffic: Arc<Traffic>,
    ) -> Self {
        Paced { socket, patience, deadline: None, linger, closing: Closing::Open, rest, traffic }
    }

    /// Passes on how writing went, and fails when it has not gone on for too long.
    fn pace<T>(&mut self, context: &mut Context<'_>, went: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if went.is_ready() {
            self.deadline = None;
            return went;
        }
        let patience = self.patience;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(deadline.as_mut().poll(context));
        self.traffic.cut(Cut::Stalled);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        let read = ready!(Pin::new(&mut self.socket).poll_read(context, buf));
        if read.is_err() || buf.filled().len() == start {
            // Nobody is there who could be told anything.
            self.rest.set(true);
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let went = Pin::new(&mut self.socket).poll_write(context, buf);
        self.pace(context, went)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let went = Pin::new(&mut self.socket).poll_write_vectored(context, bufs);
        self.pace(context, went)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let went = Pin::new(&mut self.socket).poll_flush(context);
        self.pace(context, went)
    }

    /// Closes our side, and then listens on for a while if the client may still be sending: a socket that is
    /// closed with bytes unread resets the connection, and the client may lose the answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.closing {
                Closing::Open => {
                    ready!(Pin::new(&mut this.socket).poll_shutdown(context))?;
                    this.closing = if this.rest.get() {
                        Closing::Done
                    } else {
                        Closing::Listening(Box::pin(tokio::time::sleep(this.linger)), LINGER_BYTES)
                    };
                }
                Closing::Listening(deadline, left) => {
                    let mut scratch = [0; 4096];
                    let mut buf = ReadBuf::new(&mut scratch);
                    let over = match Pin::new(&mut this.socket).poll_read(context, &mut buf) {
                        Poll::Ready(Ok(())) => {
                            *left = left.saturating_sub(buf.filled().len());
                            buf.filled().is_empty() || *left == 0
                        }
                        Poll::Ready(Err(_)) => true,
                        Poll::Pending => {
                            ready!(deadline.as_mut().poll(context));
                            true
                        }
                    };
                    if over {
                        this.closing = Closing::Done;
                    }
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}
