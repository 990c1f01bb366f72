//! Backward pass of attention in bf16 on tiles.
//!
//! Five products per pair of a query and a key, in one pass over blocks of keys and, for each, over the queries
//! that see them. Scores and their gradients are computed transposed, as in the forward pass: then they are tiles
//! of A for the gradients of values and keys as they come, and only the gradient of the queries needs them turned
//! over. One thread does all of a key head, so every gradient is summed in the order of positions.

use half::bf16;

use super::amx::{A, Ahead, Amx, C, SIDE, Spread, Tiles, prefetch};
use super::attention::{Arrays, Rows};
use super::kv::{STEP, Shape};
use super::math::exp_weight;
use super::norm::dot;
use super::pack::Block;
use super::split::{Columns, Tile, Tiles as Pieces};
use super::tier::{LANES, Op, Tier, V};
use super::{Cpu, scratch};
use crate::round_bf16;

/// Keys per block, and queries per block.
const BLOCK: usize = 128;
/// Steps of a block when the sum runs over it.
const STEPS: usize = BLOCK / STEP;
/// Rows between the one at work and the one that is fetched.
const AHEAD: usize = 8;
/// Elements of a tile of C.
const TILE: usize = SIDE * SIDE;
/// Elements of a tile of A or B.
const HALF: usize = SIDE * STEP;

/// What the pass reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) arrays: Arrays<'a>,
    /// `[t, kv * p]` each.
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    /// `[t, h * p]` each.
    pub(super) dy: &'a [f32],
    pub(super) y: &'a [f32],
    /// `[t, h]`
    pub(super) lse: &'a [f32],
}

/// See [`crate::Device::attention_bwd`].
pub(super) fn attention_bwd(cpu: &Cpu, amx: Amx, [dq, dk, dv]: [&mut [f32]; 3], inputs: Inputs) {
    let Arrays { h, kv, p, spans, .. } = inputs.arrays;
    let columns = |heads: usize| Columns::grouped(heads * p, kv, heads / kv * p);
    let parts = (
        Pieces::columns(dq, h * p, columns(h)),
        Pieces::columns(dk, kv * p, columns(kv)),
        Pieces::columns(dv, kv * p, columns(kv)),
    );
    let sizes = Sizes::of(p, spans.iter().map(|s| s.len).max().unwrap_or(0));
    let work = 5 * inputs.arrays.pairs() * h * p;
    cpu.split(work, parts, |_, (dq, dk, dv): (Tile<f32>, Tile<f32>, Tile<f32>)| {
        scratch::floats(sizes.floats(), |memory| {
            let (memory, tiles) = (Memory::carve(memory, sizes), Tiles::new(amx, SIDE));
            cpu.isa.run(Backward { amx, tiles, dq, dk, dv, memory, inputs });
        });
    });
}

/// Sizes that follow from the width of a head and the length of a sequence.
#[derive(Clone, Copy)]
struct Sizes {
    /// Steps along a row.
    steps: usize,
    /// Groups of 16 columns.
    groups: usize,
    /// Steps over all tokens.
    tokens: usize,
}

impl Sizes {
    fn of(p: usize, len: usize) -> Sizes {
        Sizes {
            steps: Shape { kv: 1, p }.padded() / STEP,
            groups: p.div_ceil(SIDE),
            tokens: len.div_ceil(STEP),
        }
    }

    /// Elements of tiles along the rows of all tokens.
    fn rows(self) -> usize {
        self.tokens * 2 * self.steps * HALF
    }

    /// Elements of tiles down the columns of all tokens.
    fn columns(self) -> usize {
        self.tokens * self.groups * HALF
    }

    fn floats(self) -> usize {
        let of_tokens = self.rows() + self.columns() + self.tokens * STEP * (self.groups * SIDE + 2);
        let of_keys = BLOCK * self.steps * STEP + STEPS * self.groups * HALF / 2;
        let of_pairs = 2 * BLOCK * BLOCK + 3 * BLOCK * BLOCK / 2;
        of_tokens + of_keys + of_pairs + 2 * BLOCK * self.groups * SIDE
    }
}

/// Working memory. "Rows" are tiles whose sum runs along the columns of a head, "columns" are tiles of B whose
/// sum runs over tokens.
struct Memory<'a> {
    sizes: Sizes,
    /// Of all tokens: tiles of B, `[tokens / 16][steps]`.
    q_rows: &'a mut [bf16],
    dy_rows: &'a mut [bf16],
    /// Of all tokens, `[groups][tokens / 32]`.
    q_columns: &'a mut [bf16],
    dy_columns: &'a mut [bf16],
    /// `[tokens / 16][groups][16][16]`
    dq: &'a mut [f32],
    /// Logarithms of sums, and `dy . y`, of all tokens.
    lse: &'a mut [f32],
    means: &'a mut [f32],
    /// Of a block: `[BLOCK][steps * 32]`.
    k_rows: &'a mut [bf16],
    v_rows: &'a mut [bf16],
    /// Of a block, `[groups][STEPS]`.
    k_columns: &'a mut [bf16],
    /// Of a block, `[BLOCK / 16][groups][16][16]`.
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// Scores, then weights, and gradients: `[queries / 16][keys][16]`.
    scores: &'a mut [f32],
    dscores: &'a mut [f32],
    /// Tiles of A: `[queries / 32][keys][32]`.
    weights: &'a mut [bf16],
    dweights: &'a mut [bf16],
    /// Tiles of A: `[queries / 16][keys / 32]`.
    turned: &'a mut [bf16],
}

impl<'a> Memory<'a> {
    fn carve(memory: &'a mut [f32], sizes: Sizes) -> Self {
        let mut rest = memory;
        let mut take = |len: usize| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            part
        };
        let tokens = sizes.tokens * STEP;
        let (dq, lse, means) = (take(tokens * sizes.groups * SIDE), take(tokens), take(tokens));
        let (dk, dv) = (take(BLOCK * sizes.groups * SIDE), take(BLOCK * sizes.groups * SIDE));
        let (scores, dscores) = (take(BLOCK * BLOCK), take(BLOCK * BLOCK));
        let mut halves = |len: usize| -> &'a mut [bf16] { bytemuck::cast_slice_mut(take(len / 2)) };
        let rows = BLOCK * sizes.steps * STEP;
        Memory {
            sizes,
            q_rows: halves(sizes.rows()),
            dy_rows: halves(sizes.rows()),
            q_columns: halves(sizes.columns()),
            dy_columns: halves(sizes.columns()),
            k_rows: halves(rows),
            v_rows: halves(rows),
            k_columns: halves(STEPS * sizes.groups * HALF),
            weights: halves(BLOCK * BLOCK),
            dweights: halves(BLOCK * BLOCK),
            turned: halves(BLOCK * BLOCK),
            dq,
            lse,
            means,
            dk,
            dv,
            scores,
            dscores,
        }
    }
}

/// All of one key head and the query heads that read it.
struct Backward<'a> {
    amx: Amx,
    tiles: Tiles,
    dq: Tile<'a, f32>,
    dk: Tile<'a, f32>,
    dv: Tile<'a, f32>,
    memory: Memory<'a>,
    inputs: Inputs<'a>,
}

/// A block of queries against a block of keys of a sequence, in steps of 32.
#[derive(Clone, Copy)]
struct Meeting {
    /// First key and first query.
    key: usize,
    query: usize,
    keys: usize,
    queries: usize,
}

impl Meeting {
    /// Whether the blocks are the same positions: then a query step sees the key steps up to its own.
    fn is_diagonal(self) -> bool {
        self.key == self.query
    }

    /// First query step that sees key step `j`.
    fn first_query(self, j: usize) -> usize {
        if self.is_diagonal() { j } else { 0 }
    }

    /// Key steps that query step `i` sees.
    fn keys_of(self, i: usize) -> usize {
        if self.is_diagonal() { (i + 1).min(self.keys) } else { self.keys }
    }
}

impl Op for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let a = self.inputs.arrays;
        let group = a.h / a.kv;
        for span in a.spans {
            self.memory.sizes = Sizes::of(a.p, span.len);
            for head in self.dk.group * group..(self.dk.group + 1) * group {
                self.pack_queries::<S>(head, span.start, span.len);
                for key in (0..span.len).step_by(BLOCK) {
                    self.keys::<S>(head, span.start, span.len, key);
                }
                let m = &self.memory;
                add::<S>(&mut self.dq, span.start, head % group * a.p, a.p, m.dq, span.len, m.sizes.groups);
            }
        }
    }
}

impl Backward<'_> {
    /// Arranges queries and gradients of `len` tokens from row `start` on.
    #[inline(always)]
    fn pack_queries<S: Tier>(&mut self, head: usize, start: usize, len: usize) {
        let a = self.inputs.arrays;
        let (q, dy) = (a.queries(head).from(start), a.like_q(self.inputs.dy, head).from(start));
        let m = &mut self.memory;
        pack_rows(self.amx, m.q_rows, q, len, m.sizes);
        pack_rows(self.amx, m.dy_rows, dy, len, m.sizes);
        pack_columns(self.amx, m.q_columns, q, len, m.sizes.tokens);
        pack_columns(self.amx, m.dy_columns, dy, len, m.sizes.tokens);
        let y = a.like_q(self.inputs.y, head).from(start);
        // Free until the first block; a head is never wider.
        let rounded = &mut m.scores[..a.p];
        for r in 0..len {
            y.prefetch(r + AHEAD..len.min(r + AHEAD + 1));
            for (rounded, dy) in rounded.iter_mut().zip(dy.row(r)) {
                *rounded = round_bf16(*dy);
            }
            m.means[r] = dot::<S>(rounded, y.row(r));
            m.lse[r] = self.inputs.lse[(start + r) * a.h + head];
        }
        let padded = len..m.sizes.tokens * STEP;
        m.means[padded.clone()].fill(0.0);
        m.lse[padded].fill(0.0);
    }

    /// A block of keys from `key` on against all queries that see some of it.
    #[inline(always)]
    fn keys<S: Tier>(&mut self, head: usize, start: usize, len: usize, key: usize) {
        let a = self.inputs.arrays;
        let count = BLOCK.min(len - key);
        self.pack_keys(head, start + key, count);
        let m = &self.memory;
        let (tokens, groups) = (m.sizes.tokens, m.sizes.groups);
        for query in (key..len).step_by(BLOCK) {
            let queries = STEPS.min(tokens - query / STEP);
            let meet = Meeting { key, query, keys: count.div_ceil(STEP), queries };
            self.products(meet);
            for i in 0..queries {
                self.soften::<S>(meet, i);
            }
            self.key_gradients(meet);
            self.query_gradients(meet);
        }
        let m = &self.memory;
        add::<S>(&mut self.dk, start + key, 0, a.p, m.dk, count, groups);
        add::<S>(&mut self.dv, start + key, 0, a.p, m.dv, count, groups);
    }

    /// Arranges `count` keys and values from row `row` on.
    fn pack_keys(&mut self, head: usize, row: usize, count: usize) {
        let (a, m) = (self.inputs.arrays, &mut self.memory);
        let width = m.sizes.steps * STEP;
        let k = a.like_k(self.inputs.k, head).from(row);
        let v = a.like_k(self.inputs.v, head).from(row);
        for (to, from) in [(&mut *m.k_rows, k), (&mut *m.v_rows, v)] {
            let (rows, rest) = to.split_at_mut(count * width);
            for (r, row) in rows.chunks_exact_mut(width).enumerate() {
                from.prefetch(r + AHEAD..count.min(r + AHEAD + 1));
                self.amx.pack_plain(row, all(from.from(r), 1));
            }
            rest.fill(bf16::ZERO);
        }
        let size = count.div_ceil(STEP) * HALF;
        for (group, tiles) in m.k_columns.chunks_exact_mut(STEPS * HALF).enumerate() {
            self.amx.pack_columns(&mut tiles[..size], columns(k, count, group));
        }
    }

    /// Scores of the meeting, and the products of gradients and values.
    fn products(&mut self, meet: Meeting) {
        let m = &mut self.memory;
        let (steps, width) = (m.sizes.steps, m.sizes.steps * STEP);
        for j in 0..meet.keys {
            let both = [(&*m.k_rows, &*m.q_rows, &mut *m.scores), (&*m.v_rows, &*m.dy_rows, &mut *m.dscores)];
            for (a, b, c) in both {
                let a = A::rows(&a[j * STEP * width..], width, STEP);
                for i in meet.first_query(j)..meet.queries {
                    let b = &b[(meet.query / SIDE + 2 * i) * steps * HALF..];
                    let b = Spread { x: b, tile: steps * HALF, step: HALF };
                    let c = C { x: &mut c[(2 * i * BLOCK + j * STEP) * SIDE..], a: TILE, b: BLOCK * SIDE };
                    self.tiles.spread_bf16::<2, 2>(c, a, b, steps, true, Ahead::nothing(b.x));
                }
            }
        }
    }

    /// Weights, and gradients of scores, of query step `i`, as operands of the other products.
    #[inline(always)]
    fn soften<S: Tier>(&mut self, meet: Meeting, i: usize) {
        let m = &mut self.memory;
        let keys = meet.keys_of(i) * STEP;
        let scale = V::<S>::splat(self.inputs.arrays.scale);
        let lanes =
            V::of(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
        for set in [2 * i, 2 * i + 1] {
            let at = meet.query + set * SIDE;
            let (lse, mean) = (V::load(&m.lse[at..]), V::load(&m.means[at..]));
            let part = set * BLOCK * SIDE..(set * BLOCK + keys) * SIDE;
            let weights = m.scores[part.clone()].as_chunks_mut::<LANES>().0;
            let dscores = m.dscores[part].as_chunks_mut::<LANES>().0;
            // Keys up to here are seen by all 16 queries.
            let clear = if meet.is_diagonal() { (set * SIDE + 1).min(keys) } else { keys };
            for (k, (w, d)) in weights.iter_mut().zip(dscores).enumerate() {
                let mut weight = exp_weight(V::of(w) * scale - lse);
                if k >= clear {
                    weight = lanes.below(V::splat((k - set * SIDE) as f32), V::zero(), weight);
                }
                weight.to(w);
                (weight * (V::of(d) - mean) * scale).to(d);
            }
        }
        for (to, from) in [(&mut *m.weights, &*m.scores), (&mut *m.dweights, &*m.dscores)] {
            let (first, second) = from[2 * i * BLOCK * SIDE..].split_at(BLOCK * SIDE);
            let to = &mut to[i * BLOCK * STEP..][..keys * STEP];
            self.amx.pack_beside(to, &first[..keys * SIDE], &second[..keys * SIDE]);
        }
        for set in [2 * i, 2 * i + 1] {
            let x = &m.dscores[set * BLOCK * SIDE..][..keys * SIDE];
            let to = &mut m.turned[set * BLOCK * SIDE..][..keys * SIDE];
            self.amx.pack_transposed(to, Block { x, stride: SIDE, rows: keys, cols: SIDE });
        }
    }

    /// Adds to the gradients of the block's values and keys.
    fn key_gradients(&mut self, meet: Meeting) {
        let m = &mut self.memory;
        let (groups, tokens) = (m.sizes.groups, m.sizes.tokens);
        let both = [(&*m.weights, &*m.dy_columns, &mut *m.dv), (&*m.dweights, &*m.q_columns, &mut *m.dk)];
        for (a, b, c) in both {
            for group in (0..groups).step_by(2) {
                for j in 0..meet.keys {
                    let i = meet.first_query(j);
                    let a = A {
                        x: &a[(i * BLOCK + j * STEP) * STEP..],
                        row: STEP,
                        step: BLOCK * STEP,
                        tile: HALF,
                    };
                    let b = &b[(group * tokens + meet.query / STEP + i) * HALF..];
                    let b = Spread { x: b, tile: tokens * HALF, step: HALF };
                    let c = C { x: &mut c[(2 * j * groups + group) * TILE..], a: groups * TILE, b: TILE };
                    add_product(&self.tiles, c, a, b, meet.queries - i, meet.is_diagonal(), groups - group);
                }
            }
        }
    }

    /// Adds to the gradients of the queries.
    fn query_gradients(&mut self, meet: Meeting) {
        let m = &mut self.memory;
        let groups = m.sizes.groups;
        for group in (0..groups).step_by(2) {
            let b = Spread { x: &m.k_columns[group * STEPS * HALF..], tile: STEPS * HALF, step: HALF };
            for i in 0..meet.queries {
                let a = &m.turned[2 * i * BLOCK * SIDE..];
                let a = A { x: a, row: STEP, step: HALF, tile: BLOCK * SIDE };
                let set = meet.query / SIDE + 2 * i;
                let c = C { x: &mut m.dq[(set * groups + group) * TILE..], a: groups * TILE, b: TILE };
                add_product(&self.tiles, c, a, b, meet.keys_of(i), meet.key == 0, groups - group);
            }
        }
    }
}

/// Two tiles of A times two of B, or the only one that is left.
fn add_product(tiles: &Tiles, c: C, a: A, b: Spread, steps: usize, first: bool, left: usize) {
    let ahead = Ahead::nothing(b.x);
    if left == 1 {
        tiles.spread_bf16::<2, 1>(c, a, b, steps, first, ahead);
    } else {
        tiles.spread_bf16::<2, 2>(c, a, b, steps, first, ahead);
    }
}

/// `rows` rows of `x`.
fn all(x: Rows<'_>, rows: usize) -> Block<'_, f32> {
    Block { x: &x.x[x.at..], stride: x.stride, rows, cols: x.width }
}

/// 16 columns of `rows` rows of `x`.
fn columns(x: Rows<'_>, rows: usize, group: usize) -> Block<'_, f32> {
    let cols = SIDE.min(x.width - group * SIDE);
    Block { x: &x.x[x.at + group * SIDE..], stride: x.stride, rows, cols }
}

/// Tiles of B along the rows of `len` tokens, zero beyond them.
fn pack_rows(amx: Amx, out: &mut [bf16], x: Rows, len: usize, sizes: Sizes) {
    let size = sizes.steps * HALF;
    for (set, tiles) in out[..sizes.rows()].chunks_exact_mut(size).enumerate() {
        let rows = SIDE.min(len.saturating_sub(set * SIDE));
        let from = x.from((set * SIDE).min(len - 1));
        amx.pack_rows(tiles, all(from, rows), SIDE);
    }
}

/// Tiles of B down the columns of `len` tokens.
fn pack_columns(amx: Amx, out: &mut [bf16], x: Rows, len: usize, tokens: usize) {
    for (group, tiles) in out.chunks_exact_mut(tokens * HALF).take(x.width.div_ceil(SIDE)).enumerate() {
        amx.pack_columns(tiles, columns(x, len, group));
    }
}

/// Adds `count` rows of tiles `[count / 16][groups][16][16]` to rows `row ..` and columns `at ..+ width` of `y`.
#[inline(always)]
fn add<S: Tier>(
    y: &mut Tile<f32>,
    row: usize,
    at: usize,
    width: usize,
    x: &[f32],
    count: usize,
    groups: usize,
) {
    for r in 0..count {
        if r + AHEAD < count {
            prefetch(&y.row(row + r + AHEAD)[at..][..width]);
        }
        let y = &mut y.row_mut(row + r)[at..][..width];
        for (group, y) in y.chunks_mut(SIDE).enumerate() {
            V::<S>::load(&x[(r / SIDE * groups + group) * TILE + r % SIDE * SIDE..]).add_to(y);
        }
    }
}
