//! Selective scan: channels in lanes, states in an inner loop, time outside.
//!
//! A chunk takes a block of channels through all spans. Its states and decay rates stay in L1; softplus,
//! exponentials, skip and gate happen in the same pass over the arrays, some tokens ahead.

use super::math::{LEAST_POWER, exp, exp2_decay, silu, softplus};
use super::split::{Columns, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V, prefetch_row};
use super::{Cpu, goes_past, scratch};
use crate::{Buf, SCAN_CHUNK, Scan, Span};

/// Most channels per chunk. Their rows are long enough for the processor to fetch ahead, and what is staged
/// of them, with states and rates, takes a quarter of the second-level cache.
const CHANNELS: usize = 1024;
/// The same for a few tokens, which stage little: rows of states, most of what is then read, may be longer.
const FEW_CHANNELS: usize = 2048;
/// Tokens that are staged together.
const STAGED: usize = SCAN_CHUNK;

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
        assert!(a.n > 0, "a scan without states");
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

    /// Asks for what token `t`, if there is one, brings to `width` channels from `first`.
    #[inline(always)]
    pub(super) fn prefetch<S: Tier>(&self, t: usize, first: usize, width: usize) {
        let row = t * self.e + first..t * self.e + first + width;
        if row.end <= self.x_te.len() {
            prefetch_row::<S>(&self.x_te[row.clone()]);
            prefetch_row::<S>(&self.dt_te[row.clone()]);
            prefetch_row::<S>(&self.xz[2 * row.start..2 * row.end]);
        }
    }

    /// B and C of a head at token `t`, `[n]` each.
    #[inline(always)]
    pub(super) fn bc(&self, t: usize, head: usize) -> (&'a [f32], &'a [f32]) {
        let at = (t * self.h + head) * (self.r + 2 * self.n) + self.r;
        self.p[at..][..2 * self.n].split_at(self.n)
    }

    /// Writes `-exp(a_log) * log2 e` of `width` channels from `first`, `n` vectors per 16 channels: the decay
    /// over a step is `2^(dt * rate)`. Lanes beyond the last channel are harmless.
    #[inline(always)]
    pub(super) fn rates<S: Tier>(&self, rates: &mut [f32], first: usize, width: usize) {
        let size = self.n * LANES;
        let a_log = self.a_log_en[first * self.n..][..width * self.n].chunks(size);
        for (rates, a_log) in rates.chunks_exact_mut(size).zip(a_log) {
            for from in (0..self.n).step_by(LANES) {
                let mut rows = [V::<S>::zero(); LANES];
                for (row, a_log) in rows.iter_mut().zip(a_log.chunks_exact(self.n)) {
                    let states = &a_log[from..self.n.min(from + LANES)];
                    *row = exp(V::load_part(states)) * V::splat(-std::f32::consts::LOG2_E);
                }
                V::transpose(&mut rows);
                for (row, rates) in rows.iter().zip(rates[from * LANES..].chunks_exact_mut(LANES)) {
                    row.store(rates);
                }
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
    let columns = columns(&a, cpu.pool.threads());
    let y = y.f32_mut();
    let past = goes_past(y);
    let parts = (
        Tiles::columns(y, a.e, columns),
        state.map(|s| Tiles::columns(s.f32_mut(), a.e, columns)),
        saved.map(|s| Tiles::columns(s.f32_mut(), a.e * a.n, columns.scaled(a.n))),
    );
    cpu.split(a.t * a.e * a.n, parts, |_, (y, state, saved)| {
        let (vectors, bc) = (y.width.div_ceil(LANES), STAGED * 2 * a.n);
        let size = vectors * a.n * LANES;
        scratch::floats(2 * size + vectors * STAGED * ITEM + bc, |memory| {
            let (rates, rest) = memory.split_at_mut(size);
            let (s, rest) = rest.split_at_mut(size);
            let (bc, items) = rest.split_at_mut(bc);
            cpu.isa.run(Forward { y, past, state, saved, rates, s, items, bc, arrays });
        });
    });
}

/// Blocks of channels of nearly equal width, a few for each thread.
fn columns(a: &Scan, threads: usize) -> Columns {
    let group = a.e / a.h;
    let few = (2 * threads).div_ceil(a.h).min(group.div_ceil(LANES));
    let most = if a.t < STAGED { FEW_CHANNELS } else { CHANNELS };
    let parts = few.max(group.div_ceil(most)).max(1);
    Columns::grouped(a.e, a.h, group.div_ceil(parts).next_multiple_of(LANES))
}

struct Forward<'a> {
    y: Tile<'a, f32>,
    /// Whether `y` is written past the caches.
    past: bool,
    state: Option<Tile<'a, f32>>,
    saved: Option<Tile<'a, f32>>,
    /// Decay rates, and the state: per 16 channels `n` vectors each.
    rates: &'a mut [f32],
    s: &'a mut [f32],
    /// What tokens bring, [`STAGED`] of [`ITEM`] floats per 16 channels.
    items: &'a mut [f32],
    /// B and C of the tokens, `2 n` each.
    bc: &'a mut [f32],
    arrays: Arrays<'a>,
}

/// Floats that a token brings to 16 channels: `dt`, the signal and `silu(z)`.
const ITEM: usize = 3 * LANES;

impl Op for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let a = self.arrays;
        let first = self.y.group * (a.e / a.h) + self.y.start;
        a.rates::<S>(self.rates, first, self.y.width);
        let mut chunk = 0;
        for span in a.spans {
            self.begin::<S>(span);
            for i in (0..span.len).step_by(STAGED) {
                if let Some(saved) = &mut self.saved {
                    save::<S>(saved.row_mut(chunk), self.s, a.n);
                    chunk += 1;
                }
                let (t, count) = (span.start + i, STAGED.min(span.len - i));
                self.stage::<S>(t, count, first);
                for v in 0..self.y.width.div_ceil(LANES) {
                    self.vector::<S>(v, t, count);
                }
            }
            self.end::<S>(span);
        }
    }
}

/// Copies states to the row of a chunk, where `n` runs of as many as 16 channels stand one after the other.
#[inline(always)]
fn save<S: Tier>(saved: &mut [f32], s: &[f32], n: usize) {
    for (saved, s) in saved.chunks_mut(n * LANES).zip(s.chunks_exact(n * LANES)) {
        let width = saved.len() / n;
        for (saved, s) in saved.chunks_exact_mut(width).zip(s.chunks_exact(LANES)) {
            V::<S>::load(s).store_part(saved);
        }
    }
}

/// The reverse of [`save`].
#[inline(always)]
pub(super) fn restore<S: Tier>(s: &mut [f32], saved: &[f32], n: usize) {
    for (saved, s) in saved.chunks(n * LANES).zip(s.chunks_exact_mut(n * LANES)) {
        let width = saved.len() / n;
        for (saved, s) in saved.chunks_exact(width).zip(s.chunks_exact_mut(LANES)) {
            V::<S>::load_part(saved).store(s);
        }
    }
}

/// Whether, with steps as long as `longest`, a decay would be too small for [`exp2_decay`].
#[inline(always)]
pub(super) fn reaches_down<S: Tier>(longest: V<S>, rates: &[f32]) -> bool {
    let mut lowest = V::<S>::zero();
    for rate in rates.chunks_exact(LANES) {
        lowest = V::load(rate).smaller(lowest);
    }
    // Rounding keeps order, so no product is below this one.
    (V::splat(LEAST_POWER) - longest * lowest).max() > 0.0
}

/// The decay over a step, clamped where [`reaches_down`] says so.
#[inline(always)]
pub(super) fn decay<S: Tier, const CLAMP: bool>(dt: V<S>, rate: V<S>) -> V<S> {
    let power = dt * rate;
    exp2_decay(if CLAMP { V::splat(LEAST_POWER).larger(power) } else { power })
}

impl Forward<'_> {
    /// Sets the state before the first token of a span.
    #[inline(always)]
    fn begin<S: Tier>(&mut self, span: &Span) {
        self.s.fill(0.0);
        let n = self.arrays.n;
        if let (Some(state), true) = (&self.state, span.pos > 0) {
            for j in 0..n {
                let row = state.row(span.slot * n + j);
                for (s, row) in self.s.chunks_exact_mut(n * LANES).zip(row.chunks(LANES)) {
                    V::<S>::load_part(row).store(&mut s[j * LANES..]);
                }
            }
        }
    }

    /// Leaves the state after the last token of a span in its slot.
    #[inline(always)]
    fn end<S: Tier>(&mut self, span: &Span) {
        let n = self.arrays.n;
        if let Some(state) = &mut self.state {
            for j in 0..n {
                let row = state.row_mut(span.slot * n + j);
                for (s, row) in self.s.chunks_exact(n * LANES).zip(row.chunks_mut(LANES)) {
                    V::<S>::load(&s[j * LANES..]).store_part(row);
                }
            }
        }
    }

    /// Prepares tokens `t ..+ count`.
    #[inline(always)]
    fn stage<S: Tier>(&mut self, t: usize, count: usize, first: usize) {
        let (a, width) = (self.arrays, self.y.width);
        let bias = &a.dt_bias_e[first..][..width];
        for i in 0..count {
            let at = (t + i) * a.e + first;
            a.prefetch::<S>(t + i + 1, first, width);
            let (x, dt, xz) = (&a.x_te[at..][..width], &a.dt_te[at..][..width], &a.xz[2 * at..][..2 * width]);
            for (v, c) in (0..width).step_by(LANES).enumerate() {
                let item = &mut self.items[(v * STAGED + i) * ITEM..][..ITEM];
                softplus(V::<S>::load_part(&dt[c..]) + V::load_part(&bias[c..])).store(item);
                V::<S>::load_part(&x[c..]).store(&mut item[LANES..]);
                silu(V::<S>::odds(&xz[2 * c..])).store(&mut item[2 * LANES..]);
            }
            let (b, c) = a.bc(t + i, self.y.group);
            let (b_to, c_to) = self.bc[i * 2 * a.n..][..2 * a.n].split_at_mut(a.n);
            b_to.copy_from_slice(b);
            c_to.copy_from_slice(c);
        }
    }

    /// Takes the states of 16 channels past tokens `t ..+ count`, which are staged.
    #[inline(always)]
    fn vector<S: Tier>(&mut self, v: usize, t: usize, count: usize) {
        let n = self.arrays.n;
        let mut longest = V::<S>::zero();
        for item in self.items[v * STAGED * ITEM..].chunks_exact(ITEM).take(count) {
            longest = V::load(item).larger(longest);
        }
        let clamp = reaches_down(longest, &self.rates[v * n * LANES..][..n * LANES]);
        // The number of states of every published model is known to the compiler.
        match (n, clamp) {
            (16, false) => self.tokens::<S, false>(16, v, t, count),
            (16, true) => self.tokens::<S, true>(16, v, t, count),
            (_, _) => self.tokens::<S, true>(n, v, t, count),
        }
    }

    #[inline(always)]
    fn tokens<S: Tier, const CLAMP: bool>(&mut self, n: usize, v: usize, t: usize, count: usize) {
        let size = n * LANES;
        let rates = self.rates[v * size..][..size].as_chunks().0;
        let s = self.s[v * size..][..size].as_chunks_mut().0;
        let items = self.items[v * STAGED * ITEM..].as_chunks::<ITEM>().0;
        let a = self.arrays;
        let first = self.y.group * (a.e / a.h) + self.y.start;
        let d = V::<S>::load_part(&a.d_e[first + v * LANES..first + self.y.width]);
        for (i, item) in items[..count].iter().enumerate() {
            let (dt, x) = (V::<S>::load(item), V::load(&item[LANES..]));
            let dtx = dt * x;
            let mut out = d * x;
            let (b_n, c_n) = self.bc[i * 2 * n..][..2 * n].split_at(n);
            for ((rate, s), (b, c)) in rates.iter().zip(&mut *s).zip(b_n.iter().zip(c_n)) {
                let next = decay::<S, CLAMP>(dt, V::of(rate)).fma(V::of(s), dtx * V::splat(*b));
                next.to(s);
                out = next.fma(V::splat(*c), out);
            }
            let y = self.y.row_mut(t + i);
            (out * V::load(&item[2 * LANES..])).put(&mut y[v * LANES..], self.past);
        }
    }
}
