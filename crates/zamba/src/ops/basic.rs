//! Moving and adding rows: embed, add, select.

use crate::ctx::Ctx;
use crate::param::Param;
use crate::pool::Var;

impl Ctx<'_> {
    /// Rows of `w_vd` for the tokens of the batch, `[t, d]`.
    pub fn embed(&mut self, w_vd: &Param) -> Var {
        let env = self.env.clone();
        let d = w_vd.mat().cols();
        let mut y = self.fresh(env.batch.len(), d);
        env.dev().embed(y.buf_mut(), &env.batch.tokens, w_vd.mat());
        self.on_backward(|| {
            let (y, at) = (y.clone(), w_vd.at());
            move |b| {
                let Some(dy) = b.take(&y) else { return };
                let env = b.env.clone();
                env.dev().embed_bwd(b.flat, at, dy.buf(), &env.batch.tokens, d);
            }
        });
        y
    }

    /// `a + b`
    pub fn add(&mut self, a: &Var, b: &Var) -> Var {
        let mut y = self.fresh(a.rows(), a.cols());
        self.env.dev().add(y.buf_mut(), a.buf(), b.buf());
        self.on_backward(|| {
            let (a, b, y) = (a.clone(), b.clone(), y.clone());
            move |back| {
                let Some(dy) = back.take(&y) else { return };
                back.add_copy(&a, &dy);
                back.add(&b, dy);
            }
        });
        y
    }

    /// Rows `rows` of `x`, one below the other.
    pub fn select(&mut self, x: &Var, rows: &[u32]) -> Var {
        let d = x.cols();
        let mut y = self.fresh(rows.len(), d);
        self.env.dev().gather_rows(y.buf_mut(), x.buf(), rows, d);
        self.on_backward(|| {
            let (x, y, rows) = (x.clone(), y.clone(), rows.to_vec());
            move |b| {
                let Some(dy) = b.take(&y) else { return };
                let mut dx = b.slot(&x);
                b.env.dev().scatter_rows(dx.buf_mut(), dy.buf(), &rows, d);
                b.put(&x, dx);
            }
        });
        y
    }
}
