//! Which source serves sample `i`: the greedy rule of Megatron-LM's `build_blending_indices`
//! (`megatron/core/datasets/helpers.cpp`): at each step the source whose count lags most behind
//! `weight * max(i, 1)`, ties to the first listed.
//!
//! After n samples a source of weight w has at most `w n + 1 - w` samples (it is served only when it does not lead).
//! The lags sum to zero, so with k sources none is more than `k - 2 + w` short: with two sources the counts are within
//! one sample of the weights, with more nearly always.
//!
//! The rule is sequential, so the state is kept at every [`BLOCK`]-th sample: the first look at sample `i` costs
//! O(i * k) additions for k sources (some 10 ns per sample for ten sources), any later one at most one block.

use std::sync::Mutex;

/// Samples between two stored states.
const BLOCK: u64 = 1 << 16;

/// The greedy blend of some sources with fixed weights.
pub(crate) struct Blend {
    /// Normalised to sum 1, in the order in which ties are broken.
    weights: Vec<f64>,
    state: Mutex<State>,
}

struct State {
    /// `counts[b][s]`: samples of source s before sample `b * BLOCK`.
    counts: Vec<Vec<u64>>,
    /// The block that is unpacked now: for each of its samples the source and that source's own sample number.
    block: Option<(u64, Vec<(u32, u64)>)>,
}

impl Blend {
    /// `weights` must be positive and finite; they are normalised here.
    pub(crate) fn new(weights: &[f64]) -> Blend {
        let sum: f64 = weights.iter().sum();
        let state = State { counts: vec![vec![0; weights.len()]], block: None };
        Blend { weights: weights.iter().map(|w| w / sum).collect(), state: Mutex::new(state) }
    }

    /// The normalised weights.
    pub(crate) fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// `(source, number of samples of that source before this one)` of sample `i`.
    pub(crate) fn at(&self, i: u64) -> (usize, u64) {
        let mut state = self.lock();
        let (source, row) = state.unpack(&self.weights, i / BLOCK)[(i % BLOCK) as usize];
        (source as usize, row)
    }

    /// How many of the samples `0..end` each source serves.
    pub(crate) fn counts_before(&self, end: u64) -> Vec<u64> {
        let mut state = self.lock();
        let inside: Vec<u32> = state.unpack(&self.weights, end / BLOCK)[..(end % BLOCK) as usize]
            .iter()
            .map(|&(s, _)| s)
            .collect();
        let mut counts = state.counts[(end / BLOCK) as usize].clone();
        for source in inside {
            counts[source as usize] += 1;
        }
        counts
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing below panics half-way through an update, so a poisoned lock still guards a valid state.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn unpack(&mut self, weights: &[f64], block: u64) -> &[(u32, u64)] {
        while self.counts.len() as u64 <= block {
            let last = self.counts.len() as u64 - 1;
            let mut counts = self.counts[last as usize].clone();
            run(weights, last * BLOCK, &mut counts, |_, _| ());
            self.counts.push(counts);
        }
        if self.block.as_ref().is_none_or(|(unpacked, _)| *unpacked != block) {
            let mut counts = self.counts[block as usize].clone();
            let mut samples = Vec::with_capacity(BLOCK as usize);
            run(weights, block * BLOCK, &mut counts, |source, row| samples.push((source as u32, row)));
            self.block = Some((block, samples));
        }
        match &self.block {
            Some((_, samples)) => samples,
            None => &[],
        }
    }
}

/// Serves the samples `first..first + BLOCK`, counting them in `counts`.
fn run(weights: &[f64], first: u64, counts: &mut [u64], mut served: impl FnMut(usize, u64)) {
    for i in first..first + BLOCK {
        let wanted = i.max(1) as f64;
        let mut chosen = 0;
        let mut largest = f64::NEG_INFINITY;
        for (source, (&weight, &count)) in weights.iter().zip(counts.iter()).enumerate() {
            let lag = weight * wanted - count as f64;
            if lag > largest {
                (chosen, largest) = (source, lag);
            }
        }
        served(chosen, counts[chosen]);
        counts[chosen] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `build_blending_indices` as Megatron-LM has it, start to end.
    fn megatron(weights: &[f64], size: usize) -> Vec<(usize, u64)> {
        let mut current = vec![0i64; weights.len()];
        let mut out = Vec::new();
        for sample_idx in 0..size {
            let sample = (sample_idx as f64).max(1.0);
            let mut max_index = 0;
            let mut max_error = weights[0] * sample - current[0] as f64;
            for dataset in 1..weights.len() {
                let error = weights[dataset] * sample - current[dataset] as f64;
                if error > max_error {
                    max_error = error;
                    max_index = dataset;
                }
            }
            out.push((max_index, current[max_index] as u64));
            current[max_index] += 1;
        }
        out
    }

    #[test]
    fn equals_megatron_in_any_order_and_across_blocks() {
        let weights = [0.6, 0.25, 0.15];
        let expected = megatron(&weights, 3 * BLOCK as usize);
        let blend = Blend::new(&weights);
        for i in [0, 1, 2, 5, 2 * BLOCK + 17, BLOCK - 1, BLOCK, 3 * BLOCK - 1, 4, 100_000] {
            assert_eq!(blend.at(i), expected[i as usize], "sample {i}");
        }
        for end in [0, 1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5] {
            let mut counts = vec![0; 3];
            expected[..end as usize].iter().for_each(|&(s, _)| counts[s] += 1);
            assert_eq!(blend.counts_before(end), counts, "before {end}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn counts_keep_the_bounds_of_the_rule(
            weights in proptest::collection::vec(0.01f64..1.0, 2..6),
        ) {
            let blend = Blend::new(&weights);
            let mut counts = vec![0u64; weights.len()];
            for i in 0..4_000u64 {
                let (source, row) = blend.at(i);
                prop_assert_eq!(row, counts[source]);
                counts[source] += 1;
                for (&w, &c) in blend.weights().iter().zip(&counts) {
                    let lag = w * (i + 1) as f64 - c as f64;
                    prop_assert!(lag > w - 1.0 - 1e-9, "ahead by {} after {} samples", -lag, i + 1);
                    let short = weights.len() as f64 - 2.0 + w;
                    prop_assert!(lag < short + 1e-9, "short by {lag} after {} samples", i + 1);
                }
            }
        }
    }
}
