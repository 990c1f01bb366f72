//! Gradients of linear maps with bf16 weights on tiles.
//!
//! Both are products `C += A B` whose result is laid out as it is wanted. For the gradient of the input, A is
//! `dy` as it lies, in bf16, and B the weights with rows of pairs interleaved; for that of the weights, A is
//! `dy` transposed and B the input with tokens of pairs interleaved. Sums run in steps of [`STEP`] in order, from
//! zero, and are added to C at the end.

use half::bf16;

use super::amx::{A, Ahead, Amx, B, SIDE, STEP, Start, Tiles as Configured};
use super::pack::{Block, Element};
use super::split::{Columns, Runs, Tile, Tiles};
use super::{Cpu, scratch};
use crate::{Buf, Linear};

/// Rows of A per panel.
const PANEL: usize = 2 * SIDE;
/// Steps per block of the sum.
const DEPTH: usize = 8;
/// Most rows and columns per chunk: unfinished sums are 512 KiB, a block of B 128 KiB.
const ROWS: usize = 512;
const COLUMNS: usize = 256;

/// See [`crate::Device::linear_dx`]; sizes are checked.
pub(super) fn linear_dx(cpu: &Cpu, amx: Amx, dx: &mut [f32], dy: &Buf, a: &Linear) {
    let (dy, w, steps) = (dy.f32(), a.w.buf.bf16(), a.o.div_ceil(STEP));
    let size = a.t.next_multiple_of(PANEL) * steps * STEP;
    if a.t * a.o * a.i == 0 {
        return;
    }
    for first in 0..a.groups {
        halves(size, |packed| {
            let tile = SIDE * steps * STEP;
            cpu.split(a.t * a.o, Runs::new(&mut *packed, tile), |index, out: &mut [bf16]| {
                let t = index * SIDE;
                let rows = SIDE.min(a.t.saturating_sub(t));
                let from = (t * a.groups + first) * a.o;
                let dy = dy.get(from..).unwrap_or_default();
                let block = Block { x: dy, stride: a.groups * a.o, rows, cols: a.o };
                amx.pack_plain(&mut out[..rows * steps * STEP], block);
                out[rows * steps * STEP..].fill(bf16::ZERO);
            });
            let product = Product { a: A::rows(packed, steps * STEP, STEP), steps, depth: a.o };
            let columns = Columns {
                at: a.x_at + first * a.x_group,
                groups: 1,
                group: a.i,
                stride: a.i,
                width: width(cpu, a.i, a.t),
            };
            let w = &w[first * a.o * a.i..][..a.o * a.i];
            cpu.split(a.t * a.o * a.i, Tiles::new(&mut *dx, a.x_stride, ROWS, columns), |_, c: Tile<f32>| {
                let b = Block { x: w, stride: a.i, rows: a.o, cols: a.i };
                product.add(amx, c, b);
            });
        });
    }
}

/// See [`crate::Device::linear_dw`]; sizes are checked.
pub(super) fn linear_dw(cpu: &Cpu, amx: Amx, dw: &mut [f32], dy: &Buf, a: &Linear) {
    let (dy, x, steps) = (dy.f32(), a.x.f32(), a.t.div_ceil(STEP));
    if a.t * a.o * a.i == 0 {
        return;
    }
    let size = a.o.next_multiple_of(PANEL) * steps * STEP;
    for (g, dw) in dw.chunks_exact_mut(a.o * a.i).enumerate() {
        halves(size, |packed| {
            let tile = SIDE * steps * STEP;
            cpu.split(a.t * a.o, Runs::new(&mut *packed, tile), |index, out: &mut [bf16]| {
                let o = index * SIDE;
                let cols = SIDE.min(a.o.saturating_sub(o));
                let dy = dy.get(g * a.o + o..).unwrap_or_default();
                let rows = if cols == 0 { 0 } else { a.t };
                let block = Block { x: dy, stride: a.groups * a.o, rows, cols };
                if rows == 0 { out.fill(bf16::ZERO) } else { amx.pack_transposed(out, block) }
            });
            let product = Product { a: A::packed(packed, steps, STEP), steps, depth: a.t };
            let columns = Columns::all(a.i, width(cpu, a.i, a.o));
            let x = &x[a.x_at + g * a.x_group..];
            cpu.split(a.t * a.o * a.i, Tiles::new(dw, a.i, ROWS, columns), |_, c: Tile<f32>| {
                let b = Block { x, stride: a.x_stride, rows: a.t, cols: a.i };
                product.add(amx, c, b);
            });
        });
    }
}

/// Columns per chunk: as many chunks as the threads can share evenly.
fn width(cpu: &Cpu, columns: usize, rows: usize) -> usize {
    let row_blocks = rows.div_ceil(ROWS);
    let blocks = columns.div_ceil(COLUMNS).next_multiple_of(cpu.pool.threads().div_ceil(row_blocks));
    columns.div_ceil(blocks).next_multiple_of(2 * SIDE).clamp(2 * SIDE, COLUMNS)
}

/// Working memory of `len` bf16.
fn halves<R>(len: usize, f: impl FnOnce(&mut [bf16]) -> R) -> R {
    scratch::floats(len.div_ceil(2), |memory| f(&mut bytemuck::cast_slice_mut(memory)[..len]))
}

/// The part of a product that all its chunks share.
#[derive(Clone, Copy)]
struct Product<'a> {
    /// All rows, padded to whole panels.
    a: A<'a, bf16>,
    steps: usize,
    /// Length of the sum.
    depth: usize,
}

impl Product<'_> {
    /// Adds the rows and columns of `c` of the product to it. `b` is the whole of B, unpacked.
    fn add<T: Element>(self, amx: Amx, mut c: Tile<f32>, b: Block<T>) {
        let tiles = Configured::new(amx, SIDE);
        let (panels, columns) = (c.rows.div_ceil(PANEL), c.width.div_ceil(SIDE));
        let size = PANEL * columns * SIDE;
        let sums = if self.steps > DEPTH { panels * size } else { 0 };
        scratch::floats(sums, |sums| {
            halves(columns * DEPTH * SIDE * STEP, |packed| {
                for from in (0..self.steps).step_by(DEPTH) {
                    let steps = DEPTH.min(self.steps - from);
                    self.pack(amx, packed, b, &c, from, steps);
                    for p in 0..panels {
                        let sums = sums.get_mut(p * size..(p + 1) * size).unwrap_or_default();
                        self.panel(amx, &tiles, &mut c, packed, sums, p, from, steps);
                    }
                }
            });
        });
    }

    /// Packs steps `from ..+ steps` of the columns of `c`.
    fn pack<T: Element>(
        &self,
        amx: Amx,
        packed: &mut [bf16],
        b: Block<T>,
        c: &Tile<f32>,
        from: usize,
        steps: usize,
    ) {
        let rows = (steps * STEP).min(self.depth - from * STEP);
        for (n, out) in packed.chunks_exact_mut(DEPTH * SIDE * STEP).enumerate() {
            let column = n * SIDE;
            let x = &b.x[from * STEP * b.stride + c.start + column..];
            let block = Block { x, stride: b.stride, rows, cols: SIDE.min(c.width - column) };
            amx.pack_columns(&mut out[..rows.div_ceil(STEP) * SIDE * STEP], block);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn panel(
        &self,
        amx: Amx,
        tiles: &Configured,
        c: &mut Tile<f32>,
        packed: &[bf16],
        sums: &mut [f32],
        p: usize,
        from: usize,
        steps: usize,
    ) {
        let row = c.row + p * PANEL;
        let a = A { x: &self.a.x[row / SIDE * self.a.tile + from * self.a.step..], ..self.a };
        let columns = c.width.div_ceil(SIDE);
        let last = from + steps == self.steps;
        let mut done = [0.0; PANEL * 2 * SIDE];
        for n in (0..columns).step_by(2) {
            let pair = (columns - n).min(2);
            let b = B { x: &packed[n * DEPTH * SIDE * STEP..], tile: DEPTH * SIDE * STEP };
            let sums = sums.get_mut(n * PANEL * SIDE..).unwrap_or_default();
            let (before, sums): (&[f32], &mut [f32]) = if last { (sums, &mut done) } else { (&[], sums) };
            let start = match from {
                0 => Start::Zero,
                _ if last => Start::From(before),
                _ => Start::Own,
            };
            let ahead = Ahead::nothing(b.x);
            match pair {
                2 => tiles.product_bf16::<2, 2>(sums, a, b, steps, start, ahead),
                _ => tiles.product_bf16::<2, 1>(sums, a, b, steps, start, ahead),
            }
            if last {
                finish(amx, c, &done, p * PANEL, n * SIDE, pair);
            }
        }
    }
}

/// Adds a panel's tiles, `count` side by side, to rows from `row` and columns from `column` of `c`.
fn finish(amx: Amx, c: &mut Tile<f32>, sums: &[f32], row: usize, column: usize, count: usize) {
    for (j, sums) in sums.as_chunks::<{ SIDE * SIDE }>().0.iter().enumerate().take(2 * count) {
        let (row, column) = (row + j / count * SIDE, column + j % count * SIDE);
        let (rows, columns) =
            (c.rows.saturating_sub(row).min(SIDE), c.width.saturating_sub(column).min(SIDE));
        if rows == SIDE && columns == SIDE {
            amx.add_rows(c.rows_mut(row, column, SIDE), sums);
            continue;
        }
        for r in 0..rows {
            let y = &mut c.row_mut(row + r)[column..][..columns];
            y.iter_mut().zip(&sums[r * SIDE..]).for_each(|(y, sum)| *y += sum);
        }
    }
}
