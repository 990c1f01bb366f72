//! Many tokens: the weights of a panel of rows are widened once and meet all tokens of a chunk.

use super::{Forward, Pass};
use crate::cpu::tier::{LANES, Tier, V, Weight};

/// Most rows of weights of a tile of many tokens.
pub(super) const PANEL_ROWS: usize = 8;

/// What to fetch during a tile: `bytes` more in every step along `in`.
#[derive(Clone, Copy)]
struct Ahead {
    at: *const u8,
    bytes: usize,
}

impl<W: Weight> Forward<'_, W> {
    /// Copies the last columns of many tokens, and zeros behind them.
    #[inline(always)]
    pub(super) fn copy_tails(&mut self) {
        let columns = self.i - self.i % LANES..self.i;
        for (t, tail) in self.tails.iter_mut().enumerate() {
            tail[columns.len()..].fill(0.0);
            tail[..columns.len()].copy_from_slice(&self.x[t * self.x_stride..][columns.clone()]);
        }
    }

    /// One pass over many tokens in tiles of `R` rows and `C` tokens.
    #[inline(always)]
    pub(super) fn many<S: Tier, const R: usize, const C: usize>(&mut self, pass: Pass) {
        const { assert!(R <= PANEL_ROWS) }
        let tokens = self.y.rows;
        for r in (0..self.y.width).step_by(R) {
            self.widen::<S, R>(r, pass);
            let tiled = tokens - tokens % C;
            for t in (0..tiled).step_by(C) {
                let ahead = self.ahead::<R, C>(r, t, pass);
                self.panel_tile::<S, R, C>(r, t, pass, ahead);
            }
            for t in tiled..tokens {
                self.panel_tile::<S, R, 1>(r, t, pass, self.nothing());
            }
        }
    }

    /// What to fetch while the rows from `r` meet the tokens from `t`: first the weights of the next panel, a row per tile, then
    /// what the next pass wants of the tokens, of which each panel takes its share. Both come from beyond L2, and the first
    /// to want them would wait.
    #[inline(always)]
    fn ahead<const R: usize, const C: usize>(&self, r: usize, t: usize, pass: Pass) -> Ahead {
        let (tile, tiles) = (t / C, self.y.rows / C);
        let (next, below) = (pass.from + pass.len, r + R);
        let weights = |row: usize, from: usize| Ahead {
            at: self.w.as_ptr().wrapping_add((row + tile) * self.w_stride + from).cast(),
            bytes: size_of::<[W; LANES]>(),
        };
        if tile < R && below < self.y.width {
            return weights(below, pass.from);
        }
        if tile < R && !pass.last {
            return weights(0, next);
        }
        let token = r / R * tiles.saturating_sub(R) + tile.saturating_sub(R);
        if pass.last || token >= self.y.rows {
            return self.nothing();
        }
        let at = self.x.as_ptr().wrapping_add(token * self.x_stride + next);
        Ahead { at: at.cast(), bytes: size_of::<[f32; LANES]>() }
    }

    /// A line that is near already.
    #[inline(always)]
    fn nothing(&self) -> Ahead {
        Ahead { at: self.panel.as_ptr().cast(), bytes: 0 }
    }

    /// Widens the weights of the rows from `r`; rows that do not exist are zeros.
    #[inline(always)]
    fn widen<S: Tier, const R: usize>(&mut self, r: usize, pass: Pass) {
        let panel = self.panel.as_chunks_mut::<R>().0;
        for j in 0..R {
            let exists = r + j < self.y.width;
            let row = if exists { &self.w[(r + j) * self.w_stride + pass.from..][..pass.len] } else { &[] };
            let (whole, tail) = row.as_chunks();
            let (vectors, rest) = panel[..pass.len.div_ceil(LANES)].split_at_mut(whole.len());
            for (out, w) in vectors.iter_mut().zip(whole) {
                W::of::<S>(w).to(&mut out[j]);
            }
            let mut tail = tail.chunks(LANES);
            for out in rest {
                W::load_part::<S>(tail.next().unwrap_or_default()).to(&mut out[j]);
            }
        }
    }

    /// Rows from `r` of the panel by tokens from `t`, a register's lanes after the other's: so fewer numbers are loaded per product
    /// than if sums of all lanes had to share the registers.
    #[inline(always)]
    fn panel_tile<S: Tier, const R: usize, const C: usize>(
        &mut self,
        r: usize,
        t: usize,
        pass: Pass,
        ahead: Ahead,
    ) {
        // In a single pass the panels share their place.
        let at = if self.passes == 1 { t } else { r / R * self.y.rows + t };
        let mut done = [[V::<S>::zero(); R]; C];
        for p in 0..S::PARTS {
            let sum = self.part_tile::<S, R, C>(at, t, p, pass, ahead);
            let sums = &mut self.sums.as_chunks_mut::<R>().0[at..][..C];
            for c in 0..C {
                for j in 0..R {
                    match S::whole(sum[c][j]) {
                        Some(whole) if pass.last => done[c][j] = V::wrap(whole),
                        _ => S::store_part(sum[c][j], &mut sums[c][j], p),
                    }
                }
            }
        }
        if !pass.last {
            return;
        }
        if S::PARTS > 1 {
            let sums = &self.sums.as_chunks::<R>().0[at..][..C];
            for c in 0..C {
                for j in 0..R {
                    done[c][j] = V::of(&sums[c][j]);
                }
            }
        }
        self.finish(r, t, &done);
    }

    /// Part `p` of the sums of the panel's rows by tokens from `t`, which go on from those at `at`.
    #[inline(always)]
    fn part_tile<S: Tier, const R: usize, const C: usize>(
        &self,
        at: usize,
        t: usize,
        p: usize,
        pass: Pass,
        mut ahead: Ahead,
    ) -> [[S::Part; R]; C] {
        let full = pass.len / LANES;
        let panel = self.panel.as_chunks::<R>().0;
        let sums = &self.sums.as_chunks::<R>().0[at..][..C];
        let zero = S::part(&[0.0; LANES], p);
        let mut x: [&[[f32; LANES]]; C] = [&[]; C];
        let mut sum = [[zero; R]; C];
        for c in 0..C {
            x[c] = &self.x[(t + c) * self.x_stride + pass.from..][..pass.len].as_chunks().0[..full];
            if !pass.first {
                for j in 0..R {
                    sum[c][j] = S::part(&sums[c][j], p);
                }
            }
        }
        for (k, w) in panel[..full].iter().enumerate() {
            S::prefetch_l2(ahead.at);
            ahead.at = ahead.at.wrapping_add(ahead.bytes);
            let mut xs = [zero; C];
            for c in 0..C {
                xs[c] = S::part(&x[c][k], p);
            }
            for j in 0..R {
                let weight = S::part(&w[j], p);
                for c in 0..C {
                    sum[c][j] = S::fma_part(weight, xs[c], sum[c][j]);
                }
            }
        }
        if !pass.len.is_multiple_of(LANES) {
            for j in 0..R {
                let weight = S::part(&panel[full][j], p);
                for c in 0..C {
                    sum[c][j] = S::fma_part(weight, S::part(&self.tails[t + c], p), sum[c][j]);
                }
            }
        }
        sum
    }
}
