//! Cases of `rmsnorm`.
//!
//! Bounds: half the relative error of a sum of `d` squares, a root, a quotient and two products; for dx
//! also that of a sum of `d` terms against the cancellation of `g - x^ * mean(g * x^)`.

use super::{Checks, Grads, Input, Op, Rng, rubbish, take};
use crate::reference::norm::{rmsnorm, rmsnorm_bwd};
use crate::reference::real::Real;
use crate::{Buf, Device};

const EPS: f32 = 1e-5;

struct NormCase {
    t: usize,
    d: usize,
    /// Size of the inputs; with a small one `eps` matters.
    scale: f32,
}

impl Op for NormCase {
    fn name(&self) -> String {
        format!("rmsnorm t={} d={} scale={:e}", self.t, self.d, self.scale)
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        vec![
            Input::signal(rng.scaled(self.t * self.d, self.scale)),
            Input::param(rng.uniforms(self.d, 0.2, 1.5)),
        ]
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let (y, rstd) = rmsnorm(&x[0], &x[1], EPS);
        vec![y, rstd]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let [x, w] = take(x);
        let (mut y, mut rstd) = (rubbish(dev, self.t * self.d), rubbish(dev, self.t));
        dev.rmsnorm(&mut y, Some(&mut rstd), &x, &w, EPS);
        let mut alone = rubbish(dev, self.t * self.d);
        dev.rmsnorm(&mut alone, None, &x, &w, EPS);
        assert_eq!(super::download(dev, &alone), super::download(dev, &y), "rstd is optional");
        vec![y, rstd]
    }

    fn define_bwd<R: Real>(&self, x: &[Vec<R>], y: &[Vec<R>], dy: &[R]) -> Vec<Vec<R>> {
        let (dx, dw) = rmsnorm_bwd(dy, &x[0], &y[1], &x[1]);
        vec![dx, dw]
    }

    fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, y: &[Buf], dy: &Buf, g: &mut Grads) {
        let [x, w] = take(x);
        dev.rmsnorm_bwd(&mut g.own[0], &mut g.flat, g.at[0], dy, &x, &y[1], &w);
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let case = |t, d, scale| Box::new(NormCase { t, d, scale }) as Box<dyn Checks>;
    vec![
        case(1, 1, 1.0),
        case(1, 17, 1.0),
        case(5, 33, 1.0),
        case(67, 64, 1.0),
        case(2, 1000, 1.0),
        case(130, 20, 30.0),
        case(3, 40, 1e-3),
        case(2, 16, 0.0),
    ]
}
