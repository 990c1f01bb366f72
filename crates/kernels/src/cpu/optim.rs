//! The optimiser's step.

use super::rows::From32;
use super::split::Runs;
use super::tier::{Op, Tier};
use super::{Cpu, GRAIN};
use crate::{AdamW, AdamWBufs, Dtype};

/// See [`crate::Device::adamw`].
pub(super) fn adamw(cpu: &Cpu, p: AdamWBufs, at: usize, len: usize, c: AdamW) {
    assert_eq!(p.stored.len(), len, "length of the parameter");
    let block = GRAIN / 2;
    let state = (
        Runs::new(&mut p.w.f32_mut()[at..][..len], block),
        Runs::new(&mut p.m.f32_mut()[at..][..len], block),
        Runs::new(&mut p.v.f32_mut()[at..][..len], block),
        Runs::new(&mut p.g.f32_mut()[at..][..len], block),
    );
    match p.stored.dtype() {
        Dtype::F32 => {
            let parts = (state, Runs::new(p.stored.f32_mut(), block));
            cpu.split(len, parts, |_, (state, stored)| cpu.isa.run(Step { state, stored, c }));
        }
        Dtype::Bf16 => {
            let parts = (state, Runs::new(p.stored.bf16_mut(), block));
            cpu.split(len, parts, |_, (state, stored)| cpu.isa.run(Step { state, stored, c }));
        }
        Dtype::Q8 | Dtype::Q4 => panic!("quantised weights are not trained"),
    }
}

/// Weights, both moments and gradients.
type State<'a> = (&'a mut [f32], &'a mut [f32], &'a mut [f32], &'a mut [f32]);

struct Step<'a, T> {
    state: State<'a>,
    stored: &'a mut [T],
    c: AdamW,
}

impl<T: From32> Op for Step<'_, T> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        let c = self.c;
        // The powers are near 1 after many steps, so their distance to 1 is taken in f64.
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(i32::try_from(c.step).unwrap_or(i32::MAX));
        let step = (f64::from(c.lr) / correction(c.beta1)) as f32;
        let root = (1.0 / correction(c.beta2).sqrt()) as f32;
        let keep = 1.0 - c.lr * c.weight_decay;
        let (rest1, rest2) = (1.0 - c.beta1, 1.0 - c.beta2);
        let (w, m, v, g) = self.state;
        let len = self.stored.len();
        let (w, m, v, g) = (&mut w[..len], &mut m[..len], &mut v[..len], &mut g[..len]);
        for j in 0..len {
            let scaled = std::mem::take(&mut g[j]) * c.grad_scale;
            m[j] = S::fma1(c.beta1, m[j], rest1 * scaled);
            v[j] = S::fma1(c.beta2, v[j], rest2 * scaled * scaled);
            let move_by = step * m[j] / S::fma1(v[j].sqrt(), root, c.eps);
            w[j] = S::fma1(w[j], keep, -move_by);
            self.stored[j] = T::put(w[j]);
        }
    }
}
