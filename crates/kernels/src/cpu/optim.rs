//! The optimiser's step.

use super::split::Runs;
use super::tier::{Op, Tier};
use super::{Cpu, GRAIN};
use crate::{AdamW, Buf};

/// See [`crate::Device::adamw`].
#[allow(clippy::too_many_arguments)]
pub(super) fn adamw(
    cpu: &Cpu,
    w: &mut Buf,
    m: &mut Buf,
    v: &mut Buf,
    g: &Buf,
    at: usize,
    len: usize,
    c: AdamW,
) {
    let g = &g.f32()[at..][..len];
    let block = GRAIN / 2;
    let parts = (
        Runs::new(&mut w.f32_mut()[at..][..len], block),
        Runs::new(&mut m.f32_mut()[at..][..len], block),
        Runs::new(&mut v.f32_mut()[at..][..len], block),
    );
    cpu.split(len, parts, |index, (w, m, v): (&mut [f32], &mut [f32], &mut [f32])| {
        let g = &g[index * block..][..w.len()];
        cpu.isa.run(Step { w, m, v, g, c });
    });
}

struct Step<'a> {
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    g: &'a [f32],
    c: AdamW,
}

impl Op for Step<'_> {
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
        let len = self.g.len();
        let (w, m, v) = (&mut self.w[..len], &mut self.m[..len], &mut self.v[..len]);
        for j in 0..len {
            let g = self.g[j] * c.grad_scale;
            m[j] = S::fma1(c.beta1, m[j], rest1 * g);
            v[j] = S::fma1(c.beta2, v[j], rest2 * g * g);
            let move_by = step * m[j] / S::fma1(v[j].sqrt(), root, c.eps);
            w[j] = S::fma1(w[j], keep, -move_by);
        }
    }
}
