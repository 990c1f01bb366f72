//! One sequence from its first token on: generation and scoring.

use zamba_kernels::IGNORE;

use crate::ctx::{Batch, Workspace};
use crate::model::Zamba;
use crate::state::State;

/// Prompt tokens that go through the model at once. Results do not depend on it.
pub const PREFILL_CHUNK: usize = 512;

/// Sees the logits of a chunk of tokens, `[chunk, v]`.
pub type Rows<'a> = dyn FnMut(&[f32]) + 'a;

/// A sequence, its state and the memory to continue it.
pub struct Session<'m> {
    model: &'m Zamba,
    workspace: Workspace,
    state: State,
    logits: Vec<f32>,
    chunk: usize,
}

impl<'m> Session<'m> {
    /// An empty sequence of at most `context` tokens.
    pub fn new(model: &'m Zamba, context: usize) -> Self {
        let dev = model.device().clone();
        Session {
            model,
            workspace: Workspace::new(dev),
            state: State::new(model, 1, context),
            logits: vec![0.0; model.config.vocab_size],
            chunk: PREFILL_CHUNK,
        }
    }

    /// Sets how many prompt tokens go through the model at once.
    ///
    /// # Panics
    /// If `chunk` is 0.
    #[must_use]
    pub fn with_chunk(mut self, chunk: usize) -> Self {
        assert!(chunk > 0, "a chunk has at least one token");
        self.chunk = chunk;
        self
    }

    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.state.len(0)
    }

    /// Whether no token has been seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that the sequence can still take.
    pub fn room(&self) -> usize {
        self.state.context() - self.len()
    }

    /// Begins a new sequence.
    pub fn reset(&mut self) {
        self.state.reset(0);
    }

    /// Appends `tokens` and returns the logits `[v]` that follow the last one.
    ///
    /// # Panics
    /// If `tokens` is empty, does not fit, or holds an id outside the vocabulary.
    pub fn feed(&mut self, tokens: &[u32]) -> &mut [f32] {
        assert!(!tokens.is_empty(), "nothing to feed");
        for part in tokens.chunks(self.chunk) {
            let mut batch = Batch::default();
            batch.push(0, self.state.len(0), part);
            let last = batch.last_rows();
            let mut ctx = self.workspace.infer(batch, Some(&mut self.state));
            let hidden = self.model.forward(&mut ctx);
            let hidden = ctx.select(&hidden, &last);
            let logits = self.model.logits(&mut ctx, &hidden);
            ctx.read(&logits, 0, &mut self.logits);
        }
        &mut self.logits
    }

    /// Scores `tokens` as a sequence of its own: natural-log probabilities of each token given those
    /// before it, `None` for the first. `rows`, if given, sees the logits.
    ///
    /// # Panics
    /// As [`Session::feed`].
    pub fn score(&mut self, tokens: &[u32], mut rows: Option<&mut Rows<'_>>) -> Vec<Option<f32>> {
        self.reset();
        let mut logprobs = vec![None];
        let mut host = vec![];
        for at in (0..tokens.len()).step_by(self.chunk) {
            let part = &tokens[at..tokens.len().min(at + self.chunk)];
            let mut targets = tokens[at + 1..tokens.len().min(at + 1 + part.len())].to_vec();
            let scored = targets.len();
            targets.resize(part.len(), IGNORE);
            let mut batch = Batch::default();
            batch.push(0, at, part);
            let mut ctx = self.workspace.infer(batch, Some(&mut self.state));
            let hidden = self.model.forward(&mut ctx);
            let nll = self.model.nll(&mut ctx, &hidden, &targets);
            host.resize(scored, 0.0);
            ctx.read(&nll, 0, &mut host);
            logprobs.extend(host.iter().map(|x| Some(-x)));
            if let Some(rows) = &mut rows {
                let logits = self.model.logits(&mut ctx, &hidden);
                host.resize(logits.rows() * logits.cols(), 0.0);
                ctx.read(&logits, 0, &mut host);
                rows(&host);
            }
        }
        logprobs.truncate(tokens.len());
        logprobs
    }
}
