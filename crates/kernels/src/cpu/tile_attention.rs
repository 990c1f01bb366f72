//! Attention in bf16 on tiles.
//!
//! Scores are computed transposed: keys are the rows of A, as they lie in memory, and queries the columns of B.
//! So a vector holds the scores of 16 queries for one key, and maxima and sums of a query run down its lane. The
//! weights are rounded and turned over into tiles of A for the second product, whose B are the values as they lie
//! in memory. Elements of a tile product depend on their own row and column alone, so a query's result does not
//! depend on its neighbours, and one query takes the same steps as many.

use half::bf16;

use super::amx::{A, Ahead, Amx, C, SIDE, Spread, Tiles};
use super::attention::Arrays;
use super::kv::{BLOCK, Blocks, HeadBlocks, STEP, Shape};
use super::math::exp_weight;
use super::pack::Block;
use super::split::{Columns, Tile, Tiles as Pieces};
use super::tier::{LANES, Op, Tier, V};
use super::{Cpu, scratch};
use crate::Span;

/// Keys per block of the running softmax: 32 KiB of scores for two sets of 16 queries.
const KEYS: usize = 256;
/// Queries per chunk. With heads of 464 columns: 240 KiB of queries, twice as much of unfinished results and of a
/// block of keys and values, so that all stay in L2.
const QUERIES: usize = 256;
/// Steps along a row of keys per pass: 16 KiB of queries and as much of keys.
const PASS: usize = 8;
/// Elements of a tile of C.
const TILE: usize = SIDE * SIDE;
/// Elements of a tile of A or B.
const HALF: usize = SIDE * STEP;

/// Sizes that follow from the width of a head.
#[derive(Clone, Copy)]
struct Widths {
    /// Steps along a row of keys.
    steps: usize,
    /// Groups of 16 columns of the result.
    groups: usize,
}

impl Widths {
    fn of(p: usize) -> Widths {
        Widths { steps: Shape { kv: 1, p }.padded() / STEP, groups: p.div_ceil(SIDE) }
    }

    /// Working memory of a chunk, in floats: scores, results, and as pairs of bf16 queries and weights.
    fn memory(self) -> [usize; 4] {
        let sets = QUERIES / SIDE;
        [2 * KEYS * SIDE, sets * self.groups * TILE, sets * self.steps * HALF / 2, sets * KEYS * SIDE / 2]
    }
}

/// See [`crate::Device::attention`].
pub(super) fn attention(
    cpu: &Cpu,
    amx: Amx,
    y: &mut [f32],
    lse: Option<&mut [f32]>,
    arrays: Arrays,
    blocks: Blocks,
) {
    let Arrays { h, p, .. } = arrays;
    let parts = (
        Pieces::new(y, h * p, QUERIES, Columns::grouped(h * p, h, p)),
        lse.map(|l| Pieces::new(l, h, QUERIES, Columns::grouped(h, h, 1))),
    );
    let widths = Widths::of(p);
    let sizes = widths.memory();
    cpu.split(2 * arrays.pairs() * h * p, parts, |_, (y, lse): (Tile<f32>, Option<Tile<f32>>)| {
        scratch::floats(sizes.iter().sum(), |memory| {
            let (scores, rest) = memory.split_at_mut(sizes[0]);
            let (sums, rest) = rest.split_at_mut(sizes[1]);
            let (queries, weights) = rest.split_at_mut(sizes[2]);
            let (queries, weights) = (bytemuck::cast_slice_mut(queries), bytemuck::cast_slice_mut(weights));
            let tiles = Tiles::new(amx, SIDE);
            cpu.isa.run(Forward {
                amx,
                tiles,
                y,
                lse,
                scores,
                sums,
                queries,
                weights,
                widths,
                arrays,
                blocks,
            });
        });
    });
}

/// A chunk of queries of one head, in sets of 16.
struct Forward<'a> {
    amx: Amx,
    tiles: Tiles,
    y: Tile<'a, f32>,
    lse: Option<Tile<'a, f32>>,
    /// Of two sets, `[2][KEYS][16]`.
    scores: &'a mut [f32],
    /// Unfinished results, `[sets][groups][16][16]`.
    sums: &'a mut [f32],
    /// Tiles of B, `[sets][steps]`.
    queries: &'a mut [bf16],
    /// Tiles of A, `[sets][KEYS / 32]`.
    weights: &'a mut [bf16],
    widths: Widths,
    arrays: Arrays<'a>,
    blocks: Blocks<'a>,
}

/// Maximum so far, and sum of exponentials relative to it, of the queries of a set.
#[derive(Clone, Copy)]
struct Running {
    max: [f32; LANES],
    sum: [f32; LANES],
}

/// Two sets of queries, or the last one alone.
#[derive(Clone, Copy)]
struct Pair {
    set: usize,
    sets: usize,
    /// Blocks of the running softmax's block that the last query sees.
    blocks: usize,
}

impl Op for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let (a, first) = (self.arrays, self.y.row);
        for (index, span, from, to) in a.meet(first, first + self.y.rows) {
            self.span::<S>(index, span, from, to);
        }
    }
}

/// Four lines in each of `steps` steps with two tiles of B, of which `before` have passed since the first element of `x`.
fn four_lines(x: &[bf16], before: usize, steps: usize) -> Ahead {
    const LINE: usize = STEP;
    let at = |lines: usize| x.as_ptr().wrapping_add((4 * before + lines) * LINE);
    Ahead([at(0), at(2 * steps)])
}

impl Forward<'_> {
    /// Queries of packed rows `from .. to`, all of one span.
    #[inline(always)]
    fn span<S: Tier>(&mut self, index: usize, span: &Span, from: usize, to: usize) {
        let (head, count) = (self.y.group, to - from);
        let kv = self.blocks.query_head(index, span, head);
        self.pack_queries(head, from, count);
        let pos = span.pos + from - span.start;
        let mut running = [Running { max: [f32::NEG_INFINITY; LANES], sum: [0.0; LANES] }; QUERIES / SIDE];
        let sets = count.div_ceil(SIDE);
        for key in (0..pos + count).step_by(KEYS) {
            let mut pairs = [Pair { set: 0, sets: 0, blocks: 0 }; QUERIES / SIDE / 2];
            let pairs = &mut pairs[..sets.div_ceil(2)];
            for (j, pair) in pairs.iter_mut().enumerate() {
                let (set, end) = (2 * j, (2 * (j + 1) * SIDE).min(count));
                let seen = (pos + end).saturating_sub(key).min(KEYS);
                *pair = Pair { set, sets: (sets - set).min(2), blocks: seen.div_ceil(BLOCK) };
            }
            for pair in pairs.iter().filter(|pair| pair.blocks > 0) {
                self.scores(kv, key / BLOCK, *pair);
                for set in pair.set..pair.set + pair.sets {
                    // Keys of the block up to here are seen by the first query of the set.
                    let off = (pos + set * SIDE) as isize - key as isize;
                    self.soften::<S>(set, pair.blocks, off, &mut running[set], key == 0);
                }
            }
            self.weigh(kv, key / BLOCK, pairs);
        }
        self.finish::<S>(from - self.y.row, count, &running);
    }

    fn pack_queries(&mut self, head: usize, from: usize, count: usize) {
        let q = self.arrays.queries(head).from(from);
        let size = self.widths.steps * HALF;
        for (set, tiles) in self.queries.chunks_exact_mut(size).take(count.div_ceil(SIDE)).enumerate() {
            let rows = SIDE.min(count - set * SIDE);
            let x = &q.x[q.at + set * SIDE * q.stride..];
            self.amx.pack_rows(tiles, Block { x, stride: q.stride, rows, cols: q.width }, SIDE);
        }
    }

    /// Scores of the keys from block `first` on that the pair sees, in passes over as many columns of the queries
    /// as stay in L1 while keys go by.
    fn scores(&mut self, kv: HeadBlocks, first: usize, pair: Pair) {
        let all = self.widths.steps;
        for from in (0..all).step_by(PASS) {
            let steps = PASS.min(all - from);
            let b = &self.queries[(pair.set * all + from) * HALF..];
            let b = Spread { x: b, tile: all * HALF, step: HALF };
            for block in 0..pair.blocks {
                // Meanwhile the values of the block come to L2, some with each pair.
                let part = pair.set / 2 * all + from;
                let ahead = four_lines(kv.values_from(first + block), part, steps);
                let a = &kv.keys_from(first + block)[from * BLOCK * STEP..];
                let a = A { x: a, row: STEP, step: BLOCK * STEP, tile: HALF };
                let c = C { x: &mut self.scores[block * BLOCK * SIDE..], a: TILE, b: KEYS * SIDE };
                if pair.sets == 2 {
                    self.tiles.spread_bf16::<2, 2>(c, a, b, steps, from == 0, ahead);
                } else {
                    self.tiles.spread_bf16::<2, 1>(c, a, b, steps, from == 0, ahead);
                }
            }
        }
    }

    /// Turns the scores of a set into weights relative to the new maximum, adds them to the running sum and
    /// brings what was summed before to the new maximum. The first `off + 1` keys are seen by all queries of
    /// the set, each further one by one query less.
    #[inline(always)]
    fn soften<S: Tier>(&mut self, set: usize, blocks: usize, off: isize, running: &mut Running, first: bool) {
        let keys = blocks * BLOCK;
        let x = &mut self.scores[set % 2 * KEYS * SIDE..][..keys * SIDE];
        let clear = (off + 1).clamp(0, keys as isize) as usize;
        let (all, some) = x.as_chunks_mut::<LANES>().0.split_at_mut(clear);
        let scale = V::<S>::splat(self.arrays.scale);
        let lanes =
            V::of(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
        let mut top = V::of(&running.max);
        // NaN is passed over here, but its exponential below is NaN, and so is the sum.
        for row in &*all {
            top = (V::of(row) * scale).larger(top);
        }
        // The query of lane `l` does not see the key if `l` is below this.
        let mut until = V::splat((clear as isize - off) as f32);
        for row in &*some {
            top = lanes.below(until, top, (V::of(row) * scale).larger(top));
            until = until + V::splat(1.0);
        }
        let mut sum = V::zero();
        for row in all {
            let weight = exp_weight(V::of(row) * scale - top);
            weight.to(row);
            sum = sum + weight;
        }
        let mut until = V::splat((clear as isize - off) as f32);
        for row in some {
            let weight = lanes.below(until, V::zero(), exp_weight(V::of(row) * scale - top));
            weight.to(row);
            sum = sum + weight;
            until = until + V::splat(1.0);
        }
        let keep = exp_weight(V::of(&running.max) - top);
        V::of(&running.sum).fma(keep, sum).to(&mut running.sum);
        top.to(&mut running.max);
        let weights = &mut self.weights[set * KEYS * SIDE..][..keys * SIDE];
        self.amx.pack_transposed(weights, Block { x, stride: SIDE, rows: keys, cols: SIDE });
        let keep = keep.lanes();
        if !first && keep != [1.0; LANES] {
            let size = self.widths.groups * TILE;
            for tile in self.sums[set * size..][..size].as_chunks_mut::<TILE>().0 {
                for (row, keep) in tile.as_chunks_mut::<LANES>().0.iter_mut().zip(keep) {
                    (V::<S>::of(row) * V::splat(keep)).to(row);
                }
            }
        }
    }

    /// Adds the weighted values from block `first` on. With few queries the values are read in the order of
    /// memory, with many each of them for all queries at once; the sums are the same.
    fn weigh(&mut self, kv: HeadBlocks, first: usize, pairs: &[Pair]) {
        let groups = self.widths.groups;
        let most = pairs.iter().map(|pair| pair.blocks).max().unwrap_or(0);
        if pairs.len() == 1 {
            for block in 0..most {
                for group in (0..groups).step_by(2) {
                    self.weigh_pair(kv, first, pairs[0], group, block, 1);
                }
            }
        } else {
            for group in (0..groups).step_by(2) {
                for pair in pairs.iter().filter(|pair| pair.blocks > 0) {
                    self.weigh_pair(kv, first, *pair, group, 0, pair.blocks);
                }
            }
        }
    }

    /// `steps` blocks of values from block `first + block` on, two groups of columns.
    #[inline]
    fn weigh_pair(
        &mut self,
        kv: HeadBlocks,
        first: usize,
        pair: Pair,
        group: usize,
        block: usize,
        steps: usize,
    ) {
        let groups = self.widths.groups;
        let x = &self.weights[(pair.set * KEYS + block * BLOCK) * SIDE..];
        let a = A { x, row: STEP, step: HALF, tile: KEYS * SIDE };
        let b = &kv.values_from(first + block)[group * HALF..];
        let b = Spread { x: b, tile: HALF, step: kv.stride() };
        let c = C { x: &mut self.sums[(pair.set * groups + group) * TILE..], a: groups * TILE, b: TILE };
        let start = first + block == 0;
        // Meanwhile the next keys come to L2: a block with each pair, some of it with each two groups.
        let ahead = four_lines(kv.ahead(first + KEYS / BLOCK + pair.set / 2), group / 2 * steps, steps);
        match (pair.sets, groups - group) {
            (1, 1) => self.tiles.spread_bf16::<1, 1>(c, a, b, steps, start, ahead),
            (1, _) => self.tiles.spread_bf16::<1, 2>(c, a, b, steps, start, ahead),
            (_, 1) => self.tiles.spread_bf16::<2, 1>(c, a, b, steps, start, ahead),
            _ => self.tiles.spread_bf16::<2, 2>(c, a, b, steps, start, ahead),
        }
    }

    /// Results of `count` queries, from row `row` of the chunk on.
    #[inline(always)]
    fn finish<S: Tier>(&mut self, row: usize, count: usize, running: &[Running]) {
        let groups = self.widths.groups;
        for r in 0..count {
            let (set, lane) = (r / SIDE, r % SIDE);
            let (max, sum) = (running[set].max[lane], running[set].sum[lane]);
            let scale = V::<S>::splat(1.0 / sum);
            for (group, y) in self.y.row_mut(row + r).chunks_mut(SIDE).enumerate() {
                let x = &self.sums[(set * groups + group) * TILE + lane * SIDE..];
                // Adding zero makes one of both zeros, whichever a sum of nothing but zeros came to.
                V::load(x).fma(scale, V::zero()).store_part(y);
            }
            if let Some(lse) = &mut self.lse {
                lse.row_mut(row + r)[0] = max + f64::from(sum).ln() as f32;
            }
        }
    }
}
