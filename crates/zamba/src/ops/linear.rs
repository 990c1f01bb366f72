//! Linear maps, plain and per head.

use zamba_kernels::Linear;

use crate::ctx::Ctx;
use crate::param::Param;
use crate::pool::Var;

/// Which columns of its input each group of a linear map reads.
#[derive(Clone, Copy)]
struct Columns {
    groups: usize,
    x_group: usize,
    x_at: usize,
}

impl Ctx<'_> {
    /// `x w^T + bias`, `[t, o]` for `w [o, i]`.
    pub fn linear(&mut self, x: &Var, w: &Param, bias: Option<&Param>) -> Var {
        if let Some(moments) = &self.env.moments {
            moments.borrow_mut().add(self.env.dev(), w, x);
        }
        self.grouped(x, w, bias, Columns { groups: 1, x_group: 0, x_at: 0 })
    }

    /// One linear map per Mamba head, `[t, heads * o]` for `w [heads * o, i]`: head `g` reads columns
    /// `g * x_group ..+ i` of `x`.
    pub fn linear_heads(&mut self, x: &Var, w: &Param, heads: usize, x_group: usize) -> Var {
        self.grouped(x, w, None, Columns { groups: heads, x_group, x_at: 0 })
    }

    fn grouped(&mut self, x: &Var, w: &Param, bias: Option<&Param>, c: Columns) -> Var {
        let mut y = self.fresh(x.rows(), w.mat().rows());
        self.env.dev().linear(y.buf_mut(), args(x, w, bias, c));
        self.on_backward(|| {
            let (x, y, w, bias) = (x.clone(), y.clone(), w.clone(), bias.cloned());
            move |b| {
                let Some(dy) = b.take(&y) else { return };
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
        i: w.mat().cols(),
        x: x.buf(),
        x_stride: x.cols(),
        x_group: c.x_group,
        x_at: c.x_at,
        w: w.mat(),
        bias: bias.map(|b| &b.mat().buf),
    }
}
