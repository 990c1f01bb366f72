//! Causal attention that never holds more than a block of scores.
//!
//! Keys are taken in blocks cut at absolute positions, in order, with a running maximum and sum per query
//! (online softmax), so a query's result does not depend on the queries that share its call.
//!
//! This file has the kernel that computes in vectors. Where keys and values lie, and how they are multiplied,
//! is left to a [`Source`]: rows of f32 here, blocks of bf16 in [`super::attention_bf16`].

use super::kv::with_blocks;
use super::math::exp_weight;
use super::split::{Columns, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V};
use super::{Cpu, scratch};
use crate::{Attention, Buf, Span};

/// Keys per block: with [`QUERIES`] 8 KiB of scores; a block of keys or values of width 128 is 32 KiB.
pub(super) const KEYS: usize = 64;
/// Queries per chunk.
pub(super) const QUERIES: usize = 32;
/// Queries that a chunk may have beyond that, rather than leave a few that read all keys for themselves.
const SPARE: usize = 8;
/// Most queries of a chunk.
const MOST: usize = QUERIES + SPARE;
/// Queries from which on they, and each block of keys and values, are copied together before they meet. Rows of one head
/// are as far apart as those of all heads, often a power of two, so that a block of them fits no first-level cache.
const MANY: usize = 8;

/// Queries per chunk of `t` in all.
fn queries(t: usize) -> usize {
    let chunks = t.saturating_sub(SPARE).div_ceil(QUERIES).max(1);
    t.div_ceil(chunks).max(1)
}

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

    /// Rows `rows` as far as there are any.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn prefetch(&self, rows: std::ops::Range<usize>) {
        for r in rows {
            let row = self.x.get(self.at + r * self.stride..).unwrap_or_default();
            super::amx::prefetch(&row[..self.width.min(row.len())]);
        }
    }

    /// The same rows, counted from row `r`.
    pub(super) fn from(self, r: usize) -> Self {
        Rows { at: self.at + r * self.stride, ..self }
    }

    /// The first `count` rows, copied to memory side by side if `queries` are many.
    #[inline(always)]
    fn near<'m>(self, memory: &'m mut [f32], count: usize, queries: usize) -> Rows<'m>
    where
        'a: 'm,
    {
        if queries < MANY {
            return self;
        }
        for (r, row) in memory.chunks_exact_mut(self.width.max(1)).take(count).enumerate() {
            row.copy_from_slice(self.row(r));
        }
        Rows { x: memory, at: 0, stride: self.width, width: self.width }
    }
}

/// Sizes and queries of an attention.
#[derive(Clone, Copy)]
pub(super) struct Arrays<'a> {
    pub(super) h: usize,
    pub(super) kv: usize,
    pub(super) p: usize,
    pub(super) scale: f32,
    pub(super) spans: &'a [Span],
    pub(super) q: &'a [f32],
}

impl<'a> Arrays<'a> {
    /// # Panics
    /// If an array has the wrong size, or a span lies outside its array.
    pub(super) fn new(a: &Attention<'a>) -> Self {
        assert!(a.kv > 0 && a.h.is_multiple_of(a.kv), "{} query heads over {} key heads", a.h, a.kv);
        assert!(a.q.len() == a.t * a.h * a.p && a.k.len() == a.v.len(), "arrays of attention");
        let packed = a.slot_rows.is_none();
        assert!(!packed || a.k.len() == a.t * a.kv * a.p, "packed keys of attention");
        for s in a.spans {
            assert!(a.slot_rows.map_or(s.pos == 0, |rows| s.pos + s.len <= rows), "rows of a slot");
            assert!(s.start + s.len <= a.t, "spans of attention");
        }
        Arrays { h: a.h, kv: a.kv, p: a.p, scale: a.scale, spans: a.spans, q: a.q.f32() }
    }

    /// An array laid out as the queries are, for query head `head`.
    pub(super) fn like_q(&self, x: &'a [f32], head: usize) -> Rows<'a> {
        Rows { x, at: head * self.p, stride: self.h * self.p, width: self.p }
    }

    pub(super) fn queries(&self, head: usize) -> Rows<'a> {
        self.like_q(self.q, head)
    }

    /// Rows of an array laid out as packed keys are, of the head that query head `head` reads.
    pub(super) fn like_k(&self, x: &'a [f32], head: usize) -> Rows<'a> {
        Rows { x, at: head / (self.h / self.kv) * self.p, stride: self.kv * self.p, width: self.p }
    }

    /// The spans that meet rows `first .. last`, each with its number and the rows they share.
    pub(super) fn meet(
        &self,
        first: usize,
        last: usize,
    ) -> impl Iterator<Item = (usize, &'a Span, usize, usize)> {
        let skip = self.spans.partition_point(|s| s.start + s.len <= first);
        let spans = self.spans.iter().enumerate().skip(skip).take_while(move |(_, s)| s.start < last);
        spans.map(move |(index, s)| (index, s, first.max(s.start), last.min(s.start + s.len)))
    }

    /// Pairs of queries and keys, a measure of work.
    pub(super) fn pairs(&self) -> usize {
        self.spans.iter().map(|s| s.len * (s.pos + s.len)).sum()
    }
}

/// See [`crate::Device::attention`].
pub(super) fn attention(cpu: &Cpu, y: &mut Buf, lse: Option<&mut Buf>, a: Attention) {
    let arrays = Arrays::new(&a);
    assert_eq!(y.len(), a.q.len(), "output of attention");
    assert!(lse.as_ref().is_none_or(|l| l.len() == a.t * a.h), "sums of attention");
    let (y, lse) = (y.f32_mut(), lse.map(Buf::f32_mut));
    if a.bf16 {
        with_blocks(cpu, &a, |blocks| {
            #[cfg(target_arch = "x86_64")]
            if let Some(amx) = cpu.isa.amx() {
                return super::tile_attention::attention(cpu, amx, y, lse, arrays, blocks);
            }
            forward(cpu, y, lse, arrays, blocks);
        });
    } else {
        let source = InRows { arrays, k: a.k.f32(), v: a.v.f32(), slot_rows: a.slot_rows };
        forward(cpu, y, lse, arrays, source);
    }
}

fn forward<K: Source>(cpu: &Cpu, y: &mut [f32], lse: Option<&mut [f32]>, arrays: Arrays, source: K) {
    let Arrays { h, p, .. } = arrays;
    let block = queries(y.len() / (h * p).max(1));
    let lens = [block * KEYS, block * K::width(p), K::block_len(p), block * p];
    let parts = (
        Tiles::new(y, h * p, block, Columns::grouped(h * p, h, p)),
        lse.map(|l| Tiles::new(l, h, block, Columns::grouped(h, h, 1))),
    );
    cpu.split(2 * arrays.pairs() * h * p, parts, |_, (y, lse): (Tile<f32>, Option<Tile<f32>>)| {
        scratch::floats(lens.iter().sum(), |memory| {
            let [scores, queries, near, sums] = scratch::parts(memory, lens);
            let running = [(0.0, 0.0); MOST];
            cpu.isa.run(Forward { y, lse, scores, queries, near, sums, running, arrays, source });
        });
    });
}

/// Where keys and values lie.
pub(super) trait Source: Copy + Send + Sync {
    /// Those of one head of one sequence.
    type Head: Keys;
    /// Columns of a query that was arranged for the products, 0 if it need not be.
    fn width(p: usize) -> usize;
    /// Numbers that [`Keys::keys`] and [`Keys::values`] need memory for.
    fn block_len(p: usize) -> usize;
    /// Those that query head `head` of span `span`, the `index`-th of the call, reads.
    fn head(&self, index: usize, span: &Span, head: usize) -> Self::Head;
}

/// Keys and values of one head of one sequence.
pub(super) trait Keys: Copy {
    /// Keys, or values, of [`KEYS`] positions.
    type Block<'m>: Block
    where
        Self: 'm;
    /// Rows of `q` as [`Block::dots`] takes them, with the help of memory for [`Source::width`] columns of each.
    fn arrange<'q>(memory: &'q mut [f32], q: Rows<'q>, rows: usize) -> Rows<'q>;
    /// `count` keys from `first`, a multiple of [`KEYS`], on, for `rows` queries to meet, with the help of memory for
    /// [`Source::block_len`] numbers.
    fn keys<'m>(self, memory: &'m mut [f32], first: usize, count: usize, rows: usize) -> Self::Block<'m>
    where
        Self: 'm;
    /// As [`Keys::keys`], of values.
    fn values<'m>(self, memory: &'m mut [f32], first: usize, count: usize, rows: usize) -> Self::Block<'m>
    where
        Self: 'm;
}

/// The two products of attention, one with keys and one with values.
pub(super) trait Block: Copy {
    /// `scores[q * KEYS + k] = q_q . key_k` for `rows` queries and `keys` keys.
    fn dots<S: Tier>(&self, scores: &mut [f32], q: Rows, rows: usize, keys: usize);
    /// Adds `sum_k weights[r * KEYS + k] * value_k` to rows `r` of `y`, for `r` in `from .. to` and the keys that each
    /// sees, the first `seen(r)`. The weights of all others that the last row sees are zero.
    fn weigh<S: Tier>(
        &self,
        y: &mut Tile<f32>,
        from: usize,
        to: usize,
        weights: &[f32],
        seen: impl Fn(usize) -> usize,
    );
}

/// Keys and values in f32, `[rows, kv * p]`: packed or in a cache.
#[derive(Clone, Copy)]
struct InRows<'a> {
    arrays: Arrays<'a>,
    k: &'a [f32],
    v: &'a [f32],
    slot_rows: Option<usize>,
}

impl<'a> Source for InRows<'a> {
    type Head = (Rows<'a>, Rows<'a>);

    fn width(p: usize) -> usize {
        p
    }

    fn block_len(p: usize) -> usize {
        KEYS * p
    }

    #[inline(always)]
    fn head(&self, _: usize, span: &Span, head: usize) -> Self::Head {
        let first = self.slot_rows.map_or(span.start, |rows| span.slot * rows);
        (self.arrays.like_k(self.k, head).from(first), self.arrays.like_k(self.v, head).from(first))
    }
}

impl<'a> Keys for (Rows<'a>, Rows<'a>) {
    type Block<'m>
        = Rows<'m>
    where
        'a: 'm;

    #[inline(always)]
    fn arrange<'q>(memory: &'q mut [f32], q: Rows<'q>, rows: usize) -> Rows<'q> {
        q.near(memory, rows, rows)
    }

    #[inline(always)]
    fn keys<'m>(self, memory: &'m mut [f32], first: usize, count: usize, rows: usize) -> Rows<'m>
    where
        'a: 'm,
    {
        self.0.from(first).near(memory, count, rows)
    }

    #[inline(always)]
    fn values<'m>(self, memory: &'m mut [f32], first: usize, count: usize, rows: usize) -> Rows<'m>
    where
        'a: 'm,
    {
        self.1.from(first).near(memory, count, rows)
    }
}

impl Block for Rows<'_> {
    #[inline(always)]
    fn dots<S: Tier>(&self, scores: &mut [f32], q: Rows, rows: usize, keys: usize) {
        dots::<S>(scores, q, *self, rows, keys);
    }

    #[inline(always)]
    fn weigh<S: Tier>(
        &self,
        y: &mut Tile<f32>,
        from: usize,
        to: usize,
        weights: &[f32],
        seen: impl Fn(usize) -> usize,
    ) {
        weigh::<S>(y, 0, from, to, weights, *self, |r| (0, seen(r)));
    }
}

struct Forward<'a, K> {
    y: Tile<'a, f32>,
    lse: Option<Tile<'a, f32>>,
    /// `[queries, KEYS]`
    scores: &'a mut [f32],
    /// Arranged queries, `[queries, K::width(p)]`.
    queries: &'a mut [f32],
    /// Memory for a block of keys or values.
    near: &'a mut [f32],
    /// Outputs before they are scaled, `[queries, p]`.
    sums: &'a mut [f32],
    /// Maximum so far, and sum of exponentials relative to it, per query.
    running: [(f32, f32); MOST],
    arrays: Arrays<'a>,
    source: K,
}

impl<K: Source> Op for Forward<'_, K> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let (a, first) = (self.arrays, self.y.row);
        for (index, span, from, to) in a.meet(first, first + self.y.rows) {
            self.span::<S>(index, span, from, to);
        }
    }
}

impl<K: Source> Forward<'_, K> {
    /// Queries of packed rows `from .. to`, all of one span.
    #[inline(always)]
    fn span<S: Tier>(&mut self, index: usize, span: &Span, from: usize, to: usize) {
        let (head, count, row) = (self.y.group, to - from, from - self.y.row);
        let kv = self.source.head(index, span, head);
        let q = K::Head::arrange(self.queries, self.arrays.queries(head).from(from), count);
        let pos = span.pos + from - span.start;
        self.running = [(f32::NEG_INFINITY, 0.0); MOST];
        let mut sums = Tile::over(&mut self.sums[..count * self.arrays.p], self.arrays.p);
        for r in 0..count {
            sums.row_mut(r).fill(0.0);
        }
        for key in (0..pos + count).step_by(KEYS) {
            let keys = KEYS.min(pos + count - key);
            kv.keys(self.near, key, keys, count).dots::<S>(self.scores, q, count, keys);
            let seen = |r: usize| keys.min(pos + r + 1 - key);
            // Queries before the block see none of it; they come first.
            let blind = key.saturating_sub(pos).min(count);
            for r in blind..count {
                let scores = &mut self.scores[r * KEYS..][..KEYS];
                let keep = soften::<S>(scores, &mut self.running[r], seen(r), self.arrays.scale);
                if keep != 1.0 {
                    sums.row_mut(r).iter_mut().for_each(|sum| *sum *= keep);
                }
            }
            let values = kv.values(self.near, key, keys, count);
            values.weigh::<S>(&mut sums, blind, count, self.scores, seen);
        }
        for r in 0..count {
            let (max, sum) = self.running[r];
            let scale = 1.0 / sum;
            // Adding zero makes one of both zeros, whichever a sum of nothing but zeros came to.
            for (y, sum) in self.y.row_mut(row + r).iter_mut().zip(sums.row(r)) {
                *y = sum * scale + 0.0;
            }
            if let Some(lse) = &mut self.lse {
                lse.row_mut(row + r)[0] = max + f64::from(sum).ln() as f32;
            }
        }
    }
}

/// Turns the scores of a block into weights relative to the new maximum, adds them to the running sum and
/// returns the factor for what was summed before. Scores from `seen` on are not the query's to see.
#[inline(always)]
fn soften<S: Tier>(row: &mut [f32], running: &mut (f32, f32), seen: usize, scale: f32) -> f32 {
    let row: &mut [f32; KEYS] = row.try_into().expect("the scores of a block");
    let mut scores = [V::<S>::zero(); KEYS / LANES];
    for (j, part) in row.as_chunks().0.iter().enumerate() {
        scores[j] = V::of(part) * V::splat(scale);
    }
    if seen < KEYS {
        for (j, part) in row.as_chunks_mut().0.iter_mut().enumerate() {
            scores[j].to(part);
        }
        row[seen..].fill(f32::NEG_INFINITY);
        for (j, part) in row.as_chunks().0.iter().enumerate() {
            scores[j] = V::of(part);
        }
    }
    let mut top = V::splat(f32::NEG_INFINITY);
    for j in 0..scores.len() {
        top = scores[j].larger(top);
    }
    // NaN scores are passed over here, but their exponentials below are NaN, and so is the sum.
    let max = running.0.max(top.max());
    let shift = V::splat(max);
    let mut sum = V::zero();
    for (j, part) in row.as_chunks_mut().0.iter_mut().enumerate() {
        let weights = exp_weight(scores[j] - shift);
        weights.to(part);
        sum = sum + weights;
    }
    let keep = exp_weight(V::<S>::splat(running.0 - max)).lanes()[0];
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
            let (a, b) = (a.from(q), b.from(k));
            let mut tile = [V::zero(); LANES];
            if S::WIDE {
                put::<S, 4, 4>(&mut tile, 0, 0, dot_tile(a, b));
            } else {
                for (r, c) in [(0, 0), (0, 2), (2, 0), (2, 2)] {
                    put::<S, 2, 2>(&mut tile, r, c, dot_tile(a.from(r), b.from(c)));
                }
            }
            let done = V::sums(tile).lanes();
            for (r, done) in done.as_chunks::<4>().0.iter().enumerate() {
                scores[(q + r) * KEYS + k..][..4].copy_from_slice(done);
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
        let mut tile = [V::zero(); LANES];
        put::<S, 1, 8>(&mut tile, 0, 0, dot_tile(a, b.from(k)));
        scores[k..][..8].copy_from_slice(&V::sums(tile).lanes()[..8]);
        k += 8;
    }
    while k < scores.len() {
        let [[lanes]] = dot_tile::<S, 1, 1>(a, b.from(k));
        scores[k] = lanes.sum();
        k += 1;
    }
}

/// Puts the lanes of `M` times `N` products among those of rows of four, from row `r` and column `c` on.
#[inline(always)]
fn put<S: Tier, const M: usize, const N: usize>(
    tile: &mut [V<S>; LANES],
    r: usize,
    c: usize,
    products: [[V<S>; N]; M],
) {
    for m in 0..M {
        for n in 0..N {
            tile[4 * (r + m) + c + n] = products[m][n];
        }
    }
}

/// The lanes of the products of `M` rows with `N` rows. They come back by value: written to a slice, they would be in memory in
/// the loop too.
#[inline(always)]
fn dot_tile<S: Tier, const M: usize, const N: usize>(a: Rows, b: Rows) -> [[V<S>; N]; M] {
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
    sum
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
    // Rows of known length leave no checks in the loop, which would keep sums from staying in one place.
    assert!(end <= KEYS, "keys of a block");
    let mut rows = [&[0.0; KEYS]; M];
    for r in 0..M {
        rows[r] = weights[r * KEYS..].first_chunk().expect("weights of a block");
    }
    for k in start..end {
        let x = &x.row(k)[c..];
        let mut xs = [V::zero(); N];
        for j in 0..N {
            xs[j] = if N == 1 { V::load_part(x) } else { V::load(&x[j * LANES..]) };
        }
        for r in 0..M {
            let weight = V::splat(rows[r][k]);
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
