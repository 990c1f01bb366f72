//! Cases of `attention` and `cache_rows`.
//!
//! Bounds: a score is a sum of `p` products; its error and that of the log-sum scale each weight, and an
//! output is a sum over keys. The gradients add the cancellation of `dy . v - dy . y`.

use super::{Checks, Grads, Input, Op, Rng, describe, packed, placed, rubbish, take, tokens};
use crate::reference::attention::{AttentionArrays, attention, attention_bwd};
use crate::reference::real::Real;
use crate::{Attention, Buf, Device, Dtype, Span};

struct AttentionCase {
    h: usize,
    kv: usize,
    p: usize,
    spans: Vec<Span>,
    /// Slots and rows per slot of the cache; none for training.
    cache: Option<(usize, usize)>,
}

impl AttentionCase {
    fn args<'a>(&'a self, [q, k, v]: &'a [Buf; 3]) -> Attention<'a> {
        let AttentionCase { h, kv, p, .. } = *self;
        let (t, slot_rows) = (tokens(&self.spans), self.cache.map(|(_, rows)| rows));
        // Zamba scales by (p / 2)^-1/2; any factor would do.
        let scale = (p as f32 / 2.0).sqrt().recip();
        Attention { t, h, kv, p, scale, spans: &self.spans, q, k, v, slot_rows }
    }

    fn sizes<T>(&self, f: impl FnOnce(&Attention) -> T) -> T {
        f(&self.args(&std::array::from_fn(|_| Buf::host(Dtype::F32, 0))))
    }
}

fn arrays<R>(x: &[Vec<R>]) -> AttentionArrays<'_, R> {
    AttentionArrays { q: &x[0], k: &x[1], v: &x[2] }
}

impl Op for AttentionCase {
    fn name(&self) -> String {
        let AttentionCase { h, kv, p, spans, cache } = self;
        let cache = cache.map_or("none".into(), |(slots, rows)| format!("{slots}x{rows}"));
        format!("attention h={h} kv={kv} p={p} cache={cache} spans={}", describe(spans))
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        let t = tokens(&self.spans);
        let rows = self.cache.map_or(t, |(slots, rows)| slots * rows);
        vec![
            Input::signal(rng.normals(t * self.h * self.p)),
            Input::signal(rng.normals(rows * self.kv * self.p)),
            Input::signal(rng.normals(rows * self.kv * self.p)),
        ]
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let (y, lse) = self.sizes(|a| attention(a, &arrays(x)));
        vec![y, lse]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let x = take(x);
        let a = self.args(&x);
        let (mut y, mut lse) = (rubbish(dev, a.t * a.h * a.p), rubbish(dev, a.t * a.h));
        dev.attention(&mut y, Some(&mut lse), a);
        let mut alone = rubbish(dev, a.t * a.h * a.p);
        dev.attention(&mut alone, None, a);
        assert_eq!(super::download(dev, &alone), super::download(dev, &y), "lse is optional");
        vec![y, lse]
    }

    fn has_backward(&self) -> bool {
        self.cache.is_none()
    }

    fn define_bwd<R: Real>(&self, x: &[Vec<R>], y: &[Vec<R>], dy: &[R]) -> Vec<Vec<R>> {
        let (dq, dk, dv) = self.sizes(|a| attention_bwd(a, &arrays(x), dy, &y[0], &y[1]));
        vec![dq, dk, dv]
    }

    fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, y: &[Buf], dy: &Buf, g: &mut Grads) {
        let [dq, dk, dv] = &mut g.own[..] else { panic!("three signals") };
        dev.attention_bwd(dq, dk, dv, dy, &y[0], &y[1], self.args(&take(x)));
    }
}

/// Rows into a cache; exact.
struct CacheCase {
    c: usize,
    slots: usize,
    slot_rows: usize,
    spans: Vec<Span>,
}

impl Op for CacheCase {
    fn name(&self) -> String {
        let CacheCase { c, slots, slot_rows, spans } = self;
        format!("cache_rows c={c} slots={slots}x{slot_rows} spans={}", describe(spans))
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        vec![
            Input::fixed(rng.normals(tokens(&self.spans) * self.c)),
            Input::fixed(rng.normals(self.slots * self.slot_rows * self.c)),
        ]
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let mut cache = x[1].clone();
        for s in &self.spans {
            for (i, row) in x[0].chunks_exact(self.c).skip(s.start).take(s.len).enumerate() {
                let at = (s.slot * self.slot_rows + s.pos + i) * self.c;
                cache[at..at + self.c].copy_from_slice(row);
            }
        }
        vec![cache]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let [x, mut cache] = take(x);
        dev.cache_rows(&mut cache, &x, &self.spans, self.slot_rows, self.c);
        vec![cache]
    }

    fn has_backward(&self) -> bool {
        false
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let train = |h, kv, p, lens: &[usize]| {
        Box::new(AttentionCase { h, kv, p, spans: packed(lens), cache: None }) as Box<dyn Checks>
    };
    let serve = |h, kv, p, slots, rows, parts: &[(usize, usize, usize)]| {
        let spans = placed(parts);
        Box::new(AttentionCase { h, kv, p, spans, cache: Some((slots, rows)) }) as Box<dyn Checks>
    };
    let cache = |c, slots, slot_rows, parts: &[(usize, usize, usize)]| {
        Box::new(CacheCase { c, slots, slot_rows, spans: placed(parts) }) as Box<dyn Checks>
    };
    vec![
        train(1, 1, 1, &[1]),
        train(2, 2, 17, &[5, 1, 2]),
        train(4, 2, 8, &[33]),
        train(3, 1, 33, &[67, 3]),
        train(2, 2, 16, &[130]),
        train(6, 2, 10, &[1, 64, 20]),
        train(4, 2, 150, &[200]),
        serve(2, 2, 17, 4, 12, &[(2, 1, 9), (0, 1, 0), (3, 1, 1)]),
        serve(4, 2, 8, 3, 110, &[(1, 2, 1), (2, 66, 2), (0, 1, 100)]),
        serve(3, 1, 33, 1, 200, &[(0, 1, 199)]),
        serve(2, 2, 16, 2, 160, &[(1, 70, 64), (0, 5, 0)]),
        cache(17, 4, 12, &[(2, 1, 11), (0, 3, 0), (3, 2, 1)]),
        cache(8, 1, 5, &[(0, 5, 0)]),
    ]
}
