//! How good a model is: bits per byte of any text, and the benchmarks that others publish figures of.
//!
//! Benchmarks ([`Library`], [`Suite`]) are scored as lm-evaluation-harness 0.4.13 scores them with its `hf` backend in f32:
//! the same prompts, tokens, figures and files of results.
//!
//! Bits per byte can be compared between models with different tokenizers, which loss per token cannot: it is
//! the size to which the model, driving an arithmetic coder, would compress the text.

mod calibrate;
mod divergence;
mod encode;
mod filter;
mod generate;
mod metric;
mod python;
mod results;
mod score;
mod suite;
mod task;

use thiserror::Error;
use zamba::{Batch, State, Workspace, Zamba};

pub use calibrate::calibrate;
pub use divergence::{Divergence, divergence};
pub use encode::EncodeError;
pub use python::Doc;
pub use results::{About, Figure, Outcome, Results, sanitize};
pub use score::{Limits, Score};
pub use suite::{Cache, Progress, RunError, RunOptions, Stored};
pub use task::{DataSource, Fetch, Library, Selection, Suite, TaskError, TaskOptions, Wanted};

/// Tokens that go through the model at once. Results do not depend on it.
const WINDOW: usize = 512;

/// A text to be scored, with what its score is measured by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    /// Its tokens. The first one (BOS, as a rule) is given and not scored.
    pub tokens: Vec<u32>,
    /// Bytes of the text in UTF-8. May be 0 where only the sum over all documents is known; then set
    /// [`BitsPerByte::bytes`] afterwards.
    pub bytes: u64,
    /// Words between white space, or 0.
    pub words: u64,
}

impl Document {
    /// A document of `text`, of which `tokens` is the encoding with BOS in front.
    pub fn new(text: &str, tokens: Vec<u32>) -> Self {
        let words = text.split_whitespace().count() as u64;
        Document { tokens, bytes: text.len() as u64, words }
    }
}

/// Why documents cannot be scored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EvalError {
    /// An id that the model has no embedding for.
    #[error(
        "document {document} holds token {token}, but the model has only {vocab} tokens; was it made with another tokenizer?"
    )]
    Token {
        /// Number of the document, from 0.
        document: u64,
        /// The id.
        token: u32,
        /// Size of the model's vocabulary.
        vocab: usize,
    },
}

/// The log-likelihood of a set of documents.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BitsPerByte {
    /// Documents scored.
    pub documents: u64,
    /// Tokens predicted; the first of each document is not among them.
    pub tokens: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// Words of text.
    pub words: u64,
    /// Sum of the negative natural logarithms of the probabilities of all predicted tokens.
    pub nats: f64,
    /// Documents that were longer than the context and were scored in parts.
    pub cut: u64,
}

impl BitsPerByte {
    /// Bits per byte of text; NaN without any text.
    pub fn value(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.bytes as f64
    }

    /// Perplexity per word as lm-evaluation-harness defines it: `exp(nats / words)`.
    pub fn word_perplexity(&self) -> f64 {
        (self.nats / self.words as f64).exp()
    }

    /// Perplexity per byte: `exp(nats / bytes)`.
    pub fn byte_perplexity(&self) -> f64 {
        (self.nats / self.bytes as f64).exp()
    }

    /// Mean loss per predicted token, in nats.
    pub fn loss(&self) -> f64 {
        self.nats / self.tokens as f64
    }
}

/// Scores documents one after the other, each as a sequence of its own.
///
/// A document goes through the model in windows with its state carried from one to the next, so the windows
/// have no effect on the result. Only a document of more than `context + 1` tokens is cut into parts that
/// start from zero state; they overlap by one token, so that still every token but the first is predicted
/// once. `context` also bounds the memory: keys and values of that many tokens. `progress` receives the
/// number of tokens that have just been scored.
///
/// # Errors
/// The first error of `documents` or `progress`, and [`EvalError`] for a token id outside the vocabulary.
///
/// # Panics
/// If `context` is 0.
pub fn bits_per_byte<E: From<EvalError>>(
    model: &Zamba,
    context: usize,
    documents: impl IntoIterator<Item = Result<Document, E>>,
    mut progress: impl FnMut(u64) -> Result<(), E>,
) -> Result<BitsPerByte, E> {
    assert!(context > 0, "the context holds at least one token");
    let mut sum = BitsPerByte::default();
    let mut scorer = Scorer::new(model, context);
    for document in documents {
        let document = document?;
        check_tokens(&document, sum.documents, model.config.vocab_size)?;
        let Document { tokens, bytes, words } = document;
        let inputs = tokens.len().saturating_sub(1);
        for at in (0..inputs).step_by(context) {
            sum.nats += scorer.part(&tokens[at..=inputs.min(at + context)], &mut progress)?;
        }
        sum.documents += 1;
        sum.tokens += inputs as u64;
        sum.bytes += bytes;
        sum.words += words;
        sum.cut += u64::from(inputs > context);
    }
    Ok(sum)
}

/// Refuses ids that a model of `vocab` tokens has no embedding for; `number` is that of the document.
fn check_tokens(document: &Document, number: u64, vocab: usize) -> Result<(), EvalError> {
    match document.tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(&token) => Err(EvalError::Token { document: number, token, vocab }),
        None => Ok(()),
    }
}

struct Scorer<'m> {
    model: &'m Zamba,
    workspace: Workspace,
    state: State,
    nll: Vec<f32>,
}

impl<'m> Scorer<'m> {
    fn new(model: &'m Zamba, context: usize) -> Self {
        let dev = model.device().clone();
        let state = State::new(model, 1, context);
        Scorer { model, workspace: Workspace::new(dev), state, nll: vec![] }
    }

    /// Negative log-likelihood in nats of all but the first of `tokens`.
    fn part<E>(&mut self, tokens: &[u32], progress: &mut impl FnMut(u64) -> Result<(), E>) -> Result<f64, E> {
        let inputs = tokens.len() - 1;
        let mut nats = 0.0;
        for at in (0..inputs).step_by(WINDOW) {
            let end = inputs.min(at + WINDOW);
            let mut batch = Batch::default();
            batch.push(0, at, &tokens[at..end]);
            let mut ctx = self.workspace.infer(batch, Some(&mut self.state));
            let hidden = self.model.forward(&mut ctx);
            let nll = self.model.nll(&mut ctx, &hidden, &tokens[at + 1..=end]);
            self.nll.resize(end - at, 0.0);
            ctx.read(&nll, 0, &mut self.nll);
            nats += self.nll.iter().map(|&x| f64::from(x)).sum::<f64>();
            progress((end - at) as u64)?;
        }
        Ok(nats)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use zamba::{Session, ZambaConfig};
    use zamba_kernels::Dtype;
    use zamba_kernels::reference::Reference;

    use super::*;

    fn model() -> Zamba {
        let mut config = ZambaConfig::preset("tiny").unwrap();
        config.num_hidden_layers = 3;
        config.layers_block_type.truncate(3);
        config.vocab_size = 40;
        config.hidden_size = 16;
        config.attention_hidden_size = 32;
        config.intermediate_size = 32;
        config.attention_head_dim = 8;
        config.mamba_dt_rank = 1;
        config.check().unwrap();
        Zamba::random(config, Arc::new(Reference::new()), Dtype::F32, 5)
    }

    fn document(len: u32, seed: u32) -> Document {
        let tokens = (0..len).map(|i| (i * i * 7 + i * 13 + seed) % 40).collect();
        Document { tokens, bytes: 3 * u64::from(len), words: 1 }
    }

    fn bpb(model: &Zamba, context: usize, documents: &[Document]) -> BitsPerByte {
        let documents = documents.iter().cloned().map(Ok::<_, EvalError>);
        bits_per_byte(model, context, documents, |_| Ok(())).unwrap()
    }

    /// The sum over whole documents, taken by way of the session.
    fn whole(model: &Zamba, tokens: &[u32]) -> f64 {
        let logprobs = Session::new(model, tokens.len()).score(tokens, None);
        logprobs.into_iter().flatten().map(|x| -f64::from(x)).sum()
    }

    #[test]
    fn equals_the_sum_of_the_session_also_over_windows() {
        let model = model();
        let documents = [document(WINDOW as u32 + 90, 1), document(7, 2)];
        let sum = bpb(&model, 2 * WINDOW, &documents);
        let expected: f64 = documents.iter().map(|d| whole(&model, &d.tokens)).sum();
        // The same f32 numbers, added in f64.
        assert!((sum.nats - expected).abs() < 1e-9, "{} and {expected}", sum.nats);
        assert_eq!((sum.documents, sum.tokens, sum.cut), (2, WINDOW as u64 + 95, 0));
        let bits = expected / 2f64.ln() / (3.0 * (WINDOW as f64 + 97.0));
        assert!((sum.value() - bits).abs() < 1e-12);
    }

    #[test]
    fn longer_documents_are_cut_in_overlapping_parts() {
        let model = model();
        let long = document(25, 3);
        let sum = bpb(&model, 10, std::slice::from_ref(&long));
        let parts = [&long.tokens[0..=10], &long.tokens[10..=20], &long.tokens[20..]];
        let expected: f64 = parts.iter().map(|part| whole(&model, part)).sum();
        assert!((sum.nats - expected).abs() < 1e-9);
        assert_eq!((sum.tokens, sum.cut), (24, 1));
    }

    #[test]
    fn nothing_to_predict_is_no_error() {
        let model = model();
        let sum = bpb(&model, 4, &[Document::new("", vec![]), Document::new("", vec![1])]);
        assert_eq!((sum.documents, sum.tokens, sum.nats), (2, 0, 0.0));
    }

    #[test]
    fn foreign_tokens_and_stops_are_errors() {
        let model = model();
        let bad =
            [Ok::<_, EvalError>(document(3, 1)), Ok(Document { tokens: vec![1, 40], ..Document::default() })];
        let error = bits_per_byte(&model, 4, bad, |_| Ok(())).unwrap_err();
        assert_eq!(error, EvalError::Token { document: 1, token: 40, vocab: 40 });
        let stop = EvalError::Token { document: 9, token: 9, vocab: 9 };
        let stopped = bits_per_byte(&model, 4, [Ok(document(9, 1))], |_| Err(stop.clone()));
        assert_eq!(stopped.unwrap_err(), stop);
    }

    #[test]
    fn a_model_does_not_diverge_from_itself_and_does_from_another() {
        let (one, mut config) = (model(), model().config);
        config.rms_norm_eps = 0.1;
        let other = Zamba::random(config, Arc::new(Reference::new()), Dtype::F32, 6);
        let documents = [document(WINDOW as u32 + 30, 1), document(7, 2)];
        let run = |a: &Zamba, b: &Zamba, context| {
            divergence(a, b, context, documents.iter().cloned().map(Ok::<_, EvalError>), |_| Ok(())).unwrap()
        };
        let same = run(&one, &one, 1000);
        assert_eq!((same.kl, same.kl_max, same.agreement()), (0.0, 0.0, 1.0));
        let differ = run(&one, &other, 1000);
        assert!(differ.mean() > 1e-6 && differ.kl_max >= differ.mean(), "{differ:?}");
        for (ours, model) in [(differ.model, &one), (differ.against, &other)] {
            let want = bpb(model, 1000, &documents);
            // The same logits, whose exponentials are added in f64 here.
            assert!((ours.nats - want.nats).abs() < 1e-5 * want.nats, "{ours:?} {want:?}");
            assert_eq!((ours.tokens, ours.bytes, ours.documents), (want.tokens, want.bytes, want.documents));
        }
        assert_eq!(run(&one, &other, 100).model.cut, 1);
    }

    #[test]
    fn moments_are_mean_squares_of_what_linear_maps_see() {
        let model = model();
        let documents = || [document(30, 1), document(9, 2)].map(Ok::<_, EvalError>);
        let moments = calibrate(&model, 20, documents(), |_| Ok(())).unwrap();
        for (id, spec) in model.specs().iter().enumerate() {
            let found = moments.mean_squares(id);
            let linear = spec.kind == zamba::spec::TensorKind::Linear;
            assert_eq!(found.is_some(), linear, "{}", spec.name);
            if let Some(found) = found {
                assert_eq!(found.len(), spec.rows_cols().1, "{}", spec.name);
                assert!(found.iter().all(|x| *x >= 0.0 && x.is_finite()));
            }
        }
        // What these see is normed with weights of one, the hidden state and the embedding together: its mean square is near one.
        for name in ["layers.0.mamba.in_proj.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight"] {
            let id = model.specs().iter().position(|s| s.name.ends_with(name)).unwrap();
            let squares = moments.mean_squares(id).unwrap();
            let mean = squares.iter().sum::<f32>() / squares.len() as f32;
            assert!((mean - 1.0).abs() < 0.1, "{name}: {mean}");
        }
    }

    #[test]
    fn words_and_bytes_are_counted() {
        let d = Document::new(" zwei  Wörter\n", vec![1, 2]);
        assert_eq!((d.bytes, d.words), (15, 2));
    }
}
