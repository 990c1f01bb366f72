//! Cases of `linear`, `linear_dx` and `linear_dw`.
//!
//! Bounds: `i` terms per output, `o` per element of dx, `t` per element of dw, each times the unit
//! roundoff and the sum of the magnitudes of the products. Operands in bf16 are exact inputs.

use super::{Checks, Grads, Input, Op, Rng, rubbish};
use crate::reference::linear::{linear, linear_dw, linear_dx};
use crate::reference::real::Real;
use crate::{Buf, Device, Dtype, Linear, Mat};

/// Sizes of a [`Linear`].
#[derive(Clone, Copy)]
struct LinearCase {
    t: usize,
    groups: usize,
    o: usize,
    i: usize,
    x_stride: usize,
    x_group: usize,
    x_at: usize,
    /// First of the columns of the weights that are used, and how many there are.
    w_at: usize,
    cols: usize,
    bias: bool,
    dtype: Dtype,
}

impl LinearCase {
    /// A plain layer: one group, dense rows.
    fn plain(dtype: Dtype, t: usize, o: usize, i: usize, bias: bool) -> Self {
        LinearCase { t, groups: 1, o, i, x_stride: i, x_group: 0, x_at: 0, w_at: 0, cols: i, bias, dtype }
    }

    fn args<'a>(&self, x: &'a Buf, w: &'a Mat, bias: Option<&'a Buf>) -> Linear<'a> {
        let LinearCase { t, groups, o, i, x_stride, x_group, x_at, w_at, .. } = *self;
        Linear { t, groups, o, i, x, x_stride, x_group, x_at, w, w_at, bias }
    }

    /// Calls `f` with the sizes alone.
    fn sizes<T>(&self, f: impl FnOnce(&Linear) -> T) -> T {
        let w = Mat::new(
            self.groups * self.o,
            self.cols,
            Buf::host(self.dtype, self.groups * self.o * self.cols),
        );
        f(&self.args(&Buf::host(Dtype::F32, 0), &w, None))
    }

    fn unpack(&self, x: Vec<Buf>) -> (Buf, Mat, Option<Buf>) {
        let mut x = x.into_iter();
        let (signal, w) = (x.next().expect("x"), x.next().expect("w"));
        (signal, Mat::new(self.groups * self.o, self.cols, w), x.next())
    }
}

impl Op for LinearCase {
    fn name(&self) -> String {
        let LinearCase { t, groups, o, i, x_stride, x_group, x_at, w_at, cols, bias, dtype } = self;
        let layout = format!("stride={x_stride} group={x_group} at={x_at} columns={w_at}/{cols}");
        format!("linear {dtype:?} t={t} groups={groups} o={o} i={i} {layout} bias={bias}")
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        let rows = self.groups * self.o;
        let mut inputs = vec![
            Input::signal(rng.normals(self.t * self.x_stride)),
            Input::weight(self.dtype, rng.scaled(rows * self.cols, 0.5)),
        ];
        if self.bias {
            inputs.push(Input::param(rng.normals(rows)));
        }
        inputs
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        vec![self.sizes(|a| linear(a, &x[0], &x[1], x.get(2).map(|b| &b[..])))]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let (x, w, bias) = self.unpack(x);
        let mut y = rubbish(dev, self.t * self.groups * self.o);
        dev.linear(&mut y, self.args(&x, &w, bias.as_ref()));
        vec![y]
    }

    fn define_bwd<R: Real>(&self, x: &[Vec<R>], _y: &[Vec<R>], dy: &[R]) -> Vec<Vec<R>> {
        let dx = self.sizes(|a| linear_dx(a, dy, &x[1]));
        let (dw, dbias) = self.sizes(|a| linear_dw(a, dy, &x[0]));
        if self.bias { vec![dx, dw, dbias] } else { vec![dx, dw] }
    }

    fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, _y: &[Buf], dy: &Buf, g: &mut Grads) {
        let (x, w, bias) = self.unpack(x);
        let a = self.args(&x, &w, bias.as_ref());
        dev.linear_dx(&mut g.own[0], dy, a);
        dev.linear_dw(&mut g.flat, g.at[0], g.at.get(1).copied(), dy, a);
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let mut cases = vec![];
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let plain = |t, o, i, bias| LinearCase::plain(dtype, t, o, i, bias);
        cases.extend([
            plain(1, 1, 1, true),
            plain(1, 33, 17, false),
            plain(2, 17, 33, true),
            plain(5, 16, 64, false),
            plain(16, 48, 96, true),
            plain(33, 31, 130, false),
            // One more than tiles and vectors of any width like.
            plain(65, 65, 65, true),
            // Long sums over inputs, and over tokens for dw.
            plain(3, 19, 1100, false),
            // One token and rows of several lines, with a vector and a part of one behind the last whole line.
            plain(1, 19, 1111, true),
            plain(300, 9, 20, true),
            // Beyond the block sizes of the fast device.
            plain(5, 700, 40, true),
            plain(130, 150, 300, true),
            plain(6, 20, 2100, false),
            plain(100, 19, 2083, true),
        ]);
        // A part of the columns of the weights, at both ends of their rows and between.
        let part = |t, o, w_at, i, cols, bias| LinearCase { w_at, cols, ..plain(t, o, i, bias) };
        cases.extend([
            part(1, 33, 0, 32, 64, true),
            part(1, 33, 32, 32, 64, false),
            part(3, 17, 7, 20, 41, false),
            part(19, 48, 64, 96, 160, false),
            part(66, 70, 5, 61, 66, true),
            part(70, 40, 1056, 1056, 2112, false),
            part(130, 150, 0, 300, 600, false),
        ]);
        // One token of several heads, as in x_proj: each reads its own columns.
        let heads = LinearCase { groups: 2, x_stride: 34, x_group: 17, ..plain(1, 21, 17, false) };
        // dt_proj: the first r of each r + 2n columns.
        let dt = LinearCase { groups: 2, x_stride: 30, x_group: 15, ..plain(7, 33, 5, false) };
        cases.extend([
            heads,
            LinearCase { t: 37, ..heads },
            dt,
            LinearCase {
                t: 1,
                groups: 3,
                i: 4,
                cols: 4,
                x_stride: 31,
                x_group: 9,
                x_at: 2,
                bias: true,
                ..dt
            },
            LinearCase { groups: 4, x_stride: 200, x_group: 48, x_at: 7, ..plain(40, 16, 32, false) },
            // The same, of weights with more columns.
            LinearCase { groups: 4, x_stride: 200, x_group: 48, x_at: 7, ..part(40, 16, 3, 32, 37, false) },
            // Groups that share their columns: gradients of x meet.
            LinearCase { groups: 2, x_stride: 20, x_group: 4, x_at: 1, ..plain(6, 8, 12, false) },
        ]);
    }
    cases.into_iter().map(|c| Box::new(c) as Box<dyn Checks>).collect()
}
