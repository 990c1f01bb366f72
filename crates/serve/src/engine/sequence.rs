//! One sequence under way: what it has seen, what it has said, and how it ends.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use zamba::sampler::Sampler;
use zamba::writer::Writer;

use super::handle::{Job, Permit};
use super::likely::{self, Row};
use super::request::{Done, Event, Failure, Finish, Logprob, Request, Token, Usage};
use crate::metrics::{Metrics, Reason};

/// Events that a step may add for one sequence: scores or mean, a token, the end.
pub(crate) const EVENTS_PER_STEP: usize = 3;

/// A sequence in a slot, or parked.
pub(crate) struct Sequence {
    pub(crate) request: Request,
    /// Where its state is, unless it is parked.
    pub(crate) slot: usize,
    /// Prompt and new tokens. The last one may not have been fed yet.
    pub(crate) tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// Tokens that the state in the slot has seen.
    pub(crate) fed: usize,
    /// Tokens that the state had seen when it was parked last; 0 if it never was.
    seen: usize,
    /// Places in the prompt at which the state is to be kept, in order.
    pub(crate) cuts: Vec<usize>,
    /// Logits that follow what was fed, where the cache knew them.
    pub(crate) known_logits: Option<Vec<f32>>,
    /// Logits that follow the prompt, until its state is kept with them.
    pub(crate) prompt_logits: Option<Vec<f32>>,
    cached: usize,
    limit: usize,
    sampler: Sampler,
    writer: Option<Writer>,
    scores: Vec<Option<Logprob>>,
    /// Sum of the hidden states of the prompt.
    pool: Vec<f64>,
    events: mpsc::Sender<Event>,
    /// Events that have not been handed out.
    said: Vec<Event>,
    /// Since when nobody reads.
    blocked: Option<Instant>,
    /// Room for events when a parked sequence was last looked at.
    room: usize,
    arrived: Instant,
    begun: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Held until the sequence ends.
    _permit: Permit,
}

/// Where a sequence stands after a step.
pub(crate) enum Outcome {
    /// There is more to do.
    Goes,
    /// It has ended.
    Ends(Result<Finish, Failure>),
}

impl Sequence {
    /// Begins a request in `slot`, whose state has seen `cached` tokens of it.
    pub(crate) fn begin(job: Job, slot: usize, cached: usize, context: usize, now: Instant) -> Self {
        let Job { mut request, events, since, sampler, writer, permit, .. } = job;
        let tokens = std::mem::take(&mut request.prompt);
        let prompt = tokens.len();
        let scores = if request.score.is_some() { vec![None] } else { vec![] };
        Sequence {
            limit: request.max_tokens.min(context - prompt),
            slot,
            prompt,
            fed: cached,
            seen: 0,
            cuts: vec![],
            known_logits: None,
            prompt_logits: None,
            cached,
            sampler,
            writer,
            scores,
            pool: vec![],
            events,
            said: vec![],
            blocked: None,
            room: 0,
            arrived: since,
            begun: now,
            first: None,
            last: None,
            _permit: permit,
            tokens,
            request,
        }
    }

    /// Whether the prompt has not been seen whole.
    pub(crate) fn is_prefilling(&self) -> bool {
        self.fed < self.prompt
    }

    /// Whether there is more to feed than the token that was chosen last: of the prompt, or after having been parked.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_prefilling() || self.fed + 1 < self.tokens.len()
    }

    /// How many of the tokens `from .. to` belong to the prompt and have not been fed before.
    pub(crate) fn new_of_prompt(&self, from: usize, to: usize) -> usize {
        to.min(self.prompt).saturating_sub(from.max(self.seen))
    }

    /// Whether states of this sequence can be found in the cache and kept in it.
    pub(crate) fn uses_cache(&self) -> bool {
        uses_cache(&self.request)
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether there is room for what a step may add. Notes since when there is none.
    pub(crate) fn is_read(&mut self, now: Instant) -> bool {
        let room = self.events.capacity() >= EVENTS_PER_STEP;
        self.blocked = if room { None } else { self.blocked.or(Some(now)) };
        room
    }

    /// Since when nobody has read, if for so long that others come first. Whoever was parked before is known to be
    /// slow, and gets no time for it again.
    pub(crate) fn unread_since(&mut self, now: Instant, park_after: Duration) -> Option<Instant> {
        let patience = if self.seen > 0 { Duration::ZERO } else { park_after };
        if self.is_read(now) {
            return None;
        }
        self.blocked.filter(|since| now - *since >= patience)
    }

    /// Leaves the slot, whose state was kept.
    pub(crate) fn park(&mut self) {
        self.seen = self.seen.max(self.fed);
        self.room = self.events.capacity();
    }

    /// Looks at the reader of a parked sequence. Any event that was read shows that there still is one.
    pub(crate) fn look(&mut self, now: Instant) {
        let room = self.events.capacity();
        if room > self.room {
            self.blocked = Some(now);
        }
        if self.is_worth_a_slot() {
            self.blocked = None;
        }
        self.room = room;
    }

    /// Whether the reader of a parked sequence has come so far that half of the backlog can be filled before it
    /// has to be parked again: for a token at a time it would move in and out with all of its state.
    pub(crate) fn is_worth_a_slot(&self) -> bool {
        self.events.capacity() >= EVENTS_PER_STEP.max(self.events.max_capacity() / 2)
    }

    /// Goes on in `slot`, whose state has seen `found` tokens. `logits` follow them. Gives the number of tokens that
    /// have to be fed again.
    pub(crate) fn resume(&mut self, slot: usize, found: usize, logits: Option<Vec<f32>>) -> usize {
        self.slot = slot;
        self.fed = found;
        self.known_logits = logits.filter(|_| found == self.tokens.len());
        self.seen.saturating_sub(found)
    }

    /// Why the sequence has to end, if time is up.
    pub(crate) fn overdue(&self, now: Instant, stall: Duration, whole: Duration) -> Option<Failure> {
        if self.blocked.is_some_and(|since| now - since > stall) {
            return Some(Failure::Stalled);
        }
        (now - self.arrived > whole).then_some(Failure::RequestTimeout)
    }

    /// The place up to which the state may go before it is kept, or the prompt or all tokens end.
    pub(crate) fn next_cut(&self, interval: usize) -> usize {
        let at = (self.fed + 1).next_multiple_of(interval.max(1));
        let end = if self.is_prefilling() { self.prompt } else { self.tokens.len() };
        let cut = self.cuts.iter().copied().find(|cut| *cut > self.fed).unwrap_or(end);
        cut.min(at).min(end)
    }

    /// Takes scores of the tokens that follow those just fed.
    pub(crate) fn score(&mut self, scores: Vec<Logprob>) {
        self.scores.extend(scores.into_iter().map(Some));
    }

    /// Takes hidden states `[_, d]` of tokens of the prompt.
    pub(crate) fn pool(&mut self, hidden: &[f32], d: usize) {
        self.pool.resize(d, 0.0);
        for row in hidden.chunks_exact(d) {
            self.pool.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }

    /// Goes on from the logits that follow all tokens. What there is to say waits for [`Sequence::hand_out`].
    pub(crate) fn advance(&mut self, logits: &mut [f32], metrics: &Metrics) -> Outcome {
        let now = Instant::now();
        if self.first.is_none() {
            self.begin_answer();
        }
        if self.limit == 0 {
            return Outcome::Ends(Ok(Finish::Length));
        }
        match self.choose(logits) {
            Err(failure) => Outcome::Ends(Err(failure)),
            Ok((token, finish)) => {
                self.time(now, metrics);
                self.said.push(Event::Token(token));
                finish.map_or(Outcome::Goes, |finish| Outcome::Ends(Ok(finish)))
            }
        }
    }

    fn begin_answer(&mut self) {
        if self.request.score.is_some() {
            let scores = std::mem::take(&mut self.scores);
            self.said.push(Event::Prompt(scores));
        }
        if self.request.pool {
            let n = self.prompt as f64;
            let mean = self.pool.iter().map(|sum| (sum / n) as f32).collect();
            self.said.push(Event::Pooled(mean));
        }
    }

    fn time(&mut self, now: Instant, metrics: &Metrics) {
        match self.last.replace(now) {
            Some(last) => metrics.inter_token.observe((now - last).as_secs_f64()),
            None => {
                self.first = Some(now);
                metrics.time_to_first_token.observe((now - self.arrived).as_secs_f64());
                metrics.prefill_time.observe((now - self.begun).as_secs_f64());
            }
        }
        metrics.generation_tokens.inc();
    }

    /// Chooses the next token and says how the sequence ends by it, if it does.
    fn choose(&mut self, logits: &mut [f32]) -> Result<(Token, Option<Finish>), Failure> {
        let raw = self.request.logprobs.map(|_| logits.to_vec());
        if let Some(constraint) = &mut self.request.constraint {
            constraint.mask(logits).map_err(Failure::Constraint)?;
        }
        let id = self.sampler.sample(logits).map_err(|e| Failure::Sampling(e.to_string()))?;
        self.sampler.accept(id);
        self.tokens.push(id);
        let logprob = raw.zip(self.request.logprobs).map(|(raw, top)| Row::new(&raw).logprob(id, top));
        if self.request.ends.contains(&id) {
            return Ok((Token { id, text: String::new(), logprob }, Some(Finish::End)));
        }
        let mut complete = false;
        if let Some(constraint) = &mut self.request.constraint {
            constraint.accept(id).map_err(Failure::Constraint)?;
            complete = constraint.finished();
        }
        let (text, stopped) = match &mut self.writer {
            Some(writer) => writer.push(id).map_err(|e| Failure::Internal(e.to_string()))?,
            None => (String::new(), false),
        };
        let finish = match () {
            () if stopped => {
                let by = self.writer.as_ref().and_then(Writer::stopped_by).unwrap_or_default();
                Some(Finish::Stop(by.to_owned()))
            }
            () if complete => Some(Finish::End),
            () if self.tokens.len() - self.prompt == self.limit => Some(Finish::Length),
            () => None,
        };
        Ok((Token { id, text, logprob }, finish))
    }

    /// Ends the answer, or with no result gives it up. The slot is free after it.
    pub(crate) fn leave(self, result: Option<Result<Finish, Failure>>, metrics: &Metrics) {
        match result {
            Some(result) => self.end(result, metrics),
            None => self.abandon(metrics),
        }
    }

    /// Ends the answer. The slot is free after it.
    pub(crate) fn end(mut self, result: Result<Finish, Failure>, metrics: &Metrics) {
        let now = Instant::now();
        let usage = self.usage();
        let rest = match &mut self.writer {
            Some(writer) if result.is_ok() => writer.finish().map_err(|e| Failure::Internal(e.to_string())),
            _ => Ok(String::new()),
        };
        let event = match result.and_then(|finish| Ok((finish, rest?))) {
            Ok((finish, text)) => Event::Done(Done { finish, text, usage }),
            Err(failure) => Event::Failed(failure),
        };
        metrics.finished.get_or_create(&Reason::of(&event)).inc();
        metrics.latency.observe((now - self.arrived).as_secs_f64());
        metrics.generation_length.observe(usage.completion_tokens as f64);
        if self.first.is_some() {
            metrics.decode_time.observe(usage.decode.as_secs_f64());
        }
        self.said.push(event);
        self.hand_out();
    }

    /// Notes that nobody waited for the end.
    pub(crate) fn abandon(self, metrics: &Metrics) {
        metrics.finished.get_or_create(&Reason::ABORT).inc();
    }

    fn usage(&self) -> Usage {
        let first = self.first.unwrap_or(self.begun);
        Usage {
            prompt_tokens: self.prompt,
            cached_tokens: self.cached,
            completion_tokens: self.tokens.len() - self.prompt,
            queued: self.begun - self.arrived,
            prefill: first - self.begun,
            decode: self.last.unwrap_or(first) - first,
        }
    }

    /// Hands out what was said. There is room, see [`Sequence::is_read`]; and whoever has gone is noticed before the
    /// next step.
    pub(crate) fn hand_out(&mut self) {
        for event in self.said.drain(..) {
            let _ = self.events.try_send(event);
        }
    }
}

/// Whether states can be found in the cache and kept in it: not where every token of the prompt is looked at.
pub(crate) fn uses_cache(request: &Request) -> bool {
    request.score.is_none() && !request.pool
}

/// Scores of rows of logits `[_, v]`: how likely each target was, given its negative log-likelihood.
pub(crate) fn scores(logits: &[f32], targets: &[u32], nll: &[f32], top: usize) -> Vec<Logprob> {
    let v = logits.len() / targets.len().max(1);
    let each = targets.iter().zip(nll).enumerate();
    each.map(|(i, (&token, nll))| likely::scored(&logits[i * v..][..v], token, -nll, top)).collect()
}
