//! Sequences whose answers are not read give their slots to those that wait.
//!
//! A sequence that has no room for more events pauses, and would hold its slot for as long as its reader likes. When
//! others wait its state goes to the cache, and it goes on from there in the next free slot once it is read again. If
//! its state had to make room meanwhile, it is computed again, with the same bits.

use std::time::Instant;

use super::handle::Settings;
use super::{Engine, Sequence};

impl Engine {
    /// Parks sequences that nobody reads, the one that was read longest ago first, as many as others wait for slots.
    pub(super) fn park(&mut self, now: Instant) {
        if !self.free.is_empty() || !self.cache.is_on() {
            return;
        }
        let waiting = self.queue.len() + self.parked.iter().filter(|s| s.is_worth_a_slot()).count();
        for _ in 0..waiting {
            let park_after = self.settings.park_after;
            let unread = self.active.iter_mut().enumerate().filter(|(_, s)| s.uses_cache());
            let unread = unread.filter_map(|(at, s)| Some((s.unread_since(now, park_after)?, at)));
            let Some((_, at)) = unread.min() else { return };
            self.keep(at);
            let mut sequence = self.active.remove(at);
            self.free.put(&sequence);
            sequence.park();
            self.parked.push(sequence);
            self.metrics.parkings.inc();
        }
    }

    /// Gives free slots to parked sequences that are read again.
    pub(super) fn resume_parked(&mut self) {
        while !self.free.is_empty() {
            let Some(at) = self.parked.iter().position(Sequence::is_worth_a_slot) else { return };
            let mut sequence = self.parked.remove(at);
            // The last token has not been fed, so a state after all others is a proper beginning.
            let found = self.cache.find(&sequence.request.salt, &sequence.tokens);
            let (slot, seen, logits) = self.take_slot(&sequence.request, &sequence.tokens, &found);
            let again = sequence.resume(slot, seen, logits);
            self.metrics.refed_tokens.inc_by(again as u64);
            self.active.push(sequence);
        }
    }

    /// Ends parked sequences that nobody waits for any more, and those that have run out of time.
    pub(super) fn sweep_parked(&mut self, now: Instant) {
        let Settings { request_timeout, stall_timeout, .. } = self.settings;
        let mut at = 0;
        while let Some(sequence) = self.parked.get_mut(at) {
            sequence.look(now);
            let failure = sequence.overdue(now, stall_timeout, request_timeout);
            if sequence.is_abandoned() || failure.is_some() {
                self.parked.remove(at).leave(failure.map(Err), &self.metrics);
            } else {
                at += 1;
            }
        }
    }
}
