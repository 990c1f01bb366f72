//! A beginning of a sequence that outlives the process.

use zamba::{State, Zamba};
use zamba_kernels::{CACHE_BLOCK, Dtype};

use super::cache::{Cache, Entry};
use super::request::Salt;

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

/// Reads the longest cached beginning of `tokens`.
pub(crate) fn export(
    cache: &Cache,
    state: &State,
    model: &Zamba,
    salt: &Salt,
    tokens: &[u32],
) -> Option<Saved> {
    let found = cache.find(salt, tokens);
    let (recurrent, rows) = cache.read(&found)?;
    let device = model.device();
    Some(Saved {
        tokens: tokens[..found.len].to_vec(),
        layout: layout(state, model),
        recurrent: device.to_bytes(recurrent),
        rows: rows.into_iter().map(|run| device.to_bytes(run)).collect(),
    })
}

/// Puts a saved beginning into the cache; gives its number of tokens.
pub(crate) fn import(
    cache: &mut Cache,
    state: &State,
    model: &Zamba,
    salt: &Salt,
    saved: &Saved,
) -> Result<usize, SavedError> {
    let expected = layout(state, model);
    if saved.layout != expected {
        return Err(SavedError::Layout { found: saved.layout.clone(), expected });
    }
    let len = saved.tokens.len();
    check(saved, state, model.config.vocab_size)?;
    let load = |dtype, elements, bytes: &[u8]| {
        let mut buf = model.device().alloc(dtype, elements);
        model.device().put_bytes(&mut buf, bytes);
        buf
    };
    let run = |i: usize| {
        let tokens = (len - i * CACHE_BLOCK).min(CACHE_BLOCK);
        load(state.rows_dtype(), state.rows_len(tokens), &saved.rows[i])
    };
    let tail = !len.is_multiple_of(CACHE_BLOCK);
    let entry = Entry {
        recurrent: load(Dtype::F32, saved.recurrent.len() / 4, &saved.recurrent),
        tail_rows: tail.then(|| run(len / CACHE_BLOCK)),
        logits: None,
    };
    cache.insert(salt, &saved.tokens, entry, &mut |i| run(i));
    if cache.has(salt, &saved.tokens, false) { Ok(len) } else { Err(SavedError::NoRoom) }
}

/// Whether all parts have the sizes that belong to the number of tokens.
fn check(saved: &Saved, state: &State, vocab: usize) -> Result<(), SavedError> {
    let damaged = |what: String| Err(SavedError::Damaged(what));
    let len = saved.tokens.len();
    if len == 0 || len > state.context() {
        return damaged(format!("{len} tokens in a context of {}", state.context()));
    }
    if let Some(token) = saved.tokens.iter().find(|token| **token as usize >= vocab) {
        return damaged(format!("token {token} in a vocabulary of {vocab}"));
    }
    if saved.recurrent.len() != state.recurrent_bytes() {
        return damaged(format!("{} bytes of recurrent state", saved.recurrent.len()));
    }
    if saved.rows.len() != len.div_ceil(CACHE_BLOCK) {
        return damaged(format!("{} runs of rows for {len} tokens", saved.rows.len()));
    }
    for (i, run) in saved.rows.iter().enumerate() {
        let tokens = (len - i * CACHE_BLOCK).min(CACHE_BLOCK);
        if run.len() != state.rows_dtype().bytes(state.rows_len(tokens)) {
            return damaged(format!("{} bytes in run {i} of rows", run.len()));
        }
    }
    Ok(())
}

/// The arrangement of a state on this device. Kernels of another device or instruction set may arrange the same
/// numbers otherwise, and would go on from them with other roundings.
fn layout(state: &State, model: &Zamba) -> String {
    format!("{};{} {}", state.layout(), model.device().arithmetic(), zamba::ARITHMETIC)
}
