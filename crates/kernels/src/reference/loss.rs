//! Cross entropy over the vocabulary.

use super::attention::log_sum_exp;
use super::real::{Real, zeros};
use crate::IGNORE;

/// Negative log likelihoods and logarithms of the sum of exponentials, `[t]` each.
pub(crate) fn cross_entropy<R: Real>(logits_tv: &[R], targets: &[u32], v: usize) -> (Vec<R>, Vec<R>) {
    let lse_t: Vec<R> = logits_tv.chunks_exact(v).map(log_sum_exp).collect();
    let nll = |t: usize| match targets[t] {
        IGNORE => R::of(0.0),
        target => lse_t[t] - logits_tv[t * v + target as usize],
    };
    ((0..targets.len()).map(nll).collect(), lse_t)
}

/// Gradient of `scale * sum_t nll_t`.
pub(crate) fn cross_entropy_bwd<R: Real>(
    logits_tv: &[R],
    lse_t: &[R],
    targets: &[u32],
    v: usize,
    scale: f32,
) -> Vec<R> {
    let mut dlogits = zeros(logits_tv.len());
    for (t, &target) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
        for c in 0..v {
            let onehot = if c == target as usize { 1.0 } else { 0.0 };
            let softmax = (logits_tv[t * v + c] - lse_t[t]).exp();
            dlogits[t * v + c] = R::of(f64::from(scale)) * (softmax - R::of(onehot));
        }
    }
    dlogits
}
