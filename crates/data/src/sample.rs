//! One training row: tokens, targets, and the documents inside it.

use crate::error::Result;
use crate::shards::Shard;

/// The target of a position whose next token belongs to another document, or to none.
pub const IGNORE: u32 = u32::MAX;

/// A row of `seq_len` positions, cut from a stream of packed documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Inputs, `[t]`.
    pub tokens: Vec<u32>,
    /// The token after each input, `[t]`; [`IGNORE`] at the last token of a document.
    pub targets: Vec<u32>,
    /// `(start, len)` of the part of each document in the row: contiguous, together `0..t`. Each part is a sequence
    /// of its own that starts from zero state, also where it continues a document that the previous row cut.
    pub spans: Vec<(usize, usize)>,
    /// Index of the source in the mixture, or 0 outside one.
    pub source: usize,
}

impl Sample {
    /// Number of targets that count.
    pub fn predictions(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE).count()
    }
}

/// A run of tokens of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Index of the shard within the source.
    pub shard: usize,
    /// Index of the document within the shard.
    pub doc: u64,
    /// First token of the run within the document.
    pub doc_start: u32,
    /// Tokens of the run.
    pub len: u32,
}

/// Reads a window of `t + 1` tokens, given as its pieces, and turns it into a row of `t` positions.
pub(crate) fn assemble(shards: &[Shard], pieces: &[Piece], source: usize) -> Result<Sample> {
    let window = pieces.iter().map(|piece| piece.len as usize).sum::<usize>();
    let mut tokens = vec![0; window];
    let mut start = 0;
    for piece in pieces {
        let end = start + piece.len as usize;
        shards[piece.shard].read(piece.doc, piece.doc_start, &mut tokens[start..end])?;
        start = end;
    }
    let mut targets = tokens[1..].to_vec();
    tokens.truncate(window - 1);
    let mut spans = Vec::with_capacity(pieces.len());
    let mut start = 0;
    for piece in pieces {
        let end = start + piece.len as usize;
        // The last token of the window is only a target, so a piece of that one token is no span.
        let len = end.min(window - 1) - start.min(window - 1);
        if len > 0 {
            spans.push((start, len));
        }
        if end < window {
            targets[end - 1] = IGNORE;
        }
        start = end;
    }
    Ok(Sample { tokens, targets, spans, source })
}

/// The rows that show every document of `shard` once, in file order: for evaluation on held-out text. The rows overlap
/// by one token as in training, so that every token but the first of each document is predicted exactly once; the
/// last row is shorter. The sum of the loss over all of them, divided by `ln 2` and by the source bytes in the
/// manifest, is the shard's bits per byte.
///
/// # Panics
/// If `seq_len` is 0.
pub fn eval_rows(shard: &Shard, seq_len: usize) -> EvalRows<'_> {
    assert!(seq_len > 0, "seq_len must be positive");
    EvalRows { shard, seq_len, doc: 0, doc_start: 0, done: false }
}

/// See [`eval_rows`].
pub struct EvalRows<'a> {
    shard: &'a Shard,
    seq_len: usize,
    doc: u64,
    doc_start: u32,
    done: bool,
}

impl EvalRows<'_> {
    /// The pieces of the next window of at most `seq_len + 1` tokens; moves on by `seq_len`.
    fn window(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut missing = self.seq_len + 1;
        let (mut doc, mut doc_start) = (self.doc, self.doc_start);
        while missing > 0 && doc < self.shard.documents() {
            let len = (self.shard.doc_len(doc) - doc_start).min(u32::try_from(missing).unwrap_or(u32::MAX));
            if len > 0 {
                pieces.push(Piece { shard: 0, doc, doc_start, len });
            }
            missing -= len as usize;
            // The window's last token is the first of the next window.
            (self.doc, self.doc_start) = (doc, doc_start + len.saturating_sub(1));
            (doc, doc_start) = (doc + 1, 0);
        }
        self.done = missing > 0;
        pieces
    }
}

impl Iterator for EvalRows<'_> {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            let pieces = self.window();
            let tokens: usize = pieces.iter().map(|piece| piece.len as usize).sum();
            if tokens < 2 {
                continue;
            }
            match assemble(std::slice::from_ref(self.shard), &pieces, 0) {
                Ok(sample) => return Some(Ok(sample)),
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}
