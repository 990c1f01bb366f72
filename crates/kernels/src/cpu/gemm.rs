//! Gradients of linear maps: products that are summed along a long axis with outputs in lanes.
//!
//! `C += A B`, where the sum over `k` runs in order within blocks of [`DEPTH`], each from zero, and the
//! blocks are added to `C` in order. Both operands are packed, so the layout in memory does not matter.

use half::bf16;

use super::linear::check;
use super::split::{Columns, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V, Weight, operand};
#[cfg(target_arch = "x86_64")]
use super::tile_gradient;
use super::{Cpu, norm, scratch};
use crate::{Buf, Dtype, Linear};

/// Length of a partial sum. A packed panel of B is then 64 KiB and lies in L2.
const DEPTH: usize = 256;
/// Most rows and columns of a chunk.
const ROW_BLOCK: usize = 96;
const COLUMN_BLOCK: usize = 256;
/// Rows and vectors of the register tile on wide tiers and others; the sums take 24 registers of 32, or
/// 12 of 16 (a vector is two registers there).
const WIDE_TILE: (usize, usize) = (6, 4);
const NARROW_TILE: (usize, usize) = (6, 1);

/// See [`crate::Device::linear_dx`].
pub(super) fn linear_dx(cpu: &Cpu, dx: &mut Buf, dy: &Buf, a: Linear) {
    check(dy.len(), &a);
    assert!(dx.len() >= a.t * a.x_stride, "gradient of the input of a linear map");
    let dx = &mut dx.f32_mut()[..a.t * a.x_stride];
    match a.w.dtype() {
        Dtype::F32 => dx_typed::<f32>(cpu, dx, dy.f32(), a.w.buf.f32(), &a),
        #[cfg(target_arch = "x86_64")]
        Dtype::Bf16 if cpu.isa.amx().is_some() => {
            cpu.isa.amx().into_iter().for_each(|amx| tile_gradient::linear_dx(cpu, amx, dx, dy, &a));
        }
        Dtype::Bf16 => dx_typed::<bf16>(cpu, dx, dy.f32(), a.w.buf.bf16(), &a),
        Dtype::Q8 | Dtype::Q4 => panic!("quantised weights have no gradients"),
    }
}

fn dx_typed<W: Weight>(cpu: &Cpu, dx: &mut [f32], dy: &[f32], w: &[W], a: &Linear) {
    // Groups that share columns add to them one after the other.
    let together = if a.x_group >= a.i { a.groups } else { 1 };
    let (rows, width) = blocks(cpu, a.t, a.i, together, a.o);
    for first in (0..a.groups).step_by(together.max(1)) {
        let at = a.x_at + first * a.x_group;
        let columns = Columns { at, groups: together, group: a.i, stride: a.x_group, width };
        product(cpu, Tiles::new(dx, a.x_stride, rows, columns), a.o, |c: &Tile<f32>| Dx {
            dy: &dy[c.row * a.groups * a.o + (first + c.group) * a.o..],
            dy_stride: a.groups * a.o,
            w: &w[(first + c.group) * a.o * a.w.cols() + a.w_at + c.start..],
            w_stride: a.w.cols(),
            width: c.width,
        });
    }
}

/// See [`crate::Device::linear_dw`].
pub(super) fn linear_dw(
    cpu: &Cpu,
    dw_flat: &mut Buf,
    w_at: usize,
    bias_at: Option<usize>,
    dy: &Buf,
    a: Linear,
) {
    check(dy.len(), &a);
    let dw_flat = dw_flat.f32_mut();
    let dw = &mut dw_flat[w_at..][..a.groups * a.o * a.w.cols()];
    match a.w.dtype() {
        Dtype::F32 => dw_typed::<f32>(cpu, dw, dy.f32(), &a),
        #[cfg(target_arch = "x86_64")]
        Dtype::Bf16 if cpu.isa.amx().is_some() => {
            cpu.isa.amx().into_iter().for_each(|amx| tile_gradient::linear_dw(cpu, amx, dw, dy, &a));
        }
        Dtype::Bf16 => dw_typed::<bf16>(cpu, dw, dy.f32(), &a),
        Dtype::Q8 | Dtype::Q4 => panic!("quantised weights have no gradients"),
    }
    if let Some(at) = bias_at {
        norm::column_sums(cpu, &mut dw_flat[at..][..a.groups * a.o], dy.f32(), None);
    }
}

fn dw_typed<W: Weight>(cpu: &Cpu, dw: &mut [f32], dy: &[f32], a: &Linear) {
    let x = a.x.f32();
    let (rows, width) = blocks(cpu, a.o, a.i, 1, a.t);
    let (stride, columns) = (a.w.cols(), Columns { at: a.w_at, ..Columns::all(a.i, width) });
    for (g, dw) in dw.chunks_exact_mut((a.o * stride).max(1)).enumerate() {
        product(cpu, Tiles::new(dw, stride, rows, columns), a.t, |c: &Tile<f32>| Dw::<W> {
            dy: &dy[(g * a.o + c.row).min(dy.len())..],
            dy_stride: a.groups * a.o,
            x: &x[(a.x_at + g * a.x_group + c.start).min(x.len())..],
            x_stride: a.x_stride,
            width: c.width,
            weight: std::marker::PhantomData,
        });
    }
}

/// Rows and columns per chunk of a product of `m` rows, `groups * n` columns and depth `k`.
fn blocks(cpu: &Cpu, m: usize, n: usize, groups: usize, k: usize) -> (usize, usize) {
    let (mut rows, mut width) = (ROW_BLOCK.min(m.max(1)), COLUMN_BLOCK.min(n.max(1)));
    let threads = cpu.pool.threads();
    let chunks = |rows: usize, width: usize| m.div_ceil(rows) * n.div_ceil(width) * groups;
    while threads > 1 && rows * width * k > 1 << 18 && chunks(rows, width) < 4 * threads {
        if width > 64 {
            width = (width / 2).next_multiple_of(64);
        } else if rows > 12 {
            rows = (rows / 2).next_multiple_of(6);
        } else {
            break;
        }
    }
    (rows, width)
}

/// The operands of one chunk, from its first row and column.
trait Operands: Copy {
    /// Writes `A[row .. row + M, k]`; rows from `rows` on do not exist and read as zero.
    fn column<const M: usize>(&self, out: &mut [f32; M], row: usize, rows: usize, k: usize);

    /// The 16 elements of row `k` of B from column `n`; zeros beyond the chunk.
    fn row<S: Tier>(&self, k: usize, n: usize) -> V<S>;
}

/// A is `dy`, B the weights.
#[derive(Clone, Copy)]
struct Dx<'a, W> {
    dy: &'a [f32],
    dy_stride: usize,
    w: &'a [W],
    w_stride: usize,
    width: usize,
}

impl<W: Weight> Operands for Dx<'_, W> {
    #[inline(always)]
    fn column<const M: usize>(&self, out: &mut [f32; M], row: usize, rows: usize, k: usize) {
        for (r, out) in out.iter_mut().enumerate() {
            *out = if row + r < rows { operand::<W>(self.dy[(row + r) * self.dy_stride + k]) } else { 0.0 };
        }
    }

    #[inline(always)]
    fn row<S: Tier>(&self, k: usize, n: usize) -> V<S> {
        if n >= self.width {
            return V::zero();
        }
        W::load_part(&self.w[k * self.w_stride + n..][..LANES.min(self.width - n)])
    }
}

/// A is `dy` transposed, B the input.
#[derive(Clone, Copy)]
struct Dw<'a, W> {
    dy: &'a [f32],
    dy_stride: usize,
    x: &'a [f32],
    x_stride: usize,
    width: usize,
    weight: std::marker::PhantomData<W>,
}

impl<W: Weight> Operands for Dw<'_, W> {
    #[inline(always)]
    fn column<const M: usize>(&self, out: &mut [f32; M], row: usize, rows: usize, k: usize) {
        let dy = &self.dy[k * self.dy_stride + row..];
        for (r, out) in out.iter_mut().enumerate() {
            *out = if row + r < rows { operand::<W>(dy[r]) } else { 0.0 };
        }
    }

    #[inline(always)]
    fn row<S: Tier>(&self, k: usize, n: usize) -> V<S> {
        if n >= self.width {
            return V::zero();
        }
        let x = &self.x[k * self.x_stride + n..][..LANES.min(self.width - n)];
        if !W::ROUNDS {
            return V::load_part(x);
        }
        let mut rounded = [0.0; LANES];
        for (y, x) in rounded.iter_mut().zip(x) {
            *y = operand::<W>(*x);
        }
        V::of(&rounded)
    }
}

/// `C += A B` for all tiles of C.
fn product<P: Operands>(cpu: &Cpu, c: Tiles<f32>, depth: usize, operands: impl Fn(&Tile<f32>) -> P + Sync) {
    cpu.split(c.len() * depth, c, |_, c: Tile<f32>| {
        let rows = c.rows.next_multiple_of(WIDE_TILE.0);
        scratch::floats(rows * DEPTH, |a_panel| {
            scratch::floats(WIDE_TILE.1 * DEPTH * LANES, |b_panel| {
                let b_panel = b_panel.as_chunks_mut().0;
                cpu.isa.run(Product { operands: operands(&c), c, depth, a_panel, b_panel });
            });
        });
    });
}

struct Product<'a, P> {
    c: Tile<'a, f32>,
    operands: P,
    depth: usize,
    /// `[rows / M][k][M]`
    a_panel: &'a mut [f32],
    /// `[k][vectors]`
    b_panel: &'a mut [[f32; LANES]],
}

impl<P: Operands> Op for Product<'_, P> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        if S::WIDE {
            self.blocks::<S, { WIDE_TILE.0 }, { WIDE_TILE.1 }>();
        } else {
            self.blocks::<S, { NARROW_TILE.0 }, { NARROW_TILE.1 }>();
        }
    }
}

impl<P: Operands> Product<'_, P> {
    #[inline(always)]
    fn blocks<S: Tier, const M: usize, const N: usize>(&mut self) {
        for from in (0..self.depth).step_by(DEPTH) {
            let depth = DEPTH.min(self.depth - from);
            self.pack_a::<M>(from, depth);
            for n in (0..self.c.width).step_by(N * LANES) {
                self.pack_b::<S, N>(from, depth, n);
                for (block, row) in (0..self.c.rows).step_by(M).enumerate() {
                    let a = &self.a_panel[block * M * depth..][..M * depth];
                    let tile = register_tile::<S, M, N>(a, &self.b_panel[..N * depth]);
                    self.add_tile(&tile, row, n);
                }
            }
        }
    }

    #[inline(always)]
    fn pack_a<const M: usize>(&mut self, from: usize, depth: usize) {
        for (block, row) in (0..self.c.rows).step_by(M).enumerate() {
            let panel = &mut self.a_panel[block * M * depth..][..M * depth];
            for (k, out) in panel.as_chunks_mut::<M>().0.iter_mut().enumerate() {
                self.operands.column(out, row, self.c.rows, from + k);
            }
        }
    }

    #[inline(always)]
    fn pack_b<S: Tier, const N: usize>(&mut self, from: usize, depth: usize, n: usize) {
        for k in 0..depth {
            for j in 0..N {
                self.operands.row::<S>(from + k, n + j * LANES).to(&mut self.b_panel[k * N + j]);
            }
        }
    }

    #[inline(always)]
    fn add_tile<S: Tier, const M: usize, const N: usize>(
        &mut self,
        tile: &[[V<S>; N]; M],
        row: usize,
        n: usize,
    ) {
        for r in 0..M.min(self.c.rows - row) {
            let c = &mut self.c.row_mut(row + r)[n..];
            for (j, sum) in tile[r].iter().enumerate() {
                if let Some(c) = c.get_mut(j * LANES..) {
                    sum.add_to(c);
                }
            }
        }
    }
}

/// The sum over `k` of the outer products of the rows of two panels.
#[inline(always)]
fn register_tile<S: Tier, const M: usize, const N: usize>(a: &[f32], b: &[[f32; LANES]]) -> [[V<S>; N]; M] {
    let mut tile = [[V::zero(); N]; M];
    for (a, b) in a.as_chunks::<M>().0.iter().zip(b.as_chunks::<N>().0) {
        let mut bs = [V::zero(); N];
        for j in 0..N {
            bs[j] = V::of(&b[j]);
        }
        for r in 0..M {
            let a = V::splat(a[r]);
            for j in 0..N {
                tile[r][j] = a.fma(bs[j], tile[r][j]);
            }
        }
    }
    tile
}
