//! How far the predictions of one model are from those of another.

use zamba::{Batch, State, Workspace, Zamba};

use crate::{BitsPerByte, Document, EvalError, WINDOW, check_tokens};

/// What a model predicts, held against another one on the same text.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Divergence {
    /// The score of the model.
    pub model: BitsPerByte,
    /// The score of the other one.
    pub against: BitsPerByte,
    /// Sum over predicted tokens of the Kullback-Leibler divergence, in nats, of the model's distribution from
    /// the other's: `sum p ln(p / q)` with `p` the other's.
    pub kl: f64,
    /// The largest of the terms.
    pub kl_max: f64,
    /// Predicted tokens for which both hold the same one to be the most likely.
    pub same_top: u64,
}

impl Divergence {
    /// Mean divergence per predicted token, in nats.
    pub fn mean(&self) -> f64 {
        self.kl / self.model.tokens as f64
    }

    /// Share of the predicted tokens for which both have the same favourite.
    pub fn agreement(&self) -> f64 {
        self.same_top as f64 / self.model.tokens as f64
    }
}

/// Scores documents as [`bits_per_byte`](crate::bits_per_byte) does, with both models at once.
///
/// # Errors
/// As [`bits_per_byte`](crate::bits_per_byte).
///
/// # Panics
/// If `context` is 0 or the vocabularies differ in size.
pub fn divergence<E: From<EvalError>>(
    model: &Zamba,
    against: &Zamba,
    context: usize,
    documents: impl IntoIterator<Item = Result<Document, E>>,
    mut progress: impl FnMut(u64) -> Result<(), E>,
) -> Result<Divergence, E> {
    assert!(context > 0, "the context holds at least one token");
    assert_eq!(model.config.vocab_size, against.config.vocab_size, "vocabularies");
    let mut sum = Divergence::default();
    let (mut left, mut right) = (Side::new(model, context), Side::new(against, context));
    for document in documents {
        let document = document?;
        check_tokens(&document, sum.model.documents, model.config.vocab_size)?;
        let tokens = &document.tokens;
        let inputs = tokens.len().saturating_sub(1);
        for part in (0..inputs).step_by(context) {
            let end = inputs.min(part + context);
            for at in (part..end).step_by(WINDOW) {
                let (to, pos) = (end.min(at + WINDOW), at - part);
                left.run(&tokens[at..to], pos);
                right.run(&tokens[at..to], pos);
                let v = model.config.vocab_size;
                let rows = left.logits.chunks_exact(v).zip(right.logits.chunks_exact(v));
                for ((q, p), target) in rows.zip(&tokens[at + 1..=to]) {
                    sum.add(q, p, *target as usize);
                }
                progress((to - at) as u64)?;
            }
        }
        for score in [&mut sum.model, &mut sum.against] {
            score.documents += 1;
            score.tokens += inputs as u64;
            score.bytes += document.bytes;
            score.words += document.words;
            score.cut += u64::from(inputs > context);
        }
    }
    Ok(sum)
}

impl Divergence {
    /// Adds one predicted token: logits of the model, logits of the other, and what came.
    fn add(&mut self, q: &[f32], p: &[f32], target: usize) {
        let (q_sum, p_sum) = (log_sum(q), log_sum(p));
        self.model.nats += q_sum - f64::from(q[target]);
        self.against.nats += p_sum - f64::from(p[target]);
        let terms = p.iter().zip(q).map(|(p, q)| {
            let p_log = f64::from(*p) - p_sum;
            p_log.exp() * (p_log - (f64::from(*q) - q_sum))
        });
        // A divergence is never negative; its rounded sum may be.
        let kl = terms.sum::<f64>().max(0.0);
        self.kl += kl;
        self.kl_max = self.kl_max.max(kl);
        self.same_top += u64::from(largest(p) == largest(q));
    }
}

/// The logarithm of the sum of exponentials.
fn log_sum(x: &[f32]) -> f64 {
    let most = x.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    f64::from(most) + x.iter().map(|x| f64::from(x - most).exp()).sum::<f64>().ln()
}

/// Index of the first largest number.
fn largest(x: &[f32]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}

/// One of the models with its state.
struct Side<'m> {
    model: &'m Zamba,
    workspace: Workspace,
    state: State,
    logits: Vec<f32>,
}

impl<'m> Side<'m> {
    fn new(model: &'m Zamba, context: usize) -> Self {
        let dev = model.device().clone();
        let state = State::new(model, 1, context);
        Side { model, workspace: Workspace::new(dev), state, logits: vec![] }
    }

    /// Fills `logits` for the tokens that come at position `pos`.
    fn run(&mut self, tokens: &[u32], pos: usize) {
        let mut batch = Batch::default();
        batch.push(0, pos, tokens);
        let mut ctx = self.workspace.infer(batch, Some(&mut self.state));
        let hidden = self.model.forward(&mut ctx);
        let logits = self.model.logits(&mut ctx, &hidden);
        self.logits.resize(logits.rows() * logits.cols(), 0.0);
        ctx.read(&logits, 0, &mut self.logits);
    }
}
