//! What every handler knows.

use std::sync::Arc;

use zamba::template::ChatTemplate;
use zamba::tokenizer::Tokenizer;

use crate::engine::{Handle, Salt};
use crate::states::States;

/// A model that is being served.
pub struct App {
    /// The engine.
    pub handle: Handle,
    /// Makes tokens of text and text of tokens; without one, requests speak in token ids.
    pub tokenizer: Option<Tokenizer>,
    /// Makes text of conversations; without one there are none.
    pub template: Option<ChatTemplate>,
    /// The name of the model, as requests give it.
    pub name: String,
    /// When the model was loaded, in seconds since 1970.
    pub created: u64,
    /// Tokens at which an answer ends.
    pub ends: Vec<u32>,
    /// What one request may ask for.
    pub limits: Limits,
    /// Hash of weights and configuration, and version of the program.
    pub fingerprint: String,
    /// Where states are saved, if that is allowed.
    pub states: Option<States>,
}

/// What one request may ask for. Each is a flag of `zamba serve`.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Depth of nested JSON.
    pub json_depth: usize,
    /// Answers per prompt, `n`.
    pub n: usize,
    /// Prompts per request.
    pub prompts: usize,
    /// Alternatives per token, `logprobs` and `top_logprobs`.
    pub logprobs: usize,
    /// Stop strings.
    pub stops: usize,
    /// Entries of `logit_bias`.
    pub logit_bias: usize,
    /// Messages of a conversation.
    pub messages: usize,
    /// Bytes of a JSON schema or grammar.
    pub grammar_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes: 2 << 20,
            json_depth: 64,
            n: 16,
            prompts: 64,
            logprobs: 20,
            stops: 16,
            logit_bias: 1024,
            messages: 1024,
            grammar_bytes: 128 << 10,
        }
    }
}

/// Who asks. The edge puts it into the extensions of each request.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Tells callers apart that take turns.
    pub tenant: u64,
    /// Whose cached beginnings they may use.
    pub salt: Salt,
}

/// The number of a request in logs and headers. The edge puts it into the extensions of each request.
#[derive(Debug, Clone, Default)]
pub struct RequestId(pub Arc<str>);
