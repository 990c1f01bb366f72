//! Linear maps over column blocks.

use std::ops::Range;

use super::real::{Real, zeros};
use crate::quant::{Activations, GROUP, Quants, ROWS};
use crate::{Dtype, Linear};

impl Linear<'_> {
    /// Index in `x` of element `i` of the input of group `g` at token `t`.
    fn x_index(&self, t: usize, g: usize, i: usize) -> usize {
        t * self.x_stride + self.x_at + g * self.x_group + i
    }

    /// Index in `w` of what output `row` has for element `i` of its input.
    fn w_index(&self, row: usize, i: usize) -> usize {
        row * self.w.cols() + self.w_at + i
    }

    /// Groups of columns of quantised weights that hold columns of the map.
    fn w_groups(&self) -> Range<usize> {
        self.w_at / GROUP..(self.w_at + self.i).div_ceil(GROUP)
    }

    /// The sizes that every linear kernel relies on.
    ///
    /// # Panics
    /// If buffers and sizes disagree.
    pub(crate) fn check(&self) {
        assert_eq!(self.w.rows(), self.groups * self.o, "rows of w");
        let last = self.w_at + self.i;
        assert!(last <= self.w.cols(), "columns ..{last} of w rows of {}", self.w.cols());
        assert_eq!(self.x.len(), self.t * self.x_stride, "length of x");
        let last = self.x_at + (self.groups - 1) * self.x_group + self.i;
        assert!(last <= self.x_stride, "columns ..{last} of x rows of {}", self.x_stride);
        assert!(self.bias.is_none_or(|b| b.len() == self.groups * self.o), "length of bias");
        let whole = !self.w.dtype().is_quantised() || self.o.is_multiple_of(ROWS);
        assert!(whole, "a block of quantised rows crosses groups");
    }
}

/// The operands of products: rounded to bf16 where the weights are bf16.
fn operands<R: Real>(a: &Linear, x: &[R]) -> Vec<R> {
    match a.w.dtype() {
        Dtype::F32 => x.to_vec(),
        Dtype::Bf16 => x.iter().map(|v| v.to_bf16()).collect(),
        Dtype::Q8 | Dtype::Q4 => panic!("quantised weights have no gradients"),
    }
}

/// See [`crate::Device::linear`].
pub(crate) fn linear<R: Real>(a: &Linear, x: &[R], w: &[R], bias: Option<&[R]>) -> Vec<R> {
    let (x, w) = (operands(a, x), operands(a, w));
    let mut y = Vec::with_capacity(a.t * a.groups * a.o);
    for t in 0..a.t {
        for row in 0..a.groups * a.o {
            let mut sum = R::of(0.0);
            for i in 0..a.i {
                sum += x[a.x_index(t, row / a.o, i)] * w[a.w_index(row, i)];
            }
            if let Some(bias) = bias {
                sum += bias[row];
            }
            y.push(sum);
        }
    }
    y
}

/// A linear map with quantised weights, see [`mod@crate::quant`]. Columns of a group that are not the map's meet zeros.
pub(crate) fn quantised<R: Real>(a: &Linear, x: &[R], w: &Quants, bias: Option<&[R]>) -> Vec<R> {
    let (blocks, groups) = (a.w.cols() / GROUP, a.w_groups());
    let mut y = Vec::with_capacity(a.t * a.groups * a.o);
    for t in 0..a.t {
        for g in 0..a.groups {
            let mut row = vec![0.0; groups.len() * GROUP];
            for (i, out) in row[a.w_at % GROUP..][..a.i].iter_mut().enumerate() {
                *out = x[a.x_index(t, g, i)].value() as f32;
            }
            let x: Vec<_> = row.as_chunks().0.iter().map(Activations::of).collect();
            for row in g * a.o..(g + 1) * a.o {
                let mut sum = R::of(0.0);
                for (block, x) in groups.clone().zip(&x) {
                    let q = &w.q[(row * blocks + block) * GROUP..][..GROUP];
                    let products = q.iter().zip(&x.q).map(|(w, x)| i32::from(*w) * i32::from(*x));
                    let scale = R::of(w.scales[row * blocks + block].into()) * R::of(x.scale.into());
                    sum += R::of(products.sum::<i32>().into()) * scale;
                }
                if let Some(bias) = bias {
                    sum += bias[row];
                }
                y.push(sum);
            }
        }
    }
    y
}

/// Gradient of `x`: 0 in columns that no group reads.
pub(crate) fn linear_dx<R: Real>(a: &Linear, dy: &[R], w: &[R]) -> Vec<R> {
    let (dy, w) = (operands(a, dy), operands(a, w));
    let rows = a.groups * a.o;
    let mut dx = zeros(a.t * a.x_stride);
    for t in 0..a.t {
        for row in 0..rows {
            for i in 0..a.i {
                dx[a.x_index(t, row / a.o, i)] += dy[t * rows + row] * w[a.w_index(row, i)];
            }
        }
    }
    dx
}

/// Gradients of `w` and of the bias. The latter has no products, so its terms are never rounded.
pub(crate) fn linear_dw<R: Real>(a: &Linear, dy: &[R], x: &[R]) -> (Vec<R>, Vec<R>) {
    let rows = a.groups * a.o;
    let mut dbias = zeros(rows);
    for t in 0..a.t {
        for row in 0..rows {
            dbias[row] += dy[t * rows + row];
        }
    }
    let (dy, x) = (operands(a, dy), operands(a, x));
    let mut dw = zeros(rows * a.w.cols());
    for t in 0..a.t {
        for row in 0..rows {
            for i in 0..a.i {
                dw[a.w_index(row, i)] += dy[t * rows + row] * x[a.x_index(t, row / a.o, i)];
            }
        }
    }
    (dw, dbias)
}
