//! RMS normalisation, whole and in the parts that a norm over two values side by side falls into.

use zamba_kernels::Scaled;

use crate::ctx::Ctx;
use crate::param::Param;
use crate::pool::Var;

impl Ctx<'_> {
    /// `w * x / sqrt(mean(x^2) + eps)` per row.
    pub fn rmsnorm(&mut self, x: &Var, w_d: &Param, eps: f32) -> Var {
        let mut y = self.fresh(x.rows(), x.cols());
        let mut rstd = self.has_tape().then(|| self.fresh(x.rows(), 1));
        let rstd_buf = rstd.as_mut().map(Var::buf_mut);
        self.env.dev().rmsnorm(y.buf_mut(), rstd_buf, x.buf(), &w_d.mat().buf, eps);
        self.on_backward(|| {
            let (x, y, w, rstd) = (x.clone(), y.clone(), w_d.clone(), rstd.expect("kept under a tape"));
            move |b| {
                let Some(dy) = b.take(&y) else { return };
                let mut dx = b.slot(&x);
                let env = b.env.clone();
                env.dev().rmsnorm_bwd(
                    dx.buf_mut(),
                    b.flat,
                    w.at(),
                    dy.buf(),
                    x.buf(),
                    rstd.buf(),
                    &w.mat().buf,
                );
                b.put(&x, dx);
            }
        });
        y
    }

    /// `1 / sqrt(mean(u^2) + eps)` per row of `u = [a, b]`, `[t, 1]`.
    pub fn pair_rstd(&mut self, a: &Var, b: &Var, eps: f32) -> Var {
        let mut s = self.fresh(a.rows(), 1);
        self.env.dev().pair_rstd(s.buf_mut(), a.buf(), b.buf(), eps);
        self.on_backward(|| {
            let (a, b, s) = (a.clone(), b.clone(), s.clone());
            move |back| {
                let Some(ds) = back.take(&s) else { return };
                // One after the other, for in a first layer they are the same value.
                for x in [&a, &b] {
                    let mut dx = back.slot(x);
                    back.env.dev().pair_rstd_bwd(dx.buf_mut(), ds.buf(), s.buf(), x.buf());
                    back.put(x, dx);
                }
            }
        });
        s
    }

    /// `x` with column `c` times element `w_at + c` of the vector `w`, and rows times `factors [t, 1]` if there are any.
    pub fn scale(&mut self, x: &Var, w: &Param, w_at: usize, factors: Option<&Var>) -> Var {
        let mut y = self.fresh(x.rows(), x.cols());
        self.env.dev().scale(y.buf_mut(), scaled(x, w, w_at, factors));
        self.on_backward(|| {
            let (x, w, s, y) = (x.clone(), w.clone(), factors.cloned(), y.clone());
            move |b| {
                let Some(dy) = b.take(&y) else { return };
                let (mut dx, mut ds) = (b.slot(&x), s.as_ref().map(|s| b.slot(s)));
                let (env, a) = (b.env.clone(), scaled(&x, &w, w_at, s.as_ref()));
                let ds_buf = ds.as_mut().map(Var::buf_mut);
                env.dev().scale_bwd(dx.buf_mut(), ds_buf, b.flat, w.at(), dy.buf(), a);
                b.put(&x, dx);
                if let (Some(s), Some(ds)) = (&s, ds) {
                    b.put(s, ds);
                }
            }
        });
        y
    }
}

fn scaled<'a>(x: &'a Var, w: &'a Param, w_at: usize, factors: Option<&'a Var>) -> Scaled<'a> {
    Scaled { d: x.cols(), x_td: x.buf(), w: &w.mat().buf, w_at, s_t: factors.map(Var::buf) }
}
