//! Tokens as text, for those who look at single tokens.

use serde::Serialize;
use utoipa::ToSchema;
use zamba::tokenizer::Tokenizer;

use crate::engine::Logprob;

/// Log-probability that stands for minus infinity, which JSON cannot write.
const LOWEST: f64 = -9999.0;

/// What each token spells.
pub(crate) struct Words {
    tokenizer: Option<Tokenizer>,
    /// By id, if tokens of this tokenizer have bytes of their own.
    bytes: Option<Vec<Vec<u8>>>,
}

impl Words {
    pub(crate) fn new(tokenizer: Option<&Tokenizer>) -> Self {
        let bytes = tokenizer.and_then(|tokenizer| tokenizer.token_bytes().ok());
        Words { tokenizer: tokenizer.cloned(), bytes }
    }

    /// The bytes of a token; none if it has no bytes of its own.
    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let bytes = self.bytes.as_ref()?.get(id as usize)?;
        Some(bytes).filter(|bytes| !bytes.is_empty()).map(Vec::as_slice)
    }

    /// A token by itself. One that is part of a character is written `bytes:\xe2\x82`, one without text
    /// `token_id:123`, so that different tokens rarely look the same.
    pub(crate) fn text(&self, id: u32) -> String {
        if let Some(bytes) = self.bytes(id) {
            return match std::str::from_utf8(bytes) {
                Ok(text) => text.to_owned(),
                Err(_) => {
                    bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}"))
                }
            };
        }
        let decoded = self.tokenizer.as_ref().and_then(|tokenizer| tokenizer.decode(&[id], false).ok());
        decoded.filter(|text| !text.is_empty()).unwrap_or_else(|| format!("token_id:{id}"))
    }
}

/// A log-probability that JSON can write.
pub(crate) fn finite(logprob: f32) -> f64 {
    if logprob.is_finite() { f64::from(logprob) } else { LOWEST }
}

/// Log-probabilities of a chat answer.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    /// One for each token of the answer.
    pub(crate) content: Vec<ChatLogprob>,
    /// Always null: there is no separate refusal.
    #[schema(required, value_type = Option<Vec<ChatLogprob>>)]
    pub(crate) refusal: Option<()>,
}

/// A token and how likely it was.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogprob {
    /// The token's text.
    token: String,
    /// Natural logarithm of its probability under the model.
    logprob: f64,
    /// The token's bytes.
    #[schema(required)]
    bytes: Option<Vec<u8>>,
    /// The most likely tokens, highest first.
    top_logprobs: Vec<TopLogprob>,
}

/// An alternative to a token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TopLogprob {
    /// Its text.
    token: String,
    /// Natural logarithm of its probability under the model.
    logprob: f64,
    /// Its bytes.
    #[schema(required)]
    bytes: Option<Vec<u8>>,
}

impl Words {
    pub(crate) fn chat(&self, logprob: &Logprob) -> ChatLogprob {
        let bytes = |id| self.bytes(id).map(<[u8]>::to_vec);
        ChatLogprob {
            token: self.text(logprob.token),
            logprob: finite(logprob.logprob),
            bytes: bytes(logprob.token),
            top_logprobs: logprob
                .top
                .iter()
                .map(|&(id, value)| TopLogprob {
                    token: self.text(id),
                    logprob: finite(value),
                    bytes: bytes(id),
                })
                .collect(),
        }
    }
}
