//! Running a step of the data pipeline over the chunks of a plan.
//!
//! A step is a function from the documents of a chunk to the outputs of that chunk. It is written against [`ChunkRun`]:
//!
//! ```
//! # use std::{path::Path, sync::Arc};
//! # use zamba_data::fs::{FaultFs, Fs};
//! # use zamba_data::job::{ChunkRun, Job, Quiet};
//! # use zamba_data::plan::{Input, Plan, ReadOptions};
//! # let fs: Arc<dyn Fs> = Arc::new(FaultFs::new());
//! # fs.write(Path::new("/in.jsonl"), b"{\"text\":\"a short one\"}\n{\"text\":\"a text of more words\"}\n").unwrap();
//! let plan = Plan::new(fs.as_ref(), &[Input::new("/in.jsonl")], &ReadOptions::default())?;
//! // All that decides the output, apart from plan and format: it tells one job from another.
//! let config = serde_json::json!({ "min_words": 4 });
//! let job = Job::new("long-texts", config, Path::new("/out"));
//! let done = job.run(&fs, &plan, &Quiet, &|chunk: &mut ChunkRun<'_>| {
//!     while let Some(document) = chunk.next()? {
//!         if document.text.split_whitespace().count() >= 4 {
//!             chunk.keep(&document)?; // into OUT/part-00000.jsonl.zst
//!         } else {
//!             chunk.count("too_few_words", 1); // into the manifest
//!             chunk.put("rejected", &document)?; // into OUT/rejected/part-00000.jsonl.zst
//!         }
//!     }
//!     Ok(())
//! })?;
//! assert_eq!(done.manifest.unwrap().counts["too_few_words"], 1);
//! # Ok::<(), zamba_data::Error>(())
//! ```
//!
//! The function must depend on the chunk and the config alone, not on other chunks, threads or time: then the union of what any
//! shards do, in any number of attempts, is the same bit for bit. What a step needs from all documents at once (such as the
//! duplicates among them) is a job of its own before, whose outputs ([`ChunkRun::file`] for other than documents) are put
//! together in between.
//!
//! What a job promises:
//! - A chunk is finished when its marker `OUT/.zamba/part-N.json` exists, which is written after its outputs are durable. A job
//!   that was killed goes on with the chunks that have none; those are written again from the start, under temporary names.
//! - `OUT/.zamba/job.json` says what the job is: step, config, options of reading, size and version of every input. If any of it
//!   is different the next time, the job is refused by name, unless [`Job::force`] starts it over.
//! - `OUT/manifest.json` is written by whoever finishes the last chunk. A folder with a manifest can be the input of the next
//!   plan; one that has not finished is refused.
//! - Bad input is counted and put into `OUT/quarantine/part-N.jsonl`; past [`Job::max_bad`] the job stops.
//! - Each of rayon's threads works on one chunk, in order of the plan, so memory is bounded by threads times
//!   [`Job::chunk_memory`]; under [`Job::memory`] fewer threads work.

mod chunk;
mod limits;
mod manifest;
mod state;
#[cfg(test)]
pub(crate) mod tests;

pub use chunk::ChunkRun;
pub use limits::{MaxBad, Shard};
pub use manifest::{InputInfo, Manifest};

pub(crate) use manifest::outputs;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::plan::Plan;
use crate::write::Format;
use limits::Tally;
use state::{Done, State};

/// A step over a plan, and where it goes.
#[derive(Debug, Clone)]
pub struct Job {
    /// The step's name.
    pub step: String,
    /// All that decides the output, apart from plan, format and fields.
    pub config: Value,
    /// The output folder; it is made.
    pub out: PathBuf,
    /// How documents are written.
    pub format: Format,
    /// Which chunks to work on.
    pub shard: Shard,
    /// How much bad input to put up with.
    pub max_bad: MaxBad,
    /// Whether to remove what another job has left in the folder, instead of refusing.
    pub force: bool,
    /// Memory that all chunks at work may use together, in bytes.
    pub memory: Option<u64>,
    /// Memory that a chunk at work may need, in bytes: see [`Job::run`].
    pub chunk_memory: u64,
}

/// Who watches a job.
pub trait Watch: Sync {
    /// Some more bytes of the input have been dealt with, now or in an earlier attempt.
    fn advance(&self, bytes: u64);

    /// Whether to stop at the next document.
    fn stopped(&self) -> bool;
}

/// Nobody watches.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl Watch for Quiet {
    fn advance(&self, _: u64) {}

    fn stopped(&self) -> bool {
        false
    }
}

/// What a run of a job has come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The manifest, if all chunks of the plan are finished now.
    pub manifest: Option<Manifest>,
    /// Chunks of the plan.
    pub chunks: usize,
    /// Chunks finished by this run.
    pub finished: usize,
    /// Chunks of this shard that had been finished before.
    pub resumed: usize,
}

impl Job {
    /// A whole job with the usual settings.
    pub fn new(step: &str, config: Value, out: &Path) -> Job {
        Job {
            step: step.to_owned(),
            config,
            out: out.to_owned(),
            format: Format::default(),
            shard: Shard::WHOLE,
            max_bad: MaxBad::default(),
            force: false,
            memory: None,
            chunk_memory: 64 << 20,
        }
    }

    /// Takes the output folder for this job without working on any chunk: for a step whose chunks need something from all
    /// documents that is made first.
    ///
    /// # Errors
    /// If the folder holds another job or other files, or cannot be written.
    pub fn claim(&self, fs: &dyn Fs, plan: &Plan) -> Result<()> {
        State::open(fs, self, plan).map(drop)
    }

    /// Works on the chunks of this shard that are not finished, on rayon's threads.
    ///
    /// `chunk_memory` is what a step is expected to use per chunk: buffers and a few copies of the longest document.
    ///
    /// # Errors
    /// If the folder holds another job or other files, the input cannot be read, there is more bad input than allowed, memory is
    /// too little for one chunk, `work` fails, writing fails, or the watcher wants to stop ([`Error::Stopped`]). Finished chunks
    /// stay finished in all cases.
    pub fn run(
        &self,
        fs: &Arc<dyn Fs>,
        plan: &Plan,
        watch: &dyn Watch,
        work: &(dyn Fn(&mut ChunkRun<'_>) -> Result<()> + Sync),
    ) -> Result<Outcome> {
        let threads = self.threads()?;
        let state = State::open(fs.as_ref(), self, plan)?;
        let tally = Tally::new(self.max_bad);
        let mut todo = Vec::new();
        let mut resumed = 0;
        for chunk in plan.chunks.iter().filter(|chunk| self.shard.has(chunk.index)) {
            match state.done(fs.as_ref(), chunk.index)? {
                Some(done) => {
                    tally.add(done.records, done.bad);
                    watch.advance(chunk.bytes);
                    resumed += 1;
                }
                None => todo.push(chunk),
            }
        }
        let run = Run { job: self, fs, plan, state: &state, tally: &tally, watch };
        run.chunks(&todo, threads, work)?;
        let manifest = state.finish(fs.as_ref(), self, plan, &tally)?;
        Ok(Outcome { manifest, chunks: plan.chunks.len(), finished: todo.len(), resumed })
    }

    /// SHA-256 of all that decides what this job writes.
    pub(crate) fn identity(&self, plan: &Plan) -> String {
        state::identity(self, plan).1
    }

    /// How many chunks may be at work at once.
    fn threads(&self) -> Result<usize> {
        let threads = rayon::current_num_threads();
        let Some(memory) = self.memory else { return Ok(threads) };
        match usize::try_from(memory / self.chunk_memory.max(1)).unwrap_or(usize::MAX) {
            0 => Err(Error::Memory { needed: self.chunk_memory, given: memory }),
            room => Ok(threads.min(room)),
        }
    }
}

/// What the threads of a run share.
struct Run<'a> {
    job: &'a Job,
    fs: &'a Arc<dyn Fs>,
    plan: &'a Plan,
    state: &'a State,
    tally: &'a Tally,
    watch: &'a dyn Watch,
}

impl Run<'_> {
    fn chunks(
        &self,
        todo: &[&crate::plan::Chunk],
        threads: usize,
        work: &(dyn Fn(&mut ChunkRun<'_>) -> Result<()> + Sync),
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let first: Mutex<Option<Error>> = Mutex::new(None);
        let worker = || {
            while !failed.load(Ordering::Relaxed) {
                let Some(chunk) = todo.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                if let Err(error) = self.chunk(chunk, &failed, work) {
                    failed.store(true, Ordering::Relaxed);
                    // Others that stop because of this one come later.
                    first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        rayon::scope(|scope| {
            for _ in 0..threads.min(todo.len()) {
                scope.spawn(|_| worker());
            }
        });
        match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn chunk(
        &self,
        chunk: &crate::plan::Chunk,
        failed: &AtomicBool,
        work: &(dyn Fn(&mut ChunkRun<'_>) -> Result<()> + Sync),
    ) -> Result<()> {
        let mut run = ChunkRun::new(self, chunk, failed);
        match work(&mut run) {
            Ok(()) => {
                let done: Done = run.finish()?;
                self.state.mark(self.fs.as_ref(), &done)
            }
            Err(error) => {
                run.abandon(matches!(error, Error::TooBad { .. }));
                Err(error)
            }
        }
    }
}
