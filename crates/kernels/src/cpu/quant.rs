//! Linear maps with quantised weights; see [`mod@crate::quant`] for their definition.
//!
//! A vector holds sums for the 16 rows of a block and one token, so nothing is added up across lanes. Sums of
//! a group are integers; the groups follow one another in order for every token, whatever the tile.

mod many;

use std::hint::black_box;

use half::f16;

use self::many::{PAIR, UNPACKED};
use super::int::{IntOp, IntTier};
use super::split::{Columns, Runs, Tile, Tiles};
use super::tier::{LANES, Tier, V};
#[cfg(target_arch = "x86_64")]
use super::tile_quant;
use super::{Cpu, linear, scratch};
use crate::quant::{GROUP, LINE, LINES, ROWS, block_bytes, zero_point};
use crate::{Buf, Dtype, Linear};

/// Most tokens per chunk, whose integers stay in L2.
const TOKEN_BLOCK: usize = 128;
/// Most rows of weights per chunk of many tokens.
const ROW_BLOCK: usize = 64;
/// So many tokens, at most, meet each line of weights in registers, where it comes once for all of them: with two sums
/// for each they are as many as 32 registers hold. They go so where there are tiles too.
const FEW: usize = 8;
/// Row blocks that few tokens meet side by side: the processor fetches ahead a bounded number of lines of each stream
/// that it follows, and one stream is not enough to keep memory busy.
const STREAMS: usize = 4;
/// Bytes from the weights in use to those that are asked for from memory.
pub(super) const AHEAD: usize = 4096;
/// The same for scales, which are so few that the processor does not fetch them ahead by itself.
pub(super) const AHEAD_SCALES: usize = 2048;

/// `y = x W^T + bias`, see [`crate::Device::linear`].
pub(super) fn linear(cpu: &Cpu, y: &mut Buf, a: Linear) {
    linear::check(y.len(), &a);
    assert!(a.o.is_multiple_of(ROWS), "a block of quantised rows crosses groups");
    let lead = a.w_at % GROUP;
    if lead > 0 || !a.i.is_multiple_of(GROUP) {
        let i = (lead + a.i).next_multiple_of(GROUP);
        let x = &padded(&a, lead, i);
        return linear(
            cpu,
            y,
            Linear { x, i, x_stride: a.groups * i, x_group: i, x_at: 0, w_at: a.w_at - lead, ..a },
        );
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(amx) = cpu.isa.amx().filter(|_| a.t > FEW) {
        return tile_quant::linear(cpu, amx, y, &a);
    }
    let width = a.groups * a.i;
    let count = a.t * width / GROUP;
    // Integers, scales and starts of all tokens.
    scratch::floats(a.t * width / 4 + 2 * count, |memory| {
        let (q, rest) = memory.split_at_mut(a.t * width / 4);
        let (scales, starts) = rest.split_at_mut(count);
        let (q, starts) = (bytemuck::cast_slice_mut(q), bytemuck::cast_slice_mut(starts));
        quantise(cpu, q, scales, starts, &a);
        let x = Input { q, scales, starts, width };
        match a.w.dtype() {
            Dtype::Q4 => forward::<true>(cpu, y.f32_mut(), x, &a),
            _ => forward::<false>(cpu, y.f32_mut(), x, &a),
        }
    });
}

/// The input of a map whose columns are not whole groups of the weights', `[t, groups * i]`: `lead` zeros, what the map
/// reads, and zeros again. Only the halves of the shared block's input are such, where the hidden size is no multiple of 128, and a
/// copy of the input costs little beside the product.
fn padded(a: &Linear, lead: usize, i: usize) -> Buf {
    let mut padded = Buf::host(Dtype::F32, a.t * a.groups * i);
    let x = a.x.f32();
    for (row, out) in padded.f32_mut().chunks_exact_mut(i).enumerate() {
        let at = row / a.groups * a.x_stride + a.x_at + row % a.groups * a.x_group;
        out[lead..][..a.i].copy_from_slice(&x[at..][..a.i]);
    }
    padded
}

/// The quantised input: rows of all groups of the map, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// Integers, `[t, width]`.
    pub(super) q: &'a [i8],
    /// Scales, `[t, width / 128]`.
    pub(super) scales: &'a [f32],
    /// Where sums of products start, to make up for the zero point of the weights, `[t, width / 128]`.
    pub(super) starts: &'a [i32],
    pub(super) width: usize,
}

impl<'a> Input<'a> {
    /// From token `t` and column `at` on.
    fn from(&self, t: usize, at: usize) -> Input<'a> {
        let group = (t * self.width + at) / GROUP;
        let Input { q, scales, starts, width } = *self;
        Input { q: &q[group * GROUP..], scales: &scales[group..], starts: &starts[group..], width }
    }
}

/// Quantises the input of all groups of the map.
pub(super) fn quantise(cpu: &Cpu, q: &mut [i8], scales: &mut [f32], starts: &mut [i32], a: &Linear) {
    let width = a.groups * a.i;
    if a.t * width == 0 {
        return;
    }
    let x = a.x.f32();
    let tokens = super::GRAIN.div_ceil(width);
    let parts = (
        Runs::new(q, tokens * width),
        Runs::new(scales, tokens * width / GROUP),
        Runs::new(starts, tokens * width / GROUP),
    );
    cpu.split(a.t * width, parts, |index, (q, scales, starts): (&mut [i8], &mut [f32], &mut [i32])| {
        for (row, q) in q.chunks_exact_mut(width).enumerate() {
            let x = &x[(index * tokens + row) * a.x_stride + a.x_at..];
            for (g, q) in q.chunks_exact_mut(a.i).enumerate() {
                let at = (row * width + g * a.i) / GROUP;
                cpu.isa.run_int(Quantise {
                    x: &x[g * a.x_group..][..a.i],
                    q,
                    scales: &mut scales[at..][..a.i / GROUP],
                    starts: &mut starts[at..][..a.i / GROUP],
                    dtype: a.w.dtype(),
                });
            }
        }
    });
}

/// Quantises one row of a group of the map.
struct Quantise<'a> {
    x: &'a [f32],
    q: &'a mut [i8],
    scales: &'a mut [f32],
    starts: &'a mut [i32],
    dtype: Dtype,
}

impl IntOp for Quantise<'_> {
    type Out = ();

    #[inline(always)]
    fn eval<S: IntTier>(self) {
        let zero = if self.dtype == Dtype::Q8 && S::SIGNED_8 { 0 } else { zero_point(self.dtype) };
        let outputs = self.q.as_chunks_mut().0.iter_mut().zip(self.scales).zip(self.starts);
        for (x, ((q, scale), start)) in self.x.as_chunks().0.iter().zip(outputs) {
            let (s, sum) = S::quantise(x, q);
            // The sum of a group with values that are not finite means nothing; its scale makes it NaN.
            (*scale, *start) = (s, (-zero).wrapping_mul(sum));
        }
    }
}

fn forward<const Q4: bool>(cpu: &Cpu, y: &mut [f32], x: Input, a: &Linear) {
    let (quants, scales) = a.w.buf.quants();
    let bias = a.bias.map(Buf::f32);
    let (tokens, rows) = blocks(cpu, a);
    let columns = Columns::grouped(a.groups * a.o, a.groups, rows);
    let (stride, at, bytes) = (a.w.cols() / GROUP, a.w_at / GROUP, block_bytes(a.w.dtype()));
    let work = a.t * a.groups * a.o * a.i;
    cpu.split(work, Tiles::new(y, a.groups * a.o, tokens, columns), |_, y: Tile<f32>| {
        let first = y.group * a.o + y.start;
        let unpacked = if Q4 && y.rows > 1 { UNPACKED / size_of::<f32>() } else { 0 };
        scratch::floats(unpacked, |unpacked| {
            cpu.isa.run_int(Forward::<Q4> {
                x: x.from(y.row, y.group * a.i),
                quants: &quants[(first / ROWS * stride + at) * bytes..],
                scales: &scales[first * stride + at * ROWS..],
                bias: bias.map(|b| &b[first..]),
                groups: a.i / GROUP,
                stride,
                unpacked: bytemuck::cast_slice_mut(unpacked),
                y,
            });
        });
    });
}

/// Tokens and rows per chunk, so that there are a few chunks per thread.
fn blocks(cpu: &Cpu, a: &Linear) -> (usize, usize) {
    let tokens = linear::even(a.t, TOKEN_BLOCK);
    let threads = cpu.pool.threads();
    let chunks = (4 * threads).div_ceil(a.groups * a.t.div_ceil(tokens).max(1));
    let even = if threads == 1 { a.o } else { (a.o / ROWS).div_ceil(chunks) * ROWS };
    // Few tokens read each weight once, so their chunks may be as large as they like.
    let most = if a.t <= FEW { even } else { ROW_BLOCK };
    (tokens, even.min(most).max(ROWS))
}

/// One chunk of outputs.
struct Forward<'a, const Q4: bool> {
    y: Tile<'a, f32>,
    /// From the chunk's first token.
    x: Input<'a>,
    /// From the chunk's first row and column, as are the scales.
    quants: &'a [u8],
    scales: &'a [f16],
    bias: Option<&'a [f32]>,
    /// Groups of columns.
    groups: usize,
    /// Groups from one row block to the next.
    stride: usize,
    /// Room for the lines of a pass, one integer per byte.
    unpacked: &'a mut [u8],
}

impl<const Q4: bool> IntOp for Forward<'_, Q4> {
    type Out = ();

    #[inline(always)]
    fn eval<S: IntTier>(mut self) {
        // Loops and not closures: a closure that is not inlined may use none of the tier's instructions.
        let blocks = self.y.width / ROWS;
        let mut block = 0;
        while block < blocks {
            let few = self.y.rows == 1 || S::F::WIDE && self.y.rows <= FEW;
            if !few && S::F::WIDE && block + PAIR <= blocks {
                self.many::<S, PAIR>(block);
                block += PAIR;
            } else if !few {
                self.many::<S, 1>(block);
                block += 1;
            } else if block + STREAMS <= blocks {
                self.streams::<S, STREAMS>(block);
                block += STREAMS;
            } else {
                self.streams::<S, 1>(block);
                block += 1;
            }
        }
        if let Some(bias) = self.bias {
            for t in 0..self.y.rows {
                for (y, b) in self.y.row_mut(t).iter_mut().zip(bias) {
                    *y += b;
                }
            }
        }
    }
}

/// Four activations each, of one token and group.
type Fours = [[i8; 4]; LINES];

impl<const Q4: bool> Forward<'_, Q4> {
    const BYTES: usize = if Q4 { LINES * LINE / 2 } else { LINES * LINE };

    /// The integers of a row block and group.
    #[inline(always)]
    fn block(&self, block: usize, g: usize) -> &[[u8; LINE]] {
        self.quants[(block * self.stride + g) * Self::BYTES..][..Self::BYTES].as_chunks().0
    }

    #[inline(always)]
    fn scale<S: IntTier>(&self, block: usize, g: usize) -> V<S::F> {
        let scales = &self.scales[(block * self.stride + g) * LANES..];
        S::F::prefetch_l1(scales, AHEAD_SCALES);
        V::wrap(S::scales(scales.first_chunk().expect("16 scales")))
    }

    #[inline(always)]
    fn fours(&self, t: usize, g: usize) -> &Fours {
        let q = &self.x.q[t * self.x.width + g * GROUP..][..GROUP];
        q.as_chunks().0.first_chunk().expect("32 times 4")
    }

    /// Few tokens and `B` row blocks, whose lines come straight from memory.
    #[inline(always)]
    fn streams<S: IntTier, const B: usize>(&mut self, block: usize) {
        match self.y.rows {
            2 => self.halves::<S, 2, B>(block),
            3 => self.few::<S, 3, B>(block),
            4 => self.few::<S, 4, B>(block),
            5 => self.few::<S, 5, B>(block),
            6 => self.few::<S, 6, B>(block),
            7 => self.few::<S, 7, B>(block),
            FEW => self.few::<S, FEW, B>(block),
            _ => self.halves::<S, 1, B>(block),
        }
    }

    /// `T` tokens, one or two, and `B` row blocks, whose lines come straight from memory: half a group of each at a time, so
    /// that all streams come at an even pace and what they meet stays in registers.
    #[inline(always)]
    fn halves<S: IntTier, const T: usize, const B: usize>(&mut self, block: usize) {
        let mut acc = [[V::<S::F>::zero(); T]; B];
        for g in 0..self.groups {
            // Two sums each, so that products need not wait for one another.
            let (mut even, mut odd) = ([[S::start(0); T]; B], [[S::start(0); T]; B]);
            for c in 0..T {
                let start = S::start(self.x.starts[c * (self.x.width / GROUP) + g]);
                for b in 0..B {
                    even[b][c] = start;
                }
            }
            for half in 0..2 {
                for b in 0..B {
                    (even[b], odd[b]) = self.half::<S, T, B>(block + b, g, half, even[b], odd[b]);
                }
            }
            for b in 0..B {
                let scale = self.scale::<S>(block + b, g);
                for c in 0..T {
                    let x_scale = V::splat(self.x.scales[c * (self.x.width / GROUP) + g]);
                    let sum = S::float(S::add(even[b][c], odd[b][c]));
                    acc[b][c] = V::wrap(sum).fma(scale * x_scale, acc[b][c]);
                }
            }
        }
        for b in 0..B {
            for c in 0..T {
                acc[b][c].store(&mut self.y.row_mut(c)[(block + b) * ROWS..]);
            }
        }
    }

    /// How far ahead of group `g` to ask for weights: [`AHEAD`]; behind the end of the row block its stream goes on with
    /// the `B`-th next one, for those between have streams of their own.
    #[inline(always)]
    fn ahead<const B: usize>(&self, g: usize) -> usize {
        let skipped = if g + AHEAD / Self::BYTES < self.groups { 0 } else { B * self.stride - self.groups };
        AHEAD + skipped * Self::BYTES
    }

    /// Adds the products of half of the lines of a row block and group with the first `T` tokens.
    #[inline(always)]
    fn half<S: IntTier, const T: usize, const B: usize>(
        &self,
        block: usize,
        g: usize,
        half: usize,
        mut even: [S::I; T],
        mut odd: [S::I; T],
    ) -> ([S::I; T], [S::I; T]) {
        let ahead = self.ahead::<B>(g);
        let mut x = [&[[0; 4]; LINES / 2]; T];
        for c in 0..T {
            x[c] = self.fours(c, g)[half * LINES / 2..].first_chunk().expect("half a group");
        }
        let w = &self.block(block, g)[half * Self::BYTES / LINE / 2..];
        if Q4 {
            let w: &[_; LINES / 4] = w.first_chunk().expect("8 parts");
            for j in 0..LINES / 4 {
                S::F::prefetch_l1(&w[j], ahead);
                let (low, high) = S::lines4(&w[j]);
                for c in 0..T {
                    even[c] = S::dot4(even[c], low, x[c][2 * j]);
                    odd[c] = S::dot4(odd[c], high, x[c][2 * j + 1]);
                }
            }
        } else {
            let w: &[_; LINES / 2] = w.first_chunk().expect("16 lines");
            for j in 0..LINES / 4 {
                S::F::prefetch_l1(&w[2 * j], ahead);
                S::F::prefetch_l1(&w[2 * j + 1], ahead);
                let (low, high) = (S::line8(&w[2 * j]), S::line8(&w[2 * j + 1]));
                for c in 0..T {
                    even[c] = S::dot8(even[c], low, x[c][2 * j]);
                    odd[c] = S::dot8(odd[c], high, x[c][2 * j + 1]);
                }
            }
        }
        (even, odd)
    }

    /// `T` tokens and `B` row blocks, whose lines come straight from memory.
    #[inline(always)]
    fn few<S: IntTier, const T: usize, const B: usize>(&mut self, block: usize) {
        let mut acc = [[V::<S::F>::zero(); T]; B];
        for g in 0..self.groups {
            let mut x_scales = [V::zero(); T];
            for c in 0..T {
                x_scales[c] = V::splat(self.x.scales[c * (self.x.width / GROUP) + g]);
            }
            for b in 0..B {
                let sum = self.sums::<S, T, B>(block + b, g);
                let scale = self.scale::<S>(block + b, g);
                for c in 0..T {
                    acc[b][c] = V::wrap(S::float(sum[c])).fma(scale * x_scales[c], acc[b][c]);
                }
            }
        }
        for b in 0..B {
            for c in 0..T {
                acc[b][c].store(&mut self.y.row_mut(c)[(block + b) * ROWS..]);
            }
        }
    }

    /// The integer sums of a row block and group for the first `T` tokens.
    #[inline(always)]
    fn sums<S: IntTier, const T: usize, const B: usize>(&self, block: usize, g: usize) -> [S::I; T] {
        let w = self.block(block, g);
        let ahead = self.ahead::<B>(g);
        let mut x = [&[[0; 4]; LINES]; T];
        // Two sums each, so that products need not wait for one another.
        let (mut even, mut odd) = ([S::start(0); T], [S::start(0); T]);
        for c in 0..T {
            x[c] = self.fours(c, g);
            even[c] = S::start(self.x.starts[c * (self.x.width / GROUP) + g]);
        }
        // Were the length known to the compiler it would unroll the loop, and spread activations over the stack.
        for j in 0..black_box(LINES / 2) {
            let k = 2 * j % LINES;
            let (low, high) = if Q4 {
                S::F::prefetch_l1(&w[k / 2], ahead);
                S::lines4(&w[k / 2])
            } else {
                S::F::prefetch_l1(&w[k], ahead);
                S::F::prefetch_l1(&w[k + 1], ahead);
                (S::line8(&w[k]), S::line8(&w[k + 1]))
            };
            for c in 0..T {
                if Q4 {
                    even[c] = S::dot4(even[c], low, x[c][k]);
                    odd[c] = S::dot4(odd[c], high, x[c][k + 1]);
                } else {
                    even[c] = S::dot8(even[c], low, x[c][k]);
                    odd[c] = S::dot8(odd[c], high, x[c][k + 1]);
                }
            }
        }
        for c in 0..T {
            even[c] = S::add(even[c], odd[c]);
        }
        even
    }
}
