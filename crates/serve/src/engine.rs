//! The engine: one thread owns the model, its state and its slots, and takes steps over all that is under way.
//!
//! A step admits requests to free slots, takes the next token of every sequence that generates and pieces of the
//! prompts that do not through the model in one packed batch, chooses tokens and hands them out. What a sequence
//! gets depends on itself alone: kernels add up in an order that knows no neighbours (see `docs/NUMERICS.md`), and
//! every sequence has its own sampler. So answers are the same bits alone or among others, in whatever pieces the
//! prompt went, from a cached beginning or from none, and with or without a time in which nobody read it.

mod cache;
mod forward;
mod free;
mod handle;
mod likely;
mod park;
mod queue;
mod request;
mod saved;
mod sequence;
#[cfg(test)]
mod tests;

pub use handle::{Answer, Costs, Facts, Handle, Permit, Settings};
pub use request::{Constrain, Done, Event, Failure, Finish, Logprob, Refusal, Request, Salt, Token, Usage};
pub use saved::{Saved, SavedError};

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use zamba::tokenizer::Tokenizer;
use zamba::{State, Workspace, Zamba};

use self::cache::{Cache, Found, common};
use self::forward::{Looked, Work};
use self::free::FreeSlots;
use self::handle::{Command, Job};
use self::queue::Queue;
use self::sequence::{Outcome, Sequence, uses_cache};
use crate::metrics::{Metrics, Reason};

/// How long the engine sleeps at most while there is nothing to compute, to look after its deadlines.
const IDLE: Duration = Duration::from_millis(250);

/// How long it sleeps while all that is under way waits for its readers.
const UNREAD: Duration = Duration::from_millis(2);

/// Tokens that waiting for another sequence's prompt must save, at least.
const WORTH_WAITING: usize = 32;

/// The engine itself, which lives on one thread. Others speak to it through its [`Handle`].
pub struct Engine {
    model: Zamba,
    workspace: Workspace,
    state: State,
    settings: Settings,
    commands: Receiver<Command>,
    queue: Queue,
    active: Vec<Sequence>,
    /// Sequences without a slot that nobody read, the one that waits for longest first.
    parked: Vec<Sequence>,
    free: FreeSlots,
    cache: Cache,
    metrics: Arc<Metrics>,
    /// Logits on the host, kept between steps.
    host: Vec<f32>,
    evictions_counted: u64,
}

impl Engine {
    /// An engine for `model` that has not begun, and its handle. `tokenizer` makes text of new tokens.
    ///
    /// # Panics
    /// If there are no slots, no context, or a step has not room for one token of every slot.
    pub fn new(model: Zamba, tokenizer: Option<Tokenizer>, settings: Settings) -> (Engine, Handle) {
        let Settings { slots, context, batch_tokens, .. } = settings;
        assert!(slots > 0 && context > 1, "{slots} slots of {context} tokens");
        assert!(batch_tokens > slots, "{batch_tokens} tokens in a step of {slots} slots");
        let (sender, commands) = channel();
        let facts = Facts { vocab: model.config.vocab_size, width: model.config.hidden_size, context, slots };
        let metrics = Arc::new(Metrics::default());
        let handle = Handle::new(sender, settings.clone(), facts, metrics.clone(), tokenizer);
        let engine = Engine {
            workspace: Workspace::new(model.device().clone()),
            state: State::new(&model, slots, context),
            commands,
            queue: Queue::default(),
            active: vec![],
            parked: vec![],
            free: FreeSlots::new(slots),
            cache: Cache::new(settings.cache_bytes),
            metrics,
            host: vec![],
            evictions_counted: 0,
            model,
            settings,
        };
        (engine, handle)
    }

    /// Makes an engine and runs it on a thread of its own until [`Handle::stop`].
    ///
    /// # Errors
    /// If the system has no thread left.
    ///
    /// # Panics
    /// As [`Engine::new`].
    pub fn start(
        model: Zamba,
        tokenizer: Option<Tokenizer>,
        settings: Settings,
    ) -> std::io::Result<(Handle, JoinHandle<()>)> {
        // The workspace belongs to the thread, so the engine is made there.
        let (give, take) = channel();
        let body = move || {
            let (engine, handle) = Engine::new(model, tokenizer, settings);
            if give.send(handle).is_ok() {
                engine.run();
            }
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(body)?;
        match take.recv() {
            Ok(handle) => Ok((handle, thread)),
            Err(_) => Err(std::io::Error::other("the engine could not be made")),
        }
    }

    /// Takes steps until it is told to stop, or nobody is left who could ask anything.
    pub fn run(mut self) {
        let mut wait = IDLE;
        while self.listen(wait) {
            wait = match self.step() {
                true => Duration::ZERO,
                false if self.active.is_empty() && self.parked.is_empty() => IDLE,
                false => UNREAD,
            };
        }
        self.break_off(&Failure::ShuttingDown);
    }

    /// Takes commands, waiting for the first one for as long as `wait`. False when it is time to end.
    pub(crate) fn listen(&mut self, wait: Duration) -> bool {
        let first = match wait.is_zero() {
            true => self.commands.try_recv().map_err(|e| e == std::sync::mpsc::TryRecvError::Disconnected),
            false => self.commands.recv_timeout(wait).map_err(|e| e == RecvTimeoutError::Disconnected),
        };
        let mut next = match first {
            Ok(command) => Some(command),
            Err(gone) => return !gone,
        };
        while let Some(command) = next {
            match command {
                Command::Stop => return false,
                Command::Start(job) => self.queue.push(*job),
                // Whoever asked may have gone.
                Command::Export { salt, tokens, reply } => {
                    let _ = reply.send(saved::export(&self.cache, &self.state, &self.model, &salt, &tokens));
                }
                Command::Import { salt, saved, reply } => {
                    let _ =
                        reply.send(saved::import(&mut self.cache, &self.state, &self.model, &salt, &saved));
                }
            }
            next = self.commands.try_recv().ok();
        }
        true
    }

    /// One step. False if there was nothing to do.
    pub fn step(&mut self) -> bool {
        let now = Instant::now();
        self.sweep(now);
        self.sweep_parked(now);
        self.park(now);
        self.resume_parked();
        self.admit(now);
        self.count();
        let answered = self.answer_known();
        let work = self.plan(now);
        if work.is_empty() {
            return answered;
        }
        let started = Instant::now();
        let looked = catch_unwind(AssertUnwindSafe(|| self.forward(&work)));
        self.metrics.busy_seconds.inc_by(started.elapsed().as_secs_f64());
        self.metrics.steps.inc();
        match looked {
            Ok(looked) => self.advance(&work, looked),
            Err(panic) => self.begin_anew(&words(panic.as_ref())),
        }
        true
    }

    /// Ends what nobody waits for any more, and what has run out of time.
    fn sweep(&mut self, now: Instant) {
        let Settings { queue_timeout, request_timeout, stall_timeout, .. } = self.settings;
        for job in self.queue.take(|job| job.events.is_closed() || now - job.since > queue_timeout) {
            refuse(job, Failure::QueueTimeout, &self.metrics);
        }
        let mut at = 0;
        while let Some(sequence) = self.active.get(at) {
            let failure = sequence.overdue(now, stall_timeout, request_timeout);
            if sequence.is_abandoned() || failure.is_some() {
                self.end(at, failure.map(Err));
            } else {
                at += 1;
            }
        }
    }

    /// Gives free slots to requests that wait, from the longest beginning that is cached.
    fn admit(&mut self, now: Instant) {
        while !self.free.is_empty() {
            let Engine { queue, cache, active, .. } = self;
            let mut found = Found::default();
            let job = queue.pop(|job| {
                found = Found::default();
                if uses_cache(&job.request) && cache.is_on() {
                    found = cache.find(&job.request.salt, &job.request.prompt);
                    return !waits_for_another(job, &found, active);
                }
                true
            });
            let Some(job) = job else { return };
            self.begin(job, &found, now);
        }
    }

    fn begin(&mut self, job: Job, found: &Found, now: Instant) {
        let (slot, cached, logits) = self.take_slot(&job.request, &job.request.prompt, found);
        self.metrics.waited(now - job.since);
        self.metrics.prompt_tokens.inc_by(job.request.prompt.len() as u64);
        self.metrics.prompt_length.observe(job.request.prompt.len() as f64);
        let mut sequence = Sequence::begin(job, slot, cached, self.state.context(), now);
        sequence.known_logits = logits.filter(|_| cached == sequence.prompt);
        if sequence.uses_cache() && self.cache.is_on() {
            self.metrics.cache_queries.inc_by(sequence.prompt as u64);
            self.metrics.cache_hits.inc_by(cached as u64);
            let known = found.known.clamp(cached, sequence.prompt);
            self.metrics.cache_recomputed.inc_by((known - cached) as u64);
            // Two sequences part here, so a third may too.
            if known > cached && known < sequence.prompt {
                sequence.cuts.push(known);
            }
        }
        self.active.push(sequence);
    }

    /// A free slot whose state has seen a beginning of `tokens`, how many, and the logits that follow them if they are
    /// known. A slot that still holds as much as was found is gone on in, which saves copying keys and values.
    ///
    /// # Panics
    /// If no slot is free.
    fn take_slot(
        &mut self,
        request: &Request,
        tokens: &[u32],
        found: &Found,
    ) -> (usize, usize, Option<Vec<f32>>) {
        let shares = uses_cache(request) && self.cache.is_on();
        let known = if shares { tokens } else { &[] };
        let (slot, held) = self.free.take(&request.salt, known, found.len).expect("a slot is free");
        if held > 0 {
            return (slot, held, None);
        }
        self.state.reset(slot);
        (slot, found.len, self.cache.restore(found, &mut self.state, slot))
    }

    /// Goes on with sequences whose whole prompt was cached with the logits that follow. Whether there were any.
    fn answer_known(&mut self) -> bool {
        let known = |at: usize, s: &mut Sequence| s.known_logits.take().map(|logits| (at, logits));
        let known: Vec<_> = self.active.iter_mut().enumerate().filter_map(|(at, s)| known(at, s)).collect();
        let outcomes: Vec<_> =
            known.into_iter().map(|(at, mut logits)| (at, self.follow(at, &mut logits))).collect();
        let any = !outcomes.is_empty();
        self.hand_out();
        for (at, outcome) in outcomes.into_iter().rev() {
            if let Outcome::Ends(result) = outcome {
                self.end(at, Some(result));
            }
        }
        any
    }

    /// The next tokens of every sequence: one of those that generate, and as many of prompts, and of
    /// what parked sequences have to see again, as there is room.
    fn plan(&mut self, now: Instant) -> Vec<Work> {
        let interval = self.settings.cache_interval;
        let mut work = vec![];
        let mut prompts = vec![];
        for (at, sequence) in self.active.iter_mut().enumerate() {
            if !sequence.is_read(now) {
                continue;
            }
            if sequence.is_behind() {
                prompts.push((sequence.next_cut(interval) - sequence.fed, at));
            } else if sequence.fed < sequence.tokens.len() {
                work.push(Work { at, from: sequence.fed, to: sequence.fed + 1 });
            }
        }
        let room = self.settings.batch_tokens - work.len();
        let mut room = if work.is_empty() { room } else { room.min(self.settings.mixed_tokens.max(1)) };
        // Equal shares; the shortest come first, so that what they do not need is left for the others.
        prompts.sort_by_key(|(tokens, _)| *tokens);
        for (i, (tokens, at)) in prompts.iter().enumerate() {
            let share = (room.div_ceil(prompts.len() - i)).min(*tokens);
            if share > 0 {
                let from = self.active[*at].fed;
                work.push(Work { at: *at, from, to: from + share });
                room -= share;
            }
        }
        work.sort_by_key(|w| w.at);
        work
    }

    /// Moves sequences on by what a step has computed. Tokens go out first: keeping a state takes time that somebody
    /// waits for. Ends those that are done, last first, because ending one moves those behind it.
    fn advance(&mut self, work: &[Work], mut looked: Looked) {
        let outcomes: Vec<_> = work.iter().map(|w| self.take(*w, &mut looked)).collect();
        self.hand_out();
        for (w, outcome) in work.iter().zip(outcomes).rev() {
            match outcome {
                Outcome::Goes => self.keep_if_due(w.at),
                Outcome::Ends(result) => self.end(w.at, Some(result)),
            }
        }
    }

    /// Takes what a step has found out about one sequence.
    fn take(&mut self, w: Work, looked: &mut Looked) -> Outcome {
        let sequence = &mut self.active[w.at];
        sequence.fed = w.to;
        if let Some(hidden) = looked.hidden.remove(&w.at) {
            sequence.pool(&hidden, self.model.config.hidden_size);
        }
        if let Some(scores) = looked.scores.remove(&w.at) {
            sequence.score(scores);
        }
        let Some(mut logits) = looked.last.remove(&w.at) else { return Outcome::Goes };
        sequence.prompt_logits = (w.to == sequence.prompt).then(|| logits.clone());
        self.follow(w.at, &mut logits)
    }

    /// Goes on from logits. A fault in this sequence's own part of the work ends this sequence alone.
    fn follow(&mut self, at: usize, logits: &mut [f32]) -> Outcome {
        let Engine { active, metrics, .. } = self;
        let advance = AssertUnwindSafe(|| active[at].advance(logits, metrics));
        catch_unwind(advance)
            .unwrap_or_else(|panic| Outcome::Ends(Err(Failure::Internal(words(panic.as_ref())))))
    }

    /// Hands out what a step has to say, all at once: a reader that sleeps is woken once for it, and not between the
    /// tokens of one sequence and the next.
    fn hand_out(&mut self) {
        self.active.iter_mut().for_each(Sequence::hand_out);
    }

    /// Keeps the state where others may begin: at the end of the prompt, where sequences part, and at intervals.
    fn keep_if_due(&mut self, at: usize) {
        let sequence = &self.active[at];
        let fed = sequence.fed;
        let due = fed == sequence.prompt
            || sequence.cuts.contains(&fed)
            || fed.is_multiple_of(self.settings.cache_interval.max(1));
        if due {
            self.keep(at);
        }
    }

    fn keep(&mut self, at: usize) {
        let logits = self.active[at].prompt_logits.take();
        let sequence = &self.active[at];
        let logits = logits.as_deref().filter(|_| sequence.fed == sequence.prompt);
        let (salt, tokens) = (&sequence.request.salt, &sequence.tokens[..sequence.fed]);
        if self.cache.is_on() && sequence.uses_cache() && !self.cache.has(salt, tokens, logits.is_some()) {
            self.cache.keep(salt, tokens, &self.state, sequence.slot, logits);
        }
    }

    /// Ends a sequence with its last event, or with none if nobody waits for it. Its slot is free.
    fn end(&mut self, at: usize, result: Option<Result<Finish, Failure>>) {
        // What was said is the beginning of the next turn.
        if !self.active[at].is_prefilling() && !matches!(result, Some(Err(Failure::Internal(_)))) {
            self.keep(at);
        }
        let sequence = self.active.remove(at);
        self.free.put(&sequence);
        sequence.leave(result, &self.metrics);
    }

    /// After a fault in the model's part of a step nothing in the slots can be trusted: all that is under way fails,
    /// and the next step begins with new memory. What is parked is in no slot, and goes on later.
    fn begin_anew(&mut self, words: &str) {
        while let Some(sequence) = self.active.pop() {
            sequence.end(Err(Failure::Internal(words.to_owned())), &self.metrics);
        }
        self.workspace = Workspace::new(self.model.device().clone());
        self.state = State::new(&self.model, self.settings.slots, self.settings.context);
        self.free = FreeSlots::new(self.settings.slots);
    }

    /// Ends everything.
    fn break_off(&mut self, failure: &Failure) {
        while let Some(sequence) = self.active.pop().or_else(|| self.parked.pop()) {
            sequence.end(Err(failure.clone()), &self.metrics);
        }
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Start(job) = command {
                self.queue.push(*job);
            }
        }
        for job in self.queue.take(|_| true) {
            refuse(job, failure.clone(), &self.metrics);
        }
        self.count();
    }

    fn count(&mut self) {
        let m = &self.metrics;
        m.running.set(self.active.len() as i64);
        m.waiting.set(self.queue.len() as i64);
        m.parked.set(self.parked.len() as i64);
        let used: usize = self.active.iter().map(|s| s.fed).sum();
        m.kv_usage.set(used as f64 / (self.settings.slots * self.settings.context) as f64);
        m.cache_bytes.set(self.cache.bytes() as i64);
        m.cache_states.set(self.cache.states() as i64);
        m.cache_evictions.inc_by(self.cache.evictions() - self.evictions_counted);
        self.evictions_counted = self.cache.evictions();
    }
}

/// Whether a request should wait because another one is computing what it begins with. The other one then keeps its
/// state where the two part.
fn waits_for_another(job: &Job, found: &Found, active: &mut [Sequence]) -> bool {
    let prompt = &job.request.prompt;
    for other in active.iter_mut().filter(|s| s.is_prefilling() && s.uses_cache()) {
        if other.request.salt != job.request.salt {
            continue;
        }
        let alike = common(prompt, &other.tokens[..other.prompt]);
        if alike < other.fed + 1 || alike < found.len + WORTH_WAITING {
            continue;
        }
        if alike < other.prompt && !other.cuts.contains(&alike) {
            other.cuts.push(alike);
            other.cuts.sort_unstable();
        }
        return true;
    }
    false
}

/// Ends a request that never had a slot.
fn refuse(job: Job, failure: Failure, metrics: &Metrics) {
    let event = Event::Failed(failure);
    let reason = Reason::of(&event);
    // The channel of a request that has not begun is empty, so only its reader can be missing.
    let reason = match job.events.try_send(event) {
        Err(TrySendError::Closed(_)) => Reason::ABORT,
        _ => reason,
    };
    metrics.finished.get_or_create(&reason).inc();
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown fault".to_owned())
}
