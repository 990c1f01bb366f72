//! Backward pass of the selective scan.
//!
//! Spans are cut into the chunks whose first state the forward pass saved. A chunk's states and decays are
//! computed again and kept in L1 while the gradient runs back through it. Sums over channels, which
//! dB and dC need, are taken within blocks of channels and then over the blocks in order, so they do not
//! depend on the threads. With `g` the gradient of the state after a token (training.md 2.2 has them all):
//!
//! ```text
//! g_t = dy_t C_t + a_{t+1} g_{t+1}       dB_t = sum_c g_t dt_t x_t        dC_t = sum_c dy_t s_t
//! dx_t = D dy_t + dt_t sum_n g_t B_t     ddt_t = sum_n g_t (B_t x_t + A a_t s_{t-1})
//! ```

use super::math::{sigmoid, silu_slope, softplus_and_slope};
use super::scan::{Arrays, decay, reaches_down, restore};
use super::split::{Columns, Runs, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V, prefetch_row};
use super::{Cpu, goes_past, scratch};
use crate::{Buf, SCAN_CHUNK, Scan, ScanAt, ScanGrads, Span};

/// Channels whose dB and dC are added up before they leave a thread. Their rows are loaded and stored in
/// loops that do nothing else, and are long enough for the processor to fetch ahead.
const BLOCK: usize = 256;

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
        let dx = g.dx_te.f32_mut();
        let past = goes_past(dx);
        let parts = (
            Tiles::columns(dx, a.e, columns),
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
            let vectors = dx.width.div_ceil(LANES);
            scratch::floats(Memory::len(a.n, vectors), |memory| {
                let grads = Grads { dx, ddt, past, dxz, da_log, dd, dbias, dbc };
                cpu.isa.run(Backward { grads, memory: Memory::new(memory, a.n, vectors), dy, saved, arrays });
            });
        });
        add_blocks(cpu, g.dp, dbc, &a, columns.count() / a.h);
    });
}

/// Writes the sums of the blocks' dB and dC, `[h * blocks, t, 2n]`, to `dp`.
fn add_blocks(cpu: &Cpu, dp: &mut Buf, dbc: &[f32], a: &Scan, blocks: usize) {
    let (n2, width) = (2 * a.n, a.r + 2 * a.n);
    cpu.rows(dp.f32_mut(), a.h * width, |t, dp| {
        for (head, dp) in dp.chunks_exact_mut(width).enumerate() {
            let (dt, bc) = dp.split_at_mut(a.r);
            dt.fill(0.0);
            for (j, dp) in bc.iter_mut().enumerate() {
                let part = |b: usize| dbc[((head * blocks + b) * a.t + t) * n2 + j];
                *dp = (1..blocks).fold(part(0), |sum, b| sum + part(b));
            }
        }
    });
}

/// The outputs of a block of channels.
struct Grads<'a> {
    dx: Tile<'a, f32>,
    ddt: Tile<'a, f32>,
    /// Whether these two are written past the caches.
    past: bool,
    dxz: Tile<'a, f32>,
    da_log: Tile<'a, f32>,
    dd: Tile<'a, f32>,
    dbias: Tile<'a, f32>,
    /// `[t, 2n]`
    dbc: &'a mut [f32],
}

/// Working memory of a block of channels. A row is 16 lanes.
struct Memory<'a> {
    /// Per vector of channels `n` rows each: decay rates (base 2), gradient of the state, sums of the gradient
    /// of the rates over a chunk and in all.
    rates: &'a mut [f32],
    g: &'a mut [f32],
    da_chunk: &'a mut [f32],
    da: &'a mut [f32],
    /// Per vector of channels a row each: sums of dD and of the gradient of the bias.
    dd: &'a mut [f32],
    dbias: &'a mut [f32],
    /// What tokens bring and get, [`SCAN_CHUNK`] of [`ITEM`] floats per vector of channels.
    items: &'a mut [f32],
    /// B and C of the tokens of a chunk, `2 n` each.
    bc: &'a mut [f32],
    /// Of one vector of channels: states before and after each token, and decays; `n` rows per token. With
    /// all else that a chunk needs of the vector these are 45 KiB for 16 states.
    states: &'a mut [f32],
    decays: &'a mut [f32],
    /// `n` rows each, rounded up to 16: the terms of dB and dC of one token.
    db: &'a mut [f32],
    dc: &'a mut [f32],
}

/// Floats of a token and 16 channels in five rows: `dt`; the signal, then its gradient; the derivative of
/// softplus, then the gradient of the raw dt; the gradient of the output before the gate; and the factor of
/// that output in the gradient of the gate, then the gradient.
const ITEM: usize = 5 * LANES;
const X: usize = LANES;
const BEND: usize = 2 * LANES;
const DY: usize = 3 * LANES;
const DZ: usize = 4 * LANES;

impl<'a> Memory<'a> {
    fn sizes(n: usize, vectors: usize) -> [usize; 12] {
        let (rows, padded) = (vectors * n * LANES, n.next_multiple_of(LANES) * LANES);
        let (lanes, items) = (vectors * LANES, vectors * SCAN_CHUNK * ITEM);
        [
            rows,
            rows,
            rows,
            rows,
            lanes,
            lanes,
            items,
            (SCAN_CHUNK * 2 * n).next_multiple_of(LANES),
            (SCAN_CHUNK + 1) * n * LANES,
            SCAN_CHUNK * n * LANES,
            padded,
            padded,
        ]
    }

    fn len(n: usize, vectors: usize) -> usize {
        Memory::sizes(n, vectors).iter().sum()
    }

    fn new(memory: &'a mut [f32], n: usize, vectors: usize) -> Self {
        let [rates, g, da_chunk, da, dd, dbias, items, bc, states, decays, db, dc] =
            scratch::parts(memory, Memory::sizes(n, vectors));
        Memory { rates, g, da_chunk, da, dd, dbias, items, bc, states, decays, db, dc }
    }
}

struct Backward<'a> {
    grads: Grads<'a>,
    memory: Memory<'a>,
    dy: &'a [f32],
    saved: &'a [f32],
    arrays: Arrays<'a>,
}

/// Tokens `start ..+ len` of the packed rows, whose first state is row `saved`.
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
        let (a, width) = (self.arrays, self.grads.dx.width);
        let first = self.first();
        self.grads.dbc.fill(0.0);
        let m = &mut self.memory;
        for sums in [&mut *m.da, m.da_chunk, m.dd, m.dbias, m.db, m.dc] {
            sums.fill(0.0);
        }
        a.rates::<S>(m.rates, first, width);
        let mut saved = 0;
        for span in a.spans {
            self.memory.g.fill(0.0);
            let chunks = span.len.div_ceil(SCAN_CHUNK);
            for i in (0..chunks).rev() {
                self.chunk::<S>(chunk_of(span, i, saved));
            }
            saved += chunks;
        }
        self.finish();
    }
}

impl Backward<'_> {
    /// First channel of the block.
    #[inline(always)]
    fn first(&self) -> usize {
        self.grads.dx.group * (self.arrays.e / self.arrays.h) + self.grads.dx.start
    }

    /// Adds the gradients of parameters.
    #[inline(always)]
    fn finish(&mut self) {
        let (n, m) = (self.arrays.n, &self.memory);
        for (c, da_log) in self.grads.da_log.row_mut(0).chunks_exact_mut(n).enumerate() {
            for (j, da_log) in da_log.iter_mut().enumerate() {
                // dA / d(a_log) = A; the rates are A in base 2.
                let at = (c / LANES * n + j) * LANES + c % LANES;
                *da_log += m.da[at] * (m.rates[at] * std::f32::consts::LN_2);
            }
        }
        for (d, sum) in self.grads.dd.row_mut(0).iter_mut().zip(&*m.dd) {
            *d += sum;
        }
        for (d, sum) in self.grads.dbias.row_mut(0).iter_mut().zip(&*m.dbias) {
            *d += sum;
        }
    }

    #[inline(always)]
    fn chunk<S: Tier>(&mut self, chunk: Chunk) {
        self.stage::<S>(chunk);
        let (n, vectors) = (self.arrays.n, self.grads.dx.width.div_ceil(LANES));
        for v in 0..vectors {
            // The number of states of every published model is known to the compiler.
            match n {
                16 => self.vector::<S>(16, v, chunk),
                _ => self.vector::<S>(n, v, chunk),
            }
        }
        self.deliver::<S>(chunk);
        for (total, part) in self.memory.da.iter_mut().zip(&mut *self.memory.da_chunk) {
            *total += std::mem::take(part);
        }
    }

    /// Loads what the tokens of a chunk bring.
    #[inline(always)]
    fn stage<S: Tier>(&mut self, chunk: Chunk) {
        let (a, first, width) = (self.arrays, self.first(), self.grads.dx.width);
        let bias = &a.dt_bias_e[first..][..width];
        for i in 0..chunk.len {
            let t = chunk.start + i;
            let row = t * a.e + first..t * a.e + first + width;
            if i + 1 < chunk.len {
                a.prefetch::<S>(t + 1, first, width);
                prefetch_row::<S>(&self.dy[row.start + a.e..row.end + a.e]);
            }
            let (x, dt, dy) = (&a.x_te[row.clone()], &a.dt_te[row.clone()], &self.dy[row.clone()]);
            let xz = &a.xz[2 * row.start..2 * row.end];
            for (v, c) in (0..width).step_by(LANES).enumerate() {
                let item = &mut self.memory.items[(v * SCAN_CHUNK + i) * ITEM..][..ITEM];
                let (dt, bend) = softplus_and_slope(V::<S>::load_part(&dt[c..]) + V::load_part(&bias[c..]));
                let (z, dy) = (V::odds(&xz[2 * c..]), V::<S>::load_part(&dy[c..]));
                let gate = sigmoid(z);
                dt.store(item);
                V::<S>::load_part(&x[c..]).store(&mut item[X..]);
                bend.store(&mut item[BEND..]);
                (dy * (z * gate)).store(&mut item[DY..]);
                (dy * silu_slope(z, gate)).store(&mut item[DZ..]);
            }
            let (b, c) = a.bc(t, self.grads.dx.group);
            let (b_to, c_to) = self.memory.bc[i * 2 * a.n..][..2 * a.n].split_at_mut(a.n);
            b_to.copy_from_slice(b);
            c_to.copy_from_slice(c);
        }
    }

    /// Stores what the tokens of a chunk get.
    #[inline(always)]
    fn deliver<S: Tier>(&mut self, chunk: Chunk) {
        for i in 0..chunk.len {
            let t = chunk.start + i;
            let (dx, ddt) = (self.grads.dx.row_mut(t), self.grads.ddt.row_mut(t));
            let dxz = self.grads.dxz.row_mut(t);
            for (v, c) in (0..dx.len()).step_by(LANES).enumerate() {
                let item = &self.memory.items[(v * SCAN_CHUNK + i) * ITEM..][..ITEM];
                V::<S>::load(&item[X..]).put(&mut dx[c..], self.grads.past);
                V::<S>::load(&item[BEND..]).put(&mut ddt[c..], self.grads.past);
                V::<S>::load(&item[DZ..]).store_odds(&mut dxz[2 * c..]);
            }
        }
    }

    /// Takes vector `v` through a chunk, forward and back.
    #[inline(always)]
    fn vector<S: Tier>(&mut self, n: usize, v: usize, chunk: Chunk) {
        let saved = &self.saved[chunk.saved * self.arrays.e * n..][..self.arrays.e * n];
        let from = (self.first() + v * LANES) * n;
        let width = LANES.min(self.grads.dx.width - v * LANES);
        restore::<S>(self.memory.states, &saved[from..][..width * n], n);
        let mut longest = V::<S>::zero();
        for item in self.memory.items[v * SCAN_CHUNK * ITEM..].chunks_exact(ITEM).take(chunk.len) {
            longest = V::load(item).larger(longest);
        }
        if reaches_down(longest, &self.memory.rates[v * n * LANES..][..n * LANES]) {
            self.again::<S, true>(n, v, chunk.len);
        } else {
            self.again::<S, false>(n, v, chunk.len);
        }
        for i in (0..chunk.len).rev() {
            self.back::<S>(n, v, i);
            let (db, dc) = self.grads.dbc[(chunk.start + i) * 2 * n..][..2 * n].split_at_mut(n);
            add_lanes::<S>(db, self.memory.db);
            add_lanes::<S>(dc, self.memory.dc);
        }
    }

    /// The skip weights of vector `v`.
    #[inline(always)]
    fn skip<S: Tier>(&self, v: usize) -> V<S> {
        let end = self.first() + self.grads.dx.width;
        V::load_part(&self.arrays.d_e[self.first() + v * LANES..end])
    }

    /// Computes states, decays and outputs of vector `v` after the first `len` tokens as the forward pass did.
    #[inline(always)]
    fn again<S: Tier, const CLAMP: bool>(&mut self, n: usize, v: usize, len: usize) {
        let d = self.skip::<S>(v);
        let (m, size) = (&mut self.memory, n * LANES);
        let rates = m.rates[v * size..][..size].as_chunks().0;
        let items = m.items[v * SCAN_CHUNK * ITEM..].as_chunks_mut::<ITEM>().0;
        for (i, item) in items[..len].iter_mut().enumerate() {
            let (dt, x) = (V::<S>::load(item), V::load(&item[X..]));
            let dtx = dt * x;
            let mut out = d * x;
            let (before, after) = m.states[i * size..][..2 * size].split_at_mut(size);
            let states = before.as_chunks().0.iter().zip(after.as_chunks_mut().0);
            let decays = m.decays[i * size..][..size].as_chunks_mut().0;
            let (b_n, c_n) = m.bc[i * 2 * n..][..2 * n].split_at(n);
            let both = b_n.iter().zip(c_n);
            for (((rate, kept), (before, after)), (b, c)) in rates.iter().zip(decays).zip(states).zip(both) {
                let decay = decay::<S, CLAMP>(dt, V::of(rate));
                let next = decay.fma(V::of(before), dtx * V::splat(*b));
                next.to(after);
                decay.to(kept);
                out = next.fma(V::splat(*c), out);
            }
            let dz = V::load(&item[DZ..]) * out;
            dz.store(&mut item[DZ..]);
        }
    }

    /// Takes the gradient of vector `v` back through token `i` of the chunk, and leaves the terms of dB and dC.
    #[inline(always)]
    fn back<S: Tier>(&mut self, n: usize, v: usize, i: usize) {
        let d = self.skip::<S>(v);
        let (m, size) = (&mut self.memory, n * LANES);
        let item = &mut m.items[(v * SCAN_CHUNK + i) * ITEM..][..ITEM];
        let (dt, x, dy) = (V::<S>::load(item), V::load(&item[X..]), V::load(&item[DY..]));
        let dtx = dt * x;
        let (b_n, c_n) = m.bc[i * 2 * n..][..2 * n].split_at(n);
        let before = m.states[i * size..][..size].as_chunks().0;
        let after = m.states[(i + 1) * size..][..size].as_chunks().0;
        let decays = m.decays[i * size..][..size].as_chunks().0;
        let rates = m.rates[v * size..][..size].as_chunks().0;
        let g = m.g[v * size..][..size].as_chunks_mut().0;
        let da = m.da_chunk[v * size..][..size].as_chunks_mut().0;
        let (db, dc) = (m.db.as_chunks_mut().0, m.dc.as_chunks_mut().0);
        let (mut through_b, mut through_a) = (V::zero(), V::zero());
        for j in 0..n {
            let g_j = dy.fma(V::splat(c_n[j]), V::of(&g[j]));
            (g_j * dtx).to(&mut db[j]);
            (dy * V::of(&after[j])).to(&mut dc[j]);
            through_b = g_j.fma(V::splat(b_n[j]), through_b);
            let g_decayed = g_j * V::of(&decays[j]);
            let pull = g_decayed * V::of(&before[j]);
            through_a = pull.fma(V::of(&rates[j]), through_a);
            pull.fma(dt, V::of(&da[j])).to(&mut da[j]);
            g_decayed.to(&mut g[j]);
        }
        // The rates are A in base 2.
        let ddt = x.fma(through_b, through_a * V::splat(std::f32::consts::LN_2));
        let draw = ddt * V::load(&item[BEND..]);
        (x * dy).add_to(&mut m.dd[v * LANES..]);
        draw.add_to(&mut m.dbias[v * LANES..]);
        draw.store(&mut item[BEND..]);
        dt.fma(through_b, d * dy).store(&mut item[X..]);
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
