//! Cross-entropy, of logits or straight from hidden states.

use zamba_kernels::{Buf, Linear};

use crate::ctx::{Ctx, Env};
use crate::param::Param;
use crate::pool::Var;

/// Tokens whose logits exist at a time. Part of the order of accumulation: the gradient of the head sums over
/// this many tokens at once.
const ROWS: usize = 512;

impl Ctx<'_> {
    /// Negative log-likelihood of `targets` under `logits [t, v]`, `[t, 1]`; 0 where the target is
    /// [`zamba_kernels::IGNORE`].
    ///
    /// The tape ends here: [`Ctx::backward`] differentiates `scale * sum(nll)`.
    ///
    /// # Panics
    /// If the number of targets is not the number of rows.
    pub fn cross_entropy(&mut self, logits: &Var, targets: &[u32], scale: f32) -> Var {
        let (t, v) = (logits.rows(), logits.cols());
        assert_eq!(targets.len(), t, "one target per row");
        let (mut nll, mut lse) = (self.fresh(t, 1), self.fresh(t, 1));
        self.env.dev().cross_entropy(nll.buf_mut(), lse.buf_mut(), logits.buf(), targets, v);
        self.on_backward(|| {
            let (logits, targets) = (logits.clone(), targets.to_vec());
            move |b| {
                let mut dl = b.env.pool.take(t, v);
                let dev = b.env.dev();
                dev.copy(dl.buf_mut(), 0, logits.buf(), 0, t * v);
                dev.cross_entropy_bwd(dl.buf_mut(), lse.buf(), &targets, v, scale);
                b.add(&logits, dl);
            }
        });
        nll
    }

    /// As [`Ctx::cross_entropy`] of `hidden head^T`, bit for bit, for `head [v, d]` and without a tape. The
    /// logits of a few tokens at a time are all that is ever in memory.
    ///
    /// # Panics
    /// If the number of targets is not the number of rows, or there is a tape.
    pub fn head_loss(&mut self, hidden: &Var, head: &Param, targets: &[u32]) -> Var {
        assert!(!self.has_tape(), "a tape ends in `backward_from_head`");
        let mut nll = self.fresh(hidden.rows(), 1);
        chunks(&self.env, hidden, head, targets, &mut nll, |_| {});
        nll
    }

    /// Forward and backward of the loss at once: the negative log-likelihood of `targets` as
    /// [`Ctx::head_loss`] gives it, and then [`Ctx::backward`] of `scale * sum(nll)`.
    ///
    /// # Panics
    /// If the number of targets is not the number of rows, or there is no tape.
    pub fn backward_from_head(
        self,
        hidden: Var,
        head: &Param,
        targets: &[u32],
        scale: f32,
        flat: &mut Buf,
    ) -> Var {
        let (env, d) = (self.env.clone(), hidden.cols());
        let (mut nll, mut dh) = (self.fresh(hidden.rows(), 1), self.fresh(hidden.rows(), d));
        chunks(&env, &hidden, head, targets, &mut nll, |c| {
            let (dev, rows) = (env.dev(), c.x.rows());
            dev.cross_entropy_bwd(c.logits.buf_mut(), c.lse.buf(), c.targets, head.mat().rows(), scale);
            let mut dx = env.pool.zeroed(rows, d);
            dev.linear_dx(dx.buf_mut(), c.logits.buf(), map(&c.x, head));
            dev.linear_dw(flat, head.at(), None, c.logits.buf(), map(&c.x, head));
            dev.copy(dh.buf_mut(), c.at * d, dx.buf(), 0, rows * d);
        });
        self.backward_from(hidden, dh, flat);
        nll
    }
}

/// Tokens `at ..` with their hidden states, logits and log-sums.
struct Chunk<'t> {
    at: usize,
    x: Var,
    logits: Var,
    lse: Var,
    targets: &'t [u32],
}

/// Writes the losses of all tokens, and calls `then` with each chunk of them.
fn chunks(
    env: &Env,
    hidden: &Var,
    head: &Param,
    targets: &[u32],
    nll: &mut Var,
    mut then: impl FnMut(&mut Chunk),
) {
    assert_eq!(targets.len(), hidden.rows(), "one target per row");
    let (dev, d, v) = (env.dev(), hidden.cols(), head.mat().rows());
    for (i, targets) in targets.chunks(ROWS).enumerate() {
        let (at, rows) = (i * ROWS, targets.len());
        let mut x = env.pool.take(rows, d);
        dev.copy(x.buf_mut(), 0, hidden.buf(), at * d, rows * d);
        let mut logits = env.pool.take(rows, v);
        dev.linear(logits.buf_mut(), map(&x, head));
        let (mut part, mut lse) = (env.pool.take(rows, 1), env.pool.take(rows, 1));
        dev.cross_entropy(part.buf_mut(), lse.buf_mut(), logits.buf(), targets, v);
        dev.copy(nll.buf_mut(), at, part.buf(), 0, rows);
        then(&mut Chunk { at, x, logits, lse, targets });
    }
}

fn map<'a>(x: &'a Var, head: &'a Param) -> Linear<'a> {
    let (o, i) = (head.mat().rows(), head.mat().cols());
    let (t, x, w) = (x.rows(), x.buf(), head.mat());
    Linear { t, groups: 1, o, i, x, x_stride: i, x_group: 0, x_at: 0, w, w_at: 0, bias: None }
}
