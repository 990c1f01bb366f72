//! The model: config, weights, operations with their gradients, state, text.
//!
//! Start reading at [`model`]: one forward serves prefill, decode, scoring and training.

pub mod checkpoint;
pub mod config;
pub mod ctx;
pub mod hub;
pub mod init;
pub mod json;
pub mod model;
pub mod moments;
pub mod ops;
pub mod param;
mod philox;
pub mod pool;
pub mod sampler;
pub mod session;
pub mod spec;
pub mod state;
pub mod stop;
pub mod template;
pub mod tokenizer;
pub mod writer;

pub use config::ZambaConfig;
pub use ctx::{Batch, Ctx, Workspace};
pub use model::{ARITHMETIC, Zamba};
pub use session::Session;
pub use state::State;
