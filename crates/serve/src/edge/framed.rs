//! A connection whose messages can be read in one way only, and begin in time.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::framing::Framing;
use super::paced::Rest;
use super::traffic::{Cut, Traffic};

/// A byte that can stand nowhere in a message. It takes the place of the first one that is wrong, so that the
/// parser behind refuses the message whatever it would have made of it.
const POISON: u8 = 0;

/// Wraps a stream of requests.
pub(crate) struct Framed<S> {
    stream: S,
    framing: Framing,
    /// How long a head may take, and when the present one must be complete.
    patience: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    rest: Arc<Rest>,
    traffic: Arc<Traffic>,
}

impl<S> Framed<S> {
    pub(crate) fn new(stream: S, patience: Duration, rest: Arc<Rest>, traffic: Arc<Traffic>) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(patience)));
        Framed { stream, framing: Framing::default(), patience, deadline, rest, traffic }
    }

    /// Looks at bytes that have just been read into `buf` from `start` on.
    fn follow(&mut self, buf: &mut ReadBuf<'_>, start: usize) {
        let fresh = &buf.filled()[start..];
        if fresh.is_empty() {
            return;
        }
        if let Err(good) = self.framing.follow(fresh) {
            buf.set_filled(start + good);
            buf.put_slice(&[POISON]);
            self.traffic.cut(Cut::Framing);
        }
        self.rest.set(self.framing.between());
        if !self.framing.in_head() {
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.deadline = Some(Box::pin(tokio::time::sleep(self.patience)));
        }
    }

    /// Fails once a head has taken too long.
    fn check(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(context));
        self.traffic.cut(Cut::Header);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Framed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.framing.broken() {
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buf) {
            Poll::Pending => this.check(context),
            Poll::Ready(Ok(())) => {
                this.follow(buf, start);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Framed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
