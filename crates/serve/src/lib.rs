//! Serving a model to many at once, so that each gets bit for bit what it would have got alone.
//!
//! [`engine`] knows tokens: one thread owns the model, its state and the prefix cache, and takes steps over
//! everything that is under way. [`api`] knows what a request means in the words of OpenAI and Anthropic.
//! [`edge`] knows sockets: who may ask, how much, and for how long.

pub mod api;
mod app;
pub mod edge;
pub mod engine;
pub mod grammar;
mod media;
pub mod metrics;
pub mod page;
pub mod states;

pub use app::{App, Caller, Limits, RequestId};
pub use engine::{Engine, Handle, Settings};
