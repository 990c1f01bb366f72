//! One file per command.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod convert;
pub(crate) mod data;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod info;
pub(crate) mod init;
pub(crate) mod quantize;
pub(crate) mod score;
pub(crate) mod serve;
pub(crate) mod train;
