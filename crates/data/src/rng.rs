//! A small counter-keyed random generator whose output is part of the file format of a run.
//!
//! The order of documents must be the same for ever, on every machine, so it cannot hang on the version of a
//! random-number crate: those do not promise that `shuffle` keeps its result. This is xoshiro256** (Blackman and
//! Vigna, 2018), keyed by SHA-256 of a label and numbers, so that every stream is independent of every other.

use sha2::{Digest, Sha256};

/// xoshiro256** with a state taken from a hash of its key.
#[derive(Clone)]
pub(crate) struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream that belongs to `(label, name, numbers)`; other keys give unrelated streams.
    pub(crate) fn keyed(label: &str, name: &str, numbers: &[u64]) -> Rng {
        let mut hash = Sha256::new();
        for text in [label, name] {
            // The length goes first, so that ("ab", "c") and ("a", "bc") are different keys.
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        for number in numbers {
            hash.update(number.to_le_bytes());
        }
        let digest = hash.finalize();
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|j| digest[8 * i + j]));
        // The all-zero state is the one fixed point of the generator; a hash never gives it in practice.
        Rng { state: [word(0), word(1), word(2), word(3) | 1] }
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A uniform number in `0..bound` without bias (Lemire, 2019). `bound` must not be 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let reject_below = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            if product as u64 >= reject_below {
                return (product >> 64) as u64;
            }
        }
    }

    /// Fisher–Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_is_inside_and_roughly_uniform() {
        let mut rng = Rng::keyed("test", "", &[7]);
        let mut counts = [0u32; 5];
        for _ in 0..50_000 {
            counts[rng.below(5) as usize] += 1;
        }
        // Five standard deviations of a binomial with p = 1/5 and n = 50,000 are 447.
        assert!(counts.iter().all(|&c| c.abs_diff(10_000) < 447), "{counts:?}");
    }

    #[test]
    fn keys_separate_streams() {
        let first = |label, name, numbers: &[u64]| Rng::keyed(label, name, numbers).next();
        let base = first("a", "bc", &[1]);
        assert_eq!(base, first("a", "bc", &[1]));
        assert_ne!(base, first("ab", "c", &[1]));
        assert_ne!(base, first("a", "bc", &[2]));
        assert_ne!(base, first("a", "bd", &[1]));
    }

    #[test]
    fn shuffle_reaches_every_permutation_of_three() {
        let mut seen = std::collections::BTreeMap::new();
        for key in 0..6_000 {
            let mut items = [0, 1, 2];
            Rng::keyed("test", "", &[key]).shuffle(&mut items);
            *seen.entry(items).or_insert(0u32) += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|&c| c.abs_diff(1_000) < 150), "{seen:?}");
    }

    #[test]
    fn the_stream_is_frozen() {
        // Changing the generator would silently reorder the data of every resumed run.
        let mut rng = Rng::keyed("frozen", "source", &[1, 2]);
        let got: Vec<u64> = (0..3).map(|_| rng.next()).collect();
        assert_eq!(got, FROZEN);
    }

    /// Computed by a second implementation, in Python's integers.
    const FROZEN: [u64; 3] = [0xa7f904df75bad4f2, 0xc1508cb1c896121a, 0x12f64e6d12b4e0c1];
}
