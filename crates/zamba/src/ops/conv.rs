//! Causal depthwise convolution over the signal half of `in_proj`.

use zamba_kernels::{Act, Conv, ConvAt};

use crate::ctx::{Ctx, Env};
use crate::param::Param;
use crate::pool::Var;

impl Ctx<'_> {
    /// `act(conv(signal) + bias)`, `[t, e]`, from interleaved `xz [t, 2e]`; reads and keeps the window of
    /// `layer` when there is state.
    pub fn conv(&mut self, xz: &Var, w_ek: &Param, bias: Option<&Param>, act: Act, layer: usize) -> Var {
        let env = self.env.clone();
        let mut y = self.fresh(xz.rows(), xz.cols() / 2);
        let window = self.state.as_mut().map(|s| &mut s.mamba[layer].window);
        env.dev().conv(y.buf_mut(), window, args(&env, xz, w_ek, bias, act));
        self.on_backward(|| {
            let (xz, y, w, bias) = (xz.clone(), y.clone(), w_ek.clone(), bias.cloned());
            move |b| {
                let Some(dy) = b.take(&y) else { return };
                let env = b.env.clone();
                let mut dxz = b.slot(&xz);
                let at = ConvAt { w: w.at(), bias: bias.as_ref().map(Param::at) };
                let a = args(&env, &xz, &w, bias.as_ref(), act);
                env.dev().conv_bwd(dxz.buf_mut(), b.flat, at, dy.buf(), a);
                b.put(&xz, dxz);
            }
        });
        y
    }
}

fn args<'a>(env: &'a Env, xz: &'a Var, w: &'a Param, bias: Option<&'a Param>, act: Act) -> Conv<'a> {
    Conv {
        t: xz.rows(),
        e: w.mat().rows(),
        k: w.mat().cols(),
        act,
        spans: &env.batch.spans,
        xz: xz.buf(),
        w_ek: &w.mat().buf,
        bias_e: bias.map(|b| &b.mat().buf),
    }
}
