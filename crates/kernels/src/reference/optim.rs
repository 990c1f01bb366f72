//! AdamW with decoupled weight decay, as `torch.optim.AdamW`.

use super::real::Real;
use crate::AdamW;

/// Weight and moments of one element after a step.
pub(crate) fn adamw<R: Real>(c: &AdamW, w: R, m: R, v: R, g: R) -> [R; 3] {
    let of = |x: f32| R::of(f64::from(x));
    let one_minus = |x: f32| R::of(1.0 - f64::from(x));
    let correction = |beta: f32| R::of(1.0 - f64::from(beta).powf(c.step as f64));
    let g = g * of(c.grad_scale);
    let m = (of(c.beta1) * m + one_minus(c.beta1) * g).stored();
    let v = (of(c.beta2) * v + one_minus(c.beta2) * g * g).stored();
    let root = (v / correction(c.beta2)).sqrt() + of(c.eps);
    let update = m / correction(c.beta1) / root;
    [w - of(c.lr) * (update + of(c.weight_decay) * w), m, v]
}
