//! Training: a recipe becomes a run of phases with checkpoints and a log.
//!
//! Start reading at [`run`], whose loop is the whole story; [`recipe`] and [`schedule`] say what a run is,
//! [`ckpt`] how it survives, [`state`] what there is to survive.

pub mod ckpt;
pub mod data;
pub mod guard;
pub mod log;
pub mod mfu;
pub mod recipe;
pub mod run;
pub mod saver;
pub mod schedule;
pub mod state;
pub mod step;

pub use recipe::{Recipe, RecipeError};
pub use run::{Job, Summary, TrainError, dry_run, train};
