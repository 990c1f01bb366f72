//! Keys and values in bf16, arranged for the products of attention.
//!
//! Positions are cut into blocks of 32. A block of keys of one head is `[p / 32][32 positions][32]`, so that
//! 16 positions of 32 columns are one run of memory, a tile of A whose sum runs along the columns. A block of
//! values is `[p / 16][16 pairs of positions][16][2]`: a tile of B whose sum runs over the positions. Head
//! widths are padded to 32 with zeros. The blocks of all heads at the same positions lie side by side and the
//! next positions follow, so decoding reads memory in order and the beginning of a sequence is the beginning
//! of its slot.
//!
//! Positions of a block that were never written are zero: a kernel may multiply them by weights of zero.

use half::bf16;

use super::rows::From32;
use super::split::Runs;
use super::tier::{Op, Tier};
use super::{Cpu, scratch};
use crate::{Attention, Buf, CacheRows, Span};

/// Positions of a block.
pub(super) const BLOCK: usize = crate::CACHE_BLOCK;
/// Columns of a step along a row of keys.
pub(super) const STEP: usize = 32;

/// Heads and their width.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) kv: usize,
    pub(super) p: usize,
}

impl Shape {
    /// Width of a head with its padding.
    pub(super) fn padded(self) -> usize {
        self.p.next_multiple_of(STEP)
    }

    /// Elements of a block of one head.
    pub(super) fn block_len(self) -> usize {
        BLOCK * self.padded()
    }

    /// Elements from one block of a head to its next.
    pub(super) fn stride(self) -> usize {
        self.kv * self.block_len()
    }

    /// Elements of the first `rows` positions of a slot, whole blocks.
    pub(super) fn len(self, rows: usize) -> usize {
        rows.div_ceil(BLOCK) * self.stride()
    }
}

/// The blocks of all sequences of a call.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    keys: &'a [bf16],
    values: &'a [bf16],
    shape: Shape,
    /// Query heads that read the same keys.
    group: usize,
    slot_rows: Option<usize>,
}

/// The blocks of one head of one sequence.
#[derive(Clone, Copy)]
pub(super) struct HeadBlocks<'a> {
    keys: &'a [bf16],
    values: &'a [bf16],
    shape: Shape,
}

impl<'a> Blocks<'a> {
    /// Those that query head `head` of span `span`, the `index`-th of the call, reads.
    #[inline(always)]
    pub(super) fn query_head(&self, index: usize, span: &Span, head: usize) -> HeadBlocks<'a> {
        let at = match self.slot_rows {
            Some(rows) => span.slot * self.shape.len(rows),
            None => packed_block(index, span) * self.shape.stride(),
        };
        let at = at + head / self.group * self.shape.block_len();
        HeadBlocks { keys: &self.keys[at..], values: &self.values[at..], shape: self.shape }
    }
}

impl<'a> HeadBlocks<'a> {
    /// Elements from one block to the next.
    #[inline(always)]
    pub(super) fn stride(&self) -> usize {
        self.shape.stride()
    }

    /// The same blocks, counted from block `block`.
    #[inline(always)]
    pub(super) fn from(self, block: usize) -> Self {
        let at = block * self.shape.stride();
        HeadBlocks { keys: &self.keys[at..], values: &self.values[at..], ..self }
    }

    /// Keys from block `block` on.
    #[inline(always)]
    pub(super) fn keys_from(&self, block: usize) -> &'a [bf16] {
        &self.keys[block * self.shape.stride()..]
    }

    /// Keys from block `block` on as far as there are any, to be fetched ahead.
    #[inline(always)]
    pub(super) fn ahead(&self, block: usize) -> &'a [bf16] {
        self.keys.get(block * self.shape.stride()..).unwrap_or_default()
    }

    /// Values from block `block` on.
    #[inline(always)]
    pub(super) fn values_from(&self, block: usize) -> &'a [bf16] {
        &self.values[block * self.shape.stride()..]
    }
}

/// First block of the `index`-th span where spans are arranged one after the other, each from a block of its
/// own: every span before takes at most one block more than its share of full ones.
fn packed_block(index: usize, span: &Span) -> usize {
    span.start / BLOCK + index
}

/// Calls `f` with the blocks of a call: its cache, or its packed rows rounded and arranged.
///
/// # Panics
/// If a cache is not bf16 or packed rows are not f32.
pub(super) fn with_blocks(cpu: &Cpu, a: &Attention, f: impl FnOnce(Blocks)) {
    let shape = Shape { kv: a.kv, p: a.p };
    let (slot_rows, group) = (a.slot_rows, a.h / a.kv);
    if slot_rows.is_some() {
        return f(Blocks { keys: a.k.bf16(), values: a.v.bf16(), shape, group, slot_rows });
    }
    let len = (a.t / BLOCK + a.spans.len()) * shape.stride();
    scratch::floats(len, |both| {
        let (keys, values) = bytemuck::cast_slice_mut(both).split_at_mut(len);
        for (index, span) in a.spans.iter().enumerate() {
            let at = packed_block(index, span) * shape.stride();
            let pair = (&mut keys[at..], &mut values[at..]);
            pack(cpu, pair, (a.k.f32(), a.v.f32()), shape, Span { pos: 0, ..*span });
        }
        f(Blocks { keys, values, shape, group, slot_rows });
    });
}

/// See [`crate::Device::cache_rows`], for caches in bf16.
pub(super) fn cache_rows(cpu: &Cpu, keys: &mut Buf, values: &mut Buf, a: CacheRows) {
    let shape = Shape { kv: a.kv, p: a.p };
    for span in a.spans {
        let slot = span.slot * shape.len(a.slot_rows)..(span.slot + 1) * shape.len(a.slot_rows);
        let pair = (&mut keys.bf16_mut()[slot.clone()], &mut values.bf16_mut()[slot]);
        pack(cpu, pair, (a.k.f32(), a.v.f32()), shape, *span);
    }
}

/// Puts the rows of `span` of keys and values to its positions among blocks that begin at position 0.
fn pack(cpu: &Cpu, to: (&mut [bf16], &mut [bf16]), from: (&[f32], &[f32]), shape: Shape, span: Span) {
    let (first, end) = (span.pos / BLOCK, (span.pos + span.len).div_ceil(BLOCK));
    let part = first * shape.stride()..end * shape.stride();
    let len = shape.block_len();
    let parts = (Runs::new(&mut to.0[part.clone()], len), Runs::new(&mut to.1[part], len));
    let width = shape.kv * shape.p;
    cpu.split(2 * span.len * width, parts, |index, (keys, values): (&mut [bf16], &mut [bf16])| {
        let (block, head) = (first + index / shape.kv, index % shape.kv);
        let begin = span.pos.max(block * BLOCK);
        let rows = (span.pos + span.len).min((block + 1) * BLOCK) - begin;
        let at = (span.start + begin - span.pos) * width + head * shape.p;
        cpu.isa.run(Pack {
            keys,
            values,
            k: &from.0[at..],
            v: &from.1[at..],
            stride: width,
            p: shape.p,
            first: begin - block * BLOCK,
            rows,
        });
    });
}

/// Rows of one head into its block.
struct Pack<'a> {
    keys: &'a mut [bf16],
    values: &'a mut [bf16],
    /// From the first element of the first row on.
    k: &'a [f32],
    v: &'a [f32],
    stride: usize,
    p: usize,
    /// Place of the first row in the block.
    first: usize,
    rows: usize,
}

impl Op for Pack<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        let Pack { keys, values, k, v, stride, p, first, rows } = self;
        if first == 0 {
            keys.fill(bf16::ZERO);
            values.fill(bf16::ZERO);
        }
        for r in 0..rows {
            for (step, x) in k[r * stride..][..p].chunks(STEP).enumerate() {
                let y = &mut keys[(step * BLOCK + first + r) * STEP..][..x.len()];
                for (y, x) in y.iter_mut().zip(x) {
                    *y = bf16::put(*x);
                }
            }
        }
        let words: &mut [u32] = bytemuck::cast_slice_mut(values);
        let mut r = 0;
        while r < rows {
            let (row, pair) = (&v[r * stride..][..p], (first + r) / 2);
            let both = (first + r).is_multiple_of(2) && r + 1 < rows;
            let other = if both { &v[(r + 1) * stride..][..p] } else { row };
            for (group, (a, b)) in row.chunks(16).zip(other.chunks(16)).enumerate() {
                let words = &mut words[(group * BLOCK / 2 + pair) * 16..][..a.len()];
                if both {
                    for (word, (a, b)) in words.iter_mut().zip(a.iter().zip(b)) {
                        *word = bits(*a) | (bits(*b) << 16);
                    }
                } else {
                    let high = (first + r) % 2 * 16;
                    for (word, a) in words.iter_mut().zip(a) {
                        *word = (*word & !(0xffff << high)) | (bits(*a) << high);
                    }
                }
            }
            r += if both { 2 } else { 1 };
        }
    }
}

#[inline(always)]
fn bits(x: f32) -> u32 {
    u32::from(bf16::put(x).to_bits())
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::*;

    /// Every element is where the module text says, whole or row by row, and the rest is zero.
    #[test]
    fn rows_come_to_their_places() {
        let (shape, len) = (Shape { kv: 2, p: 35 }, 45);
        let x: Vec<f32> = (0..len * 70).map(|i| i as f32 % 251.0 + 1.0).collect();
        let y: Vec<f32> = x.iter().map(|x| -x).collect();
        let cpu = Cpu::with(Isa::detect(), 2);
        for piece in [len, 1, 7] {
            let mut keys = vec![0u32; shape.len(len) / 2];
            let mut values = keys.clone();
            for pos in (0..len).step_by(piece) {
                let span = Span { slot: 0, start: pos, len: piece.min(len - pos), pos };
                let pair = (bytemuck::cast_slice_mut(&mut keys), bytemuck::cast_slice_mut(&mut values));
                pack(&cpu, pair, (&x, &y), shape, span);
            }
            let keys: &[bf16] = bytemuck::cast_slice(&keys);
            let values: &[bf16] = bytemuck::cast_slice(&values);
            for (i, (key, value)) in keys.iter().zip(values).enumerate() {
                let (block, head, i) = (i / shape.stride(), i / shape.block_len() % 2, i % shape.block_len());
                let element = |row: usize, column: usize| {
                    let row = block * BLOCK + row;
                    if row < len && column < 35 { x[row * 70 + head * 35 + column] } else { 0.0 }
                };
                assert_eq!(key.to_f32(), element(i / 32 % 32, i / 1024 * 32 + i % 32));
                assert_eq!(-value.to_f32(), element(i % 512 / 32 * 2 + i % 2, i / 512 * 16 + i % 32 / 2));
            }
        }
    }
}
