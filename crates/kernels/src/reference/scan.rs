//! Selective scan of Mamba-1, one channel at a time.

use super::act::{act, act_grad, softplus, softplus_grad};
use super::real::{Real, zeros};
use crate::{Act, SCAN_CHUNK, Scan, Span};

/// Arrays of a scan; shapes as in [`Scan`].
pub(crate) struct ScanArrays<'a, R> {
    pub(crate) x_te: &'a [R],
    pub(crate) dt_te: &'a [R],
    pub(crate) p: &'a [R],
    pub(crate) xz: &'a [R],
    pub(crate) a_log_en: &'a [R],
    pub(crate) d_e: &'a [R],
    pub(crate) dt_bias_e: &'a [R],
    /// States of each slot, `[slots, n, e]`.
    pub(crate) state: Option<&'a [R]>,
}

/// Results of [`scan`].
pub(crate) struct ScanOut<R> {
    /// `[t, e]`
    pub(crate) y_te: Vec<R>,
    /// States of all slots after the call; empty without states before.
    pub(crate) state: Vec<R>,
    /// State before each [`SCAN_CHUNK`] tokens of each span, blocks of `[n, e]` in span order.
    pub(crate) saved: Vec<R>,
}

/// Gradients of all arrays of a scan, in their layouts.
pub(crate) struct ScanBwd<R> {
    pub(crate) dx_te: Vec<R>,
    pub(crate) ddt_te: Vec<R>,
    pub(crate) dp: Vec<R>,
    pub(crate) dxz: Vec<R>,
    pub(crate) da_log_en: Vec<R>,
    pub(crate) dd_e: Vec<R>,
    pub(crate) ddt_bias_e: Vec<R>,
}

impl Scan<'_> {
    /// Index in `p` of the first element of B of channel `c` at token `t`; C follows `n` later.
    fn b_at(&self, t: usize, c: usize) -> usize {
        let head = c / (self.e / self.h);
        (t * self.h + head) * (self.r + 2 * self.n) + self.r
    }
}

/// One channel of a span on its way through time.
struct Channel<R> {
    /// Its number.
    c: usize,
    /// `-exp(a_log)`, `[n]`.
    a_n: Vec<R>,
    /// State, `[n]`.
    s_n: Vec<R>,
}

impl<R: Real> Channel<R> {
    fn new(a: &Scan, x: &ScanArrays<R>, s: &Span, c: usize) -> Self {
        let a_n = (0..a.n).map(|n| -x.a_log_en[c * a.n + n].exp()).collect();
        let s_n = match x.state {
            Some(state) if s.pos > 0 => (0..a.n).map(|n| state[(s.slot * a.n + n) * a.e + c]).collect(),
            _ => zeros(a.n),
        };
        Channel { c, a_n, s_n }
    }

    /// Step size at token `t`, before softplus.
    fn dt_raw(&self, a: &Scan, x: &ScanArrays<R>, t: usize) -> R {
        x.dt_te[t * a.e + self.c] + x.dt_bias_e[self.c]
    }

    /// Takes the state past token `t` and returns the output before the gate.
    ///
    /// The state is rounded to f32 at each token: it is what a slot stores between two calls, so
    /// cutting a sequence in two changes nothing.
    fn step(&mut self, a: &Scan, x: &ScanArrays<R>, t: usize) -> R {
        let dt = softplus(self.dt_raw(a, x, t));
        let x_t = x.x_te[t * a.e + self.c];
        let at = a.b_at(t, self.c);
        let mut y = x.d_e[self.c] * x_t;
        for n in 0..a.n {
            let (b, c) = (x.p[at + n], x.p[at + a.n + n]);
            let s = (dt * self.a_n[n]).exp() * self.s_n[n] + dt * b * x_t;
            self.s_n[n] = s.stored();
            y += c * self.s_n[n];
        }
        y
    }
}

/// See [`crate::Device::scan`].
pub(crate) fn scan<R: Real>(a: &Scan, x: &ScanArrays<R>) -> ScanOut<R> {
    let mut out = ScanOut {
        y_te: zeros(a.t * a.e),
        state: x.state.unwrap_or_default().to_vec(),
        saved: zeros(a.saved_len()),
    };
    let mut first_block = 0;
    for s in a.spans {
        for c in 0..a.e {
            let mut channel = Channel::new(a, x, s, c);
            for i in 0..s.len {
                let t = s.start + i;
                if i % SCAN_CHUNK == 0 {
                    let block = first_block + i / SCAN_CHUNK;
                    for n in 0..a.n {
                        out.saved[(block * a.n + n) * a.e + c] = channel.s_n[n];
                    }
                }
                let y = channel.step(a, x, t);
                out.y_te[t * a.e + c] = y * act(Act::Silu, x.xz[t * 2 * a.e + 2 * c + 1]);
            }
            if x.state.is_some() {
                for n in 0..a.n {
                    out.state[(s.slot * a.n + n) * a.e + c] = channel.s_n[n];
                }
            }
        }
        first_block += s.len.div_ceil(SCAN_CHUNK);
    }
    out
}

/// See [`crate::Device::scan_bwd`]. All states are computed again from the zero state of the span.
pub(crate) fn scan_bwd<R: Real>(a: &Scan, x: &ScanArrays<R>, dy: &[R]) -> ScanBwd<R> {
    let mut g = ScanBwd {
        dx_te: zeros(a.t * a.e),
        ddt_te: zeros(a.t * a.e),
        dp: zeros(x.p.len()),
        dxz: zeros(a.t * 2 * a.e),
        da_log_en: zeros(a.e * a.n),
        dd_e: zeros(a.e),
        ddt_bias_e: zeros(a.e),
    };
    for s in a.spans {
        for c in 0..a.e {
            channel_bwd(&mut g, a, x, dy, s, c);
        }
    }
    g
}

/// Adds the part of channel `c` of one span to the gradients.
fn channel_bwd<R: Real>(g: &mut ScanBwd<R>, a: &Scan, x: &ScanArrays<R>, dy: &[R], s: &Span, c: usize) {
    let mut channel = Channel::new(a, x, s, c);
    // States before the first token and after each one, and the outputs before the gate.
    let (mut states, mut ys) = (vec![channel.s_n.clone()], vec![]);
    for t in s.start..s.start + s.len {
        ys.push(channel.step(a, x, t));
        states.push(channel.s_n.clone());
    }

    // Gradient of the state after token `i` that comes from later tokens.
    let mut ds_n: Vec<R> = zeros(a.n);
    for i in (0..s.len).rev() {
        let t = s.start + i;
        let te = t * a.e + c;
        let gate = t * 2 * a.e + 2 * c + 1;
        g.dxz[gate] += dy[te] * ys[i] * act_grad(Act::Silu, x.xz[gate]);
        let dy_t = dy[te] * act(Act::Silu, x.xz[gate]);
        let (x_t, dt_raw, at) = (x.x_te[te], channel.dt_raw(a, x, t), a.b_at(t, c));
        let dt = softplus(dt_raw);
        g.dd_e[c] += dy_t * x_t;
        g.dx_te[te] += dy_t * x.d_e[c];
        let mut ddt = R::of(0.0);
        for n in 0..a.n {
            let (b, c_tn, a_n) = (x.p[at + n], x.p[at + a.n + n], channel.a_n[n]);
            let (before, after) = (states[i][n], states[i + 1][n]);
            let decay = (dt * a_n).exp();
            let ds = ds_n[n] + dy_t * c_tn;
            g.dp[at + a.n + n] += dy_t * after;
            g.dp[at + n] += ds * dt * x_t;
            g.dx_te[te] += ds * dt * b;
            ddt += ds * b * x_t + ds * a_n * decay * before;
            // d(exp(dt * A)) / d(a_log) = dt * exp(dt * A) * A, because dA / d(a_log) = A.
            g.da_log_en[c * a.n + n] += ds * dt * decay * before * a_n;
            ds_n[n] = ds * decay;
        }
        let ddt_raw = ddt * softplus_grad(dt_raw);
        g.ddt_te[te] += ddt_raw;
        g.ddt_bias_e[c] += ddt_raw;
    }
}
