//! The edge over real sockets: what is hostile, slow or foreign, and how a server ends.

mod browser;
#[path = "../../../zamba/tests/common/mod.rs"]
mod common;
mod ending;
mod keys;
mod order;
mod paths;
mod slow;
mod smuggling;
mod support;
mod tls;
