//! From a checked request to the engine, and its events back.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{SelectAll, Stream, StreamExt, select_all, unfold};

use super::Api;
use super::common::Plan;
use super::error::ApiError;
use crate::edge::note_usage;
use crate::engine::{Answer, Event, Handle, Permit, Request};
use crate::grammar::Rule;

/// Silence after which a stream says that it is still there, so that nobody on the way closes it.
const PING: Duration = Duration::from_secs(15);

/// Text that is encoded on the spot. Longer ones would hold up other connections.
const SHORT_TEXT: usize = 4 << 10;

/// Lets `count` sequences in, before any work is done for them.
pub(crate) fn admit(handle: &Handle, count: usize, held: &mut Vec<Permit>) -> Result<(), ApiError> {
    let settings = handle.settings();
    let most = settings.slots + settings.max_queue;
    if count > most {
        // Coming back later would not help.
        return Err(ApiError::bad(format!(
            "{count} answers in one request; this server takes {most} at once"
        )));
    }
    while held.len() < count {
        held.push(handle.admit().map_err(|refusal| ApiError::refused(&refusal, "prompt"))?);
    }
    Ok(())
}

/// Token ids of a text.
pub(crate) async fn encode(
    api: &Arc<Api>,
    text: &str,
    add_special: bool,
    param: &str,
) -> Result<Vec<u32>, ApiError> {
    let Some(tokenizer) = &api.app.tokenizer else {
        return Err(ApiError::invalid(param, "the model has no tokenizer; give token ids instead of text"));
    };
    let encoded = if text.len() <= SHORT_TEXT {
        tokenizer.encode(text, add_special)
    } else {
        let turn = api.encoders.acquire().await;
        let (tokenizer, text) = (tokenizer.clone(), text.to_owned());
        let work = tokio::task::spawn_blocking(move || tokenizer.encode(&text, add_special)).await;
        drop(turn);
        work.map_err(|_| ApiError::internal("the tokenizer failed on this text"))?
    };
    encoded.map_err(|error| ApiError::invalid(param, error.to_string()))
}

/// Hands the sequences over: for each prompt `plan.n` of them, in order. `prompts` names the field of a prompt.
pub(crate) fn submit(
    handle: &Handle,
    plan: &Plan,
    prompts: &[Vec<u32>],
    rule: Option<&Rule>,
    permits: Vec<Permit>,
    param: impl Fn(usize) -> String,
) -> Result<Vec<Answer>, ApiError> {
    let mut answers = Vec::with_capacity(permits.len());
    for (at, permit) in permits.into_iter().enumerate() {
        let (prompt, choice) = (at / plan.n, at % plan.n);
        let mut sampler = plan.sampler.clone();
        sampler.seed = sampler.seed.wrapping_add(choice as u64);
        let request = Request {
            prompt: prompts[prompt].clone(),
            max_tokens: plan.max_tokens.unwrap_or(handle.facts().context),
            sampler,
            ends: plan.ends.clone(),
            stops: plan.stops.clone(),
            logprobs: plan.logprobs,
            score: plan.score,
            pool: false,
            constraint: rule.map(Rule::begin),
            salt: plan.salt.clone(),
            tenant: plan.tenant,
        };
        let answer = handle.submit(permit, request);
        answers.push(answer.map_err(|refusal| ApiError::refused(&refusal, &param(prompt)))?);
    }
    Ok(answers)
}

/// One answer among several.
struct Numbered {
    index: usize,
    answer: Answer,
    ended: bool,
}

impl Stream for Numbered {
    type Item = (usize, Option<Event>);

    /// Ends after the last event; an engine that dies before it gives `None` once.
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.answer.poll_next(context).map(|event| {
            self.ended = matches!(event, None | Some(Event::Done(_) | Event::Failed(_)));
            Some((self.index, event))
        })
    }
}

/// The events of several answers, as they come. Dropping it gives all of them up.
pub(crate) struct Events {
    all: SelectAll<Numbered>,
}

impl Events {
    pub(crate) fn new(answers: Vec<Answer>) -> Self {
        let numbered = answers.into_iter().enumerate();
        Events { all: select_all(numbered.map(|(index, answer)| Numbered { index, answer, ended: false })) }
    }

    /// The next event and the number of its answer; none when all have ended.
    ///
    /// # Errors
    /// If an answer was broken off.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Event), ApiError>> {
        Some(match self.all.next().await? {
            (_, None) => Err(ApiError::internal("the engine has ended; restart the server")),
            (_, Some(Event::Failed(failure))) => Err(failure.into()),
            (index, Some(event)) => {
                if let Event::Done(done) = &event {
                    note_usage(&done.usage);
                }
                Ok((index, event))
            }
        })
    }
}

/// Puts events into the words of a protocol, as pieces of a stream.
pub(crate) trait Teller: Send + 'static {
    /// What is said before the first event.
    fn begin(&mut self, out: &mut Vec<Bytes>) {
        let _ = out;
    }
    /// What is said about an event.
    fn event(&mut self, index: usize, event: Event, out: &mut Vec<Bytes>);
    /// What is said at the end.
    fn end(&mut self, out: &mut Vec<Bytes>);
    /// What is said if the answer was broken off; nothing follows.
    fn fail(&mut self, error: &ApiError, out: &mut Vec<Bytes>) {
        out.push(data(&error.body()));
    }
    /// What is said when nothing happens.
    fn ping(&self) -> Bytes {
        Bytes::from_static(b": ping\n\n")
    }
}

struct Telling<T> {
    events: Option<Events>,
    teller: T,
    out: std::vec::IntoIter<Bytes>,
}

impl<T: Teller> Telling<T> {
    /// The next piece. The answers are given up as soon as one has failed.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.out.next() {
                return Some(piece);
            }
            let events = self.events.as_mut()?;
            let mut out = Vec::new();
            match tokio::time::timeout(PING, events.next()).await {
                Err(_) => out.push(self.teller.ping()),
                Ok(Some(Ok((index, event)))) => self.teller.event(index, event, &mut out),
                Ok(Some(Err(error))) => {
                    self.events = None;
                    self.teller.fail(&error, &mut out);
                }
                Ok(None) => {
                    self.events = None;
                    self.teller.end(&mut out);
                }
            }
            self.out = out.into_iter();
        }
    }
}

/// An answer as a stream of server-sent events. Nothing is read ahead, and dropping the body gives the answers up.
pub(crate) fn stream(answers: Vec<Answer>, mut teller: impl Teller) -> Response {
    let mut out = Vec::new();
    teller.begin(&mut out);
    let telling = Telling { events: Some(Events::new(answers)), teller, out: out.into_iter() };
    let pieces = unfold(telling, |mut telling| async move {
        telling.next().await.map(|piece| (Ok::<_, Infallible>(piece), telling))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks nginx not to hold the stream back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A data line of a stream.
pub(crate) fn data(value: &impl serde::Serialize) -> Bytes {
    named(None, value)
}

/// An event of a stream with its name.
pub(crate) fn named(name: Option<&str>, value: &impl serde::Serialize) -> Bytes {
    // Shapes are plain structs of strings and finite numbers, which always have a JSON form.
    let json = serde_json::to_string(value).unwrap_or_default();
    match name {
        Some(name) => format!("event: {name}\ndata: {json}\n\n").into(),
        None => format!("data: {json}\n\n").into(),
    }
}

/// An event of a stream, for the document.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is written by hand")]
pub(crate) struct StreamEvent {
    /// A JSON object; in OpenAI's protocol at last the word `[DONE]`.
    data: String,
    /// Its kind, in Anthropic's protocol.
    event: Option<String>,
}

/// What ends a stream that was not broken off.
pub(crate) const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");
