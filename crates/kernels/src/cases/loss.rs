//! Cases of `cross_entropy`.
//!
//! Bounds: a sum of `v` exponentials, whose relative error is the absolute one of its logarithm.

use super::{Checks, Grads, Input, Op, Rng, rubbish, take};
use crate::reference::loss::{cross_entropy, cross_entropy_bwd};
use crate::reference::real::Real;
use crate::{Buf, Device, IGNORE};

const SCALE: f32 = 0.37;

struct LossCase {
    t: usize,
    v: usize,
    /// Size of the logits.
    scale: f32,
}

impl LossCase {
    /// The first and the last word, words between, and every third token ignored.
    fn targets(&self) -> Vec<u32> {
        let target = |t| match t {
            _ if t % 3 == 1 => IGNORE,
            0 => self.v as u32 - 1,
            _ => (t * 7 % self.v) as u32,
        };
        (0..self.t).map(target).collect()
    }
}

impl Op for LossCase {
    fn name(&self) -> String {
        format!("cross_entropy t={} v={} scale={}", self.t, self.v, self.scale)
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        vec![Input::signal(rng.scaled(self.t * self.v, self.scale))]
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let (nll, lse) = cross_entropy(&x[0], &self.targets(), self.v);
        vec![nll, lse]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let (mut nll, mut lse) = (rubbish(dev, self.t), rubbish(dev, self.t));
        dev.cross_entropy(&mut nll, &mut lse, &x[0], &self.targets(), self.v);
        vec![nll, lse]
    }

    /// The backward kernel is that of a sum, times a constant.
    fn dy(&self, _rng: &mut Rng, len: usize) -> Vec<f32> {
        vec![SCALE; len]
    }

    fn define_bwd<R: Real>(&self, x: &[Vec<R>], y: &[Vec<R>], _dy: &[R]) -> Vec<Vec<R>> {
        vec![cross_entropy_bwd(&x[0], &y[1], &self.targets(), self.v, SCALE)]
    }

    fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, y: &[Buf], _dy: &Buf, g: &mut Grads) {
        let [mut logits] = take(x);
        dev.cross_entropy_bwd(&mut logits, &y[1], &self.targets(), self.v, SCALE);
        g.add(dev, &[logits]);
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let case = |t, v, scale| Box::new(LossCase { t, v, scale }) as Box<dyn Checks>;
    vec![
        case(1, 1, 1.0),
        case(1, 17, 1.0),
        case(5, 33, 3.0),
        case(7, 1000, 5.0),
        // Differences beyond the range of exp in f32.
        case(4, 130, 60.0),
        case(67, 40, 1.0),
        case(3, 5000, 3.0),
    ]
}
