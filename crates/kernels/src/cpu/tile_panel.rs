//! Products on tiles whose sum is cut into blocks: a panel of A and a block of the sum stay near while all of B goes by.
//!
//! Unfinished sums are kept as tiles, those of a tile of B together, so that every element is summed step by step in order,
//! whatever is cut where.

use super::amx::{A, Ahead, B, SIDE, Start, Tiles};

/// Rows of A per panel: two tiles.
pub(super) const PANEL: usize = 2 * SIDE;
/// Steps per block of the sum: a panel is then 16 KiB, which leaves room in L1 for B to pass.
pub(super) const DEPTH: usize = 8;

/// A panel of A, and all tiles of B, over a block of the sum.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) a: A<'a>,
    /// From the first tile on.
    pub(super) b: B<'a>,
    /// Tiles of B.
    pub(super) count: usize,
    /// Steps of the block.
    pub(super) steps: usize,
    /// Whether the sum begins with this block.
    pub(super) first: bool,
}

impl Panel<'_> {
    /// Numbers that the unfinished sums of a panel take, with `count` tiles of B.
    pub(super) fn sums(count: usize) -> usize {
        count * PANEL * SIDE
    }

    /// Adds the block to unfinished sums; `ahead` says what to fetch while tile `n` of B is met.
    pub(super) fn add(&self, tiles: &Tiles, sums: &mut [f32], ahead: impl Fn(usize) -> Ahead) {
        tiles.sums_bf16(sums, self.a, self.b, self.steps, self.first, ahead);
    }

    /// Adds the last block to `sums`, which may be empty if it is the first as well, and hands the results over:
    /// `done` is called with the two tiles of C for each tile of B, and its number.
    pub(super) fn complete(
        &self,
        tiles: &Tiles,
        sums: &[f32],
        ahead: impl Fn(usize) -> Ahead,
        mut done: impl FnMut(&[[f32; SIDE * SIDE]; 2], usize),
    ) {
        let mut c = [[0.0; SIDE * SIDE]; 2];
        for n in 0..self.count {
            let b = &self.b.x[n * self.b.tile..];
            let start = if self.first { Start::Zero } else { Start::From(&sums[Self::sums(n)..]) };
            tiles.product_bf16(c.as_flattened_mut(), self.a, b, self.steps, start, ahead(n));
            done(&c, n);
        }
    }
}
