//! The two products of attention in vectors, with keys and values in bf16 as [`super::kv`] arranges them.
//!
//! Weights of the softmax stay f32: only tile units need them rounded.

use half::bf16;

use super::attention::{Block, KEYS, Keys, Rows, Source};
use super::kv::{BLOCK, Blocks, HeadBlocks, STEP, Shape};
use super::split::Tile;
use super::tier::{LANES, Tier, V};
use crate::{Span, round_bf16};

impl<'a> Source for Blocks<'a> {
    type Head = HeadBlocks<'a>;

    fn width(p: usize) -> usize {
        Shape { kv: 1, p }.padded()
    }

    fn block_len(_: usize) -> usize {
        0
    }

    #[inline(always)]
    fn head(&self, index: usize, span: &Span, head: usize) -> HeadBlocks<'a> {
        self.query_head(index, span, head)
    }
}

impl<'a> Keys for HeadBlocks<'a> {
    type Block<'m>
        = HeadBlocks<'m>
    where
        'a: 'm;

    /// Rounded, and of each step the even columns before the odd ones, as pairs come apart.
    #[inline(always)]
    fn arrange<'q>(memory: &'q mut [f32], q: Rows<'q>, rows: usize) -> Rows<'q> {
        let width = Blocks::width(q.width);
        memory.fill(0.0);
        for (r, row) in memory.chunks_exact_mut(width).take(rows).enumerate() {
            for (y, x) in row.chunks_exact_mut(STEP).zip(q.row(r).chunks(STEP)) {
                for (i, x) in x.iter().enumerate() {
                    y[i / 2 + i % 2 * LANES] = round_bf16(*x);
                }
            }
        }
        Rows { x: memory, at: 0, stride: width, width }
    }

    #[inline(always)]
    fn keys<'m>(self, _: &'m mut [f32], first: usize, _: usize, _: usize) -> HeadBlocks<'m>
    where
        'a: 'm,
    {
        self.from(first / BLOCK)
    }

    #[inline(always)]
    fn values<'m>(self, _: &'m mut [f32], first: usize, _: usize, _: usize) -> HeadBlocks<'m>
    where
        'a: 'm,
    {
        self.from(first / BLOCK)
    }
}

impl Block for HeadBlocks<'_> {
    #[inline(always)]
    fn dots<S: Tier>(&self, scores: &mut [f32], q: Rows, rows: usize, keys: usize) {
        for from in (0..keys).step_by(BLOCK) {
            let keys = BLOCK.min(keys - from);
            let block = self.keys_from(from / BLOCK).as_chunks().0;
            let scores = &mut scores[from..];
            let mut r = 0;
            while S::WIDE && r + 4 <= rows {
                block_dots::<S, 4, 4>(scores, q.from(r), r, block, keys);
                r += 4;
            }
            while r + 2 <= rows {
                block_dots::<S, 2, 2>(scores, q.from(r), r, block, keys);
                r += 2;
            }
            if r < rows {
                block_dots::<S, 1, 4>(scores, q.from(r), r, block, keys);
            }
        }
    }

    /// Keys that a query does not see have a weight of zero, so all rows take the same keys.
    #[inline(always)]
    fn weigh<S: Tier>(
        &self,
        y: &mut Tile<f32>,
        from: usize,
        to: usize,
        weights: &[f32],
        seen: impl Fn(usize) -> usize,
    ) {
        let keys = if from < to { seen(to - 1) } else { 0 };
        for at in (0..keys).step_by(BLOCK) {
            let pairs = BLOCK.min(keys - at).div_ceil(2);
            let block = self.values_from(at / BLOCK).as_chunks().0;
            let mut r = from;
            while r + 4 <= to {
                weigh_block::<S, 4>(y, r, &weights[r * KEYS + at..], block, pairs);
                r += 4;
            }
            while r < to {
                weigh_block::<S, 1>(y, r, &weights[r * KEYS + at..], block, pairs);
                r += 1;
            }
        }
    }
}

/// A run of pairs of bf16.
type Line = [bf16; 2 * LANES];

/// Products of `M` rows of `q`, from row `r` of the scores, with the first `keys` keys of a block, `N` at a
/// time; keys beyond are there too, so a tail takes part in full and only its scores are left out.
#[inline(always)]
fn block_dots<S: Tier, const M: usize, const N: usize>(
    scores: &mut [f32],
    q: Rows,
    r: usize,
    block: &[Line],
    keys: usize,
) {
    const { assert!(M * N <= LANES && BLOCK.is_multiple_of(N)) }
    let steps = q.width / STEP;
    let mut rows: [&[[f32; STEP]]; M] = [&[]; M];
    for m in 0..M {
        rows[m] = &q.row(m).as_chunks().0[..steps];
    }
    for k in (0..keys).step_by(N) {
        let mut sum = [[V::<S>::zero(); N]; M];
        for step in 0..steps {
            let lines = &block[step * BLOCK + k..][..N];
            for n in 0..N {
                let (evens, odds) = V::pairs(&lines[n]);
                for m in 0..M {
                    sum[m][n] = V::load(&rows[m][step]).fma(evens, sum[m][n]);
                    sum[m][n] = V::load(&rows[m][step][LANES..]).fma(odds, sum[m][n]);
                }
            }
        }
        let mut tile = [V::zero(); LANES];
        // Copied as slices, such vectors would go through memory by a call.
        for m in 0..M {
            for n in 0..N {
                tile[m * N + n] = sum[m][n];
            }
        }
        let done = V::sums(tile).lanes();
        let count = N.min(keys - k);
        for m in 0..M {
            scores[(r + m) * KEYS + k..][..count].copy_from_slice(&done[m * N..][..count]);
        }
    }
}

/// Adds `pairs` pairs of values of a block, weighted, to `M` rows of `y` from `row` on.
#[inline(always)]
fn weigh_block<S: Tier, const M: usize>(
    y: &mut Tile<f32>,
    row: usize,
    weights: &[f32],
    block: &[Line],
    pairs: usize,
) {
    let groups = y.width.div_ceil(LANES);
    let mut g = 0;
    while S::WIDE && g + 4 <= groups {
        weigh_groups::<S, M, 4>(y, row, weights, block, pairs, g);
        g += 4;
    }
    while g + 2 <= groups {
        weigh_groups::<S, M, 2>(y, row, weights, block, pairs, g);
        g += 2;
    }
    if g < groups {
        weigh_groups::<S, M, 1>(y, row, weights, block, pairs, g);
    }
}

/// `N` groups of 16 columns from group `g` on.
#[inline(always)]
fn weigh_groups<S: Tier, const M: usize, const N: usize>(
    y: &mut Tile<f32>,
    row: usize,
    weights: &[f32],
    block: &[Line],
    pairs: usize,
    g: usize,
) {
    let mut sum = [[V::<S>::zero(); N]; M];
    for m in 0..M {
        for n in 0..N {
            sum[m][n] = V::load_part(&y.row(row + m)[(g + n) * LANES..]);
        }
    }
    let mut lines: [&[Line]; N] = [&[]; N];
    for n in 0..N {
        lines[n] = &block[(g + n) * BLOCK / 2..][..pairs];
    }
    for k in 0..pairs {
        for n in 0..N {
            let (evens, odds) = V::pairs(&lines[n][k]);
            for m in 0..M {
                let weights = &weights[m * KEYS + 2 * k..][..2];
                sum[m][n] = V::splat(weights[0]).fma(evens, sum[m][n]);
                sum[m][n] = V::splat(weights[1]).fma(odds, sum[m][n]);
            }
        }
    }
    for m in 0..M {
        for n in 0..N {
            sum[m][n].store_part(&mut y.row_mut(row + m)[(g + n) * LANES..]);
        }
    }
}
