//! Linear maps with quantised weights on tiles, for many tokens.
//!
//! A block of 16 rows and a group of columns, one signed byte per weight, is two tiles of B; 16 tokens of a group are two
//! tiles of A. Two multiplications give the integer sums of 16 tokens and 16 rows, which vectors scale and add to the
//! outputs in the same way as [`quant`](super::quant) does, so results are equal bit for bit.
//!
//! Many tokens: the weights go by [`PASS`] groups of [`BLOCKS`] row blocks, unpacked, which stay in L1 while the tokens go by, of
//! which as many groups as fit are in L2 until all rows of a chunk have met them. One tile of tokens: the weights come from
//! memory two groups at a time, and all that they meet is in L1.

use std::ops::Range;

use half::f16;

use super::amx::{Amx, SIDE, STEP_I8, TileI8, TileI32, Tiles as Configured};
use super::int::{IntOp, IntTier};
use super::quant::{AHEAD, AHEAD_SCALES};
use super::split::{Columns, Runs, Tile, Tiles};
use super::tier::{LANES, Tier, V};
use super::{Cpu, goes_past, scratch};
use crate::quant::{GROUP, LINE, ROWS, block_bytes};
use crate::{Buf, Dtype, Linear};

/// Groups per pass: with [`BLOCKS`] 16 KiB of weights, 8 KiB of activations and 8 KiB of sums, in L1.
const PASS: usize = 2;
/// Row blocks per panel, each a stream of its own from memory.
const BLOCKS: usize = 4;
/// Panels per chunk when there are many tokens: unfinished sums are 256 KiB, in L2.
const PANELS: usize = 2;
/// Tokens per chunk. The more there are, the less it costs to unpack the weights.
const TOKENS: usize = 512;
/// Most bytes of activations that are to stay in L2 while the panels of a chunk go by.
const DEPTH_BYTES: usize = 1 << 19;
/// The integers of 16 tokens or rows and the columns of a group.
type Block = [TileI8; GROUP / STEP_I8];

/// See [`crate::Device::linear`]; sizes are checked.
pub(super) fn linear(cpu: &Cpu, amx: Amx, y: &mut Buf, a: &Linear) {
    let width = a.groups * a.i;
    let rows = a.t.next_multiple_of(SIDE);
    scratch::floats(rows * width / 4 + rows * width / GROUP, |memory| {
        let (q, scales) = memory.split_at_mut(rows * width / 4);
        let q: &mut [Block] = bytemuck::cast_slice_mut(q);
        quantise(cpu, q, scales.as_chunks_mut().0, a);
        forward(cpu, amx, y.f32_mut(), Input { q, scales: scales.as_chunks().0, width: width / GROUP }, a);
    });
}

/// The quantised input.
#[derive(Clone, Copy)]
struct Input<'a> {
    /// Integers of 16 tokens and a group, `[tiles of tokens, width]`.
    q: &'a [Block],
    /// Scales, `[tiles of tokens, width, 16]`.
    scales: &'a [[f32; SIDE]],
    /// Groups of columns of the whole map.
    width: usize,
}

impl<'a> Input<'a> {
    /// From a tile of tokens and a group of columns on.
    fn from(self, tile: usize, group: usize) -> Input<'a> {
        let at = tile * self.width + group;
        Input { q: &self.q[at..], scales: &self.scales[at..], width: self.width }
    }

    /// `count` groups from `group` on of a tile of tokens.
    #[inline(always)]
    fn tile(&self, tile: usize, group: usize, count: usize) -> (&'a [Block], &'a [[f32; SIDE]]) {
        let at = tile * self.width + group;
        (&self.q[at..][..count], &self.scales[at..][..count])
    }
}

/// Quantises the input of all groups of the map.
fn quantise(cpu: &Cpu, q: &mut [Block], scales: &mut [[f32; SIDE]], a: &Linear) {
    let (x, groups) = (a.x.f32(), a.i / GROUP);
    let width = a.groups * groups;
    let tiles = (Runs::new(q, width), Runs::new(scales, width));
    cpu.split(a.t * width * GROUP, tiles, |tile, (q, scales): (&mut [Block], &mut [[f32; SIDE]])| {
        let tokens = SIDE.min(a.t - tile * SIDE);
        for token in 0..tokens {
            let x = &x[(tile * SIDE + token) * a.x_stride + a.x_at..];
            let parts = q.chunks_exact_mut(groups).zip(scales.chunks_exact_mut(groups));
            for (group, (q, scales)) in parts.enumerate() {
                let x = x[group * a.x_group..][..a.i].as_chunks().0;
                cpu.isa.run_int(Quantise { x, q, scales, token });
            }
        }
        for (q, scales) in q.iter_mut().zip(scales) {
            q.iter_mut().for_each(|q| q[tokens..].fill([0; STEP_I8]));
            scales[tokens..].fill(0.0);
        }
    });
}

/// Quantises a token of a tile.
struct Quantise<'a> {
    x: &'a [[f32; GROUP]],
    q: &'a mut [Block],
    scales: &'a mut [[f32; SIDE]],
    token: usize,
}

impl IntOp for Quantise<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: IntTier>(self) {
        for ((x, q), scales) in self.x.iter().zip(self.q).zip(self.scales) {
            let mut row = [0; GROUP];
            (scales[self.token], _) = S::quantise(x, &mut row);
            for (q, row) in q.iter_mut().zip(row.as_chunks().0) {
                q[self.token] = *row;
            }
        }
    }
}

fn forward(cpu: &Cpu, amx: Amx, y: &mut [f32], x: Input, a: &Linear) {
    let (quants, scales) = a.w.buf.quants();
    let bias = a.bias.map(Buf::f32);
    let (blocks, bytes) = (a.i / GROUP, block_bytes(a.w.dtype()));
    let (stride, at) = (a.w.cols() / GROUP, a.w_at / GROUP);
    let past = goes_past(y);
    let columns = Columns::grouped(a.groups * a.o, a.groups, rows(cpu, a));
    let depth = depth(a);
    cpu.split(y.len() * a.i, Tiles::new(y, a.groups * a.o, TOKENS, columns), |_, y: Tile<f32>| {
        let first = y.group * a.o + y.start;
        let kept = if y.rows > SIDE { y.width.div_ceil(BLOCKS * ROWS) } else { 1 } * y.rows.div_ceil(SIDE);
        let (panel, sums) = (BLOCKS * PASS * size_of::<Block>() / 4, PASS * 4 * SIDE * LANES);
        scratch::floats(panel + sums + kept * BLOCKS * SIDE * LANES, |memory| {
            let (panel, rest) = memory.split_at_mut(panel);
            let (products, sums) = rest.split_at_mut(sums);
            let products: &mut [TileI32] = bytemuck::cast_slice_mut(products);
            let products = products.as_chunks_mut().0.as_chunks_mut().0;
            let panel = bytemuck::cast_slice_mut::<_, Block>(panel).as_chunks_mut().0;
            cpu.isa.run_int(Chunk {
                tiles: Configured::new(amx, SIDE),
                x: x.from(y.row / SIDE, y.group * blocks),
                dtype: a.w.dtype(),
                quants: &quants[(first / ROWS * stride + at) * bytes..],
                scales: &scales[first * stride + at * ROWS..],
                bias: bias.map(|b| &b[first..]),
                groups: blocks,
                stride,
                depth,
                threads: cpu.pool.threads(),
                panel: panel.first_chunk_mut().expect("a panel"),
                products: products.first_chunk_mut().expect("a pass"),
                sums: sums.as_chunks_mut().0.as_chunks_mut().0,
                past,
                y,
            });
        });
    });
}

/// Rows of weights per chunk. A single tile of tokens reads each weight once, so that chunks may be large.
fn rows(cpu: &Cpu, a: &Linear) -> usize {
    let panel = BLOCKS * ROWS;
    if a.t > SIDE { PANELS * panel } else { a.o.div_ceil(8 * cpu.pool.threads()).next_multiple_of(panel) }
}

/// Groups of columns that a chunk takes at a time: equal parts, each no more than is to stay in L2.
fn depth(a: &Linear) -> usize {
    let group = a.t.min(TOKENS).next_multiple_of(SIDE) * GROUP;
    let (groups, most) = (a.i / GROUP, (DEPTH_BYTES / group).max(PASS));
    groups.div_ceil(groups.div_ceil(most).max(1)).next_multiple_of(PASS)
}

/// One chunk of outputs.
struct Chunk<'a> {
    tiles: Configured,
    y: Tile<'a, f32>,
    /// From the chunk's first token.
    x: Input<'a>,
    dtype: Dtype,
    /// From the chunk's first row and column, as are the scales.
    quants: &'a [u8],
    scales: &'a [f16],
    bias: Option<&'a [f32]>,
    /// Groups of columns.
    groups: usize,
    /// Groups from one row block to the next.
    stride: usize,
    /// Groups of columns that all panels meet before the next ones.
    depth: usize,
    /// Threads that take chunks in turn.
    threads: usize,
    /// Room for the signed integers of a pass.
    panel: &'a mut [[Block; PASS]; BLOCKS],
    /// Integer sums of a pass, `[groups, two row blocks, two tiles of tokens]`.
    products: &'a mut [[[TileI32; 2]; 2]; PASS],
    /// Sums of the groups so far, `[panels, tiles, BLOCKS, 16 tokens]`, of a single tile one panel at a time; in the output they
    /// would lie far apart.
    sums: &'a mut [[[f32; LANES]; SIDE]],
    /// Whether to write outputs past the caches.
    past: bool,
}

impl IntOp for Chunk<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: IntTier>(mut self) {
        if self.y.rows <= SIDE {
            for panel in 0..self.panels() {
                let blocks = self.blocks(panel);
                self.one_tile::<S>(&blocks);
                self.finish::<S>(&blocks, 0);
            }
            return;
        }
        for from in (0..self.groups).step_by(self.depth) {
            for panel in 0..self.panels() {
                self.tiles::<S>(panel, from..(from + self.depth).min(self.groups));
            }
        }
        for panel in 0..self.panels() {
            self.finish::<S>(&self.blocks(panel), panel);
        }
    }
}

impl Chunk<'_> {
    fn panels(&self) -> usize {
        (self.y.width / ROWS).div_ceil(BLOCKS)
    }

    /// The row blocks of a panel.
    fn blocks(&self, panel: usize) -> Range<usize> {
        panel * BLOCKS..((panel + 1) * BLOCKS).min(self.y.width / ROWS)
    }

    /// Some row blocks for a single tile of tokens.
    #[inline(always)]
    fn one_tile<S: IntTier>(&mut self, blocks: &Range<usize>) {
        let bytes = block_bytes(self.dtype);
        for from in (0..self.groups).step_by(2) {
            let count = 2.min(self.groups - from);
            // Behind the end of a row block its stream goes on with another panel.
            let further = from + AHEAD / bytes < self.groups;
            let skipped = if further { 0 } else { BLOCKS * self.stride - self.groups };
            let ahead = AHEAD + skipped * bytes;
            for block in blocks.clone().step_by(2) {
                let pair = block..(block + 2).min(blocks.end);
                for block in pair.clone() {
                    self.unpack::<S, true>(block, from, count, ahead);
                }
                self.multiply_one(block, from, count);
                for block in pair {
                    self.add::<S>(block, (0, 0), from, count);
                }
            }
        }
    }

    /// Adds some groups of a panel for many tokens.
    #[inline(always)]
    fn tiles<S: IntTier>(&mut self, panel: usize, groups: Range<usize>) {
        let (blocks, tiles) = (self.blocks(panel), self.y.rows.div_ceil(SIDE));
        for from in groups.clone().step_by(PASS) {
            let count = PASS.min(groups.end - from);
            for block in blocks.clone() {
                self.unpack::<S, false>(block, from, count, 0);
            }
            for tile in (0..tiles).step_by(2) {
                let pair = tile..(tile + 2).min(tiles);
                for block in blocks.clone().step_by(2) {
                    self.ask_weights::<S>(block, &pair, from, &groups);
                    self.ask_tokens::<S>(block, tile + 2, from, count);
                    self.multiply(block, [tile, pair.end - 1], from, count);
                    for tile in pair.clone() {
                        for block in block..(block + 2).min(blocks.end) {
                            self.add::<S>(block, (panel, tile), from, count);
                        }
                    }
                }
            }
        }
    }

    /// Writes the integers of `count` groups of a row block, as signed bytes in the order of lines. With `ASK`, asks for
    /// those that are `ahead` bytes behind them.
    #[inline(always)]
    fn unpack<S: IntTier, const ASK: bool>(&mut self, block: usize, from: usize, count: usize, ahead: usize) {
        let bytes = block_bytes(self.dtype);
        let parts = self.quants[(block * self.stride + from) * bytes..][..count * bytes].as_chunks().0;
        let lines: &mut [u8] = bytemuck::cast_slice_mut(&mut self.panel[block % BLOCKS]);
        let lines = lines.as_chunks_mut::<LINE>().0;
        if ASK {
            S::F::prefetch_l1(&self.scales[(block * self.stride + from) * ROWS..], AHEAD_SCALES);
        }
        if self.dtype == Dtype::Q8 {
            for (part, line) in parts.iter().zip(lines) {
                if ASK {
                    S::F::prefetch_l1(part, ahead);
                }
                S::signed8(part, line);
            }
        } else {
            for (part, [low, high]) in parts.iter().zip(lines.as_chunks_mut::<2>().0) {
                if ASK {
                    S::F::prefetch_l1(part, ahead);
                }
                S::signed4(part, low, high);
            }
        }
    }

    /// Asks for weights of two passes later, a share for each pair of tiles of tokens, for all at once would find the
    /// processor's queue full.
    #[inline(always)]
    fn ask_weights<S: IntTier>(&self, block: usize, pair: &Range<usize>, from: usize, groups: &Range<usize>) {
        let (bytes, tiles) = (block_bytes(self.dtype), self.y.rows.div_ceil(SIDE));
        let (rows, later) = (self.y.width / ROWS, from + 2 * PASS);
        // After the groups of this panel come those of the next one, then the next groups of the first one, or
        // another chunk.
        let (first, group) = if later < groups.end {
            (block, later)
        } else if block / BLOCKS + 1 < self.panels() {
            (block + BLOCKS, groups.start + later - groups.end)
        } else if groups.end < self.groups {
            (block % BLOCKS, later)
        } else {
            (block % BLOCKS + rows * self.threads, later - groups.end)
        };
        let lines = self.quants.as_chunks::<LINE>().0;
        let size = PASS * bytes / LINE;
        for block in first..first + 2 {
            let at = (block * self.stride + group) * bytes / LINE;
            for line in at + pair.start * size / tiles..at + pair.end * size / tiles {
                S::F::prefetch_l1(lines, line * LINE);
            }
        }
    }

    /// Asks for a share of two tiles of tokens: half of them for each two row blocks.
    #[inline(always)]
    fn ask_tokens<S: IntTier>(&self, block: usize, tile: usize, from: usize, count: usize) {
        for tile in tile..(tile + 2).min(self.y.rows.div_ceil(SIDE)) {
            let (q, _) = self.x.tile(tile, from, count);
            let lines = q.as_flattened().as_flattened();
            let share = lines.len() * 2 / BLOCKS;
            for line in &lines[block % BLOCKS / 2 * share..][..share] {
                S::F::prefetch_l1(line, 0);
            }
        }
    }

    /// The integer sums of `count` groups of two row blocks and two tiles of tokens. Those of a second row block that does not
    /// exist are not used.
    #[inline(always)]
    fn multiply(&mut self, block: usize, tiles: [usize; 2], from: usize, count: usize) {
        let [first, second] = tiles.map(|tile| self.x.tile(tile, from, count).0);
        let w = &self.panel[block % BLOCKS..][..2];
        for g in 0..count {
            self.tiles.shared_i8(&mut self.products[g], [&first[g], &second[g]], [&w[0][g], &w[1][g]]);
        }
    }

    /// The integer sums of `count` groups, one or two, of two row blocks and the first tile of tokens. What stands for a second
    /// group or row block that does not exist is not used.
    #[inline(always)]
    fn multiply_one(&mut self, block: usize, from: usize, count: usize) {
        let (q, _) = self.x.tile(0, from, count);
        let w = &self.panel[block % BLOCKS..][..2];
        let [[[c00, _], [c10, _]], [[c01, _], [c11, _]]] = self.products;
        let c = [[c00, c01], [c10, c11]];
        match q {
            [last] => self.tiles.square_i8(c, &[*last; 2], [&w[0], &w[1]]),
            _ => self.tiles.square_i8(c, q.first_chunk().expect("two groups"), [&w[0], &w[1]]),
        }
    }

    /// Adds the sums of `count` groups of a row block and a tile of tokens, with their scales, to those of a panel.
    #[inline(always)]
    fn add<S: IntTier>(&mut self, block: usize, (panel, tile): (usize, usize), from: usize, count: usize) {
        let at = self.kept(panel, tile, block);
        let (_, x_scales) = self.x.tile(tile, from, count);
        let scales = self.scales.as_chunks::<ROWS>().0;
        let scales = &scales[block * self.stride + from..][..count];
        let waiting = &mut self.sums[at];
        let mut acc = [V::<S::F>::zero(); SIDE];
        if from > 0 {
            for c in 0..SIDE {
                acc[c] = V::of(&waiting[c]);
            }
        }
        for ((sums, scales), x_scales) in self.products.iter().zip(scales).zip(x_scales) {
            let sums = &sums[block % 2][tile % 2];
            let scale = V::<S::F>::wrap(S::scales(scales));
            for c in 0..SIDE {
                let sum = V::wrap(S::float(S::sums(&sums[c])));
                acc[c] = sum.fma(scale * V::splat(x_scales[c]), acc[c]);
            }
        }
        for c in 0..SIDE {
            acc[c].to(&mut waiting[c]);
        }
    }

    /// Where the sums of a panel's row block and a tile of tokens are.
    #[inline(always)]
    fn kept(&self, panel: usize, tile: usize, block: usize) -> usize {
        (panel * self.y.rows.div_ceil(SIDE) + tile) * BLOCKS + block % BLOCKS
    }

    /// Writes the sums of all groups of some row blocks, which are those of `panel`, to the output, with the bias.
    #[inline(always)]
    fn finish<S: IntTier>(&mut self, blocks: &Range<usize>, panel: usize) {
        for t in 0..self.y.rows {
            for block in blocks.clone() {
                let mut y = V::<S::F>::of(&self.sums[self.kept(panel, t / SIDE, block)][t % SIDE]);
                if let Some(bias) = self.bias {
                    y = y + V::load(&bias[block * ROWS..]);
                }
                y.put(&mut self.y.row_mut(t)[block * ROWS..][..ROWS], self.past);
            }
        }
    }
}
