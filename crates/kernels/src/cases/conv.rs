//! Cases of `conv`.
//!
//! Bounds: `k + 1` terms and an activation per output; one term per token and tap for the gradients.

use super::{Checks, Grads, Input, Op, Rng, describe, packed, placed, rubbish, tokens};
use crate::reference::conv::{ConvArrays, conv, conv_bwd, window_after};
use crate::reference::real::Real;
use crate::{Act, Buf, Conv, ConvAt, Device, Dtype, Span};

struct ConvCase {
    e: usize,
    k: usize,
    act: Act,
    bias: bool,
    spans: Vec<Span>,
    /// Slots of the window; none for training.
    slots: Option<usize>,
}

impl ConvCase {
    fn args<'a>(&'a self, xz: &'a Buf, w_ek: &'a Buf, bias_e: Option<&'a Buf>) -> Conv<'a> {
        let ConvCase { e, k, act, .. } = *self;
        Conv { t: tokens(&self.spans), e, k, act, spans: &self.spans, xz, w_ek, bias_e }
    }

    fn sizes<T>(&self, f: impl FnOnce(&Conv) -> T) -> T {
        let none = Buf::host(Dtype::F32, 0);
        f(&self.args(&none, &none, None))
    }

    fn arrays<'a, R: Real>(&self, x: &'a [Vec<R>]) -> ConvArrays<'a, R> {
        let bias_e = self.bias.then(|| &x[2][..]);
        let window = self.slots.map(|_| &x[x.len() - 1][..]);
        ConvArrays { xz: &x[0], w_ek: &x[1], bias_e, window }
    }
}

impl Op for ConvCase {
    fn name(&self) -> String {
        let ConvCase { e, k, act, bias, spans, slots } = self;
        let slots = slots.map_or("none".into(), |s| s.to_string());
        format!("conv e={e} k={k} {act:?} bias={bias} slots={slots} spans={}", describe(spans))
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        let t = tokens(&self.spans);
        let mut inputs =
            vec![Input::signal(rng.normals(t * 2 * self.e)), Input::param(rng.normals(self.e * self.k))];
        if self.bias {
            inputs.push(Input::param(rng.normals(self.e)));
        }
        if let Some(slots) = self.slots {
            inputs.push(Input::fixed(rng.normals(slots * (self.k - 1) * self.e)));
        }
        inputs
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let arrays = self.arrays(x);
        let mut outputs = vec![self.sizes(|a| conv(a, &arrays))];
        if self.slots.is_some() {
            outputs.push(self.sizes(|a| window_after(a, &arrays)));
        }
        outputs
    }

    fn run(&self, dev: &dyn Device, mut x: Vec<Buf>) -> Vec<Buf> {
        let mut window = if self.slots.is_some() { x.pop() } else { None };
        let mut y = rubbish(dev, tokens(&self.spans) * self.e);
        dev.conv(&mut y, window.as_mut(), self.args(&x[0], &x[1], x.get(2)));
        [Some(y), window].into_iter().flatten().collect()
    }

    fn has_backward(&self) -> bool {
        self.slots.is_none()
    }

    fn define_bwd<R: Real>(&self, x: &[Vec<R>], _y: &[Vec<R>], dy: &[R]) -> Vec<Vec<R>> {
        let (dxz, dw, dbias) = self.sizes(|a| conv_bwd(a, &self.arrays(x), dy));
        if self.bias { vec![dxz, dw, dbias] } else { vec![dxz, dw] }
    }

    fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, _y: &[Buf], dy: &Buf, g: &mut Grads) {
        let at = ConvAt { w: g.at[0], bias: g.at.get(1).copied() };
        dev.conv_bwd(&mut g.own[0], &mut g.flat, at, dy, self.args(&x[0], &x[1], x.get(2)));
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let train = |e, k, act, bias, lens: &[usize]| {
        Box::new(ConvCase { e, k, act, bias, spans: packed(lens), slots: None }) as Box<dyn Checks>
    };
    let serve = |e, k, act, bias, slots, parts: &[(usize, usize, usize)]| {
        let spans = placed(parts);
        Box::new(ConvCase { e, k, act, bias, spans, slots: Some(slots) }) as Box<dyn Checks>
    };
    vec![
        train(17, 1, Act::Silu, true, &[1]),
        train(33, 2, Act::Gelu, false, &[5, 1, 2]),
        train(16, 3, Act::GeluTanh, true, &[70]),
        train(33, 4, Act::Silu, true, &[1, 2, 3, 4, 64, 1]),
        train(64, 4, Act::Silu, false, &[130, 67]),
        train(40, 5, Act::Relu, true, &[3, 9]),
        // More channels than a block of the fast device.
        train(300, 4, Act::Silu, true, &[70, 130]),
        train(2100, 4, Act::Silu, true, &[5, 68]),
        serve(300, 4, Act::Silu, true, 2, &[(1, 70, 64), (0, 5, 0)]),
        // One token of each of several sequences, in odd order, one of them new.
        serve(17, 4, Act::Silu, true, 4, &[(2, 1, 9), (0, 1, 0), (3, 1, 1)]),
        // Chunks shorter than the window, that start inside it.
        serve(33, 4, Act::Silu, true, 3, &[(1, 2, 1), (2, 3, 2), (0, 1, 100)]),
        serve(16, 5, Act::Gelu, false, 2, &[(1, 3, 4), (0, 2, 0)]),
        serve(48, 4, Act::Silu, true, 2, &[(1, 70, 64), (0, 5, 0)]),
        serve(20, 1, Act::Relu, false, 2, &[(1, 3, 4)]),
        serve(31, 2, Act::GeluTanh, true, 1, &[(0, 6, 3)]),
    ]
}
