//! Linear maps with bf16 weights on tiles.
//!
//! Weights are used where they lie: 16 rows of the matrix are a tile of A, whose rows are as far apart as
//! those of the matrix. The tokens are rounded and packed once per call as tiles of B, and tiles of C come out
//! as rows of weights by tokens. Every output is summed in steps of [`STEP`] along `in`, in order, whatever the
//! number of tokens.
//!
//! Up to 16 tokens the weights are read once and memory is the limit. More tokens go in blocks: a panel of 32
//! rows of weights and [`DEPTH`] of `in` stays in L1 while the tokens, in L2, go by, and the next panel is
//! fetched ahead.

use half::bf16;

use super::amx::{A, Ahead, Amx, B, SIDE, STEP, Tiles as Configured};
use super::pack::Block;
use super::split::{Columns, Runs, Tile, Tiles};
use super::{Cpu, scratch};
use crate::{Buf, Linear};

/// Rows of weights per panel.
const PANEL: usize = 2 * SIDE;
/// Steps per block of `in`: a panel of weights is then 32 KiB.
const DEPTH: usize = 16;
/// Most tokens that share a pass over the weights: with [`DEPTH`] 512 KiB.
const TOKENS: usize = 512;
/// Most rows of weights per chunk when there are many tokens; unfinished sums of [`TOKENS`] are 256 KiB.
const ROWS: usize = 128;

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
        let out = Tiles::new(y, a.groups * a.o, tokens, Columns::grouped(a.groups * a.o, a.groups, rows));
        cpu.split(a.t * a.groups * a.o * a.i, out, |_, y: Tile<f32>| {
            let first = y.group * a.o + y.start;
            let at = (y.group * token_tiles + y.row / SIDE) * tile;
            let chunk = Chunk {
                bias: bias.map(|b| &b[first..]),
                w: &w[first * a.i..],
                i: a.i,
                packed: &packed[at..],
                columns,
                steps,
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
    (TOKENS, ROWS)
}

/// One chunk of outputs.
struct Chunk<'a> {
    y: Tile<'a, f32>,
    bias: Option<&'a [f32]>,
    /// From the chunk's first row on.
    w: &'a [bf16],
    i: usize,
    /// From the tile of the chunk's first token on.
    packed: &'a [bf16],
    columns: usize,
    steps: usize,
}

impl Chunk<'_> {
    /// At most 16 tokens: one pass over the weights.
    fn few(mut self, amx: Amx) {
        let tiles = Configured::new(amx, self.columns);
        let b = B { x: self.packed, tile: 0 };
        let mut c = [0.0; PANEL * SIDE];
        let direct = self.i.is_multiple_of(STEP);
        let full = if direct { self.y.width - self.y.width % PANEL } else { 0 };
        for r in (0..full).step_by(PANEL) {
            let w = &self.w[r * self.i..];
            let a = A::rows(w, self.i, STEP);
            tiles.product_bf16::<2, 1>(&mut c, a, b, self.steps, true, Ahead::nothing(self.packed));
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
                    tiles.product_bf16::<2, 1>(&mut c, a, b, self.steps, true, Ahead::nothing(self.packed));
                    self.finish_few(&c, r, rows);
                }
            });
        }
    }

    /// Copies `rows` rows of weights from row `r`, padded with zeros to a whole panel.
    fn copy_panel(&self, amx: Amx, panel: &mut [bf16], r: usize, rows: usize) {
        let width = self.steps * STEP;
        let x = Block { x: &self.w[r * self.i..], stride: self.i, rows, cols: self.i };
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
        let width = self.steps * STEP;
        let sums = panels * token_tiles * PANEL * SIDE;
        scratch::floats(sums, |sums| {
            scratch::floats(PANEL * width / 2, |panel| {
                let panel: &mut [bf16] = bytemuck::cast_slice_mut(panel);
                for from in (0..self.steps).step_by(DEPTH) {
                    let steps = DEPTH.min(self.steps - from);
                    for p in 0..panels {
                        let sums = &mut sums[p * token_tiles * PANEL * SIDE..][..token_tiles * PANEL * SIDE];
                        self.panel(amx, &tiles, panel, sums, p, from, steps);
                    }
                }
            });
        });
    }

    #[allow(clippy::too_many_arguments)]
    fn panel(
        &mut self,
        amx: Amx,
        tiles: &Configured,
        copy: &mut [bf16],
        sums: &mut [f32],
        p: usize,
        from: usize,
        steps: usize,
    ) {
        let r = p * PANEL;
        let rows = PANEL.min(self.y.width - r);
        let width = self.steps * STEP;
        let direct = rows == PANEL && self.i.is_multiple_of(STEP);
        let a = if direct {
            A::rows(&self.w[r * self.i + from * STEP..], self.i, STEP)
        } else {
            self.copy_panel(amx, copy, r, rows);
            A::rows(&copy[from * STEP..], width, STEP)
        };
        let tile = self.steps * STEP * SIDE;
        let token_tiles = self.y.rows.div_ceil(SIDE);
        let mut next = self.w[((r + PANEL) * self.i + from * STEP).min(self.w.len())..].as_ptr();
        for n in (0..token_tiles).step_by(2) {
            let b = B { x: &self.packed[n * tile + from * SIDE * STEP..], tile };
            let ahead = Ahead([next, next.wrapping_add(self.i)]);
            next = next.wrapping_add(2 * self.i);
            let c = &mut sums[n * PANEL * SIDE..];
            if n + 1 < token_tiles {
                tiles.product_bf16::<2, 2>(c, a, b, steps, from == 0, ahead);
            } else {
                tiles.product_bf16::<2, 1>(c, a, b, steps, from == 0, ahead);
            }
            if from + steps == self.steps {
                let pair = (token_tiles - n).min(2);
                self.finish_many(amx, &sums[n * PANEL * SIDE..], r, rows, n, pair);
            }
        }
    }

    /// Writes the outputs of `rows` rows of weights from `r` for `count` tiles of tokens from tile `n`.
    fn finish_many(&mut self, amx: Amx, c: &[f32], r: usize, rows: usize, n: usize, count: usize) {
        let mut by_token = [0.0; SIDE * SIDE];
        for (j, c) in c.as_chunks::<{ SIDE * SIDE }>().0.iter().enumerate().take(2 * count) {
            let (r, n) = (r + j / count * SIDE, n + j % count);
            let rows = (rows + j / count * 0).min(self.y.width.saturating_sub(r)).min(SIDE);
            if rows == 0 {
                continue;
            }
            amx.transpose(&mut by_token, c);
            for t in n * SIDE..self.y.rows.min((n + 1) * SIDE) {
                let from = &by_token[(t - n * SIDE) * SIDE..][..rows];
                let y = &mut self.y.row_mut(t)[r..][..rows];
                match self.bias {
                    Some(b) => y.iter_mut().zip(from).zip(&b[r..]).for_each(|((y, c), b)| *y = c + b),
                    None => y.copy_from_slice(from),
                }
            }
        }
    }
}
