//! How long documents are, in tokens.

use std::fmt::Write;

use serde::Serialize;

use crate::out;

/// Characters of the longest bar.
const BAR: u64 = 40;

/// A distribution of lengths.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Lengths {
    pub(super) documents: u64,
    pub(super) tokens: u64,
    pub(super) mean: f64,
    pub(super) median: u32,
    pub(super) p99: u32,
    pub(super) longest: u32,
    /// Lengths 0, 1, 2 to 3, 4 to 7 and so on, as far as there are any.
    pub(super) classes: Vec<Class>,
}

/// Documents of similar length.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Class {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) documents: u64,
    pub(super) tokens: u64,
}

impl Lengths {
    pub(super) fn of(lengths: impl Iterator<Item = u32>) -> Lengths {
        let mut sorted: Vec<u32> = lengths.collect();
        sorted.sort_unstable();
        let tokens: u64 = sorted.iter().map(|&n| u64::from(n)).sum();
        // The smallest length that so large a part does not exceed.
        let quantile = |part: f64| {
            let at = (part * sorted.len() as f64).ceil() as usize;
            sorted.get(at.saturating_sub(1)).copied().unwrap_or(0)
        };
        let class = |n: u32| if n == 0 { 0 } else { n.ilog2() + 1 };
        let mut classes: Vec<Class> = Vec::new();
        for number in 0..sorted.last().map_or(0, |&n| class(n) + 1) {
            let from = if number == 0 { 0 } else { 1 << (number - 1) };
            let to = if number == 0 { 0 } else { from + (from - 1) };
            let part = &sorted[sorted.partition_point(|&n| n < from)..sorted.partition_point(|&n| n <= to)];
            let tokens = part.iter().map(|&n| u64::from(n)).sum();
            classes.push(Class { from, to, documents: part.len() as u64, tokens });
        }
        let first = classes.iter().position(|class| class.documents > 0).unwrap_or(0);
        classes.drain(..first);
        Lengths {
            documents: sorted.len() as u64,
            tokens,
            mean: tokens as f64 / sorted.len().max(1) as f64,
            median: quantile(0.5),
            p99: quantile(0.99),
            longest: sorted.last().copied().unwrap_or(0),
            classes,
        }
    }

    /// In a line.
    pub(super) fn summary(&self) -> String {
        let [median, p99, longest] = [self.median, self.p99, self.longest].map(|n| out::count(n.into()));
        format!("mean {:.1}, median {median}, 99 % up to {p99}, longest {longest}", self.mean)
    }

    /// A histogram in characters.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let most = self.classes.iter().map(|class| class.documents).max().unwrap_or(0).max(1);
        for class in &self.classes {
            let bar = "#".repeat((class.documents * BAR).div_ceil(most) as usize);
            let range = class.range();
            let (documents, share) = (out::count(class.documents), self.share(class));
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {range:>17} {documents:>13} {share:>5.1} % of tokens  {bar}");
        }
        text
    }

    /// Percent of the tokens.
    pub(super) fn share(&self, class: &Class) -> f64 {
        100.0 * class.tokens as f64 / self.tokens.max(1) as f64
    }
}

impl Class {
    pub(super) fn range(&self) -> String {
        match self.to - self.from {
            0 => self.from.to_string(),
            _ => format!("{} to {}", self.from, self.to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_all_documents_and_quantiles_are_lengths() {
        let lengths = Lengths::of([0, 1, 1, 2, 3, 4, 7, 8, 100, u32::MAX].into_iter());
        let counts: Vec<(String, u64)> =
            lengths.classes.iter().filter(|c| c.documents > 0).map(|c| (c.range(), c.documents)).collect();
        let expected = [
            ("0", 1),
            ("1", 2),
            ("2 to 3", 2),
            ("4 to 7", 2),
            ("8 to 15", 1),
            ("64 to 127", 1),
            ("2147483648 to 4294967295", 1),
        ];
        assert_eq!(counts, expected.map(|(range, n)| (range.to_owned(), n)));
        assert_eq!((lengths.median, lengths.p99, lengths.longest), (3, u32::MAX, u32::MAX));
        assert_eq!(lengths.classes.iter().map(|class| class.tokens).sum::<u64>(), lengths.tokens);
        let none = Lengths::of(std::iter::empty());
        assert_eq!((none.documents, none.median, none.classes.len()), (0, 0, 0));
        assert_eq!(Lengths::of([5, 6].into_iter()).classes.len(), 1, "no empty classes before the first");
    }
}
