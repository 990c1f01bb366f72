//! Activation functions, softplus and the gated linear unit.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::real::Real;
use crate::Act;

/// `1 / (1 + exp(-x))`
pub(crate) fn sigmoid<R: Real>(x: R) -> R {
    R::of(1.0) / (R::of(1.0) + (-x).exp())
}

/// `ln(1 + exp(x))`, the identity above 20 as in `torch.nn.functional.softplus`.
pub(crate) fn softplus<R: Real>(x: R) -> R {
    if x.value() > 20.0 { x } else { x.exp().ln_1p() }
}

/// Derivative of [`softplus`].
pub(crate) fn softplus_grad<R: Real>(x: R) -> R {
    if x.value() > 20.0 { R::of(1.0) } else { sigmoid(x) }
}

/// Twice the argument of tanh in the approximate GELU, `2 sqrt(2 / pi) * (x + 0.044715 x^3)`, because
/// `(1 + tanh(u)) / 2 = sigmoid(2 u)`, which does not cancel where tanh is near -1.
fn gelu_inner<R: Real>(x: R) -> R {
    R::of((8.0 / PI).sqrt()) * (x + R::of(0.044715) * x * x * x)
}

/// `f(x)`
pub(crate) fn act<R: Real>(f: Act, x: R) -> R {
    let (half, one) = (R::of(0.5), R::of(1.0));
    match f {
        Act::Silu => x * sigmoid(x),
        Act::Gelu => half * x * (one + (x * R::of(FRAC_1_SQRT_2)).erf()),
        Act::GeluTanh => x * sigmoid(gelu_inner(x)),
        Act::Relu if x.value() > 0.0 => x,
        Act::Relu => R::of(0.0),
    }
}

/// `f'(x)`
pub(crate) fn act_grad<R: Real>(f: Act, x: R) -> R {
    let (half, one) = (R::of(0.5), R::of(1.0));
    match f {
        Act::Silu => {
            let s = sigmoid(x);
            s * (one + x * (one - s))
        }
        Act::Gelu => {
            let density = R::of((0.5 / PI).sqrt()) * (-(half * x * x)).exp();
            half * (one + (x * R::of(FRAC_1_SQRT_2)).erf()) + x * density
        }
        Act::GeluTanh => {
            let s = sigmoid(gelu_inner(x));
            let inner_grad = R::of((8.0 / PI).sqrt()) * (one + R::of(3.0 * 0.044715) * x * x);
            s + x * s * (one - s) * inner_grad
        }
        Act::Relu if x.value() > 0.0 => one,
        Act::Relu => R::of(0.0),
    }
}

/// See [`crate::Device::glu`].
pub(crate) fn glu<R: Real>(gate: &[R], up: &[R], f: Act) -> Vec<R> {
    gate.iter().zip(up).map(|(&g, &u)| act(f, g) * u).collect()
}

/// Gradients of gate and up.
pub(crate) fn glu_bwd<R: Real>(dy: &[R], gate: &[R], up: &[R], f: Act) -> (Vec<R>, Vec<R>) {
    let dgate = (0..dy.len()).map(|i| dy[i] * up[i] * act_grad(f, gate[i])).collect();
    let dup = (0..dy.len()).map(|i| dy[i] * act(f, gate[i])).collect();
    (dgate, dup)
}
