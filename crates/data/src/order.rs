//! The order of the documents of one source in one epoch, where in it a token lies, and the order of its rows.

use std::sync::OnceLock;

use crate::rng::Rng;

/// Documents between two stored stream positions.
const STRIDE: usize = 64;

/// A permutation of the documents with the positions of their tokens: 4 bytes per document, and a position for
/// every [`STRIDE`]-th one.
pub(crate) struct EpochOrder {
    /// `documents[slot]` is the document that comes at `slot`.
    documents: Vec<u32>,
    /// `starts[j]` is the stream position of the first token of slot `j * STRIDE`.
    starts: Vec<u64>,
    /// The generator of the order of rows, before its first number.
    row_rng: Rng,
    rows: OnceLock<Vec<u32>>,
}

impl EpochOrder {
    /// The order of epoch `epoch` of the source called `name`: it hangs on nothing but these and the seed. `lengths`
    /// tells the tokens of a document.
    pub(crate) fn new(
        seed: u64,
        name: &str,
        epoch: u64,
        count: u32,
        lengths: impl Fn(u32) -> u32,
    ) -> EpochOrder {
        let mut documents: Vec<u32> = (0..count).collect();
        Rng::keyed("zamba-data document order 1", name, &[seed, epoch]).shuffle(&mut documents);
        let mut starts = Vec::with_capacity(documents.len() / STRIDE + 1);
        let mut position = 0;
        for (slot, &document) in documents.iter().enumerate() {
            if slot % STRIDE == 0 {
                starts.push(position);
            }
            position += u64::from(lengths(document));
        }
        let row_rng = Rng::keyed("zamba-data row order 1", name, &[seed, epoch]);
        EpochOrder { documents, starts, row_rng, rows: OnceLock::new() }
    }

    /// Which of the epoch's `count` rows is taken `n`-th.
    pub(crate) fn row(&self, count: u32, n: u64) -> u32 {
        // Shuffled when first asked for: an epoch into which only the last row of another one reaches is not.
        let shuffled = || {
            let mut rows: Vec<u32> = (0..count).collect();
            self.row_rng.clone().shuffle(&mut rows);
            rows
        };
        self.rows.get_or_init(shuffled)[n as usize]
    }

    /// The documents from the one that holds token `position` of the epoch on, each with the offset at which to
    /// start in it (0 for all but the first).
    pub(crate) fn from(
        &self,
        position: u64,
        lengths: impl Fn(u32) -> u32,
    ) -> impl Iterator<Item = (u32, u32)> + '_ {
        let anchor = self.starts.partition_point(|&start| start <= position).saturating_sub(1);
        let mut slot = anchor * STRIDE;
        let mut offset = position - self.starts.get(anchor).copied().unwrap_or(0);
        // Empty documents are walked over here and hold no token.
        while let Some(&document) = self.documents.get(slot) {
            let length = u64::from(lengths(document));
            if offset < length {
                break;
            }
            offset -= length;
            slot += 1;
        }
        let rest = self.documents.get(slot..).unwrap_or(&[]);
        rest.iter().enumerate().map(move |(j, &document)| (document, if j == 0 { offset as u32 } else { 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_is_found() {
        // Lengths with runs of empty documents, over more than one stride.
        let lengths = |d: u32| if d.is_multiple_of(3) { 0 } else { d % 7 };
        let order = EpochOrder::new(5, "s", 2, 1_000, lengths);
        let mut position = 0;
        for &document in &order.documents {
            for offset in 0..lengths(document) {
                assert_eq!(order.from(position, lengths).next(), Some((document, offset)));
                position += 1;
            }
        }
        assert_eq!(order.from(position, lengths).next(), None);
    }

    #[test]
    fn each_epoch_holds_every_document_once_in_another_order() {
        let orders: Vec<Vec<u32>> =
            (0..3).map(|e| EpochOrder::new(5, "s", e, 500, |_| 1).documents).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..500).collect::<Vec<_>>());
        }
        assert_ne!(orders[0], orders[1]);
        assert_ne!(orders[1], orders[2]);
        assert_ne!(orders[0], EpochOrder::new(6, "s", 0, 500, |_| 1).documents);
        assert_ne!(orders[0], EpochOrder::new(5, "t", 0, 500, |_| 1).documents);
    }
}
