//! Linear maps with quantised weights on tiles, for many tokens.
//!
//! A block of 16 rows and 64 columns, one signed byte per weight, is a tile of B; 16 tokens of a group are a
//! tile of A. One multiplication gives the integer sums of 16 tokens and 16 rows, which vectors scale and add
//! to the outputs in the same way as [`quant`](super::quant) does, so results are equal bit for bit.
//!
//! Integers go by [`PASS`] groups of [`BLOCKS`] row blocks, which stay in L1 while the tokens, in L2, go by.

use half::f16;

use super::amx::{Amx, SIDE, Tiles as Configured};
use super::int::{IntOp, IntTier};
use super::quant::{Input, quantise};
use super::split::{Columns, Tile, Tiles};
use super::tier::{LANES, V};
use super::{Cpu, scratch};
use crate::quant::{GROUP, LINE, LINES, ROWS, block_bytes};
use crate::{Buf, Dtype, Linear};

/// Groups per pass: with [`BLOCKS`] 16 KiB of weights, and 4 KiB of activations and of sums each, in L1.
const PASS: usize = 4;
/// Row blocks per panel.
const BLOCKS: usize = 4;
/// Tokens of a small tile, for chunks that have no more.
const SMALL: usize = 8;
/// Most tokens per chunk.
const TOKENS: usize = 512;
/// Bytes of a tile.
const TILE: usize = LINES * LINE;

/// See [`crate::Device::linear`]; sizes are checked.
pub(super) fn linear(cpu: &Cpu, amx: Amx, y: &mut Buf, a: &Linear) {
    let width = a.groups * a.i;
    let (tiles, groups) = (a.t.div_ceil(SIDE), width / GROUP);
    let rows = tiles * SIDE;
    // Integers of whole tiles; scales as tokens have them, and starts, which signed weights do not need; scales
    // by tile and group.
    scratch::floats(rows * width / 4 + 2 * a.t * groups + rows * groups, |memory| {
        let (q, rest) = memory.split_at_mut(rows * width / 4);
        let (scales, rest) = rest.split_at_mut(a.t * groups);
        let (starts, by_tile) = rest.split_at_mut(a.t * groups);
        let q: &mut [i8] = bytemuck::cast_slice_mut(q);
        let (real, padding) = q.split_at_mut(a.t * width);
        padding.fill(0);
        quantise(cpu, real, scales, bytemuck::cast_slice_mut(starts), a);
        for (tile, out) in by_tile.chunks_exact_mut(groups * SIDE).enumerate() {
            for (g, out) in out.chunks_exact_mut(SIDE).enumerate() {
                for (c, out) in out.iter_mut().enumerate() {
                    let t = tile * SIDE + c;
                    *out = if t < a.t { scales[t * groups + g] } else { 0.0 };
                }
            }
        }
        let x = Input { q, scales: by_tile, starts: &[], width };
        forward(cpu, amx, y.f32_mut(), x, a);
    });
}

fn forward(cpu: &Cpu, amx: Amx, y: &mut [f32], x: Input, a: &Linear) {
    let (quants, scales) = a.w.buf.quants();
    let bias = a.bias.map(Buf::f32);
    let (blocks, bytes) = (a.i / GROUP, block_bytes(a.w.dtype()));
    let columns = Columns::grouped(a.groups * a.o, a.groups, BLOCKS * ROWS);
    let chunks = Tiles::new(y, a.groups * a.o, TOKENS, columns);
    cpu.split(a.t * a.groups * a.o * a.i, chunks, |_, y: Tile<f32>| {
        let first = y.group * a.o + y.start;
        let group = y.group * blocks;
        let small = y.rows <= SMALL;
        let (panel, products) = (BLOCKS * PASS * TILE / 4, PASS * SIDE * LANES);
        scratch::floats(panel + products + y.rows.div_ceil(SIDE) * BLOCKS * SIDE * LANES, |memory| {
            let (panel, rest) = memory.split_at_mut(panel);
            let (products, sums) = rest.split_at_mut(products);
            let products: &mut [i32] = bytemuck::cast_slice_mut(products);
            let products = products.as_chunks_mut().0.as_chunks_mut().0;
            cpu.isa.run_int(Chunk {
                tiles: Configured::with_rows(amx, SIDE, if small { SMALL } else { SIDE }),
                q: &x.q[y.row * x.width + group * GROUP..],
                width: x.width,
                x_scales: &x.scales[(y.row / SIDE * (x.width / GROUP) + group) * SIDE..],
                dtype: a.w.dtype(),
                quants: &quants[first / ROWS * blocks * bytes..],
                scales: &scales[first * blocks..],
                bias: bias.map(|b| &b[first..]),
                groups: blocks,
                threads: cpu.pool.threads(),
                panel: bytemuck::cast_slice_mut(panel),
                products: products.first_chunk_mut().expect("a pass"),
                sums: sums.as_chunks_mut().0,
                y,
            });
        });
    });
}

/// One chunk of outputs.
struct Chunk<'a> {
    tiles: Configured,
    y: Tile<'a, f32>,
    /// Integers from the chunk's first token on, rows of `width`.
    q: &'a [i8],
    width: usize,
    /// Scales from the tile of the chunk's first token on, `[tiles, width / 64, 16]`.
    x_scales: &'a [f32],
    dtype: Dtype,
    /// From the chunk's first row, as are scales and bias.
    quants: &'a [u8],
    scales: &'a [f16],
    bias: Option<&'a [f32]>,
    /// Groups of columns.
    groups: usize,
    /// Threads that take chunks in turn.
    threads: usize,
    /// Room for the signed integers of a pass.
    panel: &'a mut [u8],
    /// Integer sums of a pass for one row block and 16 tokens.
    products: &'a mut [[[i32; LANES]; SIDE]; PASS],
    /// Sums of the groups so far, `[tiles, BLOCKS, 16 tokens]`; in the output they would lie far apart.
    sums: &'a mut [[f32; LANES]],
}

impl IntOp for Chunk<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: IntTier>(mut self) {
        let blocks = self.y.width / ROWS;
        for from in (0..self.groups).step_by(PASS) {
            let to = self.groups.min(from + PASS);
            for block in 0..blocks {
                self.unpack::<S>(block, from, to);
            }
            for t in (0..self.y.rows).step_by(SIDE) {
                for block in 0..blocks {
                    if self.y.rows <= SMALL {
                        self.tile::<S, SMALL>(block, t, from, to);
                    } else {
                        self.tile::<S, SIDE>(block, t, from, to);
                    }
                }
            }
        }
        self.finish();
    }
}

impl Chunk<'_> {
    /// Writes the integers of groups `from .. to` of a row block, as signed bytes in the order of lines.
    #[inline(always)]
    fn unpack<S: IntTier>(&mut self, block: usize, from: usize, to: usize) {
        let bytes = block_bytes(self.dtype);
        let at = (block * self.groups + from) * bytes;
        let parts = self.quants[at..][..(to - from) * bytes].as_chunks().0;
        let lines = self.panel[block * PASS * TILE..][..(to - from) * TILE].as_chunks_mut::<LINE>().0;
        if self.dtype == Dtype::Q8 {
            for (part, line) in parts.iter().zip(lines) {
                S::signed8(part, line);
            }
        } else {
            for (part, [low, high]) in parts.iter().zip(lines.as_chunks_mut::<2>().0) {
                S::signed4(part, low, high);
            }
        }
    }

    /// Groups `from .. to` of a row block for a tile of `T` tokens from `t`.
    #[inline(always)]
    fn tile<S: IntTier, const T: usize>(&mut self, block: usize, t: usize, from: usize, to: usize) {
        let mut acc = [V::<S::F>::zero(); T];
        let place = (t / SIDE * BLOCKS + block) * SIDE;
        self.fetch::<S>(block, t + SIDE, from);
        // All products first: sums come back from tiles through memory, which takes its time.
        for g in (from..to).step_by(2) {
            self.multiply::<false>(block, t, from, g);
            if g + 1 < to {
                self.multiply::<true>(block, t, from, g + 1);
            }
        }
        let waiting: &[_; SIDE] = self.sums[place..].first_chunk().expect("16 tokens");
        if from > 0 {
            for c in 0..T {
                acc[c] = V::of(&waiting[c]);
            }
        }
        for g in from..to {
            self.add::<S, T>(&mut acc, block, t, from, g);
        }
        let waiting: &mut [_; SIDE] = self.sums[place..].first_chunk_mut().expect("16 tokens");
        for c in 0..T {
            acc[c].to(&mut waiting[c]);
        }
    }

    /// Asks for a share of the integers that the tokens from `t` will need, so that with all row blocks all of
    /// them are there in time.
    #[inline(always)]
    fn fetch<S: IntTier>(&self, block: usize, t: usize, from: usize) {
        const SHARE: usize = SIDE / BLOCKS;
        if t + SIDE <= self.y.rows {
            for row in t + block * SHARE..t + (block + 1) * SHARE {
                let q = &self.q[row * self.width + from * GROUP..];
                for group in 0..PASS {
                    S::prefetch(q, group * GROUP);
                }
            }
        }
    }

    /// Adds the sums of group `g` of a row block and a tile of tokens from `t`, with their scales. The first tile asks
    /// for the weights of two passes later, a line at a time: all at once they would find the processor's queue full.
    #[inline(always)]
    fn add<S: IntTier, const T: usize>(
        &self,
        acc: &mut [V<S::F>; T],
        block: usize,
        t: usize,
        from: usize,
        g: usize,
    ) {
        let sums = &self.products[g - from];
        let scales = self.scales[(block * self.groups + g) * LANES..].first_chunk();
        let scale = V::<S::F>::wrap(S::scales(scales.expect("16 scales")));
        let x_scales = &self.x_scales[(t / SIDE * (self.width / GROUP) + g) * SIDE..];
        let x_scales: &[f32; SIDE] = x_scales.first_chunk().expect("16 tokens");
        let bytes = block_bytes(self.dtype);
        let raw = &self.quants[(block * self.groups + g) * bytes..];
        // Behind the end of the row block this thread goes on with another chunk.
        let skipped = if g + 2 * PASS < self.groups { 0 } else { BLOCKS * self.threads - 1 };
        let ahead = (2 * PASS + skipped * self.groups) * bytes;
        for c in 0..T {
            if t == 0 {
                S::prefetch(&raw[c * bytes / T..], ahead);
            }
            let sum = V::wrap(S::float(S::sums(&sums[c])));
            acc[c] = sum.fma(scale * V::splat(x_scales[c]), acc[c]);
        }
    }

    /// The integer sums of group `g` of a row block and a tile of tokens from `t`.
    #[inline(always)]
    fn multiply<const ODD: bool>(&mut self, block: usize, t: usize, from: usize, g: usize) {
        let q = &self.q[t * self.width + g * GROUP..];
        let w = self.panel[(block * PASS + g - from) * TILE..].first_chunk().expect("a tile");
        self.tiles.group_i8::<ODD>(&mut self.products[g - from], q, self.width, w);
    }

    /// Writes the sums of all groups to the output, with the bias.
    #[inline(always)]
    fn finish(&mut self) {
        for t in 0..self.y.rows {
            for block in 0..self.y.width / ROWS {
                let sums = &self.sums[(t / SIDE * BLOCKS + block) * SIDE + t % SIDE];
                let y = &mut self.y.row_mut(t)[block * ROWS..][..ROWS];
                match self.bias {
                    Some(bias) => {
                        let bias = &bias[block * ROWS..][..ROWS];
                        y.iter_mut().zip(sums).zip(bias).for_each(|((y, sum), b)| *y = sum + b);
                    }
                    None => y.copy_from_slice(sums),
                }
            }
        }
    }
}
