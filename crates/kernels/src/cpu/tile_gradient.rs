//! Gradients of linear maps with bf16 weights on tiles.
//!
//! Both are products `C += A B` whose result is laid out as it is wanted. For the gradient of the input, A is
//! `dy` in bf16, and B the weights with rows of pairs interleaved; for that of the weights, A is
//! `dy` transposed and B the input with tokens of pairs interleaved. Sums run in steps of [`STEP`] in order, from
//! zero, and are added to C at the end.

use half::bf16;

use super::amx::{A, Ahead, Amx, B, SIDE, STEP, Tiles as Configured, prefetch};
use super::pack::{Block, Element};
use super::split::{Columns, Runs, Tile, Tiles};
use super::tile_panel::{DEPTH, PANEL, Panel};
use super::{Cpu, scratch};
use crate::{Buf, Linear};

/// Most rows and columns per chunk: unfinished sums are 512 KiB, a block of B 128 KiB.
const ROWS: usize = 512;
const COLUMNS: usize = 256;
/// Tiles that are packed side by side: of each row of an array four lines are then read at once.
const BESIDE: usize = 4;
/// Elements of a packed tile.
const TILE: usize = SIDE * STEP;

/// See [`crate::Device::linear_dx`]; sizes are checked.
pub(super) fn linear_dx(cpu: &Cpu, amx: Amx, dx: &mut [f32], dy: &Buf, a: &Linear) {
    let (dy, w, steps) = (dy.f32(), a.w.buf.bf16(), a.o.div_ceil(STEP));
    if a.t * a.o * a.i == 0 {
        return;
    }
    for first in 0..a.groups {
        let stride = a.groups * a.o;
        let dy = Block { x: &dy[first * a.o..], stride, rows: a.t, cols: a.o };
        let w =
            Block { x: &w[first * a.o * a.w.cols() + a.w_at..], stride: a.w.cols(), rows: a.o, cols: a.i };
        let columns = Columns {
            at: a.x_at + first * a.x_group,
            groups: 1,
            group: a.i,
            stride: a.i,
            width: width(cpu, a.i, a.t),
        };
        halves(a.t.next_multiple_of(PANEL) * steps * STEP, |rows| {
            cpu.split(a.t * a.o, Runs::new(&mut *rows, steps * TILE), |index, out: &mut [bf16]| {
                pack_rows(amx, out, dy, index * SIDE);
            });
            with_columns(cpu, amx, w, |b| {
                let product = Product { a: A::packed(rows, steps, STEP), b, steps };
                cpu.split(
                    a.t * a.o * a.i,
                    Tiles::new(&mut *dx, a.x_stride, ROWS, columns),
                    |_, c: Tile<f32>| product.add(amx, c),
                );
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
    let stride = a.w.cols();
    for (g, dw) in dw.chunks_exact_mut(a.o * stride).enumerate() {
        let dy = Block { x: &dy[g * a.o..], stride: a.groups * a.o, rows: a.t, cols: a.o };
        let x = Block { x: &x[a.x_at + g * a.x_group..], stride: a.x_stride, rows: a.t, cols: a.i };
        let columns = Columns { at: a.w_at, ..Columns::all(a.i, width(cpu, a.i, a.o)) };
        halves(a.o.next_multiple_of(PANEL) * steps * STEP, |rows| {
            let strips = Runs::new(&mut *rows, BESIDE * steps * TILE);
            cpu.split(a.t * a.o, strips, |index, out: &mut [bf16]| {
                pack_transposed(amx, out, dy, index * BESIDE * SIDE);
            });
            with_columns(cpu, amx, x, |b| {
                let product = Product { a: A::packed(rows, steps, STEP), b, steps };
                cpu.split(a.t * a.o * a.i, Tiles::new(dw, stride, ROWS, columns), |_, c: Tile<f32>| {
                    product.add(amx, c);
                });
            });
        });
    }
}

/// Rows `from ..+ 16` of `x` as tiles of A, one per step; rows beyond it are zero.
fn pack_rows(amx: Amx, out: &mut [bf16], x: Block<f32>, from: usize) {
    for (step, out) in out.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let part = part(x, from, step * STEP, SIDE, STEP);
        let (rows, rest) = out.split_at_mut(part.rows * STEP);
        amx.pack_plain(rows, part);
        rest.fill(bf16::ZERO);
    }
}

/// Columns of `x` from `from` on as rows of tiles of A, in strips of 16, one tile per step; columns beyond it
/// are zero.
fn pack_transposed(amx: Amx, out: &mut [bf16], x: Block<f32>, from: usize) {
    let steps = x.rows.div_ceil(STEP);
    for step in 0..steps {
        for (n, strip) in out.chunks_exact_mut(steps * TILE).enumerate() {
            let out = &mut strip[step * TILE..][..TILE];
            match part(x, step * STEP, from + n * SIDE, STEP, SIDE) {
                Block { rows: 0, .. } => out.fill(bf16::ZERO),
                part => amx.pack_transposed(out, part),
            }
        }
    }
}

/// Packs all of `x`, whose columns are those of the product, as tiles of B.
fn with_columns<T: Element + Sync>(cpu: &Cpu, amx: Amx, x: Block<T>, f: impl FnOnce(Packed)) {
    let (columns, steps) = (x.cols.div_ceil(SIDE).next_multiple_of(BESIDE), x.rows.div_ceil(STEP));
    halves(steps.div_ceil(DEPTH) * columns * DEPTH * TILE, |packed| {
        let pieces = Runs::new(&mut *packed, BESIDE * DEPTH * TILE);
        cpu.split(x.rows * x.cols, pieces, |index, out: &mut [bf16]| {
            let (block, n) = (index / (columns / BESIDE), index % (columns / BESIDE) * BESIDE);
            for step in block * DEPTH..steps.min((block + 1) * DEPTH) {
                for (j, out) in out.chunks_exact_mut(DEPTH * TILE).enumerate() {
                    let out = &mut out[(step - block * DEPTH) * TILE..][..TILE];
                    match part(x, step * STEP, (n + j) * SIDE, STEP, SIDE) {
                        // A column that no product asks for.
                        Block { rows: 0, .. } => {}
                        part => amx.pack_columns(out, part),
                    }
                }
            }
        });
        f(Packed { tiles: packed, columns });
    });
}

/// At most `rows` rows and `cols` columns of `x` from row `r` and column `c` on; what lies beyond `x` is left out,
/// and of nothing there are no rows.
fn part<'a, T>(x: Block<'a, T>, r: usize, c: usize, rows: usize, cols: usize) -> Block<'a, T> {
    let (rows, cols) = (x.rows.saturating_sub(r).min(rows), x.cols.saturating_sub(c).min(cols));
    let rows = if cols == 0 { 0 } else { rows };
    Block { x: x.x.get(r * x.stride + c..).unwrap_or_default(), stride: x.stride, rows, cols }
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

/// Tiles of B: blocks of [`DEPTH`] steps, in each the columns, in each the steps.
#[derive(Clone, Copy)]
struct Packed<'a> {
    tiles: &'a [bf16],
    /// Tiles of columns per block.
    columns: usize,
}

impl<'a> Packed<'a> {
    /// Tiles from step `from`, which begins a block, and tile `n` of columns on.
    fn at(self, from: usize, n: usize) -> B<'a> {
        let tile = DEPTH * TILE;
        B { x: &self.tiles[(from / DEPTH * self.columns + n) * tile..], tile }
    }
}

/// The part of a product that all its chunks share.
#[derive(Clone, Copy)]
struct Product<'a> {
    /// All rows, padded to whole panels.
    a: A<'a>,
    b: Packed<'a>,
    steps: usize,
}

impl Product<'_> {
    /// Adds the rows and columns of `c` of the product to it.
    fn add(self, amx: Amx, mut c: Tile<f32>) {
        let tiles = Configured::new(amx, SIDE);
        let (panels, columns) = (c.rows.div_ceil(PANEL), c.width.div_ceil(SIDE));
        let size = Panel::sums(columns);
        let sums = if self.steps > DEPTH { panels * size } else { 0 };
        scratch::floats(sums, |sums| {
            for from in (0..self.steps).step_by(DEPTH) {
                let steps = DEPTH.min(self.steps - from);
                for p in 0..panels {
                    let sums = sums.get_mut(p * size..(p + 1) * size).unwrap_or_default();
                    self.panel(amx, &tiles, &mut c, sums, p, from, steps);
                }
            }
        });
    }

    #[allow(clippy::too_many_arguments)]
    fn panel(
        &self,
        amx: Amx,
        tiles: &Configured,
        c: &mut Tile<f32>,
        sums: &mut [f32],
        p: usize,
        from: usize,
        steps: usize,
    ) {
        let row = c.row + p * PANEL;
        let a = A { x: &self.a.x[row / SIDE * self.a.tile + from * self.a.step..], ..self.a };
        let columns = c.width.div_ceil(SIDE);
        let last = from + steps == self.steps;
        let b = self.b.at(from, c.start / SIDE);
        let ahead = self.ahead(c, p, from, steps);
        let block = Panel { a, b, count: columns, steps, first: from == 0 };
        if last {
            block.complete(tiles, sums, ahead, |done, n| finish(amx, c, done, p * PANEL, n * SIDE));
        } else {
            block.add(tiles, sums, ahead);
        }
    }

    /// What to fetch while panel `p` of `c` meets a tile of B: a part of both tiles of the next panel, or of the first one
    /// of the next block.
    fn ahead(&self, c: &Tile<f32>, p: usize, from: usize, steps: usize) -> impl Fn(usize) -> Ahead + use<> {
        let panels = c.rows.div_ceil(PANEL);
        let (p, from) = if p + 1 < panels { (p + 1, from) } else { (0, from + DEPTH) };
        let at = (c.row + p * PANEL) / SIDE * self.a.tile + from * self.a.step;
        let one = self.a.x.as_ptr().wrapping_add(at);
        let other = one.wrapping_add(self.a.tile);
        move |n| Ahead([one, other].map(|tile| tile.wrapping_add(n * steps * STEP)))
    }
}

/// Asks for what the tiles at `column`, or the first ones of the next panel, are added to.
fn ask(c: &Tile<f32>, row: usize, column: usize) {
    let (row, column) = if column < c.width { (row, column) } else { (row + PANEL, 0) };
    for r in row..(row + PANEL).min(c.rows) {
        let next = &c.row(r)[column..];
        prefetch(&next[..next.len().min(SIDE)]);
    }
}

/// Adds a panel's two tiles to rows from `row` and columns from `column` of `c`.
fn finish(amx: Amx, c: &mut Tile<f32>, sums: &[[f32; SIDE * SIDE]; 2], row: usize, column: usize) {
    ask(c, row, column + SIDE);
    let columns = c.width.saturating_sub(column).min(SIDE);
    for (half, sums) in sums.iter().enumerate() {
        let row = row + half * SIDE;
        let rows = c.rows.saturating_sub(row).min(SIDE);
        if rows == SIDE && columns == SIDE {
            amx.add_rows(&mut c.rows_mut(row, column), sums);
            continue;
        }
        for r in 0..rows {
            let y = &mut c.row_mut(row + r)[column..][..columns];
            y.iter_mut().zip(&sums[r * SIDE..]).for_each(|(y, sum)| *y += sum);
        }
    }
}
