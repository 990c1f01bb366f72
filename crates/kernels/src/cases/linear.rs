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
    bias: bool,
    dtype: Dtype,
}

impl LinearCase {
    /// A plain layer: one group, dense rows.
    fn plain(dtype: Dtype, t: usize, o: usize, i: usize, bias: bool) -> Self {
        LinearCase { t, groups: 1, o, i, x_stride: i, x_group: 0, x_at: 0, bias, dtype }
    }

    fn args<'a>(&self, x: &'a Buf, w: &'a Mat, bias: Option<&'a Buf>) -> Linear<'a> {
        let LinearCase { t, groups, o, i, x_stride, x_group, x_at, .. } = *self;
        Linear { t, groups, o, i, x, x_stride, x_group, x_at, w, bias }
    }

    /// Calls `f` with the sizes alone.
    fn sizes<T>(&self, f: impl FnOnce(&Linear) -> T) -> T {
        let w = Mat::new(0, 0, Buf::host(self.dtype, 0));
        f(&self.args(&Buf::host(Dtype::F32, 0), &w, None))
    }

    fn unpack(&self, x: Vec<Buf>) -> (Buf, Mat, Option<Buf>) {
        let mut x = x.into_iter();
        let (signal, w) = (x.next().expect("x"), x.next().expect("w"));
        (signal, Mat::new(self.groups * self.o, self.i, w), x.next())
    }
}

impl Op for LinearCase {
    fn name(&self) -> String {
        let LinearCase { t, groups, o, i, x_stride, x_group, x_at, bias, dtype } = self;
        let layout = format!("stride={x_stride} group={x_group} at={x_at}");
        format!("linear {dtype:?} t={t} groups={groups} o={o} i={i} {layout} bias={bias}")
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        let rows = self.groups * self.o;
        let mut inputs = vec![
            Input::signal(rng.normals(self.t * self.x_stride)),
            Input::weight(self.dtype, rng.scaled(rows * self.i, 0.5)),
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
        // One token of several heads, as in x_proj: each reads its own columns.
        let heads =
            LinearCase { t: 1, groups: 2, o: 21, i: 17, x_stride: 34, x_group: 17, ..plain(0, 0, 0, false) };
        // dt_proj: the first r of each r + 2n columns.
        let dt = LinearCase { t: 7, groups: 2, o: 33, i: 5, x_stride: 30, x_group: 15, ..heads };
        cases.extend([
            heads,
            LinearCase { t: 37, ..heads },
            dt,
            LinearCase { t: 1, groups: 3, i: 4, x_stride: 31, x_group: 9, x_at: 2, bias: true, ..dt },
            LinearCase { t: 40, groups: 4, o: 16, i: 32, x_stride: 200, x_group: 48, x_at: 7, ..dt },
            // Groups that share their columns: gradients of x meet.
            LinearCase { t: 6, groups: 2, o: 8, i: 12, x_stride: 20, x_group: 4, x_at: 1, ..dt },
        ]);
    }
    cases.into_iter().map(|c| Box::new(c) as Box<dyn Checks>).collect()
}
