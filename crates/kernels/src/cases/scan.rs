//! Cases of `scan`.
//!
//! Bounds: the recurrence passes the error of the state on, scaled by its decay, and adds a few unit
//! roundoffs per step, so they grow with the memory of the channel rather than with the sequence. One
//! term per channel for the gradients of B and C, one per token for those of parameters.

use super::{Checks, Grads, Input, Op, Rng, describe, packed, placed, rubbish, take, tokens};
use crate::reference::real::Real;
use crate::reference::scan::{ScanArrays, scan, scan_bwd};
use crate::{Buf, Device, Dtype, Scan, ScanAt, ScanGrads, Span};

struct ScanCase {
    e: usize,
    h: usize,
    n: usize,
    r: usize,
    spans: Vec<Span>,
    /// Slots of the state; none for training.
    slots: Option<usize>,
}

impl ScanCase {
    fn args<'a>(&'a self, x: &'a [Buf; 7]) -> Scan<'a> {
        let ScanCase { e, h, n, r, .. } = *self;
        let [x_te, dt_te, p, xz, a_log_en, d_e, dt_bias_e] = x;
        let t = tokens(&self.spans);
        Scan { t, e, h, n, r, spans: &self.spans, x_te, dt_te, p, xz, a_log_en, d_e, dt_bias_e }
    }

    fn sizes<T>(&self, f: impl FnOnce(&Scan) -> T) -> T {
        f(&self.args(&std::array::from_fn(|_| Buf::host(Dtype::F32, 0))))
    }

    fn arrays<'a, R: Real>(&self, x: &'a [Vec<R>]) -> ScanArrays<'a, R> {
        ScanArrays {
            x_te: &x[0],
            dt_te: &x[1],
            p: &x[2],
            xz: &x[3],
            a_log_en: &x[4],
            d_e: &x[5],
            dt_bias_e: &x[6],
            state: x.get(7).map(|s| &s[..]),
        }
    }
}

impl Op for ScanCase {
    fn name(&self) -> String {
        let ScanCase { e, h, n, r, spans, slots } = self;
        let slots = slots.map_or("none".into(), |s| s.to_string());
        format!("scan e={e} h={h} n={n} r={r} slots={slots} spans={}", describe(spans))
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        let ScanCase { e, h, n, r, .. } = *self;
        let t = tokens(&self.spans);
        // Steps from 0.005 to 3, some in the linear range of softplus.
        let mut dt = rng.uniforms(t * e, -5.0, 3.0);
        dt.iter_mut().filter(|_| rng.below(50) == 0).for_each(|v| *v = 25.0);
        // Decay rates from 0.6 to 1.6 n, as S4D-real starts with 1 ..= n.
        let a_log = (0..e * n).map(|i| ((i % n + 1) as f32).ln() + rng.uniform(-0.5, 0.5)).collect();
        let mut inputs = vec![
            Input::signal(rng.normals(t * e)),
            Input::signal(dt),
            Input::signal(rng.normals(t * h * (r + 2 * n))),
            Input::signal(rng.normals(t * 2 * e)),
            Input::param(a_log),
            Input::param(rng.normals(e)),
            Input::param(rng.normals(e)),
        ];
        if let Some(slots) = self.slots {
            inputs.push(Input::fixed(rng.normals(slots * n * e)));
        }
        inputs
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let out = self.sizes(|a| scan(a, &self.arrays(x)));
        if self.slots.is_some() { vec![out.y_te, out.state] } else { vec![out.y_te] }
    }

    fn run(&self, dev: &dyn Device, mut x: Vec<Buf>) -> Vec<Buf> {
        let mut state = if self.slots.is_some() { x.pop() } else { None };
        let x = take(x);
        let a = self.args(&x);
        let mut y = rubbish(dev, a.t * a.e);
        if state.is_some() {
            dev.scan(&mut y, state.as_mut(), None, a);
            return [Some(y), state].into_iter().flatten().collect();
        }
        let mut saved = rubbish(dev, a.saved_len());
        dev.scan(&mut y, None, Some(&mut saved), a);
        let mut alone = rubbish(dev, a.t * a.e);
        dev.scan(&mut alone, None, None, a);
        assert_eq!(super::download(dev, &alone), super::download(dev, &y), "saving changes nothing");
        vec![y, saved]
    }

    fn has_backward(&self) -> bool {
        self.slots.is_none()
    }

    fn define_bwd<R: Real>(&self, x: &[Vec<R>], _y: &[Vec<R>], dy: &[R]) -> Vec<Vec<R>> {
        let g = self.sizes(|a| scan_bwd(a, &self.arrays(x), dy));
        vec![g.dx_te, g.ddt_te, g.dp, g.dxz, g.da_log_en, g.dd_e, g.ddt_bias_e]
    }

    fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, y: &[Buf], dy: &Buf, g: &mut Grads) {
        let mut fresh = g.fresh(dev);
        let [dx_te, ddt_te, dp, dxz] = &mut fresh[..] else { panic!("four signals") };
        let grads = ScanGrads { dx_te, ddt_te, dp, dxz };
        let at = ScanAt { a_log: g.at[0], d: g.at[1], dt_bias: g.at[2] };
        dev.scan_bwd(grads, &mut g.flat, at, dy, &y[1], self.args(&take(x)));
        g.add(dev, &fresh);
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let train = |e, h, n, r, lens: &[usize]| {
        Box::new(ScanCase { e, h, n, r, spans: packed(lens), slots: None }) as Box<dyn Checks>
    };
    let serve = |e, h, n, r, slots, parts: &[(usize, usize, usize)]| {
        Box::new(ScanCase { e, h, n, r, spans: placed(parts), slots: Some(slots) }) as Box<dyn Checks>
    };
    vec![
        train(17, 1, 1, 1, &[1]),
        train(33, 1, 5, 3, &[5, 1, 2]),
        train(34, 2, 16, 4, &[70]),
        // Ends of spans beside, on and past the saved chunks.
        train(16, 2, 16, 2, &[63, 64, 65, 1]),
        train(48, 1, 16, 2, &[15, 16, 17, 1]),
        train(20, 2, 5, 3, &[129, 17]),
        train(96, 2, 16, 5, &[9, 8]),
        train(18, 3, 1, 0, &[66]),
        // More channels than a block of the fast device.
        train(540, 2, 16, 5, &[70]),
        train(1090, 2, 16, 3, &[18, 2]),
        train(300, 1, 20, 5, &[20, 3]),
        serve(540, 2, 16, 4, 3, &[(1, 2, 1), (2, 66, 2), (0, 1, 100)]),
        serve(2100, 2, 16, 1, 2, &[(1, 17, 3), (0, 1, 0)]),
        serve(17, 1, 16, 2, 4, &[(2, 1, 9), (0, 1, 0), (3, 1, 1)]),
        serve(34, 2, 16, 4, 3, &[(1, 2, 1), (2, 66, 2), (0, 1, 100)]),
        serve(33, 1, 5, 3, 2, &[(1, 3, 4), (0, 2, 0)]),
        serve(64, 2, 1, 3, 1, &[(0, 6, 64)]),
    ]
}
