//! Text to tokens as lm-evaluation-harness does it (`LM._encode_pair`, `HFLM.tok_encode`).

use zamba::tokenizer::{Tokenizer, TokenizerError};

use crate::python::is_space;
use crate::score::Item;

/// Encodes the requests of a model.
pub(crate) struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    /// Stands before a text without context: BOS, or else EOS; with its text.
    prefix: Option<(u32, String)>,
    /// Most tokens that the model sees at once.
    max_length: usize,
}

/// Why a request cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// There is nothing that could stand before a text.
    #[error(
        "the tokenizer has neither a BOS nor an EOS token, so that a text without context cannot be scored"
    )]
    NoPrefix,
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The continuation has no token of its own.
    #[error("the continuation {continuation:?} adds no token to its context, so that it has no likelihood")]
    Nothing {
        /// The continuation.
        continuation: String,
    },
    /// The continuation does not fit.
    #[error("a continuation of {tokens} tokens is longer than the {max_length} tokens that the model sees")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// The most there may be.
        max_length: usize,
    },
}

impl<'t> Encoder<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer, max_length: usize) -> Result<Self, EncodeError> {
        let prefix = tokenizer.bos_id().or(tokenizer.eos_id());
        let prefix =
            prefix.map(|id| Ok::<_, EncodeError>((id, tokenizer.decode(&[id], false)?))).transpose()?;
        Ok(Encoder { tokenizer, prefix, max_length })
    }

    /// The tokens of a text, with BOS where the tokenizer puts it, and not twice.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let there = self.prefix.as_ref().is_some_and(|(_, prefix)| text.starts_with(prefix));
        Ok(self.tokenizer.encode(text, !there)?)
    }

    fn prefix(&self) -> Result<u32, EncodeError> {
        self.prefix.as_ref().map(|(id, _)| *id).ok_or(EncodeError::NoPrefix)
    }

    /// A continuation and what stands before it, as far as the model can see.
    pub(crate) fn pair(&self, context: &str, continuation: &str) -> Result<Item, EncodeError> {
        let (tokens, split) = if context.is_empty() {
            let mut tokens = self.tokenizer.encode(continuation, false)?;
            // The token that would be put before the text may stand there already.
            let prefix = self.prefix()?;
            if tokens.first() != Some(&prefix) {
                tokens.insert(0, prefix);
            }
            (tokens, 1)
        } else {
            // White space at the end of the context belongs to the continuation.
            let start = context.trim_end_matches(is_space);
            let whole = format!("{context}{continuation}");
            // Tokens may reach across the border; the split is by number.
            (self.encode(&whole)?, self.encode(start)?.len())
        };
        if split == 0 || tokens.len() <= split {
            return Err(EncodeError::Nothing { continuation: continuation.to_owned() });
        }
        self.item(tokens, split)
    }

    fn item(&self, mut tokens: Vec<u32>, split: usize) -> Result<Item, EncodeError> {
        let scored = tokens.len() - split;
        if scored > self.max_length {
            return Err(EncodeError::TooLong { tokens: scored, max_length: self.max_length });
        }
        // Too long a context loses its beginning. The last token is predicted and never seen.
        let excess = tokens.len().saturating_sub(self.max_length + 1);
        tokens.drain(..excess);
        Ok(Item { tokens, scored })
    }

    /// A whole text in parts: each but the first follows one token of the part before it and as many more as
    /// the model can see beside the part's own.
    pub(crate) fn rolling(&self, text: &str) -> Result<Vec<Item>, EncodeError> {
        let text = self.encode(text)?;
        let mut tokens = vec![self.prefix()?];
        tokens.extend(text);
        let (all, length) = (tokens.len() - 1, self.max_length);
        let mut items = vec![];
        let mut done = 0;
        while done < all {
            let end = all.min(done + length);
            // The last part reaches back, so that it too sees as much as there may be.
            let start = if done == 0 { 0 } else { end - length };
            items.push(Item { tokens: tokens[start..=end].to_vec(), scored: end - done });
            done = end;
        }
        Ok(items)
    }

    /// A prompt, without its beginning if it and `room` more tokens are too long.
    pub(crate) fn prompt(&self, text: &str, room: usize) -> Result<Vec<u32>, EncodeError> {
        let most = self.max_length.saturating_sub(room);
        if most == 0 {
            return Err(EncodeError::TooLong { tokens: room, max_length: self.max_length });
        }
        let mut tokens = self.encode(text)?;
        if tokens.is_empty() {
            tokens.push(self.prefix()?);
        }
        let excess = tokens.len().saturating_sub(most);
        tokens.drain(..excess);
        Ok(tokens)
    }
}
