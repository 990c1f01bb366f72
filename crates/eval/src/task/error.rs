//! Why tasks cannot be loaded or run.

use std::path::PathBuf;

use thiserror::Error;

/// Why a task cannot be loaded or its requests cannot be made.
#[derive(Debug, Error)]
pub enum TaskError {
    /// A file or folder cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A task file is wrong.
    #[error("{file}: {reason}")]
    Definition {
        /// The file, and the name of the task in it as far as it is known.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No task, group or tag has the name.
    #[error("there is no task, group or tag `{name}`; {hint}")]
    Unknown {
        /// The name or pattern.
        name: String,
        /// What there is.
        hint: String,
    },
    /// There are no files of a split.
    #[error("task {task}: no {split} split of {dataset} in {folder}; expected {expected}")]
    NoFiles {
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// Path and name of the data set.
        dataset: String,
        /// Where it was looked for.
        folder: String,
        /// What would be found.
        expected: String,
    },
    /// A row cannot be read.
    #[error("{path}, row {row}: {reason}")]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// What is wrong.
        reason: String,
    },
    /// A split has no rows.
    #[error("task {task}: {path} has no rows; the {split} split must not be empty")]
    Empty {
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// The file, or the first of several.
        path: PathBuf,
    },
    /// A row lacks what the task needs, or holds something that it cannot use.
    #[error("{place}: {reason} (task {task}, {what})")]
    Document {
        /// File and row.
        place: String,
        /// The task.
        task: String,
        /// For what the row was used: a field of the task's file.
        what: &'static str,
        /// What is wrong, with the name of the field.
        reason: String,
    },
    /// More shots are asked for than there are documents.
    #[error(
        "task {task}: {wanted} documents are needed for the shots and {split} has {there}; use a smaller --num-fewshot"
    )]
    Shots {
        /// The task.
        task: String,
        /// Documents needed.
        wanted: usize,
        /// Where they come from.
        split: String,
        /// Documents there are.
        there: usize,
    },
}
