//! Backward pass of the selective scan.
//!
//! Spans are cut into the chunks whose first state the forward pass saved. A chunk's states and decays are
//! computed again and kept, in L2, while the gradient runs back through it. Sums over channels, which dB
//! and dC need, are taken within blocks of channels and then over the blocks in order, so they do not
//! depend on the threads. With `g` the gradient of the state after a token (training.md 2.2 has them all):
//!
//! ```text
//! g_t = dy_t C_t + a_{t+1} g_{t+1}       dB_t = sum_c g_t dt_t x_t        dC_t = sum_c dy_t s_t
//! dx_t = D dy_t + dt_t sum_n g_t B_t     ddt_t = sum_n g_t (B_t x_t + A a_t s_{t-1})
//! ```

use super::math::{exp2_decay, sigmoid, silu_slope, softplus};
use super::scan::Arrays;
use super::split::{Columns, Runs, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V};
use super::{Cpu, scratch};
use crate::{Buf, SCAN_CHUNK, Scan, ScanAt, ScanGrads, Span};

/// Channels whose dB and dC are added up before they leave a thread.
const BLOCK: usize = 128;
/// Channels that go through time together: with 16 states, states and decays of a chunk are 260 KiB.
const STRIP: usize = 32;

/// See [`crate::Device::scan_bwd`].
pub(super) fn scan_bwd(
    cpu: &Cpu,
    g: ScanGrads,
    dw_flat: &mut Buf,
    at: ScanAt,
    dy: &Buf,
    saved: &Buf,
    a: Scan,
) {
    let arrays = Arrays::new(&a);
    let te = a.t * a.e;
    assert!(a.spans.iter().all(|s| s.pos == 0), "gradients start at the beginning of a sequence");
    assert!(g.dx_te.len() == te && g.ddt_te.len() == te && dy.len() == te, "gradients of a scan");
    assert!(g.dxz.len() == 2 * te && g.dp.len() == a.p.len(), "gradients of a scan");
    assert_eq!(saved.len(), a.saved_len(), "saved states of a scan");
    let ranges = [at.a_log..at.a_log + a.e * a.n, at.d..at.d + a.e, at.dt_bias..at.dt_bias + a.e];
    let [da_log, dd, dbias] =
        dw_flat.f32_mut().get_disjoint_mut(ranges).expect("gradients of a scan overlap");
    let columns = Columns::grouped(a.e, a.h, BLOCK);
    let (dy, saved) = (dy.f32(), saved.f32());
    scratch::floats(columns.count() * a.t * 2 * a.n, |dbc| {
        let parts = (
            Tiles::columns(g.dx_te.f32_mut(), a.e, columns),
            Tiles::columns(g.ddt_te.f32_mut(), a.e, columns),
            Tiles::columns(g.dxz.f32_mut(), 2 * a.e, columns.scaled(2)),
            Tiles::columns(da_log, a.e * a.n, columns.scaled(a.n)),
            Tiles::columns(dd, a.e, columns),
            Tiles::columns(dbias, a.e, columns),
            Runs::new(&mut *dbc, (a.t * 2 * a.n).max(1)),
        );
        if a.t * a.n == 0 {
            return;
        }
        cpu.split(4 * a.t * a.e * a.n, parts, |_, (dx, ddt, dxz, da_log, dd, dbias, dbc)| {
            scratch::floats(Memory::len(a.n), |memory| {
                let grads = Grads { dx, ddt, dxz, da_log, dd, dbias, dbc };
                cpu.isa.run(Backward { grads, memory: Memory::new(memory, a.n), dy, saved, arrays });
            });
        });
        add_blocks(cpu, g.dp, dbc, &a, columns.count() / a.h);
    });
}

/// Adds the blocks' dB and dC, `[h * blocks, t, 2n]`, to `dp`.
fn add_blocks(cpu: &Cpu, dp: &mut Buf, dbc: &[f32], a: &Scan, blocks: usize) {
    let (n2, width) = (2 * a.n, a.r + 2 * a.n);
    cpu.rows(dp.f32_mut(), a.h * width, |t, dp| {
        for (head, dp) in dp.chunks_exact_mut(width).enumerate() {
            for (j, dp) in dp[a.r..].iter_mut().enumerate() {
                let part = |b: usize| dbc[((head * blocks + b) * a.t + t) * n2 + j];
                *dp += (1..blocks).fold(part(0), |sum, b| sum + part(b));
            }
        }
    });
}

/// The outputs of a block of channels.
struct Grads<'a> {
    dx: Tile<'a, f32>,
    ddt: Tile<'a, f32>,
    dxz: Tile<'a, f32>,
    da_log: Tile<'a, f32>,
    dd: Tile<'a, f32>,
    dbias: Tile<'a, f32>,
    /// `[t, 2n]`
    dbc: &'a mut [f32],
}

/// Working memory of one strip of channels; rows are [`STRIP`] wide.
struct Memory<'a> {
    /// `[n]` rows each: decay rates (base 2), gradient of the state, sums of the gradient of the rates over
    /// a chunk and in all.
    rates: &'a mut [f32],
    g: &'a mut [f32],
    da_chunk: &'a mut [f32],
    da: &'a mut [f32],
    /// `[n]` rows of a single vector each, rounded up to 16: the terms of dB and dC of one token.
    db: &'a mut [f32],
    dc: &'a mut [f32],
    /// States before and after each token, `[SCAN_CHUNK + 1, n]` rows.
    states: &'a mut [f32],
    /// `[SCAN_CHUNK, n]` rows.
    decays: &'a mut [f32],
    /// What a token brings, and in the end what it gets: `[SCAN_CHUNK]` rows each, so that the rows of the
    /// arrays, which are pages apart, are loaded and stored in loops that do nothing else.
    dt: &'a mut [f32],
    /// The signal, then its gradient.
    x: &'a mut [f32],
    /// The derivative of softplus, then the gradient of the raw dt.
    bend: &'a mut [f32],
    /// The gradient of the output before the gate.
    dy: &'a mut [f32],
    /// The factor of that output in the gradient of the gate, then the gradient.
    dz: &'a mut [f32],
    /// Sums of dD and of the gradient of the bias: two rows.
    dd: &'a mut [f32],
    dbias: &'a mut [f32],
}

impl<'a> Memory<'a> {
    fn sizes(n: usize) -> [usize; 15] {
        let (rows, lanes) = (n * STRIP, n.next_multiple_of(LANES) * LANES);
        let (tokens, chunk) = (SCAN_CHUNK * STRIP, SCAN_CHUNK * n * STRIP);
        [
            rows,
            rows,
            rows,
            rows,
            lanes,
            lanes,
            chunk + rows,
            chunk,
            tokens,
            tokens,
            tokens,
            tokens,
            tokens,
            STRIP,
            STRIP,
        ]
    }

    fn len(n: usize) -> usize {
        Memory::sizes(n).iter().sum()
    }

    fn new(mut memory: &'a mut [f32], n: usize) -> Self {
        let parts = Memory::sizes(n).map(|len| {
            let (part, rest) = std::mem::take(&mut memory).split_at_mut(len);
            memory = rest;
            part
        });
        let [rates, g, da_chunk, da, db, dc, states, decays, dt, x, bend, dy, dz, dd, dbias] = parts;
        Memory { rates, g, da_chunk, da, db, dc, states, decays, dt, x, bend, dy, dz, dd, dbias }
    }
}

struct Backward<'a> {
    grads: Grads<'a>,
    memory: Memory<'a>,
    dy: &'a [f32],
    saved: &'a [f32],
    arrays: Arrays<'a>,
}

/// A strip of channels within the block and in all.
#[derive(Clone, Copy)]
struct Strip {
    /// First channel, counted from the block's.
    at: usize,
    /// First channel of all.
    first: usize,
    width: usize,
    head: usize,
}

/// Tokens `start ..+ len` of the packed rows, whose first state is block `saved`.
#[derive(Clone, Copy)]
struct Chunk {
    start: usize,
    len: usize,
    saved: usize,
}

impl Op for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        let a = self.arrays;
        let (head, block) = (self.grads.dx.group, self.grads.dx.start);
        self.grads.dbc.fill(0.0);
        for at in (0..self.grads.dx.width).step_by(STRIP) {
            let width = STRIP.min(self.grads.dx.width - at);
            let strip = Strip { at, first: head * (a.e / a.h) + block + at, width, head };
            self.strip::<S>(strip);
        }
    }
}

impl Backward<'_> {
    #[inline(always)]
    fn strip<S: Tier>(&mut self, strip: Strip) {
        let (a, n) = (self.arrays, self.arrays.n);
        let m = &mut self.memory;
        m.da.fill(0.0);
        m.da_chunk.fill(0.0);
        m.db.fill(0.0);
        m.dc.fill(0.0);
        m.dd.fill(0.0);
        m.dbias.fill(0.0);
        rates::<S>(&a, m, strip);
        let mut saved = 0;
        for span in a.spans {
            self.memory.g.fill(0.0);
            let chunks = span.len.div_ceil(SCAN_CHUNK);
            for i in (0..chunks).rev() {
                self.chunk::<S>(strip, chunk_of(span, i, saved));
            }
            saved += chunks;
        }
        let m = &self.memory;
        let da_log = self.grads.da_log.row_mut(0);
        for c in 0..strip.width {
            for j in 0..n {
                // dA / d(a_log) = A; the rates are A in base 2.
                let rate = m.rates[j * STRIP + c] * std::f32::consts::LN_2;
                da_log[(strip.at + c) * n + j] += m.da[j * STRIP + c] * rate;
            }
        }
        for (d, sum) in self.grads.dd.row_mut(0)[strip.at..].iter_mut().zip(&m.dd[..strip.width]) {
            *d += sum;
        }
        for (d, sum) in self.grads.dbias.row_mut(0)[strip.at..].iter_mut().zip(&m.dbias[..strip.width]) {
            *d += sum;
        }
    }

    #[inline(always)]
    fn chunk<S: Tier>(&mut self, strip: Strip, chunk: Chunk) {
        let n = self.arrays.n;
        for j in 0..n {
            let row = &mut self.memory.states[j * STRIP..][..STRIP];
            row.fill(0.0);
            let at = (chunk.saved * n + j) * self.arrays.e + strip.first;
            row[..strip.width].copy_from_slice(&self.saved[at..][..strip.width]);
        }
        self.stage::<S>(strip, chunk);
        for i in 0..chunk.len {
            self.again::<S>(strip, chunk.start + i, i);
        }
        for i in (0..chunk.len).rev() {
            self.back::<S>(strip, chunk.start + i, i);
        }
        self.deliver::<S>(strip, chunk);
        for (total, part) in self.memory.da.iter_mut().zip(&mut *self.memory.da_chunk) {
            *total += std::mem::take(part);
        }
    }

    /// Loads what the tokens of a chunk bring.
    #[inline(always)]
    fn stage<S: Tier>(&mut self, strip: Strip, chunk: Chunk) {
        let (a, m) = (self.arrays, &mut self.memory);
        let bias = &a.dt_bias_e[strip.first..][..strip.width];
        for i in 0..chunk.len {
            let at = (chunk.start + i) * a.e + strip.first;
            let row = at..at + strip.width;
            let (x, dt, dy) = (&a.x_te[row.clone()], &a.dt_te[row.clone()], &self.dy[row]);
            let xz = &a.xz[2 * at..][..2 * strip.width];
            for c in (0..strip.width).step_by(LANES) {
                let to = i * STRIP + c;
                let raw = V::<S>::load_part(&dt[c..]) + V::load_part(&bias[c..]);
                softplus(raw).store(&mut m.dt[to..]);
                V::splat(20.0).below(raw, V::splat(1.0), sigmoid(raw)).store(&mut m.bend[to..]);
                V::<S>::load_part(&x[c..]).store(&mut m.x[to..]);
                let (z, dy) = (V::odds(&xz[2 * c..]), V::<S>::load_part(&dy[c..]));
                let gate = sigmoid(z);
                (dy * (z * gate)).store(&mut m.dy[to..]);
                (dy * silu_slope(z, gate)).store(&mut m.dz[to..]);
            }
        }
    }

    /// Adds what the tokens of a chunk get.
    #[inline(always)]
    fn deliver<S: Tier>(&mut self, strip: Strip, chunk: Chunk) {
        let (m, columns) = (&self.memory, strip.at..strip.at + strip.width);
        for i in 0..chunk.len {
            let t = chunk.start + i;
            let dx = &mut self.grads.dx.row_mut(t)[columns.clone()];
            let ddt = &mut self.grads.ddt.row_mut(t)[columns.clone()];
            let dxz = &mut self.grads.dxz.row_mut(t)[2 * columns.start..2 * columns.end];
            for c in (0..strip.width).step_by(LANES) {
                let from = i * STRIP + c;
                V::<S>::load(&m.x[from..]).add_to(&mut dx[c..]);
                V::<S>::load(&m.bend[from..]).add_to(&mut ddt[c..]);
                V::<S>::load(&m.dz[from..]).add_to_odds(&mut dxz[2 * c..]);
            }
        }
    }

    /// Computes state, decays and output of token `t`, the chunk's token `i`, as the forward pass did.
    #[inline(always)]
    fn again<S: Tier>(&mut self, strip: Strip, t: usize, i: usize) {
        let (a, m) = (self.arrays, &mut self.memory);
        let row = a.n * STRIP;
        let (b_n, c_n) = a.bc(t, strip.head);
        let (before, after) = m.states[i * row..][..2 * row].split_at_mut(row);
        let decays = &mut m.decays[i * row..][..row];
        for c in (0..strip.width).step_by(LANES) {
            let staged = i * STRIP + c;
            let (x, dt) = (V::<S>::load(&m.x[staged..]), V::load(&m.dt[staged..]));
            let dtx = dt * x;
            let mut out = V::load_part(&a.d_e[strip.first + c..strip.first + strip.width]) * x;
            for j in 0..a.n {
                let at = j * STRIP + c;
                let decay = exp2_decay(dt * V::load(&m.rates[at..]));
                let next = decay.fma(V::load(&before[at..]), dtx * V::splat(b_n[j]));
                next.store(&mut after[at..]);
                decay.store(&mut decays[at..]);
                out = next.fma(V::splat(c_n[j]), out);
            }
            let dz = &mut m.dz[staged..];
            (V::load(dz) * out).store(dz);
        }
    }

    /// Takes the gradient back through token `t`, the chunk's token `i`.
    #[inline(always)]
    fn back<S: Tier>(&mut self, strip: Strip, t: usize, i: usize) {
        let n = self.arrays.n;
        for c in (0..strip.width).step_by(LANES) {
            self.back_vector::<S>(strip, t, i, c);
        }
        let (db, dc) = self.grads.dbc[t * 2 * n..][..2 * n].split_at_mut(n);
        add_lanes::<S>(db, self.memory.db);
        add_lanes::<S>(dc, self.memory.dc);
    }

    /// As [`back`](Self::back), for 16 channels from `c` of the strip.
    #[inline(always)]
    fn back_vector<S: Tier>(&mut self, strip: Strip, t: usize, i: usize, c: usize) {
        let (a, m) = (self.arrays, &mut self.memory);
        let row = a.n * STRIP;
        let (b_n, c_n) = a.bc(t, strip.head);
        let staged = i * STRIP + c;
        let (x, dt) = (V::<S>::load(&m.x[staged..]), V::load(&m.dt[staged..]));
        let (dy, dtx) = (V::load(&m.dy[staged..]), dt * x);
        let (before, after) = (&m.states[i * row..][..row], &m.states[(i + 1) * row..][..row]);
        let decays = &m.decays[i * row..][..row];
        let (mut through_b, mut through_a) = (V::zero(), V::zero());
        for j in 0..a.n {
            let at = j * STRIP + c;
            let (before, decay) = (V::load(&before[at..]), V::load(&decays[at..]));
            let g = dy.fma(V::splat(c_n[j]), V::load(&m.g[at..]));
            let (db, dc) = (&mut m.db[j * LANES..], &mut m.dc[j * LANES..]);
            let (db_old, dc_old) = if c == 0 { (V::zero(), V::zero()) } else { (V::load(db), V::load(dc)) };
            g.fma(dtx, db_old).store(db);
            dy.fma(V::load(&after[at..]), dc_old).store(dc);
            through_b = g.fma(V::splat(b_n[j]), through_b);
            let g_decayed = g * decay;
            let pull = g_decayed * before;
            through_a = pull.fma(V::load(&m.rates[at..]), through_a);
            let da = &mut m.da_chunk[at..];
            pull.fma(dt, V::load(da)).store(da);
            g_decayed.store(&mut m.g[at..]);
        }
        // The rates are A in base 2.
        let ddt = x.fma(through_b, through_a * V::splat(std::f32::consts::LN_2));
        let draw = ddt * V::load(&m.bend[staged..]);
        let d = V::load_part(&a.d_e[strip.first + c..strip.first + strip.width]);
        (x * dy).add_to(&mut m.dd[c..]);
        draw.add_to(&mut m.dbias[c..]);
        draw.store(&mut m.bend[staged..]);
        dt.fma(through_b, d * dy).store(&mut m.x[staged..]);
    }
}

/// Decay rates of a strip as rows of [`STRIP`].
#[inline(always)]
fn rates<S: Tier>(a: &Arrays, m: &mut Memory, strip: Strip) {
    let padded = strip.width.next_multiple_of(LANES);
    let (narrow, space) = m.states.split_at_mut(a.n * padded);
    a.rates::<S>(narrow, space, strip.first, strip.width);
    m.rates.fill(0.0);
    for (row, narrow) in m.rates.chunks_exact_mut(STRIP).zip(narrow.chunks_exact(padded)) {
        row[..padded].copy_from_slice(narrow);
    }
}

fn chunk_of(span: &Span, i: usize, saved: usize) -> Chunk {
    let start = i * SCAN_CHUNK;
    Chunk { start: span.start + start, len: SCAN_CHUNK.min(span.len - start), saved: saved + i }
}

/// Adds the sum of the lanes of vector `j` to element `j`.
#[inline(always)]
fn add_lanes<S: Tier>(y: &mut [f32], vectors: &[f32]) {
    for (y, block) in y.chunks_mut(LANES).zip(vectors.as_chunks::<{ LANES * LANES }>().0) {
        let mut rows = [V::<S>::zero(); LANES];
        for (row, lanes) in rows.iter_mut().zip(block.as_chunks().0) {
            *row = V::of(lanes);
        }
        V::sums(rows).add_to(y);
    }
}
