//! The protocols, end to end: a small random model behind the router, without sockets.

mod bodies;
mod chat;
mod completions;
mod harness;
mod messages;
mod others;
