//! Cases of `adamw` and `sum_squares`.
//!
//! Bounds: a dozen roundings per element of AdamW. The sum of squares is f64 throughout: `len` unit
//! roundoffs of f64.

use super::{Checks, Input, Op, Rng, download, take, upload};
use crate::reference::optim::adamw;
use crate::reference::real::Real;
use crate::{AdamW, AdamWBufs, Buf, Device, Dtype};

struct AdamCase {
    at: usize,
    len: usize,
    stored: Dtype,
    constants: AdamW,
}

impl Op for AdamCase {
    fn name(&self) -> String {
        let AdamCase { at, len, stored, constants } = self;
        format!("adamw at={at} len={len} stored={stored:?} step={}", constants.step)
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        let total = self.at + self.len + 4;
        let squares = rng.normals(total).iter().map(|v| v * v * 1e-2).collect();
        vec![
            Input::fixed(rng.normals(total)),
            Input::fixed(rng.scaled(total, 0.1)),
            Input::fixed(squares),
            Input::fixed(rng.normals(total)),
        ]
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let mut outputs = x.to_vec();
        for i in self.at..self.at + self.len {
            outputs[3][i] = R::of(0.0);
            let stepped = adamw(&self.constants, x[0][i], x[1][i], x[2][i], x[3][i]);
            for (output, value) in outputs.iter_mut().zip(stepped) {
                output[i] = value;
            }
        }
        outputs
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let [mut w, mut m, mut v, mut g] = take(x);
        let mut stored = upload(dev, self.stored, &vec![f32::NAN; self.len]);
        let bufs = AdamWBufs { w: &mut w, m: &mut m, v: &mut v, g: &mut g, stored: &mut stored };
        dev.adamw(bufs, self.at, self.len, self.constants);
        let mut copied = upload(dev, self.stored, &vec![f32::NAN; self.len]);
        dev.copy(&mut copied, 0, &w, self.at, self.len);
        assert_eq!(download(dev, &stored), download(dev, &copied), "the stored weights are the new ones");
        vec![w, m, v, g]
    }

    fn has_backward(&self) -> bool {
        false
    }
}

/// The one kernel with a result in f64.
struct SquaresCase {
    at: usize,
    len: usize,
}

impl SquaresCase {
    /// The result on `dev` and the sum in plain order.
    fn run(&self, dev: &dyn Device) -> (f64, f64) {
        let x = Rng::new(&self.title()).normals(self.at + self.len + 5);
        let want = x[self.at..][..self.len].iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        (dev.sum_squares(&upload(dev, Dtype::F32, &x), self.at, self.len), want)
    }
}

impl Checks for SquaresCase {
    fn title(&self) -> String {
        format!("sum_squares at={} len={}", self.at, self.len)
    }

    fn numbers(&self) -> usize {
        self.len
    }

    fn has_gradient(&self) -> bool {
        false
    }

    fn check(&self, dev: &dyn Device) -> Result<(), String> {
        let (got, want) = self.run(dev);
        let error = (got - want).abs();
        if error.is_nan() || error > self.len as f64 * f64::EPSILON * want {
            return Err(format!("the sum is {got:e}, expected {want:e}"));
        }
        Ok(())
    }

    fn check_gradient(&self) -> Result<(), String> {
        Ok(())
    }

    fn run_bits(&self, dev: &dyn Device) -> Vec<u32> {
        let bits = self.run(dev).0.to_bits();
        vec![bits as u32, (bits >> 32) as u32]
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let constants =
        AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.7, step: 1 };
    let later = AdamW { step: 1000, weight_decay: 0.0, grad_scale: 1.0, ..constants };
    let mut cases: Vec<Box<dyn Checks>> = vec![
        Box::new(AdamCase { at: 0, len: 1, stored: Dtype::F32, constants }),
        Box::new(AdamCase { at: 3, len: 33, stored: Dtype::Bf16, constants }),
        Box::new(AdamCase { at: 17, len: 5000, stored: Dtype::F32, constants: later }),
        Box::new(AdamCase { at: 5, len: 40_001, stored: Dtype::Bf16, constants: later }),
    ];
    for (at, len) in [(0, 1), (3, 4095), (0, 4096), (5, 4097), (1, 20_000), (2, 0)] {
        cases.push(Box::new(SquaresCase { at, len }));
    }
    cases
}
