//! Cases of `glu`, `add` and `accumulate`.
//!
//! Bounds: an activation and a product per element of glu, one rounding per sum.

use super::{Checks, Grads, Input, Op, Rng, rubbish, take};
use crate::reference::act::{glu, glu_bwd};
use crate::reference::real::Real;
use crate::{Act, Buf, Device};

struct GluCase {
    act: Act,
    len: usize,
    /// Size of the gate: far out, sigmoid and exp leave the range of f32.
    scale: f32,
}

impl Op for GluCase {
    fn name(&self) -> String {
        format!("glu {:?} len={} scale={}", self.act, self.len, self.scale)
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        vec![Input::signal(rng.scaled(self.len, self.scale)), Input::signal(rng.normals(self.len))]
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        vec![glu(&x[0], &x[1], self.act)]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let mut y = rubbish(dev, self.len);
        dev.glu(&mut y, &x[0], &x[1], self.act);
        vec![y]
    }

    fn define_bwd<R: Real>(&self, x: &[Vec<R>], _y: &[Vec<R>], dy: &[R]) -> Vec<Vec<R>> {
        let (dgate, dup) = glu_bwd(dy, &x[0], &x[1], self.act);
        vec![dgate, dup]
    }

    fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, _y: &[Buf], dy: &Buf, g: &mut Grads) {
        let mut fresh = g.fresh(dev);
        let [dgate, dup] = &mut fresh[..] else { panic!("two signals") };
        dev.glu_bwd(dgate, dup, dy, &x[0], &x[1], self.act);
        g.add(dev, &fresh);
    }
}

/// `add` into a fresh buffer and `accumulate` onto one term; both are `a + b`.
struct AddCase {
    len: usize,
}

impl Op for AddCase {
    fn name(&self) -> String {
        format!("add len={}", self.len)
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        vec![Input::fixed(rng.normals(self.len)), Input::fixed(rng.normals(self.len))]
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let sum: Vec<R> = x[0].iter().zip(&x[1]).map(|(&a, &b)| a + b).collect();
        vec![sum.clone(), sum]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let [mut a, b] = take(x);
        let mut y = rubbish(dev, self.len);
        dev.add(&mut y, &a, &b);
        dev.accumulate(&mut a, &b);
        vec![y, a]
    }

    fn has_backward(&self) -> bool {
        false
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let mut cases: Vec<Box<dyn Checks>> = vec![];
    for act in [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu] {
        // The slope of the approximate GELU is a difference times x^3, and its bound grows likewise.
        let far = if act == Act::GeluTanh { 8.0 } else { 60.0 };
        for (len, scale) in [(1, 1.0), (33, 2.0), (1000, 3.0), (200, far)] {
            cases.push(Box::new(GluCase { act, len, scale }));
        }
    }
    for len in [1, 17, 5000] {
        cases.push(Box::new(AddCase { len }));
    }
    cases
}
