//! The engine as others see it: from any thread, while it takes its steps on its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use zamba::sampler::Sampler;
use zamba::tokenizer::Tokenizer;
use zamba::writer::Writer;

use super::request::{Event, Refusal, Request, Salt};
use super::saved::{Saved, SavedError};
use super::sequence::EVENTS_PER_STEP;
use crate::metrics::Metrics;

/// Clients obey no longer time than this one, in seconds, and take one of their own instead.
const LONGEST_RETRY: f64 = 60.0;

/// What the engine may use. Results do not depend on it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Sequences under way at once.
    pub slots: usize,
    /// Most tokens of a sequence, its prompt included.
    pub context: usize,
    /// Most tokens of a step.
    pub batch_tokens: usize,
    /// Most prompt tokens of a step while other sequences generate: it bounds the time between their tokens.
    pub mixed_tokens: usize,
    /// Most requests that wait for a slot.
    pub max_queue: usize,
    /// Most prompt tokens of all requests that wait for a slot.
    pub max_queue_tokens: usize,
    /// How long a request may wait for a slot.
    pub queue_timeout: Duration,
    /// How long a request may take in all.
    pub request_timeout: Duration,
    /// How long an answer may stay unread before its request is given up.
    pub stall_timeout: Duration,
    /// How long an answer may stay unread before its sequence gives its slot to others that wait for one.
    pub park_after: Duration,
    /// Bytes for cached beginnings; 0 turns the cache off.
    pub cache_bytes: u64,
    /// Tokens between two states that are kept of one sequence.
    pub cache_interval: usize,
    /// Events that a reader may lag behind before its sequence pauses.
    pub event_backlog: usize,
    /// What the work costs, for the metrics.
    pub costs: Costs,
}

/// What the work of the model costs at least.
#[derive(Debug, Clone, Copy, Default)]
pub struct Costs {
    /// Bytes of weights that a step reads.
    pub bytes_per_step: u64,
    /// Bytes of recurrent state that a step reads for each sequence.
    pub bytes_per_sequence: u64,
    /// Bytes of keys and values of each earlier token that a step reads for each sequence.
    pub bytes_per_context: u64,
    /// Operations for each token.
    pub flops_per_token: u64,
    /// Operations for each token and each earlier one.
    pub flops_per_context: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            slots: 8,
            context: 4096,
            batch_tokens: 512,
            mixed_tokens: 128,
            max_queue: 256,
            max_queue_tokens: 1 << 18,
            queue_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(3600),
            stall_timeout: Duration::from_secs(30),
            park_after: Duration::from_secs(1),
            cache_bytes: 1 << 30,
            cache_interval: 256,
            event_backlog: 64,
            costs: Costs::default(),
        }
    }
}

/// What others need to know of the model.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Number of tokens.
    pub vocab: usize,
    /// Width of hidden states, and so of embeddings.
    pub width: usize,
    /// Most tokens of a sequence.
    pub context: usize,
    /// Sequences under way at once.
    pub slots: usize,
}

pub(crate) struct Shared {
    pub(crate) commands: Sender<Command>,
    pub(crate) settings: Settings,
    pub(crate) facts: Facts,
    pub(crate) metrics: Arc<Metrics>,
    tokenizer: Option<Tokenizer>,
    /// Requests between [`Handle::admit`] and their end.
    admitted: AtomicUsize,
    /// Prompt tokens of requests that have been handed over and have no slot yet.
    waiting_tokens: AtomicUsize,
    stopping: AtomicBool,
}

/// What is said to the engine's thread.
pub(crate) enum Command {
    /// Take this request.
    Start(Box<Job>),
    /// Give the longest cached beginning of these tokens.
    Export { salt: Salt, tokens: Vec<u32>, reply: oneshot::Sender<Option<Saved>> },
    /// Put a beginning into the cache.
    Import { salt: Salt, saved: Box<Saved>, reply: oneshot::Sender<Result<usize, SavedError>> },
    /// Break off everything and end.
    Stop,
}

/// A request on its way, with where its answer goes.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) since: Instant,
    pub(crate) sampler: Sampler,
    pub(crate) writer: Option<Writer>,
    /// Held until the request has a slot.
    pub(crate) _tokens: WaitingTokens,
    /// Held until the request ends, whatever ends it.
    pub(crate) permit: Permit,
}

/// The engine, seen from outside. Clones are the same engine.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// The right to one request, given before anything has been computed for it. Dropping it gives it back.
pub struct Permit {
    shared: Arc<Shared>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.admitted.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counts a prompt as waiting until it is dropped.
pub(crate) struct WaitingTokens {
    shared: Arc<Shared>,
    tokens: usize,
}

impl Drop for WaitingTokens {
    fn drop(&mut self) {
        self.shared.waiting_tokens.fetch_sub(self.tokens, Ordering::AcqRel);
    }
}

impl Handle {
    pub(crate) fn new(
        commands: Sender<Command>,
        settings: Settings,
        facts: Facts,
        metrics: Arc<Metrics>,
        tokenizer: Option<Tokenizer>,
    ) -> Self {
        let shared = Shared {
            commands,
            settings,
            facts,
            metrics,
            tokenizer,
            admitted: AtomicUsize::new(0),
            waiting_tokens: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        };
        Handle { shared: Arc::new(shared) }
    }

    /// Facts of the model.
    pub fn facts(&self) -> &Facts {
        &self.shared.facts
    }

    /// What the engine may use.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Counters and gauges.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// Asks to be let in, before any work is done for a request: one permit for each sequence of it.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if as many are in as there are slots and places in the queue; [`Refusal::ShuttingDown`].
    pub fn admit(&self) -> Result<Permit, Refusal> {
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(Refusal::ShuttingDown);
        }
        let most = self.shared.settings.slots + self.shared.settings.max_queue;
        let enter = |n: usize| (n < most).then_some(n + 1);
        match self.shared.admitted.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter) {
            Ok(_) => Ok(Permit { shared: self.shared.clone() }),
            Err(_) => Err(self.busy()),
        }
    }

    /// Hands a request over. Dropping the answer gives the request up.
    ///
    /// # Errors
    /// If the request cannot be right, or too many prompt tokens wait already.
    pub fn submit(&self, permit: Permit, request: Request) -> Result<Answer, Refusal> {
        self.check(&request)?;
        let tokens = self.wait(request.prompt.len())?;
        let sampler = sampler(&request)?;
        let writer = self.writer(&request)?;
        let (events, answer) = mpsc::channel(self.shared.settings.event_backlog + EVENTS_PER_STEP);
        let since = Instant::now();
        let job = Job { request, events, since, sampler, writer, _tokens: tokens, permit };
        let sent = self.shared.commands.send(Command::Start(Box::new(job)));
        sent.map(|()| Answer { events: answer }).map_err(|_| Refusal::ShuttingDown)
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        let facts = &self.shared.facts;
        let tokens = request.prompt.len();
        // A prompt that is only looked at may fill the context.
        let room = facts.context - usize::from(request.max_tokens > 0);
        if tokens == 0 {
            return Err(Refusal::Empty);
        }
        if tokens > room {
            return Err(Refusal::TooLong { tokens, context: facts.context });
        }
        let outside = |t: &&u32| **t as usize >= facts.vocab;
        if let Some(&token) = request.prompt.iter().find(outside) {
            return Err(Refusal::Vocabulary { token, vocab: facts.vocab });
        }
        let biased = request.sampler.logit_bias.iter().map(|(id, _)| id);
        if let Some(&token) = biased.clone().find(outside) {
            return Err(Refusal::Vocabulary { token, vocab: facts.vocab });
        }
        Ok(())
    }

    /// What makes text of the new tokens, if there is a tokenizer.
    fn writer(&self, request: &Request) -> Result<Option<Writer>, Refusal> {
        let Some(tokenizer) = &self.shared.tokenizer else {
            return if request.stops.is_empty() { Ok(None) } else { Err(Refusal::NoText) };
        };
        let writer = Writer::new(tokenizer, &request.prompt, &request.stops);
        writer.map(Some).map_err(|e| Refusal::Text(e.to_string()))
    }

    /// Counts a prompt as waiting. One that is alone may be as long as it likes.
    fn wait(&self, tokens: usize) -> Result<WaitingTokens, Refusal> {
        let most = self.shared.settings.max_queue_tokens;
        let enter = |n: usize| (n == 0 || n + tokens <= most).then_some(n + tokens);
        match self.shared.waiting_tokens.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter) {
            Ok(_) => Ok(WaitingTokens { shared: self.shared.clone(), tokens }),
            Err(_) => Err(self.busy()),
        }
    }

    /// Says when to come back: after the time that requests have taken lately to get through the queue, up to twice of
    /// it. All that are turned away at one moment would come again at one moment, so each is told another time.
    fn busy(&self) -> Refusal {
        let number = self.shared.metrics.refused.inc();
        let seconds = self.shared.metrics.seconds_to_drain().clamp(1.0, LONGEST_RETRY / 2.0);
        Refusal::Busy { retry_after: Duration::from_secs_f64(seconds * (1.0 + spread(number))) }
    }

    /// The longest cached beginning of `tokens` under `salt`, if there is one.
    pub async fn export(&self, salt: Salt, tokens: Vec<u32>) -> Option<Saved> {
        let (reply, answer) = oneshot::channel();
        self.shared.commands.send(Command::Export { salt, tokens, reply }).ok()?;
        answer.await.ok()?
    }

    /// Puts a saved beginning into the cache; gives its number of tokens.
    ///
    /// # Errors
    /// If it belongs to another model or device, or the cache has no room for it.
    pub async fn import(&self, salt: Salt, saved: Saved) -> Result<usize, SavedError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Import { salt, saved: Box::new(saved), reply };
        self.shared.commands.send(command).map_err(|_| SavedError::ShuttingDown)?;
        answer.await.map_err(|_| SavedError::ShuttingDown)?
    }

    /// Requests between their admission and their end.
    pub fn in_flight(&self) -> usize {
        self.shared.admitted.load(Ordering::Acquire)
    }

    /// Lets nobody in any more. What is in goes on.
    pub fn close(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// Whether [`Handle::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// Breaks off everything that is under way, with [`Failure::ShuttingDown`](super::Failure), and ends the engine.
    pub fn stop(&self) {
        self.close();
        // If it has ended already there is nothing to break off.
        let _ = self.shared.commands.send(Command::Stop);
    }
}

/// A place in `0.0 .. 1.0` for each number, any number of successive ones evenly apart.
fn spread(number: u64) -> f64 {
    // The golden ratio is the one that fractions come least close to.
    (number as f64 * 0.618_033_988_749_894_9).fract()
}

/// A sampler that knows the prompt.
fn sampler(request: &Request) -> Result<Sampler, Refusal> {
    let mut sampler = Sampler::new(request.sampler.clone())?;
    request.prompt.iter().for_each(|token| sampler.accept(*token));
    Ok(sampler)
}

/// An answer as it comes.
pub struct Answer {
    events: mpsc::Receiver<Event>,
}

impl Answer {
    /// The next event; none after the last one, or if the engine died.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// As [`Answer::next`], for those who poll.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }

    /// As [`Answer::next`], for threads that may wait.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}
