//! Bodies, watched as they come and go.

use std::error::Error;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::problem::Problem;
use super::record::Record;
use super::traffic::Traffic;

/// What was wrong with a body, for whoever answers: the handler that read it only learns that it failed.
pub(crate) type Verdict = Arc<OnceLock<Problem>>;

/// The body of a request: not too long, and not too long in coming.
pub(crate) struct Limited {
    body: Incoming,
    most: u64,
    patience: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    received: Arc<AtomicU64>,
    verdict: Verdict,
}

impl Limited {
    pub(crate) fn new(
        body: Incoming,
        most: usize,
        patience: Duration,
        received: Arc<AtomicU64>,
        verdict: Verdict,
    ) -> Self {
        Limited { body, most: most as u64, patience, deadline: None, received, verdict }
    }

    fn fail(&self, status: StatusCode, message: String) -> Box<dyn Error + Send + Sync> {
        let error = message.clone().into();
        // The first fault is the one to tell of.
        let _ = self.verdict.set(Problem::closing(status, message));
        error
    }

    fn expired(&mut self, context: &mut Context<'_>) -> bool {
        let patience = self.patience;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        deadline.as_mut().poll(context).is_ready()
    }
}

/// What is said of a body that is longer than allowed.
pub(crate) fn too_long(most: usize) -> String {
    format!("the body has more than {most} bytes, which is the most that this server takes")
}

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Pending if this.expired(context) => {
                let message = format!("the body did not arrive within {} ms", this.patience.as_millis());
                Poll::Ready(Some(Err(this.fail(StatusCode::REQUEST_TIMEOUT, message))))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                if this.received.fetch_add(length, Ordering::Relaxed) + length > this.most {
                    let message = too_long(this.most as usize);
                    return Poll::Ready(Some(Err(this.fail(StatusCode::PAYLOAD_TOO_LARGE, message))));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => {
                let message = "the body ended early, or its chunks are not what they say".to_owned();
                Poll::Ready(Some(Err(this.fail(StatusCode::BAD_REQUEST, message))))
            }
            Poll::Ready(None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, which the record of the request goes along with.
pub(crate) struct Watched {
    body: Body,
    record: Record,
    traffic: Arc<Traffic>,
}

impl Watched {
    pub(crate) fn new(body: Body, mut record: Record, traffic: Arc<Traffic>) -> Self {
        if body.is_end_stream() {
            record.complete();
        }
        Watched { body, record, traffic }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let polled = this.record.span().in_scope(|| {
            panic::catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.body).poll_frame(context)))
        });
        let Ok(polled) = polled else {
            this.traffic.panics.inc();
            this.body = Body::empty();
            return Poll::Ready(Some(Err("internal error".into())));
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.record.sent(frame.data_ref().map_or(0, Bytes::len));
                if this.body.is_end_stream() {
                    this.record.complete();
                }
            }
            Poll::Ready(None) => this.record.complete(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
