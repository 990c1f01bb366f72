//! What only the shared block needs: attention and the gated activation of its MLP.

use zamba_kernels::{Act, Attention, CacheRows};

use crate::ctx::{Ctx, Env};
use crate::pool::Var;

/// Sizes of the shared attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSizes {
    /// Query heads.
    pub h: usize,
    /// Key/value heads.
    pub kv: usize,
    /// Head width.
    pub p: usize,
    /// Factor on the scores, `(p / 2)^-0.5` in Zamba.
    pub scale: f32,
    /// Whether operands of products are rounded to bf16.
    pub bf16: bool,
}

impl Ctx<'_> {
    /// Causal attention, `[t, h * p]`. With state, keys and values first join the cache of `site`.
    pub fn attention(&mut self, q: &Var, k: &Var, v: &Var, s: AttentionSizes, site: usize) -> Var {
        let env = self.env.clone();
        let mut y = self.fresh(q.rows(), s.h * s.p);
        if let Some(state) = self.state.as_deref_mut() {
            let (rows, kv) = (state.context(), &mut state.sites[site]);
            let spans = &env.batch.spans;
            let new = CacheRows { kv: s.kv, p: s.p, spans, k: k.buf(), v: v.buf(), slot_rows: rows };
            env.dev().cache_rows(&mut kv.k, &mut kv.v, new);
            let a = Attention { k: &kv.k, v: &kv.v, slot_rows: Some(rows), ..args(&env, (q, k, v), s) };
            env.dev().attention(y.buf_mut(), None, a);
            return y;
        }
        let mut lse = self.has_tape().then(|| self.fresh(q.rows(), s.h));
        env.dev().attention(y.buf_mut(), lse.as_mut().map(Var::buf_mut), args(&env, (q, k, v), s));
        self.on_backward(|| {
            let (q, k, v, y) = (q.clone(), k.clone(), v.clone(), y.clone());
            let lse = lse.expect("kept under a tape");
            move |b| {
                let Some(dy) = b.take(&y) else { return };
                let env = b.env.clone();
                let (mut dq, mut dk, mut dv) = (b.slot(&q), b.slot(&k), b.slot(&v));
                let a = args(&env, (&q, &k, &v), s);
                env.dev().attention_bwd(
                    dq.buf_mut(),
                    dk.buf_mut(),
                    dv.buf_mut(),
                    dy.buf(),
                    y.buf(),
                    lse.buf(),
                    a,
                );
                b.put(&q, dq);
                b.put(&k, dk);
                b.put(&v, dv);
            }
        });
        y
    }

    /// `act(gate) * up`
    pub fn glu(&mut self, gate: &Var, up: &Var, act: Act) -> Var {
        let mut y = self.fresh(gate.rows(), gate.cols());
        self.env.dev().glu(y.buf_mut(), gate.buf(), up.buf(), act);
        self.on_backward(|| {
            let (gate, up, y) = (gate.clone(), up.clone(), y.clone());
            move |b| {
                let Some(dy) = b.take(&y) else { return };
                let (t, f) = (gate.rows(), gate.cols());
                let (mut dg, mut du) = (b.env.pool.take(t, f), b.env.pool.take(t, f));
                b.env.dev().glu_bwd(dg.buf_mut(), du.buf_mut(), dy.buf(), gate.buf(), up.buf(), act);
                b.add(&gate, dg);
                b.add(&up, du);
            }
        });
        y
    }
}

fn args<'a>(env: &'a Env, (q, k, v): (&'a Var, &'a Var, &'a Var), s: AttentionSizes) -> Attention<'a> {
    Attention {
        t: q.rows(),
        h: s.h,
        kv: s.kv,
        p: s.p,
        scale: s.scale,
        bf16: s.bf16,
        spans: &env.batch.spans,
        q: q.buf(),
        k: k.buf(),
        v: v.buf(),
        slot_rows: None,
    }
}
