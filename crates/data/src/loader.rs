//! Samples prepared ahead of their use by a background thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::error::{Error, Result};
use crate::mix::Mixture;
use crate::sample::Sample;

/// An iterator over consecutive samples of a phase, in order. One thread reads at most `depth` samples ahead; it is
/// stopped and joined when the loader is dropped.
pub struct Loader {
    samples: Option<Receiver<Result<Sample>>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Samples `start..end` of `phase`, without end if `end` is `None`.
    ///
    /// # Errors
    /// If the phase does not exist or the thread cannot be started.
    pub fn new(
        mixture: Arc<Mixture>,
        phase: usize,
        start: u64,
        end: Option<u64>,
        depth: usize,
    ) -> Result<Loader> {
        if phase >= mixture.phases() {
            let phases = mixture.phases();
            return Err(Error::Mixture(format!("phase {phase} does not exist; there are {phases}")));
        }
        let (sender, samples) = sync_channel(depth);
        let read = move || {
            for i in start..end.unwrap_or(u64::MAX) {
                let sample = mixture.sample(phase, i);
                let failed = sample.is_err();
                // Sending fails when the loader has been dropped; after an error there is nothing to go on with.
                if sender.send(sample).is_err() || failed {
                    break;
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("zamba-loader".into()).spawn(read).map_err(Error::Thread)?;
        Ok(Loader { samples: Some(samples), thread: Some(thread) })
    }
}

impl Iterator for Loader {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Self::Item> {
        self.samples.as_ref()?.recv().ok()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Closing the channel first wakes a thread that waits to send.
        self.samples = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been printed by its hook and must not become a second one here.
            let _ = thread.join();
        }
    }
}
