//! The selective scan, fused with softplus, skip and gate.

use zamba_kernels::{Scan, ScanAt, ScanGrads};

use crate::ctx::{Ctx, Env};
use crate::param::Param;
use crate::pool::Var;

/// Sizes of a Mamba mixer.
#[derive(Clone, Copy, Debug)]
pub struct MambaSizes {
    /// Inner width.
    pub e: usize,
    /// Heads.
    pub h: usize,
    /// States per channel.
    pub n: usize,
    /// Rank of dt.
    pub r: usize,
}

/// Parameters of the scan, as the backward pass keeps them.
#[derive(Clone)]
pub(crate) struct ScanParams {
    pub(crate) a_log: Param,
    pub(crate) d: Param,
    pub(crate) dt_bias: Param,
}

impl Ctx<'_> {
    /// Gated output of the scan, `[t, e]`, from the convolved signal `x [t, e]`, the raw `dt [t, e]`, the
    /// output `p` of `x_proj` and interleaved `xz`; reads and keeps the SSM state of `layer`.
    pub(crate) fn scan(
        &mut self,
        (x, dt, p, xz): (&Var, &Var, &Var, &Var),
        w: &ScanParams,
        s: MambaSizes,
        layer: usize,
    ) -> Var {
        let env = self.env.clone();
        let mut y = self.fresh(x.rows(), s.e);
        let a = args(&env, (x, dt, p, xz), w, s);
        let mut saved = self.has_tape().then(|| self.fresh(1, a.saved_len()));
        let state = self.state.as_mut().map(|st| &mut st.mamba[layer].ssm);
        env.dev().scan(y.buf_mut(), state, saved.as_mut().map(Var::buf_mut), a);
        self.on_backward(|| {
            let (x, dt, p, xz, y) = (x.clone(), dt.clone(), p.clone(), xz.clone(), y.clone());
            let (w, saved) = (w.clone(), saved.expect("kept under a tape"));
            move |b| {
                let Some(dy) = b.take(&y) else { return };
                let env = b.env.clone();
                let fresh = |v: &Var| env.pool.take(v.rows(), v.cols());
                let (mut dx, mut ddt, mut dp, mut dxz) = (fresh(&x), fresh(&dt), fresh(&p), fresh(&xz));
                let g = ScanGrads {
                    dx_te: dx.buf_mut(),
                    ddt_te: ddt.buf_mut(),
                    dp: dp.buf_mut(),
                    dxz: dxz.buf_mut(),
                };
                let at = ScanAt { a_log: w.a_log.at(), d: w.d.at(), dt_bias: w.dt_bias.at() };
                let a = args(&env, (&x, &dt, &p, &xz), &w, s);
                env.dev().scan_bwd(g, b.flat, at, dy.buf(), saved.buf(), a);
                b.add(&x, dx);
                b.add(&dt, ddt);
                b.add(&p, dp);
                b.add(&xz, dxz);
            }
        });
        y
    }
}

fn args<'a>(
    env: &'a Env,
    (x, dt, p, xz): (&'a Var, &'a Var, &'a Var, &'a Var),
    w: &'a ScanParams,
    s: MambaSizes,
) -> Scan<'a> {
    Scan {
        t: x.rows(),
        e: s.e,
        h: s.h,
        n: s.n,
        r: s.r,
        spans: &env.batch.spans,
        x_te: x.buf(),
        dt_te: dt.buf(),
        p: p.buf(),
        xz: xz.buf(),
        a_log_en: &w.a_log.mat().buf,
        d_e: &w.d.mat().buf,
        dt_bias_e: &w.dt_bias.mat().buf,
    }
}
