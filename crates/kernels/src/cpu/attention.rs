//! Causal attention that never holds more than a block of scores.
//!
//! Keys are taken in blocks cut at absolute positions, in order, with a running maximum and sum per query
//! (online softmax), so a query's result does not depend on the queries that share its call.

use super::math::exp;
use super::split::{Columns, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V};
use super::{Cpu, scratch};
use crate::{Attention, Buf, Span};

/// Keys per block: with [`QUERIES`] 8 KiB of scores; a block of keys or values of width 128 is 32 KiB.
pub(super) const KEYS: usize = 64;
/// Queries per chunk.
pub(super) const QUERIES: usize = 32;

/// Rows of one head in a row-major array: row `r` is elements `at + r * stride ..+ width`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) x: &'a [f32],
    pub(super) at: usize,
    pub(super) stride: usize,
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> &'a [f32] {
        &self.x[self.at + r * self.stride..][..self.width]
    }

    /// The same rows, counted from row `r`.
    pub(super) fn from(self, r: usize) -> Self {
        Rows { at: self.at + r * self.stride, ..self }
    }
}

/// The arrays of an attention as slices.
#[derive(Clone, Copy)]
pub(super) struct Arrays<'a> {
    pub(super) h: usize,
    pub(super) kv: usize,
    pub(super) p: usize,
    pub(super) scale: f32,
    pub(super) spans: &'a [Span],
    pub(super) slot_rows: Option<usize>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl<'a> Arrays<'a> {
    /// # Panics
    /// If an array has the wrong size, or a span lies outside its array.
    pub(super) fn new(a: &Attention<'a>) -> Self {
        assert!(a.kv > 0 && a.h.is_multiple_of(a.kv), "{} query heads over {} key heads", a.h, a.kv);
        assert!(a.q.len() == a.t * a.h * a.p && a.k.len() == a.v.len(), "arrays of attention");
        let (q, k, v) = (a.q.f32(), a.k.f32(), a.v.f32());
        for s in a.spans {
            let first = a.slot_rows.map_or(s.start, |rows| s.slot * rows);
            assert!(a.slot_rows.is_some_and(|rows| s.pos + s.len <= rows) || s.pos == 0, "rows of a slot");
            assert!((first + s.pos + s.len) * a.kv * a.p <= k.len(), "rows of keys");
            assert!(s.start + s.len <= a.t, "spans of attention");
        }
        let (spans, slot_rows) = (a.spans, a.slot_rows);
        Arrays { h: a.h, kv: a.kv, p: a.p, scale: a.scale, spans, slot_rows, q, k, v }
    }

    /// An array laid out as the queries are, for query head `head`.
    pub(super) fn like_q(&self, x: &'a [f32], head: usize) -> Rows<'a> {
        Rows { x, at: head * self.p, stride: self.h * self.p, width: self.p }
    }

    pub(super) fn queries(&self, head: usize) -> Rows<'a> {
        self.like_q(self.q, head)
    }

    /// Keys and values of a span that query head `head` reads, by position.
    pub(super) fn keys(&self, span: &Span, head: usize) -> (Rows<'a>, Rows<'a>) {
        let first = self.slot_rows.map_or(span.start, |rows| span.slot * rows);
        let stride = self.kv * self.p;
        let at = first * stride + head / (self.h / self.kv) * self.p;
        let rows = |x| Rows { x, at, stride, width: self.p };
        (rows(self.k), rows(self.v))
    }

    /// The spans that meet rows `first .. last`, each with the rows they share.
    pub(super) fn meet(&self, first: usize, last: usize) -> impl Iterator<Item = (&'a Span, usize, usize)> {
        let skip = self.spans.partition_point(|s| s.start + s.len <= first);
        let spans = self.spans[skip..].iter().take_while(move |s| s.start < last);
        spans.map(move |s| (s, first.max(s.start), last.min(s.start + s.len)))
    }
}

/// See [`crate::Device::attention`].
pub(super) fn attention(cpu: &Cpu, y: &mut Buf, lse: Option<&mut Buf>, a: Attention) {
    let arrays = Arrays::new(&a);
    assert_eq!(y.len(), a.q.len(), "output of attention");
    assert!(lse.as_ref().is_none_or(|l| l.len() == a.t * a.h), "sums of attention");
    let parts = (
        Tiles::new(y.f32_mut(), a.h * a.p, QUERIES, Columns::grouped(a.h * a.p, a.h, a.p)),
        lse.map(|l| Tiles::new(l.f32_mut(), a.h, QUERIES, Columns::grouped(a.h, a.h, 1))),
    );
    let pairs: usize = a.spans.iter().map(|s| s.len * (s.pos + s.len)).sum();
    cpu.split(2 * pairs * a.h * a.p, parts, |_, (y, lse): (Tile<f32>, Option<Tile<f32>>)| {
        scratch::floats(QUERIES * KEYS, |scores| {
            cpu.isa.run(Forward { y, lse, scores, running: [(0.0, 0.0); QUERIES], arrays });
        });
    });
}

struct Forward<'a> {
    y: Tile<'a, f32>,
    lse: Option<Tile<'a, f32>>,
    /// `[QUERIES, KEYS]`
    scores: &'a mut [f32],
    /// Maximum so far, and sum of exponentials relative to it, per query.
    running: [(f32, f32); QUERIES],
    arrays: Arrays<'a>,
}

impl Op for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let (a, first) = (self.arrays, self.y.row);
        for (span, from, to) in a.meet(first, first + self.y.rows) {
            self.span::<S>(span, from, to);
        }
    }
}

impl Forward<'_> {
    /// Queries of packed rows `from .. to`, all of one span.
    #[inline(always)]
    fn span<S: Tier>(&mut self, span: &Span, from: usize, to: usize) {
        let (head, count, tile_row) = (self.y.group, to - from, from - self.y.row);
        let q = self.arrays.queries(head).from(from);
        let (k, v) = self.arrays.keys(span, head);
        let pos = span.pos + from - span.start;
        self.running = [(f32::NEG_INFINITY, 0.0); QUERIES];
        for r in 0..count {
            self.y.row_mut(tile_row + r).fill(0.0);
        }
        for key in (0..pos + count).step_by(KEYS) {
            let keys = KEYS.min(pos + count - key);
            dots::<S>(self.scores, q, k.from(key), count, keys);
            // Queries before the block see none of it; they come first.
            let blind = key.saturating_sub(pos).min(count);
            for r in blind..count {
                let seen = keys.min(pos + r + 1 - key);
                let row = &mut self.scores[r * KEYS..][..KEYS];
                let keep = soften::<S>(row, &mut self.running[r], seen, self.arrays.scale);
                if keep != 1.0 {
                    self.y.row_mut(tile_row + r).iter_mut().for_each(|y| *y *= keep);
                }
            }
            let seen = |r: usize| (0, keys.min(pos + r + 1 - key));
            weigh::<S>(&mut self.y, tile_row, blind, count, self.scores, v.from(key), seen);
        }
        for r in 0..count {
            let (max, sum) = self.running[r];
            let scale = 1.0 / sum;
            self.y.row_mut(tile_row + r).iter_mut().for_each(|y| *y *= scale);
            if let Some(lse) = &mut self.lse {
                lse.row_mut(tile_row + r)[0] = max + f64::from(sum).ln() as f32;
            }
        }
    }
}

/// Turns the scores of a block into weights relative to the new maximum, adds them to the running sum and
/// returns the factor for what was summed before. Scores from `seen` on are not the query's to see.
#[inline(always)]
fn soften<S: Tier>(row: &mut [f32], running: &mut (f32, f32), seen: usize, scale: f32) -> f32 {
    for part in row.as_chunks_mut::<LANES>().0 {
        (V::<S>::of(part) * V::splat(scale)).to(part);
    }
    row[seen..].fill(f32::NEG_INFINITY);
    let mut top = V::<S>::splat(f32::NEG_INFINITY);
    for part in row.as_chunks::<LANES>().0 {
        top = V::of(part).larger(top);
    }
    // NaN scores are passed over here, but their exponentials below are NaN, and so is the sum.
    let max = running.0.max(top.max());
    let shift = V::<S>::splat(max);
    let mut sum = V::zero();
    for part in row.as_chunks_mut::<LANES>().0 {
        let weights = exp(V::of(part) - shift);
        weights.to(part);
        sum = sum + weights;
    }
    let keep = exp(V::<S>::splat(running.0 - max)).lanes()[0];
    *running = (max, S::fma1(running.1, keep, sum.sum()));
    keep
}

/// `scores[q * KEYS + k] = a_q . b_k` for `na` rows of `a` and `nb` of `b`, each product in 16 lanes along
/// the width, which are added by halving.
#[inline(always)]
pub(super) fn dots<S: Tier>(scores: &mut [f32], a: Rows, b: Rows, na: usize, nb: usize) {
    let mut q = 0;
    while q < na {
        let quads = if q + 4 <= na { nb - nb % 4 } else { 0 };
        let rows = if quads > 0 { 4 } else { 1 };
        for k in (0..quads).step_by(4) {
            let mut tile = [V::<S>::zero(); LANES];
            if S::WIDE {
                dot_tile::<S, 4, 4>(&mut tile, a.from(q), b.from(k));
            } else {
                for pair in 0..2 {
                    let half = &mut tile[8 * pair..][..8];
                    dot_tile::<S, 2, 2>(&mut half[..4], a.from(q + 2 * pair), b.from(k));
                    dot_tile::<S, 2, 2>(&mut half[4..], a.from(q + 2 * pair), b.from(k + 2));
                }
            }
            let done = V::sums(tile).lanes();
            for r in 0..4 {
                for c in 0..4 {
                    let at =
                        if S::WIDE { 4 * r + c } else { 8 * (r / 2) + 4 * (c / 2) + 2 * (r % 2) + c % 2 };
                    scores[(q + r) * KEYS + k + c] = done[at];
                }
            }
        }
        for r in q..q + rows {
            dots_of_row::<S>(&mut scores[r * KEYS..][..nb], a.row(r), b, quads);
        }
        q += rows;
    }
}

/// The products of one row with rows `from ..` of `b`, eight at a time.
#[inline(always)]
fn dots_of_row<S: Tier>(scores: &mut [f32], a: &[f32], b: Rows, from: usize) {
    let a = Rows { x: a, at: 0, stride: 0, width: a.len() };
    let mut k = from;
    while k + 8 <= scores.len() {
        let mut tile = [V::<S>::zero(); LANES];
        dot_tile::<S, 1, 8>(&mut tile[..8], a, b.from(k));
        scores[k..][..8].copy_from_slice(&V::sums(tile).lanes()[..8]);
        k += 8;
    }
    while k < scores.len() {
        let mut tile = [V::<S>::zero()];
        dot_tile::<S, 1, 1>(&mut tile, a, b.from(k));
        scores[k] = tile[0].sum();
        k += 1;
    }
}

/// The lanes of the products of `M` rows with `N` rows.
#[inline(always)]
fn dot_tile<S: Tier, const M: usize, const N: usize>(tile: &mut [V<S>], a: Rows, b: Rows) {
    let full = a.width / LANES;
    let mut a_rows: [&[[f32; LANES]]; M] = [&[]; M];
    let mut b_rows: [&[[f32; LANES]]; N] = [&[]; N];
    for r in 0..M {
        a_rows[r] = &a.row(r).as_chunks().0[..full];
    }
    for c in 0..N {
        b_rows[c] = &b.row(c).as_chunks().0[..full];
    }
    let mut sum = [[V::<S>::zero(); N]; M];
    for k in 0..full {
        for r in 0..M {
            for c in 0..N {
                sum[r][c] = V::of(&a_rows[r][k]).fma(V::of(&b_rows[c][k]), sum[r][c]);
            }
        }
    }
    if !a.width.is_multiple_of(LANES) {
        for r in 0..M {
            let a = V::load_part(&a.row(r)[full * LANES..]);
            for c in 0..N {
                sum[r][c] = a.fma(V::load_part(&b.row(c)[full * LANES..]), sum[r][c]);
            }
        }
    }
    for r in 0..M {
        tile[r * N..][..N].copy_from_slice(&sum[r]);
    }
}

/// Adds `sum_k weights[r * KEYS + k] * x_k` to row `first + r` of `y` for `r` in `from .. to`, in order of
/// `k` from `seen(r).0` to `seen(r).1`.
#[inline(always)]
pub(super) fn weigh<S: Tier>(
    y: &mut Tile<f32>,
    first: usize,
    from: usize,
    to: usize,
    weights: &[f32],
    x: Rows,
    seen: impl Fn(usize) -> (usize, usize),
) {
    let mut r = from;
    while r < to {
        let (start, end) = seen(r);
        let quad = r + 4 <= to && (1..4).all(|j| seen(r + j) == (start, end));
        let weights = &weights[r * KEYS..];
        if quad {
            weigh_rows::<S, 4>(y, first + r, weights, x, start, end);
            r += 4;
        } else {
            weigh_rows::<S, 1>(y, first + r, weights, x, start, end);
            r += 1;
        }
    }
}

#[inline(always)]
fn weigh_rows<S: Tier, const M: usize>(
    y: &mut Tile<f32>,
    row: usize,
    weights: &[f32],
    x: Rows,
    start: usize,
    end: usize,
) {
    let mut c = 0;
    while c < x.width {
        if S::WIDE && c + 4 * LANES <= x.width {
            weigh_tile::<S, M, 4>(y, row, weights, x, start, end, c);
            c += 4 * LANES;
        } else if c + 2 * LANES <= x.width {
            weigh_tile::<S, M, 2>(y, row, weights, x, start, end, c);
            c += 2 * LANES;
        } else {
            weigh_tile::<S, M, 1>(y, row, weights, x, start, end, c);
            c += LANES;
        }
    }
}

/// `M` rows and `N` vectors of columns from `c`.
#[inline(always)]
fn weigh_tile<S: Tier, const M: usize, const N: usize>(
    y: &mut Tile<f32>,
    row: usize,
    weights: &[f32],
    x: Rows,
    start: usize,
    end: usize,
    c: usize,
) {
    let mut sum = [[V::<S>::zero(); N]; M];
    for r in 0..M {
        for j in 0..N {
            sum[r][j] = V::load_part(&y.row(row + r)[c + j * LANES..]);
        }
    }
    for k in start..end {
        let x = &x.row(k)[c..];
        let mut xs = [V::zero(); N];
        for j in 0..N {
            xs[j] = if N == 1 { V::load_part(x) } else { V::load(&x[j * LANES..]) };
        }
        for r in 0..M {
            let weight = V::splat(weights[r * KEYS + k]);
            for j in 0..N {
                sum[r][j] = weight.fma(xs[j], sum[r][j]);
            }
        }
    }
    for r in 0..M {
        for j in 0..N {
            sum[r][j].store_part(&mut y.row_mut(row + r)[c + j * LANES..]);
        }
    }
}
