//! A beginning of a sequence that outlives the process.

/// The state after some tokens, as it is written to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Arrangement of the state: model sizes, types and device. Only equal ones can be exchanged.
    pub layout: String,
    /// Windows and SSM states of all layers.
    pub recurrent: Vec<u8>,
    /// Keys and values of all uses of the shared block, in runs of positions.
    pub rows: Vec<Vec<u8>>,
}

/// Why a saved state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// It was made by another model, type or device.
    #[error("the state has the layout {found}, and this model on this machine {expected}")]
    Layout {
        /// What it has.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// Its parts do not have the sizes that its number of tokens asks for.
    #[error("the state is damaged: {0}")]
    Damaged(String),
    /// The cache is off, or smaller than this state.
    #[error("the cache has no room for this state; raise its size")]
    NoRoom,
    /// The server is going away.
    #[error("the server is shutting down")]
    ShuttingDown,
}
