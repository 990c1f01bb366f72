//! Linear maps with bf16 weights on tiles.
//!
//! Weights are used where they lie: 16 rows of the matrix are a tile of A, whose rows are as far apart as
//! those of the matrix. The tokens are rounded and packed once per call as tiles of B, and tiles of C come out
//! as rows of weights by tokens. Every output is summed in steps of [`STEP`] along `in`, in order, whatever the
//! number of tokens.
//!
//! Up to 16 tokens the weights are read once and memory is the limit. More tokens go in blocks: a panel of 32
//! rows of weights and [`DEPTH`] steps of `in` stays in L1 while the tokens, in L2, go by, and the next panel is
//! fetched ahead.

use half::bf16;

use super::amx::{A, Ahead, Amx, B, SIDE, STEP, Tiles as Configured};
use super::pack::Block;
use super::split::{Columns, Runs, Tile, Tiles};
use super::tile_panel::{DEPTH, PANEL, Panel};
use super::{Cpu, goes_past, scratch};
use crate::{Buf, Linear};

/// Tokens and rows of weights per chunk when there are many: what a chunk reads from beyond L2 grows with their
/// sum and its work with their product, while unfinished sums, 512 KiB, and the tokens of two blocks of `in`,
/// 256 KiB each, are to stay in L2.
const TOKENS: usize = 512;
const ROWS: usize = 256;

/// See [`crate::Device::linear`]; sizes are checked.
pub(super) fn linear(cpu: &Cpu, amx: Amx, y: &mut Buf, a: &Linear) {
    let (columns, steps) = (a.t.clamp(1, SIDE), a.i.div_ceil(STEP));
    if a.t == 0 || a.o == 0 {
        return;
    }
    let (y, x, w) = (y.f32_mut(), a.x.f32(), a.w.buf.bf16());
    let token_tiles = a.t.div_ceil(SIDE);
    let tile = steps * STEP * columns;
    scratch::floats(a.groups * token_tiles * tile / 2, |packed| {
        let packed: &mut [bf16] = bytemuck::cast_slice_mut(packed);
        cpu.split(a.t * a.groups * a.i, Runs::new(packed, tile.max(1)), |index, out: &mut [bf16]| {
            let (group, t) = (index / token_tiles, index % token_tiles * SIDE);
            let at = t * a.x_stride + a.x_at + group * a.x_group;
            let x = Block { x: &x[at..], stride: a.x_stride, rows: SIDE.min(a.t - t), cols: a.i };
            amx.pack_rows(out, x, columns);
        });
        let packed = &*packed;
        let bias = a.bias.map(Buf::f32);
        let (tokens, rows) = blocks(cpu, a);
        let past = goes_past(y);
        let out = Tiles::new(y, a.groups * a.o, tokens, Columns::grouped(a.groups * a.o, a.groups, rows));
        cpu.split(a.t * a.groups * a.o * a.i, out, |_, y: Tile<f32>| {
            let first = y.group * a.o + y.start;
            let at = (y.group * token_tiles + y.row / SIDE) * tile;
            let chunk = Chunk {
                bias: bias.map(|b| &b[first..]),
                w: &w[first * a.w.cols() + a.w_at..],
                w_stride: a.w.cols(),
                i: a.i,
                packed: &packed[at..],
                columns,
                steps,
                past,
                y,
            };
            if a.t <= SIDE { chunk.few(amx) } else { chunk.many(amx) }
        });
    });
}

/// Tokens and rows of weights per chunk.
fn blocks(cpu: &Cpu, a: &Linear) -> (usize, usize) {
    let threads = cpu.pool.threads();
    if a.t <= SIDE {
        let rows = a.o.div_ceil(8 * threads).next_multiple_of(PANEL);
        return (SIDE, rows.clamp(PANEL, 512));
    }
    // As many chunks as the threads can share evenly, each as large as it may be.
    let token_blocks = a.t.div_ceil(TOKENS);
    let row_blocks = (a.groups * a.o).div_ceil(ROWS).next_multiple_of(threads.div_ceil(token_blocks));
    let rows = (a.groups * a.o).div_ceil(row_blocks).next_multiple_of(PANEL);
    (TOKENS, rows.clamp(PANEL, ROWS))
}

/// One chunk of outputs.
struct Chunk<'a> {
    y: Tile<'a, f32>,
    bias: Option<&'a [f32]>,
    /// From the chunk's first row and column on.
    w: &'a [bf16],
    w_stride: usize,
    i: usize,
    /// From the tile of the chunk's first token on.
    packed: &'a [bf16],
    columns: usize,
    steps: usize,
    past: bool,
}

impl Chunk<'_> {
    /// At most 16 tokens: one pass over the weights.
    fn few(mut self, amx: Amx) {
        let tiles = Configured::new(amx, self.columns);
        let b = self.packed;
        let mut c = [0.0; PANEL * SIDE];
        let full = self.y.width - self.y.width % PANEL;
        // Steps that lie whole in the rows, and where the last columns, too few for one, are copied to.
        let (whole, tail) = (self.i / STEP, self.i % STEP);
        let mut last = [bf16::ZERO; PANEL * STEP];
        for r in (0..full).step_by(PANEL) {
            let w = &self.w[r * self.w_stride..];
            let ahead = Ahead::nothing(b);
            if whole > 0 {
                tiles.product_bf16(&mut c, A::rows(w, self.w_stride, STEP), b, whole, true, ahead);
            }
            if tail > 0 {
                let x = Block { x: &w[whole * STEP..], stride: self.w_stride, rows: PANEL, cols: tail };
                amx.pack_plain(&mut last, x);
                let b = &b[whole * STEP * self.columns..];
                tiles.product_bf16(&mut c, A::rows(&last, STEP, STEP), b, 1, whole == 0, ahead);
            }
            self.finish_few(&c, r, PANEL);
        }
        if full < self.y.width {
            let width = self.steps * STEP;
            scratch::floats(PANEL * width / 2, |panel| {
                let panel: &mut [bf16] = bytemuck::cast_slice_mut(panel);
                for r in (full..self.y.width).step_by(PANEL) {
                    let rows = PANEL.min(self.y.width - r);
                    self.copy_panel(amx, panel, r, rows);
                    let a = A::rows(panel, width, STEP);
                    tiles.product_bf16(&mut c, a, b, self.steps, true, Ahead::nothing(b));
                    self.finish_few(&c, r, rows);
                }
            });
        }
    }

    /// Copies `rows` rows of weights from row `r`, padded with zeros to a whole panel.
    fn copy_panel(&self, amx: Amx, panel: &mut [bf16], r: usize, rows: usize) {
        let width = self.steps * STEP;
        let x = Block { x: &self.w[r * self.w_stride..], stride: self.w_stride, rows, cols: self.i };
        amx.pack_plain(&mut panel[..rows * width], x);
        panel[rows * width..].fill(bf16::ZERO);
    }

    /// Writes the outputs of `rows` rows of weights from `r`, which lie in `c` as `[rows, columns]`.
    fn finish_few(&mut self, c: &[f32], r: usize, rows: usize) {
        for t in 0..self.y.rows {
            let y = &mut self.y.row_mut(t)[r..][..rows];
            for (j, y) in y.iter_mut().enumerate() {
                *y = c[j * self.columns + t] + self.bias.map_or(0.0, |b| b[r + j]);
            }
        }
    }

    /// More than 16 tokens: blocks of `in` outside, panels of weights next, tokens inside.
    fn many(mut self, amx: Amx) {
        let tiles = Configured::new(amx, SIDE);
        let token_tiles = self.y.rows.div_ceil(SIDE);
        let panels = self.y.width.div_ceil(PANEL);
        let depth = self.steps.div_ceil(self.steps.div_ceil(DEPTH));
        let size = Panel::sums(token_tiles);
        scratch::floats(if depth < self.steps { panels * size } else { 0 }, |sums| {
            scratch::floats(PANEL * self.steps * STEP / 2, |copy| {
                let copy: &mut [bf16] = bytemuck::cast_slice_mut(copy);
                for from in (0..self.steps).step_by(depth) {
                    let block = Depth { from, depth, steps: depth.min(self.steps - from), token_tiles };
                    for p in 0..panels {
                        let sums = sums.get_mut(p * size..(p + 1) * size).unwrap_or_default();
                        self.panel(amx, &tiles, copy, sums, p * PANEL, block);
                    }
                }
            });
        });
    }

    /// Adds a block of `in` to the sums of the panel of weights from row `r`.
    fn panel(
        &mut self,
        amx: Amx,
        tiles: &Configured,
        copy: &mut [bf16],
        sums: &mut [f32],
        r: usize,
        block: Depth,
    ) {
        let rows = PANEL.min(self.y.width - r);
        let a = if rows == PANEL && self.i.is_multiple_of(STEP) {
            A::rows(&self.w[r * self.w_stride + block.from * STEP..], self.w_stride, STEP)
        } else {
            self.copy_panel(amx, copy, r, rows);
            A::rows(&copy[block.from * STEP..], self.steps * STEP, STEP)
        };
        let b = B { x: &self.packed[block.from * SIDE * STEP..], tile: self.steps * STEP * SIDE };
        let panel = Panel { a, b, count: block.token_tiles, steps: block.steps, first: block.from == 0 };
        let ahead = self.ahead(r, block);
        if block.from + block.steps < self.steps {
            panel.add(tiles, sums, ahead);
        } else {
            panel.complete(tiles, sums, ahead, |done, n| self.finish_many(amx, done, r, rows, n));
        }
    }

    /// What to fetch while the panel from row `r` meets a tile of tokens: a row of the next panel, and a part of the
    /// tokens' next block of `in`.
    fn ahead(&self, r: usize, block: Depth) -> impl Fn(usize) -> Ahead + use<> {
        let (stride, whole) = (self.w_stride, self.steps * STEP * SIDE);
        let rows = self.w.as_ptr().wrapping_add((r + PANEL) * stride + block.from * STEP);
        let tokens = self.packed.as_ptr().wrapping_add((block.from + block.depth) * SIDE * STEP);
        move |n| {
            let turn = (r / PANEL * block.token_tiles + n) * block.steps * STEP;
            let size = block.depth * SIDE * STEP;
            Ahead([rows.wrapping_add(n * stride), tokens.wrapping_add(turn / size * whole + turn % size)])
        }
    }

    /// Writes the outputs of `rows` rows of weights from `r` for tile `n` of tokens.
    fn finish_many(&mut self, amx: Amx, c: &[[f32; SIDE * SIDE]; 2], r: usize, rows: usize, n: usize) {
        for (half, c) in (0..rows).step_by(SIDE).zip(c) {
            self.finish_tile(amx, c, r + half, SIDE.min(rows - half), n * SIDE);
        }
    }

    /// Writes one tile of C: `rows` rows of weights from `r`, tokens from `t`.
    fn finish_tile(&mut self, amx: Amx, c: &[f32; SIDE * SIDE], r: usize, rows: usize, t: usize) {
        let tokens = SIDE.min(self.y.rows - t);
        let bias = self.bias.map(|b| &b[r..][..rows]);
        if rows == SIDE && tokens == SIDE {
            amx.transpose(&mut self.y.rows_mut(t, r), c, bias, self.past);
            return;
        }
        for j in 0..tokens {
            for (k, y) in self.y.row_mut(t + j)[r..][..rows].iter_mut().enumerate() {
                *y = c[k * SIDE + j] + bias.map_or(0.0, |b| b[k]);
            }
        }
    }
}

/// Steps `from ..+ steps` along `in`, of blocks of `depth` steps, for a number of tiles of tokens.
#[derive(Clone, Copy)]
struct Depth {
    from: usize,
    depth: usize,
    steps: usize,
    token_tiles: usize,
}
