//! What may be asked of the engine, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use zamba::sampler::SamplerConfig;

/// A sequence to be continued, scored or summed up.
pub struct Request {
    /// Tokens to begin with: at least one, and no more than the context holds.
    pub prompt: Vec<u32>,
    /// Most new tokens; 0 with [`Request::score`] or [`Request::pool`] only looks at the prompt. Cut down to what
    /// the context has room for.
    pub max_tokens: usize,
    /// How to choose tokens.
    pub sampler: SamplerConfig,
    /// Tokens that end the text. They count as generated and are not shown.
    pub ends: Vec<u32>,
    /// Texts that end the text. They are not shown. Needs a tokenizer.
    pub stops: Vec<String>,
    /// For each new token its log-probability, and those of so many of the most likely ones.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt. The prompt is then computed whole, whatever the cache holds.
    pub score: Option<usize>,
    /// Whether to give the mean of the final hidden states of the prompt.
    pub pool: bool,
    /// What the new tokens must follow.
    pub constraint: Option<Box<dyn Constrain>>,
    /// Whose cached beginnings may be used: only requests with equal salts share.
    pub salt: Salt,
    /// Who asks: the engine takes turns between tenants that wait.
    pub tenant: u64,
}

impl Request {
    /// A request to go on for at most `max_tokens` tokens and nothing else: no end before, no text to stop at, no
    /// scores, no rule; for nobody in particular.
    pub fn new(prompt: Vec<u32>, max_tokens: usize, sampler: SamplerConfig) -> Self {
        Request {
            prompt,
            max_tokens,
            sampler,
            ends: vec![],
            stops: vec![],
            logprobs: None,
            score: None,
            pool: false,
            constraint: None,
            salt: Salt::default(),
            tenant: 0,
        }
    }
}

/// Keeps cached beginnings of different owners apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Salt(pub Arc<str>);

/// A rule that new tokens must follow, such as a grammar.
pub trait Constrain: Send {
    /// Sets the logits `[v]` of tokens that may not come next to minus infinity.
    ///
    /// # Errors
    /// If the rule cannot be kept any longer. The request then fails; it never goes on without the rule.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// Takes note of the token that was chosen.
    ///
    /// # Errors
    /// As [`Constrain::mask`].
    fn accept(&mut self, token: u32) -> Result<(), String>;

    /// Whether the text is complete and nothing may follow.
    fn finished(&mut self) -> bool;
}

/// How likely a token was under the model, before bias, penalties, temperature and constraint.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// The token that stands there.
    pub token: u32,
    /// Its log-probability, natural.
    pub logprob: f32,
    /// The most likely tokens, highest first, lowest id among equals.
    pub top: Vec<(u32, f32)>,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Scores of the prompt, none for its first token. Comes first if it was asked for.
    Prompt(Vec<Option<Logprob>>),
    /// The mean of the final hidden states, `[d]`.
    Pooled(Vec<f32>),
    /// A new token.
    Token(Token),
    /// The end: nothing follows.
    Done(Done),
    /// The end, for a reason that lies with the server: nothing follows.
    Failed(Failure),
}

/// A new token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Text that became certain by it; empty while it may still become a stop string or half a character.
    pub text: String,
    /// If asked for.
    pub logprob: Option<Logprob>,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// Why.
    pub finish: Finish,
    /// Text that was held back until the end.
    pub text: String,
    /// What it took.
    pub usage: Usage,
}

/// Why a text ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// A token that ends a text, or a constraint that is complete.
    End,
    /// This stop string.
    Stop(String),
    /// As many tokens as asked for, or no more room in the context.
    Length,
}

/// What an answer took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them whose state was found in the cache.
    pub cached_tokens: usize,
    /// New tokens, the one that ended the text included.
    pub completion_tokens: usize,
    /// Time until a slot was free.
    pub queued: Duration,
    /// Time from there to the first token.
    pub prefill: Duration,
    /// Time from the first token to the last.
    pub decode: Duration,
}

/// Why an answer was broken off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A fault of the program in this request's own part of the work.
    #[error("internal error: {0}")]
    Internal(String),
    /// The constraint cannot be kept.
    #[error("the grammar cannot be followed any further: {0}")]
    Constraint(String),
    /// The sampler found nothing to choose.
    #[error("cannot choose a token: {0}")]
    Sampling(String),
    /// It waited too long for a slot.
    #[error("no slot became free in time; try again later")]
    QueueTimeout,
    /// It ran for too long.
    #[error("the request took longer than the server allows")]
    RequestTimeout,
    /// Nobody read the answer.
    #[error("the answer was not read in time")]
    Stalled,
    /// The server is going away.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Why a request was not taken. Nothing has been computed for it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Too many wait already.
    #[error("too many requests are waiting; try again in {:.1} s", retry_after.as_secs_f64())]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The server is going away.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The prompt has no tokens.
    #[error("the prompt has no tokens")]
    Empty,
    /// The prompt and one new token do not fit.
    #[error("the prompt has {tokens} tokens and the context {context}")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// A token outside of the vocabulary.
    #[error("token {token} is outside the vocabulary, which has {vocab} tokens")]
    Vocabulary {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Stop strings without a tokenizer.
    #[error("stop strings need a tokenizer, and the model has none")]
    NoText,
    /// The tokenizer failed on the prompt.
    #[error("the tokenizer cannot make text of the prompt: {0}")]
    Text(String),
    /// An option of the sampler.
    #[error(transparent)]
    Sampler(#[from] zamba::sampler::SamplerError),
}
