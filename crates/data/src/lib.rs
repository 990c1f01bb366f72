//! Text in, token shards and training samples out.
//!
//! [`plan`] and [`job`] run steps over inputs of any size, chunk by chunk. [`gather`](mod@gather) finds text, [`dedup`]
//! finds what is in it more than once, [`bpe`] learns a tokenizer from it, [`tokenise`](mod@tokenise) writes documents into
//! [`shards`], and [`mix`] blends shards into rows whose order hangs on a seed alone. [`baseline`] says what text costs
//! without a model. Every file is reached through [`fs`].

pub mod baseline;
pub mod bpe;
pub mod dedup;
pub mod document;
pub mod filter;
pub mod fs;
pub mod gather;
pub mod input;
pub mod job;
pub mod mix;
pub mod plan;
pub mod read;
pub mod shards;
pub mod tokenise;
pub mod write;

mod blend;
mod error;
mod loader;
mod order;
mod rng;
mod sample;

pub use error::{Error, Result};
pub use loader::Loader;
pub use mix::{Mixture, PhaseSpec, Realised, Replay, Source, SourceWeight};
pub use sample::{EvalRows, IGNORE, Piece, Sample, eval_rows};
pub use shards::{Manifest, Shard, ShardSpec, ShardWriter};
