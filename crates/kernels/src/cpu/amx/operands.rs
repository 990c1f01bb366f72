//! Where the operands of products of bf16 tiles lie: strides are in elements.

use half::bf16;

use super::SIDE;

/// Tiles of A in memory.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct A<'a> {
    /// From the first element of the first tile on.
    pub(in crate::cpu) x: &'a [bf16],
    /// From one row of a tile to the next.
    pub(in crate::cpu) row: usize,
    /// From one step to the next.
    pub(in crate::cpu) step: usize,
    /// From one tile to the tile of the next 16 rows.
    pub(in crate::cpu) tile: usize,
}

impl<'a> A<'a> {
    /// Rows of a row-major matrix, `stride` elements apart, of which `row_step` are taken per step.
    pub(in crate::cpu) fn rows(x: &'a [bf16], stride: usize, row_step: usize) -> Self {
        A { x, row: stride, step: row_step, tile: SIDE * stride }
    }

    /// Tiles that lie one after the other, `steps` of them per 16 rows, each of `row_step` elements a row.
    pub(in crate::cpu) fn packed(x: &'a [bf16], steps: usize, row_step: usize) -> Self {
        A { x, row: row_step, step: SIDE * row_step, tile: steps * SIDE * row_step }
    }

    /// The last element that `tiles` tiles and `steps` steps of `width` elements read, plus one.
    pub(super) fn end(&self, tiles: usize, steps: usize, width: usize) -> usize {
        (tiles - 1) * self.tile + (SIDE - 1) * self.row + (steps - 1) * self.step + width
    }
}

/// Tiles of B in memory: those of the steps of 16 columns one after the other.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct B<'a> {
    /// From the first tile on.
    pub(in crate::cpu) x: &'a [bf16],
    /// From one tile to the tile of the next columns.
    pub(in crate::cpu) tile: usize,
}

/// Tiles of B that lie apart, each of them one run of memory.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Spread<'a> {
    /// From the first tile on.
    pub(in crate::cpu) x: &'a [bf16],
    /// From one tile to the tile of the next columns.
    pub(in crate::cpu) tile: usize,
    /// From one step to the next.
    pub(in crate::cpu) step: usize,
}

/// Tiles of C that lie apart, each of them one run of memory.
pub(in crate::cpu) struct C<'a> {
    /// From the first tile on.
    pub(in crate::cpu) x: &'a mut [f32],
    /// From one tile to that of the next tile of A.
    pub(in crate::cpu) a: usize,
    /// From one tile to that of the next tile of B.
    pub(in crate::cpu) b: usize,
}

/// What will be needed soon and is fetched into L2 meanwhile: two runs of memory, some lines of each in every step. Nothing
/// is read, so any address will do.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Ahead(pub(in crate::cpu) [*const bf16; 2]);

impl Ahead {
    /// Nothing in particular: what lies behind `near`.
    pub(in crate::cpu) fn nothing(near: &[bf16]) -> Self {
        Ahead([near.as_ptr(); 2])
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(in crate::cpu) enum Start<'a> {
    Zero,
    /// What the tiles of C hold.
    Own,
    /// Tiles laid out as those of C.
    From(&'a [f32]),
}

impl From<bool> for Start<'_> {
    /// Whether this is the first product.
    fn from(first: bool) -> Self {
        if first { Start::Zero } else { Start::Own }
    }
}
