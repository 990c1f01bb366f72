//! Log-probabilities of a row of logits.

use std::cmp::Ordering;

use super::request::Logprob;

/// A row of logits `[v]` with the logarithm of the sum of their exponentials.
pub(crate) struct Row<'a> {
    logits: &'a [f32],
    log_sum: f64,
}

impl<'a> Row<'a> {
    pub(crate) fn new(logits: &'a [f32]) -> Self {
        let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|x| (f64::from(*x) - most).exp()).sum();
        Row { logits, log_sum: most + sum.ln() }
    }

    /// That of `token`, and of the `top` most likely ones.
    pub(crate) fn logprob(&self, token: u32, top: usize) -> Logprob {
        let of = |id: u32| (f64::from(self.logits[id as usize]) - self.log_sum) as f32;
        let top = highest(self.logits, top).into_iter().map(|id| (id, of(id))).collect();
        Logprob { token, logprob: of(token), top }
    }
}

/// That of `token`, which is known to be `logprob`, and of the `top` most likely ones by their distance from it.
pub(crate) fn scored(logits: &[f32], token: u32, logprob: f32, top: usize) -> Logprob {
    let own = f64::from(logits[token as usize]);
    let of = |id: u32| (f64::from(logits[id as usize]) - own + f64::from(logprob)) as f32;
    let top = highest(logits, top).into_iter().map(|id| (id, of(id))).collect();
    Logprob { token, logprob, top }
}

/// The ids of the `n` highest logits, highest first, lowest id among equals.
fn highest(logits: &[f32], n: usize) -> Vec<u32> {
    let rank = |a: &u32, b: &u32| {
        let (x, y) = (logits[*a as usize], logits[*b as usize]);
        y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(b))
    };
    let mut best: Vec<u32> = Vec::with_capacity(n + 1);
    for id in 0..logits.len() as u32 {
        let full = best.len() == n;
        let last = best.last();
        if n == 0 || (full && last.is_some_and(|last| rank(&id, last) == Ordering::Greater)) {
            continue;
        }
        let at = best.partition_point(|other| rank(other, &id) == Ordering::Less);
        best.insert(at, id);
        best.truncate(n);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_come_first_and_equals_by_id() {
        let logits = [1.0, 3.0, 2.0, 3.0, -1.0];
        assert_eq!(highest(&logits, 3), [1, 3, 2]);
        assert!(highest(&logits, 0).is_empty());
        assert_eq!(highest(&logits, 9), [1, 3, 2, 0, 4]);
    }

    #[test]
    fn probabilities_add_up_to_one() {
        let logits: Vec<f32> = (0..97).map(|i| ((i * 37) % 97) as f32 / 10.0).collect();
        let row = Row::new(&logits);
        let all = row.logprob(5, 97);
        let sum: f64 = all.top.iter().map(|(_, p)| f64::from(*p).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert!(all.top.iter().any(|(id, p)| *id == 5 && *p == all.logprob));
        let again = scored(&logits, 5, all.logprob, 97);
        for ((a, p), (b, q)) in all.top.iter().zip(&again.top) {
            assert!(a == b && (p - q).abs() < 1e-5);
        }
    }
}
