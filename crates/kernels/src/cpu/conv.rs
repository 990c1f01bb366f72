//! Causal depthwise convolution, with channels in lanes.
//!
//! A chunk first lays the signal of its channels, which is every other column of `xz`, side by side with
//! `k - 1` rows of history above it; the rest is then plain rows.

use super::math::{activate, for_act, slope};
use super::split::{Columns, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V};
use super::{Cpu, goes_past, scratch};
use crate::{Act, Buf, Conv, ConvAt, Span};

/// Rows per chunk.
const ROW_BLOCK: usize = 32;
/// Most channels per chunk. Their rows are long enough for the processor to fetch ahead, and the chunk fits in
/// the second-level cache with room to spare.
const CHANNELS: usize = 1024;
/// Tokens per partial sum of the backward pass.
const BWD_BLOCK: usize = 64;

fn check(y: &Buf, a: &Conv) {
    assert!(y.len() == a.t * a.e && a.xz.len() == 2 * a.t * a.e, "arrays of a convolution");
    assert!(a.w_ek.len() == a.e * a.k && a.bias_e.is_none_or(|b| b.len() == a.e), "taps of a convolution");
    assert!(a.k > 0 && a.spans.iter().all(|s| s.start + s.len <= a.t), "spans of a convolution");
}

/// See [`crate::Device::conv`].
pub(super) fn conv(cpu: &Cpu, y: &mut Buf, window: Option<&mut Buf>, a: Conv) {
    check(y, &a);
    let pure = a.spans.iter().all(|s| s.pos == 0);
    assert!(pure || window.is_some(), "a convolution in mid-sequence needs its window");
    let channels = Channels::new(&a);
    let past = window.as_ref().map(|w| w.f32());
    let y = y.f32_mut();
    let y_past = goes_past(y);
    let tiles = Tiles::new(y, a.e, ROW_BLOCK, Columns::all(a.e, width(cpu, a.e)));
    cpu.split(a.t * a.e * a.k, tiles, |_, y: Tile<f32>| {
        let padded = y.width.next_multiple_of(LANES);
        scratch::floats((y.rows + a.k - 1) * padded, |signal| {
            scratch::floats((a.k + 1) * padded, |taps| {
                cpu.isa.run(Forward { y, y_past, signal, taps, past, channels });
            });
        });
    });
    if let Some(window) = window {
        move_window(cpu, window.f32_mut(), channels);
    }
}

/// Channels per chunk where chunks have all tokens: a few for each thread.
fn width(cpu: &Cpu, e: usize) -> usize {
    e.div_ceil(2 * cpu.pool.threads()).clamp(LANES, CHANNELS).next_multiple_of(LANES)
}

/// Leaves the last `k - 1` inputs of each span in its slot.
fn move_window(cpu: &Cpu, window: &mut [f32], a: Channels) {
    let tiles = Tiles::columns(window, a.e, Columns::all(a.e, width(cpu, a.e)));
    cpu.split(a.spans.len() * (a.k - 1) * a.e, tiles, |_, window: Tile<f32>| {
        cpu.isa.run(Move { window, channels: a });
    });
}

struct Move<'a> {
    /// `[slots * (k - 1), width]`
    window: Tile<'a, f32>,
    channels: Channels<'a>,
}

impl Op for Move<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let (a, keep) = (self.channels, self.channels.k - 1);
        for s in a.spans {
            for j in 0..keep {
                // Input `at` of the span, `keep` later than counted; the window holds the first `keep` of them.
                let (at, row) = (s.len + j, s.slot * keep + j);
                if at >= keep {
                    let xz = &a.xz[((s.start + at - keep) * a.e + self.window.start) * 2..];
                    let to = self.window.row_mut(row);
                    for (to, xz) in to.chunks_mut(LANES).zip(xz.chunks(2 * LANES)) {
                        V::<S>::evens(xz).store_part(to);
                    }
                } else if s.pos > 0 {
                    self.window.copy_row(row, s.slot * keep + at);
                } else {
                    self.window.row_mut(row).fill(0.0);
                }
            }
        }
    }
}

/// What forward and backward read.
#[derive(Clone, Copy)]
struct Channels<'a> {
    e: usize,
    k: usize,
    act: Act,
    spans: &'a [Span],
    xz: &'a [f32],
    w_ek: &'a [f32],
    bias_e: Option<&'a [f32]>,
}

impl<'a> Channels<'a> {
    fn new(a: &Conv<'a>) -> Self {
        let bias_e = a.bias_e.map(Buf::f32);
        let (xz, w_ek) = (a.xz.f32(), a.w_ek.f32());
        Channels { e: a.e, k: a.k, act: a.act, spans: a.spans, xz, w_ek, bias_e }
    }

    /// Writes the taps of `width` channels as `k` rows, and the bias as one more, padded with zeros.
    #[inline(always)]
    fn taps<S: Tier>(&self, taps: &mut [f32], start: usize, width: usize) {
        let padded = taps.len() / (self.k + 1);
        taps.fill(0.0);
        let w = &self.w_ek[start * self.k..][..width * self.k];
        // Four taps is what every published model has, and a decode step does little else.
        let whole = if self.k == 4 { width - width % LANES } else { 0 };
        for (w, c) in w.as_chunks::<{ 4 * LANES }>().0.iter().zip((0..whole).step_by(LANES)) {
            for (j, tap) in by_four::<S>(w).into_iter().enumerate() {
                tap.store(&mut taps[j * padded + c..]);
            }
        }
        for c in whole..width {
            for j in 0..self.k {
                taps[j * padded + c] = w[c * self.k + j];
            }
        }
        if let Some(bias) = self.bias_e {
            taps[self.k * padded..][..width].copy_from_slice(&bias[start..][..width]);
        }
    }

    /// Writes inputs `from ..` of a span, counted `k - 1` later than tokens, one per row of `signal`.
    #[inline(always)]
    fn signal<S: Tier>(&self, signal: &mut [f32], padded: usize, s: &Span, from: usize, past: Past) {
        let keep = self.k - 1;
        for (row, at) in signal.chunks_exact_mut(padded).zip(from..) {
            if at >= keep {
                let xz = &self.xz[((s.start + at - keep) * self.e + past.start) * 2..][..2 * past.width];
                for (row, xz) in row.chunks_exact_mut(LANES).zip(xz.chunks(2 * LANES)) {
                    V::<S>::evens(xz).store(row);
                }
                continue;
            }
            row.fill(0.0);
            if let (Some(window), true) = (past.window, s.pos > 0) {
                let old = &window[(s.slot * keep + at) * self.e + past.start..][..past.width];
                row[..past.width].copy_from_slice(old);
            }
        }
    }
}

/// Every fourth element, from each of the first four.
#[inline(always)]
fn by_four<S: Tier>(x: &[f32; 4 * LANES]) -> [V<S>; 4] {
    let (low, high) = x.split_at(2 * LANES);
    let (mut evens, mut odds) = ([0.0; 2 * LANES], [0.0; 2 * LANES]);
    V::<S>::evens(low).store(&mut evens);
    V::<S>::evens(high).store(&mut evens[LANES..]);
    V::<S>::odds(low).store(&mut odds);
    V::<S>::odds(high).store(&mut odds[LANES..]);
    [V::evens(&evens), V::evens(&odds), V::odds(&evens), V::odds(&odds)]
}

/// The channels of a chunk and the window they continue from.
#[derive(Clone, Copy)]
struct Past<'a> {
    start: usize,
    width: usize,
    window: Option<&'a [f32]>,
}

/// Bias and taps times the `k` rows of `signal` from `row` on, for 16 channels from `c`.
#[inline(always)]
fn tap_sum<S: Tier>(taps: &[f32], signal: &[f32], k: usize, padded: usize, row: usize, c: usize) -> V<S> {
    let mut sum = V::load(&taps[k * padded + c..]);
    for j in 0..k {
        let x = V::load(&signal[(row + j) * padded + c..]);
        sum = V::load(&taps[j * padded + c..]).fma(x, sum);
    }
    sum
}

struct Forward<'a> {
    y: Tile<'a, f32>,
    /// Whether `y` is written past the caches.
    y_past: bool,
    /// `[k - 1 + rows, padded width]`
    signal: &'a mut [f32],
    /// `[k + 1, padded width]`
    taps: &'a mut [f32],
    past: Option<&'a [f32]>,
    channels: Channels<'a>,
}

impl Op for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        // The number of taps of every published model is known to the compiler.
        match self.channels.k {
            4 => for_act!(self.channels.act, ACT => self.spans::<S>(ACT, 4)),
            k => for_act!(self.channels.act, ACT => self.spans::<S>(ACT, k)),
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn spans<S: Tier>(&mut self, act: Act, k: usize) {
        let a = self.channels;
        let padded = self.y.width.next_multiple_of(LANES);
        a.taps::<S>(self.taps, self.y.start, self.y.width);
        let (first, last) = (self.y.row, self.y.row + self.y.rows);
        let skip = a.spans.partition_point(|s| s.start + s.len <= first);
        for s in a.spans[skip..].iter().take_while(|s| s.start < last) {
            let (from, to) = (first.max(s.start), last.min(s.start + s.len));
            let signal = &mut self.signal[..(to - from + k - 1) * padded];
            let past = Past { start: self.y.start, width: self.y.width, window: self.past };
            a.signal::<S>(signal, padded, s, from - s.start, past);
            for row in 0..to - from {
                let y = self.y.row_mut(from + row - first);
                for c in (0..y.len()).step_by(LANES) {
                    let sum = tap_sum::<S>(self.taps, signal, k, padded, row, c);
                    activate(act, sum).put(&mut y[c..], self.y_past);
                }
            }
        }
    }
}

/// See [`crate::Device::conv_bwd`].
pub(super) fn conv_bwd(cpu: &Cpu, dxz: &mut Buf, dw_flat: &mut Buf, at: ConvAt, dy: &Buf, a: Conv) {
    check(dy, &a);
    assert!(a.spans.iter().all(|s| s.pos == 0), "gradients start at the beginning of a sequence");
    assert_eq!(dxz.len(), a.xz.len(), "gradient of a convolution");
    let bias = at.bias.map_or(0..0, |b| b..b + a.e);
    let ranges = [at.w..at.w + a.e * a.k, bias];
    let [dw, dbias] = dw_flat.f32_mut().get_disjoint_mut(ranges).expect("gradients of a convolution overlap");
    let dbias = at.bias.map(|_| dbias);
    let (channels, dy) = (Channels::new(&a), dy.f32());
    let columns = Columns::all(a.e, width(cpu, a.e));
    let parts = (
        Tiles::columns(dxz.f32_mut(), 2 * a.e, columns.scaled(2)),
        Tiles::columns(dw, a.e * a.k, columns.scaled(a.k)),
        dbias.map(|d| Tiles::columns(d, a.e, columns)),
    );
    cpu.split(2 * a.t * a.e * a.k, parts, |_, (dxz, dw, dbias)| {
        let padded = (dxz.width / 2).next_multiple_of(LANES);
        let rows = BWD_BLOCK + 2 * (a.k - 1);
        scratch::floats(2 * rows * padded, |memory| {
            scratch::floats(3 * (a.k + 1) * padded, |taps| {
                cpu.isa.run(Backward { dxz, dw, dbias, dy, memory, taps, channels, padded });
            });
        });
    });
}

struct Backward<'a> {
    dxz: Tile<'a, f32>,
    dw: Tile<'a, f32>,
    dbias: Option<Tile<'a, f32>>,
    dy: &'a [f32],
    /// Signal, and gradient before the activation; `[BWD_BLOCK + 2 (k - 1), padded]` each.
    memory: &'a mut [f32],
    /// Taps and bias, sums of their gradients in a block, and over all blocks: `[k + 1, padded]` each.
    taps: &'a mut [f32],
    channels: Channels<'a>,
    padded: usize,
}

impl Op for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        // The number of taps of every published model is known to the compiler.
        match self.channels.k {
            4 => for_act!(self.channels.act, ACT => self.spans::<S>(ACT, 4)),
            k => for_act!(self.channels.act, ACT => self.spans::<S>(ACT, k)),
        }
    }
}

impl Backward<'_> {
    #[inline(always)]
    fn spans<S: Tier>(&mut self, act: Act, k: usize) {
        let (a, padded) = (self.channels, self.padded);
        let (start, width) = (self.dxz.start / 2, self.dxz.width / 2);
        let size = (k + 1) * padded;
        a.taps::<S>(&mut self.taps[..size], start, width);
        self.taps[size..].fill(0.0);
        for s in a.spans {
            for from in (0..s.len).step_by(BWD_BLOCK) {
                self.block::<S>(act, k, s, from);
                let (block, total) = self.taps[size..].split_at_mut(size);
                for (total, block) in total.iter_mut().zip(block) {
                    *total += std::mem::take(block);
                }
            }
        }
        let total = &self.taps[2 * size..];
        let dw = self.dw.row_mut(0);
        for c in 0..width {
            for j in 0..k {
                dw[c * k + j] += total[j * padded + c];
            }
        }
        if let Some(dbias) = &mut self.dbias {
            for (d, total) in dbias.row_mut(0).iter_mut().zip(&total[k * padded..]) {
                *d += total;
            }
        }
    }

    /// Tokens `from ..` of a span, up to [`BWD_BLOCK`] of them. The gradient of an input reaches `k - 1`
    /// tokens ahead, so that of the sums is computed for as many tokens of the next block too.
    #[inline(always)]
    fn block<S: Tier>(&mut self, act: Act, k: usize, s: &Span, from: usize) {
        let (a, padded) = (self.channels, self.padded);
        let (start, width) = (self.dxz.start / 2, self.dxz.width / 2);
        let size = (k + 1) * padded;
        let to = s.len.min(from + BWD_BLOCK);
        let ahead = s.len.min(to + k - 1);
        let (signal, dsum) = self.memory.split_at_mut((BWD_BLOCK + 2 * (k - 1)) * padded);
        let signal = &mut signal[..(ahead - from + k - 1) * padded];
        a.signal::<S>(signal, padded, s, from, Past { start, width, window: None });
        let (taps, dtaps) = self.taps.split_at_mut(size);
        for row in 0..ahead - from {
            let dy = &self.dy[(s.start + from + row) * a.e + start..][..width];
            for c in (0..padded).step_by(LANES) {
                let sum = tap_sum::<S>(taps, signal, k, padded, row, c);
                let d = slope(act, sum) * V::load_part(&dy[c..]);
                d.store(&mut dsum[row * padded + c..]);
                if from + row < to {
                    for j in 0..k {
                        let dtap = &mut dtaps[j * padded + c..];
                        let x = V::load(&signal[(row + j) * padded + c..]);
                        d.fma(x, V::load(dtap)).store(dtap);
                    }
                    d.add_to(&mut dtaps[k * padded + c..]);
                }
            }
        }
        for row in 0..to - from {
            let dxz = self.dxz.row_mut(s.start + from + row);
            let reach = k.min(ahead - from - row);
            for c in (0..padded).step_by(LANES) {
                let mut dx = V::<S>::zero();
                for m in 0..reach {
                    let tap = V::load(&taps[(k - 1 - m) * padded + c..]);
                    dx = tap.fma(V::load(&dsum[(row + m) * padded + c..]), dx);
                }
                dx.add_to_evens(&mut dxz[(2 * c).min(2 * width)..]);
            }
        }
    }
}
