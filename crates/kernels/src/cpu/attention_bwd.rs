//! Backward pass of attention.
//!
//! The weights are computed again from the saved logarithms of their sums, once for the gradient of the
//! queries, with chunks of queries, and once for those of keys and values, with chunks of keys. Each
//! output is then summed by one thread in the order of the other side's positions.

use super::attention::{Arrays, KEYS, QUERIES, Rows, dots, weigh};
use super::math::exp_weight;
use super::norm::dot;
use super::split::{Columns, Runs, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V};
use super::{Cpu, GRAIN, scratch};
use crate::{Attention, Buf, Span, round_bf16};

/// See [`crate::Device::attention_bwd`].
#[allow(clippy::too_many_arguments)]
pub(super) fn attention_bwd(
    cpu: &Cpu,
    dq: &mut Buf,
    dk: &mut Buf,
    dv: &mut Buf,
    dy: &Buf,
    y: &Buf,
    lse: &Buf,
    a: Attention,
) {
    let arrays = Arrays::new(&a);
    assert!(a.slot_rows.is_none(), "gradients of attention need packed keys");
    let q_len = a.t * a.h * a.p;
    assert!(dq.len() == q_len && dy.len() == q_len && y.len() == q_len, "gradients of attention");
    assert!(
        dk.len() == a.k.len() && dv.len() == a.k.len() && lse.len() == a.t * a.h,
        "gradients of attention"
    );
    let (y, lse) = (y.f32(), lse.f32());
    let (q, k, v, dy) = (a.q.f32(), a.k.f32(), a.v.f32(), dy.f32());
    let grads = [dq.f32_mut(), dk.f32_mut(), dv.f32_mut()];
    if !a.bf16 {
        return backward(cpu, grads, y, lse, Inputs { dy, k, v, lse, means: &[], arrays });
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(amx) = cpu.isa.amx() {
        let inputs = super::tile_attention_bwd::Inputs { arrays, k, v, dy, y, lse };
        return super::tile_attention_bwd::attention_bwd(cpu, amx, grads, inputs);
    }
    // Operands that are rounded beforehand, and nothing else rounded.
    let (q_len, k_len) = (q.len().next_multiple_of(LANES), k.len().next_multiple_of(LANES));
    scratch::floats(2 * (q_len + k_len), |rounded| {
        let (queries, keys) = rounded.split_at_mut(2 * q_len);
        let ((q_, dy_), (k_, v_)) = (queries.split_at_mut(q_len), keys.split_at_mut(k_len));
        let [q, dy, k, v] = [(q_, q), (dy_, dy), (k_, k), (v_, v)].map(|(y, x)| rounded_copy(cpu, y, x));
        let arrays = Arrays { q, ..arrays };
        backward(cpu, grads, y, lse, Inputs { dy, k, v, lse, means: &[], arrays });
    });
}

/// `x` rounded to bf16, in the memory of `y`.
fn rounded_copy<'a>(cpu: &Cpu, y: &'a mut [f32], x: &[f32]) -> &'a [f32] {
    struct Round<'a>(&'a mut [f32], &'a [f32]);
    impl Op for Round<'_> {
        type Out = ();
        #[inline(always)]
        fn eval<S: Tier>(self) {
            for (y, x) in self.0.iter_mut().zip(self.1) {
                *y = round_bf16(*x);
            }
        }
    }
    let y = &mut y[..x.len()];
    cpu.split(x.len(), Runs::new(y, GRAIN), |index, y: &mut [f32]| {
        cpu.isa.run(Round(y, &x[index * GRAIN..]));
    });
    y
}

fn backward(cpu: &Cpu, [dq, dk, dv]: [&mut [f32]; 3], y: &[f32], lse: &[f32], inputs: Inputs) {
    let (a, dy) = (inputs.arrays, inputs.dy);
    scratch::floats(lse.len(), |means| {
        cpu.split(dy.len(), Runs::new(means, QUERIES * a.h), |index, means: &mut [f32]| {
            let from = index * QUERIES * a.h * a.p;
            cpu.isa.run(Means { means, dy: &dy[from..], y: &y[from..], p: a.p });
        });
        let inputs = Inputs { means, ..inputs };
        let work = a.pairs() * 2 * a.h * a.p;
        let columns = Columns::grouped(a.h * a.p, a.h, a.p);
        cpu.split(work, Tiles::new(dq, a.h * a.p, QUERIES, columns), |_, dq: Tile<f32>| {
            scratch::floats(2 * QUERIES * KEYS, |scores| cpu.isa.run(Queries { dq, scores, inputs }));
        });
        let columns = Columns::grouped(a.kv * a.p, a.kv, a.p);
        let parts = (Tiles::new(dk, a.kv * a.p, KEYS, columns), Tiles::new(dv, a.kv * a.p, KEYS, columns));
        cpu.split(work, parts, |_, (dk, dv): (Tile<f32>, Tile<f32>)| {
            scratch::floats(4 * KEYS * KEYS, |scores| cpu.isa.run(KeysValues { dk, dv, scores, inputs }));
        });
    });
}

/// `dy . y` of each query and head: the mean of the gradients of its scores.
struct Means<'a> {
    means: &'a mut [f32],
    dy: &'a [f32],
    y: &'a [f32],
    p: usize,
}

impl Op for Means<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        for (j, mean) in self.means.iter_mut().enumerate() {
            *mean = dot::<S>(&self.dy[j * self.p..][..self.p], &self.y[j * self.p..][..self.p]);
        }
    }
}

/// What both passes read.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    dy: &'a [f32],
    /// `[t, kv * p]` each.
    k: &'a [f32],
    v: &'a [f32],
    /// `[t, h]` each.
    lse: &'a [f32],
    means: &'a [f32],
    arrays: Arrays<'a>,
}

impl<'a> Inputs<'a> {
    /// Keys and values that query head `head` of `span` reads.
    fn keys(&self, span: &Span, head: usize) -> (Rows<'a>, Rows<'a>) {
        let rows = |x| self.arrays.like_k(x, head).from(span.start);
        (rows(self.k), rows(self.v))
    }

    /// Weight and gradient of the score of each pair of `rows` queries from packed row `row` and `keys` keys,
    /// in rows of [`KEYS`]. What a query does not see is there too, and meaningless.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn scores<S: Tier>(
        &self,
        weights: &mut [f32],
        dscores: &mut [f32],
        head: usize,
        row: usize,
        rows: usize,
        (k, v): (Rows<'a>, Rows<'a>),
        keys: usize,
    ) {
        let a = &self.arrays;
        dots::<S>(weights, a.queries(head).from(row), k, rows, keys);
        dots::<S>(dscores, a.like_q(self.dy, head).from(row), v, rows, keys);
        for r in 0..rows {
            let (lse, mean) = (self.lse[(row + r) * a.h + head], self.means[(row + r) * a.h + head]);
            let (lse, mean, scale) = (V::<S>::splat(lse), V::splat(mean), V::splat(a.scale));
            let (weights, dscores) = (&mut weights[r * KEYS..][..KEYS], &mut dscores[r * KEYS..][..KEYS]);
            let parts = weights.as_chunks_mut::<LANES>().0.iter_mut().zip(dscores.as_chunks_mut::<LANES>().0);
            for (w, d) in parts.take(keys.div_ceil(LANES)) {
                let weights = exp_weight(V::of(w) * scale - lse);
                weights.to(w);
                (weights * (V::of(d) - mean) * scale).to(d);
            }
        }
    }
}

/// The gradient of a block of queries of one head.
struct Queries<'a> {
    dq: Tile<'a, f32>,
    /// Weights and their gradients, `[QUERIES, KEYS]` each.
    scores: &'a mut [f32],
    inputs: Inputs<'a>,
}

impl Op for Queries<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let (a, first) = (self.inputs.arrays, self.dq.row);
        for (_, span, from, to) in a.meet(first, first + self.dq.rows) {
            self.span::<S>(span, from, to);
        }
    }
}

impl Queries<'_> {
    #[inline(always)]
    fn span<S: Tier>(&mut self, span: &Span, from: usize, to: usize) {
        let (head, count, pos) = (self.dq.group, to - from, from - span.start);
        let first = from - self.dq.row;
        let (k, v) = self.inputs.keys(span, head);
        let (weights, dscores) = self.scores.split_at_mut(QUERIES * KEYS);
        for key in (0..pos + count).step_by(KEYS) {
            let keys = KEYS.min(pos + count - key);
            self.inputs.scores::<S>(weights, dscores, head, from, count, (k.from(key), v.from(key)), keys);
            let blind = key.saturating_sub(pos).min(count);
            let seen = |r: usize| (0, keys.min(pos + r + 1 - key));
            weigh::<S>(&mut self.dq, first, blind, count, dscores, k.from(key), seen);
        }
    }
}

/// The gradients of a block of keys and values of one head.
struct KeysValues<'a> {
    dk: Tile<'a, f32>,
    dv: Tile<'a, f32>,
    /// Weights and their gradients, by query and by key, `[KEYS, KEYS]` each.
    scores: &'a mut [f32],
    inputs: Inputs<'a>,
}

impl Op for KeysValues<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let (a, first) = (self.inputs.arrays, self.dk.row);
        let group = a.h / a.kv;
        for (_, span, from, to) in a.meet(first, first + self.dk.rows) {
            for head in self.dk.group * group..(self.dk.group + 1) * group {
                self.span::<S>(span, head, from, to);
            }
        }
    }
}

impl KeysValues<'_> {
    /// Keys of packed rows `from .. to`, all of one span, as seen by one query head.
    #[inline(always)]
    fn span<S: Tier>(&mut self, span: &Span, head: usize, from: usize, to: usize) {
        let (a, keys) = (self.inputs.arrays, to - from);
        let (k, v) = self.inputs.keys(span, head);
        let pair = (k.from(from - span.start), v.from(from - span.start));
        let (by_query, by_key) = self.scores.split_at_mut(2 * KEYS * KEYS);
        let (weights, dscores) = by_query.split_at_mut(KEYS * KEYS);
        let (weights_k, dscores_k) = by_key.split_at_mut(KEYS * KEYS);
        let end = span.start + span.len;
        for row in (from..end).step_by(KEYS) {
            let rows = KEYS.min(end - row);
            self.inputs.scores::<S>(weights, dscores, head, row, rows, pair, keys);
            transpose(weights_k, weights, rows, keys);
            transpose(dscores_k, dscores, rows, keys);
            // Key `j` is seen by the queries of its own row and later ones.
            let seen = |j: usize| ((from + j).saturating_sub(row).min(rows), rows);
            let first = from - self.dk.row;
            let dy = a.like_q(self.inputs.dy, head).from(row);
            weigh::<S>(&mut self.dv, first, 0, keys, weights_k, dy, seen);
            weigh::<S>(&mut self.dk, first, 0, keys, dscores_k, a.queries(head).from(row), seen);
        }
    }
}

/// `y[c * KEYS + r] = x[r * KEYS + c]`
#[inline(always)]
fn transpose(y: &mut [f32], x: &[f32], rows: usize, cols: usize) {
    for r in 0..rows {
        for c in 0..cols {
            y[c * KEYS + r] = x[r * KEYS + c];
        }
    }
}
