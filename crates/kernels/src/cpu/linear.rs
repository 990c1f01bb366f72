//! Linear maps, in dot form: each output is one sum along `in`.
//!
//! Sixteen lanes sum the products whose index is equal modulo 16, in order, and the lanes are added by
//! halving. Every register tile, the 1 x 1 of the tails included, does exactly this for each of its
//! outputs, so the shape of a tile, the blocks and the number of tokens leave no trace in the result.

mod many;

use self::many::PANEL_ROWS;
use super::split::{Columns, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V, Weight};
#[cfg(target_arch = "x86_64")]
use super::tile_linear;
use super::{Cpu, quant, scratch};
use crate::{Buf, Dtype, Linear, round_bf16};

/// Elements of `in` per pass: the rows of weights of a tile stay in L1 while tokens go by.
const IN_BLOCK: usize = 1024;
/// Most tokens per chunk: with [`IN_BLOCK`] 384 KiB of input, as much of unfinished sums, and the input of the next pass in
/// L2.
const TOKEN_BLOCK: usize = 96;
/// Most rows of weights per chunk.
const ROW_BLOCK: usize = 64;
/// How far ahead the weights of a single token are asked for, in bytes, where rows are as long or longer: the processor's
/// own fetching ends with every page of memory, and its window holds too few lines of each row.
const AHEAD: usize = 768;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Tokens from which the weights of a tile are widened once for all of them.
const MANY: usize = 32;
/// Products below which a chunk is not worth a thread.
const GRAIN: usize = 1 << 15;

/// The input of all groups, `[t, stride]` with group `g` at column `at + g * group`.
#[derive(Clone, Copy)]
struct Input<'a> {
    x: &'a [f32],
    stride: usize,
    at: usize,
    group: usize,
}

/// `y = x W^T + bias`, see [`crate::Device::linear`].
pub(super) fn linear(cpu: &Cpu, y: &mut Buf, a: Linear) {
    check(y.len(), &a);
    let input = Input { x: a.x.f32(), stride: a.x_stride, at: a.x_at, group: a.x_group };
    match a.w.dtype() {
        Dtype::F32 => forward(cpu, y.f32_mut(), a.w.buf.f32(), input, &a),
        #[cfg(target_arch = "x86_64")]
        Dtype::Bf16 if cpu.isa.amx().is_some() => {
            cpu.isa.amx().into_iter().for_each(|amx| tile_linear::linear(cpu, amx, y, &a));
        }
        Dtype::Bf16 => {
            let width = a.groups * a.i;
            scratch::floats(a.t * width, |rounded| {
                round_rows(cpu, rounded, input, &a);
                let input = Input { x: rounded, stride: width, at: 0, group: a.i };
                forward(cpu, y.f32_mut(), a.w.buf.bf16(), input, &a);
            });
        }
        Dtype::Q8 | Dtype::Q4 => quant::linear(cpu, y, a),
    }
}

/// Asserts the sizes that all linear kernels rely on.
pub(super) fn check(y_len: usize, a: &Linear) {
    assert_eq!(y_len, a.t * a.groups * a.o, "output of a linear map");
    assert_eq!(a.w.rows(), a.groups * a.o, "weights of a linear map");
    assert!(a.w_at + a.i <= a.w.cols(), "columns of the weights of a linear map");
    assert!(a.bias.is_none_or(|b| b.len() == a.groups * a.o), "bias of a linear map");
    assert!(a.x.len() >= a.t * a.x_stride, "input of a linear map");
    let end = a.x_at + a.groups.saturating_sub(1) * a.x_group + a.i;
    assert!(end <= a.x_stride, "columns of the input of a linear map");
}

/// Copies the columns of all groups of `input`, rounded to bf16, one group after the other.
fn round_rows(cpu: &Cpu, rounded: &mut [f32], input: Input, a: &Linear) {
    struct Round<'a> {
        y: &'a mut [f32],
        x: &'a [f32],
    }
    impl Op for Round<'_> {
        type Out = ();
        #[inline(always)]
        fn eval<S: Tier>(self) {
            for (y, x) in self.y.iter_mut().zip(self.x) {
                *y = round_bf16(*x);
            }
        }
    }
    let width = a.groups * a.i;
    cpu.rows(rounded, width, |t, row| {
        for g in 0..a.groups {
            let x = &input.x[t * input.stride + input.at + g * input.group..][..a.i];
            cpu.isa.run(Round { y: &mut row[g * a.i..][..a.i], x });
        }
    });
}

fn forward<W: Weight>(cpu: &Cpu, y: &mut [f32], w: &[W], input: Input, a: &Linear) {
    let bias = a.bias.map(Buf::f32);
    let (tokens, rows) = blocks(cpu, a);
    let columns = Columns::grouped(a.groups * a.o, a.groups, rows);
    let passes = passes(a.t, a.i);
    cpu.split(
        a.t * a.groups * a.o * a.i,
        Tiles::new(y, a.groups * a.o, tokens, columns),
        |_, y: Tile<f32>| {
            let first = y.group * a.o + y.start;
            let at = y.row * input.stride + input.at + y.group * input.group;
            let many = y.rows >= MANY;
            let sums = match (passes, many) {
                (1, false) => 0,
                (1, true) => y.rows * PANEL_ROWS * LANES,
                _ => y.rows * (y.width + PANEL_ROWS) * LANES,
            };
            let (panel, tails) = if many { (PANEL_ROWS * IN_BLOCK, y.rows * LANES) } else { (0, 0) };
            scratch::floats(sums + panel + tails, |memory| {
                let [sums, panel, tails] = scratch::parts(memory, [sums, panel, tails]);
                cpu.isa.run(Forward {
                    sums: sums.as_chunks_mut().0,
                    panel: panel.as_chunks_mut().0,
                    tails: tails.as_chunks_mut().0,
                    bias: bias.map(|b| &b[first..]),
                    w: &w[first * a.w.cols() + a.w_at..],
                    w_stride: a.w.cols(),
                    x: &input.x[at.min(input.x.len())..],
                    x_stride: input.stride,
                    i: a.i,
                    passes,
                    y,
                });
            });
        },
    );
}

/// How often the tiles of a chunk are gone over, each time with another part of `in`. One token reads each
/// weight once, so there is nothing to block for.
fn passes(t: usize, i: usize) -> usize {
    if t == 1 { 1 } else { i.div_ceil(IN_BLOCK).max(1) }
}

/// Tokens per chunk, at most `most` and about as many in each.
pub(super) fn even(tokens: usize, most: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(most).max(1)).max(1)
}

/// Tokens and rows per chunk: all in one for little work, else a few chunks per thread, so that a thread
/// that is held up does not hold up the others.
fn blocks(cpu: &Cpu, a: &Linear) -> (usize, usize) {
    let tokens = even(a.t, TOKEN_BLOCK);
    let rows = ROW_BLOCK.min(a.o.max(1));
    let work = a.t * a.groups * a.o * a.i;
    if cpu.pool.threads() == 1 || work <= GRAIN {
        return (tokens, rows);
    }
    let chunks = (4 * cpu.pool.threads()).min(work / GRAIN + 1);
    let row_chunks = chunks.div_ceil(a.groups * a.t.div_ceil(tokens));
    (tokens, rows.min(a.o.div_ceil(row_chunks).next_multiple_of(8)))
}

/// One chunk of outputs.
struct Forward<'a, W> {
    y: Tile<'a, f32>,
    /// Unfinished sums: of many tokens `[panels, tokens, R]`, of few, when there are several passes, `[tokens, rows]`.
    sums: &'a mut [[f32; LANES]],
    /// The weights of a tile of many tokens, `[k, R]`.
    panel: &'a mut [[f32; LANES]],
    /// The last columns of many tokens, where they are too few for a vector.
    tails: &'a mut [[f32; LANES]],
    bias: Option<&'a [f32]>,
    /// From the chunk's first row and column.
    w: &'a [W],
    w_stride: usize,
    /// From the chunk's first token.
    x: &'a [f32],
    x_stride: usize,
    i: usize,
    passes: usize,
}

/// Columns `from ..+ len` of `in`.
#[derive(Clone, Copy)]
struct Pass {
    from: usize,
    len: usize,
    first: bool,
    last: bool,
}

impl<W: Weight> Op for Forward<'_, W> {
    type Out = ();

    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        self.copy_tails();
        let block = self.i.div_ceil(self.passes).next_multiple_of(LANES);
        for pass in 0..self.passes {
            let from = self.i.min(pass * block);
            let len = block.min(self.i - from);
            let pass = Pass { from, len, first: pass == 0, last: pass + 1 == self.passes };
            // A tile's sums and what they are made of fill the registers: 32 of 16 lanes, or 16 of 8, of which vectors of few tokens
            // take two each.
            match (S::WIDE, self.y.rows >= MANY) {
                (true, true) => self.many::<S, 8, 3>(pass),
                (true, false) => self.few::<S, 4, 4, 8>(pass),
                (false, true) => self.many::<S, 4, 3>(pass),
                (false, false) => self.few::<S, 3, 2, 6>(pass),
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

impl<W: Weight> Forward<'_, W> {
    /// One pass in tiles of `R` rows and `C` tokens; rows of single tokens come `L` at a time.
    #[inline(always)]
    fn few<S: Tier, const R: usize, const C: usize, const L: usize>(&mut self, pass: Pass) {
        let (rows, tokens) = (self.y.width, self.y.rows);
        let tiled = if tokens >= C { tokens - tokens % C } else { 0 };
        if tiled > 0 {
            let full = rows - rows % R;
            for r in (0..full).step_by(R) {
                for t in (0..tiled).step_by(C) {
                    self.tile::<S, R, C, false>(r, t, pass);
                }
            }
            for r in full..rows {
                for t in (0..tiled).step_by(C) {
                    self.tile::<S, 1, C, false>(r, t, pass);
                }
            }
        }
        for t in tiled..tokens {
            let full = rows - rows % L;
            let far = pass.len * size_of::<W>() >= AHEAD;
            for r in (0..full).step_by(L) {
                if far {
                    self.tile::<S, L, 1, true>(r, t, pass);
                } else {
                    self.tile::<S, L, 1, false>(r, t, pass);
                }
            }
            for r in full..rows {
                self.tile::<S, 1, 1, false>(r, t, pass);
            }
        }
    }

    /// Rows from `r` by tokens from `t`; if the weights are `FAR`, they are asked for ahead, line by line.
    #[inline(always)]
    fn tile<S: Tier, const R: usize, const C: usize, const FAR: bool>(
        &mut self,
        r: usize,
        t: usize,
        pass: Pass,
    ) {
        const { assert!(R * C <= LANES) }
        let (from, len) = (pass.from, pass.len);
        let full = len / LANES;
        let mut w: [&[[W; LANES]]; R] = [&[]; R];
        let mut w_tail: [&[W]; R] = [&[]; R];
        for j in 0..R {
            let row = &self.w[(r + j) * self.w_stride + from..][..len];
            let (body, tail) = row.as_chunks();
            (w[j], w_tail[j]) = (&body[..full], tail);
        }
        let mut x: [&[[f32; LANES]]; C] = [&[]; C];
        let mut x_tail: [&[f32]; C] = [&[]; C];
        for c in 0..C {
            let row = &self.x[(t + c) * self.x_stride + from..][..len];
            let (body, tail) = row.as_chunks();
            (x[c], x_tail[c]) = (&body[..full], tail);
        }
        let mut sum = [[V::<S>::zero(); R]; C];
        if !pass.first {
            for c in 0..C {
                let old = &self.sums[(t + c) * self.y.width + r..][..R];
                for j in 0..R {
                    sum[c][j] = V::of(&old[j]);
                }
            }
        }
        let line = LINE / size_of::<[W; LANES]>();
        let lines = if FAR { full / line } else { 0 };
        for k in (0..lines * line).step_by(line) {
            for j in 0..R {
                S::prefetch_l1(&w[j][k], AHEAD);
                for k in k..k + line {
                    let weight = W::of(&w[j][k]);
                    for c in 0..C {
                        sum[c][j] = weight.fma(V::of(&x[c][k]), sum[c][j]);
                    }
                }
            }
        }
        for k in lines * line..full {
            let mut xs = [V::zero(); C];
            for c in 0..C {
                xs[c] = V::of(&x[c][k]);
            }
            for j in 0..R {
                let weight = W::of(&w[j][k]);
                for c in 0..C {
                    sum[c][j] = weight.fma(xs[c], sum[c][j]);
                }
            }
        }
        if !len.is_multiple_of(LANES) {
            for j in 0..R {
                let weight = W::load_part(w_tail[j]);
                for c in 0..C {
                    sum[c][j] = weight.fma(V::load_part(x_tail[c]), sum[c][j]);
                }
            }
        }
        if pass.last {
            self.finish(r, t, &sum);
        } else {
            for c in 0..C {
                let new = &mut self.sums[(t + c) * self.y.width + r..][..R];
                for j in 0..R {
                    sum[c][j].to(&mut new[j]);
                }
            }
        }
    }

    /// Adds up the lanes of a tile's sums. Rows that do not exist are left out.
    #[inline(always)]
    fn finish<S: Tier, const R: usize, const C: usize>(&mut self, r: usize, t: usize, sum: &[[V<S>; R]; C]) {
        if R * C == 1 {
            self.y.row_mut(t)[r] = sum[0][0].sum();
            return;
        }
        let rows = R.min(self.y.width - r);
        // As many tokens at a time as there are lanes for.
        let together = LANES / R;
        for first in (0..C).step_by(together) {
            let mut all = [V::zero(); LANES];
            let tokens = together.min(C - first);
            for c in 0..tokens {
                for j in 0..R {
                    all[c * R + j] = sum[first + c][j];
                }
            }
            let done = V::sums(all).lanes();
            for c in 0..tokens {
                self.y.row_mut(t + first + c)[r..][..rows].copy_from_slice(&done[c * R..][..rows]);
            }
        }
    }
}
