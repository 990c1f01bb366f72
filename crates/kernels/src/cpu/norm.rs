//! RMS norm and sums over columns.

use super::scaled::Times;
use super::split::{Columns, Runs, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V};
use super::{Cpu, GRAIN, goes_past, scratch};
use crate::Buf;

/// Rows of a partial sum over rows.
const ROW_BLOCK: usize = 256;
/// Columns per chunk of a sum over rows.
const COLUMN_BLOCK: usize = 64;

/// See [`crate::Device::rmsnorm`].
pub(super) fn rmsnorm(cpu: &Cpu, y: &mut Buf, rstd: Option<&mut Buf>, x: &Buf, w: &Buf, eps: f32) {
    let (w, x, y) = (w.f32(), x.f32(), y.f32_mut());
    let d = w.len();
    assert_eq!(x.len(), y.len(), "output of a norm");
    let t = y.len() / d;
    let rstd = rstd.map(|r| &mut r.f32_mut()[..t]);
    let rows = GRAIN.div_ceil(d);
    let past = goes_past(y);
    let parts = (Runs::new(y, rows * d), rstd.map(|r| Runs::new(r, rows)));
    cpu.split(x.len(), parts, |index, (y, mut rstd)| {
        let x = &x[index * rows * d..];
        for (r, (y, x)) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)).enumerate() {
            let scale = cpu.isa.run(Norm { y, x, w, eps, past });
            if let Some(rstd) = &mut rstd {
                rstd[r] = scale;
            }
        }
    });
}

/// One row; returns `1 / rms`.
struct Norm<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    past: bool,
}

impl Op for Norm<'_> {
    type Out = f32;
    #[inline(always)]
    fn eval<S: Tier>(self) -> f32 {
        let squares = dot::<S>(self.x, self.x);
        let scale = 1.0 / (squares / self.x.len() as f32 + self.eps).sqrt();
        Times { y: self.y, x: self.x, w: self.w, factor: scale, past: self.past }.eval::<S>();
        scale
    }
}

/// `sum a * b` in four vectors of lanes, which are added by halving.
#[inline(always)]
pub(super) fn dot<S: Tier>(a: &[f32], b: &[f32]) -> f32 {
    const STEP: usize = 4 * LANES;
    let mut sum = [V::<S>::zero(); 4];
    let (a_body, a_tail) = a.as_chunks::<STEP>();
    let (b_body, b_tail) = b.as_chunks::<STEP>();
    for (a, b) in a_body.iter().zip(b_body) {
        for j in 0..4 {
            sum[j] = V::load(&a[j * LANES..]).fma(V::load(&b[j * LANES..]), sum[j]);
        }
    }
    for (j, (a, b)) in a_tail.chunks(LANES).zip(b_tail.chunks(LANES)).enumerate() {
        sum[j] = V::load_part(a).fma(V::load_part(b), sum[j]);
    }
    fold(sum).sum()
}

/// Four vectors as one.
#[inline(always)]
pub(super) fn fold<S: Tier>(sum: [V<S>; 4]) -> V<S> {
    (sum[0] + sum[2]) + (sum[1] + sum[3])
}

/// See [`crate::Device::rmsnorm_bwd`].
#[allow(clippy::too_many_arguments)]
pub(super) fn rmsnorm_bwd(
    cpu: &Cpu,
    dx: &mut Buf,
    dw_flat: &mut Buf,
    w_at: usize,
    dy: &Buf,
    x: &Buf,
    rstd: &Buf,
    w: &Buf,
) {
    let (w, x, dy, rstd) = (w.f32(), x.f32(), dy.f32(), rstd.f32());
    let d = w.len();
    assert!(x.len() == dy.len() && x.len() == dx.len() && x.len() <= rstd.len() * d, "arrays of a norm");
    cpu.rows(dx.f32_mut(), d, |t, dx| {
        let (dy, x) = (&dy[t * d..][..d], &x[t * d..][..d]);
        cpu.isa.run(NormBwd { dx, dy, x, w, rstd: rstd[t] });
    });
    column_sums(cpu, &mut dw_flat.f32_mut()[w_at..][..d], dy, Some((x, Some(rstd))));
}

struct NormBwd<'a> {
    dx: &'a mut [f32],
    dy: &'a [f32],
    x: &'a [f32],
    w: &'a [f32],
    rstd: f32,
}

impl Op for NormBwd<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        let d = self.x.len();
        let (dx, dy, x, w) = (&mut self.dx[..d], &self.dy[..d], self.x, &self.w[..d]);
        let mut lanes = [V::<S>::zero(); 4];
        for (j, from) in (0..d).step_by(LANES).enumerate() {
            let to = d.min(from + LANES);
            let g = V::load_part(&dy[from..to]) * V::load_part(&w[from..to]);
            lanes[j % 4] = g.fma(V::load_part(&x[from..to]), lanes[j % 4]);
        }
        let product = fold(lanes).sum();
        let pull = product * self.rstd * self.rstd / d as f32;
        for c in 0..d {
            dx[c] += self.rstd * S::fma1(-x[c], pull, dy[c] * w[c]);
        }
    }
}

/// What the rows of a sum are multiplied by: another array, and factors of its rows, 1 if there are none.
pub(super) type By<'a> = (&'a [f32], Option<&'a [f32]>);

/// Adds the sum over all rows of `x [t, sum.len()]` to `sum`, in blocks of rows in order; with `by`, of products.
pub(super) fn column_sums(cpu: &Cpu, sum: &mut [f32], x: &[f32], by: Option<By>) {
    let stride = sum.len();
    let tiles = Tiles::columns(sum, stride, Columns::all(stride, COLUMN_BLOCK));
    cpu.split(x.len(), tiles, |_, sum| cpu.isa.run(Fold { sum, x, stride, by }));
}

/// Adds the sum over rows of `x`, or of their products with `by`.
struct Fold<'a> {
    sum: Tile<'a, f32>,
    x: &'a [f32],
    stride: usize,
    by: Option<By<'a>>,
}

impl Op for Fold<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let (start, width, stride) = (self.sum.start, self.sum.width, self.stride);
        let rows = self.x.len().checked_div(stride).unwrap_or(0);
        for from in (0..rows).step_by(ROW_BLOCK) {
            let mut part = [V::<S>::zero(); COLUMN_BLOCK / LANES];
            for t in from..rows.min(from + ROW_BLOCK) {
                let x = &self.x[t * stride + start..][..width];
                for (j, part) in part.iter_mut().enumerate() {
                    let at = width.min(j * LANES);
                    let mut term = V::load_part(&x[at..]);
                    if let Some((y, scale)) = self.by {
                        let y = V::load_part(&y[t * stride + start..][..width][at..]);
                        term = term * (y * V::splat(scale.map_or(1.0, |s| s[t])));
                    }
                    *part = *part + term;
                }
            }
            let sum = self.sum.row_mut(0);
            for (j, part) in part.iter().enumerate() {
                part.add_to(&mut sum[width.min(j * LANES)..]);
            }
        }
    }
}

/// The sum of squares in f64: see [`crate::Device::sum_squares`].
pub(super) fn sum_squares(cpu: &Cpu, x: &[f32]) -> f64 {
    const BLOCK: usize = 4096;
    let blocks = x.len().div_ceil(BLOCK);
    // Two floats of scratch memory hold one partial sum.
    scratch::floats(2 * blocks, |memory| {
        let parts: &mut [f64] = bytemuck::cast_slice_mut(memory);
        cpu.split(x.len(), Runs::new(parts, 8), |index, parts| {
            for (j, part) in parts.iter_mut().enumerate() {
                let from = (index * 8 + j) * BLOCK;
                *part = cpu.isa.run(Squares(&x[from..x.len().min(from + BLOCK)]));
            }
        });
        parts.iter().sum()
    })
}

struct Squares<'a>(&'a [f32]);

impl Op for Squares<'_> {
    type Out = f64;
    #[inline(always)]
    fn eval<S: Tier>(self) -> f64 {
        let mut lanes = [0.0f64; 2 * LANES];
        for chunk in self.0.chunks(2 * LANES) {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                let x = f64::from(*x);
                *lane += x * x;
            }
        }
        lanes.iter().sum()
    }
}
