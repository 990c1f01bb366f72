//! Cases of `attention`, and of `cache_rows` by what attention sees in the cache.
//!
//! Bounds: a score is a sum of `p` products; its error and that of the log-sum scale each weight, and an
//! output is a sum over keys. The gradients add the cancellation of `dy . v - dy . y`. In bf16 the operands
//! that are inputs are exact; each weight, and each gradient of a score, is off by 2^-8 of itself besides.

use super::{Checks, Grads, Input, Op, Rng, describe, packed, placed, rubbish, take, tokens};
use crate::reference::attention::{AttentionArrays, attention, attention_bwd};
use crate::reference::real::Real;
use crate::{Attention, Buf, CacheRows, Device, Dtype, Span};

struct AttentionCase {
    h: usize,
    kv: usize,
    p: usize,
    bf16: bool,
    spans: Vec<Span>,
    /// Slots and rows per slot of the cache; none for training.
    cache: Option<(usize, usize)>,
}

impl AttentionCase {
    fn args<'a>(&'a self, [q, k, v]: &'a [Buf; 3]) -> Attention<'a> {
        let AttentionCase { h, kv, p, bf16, .. } = *self;
        let (t, slot_rows) = (tokens(&self.spans), self.cache.map(|(_, rows)| rows));
        // Zamba scales by (p / 2)^-1/2; any factor would do.
        let scale = (p as f32 / 2.0).sqrt().recip();
        Attention { t, h, kv, p, scale, bf16, spans: &self.spans, q, k, v, slot_rows }
    }

    /// Caches of those rows of `k` and `v` that some span sees, and of NaN. They join in two calls, first what
    /// spans continue and then the spans themselves.
    fn cached(&self, dev: &dyn Device, slots: usize, slot_rows: usize, k: &Buf, v: &Buf) -> [Buf; 2] {
        let AttentionCase { kv, p, .. } = *self;
        let dtype = if self.bf16 { Dtype::Bf16 } else { Dtype::F32 };
        let caches = || {
            let mut cache = dev.alloc(dtype, slots * dev.cache_len(dtype, slot_rows, kv, p));
            dev.fill(&mut cache, f32::NAN);
            cache
        };
        let (mut keys, mut values) = (caches(), caches());
        let before: Vec<_> = self.spans.iter().filter(|s| s.pos > 0).map(|s| (s.slot, s.pos, 0)).collect();
        for spans in [placed(&before), self.spans.clone()] {
            let rows: Vec<u32> = spans
                .iter()
                .flat_map(|s| (s.pos..s.pos + s.len).map(|row| (s.slot * slot_rows + row) as u32))
                .collect();
            let gathered = |x| {
                let mut y = rubbish(dev, rows.len() * kv * p);
                dev.gather_rows(&mut y, x, &rows, kv * p);
                y
            };
            let (k, v) = (&gathered(k), &gathered(v));
            dev.cache_rows(&mut keys, &mut values, CacheRows { kv, p, spans: &spans, k, v, slot_rows });
        }
        [keys, values]
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
        let AttentionCase { h, kv, p, bf16, spans, cache } = self;
        let cache = cache.map_or("none".into(), |(slots, rows)| format!("{slots}x{rows}"));
        format!("attention h={h} kv={kv} p={p} bf16={bf16} cache={cache} spans={}", describe(spans))
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
        let [q, k, v] = take(x);
        let x = match self.cache {
            Some((slots, rows)) => {
                let [k, v] = self.cached(dev, slots, rows, &k, &v);
                [q, k, v]
            }
            None => [q, k, v],
        };
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

    fn rounds_dy(&self) -> bool {
        self.bf16
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

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let mut cases = vec![];
    for bf16 in [false, true] {
        let train =
            |h, kv, p, lens: &[usize]| AttentionCase { h, kv, p, bf16, spans: packed(lens), cache: None };
        let serve = |h, kv, p, slots, rows, parts: &[(usize, usize, usize)]| AttentionCase {
            h,
            kv,
            p,
            bf16,
            spans: placed(parts),
            cache: Some((slots, rows)),
        };
        cases.extend([
            train(1, 1, 1, &[1]),
            train(2, 2, 17, &[5, 1, 2]),
            train(4, 2, 8, &[33]),
            train(3, 1, 33, &[67, 3]),
            train(2, 2, 16, &[130]),
            train(6, 2, 10, &[1, 64, 20]),
            train(4, 2, 150, &[200]),
            // Beyond the blocks of queries and keys of the fast device.
            train(1, 1, 6, &[300, 40]),
            train(2, 1, 272, &[70]),
            serve(2, 2, 17, 4, 12, &[(2, 1, 9), (0, 1, 0), (3, 1, 1)]),
            serve(4, 2, 8, 3, 110, &[(1, 2, 1), (2, 66, 2), (0, 1, 100)]),
            serve(3, 1, 33, 1, 200, &[(0, 1, 199)]),
            serve(2, 2, 16, 2, 160, &[(1, 70, 64), (0, 5, 0)]),
            serve(2, 1, 40, 2, 700, &[(1, 3, 640), (0, 150, 260)]),
        ]);
    }
    cases.into_iter().map(|c| Box::new(c) as Box<dyn Checks>).collect()
}
