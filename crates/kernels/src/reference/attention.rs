//! Causal attention.

use std::borrow::Cow;

use super::real::{Real, zeros};
use crate::{Attention, Span};

/// Arrays of an attention; shapes as in [`Attention`].
pub(crate) struct AttentionArrays<'a, R> {
    pub(crate) q: &'a [R],
    pub(crate) k: &'a [R],
    pub(crate) v: &'a [R],
}

impl Attention<'_> {
    /// Index in `q` and `y` of head `h` at token `t`.
    fn q_at(&self, t: usize, h: usize) -> usize {
        (t * self.h + h) * self.p
    }

    /// Index in `k` and `v` of the key of position `j` that query head `h` of span `s` reads. The definition
    /// arranges a cache as `[slots, slot_rows, kv * p]`.
    fn k_at(&self, s: &Span, j: usize, h: usize) -> usize {
        let row = self.slot_rows.map_or(s.start, |rows| s.slot * rows) + j;
        (row * self.kv + h / (self.h / self.kv)) * self.p
    }
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let mut sum = R::of(0.0);
    for (&a, &b) in a.iter().zip(b) {
        sum += a * b;
    }
    sum
}

/// The operands of products: rounded to bf16 where that is asked for.
fn operands<'a, R: Real>(a: &Attention, x: &'a [R]) -> Cow<'a, [R]> {
    if a.bf16 { x.iter().map(|v| v.to_bf16()).collect() } else { x.into() }
}

/// A weight, or the gradient of a score, as the operand of a product.
fn operand<R: Real>(a: &Attention, x: R) -> R {
    if a.bf16 { x.rounded_weight() } else { x }
}

/// Scores of the query of token `i` of span `s` against keys `0 ..= s.pos + i`.
fn scores<R: Real>(a: &Attention, x: &AttentionArrays<R>, s: &Span, i: usize, h: usize) -> Vec<R> {
    let q = &x.q[a.q_at(s.start + i, h)..][..a.p];
    let score = |j| dot(q, &x.k[a.k_at(s, j, h)..][..a.p]) * R::of(f64::from(a.scale));
    (0..=s.pos + i).map(score).collect()
}

/// Logarithm of the sum of the exponentials of `x`.
pub(crate) fn log_sum_exp<R: Real>(x: &[R]) -> R {
    let max = R::of(x.iter().fold(f64::NEG_INFINITY, |m, v| m.max(v.value())));
    let mut sum = R::of(0.0);
    for &v in x {
        sum += (v - max).exp();
    }
    max + sum.ln()
}

/// Output `[t, h * p]` and the logarithm of the sum of exponentials `[t, h]`.
pub(crate) fn attention<R: Real>(a: &Attention, x: &AttentionArrays<R>) -> (Vec<R>, Vec<R>) {
    let (q, k, v) = (operands(a, x.q), operands(a, x.k), operands(a, x.v));
    let x = &AttentionArrays { q: &q, k: &k, v: &v };
    let (mut y, mut lse_th) = (zeros(a.t * a.h * a.p), zeros(a.t * a.h));
    for s in a.spans {
        for i in 0..s.len {
            for h in 0..a.h {
                let scores = scores(a, x, s, i, h);
                let lse = log_sum_exp(&scores);
                lse_th[(s.start + i) * a.h + h] = lse;
                let at = a.q_at(s.start + i, h);
                for (j, &score) in scores.iter().enumerate() {
                    let weight = operand(a, (score - lse).exp());
                    for p in 0..a.p {
                        y[at + p] += weight * x.v[a.k_at(s, j, h) + p];
                    }
                }
            }
        }
    }
    (y, lse_th)
}

/// Gradients of `q`, `k` and `v`. With weights `w_j` and `D = dy . y`, `ds_j = w_j * (dy . v_j - D)`.
pub(crate) fn attention_bwd<R: Real>(
    a: &Attention,
    x: &AttentionArrays<R>,
    dy: &[R],
    y: &[R],
    lse_th: &[R],
) -> (Vec<R>, Vec<R>, Vec<R>) {
    let (q, k, v, dy) = (operands(a, x.q), operands(a, x.k), operands(a, x.v), operands(a, dy));
    let x = &AttentionArrays { q: &q, k: &k, v: &v };
    let (mut dq, mut dk, mut dv) = (zeros(x.q.len()), zeros(x.k.len()), zeros(x.v.len()));
    for s in a.spans {
        for i in 0..s.len {
            for h in 0..a.h {
                let at = a.q_at(s.start + i, h);
                let (dy, y) = (&dy[at..][..a.p], &y[at..][..a.p]);
                let dy_y = dot(dy, y);
                for (j, score) in scores(a, x, s, i, h).into_iter().enumerate() {
                    let key = a.k_at(s, j, h);
                    let weight = (score - lse_th[(s.start + i) * a.h + h]).exp();
                    let dscore = weight * (dot(dy, &x.v[key..][..a.p]) - dy_y) * R::of(f64::from(a.scale));
                    let (weight, dscore) = (operand(a, weight), operand(a, dscore));
                    for p in 0..a.p {
                        dv[key + p] += weight * dy[p];
                        dq[at + p] += dscore * x.k[key + p];
                        dk[key + p] += dscore * x.q[at + p];
                    }
                }
            }
        }
    }
    (dq, dk, dv)
}
