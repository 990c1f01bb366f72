//! RMS normalisation.

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
}
