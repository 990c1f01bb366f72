//! Text in, token shards and training samples out.
//!
//! [`shards`] hold tokenised documents, and [`mix`] blends them into rows whose order hangs on a seed alone. Every file
//! is reached through [`fs`].

pub mod fs;
pub mod gather;
pub mod mix;
pub mod shards;

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
