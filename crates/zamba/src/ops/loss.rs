//! Cross-entropy.

use crate::ctx::Ctx;
use crate::pool::Var;

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
                let mut dl = b.slot(&logits);
                let dev = b.env.dev();
                dev.cross_entropy_bwd(dl.buf_mut(), logits.buf(), lse.buf(), &targets, v, scale);
                b.put(&logits, dl);
            }
        });
        nll
    }
}
