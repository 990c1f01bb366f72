//! Training: a recipe becomes a run of phases with checkpoints and a log.
//!
//! Start reading at [`schedule`] and [`recipe`] for what a run is, [`ckpt`] for how it survives.

pub mod ckpt;
pub mod guard;
pub mod mfu;
pub mod recipe;
pub mod saver;
pub mod schedule;
