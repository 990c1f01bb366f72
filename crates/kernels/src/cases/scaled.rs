//! Cases of `pair_rstd`, `scale` and `add_scaled`.
//!
//! Bounds: half the relative error of a sum of `2 d` squares, a root and a quotient; two products per scaled
//! element, one product and a sum per added one; sums of `d` terms for gradients of a row's factor and of `t`
//! terms for those of weights.

use super::{Checks, Grads, Input, Op, Rng, rubbish, take};
use crate::reference::real::{Real, zeros};
use crate::reference::scaled::{add_scaled, add_scaled_bwd, pair_rstd, pair_rstd_bwd, scale, scale_bwd};
use crate::{Buf, Device, Scaled};

const EPS: f32 = 1e-5;

struct PairCase {
    t: usize,
    d: usize,
    /// Size of the inputs; with a small one `eps` matters.
    size: f32,
}

impl Op for PairCase {
    fn name(&self) -> String {
        format!("pair_rstd t={} d={} size={:e}", self.t, self.d, self.size)
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        [1.0, 0.3].map(|part| Input::signal(rng.scaled(self.t * self.d, part * self.size))).into()
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        vec![pair_rstd(&x[0], &x[1], self.d, EPS)]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let mut s = rubbish(dev, self.t);
        dev.pair_rstd(&mut s, &x[0], &x[1], EPS);
        vec![s]
    }

    fn define_bwd<R: Real>(&self, x: &[Vec<R>], y: &[Vec<R>], ds: &[R]) -> Vec<Vec<R>> {
        x.iter().map(|x| pair_rstd_bwd(ds, &y[0], x, self.d)).collect()
    }

    fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, y: &[Buf], ds: &Buf, g: &mut Grads) {
        for (dx, x) in g.own.iter_mut().zip(&x) {
            dev.pair_rstd_bwd(dx, ds, &y[0], x);
        }
    }
}

struct ScaleCase {
    t: usize,
    d: usize,
    /// First of the weights that are used, and how many there are.
    w_at: usize,
    len: usize,
    /// Whether rows have factors.
    factors: bool,
}

impl ScaleCase {
    fn args<'a>(&self, x_td: &'a Buf, w: &'a Buf, s_t: Option<&'a Buf>) -> Scaled<'a> {
        Scaled { d: self.d, x_td, w, w_at: self.w_at, s_t }
    }
}

impl Op for ScaleCase {
    fn name(&self) -> String {
        let ScaleCase { t, d, w_at, len, factors } = self;
        format!("scale t={t} d={d} weights={w_at}/{len} factors={factors}")
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        let x = Input::signal(rng.normals(self.t * self.d));
        let w = Input::param(rng.uniforms(self.len, 0.2, 1.5));
        let s = self.factors.then(|| Input::signal(rng.uniforms(self.t, 0.1, 3.0)));
        [x, w].into_iter().chain(s).collect()
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        vec![scale(&x[0], &x[1][self.w_at..][..self.d], x.get(2).map(|s| &s[..]))]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let mut y = rubbish(dev, self.t * self.d);
        dev.scale(&mut y, self.args(&x[0], &x[1], x.get(2)));
        vec![y]
    }

    fn define_bwd<R: Real>(&self, x: &[Vec<R>], _y: &[Vec<R>], dy: &[R]) -> Vec<Vec<R>> {
        let s = x.get(2).map(|s| &s[..]);
        let (dx, part, ds) = scale_bwd(dy, &x[0], &x[1][self.w_at..][..self.d], s);
        let mut dw = zeros(self.len);
        dw[self.w_at..][..self.d].copy_from_slice(&part);
        [dx, dw].into_iter().chain(s.map(|_| ds)).collect()
    }

    fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, _y: &[Buf], dy: &Buf, g: &mut Grads) {
        let (dx, ds) = g.own.split_first_mut().expect("a signal");
        let a = self.args(&x[0], &x[1], x.get(2));
        dev.scale_bwd(dx, ds.first_mut(), &mut g.flat, g.at[0], dy, a);
    }
}

struct AddScaledCase {
    t: usize,
    d: usize,
}

impl Op for AddScaledCase {
    fn name(&self) -> String {
        format!("add_scaled t={} d={}", self.t, self.d)
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        let len = self.t * self.d;
        vec![
            Input::fixed(rng.normals(len)),
            Input::signal(rng.uniforms(self.t, 0.1, 3.0)),
            Input::signal(rng.normals(len)),
        ]
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        vec![add_scaled(&x[0], &x[1], &x[2])]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let [mut y, s, x] = take(x);
        dev.add_scaled(&mut y, &s, &x);
        vec![y]
    }

    fn define_bwd<R: Real>(&self, x: &[Vec<R>], _y: &[Vec<R>], dy: &[R]) -> Vec<Vec<R>> {
        let (ds, dx) = add_scaled_bwd(dy, &x[1], &x[2]);
        vec![ds, dx]
    }

    fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, _y: &[Buf], dy: &Buf, g: &mut Grads) {
        let [ds, dx] = &mut g.own[..] else { panic!("two signals") };
        dev.add_scaled_bwd(ds, dx, dy, &x[1], &x[2]);
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let mut cases: Vec<Box<dyn Checks>> = vec![];
    for (t, d) in [(1, 1), (1, 17), (5, 33), (67, 64), (2, 1000), (300, 20)] {
        cases.push(Box::new(AddScaledCase { t, d }));
        cases.push(Box::new(PairCase { t, d, size: 1.0 }));
        for factors in [false, true] {
            cases.push(Box::new(ScaleCase { t, d, w_at: 0, len: d, factors }));
            cases.push(Box::new(ScaleCase { t, d, w_at: d, len: 2 * d + 3, factors }));
        }
    }
    for size in [30.0, 1e-3, 0.0] {
        cases.push(Box::new(PairCase { t: 3, d: 40, size }));
    }
    cases
}
