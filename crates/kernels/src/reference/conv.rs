//! Causal depthwise convolution.

use super::act::{act, act_grad};
use super::real::{Real, zeros};
use crate::{Conv, Span};

/// Arrays of a convolution.
pub(crate) struct ConvArrays<'a, R> {
    /// Signal and gate interleaved, `[t, 2 * e]`.
    pub(crate) xz: &'a [R],
    /// Taps, `[e, k]`.
    pub(crate) w_ek: &'a [R],
    /// Bias, `[e]`.
    pub(crate) bias_e: Option<&'a [R]>,
    /// Last inputs of each slot, oldest first, `[slots, k - 1, e]`.
    pub(crate) window: Option<&'a [R]>,
}

impl<R: Real> ConvArrays<'_, R> {
    /// Input of channel `c` at token `i` of the span; negative `i` reaches into the window.
    fn input(&self, a: &Conv, s: &Span, i: isize, c: usize) -> R {
        if i >= 0 {
            return self.xz[(s.start + i as usize) * 2 * a.e + 2 * c];
        }
        let back = i.unsigned_abs();
        match self.window {
            Some(window) if s.pos > 0 => window[(s.slot * (a.k - 1) + a.k - 1 - back) * a.e + c],
            _ => R::of(0.0),
        }
    }

    /// Sum of the taps and bias, before the activation.
    fn sum(&self, a: &Conv, s: &Span, i: usize, c: usize) -> R {
        let mut sum = R::of(0.0);
        for j in 0..a.k {
            let at = i as isize + j as isize - (a.k - 1) as isize;
            sum += self.w_ek[c * a.k + j] * self.input(a, s, at, c);
        }
        if let Some(bias) = self.bias_e {
            sum += bias[c];
        }
        sum
    }
}

/// See [`crate::Device::conv`].
pub(crate) fn conv<R: Real>(a: &Conv, x: &ConvArrays<R>) -> Vec<R> {
    let mut y = zeros(a.t * a.e);
    for s in a.spans {
        for i in 0..s.len {
            for c in 0..a.e {
                y[(s.start + i) * a.e + c] = act(a.act, x.sum(a, s, i, c));
            }
        }
    }
    y
}

/// The windows after the last token of each span.
pub(crate) fn window_after<R: Real>(a: &Conv, x: &ConvArrays<R>) -> Vec<R> {
    let mut after = x.window.unwrap_or_default().to_vec();
    for s in a.spans {
        for j in 0..a.k - 1 {
            for c in 0..a.e {
                let at = (s.len + j) as isize - (a.k - 1) as isize;
                after[(s.slot * (a.k - 1) + j) * a.e + c] = x.input(a, s, at, c);
            }
        }
    }
    after
}

/// Gradients of `xz` (even columns), taps and bias.
pub(crate) fn conv_bwd<R: Real>(a: &Conv, x: &ConvArrays<R>, dy: &[R]) -> (Vec<R>, Vec<R>, Vec<R>) {
    let (mut dxz, mut dw, mut dbias) = (zeros(a.t * 2 * a.e), zeros(a.e * a.k), zeros(a.e));
    for s in a.spans {
        for i in 0..s.len {
            for c in 0..a.e {
                let dsum = dy[(s.start + i) * a.e + c] * act_grad(a.act, x.sum(a, s, i, c));
                dbias[c] += dsum;
                for j in 0..a.k {
                    let at = i as isize + j as isize - (a.k - 1) as isize;
                    if at >= 0 {
                        dw[c * a.k + j] += dsum * x.input(a, s, at, c);
                        dxz[(s.start + at as usize) * 2 * a.e + 2 * c] += dsum * x.w_ek[c * a.k + j];
                    }
                }
            }
        }
    }
    (dxz, dw, dbias)
}
