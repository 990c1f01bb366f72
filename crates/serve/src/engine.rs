//! The engine: tokens in, tokens out.

mod handle;
mod request;
mod saved;

pub use handle::{Answer, Facts, Handle, Permit, Settings};
pub use request::{Constrain, Done, Event, Failure, Finish, Logprob, Refusal, Request, Salt, Token, Usage};
pub use saved::{Saved, SavedError};

use std::sync::Arc;
use std::sync::mpsc;

use zamba::Zamba;
use zamba::tokenizer::Tokenizer;

use crate::metrics::Metrics;

/// The engine itself. It lives on its own thread, see [`Engine::start`].
pub struct Engine {}

impl Engine {
    /// Starts the engine's thread.
    pub fn start(model: Zamba, tokenizer: Option<Tokenizer>, settings: Settings) -> Handle {
        let _ = tokenizer;
        let (sender, _receiver) = mpsc::channel();
        let facts = Facts {
            vocab: model.config.vocab_size,
            width: model.config.hidden_size,
            context: settings.context,
            slots: settings.slots,
        };
        Handle::new(sender, settings, facts, Arc::new(Metrics::default()))
    }
}
