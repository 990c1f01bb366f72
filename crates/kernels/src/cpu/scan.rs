//! Selective scan: channels in lanes, states in an inner loop, time outside.
//!
//! A chunk takes a block of channels through all spans. Its states and decay rates, `[n, channels]`, stay
//! in L1; softplus, exponentials, skip and gate happen in the same pass over the arrays, some tokens ahead.

use super::math::{exp, exp2_decay, silu, softplus};
use super::split::{Columns, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V};
use super::{Cpu, scratch};
use crate::{Buf, SCAN_CHUNK, Scan, Span};

/// Most channels per chunk: states and rates of 16 states each are 8 KiB.
const CHANNELS: usize = 64;
/// Tokens that are staged together: 16 KiB. Rows of the arrays are pages apart, where no prefetcher looks;
/// a loop that does little but load them has many loads in flight, one that scans has those of one token.
const STAGED: usize = 16;

/// The arrays of a scan as slices.
#[derive(Clone, Copy)]
pub(super) struct Arrays<'a> {
    pub(super) e: usize,
    pub(super) h: usize,
    pub(super) n: usize,
    pub(super) r: usize,
    pub(super) spans: &'a [Span],
    pub(super) x_te: &'a [f32],
    pub(super) dt_te: &'a [f32],
    pub(super) p: &'a [f32],
    pub(super) xz: &'a [f32],
    pub(super) a_log_en: &'a [f32],
    pub(super) d_e: &'a [f32],
    pub(super) dt_bias_e: &'a [f32],
}

impl<'a> Arrays<'a> {
    /// # Panics
    /// If an array has the wrong size.
    pub(super) fn new(a: &Scan<'a>) -> Self {
        let (te, row) = (a.t * a.e, a.h * (a.r + 2 * a.n));
        assert!(a.h > 0 && a.e.is_multiple_of(a.h), "{} channels in {} heads", a.e, a.h);
        assert!(a.x_te.len() == te && a.dt_te.len() == te && a.xz.len() == 2 * te, "signals of a scan");
        assert!(a.p.len() == a.t * row && a.a_log_en.len() == a.e * a.n, "parameters of a scan");
        assert!(a.d_e.len() == a.e && a.dt_bias_e.len() == a.e, "vectors of a scan");
        assert!(a.spans.iter().all(|s| s.start + s.len <= a.t), "spans of a scan");
        Arrays {
            e: a.e,
            h: a.h,
            n: a.n,
            r: a.r,
            spans: a.spans,
            x_te: a.x_te.f32(),
            dt_te: a.dt_te.f32(),
            p: a.p.f32(),
            xz: a.xz.f32(),
            a_log_en: a.a_log_en.f32(),
            d_e: a.d_e.f32(),
            dt_bias_e: a.dt_bias_e.f32(),
        }
    }

    /// B and C of a head at token `t`, `[n]` each.
    #[inline(always)]
    pub(super) fn bc(&self, t: usize, head: usize) -> (&'a [f32], &'a [f32]) {
        let at = (t * self.h + head) * (self.r + 2 * self.n) + self.r;
        self.p[at..][..2 * self.n].split_at(self.n)
    }

    /// Writes `-exp(a_log) * log2 e` of `width` channels as `n` padded rows: the decay over a step is then
    /// `2^(dt * rate)`. `space` is overwritten.
    #[inline(always)]
    pub(super) fn rates<S: Tier>(&self, rates: &mut [f32], space: &mut [f32], first: usize, width: usize) {
        let (n, padded) = (self.n, width.next_multiple_of(LANES));
        let space = &mut space[..width * n];
        let a_log = &self.a_log_en[first * n..][..width * n];
        for (y, a) in space.chunks_mut(LANES).zip(a_log.chunks(LANES)) {
            (exp(V::<S>::load_part(a)) * V::splat(-std::f32::consts::LOG2_E)).store_part(y);
        }
        rates[..n * padded].fill(0.0);
        for c in 0..width {
            for j in 0..n {
                rates[j * padded + c] = space[c * n + j];
            }
        }
    }
}

/// See [`crate::Device::scan`].
pub(super) fn scan(cpu: &Cpu, y: &mut Buf, state: Option<&mut Buf>, saved: Option<&mut Buf>, a: Scan) {
    let arrays = Arrays::new(&a);
    assert_eq!(y.len(), a.t * a.e, "output of a scan");
    assert!(state.is_some() || a.spans.iter().all(|s| s.pos == 0), "a scan in mid-sequence needs its state");
    assert!(saved.as_ref().is_none_or(|s| s.len() == a.saved_len()), "saved states of a scan");
    let mut width = CHANNELS;
    while width > LANES && Columns::grouped(a.e, a.h, width).count() < 2 * cpu.pool.threads() {
        width /= 2;
    }
    let columns = Columns::grouped(a.e, a.h, width);
    let parts = (
        Tiles::columns(y.f32_mut(), a.e, columns),
        state.map(|s| Tiles::columns(s.f32_mut(), a.e, columns)),
        saved.map(|s| Tiles::columns(s.f32_mut(), a.e, columns)),
    );
    cpu.split(a.t * a.e * a.n, parts, |_, (y, state, saved)| {
        let size = a.n * y.width.next_multiple_of(LANES);
        scratch::floats(2 * size + 4 * STAGED * CHANNELS, |memory| {
            let (rates, rest) = memory.split_at_mut(size);
            let (s, staged) = rest.split_at_mut(size);
            let [dt, dtx, skip, gate] = staged.as_chunks_mut().0 else { unreachable!("four arrays") };
            let stage = Stage { dt, dtx, skip, gate };
            cpu.isa.run(Forward { y, state, saved, rates, s, stage, arrays });
        });
    });
}

struct Forward<'a> {
    y: Tile<'a, f32>,
    state: Option<Tile<'a, f32>>,
    saved: Option<Tile<'a, f32>>,
    /// `[n, padded]` each: decay rates, and the state.
    rates: &'a mut [f32],
    s: &'a mut [f32],
    stage: Stage<'a>,
    arrays: Arrays<'a>,
}

/// What a token brings to the scan, in rows of [`CHANNELS`].
struct Stage<'a> {
    dt: &'a mut [f32; STAGED * CHANNELS],
    /// `dt * x`
    dtx: &'a mut [f32; STAGED * CHANNELS],
    /// `D * x`
    skip: &'a mut [f32; STAGED * CHANNELS],
    /// `silu(z)`
    gate: &'a mut [f32; STAGED * CHANNELS],
}

impl Op for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let (a, width) = (self.arrays, self.y.width);
        let (n, padded) = (a.n, width.next_multiple_of(LANES));
        let first = self.y.group * (a.e / a.h) + self.y.start;
        a.rates::<S>(self.rates, self.s, first, width);
        let mut saved_rows = 0;
        for span in a.spans {
            self.s.fill(0.0);
            if let (Some(state), true) = (&self.state, span.pos > 0) {
                for j in 0..n {
                    self.s[j * padded..][..width].copy_from_slice(state.row(span.slot * n + j));
                }
            }
            for i in 0..span.len {
                if i.is_multiple_of(STAGED) {
                    self.stage::<S>(span.start + i, STAGED.min(span.len - i), first);
                }
                if let (Some(saved), true) = (&mut self.saved, i.is_multiple_of(SCAN_CHUNK)) {
                    for j in 0..n {
                        saved.row_mut(saved_rows + j).copy_from_slice(&self.s[j * padded..][..width]);
                    }
                    saved_rows += n;
                }
                self.token::<S>(span.start + i, i % STAGED);
            }
            if let Some(state) = &mut self.state {
                for j in 0..n {
                    state.row_mut(span.slot * n + j).copy_from_slice(&self.s[j * padded..][..width]);
                }
            }
        }
    }
}

impl Forward<'_> {
    /// Prepares tokens `t ..+ count`.
    #[inline(always)]
    fn stage<S: Tier>(&mut self, t: usize, count: usize, first: usize) {
        let (a, width) = (self.arrays, self.y.width);
        let (d, bias) = (&a.d_e[first..][..width], &a.dt_bias_e[first..][..width]);
        for i in 0..count {
            let at = (t + i) * a.e + first;
            let (x, dt, xz) = (&a.x_te[at..][..width], &a.dt_te[at..][..width], &a.xz[2 * at..][..2 * width]);
            for c in (0..width).step_by(LANES) {
                let x = V::<S>::load_part(&x[c..]);
                let dt = softplus(V::load_part(&dt[c..]) + V::load_part(&bias[c..]));
                let to = i * CHANNELS + c;
                dt.store(&mut self.stage.dt[to..]);
                (dt * x).store(&mut self.stage.dtx[to..]);
                (V::load_part(&d[c..]) * x).store(&mut self.stage.skip[to..]);
                silu(V::<S>::odds(&xz[2 * c..])).store(&mut self.stage.gate[to..]);
            }
        }
    }

    /// Takes the states past token `t`, the `i`-th that is staged.
    #[inline(always)]
    fn token<S: Tier>(&mut self, t: usize, i: usize) {
        let padded = self.y.width.next_multiple_of(LANES);
        let (b_n, c_n) = self.arrays.bc(t, self.y.group);
        let y = self.y.row_mut(t);
        for c in (0..y.len()).step_by(LANES) {
            let at = i * CHANNELS + c;
            let (dt, dtx) = (V::<S>::load(&self.stage.dt[at..]), V::load(&self.stage.dtx[at..]));
            let mut out = V::load(&self.stage.skip[at..]);
            let rows = self.rates.chunks_exact(padded).zip(self.s.chunks_exact_mut(padded));
            for ((rate, s), (b, c_j)) in rows.zip(b_n.iter().zip(c_n)) {
                let decay = exp2_decay(dt * V::load(&rate[c..]));
                let next = decay.fma(V::load(&s[c..]), dtx * V::splat(*b));
                next.store(&mut s[c..]);
                out = next.fma(V::splat(*c_j), out);
            }
            (out * V::load(&self.stage.gate[at..])).store_part(&mut y[c..]);
        }
    }
}
