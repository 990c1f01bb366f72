//! Linear maps, plain and per head.

use zamba_kernels::Linear;

use crate::ctx::Ctx;
use crate::param::Param;
use crate::pool::Var;

/// Which columns of its input each group of a linear map reads, and which of its weights they meet.
#[derive(Clone, Copy)]
struct Columns {
    groups: usize,
    x_group: usize,
    w_at: usize,
    i: usize,
}

impl Ctx<'_> {
    /// `x w^T + bias`, `[t, o]` for `w [o, i]`.
    pub fn linear(&mut self, x: &Var, w: &Param, bias: Option<&Param>) -> Var {
        if let Some(moments) = &self.env.moments {
            moments.borrow_mut().add(self.env.dev(), w, x, 0, None);
        }
        self.grouped(x, w, bias, None, Columns { groups: 1, x_group: 0, w_at: 0, i: w.mat().cols() })
    }

    /// The part of a linear map that columns `w_at ..` of `w [o, _]` do, as many as `x [t, i]` has: `[t, o]`. With `rest`, a factor
    /// per row `[t, 1]` and what another part gave, the sum of both. What the map sees as a whole is for the caller to
    /// note.
    pub fn linear_part(&mut self, x: &Var, w: &Param, w_at: usize, rest: Option<(&Var, &Var)>) -> Var {
        self.grouped(x, w, None, rest, Columns { groups: 1, x_group: 0, w_at, i: x.cols() })
    }

    /// Notes for whoever wants to know that columns `w_at ..` of `w` meet `x`, or with `factors [t, 1]` its rows times these.
    pub(crate) fn note_columns(&self, w: &Param, w_at: usize, x: &Var, factors: Option<&Var>) {
        if let Some(moments) = &self.env.moments {
            moments.borrow_mut().add(self.env.dev(), w, x, w_at, factors);
        }
    }

    /// One linear map per Mamba head, `[t, heads * o]` for `w [heads * o, i]`: head `g` reads columns
    /// `g * x_group ..+ i` of `x`.
    pub fn linear_heads(&mut self, x: &Var, w: &Param, heads: usize, x_group: usize) -> Var {
        self.grouped(x, w, None, None, Columns { groups: heads, x_group, w_at: 0, i: w.mat().cols() })
    }

    fn grouped(
        &mut self,
        x: &Var,
        w: &Param,
        bias: Option<&Param>,
        rest: Option<(&Var, &Var)>,
        c: Columns,
    ) -> Var {
        let mut y = self.fresh(x.rows(), w.mat().rows());
        self.env.dev().linear(y.buf_mut(), args(x, w, bias, c));
        if let Some((s, rest)) = rest {
            self.env.dev().add_scaled(y.buf_mut(), s.buf(), rest.buf());
        }
        self.on_backward(|| {
            let (x, y, w, bias) = (x.clone(), y.clone(), w.clone(), bias.cloned());
            let rest = rest.map(|(s, rest)| (s.clone(), rest.clone()));
            move |b| {
                let Some(dy) = b.take(&y) else { return };
                if let Some((s, rest)) = &rest {
                    let (mut ds, mut drest) = (b.slot(s), b.slot(rest));
                    let dev = b.env.dev();
                    dev.add_scaled_bwd(ds.buf_mut(), drest.buf_mut(), dy.buf(), s.buf(), rest.buf());
                    b.put(s, ds);
                    b.put(rest, drest);
                }
                let a = args(&x, &w, bias.as_ref(), c);
                let mut dx = b.slot(&x);
                b.env.dev().linear_dx(dx.buf_mut(), dy.buf(), a);
                let env = b.env.clone();
                env.dev().linear_dw(b.flat, w.at(), bias.as_ref().map(Param::at), dy.buf(), a);
                b.put(&x, dx);
            }
        });
        y
    }
}

fn args<'a>(x: &'a Var, w: &'a Param, bias: Option<&'a Param>, c: Columns) -> Linear<'a> {
    Linear {
        t: x.rows(),
        groups: c.groups,
        o: w.mat().rows() / c.groups,
        i: c.i,
        x: x.buf(),
        x_stride: x.cols(),
        x_group: c.x_group,
        x_at: 0,
        w: w.mat(),
        w_at: c.w_at,
        bias: bias.map(|b| &b.mat().buf),
    }
}
