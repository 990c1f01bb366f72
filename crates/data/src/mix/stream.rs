//! The endless stream of one source's tokens, and the order in which its rows are taken from it.

use std::sync::{Arc, Mutex, PoisonError};

use super::Source;
use crate::error::{Error, Result};
use crate::order::EpochOrder;
use crate::sample::Piece;
use crate::shards::Shard;

pub(super) struct Stream {
    pub(super) name: String,
    pub(super) shards: Vec<Shard>,
    /// `firsts[s]` is the number of documents before shard s; one more entry at the end.
    firsts: Vec<u32>,
    pub(super) tokens: u64,
    seq_len: usize,
    orders: Mutex<Vec<(u64, Arc<EpochOrder>)>>,
}

/// Epoch orders kept per source: a row may lie across the border of two.
const CACHED_EPOCHS: usize = 2;

impl Stream {
    pub(super) fn new(source: Source, seq_len: usize) -> Result<Stream> {
        let mut firsts = vec![0];
        let mut documents = 0u64;
        for shard in &source.shards {
            documents += shard.documents();
            firsts.push(u32::try_from(documents).map_err(|_| {
                Error::Mixture(format!("source `{}` has more than 2^32 documents; split it", source.name))
            })?);
        }
        let tokens = source.shards.iter().map(Shard::tokens).sum();
        if tokens == 0 {
            return Err(Error::Mixture(format!("source `{}` holds no token; remove it", source.name)));
        }
        if tokens / seq_len as u64 >= u64::from(u32::MAX) {
            return Err(Error::Mixture(format!(
                "source `{}` has more than 2^32 rows; split it",
                source.name
            )));
        }
        Ok(Stream {
            name: source.name,
            shards: source.shards,
            firsts,
            tokens,
            seq_len,
            orders: Mutex::new(Vec::new()),
        })
    }

    /// The row of the stream that is taken `n`-th: the rows that begin in an epoch are shuffled among themselves.
    pub(super) fn taken(&self, seed: u64, n: u64) -> u64 {
        let epoch = self.place(n).0;
        let (first, end) = (self.first_row(epoch), self.first_row(epoch + 1));
        let rows = u32::try_from(end - first).unwrap_or(u32::MAX);
        first + u64::from(self.order(seed, epoch).row(rows, n - first))
    }

    /// The first row that begins in an epoch or later.
    fn first_row(&self, epoch: u64) -> u64 {
        (u128::from(epoch) * u128::from(self.tokens)).div_ceil(self.seq_len as u128) as u64
    }

    /// Epoch in which a row begins, and the token of it.
    fn place(&self, row: u64) -> (u64, u64) {
        // In 128 bits, so that a row number far beyond any run cannot wrap round to an earlier text.
        let position = u128::from(row) * self.seq_len as u128;
        let tokens = u128::from(self.tokens);
        ((position / tokens) as u64, (position % tokens) as u64)
    }

    /// Rows that begin in the first `epochs` epochs.
    #[cfg(test)]
    pub(super) fn rows_until(&self, epochs: u64) -> u64 {
        self.first_row(epochs)
    }

    /// The window of the row that is taken `n`-th: `seq_len + 1` tokens.
    pub(super) fn pieces(&self, seed: u64, n: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let (mut epoch, mut position) = self.place(self.taken(seed, n));
        let mut missing = self.seq_len as u32 + 1;
        while missing > 0 {
            let order = self.order(seed, epoch);
            for (document, doc_start) in order.from(position, |d| self.doc_len(d)) {
                let len = (self.doc_len(document) - doc_start).min(missing);
                if len > 0 {
                    let (shard, doc) = self.locate(document);
                    pieces.push(Piece { shard, doc, doc_start, len });
                }
                missing -= len;
                if missing == 0 {
                    break;
                }
            }
            (epoch, position) = (epoch + 1, 0);
        }
        pieces
    }

    fn order(&self, seed: u64, epoch: u64) -> Arc<EpochOrder> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(cached, _)| *cached == epoch) {
            return order.clone();
        }
        let documents = self.firsts[self.shards.len()];
        let order = Arc::new(EpochOrder::new(seed, &self.name, epoch, documents, |d| self.doc_len(d)));
        if orders.len() == CACHED_EPOCHS {
            orders.remove(0);
        }
        orders.push((epoch, order.clone()));
        order
    }

    /// Shard and document within it of a document of the source.
    fn locate(&self, document: u32) -> (usize, u64) {
        let shard = self.firsts.partition_point(|&first| first <= document) - 1;
        (shard, u64::from(document - self.firsts[shard]))
    }

    fn doc_len(&self, document: u32) -> u32 {
        let (shard, doc) = self.locate(document);
        self.shards[shard].doc_len(doc)
    }
}
