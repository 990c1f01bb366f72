//! Free slots. Each still holds the sequence that was in it last, so its next turn needs no copy of its state.

use std::collections::VecDeque;

use super::request::Salt;
use super::sequence::Sequence;

/// Slots that are free, the one that was used longest ago first.
pub(crate) struct FreeSlots(VecDeque<Free>);

struct Free {
    slot: usize,
    /// Whose state is still there, and after which tokens.
    left: Option<(Salt, Vec<u32>)>,
}

impl FreeSlots {
    /// So many slots that hold nothing.
    pub(crate) fn new(slots: usize) -> Self {
        FreeSlots((0..slots).map(|slot| Free { slot, left: None }).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the slot that still holds the longest proper beginning of `tokens`, and gives the length of that, if it is
    /// at least `least`; else the slot that was used longest ago, and 0.
    pub(crate) fn take(&mut self, salt: &Salt, tokens: &[u32], least: usize) -> Option<(usize, usize)> {
        let held = |free: &Free| match &free.left {
            Some((owner, left)) if owner == salt && left.len() < tokens.len() && tokens.starts_with(left) => {
                left.len()
            }
            _ => 0,
        };
        let (at, len) =
            self.0.iter().map(held).enumerate().max_by_key(|(at, len)| (*len, usize::MAX - at))?;
        let (at, len) = if len >= least.max(1) { (at, len) } else { (0, 0) };
        self.0.remove(at).map(|free| (free.slot, len))
    }

    /// Gives back the slot of a sequence. What it saw stays there if it may be shared at all.
    pub(crate) fn put(&mut self, sequence: &Sequence) {
        let keeps = sequence.uses_cache() && sequence.fed > 0;
        let left = keeps.then(|| (sequence.request.salt.clone(), sequence.tokens[..sequence.fed].to_vec()));
        self.0.push_back(Free { slot: sequence.slot, left });
    }
}
