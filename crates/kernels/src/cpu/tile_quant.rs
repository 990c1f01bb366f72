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

/// Groups per pass: with [`BLOCKS`] 32 KiB of weights, and 8 KiB of activations, in L1.
const PASS: usize = 8;
/// Row blocks per panel.
const BLOCKS: usize = 4;
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
        scratch::floats(BLOCKS * PASS * TILE / 4, |panel| {
            cpu.isa.run_int(Chunk {
                tiles: Configured::new(amx, SIDE),
                q: &x.q[y.row * x.width + group * GROUP..],
                width: x.width,
                x_scales: &x.scales[(y.row / SIDE * (x.width / GROUP) + group) * SIDE..],
                dtype: a.w.dtype(),
                quants: &quants[first / ROWS * blocks * bytes..],
                scales: &scales[first * blocks..],
                bias: bias.map(|b| &b[first..]),
                groups: blocks,
                panel: bytemuck::cast_slice_mut(panel),
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
    /// Room for the signed integers of a pass.
    panel: &'a mut [u8],
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
                    self.tile::<S>(block, t, from, to);
                }
            }
        }
        if let Some(bias) = self.bias {
            for t in 0..self.y.rows {
                for (y, b) in self.y.row_mut(t).iter_mut().zip(bias) {
                    *y += b;
                }
            }
        }
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

    /// Groups `from .. to` of a row block for 16 tokens from `t`. Sums of the groups before wait in the output.
    #[inline(always)]
    fn tile<S: IntTier>(&mut self, block: usize, t: usize, from: usize, to: usize) {
        let tokens = SIDE.min(self.y.rows - t);
        let mut acc = [V::<S::F>::zero(); SIDE];
        if from > 0 {
            for c in 0..tokens {
                acc[c] = V::load(&self.y.row(t + c)[block * ROWS..]);
            }
        }
        // Two tiles of sums in turn: the next is on its way while one is added.
        let mut sums = [[0; SIDE * SIDE]; 2];
        self.multiply(&mut sums[0], block, t, from, from);
        for g in from..to {
            let [even, odd] = &mut sums;
            let (now, next) = if (g - from).is_multiple_of(2) { (even, odd) } else { (odd, even) };
            if g + 1 < to {
                self.multiply(next, block, t, from, g + 1);
            }
            let scales = self.scales[(block * self.groups + g) * LANES..].first_chunk();
            let scale = V::<S::F>::wrap(S::scales(scales.expect("16 scales")));
            let x_scales = &self.x_scales[(t / SIDE * (self.width / GROUP) + g) * SIDE..];
            let x_scales: &[f32; SIDE] = x_scales.first_chunk().expect("16 tokens");
            let rows = now.as_chunks().0;
            for c in 0..SIDE {
                let sum = V::wrap(S::float(<S as IntTier>::sums(&rows[c])));
                acc[c] = sum.fma(scale * V::splat(x_scales[c]), acc[c]);
            }
        }
        for c in 0..tokens {
            acc[c].store(&mut self.y.row_mut(t + c)[block * ROWS..]);
        }
    }

    /// The integer sums of group `g` of a row block and 16 tokens from `t`.
    #[inline(always)]
    fn multiply(&self, sums: &mut [i32; SIDE * SIDE], block: usize, t: usize, from: usize, g: usize) {
        let q = &self.q[t * self.width + g * GROUP..];
        let w = self.panel[(block * PASS + g - from) * TILE..].first_chunk().expect("a tile");
        self.tiles.group_i8(sums, q, self.width, w, g % 2 == 1);
    }
}
