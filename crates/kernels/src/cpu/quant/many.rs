//! Many tokens: the weights of some groups of a row block, or of two side by side, meet all tokens of a chunk.

use super::Forward;
use crate::cpu::int::IntTier;
use crate::cpu::quant::{AHEAD, Fours};
use crate::cpu::tier::{Tier, V};
use crate::quant::{GROUP, LINE, LINES, ROWS};

/// Row blocks that tokens meet side by side where there are 32 registers: an activation is then loaded for two products, and
/// with twelve tokens their sums are 24.
pub(super) const PAIR: usize = 2;
/// Groups per pass: 24 KiB of weights of [`PAIR`] row blocks, unpacked, stay in L1 while tokens go by.
const PASS: usize = 6;
/// Bytes of the unpacked weights of a row block and pass.
const BLOCK: usize = PASS * LINES * LINE;
/// Bytes of all of them.
pub(super) const UNPACKED: usize = PAIR * BLOCK;

impl<const Q4: bool> Forward<'_, Q4> {
    /// `B` row blocks from `block`.
    #[inline(always)]
    pub(super) fn many<S: IntTier, const B: usize>(&mut self, block: usize) {
        const { assert!(B <= PAIR) }
        for from in (0..self.groups).step_by(PASS) {
            let to = self.groups.min(from + PASS);
            if Q4 {
                for b in 0..B {
                    self.unpack::<S>(block + b, from, to, b);
                }
            }
            let mut t = 0;
            if S::F::WIDE {
                while t + 12 <= self.y.rows {
                    self.tile::<S, B, 12>(block, t, from, to);
                    t += 12;
                }
                if t + 8 <= self.y.rows {
                    self.tile::<S, B, 8>(block, t, from, to);
                    t += 8;
                }
            }
            while t + 4 <= self.y.rows {
                self.tile::<S, B, 4>(block, t, from, to);
                t += 4;
            }
            while t < self.y.rows {
                self.tile::<S, B, 1>(block, t, from, to);
                t += 1;
            }
        }
    }

    /// Writes the lines of a row block's groups `from .. to`, one integer per byte, where those of the `b`-th are.
    #[inline(always)]
    fn unpack<S: IntTier>(&mut self, block: usize, from: usize, to: usize, b: usize) {
        let parts = (block * self.stride + from) * Self::BYTES..(block * self.stride + to) * Self::BYTES;
        let lines = self.unpacked[b * BLOCK..].as_chunks_mut::<LINE>().0.as_chunks_mut::<2>().0;
        for (part, lines) in self.quants[parts].as_chunks().0.iter().zip(lines) {
            let (low, high) = S::lines4(part);
            S::store4(low, &mut lines[0]);
            S::store4(high, &mut lines[1]);
        }
    }

    /// Groups `from .. to` of `B` row blocks for `T` tokens. Sums of the groups before wait in the output.
    #[inline(always)]
    fn tile<S: IntTier, const B: usize, const T: usize>(
        &mut self,
        block: usize,
        t: usize,
        from: usize,
        to: usize,
    ) {
        let mut acc = [[V::<S::F>::zero(); T]; B];
        if from > 0 {
            for b in 0..B {
                for c in 0..T {
                    acc[b][c] = V::load(&self.y.row(t + c)[(block + b) * ROWS..]);
                }
            }
        }
        for g in from..to {
            let sum = self.products::<S, B, T>(block, t, from, g);
            for b in 0..B {
                let scale = self.scale::<S>(block + b, g);
                for c in 0..T {
                    let x_scale = self.x.scales[(t + c) * (self.x.width / GROUP) + g];
                    acc[b][c] = V::wrap(S::float(sum[b][c])).fma(scale * V::splat(x_scale), acc[b][c]);
                }
            }
        }
        for b in 0..B {
            for c in 0..T {
                acc[b][c].store(&mut self.y.row_mut(t + c)[(block + b) * ROWS..]);
            }
        }
    }

    /// The integer sums of group `g` of `B` row blocks for `T` tokens, in the pass that begins with group `from`.
    #[inline(always)]
    fn products<S: IntTier, const B: usize, const T: usize>(
        &self,
        block: usize,
        t: usize,
        from: usize,
        g: usize,
    ) -> [[S::I; T]; B] {
        let mut lines = [&[[0; LINE]; LINES]; B];
        for b in 0..B {
            let all = if Q4 {
                self.unpacked[b * BLOCK..].as_chunks().0[(g - from) * LINES..].first_chunk()
            } else {
                self.block(block + b, g).first_chunk()
            };
            lines[b] = all.expect("32 lines");
        }
        let mut x: [&Fours; T] = [&[[0; 4]; LINES]; T];
        let mut sum = [[S::start(0); T]; B];
        for c in 0..T {
            x[c] = self.fours(t + c, g);
            for b in 0..B {
                sum[b][c] = S::start(self.x.starts[(t + c) * (self.x.width / GROUP) + g]);
            }
        }
        for l in 0..LINES {
            let mut line = [S::line4(&lines[0][l]); B];
            for b in 0..B {
                // The first tokens of a pass ask for the weights of the next one, a line at a time: all at once they would
                // find the processor's queue of requests full.
                if Q4 {
                    if l % 2 == 0 && t == 0 {
                        S::F::prefetch_l1(&self.block(block + b, g)[l / 2], PASS * Self::BYTES);
                    }
                    line[b] = S::line4(&lines[b][l]);
                } else {
                    if t == 0 {
                        S::F::prefetch_l1(&lines[b][l], AHEAD);
                    }
                    line[b] = S::line8(&lines[b][l]);
                }
            }
            for c in 0..T {
                for b in 0..B {
                    sum[b][c] = if Q4 {
                        S::dot4(sum[b][c], line[b], x[c][l])
                    } else {
                        S::dot8(sum[b][c], line[b], x[c][l])
                    };
                }
            }
        }
        sum
    }
}
